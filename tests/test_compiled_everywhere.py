"""Everything numeric runs in compiled kernels: with the NumPy interpreter made to raise, it all still works; and
whatever is asked for does compile."""

import numpy as np
import pytest
from kaun.compiler.ir import graph, interpreter
from promises import cnn, digest, examples, fresh_process, mlp, started, trainer_of

import kaun as kn
from kaun import loss, metric, nx, ptree, train


class InterpretedError(AssertionError):
    """Something computed with NumPy what a kernel should have computed."""


@pytest.fixture(autouse=True)
def interpreter_raises(monkeypatch):
    """No graph can be evaluated and no op applied to an array. Numbers may still be folded while compiling."""

    def evaluate(*arguments, **keywords):
        raise InterpretedError("interpreter.evaluate")

    def only_numbers(op, meaning):
        def guarded(*arrays, **attributes):
            if not arrays or any(np.ndim(array) for array in arrays):
                raise InterpretedError(op.name)
            return meaning(*arrays, **attributes)

        return guarded

    monkeypatch.setattr(interpreter, "evaluate", evaluate)
    before = {op: op.meaning for op in graph.TABLE.values()}
    for op, meaning in before.items():
        object.__setattr__(op, "meaning", only_numbers(op, meaning))
    yield
    for op, meaning in before.items():
        object.__setattr__(op, "meaning", meaning)


def test_the_interpreter_does_raise():
    node = (nx.asarray(np.ones(3, np.float32)) + 1.0)._node
    with pytest.raises(InterpretedError):
        interpreter.evaluate(graph.Graph(node.inputs[:1], (node,)), [np.ones(3, np.float32)])
    with pytest.raises(InterpretedError):
        node.op.meaning(np.ones(3), np.ones(3))


@pytest.mark.parametrize(
    "model, shape, dtype",
    [
        (mlp(21, 19, 10, rate=0.2), (21,), kn.float32),
        (mlp(21, 19, 10, rate=0.2), (21,), kn.float64),
        (mlp(21, 19, 10, rate=0.2), (21,), kn.bfloat16),
        (cnn((4, 5, 6)), (1, 8, 8), kn.float32),
    ],
    ids=["mlp", "mlp in float64", "mlp in bfloat16", "cnn"],
)
def test_initialising_training_predicting_scoring_and_saving_work(tmp_path, model, shape, dtype):
    x, y = examples(48, shape, 10)
    trainer = trainer_of(model)
    st = started(trainer, dtype=dtype)
    with nx.rng.run(seed=3):
        data = kn.data.prepare((x, y), batch_size=16, shuffle=True)
    losses = []
    for _ in range(6):
        data.reset()
        st = train.fit(
            trainer, st, data, loss=loss.cross_entropy_sparse, report=lambda step, loss, state: losses.append(loss)
        )
    assert losses[-1] < losses[0]
    logits = train.predict(trainer, st, x)
    assert logits.shape == (48, 10) and logits.dtype is dtype
    scores = [metric.accuracy(logits, y), metric.f1(logits, y), metric.precision(logits, y), metric.recall(logits, y)]
    assert all(0.0 < score <= 1.0 for score in scores)
    kn.checkpoint.save(tmp_path / "model.safetensors", st.to_tree())
    loaded = kn.checkpoint.load(tmp_path / "model.safetensors", like=started(trainer, seed=9, dtype=dtype).to_tree())
    assert digest(loaded) == digest(st.to_tree())


def test_random_numbers_reductions_gradients_and_indexing_work():
    with nx.rng.run(seed=11):
        drawn = (
            nx.rng.uniform((33,)), nx.rng.normal((3, 11)), nx.rng.randint((7,), 0, 5), nx.rng.bernoulli((9,), p=0.5),
            nx.rng.permutation(13), nx.rng.truncated_normal((5,)),
        )  # fmt: skip
    nx.realize(*drawn)
    x = drawn[1]
    computed = (
        nx.sum(x, axis=0), nx.max(x), nx.argmax(x, axis=1), nx.sort(x, axis=1), nx.cumulative_sum(x, axis=1),
        nx.softmax(x), x.T @ x, x[1, ::2], x[drawn[2] % 3], nx.concat([x, x]), nx.one_hot(drawn[2], 5), nx.arange(17),
        kn.grad(lambda a: nx.sum(nx.tanh(a) @ a.T))(x), kn.jit(lambda a: nx.einsum("ij,ij->i", a, a))(x),
    )  # fmt: skip
    assert all(np.isfinite(leaf.numpy().astype(np.float64)).all() for leaf in ptree.leaves(computed))


@pytest.mark.parametrize("kind", ["chain", "inputs", "accumulation"])
def test_very_long_computations_compile(kind):
    x = np.linspace(0.0, 1.0, 5, dtype=np.float32)
    if kind == "chain":
        tensor, expected = nx.asarray(x), x.astype(np.float64)
        for _ in range(2000):
            tensor, expected = nx.sin(tensor) + 0.1, np.sin(expected) + 0.1
    elif kind == "inputs":
        tensor = kn.jit(lambda *parts: sum(parts[1:], parts[0]))(*(x + i for i in range(500)))
        expected = 500 * x + sum(range(500))
    else:
        # What a loop does that adds up its losses and looks at the sum once.
        tensor = nx.zeros((5,))
        for i in range(3000):
            tensor = tensor + nx.asarray(x + i)
        expected = 3000.0 * x + sum(range(3000))
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-4)


def test_random_numbers_drawn_inside_a_reduction_over_the_first_axis_compile(tmp_path):
    """LLVM's search for CRC loops walks the rounds of Threefry in exponential time: it must not be among the passes."""
    code = """
from kaun import nx
with nx.rng.run(seed=0):
    drawn = nx.rng.uniform((1000, 1500))
print(float(nx.sum(nx.softmax(drawn, axis=0))))
"""
    done = fresh_process(code, seconds=60, KAUN_CACHE_DIR=str(tmp_path))
    assert abs(float(done.stdout) - 1500.0) < 0.1
