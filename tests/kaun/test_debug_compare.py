"""`kn.debug.compare` and `bisect`, `kaun check`, `bisect` and `reduce`: right programs pass, wrong ones are named."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_strategies import graph_from_seed
from kaun.compiler import passes
from kaun.compiler.codegen.arithmetic import Arithmetic
from kaun.compiler.ir import Op, dtypes, ops
from kaun.tools import command, reduce
from promises import cnn, examples, mlp, started, trainer_of
from schedule_examples import MODELS

import kaun as kn
from kaun import nx
from kaun.debug import native, reproducer
from kaun.debug.gradient_rules import find_wrong_gradient
from kaun.debug.rounding import expect
from kaun.debug.search import find_fault
from kaun.debug.shrinking import shrink
from kaun.ownership import Row


@contextmanager
def meaning(op: Op, function: Callable[..., Any]) -> Iterator[None]:
    """The interpreter takes `op` for something else: compiled code is then as wrong as it would be otherwise."""
    before = op.meaning
    object.__setattr__(op, "meaning", function)
    try:
        yield
    finally:
        object.__setattr__(op, "meaning", before)


def wrong_tanh(x: Any) -> Any:
    return np.where(x > 0.5, np.tanh(x) * np.float32(1.001), np.tanh(x)).astype(x.dtype)


@pytest.mark.parametrize("fifty", range(3))
def test_nothing_is_found_in_random_graphs(fifty: int) -> None:
    for seed in range(50 * fifty, 50 * fifty + 50):
        example = graph_from_seed(seed)
        assert find_fault(example.graph, example.arguments) is None, seed
        assert find_wrong_gradient(example.graph, example.arguments) is None, seed


@pytest.mark.slow
def test_nothing_is_found_in_many_random_graphs() -> None:
    for seed in range(150, 2000):
        example = graph_from_seed(seed)
        assert find_fault(example.graph, example.arguments) is None, seed
        assert find_wrong_gradient(example.graph, example.arguments) is None, seed


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_nothing_is_found_in_training_steps(model: Any) -> None:
    traced = model()
    assert find_fault(traced.graph, traced.arguments) is None
    assert find_wrong_gradient(native.host_compilation(traced.graph).traced, traced.arguments) is None


@pytest.mark.parametrize("dtype", [kn.float32, kn.float64, kn.bfloat16, kn.float16], ids=str)
def test_training_steps_of_every_float_agree(dtype: dtypes.DType) -> None:
    trainer = trainer_of(mlp())
    state = started(trainer, dtype=dtype)
    x, y = examples(16, (20,), 3)
    step = kn.debug.bisect(kn.train.step, trainer, state, x, loss=lambda o: kn.loss.cross_entropy_sparse(o, y))
    assert step and step.programs >= 1 and step.nodes > 50, step


def test_a_convolutional_step_a_whole_fit_and_prediction_agree() -> None:
    trainer = trainer_of(cnn(channels=(2, 3, 4)))
    x, y = examples(4, (1, 8, 8), 10)

    def run() -> Any:
        state = kn.train.fit(trainer, started(trainer), [(x, y)] * 2, loss=kn.loss.cross_entropy_sparse)
        return kn.train.predict(trainer, state, x)

    found = kn.debug.compare(run)
    assert found and found.programs >= 3, found
    assert repr(found).startswith(f"<agreement: {found.programs} programs of ")


def test_what_is_compiled_ahead_of_time_is_compared_on_random_numbers() -> None:
    compiled = kn.compile(lambda x, i: nx.take(nx.tanh(x), i, axis=0), kn.spec((5, 3)), kn.spec(4, kn.int32))
    assert kn.debug.compare(compiled)
    step = kn.train.compile(trainer_of(mlp()), x=kn.spec((4, 20)), y=kn.spec(4, kn.int32),
                            loss=kn.loss.cross_entropy_sparse)  # fmt: skip
    found = kn.debug.bisect(step)
    assert found and found.programs == len(step.functions)


def test_what_a_call_gives_is_compared_too_whichever_program_it_ran() -> None:
    double, triple = kn.jit(lambda x: x * 2), kn.jit(lambda x: x * 3)
    x = nx.asarray([1.0, 2.0])
    assert kn.debug.compare(double, x) and kn.debug.compare(triple, x)
    # As if a cache had taken one for the other.
    (other,) = double.compiled._specialisations.values()
    ((structure, special),) = triple.compiled._specialisations.items()
    triple.compiled._specialisations[structure] = special._replace(compiled=other.compiled)
    found = kn.debug.compare(triple, x)
    assert found.fault is not None and (found.fault.stage, found.fault.op) == ("run", "mul")
    assert "compiled anew the graph is right" in str(found.fault)


@pytest.mark.parametrize("ahead", [False, True])
def test_steps_that_write_over_their_state_are_compared(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(mlp())
    x, y = examples(8, (20,), 10)
    specs = {"x": kn.spec(x.shape), "y": kn.spec(y.shape, y.dtype)}
    step = kn.train.compile(trainer, **specs, loss=kn.loss.cross_entropy_sparse)

    def run() -> Any:
        if not ahead:
            return kn.train.fit(trainer, started(trainer), [(x, y)] * 3, loss=kn.loss.cross_entropy_sparse).vars.params
        state = step.init(vars=started(trainer).vars)
        for _ in range(3):
            _, state = step(state, x, y, donate=True)
        return state.vars.params

    found = kn.debug.compare(run)
    assert found, found
    monkeypatch.setattr(Row, "run", _forgetful(Row.run))
    found = kn.debug.compare(run)
    assert found.fault is not None and found.fault.stage == "run"


def _forgetful(run: Callable[..., Any]) -> Callable[..., Any]:
    """A `Row.run` after whose third run the first numbers are those after the first run."""
    before: list[Any] = []

    def wrong(self: Any, compiled: Any, others: Any, form: Any, runner: Any = None) -> Any:
        result = run(self, compiled, others, form, runner)
        for storage in self.current()[0][:1]:
            before.append(storage.array.copy())
            if len(before) == 3:
                storage.view(storage.dtype.numpy, storage.shape)[...] = before[0]
        return result

    return wrong


def test_where_nothing_ran_nothing_is_said_to_agree() -> None:
    assert repr(kn.debug.compare(lambda: None)) == "<no program ran, so nothing was compared>"


def test_a_wrong_kernel_is_found_behind_right_ones_and_named_with_layer_and_line() -> None:
    model = kn.layer.sequential([
        kn.layer.linear(in_features=6, out_features=6), kn.layer.relu(),
        kn.layer.linear(in_features=6, out_features=6), kn.layer.tanh(),
    ])  # fmt: skip
    with nx.rng.run(seed=0):
        variables = kn.layer.init(model)
    forward = kn.jit(lambda p, x: kn.layer.apply(model, variables.with_params(p), x, training=False)[0])
    x = nx.asarray(np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32))
    with meaning(ops.tanh, wrong_tanh):
        found = kn.debug.compare(forward, variables.params, x)
    assert not found and found.fault is not None
    assert (found.fault.stage, found.fault.op) == ("llvm", "tanh")
    assert found.fault.node is not None and found.fault.node.source.path == "3"
    difference = found.fault.difference
    assert difference is not None and 0 < difference.wrong < difference.size == 32 * 6
    text = repr(found)
    assert "the first node that disagrees is `tanh` float32[32, 6] in layer `3` at test_debug_compare.py:" in text
    assert f"{difference.wrong} of 192 elements are off" in text


def test_what_cannot_be_compiled_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any) -> Any:
        raise KeyError("a bug in a pass")

    x = nx.asarray(np.ones(31, np.float32))
    monkeypatch.setitem(passes.PASSES, "join_products", broken)
    found = kn.debug.compare(kn.jit(lambda x: x * 7.25 - 3), x)
    assert found.fault is not None and (found.fault.stage, found.fault.culprit) == ("simplified", "join_products")
    assert "it raised KeyError: 'a bug in a pass'" in repr(found)
    file = io.StringIO()
    with kn.debug.stages("traced", "simplified", file=file), pytest.raises(KeyError):
        kn.jit(lambda x: x * 7.25 - 4)(x)
    assert "mul(%0, %1)" in file.getvalue() and "(there is no such stage: KeyError" in file.getvalue()


def test_code_that_cannot_be_emitted_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise NotImplementedError("a bug in code generation")

    monkeypatch.setattr(Arithmetic, "_where", broken)
    function = kn.jit(lambda x: nx.exp(nx.where(x > 7.25, x, 2 * x)) + 1)
    found = kn.debug.compare(function, nx.asarray(np.ones(29, np.float32)))
    assert found.fault is not None and (found.fault.stage, found.fault.op) == ("llvm", "where")
    assert "NotImplementedError: a bug in code generation" in repr(found)


def test_an_error_of_the_function_itself_is_passed_on() -> None:
    with pytest.raises(ValueError, match="mine"):
        kn.debug.compare(lambda: (_ for _ in ()).throw(ValueError("mine")))


def test_a_failure_is_saved_replayed_bisected_and_made_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # (Of an op with a gradient, the wrong meaning would show as a wrong rule first.)
    function = kn.jit(lambda x, w: nx.sum(nx.floor(nx.exp(x) @ w) * 3, axis=1))
    x, w = nx.asarray(np.eye(12, dtype=np.float32)), nx.asarray(np.full((12, 10), 0.1, np.float32))
    path = tmp_path / "failure.npz"
    with meaning(ops.floor, lambda x: np.where(x > 0.5, np.floor(x) + 1, np.floor(x)).astype(x.dtype)):
        found = kn.debug.compare(function, x, w)
        assert found.save(path) == path
        results = []
        for backend in ("compiled", "interpreter"):
            assert command.main(["run", str(path), "--backend", backend, "--output", str(tmp_path / backend)]) == 0
            with np.load(tmp_path / f"{backend}.npz") as file:
                results.append(file["output_0"])
        assert np.abs(results[0] - results[1]).max() > 1e-4
        for tool in ("check", "bisect"):
            capsys.readouterr()
            assert command.main([tool, str(path)]) == 1
            assert "introduced by code generation" in capsys.readouterr().out
        assert command.main(["reduce", str(path)]) == 0
        shown = capsys.readouterr()
        small = reproducer.load(tmp_path / "failure.small.npz")
        assert [node.op.name for node in small.graph.nodes] == ["input", "floor"] and small.graph.nodes[0].size == 1
        assert "floor(%0) : float32[" in shown.out and "nodes became 2" in shown.err
        assert Path(small.graph.outputs[0].source.file).name == "test_debug_compare.py"
    # With an interpreter that is right there is nothing to find.
    assert command.main(["check", str(path)]) == 0
    assert command.main(["reduce", str(path)]) == 1


@pytest.mark.parametrize("seed", [3967, 4189, 5444])
def test_narrow_floats_may_be_rounded_at_the_nodes_that_passes_leave(seed: int) -> None:
    example = graph_from_seed(seed)  # a convolution whose phases are added up, each rounded
    assert find_fault(example.graph, example.arguments) is None


def test_a_failure_among_hundreds_of_nodes_is_reduced_to_a_few_in_few_tries() -> None:
    x = value = ops.input_(identity="x", dtype=dtypes.float32, shape=(4, 6))
    for layer in range(60):
        value = ops.tanh(value) if layer == 35 else ops.sin(value) + value * 1.1 + x
    graph = native.Graph((x,), (ops.reduce_sum(value, axes=(0, 1)), ops.exp(value)))
    failure = reproducer.Reproducer(graph, (np.ones((4, 6), np.float32),))
    seen: list[int] = []
    small = shrink(
        failure, lambda r: any(node.op is ops.tanh for node in r.graph.nodes), 150,
        lambda r: seen.append(len(r.graph.nodes)),
    )  # fmt: skip
    assert len(graph.nodes) > 230
    assert [node.op.name for node in small.graph.nodes] == ["input", "tanh"]
    assert seen[-1] == 2 and seen == sorted(seen, reverse=True)


def test_an_interrupted_reduction_leaves_the_smallest_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = nx.asarray(np.linspace(-1, 1, 40, dtype=np.float32))
    with meaning(ops.floor, lambda x: np.ceil(x)):
        found = kn.debug.compare(kn.jit(lambda x: nx.floor(x * 3) * 2), x)
        found.save(tmp_path / "failure.npz")
        whole = reproducer.load(tmp_path / "failure.npz")
        begun = iter(range(100))
        wanted = reduce.shrink

        def interrupted(failure: Any, fails: Any, tries: int, found: Any) -> Any:
            def limited(variant: Any) -> Any:
                if next(begun) > 3:
                    raise KeyboardInterrupt
                return fails(variant)

            return wanted(failure, limited, tries, found)

        monkeypatch.setattr(reduce, "shrink", interrupted)
        assert command.main(["reduce", str(tmp_path / "failure.npz")]) == 130
        small = reproducer.load(tmp_path / "failure.small.npz")
        assert len(small.graph.nodes) < len(whole.graph.nodes)
        assert find_fault(small.graph, small.inputs) is not None
    assert "Interrupted; this is the smallest so far." in capsys.readouterr().err


def test_whatever_of_the_compiler_raises_an_error_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise KeyError("a bug in the plan")

    x = nx.asarray([1.0, 2.0, 3.0])
    for name, culprit in (("plan_arena", "program program"), ("shared_places", "program memory plan")):
        with monkeypatch.context() as patched:
            patched.setattr(f"kaun.compiler.pipeline.{name}", broken)
            found = kn.debug.compare(kn.jit(lambda x: nx.exp(x) * 7), x)
        assert found.fault is not None
        assert f"{found.fault.stage} {found.fault.culprit}" == culprit
        assert "it raised KeyError: 'a bug in the plan'" in str(found.fault)


def test_check_and_bisect_run_what_is_named_on_random_or_given_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.py").write_text(
        "import kaun as kn\nfrom kaun import nx\n"
        "def f():\n    return kn.compile(lambda x: nx.sum(nx.tanh(x), axis=1), kn.spec((8, 40)))\n"
    )
    for tool in ("check", "bisect"):
        assert command.main([tool, "made.py:f"]) == 0
        assert "nodes agree." in capsys.readouterr().out
    np.savez(tmp_path / "small.npz", x=np.zeros((8, 40), np.float32))
    np.savez(tmp_path / "large.npz", x=np.ones((8, 40), np.float32))
    with meaning(ops.tanh, wrong_tanh):
        assert command.main(["check", "made.py:f", "--inputs", "small.npz"]) == 0
        assert command.main(["check", "made.py:f", "--inputs", "large.npz", "--save", "failure.npz"]) == 1
        assert "made.py:f: the first node that disagrees is `tanh`" in capsys.readouterr().out
        assert command.main(["bisect", "failure.npz"]) == 1
    with pytest.raises(ValueError, match=r"debug\.save: nothing disagreed"):
        kn.debug.compare(kn.jit(lambda x: x + 1), nx.ones(3)).save(tmp_path / "nothing")


def test_memory_around_arrays_is_watched() -> None:
    guarded = native.Guarded(24, np.arange(6, dtype=np.float32))
    guarded.check("it")
    guarded.array(np.dtype(np.float32), (6,))[:] = 7
    guarded.check("it")
    guarded._bytes[native._MARGIN + 24] = 0
    with pytest.raises(native.OutOfBounds, match="it was written outside of its 24 bytes"):
        guarded.check("it")


def test_tolerances_follow_what_rounding_does_and_not_more() -> None:
    x = ops.input_(identity="x", dtype=dtypes.float32, shape=(4096,))
    total = ops.reduce_sum(x, axes=(0,))
    graph = native.Graph((x,), (total, ops.flip(x, axes=(0,)), ops.lt(x, x.like(0.0))))
    array = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    array -= array.mean()
    expected = expect(graph, [array])
    # A sum that cancels may be off by what its terms are rounded by, and not by the largest of them.
    value = expected.values[0]
    assert expected.difference(0, value + np.float32(2e-5)) is None
    assert expected.difference(0, value + np.float32(2e-2)) is not None
    # A number that was only moved may not be off at all, and neither may a comparison of what was not rounded.
    moved, less = expected.values[1:]
    assert expected.difference(1, moved) is None
    assert expected.difference(1, np.nextafter(moved, np.float32(9))) is not None
    other = less.copy()
    other[0] = ~other[0]
    difference = expected.difference(2, other)
    assert difference is not None and (difference.wrong, difference.index) == (1, (0,))
    broken = moved.copy()
    broken[5] = np.nan
    difference = expected.difference(1, broken)
    assert difference is not None and difference.index == (5,)


@pytest.mark.parametrize(("dtype", "units"), [(dtypes.bfloat16, 2), (dtypes.float16, 2), (dtypes.float32, 60)])
def test_a_function_may_be_off_by_the_last_places_of_its_type_and_not_by_more(dtype: Any, units: int) -> None:
    x = ops.input_(identity="x", dtype=dtype, shape=(512,))
    array = np.random.default_rng(0).uniform(1, 2, size=512).astype(dtype.numpy)
    expected = expect(native.Graph((x,), (ops.exp(x),)), [array])
    bits = expected.values[0].view(f"i{dtype.itemsize}")
    assert expected.difference(0, (bits + 1).view(dtype.numpy)) is None
    assert expected.difference(0, (bits + units).view(dtype.numpy)) is not None


def test_casts_are_right_to_the_last_bit() -> None:
    x = ops.input_(identity="x", dtype=dtypes.float32, shape=(512,))
    array = np.random.default_rng(0).normal(size=512).astype(np.float32)
    expected = expect(native.Graph((x,), (ops.cast(x, dtype=dtypes.bfloat16),)), [array])
    cut = (array.view(np.uint32) >> 16).astype(np.uint16).view(dtypes.bfloat16.numpy)
    difference = expected.difference(0, cut)
    assert difference is not None and 100 < difference.wrong < 400


def test_the_first_of_equal_numbers_is_asked_for_as_are_numbers_that_are_equal() -> None:
    x = ops.input_(identity="x", dtype=dtypes.float32, shape=(8, 16))
    array = np.random.default_rng(0).integers(0, 4, size=(8, 16)).astype(np.float32)
    doubled = x * 2.0  # rounded, as far as anybody knows
    most = ops.broadcast(ops.reshape(ops.reduce_max(doubled, axes=(1,)), shape=(8, 1)), shape=(8, 16))
    graph = native.Graph((x,), (ops.argmax(x, axis=1), ops.eq(doubled, most)))
    expected = expect(graph, [array])
    last = 15 - np.argmax(array[:, ::-1], axis=1)
    assert expected.difference(0, last) is not None
    assert expected.difference(1, np.zeros((8, 16), np.bool_)) is not None


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float16])
def test_narrow_floats_need_not_be_rounded_in_between(dtype: Any) -> None:
    x = ops.input_(identity="x", dtype=dtype, shape=(64,))
    array = np.random.default_rng(0).uniform(0.5, 2, size=64).astype(dtype.numpy)
    small = x * 1e-4 if dtype is dtypes.float16 else x * 1.1
    graph = native.Graph((x,), (1 / ops.sqrt(small * small), ops.eq(x * 1.1, x + x * 0.1)))
    assert find_fault(graph, [array]) is None
