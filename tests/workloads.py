"""Computations whose every bit is promised, and their digests."""

from __future__ import annotations

import json

from kaun.runtime.cache import default_cache
from promises import cnn, digest, examples, mlp, started, trainer_of

import kaun as kn
from kaun import fn, loss, nx, ptree, train


def trained_perceptron():
    x, y = examples(192, (784,), 10)
    trainer = trainer_of(mlp(784, 128, 10, rate=0.2))
    with nx.rng.run(seed=7):
        batches = kn.data.prepare((x, y), batch_size=64, shuffle=True)
    return train.fit(trainer, started(trainer), batches, loss=loss.cross_entropy_sparse).to_tree()


def trained_convolutions():
    x, y = examples(96, (1, 8, 8), 10)
    trainer = trainer_of(cnn())
    batches = [(x[i : i + 32], y[i : i + 32]) for i in (0, 32, 64)]
    st = train.fit(trainer, started(trainer), batches, loss=loss.cross_entropy_sparse)
    return ptree.Dict(state=st.to_tree(), logits=train.predict(trainer, st, x))


def large_reductions():
    with nx.rng.run(seed=1):
        x = nx.rng.normal((3_000_017,))
        y = nx.rng.uniform((1000, 3, 500))
    nx.realize(x, y)
    return (
        nx.sum(x), nx.mean(x * x), nx.max(x), nx.argmax(x), nx.var(x), nx.logsumexp(x),
        nx.sum(y, axis=(0, 2)), nx.sum(y, axis=0), nx.softmax(y, axis=0), nx.cumulative_sum(y[:, 0], axis=0),
    )  # fmt: skip


def deep_contractions():
    """Products whose contracted axis is much longer than the others, so that it is the one to share out."""
    with nx.rng.run(seed=2):
        a, b = nx.rng.normal((24, 60_000)), nx.rng.normal((60_000, 16))
        c, d = nx.rng.normal((5, 130, 257)), nx.rng.normal((5, 257, 65))
    return a @ b, nx.sum(a * a, axis=1), c @ d, nx.vecdot(a, a)


def scattered_gradients():
    with nx.rng.run(seed=3):
        table, places = nx.rng.normal((50, 16)), nx.rng.randint((4000,), low=0, high=50)
        large, few = nx.rng.normal((5000, 100)), nx.rng.randint((300,), low=0, high=5000)

    def gradient(table, places):
        return kn.grad(lambda rows: nx.sum(nx.sin(rows[places]) * 0.1))(table)

    return gradient(table, places), gradient(large, few)


def attended_sequences():
    """Attention with its gradients: few entries of long sequences, whose rows are dealt, and many of short ones."""

    def weighed(q, k, v):
        with nx.rng.with_key(nx.rng.key(5)):
            return nx.sum(fn.dot_product_attention(q, k, v, is_causal=True, dropout=0.1) * q)

    def gradients(*shape):
        with nx.rng.run(seed=4):
            return kn.value_and_grad(weighed, argnums=(0, 1, 2))(*(nx.rng.normal(shape) for _ in range(3)))

    return gradients(1, 2, 700, 16), gradients(9, 4, 65, 16)


WORKLOADS = (
    trained_perceptron, trained_convolutions, large_reductions, deep_contractions, scattered_gradients,
    attended_sequences,
)  # fmt: skip


def digests():
    return {work.__name__: digest(work()) for work in WORKLOADS}


def report():
    """Print the digests, and how many kernels were compiled and how many came from the disk."""
    found = digests()
    statistics = default_cache().statistics
    print(json.dumps({"digests": found, "compiled": statistics.compiled, "loaded": statistics.disk_hits}))
