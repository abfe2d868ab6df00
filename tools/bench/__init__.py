"""`kaun bench`: training steps, matrix products and compile time, beside NumPy, PyTorch and JAX where they exist."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kaun.runtime.threads import num_threads
from kaun.tools.arguments import positive, seconds
from kaun.tools.bench import measure, report
from kaun.tools.bench.problems import GROUPS, PROBLEMS, chosen
from kaun.tools.bench.workers import System, WorkerError, kaun_system, peer_systems
from kaun.tools.failures import reason, refuse
from kaun.tools.files import writing, wrote
from rich.console import Console

# Of tables that go to a file.
_WIDTH = 120


def main(arguments: Sequence[str], prog: str = "kaun bench") -> int:
    """Measure and print. The exit status is 1 if Kaun computed something wrong or could not run."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    try:
        if options.show:
            return _report(_saved(options.show), options)
        problems = chosen(options.only)
        systems = _systems(options)
    except ValueError as error:
        refuse(prog, error)
    settings = measure.Settings(
        threads=options.threads or num_threads(),
        rounds=options.rounds,
        seconds=options.seconds,
        compile_times=not options.no_compile_times,
        compile_all=options.compile_all,
        single_thread=options.single_thread,
        memory=not options.no_memory,
    )
    progress = Console(stderr=True, highlight=False)
    try:
        with progress.status("Starting") as status:
            benchmark = measure.run(
                problems, systems, settings, lambda text: status.update(text), lambda sofar: _save(options.json, sofar)
            )
    except (measure.DisagreementError, WorkerError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return _report(benchmark, options)


def _report(benchmark: measure.Benchmark, options: argparse.Namespace) -> int:
    """Print a benchmark's tables and draw its plot as the options say. The exit status is 1 if there is no plot."""
    made = report.tables(benchmark, least=options.least, kernels=not options.no_kernels)
    if options.markdown:
        print(f"{report.description(benchmark)}\n\n{report.markdown(made)}", end="")
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = _WIDTH
        console.print(report.description(benchmark), markup=False)
        console.print()
        report.print_tables(console, made)
    for failure in report.failures(benchmark):
        print(failure, file=sys.stderr)
    if options.plot:
        from kaun.tools.bench import plot  # needs matplotlib, which nothing else does

        try:
            with writing(options.plot):
                plot.save(benchmark, options.plot, least=options.least)
        except ValueError as error:
            print(f"{options.prog}: {error}", file=sys.stderr)
            return 1
        wrote(options.plot, "ratios to the best peer and shares of the limit")
    if options.json and not options.show:
        wrote(options.json, f"`kaun bench --show {options.json}` prints these tables again")
    return 0


def _save(file: str | None, benchmark: measure.Benchmark) -> None:
    if file:
        with writing(file):
            Path(file).write_text(json.dumps(dataclasses.asdict(benchmark), indent=1) + "\n")


def _saved(files: Sequence[str]) -> measure.Benchmark:
    """The runs that `--json` wrote to these files, together. ValueError for a file that holds no such thing."""
    together: measure.Benchmark | None = None
    for file in files:
        try:
            one = measure.Benchmark.of_record(json.loads(Path(file).read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError):
                raise ValueError(reason(error)) from error
            raise ValueError(f"{file} is no benchmark that --json wrote: {error!r}") from error
        together = one if together is None else together.with_more(one)
    assert together is not None
    return together


def _systems(options: argparse.Namespace) -> list[System]:
    """Kaun and the peers that were asked for. ValueError if their interpreter does not run."""
    peers = peer_systems(options.peer_python)
    if options.systems is not None:
        peers = [peer for peer in peers if peer.name in options.systems]
    return [kaun_system(), *peers]


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure training steps, matrix products, compile time and each kernel. Every system gets the same "
        "inputs and initial weights and must agree on the first losses before it is timed; systems run in "
        "processes of their own, in turn, on as many threads. All must be installed already.",
    )
    names = ", ".join(problem.name for problem in PROBLEMS)
    peers = ["numpy", "torch", "torch-compile", "jax"]
    parser.add_argument(
        "--only", nargs="+", default=["quick"], metavar="PROBLEM",
        help=f"groups ({', '.join(GROUPS)}) or problems ({names})",
    )  # fmt: skip
    parser.add_argument(
        "--systems", nargs="*", choices=peers, metavar="SYSTEM", help=f"beside Kaun: of {', '.join(peers)} (all)"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help="interpreter that has PyTorch or JAX (this one)"
    )
    parser.add_argument("--threads", type=positive, help="for every system (as many as Kaun uses by itself)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns for each system (5)")
    parser.add_argument("--seconds", type=seconds, default=0.25, help="that a turn takes (0.25)")
    parser.add_argument("--least", action="store_true", help="show least times, not medians: for a busy machine")
    parser.add_argument("--no-kernels", action="store_true", help="leave out the tables of single kernels")
    parser.add_argument("--no-compile-times", action="store_true", help="leave out the first steps in new processes")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of training steps")
    parser.add_argument(
        "--compile-all", action="store_true", help="have torch.compile take part where that takes minutes, too"
    )
    parser.add_argument("--single-thread", action="store_true", help="time Kaun on one thread too, in the same rounds")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to a file")
    parser.add_argument(
        "--show", nargs="+", metavar="FILE", help="measure nothing: report what --json wrote to these files before"
    )
    parser.set_defaults(prog=prog)
    parser.add_argument("--plot", metavar="PNG", help="draw ratios and shares of the limit (pip install 'kaun[plot]')")
    return parser
