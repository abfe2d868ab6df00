"""The entry function of a program: one native function that runs all its kernels.

    void entry(ptr arguments, ptr kernels, ptr pool, ptr workspace)

For each launch it writes the addresses of the buffers into an array on its stack. A chain by itself it calls: a kernel
of one chunk directly, one of several through the pool, whose first word is the address of

    void parallel_for(ptr pool, ptr kernel, ptr buffers, i64 chunks, ptr scratch, i64 scratch_stride)

Several chains are one parallel loop over their pieces. The pool runs `pieces` as its kernel, and the array starts with
a table that says whose they are:

    number of calls
    for each call: kernel | its buffers | first piece | number of pieces | number of chunks
    buffers of the first call | buffers of the second | ...

    void pieces(ptr table, i64 begin, i64 end, ptr scratch)
      for each call in the table:
          [low, high) = the part of its pieces that lies in [begin, end), counted from its first
          if low < high: kernel(buffers, low * chunks / pieces, high * chunks / pieces, scratch)

Calls of one chain have the same single piece, so that one thread runs them in order. Kernels are reached through a
table of addresses, so the code holds none and can be cached.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from ..program import Bundle, Call, Place, Program
from .control_flow import INDEX, POINTER, counted_loop, smaller
from .kernels import with_attributes
from .vector_target import VectorTarget

_KERNEL = ir.FunctionType(ir.VoidType(), [POINTER, INDEX, INDEX, POINTER])
_PARALLEL_FOR = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, INDEX, POINTER, INDEX])
# Words of one call in the table.
_WORDS = 5


def emit_entry(program: Program, name: str, target: VectorTarget) -> str:
    """LLVM IR text of a module that defines the program's entry function."""
    module = ir.Module(name=name)
    pieces = _emit_pieces(module) if any(len(bundle) > 1 for bundle in program.bundles) else None
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 4), name)
    _Entry(function, pieces, program).emit(program.bundles)
    return with_attributes(str(module), target)


class _Entry:
    """Emits the body of the entry function."""

    def __init__(self, function: ir.Function, pieces: ir.Function | None, program: Program):
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.arguments, self.kernels, self.pool, self.workspace = function.args
        self.pieces, self.inputs, self.scratch_bytes = pieces, len(program.inputs), program.scratch_bytes
        self.scratch = _byte(self.builder, self.workspace, program.arena_bytes)

    def emit(self, bundles: Sequence[Bundle]) -> None:
        words = max((_words(bundle) for bundle in bundles), default=1)
        slots = self.builder.alloca(POINTER, max(1, words))
        parallel_for = None
        if any(chain.pieces > 1 for bundle in bundles for chain in bundle) or any(len(b) > 1 for b in bundles):
            parallel_for = self.builder.load(self.pool, typ=POINTER)
        for bundle in bundles:
            if len(bundle) > 1:
                self._write_table(slots, bundle)
                self._share(parallel_for, self.pieces, slots, sum(chain.pieces for chain in bundle))
                continue
            for call in bundle[0].calls:
                self._write_buffers(slots, 0, call)
                kernel = self._kernel(call)
                if call.chunks > 1:
                    self._share(parallel_for, kernel, slots, call.chunks)
                else:
                    arguments = [slots, ir.Constant(INDEX, 0), ir.Constant(INDEX, call.chunks), self.scratch]
                    _call(self.builder, kernel, _KERNEL, arguments)
        self.builder.ret_void()

    def _share(self, parallel_for: ir.Value, kernel: ir.Value, slots: ir.Value, chunks: int) -> None:
        stride = ir.Constant(INDEX, self.scratch_bytes)
        arguments = [self.pool, kernel, slots, ir.Constant(INDEX, chunks), self.scratch, stride]
        _call(self.builder, parallel_for, _PARALLEL_FOR, arguments)

    def _kernel(self, call: Call) -> ir.Value:
        return self.builder.load(_word(self.builder, self.kernels, call.kernel), typ=POINTER)

    def _write_table(self, slots: ir.Value, bundle: Bundle) -> None:
        calls = [(chain, call) for chain in bundle for call in chain.calls]
        self._write(slots, 0, ir.Constant(INDEX, len(calls)))
        first, at, buffers = 0, 1, 1 + _WORDS * len(calls)
        for chain in bundle:
            for call in chain.calls:
                self._write(slots, at, self._kernel(call))
                self._write(slots, at + 1, _word(self.builder, slots, buffers))
                for offset, number in enumerate((first, chain.pieces, call.chunks), 2):
                    self._write(slots, at + offset, ir.Constant(INDEX, number))
                self._write_buffers(slots, buffers, call)
                at, buffers = at + _WORDS, buffers + len(call.places)
            first += chain.pieces

    def _write_buffers(self, slots: ir.Value, start: int, call: Call) -> None:
        for position, place in enumerate(call.places, start):
            self._write(slots, position, self._address(place))

    def _write(self, slots: ir.Value, position: int, value: ir.Value) -> None:
        self.builder.store(value, _word(self.builder, slots, position))

    def _address(self, place: Place) -> ir.Value:
        if place.kind == "arena":
            return _byte(self.builder, self.workspace, place.position)
        offset = place.position + (self.inputs if place.kind == "output" else 0)
        return self.builder.load(_word(self.builder, self.arguments, offset), typ=POINTER)


