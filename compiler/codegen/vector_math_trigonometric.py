"""sin, cos and atan for scalars and vectors of float32 and float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kaun.compiler.codegen import vector_math_coefficients as coefficients
from kaun.compiler.codegen.vector_math_exponential import nearest_integer
from kaun.compiler.codegen.vector_math_lanes import (
    FLOAT32,
    FLOAT64,
    Lanes,
    corrected,
    exact_fma,
    fast_two_sum,
    fma,
    horner,
    select,
)

HALF_PI_LOW = 6.123233995736766e-17  # pi/2 - float64(pi/2)
LOW_HALF = 0xFFFFFFFF
# Above these a multiple of pi/2 no longer has an exact product with the leading parts of pi/2.
HUGE = {32: 2.0**17, 64: 2.0**20}
SINE = {32: coefficients.SIN_FLOAT32, 64: coefficients.SIN_FLOAT64}
COSINE = {32: coefficients.COS_FLOAT32, 64: coefficients.COS_FLOAT64}
ARCTANGENT = {32: coefficients.ATAN_FLOAT32, 64: coefficients.ATAN_FLOAT64}


def sin(x: Lanes) -> Lanes:
    """By quadrant of x = n pi/2 + r, |r| <= pi/4: sin(r), cos(r), -sin(r), -cos(r)."""
    r, quadrant = reduced(x)
    return sine_of_quadrant(r, quadrant)


def cos(x: Lanes) -> Lanes:
    """sin, one quadrant further."""
    r, quadrant = reduced(x)
    return sine_of_quadrant(r, quadrant + 1)


def sine_of_quadrant(r: Lanes, quadrant: Lanes) -> Lanes:
    """The sine of r + quadrant pi/2, of whose quadrant only the low two bits count."""
    bits = r.format.bits
    square = r * r
    # The sum loses the sign of zero.
    sine = fma(r * square, horner(square, SINE[bits]), r).with_sign_of(r)
    cosine = fma(square, fma(square, horner(square, COSINE[bits]), -0.5), 1.0)
    is_odd = quadrant << (bits - 1) < 0
    return (select(is_odd, cosine, sine).bits ^ ((quadrant << (bits - 2)) & r.format.sign_mask)).as_float


def reduced(x: Lanes) -> tuple[Lanes, Lanes]:
    """(r, n) with x = n pi/2 + r, |r| <= pi/4, n modulo 4; huge x take a branch that costs no other vector."""
    is_huge = x.absolute() > HUGE[x.format.bits]
    r, n = corrected(is_huge, reduced_moderate(x), lambda: reduced_huge(x))
    return r, n


def reduced_moderate(x: Lanes) -> tuple[Lanes, Lanes]:
    """r = x - n pi/2, with pi/2 in parts whose products with n lose nothing (W. J. Cody and W. Waite, 1980)."""
    if x.format.bits == 32 and not x.has_fma:
        r, wide = reduced_moderate(x.to_float(FLOAT64))
        return r.to_float(FLOAT32), wide.to_unsigned(32)
    n, quadrant = nearest_integer(x, 2 / math.pi, 0)
    if x.format.bits == 32:
        # x - n * high is exact, as both are multiples of 2**-23 and their difference is below 1.
        r = x
        for part in coefficients.HALF_PI_PARTS_FLOAT32:
            r = fma(n, -part, r)
        return r, quadrant
    high, middle, low = coefficients.HALF_PI_PARTS_FLOAT64
    first = fma(n, -high, x)
    product = n * middle
    second = first - product
    lost = product - (first - second)
    # Every part is positive, and these are differences, so that -0 stays -0.
    return second - fma(n, low, lost), quadrant


# -- huge arguments -----------------------------------------------------------------------------------------------
#
# M. Payne and R. Hanek, SIGNUM Newsletter 18, 1983: with |x| = M 2**k, only a window of the bits of 1/pi contributes
# to x/pi modulo 2. The window is cut out by selects on the bits of k, so lanes need no memory and no table.


def reduced_huge(x: Lanes) -> tuple[Lanes, Lanes]:
    """(r, n) as `reduced` has them, right for huge x only."""
    sign = x.bits & x.format.sign_mask
    r, quadrant = (turns_float32 if x.format.bits == 32 else turns_float64)(x.bits ^ sign)
    # x - x is NaN for an infinity. For negative x both r and n change their sign.
    quadrant = select(sign.equals(0), quadrant, -quadrant)
    return (r.bits ^ sign).as_float + (x - x), quadrant


def window(words: Sequence[int], width: int, offset: Lanes, count: int) -> list[Lanes]:
    """The `count` words that start `offset` bits into the constant `words` of `width` bits each."""
    index = offset >> (width.bit_length() - 1)
    current = [offset.constant(word) for word in words]
    for stage in reversed(range((len(words) - count - 1).bit_length())):
        step = 1 << stage
        is_set = (index & step).equals(step)
        current = [
            select(is_set, current[i + step], word) if i + step < len(current) else word
            for i, word in enumerate(current[: count + step])
        ]
    shift = offset & (width - 1)
    return [current[i].intrinsic("fshl", current[i + 1], shift) for i in range(count)]


def turns_float32(magnitude: Lanes) -> tuple[Lanes, Lanes]:
    """(r, n) for the bits of a huge |x| in float32: 96 bits of 1/pi times a mantissa of 24."""
    mantissa = ((magnitude & FLOAT32.mantissa_mask) | (1 << FLOAT32.mantissa_bits)).to_unsigned(64)
    # |x| = M 2**k with k = exponent - 150; bit 31 + k of a zero word followed by 1/pi has weight 1 in 2**k / pi.
    offset = (magnitude >> FLOAT32.mantissa_bits) + (31 - 150)
    halves = [half for word in coefficients.INVERSE_PI_WORDS[:4] for half in (word >> 32, word & LOW_HALF)]
    top, middle, bottom = (word.to_unsigned(64) for word in window((0, *halves[:7]), 32, offset, 3))
    turns = ((mantissa * top) << 32) + mantissa * middle + ((mantissa * bottom) >> 32)
    fraction, quadrant = nearest_quadrant(turns)
    return (fraction.to_float(FLOAT64) * (math.pi * 2.0**-65)).to_float(FLOAT32), quadrant.to_unsigned(32)


def nearest_quadrant(turns: Lanes) -> tuple[Lanes, Lanes]:
    """(signed 64-bit fraction of a quadrant, quadrant) of turns of pi, whose highest bit has weight 1."""
    return turns << 2, (turns + (1 << 61)) >> 62


def turns_float64(magnitude: Lanes) -> tuple[Lanes, Lanes]:
    """(r, n) for the bits of a huge |x| in float64: 192 bits of 1/pi times a mantissa of 53, in limbs of 32 bits."""
    mantissa = (magnitude & FLOAT64.mantissa_mask) | (1 << FLOAT64.mantissa_bits)
    offset = (magnitude >> FLOAT64.mantissa_bits) + (63 - 1075)
    words = window((0, *coefficients.INVERSE_PI_WORDS), 64, offset, 3)
    limbs = [limb for word in words for limb in (word >> 32, word & LOW_HALF)]
    m_low, m_high = mantissa & LOW_HALF, mantissa >> 32
    # Column i sums m_low * limbs[i] and m_high * limbs[i + 1]; the carries of the two are kept apart to fit 64 bits.
    digits: dict[int, Lanes] = {}
    carry_low = (m_low * limbs[5]) >> 32
    carry_high = magnitude.constant(0)
    for column in reversed(range(5)):
        first = m_low * limbs[column] + carry_low
        second = m_high * limbs[column + 1] + (first & LOW_HALF) + carry_high
        digits[column] = second & LOW_HALF
        carry_low, carry_high = first >> 32, second >> 32
    fraction, quadrant = nearest_quadrant((digits[0] << 32) | digits[1])
    tail = (digits[2] << 32) | digits[3]
    fraction = fraction | (tail >> 62)
    # 53 bits of the fraction and 53 more, as floats: neither conversion rounds, and they sum without overlap.
    upper = fraction.shift_right_signed(11).to_float(FLOAT64) * 2.0**-53
    lower = (((fraction & 0x7FF) << 42) | ((tail << 2) >> 22)).to_float(FLOAT64) * 2.0**-106
    high, low = fast_two_sum(upper, lower)
    half_pi = math.pi / 2
    return exact_fma(high, half_pi, fma(high, HALF_PI_LOW, low * half_pi)), quadrant


def atan(x: Lanes) -> Lanes:
    """atan(|x|), or pi/2 - atan(1 / |x|) above 1."""
    a = x.absolute()
    inverted = a > 1.0
    t = select(inverted, -1.0, a) / select(inverted, a, 1.0)
    square = t * t
    base = select(inverted, x.constant(math.pi / 2), 0.0)
    return (fma(t * square, horner(square, ARCTANGENT[x.format.bits]), t) + base).with_sign_of(x)
