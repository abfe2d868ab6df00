"""Derives every polynomial coefficient of the vector math (`python -m kaun.tools.fit_polynomials --write`)."""

from __future__ import annotations

import argparse
import itertools
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np

Real = Any  # mpmath.mpf; mpmath carries no types
RealFunction = Callable[[Real], Real]

DIGITS = 60
POINTS_PER_COEFFICIENT = 24
COEFFICIENTS_FILE = Path(__file__).resolve().parent.parent / "compiler" / "codegen" / "vector_math_coefficients.py"


@dataclass(frozen=True)
class Fit:
    """A minimax problem: the polynomial p of `count` coefficients with the least max |weight * (target - p)|.

    The weight turns the error of p into the relative error of the function p serves. Coefficients are rounded to
    `coefficient_bits`; in float32 each rounding is made up for by fitting the rest again. A `leading` coefficient is
    already taken out of the target, and is written first.
    """

    name: str
    meaning: str
    target: RealFunction
    weight: RealFunction
    low: RealFunction
    high: RealFunction
    count: int
    coefficient_bits: int
    leading: float | None = None


@dataclass(frozen=True)
class Fitted:
    """The rounded coefficients, lowest order first, and the largest weighted error they leave on the interval."""

    coefficients: tuple[float, ...]
    error: float


def rounded(number: Real, bits: int) -> float:
    """The float32 or float64 nearest to the number."""
    return float(struct.unpack("f", struct.pack("f", float(number)))[0]) if bits == 32 else float(number)


def chebyshev_points(low: Real, high: Real, count: int) -> list[Real]:
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def remez(values: Sequence[Real], weights: Sequence[Real], basis: Sequence[Sequence[Real]]) -> tuple[list[Real], Real]:
    """The weighted minimax coefficients on a grid and their largest error, by Remez' exchange algorithm.

    values, weights: (points,); basis: (points, coefficients). Reference: E. Remez, Comptes Rendus 199, 1934;
    L. Veidinger, Numerische Mathematik 2, 1960 for the exchange of all points at once.
    """
    points, count = len(values), len(basis[0])
    reference = [round((1 - mp.cos(mp.pi * i / count)) / 2 * (points - 1)) for i in range(count + 1)]
    coefficients: list[Real] = []
    largest = mp.mpf(0)
    for _ in range(60):
        system, right = mp.matrix(count + 1, count + 1), mp.matrix(count + 1, 1)
        for row, point in enumerate(reference):
            for column in range(count):
                system[row, column] = basis[point][column]
            system[row, count] = (-1) ** row / weights[point]
            right[row] = values[point]
        solution = mp.lu_solve(system, right)
        coefficients = [solution[k] for k in range(count)]
        errors = [w * (v - mp.fdot(coefficients, row)) for v, w, row in zip(values, weights, basis, strict=True)]
        largest = max(abs(error) for error in errors)
        extrema = alternating_extrema(errors, count + 1)
        if len(extrema) <= count or largest <= abs(solution[count]) * mp.mpf("1.001"):
            break
        reference = extrema
    return coefficients, largest


def alternating_extrema(errors: Sequence[Real], wanted: int) -> list[int]:
    """The largest error of each run of one sign; of more runs than wanted, the smaller ends are dropped."""
    extrema: list[int] = []
    for point, error in enumerate(errors):
        if extrema and (errors[extrema[-1]] > 0) == (error > 0):
            if abs(error) > abs(errors[extrema[-1]]):
                extrema[-1] = point
        else:
            extrema.append(point)
    while len(extrema) > wanted:
        extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
    return extrema


