"""The `kaun` command: finds the tool that is asked for and runs it.

A tool is a module of this package with `main(arguments, prog) -> exit status`; only the one that runs is imported.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

TOOLS: dict[str, str] = {
    "demo": "train a small network on handwritten digits",
    "ir": "print any stage of something compiled, from the traced graph to machine code",
    "opt": "run passes by name on the text of a graph and print the result",
    "run": "run the text of a graph, program or kernel, or a reproducer, on given inputs",
    "check": "compare compiled code with the interpreter, node by node",
    "bisect": "name the gradient rule, pass or stage that brought an error in",
    "reduce": "make a reproducer of a failure smaller",
    "aot": "export training steps for C, C++, JavaScript and other machines, and look into exports",
    "viz": "show every stage of something compiled in a page, or draw its graph",
    "profile": "time every kernel of something compiled, beside what the machine could do",
    "plot": "draw the loss, learning rate and gradient norms of a training log",
    "bench": "measure training steps, kernels and compile time, beside PyTorch and JAX",
    "cache": "show or clear the cache of compiled kernels",
}

# What a shell reports for a program ended by Ctrl-C.
_INTERRUPTED = 130
# How writing to standard output fails, but for a reader that has gone.
_OUTPUT_LOST = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kaun TOOL ...` and return its exit status: 0 if all went well, 2 for arguments that make no sense."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    prog = f"kaun {given[0]}" if given and given[0] in TOOLS else "kaun"
    try:
        try:
            return _run(given)
        finally:
            sys.stdout.flush()  # here, where it can be told if it fails
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        # Whoever read our output has gone, as in `kaun bench | head`, or its disk is full.
        has_gone = isinstance(error, BrokenPipeError)
        if error.filename is not None or not (has_gone or error.errno in _OUTPUT_LOST):
            raise
        if not has_gone:
            print(f"{prog}: cannot write the output: {error.strerror or error}", file=sys.stderr)
        # The interpreter must not trip over it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(given: Sequence[str]) -> int:
    parser = _parser()
    # Options of the tool are the tool's business, so only the first word is looked at here.
    name = parser.parse_args(given[:1]).tool
    if name is None:
        parser.print_help()
        return 2
    tool = importlib.import_module(f"kaun.tools.{name}")
    from kaun.tools.failures import UserCodeError  # after the tool, which is what takes time to load
    from kaun.tools.files import OutputError

    try:
        return int(tool.main(given[1:], prog=f"kaun {name}"))
    except (UserCodeError, OutputError) as error:
        print(f"kaun {name}: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"kaun {name}: there is not enough memory: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kaun",
        usage="kaun TOOL [options]",
        description="Neural networks whose whole training step is one compiled program.",
        epilog="tools:\n"
        + "".join(f"  {name:<8}{what}\n" for name, what in TOOLS.items())
        + "\n`kaun TOOL --help` explains one of them; begin with `kaun demo`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kaun {_version()}")
    parser.add_argument("tool", nargs="?", choices=TOOLS, metavar="TOOL", help=argparse.SUPPRESS)
    return parser


def _version() -> str:
    import kaun

    return kaun.__version__


if __name__ == "__main__":
    sys.exit(main())
