"""C's fmod as a function of a kernel's module: exact, and without a library, which not every target has.

    x, y without signs, as whole numbers m * 2**e
    for each step from x's exponent down to y's:
        if x's m >= y's m: subtract
        double
    what is left, with the sign of x

The two share their representation until the end, so nothing is ever rounded.
"""

from __future__ import annotations

from llvmlite import ir

BIT = ir.IntType(1)
# Bits of a float and of the fraction it stores.
_FORMATS = {"float": (32, 23), "double": (64, 52)}


def remainder_function(module: ir.Module, kind: ir.Type) -> ir.Function:
    """`kind fmod(kind x, kind y)`, made in the module when first asked for."""
    bits, fraction = _FORMATS[str(kind)]
    name = f"fmod.f{bits}"
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(kind, [kind, kind]), name)
        found.linkage = "internal"
        found.attributes.add("nounwind")
        _Remainder(found, bits, fraction).emit()
    assert isinstance(found, ir.Function)
    return found


class _Remainder:
    def __init__(self, function: ir.Function, bits: int, fraction: int):
        self.function, self.bits, self.fraction = function, bits, fraction
        self.word = ir.IntType(bits)
        signature = ir.FunctionType(self.word, [self.word, BIT])
        self.count_zeros = ir.Function(function.module, signature, f"llvm.ctlz.i{bits}")
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    def number(self, value: int) -> ir.Constant:
        return ir.Constant(self.word, value)

    def emit(self) -> None:
        b, (x, y) = self.builder, self.function.args
        infinity = ((1 << (self.bits - 1 - self.fraction)) - 1) << self.fraction
        given, divisor = b.bitcast(x, self.word), b.bitcast(y, self.word)
        magnitude = b.and_(given, self.number((1 << (self.bits - 1)) - 1))
        divisor = b.and_(divisor, self.number((1 << (self.bits - 1)) - 1))
        sign = b.xor(given, magnitude)
        # Also true for a divisor that is not a number, whose bits are above those of infinity.
        undefined = b.or_(
            b.icmp_unsigned(">", b.sub(divisor, self.number(1)), self.number(infinity - 1)),
            b.icmp_unsigned(">=", magnitude, self.number(infinity)),
        )
        names = ("undefined", "defined", "small", "large", "step", "end")
        no_number, defined, small, large, step, end = map(self.function.append_basic_block, names)
        b.cbranch(undefined, no_number, defined)
        b.position_at_end(no_number)
        product = b.fmul(x, y)
        b.ret(b.fdiv(product, product))
        b.position_at_end(defined)
        b.cbranch(b.icmp_unsigned("<", magnitude, divisor), small, large)
        b.position_at_end(small)
        b.ret(x)
        b.position_at_end(large)
        m_x, e_x = self.parts(magnitude)
        m_y, e_y = self.parts(divisor)
        b.branch(step)

        b.position_at_end(step)
        exponent, rest = b.phi(self.word), b.phi(self.word)
        fits = b.icmp_unsigned(">=", rest, m_y)
        less = b.select(fits, b.sub(rest, m_y), rest)
        last = b.icmp_unsigned("==", exponent, e_y)
        following = b.sub(exponent, self.number(1))
        doubled = b.shl(less, self.number(1))
        b.cbranch(last, end, step)
        for phi, first, again in ((exponent, e_x, following), (rest, m_x, doubled)):
            phi.add_incoming(first, large)
            phi.add_incoming(again, step)

        b.position_at_end(end)
        b.ret(b.bitcast(b.or_(self.joined(less, e_y), sign), x.type))

    def parts(self, magnitude: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The fraction with a bit in front of it, and the exponent, which goes below 1 for subnormal numbers."""
        b = self.builder
        exponent = b.lshr(magnitude, self.number(self.fraction))
        is_normal = b.icmp_unsigned("!=", exponent, self.number(0))
        stored = b.and_(magnitude, self.number((1 << self.fraction) - 1))
        front = b.select(is_normal, self.number(1 << self.fraction), self.number(0))
        fraction = b.or_(stored, front)
        shift = self.missing(fraction)
        return b.shl(fraction, shift), b.sub(b.select(is_normal, exponent, self.number(1)), shift)

    def missing(self, fraction: ir.Value) -> ir.Value:
        """How many places the highest bit is below the place in front of a fraction."""
        zeros = self.builder.call(self.count_zeros, [fraction, ir.Constant(BIT, 0)])
        return self.builder.sub(zeros, self.number(self.bits - 1 - self.fraction))

    def joined(self, rest: ir.Value, exponent: ir.Value) -> ir.Value:
        """The bits of a fraction with its exponent; what is below 1 is taken up by zeros at its end."""
        b = self.builder
        one = self.number(1)
        is_low = b.icmp_signed("<", exponent, one)
        rest = b.lshr(rest, b.select(is_low, b.sub(one, exponent), self.number(0)))
        exponent = b.select(is_low, one, exponent)
        # No further than to the exponent of subnormal numbers.
        room, wanted = b.sub(exponent, one), self.missing(rest)
        is_some = b.icmp_unsigned("!=", rest, self.number(0))
        shift = b.select(b.and_(is_some, b.icmp_unsigned("<", wanted, room)), wanted, room)
        # The bit in front of the fraction, where it is reached, adds one to the exponent.
        return b.add(b.shl(rest, shift), b.shl(b.sub(room, shift), self.number(self.fraction)))
