"""The entry function of a program: one native function that runs all its kernels.

    void entry(ptr arguments, ptr kernels, ptr pool, ptr workspace)

For each call it writes the addresses of the kernel's buffers into an array on its stack, and either calls the kernel
for all chunks or, with more than one chunk, hands it to the pool, whose first word is the address of

    void parallel_for(ptr pool, ptr kernel, ptr buffers, i64 chunks, ptr scratch, i64 scratch_stride)

Kernels are reached through a table of addresses, so the code holds none and can be cached.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from ..program import Call
from .control_flow import INDEX, POINTER
from .kernels import with_attributes
from .vector_target import VectorTarget


def entry_text(calls: Sequence[Call], inputs: int, arena_bytes: int, scratch_bytes: int) -> str:
    """Text that is equal for equal entry functions."""
    lines = [f"entry inputs={inputs} arena={arena_bytes} scratch={scratch_bytes}"]
    lines += [
        f"{call.kernel} {call.chunks} {' '.join(f'{p.kind}:{p.position}' for p in call.places)}" for call in calls
    ]
    return "\n".join(lines)


def emit_entry(
    name: str, calls: Sequence[Call], inputs: int, arena_bytes: int, scratch_bytes: int, target: VectorTarget
) -> str:
    """LLVM IR text of a module that defines the entry function."""
    module = ir.Module(name=name)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 4), name)
    arguments, kernels, pool, workspace = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    most = max((len(call.places) for call in calls), default=1)
    slots = builder.alloca(POINTER, max(1, most))
    number = ir.IntType(64)
    byte = ir.IntType(8)

    def element(base: ir.Value, position: int) -> ir.Value:
        return builder.gep(base, [ir.Constant(INDEX, position)], source_etype=POINTER)

    parallel_for = None
    if any(call.chunks > 1 for call in calls):
        parallel_for = builder.load(pool, typ=POINTER)
    scratch = builder.gep(workspace, [ir.Constant(INDEX, arena_bytes)], source_etype=byte)
    kernel_type = ir.FunctionType(ir.VoidType(), [POINTER, number, number, POINTER])
    parallel_type = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, number, POINTER, number])
    for call in calls:
        for position, place in enumerate(call.places):
            if place.kind == "arena":
                address = builder.gep(workspace, [ir.Constant(INDEX, place.position)], source_etype=byte)
            else:
                offset = place.position + (inputs if place.kind == "output" else 0)
                address = builder.load(element(arguments, offset), typ=POINTER)
            builder.store(address, element(slots, position))
        kernel = builder.load(element(kernels, call.kernel), typ=POINTER)
        chunks = ir.Constant(number, call.chunks)
        if call.chunks > 1:
            stride = ir.Constant(number, scratch_bytes)
            _call(builder, parallel_for, parallel_type, [pool, kernel, slots, chunks, scratch, stride])
        else:
            _call(builder, kernel, kernel_type, [slots, ir.Constant(number, 0), chunks, scratch])
    builder.ret_void()
    return with_attributes(str(module), target)


def _call(builder: ir.IRBuilder, address: ir.Value, kind: ir.FunctionType, arguments: list[ir.Value]) -> None:
    """Call through an address: opaque pointers carry no function type, so the call is told."""
    builder.call(_Callee(address, kind), arguments)


class _Callee:
    """A pointer value with the function type to call it by, which is all that llvmlite asks of a callee."""

    def __init__(self, value: ir.Value, kind: ir.FunctionType):
        self.type = value.type
        self.function_type = kind
        self.get_reference = value.get_reference
