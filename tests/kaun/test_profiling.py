"""A profile accounts for a run kernel by kernel, and shows it as a table, a trace and a plot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from kaun.tools import command

import kaun as kn
from kaun import layer, loss, nx, profiling, train


def classifier() -> train.Trainer:
    model = layer.sequential([
        layer.linear(in_features=64, out_features=96), layer.relu(), layer.linear(in_features=96, out_features=10)
    ])  # fmt: skip
    return train.make(model=model, optimizer=kn.optim.adamw(lr=1e-3))


@pytest.fixture(scope="module")
def step() -> train.CompiledStep:
    return train.compile(classifier(), x=kn.spec((32, 64)), y=kn.spec((32,), kn.int64), loss=loss.cross_entropy_sparse)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((32, 64), np.float32), random.integers(0, 10, 32)


@pytest.fixture(scope="module")
def state(step: train.CompiledStep) -> train.State:
    with nx.rng.run(seed=0):
        return step.init()


@pytest.fixture(scope="module")
def profile(step, state, batch):
    return step.profile(state, *batch, seconds=0.05)


def test_every_kernel_has_its_share_of_the_launches_and_its_work(profile, step):
    assert [k.number for k in profile.kernels] == list(range(len(step.kernels)))
    assert [(k.flops, k.bytes, k.launch) for k in profile.kernels] == [
        (k.flops, k.bytes, k.launch) for k in step.kernels
    ]
    assert all(k.seconds >= 0 and k.worker_seconds >= 0 and k.limit >= 0 for k in profile.kernels)
    assert sum(k.seconds for k in profile.kernels) == pytest.approx(profile.kernel_seconds)
    assert profile.seconds > 0 and profile.noted_seconds > 0


def test_kernels_are_traced_back_to_layers_and_lines(profile):
    assert {"0", "2"} <= {layer for k in profile.kernels for layer in k.layers}
    assert any(line.startswith("test_profiling.py:") for k in profile.kernels for line in k.lines)


def test_a_limit_is_the_longer_of_operations_and_bytes(profile):
    for kernel in profile.kernels:
        computing = kernel.flops / profile.peaks.flops
        rates = [rate for _, rate in profile.peaks.bandwidth]
        assert kernel.limit >= computing
        assert kernel.limit <= max(computing, kernel.bytes / min(rates)) * (1 + 1e-12)
        assert kernel.bound == ("compute" if computing >= kernel.limit else "memory")


def test_the_state_that_is_profiled_stays_as_it_was(step, state, batch):
    before = [leaf.numpy().copy() for leaf in kn.ptree.leaves(state.to_tree())]
    first, _ = step(state, *batch)
    step.profile(state, *batch, seconds=0.0)
    for old, leaf in zip(before, kn.ptree.leaves(state.to_tree()), strict=True):
        np.testing.assert_array_equal(old, leaf.numpy())
    assert float(step(state, *batch)[0]) == float(first)


def test_the_table_has_a_row_for_each_kernel_and_the_sum(profile):
    table = profile.table(None)
    rows = table.split("\n\n")[0].splitlines()
    assert len(rows) == 1 + len(profile.kernels) + 2
    assert f"its {len(profile.kernels)} kernels add up to" in table
    short = profile.table(2).splitlines()
    assert f" {len(profile.kernels) - 2} more kernels" in short[3]
    assert repr(profile) == profile.table()


def test_a_trace_holds_every_piece_of_work_by_worker(profile, tmp_path: Path):
    profile.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    work = [event for event in events if event["ph"] == "X"]
    assert len(work) == len(profile.run.events)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in work)
    assert {event["args"]["layers"] for event in work} == {", ".join(k.layers) for k in profile.kernels}
    alive = [event["args"]["bytes"] for event in events if event["ph"] == "C"]
    assert alive == list(profile.arena)


def test_the_most_memory_alive_is_what_the_compiler_says(profile, step):
    assert 0 < max(profile.arena) <= step.memory.lower_bound


def test_a_roofline_is_drawn(profile, tmp_path: Path):
    profile.plot(tmp_path / "roof.png")
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_a_function_is_profiled_with_its_arguments():
    compiled = kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((40, 30)), kn.spec((30, 20)))
    profile = compiled.profile(np.ones((40, 30), np.float32), np.ones((30, 20), np.float32), seconds=0.0)
    assert sum(k.flops for k in profile.kernels) == compiled.cost.flops
    with pytest.raises(ValueError, match="expected"):
        compiled.profile(np.ones((40, 31), np.float32), np.ones((30, 20), np.float32))


@pytest.mark.parametrize("recompile", [False, True])
def test_what_was_loaded_is_profiled_too(recompile, step, batch, tmp_path):
    step.save(tmp_path / "step.kaun")
    loaded = kn.load(tmp_path / "step.kaun", recompile=recompile)
    with nx.rng.run(seed=0):
        profile = loaded.profile(loaded.init(), *batch, seconds=0.0)
    assert [k.flops for k in profile.kernels] == [k.flops for k in step.kernels]


def test_a_program_without_kernels_has_nothing_to_profile():
    compiled = kn.compile(lambda x: x, kn.spec((3,)))
    with pytest.raises(ValueError, match="no kernels"):
        compiled.profile(np.ones(3, np.float32))


def test_the_tool_prints_the_table_and_writes_what_is_asked_for(tmp_path: Path, capsys):
    (tmp_path / "model.py").write_text(
        "import kaun as kn\nfrom kaun import nx\n"
        "def product():\n    return kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((4, 8)), kn.spec((8, 3)))\n"
    )
    target, plot, trace = f"{tmp_path / 'model.py'}:product", tmp_path / "roof.png", tmp_path / "trace.json"
    asked = ["--seconds", "0", "--plot", str(plot), "--trace", str(trace)]
    assert command.main(["profile", target, *asked]) == 0
    printed = capsys.readouterr().out
    assert "dot 4x3 over 8" in printed and "model.py:4" in printed
    assert plot.exists() and json.loads(trace.read_text())["traceEvents"]
    assert command.main(["profile", target, "--seconds", "0", "--trace", str(tmp_path / "no" / "where.json")]) == 1
    assert "where.json" in capsys.readouterr().err


def test_shares_are_finite_for_kernels_that_take_no_time(profile):
    assert all(math.isfinite(kernel.of_limit) for kernel in profile.kernels)


def test_names_of_layers_break_neither_the_table_nor_the_terminal():
    assert profiling._few(["a|b\x1b[31m\nc"]) == "a|b\\x1b[31m\\nc"
