"""One object of several programs computes the bits that they compute kernel by kernel, and shows what was asked for."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence

import llvmlite.binding as llvm
import numpy as np
import pytest
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Program
from kaun.runtime import engine, threads
from kaun.runtime.buffers import Buffer
from kaun.runtime.one_object import entry_symbol, one_object
from kaun.runtime.pool_module import pool_bytes
from kaun.runtime.program import Executable
from kaun.runtime.target import host
from schedule_examples import MODELS, trace

from kaun.execution import vector_target

POINTER = ctypes.c_void_p
ENTRY = ctypes.CFUNCTYPE(None, POINTER, POINTER, POINTER)


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def two_chains() -> Program:
    """A bundle of two products, and what follows from one of them."""
    return program(lambda x, w: ((x @ w) @ w, x @ w[:, :40]), array(300, 256), array(256, 256))


def program(function, *arguments) -> Program:
    return Compilation(trace(function, *arguments).graph, vector_target(host())).program


def run(entry: int, program: Program, inputs: Sequence[np.ndarray], pool: threads.Pool | None) -> list[bytes]:
    """The outputs of an entry, its scratch full of rubbish before."""
    outputs = [Buffer(output.nbytes) for output in program.outputs]
    workers = 1 if pool is None else pool.threads
    workspace = Buffer(program.arena_bytes + workers * program.scratch_bytes)
    ctypes.memset(workspace.address, 0xFF, workspace.nbytes)
    addresses = [*(each.ctypes.data for each in inputs), *(each.address for each in outputs)]
    arguments = (POINTER * max(1, len(addresses)))(*addresses)
    ENTRY(entry)(ctypes.addressof(arguments), pool.address if pool else None, workspace.address)
    return [ctypes.string_at(each.address, each.nbytes) for each in outputs]


def inputs_of(program: Program) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [
        (draw.normal(size=each.shape) if each.dtype.is_float else draw.integers(0, 4, each.shape)).astype(
            each.dtype.numpy
        )
        for each in program.inputs
    ]


def expected(program: Program, inputs: Sequence[np.ndarray]) -> list[bytes]:
    buffers = Executable(program, host()).run([each.ctypes.data for each in inputs])
    return [ctypes.string_at(each.address, each.nbytes) for each in buffers]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_training_step_in_one_object_has_the_bits_of_its_kernels_compiled_one_by_one(model) -> None:
    step = Compilation(model().graph, vector_target(host())).program
    symbol = entry_symbol("step")
    code = one_object({"step": step}, host(), [symbol])
    entry = engine.load(code, [symbol])[symbol]
    inputs = inputs_of(step)
    wanted = expected(step, inputs)
    pool = threads.Pool(3)
    try:
        assert run(entry, step, inputs, None) == wanted
        assert run(entry, step, inputs, pool) == wanted
    finally:
        pool.close()


def test_chains_that_share_a_launch_run_without_a_pool_and_with_one() -> None:
    made = two_chains()
    assert any(len(bundle) > 1 for bundle in made.bundles)
    symbol = entry_symbol("made")
    entry = engine.load(one_object({"made": made}, host(), [symbol]), [symbol])[symbol]
    inputs = inputs_of(made)
    wanted = expected(made, inputs)
    pool = threads.Pool(2)
    try:
        assert run(entry, made, inputs, None) == wanted == run(entry, made, inputs, pool)
    finally:
        pool.close()


def test_words_of_a_table_have_64_bits_so_that_addresses_of_32_fit_too() -> None:
    text = two_chains().linked_entry("entry", [f"k{i}" for i in range(len(two_chains().kernels))])
    assert "%table = alloca i64" in text
    assert "getelementptr ptr, ptr %table" not in text
    # For such a machine: three words apart are 24 bytes, three addresses 12.
    header = 'target datalayout = "e-m:e-p:32:32-i64:64-n8:16:32-S128"\ntarget triple = "i686-unknown-linux-gnu"\n'
    llvm.parse_assembly(header + text).verify()


def symbols(code: bytes, target_names: Sequence[str]) -> dict[str, bool]:
    """Which of the names the bytes of an object hold."""
    return {name: name.encode() + b"\0" in code for name in target_names}


def test_equal_kernels_of_two_programs_are_in_the_object_once() -> None:
    def product(x, w):
        return x @ w

    one, other = program(product, array(64, 32), array(32, 48)), program(product, array(64, 32), array(32, 48))
    names = [entry_symbol("one"), entry_symbol("other")]
    both = one_object({"one": one, "other": other}, host(), names)
    assert len(one.kernels) == 1
    assert symbols(both, ["kaun_kernel_0", "kaun_kernel_1"]) == {"kaun_kernel_0": True, "kaun_kernel_1": False}
    inputs = inputs_of(one)
    entries = engine.load(both, names)
    assert run(entries[names[0]], one, inputs, None) == run(entries[names[1]], other, inputs, None)


def test_what_is_not_exported_is_not_seen_and_what_is_not_reached_is_left_out() -> None:
    made = program(lambda x: x * 2, array(8))
    kept = one_object({"made": made}, host(), [entry_symbol("made")], pool=True)
    with pytest.raises(ValueError, match="expected an object file defining"):
        engine.load(kept, ["kaun_kernel_0"])
    # The pool was not reached by anything exported.
    assert b"pthread_create\0" not in kept and b"malloc\0" not in kept
    table = one_object({"made": made}, host(), ["kaun_pool_functions"], pool=True)
    assert b"pthread_create\0" in table and entry_symbol("made").encode() not in table


def test_two_objects_with_equal_insides_and_different_exports_go_into_one_process() -> None:
    made = two_chains()
    wrapper = """
