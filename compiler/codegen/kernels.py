"""From loop IR to an LLVM module: one function per kernel, and how it has to be launched."""

from __future__ import annotations

import re

from llvmlite import ir

from ..schedule.bundling import Launch
from ..schedule.collapse import collapse
from ..schedule.dead_places import live_places
from ..schedule.loop_ir import ChainKernel, ContractionKernel, Kernel, LoopKernel
from . import chain_blocking, chain_streaming, fused_contraction, loops, window_kernel
from .locations import ask_for_locations
from .vector_target import VectorTarget

# Multiply-adds a core does in a nanosecond for each lane: two in a cycle, at 3 GHz.
_MULTIPLY_ADDS = 6.0


def launch(kernel: Kernel, target: VectorTarget) -> Launch:
    """The kernel's launch; a function of the kernel and the target, never of the number of threads."""
    if isinstance(kernel, LoopKernel):
        chosen = loops.plan(collapse(kernel), target)
        return Launch(chosen.chunks, chosen.scratch_bytes, chosen.nanoseconds)
    if isinstance(kernel, ChainKernel):
        chained = chain_blocking.plan(kernel, target)
        return Launch(chained.chunks, chained.scratch_bytes, chained.multiply_adds / _MULTIPLY_ADDS)
    lanes = target.lanes(kernel.element.name)
    if kernel.image is not None:
        _, windows = window_kernel.plan(kernel, target)
        blocking, size = windows.blocking, window_kernel.multiply_adds(kernel, windows)
    else:
        _, blocking = fused_contraction.plan(kernel, target)
        size = kernel.batch.extent * kernel.rows.extent * kernel.columns.extent * kernel.depth.extent
    return Launch(blocking.chunks, blocking.scratch_bytes, size / (lanes * _MULTIPLY_ADDS))


def saved_multiply_adds(kernel: Kernel, target: VectorTarget) -> int:
    """How many multiply-adds fewer the kernel needs than its contractions are defined by."""
    if isinstance(kernel, ChainKernel):
        dead = kernel.rows.extent * kernel.columns.extent - live_places(kernel)
        deep = sum(product.depth.extent for product in kernel.products)
        return kernel.batch.extent * dead * (deep + sum(len(s.terms) * s.free.extent for s in kernel.sums))
    if not isinstance(kernel, ContractionKernel) or kernel.image is None:
        return 0
    size = kernel.batch.extent * kernel.rows.extent * kernel.columns.extent * kernel.depth.extent
    return size - window_kernel.multiply_adds(kernel, window_kernel.plan(kernel, target)[1])


def emit_kernel(kernel: Kernel, name: str, target: VectorTarget, *, locations: bool = False) -> str:
    """LLVM IR text of a module that defines `void name(ptr buffers, i64 begin, i64 end, ptr scratch)`.

    locations: whether instructions say which line of the kernel's text they are for; it must then be what
        `parse_kernel` made of that.
    """
    module = ir.Module(name=name)
    if locations:
        ask_for_locations(module)
    if isinstance(kernel, LoopKernel):
        loops.emit(module, name, kernel, target)
    elif isinstance(kernel, ChainKernel):
        chain_streaming.emit(module, name, kernel, target)
    elif kernel.image is not None:
        window_kernel.emit(module, name, kernel, target)
    else:
        fused_contraction.emit(module, name, kernel, target)
    text = with_attributes(str(module), target)
    _take_apart(module)
    return text


def _take_apart(module: ir.Module) -> None:
    """Break the circles in which a module's values refer to each other, so that they go without a garbage collector."""
    for function in module.functions:
        for block in function.blocks:
            for instruction in block.instructions:
                if isinstance(instruction, ir.PhiInstr):
                    instruction.incomings.clear()
            block.instructions.clear()
            block.terminator = None
        function.blocks.clear()
    module.globals.clear()
    module.namedmetadata.clear()
    module.metadata.clear()
    module._metadatacache.clear()


def with_attributes(text: str, target: VectorTarget) -> str:
    """The module's text with the target's attributes on every function it defines."""
    return re.sub(r"^(define [^\n]*\))", rf"\1 {target.attributes}", text, flags=re.MULTILINE)
