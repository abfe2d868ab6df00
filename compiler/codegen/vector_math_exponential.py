"""exp, expm1, tanh and erf for scalars and vectors of float32 and float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaun.compiler.codegen import vector_math_coefficients as coefficients
from kaun.compiler.codegen.vector_math_lanes import Lanes, at_least, at_most, exact_fma, fma, halved, horner, select


@dataclass(frozen=True)
class Exponential:
    """What the exponential family needs to know of a format.

    `ln2_high + ln2_low` is ln(2) to more than twice the precision; ln2_high is short enough that its product with
    any exponent is exact without a fused multiply-add (W. J. Cody and W. Waite, 1980). Beyond the bounds the result
    is the limit: infinity, 0 or -1 and 1.
    """

    ln2_high: float
    ln2_low: float
    exp_bounds: tuple[float, float]
    expm1_bounds: tuple[float, float]
    tanh_bound: float
    expm1: tuple[float, ...]
    tanh: tuple[float, ...]


TANH_LARGE = 0.55
ERF_ROOT_BOUND, ERF_EXPONENTIAL_BOUND = 4.0, 5.95
FAMILY = {
    32: Exponential(
        ln2_high=0.693145751953125,
        ln2_low=1.4286068203094173e-06,
        exp_bounds=(-104.0, 89.0),
        expm1_bounds=(-18.0, 89.0),
        tanh_bound=9.1,
        expm1=coefficients.EXPM1_FLOAT32,
        tanh=coefficients.TANH_FLOAT32,
    ),
    64: Exponential(
        ln2_high=0.6931471805601177,
        ln2_low=-1.7239444525614835e-13,
        exp_bounds=(-746.0, 710.0),
        expm1_bounds=(-38.0, 710.0),
        tanh_bound=19.1,
        expm1=coefficients.EXPM1_FLOAT64,
        tanh=coefficients.TANH_FLOAT64,
    ),
}


def nearest_integer(x: Lanes, factor: float, offset: int) -> tuple[Lanes, Lanes]:
    """(round(x * factor) as a float, an integer whose low bits are that plus offset)."""
    shift = x.format.round_shift + offset
    shifted = x + shift if factor == 1.0 else fma(x, factor, shift)
    return shifted - shift, shifted.bits


def power_of_two(biased_exponent: Lanes) -> Lanes:
    """2**(biased_exponent - bias), of which only the low bits count."""
    return (biased_exponent << biased_exponent.format.mantissa_bits).as_float


def scale_by_halves(x: Lanes, doubly_biased: Lanes) -> Lanes:
    """x * 2**(doubly_biased - 2 * bias): two factors reach the subnormals and infinity with a single rounding."""
    half = doubly_biased >> 1
    return x * power_of_two(half) * power_of_two(doubly_biased - half)


def exp(x: Lanes) -> Lanes:
    """2**n * e**r with x = n ln(2) + r, |r| <= ln(2)/2."""
    family = FAMILY[x.format.bits]
    low, high = family.exp_bounds
    x = at_least(at_most(x, high), low)
    n, biased = nearest_integer(x, 1 / math.log(2), 2 * x.format.bias)
    r = fma(n, -family.ln2_low, fma(n, -family.ln2_high, x))
    return scale_by_halves(horner(r, (1.0, 1.0, *family.expm1)), biased)


def expm1(x: Lanes) -> Lanes:
    """2 * (2**(n-1) * expm1(r) + (2**(n-1) - 1/2)): the halves keep the largest n finite."""
    family = FAMILY[x.format.bits]
    low, high = family.expm1_bounds
    clamped = at_least(at_most(x, high), low)
    n, biased = nearest_integer(clamped, 1 / math.log(2), x.format.bias - 1)
    r = fma(n, -family.ln2_low, fma(n, -family.ln2_high, clamped))
    q = fma(r * r, horner(r, family.expm1), r)
    scale = power_of_two(biased)
    half = fma(scale, q, scale - 0.5)
    # Halving rounds a subnormal, and the sum loses the sign of zero; there expm1(x) = x to all digits.
    tiny = x.absolute() < 2.0 ** -(x.format.mantissa_bits + 1)
    return select(tiny, x, half + half)


def tanh(x: Lanes) -> Lanes:
    """1 - 2 / (e**(2|x|) + 1) from |x| = 0.55 on, and |x| + |x|**3 P(x**2) below, where that would cancel.

    e**(2|x|) / 2 = 2**(n-1) e**(2r) with |x| = n ln(2)/2 + r. One quotient with expm1(2|x|) would serve all of the
    range, but rounds three times just where the result is a little below a power of two: 2.5 ulp.
    """
    family = FAMILY[x.format.bits]
    magnitude = x.absolute()
    a = at_most(magnitude, family.tanh_bound)
    n, biased = nearest_integer(a, 2 / math.log(2), x.format.bias - 1)
    r = fma(n, -family.ln2_low / 2, fma(n, -family.ln2_high / 2, a))
    exp_2r = horner(r, (1.0, 2.0, *(c * 2.0 ** (k + 2) for k, c in enumerate(family.expm1))))
    large = 1.0 - 1.0 / fma(power_of_two(biased), exp_2r, 0.5)
    square = x * x
    small = fma(magnitude * square, horner(square, family.tanh), magnitude)
    return select(magnitude < TANH_LARGE, small, large).with_sign_of(x)


def erf(x: Lanes) -> Lanes:
    """In float32, 1 - (1 - u)**4 with a polynomial u of |x|: 1 - (1 - v)**2 = 2 v - v**2 twice.

    That has no cancellation where u is small, and damps the errors of u where it is not. The first coefficient of u,
    1 / (2 sqrt(pi)), is one float and a correction, as its rounding shows near 0; for the same reason u itself is
    rounded only inside its square. The factors 4 and 2 keep u and v from being subnormal where erf is not.
    """
    if x.format.bits == 64:
        return _erf_by_exponential(x)
    a = at_most(x.absolute(), ERF_ROOT_BOUND)
    leading, *others = (4 * c for c in coefficients.ERFC_ROOT_FLOAT32)
    rest = a * halved(a, others)
    u_times_4 = fma(a, leading, rest)
    v_times_2 = exact_fma(a, leading, fma(u_times_4, u_times_4 * -0.125, rest))
    return fma(v_times_2, v_times_2 * -0.25, v_times_2).with_sign_of(x)


def _erf_by_exponential(x: Lanes) -> Lanes:
    """1 - 2**g with g = log2(1 - erf(|x|)), a polynomial, as 2**g damps the errors of g: (1 - 2**n) - 2**n (2**f - 1).

    The first coefficient of g, -2 / (sqrt(pi) ln(2)), is one float and a correction, as its rounding shows near 0.
    """
    log2_erfc, exp2 = coefficients.LOG2_ERFC_FLOAT64, coefficients.EXP2_FLOAT64
    a = at_most(x.absolute(), ERF_EXPONENTIAL_BOUND)
    g = exact_fma(a, log2_erfc[0], a * horner(a, log2_erfc[1:]))
    n, biased = nearest_integer(g, 1.0, x.format.bias)
    f = g - n
    q = exact_fma(f, exp2[0], f * f * horner(f, exp2[1:]))
    scale = power_of_two(biased)
    return fma(-scale, q, 1.0 - scale).with_sign_of(x)
