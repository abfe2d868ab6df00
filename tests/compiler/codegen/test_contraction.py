"""The contraction template computes what NumPy does, for every shape, layout, element type and vector width."""

import ctypes
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from kaun.compiler.codegen.contraction import Blocking, Contraction, Finish, Memory, Operand, Packed, emit, plan
from kaun.compiler.codegen.control_flow import INDEX, POINTER, counted_loop, index, offset
from kaun.compiler.codegen.micro_kernel import broadcast, element_type, store_vector
from kaun.compiler.codegen.vector_target import VectorTarget, element_bits
from llvmlite import ir
from numpy.typing import NDArray

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

Array = NDArray[Any]
Chunks = list[tuple[int, int]]
Operands = Callable[[ir.IRBuilder, list[ir.Value]], tuple[Memory | Packed, Memory | Packed, Finish]]

CACHES = (32 << 10, 1 << 20, 32 << 20)
HOST_HAS_FMA = bool(llvm.get_host_cpu_features().get("fma")) or "aarch64" in llvm.get_process_triple()
AVX512 = VectorTarget(512, 32, HOST_HAS_FMA, *CACHES)
AVX2 = VectorTarget(256, 16, HOST_HAS_FMA, *CACHES)
SSE = VectorTarget(128, 16, False, *CACHES)
SCALAR = VectorTarget(0, 16, False, 0, 0, 0)
TARGETS = {"512 bits": AVX512, "256 bits": AVX2, "128 bits": SSE, "scalar": SCALAR}
TINY_CACHES = replace(AVX2, l1_bytes=2048, l2_bytes=8192, l3_bytes=16384)

_alive: list[object] = []


def kernel_text(contraction: Contraction, blocking: Blocking, target: VectorTarget, operands: Operands) -> str:
    """The kernel's module."""
    module = ir.Module("test")
    signature = ir.FunctionType(ir.VoidType(), [POINTER, INDEX, INDEX, POINTER])
    function = ir.Function(module, signature, "kernel")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    buffers = [
        builder.load(builder.gep(function.args[0], [index(i)], source_etype=POINTER), typ=POINTER) for i in range(4)
    ]
    emit(function, builder, contraction, blocking, target, *operands(builder, buffers))
    builder.ret_void()
    return str(module)


def compile_kernel(contraction: Contraction, blocking: Blocking, target: VectorTarget, operands: Operands) -> Any:
    """The kernel as a C function of (buffers, begin, end, scratch)."""
    parsed = llvm.parse_assembly(kernel_text(contraction, blocking, target, operands))
    parsed.verify()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=1
    )
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _alive.append(engine)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    return prototype(engine.get_function_address("kernel"))


def aligned(shape: tuple[int, ...], dtype: str, fill: float | None = None) -> Array:
    """A 64-byte aligned array."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + size].view(dtype).reshape(shape)
    if fill is not None:
        array[...] = fill
    return array


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Small integers: every order of summation gives the same floating-point result, so equality can be exact."""
    array = aligned(shape, dtype)
    array[...] = np.random.default_rng(seed).integers(0 if dtype.startswith("u") else -4, 5, shape)
    return array


def execute(
    contraction: Contraction,
    target: VectorTarget,
    operands: Operands,
    arrays: list[Array],
    blocking: Blocking | None = None,
    chunks: Chunks | None = None,
) -> None:
    """Compile and run the kernel, all chunks at once or range by range, each range on scratch full of rubbish."""
    blocking = blocking or plan(contraction, target)
    kernel = compile_kernel(contraction, blocking, target, operands)
    pointers = (ctypes.c_void_p * 4)(*[array.ctypes.data for array in arrays])
    for begin, end in chunks if chunks is not None else [(0, blocking.chunks)]:
        scratch = aligned((blocking.scratch_bytes + 64,), "uint8", 0xFF)  # NaN, read as floating point
        kernel(ctypes.addressof(pointers), begin, end, scratch.ctypes.data)
        assert (scratch[blocking.scratch_bytes :] == 0xFF).all(), "wrote past its scratch"


def plain(contraction: Contraction) -> Operands:
    """Both operands in dense memory, the result stored row-major."""

    def build(builder: ir.IRBuilder, buffers: list[ir.Value]) -> tuple[Memory | Packed, Memory | Packed, Finish]:
        scalar, (_, m, n, k) = element_type(contraction.element), _sizes(contraction)
        a = Memory(lambda builder, batch: offset(builder, buffers[0], scalar, (batch, m * k)))
        b = Memory(lambda builder, batch: offset(builder, buffers[1], scalar, (batch, k * n)))
        return a, b, store_rows(contraction, buffers[2])

    return build


