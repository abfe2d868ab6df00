"""Teaches a small network exclusive or: data, a model, a training loop and a prediction, in one screen.

Run it with `python examples/xor.py`.
"""

import argparse

import kaun as kn
from kaun import nx


def main(steps: int = 500) -> list[int]:
    """Train for some steps; what the network then answers for the four inputs."""
    x = nx.asarray([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = nx.asarray([[0.0], [1.0], [1.0], [0.0]])

    model = kn.layer.sequential([
        kn.layer.linear(in_features=2, out_features=8),
        kn.layer.tanh(),
        kn.layer.linear(in_features=8, out_features=1),
    ])
    trainer = kn.train.make(model=model, optimizer=kn.optim.adam(lr=0.05))

    # Whatever draws random numbers, such as fresh weights, does so inside a scope with a seed.
    with nx.rng.run(seed=0):
        state = kn.train.init(trainer)

    # A step is compiled the first time. It returns a new state; the old one stays valid.
    for number in range(1, steps + 1):
        loss, state = kn.train.step(trainer, state, x, loss=lambda logits: kn.loss.binary_cross_entropy(logits, y))
        if number == 1 or number % 100 == 0:
            print(f"step {number:3}  loss {float(loss):.4f}")

    # The network gives logits: above zero means "yes".
    logits = kn.train.predict(trainer, state, x)
    answers = [int(logit > 0) for logit in logits.numpy()[:, 0]]
    for (a, b), answer in zip(x.tolist(), answers, strict=True):
        print(f"{a:.0f} xor {b:.0f} = {answer}")
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(steps=parser.parse_args().steps)
