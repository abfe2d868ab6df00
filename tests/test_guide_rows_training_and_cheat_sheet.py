"""A test for every row of the guide's sections 6 to 10: losses, training, data, checkpoints, and the cheat sheet.

The cells of the cheat sheet are run as they are written.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from guide_rows import (
    ROWS,
    arrays,
    cell,
    fresh,
    functions_shown,
    listed,
    log_softmax,
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

# --- 6. Loss functions -----------------------------------------------------------------------------------------------


def check_loss(function: Callable[..., nx.Tensor], targets: Any, expected: Callable[[np.ndarray], Any]) -> None:
    """A scalar with the expected value, whose gradient agrees with central differences."""
    x = setting()["logits"][:6]
    value = function(x, targets)
    assert value.shape == () and float(value) == pytest.approx(float(expected(x.numpy().astype(np.float64))), rel=1e-5)
    assert kn.gradcheck(lambda z: function(z, nx.asarray(targets)), x)


def one_hot() -> np.ndarray:
    return np.eye(10, dtype=np.float32)[setting()["y"].numpy()[:6]]


@row("6. cross_entropy")
def cross_entropy_takes_rows_of_probabilities() -> None:
    check_loss(kn.loss.cross_entropy, one_hot(), lambda x: -(one_hot() * log_softmax(x)).sum(-1).mean())


@row("6. cross_entropy_sparse")
def cross_entropy_sparse_takes_integers() -> None:
    indices = setting()["y"].numpy()[:6]
    check_loss(kn.loss.cross_entropy_sparse, indices, lambda x: -log_softmax(x)[np.arange(6), indices].mean())


@row("6. binary_cross_entropy")
def binary_cross_entropy_takes_raw_logits() -> None:
    def expected(x: np.ndarray) -> Any:
        p = 1 / (1 + np.exp(-x))
        return -(one_hot() * np.log(p) + (1 - one_hot()) * np.log(1 - p)).mean()

    check_loss(kn.loss.binary_cross_entropy, one_hot(), expected)


@row("6. mse")
def mse_is_the_mean_square() -> None:
    check_loss(kn.loss.mse, one_hot(), lambda x: ((x - one_hot()) ** 2).mean())


@row("6. mae")
def mae_is_the_mean_magnitude() -> None:
    check_loss(kn.loss.mae, one_hot(), lambda x: np.abs(x - one_hot()).mean())


@row("6. Losses are plain functions")
def losses_are_functions_and_shapes_must_match() -> None:
    for name in ("cross_entropy", "cross_entropy_sparse", "binary_cross_entropy", "mse", "mae", "huber"):
        assert isinstance(getattr(kn.loss, name), types.FunctionType)
    with pytest.raises(ValueError, match=r"loss.mse: .*\[4, 1\].*\[4\]"):
        kn.loss.mse(nx.ones((4, 1)), nx.ones(4))


# --- 7. Training loops -----------------------------------------------------------------------------------------------


@row("7. fit with a report")
def fit_reports_every_step_with_its_loss_and_state() -> None:
    s, seen = setting(), []
    data = kn.data.repeat(3, (s["x"], s["y"]))
    st = kn.train.fit(
        s["trainer"], s["st"], data, loss=kn.loss.cross_entropy_sparse,
        report=lambda step, loss, state: seen.append((step, loss, int(state.step))),
    )  # fmt: skip
    assert [(step, made) for step, _, made in seen] == [(1, 1), (2, 2), (3, 3)] and int(st.step) == 3
    assert all(isinstance(loss, float) for _, loss, _ in seen)


@row("7. Elements with their loss")
def pairs_of_input_and_loss_train_like_pairs_of_input_and_target() -> None:
    s = setting()
    with_losses = kn.data.repeat(3, (s["x"], lambda logits: kn.loss.cross_entropy_sparse(logits, s["y"])))
    first = kn.train.fit(s["trainer"], s["st"], with_losses)
    second = kn.train.fit(
        s["trainer"], s["st"], kn.data.repeat(3, (s["x"], s["y"])), loss=kn.loss.cross_entropy_sparse
    )
    for a, b in zip(arrays(first.vars.params), arrays(second.vars.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@row("7. Manual loop with step")
def a_manual_loop_lowers_the_loss_and_traces_once() -> None:
    s, losses = setting(), []
    trainer, st = fresh(kn.optim.adam(lr=1e-2))
    for _ in range(60):
        y = s["y"] + 0
        loss, st = kn.train.step(trainer, st, s["x"], loss=lambda z, y=y: kn.loss.cross_entropy_sparse(z, y))
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3 and len(trainer._compiled) == 1


@row("7. Early stopping")
def early_stop_ends_fit_with_the_state_reached() -> None:
    s = setting()

    def report(step: int, loss: float, state: kn.train.State) -> None:
        if step == 2:
            raise kn.train.EarlyStop

    data = kn.data.repeat(9, (s["x"], s["y"]))
    st = kn.train.fit(s["trainer"], s["st"], data, loss=kn.loss.cross_entropy_sparse, report=report)
    assert int(st.step) == 2


@row("7. State is threaded")
def a_step_leaves_the_old_state_as_it_was() -> None:
    s = setting()
    before = [array.copy() for array in arrays(s["st"].to_tree())]
    _, after = kn.train.step(s["trainer"], s["st"], s["x"], loss=s["loss"])
    assert all((a == b).all() for a, b in zip(arrays(s["st"].to_tree()), before, strict=True))
    assert not same(after.vars.params, s["st"].vars.params)


# --- 8. Data loading -------------------------------------------------------------------------------------------------


@row("8. prepare")
def prepare_slices_shuffles_and_batches() -> None:
    x = np.arange(10.0, dtype=np.float32)
    with nx.rng.run(seed=0):
        data = kn.data.prepare((x, 2 * x), batch_size=4, shuffle=True)
    batches = [(a.numpy(), b.numpy()) for a, b in data]
    drawn = np.concatenate([a for a, _ in batches])
    assert len(batches) == 2 and len(set(drawn)) == 8 and list(drawn) != sorted(drawn)
    assert all((b == 2 * a).all() for a, b in batches)


@row("8. of_array")
def a_list_is_shuffled_and_batched() -> None:
    with nx.rng.run(seed=0):
        batches = kn.data.of_array([float(i) for i in range(70)]).shuffle().batch(32).to_array()
    assert [batch.shape for batch in batches] == [(32,), (32,), (6,)]
    assert sorted(number for batch in batches for number in batch.tolist()) == [float(i) for i in range(70)]


@row("8. of_fn")
def a_function_of_the_index_makes_elements() -> None:
    assert kn.data.of_fn(4, lambda i: i * i).to_array() == [0, 1, 4, 9]


@row("8. repeat")
def repeat_gives_one_example_again_and_again() -> None:
    example = (1, "loss")
    assert kn.data.repeat(3, example).to_array() == [example] * 3


@row("8. Consumers")
def pipelines_are_consumed_by_iter_fold_and_to_array() -> None:
    seen: list[int] = []
    kn.data.of_fn(4, int).iter(seen.append)
    assert seen == kn.data.of_fn(4, int).to_array() == [0, 1, 2, 3]
    assert kn.data.of_fn(4, int).fold(lambda total, i: total + i, 100) == 106


@row("8. drop_last")
def a_smaller_last_batch_is_dropped_unless_kept() -> None:
    x = np.arange(10)
    assert kn.data.prepare((x,), batch_size=4).length() == 2
    assert kn.data.prepare((x,), batch_size=4, drop_last=False).length() == 3


@row("8. Single pass")
def a_pipeline_is_empty_until_reset_and_then_in_a_new_order() -> None:
    with nx.rng.run(seed=0):
        data = kn.data.of_array(range(50)).shuffle()
    first = data.to_array()
    assert data.to_array() == []
    data.reset()
    second = data.to_array()
    assert sorted(first) == sorted(second) and first != second


@row("8. map attaches the loss")
def mapping_pairs_to_losses_makes_what_fit_takes() -> None:
    s = setting()
    data = kn.data.prepare((s["x"], s["y"]), batch_size=32)
    data = data.map(lambda pair: (pair[0], lambda logits: kn.loss.cross_entropy_sparse(logits, pair[1])))
    assert int(kn.train.fit(s["trainer"], s["st"], data).step) == 4


# --- 9. Checkpointing ------------------------------------------------------------------------------------------------


@row("9. Save and load parameters")
def loaded_parameters_are_those_saved() -> None:
    trainer, st = fresh(kn.optim.sgd(lr=0.1))
    kn.checkpoint.save("model.safetensors", st.vars.params)
    with nx.rng.run(seed=5):
        other = kn.layer.init(trainer.model)
    assert not same(other.params, st.vars.params)
    assert same(kn.checkpoint.load("model.safetensors", like=other.params), st.vars.params)


@row("9. Save parameters and state")
def layer_state_is_saved_like_parameters() -> None:
    layer, variables = norm_and_dropout()
    with nx.rng.run(seed=0):
        _, variables = kn.layer.apply(layer, variables, setting()["x"], training=True)
    kn.checkpoint.save("state.safetensors", variables.state)
    assert same(kn.checkpoint.load("state.safetensors", like=kn.layer.init(layer).state), variables.state)


@row("9. Resume from weights")
def make_state_starts_from_given_variables() -> None:
    s = setting()
    st = kn.train.make_state(s["trainer"], s["vars"])
    assert same(st.vars.params, s["vars"].params) and int(st.step) == 0
    assert int(kn.train.step(s["trainer"], st, s["x"], loss=s["loss"])[1].step) == 1


@row("9. Template")
def extra_keys_are_ignored_and_dtypes_are_those_of_like() -> None:
    kn.checkpoint.save("f.safetensors", {"a": nx.asarray([1.5, 2.5]), "b": nx.ones(3)})
    loaded: Any = kn.checkpoint.load("f.safetensors", like={"a": nx.zeros(2, dtype=nx.float64)})
    assert list(loaded) == ["a"] and loaded["a"].dtype is nx.float64 and loaded["a"].tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="`c`"):
        kn.checkpoint.load("f.safetensors", like={"c": nx.zeros(2)})


@row("9. Pretrained weights")
def weights_of_a_model_come_out_of_the_hubs_cache() -> None:
    pytest.importorskip("huggingface_hub")
    revision = "0" * 40
    folder = Path("cache") / "models--maker--model"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    safetensors.numpy.save_file({"h.0.weight": np.ones((2, 3), np.float32)}, snapshot / "model.safetensors")
    weights = kn.hf.load_weights("maker/model", cache_dir=Path("cache").absolute(), offline=True)
    assert weights["h"][0]["weight"].shape == (2, 3)


# --- 10. Quick cheat sheet -------------------------------------------------------------------------------------------


@row("10. Define a model")
def the_cell_defines_a_model() -> None:
    model = cell("Define a model")
    with nx.rng.run(seed=0):
        y, _ = kn.layer.apply(model, kn.layer.init(model), nx.ones((2, 784)), training=False)
    assert y.shape == (2, 10) and (y.numpy() >= 0).all()


@row("10. Initialize parameters")
def the_cell_initializes_parameters() -> None:
    made = cell("Initialize parameters")
    assert made.dtype is kn.float32 and ptree.structure(made.params) is ptree.structure(setting()["vars"].params)


@row("10. Forward pass (training)")
def the_cell_drops_when_training() -> None:
    first, _ = cell("Forward pass (training)")
    assert not np.allclose(first.numpy(), setting()["logits"].numpy())


@row("10. Forward pass (eval)")
def the_cell_predicts() -> None:
    s = setting()
    expected, _ = kn.layer.apply(s["model"], s["vars"], s["x"], training=False)
    np.testing.assert_allclose(cell("Forward pass (eval)").numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@row("10. Count parameters")
def the_cell_counts_parameters() -> None:
    assert cell("Count parameters") == sum(array.size for array in arrays(setting()["vars"].params))


@row("10. Create optimizer")
def the_cell_makes_adam() -> None:
    # The first step of Adam is the rate, whatever the gradient.
    assert moved(cell("Create optimizer"), [123.0]) == pytest.approx([1 - 1e-3], rel=1e-6)


@row("10. Cosine decay schedule")
def the_cell_decays_to_zero() -> None:
    made = cell("Cosine decay schedule")
    assert [made(50), made(100)] == pytest.approx([5e-4, 0.0], abs=1e-9)


@row("10. Compute loss")
def the_cell_computes_cross_entropy() -> None:
    s = setting()
    expected = -log_softmax(s["logits"].numpy())[np.arange(128), s["y"].numpy()].mean()
    assert cell("Compute loss").item() == pytest.approx(expected, rel=1e-5)


@row("10. Training step")
def the_cell_makes_a_step() -> None:
    loss, st = cell("Training step")
    assert loss.shape == () and int(st.step) == 1 and not same(st.vars.params, setting()["st"].vars.params)


@row("10. Full training loop")
def the_cell_trains_on_all_elements() -> None:
    s = setting()
    assert int(cell("Full training loop", data=kn.data.repeat(3, (s["x"], s["loss"]))).step) == 3


@row("10. Early stopping")
def the_cell_ends_training() -> None:
    code, where = re.findall(r"`([^`]*)`", table(10)["Early stopping"])
    assert where == "report"
    s = setting()
    data = kn.data.repeat(9, (s["x"], s["loss"]))
    st = kn.train.fit(s["trainer"], s["st"], data, report=lambda **_: exec(code, {"kn": kn}))
    assert int(st.step) == 1


@row("10. Gradient clipping")
def the_cell_clips_to_the_norm_and_keeps_the_direction() -> None:
    clipped = np.concatenate([array.ravel() for array in arrays(cell("Gradient clipping"))])
    given = np.concatenate([array.ravel() for array in arrays(setting()["grads"])])
    np.testing.assert_allclose(clipped, given / np.linalg.norm(given), rtol=1e-5)


@row("10. Data loading")
def the_cell_makes_shuffled_batches() -> None:
    batches = cell("Data loading").to_array()
    assert [(x.shape, y.shape) for x, y in batches] == [((64, 8), (64,))] * 2
    assert not (batches[0][0].numpy() == setting()["x"].numpy()[:64]).all()


@row("10. Save checkpoint")
def the_cell_saves_parameters() -> None:
    cell("Save checkpoint", path="saved.safetensors")
    assert sorted(safetensors.numpy.load_file("saved.safetensors")) == ["0.bias", "0.weight", "3.bias", "3.weight"]


@row("10. Load checkpoint")
def the_cell_loads_what_was_saved() -> None:
    changed = ptree.map(lambda p: p + 1.0, setting()["vars"].params)
    kn.checkpoint.save("saved.safetensors", changed)
    assert same(cell("Load checkpoint", path="saved.safetensors"), changed)


@row("10. Compose heterogeneous layers")
def the_cell_composes_an_embedding_and_a_dense_layer() -> None:
    model = cell("Compose heterogeneous layers")
    with nx.rng.run(seed=0):
        y, _ = kn.layer.apply(model, kn.layer.init(model), nx.asarray([1, 2, 3]), training=False)
    assert y.shape == (3, 2)


@row("10. Dropout")
def the_cell_drops_a_tenth_and_scales_the_rest() -> None:
    layer = cell("Dropout")
    with nx.rng.run(seed=0):
        y, _ = kn.layer.apply(layer, kn.layer.init(layer), nx.ones(20000), training=True)
    assert (y.numpy() == 0).mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(y.numpy()[y.numpy() != 0], 1 / 0.9, rtol=1e-6)


@row("10. Batch normalization")
def the_cell_normalizes_channels() -> None:
    layer = cell("Batch normalization")
    with nx.rng.run(seed=0):
        x = 5.0 + 3.0 * nx.rng.normal((4, 32, 5, 5))
    y, _ = kn.layer.apply(layer, kn.layer.init(layer), x, training=True)
    np.testing.assert_allclose(y.numpy().mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.numpy().std((0, 2, 3)), 1, atol=1e-3)


@row("10. Layer normalization")
def the_cell_normalizes_rows() -> None:
    layer = cell("Layer normalization")
    with nx.rng.run(seed=0):
        y, _ = kn.layer.apply(layer, kn.layer.init(layer), 5.0 + nx.rng.normal((4, 128)), training=True)
    np.testing.assert_allclose(y.numpy().mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.numpy().std(-1), 1, atol=1e-3)


@row("10. Set RNG seed")
def the_cell_fixes_what_is_drawn() -> None:
    (code,) = re.findall(r"`with ([^`]*): \.\.\.`", table(10)["Set RNG seed"])
    drawn = []
    for _ in range(2):
        with eval(code, {"nx": nx}):
            drawn.append(nx.rng.uniform((4,)).tolist())
    assert drawn[0] == drawn[1]


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", of_sections(6, 10))
def test_row(name: str, tmp_path: Path) -> None:
    run_row(name, tmp_path)


def test_every_row_of_the_guides_table_has_a_test() -> None:
    assert [name.partition(". ")[2] for name in of_sections(10, 10)] == list(table(10))


@pytest.mark.parametrize(("section", "prefix"), [(6, "kn.loss")])
def test_every_function_that_the_snippets_list_has_a_row(section: int, prefix: str) -> None:
    found = functions_shown(section, prefix)
    assert found
    assert all(f"{section}. {name}" in ROWS for name in found)


def test_the_page_of_rows_names_the_functions_that_show_them() -> None:
    expected = {name: ROWS[name].__name__ for name in of_sections(6, 10)}
    assert {name: test for name, test in listed().items() if 6 <= int(name.partition(".")[0]) <= 10} == expected
