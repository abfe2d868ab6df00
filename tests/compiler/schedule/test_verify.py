"""The verifier of the loop IR accepts what the scheduler makes, and every rule is one it enforces."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graph_strategies import graph_from_seed
from kaun.compiler.ir import VerificationError, dtypes
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.loop_ir import Literal, Reduced
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.verify import verify_kernel
from schedule_examples import MODELS, TARGET, collapsed

ROWS = """\
kernel(%0: float32[32] in, %1: float32[4] in, %2: float32[4] out, %3: float32[32] out) {
  parallel o0 < 4 {
    for r0_0 < 8 {
      v0 = load %0[8*o0 + r0_0] : float32
      s0 = reduce_sum v0 : float32
    }
    once {
      v1 = result s0 : float32
      v2 = load %1[o0] : float32
      v3 = add(v1, v2) of float32 : float32
      store %2[o0] = v3
    }
    for r0_0 < 8 {
      v4 = literal 0.5 : float32
      v5 = le(v0, v4) of float32 : bool
      v6 = where(v5, v0, v3) of float32 : float32
      store %3[8*o0 + r0_0] = v6
    }
  }
}
"""
POINTS = """\
kernel(%0: int64[6] in, %1: float16[6] in, %2: float32[12] out, %3: int64[1] out) {
  parallel {
    for r0_0 < 12 {
      v0 = load %0[r0_0 + -3] if 3 <= r0_0 < 9 : int64
      v1 = literal 7 : int64
      v2 = select v0 else v1 if 3 <= r0_0 < 9 : int64
      v3 = index r0_0 : int64
      s0 = argmax v2 at v3 : int64
      v4 = load %1[[v2 < 6]] : float32
      store %2[((r0_0) % 4) + 4*((r0_0) // 4)] = v4
    }
    once {
      v5 = result s0 : int64
      store %3[0] = v5
    }
  }
}
"""
SCATTER = """\
kernel(%0: int32[5] in, %1: float32[15] in, %2: float32[21] out) {
  parallel o0 < 3 {
    for r0_0 < 7 {
      v0 = literal 0 : float32
      store %2[3*r0_0 + o0] = v0
    }
    for r1_0 < 5 {
      v1 = load %0[r1_0] : int32
      v2 = load %1[3*r1_0 + o0] : float32
      store %2[3*[v1 < 7] + o0] += v2
    }
  }
}
"""
CONTRACTION = """\
kernel(%0: float32[6] in, %1: float32[12] in, %2: float32[8] out) {
  contract b < 1, m < 2, n < 4 over k < 3 in float32 {
    v0 = load %0[3*m + k] : float32
    left v0
    v1 = load %1[4*k + n] : float32
    right v1
    v2 = accumulator : float32
    store %2[4*m + n] = v2
  }
}
"""
WINDOWS = """\
kernel(%0: float32[12] in, %1: float32[6] in, %2: float32[4] out) {
  contract b < 1, m < 4, n < 1 over k < 6 in float32 {
    image x0 < 2 at ((k) // 3), x1 < 6 at m + ((k) % 3)
    v0 = load %0[6*x0 + x1] : float32
    left v0
    v1 = load %1[k] : float32
    right v1
    v2 = accumulator : float32
    store %2[m] = v2
  }
}
"""
TYPES = """\
kernel(%0: float16[4] in, %1: uint32[4] in, %2: int32[4] out) {
  parallel o0 < 4 {
    once {
      v0 = load %0[o0] : float32
      v1 = cast(v0) of float16 : int32
      v2 = load %1[o0] : uint32
      v3 = bitcast(v2) of uint32 : int32
      v4 = index o0 : int64
      v5 = random_bits(v2, v2, v2, v4) of uint32 : uint32
      v6 = bitcast(v5) of uint32 : int32
      v7 = literal 3 : int32
      v8 = add(v1, v3) of int32 : int32
      v9 = mul(v6, v7) of int32 : int32
      v10 = add(v8, v9) of int32 : int32
      store %2[o0] = v10
    }
  }
}
"""
PIECES = """\
kernel(%0: float32[8] out) {
  parallel {
    for r0_0 < 3 {
      v0 = literal 0.0 : float32
      store %0[r0_0] = v0
    }
    for r1_0 < 9 {
      v1 = literal 1.0 : float32
      store %0[r1_0] = v1 if 3 <= r1_0 < 8
    }
  }
}
"""
BLOCKS = """\
kernel(%0: int32[5] in, %1: float32[15] in, %2: float32[21] out) {
  parallel o0 < 2 {
    for r0_0 < 4, c0 < 3 {
      v0 = literal 0.0 : float32
      store %2[12*o0 + 3*r0_0 + c0] = v0 if 0 <= 4*o0 + r0_0 < 7
    }
    for r1_0 < 5, c0 < 3 {
      v1 = load %0[r1_0] : int32
      v2 = load %1[3*r1_0 + c0] : float32
      store %2[3*[v1 < 7] + c0] += v2 if 0 <= [v1 < 7] + -4*o0 < 4
    }
  }
}
"""
CHAIN = """\
kernel(%0: float32[24] in, %1: float32[32] in, %2: float32[40] in, %3: float32[6] out, %4: float32[30] out, \
%5: float32[24] out) {
  chain b < 2, m < 3, n < 4 in float32 if 0 <= m + -1*n < 3 {
    product over k0 < 4 {
      v0 = load %0[12*b + 4*m + k0] : float32
      left v0
      v1 = load %1[16*b + 4*n + k0] : float32
      right v1
    } = p0
    pass {
      v2 = at p0 : float32
      s0 = reduce_max v2 : float32
    }
    pass {
      v3 = result s0 : float32
      v4 = sub(v2, v3) of float32 : float32
      keep v4 = p1
    }
    rows {
      v5 = result s0 : float32
      store %3[3*b + m] = v5
    }
    sum over n, e0 < 5 {
      v6 = at p1 : float32
      left v6
      v7 = load %2[20*b + 5*n + e0] : float32
      right v7
      v8 = accumulator : float32
      store %4[15*b + 5*m + e0] = v8
    }
    sum over m, e1 < 3 {
      v9 = at p0 : float32
      left v9
      v10 = load %0[12*b + 4*m + e1] : float32
      right v10
      v11 = accumulator : float32
      store %5[12*b + 3*n + e1] = v11
    }
  }
}
"""
TERMS = """\
kernel(%0: float32[12] in, %1: float32[16] in, %2: float32[20] in, %3: float32[20] in, %4: float32[15] out) {
  chain b < 1, m < 3, n < 4 in float32 {
    product over k0 < 4 {
      v0 = load %0[4*m + k0] : float32
      left v0
      v1 = load %1[4*n + k0] : float32
      right v1
    } = p0
    pass {
      v2 = index m + n : int32
      v3 = cast(v2) of int32 : float32
      keep v3 = p1
    }
    sum over n, e0 < 5 {
      v4 = at p0 : float32
      left v4
      v5 = load %2[5*n + e0] : float32
      right v5
      v6 = at p1 : float32
      left v6
      v7 = load %3[5*n + e0] : float32
      right v7
      v8 = accumulator : float32
      store %4[5*m + e0] = v8
    }
  }
}
"""
GOOD = {
    "rows": ROWS, "points": POINTS, "scatter": SCATTER, "contraction": CONTRACTION, "types": TYPES, "pieces": PIECES,
    "windows": WINDOWS, "blocks": BLOCKS, "chain": CHAIN,
    "terms": TERMS,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_kernel_is_accepted(name):
    verify_kernel(parse_kernel(GOOD[name]))


@pytest.mark.parametrize("ten", range(20))
def test_kernels_of_random_graphs_are_accepted_before_and_after_collapsing(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        for scheduled in Compilation(graph_from_seed(seed).graph, TARGET).kernels:
            verify_kernel(scheduled.kernel)
            verify_kernel(collapsed(scheduled.kernel))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_kernels_of_training_steps_are_accepted(model):
    for scheduled in model().compilation.kernels:
        verify_kernel(scheduled.kernel)
        verify_kernel(collapsed(scheduled.kernel))


BROKEN = [
    # A chain's operands come from outside, its parts read what there is, and all results are written once.
    ("chain", "load %1[16*b + 4*n + k0]", "load %1[16*b + 4*m + k0]", "uses m outside"),
    ("chain", "load %2[20*b + 5*n + e0]", "load %2[20*b + 5*m + e0]", "uses m outside"),
    ("chain", "right v7", "right v6", "uses m outside"),
    ("chain", "store %3[3*b + m] = v5", "store %3[3*b + m] = v2", "uses n outside"),
    ("chain", "store %4[15*b + 5*m + e0] = v8", "store %4[15*b + 5*m + e0] = v5", "read before its pass has finished"),
    ("chain", "store %3[3*b + m]", "store %3[3*b]", "not every element of %3"),
    ("chain", "store %5[12*b + 3*n + e1]", "store %5[12*b + 3*n]", "not every element of %5"),
    ("chain", "if 0 <= m + -1*n < 3", "if 0 <= m + -2*n < 3", "expected step 1 in the column"),
    ("chain", "if 0 <= m + -1*n < 3", "if 3 <= m + -1*n < 3", "never holds"),
    ("chain", "in float32 if", "in bool if", "a chain in bool"),
    ("terms", "load %3[5*n + e0]", "load %3[5*m + e0]", "uses m outside"),
    ("terms", "right v7", "right v6", "uses m outside"),
    # Variables are bound where they are used.
    ("rows", "load %1[o0]", "load %1[((r0_0) // 2)]", "uses r0_0 outside"),
    ("rows", "store %2[o0]", "store %2[((r0_0) // 2)]", "uses r0_0 outside"),
    ("contraction", "load %0[3*m + k]", "load %0[n]", "uses n outside"),
    ("contraction", "load %1[4*k + n]", "load %1[4*m + n]", "uses m outside"),
    ("contraction", "store %2[4*m + n]", "store %2[2*k + n]", "uses k outside"),
    ("points", "for r0_0 < 12", "for r0_0 < 12, r0_0 < 12", "a loop inside itself"),
    # Indices are normal.
    ("rows", "load %0[8*o0 + r0_0]", "load %0[8*o0 + r0_0 + r0_0]", "not normal"),
    ("rows", "load %0[8*o0 + r0_0]", "load %0[8*o0 + 0*r0_0]", "not normal"),
    ("points", "((r0_0) // 4)", "((r0_0) // 0)", "divides by 0"),
    ("points", "((r0_0) % 4)", "((r0_0) % 1)", "divides by 1"),
    ("points", "load %1[[v2 < 6]]", "load %1[[v2 < 0]]", "data in"),
    ("scatter", "[v1 < 7]", "[v2 < 7]", "float32 data"),
    ("points", "if 3 <= r0_0 < 9 : int64\n      v1", "if 9 <= r0_0 < 9 : int64\n      v1", "never holds"),
    # Loads and stores are in bounds.
    ("rows", "load %0[8*o0 + r0_0]", "load %0[8*o0 + r0_0 + 1]", r"load of %0 may be out of bounds: .* \(1, 32\)"),
    ("points", "if 3 <= r0_0 < 9 : int64\n      v1", "if 2 <= r0_0 < 9 : int64\n      v1", "load of %0 may be out"),
    ("points", "if 3 <= r0_0 < 9 : int64\n      v1", "if 3 <= r0_0 < 10 : int64\n      v1", "load of %0 may be out"),
    ("points", "load %0[r0_0 + -3] if 3 <= r0_0 < 9", "load %0[r0_0 + -3]", "load of %0 may be out"),
    ("points", "[v2 < 6]", "[v2 < 7]", "load of %1 may be out"),
    ("rows", "store %2[o0]", "store %2[o0 + 1]", "store to %2 may be out"),
    ("rows", "store %3[8*o0 + r0_0]", "store %3[-1*r0_0 + 8*o0]", "store to %3 may be out"),
    ("scatter", "[v1 < 7]", "[v1 < 8]", "store to %2 may be out"),
    ("contraction", "load %1[4*k + n]", "load %1[4*k + n + 2]", "load of %1 may be out"),
    # An image's places lie on its axes, each part of them depending on one loop around the left operand.
    ("windows", "x1 < 6 at", "x1 < 5 at", "a place on x1 < 5 of the image may be outside"),
    ("windows", "at m + ((k) % 3)", "at n + ((k) % 3)", "place on x1 of the image uses n"),
    ("windows", "at m + ((k) % 3)", "at ((m + k) % 6)", "depends on more than one loop"),
    ("windows", "load %0[6*x0 + x1]", "load %0[6*x0 + x1 + 1]", "load of %0 may be out"),
    ("windows", "load %0[6*x0 + x1]", "load %0[6*x0 + m]", "in the left operand uses m"),
    # Every element is written, once.
    ("rows", "float32[4] out", "float32[5] out", "not every element of %2"),
    ("rows", "store %3[8*o0 + r0_0]", "store %3[7*o0 + r0_0]", "not every element of %3"),
    ("rows", "store %3[8*o0 + r0_0]", "store %3[o0]", "not every element of %3"),
    ("points", "4*((r0_0) // 4)", "3*((r0_0) // 4)", "not every element of %2"),
    ("contraction", "store %2[4*m + n]", "store %2[n]", "not every element of %2"),
    ("pieces", "3 <= r1_0 < 8", "4 <= r1_0 < 8", "not every element of %0"),
    ("pieces", "3 <= r1_0 < 8", "2 <= r1_0 < 8", "not every element of %0"),
    # No stored buffer is loaded.
    ("rows", "v2 = load %1[o0]", "v2 = load %2[o0]", "load of %2, which the kernel writes"),
    # Reductions are read after their pass.
    (
        "rows", "      s0 = reduce_sum v0 : float32\n    }\n    once {\n", "      s0 = reduce_sum v0 : float32\n",
        "before its pass",
    ),
    ("rows", "reduce_sum v0", "reduce_all v0", "unknown reduction"),
    ("rows", "reduce_sum v0 : float32", "reduce_sum v0 : float64", "has type float64, not float32"),
    ("rows", "result s0 : float32", "result s0 : float64", "of a reduction of type float32"),
    ("points", "argmax v2 at v3", "argmax v2", "argmax without a position"),
    ("points", "argmax v2 at v3", "reduce_max v2 at v3", "reduce_max with a position"),
    ("points", "index r0_0 : int64", "index r0_0 : int32", "position of type int32"),
    # The accumulator belongs to the stores of a contraction.
    ("rows", "result s0 : float32", "accumulator : float32", "outside the stores of a contraction"),
    ("contraction", "v0 = load %0[3*m + k]", "v0 = accumulator", "Accumulator in the left operand uses m, n|uses n"),
    ("contraction", "accumulator : float32", "accumulator : float64", "has type float64"),
    ("contraction", "in float32 {", "in float64 {", "operand is float32 in a contraction in float64"),
    ("contraction", "in float32 {", "in float16 {", "expected a number type that is computed in"),
    # Types.
    ("rows", "le(v0, v4) of float32 : bool", "le(v0, v4) of float32 : float32", "expected bool"),
    ("rows", "where(v5, v0, v3)", "where(v0, v0, v3)", "where"),
    ("rows", "where(v5, v0, v3) of float32", "where(v5, v0, v5) of float32", "where"),
    ("rows", "add(v1, v2) of float32", "add(v1) of float32", "expected 2 arguments"),
    ("rows", "add(v1, v2) of float32", "gather(v1, v2) of float32", "unknown elementwise op gather"),
    ("rows", "add(v1, v2) of float32", "and(v1, v2) of float32", "expected bool or integers"),
    ("rows", "add(v1, v2) of float32", "add(v1, v2) of float64", "expected 2 arguments"),
    ("rows", "load %1[o0] : float32", "load %1[o0] : float64", "load of %1 of type float32 has type float64"),
    ("types", "load %0[o0] : float32", "load %0[o0] : float16", "load of %0 of type float16 has type float16"),
    ("types", "cast(v0) of float16", "cast(v0) of float64", "expected 1 arguments"),
    ("types", "bitcast(v2) of uint32 : int32", "bitcast(v2) of uint32 : int64", "equal size"),
    ("types", "random_bits(v2, v2, v2, v4)", "random_bits(v2, v2, v4, v4)", "two words of a key"),
    ("types", "literal 3 : int32", "literal 3000000000 : int32", "a literal 3000000000"),
    ("types", "literal 3 : int32", "literal 3.5 : int32", "a literal 3.5"),
    ("types", "index o0 : int64", "index o0 : bool", "an index of type bool"),
    ("points", "v1 = literal 7 : int64", "v1 = literal 7 : int32", "a select of int64 and int32"),
    ("types", "%2: int32[4] out", "%2: int64[4] out", "of int32 into int64"),
    # Adding comes after writing, and stays within what the outer iteration has written.
    ("scatter", "store %2[3*r0_0 + o0] = v0", "store %2[3*r0_0 + o0] += v0", "added to, but not written"),
    ("scatter", "store %2[3*[v1 < 7] + o0]", "store %2[3*[v1 < 7] + -1*o0 + 2]", "adds only to the elements"),
    ("scatter", "store %2[3*[v1 < 7] + o0]", "store %2[3*[v1 < 7]]", "adds only to the elements"),
    ("scatter", "store %2[3*[v1 < 7] + o0]", "store %2[[v1 < 7] + 7*o0]", "adds only to the elements"),
    ("blocks", " if 0 <= [v1 < 7] + -4*o0 < 4", "", "adds only to the elements"),
    ("blocks", "0 <= [v1 < 7] + -4*o0 < 4", "0 <= [v1 < 7] + -4*o0 < 5", "adds only to the elements"),
    ("blocks", "0 <= [v1 < 7] + -4*o0 < 4", "1 <= [v1 < 7] + -4*o0 < 5", "adds only to the elements"),
    ("blocks", "0 <= [v1 < 7] + -4*o0 < 4", "0 <= [v1 < 7] + -3*o0 < 4", "adds only to the elements"),
    ("blocks", "0 <= 4*o0 + r0_0 < 7", "0 <= 4*o0 + r0_0 < 6", "not every element"),
    ("blocks", "= v0 if 0 <= 4*o0 + r0_0 < 7", "= v0 if 0 <= o0 + 2*r0_0 < 6", "not every element"),
    ("blocks", "store %2[12*o0 + 3*r0_0 + c0] = v0", "store %2[12*o0 + 3*r0_0] = v0", "not every element"),
    ("scatter", "store %2[3*r0_0 + o0]", "store %2[((r0_0 + 3*o0) % 7) + 7*((3*r0_0) // 7)]", "not every|adds only"),
    ("contraction", "store %2[4*m + n] = v2", "store %2[4*m + n] += v2", "a contraction's store accumulates"),
]


@pytest.mark.parametrize(("name", "old", "new", "reason"), BROKEN)
def test_a_broken_rule_is_refused_with_its_reason(name, old, new, reason):
    assert old in GOOD[name]
    kernel = parse_kernel(GOOD[name].replace(old, new, 1))
    with pytest.raises(VerificationError, match=reason):
        verify_kernel(kernel)


ADD_BEFORE_WRITING = """\
kernel(%0: float32[1] in, %1: float32[4] out) {
  parallel o0 < 4 {
    once {
      v0 = load %0[0] : float32
      store %1[o0] += v0
    }
    once {
      store %1[o0] = v0
    }
  }
}
"""


def test_adding_before_or_while_writing_is_refused():
    together = ADD_BEFORE_WRITING.replace("    }\n    once {\n", "", 1)
    assert together != ADD_BEFORE_WRITING
    for text in (ADD_BEFORE_WRITING, together):
        with pytest.raises(VerificationError, match="added to before it is written"):
            verify_kernel(parse_kernel(text))


# What text cannot say.


def test_buffers_are_numbered_in_order_and_belong_to_the_kernel():
    kernel, other = parse_kernel(ROWS), parse_kernel(ROWS)
    with pytest.raises(VerificationError, match="buffer %1 is in position 0"):
        verify_kernel(replace(kernel, buffers=(kernel.buffers[1], kernel.buffers[0], *kernel.buffers[2:])))
    with pytest.raises(VerificationError, match="not a buffer of the kernel"):
        verify_kernel(replace(kernel, buffers=other.buffers))


def test_the_result_of_a_reduction_is_over_all_outer_variables():
    kernel = parse_kernel(ROWS)
    first, second, last = kernel.passes
    result = Reduced(dtypes.float32, first.reductions[0], ())
    broken = replace(second, stores=(replace(second.stores[0], value=result),))
    with pytest.raises(VerificationError, match="at none, expected o0"):
        verify_kernel(replace(kernel, passes=(first, broken, last)))


def test_the_accumulator_is_read_at_its_own_place():
    kernel = parse_kernel(CONTRACTION)
    (store,) = kernel.stores
    moved = replace(store.value, at=(kernel.batch, kernel.columns, kernel.rows))
    with pytest.raises(VerificationError, match="the accumulator is read at"):
        verify_kernel(replace(kernel, stores=(replace(store, value=moved),)))


def test_a_reduction_is_computed_once():
    kernel = parse_kernel(ROWS)
    with pytest.raises(VerificationError, match="computed twice"):
        verify_kernel(replace(kernel, passes=(kernel.passes[0], *kernel.passes)))


def test_one_name_is_one_loop_and_bool_is_not_added_up():
    kernel = parse_kernel(ROWS)
    first, second, last = kernel.passes
    longer = replace(first, variables=(replace(first.variables[0], extent=9),), reductions=())
    with pytest.raises(VerificationError, match="the name of two loops"):
        verify_kernel(replace(kernel, passes=(longer, first, second, last)))
    (store,) = second.stores
    truth = replace(store, value=Literal(dtypes.bool_, 2), buffer=store.buffer)
    with pytest.raises(VerificationError, match="a literal 2 of type bool"):
        verify_kernel(replace(kernel, passes=(first, replace(second, stores=(truth,)), last)))