def solve(fit: Fit) -> Fitted:
    """Fits, then rounds one coefficient after the other, highest order first, refitting those that are still free."""
    with mp.workdps(DIGITS):
        grid = chebyshev_points(fit.low(None), fit.high(None), POINTS_PER_COEFFICIENT * (fit.count + 2))
        values = [fit.target(x) for x in grid]
        weights = [fit.weight(x) for x in grid]
        powers = [[x**k for k in range(fit.count)] for x in grid]
        free, _ = remez(values, weights, powers)
        chosen: list[float] = []
        # In float64 the rounding of a coefficient is far below the rounding of its use: nothing to make up for.
        while fit.coefficient_bits == 32 and len(free) > 1:
            chosen.insert(0, rounded(free[-1], 32))
            left = len(free) - 1
            remaining = [v - mp.fdot(chosen, row[left:]) for v, row in zip(values, powers, strict=True)]
            free, _ = remez(remaining, weights, [row[:left] for row in powers])
        coefficients = [*(rounded(c, fit.coefficient_bits) for c in free), *chosen]
        errors = [w * (v - mp.fdot(coefficients, row)) for v, w, row in zip(values, weights, powers, strict=True)]
        if fit.coefficient_bits == 32:
            weighted = np.array([[float(w * x) for x in row] for w, row in zip(weights, powers, strict=True)])
            return polished(coefficients, np.array([float(e) for e in errors]), weighted)
        return Fitted(tuple(coefficients), float(max(abs(error) for error in errors)))


def polished(
    coefficients: Sequence[float], errors: np.ndarray[Any, Any], weighted_powers: np.ndarray[Any, Any]
) -> Fitted:
    """Moves float32 coefficients one at a time to a neighbour as long as that lowers the largest error noticeably."""
    current = np.array(coefficients, np.float32)
    improved = True
    while improved:
        improved = False
        for k, direction in itertools.product(range(len(current)), (-np.inf, np.inf)):
            neighbour = np.nextafter(current[k], np.float32(direction))
            moved = errors - (float(neighbour) - float(current[k])) * weighted_powers[:, k]
            if np.abs(moved).max() < 0.999 * np.abs(errors).max():
                current[k], errors, improved = neighbour, moved, True
    return Fitted(tuple(float(c) for c in current), float(np.abs(errors).max()))


# -- the functions ------------------------------------------------------------------------------------------------


def constant(text: Callable[[], Real]) -> RealFunction:
    return lambda _: text()


def half_ln2() -> Real:
    # A little wider than ln(2)/2: the argument is rounded to a multiple of ln(2) in working precision.
    return mp.log(2) / 2 * mp.mpf("1.0005")


def expm1_fit(bits: int, count: int) -> Fit:
    return Fit(
        f"EXPM1_FLOAT{bits}",
        "P with expm1(r) = r + r**2 P(r), |r| <= ln(2)/2",
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r**2 / abs(mp.expm1(r)),
        constant(lambda: -half_ln2()),
        constant(half_ln2),
        count,
        bits,
    )


def log1p_fit(name: str, count: int, bits: int) -> Fit:
    return Fit(
        name,
        "P with log1p(f) = f - f**2/2 + f**3 P(f), sqrt(1/2) <= 1 + f <= sqrt(2)",
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: abs(f**3 / mp.log1p(f)),
        constant(lambda: mp.sqrt(0.5) - 1),
        constant(lambda: mp.sqrt(2) - 1),
        count,
        bits,
    )


def odd_part(function: RealFunction, x_squared: Real) -> Real:
    """function(x) / x for an odd function, by x**2."""
    return function(mp.sqrt(x_squared)) / mp.sqrt(x_squared)


def odd_fit(name: str, meaning: str, function: RealFunction, high: Callable[[], Real], count: int, bits: int) -> Fit:
    """P with function(x) = x + x**3 P(x**2) on [0, high]."""
    return Fit(
        name,
        meaning,
        lambda t: (odd_part(function, t) - 1) / t,
        lambda t: t / abs(odd_part(function, t)),
        constant(lambda: mp.mpf(10) ** -9),
        constant(lambda: high() ** 2),
        count,
        bits,
    )


def cos_fit(high: Callable[[], Real], count: int, bits: int) -> Fit:
    return Fit(
        f"COS_FLOAT{bits}",
        "P with cos(r) = 1 - r**2/2 + r**4 P(r**2), |r| <= pi/4",
        lambda t: (mp.cos(mp.sqrt(t)) - 1 + t / 2) / t**2,
        lambda t: t**2 / mp.cos(mp.sqrt(t)),
        constant(lambda: mp.mpf(10) ** -9),
        constant(lambda: high() ** 2),
        count,
        bits,
    )


def log_ratio_bound() -> Real:
    # s = f / (2 + f) at 1 + f = sqrt(2).
    return (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)


