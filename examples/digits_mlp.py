"""Trains a classifier of handwritten digits, keeps its parameters in a file, and uses the file.

Run it with `python examples/digits_mlp.py`.
"""

import argparse
import tempfile
from pathlib import Path

import kaun as kn
from kaun import nx


def main(epochs: int = 20) -> float:
    """Train for some passes over the data; the share of test digits that the network then gets right."""
    x_train, y_train, x_test, y_test = kn.datasets.digits(flatten=True)

    model = kn.layer.sequential([
        kn.layer.linear(in_features=64, out_features=128),
        kn.layer.relu(),
        kn.layer.dropout(rate=0.2),
        kn.layer.linear(in_features=128, out_features=10),
    ])
    schedule = kn.optim.schedule.cosine_decay(init_value=5e-3, decay_steps=epochs * 22)
    trainer = kn.train.make(model=model, optimizer=kn.optim.adamw(lr=schedule))

    with nx.rng.run(seed=42):
        state = kn.train.init(trainer)
        batches = kn.data.prepare((x_train, y_train), batch_size=64, shuffle=True)

    # A pipeline is used up after one pass; `reset` begins the next one, in a new order.
    for epoch in range(1, epochs + 1):
        losses = kn.metric.tracker()
        state = kn.train.fit(
            trainer, state, batches,
            loss=kn.loss.cross_entropy_sparse,
            report=lambda step, loss, state, losses=losses: losses.observe("loss", loss),
        )  # fmt: skip
        accuracy = kn.metric.accuracy(kn.train.predict(trainer, state, x_test), y_test)
        print(f"epoch {epoch:2}  {losses.summary()}  test accuracy {accuracy:.4f}")
        batches.reset()

    # Parameters are a tree; its leaves lie in the file under their paths, such as "0.weight".
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        kn.checkpoint.save(path, state.vars.params)
        loaded = state.vars.with_params(kn.checkpoint.load(path, like=state.vars.params))

    logits, _ = kn.layer.apply(model, loaded, x_test, training=False)
    return kn.metric.accuracy(logits, y_test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    print(f"{100 * main(epochs=parser.parse_args().epochs):.1f} % of the test digits are right")
