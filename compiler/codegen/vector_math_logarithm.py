"""log, log1p and pow for scalars and vectors of float32 and float64."""

from __future__ import annotations

import math

from kaun.compiler.codegen import vector_math_coefficients as coefficients
from kaun.compiler.codegen.vector_math_exponential import (
    FAMILY,
    nearest_integer,
    power_of_two,
    scale_by_halves,
)
from kaun.compiler.codegen.vector_math_lanes import (
    FLOAT32,
    FLOAT64,
    Lanes,
    at_least,
    at_most,
    corrected,
    fast_two_sum,
    fma,
    horner,
    select,
    two_product,
)

SQRT_HALF = {32: 0x3F3504F3, 64: 0x3FE6A09E667F3BCD}  # the bits of sqrt(1/2)
TWO_THIRDS_LOW = 3.700743415417188e-17  # 2/3 - float64(2/3)


def split(x: Lanes) -> tuple[Lanes, Lanes]:
    """(e as an integer, m) with x = 2**e m and sqrt(1/2) <= m < sqrt(2), for normal x > 0."""
    base = SQRT_HALF[x.format.bits]
    offset = x.bits - base
    exponent = offset.shift_right_signed(x.format.mantissa_bits)
    return exponent, ((offset & x.format.mantissa_mask) + base).as_float


def split_any(x: Lanes) -> tuple[Lanes, Lanes]:
    """(e as a float, m) as `split` has them, for subnormal x > 0 too."""
    subnormal = x < x.format.smallest_normal
    up = x.format.mantissa_bits + 1
    exponent, m = split(select(subnormal, x * 2.0**up, x))
    e = exponent.to_float(x.format)
    return select(subnormal, e - float(up), e), m


def log_sum(e: Lanes, f: Lanes) -> Lanes:
    """e ln(2) + log1p(f) for sqrt(1/2) <= 1 + f < sqrt(2)."""
    family = FAMILY[f.format.bits]
    if f.format.bits == 32:
        square = f * f
        log1p_f = fma(square, fma(f, horner(f, coefficients.LOG1P_FLOAT32), -0.5), f)
    else:
        # log(1 + f) = 2 atanh(s) with s = f / (2 + f), and 2 s = f - s f, where f is exact.
        s = f / (f + 2.0)
        square = s * s
        log1p_f = fma(-s, f - square * horner(square, coefficients.ATANH_FLOAT64), f)
    return fma(e, family.ln2_high, fma(e, family.ln2_low, log1p_f))


def log(x: Lanes) -> Lanes:
    """e ln(2) + log1p(m - 1) with x = 2**e m."""
    e, m = split_any(x)
    finite = log_sum(e, m - 1.0)
    result = select(x < math.inf, finite, x)
    return select(x > 0.0, result, select(x.equals(0.0), x.constant(-math.inf), math.nan))


def log1p(x: Lanes) -> Lanes:
    """log_sum(e, f) with 1 + f = 2**-e (1 + x), where f = 2**-e x + (2**-e - 1) is rounded only once."""
    u = x + 1.0
    exponent, _ = split(u)
    # The scale is 2**(2-e) and divided by 4 afterwards, because 2**-e underflows for the largest x.
    scale = power_of_two(x.format.bias + 2 - exponent)
    f = fma(x * 0.25, scale, fma(scale, 0.25, -1.0))
    finite = log_sum(exponent.to_float(x.format), f)
    # Scaling rounds a subnormal, and the sum loses the sign of zero; there log1p(x) = x to all digits.
    tiny = x.absolute() < 2.0 ** -(x.format.mantissa_bits + 1)
    result = select(tiny, x, select(x < math.inf, finite, x))
    return select(x > -1.0, result, select(x.equals(-1.0), x.constant(-math.inf), math.nan))


# -- pow ----------------------------------------------------------------------------------------------------------


def pow_float32(magnitude: Lanes, y: Lanes) -> Lanes:
    """2**(y log2(magnitude)) in float64: log2 must keep 2**-34 of itself, which float32 reaches only in pairs."""
    exponent, m = split(magnitude.to_float(FLOAT64))
    # The exponent is small; narrowing it first converts with one instruction where 64-bit integers need many.
    e = exponent.to_unsigned(32).to_float(FLOAT64)
    f = m - 1.0
    log1p_f = fma(f * f, fma(f, horner(f, coefficients.POW_LOG1P_FLOAT32), -0.5), f)
    exponent = y.to_float(FLOAT64) * fma(log1p_f, 1 / math.log(2), e)
    exponent = at_least(at_most(exponent, 200.0), -200.0)
    n, biased = nearest_integer(exponent, 1.0, FLOAT64.bias)
    power = horner(exponent - n, (1.0, *coefficients.POW_EXP2_FLOAT32))
    return (power * power_of_two(biased)).to_float(FLOAT32)


