"""Teaches a transformer to write the Python manual, character by character, and lets it write a few lines.

Run it with `python examples/char_transformer.py`. The text is what `help("topics")` shows, which comes with Python.
"""

import argparse
import pydoc_data.topics

import numpy as np

import kaun as kn
from kaun import nx

CONTEXT = 64  # characters the model sees
BATCH = 32


def make_model(characters: int, width: int = 96, heads: int = 4, blocks: int = 2) -> kn.layer.Layer:
    """Logits (B, T, characters) of the character after each of x (B, T): a small GPT with rotary positions."""
    layers = []
    for _ in range(blocks):
        attend = kn.attention.multi_head_attention(embed_dim=width, num_heads=heads, is_causal=True, rope=True)
        layers += [
            kn.layer.residual(kn.layer.sequential([kn.layer.layer_norm(dim=width), attend])),
            kn.layer.residual(kn.layer.sequential([
                kn.layer.layer_norm(dim=width),
                kn.layer.linear(in_features=width, out_features=4 * width),
                kn.layer.gelu(),
                kn.layer.linear(in_features=4 * width, out_features=width),
            ])),
        ]  # fmt: skip
    head = [kn.layer.layer_norm(dim=width), kn.layer.linear(in_features=width, out_features=characters)]
    embedding = kn.layer.embedding(vocab_size=characters, embed_dim=width)
    return kn.layer.compose(embedding, kn.layer.sequential([*layers, *head]))


def windows(text: np.ndarray, count: int, seed: int) -> kn.data.Data:
    """Batches (x, y) of stretches from random places of `text`; y is one character further on."""

    def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
        starts = np.random.default_rng((seed, number)).integers(0, len(text) - CONTEXT, BATCH)
        stretches = text[starts[:, None] + np.arange(CONTEXT + 1)]
        return stretches[:, :-1], stretches[:, 1:]

    return kn.data.of_fn(count, batch)


def mean_loss(trainer: kn.train.Trainer, state: kn.train.State, batches: kn.data.Data) -> float:
    """The mean loss over batches (x, y), in nats per character."""
    return kn.metric.eval(
        lambda batch: kn.loss.cross_entropy_sparse(kn.train.predict(trainer, state, batch[0]), batch[1]), batches
    )


def write(trainer: kn.train.Trainer, state: kn.train.State, start: np.ndarray, length: int) -> np.ndarray:
    """`start` (CONTEXT,) continued by `length` characters, each drawn from the model's distribution."""
    text = start
    for _ in range(length):
        logits = kn.train.predict(trainer, state, text[None, -CONTEXT:])[0, -1]
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        noise = -nx.log(-nx.log(nx.rng.uniform(logits.shape)))
        text = np.append(text, int(nx.argmax(logits + noise)))
    return text[len(start) :]


def learn(text: np.ndarray, characters: int, steps: int) -> tuple[kn.train.Trainer, kn.train.State]:
    """A trainer and its state after some steps on `text`."""
    schedule = kn.optim.schedule.warmup_cosine_decay(
        init_value=0.0, peak_value=3e-3, warmup_steps=max(1, steps // 20), decay_steps=steps
    )
    optimizer = kn.optim.chain([kn.optim.clip_by_global_norm(1.0), kn.optim.adamw(lr=schedule)])
    trainer = kn.train.make(model=make_model(characters), optimizer=optimizer)
    with nx.rng.run(seed=0):
        state = kn.train.init(trainer)
    batches = windows(text, steps, seed=1).prefetch()
    return trainer, kn.train.fit(trainer, state, batches, loss=kn.loss.cross_entropy_sparse, progress=True)


def main(steps: int = 500, written: int = 300) -> float:
    """Train for some steps; the mean loss over text that was kept aside."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = "".join(sorted(set(text)))
    codes = np.array([alphabet.index(character) for character in text])
    training, validation = np.split(codes, [int(0.9 * len(codes))])

    trainer, state = learn(training, len(alphabet), steps)
    loss = mean_loss(trainer, state, windows(validation, 16, seed=2))
    print(f"{steps} steps  validation loss {loss:.3f} nats per character")
    with nx.rng.run(seed=3):
        print("".join(alphabet[code] for code in write(trainer, state, validation[:CONTEXT], written)))
    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(steps=parser.parse_args().steps)
