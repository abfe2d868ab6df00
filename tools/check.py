"""`kaun check`: compares what is compiled with the interpreter, node by node, and names the first that disagrees."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kaun.tools import subject
from kaun.tools.failures import refuse

from kaun.debug import reproducer
from kaun.debug.examination import Examination, examine_graph, random_inputs


def main(arguments: Sequence[str], prog: str = "kaun check") -> int:
    """Compare, and show what came of it. The exit status is 1 if something disagrees."""
    return compare(
        arguments, prog, False,
        "Run something compiled and the interpreter side by side, node by node, and name the first that disagrees.",
    )  # fmt: skip


def compare(arguments: Sequence[str], prog: str, gradients: bool, description: str) -> int:
    """What `kaun check` and `kaun bisect` share: the latter looks at gradient rules too."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Without --inputs a reproducer runs on its own, and anything else on random numbers.",
    )
    parser.add_argument("target", metavar="TARGET", help=subject.HELP)
    parser.add_argument("--inputs", metavar="X.npz", help="arrays named as the inputs, or input_0, input_1, ...")
    parser.add_argument("--part", metavar="NAME", help="which function of a compiled training step (default: the step)")
    parser.add_argument("--save", metavar="FILE.npz", help="write what disagrees to this file, for run, bisect, reduce")
    given = parser.parse_args(arguments)
    try:
        found = subject.find(given.target, given.part)
        arrays = found.inputs if given.inputs is None else reproducer.load_inputs(given.inputs, found.graph)
    except (ValueError, OSError) as error:
        refuse(prog, error)
    arrays = random_inputs(found.graph) if arrays is None else arrays
    fault = examine_graph(found.graph, arrays, gradients=gradients)
    result = Examination(1, len(found.graph.nodes), fault)
    if fault is None:
        print(f"All {result.nodes} nodes agree.")
        return 0
    print(f"{given.target}: {fault}")
    if given.save:
        print(f"Wrote {fault.save(given.save)}; `kaun reduce` makes it smaller.", file=sys.stderr)
    return 1
