"""`kaun check`: compares what is compiled with the interpreter, node by node, and names the first that disagrees."""

from __future__ import annotations

from collections.abc import Sequence

from kaun.tools import subject
from kaun.tools.arguments import parser_of
from kaun.tools.failures import refuse
from kaun.tools.files import writing, wrote
from kaun.tools.status import shown

from kaun.debug import reproducer
from kaun.debug.examination import examine_graph, random_inputs


def main(arguments: Sequence[str], prog: str = "kaun check") -> int:
    """Compare, and show what came of it. The exit status is 1 if something disagrees."""
    return compare(
        arguments, prog, False,
        "Run something compiled and the interpreter side by side, node by node, and name the first that disagrees.",
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
            found = subject.find(given.target, given.part)
            arrays = found.inputs if given.inputs is None else reproducer.load_inputs(given.inputs, found.graph)
        except (ValueError, OSError) as error:
            refuse(prog, error)
        arrays = random_inputs(found.graph) if arrays is None else arrays
        fault = examine_graph(found.graph, arrays, gradients=gradients)
    if fault is None:
        print(f"All {len(found.graph.nodes):,} nodes agree.")
        return 0
    print(f"{given.target}: {fault}")
    if given.save:
        with writing(given.save):
            path = fault.save(given.save)
        wrote(path, f"`kaun run {path}` runs it again, `kaun reduce {path}` makes it smaller")
    return 1
