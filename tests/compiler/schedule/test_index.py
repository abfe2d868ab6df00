"""Index arithmetic is integer arithmetic, whatever it simplifies."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from kaun.compiler.schedule import index as indexing
from kaun.compiler.schedule.index import ZERO, FromData, Index, Variable, flatten, of, substitute, unflatten

VARIABLES = (Variable("a", 6), Variable("b", 4), Variable("c", 5), Variable("d", 1))
Number = Callable[[Variable], int]


def places(variables=VARIABLES):
    for point in itertools.product(*(range(v.extent) for v in variables)):
        yield dict(zip(variables, point, strict=True)).__getitem__


def number_at(index: Index, at: Number) -> int:
    return indexing.evaluate(index, at)


def expression(source: random.Random, steps: int = 5) -> tuple[Index, Callable[[Number], int]]:
    """An index, and the same thing in Python's integers."""
    variable = source.choice(VARIABLES)
    index, plain = of(variable), lambda at: at(variable)
    for _ in range(steps):
        n = source.choice((2, 3, 4, 5, 6, 8, 12, 24))
        match source.randrange(5):
            case 0:
                index, plain = index // n, lambda at, f=plain, n=n: f(at) // n
            case 1:
                index, plain = index % n, lambda at, f=plain, n=n: f(at) % n
            case 2:
                n = source.choice((-3, -1, 0, n))
                index, plain = index * n, lambda at, f=plain, n=n: f(at) * n
            case 3:
                n = source.randrange(-9, 10)
                index, plain = index + n, lambda at, f=plain, n=n: f(at) + n
            case _:
                sign = source.choice((1, 1, -1))
                other, term = expression(source, steps // 2)
                index = index + other * sign
                plain = lambda at, f=plain, g=term, s=sign: f(at) + s * g(at)  # noqa: E731
    return index, plain


@pytest.mark.parametrize("seed", range(300))
def test_every_operation_is_the_integer_operation_at_every_place_and_bounds_hold(seed):
    index, plain = expression(random.Random(seed))
    low, high = index.bounds
    for at in places():
        assert number_at(index, at) == plain(at), indexing.format_index(index)
        assert low <= plain(at) <= high
    assert len({atom for atom, _ in index.terms}) == len(index.terms)
    assert all(coefficient for _, coefficient in index.terms)


@pytest.mark.parametrize("seed", range(50))
def test_bounds_of_affine_indices_are_reached(seed):
    source = random.Random(seed)
    index = indexing.constant(source.randrange(-5, 5))
    for variable in VARIABLES:
        index = index + of(variable) * source.randrange(-4, 5)
    values = [number_at(index, at) for at in places()]
    assert index.bounds == (min(values), max(values))


@pytest.mark.parametrize("seed", range(100))
def test_substitution_is_composition(seed):
    source = random.Random(seed)
    index, plain = expression(source)
    images = {variable: expression(source, 2) for variable in VARIABLES[: source.randrange(1, 4)]}
    # What replaces a variable has to stay inside the variable's range, as the simplifications have used it.
    mapping = {variable: image % variable.extent for variable, (image, _) in images.items()}
    replaced = substitute(index, mapping, lambda atom: of(atom))
    for at in places():
        def inner(variable, at=at):
            return images[variable][1](at) % variable.extent if variable in images else at(variable)

        assert number_at(replaced, at) == plain(inner)


def test_substitution_reaches_numbers_read_from_data_and_leaves_other_indices_alone():
    class Datum:
        variables = frozenset((VARIABLES[0],))

    atom = FromData(Datum(), 7)
    index = of(atom) * 3 + of(VARIABLES[1])
    other = of(VARIABLES[0]) * 3 + of(VARIABLES[1])
    assert substitute(other, {VARIABLES[2]: ZERO}, lambda atom: ZERO) is other
    # What the number is computed from may change although its variables stay.
    assert substitute(index, {VARIABLES[2]: ZERO}, lambda atom: ZERO) == of(VARIABLES[1])
    replaced = substitute(index, {VARIABLES[0]: ZERO}, lambda atom: of(VARIABLES[2]))
    assert replaced == of(VARIABLES[2]) * 3 + of(VARIABLES[1])


SHAPES = ((6,), (2, 3), (3, 1, 4), (1, 1), (2, 3, 4), (5, 7), (4, 1, 2, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_flatten_and_unflatten_are_row_major(shape):
    axes = tuple(Variable(f"i{axis}", extent) for axis, extent in enumerate(shape))
    flat = flatten([of(v) for v in axes], shape)
    position = Variable("p", math.prod(shape))
    parts = unflatten(of(position), shape)
    for number, point in enumerate(np.ndindex(*shape)):
        assert number_at(flat, dict(zip(axes, point, strict=True)).__getitem__) == number
        assert tuple(number_at(part, lambda _, n=number: n) for part in parts) == point


@pytest.mark.parametrize("shape", SHAPES)
def test_flatten_undoes_unflatten_without_a_trace(shape):
    position = of(Variable("p", math.prod(shape)))
    assert flatten(unflatten(position, shape), shape) == position


@pytest.mark.parametrize(
    ("shape", "other"), [((4, 6), (2, 2, 6)), ((24,), (4, 6)), ((2, 3, 4), (6, 4)), ((4, 6), (6, 4))]
)
def test_a_reshape_and_its_inverse_cancel(shape, other):
    place = flatten([of(Variable(f"i{axis}", extent)) for axis, extent in enumerate(shape)], shape)
    assert flatten(unflatten(place, other), other) == place


def test_merging_axes_divides_nothing():
    i, j, k = (of(Variable(name, extent)) for name, extent in (("i", 2), ("j", 3), ("k", 4)))
    assert unflatten(flatten((i, j, k), (2, 3, 4)), (6, 4)) == (i * 3 + j, k)


def test_a_loop_of_one_iteration_is_no_part_of_an_index():
    assert of(VARIABLES[3]) == ZERO and flatten([of(VARIABLES[3]), of(VARIABLES[0])], (1, 6)) == of(VARIABLES[0])


def test_evaluation_works_on_whole_arrays():
    index = (of(VARIABLES[0]) * 5 + of(VARIABLES[2])) // 4 + 1
    a, c = np.ogrid[:6, :5]
    found = indexing.evaluate(index, {VARIABLES[0]: a, VARIABLES[2]: c}.__getitem__)
    np.testing.assert_array_equal(found, (5 * a + c) // 4 + 1)
