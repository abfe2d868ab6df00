"""The rows of a profile add up to a run, also where the call and the clock take longer than the kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kaun.compiler.program import Program
from kaun.runtime import target as targets
from kaun.runtime.program import DONE
from kaun.runtime.trace import Event, Run, clock_seconds, without_kernels

import kaun as kn
from kaun import execution, nx
from kaun.debug.native import host_compilation
from kaun.profiling import Profile, call_times


@pytest.fixture(scope="module")
def made() -> Profile:
    compiled = kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((4, 8)), kn.spec((8, 3)))
    profile: Profile = compiled.profile(np.ones((4, 8), np.float32), np.ones((8, 3), np.float32), seconds=0.0)
    return profile


@pytest.fixture(scope="module")
def program() -> Program:
    """A program of several launches."""

    def steps(x: nx.Tensor) -> nx.Tensor:
        for _ in range(3):
            x = nx.tanh(x @ x)
        return x

    found = host_compilation(kn.compile(steps, kn.spec((32, 32))).functions["call"].graph).program
    assert len(found.calls) >= 3
    return found


def test_all_rows_add_up_to_a_run(made: Profile) -> None:
    assert made.call_seconds > 0 and made.rest_seconds >= 0
    assert made.kernel_seconds + made.call_seconds + made.rest_seconds >= made.seconds * (1 - 1e-9)
    longer = dataclasses.replace(made, seconds=made.kernel_seconds + 5e-6, call_seconds=2e-6)
    call, between = longer.table().split("\n\n")[0].splitlines()[-2:]
    assert call.split()[:2] == ["2", "us"] and call.endswith("the call from Python")
    assert between.split()[:2] == ["3", "us"] and between.endswith("between kernels")
    assert "the call from Python takes 2 us" in longer.summary()


def test_no_rate_is_told_of_a_kernel_that_the_clock_does_not_see(made: Profile) -> None:
    unseen = dataclasses.replace(made.kernels[0], seconds=1e-9)
    row = dataclasses.replace(made, kernels=(unseen,)).table().splitlines()[1]
    assert row.split()[5:8] == ["-", "-", "-"]


def test_looks_at_the_clock_are_no_part_of_kernels(program: Program) -> None:
    launches = [i for i, bundle in enumerate(program.bundles) for chain in bundle for _ in chain.calls]
    # Each call works 100 ns in one piece, which begins and ends with half a look of 20 ns; a launch has one more.
    stamps, events, now = [0], [], 0
    for launch in range(len(program.bundles)):
        now += 10
        for call in [call for call, of in enumerate(launches) if of == launch]:
            events.append(Event(call, 0, now + 10, now + 130))
            now += 140
        now += 10
        stamps.append(now)
    times = call_times(program, [Run(tuple(stamps), tuple(events))], clock=20e-9)
    assert [seconds for seconds, _ in times] == pytest.approx([100e-9] * len(launches))
    assert [seconds for _, seconds in times] == pytest.approx([100e-9] * len(launches))


def test_what_is_shorter_than_a_look_at_the_clock_takes_no_time(program: Program) -> None:
    stamps = tuple(range(0, 10 * len(program.bundles) + 1, 10))
    events = tuple(Event(call, 0, 0, 5) for call in range(len(program.calls)))
    assert call_times(program, [Run(stamps, events)], clock=20e-9) == [(0.0, 0.0)] * len(program.calls)


def test_a_record_of_nothing_runs_and_writes_nothing() -> None:
    compiled = kn.compile(lambda x: x + 1.0, kn.spec((3,)))
    executable = execution.compiled(compiled.functions["call"].graph).executable
    given, result = np.arange(3, dtype=np.float32), np.full(3, 7, np.float32)
    record = without_kernels(executable.record([given.ctypes.data, result.ctypes.data]), targets.host())
    executable.start(record)
    assert record[DONE] == 1 and list(result) == [7, 7, 7]
    assert clock_seconds(targets.host()) > 0
