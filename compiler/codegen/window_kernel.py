"""A contraction kernel with an image as an LLVM function: one of two window templates, fed from loop IR.

The image is given to the template as the table of its places. An image that is just an array in memory is read where it
lies; of any other (padding, a mask, a cast, an activation) the box a block sees is computed. Windows of 3x3 that move
by one are multiplied by minimal filtering where that is planned to take less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import gcd

import numpy as np
from llvmlite import ir

from ..schedule import index as indexing
from ..schedule.collapse import all_values, summed_origin
from ..schedule.index import Variable
from ..schedule.loop_ir import ContractionKernel, Image, Load, Substitution, Value
from . import filter_contraction, window_contraction
from .arithmetic import I64, constant, memory_type
from .contraction import Packed
from .control_flow import offset, smaller
from .filter_blocking import FilterPlan, plan_filter
from .fused_contraction import Callbacks, right_operand, start_kernel
from .lanes import VectorLoop, lane_step
from .locations import located
from .panels import Axis, PanelWriter
from .vector_target import VectorTarget
from .window_blocking import WindowContraction, WindowPlan, plan_windows, values_along


def plan(kernel: ContractionKernel, target: VectorTarget) -> tuple[WindowContraction, WindowPlan | FilterPlan]:
    """What the template is asked for, and how it will do it."""
    contraction = WindowContraction(
        kernel.batch.extent, kernel.rows, kernel.columns.extent, kernel.depth, kernel.element.name, _image(kernel),
        _in_place(kernel), _is_gathered(kernel, target), _taps_together(kernel, target) is not None, _arrays(kernel),
        _rows_together(kernel, target),
        bool(kernel.column_stores),
    )  # fmt: skip
    windows = plan_windows(contraction, target)
    filtering = None if kernel.column_stores else plan_filter(contraction, target, windows.slots)
    return contraction, filtering or windows


def multiply_adds(kernel: ContractionKernel, chosen: WindowPlan | FilterPlan) -> int:
    """How many multiply-adds the kernel does."""
    if isinstance(chosen, FilterPlan):
        return 16 * kernel.batch.extent * chosen.all_rows * chosen.all_steps * kernel.columns.extent
    return kernel.batch.extent * kernel.rows.extent * kernel.columns.extent * kernel.depth.extent


def _image(kernel: ContractionKernel) -> Image:
    assert kernel.image is not None
    return kernel.image


def _in_place(kernel: ContractionKernel) -> tuple[int, ...] | None:
    """The distances in memory of neighbours on the image's axes, if it is an array of the element type."""
    load, axes = kernel.left, _image(kernel).axes
    if not isinstance(load, Load) or load.guard or load.buffer.dtype is not kernel.element:
        return None
    coefficients = dict(load.index.terms)
    if any(atom not in axes for atom in coefficients):
        return None
    return tuple(coefficients.get(axis, 0) for axis in axes)


def _is_gathered(kernel: ContractionKernel, target: VectorTarget) -> bool:
    """Whether the right operand's elements lie together along neither the columns nor the depth."""
    loops = [VectorLoop(variable, target.lanes(kernel.element.name)) for variable in (kernel.columns, kernel.depth)]
    loads = [value for value in all_values([kernel.right]) if isinstance(value, Load)]
    return any(all(lane_step(load.index, loop) not in (0, 1) for loop in loops) for load in loads)


