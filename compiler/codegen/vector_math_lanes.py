"""An LLVM value with arithmetic operators, so that the numerics of the vector math files read as formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir


@dataclass(frozen=True)
class FloatFormat:
    """The IEEE 754 layout of a floating-point type.

    `round_shift` is 1.5 * 2**mantissa_bits: adding it to a float of moderate size rounds that float to the nearest
    integer and leaves the integer in the low bits of the sum (D. Goldberg, 1991; the usual "magic number").
    """

    bits: int
    mantissa_bits: int
    bias: int

    @property
    def round_shift(self) -> float:
        return 1.5 * 2.0**self.mantissa_bits

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def sign_mask(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def mantissa_mask(self) -> int:
        return (1 << self.mantissa_bits) - 1

    @property
    def float_type(self) -> ir.Type:
        return ir.FloatType() if self.bits == 32 else ir.DoubleType()


FLOAT32 = FloatFormat(bits=32, mantissa_bits=23, bias=127)
FLOAT64 = FloatFormat(bits=64, mantissa_bits=52, bias=1023)


@dataclass(frozen=True, eq=False)
class Lanes:
    """A scalar or a vector of floats, integers or truth values, bound to the builder that extends it.

    Operators emit the float or the integer instruction, by the element type; a Python number on either side is
    splatted. `>>` is the logical shift. Comparisons are ordered (false for NaN) on floats, signed on integers.
    """

    builder: ir.IRBuilder
    value: ir.Value
    has_fma: bool

    # -- types --------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int | None:
        return int(self.value.type.count) if isinstance(self.value.type, ir.VectorType) else None

    @property
    def element(self) -> ir.Type:
        return self.value.type.element if isinstance(self.value.type, ir.VectorType) else self.value.type

    @property
    def is_float(self) -> bool:
        return isinstance(self.element, ir.FloatType | ir.DoubleType)

    @property
    def format(self) -> FloatFormat:
        return FLOAT32 if self.element in (ir.FloatType(), ir.IntType(32)) else FLOAT64

    def with_value(self, value: ir.Value) -> Lanes:
        return Lanes(self.builder, value, self.has_fma)

    def type_of(self, element: ir.Type) -> ir.Type:
        """The type of as many lanes as this value has, of another element."""
        return element if self.count is None else ir.VectorType(element, self.count)

    def constant(self, number: float, element: ir.Type | None = None) -> Lanes:
        """The number in every lane, of this value's element type unless another is given."""
        element = self.element if element is None else element
        if isinstance(element, ir.IntType):
            modulus = 1 << element.width
            number = int(number) % modulus
            number = number - modulus if number >= modulus // 2 and element.width > 1 else number
        scalar = ir.Constant(element, number)
        splat = scalar if self.count is None else ir.Constant(ir.VectorType(element, self.count), [scalar] * self.count)
        return self.with_value(splat)

    # -- arithmetic ---------------------------------------------------------------------------------------------

    def _binary(self, other: Lanes | float, float_name: str, integer_name: str) -> Lanes:
        right = other if isinstance(other, Lanes) else self.constant(other)
        instruction = getattr(self.builder, float_name if self.is_float else integer_name)
        return self.with_value(instruction(self.value, right.value))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._binary(other, "fadd", "add")

    def __radd__(self, other: float) -> Lanes:
        return self._binary(other, "fadd", "add")

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: float) -> Lanes:
        return self.constant(other) - self

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._binary(other, "fmul", "mul")

    def __rmul__(self, other: float) -> Lanes:
        return self._binary(other, "fmul", "mul")

    def __truediv__(self, other: Lanes | float) -> Lanes:
        right = other if isinstance(other, Lanes) else self.constant(other)
        return self.with_value(self.builder.fdiv(self.value, right.value))

    def __rtruediv__(self, other: float) -> Lanes:
        return self.constant(other) / self

    def __neg__(self) -> Lanes:
        return self.with_value((self.builder.fneg if self.is_float else self.builder.neg)(self.value))

    def _integer(self, other: Lanes | int, name: str) -> Lanes:
        right = other if isinstance(other, Lanes) else self.constant(other)
        return self.with_value(getattr(self.builder, name)(self.value, right.value))

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._integer(other, "and_")

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._integer(other, "or_")

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._integer(other, "xor")

    def __lshift__(self, other: Lanes | int) -> Lanes:
        return self._integer(other, "shl")

    def __rshift__(self, other: Lanes | int) -> Lanes:
        return self._integer(other, "lshr")

    def shift_right_signed(self, amount: int) -> Lanes:
        return self._integer(amount, "ashr")

    def __invert__(self) -> Lanes:
        return self.with_value(self.builder.not_(self.value))

    # -- comparison ---------------------------------------------------------------------------------------------

    def _compare(self, operator: str, other: Lanes | float) -> Lanes:
        right = other if isinstance(other, Lanes) else self.constant(other)
        compare = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_signed
        return self.with_value(compare(operator, self.value, right.value))

    def __lt__(self, other: Lanes | float) -> Lanes:
        return self._compare("<", other)

    def __le__(self, other: Lanes | float) -> Lanes:
        return self._compare("<=", other)

    def __gt__(self, other: Lanes | float) -> Lanes:
        return self._compare(">", other)

    def __ge__(self, other: Lanes | float) -> Lanes:
        return self._compare(">=", other)

    def equals(self, other: Lanes | float) -> Lanes:
        return self._compare("==", other)

    def is_nan(self) -> Lanes:
        return self.with_value(self.builder.fcmp_unordered("uno", self.value, self.value))

    # -- conversion ---------------------------------------------------------------------------------------------

    @property
    def bits(self) -> Lanes:
        """The same bits as integers."""
        return self.with_value(self.builder.bitcast(self.value, self.type_of(ir.IntType(self.format.bits))))

    @property
    def as_float(self) -> Lanes:
        """The same bits as floats."""
        return self.with_value(self.builder.bitcast(self.value, self.type_of(self.format.float_type)))

    def to_float(self, format: FloatFormat) -> Lanes:
        """Signed integers, or floats of another format, rounded to this format."""
        target = self.type_of(format.float_type)
        if not self.is_float:
            return self.with_value(self.builder.sitofp(self.value, target))
        if self.format.bits == format.bits:
            return self
        convert = self.builder.fpext if format.bits > self.format.bits else self.builder.fptrunc
        return self.with_value(convert(self.value, target))

    def to_unsigned(self, bits: int) -> Lanes:
        """Integers zero-extended or truncated to `bits`."""
        convert = self.builder.zext if bits > self.element.width else self.builder.trunc
        return self.with_value(convert(self.value, self.type_of(ir.IntType(bits))))

    # -- intrinsics ---------------------------------------------------------------------------------------------

    def intrinsic(self, name: str, *others: Lanes) -> Lanes:
        """An LLVM intrinsic whose arguments and result all have this value's type."""
        type_ = self.value.type
        letter = "f" if self.is_float else "i"
        width = self.element.width if not self.is_float else self.format.bits
        full_name = f"llvm.{name}.{'' if self.count is None else f'v{self.count}'}{letter}{width}"
        function = self.builder.module.globals.get(full_name)
        if function is None:
            function_type = ir.FunctionType(type_, [type_] * (1 + len(others)))
            function = ir.Function(self.builder.module, function_type, full_name)
        return self.with_value(self.builder.call(function, [self.value, *(other.value for other in others)]))

    def absolute(self) -> Lanes:
        return self.intrinsic("fabs")

    def with_sign_of(self, other: Lanes) -> Lanes:
        return self.intrinsic("copysign", other)

    def any_lane(self) -> ir.Value:
        """For truth values: one truth value, whether any lane holds."""
        if self.count is None:
            return self.value
        # A comparison of the mask as one integer is the same everywhere; LLVM turns it into kortest or movmsk.
        mask = self.builder.bitcast(self.value, ir.IntType(self.count))
        return self.builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0))


