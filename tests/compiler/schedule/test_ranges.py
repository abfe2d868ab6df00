"""What is proved about indices agrees with trying every place."""

from __future__ import annotations

import itertools
import random

import pytest
from kaun.compiler.schedule import index as indexing
from kaun.compiler.schedule import ranges
from kaun.compiler.schedule.index import Index, Variable, flatten, of
from kaun.compiler.schedule.loop_ir import Condition

A, B, C = Variable("a", 6), Variable("b", 4), Variable("c", 5)


def values(index, guard=()):
    found = []
    for point in itertools.product(range(A.extent), range(B.extent), range(C.extent)):
        at = dict(zip((A, B, C), point, strict=True)).__getitem__
        if all(c.low <= indexing.evaluate(c.index, at) < c.high for c in guard):
            found.append(indexing.evaluate(index, at))
    return found


def random_index(source):
    index = indexing.constant(source.randrange(-6, 7))
    for variable in (A, B, C):
        part = of(variable) * source.choice((-2, -1, 0, 1, 1, 2, 3))
        if source.random() < 0.3:
            part = (part + source.randrange(5)) // source.choice((2, 3))
        index = index + part
    return index % source.choice((2, 3, 4)) if source.random() < 0.2 else index


def random_guard(source):
    guard = []
    for _ in range(source.randrange(4)):
        low = source.randrange(-4, 4)
        guard.append(Condition(random_index(source), low, low + source.randrange(1, 8)))
    return tuple(guard)


@pytest.mark.parametrize("seed", range(300))
def test_bounds_under_a_guard_hold_wherever_the_guard_does(seed):
    source = random.Random(seed)
    guard = random_guard(source)
    # The common case: an index made of what the guard is about.
    index = sum((c.index * source.choice((1, 5)) for c in guard), start=random_index(source))
    inside, found = values(index, guard), ranges.bounds(index, guard)
    assert found is not None or not inside
    if inside:
        low, high = found
        assert low <= min(inside) and max(inside) <= high
    size = source.choice((1, 4, 16, 40))
    assert ranges.is_within(index, size, guard) == all(0 <= v < size for v in inside)


def test_bounds_of_a_padded_window_are_those_of_the_image_it_is_cut_from():
    """Too many places to try: this has to be seen from the form."""
    y, x, i, j = Variable("y", 4000), Variable("x", 3000), Variable("i", 3), Variable("j", 5)
    place = (of(y) * 2 + of(i) - 1, of(x) + of(j) * 2 - 4)
    guard = (Condition(place[0], 0, 7999), Condition(place[1], 0, 3000))
    index = flatten(place, (7999, 3000))
    assert ranges.is_within(index, 7999 * 3000, guard)
    assert not ranges.is_within(index, 7999 * 3000, guard[:1])
    assert not ranges.is_within(index, 7999 * 3000 - 1, guard)


def test_a_guard_that_never_holds_lets_no_index_out():
    assert ranges.bounds(of(A), (Condition(of(A), 6, 9),)) is None
    assert ranges.is_within(of(A) + 100, 1, (Condition(of(A), 6, 9),))


@pytest.mark.parametrize("seed", range(200))
def test_an_index_is_injective_if_no_value_comes_twice(seed):
    source = random.Random(seed)
    index = random_index(source)
    if seed % 2:
        index = flatten([of(v) for v in source.sample((A, B, C), 3)], source.sample((6, 4, 5, 7), 3))
    found = values(index)
    assert ranges.is_injective(index, (A, B, C)) == (len(set(found)) == len(found))


def test_permuted_and_flipped_digits_of_big_loops_are_injective_and_repeated_ones_are_not():
    v, w = Variable("v", 1200), Variable("w", 50_000)
    low, middle, high = of(v) % 10, (of(v) // 10) % 12, of(v) // 120
    permuted = flatten((low, of(w), high, middle), (10, 50_000, 10, 12))
    assert ranges.is_injective(permuted, (v, w))
    assert ranges.is_injective(permuted * -1, (v, w))
    assert not ranges.is_injective(flatten((low, of(w), middle), (10, 50_000, 12)), (v, w))
    assert not ranges.is_injective(of(w), (v, w))


def test_digits_of_two_indices_are_cut_alike():
    v = Variable("v", 12)
    whole, parts = of(v), (of(v) // 4) * 100 + of(v) % 4
    assert ranges.digits(whole, [parts]) == ({(v, 1): (4, 1), (v, 4): (3, 4)}, 0)
    assert ranges.digits(parts, [whole]) == ({(v, 1): (4, 1), (v, 4): (3, 100)}, 0)


def test_values_are_listed_only_where_the_guard_holds_and_nothing_comes_from_data():
    guard = (Condition(of(A), 2, 4),)
    assert sorted(ranges.values(of(A) * 10 + of(B), guard, (A, B))) == [20, 21, 22, 23, 30, 31, 32, 33]
    huge = Variable("h", 1 << 30)
    assert ranges.values(of(huge), (), (huge,)) is None
    assert ranges.values(of(A), (), (B,)) is None
    assert isinstance(of(A), Index)
