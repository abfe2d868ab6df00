"""Kernels that share a launch: which do, that none waits for another of its launch, and that no bit changes."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from graph_strategies import assert_outputs_agree, graph_from_seed
from kaun.compiler.codegen.kernels import launch
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Chain
from kaun.compiler.program_run import run_program
from kaun.compiler.schedule.bundling import LAUNCH_NANOSECONDS, LONGEST_CHAIN_NANOSECONDS, PIECES, bundle
from kaun.compiler.schedule.memory import aligned
from kaun.runtime import target as targets
from kaun.runtime import threads
from kaun.runtime.program import Executable
from schedule_examples import MODELS, TARGET, trace

from kaun import nx
from kaun.execution import vector_target

RANDOM = np.random.default_rng(0)


def array(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def shape_of(function, *arrays):
    """How many kernels the chains of each launch have."""
    program = trace(function, *arrays).compilation.program
    return [[len(chain.calls) for chain in chains] for chains in program.bundles]


def run_in_some_order(compilation, arguments, source):
    """The results when the chains of each launch run in any order."""
    return run_program(compilation.program, arguments, lambda chains: source.sample(chains, len(chains)))


@pytest.mark.parametrize("ten", range(10))
def test_chains_of_a_launch_may_run_in_any_order(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        example = graph_from_seed(seed)
        compilation = Compilation(example.graph, TARGET)
        results = run_in_some_order(compilation, example.arguments, random.Random(seed))
        assert_outputs_agree(example, results, evaluate(example.graph, example.arguments))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_chains_of_a_training_step_may_run_in_any_order(model):
    traced = model()
    compilation = traced.compilation
    first, second = (run_in_some_order(compilation, traced.arguments, random.Random(seed)) for seed in (1, 2))
    for one, other, right in zip(first, second, evaluate(traced.graph, traced.arguments), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, right, rtol=1e-4, atol=1e-6)


def apart(program):
    """The same program with a launch for each kernel."""
    return dataclasses.replace(program, bundles=tuple((Chain((call,), call.chunks),) for call in program.calls))


def products(x, *weights):
    return (*(nx.tanh(x @ w) for w in weights), nx.sum(x, axis=1), x * 2, nx.sum(x, axis=0))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bundled_kernels_give_the_bits_that_they_give_apart(count):
    traced = trace(products, array(150, 130), array(130, 200), array(130, 7), array(130, 64))
    machine = targets.host()
    compilation = Compilation(traced.graph, vector_target(machine))
    assert any(len(chains) > 2 for chains in compilation.program.bundles)
    assert any(chain.pieces > 1 for chains in compilation.program.bundles for chain in chains)
    inputs = [np.ascontiguousarray(a) for a in traced.arguments]
    before = threads.num_threads()
    threads.set_num_threads(count)
    try:
        found = []
        for program in (compilation.program, apart(compilation.program)):
            buffers = Executable(program, machine).run([a.ctypes.data for a in inputs])
            arrays = zip(buffers, program.outputs, strict=True)
            found.append([buffer.view(a.dtype.numpy, a.shape, writable=False).copy() for buffer, a in arrays])
    finally:
        threads.set_num_threads(before)
    for bundled, alone in zip(*found, strict=True):
        np.testing.assert_array_equal(bundled, alone)
    for result, right in zip(found[0], evaluate(traced.graph, traced.arguments), strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-4)


def test_products_with_the_same_operand_are_one_launch():
    x, weights = array(512, 256), [array(256, 256) for _ in range(3)]
    assert shape_of(lambda x, *w: tuple(x @ one for one in w), x, *weights) == [[1, 1, 1]]


def test_small_kernels_follow_one_another_in_one_launch_without_waking_a_thread():
    assert shape_of(lambda x, y: nx.tanh(nx.softmax(x @ y) @ y), array(4, 4), array(4, 4)) == [[3]]
    assert shape_of(lambda *x: tuple(nx.tanh(each) for each in x), *(array(n) for n in range(2, 30))) == [[28]]


def test_large_kernels_wait_for_what_they_read():
    x, w = array(512, 512), array(512, 512)
    assert shape_of(lambda x, w: (x @ w) @ w, x, w) == [[1], [1]]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_kernel_is_launched_once_after_what_it_reads(model):
    compilation = model().compilation
    numbers = [k for chains in compilation._bundles for chain in chains for k in chain.kernels]
    assert sorted(numbers) == list(range(len(compilation.fused)))
    written = set(compilation.simplified.inputs)
    for scheduled in compilation.kernels:
        assert written.issuperset(scheduled.reads)
        written.update(scheduled.outputs)


def test_long_chains_and_unequal_pieces_are_not_made():
    x, weights = array(700, 300), [array(300, n) for n in (5, 200, 300, 7)]
    compilation = trace(lambda x, *w: tuple(nx.sum(nx.tanh(x @ one)) for one in w), x, *weights).compilation
    launches = [launch(k.kernel, TARGET) for k in compilation.fused]
    for chains in compilation._bundles:
        whole = sum(launches[k].nanoseconds for chain in chains for k in chain.kernels)
        for chain in chains:
            cost = sum(launches[k].nanoseconds for k in chain.kernels)
            if len(chain.kernels) > 1:
                assert cost <= LONGEST_CHAIN_NANOSECONDS + LAUNCH_NANOSECONDS and chain.pieces == 1
            else:
                assert 1 <= chain.pieces <= launches[chain.kernels[0]].chunks
            if len(chains) > 1:
                assert chain.pieces - 1 <= PIECES * cost / whole


def test_bundles_take_little_more_memory_than_kernels_one_by_one():
    x = array(64, 64)

    def wide(x):
        return sum(nx.sum(nx.tanh(x @ (x + i)) @ x) for i in range(40))

    compilation = trace(wide, x).compilation
    outside = {*compilation.simplified.inputs, *compilation.simplified.outputs}
    launches = [launch(k.kernel, TARGET) for k in compilation.fused]
    last = {node: i for i, k in enumerate(compilation.fused) for node in (*k.reads, *k.outputs)}
    alive, peak = 0, 0
    for i, k in enumerate(compilation.fused):
        alive += sum(aligned(n.nbytes) for n in k.outputs if n not in outside)
        peak = max(peak, alive)
        alive -= sum(aligned(n.nbytes) for n, end in last.items() if end == i and n not in outside)
    for slack in (0, 3 * 64 * 64 * 4):
        bundles = bundle(compilation.fused, launches, compilation.simplified, slack)
        together = [[compilation.fused[k] for chain in chains for k in chain.kernels] for chains in bundles]
        ends = {node: i for i, kernels in enumerate(together) for k in kernels for node in (*k.reads, *k.outputs)}
        alive = 0
        for i, kernels in enumerate(together):
            alive += sum(aligned(n.nbytes) for k in kernels for n in k.outputs if n not in outside)
            assert alive <= peak + slack
            alive -= sum(aligned(n.nbytes) for n, end in ends.items() if end == i and n not in outside)


def test_an_input_is_not_read_beside_a_kernel_whose_result_may_be_written_over_it():
    x, w = array(256, 256), array(256, 256)
    # The update of w may take the place of w, which the other product still reads.
    assert shape_of(lambda x, w: (x @ w, w - x @ x), x, w) == [[1], [1]]
    assert shape_of(lambda x, w: (x @ w, w[:128] - x[:128] @ x), x, w) == [[1, 1]]


def test_a_bundle_looks_past_kernels_that_must_wait():
    x, w, v = array(256, 128), array(128, 128), array(128, 128)
    compilation = trace(lambda x, w, v: (x @ w, (x @ w) @ w, x @ v), x, w, v).compilation
    launches = compilation._launches
    numbers = {k.outputs[0]: i for i, k in enumerate(compilation.fused)}
    first, second, third = (numbers[node] for node in compilation.simplified.outputs)
    given = [compilation.fused[k] for k in (first, second, third)]
    bundles = bundle(given, [launches[k] for k in (first, second, third)], compilation.simplified, 1 << 20)
    assert [{k for chain in chains for k in chain.kernels} for chains in bundles] == [{0, 2}, {1}]
