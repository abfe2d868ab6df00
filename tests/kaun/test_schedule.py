"""Schedules: Optax's values, the same formula on tensors, errors for bad arguments."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kaun.optim import schedule
from kaun.optim.schedule import Schedule

STEPS = [0, 1, 2, 7, 10, 11, 25, 39, 40, 41, 99, 100, 101, 250]

SCHEDULES: dict[str, Any] = {
    "constant": schedule.constant(0.5),
    "linear": schedule.linear(init_value=0.5, end_value=0.1, steps=40),
    "polynomial_decay": schedule.polynomial_decay(init_value=0.5, end_value=0.1, decay_steps=40, power=2.5),
    "cosine_decay": schedule.cosine_decay(init_value=0.5, decay_steps=100, alpha=0.1),
    "exponential_decay": schedule.exponential_decay(init_value=0.5, decay_rate=0.9, decay_steps=40),
    "exponential_decay_staircase": schedule.exponential_decay(
        init_value=0.5, decay_rate=0.9, decay_steps=10, staircase=True
    ),
    "warmup_linear": schedule.warmup_linear(init_value=0.01, peak_value=0.5, warmup_steps=40),
    "warmup_cosine": schedule.warmup_cosine(init_value=0.01, peak_value=0.5, warmup_steps=40),
    "warmup_cosine_decay": schedule.warmup_cosine_decay(
        init_value=0.01, peak_value=0.5, warmup_steps=11, decay_steps=100, end_value=0.05
    ),
    "one_cycle": schedule.one_cycle(
        peak_value=0.5, total_steps=100, pct_start=0.25, div_factor=20.0, final_div_factor=50.0
    ),
    "piecewise_constant": schedule.piecewise_constant([10, 40], [0.5, 0.25, 0.05]),
    "join": schedule.join(
        [
            schedule.linear(init_value=0.0, end_value=1.0, steps=10),
            schedule.exponential_decay(init_value=0.5, decay_rate=0.9, decay_steps=40),
            0.125,
        ],
        [10, 100],
    ),
    "cosine_decay_restarts": schedule.cosine_decay_restarts(
        init_value=0.5, first_decay_steps=10, t_mul=2, m_mul=0.8, alpha=0.1
    ),
}

# Values of Optax 0.2.8 in float64 at STEPS, to 12 digits: linear_schedule, polynomial_schedule, cosine_decay_schedule,
# exponential_decay, linear_schedule, piecewise_interpolate_schedule("cosine"), warmup_cosine_decay_schedule,
# cosine_onecycle_schedule, piecewise_constant_schedule, join_schedules, sgdr_schedule.
# fmt: off
OPTAX = {
    "constant": [0.5] * 14,
    "linear": [0.5, 0.49, 0.48, 0.43, 0.4, 0.39, 0.25, 0.11, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
    "polynomial_decay": [
        0.5, 0.475466790725, 0.451859275848, 0.347283342671, 0.294855715851, 0.279021424172, 0.134445949508,
        0.100039528471, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1,
    ],
    "cosine_decay": [
        0.5, 0.499888976082, 0.499556013896, 0.494581271436, 0.488987716166, 0.486698173015, 0.434099025767,
        0.351216032055, 0.344528823734, 0.337772998859, 0.0501110239177, 0.05, 0.05, 0.05,
    ],
    "exponential_decay": [
        0.5, 0.498684726538, 0.497372912965, 0.490865425716, 0.487001873213, 0.485720791933, 0.468135496353,
        0.451186868228, 0.45, 0.448816253885, 0.385230101569, 0.38421673571, 0.383206035558, 0.258812762502,
    ],
    "exponential_decay_staircase": [
        0.5, 0.5, 0.5, 0.5, 0.45, 0.45, 0.405, 0.3645, 0.32805, 0.32805, 0.1937102445, 0.17433922005, 0.17433922005,
        0.0358948993846,
    ],
    "warmup_linear": [
        0.01, 0.02225, 0.0345, 0.09575, 0.1325, 0.14475, 0.31625, 0.48775, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
    ],
    "warmup_cosine": [
        0.01, 0.0107552532354, 0.0130163565542, 0.0461031597332, 0.0817588386093, 0.0958852281591, 0.348757440929,
        0.499244746765, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
    ],
    "warmup_cosine_decay": [
        0.01, 0.0545454545455, 0.0990909090909, 0.321818181818, 0.455454545455, 0.5, 0.473080204146, 0.398762375775,
        0.392053875937, 0.385199541546, 0.0501401609911, 0.05, 0.05, 0.05,
    ],
    "one_cycle": [
        0.025, 0.0268727584378, 0.032461499232, 0.111111802435, 0.189108463836, 0.217996937786, 0.5, 0.458272079867,
        0.452301994345, 0.445977440967, 0.00071907318281, 0.0005, 0.0005, 0.0005,
    ],
    "piecewise_constant": [0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05],
    "join": [
        0.0, 0.1, 0.2, 0.7, 0.5, 0.498684726538, 0.480630077729, 0.463229089091, 0.462010543236, 0.460795202823,
        0.395511929993, 0.125, 0.125, 0.125,
    ],
    "cosine_decay_restarts": [
        0.5, 0.488987716166, 0.457028823734, 0.142748318234, 0.4, 0.397783901307, 0.0927207793864, 0.285498459046,
        0.277823376491, 0.26952051896, 0.189029601764, 0.184885131408, 0.180672684975, 0.0773718948732,
    ],
}
# fmt: on


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_the_values_of_optax(name: str) -> None:
    values = [SCHEDULES[name](step) for step in STEPS]
    assert all(type(value) is float for value in values)
    np.testing.assert_allclose(values, OPTAX[name], rtol=1e-11)


def test_warmup_cosine_matches_its_formula_written_out() -> None:
    values = [SCHEDULES["warmup_cosine"](step) for step in STEPS]
    expected = [0.01 + 0.49 * (1 - math.cos(math.pi * min(step, 40) / 40)) / 2 for step in STEPS]
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_formula_on_float32_arrays_agrees_with_the_host(name: str) -> None:
    steps = np.arange(400, dtype=np.float32)
    with np.errstate(all="raise"):
        traced = SCHEDULES[name].evaluate(np, steps)
    assert traced.dtype == np.float32 and traced.shape == steps.shape
    np.testing.assert_allclose(traced, [SCHEDULES[name](int(step)) for step in steps], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_tensor_step_gives_the_value_of_the_host(name: str) -> None:
    nx = pytest.importorskip("kaun.nx")
    for step in (1, 39, 100, 101):
        traced = SCHEDULES[name](nx.asarray(np.float32(step)))
        assert traced.shape == ()
        np.testing.assert_allclose(float(traced), SCHEDULES[name](step), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("first", [1, 3, 7, 10, 41, 1000, 4801])
@pytest.mark.parametrize("t_mul", [1, 2, 3])
def test_restarts_fall_on_their_exact_step_in_float32(first: int, t_mul: int) -> None:
    restarting = schedule.cosine_decay_restarts(init_value=1.0, first_decay_steps=first, t_mul=t_mul)
    restart, length = 0, first
    while restart + length < 2**22 and restart < 300 * first:
        ended, restart, length = length, restart + length, length * t_mul
        assert restarting(restart) == 1.0
        assert float(restarting.evaluate(np, np.array(restart, np.float32))) == 1.0
        # One step earlier the old cycle ends: the value is low unless cycles have a single step.
        if ended > 2:
            assert restarting(restart - 1) < 0.5


def test_stairs_begin_on_their_exact_step_in_float32() -> None:
    for decay_steps in (3, 7, 10, 41, 49, 1000):
        stairs = schedule.exponential_decay(init_value=1.0, decay_rate=0.5, decay_steps=decay_steps, staircase=True)
        for stair in range(1, 60):
            step = np.array([stair * decay_steps - 1, stair * decay_steps], np.float32)
            np.testing.assert_array_equal(stairs.evaluate(np, step), [0.5 ** (stair - 1), 0.5**stair])


def test_growth_past_the_largest_float_is_infinite() -> None:
    growing = schedule.exponential_decay(init_value=1.0, decay_rate=10.0, decay_steps=1)
    assert growing(400) == math.inf


def test_joining_with_a_function_of_the_host_gives_a_function_of_the_host() -> None:
    joined = schedule.join([0.5, lambda step: 1.0 / (1 + step)], [3])
    assert not isinstance(joined, Schedule)
    assert [joined(step) for step in (1, 2, 3, 4)] == [0.5, 0.5, 1.0, 0.5]


def test_schedules_with_equal_parameters_are_equal_keys() -> None:
    def make(alpha: float) -> Schedule:
        return schedule.cosine_decay(init_value=1e-3, decay_steps=100, alpha=alpha)

    assert make(0.1) == make(0.1) and hash(make(0.1)) == hash(make(0.1)) and make(0.1) != make(0.2)
    assert repr(make(0.1)) == "cosine_decay(init_value=0.001, decay_steps=100, alpha=0.1)"


def test_a_number_is_a_constant_schedule_and_functions_stay_themselves() -> None:
    def halving(step: int) -> float:
        return 0.5**step

    assert schedule.as_schedule(1e-3) == schedule.constant(1e-3)
    assert schedule.as_schedule(np.float32(0.5)) == schedule.constant(0.5)
    assert schedule.as_schedule(halving) is halving
    with pytest.raises(
        TypeError, match=r"^optim\.schedule\.as_schedule: got a learning rate='fast', expected a number"
    ):
        schedule.as_schedule("fast")  # type: ignore[arg-type]


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: schedule.constant(math.nan), ValueError, "constant: got value=nan, expected a finite"),
    (lambda: schedule.constant(None), TypeError, "constant: got value=None, expected a number"),  # type: ignore[arg-type]
    (lambda: schedule.linear(init_value=1.0, end_value=0.0, steps=0), ValueError, "linear: got steps=0"),
    (lambda: schedule.cosine_decay(init_value=1.0, decay_steps=-5), ValueError, "cosine_decay: got decay_steps=-5"),
    (lambda: schedule.cosine_decay(init_value=1.0, decay_steps=1.5), TypeError, "decay_steps=1.5, expected an int"),  # type: ignore[arg-type]
    (
        lambda: schedule.exponential_decay(init_value=1.0, decay_rate=0.0, decay_steps=1),
        ValueError,
        "exponential_decay: got decay_rate=0.0",
    ),
    (
        lambda: schedule.polynomial_decay(init_value=1.0, end_value=0.0, decay_steps=1, power=0),
        ValueError,
        "polynomial_decay: got power=0.0",
    ),
    (
        lambda: schedule.warmup_cosine_decay(init_value=0.0, peak_value=1.0, warmup_steps=10, decay_steps=10),
        ValueError,
        "warmup_cosine_decay: got decay_steps=10 and warmup_steps=10",
    ),
    (lambda: schedule.one_cycle(peak_value=1.0, total_steps=10, pct_start=1.0), ValueError, "one_cycle: got pct_start"),
    (lambda: schedule.one_cycle(peak_value=1.0, total_steps=10, div_factor=0), ValueError, "one_cycle: got div_factor"),
    (
        lambda: schedule.cosine_decay_restarts(init_value=1.0, first_decay_steps=10, t_mul=1.5),  # type: ignore[arg-type]
        TypeError,
        "cosine_decay_restarts: got t_mul=1.5, expected an int",
    ),
    (lambda: schedule.piecewise_constant([5, 5], [1, 2, 3]), ValueError, "piecewise_constant: got boundaries"),
    (lambda: schedule.piecewise_constant([5], [1]), ValueError, "1 boundaries and 1 values, expected one value more"),
    (lambda: schedule.join([0.1], [5]), ValueError, "join: got 1 boundaries and 1 schedules"),
    (lambda: schedule.constant(1.0)(-1), ValueError, "constant: got step -1"),
    (lambda: schedule.constant(1.0)(1.5), TypeError, "constant: got step 1.5, expected an int or a tensor"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_arguments_are_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith("optim.schedule.") and message in str(caught.value)
