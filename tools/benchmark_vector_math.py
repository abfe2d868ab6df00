"""Compiles the vector math alone and times it against NumPy (`python -m kaun.tools.benchmark_vector_math`)."""

from __future__ import annotations

import argparse
import ctypes
import functools
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from kaun.compiler.codegen import vector_math
from llvmlite import ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CompiledFunction:
    """A native loop over arrays of one vector math function; calling it allocates the result."""

    engine: Any  # keeps the code alive
    address: int
    dtype: np.dtype[Any]
    width: int
    assembly: str

    def __call__(self, *arguments: Array) -> Array:
        count = arguments[0].size
        padded = -(-count // self.width) * self.width
        inputs = [np.resize(np.ascontiguousarray(a, self.dtype).ravel(), padded) for a in arguments]
        output = np.empty(padded, self.dtype)
        self.bind(inputs, output)()
        return output[:count].reshape(arguments[0].shape)

    def bind(self, inputs: Sequence[Array], output: Array) -> Callable[[], object]:
        """A call without arguments that fills output, whose size is a multiple of the width."""
        addresses = [ctypes.c_void_p(array.ctypes.data) for array in (*inputs, output)]
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(addresses), ctypes.c_int64)
        return functools.partial(signature(self.address), *addresses, ctypes.c_int64(output.size))

    @property
    def loop_instructions(self) -> int:
        """How many instructions one turn of the loop has, with its load, store and counting (x86 assembly only)."""
        lines = [line.strip() for line in self.assembly.splitlines()]
        positions = {line.split(":")[0]: i for i, line in enumerate(lines) if re.match(r"\.LBB\w+:", line)}
        jumps = [(end, line.split()[-1]) for end, line in enumerate(lines) if re.match(r"j\w", line)]
        spans = [(positions[target], end) for end, target in jumps if positions.get(target, end) < end]
        if not spans:
            return 0
        start, end = min(spans)
        return sum(bool(re.match(r"[a-z]", line)) for line in lines[start : end + 1])


def loop_module(function: str, dtype: np.dtype[Any], width: int, has_fma: bool) -> ir.Module:
    """A module with `void loop(ptr input, ..., ptr output, i64 count)`, of vectors of `width`, or scalars for 1."""
    module = ir.Module("vector_math")
    pointer, index = ir.PointerType(), ir.IntType(64)
    element = ir.FloatType() if dtype == np.float32 else ir.DoubleType()
    lane_type = element if width == 1 else ir.VectorType(element, width)
    arity = 2 if function == "pow" else 1
    loop = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * (arity + 1) + [index]), "loop")
    *inputs, output, count = loop.args
    for argument in loop.args[: arity + 1]:
        argument.add_attribute("noalias")
    entry, body, leave = (loop.append_basic_block(name) for name in ("entry", "body", "leave"))
    builder = ir.IRBuilder(entry)
    builder.branch(body)
    builder.position_at_end(body)
    position = builder.phi(index)
    position.add_incoming(ir.Constant(index, 0), entry)
    places = [builder.gep(base, [position], source_etype=element) for base in (*inputs, output)]
    values = [builder.load(place, align=dtype.itemsize, typ=lane_type) for place in places[:-1]]
    result = vector_math.emit(builder, function, values, has_fma=has_fma)
    builder.store(result, places[-1], align=dtype.itemsize)
    following = builder.add(position, ir.Constant(index, width))
    position.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), body, leave)
    builder.position_at_end(leave)
    builder.ret_void()
    return module


def compile_function(
    function: str, dtype: Any, width: int, *, has_fma: bool = True, features: str | None = None
) -> CompiledFunction:
    """Compiles one function for the host, or for the host restricted to `features`, at optimisation level 3."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    dtype = np.dtype(dtype)
    module = llvm.parse_assembly(str(loop_module(function, dtype, width, has_fma)))
    module.verify()
    cpu = llvm.get_host_cpu_name() if features is None else ""
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=llvm.get_host_cpu_features().flatten() if features is None else features, opt=3
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = options.loop_vectorization = False
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    assembly = target.emit_assembly(module)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return CompiledFunction(engine, engine.get_function_address("loop"), dtype, width, assembly)


# -- timing -------------------------------------------------------------------------------------------------------

NUMPY: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "atan": np.arctan,
    "pow": np.power,
}
ELEMENTS = 16384  # small enough that caches, not memory, feed the loop; large enough to hide the call


def nanoseconds_per_element(run: Callable[[], object]) -> float:
    """The best of several timings of `run`, which handles ELEMENTS elements."""
    best = float("inf")
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(20):
            run()
        best = min(best, time.perf_counter() - start)
    return best / 20 / ELEMENTS * 1e9


def benchmark(function: str, dtype: Any, width: int, features: str | None) -> tuple[int, float, float]:
    """(instructions per turn, nanoseconds per element compiled, the same for NumPy or nan where it has none)."""
    random = np.random.default_rng(0)
    positive = function in ("log", "log1p", "pow")
    low, high = (0.1, 5.0) if positive else (-5.0, 5.0)
    inputs = [random.uniform(low, high, ELEMENTS).astype(dtype) for _ in range(2 if function == "pow" else 1)]
    output = np.empty(ELEMENTS, dtype)
    has_fma = features is None or "+fma" in features
    compiled = compile_function(function, dtype, width, has_fma=has_fma, features=features)
    reference = NUMPY.get(function)
    ours = nanoseconds_per_element(compiled.bind(inputs, output))
    theirs = nanoseconds_per_element(lambda: reference(*inputs, out=output)) if reference else float("nan")
    return compiled.loop_instructions, ours, theirs


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print one row for each function and dtype."""
    parser = argparse.ArgumentParser(prog="python -m kaun.tools.benchmark_vector_math", description=__doc__)
    parser.add_argument("functions", nargs="*", default=sorted(vector_math.FUNCTIONS))
    parser.add_argument("--bytes", type=int, default=64, help="bytes in a vector (default: %(default)s)")
    parser.add_argument("--features", help='LLVM target features in place of the host\'s, such as "+avx2,+fma"')
    options = parser.parse_args(arguments)
    print(f"{'function':10}{'dtype':10}{'instructions':>13}{'ns/element':>12}{'numpy':>9}{'ratio':>8}")
    for dtype in (np.float32, np.float64):
        for function in options.functions:
            width = options.bytes // np.dtype(dtype).itemsize
            count, ours, theirs = benchmark(function, dtype, width, options.features)
            row = f"{function:10}{np.dtype(dtype).name:10}{count:13}{ours:12.3f}{theirs:9.3f}{theirs / ours:8.1f}"
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