def fma(a: Lanes, b: Lanes | float, c: Lanes | float) -> Lanes:
    """a * b + c, rounded once where the target can and twice where it cannot."""
    if not a.has_fma:
        return a * b + c
    b = b if isinstance(b, Lanes) else a.constant(b)
    c = c if isinstance(c, Lanes) else a.constant(c)
    return a.intrinsic("fma", b, c)


def exact_fma(a: Lanes, b: float, c: Lanes) -> Lanes:
    """a * b + c, rounded as if a * b were exact on every target; |c| is not much larger than |a * b|."""
    if a.has_fma:
        return fma(a, b, c)
    product, error = two_product(a, a.constant(b))
    # Where the error of the product underflows, it is wrong rather than small.
    safe = a.format.smallest_normal * 2.0 ** (a.format.mantissa_bits + 3)
    return product + (select(product.absolute() < safe, 0.0, error) + c)


def select(condition: Lanes, when_true: Lanes | float, when_false: Lanes | float) -> Lanes:
    """One of two values for each lane; at least one of them is not a Python number."""
    typed = when_true if isinstance(when_true, Lanes) else when_false
    if not isinstance(typed, Lanes):
        raise TypeError("vector_math_lanes.select: got two Python numbers, expected at least one Lanes")
    left = when_true if isinstance(when_true, Lanes) else typed.constant(when_true)
    right = when_false if isinstance(when_false, Lanes) else typed.constant(when_false)
    return typed.with_value(typed.builder.select(condition.value, left.value, right.value))


