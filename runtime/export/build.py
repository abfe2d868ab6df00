"""What makes an export part of a program: CMake's lines, and libraries where the system has tools that make them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from kaun.runtime.export.layout import Layout
from kaun.runtime.target import Target, host

_CMAKE = """\
# {name}: a library of {name}.o, and the program of main.c where this is the project. From another project:
#
#     add_subdirectory(path/to/this/folder)
#     target_link_libraries(your_program PRIVATE {prefix})
cmake_minimum_required(VERSION 3.10)
project({prefix} C)
{threads}
add_library({prefix} INTERFACE)
target_include_directories({prefix} INTERFACE "${{CMAKE_CURRENT_LIST_DIR}}")
target_link_libraries({prefix} INTERFACE "${{CMAKE_CURRENT_LIST_DIR}}/{name}.o"{link})

if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  add_executable({prefix}_main main.c)
  set_property(TARGET {prefix}_main PROPERTY C_STANDARD 99)
  target_link_libraries({prefix}_main PRIVATE {prefix})
endif()
"""


def cmake_lists(layout: Layout) -> str:
    """The text of CMakeLists.txt."""
    threaded = layout.most_threads > 1
    return _CMAKE.format(
        name=layout.name,
        prefix=layout.prefix,
        threads="set(THREADS_PREFER_PTHREAD_FLAG ON)\nfind_package(Threads REQUIRED)\n" if threaded else "",
        link=" Threads::Threads" if threaded else "",
    )


def compiler_of(target: Target) -> list[str] | None:
    """The command that compiles C for a target: the environment's CC, or one by its usual name; None if there is none.

    CC is taken for this machine and those that run the same code.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen and _is_here(target):
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in _compiler_names(target) if shutil.which(name)), None)


def _is_here(target: Target) -> bool:
    machine = host()
    return (target.architecture, target.system) == (machine.architecture, machine.system)


def _compiler_names(target: Target) -> list[str]:
    names = [f"{target.architecture}-linux-gnu-gcc"] if target.system == "linux" else []
    if target.architecture == "arm" and target.system == "none":
        names = ["arm-none-eabi-gcc"]
    return ["cc", "gcc", "clang", *names] if _is_here(target) else names


def missing(layout: Layout, files: Collection[str]) -> tuple[str, ...]:
    """What could be in the folder too, beside these files, and the program that would make it; each a text."""
    target = layout.artifact.target
    if target.architecture == "wasm32":
        programs = {f"{layout.name}.wasm": "wasm-ld, LLVM's linker (Debian's package lld)"}
    else:
        names = _compiler_names(target)
        compiler = os.environ.get("CC") if _is_here(target) else None
        programs = {f"{layout.name}.a": f"{compiler or names[0]} and ar"} if names else {}
        if target.system != "none" and names:
            ending = "dylib" if target.system == "macos" else "so"
            programs[f"{layout.name}.{ending}"] = f"{compiler or names[0]}, a C compiler"
    return tuple(f"{file} is made by {program}, not found here" for file, program in programs.items()
                 if file not in files)  # fmt: skip


def shared_library(layout: Layout, folder: Path) -> Path | None:
    """Link NAME.so of NAME.o, or NAME.dylib on macOS. None where there are no such libraries, or nothing to link with.

    RuntimeError with what the linker said if it fails.
    """
    target = layout.artifact.target
    command = compiler_of(target)
    if target.system == "none" or command is None:
        return None
    macos = target.system == "macos"
    made = folder / f"{layout.name}.{'dylib' if macos else 'so'}"
    flags = ["-dynamiclib", "-install_name"] if macos else ["-shared", "-Wl,-z,noexecstack", "-Wl,-soname"]
    name = [flags.pop(), made.name] if macos else [f"{flags.pop()},{made.name}"]
    threads = ["-pthread"] if layout.most_threads > 1 else []
    _run([*command, *flags, *name, "-o", made.name, f"{layout.name}.o", *threads], folder)
    return made


def archive(layout: Layout, folder: Path) -> Path | None:
    """Make NAME.a of NAME.o. None where nothing makes archives."""
    command = compiler_of(layout.artifact.target)
    prefix = command[0].removesuffix("gcc") if command and command[0].endswith("-gcc") else ""
    tool = next(filter(shutil.which, (f"{prefix}ar", "llvm-ar")), None)
    if tool is None or command is None:
        return None
    made = folder / f"{layout.name}.a"
    made.unlink(missing_ok=True)  # or it would be added to
    _run([tool, "rcs", made.name, f"{layout.name}.o"], folder)
    return made


def webassembly(layout: Layout, folder: Path, exported: Sequence[str]) -> Path | None:
    """Link NAME.wasm of NAME.o, for engines that load modules. None for other targets, or without LLVM's linker."""
    if layout.artifact.target.architecture != "wasm32":
        return None
    linkers = ("wasm-ld", *(f"wasm-ld-{version}" for version in range(30, 13, -1)))
    linker = next(filter(shutil.which, linkers), None)
    if linker is None:
        return None
    made = folder / f"{layout.name}.wasm"
    # The stack before the data: where it is too small, the program ends instead of writing over them.
    flags = ["--no-entry", "--stack-first", "--strip-all", *(f"--export={n}" for n in (*exported, "__heap_base"))]
    _run([linker, *flags, "-o", made.name, f"{layout.name}.o"], folder)
    return made


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"export: `{shlex.join(command)}` failed: {done.stderr.strip() or done.returncode}")
