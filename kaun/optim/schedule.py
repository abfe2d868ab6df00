"""Learning-rate schedules: functions of the step that run on the host and trace into a compiled step alike.

A schedule is any function from the 1-based step to a number. Those made here are `Schedule`s: their formula is written
once, over a handful of functions that exist for Python's floats and for tensors, so the same value can be computed
inside the compiled step. Any other Python function is called on the host and its value passed in.

At step s each schedule has the value of its Optax namesake at count s, so the first update, at step 1, is one step into
the schedule. A traced step is float32, in which whole numbers are exact up to 2**24 = 16,777,216.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, TypeAlias, overload

Number: TypeAlias = Any
"""A Python float, or a tensor while a step is traced."""

def _power(base: float, exponent: float) -> float:
    # Tensors overflow to infinity; the host must agree.
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


_host = SimpleNamespace(
    where=lambda condition, x, y: x if condition else y,
    minimum=min,
    maximum=max,
    cos=math.cos,
    pow=_power,
    floor=math.floor,
    full_like=lambda _, value: value,
)


@dataclass(frozen=True)
class Schedule:
    """A schedule as data: a formula and its parameters. Equal formulas with equal parameters are equal schedules.

    `formula(numeric, step, **parameters)` uses arithmetic, comparisons and only `where, minimum, maximum, cos, pow,
    floor, full_like` of `numeric`, which is a namespace of functions of the host's floats or `kaun.nx`.
    """

    formula: Callable[..., Number]
    parameters: tuple[tuple[str, Any], ...] = ()

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: Any) -> Any: ...
    def __call__(self, step: Any) -> Any:
        """The value at a step: a float for an int, a tensor like `step` for a floating-point tensor.

        ValueError for a negative step, TypeError for what is neither an int nor a tensor.
        """
        if isinstance(step, Integral):
            if step < 0:
                raise ValueError(f"optim.schedule.{self.name}: got step {step}, expected a step of at least 1")
            return float(self.evaluate(_host, operator.index(step)))
        if not hasattr(step, "dtype"):
            raise TypeError(f"optim.schedule.{self.name}: got step {step!r}, expected an int or a tensor")
        from kaun import nx

        return self.evaluate(nx, step)

    def evaluate(self, numeric: Any, step: Number) -> Number:
        """The formula over the functions of `numeric`; see the class."""
        return self.formula(numeric, step, **dict(self.parameters))

    @property
    def name(self) -> str:
        """The name of the function that made it."""
        return self.formula.__name__.strip("_")

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.parameters)})"


# --- checking what was given ---------------------------------------------------------------------------------------


ScheduleLike: TypeAlias = Schedule | Callable[[int], float] | float
"""What optimizers take as a learning rate: a schedule, any function of the step, or a constant."""


def _number(function: str, name: str, value: Any) -> float:
    # Scalars of arrays and tensors are numbers too; text that float() would parse is not.
    if isinstance(value, bool) or not (isinstance(value, Real) or getattr(value, "shape", None) == ()):
        raise TypeError(f"optim.schedule.{function}: got {name}={value!r}, expected a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"optim.schedule.{function}: got {name}={number}, expected a finite number")
    return number


def _steps(function: str, name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"optim.schedule.{function}: got {name}={value!r}, expected an int")
    if value < least:
        raise ValueError(f"optim.schedule.{function}: got {name}={value}, expected at least {least}")
    return int(value)


def _increasing(function: str, boundaries: Sequence[int]) -> tuple[int, ...]:
    checked = tuple(_steps(function, "a boundary", boundary) for boundary in boundaries)
    if any(later <= earlier for earlier, later in pairwise(checked)):
        raise ValueError(f"optim.schedule.{function}: got boundaries {checked}, expected increasing ones")
    return checked


def _make(formula: Callable[..., Number], **parameters: Any) -> Schedule:
    return Schedule(formula, tuple(parameters.items()))


# --- the formulas --------------------------------------------------------------------------------------------------


def _fraction(numeric: Any, step: Number, steps: float) -> Number:
    """How much of `steps` has passed, from 0 to 1."""
    return numeric.minimum(step * 1.0, float(steps)) / float(steps)


def _falling_cosine(numeric: Any, fraction: Number) -> Number:
    """From 1 at 0 to 0 at 1 along half a cosine."""
    return 0.5 + 0.5 * numeric.cos(math.pi * fraction)


def _constant(numeric: Any, step: Number, *, value: float) -> Number:
    return numeric.full_like(step, value)


def constant(value: float) -> Schedule:
    """`value` at every step."""
    return _make(_constant, value=_number("constant", "value", value))


def _linear(numeric: Any, step: Number, *, init_value: float, end_value: float, steps: int) -> Number:
    return init_value + (end_value - init_value) * _fraction(numeric, step, steps)


def linear(*, init_value: float, end_value: float, steps: int) -> Schedule:
    """`init_value + (end_value - init_value) * min(s, steps) / steps`."""
    return _make(
        _linear,
        init_value=_number("linear", "init_value", init_value),
        end_value=_number("linear", "end_value", end_value),
        steps=_steps("linear", "steps", steps),
    )


def _polynomial_decay(
    numeric: Any, step: Number, *, init_value: float, end_value: float, decay_steps: int, power: float
) -> Number:
    remaining = 1.0 - _fraction(numeric, step, decay_steps)
    return end_value + (init_value - end_value) * numeric.pow(remaining, power)


def polynomial_decay(*, init_value: float, end_value: float, decay_steps: int, power: float = 1.0) -> Schedule:
    """`end_value + (init_value - end_value) * (1 - min(s, decay_steps) / decay_steps) ** power`, with `power` > 0."""
    name = "polynomial_decay"
    power = _number(name, "power", power)
    if power <= 0:
        raise ValueError(f"optim.schedule.{name}: got power={power}, expected a positive number")
    return _make(
        _polynomial_decay,
        init_value=_number(name, "init_value", init_value),
        end_value=_number(name, "end_value", end_value),
        decay_steps=_steps(name, "decay_steps", decay_steps),
        power=power,
    )


def _cosine_decay(numeric: Any, step: Number, *, init_value: float, decay_steps: int, alpha: float) -> Number:
    falling = _falling_cosine(numeric, _fraction(numeric, step, decay_steps))
    return init_value * (alpha + (1.0 - alpha) * falling)


def cosine_decay(*, init_value: float, decay_steps: int, alpha: float = 0.0) -> Schedule:
    """`init_value * (alpha + (1 - alpha) * (1 + cos(pi * min(s, decay_steps) / decay_steps)) / 2)`.

    Falls from `init_value` to `alpha * init_value` and stays. Loshchilov and Hutter, SGDR, arXiv:1608.03983.
    """
    return _make(
        _cosine_decay,
        init_value=_number("cosine_decay", "init_value", init_value),
        decay_steps=_steps("cosine_decay", "decay_steps", decay_steps),
        alpha=_number("cosine_decay", "alpha", alpha),
    )


def _exponential_decay(
    numeric: Any, step: Number, *, init_value: float, decay_rate: float, decay_steps: int, staircase: bool
) -> Number:
    if not staircase:
        return init_value * numeric.pow(decay_rate, step / float(decay_steps))
    # A rounded quotient could fall just short of the whole number that begins a stair; half a step settles it.
    stair = numeric.floor((step + 0.5) / float(decay_steps))
    return init_value * numeric.pow(decay_rate, stair * 1.0)


def exponential_decay(*, init_value: float, decay_rate: float, decay_steps: int, staircase: bool = False) -> Schedule:
    """`init_value * decay_rate ** (s / decay_steps)`, the exponent rounded down with `staircase`; `decay_rate` > 0."""
    name = "exponential_decay"
    rate = _number(name, "decay_rate", decay_rate)
    if rate <= 0:
        raise ValueError(f"optim.schedule.{name}: got decay_rate={rate}, expected a positive number")
    return _make(
        _exponential_decay,
        init_value=_number(name, "init_value", init_value),
        decay_rate=rate,
        decay_steps=_steps(name, "decay_steps", decay_steps),
        staircase=bool(staircase),
    )


def _warmup_linear(numeric: Any, step: Number, *, init_value: float, peak_value: float, warmup_steps: int) -> Number:
    return init_value + (peak_value - init_value) * _fraction(numeric, step, warmup_steps)


def warmup_linear(*, init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """`init_value + (peak_value - init_value) * min(s, warmup_steps) / warmup_steps`: rises, then stays.

    Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677.
    """
    return _make(
        _warmup_linear,
        init_value=_number("warmup_linear", "init_value", init_value),
        peak_value=_number("warmup_linear", "peak_value", peak_value),
        warmup_steps=_steps("warmup_linear", "warmup_steps", warmup_steps),
    )


def _warmup_cosine(numeric: Any, step: Number, *, init_value: float, peak_value: float, warmup_steps: int) -> Number:
    risen = 1.0 - _falling_cosine(numeric, _fraction(numeric, step, warmup_steps))
    return init_value + (peak_value - init_value) * risen


def warmup_cosine(*, init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """`init_value + (peak_value - init_value) * (1 - cos(pi * min(s, warmup_steps) / warmup_steps)) / 2`.

    Rises along half a cosine, then stays at `peak_value`.
    """
    return _make(
        _warmup_cosine,
        init_value=_number("warmup_cosine", "init_value", init_value),
        peak_value=_number("warmup_cosine", "peak_value", peak_value),
        warmup_steps=_steps("warmup_cosine", "warmup_steps", warmup_steps),
    )


def _warmup_cosine_decay(
    numeric: Any,
    step: Number,
    *,
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float,
) -> Number:
    cosine_steps = decay_steps - warmup_steps
    decayed = _fraction(numeric, numeric.maximum(step * 1.0 - warmup_steps, 0.0), cosine_steps)
    falling = end_value + (peak_value - end_value) * _falling_cosine(numeric, decayed)
    if warmup_steps == 0:
        return falling
    rising = init_value + (peak_value - init_value) * _fraction(numeric, step, warmup_steps)
    return numeric.where(step < warmup_steps, rising, falling)


def warmup_cosine_decay(
    *, init_value: float, peak_value: float, warmup_steps: int, decay_steps: int, end_value: float = 0.0
) -> Schedule:
    """A linear rise to `peak_value` over `warmup_steps`, then half a cosine down to `end_value`, then constant.

    `decay_steps` counts from the start and includes the warm-up, so the cosine takes `decay_steps - warmup_steps`
    steps, which must be positive; `warmup_steps` may be 0.
    """
    name = "warmup_cosine_decay"
    warmup_steps = _steps(name, "warmup_steps", warmup_steps, least=0)
    decay_steps = _steps(name, "decay_steps", decay_steps)
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"optim.schedule.{name}: got decay_steps={decay_steps} and warmup_steps={warmup_steps}, "
            "expected decay_steps to be larger, since it includes the warm-up"
        )
    return _make(
        _warmup_cosine_decay,
        init_value=_number(name, "init_value", init_value),
        peak_value=_number(name, "peak_value", peak_value),
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        end_value=_number(name, "end_value", end_value),
    )


# No run has more steps than this; it bounds the number of cycles a traced schedule has to list.
_LAST_RESTART = 2**31


def _cosine_decay_restarts(
    numeric: Any, step: Number, *, init_value: float, first_decay_steps: int, t_mul: int, m_mul: float, alpha: float
) -> Number:
    if t_mul == 1:
        cycle = numeric.floor((step + 0.5) / float(first_decay_steps)) * 1.0
        fraction = (step - cycle * first_decay_steps) / float(first_decay_steps)
        peak = init_value * numeric.pow(m_mul, cycle)
    else:
        # Listing the cycles keeps every restart at its exact step; a logarithm would round some to the wrong one.
        start = numeric.full_like(step, 0.0)
        length = numeric.full_like(step, float(first_decay_steps))
        peak = numeric.full_like(step, init_value)
        restart, cycle_steps, cycle_peak = first_decay_steps, first_decay_steps * t_mul, init_value * m_mul
        while restart < _LAST_RESTART:
            reached = step >= restart
            start = numeric.where(reached, float(restart), start)
            length = numeric.where(reached, float(cycle_steps), length)
            peak = numeric.where(reached, cycle_peak, peak)
            restart, cycle_steps, cycle_peak = restart + cycle_steps, cycle_steps * t_mul, cycle_peak * m_mul
        fraction = (step - start) / length
    return peak * (alpha + (1.0 - alpha) * _falling_cosine(numeric, fraction))


def cosine_decay_restarts(
    *, init_value: float, first_decay_steps: int, t_mul: int = 2, m_mul: float = 1.0, alpha: float = 0.0
) -> Schedule:
    """`cosine_decay` over and over: cycle i takes `first_decay_steps * t_mul**i` steps from `init_value * m_mul**i`.

    `t_mul` is a whole number, so every restart falls on a step; `m_mul` is positive. Each cycle falls to `alpha` times
    its peak. Loshchilov and Hutter, SGDR, arXiv:1608.03983.
    """
    name = "cosine_decay_restarts"
    m_mul = _number(name, "m_mul", m_mul)
    if m_mul <= 0:
        raise ValueError(f"optim.schedule.{name}: got m_mul={m_mul}, expected a positive number")
    return _make(
        _cosine_decay_restarts,
        init_value=_number(name, "init_value", init_value),
        first_decay_steps=_steps(name, "first_decay_steps", first_decay_steps),
        t_mul=_steps(name, "t_mul", t_mul),
        m_mul=m_mul,
        alpha=_number(name, "alpha", alpha),
    )


def _one_cycle(
    numeric: Any,
    step: Number,
    *,
    peak_value: float,
    total_steps: int,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
) -> Number:
    rise_steps = int(pct_start * total_steps)
    init_value = peak_value / div_factor
    end_value = init_value / final_div_factor
    fallen = _fraction(numeric, numeric.maximum(step * 1.0 - rise_steps, 0.0), total_steps - rise_steps)
    falling = end_value + (peak_value - end_value) * _falling_cosine(numeric, fallen)
    if rise_steps == 0:
        return falling
    risen = 1.0 - _falling_cosine(numeric, _fraction(numeric, step, rise_steps))
    return numeric.where(step < rise_steps, init_value + (peak_value - init_value) * risen, falling)


def one_cycle(
    *,
    peak_value: float,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Half a cosine up from `peak_value / div_factor`, then half a cosine down, in `total_steps` steps together.

    The rise takes `floor(pct_start * total_steps)` steps; the end is `peak_value / (div_factor * final_div_factor)`.
    `0 <= pct_start < 1`, both factors positive. Smith and Topin, Super-Convergence, arXiv:1708.07120.
    """
    name = "one_cycle"
    pct_start = _number(name, "pct_start", pct_start)
    if not 0 <= pct_start < 1:
        raise ValueError(f"optim.schedule.{name}: got pct_start={pct_start}, expected 0 <= pct_start < 1")
    factors = {"div_factor": div_factor, "final_div_factor": final_div_factor}
    for factor_name, factor in factors.items():
        factors[factor_name] = _number(name, factor_name, factor)
        if factors[factor_name] <= 0:
            raise ValueError(f"optim.schedule.{name}: got {factor_name}={factor}, expected a positive number")
    return _make(
        _one_cycle,
        peak_value=_number(name, "peak_value", peak_value),
        total_steps=_steps(name, "total_steps", total_steps),
        pct_start=pct_start,
        **factors,
    )


