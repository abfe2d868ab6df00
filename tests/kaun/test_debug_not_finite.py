"""`kn.debug.nan` finds the op that made NaN or infinity, with its inputs' ranges, its layer and the user's line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaun.tools import command
from promises import started, trainer_of

import kaun as kn
from kaun import nx
from kaun.debug import reproducer


def logarithm(params, state, x, *, dtype, training, ctx):
    return nx.log(x), state  # the line that is looked for


LINE = inspect.getsourcelines(logarithm)[1] + 1


def twelve(ninth: kn.layer.Layer) -> kn.layer.Layer:
    def one(number: int) -> kn.layer.Layer:
        return ninth if number == 8 else kn.layer.linear(in_features=6, out_features=6)

    return kn.layer.sequential([one(number) for number in range(12)])


def test_a_nan_in_the_ninth_of_twelve_layers_is_located_to_its_layer_and_line() -> None:
    broken = kn.layer.Layer(init=kn.layer.relu().init, apply=logarithm)
    trainer = trainer_of(twelve(broken))
    state = started(trainer)
    found = kn.debug.nan(kn.train.step, trainer, state, nx.ones((3, 6)), loss=lambda output: nx.mean(output))
    assert found
    assert (found.what, found.node.op.name, found.layer) == ("NaN", "log", "8")
    assert (Path(found.node.source.file).name, found.node.source.line) == (Path(__file__).name, LINE)
    (read,) = found.ranges
    assert read.low < 0 and read.not_finite == 0 and "`add` float32[3, 6] in layer `7`" in read.name
    text = str(found)
    assert "the first op that made NaN is `log` float32[3, 6] in layer `8`" in text and f"from {read.low:.6g}" in text


def test_the_line_is_that_of_this_function_even_if_an_equal_one_was_compiled_before() -> None:
    kn.jit(lambda x: nx.sqrt(x - 3))(nx.ones(2))
    again = kn.jit(lambda x: nx.sqrt(x - 3))
    found = kn.debug.nan(again, nx.ones(2))
    assert found and found.node.source.line == inspect.currentframe().f_lineno - 2


def test_overflow_is_infinity_and_what_follows_from_it_is_not_blamed() -> None:
    found = kn.debug.nan(kn.jit(lambda x: nx.sin(nx.exp(x)) * 2), nx.asarray([1.0, 100.0]))
    assert found
    assert (found.what, found.node.op.name, found.count, found.index) == ("infinity", "exp", 1, (1,))


def test_infinity_in_a_mask_is_nobodys_fault() -> None:
    def masked(x):
        scores = nx.where(x > 0, x, -np.inf)
        return nx.softmax(scores, axis=-1)

    assert not kn.debug.nan(kn.jit(masked), nx.asarray([[1.0, -1.0]]))
    found = kn.debug.nan(kn.jit(masked), nx.asarray([[-2.0, -1.0]]))
    assert found and (found.what, found.node.op.name) == ("NaN", "sub")


def test_what_no_output_shows_is_not_looked_for() -> None:
    def hidden(x):
        return nx.where(x > 0, nx.log(x), 0.0)

    assert not kn.debug.nan(kn.jit(hidden), nx.asarray([1.0, -1.0]))


def test_an_input_that_held_it_is_named_by_its_path() -> None:
    params = {"weight": nx.asarray([1.0, float("nan")]), "bias": nx.ones(2)}
    found = kn.debug.nan(kn.jit(lambda p: p["weight"] + nx.log(p["bias"] - 1)), params)
    assert found
    assert str(found).startswith("NaN was there already: the input `0.weight` held it; 1 of 2 elements are NaN")


def test_inputs_of_a_training_step_are_called_as_in_the_state_and_the_arguments() -> None:
    trainer = trainer_of(kn.layer.linear(in_features=2, out_features=1))
    state, y = started(trainer), nx.ones((3, 1))
    broken = nx.asarray(np.full((3, 2), np.nan, np.float32))
    found = kn.debug.nan(kn.train.step, trainer, state, broken, loss=lambda output: kn.loss.mse(output, y))
    assert "the input `x` held it" in str(found)
    found = kn.debug.nan(kn.train.step, trainer, state, nx.ones((3, 2)), loss=lambda o: kn.loss.mse(o, broken[:, :1]))
    assert "the input `loss.0` held it" in str(found)
    weight = kn.ptree.map(lambda leaf: leaf * np.nan, state.vars.params)
    state = kn.train.make_state(trainer, state.vars.with_params(weight))
    found = kn.debug.nan(kn.train.step, trainer, state, nx.ones((3, 2)), loss=lambda output: kn.loss.mse(output, y))
    assert "the input `params.weight` held it" in str(found) or "the input `params.bias` held it" in str(found)


def test_where_all_is_finite_that_is_what_is_printed() -> None:
    found = kn.debug.nan(kn.jit(lambda x: x + 1), nx.ones(3))
    assert not found and str(found) == "nothing is NaN or infinite: 1 program looked at"
    assert not kn.debug.nan(lambda: None) and "no program ran" in repr(kn.debug.nan(lambda: None))


@pytest.mark.parametrize("name", ["nan", "compare", "bisect"])
def test_a_result_in_place_of_a_function_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^debug\.{name}: got tuple, expected a function and its arguments"):
        getattr(kn.debug, name)((nx.ones(2), nx.ones(3)))


def test_gradients_are_looked_at_too() -> None:
    found = kn.debug.nan(kn.jit(kn.value_and_grad(lambda x: nx.sum(nx.sqrt(x)))), nx.asarray([0.0, 1.0]))
    assert found
    assert (found.what, found.node.op.name, found.node.source.phase) == ("infinity", "div", "backward")


def test_what_was_found_can_be_saved_replayed_and_made_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kn.debug.nan(kn.jit(lambda x, y: nx.log(nx.tanh(x * y) - 2) + 1), nx.ones((8, 3)), nx.ones((8, 3)))
    assert found
    path = found.save(tmp_path / "nan")
    assert command.main(["run", str(path)]) == 0
    assert "nan" in capsys.readouterr().out
    small = tmp_path / "small.npz"
    assert command.main(["reduce", str(path), "--output", str(small)]) == 0
    kept = reproducer.load(small)
    assert [node.op.name for node in kept.graph.nodes] == ["input", "log"]
    assert kept.graph.inputs[0].size == 1 and kept.inputs[0].max() < 0


MASK = np.where(np.tril(np.ones((4, 4))) > 0, 0, -np.inf).astype(np.float32)


def test_a_mask_that_is_given_is_not_blamed_for_the_nan_beside_it() -> None:
    x = nx.asarray(np.array([[1, 2, 3, 4]] * 3 + [[1, -2, 3, 4]], np.float32))

    def attend(x: Any, mask: Any) -> Any:
        return nx.softmax(nx.log(x) + mask, axis=-1), nx.log(x) + mask

    found = kn.debug.nan(attend, x, nx.asarray(MASK))
    assert (found.what, found.node.op.name, found.index, found.count) == ("NaN", "log", (3, 1), 1)


def test_infinity_beside_one_that_is_meant_is_found() -> None:
    found = kn.debug.nan(lambda x: nx.exp(x) + MASK[3], nx.asarray([1.0, 100.0, 1.0, 1.0]))
    assert (found.what, found.node.op.name, found.index) == ("infinity", "exp", (1,))


def test_where_nan_was_made_of_an_inputs_infinity_both_are_told() -> None:
    found = kn.debug.nan(lambda x, mask: nx.softmax(x + mask), nx.ones(4), nx.full((4,), -np.inf))
    assert (found.what, found.name) == ("infinity", "input 1")
    assert found.became is not None and found.became.op.name == "sub"
    assert "NaN was made of it by `sub` float32[4] at test_debug_not_finite.py" in str(found)


@pytest.mark.parametrize(
    ("function", "index", "count"),
    [
        (lambda x: nx.sum(nx.flip(nx.transpose(nx.log(x)), 0)[1:]), (1, 1), 1),
        (lambda x: nx.take(nx.log(x), nx.asarray([1]), axis=0), (1, 1), 1),
        (lambda x: nx.max(nx.pad(nx.log(x), ((1, 1), (0, 0))), axis=1)[2:], (1, 1), 2),
        (lambda x: (nx.log(x) @ nx.ones((3, 2)))[1:2], (1, 1), 1),
        (lambda x: nx.concatenate([x, nx.log(x)])[4:5], (1, 1), 1),
        (lambda x: kn.fn.conv1d(nx.log(x)[None], nx.ones((1, 3, 1)))[0, :, 2:], (2, 2), 1),
        (lambda x: nx.where(x > -6, nx.log(x), 0.0), (1, 1), 1),
    ],
)  # fmt: skip
def test_only_elements_that_the_outputs_are_made_of_are_blamed(function: Any, index: Any, count: int) -> None:
    x = nx.asarray(np.array([[1, 2, 3], [4, -5, 6], [7, 8, -9]], np.float32))
    found = kn.debug.nan(function, x)
    assert (found.what, found.node.op.name, found.index, found.count) == ("NaN", "log", index, count)
    assert found.node.size == 9 and not kn.debug.nan(lambda x: function(nx.abs(x)), x)


def test_a_result_that_is_infinite_because_the_program_says_so_is_told_and_blamed_on_nobody() -> None:
    scores, kept = nx.asarray([[1.0, 2.0, 3.0]]), nx.asarray([[True, False, True]])
    found = kn.debug.nan(
        lambda x: kn.loss.cross_entropy_sparse(nx.where(kept, x, -np.inf), nx.asarray([1])), scores
    )
    assert not found
    assert str(found).startswith("nothing made NaN or infinity, but infinity that is written in the program")
    assert "float32[] at test_debug_not_finite.py" in str(found)
