"""A result may be written over an input where each element is read only by whoever stores the one in its place."""

from __future__ import annotations

import pytest
from kaun.compiler.schedule.aliasing import may_overwrite
from kaun.compiler.schedule.parse import parse_kernel


def loops(body, buffers="%0: float32[32] in, %1: float32[32] in, %2: float32[32] out, %3: float32[32] out"):
    return parse_kernel(f"kernel({buffers}) {{\n  parallel o0 < 4 {{\n{body}\n  }}\n}}\n")


def one_pass(*lines, **keywords):
    return loops("\n".join(["    for r0_0 < 8 {", *(f"      {line}" for line in lines), "    }"]), **keywords)


def allowed(kernel):
    """The pairs of an input and a result that may have one address."""
    pairs = [(a, b) for a in kernel.buffers for b in kernel.buffers]
    return {(a.position, b.position) for a, b in pairs if a.position < 2 <= b.position and may_overwrite(kernel, a, b)}


UPDATE = (
    "v0 = load %0[8*o0 + r0_0] : float32",
    "v1 = load %1[8*o0 + r0_0] : float32",
    "v2 = add(v0, v1) of float32 : float32",
    "store %2[8*o0 + r0_0] = v2",
    "v3 = mul(v0, v2) of float32 : float32",
    "store %3[8*o0 + r0_0] = v3",
)


def changed(old, new, lines=UPDATE):
    assert any(old in line for line in lines)
    return [line.replace(old, new) for line in lines]


def test_an_element_that_only_its_successor_is_made_from_may_be_overwritten():
    assert allowed(one_pass(*UPDATE)) == {(0, 2), (0, 3), (1, 2), (1, 3)}


@pytest.mark.parametrize(
    "index",
    ["8*o0 + -1*r0_0 + 7", "o0 + 4*r0_0", "8*o0", "r0_0", "8*o0 + ((r0_0) % 4)", "8*((o0 + 1) % 4) + r0_0"],
)
def test_an_element_that_another_iteration_may_read_is_kept(index):
    assert allowed(one_pass(*changed("load %0[8*o0 + r0_0]", f"load %0[{index}]"))) == {(1, 2), (1, 3)}


def test_an_element_that_is_read_a_second_time_after_its_successor_is_stored_is_kept():
    again = [*UPDATE[:4], "v3 = load %0[8*o0 + r0_0] : float32", "v4 = neg(v3) of float32 : float32"]
    again.append("store %3[8*o0 + r0_0] = v4")
    # What is read last may take the place of the last store, and the other input that of both.
    assert allowed(one_pass(*again)) == {(0, 3), (1, 2), (1, 3)}


def test_elements_stored_by_several_iterations_or_under_a_condition_overwrite_nothing():
    several = changed("store %3[8*o0 + r0_0]", "store %3[8*o0]")
    assert allowed(one_pass(*several)) == {(0, 2), (1, 2)}
    some = changed("store %3[8*o0 + r0_0] = v3", "store %3[8*o0 + r0_0] = v3 if 1 <= r0_0 < 8")
    assert allowed(one_pass(*some)) == {(0, 2), (1, 2)}
    added = changed("store %3[8*o0 + r0_0] = v3", "store %3[8*o0 + r0_0] += v3")
    assert allowed(one_pass(*added)) == {(0, 2), (1, 2)}


def test_an_element_read_under_a_condition_is_kept():
    lines = changed("v0 = load %0[8*o0 + r0_0] : float32", "v0 = load %0[8*o0 + r0_0] if 0 <= r0_0 < 7 : float32")
    assert allowed(one_pass(*lines)) == {(1, 2), (1, 3)}
    chosen = [*UPDATE[:2], "v2 = literal 1.0 : float32", "v3 = select v0 else v2 if 0 <= r0_0 < 7 : float32"]
    chosen += ["v4 = add(v3, v1) of float32 : float32", "store %2[8*o0 + r0_0] = v4", "store %3[8*o0 + r0_0] = v4"]
    assert allowed(one_pass(*chosen)) == {(1, 2), (1, 3)}


