"""Instructions say which line of the loop IR they are for, and are the same instructions as where nobody asks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from kaun.compiler.codegen.kernels import emit_kernel
from kaun.compiler.codegen.line_tables import Located, read_assembly, read_llvm
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.fusion import ScheduledKernel
from kaun.compiler.schedule.loop_ir import ChainKernel, ContractionKernel
from kaun.compiler.schedule.origins import line_nodes
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.text import print_kernel
from kaun.runtime import engine
from kaun.runtime import target as targets
from schedule_examples import MODELS, Traced, trace

from kaun import execution, fn, grad, loss, nx

TARGETS = (
    "linux-x86_64-v4", "linux-x86_64-v3", "linux-riscv64", "cortex-m7", "linux-aarch64", "arm64-apple-macosx14.0",
    "x86_64-apple-macosx14.0,cpu=haswell", "x86_64-pc-windows-msvc,cpu=haswell", "wasm32",
)  # fmt: skip


def _ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def chain_of_operations() -> Traced:
    return trace(lambda x: nx.sqrt(nx.exp(x) + 1.0) / (x * x + 2.0), _ones(64, 100))


def rows() -> Traced:
    return trace(lambda x: nx.softmax(x * 2.0), _ones(64, 100))


def product() -> Traced:
    return trace(lambda x, w, b: fn.relu((x * 2.0) @ w + b), _ones(40, 300), _ones(300, 50), _ones(50))


def big_product() -> Traced:
    return trace(lambda x, w: nx.tanh(x @ w), _ones(200, 700), _ones(700, 200))


def bias_gradient() -> Traced:
    def objective(w: Any, b: Any, x: Any) -> Any:
        return nx.sum(nx.sin(x @ w + b))

    return trace(lambda w, b, x: (grad(objective)(w, b, x), grad(objective, argnums=1)(w, b, x)), _ones(60, 70),
                 _ones(70), _ones(90, 60))  # fmt: skip


def windows() -> Traced:
    return trace(lambda x, w: fn.conv2d(x, w, padding="same"), _ones(2, 16, 32, 32), _ones(24, 16, 3, 3))


def attention() -> Traced:
    q = _ones(2, 4, 96, 16)
    return trace(lambda q, k, v: fn.dot_product_attention(q, k, v, is_causal=True), q, q, q)


def long_rows() -> Traced:
    def objective(x: Any, table: Any) -> Any:
        return nx.mean(loss.cross_entropy_sparse(x @ table.T, nx.zeros((64,), dtype=nx.int64)))

    return trace(lambda x, table: grad(objective)(x, table), _ones(64, 32), _ones(5000, 32))


def remainders() -> Traced:
    return trace(lambda x, y: nx.remainder(x, y) * 3.0, _ones(100), _ones(100))


SMALL = {f.__name__: f for f in (
    chain_of_operations, rows, product, big_product, bias_gradient, windows, attention, long_rows, remainders,
)}  # fmt: skip
EXAMPLES = {**SMALL, **MODELS}


@cache
def compiled(example: str, target: str) -> Compilation:
    return Compilation(EXAMPLES[example]().graph, execution.vector_target(targets.named(target)))


def texts(compilation: Compilation) -> dict[str, ScheduledKernel]:
    return {print_kernel(scheduled.kernel): scheduled for scheduled in compilation.kernels}


# The small ones for every target, the models for one.
CASES = [*((example, TARGETS[0]) for example in EXAMPLES), *itertools.product(SMALL, TARGETS[1:])]


@pytest.mark.parametrize("example, target", CASES)
def test_llvm_ir_is_the_same_but_for_the_locations(example, target):
    compilation = compiled(example, target)
    for text, scheduled in texts(compilation).items():
        located = read_llvm(emit_kernel(parse_kernel(text), "kernel", compilation.target, locations=True))
        assert located.text == emit_kernel(scheduled.kernel, "kernel", compilation.target)
        assert len(located.lines) == len(located.text.split("\n"))


@pytest.mark.parametrize("example, target", CASES)
def test_machine_code_is_the_same_but_for_the_locations(example, target):
    compilation, machine = compiled(example, target), targets.named(target)
    for text, scheduled in texts(compilation).items():
        llvm = emit_kernel(parse_kernel(text), "kernel", compilation.target, locations=True)
        located = read_assembly(engine.assembly(llvm, machine), read_llvm(llvm).helpers)
        plain = emit_kernel(scheduled.kernel, "kernel", compilation.target)
        assert _ordered(located.text, target) == _ordered(engine.assembly(plain, machine), target)
        assert len(located.lines) == len(located.text.split("\n"))


def _ordered(assembly: str, target: str) -> list[str]:
    """The lines; for AArch64, which schedules the saving of registers otherwise, sorted from label to label."""
    lines = assembly.split("\n")
    if not targets.named(target).architecture == "aarch64":
        return lines
    blocks: list[list[str]] = [[]]
    for line in lines:
        blocks += [[]] if re.match(r"\.?LBB|[^.L\s]", line) else []
        blocks[-1].append(line)
    return [line for block in blocks for line in sorted(block)]


# --- what lines are for ----------------------------------------------------------------------------------------------


def found(example: str, optimised: bool = False) -> Iterator[tuple[ScheduledKernel, Located, Located, list[set[str]]]]:
    """Of each kernel its LLVM IR, its assembly, and the names of the ops that each line of its loop IR comes from."""
    target = TARGETS[0]
    compilation = compiled(example, target)
    for text, scheduled in texts(compilation).items():
        llvm = emit_kernel(parse_kernel(text), "kernel", compilation.target, locations=True)
        read = read_llvm(llvm)
        shown = read_llvm(engine.optimised(llvm, targets.named(target))) if optimised else read
        assembly = read_assembly(engine.assembly(llvm, targets.named(target)), read.helpers)
        lines = line_nodes(scheduled)
        yield scheduled, shown, assembly, [{n.op.name for n in line if n.op.kind != "movement"} for line in lines]


def ops_of(part: str, located: Located, ops: list[set[str]]) -> list[set[str]]:
    """For each line with `part` in it the ops it is for."""
    shown = zip(located.text.split("\n"), located.lines, strict=True)
    return [set().union(*(ops[number - 1] for number in numbers)) for line, numbers in shown if part in line]


@pytest.mark.parametrize("optimised", (False, True))
def test_each_operation_of_an_elementwise_chain_is_told_apart(optimised):
    ((_, llvm, assembly, ops),) = found("chain_of_operations", optimised)
    assert ops_of("fdiv", llvm, ops) and all(one == {"div"} for one in ops_of("fdiv", llvm, ops))
    assert ops_of("llvm.sqrt", llvm, ops)[0] == {"sqrt"}
    assert {"exp"} in ops_of(" fmul ", llvm, ops) and {"mul"} in ops_of(" fmul ", llvm, ops)
    assert ops_of("\tvdivps", assembly, ops) and all(one == {"div"} for one in ops_of("\tvdivps", assembly, ops))
    assert ops_of("\tvsqrtps", assembly, ops) and all(one == {"sqrt"} for one in ops_of("\tvsqrtps", assembly, ops))
    assert {"exp"} in ops_of("\tvscalefps", assembly, ops) + ops_of("\tvfmadd", assembly, ops)


def test_reductions_over_rows_are_told_apart_from_what_they_reduce():
    ((_, llvm, assembly, ops),) = found("rows")
    assert {"reduce_sum"} in ops_of(" fadd ", llvm, ops)
    assert {"reduce_max"} in ops_of('@"llvm.maximum.v', llvm, ops)
    assert {"reduce_max"} in ops_of("\tvmaxps", assembly, ops)
    assert {"reduce_sum"} in ops_of("\tvaddps", assembly, ops)
    assert all(one == {"div"} for one in ops_of("\tvdivps", assembly, ops))
    assert all(one == {"exp"} for one in ops_of("\tvfmadd", assembly, ops))


def test_a_product_is_told_apart_from_what_is_packed_and_from_what_finishes_it():
    ((scheduled, llvm, assembly, ops),) = found("product")
    assert isinstance(scheduled.kernel, ContractionKernel)
    micro = [name for name in llvm.helpers if "tile" in name]
    assert micro and all(llvm.helpers[name] for name in micro)
    assert all(one == {"dot_general"} for one in ops_of(" call <16 x float> @\"llvm.fma", llvm, ops))
    assert {"mul"} in ops_of(" fmul ", llvm, ops) and {"add"} in ops_of(" fadd ", llvm, ops)
    assert all(one == {"dot_general"} for one in ops_of("\tvfmadd231ps", assembly, ops))
    # Twice a number is its sum with itself.
    assert {"mul"} in ops_of("\tvaddps", assembly, ops) and {"add"} in ops_of("\tvaddps", assembly, ops)
    assert all(one == {"le"} for one in ops_of("\tvcmp", assembly, ops))


def test_a_bias_s_gradient_is_told_apart_from_the_weight_s():
    sums = [
        ops_of("\tvaddps", assembly, ops) for scheduled, _, assembly, ops in found("bias_gradient")
        if isinstance(scheduled.kernel, ContractionKernel) and scheduled.kernel.column_stores
    ]  # fmt: skip
    assert sums and all({"reduce_sum"} in one for one in sums)


def test_a_convolution_s_products_are_its_contraction_s():
    (assembly, ops), *_ = ((one[2], one[3]) for one in found("windows") if isinstance(one[0].kernel, ContractionKernel))
    products = ops_of("\tvfmadd231ps", assembly, ops)
    assert products and all(one == {"dot_general"} for one in products)


@pytest.mark.parametrize("example", ("attention", "long_rows"))
def test_the_parts_of_a_chain_are_told_apart(example):
    chains = [one for one in found(example) if isinstance(one[0].kernel, ChainKernel)]
    assert chains
    for _, llvm, assembly, ops in chains:
        assert {"exp"} in ops_of("fmul", llvm, ops)
        assert {"dot_general"} in ops_of(' call void @"kernel.tile', llvm, ops)
        assert {"dot_general"} in ops_of("\tvfmadd231ps", assembly, ops)
        assert {"exp"} in ops_of("\tvfmadd", assembly, ops)
        assert {"sub"} in ops_of("\tvsubps", assembly, ops)
    if example == "attention":
        assert {"div"} in ops_of("\tvdivps", chains[0][2], chains[0][3])


@pytest.mark.parametrize("example", EXAMPLES)
def test_most_instructions_are_for_something(example):
    told = counted = 0
    for _, _, assembly, _ in found(example):
        code = [lines for line, lines in zip(assembly.text.split("\n"), assembly.lines, strict=True)
                if line[:1] == "\t" and line[1:2].isalpha()]  # fmt: skip
        told, counted = told + sum(map(bool, code)), counted + len(code)
    assert told > counted / 2