def store_rows(contraction: Contraction, result: ir.Value) -> Finish:
    def finish(builder: ir.IRBuilder, batch: ir.Value, m: ir.Value, n: ir.Value, sums: ir.Value, valid: int) -> None:
        size = element_bits(contraction.element) // 8
        terms = ((batch, contraction.m * contraction.n), (m, contraction.n), (n, 1))
        pointer = offset(builder, result, element_type(contraction.element), *terms)
        store_vector(builder, sums, pointer, valid, size)

    return finish


def _sizes(contraction: Contraction) -> tuple[int, int, int, int]:
    return contraction.batch, contraction.m, contraction.n, contraction.k


def dense(
    batch: int, m: int, n: int, k: int, element: str = "float32", transposed_a: bool = False, transposed_b: bool = False
) -> Contraction:
    a, b = Operand((1, m) if transposed_a else (k, 1)), Operand((1, k) if transposed_b else (n, 1))
    return Contraction(batch, m, n, k, element, a, b)


def check(
    contraction: Contraction,
    target: VectorTarget,
    blocking: Blocking | None = None,
    chunks: Chunks | None = None,
) -> None:
    """Compare with NumPy exactly, and see that nothing around the result changed."""
    batch, m, n, k = _sizes(contraction)
    a, b = numbers((batch, m, k), contraction.element, 1), numbers((batch, k, n), contraction.element, 2)
    expected = np.matmul(a, b)
    stored = []
    for array, operand, order in ((a, contraction.a, k), (b, contraction.b, n)):
        kept = operand.strides is None or operand.strides == (order, 1)
        copy = aligned(array.shape if kept else array.transpose(0, 2, 1).shape, contraction.element)
        copy[...] = array if kept else array.transpose(0, 2, 1)
        stored.append(copy)
    around = aligned((batch * m * n + 64,), contraction.element, 99)
    execute(contraction, target, plain(contraction), [*stored, around, around], blocking, chunks)
    np.testing.assert_array_equal(around[: expected.size].reshape(expected.shape), expected)
    assert (around[expected.size :] == 99).all(), "wrote past the result"


AWKWARD = [
    (1, 1, 1, 1),
    (1, 1, 5, 7),
    (1, 5, 1, 7),
    (2, 3, 17, 1),
    (1, 13, 29, 31),
    (3, 7, 10, 64),
    (1, 1, 200, 50),
    (1, 67, 131, 101),
    (1, 32, 64, 16),
]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("sizes", AWKWARD, ids=str)
def test_matches_numpy_on_awkward_sizes_at_every_vector_width(
    sizes: tuple[int, int, int, int], target: VectorTarget
) -> None:
    check(dense(*sizes), target)


@pytest.mark.parametrize("target", [AVX512, AVX2, SSE, SCALAR], ids=TARGETS.keys())
@pytest.mark.parametrize("transposed_a", [False, True])
@pytest.mark.parametrize("transposed_b", [False, True])
def test_reads_operands_in_either_orientation_in_place_and_packed(
    transposed_a: bool, transposed_b: bool, target: VectorTarget
) -> None:
    contraction = dense(2, 27, 53, 37, "float32", transposed_a, transposed_b)
    for direct_a in (False, True):
        for direct_b in (False, True)[: 1 if transposed_b else 2]:
            check(contraction, target, plan(contraction, target, direct_a, direct_b))


@pytest.mark.parametrize(
    "element", ["float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_accumulates_in_every_element_type(element: str) -> None:
    check(dense(1, 19, 37, 23, element), AVX2)
    check(dense(1, 9, 11, 13, element, transposed_b=True), AVX512)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)], ids=str)
def test_an_empty_result_is_no_chunks(sizes: tuple[int, int, int, int]) -> None:
    contraction = dense(*sizes)
    assert plan(contraction, AVX2).chunks == 0
    check(contraction, AVX2)


@pytest.mark.parametrize("direct", [False, True])
def test_an_empty_sum_is_zero(direct: bool) -> None:
    contraction = dense(2, 5, 19, 0)
    check(contraction, AVX2, plan(contraction, AVX2, direct, direct))


