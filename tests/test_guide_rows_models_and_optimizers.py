"""A test for every row of the guide's sections 1 to 5: the big picture, models, parameters, passes, optimizers."""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from guide_rows import (
    ROWS,
    arrays,
    fresh,
    functions_shown,
    listed,
    moved,
    norm_and_dropout,
    of_sections,
    row,
    run_row,
    same,
    setting,
    table,
)

import kaun as kn
from kaun import nx, ptree

# --- 1. Big-picture differences --------------------------------------------------------------------------------------


@row("1. Language")
def public_functions_are_typed_and_steps_run_as_native_code() -> None:
    for function in (kn.layer.apply, kn.train.fit, kn.optim.update, kn.loss.mse, nx.matmul):
        assert typing.get_type_hints(function).get("return") is not None
    compiled = kn.jit(lambda x: x + 1.0)
    compiled(nx.ones(3))
    assert compiled.compiled.specialise(nx.ones(3)).compiled.executable.kernel_addresses


@row("1. Model definition")
def a_model_is_a_record_of_init_and_apply() -> None:
    model = setting()["model"]
    assert isinstance(model, kn.layer.Layer) and callable(model.init) and callable(model.apply)
    assert [field for field in vars(model)] == ["init", "apply"]


@row("1. Parameter storage")
def parameters_are_a_tree_that_init_returns() -> None:
    paths = [path for path, _ in ptree.flatten_with_paths(setting()["vars"].params)]
    assert paths == ["0.weight", "0.bias", "3.weight", "3.bias"]


@row("1. Forward pass")
def apply_is_a_function_of_model_variables_and_input() -> None:
    s = setting()
    y, _ = kn.layer.apply(s["model"], s["vars"], s["x"], training=False)
    w0, b0, w1, b1 = arrays(s["vars"].params)
    np.testing.assert_allclose(y.numpy(), np.maximum(s["x"].numpy() @ w0 + b0, 0) @ w1 + b1, rtol=1e-4, atol=1e-5)


