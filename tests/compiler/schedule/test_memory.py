"""The memory plan: values alive together do not overlap, and the arena is no bigger than it need be by much."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from graph_strategies import assert_outputs_agree, graph_from_seed
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.ir.verify import VerificationError
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Place
from kaun.compiler.program_verify import verify_program
from kaun.compiler.schedule.memory import ALIGNMENT, Lifetime, aligned, peak_bytes, plan_arena
from kaun.compiler.schedule.run import run_kernel
from schedule_examples import MODELS, TARGET, trace

from kaun import nx


def random_lifetimes(seed):
    source = random.Random(seed)
    steps = source.randrange(1, 20)
    lifetimes = []
    for _ in range(source.randrange(40)):
        first = source.randrange(steps)
        size = source.choice((0, 1, 63, 64, 65, 1000, 4096, source.randrange(10_000)))
        lifetimes.append(Lifetime(size, first, min(steps, first + source.randrange(6))))
    return lifetimes


@pytest.mark.parametrize("seed", range(200))
def test_values_alive_together_do_not_overlap_and_start_on_cache_lines(seed):
    lifetimes = random_lifetimes(seed)
    offsets, total = plan_arena(lifetimes)
    placed = list(zip(lifetimes, offsets, strict=True))
    assert all(offset % ALIGNMENT == 0 and 0 <= offset <= total - value.nbytes for value, offset in placed)
    for (a, at_a), (b, at_b) in itertools.combinations(placed, 2):
        if a.first <= b.last and b.first <= a.last:
            assert at_a + a.nbytes <= at_b or at_b + b.nbytes <= at_a


@pytest.mark.parametrize("seed", range(200))
def test_the_arena_is_between_what_is_alive_at_once_and_the_sum(seed):
    lifetimes = random_lifetimes(seed)
    _, total = plan_arena(lifetimes)
    assert peak_bytes(lifetimes) <= total <= sum(aligned(value.nbytes) for value in lifetimes)


def test_a_chain_needs_memory_for_two():
    chain = [Lifetime(640, step, step + 1) for step in range(50)]
    assert plan_arena(chain)[1] == peak_bytes(chain) == 2 * 640


def test_no_values_need_no_memory():
    assert plan_arena([]) == ([], 0) and peak_bytes([]) == 0


def run_in_one_arena(compilation, arguments):
    """The program's calls in NumPy, each buffer where the memory plan has put it."""
    program = compilation.program
    arena = np.full(program.arena_bytes, 0xA5, np.uint8)
    outputs = [np.empty(a.shape, a.dtype.numpy) for a in program.outputs]

    def view(place, buffer):
        if place.kind == "input":
            return np.ascontiguousarray(arguments[place.position])
        if place.kind == "output":
            return outputs[place.position]
        raw = arena[place.position : place.position + buffer.size * buffer.dtype.itemsize]
        return raw.view(buffer.dtype.numpy)

    for scheduled, call in zip(compilation.kernels, program.calls, strict=True):
        kernel = scheduled.kernel
        run_kernel(kernel, [view(place, buffer) for place, buffer in zip(call.places, kernel.buffers, strict=True)])
    given = {"input": arguments, "output": outputs}
    return [given[place.kind][place.position] for place in program.results]


@pytest.mark.parametrize("ten", range(10))
def test_programs_of_random_graphs_compute_the_same_in_one_arena(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        example = graph_from_seed(seed)
        compilation = Compilation(example.graph, TARGET)
        results = run_in_one_arena(compilation, example.arguments)
        assert_outputs_agree(example, results, evaluate(example.graph, example.arguments))
        whole = sum(aligned(node.nbytes) for node in compilation.lifetimes)
        assert compilation.lower_bound_bytes <= compilation.program.arena_bytes <= whole


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_training_steps_compute_the_same_in_one_arena_smaller_than_its_contents(model):
    traced = model()
    compilation = traced.compilation
    results = run_in_one_arena(compilation, traced.arguments)
    for result, right in zip(results, evaluate(traced.graph, traced.arguments), strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-6)
    whole = sum(aligned(node.nbytes) for node in compilation.lifetimes)
    assert compilation.lower_bound_bytes <= compilation.program.arena_bytes < whole


def test_a_value_takes_the_place_of_one_that_its_kernel_is_the_last_to_read():
    """A product is reduced by rows, and what becomes of the rows is written over them."""

    def rows(x):
        x = nx.matmul(x, x)
        e = nx.exp(x - nx.max(x, axis=-1, keepdims=True))
        return nx.matmul(e, e / nx.sum(e, axis=-1, keepdims=True)), nx.sum(e, axis=-1)

    traced = trace(rows, np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    compilation = traced.compilation
    shared = [place.values for place in compilation.places if len(place.values) > 1]
    assert shared and compilation.program.arena_bytes < peak_bytes(list(compilation.lifetimes.values()))
    verify_program(compilation.program)
    results = run_in_one_arena(compilation, traced.arguments)
    for result, right in zip(results, evaluate(traced.graph, traced.arguments), strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-6)


def test_the_verifier_finds_a_place_taken_too_early():
    """Two arrays of equal size, where one is written by elements in another order than the other is read."""

    def turned(x):
        y = nx.matmul(x, x)
        z = nx.exp(nx.permute_dims(y, (1, 0))) + y
        return nx.matmul(z, z)

    compilation = trace(turned, np.ones((48, 48), np.float32)).compilation
    program = compilation.program
    places = {place.position for call in program.calls for place in call.places if place.kind == "arena"}
    assert len(places) == 2
    moved = Place("arena", min(places))

    def call(old):
        return replace(old, places=tuple(moved if place.kind == "arena" else place for place in old.places))

    def chains(bundle):
        return tuple(replace(chain, calls=tuple(map(call, chain.calls))) for chain in bundle)

    verify_program(program)
    with pytest.raises(VerificationError, match="writes"):
        verify_program(replace(program, bundles=tuple(map(chains, program.bundles))))
