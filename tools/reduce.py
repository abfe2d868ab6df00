"""`kaun reduce`: makes a reproducer smaller as long as it still fails in the same way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaun.compiler.ir import print_graph
from kaun.tools.arguments import count, parser_of
from kaun.tools.failures import INTERRUPTED, refuse
from kaun.tools.files import writing, wrote
from kaun.tools.status import shown

from kaun.debug import reproducer
from kaun.debug.examination import examine_graph
from kaun.debug.not_finite import find_not_finite
from kaun.debug.reproducer import Reproducer
from kaun.debug.shrinking import Fails, shrink


@dataclass(frozen=True, eq=False)
class Failure:
    """What is wrong, in words, whether a variant has the same, and the part of the graph that is known to show it."""

    text: str
    fails: Fails
    part: Reproducer

    def smallest_known(self, whole: Reproducer) -> Reproducer:
        """The part if it fails by itself, else the whole."""
        fewer = len(self.part.graph.nodes) < len(whole.graph.nodes)
        return self.part if fewer and self.fails(self.part) else whole


def failure_of(kept: Reproducer) -> Failure | None:
    """What is wrong with it; None if nothing is."""
    fault = examine_graph(kept.graph, kept.inputs, gradients=True)
    if fault is not None:
        wanted = (fault.stage, fault.culprit)

        def same(variant: Reproducer) -> bool:
            found = examine_graph(variant.graph, variant.inputs, gradients=wanted[0] == "gradient")
            return found is not None and (found.stage, found.culprit) == wanted

        return Failure(str(fault), same, fault.reproducer)
    broken = find_not_finite(kept.graph, kept.inputs)
    if broken is None:
        return None

    def as_broken(variant: Reproducer) -> bool:
        found = find_not_finite(variant.graph, variant.inputs)
        return found is not None and (found.what, found.node.op, found.name) == (broken.what, broken.node.op, "")

    return Failure(str(broken), as_broken, broken.reproducer)


def main(arguments: Sequence[str], prog: str = "kaun reduce") -> int:
    """Shrink the file and show what is left. The exit status is 1 if it does not fail."""
    parser = parser_of(
        prog,
        "Make a reproducer smaller as long as it fails in the same way: fewer nodes, shorter axes.",
        examples=["kaun check model.py:step --save wrong.npz", "kaun reduce wrong.npz", "kaun run wrong.small.npz"],
    )
    parser.add_argument("file", metavar="FILE.npz", help="a reproducer, as `kaun check --save` and kn.debug write them")
    parser.add_argument("--output", metavar="SMALL.npz", help="default: FILE.small.npz")
    parser.add_argument("--tries", type=count, default=600, metavar="N", help="variants to try at most (600)")
    given = parser.parse_args(arguments)
    try:
        kept = reproducer.load(given.file)
    except (ValueError, OSError) as error:
        refuse(prog, error)
    with shown(f"looking at {given.file}"):
        failure = failure_of(kept)
        if failure is None:
            print(f"{given.file} does not fail here: compiled code and interpreter agree.", file=sys.stderr)
            return 1
        print(failure.text, file=sys.stderr)
        found = [failure.smallest_known(kept)]
        try:
            shrink(found[0], failure.fails, given.tries, found.append)
            status = 0
        except KeyboardInterrupt:
            print("\nInterrupted; this is the smallest so far.", file=sys.stderr)
            status = INTERRUPTED
    small = found[-1]
    path: str | Path = given.output or f"{given.file.removesuffix('.npz')}.small.npz"
    with writing(path):
        path = small.save(path)
    print(print_graph(small.graph), end="")
    print(f"{len(kept.graph.nodes)} nodes became {len(small.graph.nodes)}.", file=sys.stderr)
    wrote(path, f"`kaun run {path}` runs it")
    return status