@row("1. Mutation")
def variables_trees_and_tensors_cannot_be_changed() -> None:
    variables = setting()["vars"]
    with pytest.raises(AttributeError):
        variables.params = ()
    with pytest.raises(TypeError):
        variables.params[0]["weight"] = nx.zeros((8, 16))
    with pytest.raises(TypeError):
        variables.params[0]["weight"][0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        variables.params[0]["weight"].numpy()[0] = 1.0


@row("1. Autograd")
def grad_is_a_function_of_functions_and_differentiates_again() -> None:
    cube = kn.grad(lambda x: x * x * x)
    assert float(cube(2.0)) == 12.0
    assert float(kn.grad(cube)(2.0)) == 12.0


@row("1. Optimizer")
def an_optimizer_takes_a_rate_and_no_model() -> None:
    optimizer = kn.optim.adam(lr=kn.optim.schedule.constant(0.5))
    params = {"w": nx.asarray([1.0, -1.0])}
    after, _ = kn.optim.update(optimizer, kn.optim.init(optimizer, params), params, {"w": nx.asarray([3.0, -7.0])})
    np.testing.assert_allclose(after["w"].numpy(), [0.5, -0.5], rtol=1e-6)


@row("1. Training loop")
def fit_is_step_in_a_loop() -> None:
    s = setting()
    batches = [(s["x"][i : i + 32], s["y"][i : i + 32]) for i in range(0, 128, 32)]
    fitted = kn.train.fit(s["trainer"], s["st"], batches, loss=kn.loss.cross_entropy_sparse)
    stepped = s["st"]
    for x, y in batches:
        _, stepped = kn.train.step(
            s["trainer"], stepped, x, loss=lambda z, y=y: kn.loss.cross_entropy_sparse(z, y)
        )
    assert int(fitted.step) == int(stepped.step) == 4
    for a, b in zip(arrays(fitted.vars.params), arrays(stepped.vars.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@row("1. Data loading")
def a_pipeline_makes_nothing_until_it_is_asked() -> None:
    made: list[int] = []
    data = kn.data.of_fn(5, lambda i: made.append(i) or i).map(lambda i: 10 * i)
    assert made == []
    assert next(iter(data)) == 0 and made == [0]


@row("1. Checkpointing")
def checkpoints_are_safetensors_files_under_paths() -> None:
    params = setting()["vars"].params
    kn.checkpoint.save("model.safetensors", params)
    stored = safetensors.numpy.load_file("model.safetensors")
    assert all((stored[path] == leaf.numpy()).all() for path, leaf in ptree.flatten_with_paths(params))
    assert same(kn.checkpoint.load("model.safetensors", like=params), params)


@row("1. RNG")
def draws_need_a_scope_and_follow_from_its_seed() -> None:
    with pytest.raises(ValueError, match=r"nx\.rng\.run"):
        nx.rng.normal((2,))
    drawn = []
    for _ in range(2):
        with nx.rng.run(seed=7):
            drawn.append(nx.rng.normal((5,)).numpy())
    assert (drawn[0] == drawn[1]).all()


@row("1. Device management")
def everything_is_on_the_processor() -> None:
    assert nx.ones(3).device == "cpu" and kn.train.predict(*fresh(kn.optim.sgd(0.1)), nx.ones((1, 8))).device == "cpu"


# --- 2. Defining models ----------------------------------------------------------------------------------------------


@row("2. Layers are plain data")
def a_layer_holds_no_parameters_and_serves_any_number_of_them() -> None:
    model = setting()["model"]
    with nx.rng.run(seed=1):
        one, other = kn.layer.init(model), kn.layer.init(model)
    assert not same(one.params, other.params)


@row("2. Sequential pipelines")
def sequential_applies_layers_in_order() -> None:
    double = kn.layer.Layer(
        lambda *, dtype: kn.layer.Vars((), (), dtype), lambda params, state, x, /, **options: (2 * x, state)
    )
    model = kn.layer.sequential([double, kn.layer.tanh(), double])
    y, _ = kn.layer.apply(model, kn.layer.init(model), nx.asarray([0.5]), training=False)
    np.testing.assert_allclose(y.numpy(), 2 * np.tanh([1.0]), rtol=1e-6)


@row("2. Composing different types")
def compose_joins_an_embedding_and_a_dense_layer() -> None:
    table, weight = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.ones((2, 1), np.float32)
    model = kn.layer.compose(
        kn.layer.embedding(vocab_size=3, embed_dim=2, scale=False), kn.layer.linear(in_features=2, out_features=1)
    )
    params = {"left": {"embedding": table}, "right": {"weight": weight, "bias": np.zeros(1, np.float32)}}
    params = ptree.map(nx.asarray, params)
    variables = kn.layer.Vars(params, {"left": (), "right": ()}, kn.float32)
    y, _ = kn.layer.apply(model, variables, nx.asarray([2, 0]), training=False)
    assert y.tolist() == [[9.0], [1.0]]


@row("2. Activations as layers")
def activations_are_layers_and_functions_alike() -> None:
    x = nx.asarray([-1.5, 0.0, 2.0])
    for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "softmax", "leaky_relu", "elu"):
        layer = getattr(kn.layer, name)()
        y, _ = kn.layer.apply(layer, kn.layer.init(layer), x, training=True)
        assert (y.numpy() == getattr(kn.fn, name)(x).numpy()).all()


# --- 3. Parameters ---------------------------------------------------------------------------------------------------


@row("3. Params, state and dtype")
def variables_bundle_parameters_state_and_dtype() -> None:
    layer = kn.layer.batch_norm(num_features=3)
    variables = kn.layer.init(layer, dtype=kn.float64)
    assert variables.dtype is kn.float64
    assert list(variables.params) == ["scale", "bias"] and list(variables.state) == ["running_mean", "running_var"]


@row("3. Inspect shapes")
def flattening_with_paths_gives_names_and_tensors() -> None:
    shapes = {path: leaf.shape for path, leaf in ptree.flatten_with_paths(setting()["vars"].params)}
    assert shapes == {"0.weight": (8, 16), "0.bias": (16,), "3.weight": (16, 10), "3.bias": (10,)}


@row("3. Count parameters")
def counting_adds_the_sizes_of_all_leaves() -> None:
    assert ptree.count_parameters(setting()["vars"].params) == 8 * 16 + 16 + 16 * 10 + 10


@row("3. Replace parameters")
def with_params_gives_new_variables_and_leaves_the_old() -> None:
    variables = setting()["vars"]
    before = [array.copy() for array in arrays(variables.params)]
    halved = variables.with_params(ptree.map(lambda p: 0.5 * p, variables.params))
    assert all((a == b).all() for a, b in zip(arrays(variables.params), before, strict=True))
    assert all((a == 0.5 * b).all() for a, b in zip(arrays(halved.params), before, strict=True))


@row("3. Trees are plain data")
def trees_map_fold_flatten_and_take_dicts_and_lists() -> None:
    tree = ptree.as_tree({"a": nx.asarray([1.0, 2.0]), "b": [nx.asarray(3.0)]})
    leaves, rebuild = ptree.flatten(tree)
    assert same(rebuild(leaves), tree)
    assert ptree.fold(lambda total, leaf: total + float(nx.sum(leaf)), 0.0, tree) == 6.0
    assert same(ptree.unflatten_from_paths(ptree.flatten_with_paths(tree)), tree)


@row("3. State apart from parameters")
def training_moves_statistics_by_the_forward_pass_and_parameters_by_the_optimizer() -> None:
    model = kn.layer.sequential([kn.layer.batch_norm(num_features=8), kn.layer.linear(in_features=8, out_features=10)])
    trainer = kn.train.make(model=model, optimizer=kn.optim.sgd(lr=0.0))
    with nx.rng.run(seed=0):
        st = kn.train.init(trainer)
    _, after = kn.train.step(trainer, st, setting()["x"], loss=setting()["loss"])
    assert same(after.vars.params, st.vars.params) and not same(after.vars.state, st.vars.state)


# --- 4. Forward pass -------------------------------------------------------------------------------------------------


@row("4. Training mode")
def training_drops_and_updates_running_statistics() -> None:
    layer, variables = norm_and_dropout()
    x = setting()["x"]
    with nx.rng.run(seed=0):
        y, after = kn.layer.apply(layer, variables, x, training=True)
    assert 0.4 < (y.numpy() == 0).mean() < 0.6
    mean = after.state[0]["running_mean"].numpy()
    np.testing.assert_allclose(mean, 0.1 * x.numpy().mean(0), rtol=1e-4, atol=1e-6)


@row("4. Evaluation mode")
def evaluation_uses_running_statistics_and_drops_nothing() -> None:
    layer, variables = norm_and_dropout()
    x = setting()["x"]
    y, after = kn.layer.apply(layer, variables, x, training=False)
    np.testing.assert_allclose(y.numpy(), x.numpy() / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert same(after.state, variables.state)


@row("4. Through the trainer")
def predict_is_apply_in_evaluation_mode() -> None:
    s = setting()
    expected, _ = kn.layer.apply(s["model"], s["vars"], s["x"], training=False)
    predicted = kn.train.predict(s["trainer"], s["st"], s["x"])
    np.testing.assert_allclose(predicted.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


# --- 5. Optimizers and learning-rate schedules -----------------------------------------------------------------------


@row("5. Schedule is a function")
def a_schedule_is_called_with_a_step_and_gives_a_rate() -> None:
    schedule = kn.optim.schedule.cosine_decay(init_value=1e-3, decay_steps=10000)
    assert schedule(5000) == pytest.approx(5e-4)
    assert isinstance(schedule(1), float)


@row("5. Manual update")
def step_then_apply_updates_is_update() -> None:
    s = setting()
    optimizer = kn.optim.adam(lr=1e-2)
    params, opt_state = s["vars"].params, kn.optim.init(optimizer, s["vars"].params)
    updates, first = kn.optim.step(optimizer, opt_state, params, s["grads"])
    second_params, second = kn.optim.update(optimizer, opt_state, params, s["grads"])
    assert same(kn.optim.apply_updates(params, updates), second_params) and same(first, second)


GRADIENTS = [0.5, -1.0, 2.0]
RATES = [0.1, 0.2, 0.3]


def schedule(step: int) -> float:
    return RATES[step - 1]


@row("5. sgd")
def sgd_with_nesterov_momentum_follows_its_formula() -> None:
    w, t, expected = 1.0, 0.0, []
    for g, lr in zip(GRADIENTS, RATES, strict=True):
        t = 0.9 * t + g
        w -= lr * (g + 0.9 * t)
        expected.append(w)
    assert moved(kn.optim.sgd(lr=schedule, momentum=0.9, nesterov=True), GRADIENTS) == pytest.approx(expected, rel=1e-5)


def adams(weight_decay: float) -> list[float]:
    w, m, v, expected = 1.0, 0.0, 0.0, []
    for i, (g, lr) in enumerate(zip(GRADIENTS, RATES, strict=True), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= lr * (m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8) + weight_decay * w)
        expected.append(w)
    return expected


@row("5. adam")
def adam_follows_its_formula() -> None:
    optimizer = kn.optim.adam(lr=schedule, b1=0.9, b2=0.999, eps=1e-8)
    assert moved(optimizer, GRADIENTS) == pytest.approx(adams(0.0), rel=1e-5)


@row("5. adamw")
def adamw_decays_weights_beside_the_gradient() -> None:
    assert moved(kn.optim.adamw(lr=schedule, weight_decay=0.01), GRADIENTS) == pytest.approx(adams(0.01), rel=1e-5)


@row("5. rmsprop")
def rmsprop_follows_its_formula() -> None:
    w, v, expected = 1.0, 0.0, []
    for g, lr in zip(GRADIENTS, RATES, strict=True):
        v = 0.9 * v + 0.1 * g * g
        w -= lr * g / (np.sqrt(v) + 1e-8)
        expected.append(w)
    optimizer = kn.optim.rmsprop(lr=schedule, decay=0.9, momentum=0.0)
    assert moved(optimizer, GRADIENTS) == pytest.approx(expected, rel=1e-5)


@row("5. adagrad")
def adagrad_follows_its_formula() -> None:
    w, total, expected = 1.0, 0.0, []
    for g, lr in zip(GRADIENTS, RATES, strict=True):
        total += g * g
        w -= lr * g / (np.sqrt(total) + 1e-8)
        expected.append(w)
    assert moved(kn.optim.adagrad(lr=schedule, eps=1e-8), GRADIENTS) == pytest.approx(expected, rel=1e-5)


@row("5. constant")
def constant_is_constant() -> None:
    assert {kn.optim.schedule.constant(1e-3)(step) for step in (1, 10, 10000)} == {1e-3}


@row("5. cosine_decay")
def cosine_decay_follows_half_a_cosine() -> None:
    made = kn.optim.schedule.cosine_decay(init_value=1e-3, decay_steps=10000)
    steps = np.array([1, 2500, 7500, 10000, 20000])
    expected = 1e-3 * 0.5 * (1 + np.cos(np.pi * np.minimum(steps, 10000) / 10000))
    assert [made(int(step)) for step in steps] == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)


@row("5. warmup_cosine")
def warmup_cosine_rises_along_half_a_cosine_and_stays() -> None:
    made = kn.optim.schedule.warmup_cosine(init_value=0.0, peak_value=1e-3, warmup_steps=1000)
    expected = [1e-3 * 0.5 * (1 - np.cos(np.pi * step / 1000)) for step in (1, 250, 500, 1000)] + [1e-3]
    assert [made(step) for step in (1, 250, 500, 1000, 5000)] == pytest.approx(expected, rel=1e-6)


@row("5. warmup_linear")
def warmup_linear_rises_along_a_line_and_stays() -> None:
    made = kn.optim.schedule.warmup_linear(init_value=0.0, peak_value=1e-3, warmup_steps=1000)
    assert [made(step) for step in (1, 250, 1000, 5000)] == pytest.approx([1e-6, 2.5e-4, 1e-3, 1e-3], rel=1e-6)


@row("5. exponential_decay")
def exponential_decay_multiplies_by_the_rate_every_so_many_steps() -> None:
    made = kn.optim.schedule.exponential_decay(init_value=1e-3, decay_rate=0.96, decay_steps=1000)
    expected = [1e-3 * 0.96 ** (step / 1000) for step in (1, 500, 1000, 3000)]
    assert [made(step) for step in (1, 500, 1000, 3000)] == pytest.approx(expected, rel=1e-6)


@row("5. Schedule in the optimizer")
def a_traced_schedule_and_a_function_of_ones_own_give_the_same_steps() -> None:
    traced = kn.optim.schedule.exponential_decay(init_value=0.1, decay_rate=0.5, decay_steps=1)
    ends = []
    for lr in (traced, lambda step: 0.1 * 0.5**step):
        trainer, st = fresh(kn.optim.sgd(lr=lr))
        for _ in range(3):
            _, st = kn.train.step(trainer, st, setting()["x"], loss=setting()["loss"])
        ends.append(arrays(st.vars.params))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", of_sections(1, 5))
def test_row(name: str, tmp_path: Path) -> None:
    run_row(name, tmp_path)


def test_every_row_of_the_guides_table_has_a_test() -> None:
    assert [name.partition(". ")[2] for name in of_sections(1, 1)] == list(table(1))


@pytest.mark.parametrize(("section", "prefix"), [(5, "kn.optim"), (5, "kn.optim.schedule")])
def test_every_function_that_the_snippets_list_has_a_row(section: int, prefix: str) -> None:
    found = functions_shown(section, prefix)
    assert found
    assert all(f"{section}. {name}" in ROWS for name in found)


def test_the_page_of_rows_names_the_functions_that_show_them() -> None:
    expected = {name: ROWS[name].__name__ for name in of_sections(1, 5)}
    assert {name: test for name, test in listed().items() if 1 <= int(name.partition(".")[0]) <= 5} == expected
