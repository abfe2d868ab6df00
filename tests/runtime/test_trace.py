"""A traced run computes what the program computes, and accounts for every chunk of every kernel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from kaun.compiler.codegen import traced_entry
from kaun.runtime import target as targets
from kaun.runtime import threads
from kaun.runtime.trace import Layout, Run, Tracer

import kaun as kn
from kaun import execution, nx
from kaun.execution import Storage


def traced(function: Callable[..., object], *arrays: np.ndarray) -> tuple[kn.Compiled, list[Storage], Run]:
    """The compiled function, the outputs that a traced run wrote, and its notes."""
    compiled = kn.compile(function, *(kn.spec(array.shape, kn.float32) for array in arrays))
    program = compiled.functions["call"].compiled
    target = targets.host()
    vectors = execution.vector_target(target)

    def emit(name: str, clock: int) -> str:
        return traced_entry.emit_traced_entry(program.executable.program, name, vectors, clock)

    words = traced_entry.worker_words(program.executable.program)
    layout = Layout(words, traced_entry.EVENT_WORDS, traced_entry.scratch_stride(program.executable.program))

    inputs = [Storage.of(array) for array in arrays] + compiled.functions["call"].constants
    outputs = [Storage(result) for result in program.outputs]
    tracer = Tracer(program.executable, target, emit, layout)
    tracer.run([storage.address for storage in [*inputs, *outputs]])
    run = tracer.run([storage.address for storage in [*inputs, *outputs]])
    return compiled, program.arranged(inputs, outputs), run


def several_kernels(x: nx.Tensor, w: nx.Tensor) -> tuple[nx.Tensor, ...]:
    """Products with many chunks, rows with reductions, small independent results beside them."""
    h = nx.tanh(x @ w)
    return h @ nx.permute_dims(w, (1, 0)), nx.sum(h, axis=1), nx.sum(x), nx.max(w, axis=0)


ARRAYS = [
    np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((300, 200), (200, 160))
]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_traced_run_gives_the_bits_of_a_plain_one(count: int) -> None:
    before = threads.num_threads()
    threads.set_num_threads(count)
    try:
        compiled, results, run = traced(several_kernels, *ARRAYS)
    finally:
        threads.set_num_threads(before)
    for plain, noted in zip(compiled(*ARRAYS), results, strict=True):
        np.testing.assert_array_equal(plain.numpy(), noted.array)
    assert {event.worker for event in run.events} <= set(range(count))


def test_every_call_is_noted_in_its_launch_and_no_worker_does_two_things_at_once() -> None:
    compiled, _, run = traced(several_kernels, *ARRAYS)
    program = compiled.functions["call"].compiled.executable.program
    launches = [i for i, bundle in enumerate(program.bundles) for chain in bundle for _ in chain.calls]
    assert {event.call for event in run.events} == set(range(len(program.calls)))
    assert list(run.stamps) == sorted(run.stamps) and len(run.stamps) == len(program.bundles) + 1
    for event in run.events:
        launch = launches[event.call]
        assert run.stamps[launch] <= event.begin <= event.end <= run.stamps[launch + 1]
    for worker in {event.worker for event in run.events}:
        own = sorted((e.begin, e.end) for e in run.events if e.worker == worker)
        assert all(first[1] <= second[0] for first, second in pairwise(own))


def test_a_program_with_nothing_to_share_is_traced_too() -> None:
    compiled, (result,), run = traced(lambda x: x + 1.0, np.ones(3, np.float32))
    np.testing.assert_array_equal(result.array, np.full(3, 2.0, np.float32))
    assert [event.call for event in run.events] == [0] and len(compiled.kernels) == 1
