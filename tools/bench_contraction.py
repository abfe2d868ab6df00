"""Measures the contraction template alone against NumPy's BLAS on one thread: `python -m kaun.tools.bench_contraction`.

The kernel is repeated by a native loop; NumPy is called from Python, which costs it about a microsecond a call.
`--bits 256` measures narrower vectors, `--element float64` another type.
"""

import argparse
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from kaun.compiler.codegen.contraction import Blocking, Contraction, Memory, Operand, emit, plan
from kaun.compiler.codegen.control_flow import INDEX, POINTER, counted_loop, index, offset
from kaun.compiler.codegen.micro_kernel import element_type, store_vector
from kaun.compiler.codegen.vector_target import VectorTarget, element_bits
from kaun.runtime import engine
from kaun.runtime.target import Target, host, with_vector_bits
from llvmlite import ir

# (batch, m, n, k), A stored transposed, B stored transposed: layers, their gradients, attention, a convolution.
PROBLEMS: tuple[tuple[tuple[int, int, int, int], bool, bool], ...] = (
    ((1, 1024, 1024, 1024), False, False),
    ((1, 1024, 1024, 1024), True, False),
    ((1, 1024, 1024, 1024), False, True),
    ((1, 1000, 1000, 1000), False, False),
    ((1, 128, 512, 512), False, False),
    ((1, 512, 512, 128), True, False),
    ((1, 64, 128, 784), False, False),
    ((1, 784, 128, 64), True, False),
    ((1, 64, 784, 128), False, True),
    ((1, 64, 10, 128), False, False),
    ((1, 128, 10, 64), True, False),
    ((96, 64, 64, 32), False, False),
    ((96, 64, 64, 32), False, True),
    ((1, 32, 6272, 144), False, False),
)


def kernel_text(contraction: Contraction, blocking: Blocking, target: VectorTarget) -> str:
    """LLVM IR of the plain contraction and of `repeat(times, buffers, chunks, scratch)`, which calls it."""
    module = ir.Module("bench_contraction")
    signature = ir.FunctionType(ir.VoidType(), [POINTER, INDEX, INDEX, POINTER])
    function = ir.Function(module, signature, "kernel")
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a, b, c = (
        builder.load(builder.gep(function.args[0], [index(i)], source_etype=POINTER), typ=POINTER) for i in range(3)
    )
    scalar, (m, n, k) = element_type(contraction.element), (contraction.m, contraction.n, contraction.k)
    size = element_bits(contraction.element) // 8

    def finish(builder: ir.IRBuilder, batch: ir.Value, row: ir.Value, column: ir.Value, sums: ir.Value, v: int) -> None:
        store_vector(builder, sums, offset(builder, c, scalar, (batch, m * n), (row, n), (column, 1)), v, size)

    from_a = Memory(lambda builder, batch: offset(builder, a, scalar, (batch, m * k)))
    from_b = Memory(lambda builder, batch: offset(builder, b, scalar, (batch, k * n)))
    emit(function, builder, contraction, blocking, target, from_a, from_b, finish)
    builder.ret_void()
    repeat = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX, POINTER, INDEX, POINTER]), "repeat")
    builder = ir.IRBuilder(repeat.append_basic_block("entry"))
    times, buffers, chunks, scratch = repeat.args
    with counted_loop(builder, 0, times):
        builder.call(function, [buffers, index(0), chunks, scratch])
    builder.ret_void()
    return str(module)


def seconds(call: Callable[[int], None], budget: float = 0.3) -> float:
    """The least time of one of `call`'s repetitions."""
    call(1)
    start = time.perf_counter()
    call(1)
    times = max(1, int(2e-3 / (time.perf_counter() - start)))
    least, stop = math.inf, time.perf_counter() + budget
    while time.perf_counter() < stop:
        start = time.perf_counter()
        call(times)
        least = min(least, (time.perf_counter() - start) / times)
    return least


def aligned(count: int, dtype: str) -> np.ndarray:
    raw = np.zeros(count * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : raw.size - 64 + start].view(dtype)


