"""The measurement: equal inputs to every system, equal answers demanded, then rounds in which each takes its turn."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kaun.tools.bench.problems import Model, Network, Operation, Problem, Product
from kaun.tools.bench.workers import System, Worker, WorkerError

# Losses of the first steps, or entries of a product, that have to agree, and how closely.
CHECKED = 4
TOLERANCE = 1e-4
# Steps during which the memory of a process is watched.
_MEMORY_STEPS = 3
# Between two turns, so that the threads of one system have gone to sleep when the next begins.
_PAUSE_SECONDS = 0.05
# The turns of Kaun on one thread, beside those of the systems by their names.
_SINGLE = "kaun on one thread"


class DisagreementError(Exception):
    """Kaun's answers differ from the interpreter's: there is nothing worth timing."""


@dataclass(frozen=True)
class Settings:
    """How long to measure: `rounds` turns for each system of about `seconds` each, on `threads` threads.

    `compile_all` has torch.compile take part where compiling takes it long, too. `single_thread` times Kaun on one
    thread as well, in turn with the others. `memory` has the memory of training steps measured.
    """

    threads: int
    rounds: int = 5
    seconds: float = 0.25
    kernel_seconds: float = 0.05
    compile_times: bool = True
    compile_all: bool = False
    single_thread: bool = False
    memory: bool = True


@dataclass(frozen=True)
class Timing:
    """Seconds a step or product takes in one system: the median over rounds of their medians, and the least of all.

    `first_seconds` is for the first one and all that precedes it, such as compiling. `peak_bytes` is the memory of a
    process that makes steps, beyond what it had before, 0 if it was not measured. `error` says why there is no time.
    """

    first_seconds: float = 0.0
    median: float = 0.0
    least: float = 0.0
    peak_bytes: int = 0
    error: str = ""


@dataclass(frozen=True)
class CompileTimes:
    """The first step in a new process, with an empty cache folder and with the one that left behind.

    `cold` and `warm` are all of it: tracing, compiling or loading, one step. `kernels` were compiled in
    `kernel_seconds`.
    """

    cold: float
    warm: float
    kernels: int
    kernel_seconds: float
    compiled_warm: int


@dataclass(frozen=True)
class Result:
    """All about one problem. `values` are what the systems agreed on; `kernels` are records of `KernelTime`.

    `kind` is "step", "operation" or "product". `single_thread` is Kaun's time on one thread, if that was asked for.
    `arena_bytes` hold Kaun's intermediates, of which `lower_bound_bytes` are alive at once; `state_bytes` are those of
    a step's parameters and optimizer state. `frugal` are `peak_bytes`, `arena_bytes` and `seconds` of a step that
    computes again what it can instead of keeping it, and `compiled_peak_bytes` where the process has compiled it.
    """

    name: str
    title: str
    kind: str
    timings: dict[str, Timing]
    values: list[float]
    kernels: list[dict[str, Any]]
    arena_bytes: int
    lower_bound_bytes: int = 0
    state_bytes: int = 0
    frugal: dict[str, float] | None = None
    launches: int = 0
    closures: dict[str, float] | None = None
    compile_times: CompileTimes | None = None
    single_thread: Timing | None = None


@dataclass(frozen=True)
class Benchmark:
    """All results, and the machine's peaks as a record of `Peaks`."""

    threads: int
    systems: dict[str, System]
    peaks: dict[str, Any]
    results: list[Result] = field(default_factory=list)

    @staticmethod
    def of_record(record: dict[str, Any]) -> Benchmark:
        """The benchmark that `dataclasses.asdict` made a record of. KeyError or TypeError if it is no such record."""
        results = []
        for entry in record["results"]:
            changed = dict(entry)
            changed["timings"] = {name: Timing(**timing) for name, timing in entry["timings"].items()}
            for name, kind in (("compile_times", CompileTimes), ("single_thread", Timing)):
                if entry.get(name) is not None:
                    changed[name] = kind(**entry[name])
            results.append(Result(**changed))
        systems = {name: System(**system) for name, system in record["systems"].items()}
        return Benchmark(record["threads"], systems, record["peaks"], results)

    def with_more(self, other: Benchmark) -> Benchmark:
        """This and another run on the same machine together; a problem in both counts as the other has it.

        ValueError for a run on another machine or on another number of threads.
        """
        ours, theirs = ((b.threads, b.peaks["target"]) for b in (self, other))
        if ours != theirs:
            raise ValueError(f"got runs on {theirs[0]} threads of {theirs[1]} and on {ours}")
        later = {result.name for result in other.results}
        results = [*(result for result in self.results if result.name not in later), *other.results]
        return Benchmark(self.threads, self.systems | other.systems, _best(self.peaks, other.peaks), results)


