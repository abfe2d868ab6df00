"""Optimizers agree with PyTorch's and optax's over 100 steps; transformations do what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
from reference_values import recorded

from kaun import nx, optim, ptree
from kaun.gradients import grad
from kaun.optim.apply import host_rates, traced_step
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
    "rmsprop": lambda: optim.rmsprop(lr=0.01),
    "rmsprop_momentum": lambda: optim.rmsprop(lr=0.005, decay=0.95, momentum=0.8),
    "adagrad": lambda: optim.adagrad(lr=0.2),
    "radam": lambda: optim.radam(lr=0.05),
    "lamb": lambda: optim.lamb(lr=0.02, weight_decay=0.05),
    "lars": lambda: optim.lars(lr=0.5, weight_decay=0.01, trust_coefficient=0.01, momentum=0.8, nesterov=True),
    "lion": lambda: optim.lion(lr=0.013, weight_decay=0.1),
    "adan": lambda: optim.adan(lr=0.02, weight_decay=0.05),
    "adafactor": lambda: optim.adafactor(lr=0.1, min_dim_size_to_factor=3),
    "adafactor_full": lambda: optim.adafactor(lr=0.1, multiply_by_parameter_scale=False, clipping_threshold=None),
    "centralized": lambda: optim.chain([optim.centralize(), optim.sgd(lr=0.01)]),
    "accumulated": lambda: optim.chain(
        [optim.clip_by_global_norm(5.0), optim.accumulate_gradients(3), optim.adam(lr=lambda step: 0.1 / step)]
    ),
    "if_finite": lambda: optim.apply_if_finite(optim.sgd(lr=0.01, momentum=0.9)),
}
# What the recorded runs multiplied the gradient of step i, counted from 0, by.
FACTORS = {
    "if_finite": lambda i: np.nan if i % 7 == 3 else 1.0,
    "accumulated": lambda i: 1.5 if i % 3 else 0.5,
}


def objective(params, target):
    distance = ptree.map2(lambda p, t: p - t, params, target)
    terms = ptree.map2(lambda p, d: nx.sum(d**4 + p * p), params, distance)
    return sum(ptree.leaves(terms)[1:], ptree.leaves(terms)[0])


def descend(name, dtype, steps=100):
    tx, factor = OPTIMIZERS[name](), FACTORS.get(name, lambda i: 1.0)
    params, target = (ptree.map(lambda a: nx.asarray(a.astype(dtype)), tree) for tree in (START, TARGET))
    state = optim.init(tx, params)

    @jit
    def step(params, state, factor, rates):
        grads = ptree.map(lambda g: g * nx.astype(factor, g.dtype), grad(objective)(params, target))
        updates, state = traced_step(tx, state, params, grads, rates)
        return optim.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, np.float32(factor(i)), host_rates(tx, state))
    return params


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_100_steps_agree_with_pytorch_or_optax(name):
    params = descend(name, np.float64)
    for key in START:
        np.testing.assert_allclose(params[key].numpy(), recorded()[f"optim/{name}/{key}"], rtol=2e-6, atol=2e-7)


# These go back and forth around the minimum with steps that do not shrink, which makes any rounding grow.
RESTLESS = {"adafactor_full", "lamb", "lars", "lion", "rmsprop"}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - RESTLESS))
def test_100_steps_in_float32_stay_within_its_precision(name):
    params = descend(name, np.float32)
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


def test_accumulation_updates_at_every_kth_step_only_and_leaves_the_rest_of_the_chain_alone():
    tx = optim.accumulate_gradients(3, optim.chain([optim.add_decayed_weights(0.1), optim.adam(lr=0.5)]))
    params, grads = {"w": numbers(1.0)}, {"w": numbers(2.0)}
    state, steps = optim.init(tx, params), []
    for _ in range(7):
        updates, state = optim.step(tx, state, params, grads)
        steps.append((float(updates["w"][0]) != 0, int(state[1][1][0].step), int(state[0].gathered)))
    assert [moved for moved, _, _ in steps] == [False, False, True, False, False, True, False]
    assert [step for _, step, _ in steps] == [0, 0, 1, 1, 1, 2, 2]
    assert [count for _, _, count in steps] == [1, 2, 0, 1, 2, 0, 1]


def test_gates_in_one_chain_and_chains_in_chains_all_have_to_be_open():
    counted = optim.Transformation(lambda params: nx.zeros(()), lambda u, state, params: (u, state + 1))
    guarded = optim.chain([optim.chain([optim.apply_if_finite(), optim.accumulate_gradients(2)]), counted])
    params, state = {"w": numbers(0.0)}, optim.init(guarded, {"w": numbers(0.0)})
    seen = []
    for value in (1.0, np.nan, 3.0, 5.0, np.inf, 7.0):
        updates, state = optim.step(guarded, state, params, {"w": numbers(value)})
        seen.append((float(updates["w"][0]), int(state[1])))
    assert seen == [(0, 0), (0, 0), (2, 1), (0, 1), (0, 1), (6, 2)]


def test_updates_that_are_not_finite_are_let_through_after_too_many():
    tx = optim.apply_if_finite(optim.scale(1.0), max_consecutive_errors=2)
    state, seen = optim.init(tx, {"w": numbers(0.0)}), []
    for value in (np.nan, np.nan, np.nan, 1.0):
        updates, state = optim.step(tx, state, {"w": numbers(0.0)}, {"w": numbers(value)})
        seen.append(float(updates["w"][0]))
    assert seen[:2] == [0, 0] and np.isnan(seen[2]) and seen[3] == 1
    assert int(state[0].in_a_row) == 0 and int(state[0].total) == 3


def test_noise_has_the_variance_of_its_step_and_follows_from_the_seed():
    params = {"a": nx.zeros((100_000,)), "b": nx.zeros((100_000,))}
    tx = optim.add_noise(0.25, gamma=0.5)
    state, drawn = optim.init(tx, params), []
    for step in range(1, 5):
        updates, state = optim.step(tx, state, params, params)
        drawn += [updates["a"].numpy(), updates["b"].numpy()]
        assert drawn[-1].std() == pytest.approx(0.5 * step**-0.25, rel=0.02)
        assert abs(drawn[-1].mean()) < 0.01
    correlations = np.corrcoef(np.stack(drawn)) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.02
    again = optim.step(tx, optim.init(tx, params), params, params)[0]
    np.testing.assert_array_equal(again["a"].numpy(), drawn[0])
    other = optim.add_noise(0.25, gamma=0.5, seed=1)
    assert not np.array_equal(one_update(other, params)["a"], drawn[0])


def test_centralize_takes_the_mean_over_the_inputs_of_each_output():
    random = np.random.default_rng(0)
    g = {"bias": random.normal(size=3), "conv": random.normal(size=(4, 3, 2, 2)), "dense": random.normal(size=(3, 5))}
    got = one_update(optim.centralize(), ptree.map(nx.asarray, g))
    np.testing.assert_array_equal(got["bias"], g["bias"])
    np.testing.assert_allclose(got["dense"].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(got["conv"], g["conv"] - g["conv"].mean((1, 2, 3), keepdims=True), atol=1e-12)


def test_trust_ratio_leaves_zeros_alone_and_respects_the_least_norm():
    zero, g = {"w": numbers(0.0, 0.0)}, {"w": numbers(3.0, 4.0)}
    np.testing.assert_array_equal(one_update(optim.scale_by_trust_ratio(), g, zero)["w"], [3, 4])
    np.testing.assert_array_equal(one_update(optim.scale_by_trust_ratio(), zero, g)["w"], [0, 0])
    got = one_update(optim.scale_by_trust_ratio(min_norm=1.0, trust_coefficient=2.0), g, {"w": numbers(0.1, 0.0)})
    np.testing.assert_allclose(got["w"], np.asarray([3, 4]) * 2 / 5, rtol=1e-6)


def test_adafactor_keeps_rows_and_columns_of_large_matrices_only():
    params = {"large": nx.zeros((3, 130, 140)), "small": nx.zeros((100, 200))}
    state = optim.init(optim.adafactor(lr=0.1), params)[0]
    shapes = {path: leaf.shape for path, leaf in ptree.flatten_with_paths(state.moments)}
    assert shapes == {"large.row": (3, 130), "large.column": (3, 140), "small.full": (100, 200)}


W = {"w": numbers(1)}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: optim.sgd(lr=0.1, nesterov=True), ValueError, "nesterov=True with momentum=0"),
        (lambda: optim.adam(lr=0.1, b1=1.0), ValueError, "b1=1.0"),
        (lambda: optim.adam(lr="fast"), TypeError, "learning rate"),
        (lambda: optim.clip_by_global_norm(0.0), ValueError, "limit of 0.0"),
        (lambda: optim.rmsprop(lr=0.1, decay=1.5), ValueError, "scale_by_rms: got decay=1.5"),
        (lambda: optim.lion(lr=0.1, b2=-1.0), ValueError, "scale_by_lion: got b2=-1.0"),
        (lambda: optim.adan(lr=0.1, b3=1.0), ValueError, "scale_by_adan: got b3=1.0"),
        (lambda: optim.radam(lr=0.1, b2=1.0), ValueError, "scale_by_radam: got b2=1.0"),
        (lambda: optim.radam(lr=0.1, threshold=3.0), ValueError, "threshold=3.0, expected at least 4"),
        (lambda: optim.scale_by_adagrad(initial_accumulator=-1.0), ValueError, "initial_accumulator=-1.0"),
        (lambda: optim.adafactor(lr=0.1, decay_rate=0.0), ValueError, "decay_rate=0.0"),
        (lambda: optim.adafactor(lr=0.1, clipping_threshold=0.0), ValueError, "clipping_threshold=0.0"),
        (lambda: optim.accumulate_gradients(0), ValueError, "k=0, expected a positive int"),
        (lambda: optim.apply_if_finite(max_consecutive_errors=-1), ValueError, "max_consecutive_errors=-1"),
        (lambda: optim.add_noise(-1.0), ValueError, "eta=-1.0"),
        (
            lambda: optim.step(optim.trace(0.5), optim.init(optim.trace(0.5), {"v": numbers(1)}), W, W), ValueError,
            "do not match the gradients at the root",
        ),
        (lambda: optim.chain([optim.sgd]), TypeError, "function at position 0"),
        (lambda: one_update(optim.sgd(lr=0.1), {"w": numbers(1)}, {"v": numbers(1)}), ValueError, "differ at the root"),
        (lambda: one_update(optim.sgd(lr=0.1), {"w": numbers(1)}, {"w": numbers(1, 2)}), ValueError, r"\[1\] at `w`"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