def test_arrays_of_another_type_or_size_are_kept():
    types = "%0: int32[32] in, %1: float32[64] in, %2: float32[32] out, %3: float32[32] out"
    lines = ["v0 = load %0[8*o0 + r0_0] : int32", "v1 = cast(v0) of int32 : float32", *UPDATE[1:]]
    lines = [lines[0], lines[1], "v2 = load %1[8*o0 + r0_0] : float32", "v3 = add(v1, v2) of float32 : float32"]
    lines += ["store %2[8*o0 + r0_0] = v3", "store %3[8*o0 + r0_0] = v3"]
    assert allowed(one_pass(*lines, buffers=types)) == set()


ROWS = """\
    for r0_0 < 8 {
      v0 = load %0[FIRST] : float32
      s0 = reduce_sum v0 : float32
    }
    for r0_0 < 8 {
      v1 = load %1[8*o0 + r0_0] : float32
      v2 = result s0 : float32
      v3 = add(v1, v2) of float32 : float32
      store %2[8*o0 + r0_0] = v3
    }
    for r0_0 < 8 {
      v4 = load %1[LAST] : float32
      store %3[8*o0 + r0_0] = v4
    }"""


def test_a_row_that_earlier_passes_have_read_is_overwritten_by_its_own_results_alone():
    def kernel(first, last="8*o0 + r0_0"):
        return loops(ROWS.replace("FIRST", first).replace("LAST", last))

    assert allowed(kernel("8*o0 + r0_0")) == {(0, 2), (0, 3), (1, 3)}
    # In any order, but no other row.
    assert allowed(kernel("8*o0 + -1*r0_0 + 7")) == {(0, 2), (0, 3), (1, 3)}
    for index in ("r0_0", "4*o0 + r0_0", "-8*o0 + r0_0 + 24", "8*((o0 + 1) % 4) + r0_0"):
        assert allowed(kernel(index)) == {(1, 3)}, index
    # What a later pass reads is kept.
    assert allowed(kernel("8*o0 + r0_0", "8*o0 + -1*r0_0 + 7")) == {(0, 2), (0, 3)}


CONTRACTION = """\
kernel(%0: float32[{0}] in, %1: float32[{1}] in, %2: float32[64] out, %3: float32[64] in) {{
  contract b < 1, m < 8, n < 8 over k < 8 in float32 {{
    v0 = load %0[8*m + k] : float32
    left v0
    v1 = load %1[8*k + n] : float32
    right v1
    v2 = accumulator : float32
    v3 = load %3[{2}] : float32
    v4 = sub(v3, v2) of float32 : float32
    store %2[{3}] = v4
  }}
}}
"""


@pytest.mark.parametrize(
    ("read", "written", "expected"),
    [("8*m + n", "8*m + n", True), ("m + 8*n", "m + 8*n", True), ("m + 8*n", "8*m + n", False)],
)
def test_a_weight_is_overwritten_where_its_gradient_is_made_but_operands_are_kept(read, written, expected):
    kernel = parse_kernel(CONTRACTION.format(64, 64, read, written))
    left, right, out, weight = kernel.buffers
    assert may_overwrite(kernel, weight, out) is expected
    assert not may_overwrite(kernel, left, out) and not may_overwrite(kernel, right, out)


