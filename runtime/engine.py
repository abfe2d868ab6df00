"""LLVM IR in, object code out, addresses at the end: the only file that drives LLVM."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from kaun.runtime.target import Target, usable_cores
from llvmlite.binding import ffi

__all__ = ["assembly", "compile_module", "initialise_all", "link", "load", "optimised", "version"]


def version() -> str:
    """The versions of llvmlite and LLVM: object code of one is not taken for that of another."""
    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"


def compile_module(llvm_ir_text: str, target: Target, level: int = 2) -> bytes:
    """Object code of a module.

    llvm_ir_text: one module as text; it is verified before anything else looks at it.
    level: 0 (fast compile) to 3; 1 and 2 run a few passes that clean up, 3 LLVM's standard pipeline without its
        vectorisers, since the compiler emits vectors itself. Code generation follows the level too.

    The code is position independent (small code model), so the bytes may be stored and loaded anywhere; for targets
    without an operating system it is left to a linker to give it its place.
    Safe to call from several threads; the work runs without the interpreter lock and truly in parallel.

    Raises ValueError when the text is not valid LLVM IR or `level` is out of range.
    """
    machine, module = _optimise(llvm_ir_text, target, level, "engine.compile_module")
    return _emit(machine, module)


def optimised(llvm_ir_text: str, target: Target, level: int = 2) -> str:
    """The module as LLVM IR text after the passes of `compile_module`, to read. Same errors."""
    return str(_optimise(llvm_ir_text, target, level, "engine.optimised")[1])


def assembly(llvm_ir_text: str, target: Target, level: int = 2) -> str:
    """The module as the target's assembly text, to read. Errors and threads as in `compile_module`."""
    machine, module = _optimise(llvm_ir_text, target, level, "engine.assembly")
    return _emit(machine, module, _ASSEMBLY).decode()


def link(modules: Iterable[tuple[str, int]], target: Target, exported: Collection[str]) -> bytes:
    """One relocatable object of several modules.

    modules: (LLVM IR, level) of each. It is optimised by itself, so that code is the code `compile_module` makes of
        it; modules refer to one another by symbol.
    exported: the names that other objects may see, each defined by a module. The rest becomes internal, and what
        nothing exported leads to is left out.

    Raises ValueError for text that is not valid LLVM IR, for two definitions of one name, and for an exported name
    that is not defined.
    """

    def prepare(text: str, level: int) -> bytes:
        with _optimise(text, target, level, "engine.link")[1] as module:
            return bytes(module.as_bitcode())

    machine = _machine(target, 2)
    header = f'target datalayout = "{machine.target_data}"\ntarget triple = "{target.triple}"\n'
    with ThreadPoolExecutor(usable_cores(), "kaun-link") as workers:
        # In contexts of their own, which LLVM's threads must not share.
        parts = [workers.submit(prepare, *module) for module in modules]
        # Closed here, module before context: garbage collection after an error would take them in any order.
        with llvm.create_context() as context, llvm.parse_assembly(header, context) as whole:
            for part in parts:
                bitcode = part.result()
                try:
                    whole.link_in(llvm.parse_bitcode(bitcode, context))
                except RuntimeError as error:
                    raise ValueError(f"engine.link: got modules that do not fit together: {error}") from error
            _internalise(whole, exported)
            passes = llvm.create_new_module_pass_manager()
            passes.add_global_dead_code_eliminate_pass()
            passes.run(whole, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
            return _emit(machine, whole)


def _internalise(module: Any, exported: Collection[str]) -> None:
    """Let other objects see the exported definitions and no others."""
    missing = set(exported)
    for value in (*module.functions, *module.global_variables):
        if value.is_declaration:
            continue
        if value.name in missing:
            missing.remove(value.name)
        elif value.linkage is llvm.Linkage.external:
            value.linkage = llvm.Linkage.internal
    if missing:
        raise ValueError(f"engine.link: got modules that do not define {', '.join(sorted(missing))}")


def load(object_bytes: bytes, names: Iterable[str]) -> dict[str, int]:
    """Link object code into this process; symbol name to address for each of `names`.

    Undefined symbols (memcpy, memset, pthread_create, ...) resolve against the running process. The
    code stays mapped until the process ends: programs hold bare addresses, and a kernel is a few pages.

    Raises ValueError when the bytes are not an object file for this machine, or lack a name.
    """
    wanted = list(names)
    builder = llvm.JITLibraryBuilder().add_object_img(object_bytes).add_current_process()
    for name in wanted:
        builder.export_symbol(name)
    try:
        with _linker_lock:
            library = builder.link(_linker(), f"kaun{next(_library_numbers)}")
    except RuntimeError as error:
        raise ValueError(
            f"engine.load: got {len(object_bytes)} bytes, expected an object file defining {wanted}: {error}"
        ) from error
    # Not unloaded when Python lets go of the tracker, at exit either: a sleeping worker may stand in this code.
    library.detach()
    return {name: int(library[name]) for name in wanted}


def _initialise() -> None:
    if llvm.llvm_version_info[0] < 20:
        # Later versions initialise themselves and raise on this call.
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # without it, inline assembly ends the process


@functools.cache
def initialise_all() -> None:
    """Make LLVM ready for all processors it knows, not just the one it runs on."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


_initialise()
_HOST_ARCHITECTURE = Target.of(llvm.get_process_triple()).architecture
_TARGET_LINE = re.compile(r"^target (datalayout|triple) = .*$", re.MULTILINE)
_per_thread = threading.local()
_linker_lock = threading.Lock()
_library_numbers = itertools.count()
_linkers: list[Any] = []

# In the order in which `load` takes them: ours, then llvmlite's own where it has one.
_fork_locks = [_linker_lock, *filter(None, [getattr(ffi.lib, "_lock", None)])]


def _before_fork() -> None:
    """Wait until no thread is inside LLVM: a child would inherit the lock held by a thread it does not have."""
    for lock in _fork_locks:
        lock.__enter__()


def _after_fork() -> None:
    for lock in reversed(_fork_locks):
        lock.__exit__(None, None, None)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _linker() -> Any:
    """The one LLJIT of the process.

    JITLink rather than the older RuntimeDyld: it lays out an object's code and constants in one block,
    so the small code model's 32-bit offsets always reach, makes stubs for libc functions that are far
    away, and takes 8 KiB per object instead of 52.
    """
    if not _linkers:
        _linkers.append(llvm.create_lljit_compiler(use_jit_link=True))
    return _linkers[0]


# Kernels arrive with their invariants hoisted and their vectors chosen: what is left is to clean up. Against LLVM's
# standard pipeline this takes a fifth of the time, and the kernels measured run as fast or faster.
_PASSES = ("simplify_cfg", "sroa", "instruction_combine", "new_gvn", "simplify_cfg")


def _machine(target: Target, level: int) -> Any:
    """LLVM's TargetMachine, made once per thread: it is not safe to share and costs 0.2 ms."""
    cache: dict[tuple[str, int], Any] = _per_thread.__dict__.setdefault("machines", {})
    key = (target.key, level)
    if key not in cache:
        if target.architecture != _HOST_ARCHITECTURE:
            initialise_all()
        cache[key] = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu,
            features=target.features,
            opt=level,
            reloc=target.relocation,
            codemodel=target.code_model,
        )
    return cache[key]


