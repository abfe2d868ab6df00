"""Runs compiled programs with every array between pages that may not be touched, and compares with the interpreter.

A script, as an access out of bounds ends the process: `python guarded_programs.py NAME...` runs the named families of
examples (all of them without names) for the vector width that KAUN_TARGET_VECTOR_BITS asks for. Each kernel runs by
itself, its arrays against the end or the start of their pages and its scratch memory full of rubbish, chunk by chunk in
either order; then the whole program runs at once and must give the same bits, and once more with its outputs over the
inputs that they may be written over.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import graph_strategies
import numpy as np
from graph_strategies import Builder, Example, assert_outputs_agree
from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, print_graph
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule import lower_contraction
from kaun.compiler.schedule.placing import Side
from kaun.runtime import target as targets
from kaun.runtime.program import Executable
from loss_graphs import losses
from update_graphs import updates

from kaun.execution import vector_target

Array = Any
RUBBISH = 0xFF  # Read as floats: NaN.
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class GuardedArray:
    """Memory of `nbytes` at the end, or the start, of pages between two that may not be touched."""

    def __init__(self, nbytes: int, at_end: bool) -> None:
        page = mmap.PAGESIZE
        inner = max(1, -(-nbytes // page)) * page
        self._pages = mmap.mmap(-1, inner + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self._first, self._inner, self._nbytes = start + page, inner, nbytes
        ctypes.memset(self._first, RUBBISH, inner)
        self.address = self._first + (inner - nbytes if at_end else 0)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for guard in (start, start + page + inner):
            if protect(guard, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def write(self, array: Array) -> None:
        data = np.ascontiguousarray(array).tobytes()
        ctypes.memmove(self.address, data, len(data))

    def read(self, node: Node) -> Array:
        return np.frombuffer(ctypes.string_at(self.address, self._nbytes), node.dtype.numpy).reshape(node.shape)

    def is_intact(self) -> bool:
        """Whether nothing was written beside the array."""
        everything, before = ctypes.string_at(self._first, self._inner), self.address - self._first
        return set(everything[:before] + everything[before + self._nbytes :]) <= {RUBBISH}


def run(graph: Graph, arguments: Sequence[Array], source: random.Random) -> list[Array]:
    """The outputs, kernel by kernel in guarded memory and checked against the whole program."""
    target = targets.host()
    if source.random() < 0.3:
        # Small caches: more blocks and more chunks. Of the target, as compiled kernels are kept by its key.
        target = dataclasses.replace(target, l1_bytes=1024, l2_bytes=4096, l3_bytes=8192)
    compilation = Compilation(graph, vector_target(target))
    executable = Executable(compilation.program, target)
    memory: dict[Node, GuardedArray] = {}

    def place(node: Node) -> GuardedArray:
        if node not in memory:
            memory[node] = GuardedArray(node.nbytes, at_end=source.random() < 0.6)
        return memory[node]

    for node, argument in zip(compilation.simplified.inputs, arguments, strict=True):
        place(node).write(argument)
    for step, call in enumerate(compilation.program.calls):
        how = compilation.launches[step]
        addresses = [place(buffer.node).address for buffer in compilation.kernels[step].kernel.buffers]
        table = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        ranges = [(0, how.chunks)] if source.random() < 0.5 else [(i, i + 1) for i in range(how.chunks)]
        scratch = GuardedArray(-(-how.scratch_bytes // 64) * 64, at_end=True)
        for begin, end in ranges[:: source.choice((1, -1))]:
            ctypes.memset(scratch.address, source.choice((0, RUBBISH)), how.scratch_bytes)
            KERNEL(executable.kernel_addresses[call.kernel])(ctypes.addressof(table), begin, end, scratch.address)
        assert scratch.is_intact()
    for node, array in memory.items():
        assert array.is_intact(), f"written beside {node}"
    # Kernels are made of the graph in which nothing says that it waits.
    outputs = compilation._without_waits[0].outputs
    results = [place(node).read(node) for node in outputs]
    buffers = executable.run([place(node).address for node in compilation.simplified.inputs])
    for node, where, result in zip(outputs, compilation.program.results, results, strict=True):
        if where.kind == "output":
            whole = buffers[where.position].view(node.dtype.numpy, node.shape, writable=False)
            assert whole.tobytes() == result.tobytes(), f"kernels and program differ in {node}"
    _check_in_place(compilation, executable, place, results)
    return results


def _check_in_place(
    compilation: Compilation, executable: Executable, place: Callable[[Node], GuardedArray], results: Sequence[Array]
) -> None:
    """The program gives the same bits if each output that may takes the place of an input."""
    program, inputs = compilation.program, compilation.simplified.inputs
    donors = {output: given for given, output in program.aliases}
    outputs = [
        place(inputs[donors[number]]) if number in donors else GuardedArray(array.nbytes, at_end=True)
        for number, array in enumerate(program.outputs)
    ]
    addresses = [place(node).address for node in inputs] + [array.address for array in outputs]
    executable.start(executable.record(addresses))
    for node, where, result in zip(compilation._without_waits[0].outputs, program.results, results, strict=True):
        array = outputs[where.position] if where.kind == "output" else place(inputs[where.position])
        assert array.is_intact(), f"written beside {node}"
        assert array.read(node).tobytes() == result.tobytes(), f"in place, the program differs in {node}"


def check(example: Example, source: random.Random) -> None:
    with np.errstate(all="ignore"):
        expected = evaluate(example.graph, example.arguments)
    assert_outputs_agree(example, run(example.graph, example.arguments, source), expected)


# Random graphs that are rich in one family of ops


def _random(count: int, extents: Sequence[int], steps: Callable[[Builder], list[Any]]) -> Iterator[Example]:
    class Chosen(Builder):
        def __init__(self, source: random.Random) -> None:
            super().__init__(source)
            self.steps = steps(self)

    for seed in range(count):
        usual = graph_strategies.Builder, graph_strategies.EXTENTS, graph_strategies.LARGEST_SIZE
        graph_strategies.Builder = Chosen  # type: ignore[misc]
        graph_strategies.EXTENTS, graph_strategies.LARGEST_SIZE = tuple(extents), 30000
        try:
            yield graph_strategies.build(random.Random(seed), steps=12)
        finally:
            graph_strategies.Builder = usual[0]  # type: ignore[misc]
            graph_strategies.EXTENTS, graph_strategies.LARGEST_SIZE = usual[1:]


def _moves(b: Builder) -> list[Any]:
    return [b.reshape, b.permute, b.broadcast, b.slice, b.flip, b.pad, b.concat, b.window]


def movement() -> Iterator[Example]:
    """Long chains of movement, gathered, multiplied and reduced."""
    extents = (1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 17, 24)
    yield from _random(14, extents, lambda b: _moves(b) * 2 + [b.gather, b.contract, b.contract, b.binary, b.reduce])


def reductions() -> Iterator[Example]:
    """Reductions over mixed axes, broadcast back into what they reduced."""
    extents = (1, 2, 3, 5, 8, 12, 17, 31, 33, 64)
    steps = ("reduce", "reduce", "argument", "binary", "binary", "broadcast", "unary", "permute", "where", "cast")
    yield from _random(10, extents, lambda b: [getattr(b, name) for name in steps])


def scatters() -> Iterator[Example]:
    """Scatters and gathers by indices of any integer dtype, repeated and out of range."""
    extents = (0, 1, 2, 3, 5, 8, 13, 17)
    yield from _random(12, extents, lambda b: [b.scatter_add, b.gather, b.leaf, b.cast, b.binary, b.reduce, *_moves(b)])


def large_scatters() -> Iterator[Example]:
    """Results of blocks of rows, evenly divided or not: repeated rows, rows out of range, and block after block."""
    for rows, columns, count in ((4096, 64, 30), (4099, 65, 17), (1111, 7 * 37, 64)):
        for dtype in (dtypes.int32, dtypes.uint16, dtypes.int64):
            indices = ops.input_(identity="indices", dtype=dtype, shape=(count,))
            updates = ops.input_(identity="updates", dtype=dtypes.float32, shape=(count, columns))
            draw = np.random.default_rng(rows)
            places = draw.integers(-3 if dtype.kind == "signed" else 0, rows + 4, count).astype(dtype.numpy)
            places[::3] = places[0]
            values = draw.standard_normal((count, columns)).astype(np.float32)
            graph = Graph((indices, updates), (ops.scatter_add(indices, updates, size=rows),))
            yield Example(graph, (places, values), (0.0,))


def gathered_rows() -> Iterator[Example]:
    """Rows long enough to be asked for before they are read, with the last ones at the end of every buffer."""
    for rows, columns, count in ((300, 64, 100), (7, 65, 3), (40, 129, 1), (9, 32, 4), (50, 1025, 9)):
        for dtype in (dtypes.int32, dtypes.uint8, dtypes.int64):
            table = ops.input_(identity="table", dtype=dtypes.float32, shape=(rows, columns))
            indices = ops.input_(identity="indices", dtype=dtype, shape=(count,))
            draw = np.random.default_rng(count)
            places = draw.integers(-3 if dtype.kind == "signed" else 0, min(rows + 4, 255), count).astype(dtype.numpy)
            places[-1] = min(rows - 1, 255)
            values = draw.standard_normal((rows, columns)).astype(np.float32)
            graph = Graph((table, indices), (ops.gather(table, indices),))
            yield Example(graph, (values, places), (0.0,))


# Convolutions with both gradients


def convolutions() -> Iterator[Example]:
    """Forward and both gradients: odd sizes, strides, both dilations, groups, uneven padding, a bias and a relu."""
    source, made = random.Random(5), 0
    while made < 6:
        example = _convolution(source)
        if example is not None:
            made += 1
            yield example


def images() -> Iterator[Example]:
    """The same, and all that can be is read as an image, whether that pays or not: by rows or by channels."""
    source = random.Random(6)
    for swapped_first in (True, False) * 4:

        def side(self: Any, first: bool = swapped_first) -> bool | None:
            node = self.node
            for swapped in (first, not first):
                if self._image_at(Side.of(node, int(swapped))) is not None:
                    return swapped
            return None

        example = None
        while example is None:
            example = _convolution(source)
        with mock.patch.object(lower_contraction._Contract, "image_side", side):
            yield example


def _convolution(source: random.Random) -> Example | None:
    spatial, groups = source.choice((1, 2, 2)), source.choice((1, 1, 2, 3))
    inside, outside = source.choice((1, 2, 3, 8)), source.choice((1, 2, 6, 17))
    dtype = source.choice((dtypes.float32, dtypes.float64))
    size = tuple(source.randint(1, 20) for _ in range(spatial))
    kernel = tuple(source.choice((1, 2, 3, 5)) for _ in range(spatial))
    x = ops.input_(identity="x", dtype=dtype, shape=(source.choice((1, 3)), groups * inside, *size))
    w = ops.input_(identity="w", dtype=dtype, shape=(groups * outside, inside, *kernel))
    try:
        y = ops.conv_general(
            x, w, groups=groups,
            strides=tuple(source.choice((1, 1, 2, 3)) for _ in size),
            padding=tuple((source.randrange(4), source.randrange(3)) for _ in size),
            lhs_dilation=tuple(source.choice((1, 1, 2)) for _ in size),
            rhs_dilation=tuple(source.choice((1, 1, 2)) for _ in size),
        )  # fmt: skip
    except ValueError:
        return None  # The kernel does not fit.
    return _with_bias(x, w, y) if 0 < y.size <= 30000 else None


def _with_bias(x: Node, w: Node, y: Node) -> Example:
    """The convolution y of x and w with a bias and a relu, and all gradients."""
    b = ops.input_(identity="b", dtype=y.dtype, shape=y.shape[1:2])
    bias = ops.broadcast(ops.reshape(b, shape=(1, b.size, *(1 for _ in y.shape[2:]))), shape=y.shape)
    z = ops.maximum(ops.add(y, bias), full(0, y.dtype, y.shape))
    cotangent = ops.input_(identity="cotangent", dtype=y.dtype, shape=z.shape)
    return _exact((x, w, b, cotangent), (z, *gradients([z], [cotangent], [x, w, b])))


def filtered_windows() -> Iterator[Example]:
    """3x3 windows that move by one, with enough channels for minimal filtering: odd and even sizes, padding, groups."""
    shapes = (
        (3, 32, 32, (8, 32), 1, 1), (2, 40, 48, (13, 33), 1, 1), (5, 48, 33, (4, 17), 0, 1), (4, 40, 24, (6, 24), 2, 1),
        (2, 33, 35, (7, 9), 1, 1), (3, 32, 32, (2, 18), 1, 1), (2, 64, 64, (12, 10), 1, 2), (9, 32, 64, (4, 4), 1, 1),
    )  # fmt: skip
    for number, (count, inside, outside, size, around, groups) in enumerate(shapes):
        dtype = (dtypes.float32, dtypes.float32, dtypes.float64, dtypes.bfloat16)[number % 4]
        x = ops.input_(identity="x", dtype=dtype, shape=(count, inside, *size))
        w = ops.input_(identity="w", dtype=dtype, shape=(outside, inside // groups, 3, 3))
        y = ops.conv_general(
            x, w, strides=(1, 1), padding=((around, around),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1),
            groups=groups,
        )  # fmt: skip
        if dtype is dtypes.bfloat16:  # The interpreter would round the sums before the bias, kernels only after it.
            cotangent = ops.input_(identity="cotangent", dtype=dtype, shape=y.shape)
            yield _exact((x, w, cotangent), (y, *gradients([y], [cotangent], [x, w])))
        else:
            yield _with_bias(x, w, y)


# Contractions with column sums


def column_sums() -> Iterator[Example]:
    """Sums over the depth beside a product, some with an update: odd and deep sizes, batches, masks, narrow types."""
    source = random.Random(12)
    kinds = (dtypes.float32, dtypes.float32, dtypes.float64, dtypes.int32, dtypes.float16)
    sizes = (1, 2, 3, 8, 17, 31, 64, 130)
    for number in range(30):
        dtype = kinds[number % len(kinds)]
        batch, depth = source.choice((1, 1, 3)), source.choice((*sizes, 600))
        rows, columns = source.choice(sizes), source.choice(sizes)
        x = ops.input_(identity="x", dtype=dtype, shape=(batch, depth, rows))
        g = ops.input_(identity="g", dtype=dtype, shape=(batch, depth, columns))
        b = ops.input_(identity="b", dtype=dtype, shape=(batch, columns))
        left, right = (
            ops.where(ops.lt(full(0, dtype, node.shape), node), ops.add(node, node), node) if computed else node
            for node, computed in ((x, source.random() < 0.6), (g, source.random() < 0.4))
        )
        product = ops.dot_general(left, right, lhs_batch=(0,), rhs_batch=(0,), lhs_contract=(1,), rhs_contract=(1,))
        summed = ops.reduce_sum(right, axes=(1,))
        example = _exact((x, g, b), (product, ops.sub(b, summed), *([summed] if source.random() < 0.3 else [])))
        if number % 2:
            yield example
            continue
        # What is computed on the left is read as an image, whether that pays or not.
        with mock.patch.object(lower_contraction._Contract, "image_side", _left_image):
            yield example


def _left_image(build: Any) -> bool | None:
    return None if build._image_at(Side.of(build.node, 0)) is None else False


def _exact(inputs: Sequence[Node], outputs: Sequence[Node]) -> Example:
    """Small integers as arguments, so that every order of summation gives the same floats."""
    draw = np.random.default_rng(len(inputs))
    arguments = tuple(draw.integers(-3, 4, node.shape).astype(node.dtype.numpy) for node in inputs)
    return Example(Graph(tuple(inputs), tuple(outputs)), arguments, (0.0,) * len(outputs))


# Kernels that once were wrong


def narrow_single_lanes() -> Iterator[Example]:
    """A tail of one lane is stored narrow: 17 elements of 16 bits and 8 bits."""
    for dtype in (dtypes.bfloat16, dtypes.float16, dtypes.uint8, dtypes.bool_):
        for extent in (5, 9, 17, 33):
            x = ops.input_(identity="x", dtype=dtypes.float32, shape=(extent,))
            yield _exact((x,), (ops.cast(ops.abs_(ops.add(x, x)), dtype=dtype),))


def last_blocks_of_images() -> Iterator[Example]:
    """Weight gradients whose last block of places is shorter than the others and begins inside an image."""
    for channels, outputs, length, size in ((4, 16, 1723, 5), (2, 32, 881, 5), (1, 64, 1819, 5)) * 2:
        x = ops.input_(identity="x", dtype=dtypes.float32, shape=(2, channels, length))
        w = ops.input_(identity="w", dtype=dtypes.float32, shape=(outputs, channels, size))
        around = ((size // 2, size // 2),)
        y = ops.conv_general(x, w, groups=1, strides=(1,), padding=around, lhs_dilation=(1,), rhs_dilation=(1,))
        cotangent = ops.input_(identity="cotangent", dtype=dtypes.float32, shape=y.shape)
        yield _exact((x, w, cotangent), gradients([y], [cotangent], [w]))


def rows_of_padding() -> Iterator[Example]:
    """Rows that are all padding beside rows whose last lanes are: nothing outside is read, all of it is the padding."""
    for columns, high in ((24, 2), (8, 5), (40, 3), (17, 16)):
        x = ops.input_(identity="x", dtype=dtypes.float32, shape=(4, 2, columns))
        y = ops.pad(x, low=(3, 2, 0), high=(2, 3, high), interior=(0, 2, 0), value=0.0)
        z = ops.pad(x, low=(3, 2, 1), high=(2, 3, high), interior=(1, 0, 0), value=2.0)
        yield _exact((x,), (y, ops.exp(ops.mul(z, full(0, z.dtype, z.shape)))))


def reversed_halves() -> Iterator[Example]:
    """Two reversed arrays, one after the other: each is read in its own rows only."""
    for dtype in (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64):
        x = ops.input_(identity="x", dtype=dtype, shape=(32, 25))
        y = ops.input_(identity="y", dtype=dtype, shape=(32, 25))
        for first in (x, y):
            yield _exact((x, y), (ops.flip(ops.concat(first, y, axis=0), axes=(0, 1)),))


def rows_found_by_reductions() -> Iterator[Example]:
    """A row is looked up by a number that the same kernel reduces, in loops that become one."""
    table = ops.input_(identity="table", dtype=dtypes.float32, shape=(7, 3, 5))
    numbers = ops.input_(identity="numbers", dtype=dtypes.int32, shape=(13, 2))
    total = ops.reduce_sum(numbers, axes=(0, 1))
    row = ops.gather(table, total)
    yield _exact((table, numbers), (row, total))
    last = ops.gather(ops.reshape(table, shape=(105,)), total)
    yield _exact((table, numbers), (last, total))
    yield _exact((table, numbers), (last,))


def padded_columns_without_vectors() -> Iterator[Example]:
    """Columns of a contraction are padded for float32's vectors also where float64 has none."""
    for size in (5, 7, 11):
        x = ops.input_(identity="x", dtype=dtypes.float64, shape=(1, 2, size + 2, size + 2))
        w = ops.input_(identity="w", dtype=dtypes.float64, shape=(3, 2, 3, 3))
        ones = (1, 1)
        y = ops.conv_general(
            x, w, strides=ones, padding=((0, 0), (0, 0)), lhs_dilation=ones, rhs_dilation=ones, groups=1
        )
        yield _exact((x, w), (ops.neg(y), y))


