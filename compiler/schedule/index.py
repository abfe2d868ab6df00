"""Index arithmetic: affine expressions over loop variables, simplified as they are built.

An `Index` is `sum(coefficient * atom) + constant` over the integers. An atom is a loop variable, a floor division or a
remainder by a positive constant of another index, or a number read from data. All know their bounds, which is what
lets most divisions that reshapes introduce disappear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..ir.computed import cached_property


@dataclass(frozen=True)
class Variable:
    """A loop variable running over 0 <= v < extent."""

    name: str
    extent: int

    @property
    def bounds(self) -> tuple[int, int]:
        return 0, max(0, self.extent - 1)

    @property
    def variables(self) -> frozenset[Variable]:
        return frozenset((self,))


@dataclass(frozen=True)
class FloorDivision:
    """floor(index / divisor)."""

    index: Index
    divisor: int

    @cached_property
    def bounds(self) -> tuple[int, int]:
        low, high = self.index.bounds
        return low // self.divisor, high // self.divisor

    @property
    def variables(self) -> frozenset[Variable]:
        return self.index.variables


@dataclass(frozen=True)
class Remainder:
    """index mod divisor, in [0, divisor)."""

    index: Index
    divisor: int

    @property
    def bounds(self) -> tuple[int, int]:
        return 0, self.divisor - 1

    @property
    def variables(self) -> frozenset[Variable]:
        return self.index.variables


@dataclass(frozen=True)
class FromData:
    """An index read from data: an integer `value` (of the loop IR) clamped to [0, extent); equal for the same value."""

    value: Any
    extent: int

    @property
    def bounds(self) -> tuple[int, int]:
        return 0, max(0, self.extent - 1)

    @property
    def variables(self) -> frozenset[Variable]:
        return frozenset(self.value.variables)


Atom = Variable | FloorDivision | Remainder | FromData


@dataclass(frozen=True)
class Index:
    """sum(coefficient * atom) + constant; terms have distinct atoms and no zero coefficients."""

    terms: tuple[tuple[Atom, int], ...]
    constant: int = 0

    @cached_property
    def _hash(self) -> int:
        return hash((self.terms, self.constant))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """(smallest, largest) value possible."""
        low = high = self.constant
        for atom, coefficient in self.terms:
            a, b = atom.bounds
            low += coefficient * (a if coefficient > 0 else b)
            high += coefficient * (b if coefficient > 0 else a)
        return low, high

    @cached_property
    def variables(self) -> frozenset[Variable]:
        """The loop variables the index depends on."""
        result: frozenset[Variable] = frozenset()
        for atom, _ in self.terms:
            result |= atom.variables
        return result

    @cached_property
    def has_data(self) -> bool:
        """Whether part of the index is read from data."""
        return any(
            isinstance(atom, FromData) or (not isinstance(atom, Variable) and atom.index.has_data)
            for atom, _ in self.terms
        )

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def single_variable(self) -> Variable | None:
        """The variable if the index is exactly one variable."""
        if self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1:
            atom = self.terms[0][0]
            if isinstance(atom, Variable):
                return atom
        return None

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.constant + other)
        if not self.terms:
            return Index(other.terms, self.constant + other.constant)
        if not other.terms:
            return Index(self.terms, self.constant + other.constant)
        coefficients = dict(self.terms)
        for atom, coefficient in other.terms:
            coefficients[atom] = coefficients.get(atom, 0) + coefficient
        return _make(coefficients, self.constant + other.constant)

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return ZERO
        return Index(tuple((atom, c * factor) for atom, c in self.terms), self.constant * factor)

    def __sub__(self, other: Index | int) -> Index:
        return self + (-other if isinstance(other, int) else other * -1)

    def __floordiv__(self, divisor: int) -> Index:
        return _floor_divide(self, divisor)

    def __mod__(self, divisor: int) -> Index:
        return _remainder(self, divisor)


ZERO = Index((), 0)


def _make(coefficients: Mapping[Atom, int], constant: int) -> Index:
    """Normalise: drop zeros, and put c * d * (x // d) + c * (x % d) back together as c * x."""
    terms = {atom: c for atom, c in coefficients.items() if c}
    for atom, c in terms.items():
        if isinstance(atom, Remainder):
            quotient = _floor_divide(atom.index, atom.divisor)
            if len(quotient.terms) != 1 or quotient.constant or quotient.terms[0][1] != 1:
                continue
            division = quotient.terms[0][0]
            if terms.get(division) == c * atom.divisor:
                rest = {a: k for a, k in terms.items() if a not in (atom, division)}
                return _make(rest, constant) + atom.index * c
    return Index(tuple(terms.items()), constant)


def constant(value: int) -> Index:
    return Index((), value)


def of(atom: Atom) -> Index:
    """The index that is just `atom`; a variable that can only be 0 is the constant 0."""
    if isinstance(atom, Variable) and atom.extent == 1:
        return ZERO
    return Index(((atom, 1),), 0)


def _split(index: Index, divisor: int) -> tuple[Index, Index]:
    """(q, r) with index = q * divisor + r, taking out every term that is a multiple of the divisor."""
    quotient, rest = [], []
    for atom, c in index.terms:
        if c % divisor == 0:
            quotient.append((atom, c // divisor))
        else:
            rest.append((atom, c))
    q, r = divmod(index.constant, divisor)
    return Index(tuple(quotient), q), Index(tuple(rest), r)


def _common_factor(index: Index, divisor: int) -> tuple[Index, Index, int] | None:
    """(h, l, f) with index = h * f + l, 0 <= l < f and f a divisor of `divisor` beyond 1, if there is one."""
    for factor in sorted({abs(c) for _, c in index.terms}, reverse=True):
        if factor == 1 or divisor % factor:
            continue
        high, low = _split(index, factor)
        a, b = low.bounds
        if 0 <= a and b < factor:
            return high, low, factor
    return None


@lru_cache(maxsize=100_000)
def _floor_divide(index: Index, divisor: int) -> Index:
    if divisor == 1:
        return index
    quotient, rest = _split(index, divisor)
    low, high = rest.bounds
    if low // divisor == high // divisor:
        return quotient + low // divisor
    if len(rest.terms) == 1 and rest.constant == 0:
        atom, c = rest.terms[0]
        if c == 1 and isinstance(atom, FloorDivision):
            return quotient + _floor_divide(atom.index, atom.divisor * divisor)
        if divisor % c == 0 and c > 1:
            return quotient + _floor_divide(of(atom), divisor // c)
    common = _common_factor(rest, divisor)
    if common is not None:
        high_part, _, factor = common
        return quotient + _floor_divide(high_part, divisor // factor)
    return quotient + of(FloorDivision(rest, divisor))


@lru_cache(maxsize=100_000)
def _remainder(index: Index, divisor: int) -> Index:
    if divisor == 1:
        return ZERO
    _, rest = _split(index, divisor)
    low, high = rest.bounds
    if low // divisor == high // divisor:
        return rest - (low // divisor) * divisor
    if len(rest.terms) == 1 and rest.constant == 0:
        atom, c = rest.terms[0]
        if c == 1 and isinstance(atom, Remainder) and atom.divisor % divisor == 0:
            return _remainder(atom.index, divisor)
        if divisor % c == 0 and c > 1:
            return _remainder(of(atom), divisor // c) * c
    common = _common_factor(rest, divisor)
    if common is not None:
        high_part, low_part, factor = common
        return _remainder(high_part, divisor // factor) * factor + low_part
    return of(Remainder(rest, divisor))


def flatten(indices: Sequence[Index], shape: Sequence[int]) -> Index:
    """The row-major position of `indices` in an array of `shape`."""
    result = ZERO
    for index, extent in zip(indices, shape, strict=True):
        result = result * extent + index
    return result


def unflatten(index: Index, shape: Sequence[int]) -> tuple[Index, ...]:
    """The indices of row-major position `index` in an array of `shape` (no extent is zero)."""
    result: list[Index] = []
    for axis in reversed(range(len(shape))):
        if axis == 0:
            result.append(index)
        else:
            result.append(index % shape[axis])
            index = index // shape[axis]
    return tuple(reversed(result))


def substitute(index: Index, mapping: Mapping[Variable, Index], on_data: Callable[[FromData], Index]) -> Index:
    """`index` with variables replaced; `on_data` gives the replacement for a number read from data.

    Numbers read from data are always replaced: what they are computed from may change although their variables do not.
    """
    if not (index.variables & mapping.keys() or index.has_data):
        return index
    result = constant(index.constant)
    for atom, coefficient in index.terms:
        if isinstance(atom, Variable):
            replacement = mapping.get(atom, of(atom))
        elif isinstance(atom, FloorDivision):
            replacement = substitute(atom.index, mapping, on_data) // atom.divisor
        elif isinstance(atom, Remainder):
            replacement = substitute(atom.index, mapping, on_data) % atom.divisor
        else:
            replacement = on_data(atom)
        result = result + replacement * coefficient
    return result


def evaluate(index: Index, number: Callable[[Variable | FromData], Any]) -> Any:
    """The index as a number, or an array of them: `number` gives what a variable or a number read from data is."""
    total: Any = index.constant
    for atom, coefficient in index.terms:
        if isinstance(atom, FloorDivision):
            part = evaluate(atom.index, number) // atom.divisor
        elif isinstance(atom, Remainder):
            part = evaluate(atom.index, number) % atom.divisor
        else:
            part = number(atom)
        total = total + part * coefficient
    return total


def format_index(index: Index, name_of: Any = None) -> str:
    """The index as text: `16*v0 + v1 // 3 + 5`."""

    def atom_text(atom: Atom) -> str:
        if isinstance(atom, Variable):
            return atom.name
        if isinstance(atom, FromData):
            return f"[{name_of(atom.value) if name_of else atom.value} < {atom.extent}]"
        sign = "//" if isinstance(atom, FloorDivision) else "%"
        return f"(({format_index(atom.index, name_of)}) {sign} {atom.divisor})"

    parts = [atom_text(a) if c == 1 else f"{c}*{atom_text(a)}" for a, c in index.terms]
    if index.constant or not parts:
        parts.append(str(index.constant))
    return " + ".join(parts)
