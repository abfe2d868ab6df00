"""The programs of an artifact as one relocatable object: what is saved, exported and cross compiled.

    kernel modules, equal ones of all programs once     level 2, as when they are compiled one by one: the same bits
    entries, which call the kernels by symbol           level 0
    the thread pool, if asked for                       level 2
    further modules: who calls the entries              level 2

Each module is optimised by itself, then all are linked, everything but the exported names becomes internal, and what
is not reached is left out. Undefined symbols that remain are those of libc (memcpy, memset) and, with a pool, pthreads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from kaun.compiler.program import Program
from kaun.runtime import engine
from kaun.runtime.pool_module import pool_module
from kaun.runtime.target import Target

__all__ = ["entry_symbol", "one_object"]


def entry_symbol(name: str) -> str:
    """The symbol of a program's entry in the object, `void (ptr arguments, ptr pool or null, ptr workspace)`."""
    return f"kaun_entry_{name}"


def one_object(
    programs: Mapping[str, Program],
    target: Target,
    exported: Collection[str],
    *,
    pool: bool = False,
    modules: Iterable[str] = (),
) -> bytes:
    """The object.

    programs: by name; the entry of each is called `entry_symbol(name)`.
    exported: the symbols that stay visible, of entries, the pool or further modules. All others become internal, so
        two such objects go into one program if these differ.
    pool: whether to put in the functions of `pool_module`, for a system with pthreads.
    modules: LLVM IR of further modules, which may refer to all of these by symbol.

    Raises ValueError for LLVM IR that is not valid and for exported names that nothing defines.
    """
    return engine.link(_modules(programs, target, pool, modules), target, exported)


def _modules(
    programs: Mapping[str, Program], target: Target, pool: bool, further: Iterable[str]
) -> Iterator[tuple[str, int]]:
    """LLVM IR and level of each module, made one after the other while LLVM works on those before."""
    symbols: dict[str, str] = {}
    for name, program in programs.items():
        for kernel in program.kernels:
            if kernel.text not in symbols:
                symbols[kernel.text] = f"kaun_kernel_{len(symbols)}"
                yield kernel.emit(symbols[kernel.text]), 2
        yield program.linked_entry(entry_symbol(name), [symbols[kernel.text] for kernel in program.kernels]), 0
    if pool:
        yield pool_module(target.architecture), 2
    for module in further:
        yield module, 2