def _piecewise_constant(
    numeric: Any, step: Number, *, boundaries: tuple[int, ...], values: tuple[float, ...]
) -> Number:
    value = numeric.full_like(step, values[0])
    for boundary, later in zip(boundaries, values[1:], strict=True):
        value = numeric.where(step >= boundary, later, value)
    return value


def piecewise_constant(boundaries: Sequence[int], values: Sequence[float]) -> Schedule:
    """`values[i]` for `boundaries[i-1] <= s < boundaries[i]`; one value more than there are increasing boundaries."""
    name = "piecewise_constant"
    checked = _increasing(name, boundaries)
    if len(values) != len(checked) + 1:
        raise ValueError(
            f"optim.schedule.{name}: got {len(checked)} boundaries and {len(values)} values, expected one value more"
        )
    numbers = tuple(_number(name, f"values[{position}]", value) for position, value in enumerate(values))
    return _make(_piecewise_constant, boundaries=checked, values=numbers)


def _join(numeric: Any, step: Number, *, schedules: tuple[Schedule, ...], boundaries: tuple[int, ...]) -> Number:
    value = schedules[0].evaluate(numeric, step)
    for boundary, later in zip(boundaries, schedules[1:], strict=True):
        # Before its boundary a schedule is not asked about negative steps, where its formula may not be finite.
        shifted = numeric.maximum(step * 1.0 - boundary, 0.0)
        value = numeric.where(step >= boundary, later.evaluate(numeric, shifted), value)
    return value