def corrected(condition: Lanes, usual: Sequence[Lanes], correct: Callable[[], Sequence[Lanes]]) -> list[Lanes]:
    """The usual values, in lanes under the condition the ones that `correct` emits.

    Those are computed in a branch that is taken only when the condition holds in some lane. The builder is left in
    another block.
    """
    builder = condition.builder
    before = builder.block
    with builder.if_then(condition.any_lane(), likely=False):
        mixed = [select(condition, right, wrong) for right, wrong in zip(correct(), usual, strict=True)]
        after = builder.block
    merged = []
    for value, mixed_value in zip(usual, mixed, strict=True):
        phi = builder.phi(value.value.type)
        phi.add_incoming(value.value, before)
        phi.add_incoming(mixed_value.value, after)
        merged.append(value.with_value(phi))
    return merged


def at_most(x: Lanes, bound: float) -> Lanes:
    """min(x, bound), NaN where x is NaN: the operand order is the one of the x86 minimum instruction."""
    return select(x.constant(bound) < x, bound, x)


def at_least(x: Lanes, bound: float) -> Lanes:
    """max(x, bound), NaN where x is NaN."""
    return select(x.constant(bound) > x, bound, x)


def horner(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """sum_k coefficients[k] * x**k."""
    total = fma(x, coefficients[-1], coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        total = fma(total, x, coefficient)
    return total


def halved(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """The same by two chains of half the length, in x**2: the processor hides the wait of one behind the other."""
    if len(coefficients) < 4:
        return horner(x, coefficients)
    square = x * x
    return fma(x, horner(square, coefficients[1::2]), horner(square, coefficients[::2]))


def two_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """(high, low) with high = round(a * b) and high + low = a * b exactly, unless something over- or underflows.

    Without a fused multiply-add the factors are split in halves (T. J. Dekker, Numerische Mathematik 18, 1971).
    """
    high = a * b
    if a.has_fma:
        return high, fma(a, b, -high)
    splitter = 2.0 ** ((a.format.mantissa_bits + 2) // 2) + 1.0

    def halves(x: Lanes) -> tuple[Lanes, Lanes]:
        scaled = x * splitter
        upper = scaled - (scaled - x)
        return upper, x - upper

    a_upper, a_lower = halves(a)
    b_upper, b_lower = halves(b)
    error = a_upper * b_upper - high
    return high, ((error + a_upper * b_lower) + a_lower * b_upper) + a_lower * b_lower


def fast_two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """(high, low) with high = round(a + b) and high + low = a + b exactly, where |a| >= |b| or a = 0."""
    high = a + b
    return high, b - (high - a)