@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("direct_a", [False, True])
def test_many_blocks_in_every_dimension(direct_a: bool, transposed_b: bool) -> None:
    contraction = dense(2, 61, 157, 523, "float32", False, transposed_b)
    blocking = plan(contraction, TINY_CACHES, direct_a, False)
    assert contraction.k > 2 * blocking.kc and contraction.n > blocking.nc and contraction.m > blocking.mc
    check(contraction, TINY_CACHES, blocking)


def test_a_kept_panel_of_b_spans_several_k_blocks() -> None:
    contraction = dense(1, 120, 40, 600)
    blocking = plan(contraction, replace(AVX2, l1_bytes=4096, l2_bytes=32768), True, False)
    assert blocking.keep_b and contraction.k > blocking.kc and contraction.m > blocking.mc
    check(contraction, AVX2, blocking)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("sizes", [(1, 67, 131, 101), (2, 29, 45, 7), (1, 61, 157, 523), (1, 40, 3, 30)], ids=str)
def test_whichever_tile_comes_first_packs_b_for_the_others(
    sizes: tuple[int, int, int, int], target: VectorTarget
) -> None:
    contraction = dense(*sizes)
    small_caches = replace(target, l1_bytes=4096, l2_bytes=16384, l3_bytes=1 << 20)
    for machine in (target, small_caches):
        blocking = plan(contraction, machine, direct_b=False)
        chunks = [(chunk, chunk + 1) for chunk in reversed(range(blocking.chunks))]
        check(contraction, machine, blocking, chunks)
        check(contraction, machine, replace(blocking, keep_b=False, a_offset=0), chunks)


def test_rows_of_b_are_packed_while_they_are_multiplied_and_columns_beforehand() -> None:
    for transposed, beforehand in ((False, False), (True, True)):
        contraction = dense(1, 50, 70, 40, transposed_b=transposed)
        text = kernel_text(contraction, plan(contraction, AVX512, direct_b=False), AVX512, plain(contraction))
        assert ("pack.b" in text) == beforehand
        assert ("packing_tile" in text) != beforehand


def test_lines_of_the_next_rows_are_asked_for_where_a_is_read_in_place() -> None:
    for direct_a, transposed, m in itertools.product((False, True), (False, True), (1, 200)):
        contraction = dense(1, m, 70, 40, transposed_a=transposed)
        blocking = plan(contraction, AVX512, direct_a, direct_b=True)
        expected = direct_a and m > 1
        assert ("llvm.prefetch" in kernel_text(contraction, blocking, AVX512, plain(contraction))) == expected