declare void @"{entry}"(ptr, ptr, ptr)
define void @{name}(ptr %arguments, ptr %pool, ptr %workspace) {{
  call void @"{entry}"(ptr %arguments, ptr %pool, ptr %workspace)
  ret void
}}
"""
    inputs = inputs_of(made)
    for name in ("first", "second"):
        module = wrapper.format(entry=entry_symbol("made"), name=name)
        code = one_object({"made": made}, host(), [name], modules=[module])
        entry = engine.load(code, [name])[name]
        assert run(entry, made, inputs, None) == expected(made, inputs)


def test_equal_programs_give_equal_objects() -> None:
    made = [one_object({"made": two_chains()}, host(), [entry_symbol("made")]) for _ in range(2)]
    assert made[0] == made[1]


def test_a_name_that_nothing_defines_and_modules_that_do_not_fit_are_refused() -> None:
    made = program(lambda x: x * 2, array(8))
    with pytest.raises(ValueError, match=re.escape("modules that do not define kaun_absent")):
        one_object({"made": made}, host(), ["kaun_absent"])
    with pytest.raises(ValueError, match=re.escape("engine.link: expected valid LLVM IR")):
        one_object({"made": made}, host(), [], modules=["define void @f() {"])
    twice = "define void @f() { ret void }"
    with pytest.raises(ValueError, match=re.escape("engine.link: got modules that do not fit together")):
        one_object({"made": made}, host(), ["f"], modules=[twice, twice])


def test_a_pool_in_memory_of_the_caller_starts_runs_and_stops() -> None:
    names = ["kaun_pool_start", "kaun_pool_stop", "kaun_parallel_for"]
    functions = engine.load(one_object({}, host(), names, pool=True), names)
    start = ctypes.CFUNCTYPE(ctypes.c_int64, POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
        functions["kaun_pool_start"]
    )
    stop = ctypes.CFUNCTYPE(None, POINTER)(functions["kaun_pool_stop"])
    made = two_chains()
    symbol = entry_symbol("made")
    entry = engine.load(one_object({"made": made}, host(), [symbol]), [symbol])[symbol]
    inputs = inputs_of(made)
    memory = Buffer(pool_bytes(3) + 64)
    ctypes.memset(memory.address, 0, memory.nbytes)
    ctypes.memset(memory.address + pool_bytes(3), 0xFF, 64)

    class Started:
        address, threads = memory.address, 3

    for _ in range(2):
        assert start(memory.address, 3, 100, 10) == 3
        try:
            assert run(entry, made, inputs, Started) == expected(made, inputs)  # type: ignore[arg-type]
        finally:
            stop(memory.address)
        assert ctypes.string_at(memory.address + pool_bytes(3), 64) == b"\xff" * 64
        ctypes.memset(memory.address, 0, pool_bytes(3))
