"""Exports a classifier of handwritten digits, training step and all, for a C program to train.

Run it with `python examples/aot_c/export.py`, then `make -C examples/aot_c`. It writes the folder `exported`: the step
as an object with its header, and the digits as raw data.
"""

import argparse
from pathlib import Path

import numpy as np

import kaun as kn
from kaun import nx

BATCH = 64


def main(folder: Path, target: str = "host") -> Path:
    """Write the step and the data. The C program needs nothing of Python after this."""
    model = kn.layer.sequential([
        kn.layer.linear(in_features=64, out_features=128),
        kn.layer.relu(),
        kn.layer.dropout(rate=0.2),
        kn.layer.linear(in_features=128, out_features=10),
    ])
    schedule = kn.optim.schedule.cosine_decay(init_value=5e-3, decay_steps=20 * 22)
    trainer = kn.train.make(model=model, optimizer=kn.optim.adamw(lr=schedule))
    step = kn.train.compile(
        trainer, x=kn.spec((BATCH, 64)), y=kn.spec(BATCH, kn.int32), loss=kn.loss.cross_entropy_sparse, target=target
    )
    with nx.rng.run(seed=42):
        exported = step.export(folder, state=kn.train.init(trainer))
    print(exported)

    # Image after image with its label: 64 float32, one int32. The first 1437 are to train on, the others to test with.
    digits = kn.datasets.digits(flatten=True)
    records = np.dtype([("image", np.float32, 64), ("label", np.int32)])
    for name, images, labels in (
        ("train.raw", digits.x_train, digits.y_train),
        ("test.raw", digits.x_test, digits.y_test),
    ):
        data = np.empty(len(labels.numpy()), records)
        data["image"], data["label"] = images.numpy(), labels.numpy()
        data.tofile(folder / name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "exported")
    parser.add_argument("--target", default="host", help="another machine, such as raspberry-pi-4")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.target)