def atanh_fit(name: str, terms: int, count: int) -> Fit:
    """P with 2 atanh(s) = 2 s + ... + s**(2 terms + 1) P(s**2): `terms` leading terms are kept exact."""
    leading = "2 s" if terms == 1 else "2 s + 2/3 s**3"
    meaning = f"P with 2 atanh(s) = {leading} + s**{2 * terms + 1} P(s**2)"

    def target(t: Real) -> Real:
        exact = sum(2 * t**k / (2 * k + 1) for k in range(terms))
        return (2 * odd_part(mp.atanh, t) - exact) / t**terms

    return Fit(
        name,
        meaning,
        target,
        lambda t: t**terms / 2,
        constant(lambda: mp.mpf(10) ** -9),
        constant(lambda: (log_ratio_bound() * mp.mpf("1.0001")) ** 2),
        count,
        64,
    )


def erf_fit(bits: int, count: int, saturation: str) -> Fit:
    def log2_erfc(a: Real) -> Real:
        return mp.log(mp.erfc(a), 2) / a

    leading = rounded(-2 / (mp.sqrt(mp.pi) * mp.log(2)), bits)
    return Fit(
        f"LOG2_ERFC_FLOAT{bits}",
        f"P with log2(1 - erf(a)) = a (P[0] + (P[1] + P[2] a + ...)), 0 <= a <= {saturation}",
        lambda a: log2_erfc(a) - leading,
        lambda a: mp.log(2) * a * mp.erfc(a) / mp.erf(a),
        constant(lambda: mp.mpf(10) ** -6),
        constant(lambda: mp.mpf(saturation)),
        count,
        bits,
        leading,
    )


def erfc_root_fit(count: int, saturation: str) -> Fit:
    """One minus the fourth root of erfc, which is nearly straight."""

    def falling(a: Real) -> Real:
        return -mp.expm1(mp.log(mp.erfc(a)) / 4)

    leading = rounded(1 / (2 * mp.sqrt(mp.pi)), 32)
    return Fit(
        "ERFC_ROOT_FLOAT32",
        f"P with (1 - erf(a))**(1/4) = 1 - a (P[0] + (P[1] + P[2] a + ...)), 0 <= a <= {saturation}",
        lambda a: falling(a) / a - leading,
        # Heavier at the end, where the result has to round to 1.
        lambda a: (2.5 if a > mp.mpf(saturation) - mp.mpf("0.03") else 1) * 4 * (1 - falling(a)) ** 3 * a / mp.erf(a),
        constant(lambda: mp.mpf(10) ** -6),
        constant(lambda: mp.mpf(saturation)),
        count,
        32,
        leading,
    )


def exp2_fit(bits: int, count: int) -> Fit:
    # The rounding of ln(2) is left out of the fit, which could not make up for it: 2**-28 of ln(2), or 2**-54.
    return Fit(
        f"EXP2_FLOAT{bits}",
        "P with 2**f = 1 + f (P[0] + P[1] f + ...), |f| <= 1/2",
        lambda f: (mp.expm1(f * mp.log(2)) / f - mp.log(2)) / f,
        lambda f: abs(f**2 / mp.expm1(f * mp.log(2))),
        constant(lambda: mp.mpf("-0.5001")),
        constant(lambda: mp.mpf("0.5001")),
        count,
        bits,
        rounded(mp.log(2), bits),
    )


def pow_exp2_fit() -> Fit:
    return Fit(
        "POW_EXP2_FLOAT32",
        "P with 2**f = 1 + f P(f), |f| <= 1/2, in float64 to the accuracy of float32",
        lambda f: mp.expm1(f * mp.log(2)) / f,
        lambda f: abs(f) / mp.mpf(2) ** f,
        constant(lambda: mp.mpf("-0.5001")),
        constant(lambda: mp.mpf("0.5001")),
        6,
        64,
    )


