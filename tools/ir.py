"""`kaun ir`: prints a stage of the pipeline of whatever was compiled."""

from __future__ import annotations

from collections.abc import Sequence

from kaun.compiler.pipeline import STAGES
from kaun.runtime import activity
from kaun.tools import ir_lines, subject
from kaun.tools.arguments import parser_of
from kaun.tools.failures import refuse
from kaun.tools.status import shown

from kaun.compiled import Stages
from kaun.debug.native import host_compilation

ALL = (*STAGES, "assembly")


def main(arguments: Sequence[str], prog: str = "kaun ir") -> int:
    """Print a stage, to standard output. The exit status is 1 if there is nothing to print it of."""
    parser = parser_of(
        prog,
        "Print a stage of the pipeline: from the traced graph to machine code.",
        f"Stages, in order: {', '.join(ALL)}.",
        ["kaun ir kaun.tools.bench.steps:gpt_128 --stage fused",
         "kaun ir examples/digits_cnn.py:compiled > step.txt"],
    )  # fmt: skip
    parser.add_argument("target", metavar="TARGET", help=subject.HELP)
    parser.add_argument("--stage", choices=ALL, default="traced", metavar="STAGE", help="default: traced")
    parser.add_argument("--part", metavar="NAME", help="which function of a compiled training step (default: the step)")
    parser.add_argument(
        "--lines", action="store_true", help="behind lines of LLVM IR and assembly, the ops and your lines they are for"
    )
    given = parser.parse_args(arguments)
    if given.lines and given.stage not in ir_lines.STAGES:
        parser.error(f"--lines goes with --stage {' or '.join(ir_lines.STAGES)}, got {given.stage}")
    with shown(f"looking for {given.target}"):
        try:
            graph = subject.find(given.target, given.part).graph
        except subject.SubjectError as error:
            refuse(prog, error)
        activity.now(f"making the stage {given.stage}")
        compilation = host_compilation(graph)
        text = ir_lines.with_lines(compilation, given.stage) if given.lines else Stages(compilation)[given.stage]
    print(text, end="")
    return 0