def run(
    problems: Sequence[Problem],
    systems: Sequence[System],
    settings: Settings,
    say: Callable[[str], None],
    save: Callable[[Benchmark], None] = lambda benchmark: None,
) -> Benchmark:
    """Measure the problems in every system; the first system is Kaun.

    Systems that fail or answer differently are left out of the timing, and their `Timing.error` says why. `save` is
    given what there is after each problem, for a run that takes long.
    DisagreementError if Kaun itself differs from the interpreter; WorkerError if its process fails.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        fresh = {
            "KAUN_CACHE_DIR": str(Path(folder) / "kaun"),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
        }
        workers = [stack.enter_context(Worker(system, settings.threads, fresh)) for system in systems]
        single = None
        if settings.single_thread and settings.threads > 1:
            single = stack.enter_context(Worker(systems[0], 1, fresh))
        peaks: dict[str, Any] = {}
        results: list[Result] = []
        titled = {system.name: system for system in systems}
        for problem in problems:
            result = _measure(problem, workers, single, settings, Path(folder), say)
            # Other programs can only make a peak look lower.
            peaks = _best(peaks, workers[0].ask("peaks", seconds=settings.kernel_seconds))
            results.append(result)
            save(Benchmark(settings.threads, titled, peaks, results))
    return Benchmark(settings.threads, titled, peaks, results)


def _measure(
    problem: Problem,
    workers: Sequence[Worker],
    single: Worker | None,
    settings: Settings,
    folder: Path,
    say: Callable[[str], None],
) -> Result:
    arrays = folder / f"{problem.name}.npz"
    np.savez(arrays, **problem.arrays())  # type: ignore[arg-type]
    able = [worker for worker in workers if _takes_part(worker.system.name, problem, settings)]
    first, errors = _load_and_check(problem, able, arrays, say)
    running = [worker for worker in able if worker.system.name not in errors]
    turns = {worker.system.name: worker for worker in running}
    if single is not None:
        first[_SINGLE] = single.ask("load", arrays=str(arrays))
        turns[_SINGLE] = single
    rounds: dict[str, list[list[float]]] = {name: [] for name in turns}
    for _ in range(settings.rounds):
        for name, worker in turns.items():
            time.sleep(_PAUSE_SECONDS)
            rounds[name].append(worker.ask("time", seconds=settings.seconds))
    timings = {name: Timing(error=error) for name, error in errors.items()}
    for name, blocks in rounds.items():
        median = statistics.median(statistics.median(turn) for turn in blocks)
        timings[name] = Timing(first[name], median, min(min(turn) for turn in blocks))
    on_one_thread = timings.pop(_SINGLE, None)
    frugal = None
    if settings.memory and isinstance(problem, Network | Model):
        say(f"{problem.title}: memory")
        for worker in running:
            timings[worker.system.name] = _with_memory(timings[worker.system.name], worker, arrays)
        frugal = _frugal(workers[0], arrays)
    kernels = workers[0].ask("kernels", seconds=settings.kernel_seconds)
    times = None
    if settings.compile_times and isinstance(problem, Network | Model):
        times = _compile_times(workers[0].system, arrays, settings.threads)
    arrays.unlink()
    return Result(
        name=problem.name,
        title=problem.title,
        kind=_kind(problem),
        timings=timings,
        values=workers[0].ask("values", count=CHECKED),
        kernels=kernels["kernels"],
        arena_bytes=kernels["arena_bytes"],
        lower_bound_bytes=kernels["lower_bound_bytes"],
        state_bytes=kernels["state_bytes"],
        launches=kernels["launches"],
        frugal=frugal,
        closures=kernels["closures"],
        compile_times=times,
        single_thread=on_one_thread,
    )


def _frugal(worker: Worker, arrays: Path) -> dict[str, float]:
    """What a frugal step needs in a process that finds it on disk, as others do, and in the one that compiles it."""
    answers = []
    for _ in range(2):
        with Worker(worker.system, worker.threads, worker.environment) as alone:
            answers.append(alone.ask("frugal", arrays=str(arrays), steps=_MEMORY_STEPS))
    return {**answers[1], "compiled_peak_bytes": answers[0]["peak_bytes"]}


def _with_memory(timing: Timing, worker: Worker, arrays: Path) -> Timing:
    """The timing with the memory that a new process of the same system needs."""
    with Worker(worker.system, worker.threads, worker.environment) as alone:
        return dataclasses.replace(timing, peak_bytes=alone.ask("memory", arrays=str(arrays), steps=_MEMORY_STEPS))


def _kind(problem: Problem) -> str:
    if isinstance(problem, Product):
        return "product"
    return "operation" if isinstance(problem, Operation) else "step"


def _takes_part(system: str, problem: Problem, settings: Settings) -> bool:
    if system == "numpy":
        return isinstance(problem, Product)
    if system == "torch-compile":
        if isinstance(problem, Product):
            return False  # it is PyTorch's own product
        return isinstance(problem, Network) or settings.compile_all or not problem.slow_to_compile
    return True


def _load_and_check(
    problem: Problem, workers: Sequence[Worker], arrays: Path, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, str]]:
    """(seconds of the first run of each system, why systems are left out).

    What is expected are the answers of the interpreter; for models and operations, for which it takes too long, Kaun's.
    """
    first: dict[str, float] = {}
    errors: dict[str, str] = {}
    expected: list[float] = []
    for worker in workers:
        name = worker.system.name
        say(f"{problem.title}: {worker.system.title}")
        try:
            first[name] = worker.ask("load", arrays=str(arrays))
            values = worker.ask("values", count=CHECKED)
        except WorkerError as error:
            if worker is workers[0]:
                raise
            errors[name] = str(error)
            continue
        if worker is workers[0]:
            interpreted = isinstance(problem, Network | Product)
            expected = worker.ask("interpreted", count=CHECKED) if interpreted else values
        later = problem.later_tolerance if isinstance(problem, Model) else TOLERANCE
        if not _agree(values, expected, later):
            errors[name] = _difference(values, expected)
            if worker is workers[0]:
                raise DisagreementError(f"{problem.title}: Kaun {errors[name]} as the interpreter")
    return first, errors


def _agree(values: Sequence[float], expected: Sequence[float], later: float = TOLERANCE) -> bool:
    """Whether there are as many, the first within TOLERANCE and the others within `later`."""
    if len(values) != len(expected):
        return False
    tolerances = np.full(len(expected), later)
    tolerances[:1] = TOLERANCE
    return bool(np.all(np.abs(np.subtract(values, expected)) <= tolerances * (1 + np.abs(expected))))


def _difference(values: Sequence[float], expected: Sequence[float]) -> str:
    if len(values) != len(expected):
        return f"{len(values)} answers, expected {len(expected)}"
    if len(values) > CHECKED:  # the sample of an operation: the worst of it
        errors = np.abs(np.subtract(values, expected))
        worst = int(np.argmax(errors))
        return f"answers {values[worst]:.6g}, expected {expected[worst]:.6g} in place {worst} of {len(values)}"
    return f"answers {_short(values)}, expected {_short(expected)}"


def _short(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def _compile_times(system: System, arrays: Path, threads: int) -> CompileTimes:
    """The first step twice, each time in a new process, the second time with what the first left on disk."""
    first, statistics = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            with Worker(system, threads, {"KAUN_CACHE_DIR": folder}) as worker:
                first.append(worker.ask("load", arrays=str(arrays)))
                statistics.append(worker.ask("statistics"))
    return CompileTimes(
        cold=first[0],
        warm=first[1],
        kernels=statistics[0]["compiled"],
        kernel_seconds=statistics[0]["compile_seconds"],
        compiled_warm=statistics[1]["compiled"],
    )


def _best(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The better of two measurements of the same peaks, number by number."""
    if not first:
        return second
    levels = [
        (bound, max(rate, other))
        for (bound, rate), (_, other) in zip(first["bandwidth"], second["bandwidth"], strict=True)
    ]
    least = {name: min(first[name], second[name]) for name in first.keys() & second.keys() if name.startswith("fork")}
    return {**second, **least, "flops": max(first["flops"], second["flops"]), "bandwidth": levels}
