"""Remainders of floats are exact, whatever the quotient, and need no library."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler.ir import ops
from kaun.runtime import engine
from kaun.runtime.target import named
from llvmlite import ir

from kaun import nx

FORMATS = {"float32": (np.float32, np.uint32), "float64": (np.float64, np.uint64)}


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return nx.Tensor(ops.rem(nx.asarray(a)._node, nx.asarray(b)._node)).numpy()


def cases(kind: type, words: type) -> tuple[np.ndarray, np.ndarray]:
    """Any bits, special numbers with each other, subnormal ones, ordinary ones, and small whole divisors."""
    draw = np.random.default_rng(0)
    limits = np.finfo(kind)
    any_a, any_b = (draw.integers(0, np.iinfo(words).max, 20000, words, endpoint=True).view(kind) for _ in range(2))
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, limits.tiny, limits.smallest_subnormal, -1, 3, limits.max], kind
    )
    special_a, special_b = np.meshgrid(special, special)
    low_a, low_b = (draw.integers(0, 10**size, 3000).astype(words).view(kind) for size in (6, 5))
    usual_a, usual_b = (100 * draw.normal(size=3000)).astype(kind), draw.normal(size=3000).astype(kind)
    whole = draw.integers(1, 9, any_a.size).astype(kind)
    a = [any_a, special_a.ravel(), low_a, any_a[:3000], usual_a, any_a]
    b = [any_b, special_b.ravel(), low_b, low_b, usual_b, whole]
    return np.concatenate(a), np.concatenate(b)


@pytest.mark.parametrize("name", FORMATS)
def test_remainders_have_the_bits_of_the_c_library(name: str) -> None:
    kind, words = FORMATS[name]
    a, b = cases(kind, words)
    with np.errstate(all="ignore"):
        expected = np.fmod(a, b)
    found = remainder(a, b)
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~is_number)
    np.testing.assert_array_equal(found.view(words)[is_number], expected.view(words)[is_number])


def test_remainders_of_half_precision_are_those_of_the_numbers() -> None:
    a, b = np.array([5.5, -7.25, 60000.0], np.float16), np.array([2.0, 3.0, 0.0009765625], np.float16)
    np.testing.assert_array_equal(remainder(a, b), np.fmod(a, b))


@pytest.mark.parametrize("target", ["host", "wasm32", "cortex-m7", "linux-riscv64"])
def test_remainders_and_rounding_call_no_library(target: str) -> None:
    from kaun.compiler.codegen.arithmetic import FLOAT, Arithmetic
    from kaun.compiler.ir import dtypes

    module = ir.Module()
    kernel = ir.Function(module, ir.FunctionType(FLOAT, [FLOAT, FLOAT]), "kernel")
    builder = ir.IRBuilder(kernel.append_basic_block())
    arithmetic = Arithmetic(builder, has_fma=False, has_f16c=False)
    rest = arithmetic.apply("rem", kernel.args, dtypes.float32, dtypes.float32)
    builder.ret(arithmetic.apply("round", [rest], dtypes.float32, dtypes.float32))
    text = engine.assembly(str(module), named(target))
    assert not any(name in text for name in ("fmodf", "rintf", "roundevenf"))