def _optimise(text: str, target: Target, level: int, caller: str) -> tuple[Any, Any]:
    """Parse, verify and run the pipeline: the target machine and the optimised module."""
    if not 0 <= level <= 3:
        raise ValueError(f"{caller}: got level {level}, expected 0, 1, 2 or 3")
    machine = _machine(target, level)
    # On the first line, so that LLVM's line numbers in errors stay those of the text.
    header = f'target datalayout = "{machine.target_data}" target triple = "{target.triple}" '
    module = None
    try:
        module = llvm.parse_assembly(header + _TARGET_LINE.sub("", text), llvm.create_context())
        module.verify()
    except RuntimeError as error:
        if module is not None:
            module.close()  # before its context, whatever becomes of this frame, which the error holds
        raise ValueError(f"{caller}: expected valid LLVM IR, got text that LLVM rejects: {error}") from error
    tuning = llvm.create_pipeline_tuning_options(speed_level=level)
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    # Kernels come unrolled where it pays; copies of whole epilogues only take time to compile.
    tuning.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, tuning)
    if level == 3:
        passes = builder.getModulePassManager()
    else:
        passes = llvm.create_new_module_pass_manager()
        for name in _PASSES if level else ():
            getattr(passes, f"add_{name}_pass")()
    _unlocked("LLVMPY_RunNewModulePassManager")(passes, module, builder)
    return machine, module


_ASSEMBLY, _OBJECT = 0, 1


def _emit(machine: Any, module: Any, kind: int = _OBJECT) -> bytes:
    """The bytes of the module's object file, or of its assembly text."""
    emit = _unlocked("LLVMPY_TargetMachineEmitToMemory")
    with ffi.OutputString() as problem:
        buffer = emit(machine, module, kind, problem)
        if not buffer:
            raise RuntimeError(f"engine.compile_module: LLVM could not emit code for {machine.triple}: {problem}")
    try:
        start, size = ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer)
        return ctypes.string_at(start, size)
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _unlocked(name: str) -> Callable[..., Any]:
    """An LLVM entry point without llvmlite's process-wide lock.

    llvmlite serialises every call, which would leave one core compiling. LLVM itself allows threads
    that share no context and no target machine, as here; only the two long calls go this way. Older LLVMs,
    whose builds we have not seen run so, and a later llvmlite that wraps differently keep the lock, and
    are only slower.
    """
    wrapped = getattr(ffi.lib, name)
    function: Callable[..., Any] = getattr(wrapped, "_cfn", wrapped) if llvm.llvm_version_info[0] >= 20 else wrapped
    return function
