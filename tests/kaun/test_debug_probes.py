"""`kn.debug.print` and `kn.debug.check`: values seen from outside of compiled code, wherever they are computed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from promises import mlp, native_calls, started, trainer_of

import kaun as kn
from kaun import nx


def line_of(text: str) -> list[str]:
    """The heads of what was printed: label, type, and where, without the number of the line."""
    heads = [line for line in text.splitlines() if "test_debug_probes.py" in line]
    return [re.sub(r"\.py:\d+", ".py", line) for line in heads]


def test_a_value_is_printed_at_once_outside_of_compiled_code(capsys: pytest.CaptureFixture[str]) -> None:
    x = nx.asarray([1.5, 2.0])
    assert kn.debug.print(x, "x") is x
    out = capsys.readouterr().out
    assert out.endswith("\n[1.5 2. ]\n") and line_of(out) == ["x: float32[2] at test_debug_probes.py"]


def test_a_compiled_function_prints_at_every_call_in_the_order_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    @kn.jit
    def f(x):
        y = kn.debug.print(x * 2, "zebra")
        kn.debug.print(nx.sum(y), "apple")
        return y + 1

    for value in (1.0, 2.0):
        assert f(nx.asarray([value])).tolist() == [2 * value + 1]
        out = capsys.readouterr().out
        assert line_of(out) == [
            "zebra: float32[1] at test_debug_probes.py", f"apple: float32[] at test_debug_probes.py {2 * value}",
        ]  # fmt: skip


def test_gradients_rematerialisation_and_nested_functions_keep_what_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = kn.jit(lambda x: kn.debug.print(nx.tanh(x), "inner"))
    block = kn.remat(lambda w, x: kn.debug.print(inner(x @ w), "block"))

    @kn.jit
    def step(w, x):
        return kn.value_and_grad(lambda w: nx.sum(block(w, x) ** 2))(w)

    w, x = nx.ones((2, 2)), nx.asarray([[0.1, 0.2]])
    value, gradient = step(w, x)
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in line_of(out)] == ["inner", "block"]
    hidden = np.tanh(0.3, dtype=np.float32)
    assert out.count(f"[[{hidden:.7} {hidden:.7}]]") == 2
    expected, wanted = kn.value_and_grad(lambda w: nx.sum(nx.tanh(x @ w) ** 2))(w)
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), wanted.numpy(), rtol=1e-6)


def test_gradients_outside_of_compiled_code_print_too(capsys: pytest.CaptureFixture[str]) -> None:
    kn.grad(lambda x: nx.sum(kn.debug.print(x * 2, "doubled")))(nx.asarray([1.0, 2.0]))
    _, pullback = kn.vjp(lambda x: kn.debug.print(x * 3, "tripled"), nx.asarray([1.0, 2.0]))
    pullback(nx.ones(2))
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in line_of(out)] == ["doubled", "tripled"]
    assert "[2. 4.]" in out and "[3. 6.]" in out


def test_training_prints_at_every_step_and_learns_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = nx.asarray(np.linspace(-1, 1, 160, dtype=np.float32).reshape(8, 20)), nx.asarray([0, 1, 2, 0, 1, 2, 0, 1])
    batches = [(x, y)] * 3

    def seen(output, y):
        kn.debug.print(nx.max(nx.abs(output)), "largest logit")
        kn.debug.check(nx.isfinite(output), "logits are finite")
        return kn.loss.cross_entropy_sparse(output, y)

    trainer = trainer_of(mlp())
    plain = kn.train.fit(trainer, started(trainer), batches, loss=kn.loss.cross_entropy_sparse)
    watched = kn.train.fit(trainer, started(trainer), batches, loss=seen)
    assert capsys.readouterr().out.count("largest logit: float32[]") == 3
    for one, other in zip(kn.ptree.leaves(plain.to_tree()), kn.ptree.leaves(watched.to_tree()), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-7)
    kn.train.step(trainer, watched, x, loss=lambda output: seen(output, y))
    assert capsys.readouterr().out.count("largest logit") == 1


def test_steps_and_functions_compiled_ahead_of_time_print(capsys: pytest.CaptureFixture[str]) -> None:
    def seen(output, y):
        kn.debug.print(nx.max(output), "logit")
        return kn.loss.cross_entropy_sparse(output, y)

    trainer = trainer_of(mlp())
    step = kn.train.compile(trainer, x=kn.spec((4, 20)), y=kn.spec(4, kn.int32), loss=seen)
    state = started(trainer)
    for donate in (False, True):
        _, state = step(state, nx.ones((4, 20)), nx.zeros(4, dtype=kn.int32), donate=donate)
        assert capsys.readouterr().out.count("logit: float32[]") == 1
    double = kn.compile(lambda x: kn.debug.print(x * 2, "double"), kn.spec(2))
    assert double(nx.ones(2)).tolist() == [2, 2]
    assert capsys.readouterr().out.count("double: float32[2]") == 1
    # As a part of another function it prints as a part of that.
    assert kn.jit(lambda x: double(x) + 1)(nx.ones(2)).tolist() == [3, 3]
    assert capsys.readouterr().out.count("double: float32[2]") == 1
    # What is kept and exported is the function without what it shows.
    assert [len(function.outputs) for function in double.artifact().functions] == [1]
    assert len(double.artifact().function("call").program.results) == 1


def test_a_condition_that_does_not_hold_ends_the_call_with_message_line_and_layer() -> None:
    @kn.jit
    def f(x):
        kn.debug.check(x > 0, "x is positive")
        return x + 1

    assert f(nx.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(kn.debug.CheckError, match=r"x is positive \(at test_debug_probes\.py:\d+: 1 of 3 do not hold, "
                       r"first at \[1\]\)"):  # fmt: skip
        f(nx.asarray([1.0, -1.0, 2.0]))
    assert f(nx.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(kn.debug.CheckError, match="none at all"):
        kn.debug.check(nx.asarray(False), "none at all")
    with pytest.raises(TypeError, match=r"debug\.check: got a condition of float32, expected bools"):
        kn.debug.check(nx.ones(3), "ones")


def test_everything_is_printed_before_a_check_ends_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    @kn.jit
    def f(x):
        kn.debug.check(x > 0, "positive")
        kn.debug.print(x, "after")
        return x

    with pytest.raises(kn.debug.CheckError):
        f(nx.asarray([-1.0]))
    assert "after: float32[1]" in capsys.readouterr().out


def test_a_state_that_was_given_up_is_there_again_after_a_check_that_failed() -> None:
    def loss(output):
        kn.debug.check(output < 0, "negative")
        return nx.mean(output)

    trainer = trainer_of(kn.layer.linear(in_features=2, out_features=1))
    step = kn.train.compile(trainer, x=kn.spec((3, 2)), loss=loss)
    state = started(trainer)
    with pytest.raises(kn.debug.CheckError):
        step(state, nx.zeros((3, 2)), donate=True)
    assert int(state.step) == 1 and np.isfinite(kn.ptree.leaves(state.vars.params)[0].numpy()).all()


def test_a_function_that_shows_nothing_is_the_same_program_and_one_that_does_makes_one_native_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plain(x):
        return nx.tanh(x) * 2

    def shown(x):
        return kn.debug.print(nx.tanh(x), "y") * 2

    graphs = [kn.jit(function).compiled.specialise(nx.ones(4)).graph for function in (plain, shown)]
    assert [len(graph.outputs) for graph in graphs] == [1, 2]
    assert len(graphs[0].nodes) == len(graphs[1].nodes)
    x = nx.ones(4)
    nx.realize(x)
    with native_calls(monkeypatch) as calls:
        kn.jit(shown)(x)
    assert calls.count == 1
