"""Layers, optimizers, trainers, variables and states print so that a reader can tell what they are."""

import copy

import pytest

import kaun as kn
from kaun import attention, layer, nx, optim, train


def model():
    inner = layer.sequential([layer.linear(in_features=32, out_features=32), layer.gelu(approximate="tanh")])
    first = layer.linear(in_features=64, out_features=32, weight_init=kn.init.he_normal)
    return layer.sequential([first, layer.relu(), layer.residual(inner), layer.batch_norm(num_features=32)])


@pytest.mark.parametrize(
    "made, text",
    [
        (layer.relu(), "relu()"),
        (layer.linear(in_features=3, out_features=2), "linear(in_features=3, out_features=2)"),
        (layer.sequential([]), "sequential(())"),
        (layer.sequential(layer.relu() for _ in range(2)), "sequential([relu(), relu()])"),
        (layer.compose(layer.relu(), layer.tanh()), "compose(relu(), tanh())"),
        (attention.multi_head_attention(embed_dim=8, num_heads=2), "multi_head_attention(embed_dim=8, num_heads=2)"),
        (optim.adam(1e-3), "adam(0.001)"),
        (optim.chain([optim.clip_by_global_norm(1.0), optim.sgd(lr=0.1)]), None),
        (layer.Layer(init=len, apply=max), "Layer(init=len, apply=max)"),
        (optim.Transformation(init=len, update=max, rates=min), "Transformation(init=len, update=max, rates=min)"),
    ],
)
def test_what_was_made_prints_as_the_call_that_made_it(made, text):
    assert repr(made) == (text or "chain([clip_by_global_norm(1.0), sgd(lr=0.1)])")


def test_long_models_print_one_layer_a_line_and_as_code_that_makes_them_again():
    text = repr(model())
    assert text.splitlines()[1] == "  linear(in_features=64, out_features=32, weight_init=he_normal),"
    assert text.splitlines()[3].startswith("  residual(sequential([linear(")
    assert repr(eval(text, {**vars(layer), **vars(kn.init)})) == text


def test_what_prints_is_kept_beside_the_record_and_not_in_it():
    made = layer.linear(in_features=3, out_features=2)
    assert list(vars(made)) == ["init", "apply"] and repr(copy.deepcopy(made)) == repr(made)


def test_layers_of_callables_that_cannot_be_hashed_print():
    class Init:
        __hash__ = None

        def __call__(self, *, dtype):
            return layer.Vars((), (), dtype)

    assert repr(layer.Layer(init=Init(), apply=max)).startswith("Layer(\n  init=<")


def test_optimizers_print_their_schedule():
    schedule = optim.schedule.cosine_decay(init_value=1e-3, decay_steps=10)
    assert repr(optim.adamw(lr=schedule)) == f"adamw(lr={schedule!r})"


def test_a_trainer_and_a_state_print_their_parts_in_lines():
    trainer = train.make(model=model(), optimizer=optim.adam(lr=1e-3))
    assert repr(trainer).startswith("Trainer(\n  model=sequential([\n") and "optimizer=adam(lr=0.001)" in repr(trainer)
    with nx.rng.run(seed=0):
        st = train.init(trainer, dtype=kn.float32)
    _, st = train.step(trainer, st, nx.ones((2, 64)), loss=nx.mean)
    text = repr(st)
    assert "\n  step=1,\n" in text and "dtype=float32" in text
    assert "\n      Dict(weight: float32[64, 32], bias: float32[32]),\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_tracker_prints_its_means():
    tracker = kn.metric.tracker()
    tracker.observe("loss", 0.5)
    assert repr(tracker) == "Tracker(loss 0.5000)"


def test_a_short_set_of_variables_prints_on_one_line():
    variables = layer.Vars({"w": nx.ones((2,))}, (), kn.float32)
    assert repr(variables) == "Vars(params=Dict(w: float32[2]), state=(), dtype=float32)"
    assert repr(layer.Vars(nx.ones((2,)), (), kn.float32)) == "Vars(params=float32[2], state=(), dtype=float32)"