def log_pair(x: Lanes) -> tuple[Lanes, Lanes]:
    """(high, low) with high + low = log(x) to 2**-65 of itself, for 0 < x < infinity in float64.

    log(m) = 2 atanh(s) = s (2 + s**2 (2/3 + s**2 P(s**2))), each factor as an unevaluated sum of two floats.
    """
    family = FAMILY[64]
    e, m = split_any(x)
    f = m - 1.0
    denominator = m + 1.0
    denominator_low = m - (denominator - 1.0)
    inverse = 1.0 / denominator
    s = f * inverse
    product, product_low = two_product(s, denominator)
    s_low = (((f - product) - product_low) - s * denominator_low) * inverse
    square, square_low = two_product(s, s)
    square_low = fma(s + s, s_low, square_low)
    third = x.constant(2 / 3)
    u, u_low = fast_two_sum(third, square * horner(square, coefficients.POW_ATANH_FLOAT64))
    u_low = u_low + TWO_THIRDS_LOW
    v, v_low = two_product(square, u)
    v_low = v_low + fma(square, u_low, square_low * u)
    w, w_low = fast_two_sum(x.constant(2.0), v)
    w_low = w_low + v_low
    log_m, log_m_low = two_product(s, w)
    log_m_low = log_m_low + fma(s, w_low, s_low * w)
    high, low = fast_two_sum(e * family.ln2_high, log_m)
    return fast_two_sum(high, low + fma(e, family.ln2_low, log_m_low))


def pow_float64(magnitude: Lanes, y: Lanes) -> Lanes:
    """e**(y log(magnitude)) with the logarithm and the product as unevaluated sums of two floats."""
    family = FAMILY[64]
    log_high, log_low = log_pair(magnitude)
    t, t_low = two_product(y, log_high)
    t_low = fma(y, log_low, t_low)
    clamped = at_least(at_most(t, 710.0), -746.0)
    t_low = select(clamped.equals(t), t_low, 0.0)
    n, biased = nearest_integer(clamped, 1 / math.log(2), 2 * y.format.bias)
    r = fma(n, -family.ln2_low, fma(n, -family.ln2_high, clamped)) + t_low
    return scale_by_halves(horner(r, (1.0, 1.0, *family.expm1)), biased)


def is_integer(x: Lanes) -> Lanes:
    """Whether x >= 0 is an integer: infinity is one, NaN is not."""
    # Where adding round_shift rounds to an integer, it changes only what is not one; above it all are integers.
    shift = 2.0**x.format.mantissa_bits
    return ((x + shift) - shift).equals(x) | (x >= shift)


def pow(x: Lanes, y: Lanes) -> Lanes:
    """x**y; bases other than positive numbers and exponents other than numbers take a branch of their own."""
    magnitude = x.absolute()
    # Beyond 2**70 any base but 1 overflows or underflows; bounded, nothing overflows on the way and 1**inf is 1.
    bounded = at_least(at_most(y, 2.0**70), -(2.0**70))
    usual = (pow_float32 if x.format.bits == 32 else pow_float64)(magnitude, bounded)
    special = ~((x > 0.0) & (x < math.inf) & (y.absolute() < math.inf))
    return corrected(special, [usual], lambda: [pow_special(x, y, usual)])[0]


def pow_special(x: Lanes, y: Lanes, usual: Lanes) -> Lanes:
    """x**y by C99 annex F.10.4.4, given |x|**y for numbers |x| > 0 and y, and 1**y also for infinite y."""
    magnitude = x.absolute()
    infinite = magnitude.equals(math.inf)
    toward_infinity = infinite ^ (y < 0.0)
    limit = select(toward_infinity, y.constant(math.inf), 0.0)
    result = select(infinite | magnitude.equals(0.0), limit, usual)
    integer = is_integer(y.absolute())
    odd = integer & ~is_integer(y.absolute() * 0.5)
    sign = select(odd, x.bits & x.format.sign_mask, 0)
    result = (result.bits ^ sign).as_float
    result = select((x < 0.0) & ~infinite & ~integer, math.nan, result)
    result = select(x.is_nan() | y.is_nan(), x + y, result)
    return select(y.equals(0.0) | x.equals(1.0), 1.0, result)
