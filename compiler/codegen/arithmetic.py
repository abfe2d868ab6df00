"""Elementwise ops as LLVM instructions, for scalars and vectors alike; types in registers and in memory.

In registers bool is i1, integers are themselves, float16 and bfloat16 are float (rounded when they are stored or when
a cast asks for it). In memory bool is a byte and narrow floats are 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..ir import dtypes
from ..ir.dtypes import DType
from . import vector_math
from .constants import integer, lane_mask, lane_order
from .remainder import remainder_function

BIT = ir.IntType(1)
BYTE = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()

_REGISTER: dict[str, ir.Type] = {"bool": BIT, "float64": DOUBLE, "float32": FLOAT, "float16": FLOAT, "bfloat16": FLOAT}
# Products and sums may fuse into one instruction with one rounding; nothing that would assume away NaN or infinity.
_FLAGS = ("contract",)


def register_type(dtype: DType) -> ir.Type:
    """The LLVM type of a scalar of `dtype` in a register."""
    return _REGISTER.get(dtype.name) or ir.IntType(dtype.bits)


def memory_type(dtype: DType) -> ir.Type:
    """The LLVM type of an element of `dtype` in memory."""
    if dtype.name in ("float16", "bfloat16"):
        return I16
    return BYTE if dtype is dtypes.bool_ else register_type(dtype)


def lanes_of(value: ir.Value) -> int:
    """Number of lanes of a vector value, 0 for a scalar."""
    return value.type.count if isinstance(value.type, ir.VectorType) else 0


def widened(scalar: ir.Type, lanes: int) -> ir.Type:
    """A vector type of `lanes` elements, or the scalar type itself for 0."""
    return ir.VectorType(scalar, lanes) if lanes else scalar


def constant(scalar: ir.Type, value: Any, lanes: int = 0) -> ir.Constant:
    """A constant, the same in all lanes."""
    if isinstance(scalar, ir.IntType):
        one = integer(scalar.width, int(value))
    else:
        one = ir.Constant(scalar, value)
    return ir.Constant(ir.VectorType(scalar, lanes), [one] * lanes) if lanes else one


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """The scalar in all lanes."""
    kind = ir.VectorType(value.type, lanes)
    if isinstance(value, ir.Constant):
        return ir.Constant(kind, [value] * lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, integer(32, 0)), undefined, lane_order([0] * lanes)
    )


def intrinsic(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value], flags: Sequence[str] = ()
) -> ir.Value:
    """Call an LLVM intrinsic by its full name."""
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return builder.call(function, arguments, fastmath=flags)


def suffix(kind: ir.Type) -> str:
    """How intrinsic names spell a type: `v16f32`."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{suffix(kind.element)}"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return {"float": "f32", "double": "f64", "half": "f16"}[str(kind)]


def mask_flags(mask: ir.Constant) -> list[bool]:
    """The lanes of a constant mask."""
    return [bool(getattr(flag, "constant", flag)) for flag in mask.constant]


