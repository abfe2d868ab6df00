"""`kaun opt`: runs passes by name on the text of a graph, and prints what comes out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kaun.compiler import passes
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, print_graph, verify
from kaun.compiler.pipeline import Compilation
from kaun.runtime import target as targets
from kaun.tools import subject
from kaun.tools.arguments import parser_of
from kaun.tools.failures import refuse, told

from kaun import execution

# What ends a list of passes: from a graph on, no further passes apply.
LATER = {"fuse": "fused", "schedule": "scheduled", "emit": "llvm"}


def names(text: str) -> tuple[str, ...]:
    """The names in a list such as "simplify,fuse"; `standard` stands for all that a compiled graph goes through.

    ValueError for a name that is none, and where something follows on what makes no graph.
    """
    given = [name.strip() for name in text.split(",") if name.strip()]
    result: list[str] = []
    for name in given:
        if result and result[-1] in LATER:
            raise ValueError(f"{name!r} cannot follow {result[-1]!r}, which does not make a graph")
        if name == "standard":
            result += passes.STANDARD
        elif name in passes.PASSES or name in LATER:
            result.append(name)
        else:
            known = ", ".join((*passes.PASSES, "standard", *LATER))
            raise ValueError(f"unknown pass {name!r}; expected one of {known}")
    return tuple(result)


def apply(graph: Graph, wanted: Sequence[str], target: VectorTarget) -> str:
    """The text after the named passes, each of whose results is verified."""
    for name in wanted:
        if name in LATER:
            return Compilation(graph, target, ()).stage(LATER[name])
        graph = passes.run(graph, [name])
        verify(graph)
    return print_graph(graph)


def main(arguments: Sequence[str], prog: str = "kaun opt") -> int:
    """Print the graph after the passes. The exit status is 1 if a pass fails or does not apply."""
    parser = parser_of(
        prog,
        "Run passes on the text of a graph and print the result.",
        f"Passes: {', '.join(passes.PASSES)}; `standard` for all that a compiled graph goes through; and, last in the "
        "list, fuse (which nodes share a kernel), schedule (loop IR), emit (LLVM IR).",
        ["kaun ir examples/digits_cnn.py:compiled --stage differentiated > step.txt",
         "kaun opt step.txt --pass canonicalise,simplify",
         "kaun opt step.txt --pass standard,schedule"],
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help=f"{subject.HELP}, or - for standard input")
    parser.add_argument("--pass", dest="passes", default="standard", metavar="NAME,...", help="default: standard")
    given = parser.parse_args(arguments)
    try:
        wanted = names(given.passes)
    except ValueError as error:
        refuse(prog, error)
    try:
        if given.file == "-":
            graph = subject.graph_of_text(subject.read_text("-"), "standard input")
        else:
            graph = subject.find(given.file).graph
    except ValueError as error:
        refuse(prog, error)
    try:
        print(apply(graph, wanted, execution.vector_target(targets.host())), end="")
    except Exception as error:
        if getattr(error, "__notes__", ()):  # a pass raised it, which is to be mended where it was raised
            print(f"{prog}: a pass failed:\n{told(error)}", file=sys.stderr)
            return 1
        if not isinstance(error, (ValueError, NotImplementedError, AssertionError)):
            raise
        print(f"{prog}: {error}", file=sys.stderr)
        if wanted and wanted[-1] in LATER and "lower_convolutions" not in wanted:
            print(f"Kernels are made of what the passes leave: try --pass standard,{wanted[-1]}", file=sys.stderr)
        return 1
    return 0