def rows_read_again() -> Iterator[Example]:
    """Rows of functions that are reduced, then used again: kept in scratch memory, along vectors and across them."""
    shapes = ((1, 1), (3, 5), (5, 64), (7, 67), (2, 3, 19), (40, 3), (130, 10), (2, 1100), (33, 2, 9))
    for number, shape in enumerate(shapes):
        dtype = (dtypes.float32, dtypes.float64, dtypes.bfloat16)[number % 3]
        x = ops.input_(identity="x", dtype=dtype, shape=shape)
        inner = tuple(range(1, len(shape)))

        def over_row(value: Node, inner: tuple[int, ...] = inner, shape: tuple[int, ...] = shape) -> Node:
            kept = ops.reshape(value, shape=(shape[0], *(1 for _ in inner)))
            return ops.broadcast(kept, shape=shape)

        e = ops.exp(ops.sub(x, over_row(ops.reduce_max(x, axes=inner))))
        share = ops.div(e, over_row(ops.reduce_sum(e, axes=inner)))
        mean = over_row(ops.reduce_sum(ops.mul(share, x), axes=inner))
        outputs = (share, ops.mul(share, ops.sub(x, mean)))
        tolerance = {dtypes.float32: 1e-5, dtypes.float64: 1e-12, dtypes.bfloat16: 3e-2}[dtype]
        draw = np.random.default_rng(number)
        yield Example(Graph((x,), outputs), (draw.standard_normal(shape).astype(dtype.numpy),), (tolerance,) * 2)


