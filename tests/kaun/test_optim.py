"""Optimizers agree with PyTorch's and optax's over 100 steps; transformations do what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
from reference_values import recorded

from kaun import nx, optim, ptree
from kaun.gradients import grad
from kaun.tracing import jit

START = {name: recorded()[f"optim/start/{name}"] for name in ("w", "b")}
TARGET = {name: recorded()[f"optim/target/{name}"] for name in ("w", "b")}

OPTIMIZERS = {
    "sgd": lambda: optim.sgd(lr=0.01),
    "sgd_momentum": lambda: optim.sgd(lr=0.003, momentum=0.9),
    "sgd_nesterov": lambda: optim.sgd(lr=0.003, momentum=0.9, nesterov=True),
    "adam": lambda: optim.adam(lr=optim.schedule.constant(0.02)),
    "adamw": lambda: optim.adamw(lr=0.02, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
    "adam_cosine": lambda: optim.adam(
        lr=optim.schedule.cosine_decay(init_value=0.05, decay_steps=80, alpha=0.1)
    ),
    "clip_global": lambda: optim.chain([optim.clip_by_global_norm(1.0), optim.sgd(lr=0.05, momentum=0.5)]),
    "clip_value": lambda: optim.chain([optim.clip_by_value(0.5), optim.sgd(lr=0.05)]),
}


def objective(params, target):
    distance = ptree.map2(lambda p, t: p - t, params, target)
    terms = ptree.map2(lambda p, d: nx.sum(d**4 + p * p), params, distance)
    return sum(ptree.leaves(terms)[1:], ptree.leaves(terms)[0])


def descend(tx, dtype, steps=100):
    params, target = (ptree.map(lambda a: nx.asarray(a.astype(dtype)), tree) for tree in (START, TARGET))
    state = optim.init(tx, params)
    step = jit(lambda params, state: optim.update(tx, state, params, grad(objective)(params, target)))
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_100_steps_agree_with_pytorch_or_optax(name):
    params = descend(OPTIMIZERS[name](), np.float64)
    for key in START:
        np.testing.assert_allclose(params[key].numpy(), recorded()[f"optim/{name}/{key}"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_100_steps_in_float32_stay_within_its_precision(name):
    params = descend(OPTIMIZERS[name](), np.float32)
    for key in START:
        np.testing.assert_allclose(params[key].numpy(), recorded()[f"optim/{name}/{key}"], rtol=1e-5, atol=1e-5)


def numbers(*values):
    return nx.asarray(np.asarray(values, np.float32))


def one_update(transformation, updates, params=None):
    params = params or ptree.map(nx.zeros_like, updates)
    result, _ = optim.step(transformation, optim.init(transformation, params), params, updates)
    return ptree.map(lambda leaf: leaf.numpy(), result)


def test_transformations_follow_their_formulas():
    g, p = {"w": numbers(3.0, -4.0)}, {"w": numbers(1.0, 2.0)}
    np.testing.assert_allclose(one_update(optim.scale(0.5), g)["w"], [1.5, -2])
    np.testing.assert_allclose(one_update(optim.scale_by_learning_rate(0.1), g)["w"], [-0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(one_update(optim.add_decayed_weights(0.1), g, p)["w"], [3.1, -3.8], rtol=1e-6)
    np.testing.assert_allclose(one_update(optim.clip_by_value(3.5), g)["w"], [3, -3.5])
    np.testing.assert_allclose(one_update(optim.clip_by_norm(1.0), g)["w"], [0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(one_update(optim.clip_by_norm(7.0), g)["w"], [3, -4])


def test_clipping_by_norm_is_per_tensor_and_by_global_norm_over_the_tree():
    g = {"a": numbers(3.0), "b": numbers(4.0)}
    by_norm, by_global = one_update(optim.clip_by_norm(2.0), g), optim.clip_by_global_norm(2.0, g)
    assert (by_norm["a"], by_norm["b"]) == (2.0, 2.0)
    np.testing.assert_allclose([float(by_global["a"][0]), float(by_global["b"][0])], [1.2, 1.6], rtol=1e-6)
    assert float(optim.global_norm(g)) == 5.0
    assert float(optim.global_norm(())) == 0.0


def test_clipping_keeps_nan_and_zero_gradients():
    assert np.isnan(one_update(optim.clip_by_value(1.0), {"w": numbers(np.nan)})["w"]).all()
    assert np.isnan(one_update(optim.clip_by_global_norm(1.0), {"w": numbers(np.nan, 1.0)})["w"]).any()
    assert one_update(optim.clip_by_global_norm(1.0), {"w": numbers(0.0)})["w"] == 0


def test_a_function_of_the_step_is_called_on_the_host_with_steps_from_one():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.1 * step

    tx, params, g = optim.sgd(lr=rate), {"w": numbers(0.0)}, {"w": numbers(1.0)}
    state = optim.init(tx, params)
    for expected in (-0.1, -0.3, -0.6):
        params, state = optim.update(tx, state, params, g)
        assert float(params["w"][0]) == pytest.approx(expected)
    assert asked == [1, 2, 3]
    with pytest.raises(ValueError, match="Python function cannot be asked for the rate inside"):
        jit(lambda params, state: optim.update(tx, state, params, g))(params, optim.init(tx, params))


def test_schedules_made_here_give_the_same_updates_traced_and_on_the_host():
    schedule = optim.schedule.warmup_cosine_decay(init_value=0.0, peak_value=1.0, warmup_steps=3, decay_steps=9)
    params = {"w": numbers(1.0)}
    traced, host = optim.scale_by_schedule(schedule), optim.scale_by_schedule(lambda step: schedule(step))
    first, second = optim.init(traced, params), optim.init(host, params)
    for _ in range(12):
        a, first = optim.step(traced, first, params, params)
        b, second = optim.step(host, second, params, params)
        np.testing.assert_allclose(a["w"].numpy(), b["w"].numpy(), rtol=1e-6, atol=1e-7)


def test_bias_corrections_keep_their_precision_at_the_first_step():
    # 1 - 0.999**1 in float32 is wrong in the fifth digit; the direction of the first step of Adam is exactly +-1.
    update = one_update(optim.scale_by_adam(eps=0.0), {"w": numbers(1e-3, -5.0)})
    np.testing.assert_allclose(update["w"], [1, -1], rtol=1e-6)


def test_nothing_given_is_changed_and_results_are_computed():
    tx, params, g = optim.adam(lr=0.1), {"w": numbers(1.0)}, {"w": numbers(1.0)}
    state = optim.init(tx, params)
    new_params, new_state = optim.update(tx, state, params, g)
    assert float(params["w"][0]) == 1.0 and int(state[0].step) == 0 and int(new_state[0].step) == 1
    assert all(leaf._node.value is not None for leaf in ptree.leaves((new_params, new_state)))
    assert isinstance(new_params, ptree.Dict)


def test_narrow_parameters_keep_wide_moments():
    params = {"w": nx.ones((2,), dtype=nx.bfloat16)}
    tx = optim.adam(lr=0.1)
    updated, state = optim.update(tx, optim.init(tx, params), params, params)
    assert updated["w"].dtype is nx.bfloat16 and state[0].mu["w"].dtype is nx.float32


def test_a_transformation_of_your_own_joins_a_chain():
    negate = optim.Transformation(lambda params: (), lambda u, state, params: (ptree.map(lambda x: -x, u), state))
    result = one_update(optim.chain([negate, optim.scale(2.0)]), {"w": numbers(3.0)})
    assert result["w"] == -6.0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: optim.sgd(lr=0.1, nesterov=True), ValueError, "nesterov=True with momentum=0"),
        (lambda: optim.adam(lr=0.1, b1=1.0), ValueError, "b1=1.0"),
        (lambda: optim.adam(lr="fast"), TypeError, "learning rate"),
        (lambda: optim.clip_by_global_norm(0.0), ValueError, "limit of 0.0"),
        (lambda: optim.chain([optim.sgd]), TypeError, "function at position 0"),
        (lambda: one_update(optim.sgd(lr=0.1), {"w": numbers(1)}, {"v": numbers(1)}), ValueError, "differ at ``"),
        (lambda: one_update(optim.sgd(lr=0.1), {"w": numbers(1)}, {"w": numbers(1, 2)}), ValueError, r"\[1\] at `w`"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
