"""What is known of the lanes of an index holds wherever a loop is, and is known of divisions by any number."""

import itertools

import pytest
from kaun.compiler.codegen.lanes import VectorLoop, lane_offsets, lane_step
from kaun.compiler.schedule import index as indexing
from kaun.compiler.schedule.index import Variable

LANES = 4


def offsets_where(value, starts):
    """The distances from lane 0 that `value` has for vectors that start there, if they all have the same."""
    found = {tuple(value(start + lane) - value(start) for lane in range(LANES)) for start in starts}
    return found.pop() if len(found) == 1 else None


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("scale", "shift", "divisor"), list(itertools.product((1, 2, 3, -1, 8), (0, 1, 3, 4, -2), range(1, 13)))
)
def test_divisions_and_remainders_are_known_exactly_where_all_vectors_agree(scale, shift, divisor, aligned):
    variable = Variable("n", 24 * divisor)
    inner = indexing.of(variable) * scale + (shift + (variable.extent * divisor if scale < 0 else divisor))
    loop = VectorLoop(variable, LANES, aligned)
    starts = range(0, variable.extent - LANES, LANES if aligned else 1)

    def plain(n):
        return n * scale + inner.constant

    assert lane_offsets(inner // divisor, loop) == offsets_where(lambda n: plain(n) // divisor, starts)
    assert lane_offsets(inner % divisor, loop) == offsets_where(lambda n: plain(n) % divisor, starts)


@pytest.mark.parametrize("plane", [1 << 10, 1 << 14, 224 * 224, 1 << 30])
def test_vectors_along_a_plane_of_any_size_stay_inside_of_it(plane):
    variable = Variable("n", 8 * plane)
    place = indexing.of(variable)
    loop = VectorLoop(variable, 16)
    assert lane_step(place // plane, loop) == 0
    assert lane_step(place % plane, loop) == 1
    assert lane_step(place // (plane + 1), loop) is None
