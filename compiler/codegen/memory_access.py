"""Emits loads and stores: one element, vectors that lie together, stretches shuffled into place, gathers and scatters.

What may not be touched is masked, or read elsewhere: no lane reaches outside its buffer, whatever becomes of its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from ..schedule.loop_ir import Load, Store
from .arithmetic import both, intrinsic, lanes_of, mask_flags, masked_store, memory_type, suffix
from .constants import integer, lane_mask, lane_order
from .control_flow import POINTER
from .lanes import lane_offsets

if TYPE_CHECKING:
    from .emitter import Emitter

# A stretch of memory this many vectors long is loaded whole rather than gathered lane by lane.
_LONGEST_STRETCH = 4


def load(emitter: Emitter, load: Load) -> ir.Value:
    """The loaded value in a register: a vector if its place depends on the vectorised variable."""
    step = emitter.lane_step(load.index)
    if step == 0:
        raw = _scalar_load(emitter, load)
    elif step == 1:
        raw = _contiguous_load(emitter, load)
    else:
        shuffled = _shuffled_load(emitter, load)
        raw = shuffled if shuffled is not None else _gathered_load(emitter, load)
    return emitter.arithmetic.from_memory(raw, load.buffer.dtype)


def store(emitter: Emitter, store: Store) -> None:
    """Emit a store at the builder's position."""
    builder, dtype = emitter.builder, store.buffer.dtype
    value = emitter.evaluate(store.value)
    varies = emitter.varies(store.index.variables)
    if store.accumulate:
        held = load(emitter, Load(dtype.compute, store.buffer, store.index, store.guard))
        if varies:
            value, held = emitter.spread(value), emitter.spread(held)
        value = emitter.arithmetic.apply("add", [held, value], dtype, dtype)
    if varies:
        value = emitter.spread(value)
    raw = emitter.arithmetic.to_memory(value, dtype)
    guard = emitter.guard(store.guard)
    if lanes_of(raw):
        _vector_store(emitter, store, raw, _mask(emitter, guard))
        return
    address = emitter.address(store.buffer, store.index, guard is None)
    if guard is None:
        builder.store(raw, address, align=dtype.itemsize)
        return
    before = builder.block
    with builder.if_then(guard):
        builder.store(raw, address, align=dtype.itemsize)
    emitter.advance(before, builder.block)


def _mask(emitter: Emitter, guard: ir.Value | None) -> ir.Value | None:
    """The lanes that may touch memory, None for all."""
    active = emitter.active_mask()
    if guard is None:
        return active
    guard = emitter.spread(guard)
    return guard if active is None else both(emitter.builder, guard, active)


def _all_lanes(count: int) -> ir.Value:
    return lane_mask([1] * count)


def _is_known(mask: ir.Value | None) -> bool:
    """Whether which lanes may touch memory is known at compile time."""
    return mask is None or isinstance(mask, ir.Constant)


def _flags(mask: ir.Value | None, count: int) -> list[bool]:
    """A mask that is known, lane by lane."""
    return [True] * count if mask is None else mask_flags(mask)


def _readable(emitter: Emitter, pointer: ir.Value, kind: ir.VectorType, allowed: ir.Value | None) -> ir.Value:
    """`pointer`, or where a vector may not be read a pointer to zeros.

    A splat of `allowed` as the mask of the load would mean the same, but LLVM 22 turns some of those into
    loads that always touch memory (as the memory operand of a shuffle, or where half of the mask is off).
    """
    if allowed is None:
        return pointer
    module, name = emitter.builder.module, f"zeros.{suffix(kind)}"
    zeros = module.globals.get(name)
    if zeros is None:
        zeros = ir.GlobalVariable(module, kind, name)
        zeros.linkage, zeros.global_constant, zeros.initializer = "internal", True, ir.Constant(kind, None)
    return emitter.builder.select(allowed, pointer, zeros)


# Loads


def _scalar_load(emitter: Emitter, load: Load) -> ir.Value:
    """One element for all lanes; a guard that does not hold reads a safe place instead."""
    builder, element = emitter.builder, memory_type(load.buffer.dtype)
    guard = emitter.guard(load.guard)
    place = emitter.index(load.index)
    if guard is not None:
        zero = integer(64, 0)
        if lanes_of(guard):
            # Some lanes may be inside: the place is either right for them or clamped and not used.
            place = builder.select(builder.icmp_signed("<", place, zero), zero, place)
            top = integer(64, load.buffer.size - 1)
            place = builder.select(builder.icmp_signed(">", place, top), top, place)
        else:
            place = builder.select(guard, place, zero)
    pointer = builder.gep(emitter.pointers[load.buffer], [place], inbounds=True, source_etype=element)
    return builder.load(pointer, typ=element, align=load.buffer.dtype.itemsize)


def _contiguous_load(emitter: Emitter, load: Load) -> ir.Value:
    assert emitter.lanes is not None
    kind = ir.VectorType(memory_type(load.buffer.dtype), emitter.lanes.count)
    allowed, guard = emitter.conditions_by_lanes(load.guard)
    pointer = _readable(emitter, emitter.address(load.buffer, load.index, not load.guard), kind, allowed)
    mask = _mask(emitter, guard)
    align = load.buffer.dtype.itemsize
    if mask is None:
        return emitter.builder.load(pointer, typ=kind, align=align)
    return _masked_load(emitter, pointer, kind, mask, align)