# Chains


def attention() -> Iterator[Example]:
    """Softmax attention with its gradients: odd lengths, narrow types, masks, a window, rows and columns exchanged."""
    source = random.Random(11)
    for number in range(14):
        dtype = source.choice((dtypes.float32, dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.float16))
        entries, depth, width = source.choice((1, 2, 17)), source.choice((2, 3, 8, 17)), source.choice((1, 5, 16, 33))
        rows, columns = source.choice((35, 50, 70, 150)), source.choice((37, 47, 64, 131))
        mask = ("none", "causal", "window", "given")[number % 4]
        yield _attention(dtype, (entries, rows, columns, depth, width), mask, heads_inside=source.random() < 0.4)


def _attention(dtype: dtypes.DType, sizes: tuple[int, ...], mask: str, heads_inside: bool) -> Example:
    entries, rows, columns, depth, width = sizes

    def operand(name: str, length: int, features: int) -> tuple[Node, Node]:
        """An input, and the same with the batch axis first."""
        shape = (length, entries, features) if heads_inside else (entries, length, features)
        given = ops.input_(identity=name, dtype=dtype, shape=shape)
        return given, ops.permute(given, axes=(1, 0, 2)) if heads_inside else given

    (q, queries), (k, keys), (v, values) = (
        operand(name, length, features)
        for name, length, features in (("q", rows, depth), ("k", columns, depth), ("v", columns, width))
    )
    product = {"lhs_batch": (0,), "rhs_batch": (0,), "lhs_contract": (2,)}
    scores = ops.cast(ops.dot_general(queries, keys, rhs_contract=(2,), **product), dtype=dtype.compute)
    row, column = (ops.iota(shape=scores.shape, axis=axis, dtype=dtypes.int64) for axis in (1, 2))
    inputs = [q, k, v]
    far_down = full(float(np.finfo(scores.dtype.numpy).min) / 2, scores.dtype, scores.shape)
    if mask in ("causal", "window"):
        scores = ops.where(ops.le(column, row), scores, far_down)
    if mask == "window":
        near = ops.lt(row, ops.add(column, full(40, dtypes.int64, column.shape)))
        scores = ops.where(near, scores, far_down)
    if mask == "given":
        seen = ops.input_(identity="seen", dtype=dtypes.bool_, shape=(entries, 1, columns))
        inputs.append(seen)
        scores = ops.where(ops.broadcast(seen, shape=scores.shape), scores, far_down)

    def along(x: Node) -> Node:
        return ops.broadcast(ops.reshape(x, shape=(entries, rows, 1)), shape=scores.shape)

    largest_score = ops.stop_gradient(ops.reduce_max(scores, axes=(2,)))
    exponentials = ops.exp(ops.sub(scores, along(largest_score)))
    weights = ops.cast(ops.div(exponentials, along(ops.reduce_sum(exponentials, axes=(2,)))), dtype=dtype)
    result = ops.dot_general(weights, values, rhs_contract=(1,), **product)
    cotangent = ops.input_(identity="cotangent", dtype=dtype, shape=result.shape)
    outputs = (result, *gradients([result], [cotangent], inputs[:3]))
    draw = np.random.default_rng(rows)
    arguments = [draw.normal(size=node.shape).astype(node.dtype.numpy) for node in (*inputs[:3], cotangent)]
    if mask == "given":
        arguments.insert(3, draw.random(inputs[3].shape) < 0.7)
    graph = Graph((*inputs, cotangent), outputs)
    # The interpreter rounds to the narrow types at every step.
    relative = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}[dtype.name]
    largest = [float(np.abs(value.astype(np.float64)).max()) for value in evaluate(graph, arguments)]
    return Example(graph, tuple(arguments), tuple(relative * (1 + each) for each in largest))