def all_fits() -> tuple[Fit, ...]:
    """Every fit, in the order of the coefficients file; the counts are the least that leave < 0.2 ulp."""

    def eighth_turn() -> Real:
        # Wider than pi/4: the multiple of pi/2 nearest to x is computed in working precision.
        return mp.pi / 4 * mp.mpf("1.01")

    sin_meaning = "P with sin(r) = r + r**3 P(r**2), |r| <= pi/4"
    tanh_meaning = "P with tanh(a) = a + a**3 P(a**2), 0 <= a <= 0.55"
    atan_meaning = "P with atan(t) = t + t**3 P(t**2), |t| <= 1"
    return (
        expm1_fit(32, 5),
        expm1_fit(64, 11),
        odd_fit("TANH_FLOAT32", tanh_meaning, mp.tanh, lambda: mp.mpf("0.55"), 4, 32),
        odd_fit("TANH_FLOAT64", tanh_meaning, mp.tanh, lambda: mp.mpf("0.55"), 10, 64),
        log1p_fit("LOG1P_FLOAT32", 8, 32),
        log1p_fit("POW_LOG1P_FLOAT32", 11, 64),
        atanh_fit("ATANH_FLOAT64", 1, 7),
        atanh_fit("POW_ATANH_FLOAT64", 2, 8),
        odd_fit("SIN_FLOAT32", sin_meaning, mp.sin, eighth_turn, 3, 32),
        odd_fit("SIN_FLOAT64", sin_meaning, mp.sin, eighth_turn, 6, 64),
        cos_fit(eighth_turn, 3, 32),
        cos_fit(eighth_turn, 6, 64),
        odd_fit("ATAN_FLOAT32", atan_meaning, mp.atan, lambda: mp.mpf(1), 9, 32),
        odd_fit("ATAN_FLOAT64", atan_meaning, mp.atan, lambda: mp.mpf(1), 20, 64),
        erfc_root_fit(10, "4.0"),
        erf_fit(64, 26, "5.95"),
        exp2_fit(64, 11),
        pow_exp2_fit(),
    )


# -- writing ------------------------------------------------------------------------------------------------------


def coefficients_text(fits: Sequence[Fit]) -> str:
    """The source of the coefficients file."""
    lines = [
        '"""The polynomial coefficients of the vector math, derived by `python -m kaun.tools.fit_polynomials --write`.',
        "",
        "Lowest order first. The comment of each gives the largest weighted error of the rounded polynomial.",
        '"""',
    ]
    for fit in fits:
        fitted = solve(fit)
        lines += ["", f"# {fit.meaning}; error 2**{mp.nstr(mp.log(fitted.error, 2), 4)}.", f"{fit.name} = ("]
        leading = () if fit.leading is None else (fit.leading,)
        lines += [f"    {coefficient!r}," for coefficient in (*leading, *fitted.coefficients)]
        lines += [")"]
    lines += ["", "# 1/pi = sum_k words[k] * 2**(-64 (k + 1)), to the last bit that a float64 argument can reach."]
    lines += ["INVERSE_PI_WORDS = (", *(f"    0x{word:016X}," for word in inverse_pi_words(19)), ")"]
    for bits, part_bits in ((32, (24, 24)), (64, (33, 33))):
        lines += ["", f"# pi/2 in parts, highest first; all but the last have {part_bits[0]} bits."]
        lines += [f"HALF_PI_PARTS_FLOAT{bits} = (", *(f"    {part!r}," for part in half_pi_parts(bits, part_bits)), ")"]
    return "\n".join(lines) + "\n"


def inverse_pi_words(count: int) -> list[int]:
    """1/pi in fixed point, as words of 64 bits after the binary point, highest first."""
    with mp.workprec(64 * count + 64):
        fixed = int(mp.floor(mp.ldexp(1 / mp.pi, 64 * count)))
    return [(fixed >> (64 * (count - 1 - k))) & (2**64 - 1) for k in range(count)]


def half_pi_parts(bits: int, part_bits: Sequence[int]) -> list[float]:
    """Parts of pi/2, of so many significant bits each, and the rest in full precision."""
    with mp.workdps(DIGITS):
        rest, parts = mp.pi / 2, []
        for part in part_bits:
            unit = mp.ldexp(1, int(mp.floor(mp.log(abs(rest), 2))) + 1 - part)
            parts.append(float(mp.floor(rest / unit) * unit))
            rest -= parts[-1]
        return [*parts, rounded(rest, bits)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print the coefficients file, or write it."""
    parser = argparse.ArgumentParser(prog="python -m kaun.tools.fit_polynomials", description=__doc__)
    parser.add_argument("--write", action="store_true", help="overwrite the coefficients file")
    options = parser.parse_args(arguments)
    text = coefficients_text(all_fits())
    if options.write:
        COEFFICIENTS_FILE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