def measure(contraction: Contraction, machine: Target, target: VectorTarget) -> tuple[float, float, float, Blocking]:
    """(seconds of the kernel, seconds of NumPy, seconds to emit and compile, plan)."""
    started = time.perf_counter()
    blocking = plan(contraction, target)
    object_code = engine.compile_module(kernel_text(contraction, blocking, target), machine)
    address = engine.load(object_code, ["repeat"])["repeat"]
    compiling = time.perf_counter() - started
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    repeat = prototype(address)
    batch, m, n, k = contraction.batch, contraction.m, contraction.n, contraction.k
    generator = np.random.default_rng(0)
    arrays = [aligned(batch * size, contraction.element) for size in (m * k, k * n, m * n)]
    for array in arrays[:2]:
        array[...] = generator.standard_normal(array.size)
    scratch = aligned(blocking.scratch_bytes + 64, "uint8")
    pointers = (ctypes.c_void_p * 3)(*[array.ctypes.data for array in arrays])
    a = arrays[0].reshape((batch, k, m) if contraction.a.contiguous == 0 else (batch, m, k))
    b = arrays[1].reshape((batch, n, k) if contraction.b.contiguous == 0 else (batch, k, n))
    a = a.transpose(0, 2, 1) if contraction.a.contiguous == 0 else a
    b = b.transpose(0, 2, 1) if contraction.b.contiguous == 0 else b
    if batch == 1:
        a, b = a[0], b[0]
    expected = np.matmul(a, b)

    def run_numpy(times: int) -> None:
        for _ in range(times):
            np.matmul(a, b, out=expected)

    ours = seconds(lambda times: repeat(times, ctypes.addressof(pointers), blocking.chunks, scratch.ctypes.data))
    np.testing.assert_allclose(arrays[2].reshape(expected.shape), expected, rtol=1e-3, atol=1e-3 * math.sqrt(k))
    return ours, seconds(run_numpy), compiling, blocking


def peak(machine: Target, target: VectorTarget, element: str) -> float:
    """Multiply-adds of registers and first-level cache only, in GFLOP/s: one tile, again and again."""
    contraction = Contraction(1, 8, 2 * target.lanes(element), 256, element)
    ours, _, _, _ = measure(dense((1, contraction.m, contraction.n, contraction.k), element), machine, target)
    return 2 * contraction.m * contraction.n * contraction.k / ours / 1e9


def dense(
    sizes: tuple[int, int, int, int], element: str, transposed_a: bool = False, transposed_b: bool = False
) -> Contraction:
    batch, m, n, k = sizes
    a, b = Operand((1, m) if transposed_a else (k, 1)), Operand((1, k) if transposed_b else (n, 1))
    return Contraction(batch, m, n, k, element, a, b)


def main() -> None:
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # NumPy reads it when it loads, which importing this package has already done: start over.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "kaun.tools.bench_contraction", *sys.argv[1:]]
        os.execve(sys.executable, command, environment)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=host().vector_bits)
    parser.add_argument("--element", default="float32", choices=["float32", "float64"])
    options = parser.parse_args()
    machine = with_vector_bits(host(), options.bits)
    caches = (machine.l1_bytes, machine.l2_bytes, machine.l3_bytes)
    target = VectorTarget(machine.vector_bits, machine.vector_registers, machine.has_fma, *caches)
    print(f"{machine.name}, {options.element}, one thread; one resident tile: "
          f"{peak(machine, target, options.element):.0f} GFLOP/s")  # fmt: skip
    print(f"{'batch x (m,k)x(k,n)':>30} {'GFLOP/s':>8} {'NumPy':>8} {'compile':>8}  tile, block, chunks")
    for sizes, transposed_a, transposed_b in PROBLEMS:
        contraction = dense(sizes, options.element, transposed_a, transposed_b)
        ours, numpy, compiling, blocking = measure(contraction, machine, target)
        batch, m, n, k = sizes
        name = f"{batch} x ({m},{k}){'T' * transposed_a}x({k},{n}){'T' * transposed_b}"
        flops = 2 * batch * m * n * k / 1e9
        shape = f"{blocking.mr}x{blocking.nr} {blocking.mc}x{blocking.nc}x{blocking.kc} {blocking.chunks}"
        inside = " ".join(
            word for word, used in (("a in place", blocking.direct_a), ("b in place", blocking.direct_b)) if used
        )
        print(f"{name:>30} {flops / ours:8.1f} {flops / numpy:8.1f} {compiling * 1e3:6.0f} ms  {shape} {inside}")


if __name__ == "__main__":
    main()
