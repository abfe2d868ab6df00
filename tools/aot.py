"""`kaun aot`: exports compiled functions and training steps for any machine, and shows what is in such files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kaun.tools.failures import reason, refuse
from kaun.tools.files import writing
from kaun.tools.status import shown

_BUILD = """\
A file that `save` wrote is exported for its machine, or for that of --target. module:function, or FILE.py:function,
takes no arguments and returns what `kn.compile` or `kn.train.compile` returns,
whatever target that was compiled for. A training step that was compiled with `state=` brings the numbers to start from.

example:
  kaun aot build train.py:step --out exported --target raspberry-pi-4
"""

_TARGETS = """\
A target is one of these, `host`, or an LLVM triple, then, separated by commas, what is to be changed or known of it:

  wasm32,-simd128                              a preset without one of its features
  aarch64-linux-gnu,cpu=cortex-a76,+dotprod    a triple, a processor and a feature, by LLVM's names
  raspberry-pi-4,l2=512K,cores=2               caches (l1=, l2=, l3=) and cores
  linux-x86_64-v4,vector=256                   narrower vectors
"""


def main(arguments: Sequence[str], prog: str = "kaun aot") -> int:
    """Run `kaun aot COMMAND`. The exit status is 2 for arguments that make no sense, 1 if a system's linker fails."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Compile ahead of time: export for C, C++ and JavaScript, and look at what was made."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", help="export a function or training step into a folder",
        description="Export a compiled function or training step: an object, a header, a program to begin with.",
        epilog=_BUILD, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    build.add_argument("function", metavar="MODULE:FUNCTION", help="what to export, or a saved file; see below")
    build.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="the folder; files of the same names are replaced"
    )
    build.add_argument("--target", default=None, metavar="T", help="the machine, as `kaun aot targets` lists them")
    build.add_argument("--name", help="of the files and in the symbols (default: step, or the function's name)")
    build.add_argument("--initial", choices=["embedded", "file"], help="where the numbers to start from are kept")
    build.add_argument("--threads", type=int, metavar="N", help="the most that share a call; 1 for code without any")
    inspect = commands.add_parser(
        "inspect", help="show what is in an exported folder or a saved file",
        description="Show the signature, memory, kernels and operations of something compiled ahead of time.",
    )  # fmt: skip
    inspect.add_argument("file", metavar="FILE", help="a saved file, an export's .json, or its folder")
    commands.add_parser(
        "targets", help="list the machines that have a name", description="List the machines that have a name.",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if given.command == "targets":
        return _targets()
    if given.command == "inspect":
        return _inspect(inspect, given.file)
    return _build(build, given)


def _build(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from kaun.runtime import export, target
    from kaun.tools import subject

    from kaun import saved
    from kaun.compiled import AheadOfTime

    wanted = given.target
    try:
        if subject.is_saved(given.function):
            value = saved.load(given.function, recompile=True)
            # What the file is for, unless another machine is asked for.
            machine = saved.described(given.function)[0].target
        else:
            with shown(f"looking for {given.function}"):
                value, machine = subject.value_of(given.function), None
    except (subject.SubjectError, OSError) as error:
        refuse(parser.prog, error)
    except ValueError as error:
        if not subject.is_saved(given.function):
            raise  # of the function's own
        refuse(parser.prog, error)
    if not isinstance(value, AheadOfTime):
        refuse(
            parser.prog,
            f"{given.function} gave {type(value).__name__}, expected what kn.compile or kn.train.compile returns",
        )
    try:
        machine = machine if wanted is None else target.named(wanted)
        value.warn_of_probes("kaun aot build")
        with shown(f"exporting {given.function}"), writing(given.out):
            exported = export.export(
                value.artifact(machine), given.out, name=given.name, initial=given.initial, threads=given.threads
            )
    except ValueError as error:
        refuse(parser.prog, error)
    except RuntimeError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    artifact = exported.layout.artifact
    print(f"{exported.directory}: {artifact.kind} {exported.layout.name} for {artifact.target.name}")
    for file in exported.files:
        print(f"  {file:<16}{os.path.getsize(exported.directory / file):>12,} bytes")
    if exported.state_bytes:
        print(f"  {'state':<16}{exported.state_bytes:>12,} bytes of the caller's memory")
    print(f"  {'workspace':<16}{exported.workspace_bytes:>12,} bytes of the caller's memory, for one thread")
    for text in exported.missing:
        print(f"missing: {text}")
    if artifact.state and artifact.initial is None:
        print(
            "no numbers to start from: compile with `kn.train.compile(..., state=)`, or make "
            f"{exported.layout.name}.state with `step.write_state`, for main.c or JavaScript's `restore`"
        )
    return 0


def _inspect(parser: argparse.ArgumentParser, file: str) -> int:
    from kaun.tools import aot_description

    from kaun.plain_data import printable

    try:
        print(aot_description.of_file(file), end="")
    except (ValueError, OSError) as error:
        refuse(parser.prog, printable(reason(error)))
    return 0


def _targets() -> int:
    from kaun.runtime.presets import PRESETS
    from kaun.runtime.target import named

    rows = [("target", "vectors", "pointers", "threads", "")]
    for name, preset in PRESETS.items():
        machine = named(name)
        vectors = f"{machine.vector_bits} bits" if machine.vector_bits > 32 else "none"
        threads = "yes" if machine.has_pthreads else "no"
        rows.append((name, vectors, f"{machine.pointer_bits} bits", threads, preset.remark))
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, (16, 8, 8, 7, 0), strict=True)).rstrip())
    print(f"\n{_TARGETS}", end="")
    return 0
