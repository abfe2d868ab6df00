"""`kaun ir`: prints a stage of the pipeline of whatever was compiled."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kaun.compiler.pipeline import STAGES
from kaun.runtime import activity
from kaun.tools import subject
from kaun.tools.failures import refuse
from kaun.tools.status import shown

from kaun.compiled import Stages
from kaun.debug.native import host_compilation

ALL = (*STAGES, "assembly")


def main(arguments: Sequence[str], prog: str = "kaun ir") -> int:
    """Print a stage, to standard output. The exit status is 1 if there is nothing to print it of."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Print a stage of the pipeline: from the traced graph to machine code.",
        epilog="stages, in order: " + ", ".join(ALL) + ".  Example: kaun ir examples/compiled.py:step --stage fused",
    )
    parser.add_argument("target", metavar="TARGET", help=subject.HELP)
    parser.add_argument("--stage", choices=ALL, default="traced", metavar="STAGE", help="default: traced")
    parser.add_argument("--part", metavar="NAME", help="which function of a compiled training step (default: the step)")
    given = parser.parse_args(arguments)
    with shown(f"looking for {given.target}"):
        try:
            graph = subject.find(given.target, given.part).graph
        except subject.SubjectError as error:
            refuse(prog, error)
        activity.now(f"making the stage {given.stage}")
        text = Stages(host_compilation(graph))[given.stage]
    print(text, end="")
    return 0