def both(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The lanes of both masks.

    Lanes that are known to be off are shuffled in. `and` would mean the same, but LLVM 22 forgets the mask of a load
    that it splits into narrower ones where half of the mask is a splat `and` zeros: it reads memory it must not touch.
    """
    if isinstance(a, ir.Constant):
        a, b = b, a
    if not isinstance(b, ir.Constant):
        return builder.and_(a, b)
    known = mask_flags(b)
    if isinstance(a, ir.Constant):
        return lane_mask(x and y for x, y in zip(mask_flags(a), known, strict=True))
    if all(known):
        return a
    count = len(known)
    order = lane_order(i if on else count + i for i, on in enumerate(known))
    return builder.shuffle_vector(a, ir.Constant(a.type, None), order)


def masked_store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value, align: int) -> None:
    """Store the lanes of a vector that the mask has; memory of the others is not touched."""
    if isinstance(mask, ir.Constant):
        on = [lane for lane, flag in enumerate(mask_flags(mask)) if flag]
        if not on:
            return
        if len(on) == 1:
            # LLVM 22 makes a 32-bit store of a single lane of 16 bits that was truncated from 32 just before.
            place = builder.gep(pointer, [integer(64, on[0])], source_etype=value.type.element)
            builder.store(builder.extract_element(value, integer(32, on[0])), place, align=align)
            return
    arguments = [value, pointer, integer(32, align), mask]
    intrinsic(builder, f"llvm.masked.store.{suffix(value.type)}.p0", ir.VoidType(), arguments)


class Arithmetic:
    """Emits ops at the builder's position. `has_fma`, `has_f16c`: what the target can do in one instruction."""

    def __init__(self, builder: ir.IRBuilder, has_fma: bool, has_f16c: bool):
        self.builder, self.has_fma, self.has_f16c = builder, has_fma, has_f16c

    def apply(self, name: str, arguments: Sequence[ir.Value], dtype: DType, argument_dtype: DType) -> ir.Value:
        """Op `name` on arguments of `argument_dtype`; the result has `dtype`."""
        if name in _COMPARISONS:
            return self.compare(name, arguments[0], arguments[1], argument_dtype)
        if name == "where":
            return self._where(*arguments)
        if name == "cast":
            return self.cast(arguments[0], argument_dtype, dtype)
        if name == "bitcast":
            return self._bitcast(arguments[0], argument_dtype, dtype)
        if name == "random_bits":
            return self._random_bits(*arguments)
        if name in vector_math.FUNCTIONS:
            return vector_math.emit(self.builder, name, list(arguments), has_fma=self.has_fma)
        if argument_dtype.is_float:
            return self._float(name, arguments)
        return self._integer(name, arguments, argument_dtype)

    # Comparisons and selection

    def compare(self, name: str, a: ir.Value, b: ir.Value, dtype: DType) -> ir.Value:
        """eq, ne, lt or le; false for NaN except ne."""
        sign = _COMPARISONS[name]
        if dtype.is_float:
            return self.builder.fcmp_unordered(sign, a, b) if sign == "!=" else self.builder.fcmp_ordered(sign, a, b)
        if dtype.kind == "signed":
            return self.builder.icmp_signed(sign, a, b)
        return self.builder.icmp_unsigned(sign, a, b)

    def _where(self, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(condition, a, b)

    def like(self, value: ir.Value, number: Any) -> ir.Constant:
        """The number as a constant of the value's type."""
        lanes = lanes_of(value)
        return constant(value.type.element if lanes else value.type, number, lanes)

    # Floats

    def _float(self, name: str, arguments: Sequence[ir.Value]) -> ir.Value:
        b = self.builder
        first = arguments[0]
        if name in _FLOAT_BINARY:
            return getattr(b, _FLOAT_BINARY[name])(*arguments, flags=_FLAGS)
        if name in ("maximum", "minimum"):
            return self.extremum(name, *arguments)
        if name in _FLOAT_INTRINSICS:
            return intrinsic(b, f"llvm.{_FLOAT_INTRINSICS[name]}.{suffix(first.type)}", first.type, [first])
        if name == "neg":
            return b.fneg(first)
        if name == "rem":
            return self._float_remainder(*arguments)
        if name == "stop_gradient":
            return first
        raise NotImplementedError(f"arithmetic.apply: no code for {name} on floats")

    def extremum(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """maximum or minimum that propagates NaN from either side; which zero wins is left open."""
        return intrinsic(self.builder, f"llvm.{name}.{suffix(a.type)}", a.type, [a, b], flags=("nsz",))

    def _float_remainder(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """fmod, lane by lane: exact, as no vector formula is for large quotients."""
        lanes = lanes_of(a)
        function = remainder_function(self.builder.module, a.type.element if lanes else a.type)
        if not lanes:
            return self.builder.call(function, [a, b])
        result: ir.Value = ir.Constant(a.type, ir.Undefined)
        for lane in range(lanes):
            place = integer(32, lane)
            each = [self.builder.extract_element(value, place) for value in (a, b)]
            result = self.builder.insert_element(result, self.builder.call(function, each), place)
        return result

    # Integers and bool

    def _integer(self, name: str, arguments: Sequence[ir.Value], dtype: DType) -> ir.Value:
        b = self.builder
        first = arguments[0]
        signed = dtype.kind == "signed"
        if name in _INTEGER_BINARY:
            return getattr(b, _INTEGER_BINARY[name])(*arguments)
        if name in ("maximum", "minimum"):
            sign = ">" if name == "maximum" else "<"
            compare = b.icmp_signed if signed else b.icmp_unsigned
            return b.select(compare(sign, *arguments), *arguments)
        if name in ("div", "rem"):
            return self._divide(name, arguments[0], arguments[1], signed)
        if name in ("shift_left", "shift_right"):
            return self._shift(name, arguments[0], arguments[1], signed, dtype.bits)
        if name == "neg":
            return b.neg(first)
        if name == "not":
            return b.not_(first)
        if name == "abs":
            return b.select(b.icmp_signed("<", first, self.like(first, 0)), b.neg(first), first) if signed else first
        if name == "stop_gradient":
            return first
        raise NotImplementedError(f"arithmetic.apply: no code for {name} on {dtype}")

    def _divide(self, name: str, x: ir.Value, y: ir.Value, signed: bool) -> ir.Value:
        """Truncated quotient or remainder; 0 for division by zero, wrapping for lowest / -1: never a trap."""
        b = self.builder
        zero, one = self.like(y, 0), self.like(y, 1)
        is_zero = b.icmp_unsigned("==", y, zero)
        safe = b.select(is_zero, one, y)
        if signed:
            is_minus_one = b.icmp_signed("==", y, self.like(y, -1))
            safe = b.select(is_minus_one, one, safe)
            result = b.sdiv(x, safe) if name == "div" else b.srem(x, safe)
            result = b.select(is_minus_one, b.neg(x) if name == "div" else zero, result)
        else:
            result = b.udiv(x, safe) if name == "div" else b.urem(x, safe)
        return b.select(is_zero, zero, result)

    def _shift(self, name: str, x: ir.Value, amount: ir.Value, signed: bool, bits: int) -> ir.Value:
        b = self.builder
        inside = b.icmp_unsigned("<", amount, self.like(amount, bits))
        if name == "shift_right" and signed:
            return b.ashr(x, b.select(inside, amount, self.like(amount, bits - 1)))
        safe = b.select(inside, amount, self.like(amount, 0))
        shifted = b.shl(x, safe) if name == "shift_left" else b.lshr(x, safe)
        return b.select(inside, shifted, self.like(x, 0))

    # Conversions

    def cast(self, x: ir.Value, source: DType, target: DType) -> ir.Value:
        """By value: to bool is != 0; float to integer truncates and saturates, NaN gives 0."""
        if source is target:
            return x
        lanes = lanes_of(x)
        kind = widened(register_type(target), lanes)
        if target is dtypes.bool_:
            return self.compare("ne", x, self.like(x, 0), source)
        if source.is_float and target.is_integer:
            sign = "s" if target.kind == "signed" else "u"
            return intrinsic(self.builder, f"llvm.fpto{sign}i.sat.{suffix(kind)}.{suffix(x.type)}", kind, [x])
        if source.is_float:
            return self._round_to(x, target)
        if target.is_float:
            convert = self.builder.sitofp if source.kind == "signed" else self.builder.uitofp
            return self._round_to(convert(x, kind), target)
        if target.bits == source.bits and source is not dtypes.bool_:
            return x
        if target.bits < source.bits:
            return self.builder.trunc(x, kind)
        return self.builder.sext(x, kind) if source.kind == "signed" else self.builder.zext(x, kind)

    def _round_to(self, x: ir.Value, target: DType) -> ir.Value:
        """A float value (of any register type) as the value of `target` nearest to it, in target's register type."""
        lanes = lanes_of(x)
        wide = (x.type.element if lanes else x.type) == DOUBLE
        if target is dtypes.float64:
            return x if wide else self.builder.fpext(x, widened(DOUBLE, lanes))
        if target is dtypes.float32:
            return self.builder.fptrunc(x, widened(FLOAT, lanes)) if wide else x
        return self.from_memory(self.to_memory(x, target), target)

    def _bitcast(self, x: ir.Value, source: DType, target: DType) -> ir.Value:
        raw = self.to_memory(x, source)
        kind = widened(memory_type(target), lanes_of(x))
        return self.from_memory(raw if raw.type == kind else self.builder.bitcast(raw, kind), target)

    def from_memory(self, raw: ir.Value, dtype: DType) -> ir.Value:
        """The register value of an element as loaded."""
        lanes = lanes_of(raw)
        b = self.builder
        if dtype is dtypes.bool_:
            return b.icmp_unsigned("!=", raw, self.like(raw, 0))
        if dtype is dtypes.bfloat16:
            wide = b.zext(raw, widened(I32, lanes))
            return b.bitcast(b.shl(wide, self.like(wide, 16)), widened(FLOAT, lanes))
        if dtype is dtypes.float16:
            if self.has_f16c:
                return b.fpext(b.bitcast(raw, widened(ir.HalfType(), lanes)), widened(FLOAT, lanes))
            return self._half_to_float(raw, lanes)
        return raw

    def to_memory(self, x: ir.Value, dtype: DType) -> ir.Value:
        """The element to store for a register value, rounded to nearest even if `dtype` is narrower."""
        lanes = lanes_of(x)
        b = self.builder
        if dtype is dtypes.bool_:
            return b.zext(x, widened(BYTE, lanes))
        if dtype in (dtypes.float16, dtypes.bfloat16):
            if (x.type.element if lanes else x.type) == DOUBLE:
                x = self._round_to_odd(x, lanes)
            if dtype is dtypes.bfloat16:
                return self._float_to_bfloat(x, lanes)
            if self.has_f16c:
                return b.bitcast(b.fptrunc(x, widened(ir.HalfType(), lanes)), widened(I16, lanes))
            return self._float_to_half(x, lanes)
        return x

    def _round_to_odd(self, x: ir.Value, lanes: int) -> ir.Value:
        """float64 to float32 so that rounding once more gives the right narrow float (Boldo and Melquiond, 2008)."""
        b = self.builder
        single = widened(FLOAT, lanes)
        nearest = b.fptrunc(x, single)
        back = b.fpext(nearest, x.type)
        magnitude = [intrinsic(b, f"llvm.fabs.{suffix(v.type)}", v.type, [v]) for v in (back, x)]
        bits = b.bitcast(nearest, widened(I32, lanes))
        too_big = b.zext(b.fcmp_ordered(">", *magnitude), bits.type)
        inexact = b.zext(b.fcmp_ordered("!=", back, x), bits.type)
        return b.bitcast(b.or_(b.sub(bits, too_big), inexact), single)

    def _float_to_bfloat(self, x: ir.Value, lanes: int) -> ir.Value:
        b = self.builder
        bits = b.bitcast(x, widened(I32, lanes))
        high = b.lshr(bits, self.like(bits, 16))
        bias = b.add(b.and_(high, self.like(bits, 1)), self.like(bits, 0x7FFF))
        rounded = b.lshr(b.add(bits, bias), self.like(bits, 16))
        quiet = b.or_(high, self.like(bits, 0x40))
        return b.trunc(b.select(b.fcmp_unordered("uno", x, x), quiet, rounded), widened(I16, lanes))

    def _half_to_float(self, raw: ir.Value, lanes: int) -> ir.Value:
        """Exact: shift the fields into place and let a multiplication fix the exponent (subnormals included)."""
        b = self.builder
        wide = b.zext(raw, widened(I32, lanes))
        magnitude = b.shl(b.and_(wide, self.like(wide, 0x7FFF)), self.like(wide, 13))
        scaled = b.fmul(b.bitcast(magnitude, widened(FLOAT, lanes)), constant(FLOAT, 2.0**112, lanes))
        finite = b.bitcast(scaled, wide.type)
        special = b.or_(magnitude, self.like(wide, 0x7F800000))
        is_special = b.icmp_unsigned(">=", magnitude, self.like(wide, 0x7C00 << 13))
        sign = b.shl(b.and_(wide, self.like(wide, 0x8000)), self.like(wide, 16))
        return b.bitcast(b.or_(b.select(is_special, special, finite), sign), widened(FLOAT, lanes))

    def _float_to_half(self, x: ir.Value, lanes: int) -> ir.Value:
        """Round to nearest even; the adder rounds the subnormals, integer arithmetic the rest."""
        b = self.builder
        bits = b.bitcast(x, widened(I32, lanes))
        magnitude = b.and_(bits, self.like(bits, 0x7FFFFFFF))
        tie = b.and_(b.lshr(magnitude, self.like(bits, 13)), self.like(bits, 1))
        rebias = b.add(magnitude, self.like(bits, ((15 - 127) << 23) + 0xFFF))
        normal = b.lshr(b.add(rebias, tie), self.like(bits, 13))
        half = constant(FLOAT, 0.5, lanes)
        shifted = b.bitcast(b.fadd(b.bitcast(magnitude, widened(FLOAT, lanes)), half), bits.type)
        subnormal = b.sub(shifted, b.bitcast(half, bits.type))
        is_nan = b.icmp_unsigned(">", magnitude, self.like(bits, 0x7F800000))
        special = b.select(is_nan, self.like(bits, 0x7E00), self.like(bits, 0x7C00))
        is_small = b.icmp_unsigned("<", magnitude, self.like(bits, 0x38800000))
        is_big = b.icmp_unsigned(">=", magnitude, self.like(bits, 0x47800000))
        result = b.select(is_big, special, b.select(is_small, subnormal, normal))
        sign = b.and_(b.lshr(bits, self.like(bits, 16)), self.like(bits, 0x8000))
        return b.trunc(b.or_(result, sign), widened(I16, lanes))

    # Random bits

    def _random_bits(self, key0: ir.Value, key1: ir.Value, counter: ir.Value, position: ir.Value) -> ir.Value:
        """Word position % 2 of Threefry-2x32(key, (position // 2, counter)): see `meaning.random_bits`."""
        b = self.builder
        lanes = lanes_of(position)

        def spread(value: ir.Value) -> ir.Value:
            return splat(b, value, lanes) if lanes and not lanes_of(value) else value

        words = widened(I32, lanes)
        k0, k1, high = spread(key0), spread(key1), spread(counter)
        keys = (k0, k1, b.xor(b.xor(k0, k1), constant(I32, 0x1BD11BDA, lanes)))
        block = b.trunc(b.lshr(position, self.like(position, 1)), words)
        x0, x1 = b.add(block, keys[0]), b.add(high, keys[1])
        for group in range(5):
            for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
                x0 = b.add(x0, x1)
                amount = constant(I32, rotation, lanes)
                x1 = b.xor(intrinsic(b, f"llvm.fshl.{suffix(words)}", words, [x1, x1, amount]), x0)
            x0 = b.add(x0, keys[(group + 1) % 3])
            x1 = b.add(b.add(x1, keys[(group + 2) % 3]), constant(I32, group + 1, lanes))
        odd = b.trunc(position, widened(BIT, lanes))
        return b.select(odd, x1, x0)


_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<="}
_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
# rint: to nearest even, as nothing changes the rounding mode; where there is no instruction for it, every C library
# has it, and not all have roundeven.
_FLOAT_INTRINSICS = {
    "abs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint", "sqrt": "sqrt",
}  # fmt: skip
_INTEGER_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "and": "and_", "or": "or_", "xor": "xor"}