def join(schedules: Sequence[ScheduleLike], boundaries: Sequence[int]) -> Schedule | Callable[[int], float]:
    """`schedules[i](s - boundaries[i-1])` for `boundaries[i-1] <= s < boundaries[i]`: each starts anew at step 0.

    One schedule more than there are increasing boundaries. Plain numbers are constants. The result can be traced if
    all parts can; with other functions among them it is a function called on the host.
    """
    checked = _increasing("join", boundaries)
    if len(schedules) != len(checked) + 1:
        raise ValueError(
            f"optim.schedule.join: got {len(checked)} boundaries and {len(schedules)} schedules, "
            "expected one schedule more"
        )
    parts = tuple(as_schedule(schedule) for schedule in schedules)
    traceable = tuple(part for part in parts if isinstance(part, Schedule))
    if len(traceable) == len(parts):
        return _make(_join, schedules=traceable, boundaries=checked)

    def joined(step: int) -> float:
        position = sum(step >= boundary for boundary in checked)
        return float(parts[position](step - (checked[position - 1] if position else 0)))

    return joined


def as_schedule(value: ScheduleLike) -> Schedule | Callable[[int], float]:
    """A number as `constant`; a schedule or any other function as it is. TypeError for anything else."""
    return value if callable(value) else _make(_constant, value=_number("as_schedule", "a learning rate", value))
