"""jit gives what the function gives, wherever it is called from, and traces once for each structure."""

import threading

import numpy as np
import pytest

import kaun as kn
from kaun import layer, nx, optim, ptree, train

A = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
B = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)


def test_a_jitted_function_inside_another_becomes_part_of_it():
    inner = kn.jit(lambda a, b: nx.tanh(a @ b))
    outer = kn.jit(lambda a, b: inner(a, b) + inner(b, a) + inner(nx.asarray(A), nx.asarray(B)))
    np.testing.assert_allclose(outer(A, B).numpy(), 2 * np.tanh(A @ B) + np.tanh(B @ A), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inner(A, B).numpy(), np.tanh(A @ B), rtol=1e-5, atol=1e-6)


def test_gradients_of_and_inside_jitted_functions():
    cube = kn.jit(lambda x: nx.sum(x**3))
    x = nx.asarray([1.0, 2.0, 3.0])
    assert kn.grad(cube)(x).tolist() == [3.0, 12.0, 27.0]
    assert kn.jit(kn.grad(cube))(x).tolist() == [3.0, 12.0, 27.0]
    twice = kn.grad(kn.jit(lambda x: nx.sum(kn.grad(cube)(x))))
    assert twice(x).tolist() == [6.0, 12.0, 18.0]


def test_a_jitted_function_may_capture_what_another_is_traced_with():
    def outer(x):
        inner = kn.jit(lambda y: y * x)
        return inner(nx.ones((3,))) + inner(2.0)

    assert kn.jit(outer)(np.arange(3, dtype=np.float32)).tolist() == [0.0, 3.0, 6.0]
    gradient = kn.grad(lambda x: nx.sum(outer(x)))(nx.asarray([0.0, 1.0, 2.0]))
    assert gradient.tolist() == [3.0, 3.0, 3.0]


def test_predictions_are_differentiable_and_can_be_jitted():
    trainer = train.make(model=layer.linear(in_features=4, out_features=2), optimizer=optim.sgd(lr=0.1))
    with nx.rng.run(seed=0):
        st = train.init(trainer)
    plain = train.predict(trainer, st, A)
    jitted = kn.jit(lambda x: train.predict(trainer, st, x) * 2.0)(A)
    np.testing.assert_allclose(jitted.numpy(), 2 * plain.numpy(), rtol=1e-6)
    gradient = kn.grad(lambda x: nx.sum(train.predict(trainer, st, x)))(nx.asarray(A))
    expected = np.tile(st.vars.params["weight"].numpy().sum(1), (4, 1))
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5)


def test_numbers_count_as_tensors():
    traces = []

    @kn.jit
    def product(a, b):
        traces.append((a.dtype, b.dtype))
        return {"product": a * b, "number": 1.5, "parts": [a, 2]}

    results = [product(2.0, number) for number in (3.0, 4.0)]
    assert [result["product"].item() for result in results] == [6.0, 8.0]
    assert traces == [(kn.float32, kn.float32)]
    assert results[0]["number"].item() == 1.5 and results[0]["parts"][1].item() == 2
    with pytest.raises(TypeError, match="got str"):
        product("text", 1.0)


def test_each_structure_dtype_and_shape_is_traced_once():
    traces = []

    @kn.jit
    def doubled(tree):
        traces.append(tree)
        return ptree.map(lambda leaf: leaf * 2, tree)

    trees = [A, A[:2], A.astype(np.float64), {"a": A}, {"a": A, "b": [A]}, (A,)]
    for _ in range(2):
        for tree in trees:
            for leaf, given in zip(ptree.leaves(doubled(tree)), ptree.leaves(tree), strict=True):
                np.testing.assert_array_equal(leaf.numpy(), given * 2)
    assert len(traces) == len(trees)


def test_captured_and_handed_through_tensors_and_constants_come_back():
    captured, lazy = nx.asarray([2.0, 2.0, 2.0]), nx.asarray([1.0, 2.0, 3.0]) * 3
    x = np.arange(3, dtype=np.float32)
    first, second, ones, total = kn.jit(lambda x: (x, x, nx.ones((2,)), x * captured + lazy))(x)
    assert first.tolist() == second.tolist() == [0.0, 1.0, 2.0]
    assert ones.tolist() == [1.0, 1.0] and total.tolist() == [3.0, 8.0, 13.0]
    assert kn.jit(lambda: nx.arange(4) * 2)().tolist() == [0, 2, 4, 6]


def test_threads_may_trace_one_function_at_once():
    function = kn.jit(lambda a: nx.sum(nx.sin(a) @ a.T, axis=0))
    expected = (np.sin(A) @ A.T).sum(0)
    results = []
    workers = [threading.Thread(target=lambda: results.append(function(A).numpy())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4 and len({result.tobytes() for result in results}) == 1
    np.testing.assert_allclose(results[0], expected, rtol=1e-5, atol=1e-6)