def _taps_together(kernel: ContractionKernel, target: VectorTarget) -> tuple[Variable, Variable, Value] | None:
    """The right operand with its depth as channels and nine taps, if the elements of the taps lie together."""
    if kernel.depth.extent % 9:
        return None
    channel, tap = Variable("channel", kernel.depth.extent // 9), Variable("tap", 9)
    right = Substitution({kernel.depth: indexing.of(channel) * 9 + indexing.of(tap)}).value(kernel.right)
    loop = VectorLoop(tap, target.lanes(kernel.element.name))
    loads = [value for value in all_values([right]) if isinstance(value, Load)]
    if loop.lanes > 1 and all(lane_step(load.index, loop) in (-1, 0, 1) for load in loads):
        return channel, tap, right
    return None


def _arrays(kernel: ContractionKernel) -> int:
    """How many arrays the epilogue reads and writes row by row."""
    values = all_values([store.value for store in kernel.stores])
    loads = [v for v in values if isinstance(v, Load) and kernel.rows in v.index.variables]
    return len(kernel.stores) + len({load.buffer for load in loads})


def _rows_together(kernel: ContractionKernel, target: VectorTarget) -> int:
    """How many consecutive rows the results lie together for; 0 if they lie together along the columns instead."""
    store, rows = kernel.stores[0], kernel.rows.extent
    along_columns = VectorLoop(kernel.columns, max(2, target.lanes(kernel.element.name)))
    if lane_step(store.index, along_columns) == 1 or rows == 1:
        return 0
    breaks = np.flatnonzero(np.diff(values_along(store.index, kernel.rows)) != 1) + 1
    return gcd(rows, *breaks.tolist())


def emit(module: ir.Module, name: str, kernel: ContractionKernel, target: VectorTarget) -> None:
    """Add the kernel's function to the module."""
    contraction, blocks = plan(kernel, target)
    part, place = Variable("part", kernel.rows.extent), kernel.rows
    if blocks.finish_rows:
        # Rows of one part lie together: what is stored where is a matter of the part and the place in it.
        size = blocks.finish_rows
        part, place = Variable("part", kernel.rows.extent // size), Variable("place", size)
        change = Substitution({kernel.rows: indexing.of(part) * size + indexing.of(place)})
        kernel = replace(kernel, stores=tuple(map(change.store, kernel.stores)))
    strides, taps = right_operand(kernel, target).strides, _taps_together(kernel, target)
    k_block, whole_blocks = Variable("block", 1), contraction.k % blocks.blocking.kc == 0
    if whole_blocks and strides is None:
        # Blocks of one length repeat the same steps: vectors along them start where a block does.
        k_block, step = Variable("block", contraction.k // blocks.blocking.kc), Variable("step", blocks.blocking.kc)
        change = Substitution({kernel.depth: indexing.of(k_block) * blocks.blocking.kc + indexing.of(step)})
        kernel = replace(kernel, depth=step, right=change.value(kernel.right))
    function, builder, pointers = start_kernel(module, name, kernel)
    callbacks = Callbacks(kernel, right_operand(kernel, target), blocks.blocking, target, builder, pointers)
    right = callbacks.right()
    if isinstance(right, Packed):
        right = Packed(partial(_pack_right, callbacks, k_block, whole_blocks), kernel.right.origin)
        if isinstance(blocks, FilterPlan) and blocks.by_places and contraction.gathered and taps is not None:
            right = Packed(partial(_pack_taps, callbacks, taps), kernel.right.origin)

    def finish(
        builder: ir.IRBuilder, batch: ir.Value, of: ir.Value, m: ir.Value, n: ir.Value, sums: ir.Value, valid: int
    ) -> None:
        bindings = {kernel.batch: batch, part: of, place: m, kernel.columns: n}
        along = place if blocks.finish_rows else kernel.columns
        callbacks.store(bindings, along, builder, sums, valid)

    shared = function, builder, contraction
    with located(builder, kernel.origin):
        if isinstance(blocks, FilterPlan):
            box = partial(_box_of_channels, callbacks, blocks, contraction.depth)
            filter_contraction.emit(*shared, blocks, target, box, right, strides or (0, 0), finish)
        else:
            image = partial(_block_of_image, callbacks, blocks, contraction.depth)
            finish_columns = callbacks.finish_columns if kernel.column_stores else None
            window_contraction.emit(
                *shared, blocks, target, image, right, strides or (0, 0), finish, finish_columns,
                summed_origin(kernel.column_stores),
            )  # fmt: skip
    builder.ret_void()


def _pack_right(
    callbacks: Callbacks, k_block: Variable, whole_blocks: bool, builder: ir.IRBuilder, destination: ir.Value,
    batch: ir.Value, k: ir.Value, k_count: ir.Value, n: ir.Value, n_count: ir.Value,
) -> None:  # fmt: skip
    """Panels of B for one k block; if all are whole, steps are counted from the start of the block."""
    emitter, start = callbacks.bound(builder, batch), k
    if whole_blocks:
        emitter.bind(k_block, builder.udiv(k, constant(I64, callbacks.blocking.kc)))
        start = constant(I64, 0)
    callbacks.pack_right(emitter, destination, (start, k_count), (n, n_count), aligned=whole_blocks)


def _pack_taps(
    callbacks: Callbacks, taps: tuple[Variable, Variable, Value], builder: ir.IRBuilder, destination: ir.Value,
    batch: ir.Value, k: ir.Value, k_count: ir.Value, n: ir.Value, n_count: ir.Value,
) -> None:  # fmt: skip
    """One panel of B, whose elements lie together along nine taps: those of many columns turned in squares."""
    kernel, nr, emitter = callbacks.kernel, callbacks.blocking.nr, callbacks.bound(builder, batch)
    channel, tap, right = taps
    nine = constant(I64, 9)
    of_channel = Axis(channel, builder.udiv(k, nine), builder.udiv(k_count, nine), 9 * nr)
    of_tap = Axis(tap, constant(I64, 0), nine, nr, aligned=True)
    columns = Axis(kernel.columns, n, n_count, 1, aligned=True)
    PanelWriter(emitter, kernel.element, right, callbacks.lanes).turned(destination, [of_channel, of_tap], columns)


def _block_of_image(
    callbacks: Callbacks, blocks: WindowPlan, depth: Variable, builder: ir.IRBuilder, box: ir.Value, batch: ir.Value,
    m: ir.Value, k: ir.Value,
) -> ir.Value:  # fmt: skip
    """A pointer to the image's element for this row and k step: in memory, or in the box that is computed here."""
    kernel = callbacks.kernel
    image, emitter = _image(kernel), callbacks.bound(builder, batch)
    emitter.bind(kernel.rows, m)
    emitter.bind(depth, k)
    if blocks.box is None:
        load = kernel.left
        assert isinstance(load, Load)
        place = Substitution(dict(zip(image.axes, image.places, strict=True))).index(load.index)
        pointer = callbacks.pointers[load.buffer]
        return offset(builder, pointer, memory_type(load.buffer.dtype), (emitter.index(place), 1))
    starts = [emitter.index(place + at) for place, at in zip(image.places, blocks.origin, strict=True)]
    axes = _axes(builder, image, blocks.box, starts, blocks.strides)
    with located(builder, kernel.left.origin):
        PanelWriter(emitter, kernel.element, kernel.left, callbacks.lanes).box(box, axes)
    return offset(builder, box, memory_type(kernel.element), (blocks.first, 1))


def _box_of_channels(
    callbacks: Callbacks, blocks: FilterPlan, depth: Variable, builder: ir.IRBuilder, box: ir.Value, batch: ir.Value,
    m: ir.Value, k: ir.Value, channels: ir.Value,
) -> None:  # fmt: skip
    """The box of the image for this row and k step, with its channels side by side."""
    kernel = callbacks.kernel
    image, emitter = _image(kernel), callbacks.bound(builder, batch)
    emitter.bind(kernel.rows, m)
    emitter.bind(depth, k)
    starts = [emitter.index(place + at) for place, at in zip(image.places, blocks.origin, strict=True)]
    axes = _axes(builder, image, blocks.box, starts, blocks.strides)
    across = replace(axes[blocks.channel], count=channels)
    # From far apart to close together, as in the box.
    others = sorted((a for a in axes if a.step != 1), key=lambda axis: -axis.step)
    writer = PanelWriter(emitter, kernel.element, kernel.left, callbacks.lanes)
    loop = VectorLoop(across.variable, callbacks.lanes)
    loads = [value for value in all_values([kernel.left]) if isinstance(value, Load)]
    with located(builder, kernel.left.origin):
        if callbacks.lanes == 1 or any(lane_step(load.index, loop) == 1 for load in loads):
            writer.box(box, [*others, across])
        else:
            # Lines of an image begin where it does.
            writer.turned(box, [*others[:-1], replace(others[-1], aligned=True)], across)


def _axes(
    builder: ir.IRBuilder, image: Image, box: Sequence[int], starts: Sequence[ir.Value], strides: Sequence[int]
) -> list[Axis]:
    """The box as axes to write along; what of it would lie behind the image is not there.

    A box may be as long as the image and yet begin inside it: that of a last block, which is shorter than the others.
    """
    return [
        Axis(variable, start, smaller(builder, builder.sub(constant(I64, variable.extent), start), extent), stride)
        for variable, extent, start, stride in zip(image.axes, box, starts, strides, strict=True)
    ]
