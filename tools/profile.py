"""`kaun profile`: where the time of a compiled function goes, kernel by kernel, beside the machine's limits."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kaun.tools import subject
from kaun.tools.arguments import count, parser_of, seconds
from kaun.tools.failures import refuse
from kaun.tools.files import writing, wrote
from kaun.tools.status import shown

from kaun import execution, profiling
from kaun.debug.native import host_compilation


def main(arguments: Sequence[str], prog: str = "kaun profile") -> int:
    """Print the table of kernels; write what else is asked for. The exit status is 1 if something could not be."""
    parser = parser_of(
        prog,
        "Time every kernel of a compiled function in its place, with what bounds it.",
        "The trace opens in https://ui.perfetto.dev and chrome://tracing.",
        ["kaun profile kaun.tools.bench.steps:gpt_128 --top 10",
         "kaun profile examples/digits_cnn.py:compiled --plot roof.png --trace run.json"],
    )  # fmt: skip
    parser.add_argument("target", metavar="TARGET", help=subject.HELP)
    parser.add_argument("--part", metavar="NAME", help="which function of a compiled training step (default: the step)")
    parser.add_argument("--top", type=count, default=30, metavar="N", help="kernels to list (default: 30, 0: all)")
    parser.add_argument("--seconds", type=seconds, default=1.0, help="how long to run it for (default: 1)")
    parser.add_argument("--plot", metavar="PNG", help="draw the roofline to this file")
    parser.add_argument("--trace", metavar="JSON", help="write a trace of the threads to this file")
    given = parser.parse_args(arguments)
    try:
        with shown(f"looking for {given.target}"):
            made = profile_of(subject.find(given.target, given.part), given.seconds)
        print(made.table(given.top or None))
        if given.plot:
            with writing(given.plot):
                made.plot(given.plot)
            wrote(given.plot, "the roofline; the numbers in it are those of the table")
        if given.trace:
            with writing(given.trace):
                made.save_trace(given.trace)
            wrote(given.trace, "open it in https://ui.perfetto.dev or chrome://tracing")
    except subject.SubjectError as error:
        refuse(prog, error)
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def profile_of(found: subject.Subject, seconds: float) -> profiling.Profile:
    """The profile of a graph, on its inputs or on `subject.example_inputs`."""
    inputs = found.inputs if found.inputs is not None else subject.example_inputs(found.graph)
    compiled = execution.compiled(found.graph)
    storages = [execution.Storage.of(array) for array in inputs]
    return profiling.profile(compiled, host_compilation(found.graph), storages, seconds=seconds)
