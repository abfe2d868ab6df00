"""The loss over a vocabulary by blocks: under a budget scores are never whole in memory, and gradients are the same."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from kaun.compiler.codegen import chain_blocking
from kaun.compiler.ir import dtypes
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.loop_ir import ChainKernel, Load
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.run import run_kernel
from kaun.compiler.schedule.text import print_kernel
from kaun.runtime import target as targets
from kaun.runtime.program import Executable
from loss_graphs import loss_with_gradients
from schedule_examples import TARGET

from kaun.execution import vector_target

pytestmark = pytest.mark.filterwarnings("ignore:kn.remat. a budget:UserWarning")
TOKENS, WIDTH, VOCABULARY = 40, 64, 3001
# Caches that hold neither the embedding nor a row of scores.
SMALL = {"l1_bytes": 1 << 12, "l2_bytes": 1 << 14, "l3_bytes": 1 << 16}


def example(tied=True, budget=0, sizes=(TOKENS, WIDTH, VOCABULARY)):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="kn.remat: a budget")
        return loss_with_gradients(dtypes.float32, *sizes, tied=tied, budget=budget)


def chains_of(compilation):
    return [k.kernel for k in compilation.kernels if isinstance(k.kernel, ChainKernel)]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_no_array_of_rows_by_vocabulary_is_in_memory_under_a_budget_of_nothing(tied):
    frugal, normal = (Compilation(example(tied, budget).graph, TARGET) for budget in (0, None))
    assert TOKENS * VOCABULARY in {node.size for node in normal.lifetimes}
    assert max(node.size for node in frugal.lifetimes) < VOCABULARY
    # Nor in the scratch memory of a thread, which has a few rows at most.
    small = Compilation(example(tied).graph, dataclasses.replace(TARGET, **SMALL))
    assert small.program.arena_bytes + small.program.scratch_bytes < 4 * TOKENS * VOCABULARY // 4


def test_memory_does_not_grow_with_the_vocabulary():
    target = dataclasses.replace(TARGET, **SMALL)

    def needed(vocabulary):
        program = Compilation(example(sizes=(TOKENS, WIDTH, vocabulary)).graph, target).program
        return program.arena_bytes + program.scratch_bytes

    assert needed(4 * VOCABULARY) <= 1.1 * needed(VOCABULARY)


def test_the_embedding_is_updated_in_place_by_the_kernel_that_computes_scores_from_it():
    compilation = Compilation(example().graph, TARGET)
    table = 0
    assert (table, 1) in compilation.program.aliases
    last = chains_of(compilation)[-1]
    assert [len(one.terms) for one in last.sums] == [2], "both gradients of the embedding are one sum"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("tokens", [1, 3, 13, 40])
@pytest.mark.parametrize("vocabulary", [31, 33, 1024, 1031, 3001])
def test_streamed_losses_and_gradients_are_those_of_the_interpreter(tokens, vocabulary, tied):
    given = example(tied, sizes=(tokens, 48, vocabulary))
    target = dataclasses.replace(targets.host(), **SMALL)
    compilation = Compilation(given.graph, vector_target(target))
    plans = [chain_blocking.plan(kernel, vector_target(target)) for kernel in chains_of(compilation)]
    assert any(plan.is_streamed for plan in plans) or vocabulary < 1000 or tokens < 13
    arguments = [np.ascontiguousarray(argument) for argument in given.arguments]
    buffers = Executable(compilation.program, target).run([argument.ctypes.data for argument in arguments])
    for where, expected, tolerance in zip(
        compilation.program.results, evaluate(given.graph, arguments), given.tolerances, strict=True
    ):
        found = buffers[where.position].view(np.float32, expected.shape)
        assert np.abs(found - expected).max() <= tolerance


def test_operands_of_several_terms_are_stored_once_and_not_packed_by_every_chunk():
    last = chains_of(Compilation(example().graph, TARGET))[-1]
    assert all(isinstance(term.right, Load) for one in last.sums for term in one.terms)


def test_gradients_under_a_budget_are_those_without_one():
    frugal, normal = example(), example(budget=None)
    for found, expected in zip(
        evaluate(frugal.graph, frugal.arguments), evaluate(normal.graph, normal.arguments), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sums_of_several_terms_print_parse_and_run():
    kernel = chains_of(Compilation(example().graph, TARGET))[-1]
    text = print_kernel(kernel)
    assert text.count("left") == 3 and print_kernel(parse_kernel(text)) == text
    arrays = [np.zeros(buffer.size, buffer.dtype.numpy) for buffer in kernel.buffers]
    again = [array.copy() for array in arrays]
    run_kernel(kernel, arrays)
    run_kernel(parse_kernel(text), again)
    for found, expected in zip(again, arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
