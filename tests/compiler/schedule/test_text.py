"""The text of a kernel says all there is to know about it: it parses back, and to the same code."""

from __future__ import annotations

import pytest
from graph_strategies import graph_from_seed
from kaun.compiler.codegen.kernels import emit_kernel
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.text import print_kernel
from kaun.compiler.schedule.verify import verify_kernel
from schedule_examples import MODELS, TARGET, collapsed

KERNEL = """\
kernel(%0: float32[32] in, %1: int64[4] in, %2: float32[4] out) {
  parallel o0 < 4 {
    for r0_0 < 8 {
      v0 = load %0[8*o0 + -1*r0_0 + 7] if 1 <= r0_0 < 8, 0 <= ((o0 + 3) // 2) < 9 : float32
      v1 = literal -inf : float32
      v2 = select v0 else v1 if 1 <= r0_0 < 8 : float32
      s0 = reduce_max v2 : float32
    }
    once {
      v3 = result s0 : float32
      v4 = load %1[o0] : int64
      v5 = load %0[[v4 < 32]] : float32
      v6 = add(v3, v5) of float32 : float32
      store %2[o0] = v6
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
    v3 = neg(v2) of float32 : float32
    store %2[4*m + n] = v3
  }
}
"""
WINDOWS = """\
kernel(%0: float32[12] in, %1: float32[6] in, %2: float32[8] out) {
  contract b < 1, m < 4, n < 2 over k < 6 in float32 {
    image x0 < 2 at ((k) // 3), x1 < 7 at m + ((k) % 3)
    v0 = load %0[6*x0 + x1 + -1] if 1 <= x1 < 7 : float32
    v1 = literal 0.0 : float32
    v2 = select v0 else v1 if 1 <= x1 < 7 : float32
    left v2
    v3 = load %1[k] : float32
    right v3
    v4 = accumulator : float32
    store %2[4*n + m] = v4
  }
}
"""


def check(kernel):
    text = print_kernel(kernel)
    parsed = parse_kernel(text)
    assert print_kernel(parsed) == text
    verify_kernel(parsed)
    return parsed


@pytest.mark.parametrize("text", [KERNEL, CONTRACTION, WINDOWS])
def test_text_written_by_hand_parses_and_prints_as_it_was(text):
    assert print_kernel(check(parse_kernel(text))) == text


@pytest.mark.parametrize("ten", range(20))
def test_kernels_of_random_graphs_parse_back(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        for scheduled in Compilation(graph_from_seed(seed).graph, TARGET).kernels:
            check(scheduled.kernel)
            check(collapsed(scheduled.kernel))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_kernels_of_training_steps_parse_back(model):
    for scheduled in model().compilation.kernels:
        check(scheduled.kernel)


@pytest.mark.parametrize("five", range(4))
def test_a_parsed_kernel_compiles_to_the_same_code(five):
    """So the text is enough to key the kernel cache by."""
    for seed in range(5 * five, 5 * five + 5):
        for scheduled in Compilation(graph_from_seed(seed).graph, TARGET).kernels:
            parsed = parse_kernel(print_kernel(scheduled.kernel))
            assert emit_kernel(parsed, "kernel", TARGET) == emit_kernel(scheduled.kernel, "kernel", TARGET)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("kernel(%0", "kernel %0", "expected 'kernel"),
        ("%1: int64[4] in", "%7: int64[4] in", "buffer %7 is in position 1"),
        ("float32[32]", "float33[32]", "dtype float33"),
        ("float32[32] in", "float32[32] out", "%0 is declared out"),
        ("parallel o0", "serial o0", "expected 'parallel"),
        ("for r0_0 < 8 {", "for r0_0 {", "expected a loop"),
        ("for r0_0 < 8 {", "for o0 < 8 {", "o0 has had another extent"),
        ("8*o0 +", "8*o1 +", "variable o1 is used before"),
        ("8*o0 +", "8 o0 +", "expected an index"),
        ("8*o0 +", "8*o0 -", "expected an index"),
        ("((o0 + 3) // 2)", "((o0 + 3) // two)", "expected an integer"),
        ("[v4 < 32]]", "[v9 < 32]]", "value v9 is used before"),
        ("load %1", "load %3", "unknown buffer %3"),
        ("literal -inf", "literal minus", "expected a number"),
        ("select v0 else v1", "select v0 or v1", "expected 'select"),
        ("result s0", "result s1", "reduction s1 is used before"),
        ("v6 = add(v3, v5) of float32", "v6 = add(v3, v5)", "expected a value"),
        ("v6 = add", "v5 = add", "v5 is defined twice"),
        ("store %2[o0] = v6", "store %2[o0] v6", "expected 'store"),
        ("1 <= r0_0 < 8 :", "1 <= r0_0 :", "expected conditions"),
        ("  }\n}\n", "  }\n", "expected more"),
        ("  }\n}\n", "  }\n}\n}\n", "expected nothing more"),
    ],
)
def test_text_that_is_not_a_kernel_is_refused_with_the_line(old, new, reason):
    assert old in KERNEL
    with pytest.raises(ValueError, match=r"parse\.parse_kernel: .* in line \d+: ") as raised:
        parse_kernel(KERNEL.replace(old, new))
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("    right v1\n", "", "expected a left and a right operand"),
        ("n < 4 over", "n < 4, o < 2 over", "expected 'contract"),
        ("left v0", "left v7", "value v7"),
    ],
)
def test_text_that_is_not_a_contraction_is_refused_with_the_line(old, new, reason):
    assert old in CONTRACTION
    with pytest.raises(ValueError, match=reason):
        parse_kernel(CONTRACTION.replace(old, new))
