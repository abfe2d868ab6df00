"""Bugs that are known and not mended yet: each test keeps the promise in its name, and says why it fails today."""

import subprocess

import numpy as np
import pytest
from promises import fresh_process

import kaun as kn
from kaun import nx, optim
from kaun.runtime.cache import default_cache


@pytest.mark.xfail(
    reason="LLVM 21 and later: HashRecognize (a part of LoopIdiomRecognize that looks for CRCs) walks the rounds of "
    "Threefry in exponential time in loops whose trip count is a multiple of 8; the option "
    "-disable-loop-idiom-hashrecognize switches it off",
    raises=subprocess.TimeoutExpired,
    strict=True,
)
def test_random_numbers_drawn_inside_a_reduction_over_the_first_axis_compile(tmp_path):
    code = """
from kaun import nx
with nx.rng.run(seed=0):
    drawn = nx.rng.uniform((1000, 1500))
print(float(nx.sum(nx.softmax(drawn, axis=0))))
"""
    done = fresh_process(code, seconds=20, KAUN_CACHE_DIR=str(tmp_path))
    assert abs(float(done.stdout) - 1500.0) < 1e-1


@pytest.mark.xfail(
    reason="schedule/expand.py recurses over the whole kernel, and no kernel is cut for being deep",
    raises=RecursionError,
    strict=True,
)
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


@pytest.mark.xfail(
    reason="Python numbers are constants of the kernel, so each new one is a new program", raises=AssertionError, strict=True
)
def test_a_loop_whose_numbers_change_compiles_once():
    x = nx.asarray(np.arange(7, dtype=np.float32))
    before = default_cache().statistics
    for step in range(1, 30):
        (x * (0.5 / step) + 1.25 * step).numpy()
    assert default_cache().statistics.compiled - before.compiled <= 4


@pytest.mark.xfail(
    reason="optim.init passes the leaves of a tree on as they are; NumPy's dtypes have no `compute`",
    raises=AttributeError,
    strict=True,
)
def test_optimizers_take_trees_of_numpy_arrays():
    params = {"weight": np.ones((2, 3), np.float32)}
    tx = optim.adam(lr=0.5)
    after, _ = optim.update(tx, optim.init(tx, params), params, {"weight": np.ones((2, 3), np.float32)})
    np.testing.assert_allclose(after["weight"].numpy(), 0.5, rtol=1e-5)
