"""Kernels, run one by one in NumPy, compute what the graph means: so what is wrong elsewhere is code generation."""

from __future__ import annotations

import numpy as np
import pytest
from graph_strategies import Example, assert_outputs_agree, graph_from_seed
from kaun.compiler.ir import dtypes, ops, print_graph
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.run import run_kernel
from schedule_examples import MODELS, TARGET, collapsed, run_kernels


def check(example: Example, change) -> None:
    expected = evaluate(example.graph, example.arguments)
    try:
        results = run_kernels(Compilation(example.graph, TARGET), example.arguments, change)
        assert_outputs_agree(example, results, expected)
    except Exception as error:
        error.add_note(print_graph(example.graph))
        raise


@pytest.mark.parametrize("ten", range(15))
def test_kernels_of_random_graphs_agree_with_the_interpreter(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        check(graph_from_seed(seed), lambda kernel: kernel)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(10))
def test_kernels_of_a_thousand_random_graphs_agree_with_the_interpreter(hundred):
    for seed in range(100 * hundred, 100 * hundred + 100):
        check(graph_from_seed(seed), collapsed)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_kernels_of_training_steps_agree_with_the_interpreter(model):
    traced = model()
    results = run_kernels(traced.compilation, traced.arguments)
    expected = evaluate(traced.graph, traced.arguments)
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-6)


GUARDED = """\
kernel(%0: float32[3] in, %1: float32[5] out) {
  parallel o0 < 5 {
    once {
      v0 = load %0[o0 + -1] if 0 <= o0 + -1 < 3 : float32
      v1 = literal 9.0 : float32
      v2 = select v0 else v1 if 0 <= o0 + -1 < 3 : float32
      store %1[o0] = v2
    }
  }
}
"""


def run(text, *arrays):
    run_kernel(parse_kernel(text), arrays)
    return arrays[-1]


def test_a_guarded_load_reads_inside_only_and_what_is_outside_is_not_plausible():
    x = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(run(GUARDED, x, np.empty(5, np.float32)), [9, 1, 2, 3, 9])
    careless = GUARDED.replace("store %1[o0] = v2", "store %1[o0] = v0")
    np.testing.assert_array_equal(run(careless, x, np.empty(5, np.float32)), [np.nan, 1, 2, 3, np.nan])


def test_loads_and_stores_out_of_bounds_are_errors():
    x = np.zeros(3, np.float32)
    with pytest.raises(IndexError, match=r"o0 \+ -1 is out of bounds for size 3"):
        run(GUARDED.replace("load %0[o0 + -1] if 0 <= o0 + -1 < 3", "load %0[o0 + -1]"), x, np.empty(5, np.float32))
    with pytest.raises(IndexError, match=r"o0 \+ 1 is out of bounds for size 5"):
        run(GUARDED.replace("store %1[o0]", "store %1[o0 + 1]"), x, np.empty(5, np.float32))


def test_arrays_have_to_fit_the_buffers():
    x, out = np.zeros(3, np.float32), np.empty(5, np.float32)
    strided = np.zeros(6, np.float32)[::2]
    for arrays in ((x,), (x, np.empty(4, np.float32)), (x.astype(np.float64), out), (strided, out)):
        with pytest.raises(ValueError, match=r"run\.run_kernel: got"):
            run(GUARDED, *arrays)


@pytest.mark.parametrize(("combine", "expected"), [("argmax", [1, 0, 1]), ("argmin", [0, 0, 1])])
def test_the_first_extremum_wins_and_a_nan_is_one(combine, expected):
    text = f"""\
    kernel(%0: float32[12] in, %1: int64[3] out) {{
      parallel o0 < 3 {{
        for r0_0 < 4 {{
          v0 = load %0[4*o0 + r0_0] : float32
          v1 = index r0_0 : int64
          s0 = {combine} v0 at v1 : int64
        }}
        once {{
          v2 = result s0 : int64
          store %1[o0] = v2
        }}
      }}
    }}
    """
    x = np.array([[1, 5, 5, 1], [2, 2, 2, 2], [3, np.nan, 9, np.nan]], np.float32)
    np.testing.assert_array_equal(run(text, x, np.empty(3, np.int64)), expected)


def test_narrow_floats_are_wide_between_load_and_store_and_a_cast_rounds():
    text = """\
    kernel(%0: float16[1] in, %1: float32[1] out, %2: float32[1] out) {
      parallel {
        once {
          v0 = load %0[0] : float32
          v1 = mul(v0, v0) of float16 : float16
          v2 = cast(v1) of float16 : float32
          store %1[0] = v2
          v3 = cast(v1) of float16 : float16
          store %2[0] = v3
        }
      }
    }
    """
    x = np.array([1.001], np.float16)
    wide = np.empty(1, np.float32)
    rounded = run(text, x, wide, np.empty(1, np.float32))
    assert wide[0] == np.float32(x[0]) ** 2 != rounded[0] == np.float16(x[0] * x[0])


def test_random_words_are_those_of_the_op():
    text = """\
    kernel(%0: uint32[2] in, %1: uint32[1] in, %2: uint32[7] out) {
      parallel o0 < 7 {
        once {
          v0 = load %0[0] : uint32
          v1 = load %0[1] : uint32
          v2 = load %1[0] : uint32
          v3 = index o0 : int64
          v4 = random_bits(v0, v1, v2, v3) of uint32 : uint32
          store %2[o0] = v4
        }
      }
    }
    """
    key, counter = np.array([3, 4], np.uint32), np.array([5], np.uint32)
    expected = ops.random_bits.meaning(key, counter.reshape(()), shape=(7,))
    np.testing.assert_array_equal(run(text, key, counter, np.empty(7, np.uint32)), expected)
    assert dtypes.of(expected.dtype) is dtypes.uint32


WINDOWS = """\
kernel(%0: float32[5] in, %1: float32[3] in, %2: float32[4] out) {
  contract b < 1, m < 4, n < 1 over k < 3 in float32 {
    image x0 < 7 at m + k
    v0 = load %0[x0] if 0 <= x0 < 5 : float32
    v1 = literal 100.0 : float32
    v2 = select v0 else v1 if 0 <= x0 < 5 : float32
    left v2
    v3 = load %1[k] : float32
    right v3
    v4 = accumulator : float32
    store %2[m] = v4
  }
}
"""


def test_an_image_is_taken_at_its_places():
    result = np.zeros(4, np.float32)
    run_kernel(parse_kernel(WINDOWS), [np.arange(1, 6, dtype=np.float32), np.array([1, 2, 3], np.float32), result])
    # Windows of 1 2 3 4 5 and then 100, each times 1 2 3.
    np.testing.assert_array_equal(result, [1 + 4 + 9, 2 + 6 + 12, 3 + 8 + 15, 4 + 10 + 300])