@pytest.mark.parametrize("k", [1, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("element", ["float32", "float64", "int8"])
def test_runs_of_a_end_anywhere_in_a_line(element: str, k: int) -> None:
    for target in (AVX512, AVX2, SSE):
        check(dense(2, 41, 21, k, element), target)


def test_a_block_of_b_stays_in_the_second_level_cache_beside_the_lines_of_a() -> None:
    for m, n, k in ((1024, 1024, 1024), (4096, 1024, 256), (2048, 2048, 2048), (300, 4096, 9000)):
        for target in (AVX512, AVX2, SSE):
            blocking = plan(dense(1, m, n, k), target, direct_b=False)
            assert 4 * blocking.kc * blocking.nc <= target.l2_bytes // (4 if blocking.nc > blocking.nr else 2)


def test_any_split_of_the_chunks_gives_the_same_bits() -> None:
    contraction = dense(3, 90, 130, 300)
    target = replace(AVX2, l1_bytes=8192, l2_bytes=32768, l3_bytes=1 << 20)
    blocking = plan(contraction, target)
    assert blocking.chunks > 6
    generator = np.random.default_rng(3)
    a, b = aligned((3, 90, 300), "float32"), aligned((3, 300, 130), "float32")
    a[...], b[...] = generator.standard_normal(a.shape), generator.standard_normal(b.shape)
    together, apart, uneven = (aligned((3, 90, 130), "float32", 0) for _ in range(3))
    last = blocking.chunks
    splits: list[tuple[Array, Chunks]] = [
        (together, [(0, last)]),
        (apart, [(chunk, chunk + 1) for chunk in reversed(range(last))]),
        (uneven, [(5, last), (0, 2), (2, 2), (2, 5)]),
    ]
    for result, chunks in splits:
        execute(contraction, target, plain(contraction), [a, b, result, result], blocking, chunks)
    np.testing.assert_array_equal(together.view(np.uint32), apart.view(np.uint32))
    np.testing.assert_array_equal(together.view(np.uint32), uneven.view(np.uint32))
    np.testing.assert_allclose(together, a.astype("float64") @ b.astype("float64"), rtol=1e-4, atol=1e-4)


def test_the_number_of_cores_changes_the_chunks_but_no_bit() -> None:
    contraction = dense(1, 200, 150, 900, transposed_a=True)
    target = replace(AVX2, l1_bytes=8192, l2_bytes=65536)
    generator = np.random.default_rng(4)
    a, b = aligned((1, 900, 200), "float32"), aligned((1, 900, 150), "float32")
    a[...], b[...] = generator.standard_normal(a.shape), generator.standard_normal(b.shape)
    results, chunks = [], set()
    for cores in (0, 1, 2, 64):
        machine = replace(target, cores=cores)
        blocking = plan(contraction, machine)
        result = aligned((1, 200, 150), "float32", 0)
        execute(contraction, machine, plain(contraction), [a, b, result, result], blocking)
        results.append(result)
        chunks.add(blocking.chunks)
    assert len(chunks) > 1
    for result in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.uint32), result.view(np.uint32))
    np.testing.assert_allclose(results[0][0], a[0].T.astype("float64") @ b[0].astype("float64"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("contiguous", [0, 1])
@pytest.mark.parametrize("target", [AVX512, AVX2, SCALAR, TINY_CACHES], ids=["512 bits", "256 bits", "scalar", "tiny"])
@pytest.mark.parametrize("sizes", [(21, 45, 33), (150, 37, 290), (2, 5, 3)], ids=str)
def test_computed_operands_and_an_epilogue_fuse(
    sizes: tuple[int, int, int], target: VectorTarget, contiguous: int
) -> None:
    """A = 2 x + 1, B = a sliding window over a vector, C = max(sums + bias[n], 0) stored transposed."""
    m, n, k = sizes
    computed = Operand(fastest=contiguous)
    contraction = Contraction(2, m, n, k, "float32", computed, computed)
    blocking = plan(contraction, target)
    scalar = ir.FloatType()

    def build(builder: ir.IRBuilder, buffers: list[ir.Value]) -> tuple[Memory | Packed, Memory | Packed, Finish]:
        x, signal, result, bias = buffers

        def pack_a(
            builder: ir.IRBuilder,
            destination: ir.Value,
            batch: ir.Value,
            row: ir.Value,
            rows: ir.Value,
            column: ir.Value,
            columns: ir.Value,
        ) -> None:
            with counted_loop(builder, 0, rows) as i, counted_loop(builder, 0, columns) as p:
                source = offset(
                    builder, x, scalar, (batch, m * k), (builder.add(row, i), k), (builder.add(column, p), 1)
                )
                value = builder.fadd(builder.fmul(builder.load(source, typ=scalar), scalar(2.0)), scalar(1.0))
                target = offset(builder, destination, scalar, (i, blocking.a_panel[0]), (p, blocking.a_panel[1]))
                builder.store(value, target)

        def pack_b(
            builder: ir.IRBuilder,
            destination: ir.Value,
            batch: ir.Value,
            row: ir.Value,
            rows: ir.Value,
            column: ir.Value,
            columns: ir.Value,
        ) -> None:
            nr = blocking.nr
            with counted_loop(builder, 0, columns, nr) as j, counted_loop(builder, 0, rows) as p:
                with counted_loop(builder, 0, nr) as lane:
                    at = builder.add(builder.add(row, p), builder.add(column, builder.add(j, lane)))
                    inside = builder.icmp_signed("<", builder.add(j, lane), columns)
                    at = builder.select(inside, at, index(0))
                    source = offset(builder, signal, scalar, (batch, n + k), (at, 1))
                    panel = offset(builder, destination, scalar, (builder.mul(j, rows), 1), (p, nr), (lane, 1))
                    builder.store(builder.load(source, typ=scalar), panel)

        def finish(
            builder: ir.IRBuilder, batch: ir.Value, row: ir.Value, column: ir.Value, sums: ir.Value, valid: int
        ) -> None:
            zero = broadcast(builder, scalar(0.0), blocking.lanes)
            for lane in range(valid):
                position = ir.Constant(ir.IntType(32), lane)
                at = builder.add(column, index(lane))
                value = builder.load(offset(builder, bias, scalar, (at, 1)), typ=scalar)
                sums = builder.insert_element(
                    sums, builder.fadd(builder.extract_element(sums, position), value), position
                )
            sums = builder.select(builder.fcmp_ordered(">", sums, zero), sums, zero)
            for lane in range(valid):
                at = builder.add(column, index(lane))
                value = builder.extract_element(sums, ir.Constant(ir.IntType(32), lane))
                builder.store(value, offset(builder, result, scalar, (batch, m * n), (at, m), (row, 1)))

        return Packed(pack_a), Packed(pack_b), finish

    x, signal, bias = numbers((2, m, k), "float32", 1), numbers((2, n + k), "float32", 2), numbers((n,), "float32", 3)
    result = aligned((2, n, m), "float32", 99)
    execute(contraction, target, build, [x, signal, result, bias], blocking)
    window = np.lib.stride_tricks.sliding_window_view(signal, n, axis=1)[:, :k]
    expected = np.maximum((2 * x + 1) @ window + bias, 0)
    np.testing.assert_array_equal(result, expected.transpose(0, 2, 1))


def test_blocks_of_rows_computed_in_vectors_start_at_whole_vectors() -> None:
    for m, n, k in ((512, 512, 128), (512, 10, 128), (1000, 70, 3000), (4096, 2, 40)):
        contraction = Contraction(1, m, n, k, "float32", Operand(fastest=0), Operand((n, 1)))
        blocking = plan(contraction, AVX512)
        assert blocking.a_block and (blocking.mc == m or blocking.mc % AVX512.lanes("float32") == 0)
        assert blocking.a_panel[0] == 1 and blocking.a_panel[1] >= blocking.mc


def test_nan_and_infinity_reach_only_the_sums_they_belong_to() -> None:
    contraction = dense(1, 9, 21, 18)
    a, b = numbers((1, 9, 18), "float32", 1), numbers((1, 18, 21), "float32", 2)
    a[0, 4, 3], b[0, 5, 20] = np.nan, np.inf
    result = aligned((1, 9, 21), "float32", 0)
    execute(contraction, AVX2, plain(contraction), [a, b, result, result])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(result, a @ b)


def test_the_plan_gives_small_problems_one_chunk_and_big_ones_enough_for_many_threads() -> None:
    assert plan(dense(1, 64, 10, 128), AVX512).chunks == 1
    assert plan(dense(1, 32, 32, 32), AVX2).chunks == 1
    assert 48 <= plan(dense(1, 1024, 1024, 1024), AVX2).chunks <= 512
    assert 16 <= plan(dense(96, 64, 64, 32), AVX512).chunks <= 96


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_tiles_fit_the_registers_and_blocks_are_whole_tiles(target: VectorTarget) -> None:
    for sizes in [*AWKWARD, (1, 1000, 1000, 1000), (4, 256, 3136, 576), (1, 100000, 3, 3)]:
        for element in ("float32", "float64", "int8"):
            contraction = dense(*sizes, element)
            blocking = plan(contraction, target)
            vectors = blocking.nr // blocking.lanes
            assert blocking.nr % blocking.lanes == 0 and blocking.lanes <= target.lanes(element)
            assert blocking.mr * vectors + vectors + 1 <= target.vector_registers
            assert blocking.mc % blocking.mr == 0 or blocking.mc == contraction.m
            assert blocking.nc % blocking.nr == 0 or blocking.nc == contraction.n


def test_narrow_results_use_narrow_vectors() -> None:
    assert plan(dense(1, 64, 3, 64), AVX512).lanes == 4
    assert plan(dense(1, 64, 1, 64), AVX512).lanes == 1


def test_wrong_requests_are_refused_with_what_was_expected() -> None:
    with pytest.raises(ValueError, match="expected none below 0"):
        Contraction(1, -1, 2, 3)
    with pytest.raises(ValueError, match="expected one of int8"):
        Contraction(1, 1, 2, 3, "float16")
    with pytest.raises(ValueError, match="plain memory with n contiguous"):
        plan(dense(1, 4, 5, 6, transposed_b=True), AVX2, direct_b=True)
    with pytest.raises(ValueError, match="expected plain memory"):
        plan(Contraction(1, 4, 5, 6), AVX2, direct_a=True)
    contraction = Contraction(1, 4, 5, 6)
    with pytest.raises(ValueError, match="expected Packed"):
        compile_kernel(contraction, plan(contraction, AVX2), AVX2, plain(contraction))