def _masked_load(emitter: Emitter, pointer: ir.Value, kind: ir.VectorType, mask: ir.Value, align: int) -> ir.Value:
    """The lanes of the mask, zeros in the others."""
    arguments = [pointer, integer(32, align), mask, ir.Constant(kind, None)]
    return intrinsic(emitter.builder, f"llvm.masked.load.{suffix(kind)}.p0", kind, arguments)


def _shuffled_load(emitter: Emitter, load: Load) -> ir.Value | None:
    """Lanes at known distances from lane 0: the stretch they lie in is loaded whole, then shuffled into place.

    None where the stretch is too long, or where which lanes may be read is known only at run time.
    """
    assert emitter.lanes is not None
    builder, count, element = emitter.builder, emitter.lanes.count, memory_type(load.buffer.dtype)
    offsets = lane_offsets(load.index, emitter.lanes.loop)
    allowed, guard = emitter.conditions_by_lanes(load.guard)
    mask = _mask(emitter, guard)
    if offsets is None or not _is_known(mask):
        return None
    first, span = min(offsets), max(offsets) - min(offsets) + 1
    if span > _LONGEST_STRETCH * count:
        return None
    readable = _flags(mask, count)
    if not any(readable):
        return ir.Constant(ir.VectorType(element, count), None)
    wide = 1 << (span - 1).bit_length()
    touched = [0] * wide
    for offset, flag in zip(offsets, readable, strict=True):
        touched[offset - first] |= int(flag)
    stretch_mask = lane_mask(touched)
    kind = ir.VectorType(element, wide)
    address = emitter.address(load.buffer, load.index, not load.guard)
    pointer = builder.gep(address, [integer(64, first)], source_etype=element)
    pointer = _readable(emitter, pointer, kind, allowed)
    stretch = _masked_load(emitter, pointer, kind, stretch_mask, load.buffer.dtype.itemsize)
    order = lane_order(offset - first for offset in offsets)
    return builder.shuffle_vector(stretch, ir.Constant(kind, ir.Undefined), order)


def _gathered_load(emitter: Emitter, load: Load) -> ir.Value:
    assert emitter.lanes is not None
    count, element = emitter.lanes.count, memory_type(load.buffer.dtype)
    kind = ir.VectorType(element, count)
    pointers = _pointers(emitter, load)
    mask = _mask(emitter, emitter.guard(load.guard))
    if mask is None:
        mask = _all_lanes(count)
    arguments = [pointers, integer(32, load.buffer.dtype.itemsize), mask, ir.Constant(kind, None)]
    return intrinsic(emitter.builder, f"llvm.masked.gather.{suffix(kind)}.v{count}p0", kind, arguments)


def _pointers(emitter: Emitter, access: Load | Store) -> ir.Value:
    """A vector of where each lane's element is."""
    assert emitter.lanes is not None
    places, element = emitter.index_lanes(access.index), memory_type(access.buffer.dtype)
    pointers = emitter.builder.gep(emitter.pointers[access.buffer], [places], source_etype=element)
    pointers.type = ir.VectorType(POINTER, emitter.lanes.count)
    return pointers


# Stores


def _vector_store(emitter: Emitter, store: Store, raw: ir.Value, mask: ir.Value | None) -> None:
    assert emitter.lanes is not None
    count, kind, align = emitter.lanes.count, raw.type, store.buffer.dtype.itemsize
    if emitter.lane_step(store.index) == 1:
        pointer = emitter.address(store.buffer, store.index)
        if mask is None:
            emitter.builder.store(raw, pointer, align=align)
            return
        masked_store(emitter.builder, raw, pointer, mask, align)
        return
    if _shuffled_store(emitter, store, raw, mask):
        return
    arguments = [raw, _pointers(emitter, store), integer(32, align), _all_lanes(count) if mask is None else mask]
    intrinsic(emitter.builder, f"llvm.masked.scatter.{suffix(kind)}.v{count}p0", ir.VoidType(), arguments)


def _shuffled_store(emitter: Emitter, store: Store, raw: ir.Value, mask: ir.Value | None) -> bool:
    """Store lanes at known, different distances as one masked stretch of memory; False if that does not apply."""
    assert emitter.lanes is not None
    builder, count = emitter.builder, emitter.lanes.count
    offsets = lane_offsets(store.index, emitter.lanes.loop)
    if offsets is None or not _is_known(mask):
        return False
    written = _flags(mask, count)
    used = [offset for offset, allowed in zip(offsets, written, strict=True) if allowed]
    if not used:
        return True
    first, span = min(used), max(used) - min(used) + 1
    if len(set(used)) != len(used) or span > 2 * count:
        return False
    wide = 1 << (span - 1).bit_length()
    source = {offset - first: lane for lane, (offset, w) in enumerate(zip(offsets, written, strict=True)) if w}
    order = lane_order(source.get(i, 0) for i in range(wide))
    stretch = builder.shuffle_vector(raw, ir.Constant(raw.type, ir.Undefined), order)
    address = emitter.address(store.buffer, store.index)
    pointer = builder.gep(address, [integer(64, first)], source_etype=memory_type(store.buffer.dtype))
    stretch_mask = lane_mask(i in source for i in range(wide))
    masked_store(builder, stretch, pointer, stretch_mask, store.buffer.dtype.itemsize)
    return True