CHAIN = """\
kernel(%0: float32[64] in, %1: float32[40] in, %2: float32[40] in, %3: float32[8] in, %4: float32[64] in, \
%5: float32[8] out, %6: float32[64] out) {
  chain b < 1, m < 8, n < 8 in float32 {
    product over k0 < 5 {
      v0 = load %1[5*m + k0] : float32
      left v0
      v1 = load %2[5*n + k0] : float32
      right v1
    } = p0
    pass {
      v2 = load %3[ROW] : float32
      v3 = at p0 : float32
      v4 = mul(v2, v3) of float32 : float32
      s0 = reduce_sum v4 : float32
      keep v4 = p1
    }
    rows {
      v5 = result s0 : float32
      v6 = add(v2, v5) of float32 : float32
      store %5[m] = v6
    }
    sum over n, e0 < 8 {
      v7 = at p1 : float32
      left v7
      v8 = load %0[8*n + e0] : float32
      right v8
      v9 = load %4[8*m + e0] : float32
      v10 = accumulator : float32
      v11 = sub(v9, v10) of float32 : float32
      store %6[8*m + e0] = v11
    }
  }
}
"""


def test_chains_overwrite_what_a_row_or_a_finished_sum_is_alone_in_reading():
    kernel = parse_kernel(CHAIN.replace("ROW", "m"))
    operand, _, _, bias, weight, row, total = kernel.buffers
    assert may_overwrite(kernel, weight, total) and may_overwrite(kernel, bias, row)
    assert not may_overwrite(kernel, operand, total)
    # Every row reads all of it.
    kernel = parse_kernel(CHAIN.replace("ROW", "n"))
    assert not may_overwrite(kernel, kernel.buffers[3], kernel.buffers[5])
    # A pass has read it, but a later store reads it again.
    again = "v12 = neg(v5) of float32 : float32\n      store %5[m] = v12\n      store %7[m] = v6"
    text = CHAIN.replace("ROW", "m").replace("store %5[m] = v6", again)
    kernel = parse_kernel(text.replace("%6: float32[64] out", "%6: float32[64] out, %7: float32[8] out"))
    assert not may_overwrite(kernel, kernel.buffers[3], kernel.buffers[5])
    assert may_overwrite(kernel, kernel.buffers[3], kernel.buffers[7])
    # What the sum needs of it may be read when the rows are done.
    kernel = parse_kernel(CHAIN.replace("ROW", "m").replace("sub(v9, v10)", "sub(v9, v2)"))
    assert not may_overwrite(kernel, kernel.buffers[3], kernel.buffers[5])


EMBEDDING = """\
kernel(%0: float32[40] in, %1: float32[30] in, %2: float32[30] in, %3: float32[40] out) {
  chain b < 1, m < 8, n < 6 in float32 {
    product over k0 < 5 {
      v0 = load %0[LEFT] : float32
      left v0
      v1 = load %1[5*n + k0] : float32
      right v1
    } = p0
    sum over n, e0 < 5 {
      v2 = at p0 : float32
      left v2
      v3 = load %2[5*n + e0] : float32
      right v3
      v4 = load %0[5*m + e0] : float32
      v5 = accumulator : float32
      v6 = sub(v4, v5) of float32 : float32
      store %3[5*m + e0] = v6
    }
  }
}
"""


def test_a_chain_overwrites_rows_that_its_products_have_read_and_no_other_row_needs():
    kernel = parse_kernel(EMBEDDING.replace("LEFT", "5*m + k0"))
    assert may_overwrite(kernel, kernel.buffers[0], kernel.buffers[3])
    # Elements of another row, which another block or thread has written or not.
    for index in ("8*k0 + m", "-5*m + k0 + 35", "k0", "4*m + k0"):
        kernel = parse_kernel(EMBEDDING.replace("LEFT", index))
        assert not may_overwrite(kernel, kernel.buffers[0], kernel.buffers[3]), index
    # Every block of rows reads what a product or a sum has to the right.
    for old, new in (("load %1[5*n + k0]", "load %0[5*n + k0]"), ("load %2[5*n + e0]", "load %0[5*n + e0]")):
        kernel = parse_kernel(EMBEDDING.replace("LEFT", "5*m + k0").replace(old, new))
        assert not may_overwrite(kernel, kernel.buffers[0], kernel.buffers[-1]), new
