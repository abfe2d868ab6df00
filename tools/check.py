"""`kaun check`: compares what is compiled with the interpreter, node by node, and names the first that disagrees."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kaun.compiler.ir import Graph
from kaun.tools import subject
from kaun.tools.arguments import parser_of
from kaun.tools.failures import UserCodeError, refuse
from kaun.tools.files import writing, wrote
from kaun.tools.status import shown

from kaun import observe
from kaun.debug import reproducer
from kaun.debug.examination import examine_graph, random_inputs
from kaun.debug.faults import Fault
from kaun.execution import Storage


def main(arguments: Sequence[str], prog: str = "kaun check") -> int:
    """Compare, and show what came of it. The exit status is 1 if something disagrees."""
    return compare(
        arguments, prog, False,
        "Run something compiled and the interpreter side by side, node by node, and name the first that disagrees. "
        "Gradient rules are not looked at: `kaun bisect` does that.",
    )  # fmt: skip


def compare(arguments: Sequence[str], prog: str, gradients: bool, description: str) -> int:
    """What `kaun check` and `kaun bisect` share: the latter looks at gradient rules too."""
    parser = parser_of(
        prog,
        description,
        "Without --inputs a reproducer runs on its own, and anything else on random numbers.",
        [f"{prog} examples/digits_cnn.py:compiled --save wrong.npz"],
    )
    parser.add_argument("target", metavar="TARGET", help=subject.HELP)
    parser.add_argument("--inputs", metavar="X.npz", help="arrays named as the inputs, or input_0, input_1, ...")
    parser.add_argument("--part", metavar="NAME", help="which function of a compiled training step (default: the step)")
    parser.add_argument("--save", metavar="FILE.npz", help="write what disagrees to this file, for run, bisect, reduce")
    given = parser.parse_args(arguments)
    with shown(f"looking for {given.target}"):
        try:
            found = _found(prog, given.target, given.part, gradients)
            if isinstance(found, Fault):
                return _told(found, prog, given.target, given.save)
            arrays = found.inputs if given.inputs is None else reproducer.load_inputs(given.inputs, found.graph)
        except (ValueError, OSError) as error:
            refuse(prog, error)
        arrays = random_inputs(found.graph) if arrays is None else arrays
        fault = examine_graph(found.graph, arrays, gradients=gradients)
    if fault is None:
        rest = "" if gradients else f" Gradient rules were not looked at: `kaun bisect {given.target}` does that."
        print(f"All {len(found.graph.nodes):,} nodes agree.{rest}")
        return 0
    return _told(fault, prog, given.target, given.save)


def _found(prog: str, target: str, part: str | None, gradients: bool) -> subject.Subject | Fault:
    """What is to be looked at, or what is wrong with the compiler if it fails on the way there."""
    failed: list[Graph] = []

    def note(graph: Graph, inputs: Sequence[Storage] | None) -> None:
        if inputs is None:  # it could not be compiled
            failed.append(graph)

    try:
        with observe.observing(note):
            return subject.find(target, part)
    except UserCodeError as error:
        fault = examine_graph(failed[-1], random_inputs(failed[-1]), gradients=gradients) if failed else None
        if fault is None:
            raise
        print(f"{prog}: {error}", file=sys.stderr)  # with the frames inside the compiler
        return fault


def _told(fault: Fault, prog: str, target: str, file: str | None) -> int:
    """Show the fault, write it to the file if there is to be one, and return the exit status."""
    print(f"{target}: {fault}")
    if file:
        with writing(file):
            path = fault.save(file)
        wrote(path, f"`{prog} {path}` shows it again, `kaun reduce {path}` makes it smaller")
    return 1