def places_of_extrema() -> Iterator[Example]:
    """argmax and argmin among equals, infinities and NaN: along rows and across them, written out or in loops."""
    for number, shape in enumerate(((3, 70), (70, 3), (5, 4, 18, 2), (2, 130), (19, 40), (1, 1))):
        for dtype in (dtypes.float32, dtypes.float64, dtypes.int32):
            x = ops.input_(identity="x", dtype=dtype, shape=shape)
            draw = np.random.default_rng(number)
            argument = draw.integers(-2, 3, shape).astype(dtype.numpy)
            if dtype.is_float:
                argument[draw.random(shape) < 0.05] = np.nan
                argument[0], argument[-1, ..., :1] = -np.inf, np.inf
            for axis in (1, len(shape) - 1):
                outputs = (ops.argmax(x, axis=axis), ops.argmin(x, axis=axis), ops.reduce_max(x, axes=(axis,)))
                yield Example(Graph((x,), outputs), (argument,), (0.0,) * 3)


FAMILIES: dict[str, Callable[[], Iterator[Example]]] = {
    family.__name__: family
    for family in (
        movement, reductions, scatters, large_scatters, gathered_rows, convolutions, images, filtered_windows,
        last_blocks_of_images, narrow_single_lanes, rows_of_padding, reversed_halves, rows_found_by_reductions,
        padded_columns_without_vectors, column_sums, rows_read_again, places_of_extrema, attention,
    )
}  # fmt: skip


FAMILIES["updates"] = updates
FAMILIES["losses"] = losses


def main(names: Sequence[str]) -> None:
    for name in names or FAMILIES:
        for number, example in enumerate(FAMILIES[name]()):
            print(f"{name} {number}", flush=True)
            try:
                check(example, random.Random(number))
            except Exception as error:
                error.add_note(print_graph(example.graph))
                raise


if __name__ == "__main__":
    main(sys.argv[1:])
