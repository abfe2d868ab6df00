"""Trains a convolutional network on handwritten digits that are shifted at random as they are read.

Run it with `python examples/digits_cnn.py`.
"""

import argparse

import numpy as np

import kaun as kn
from kaun import nx


def make_model() -> kn.layer.Layer:
    """Logits (N, 10) of images (N, 1, 8, 8): two convolutions with batch normalisation, then a linear layer."""
    return kn.layer.sequential([
        kn.layer.conv2d(in_channels=1, out_channels=16),
        kn.layer.batch_norm(num_features=16, momentum=0.9),
        kn.layer.relu(),
        kn.layer.max_pool2d(kernel_size=2),  # 8 x 8 to 4 x 4
        kn.layer.conv2d(in_channels=16, out_channels=32),
        kn.layer.batch_norm(num_features=32, momentum=0.9),
        kn.layer.relu(),
        kn.layer.max_pool2d(kernel_size=2),  # 4 x 4 to 2 x 2
        kn.layer.flatten(),
        kn.layer.dropout(rate=0.2),
        kn.layer.linear(in_features=32 * 2 * 2, out_features=10),
    ])


def compiled() -> object:
    """The training step on batches of 64, for tools that look inside: `kaun viz examples/digits_cnn.py:compiled`."""
    trainer = kn.train.make(model=make_model(), optimizer=kn.optim.adamw(lr=kn.optim.schedule.constant(1e-3)))
    x, y = kn.spec((64, 1, 8, 8)), kn.spec((64,), kn.int32)
    return kn.train.compile(trainer, x=x, y=y, loss=kn.loss.cross_entropy_sparse)


def shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each of the images (N, 1, 8, 8) moved by -1, 0 or 1 pixels along both axes; what is moved in is empty."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    down, right = random.integers(0, 3, (2, len(images), 1, 1))
    rows, columns = down + np.arange(8)[:, None], right + np.arange(8)
    return padded[np.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def main(epochs: int = 15) -> float:
    """Train for some passes over the data; the share of test digits that the network then gets right."""
    x_train, y_train, x_test, y_test = kn.datasets.digits()
    random = np.random.default_rng(0)

    with nx.rng.run(seed=0):
        batches = kn.data.prepare((x_train, y_train), batch_size=64, shuffle=True)
        # The next two batches are shifted in another thread while the current one is learned from.
        batches = batches.map(lambda pair: (shifted(np.asarray(pair[0]), random), pair[1])).prefetch(2)
        schedule = kn.optim.schedule.cosine_decay(init_value=5e-3, decay_steps=epochs * batches.length())
        trainer = kn.train.make(model=make_model(), optimizer=kn.optim.adamw(lr=schedule))
        state = kn.train.init(trainer)

    print(f"{kn.ptree.count_parameters(state.vars.params):,} parameters")
    for epoch in range(1, epochs + 1):
        losses = kn.metric.tracker()
        state = kn.train.fit(
            trainer, state, batches,
            loss=kn.loss.cross_entropy_sparse,
            report=lambda step, loss, state, losses=losses: losses.observe("loss", loss),
        )  # fmt: skip
        # Prediction uses the running statistics that the normalisation layers gathered, and no dropout.
        accuracy = kn.metric.accuracy(kn.train.predict(trainer, state, x_test), y_test)
        print(f"epoch {epoch:2}  {losses.summary()}  test accuracy {accuracy:.4f}")
        batches.reset()
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    print(f"{100 * main(epochs=parser.parse_args().epochs):.1f} % of the test digits are right")