def _words(bundle: Bundle) -> int:
    """How many words on the stack the launch of a bundle needs."""
    calls = [call for chain in bundle for call in chain.calls]
    if len(bundle) == 1:
        return max(len(call.places) for call in calls)
    return 1 + sum(_WORDS + len(call.places) for call in calls)


def _emit_pieces(module: ir.Module) -> ir.Function:
    """The function that finds whose pieces it is given; see the top of this file."""
    function = ir.Function(module, _KERNEL, "pieces")
    function.linkage = "internal"
    table, begin, end, scratch = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    entries = _word(builder, table, 1)
    with counted_loop(builder, 0, builder.load(table, typ=INDEX)) as number:
        entry = builder.gep(entries, [builder.mul(number, ir.Constant(INDEX, _WORDS))], source_etype=POINTER)
        kernel = builder.load(entry, typ=POINTER)
        buffers = builder.load(_word(builder, entry, 1), typ=POINTER)
        first, pieces, chunks = (builder.load(_word(builder, entry, i), typ=INDEX) for i in (2, 3, 4))
        zero = ir.Constant(INDEX, 0)
        from_first = builder.sub(begin, first)
        low = builder.select(builder.icmp_signed("<", from_first, zero), zero, from_first)
        high = smaller(builder, builder.sub(end, first), pieces)
        with builder.if_then(builder.icmp_signed("<", low, high)):
            bounds = [builder.udiv(builder.mul(at, chunks), pieces) for at in (low, high)]
            _call(builder, kernel, _KERNEL, [buffers, *bounds, scratch])
    builder.ret_void()
    return function


def _word(builder: ir.IRBuilder, base: ir.Value, position: int) -> ir.Value:
    return builder.gep(base, [ir.Constant(INDEX, position)], source_etype=POINTER)


def _byte(builder: ir.IRBuilder, base: ir.Value, position: int) -> ir.Value:
    return builder.gep(base, [ir.Constant(INDEX, position)], source_etype=ir.IntType(8))


def _call(builder: ir.IRBuilder, address: ir.Value, kind: ir.FunctionType, arguments: list[ir.Value]) -> None:
    """Call through an address: opaque pointers carry no function type, so the call is told."""
    builder.call(_Callee(address, kind), arguments)


class _Callee:
    """A pointer value with the function type to call it by, which is all that llvmlite asks of a callee."""

    def __init__(self, value: ir.Value, kind: ir.FunctionType):
        self.type = value.type
        self.function_type = kind
        self.get_reference = value.get_reference
