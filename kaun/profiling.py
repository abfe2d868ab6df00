"""Where the time of a compiled function goes: kernel by kernel, beside what the machine could do at most.

Every kernel runs in its place in the program, with the caches as the kernels before it left them. In a launch that
runs several kernels side by side, each is charged the part of the launch's time that its share of the threads' work is,
so the kernels' times add up to the time of the whole. What a noted run takes for looking at the clock is measured and
taken off; the call from Python, which for a function of a microsecond is most of it, is a row of its own: it is what
the same call takes of a program that does nothing. A call's limit is the longer of its operations at the measured
peak of multiply-adds and its bytes at the measured rate of copying from the level of memory that holds them.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaun import whole_files
from kaun.execution import CompiledProgram, Result, Storage, vector_target
from kaun.runtime import activity
from kaun.runtime import target as targets
from kaun.runtime.peaks import Peaks, bandwidth_of, measure_peaks
from kaun.runtime.trace import Layout, Run, Tracer, clock_seconds, without_kernels

if TYPE_CHECKING:
    from kaun.compiler.codegen.vector_target import VectorTarget
    from kaun.compiler.pipeline import Compilation
    from kaun.compiler.program import Program
    from kaun.compiler.schedule.fusion import ScheduledKernel

# However long a run takes, so many are made of each kind.
_LEAST_RUNS, _FEW_RUNS = 7, 3
# For each of the machine's peaks.
_PEAK_SECONDS = 0.15
# The columns of the table, those of numbers first.
_HEAD = ("kernel", "launch", "time", "share", "GFLOP/s", "GB/s", "of limit", "bound by", "computes", "layers", "lines")
_NUMBERS = 7
# Of shorter kernels no rate is told: the clock does not see them.
_UNSEEN = 1e-8
# Kernels that a plot of the roofline names, and the least share of the time for one to be in it.
_NAMED, _LEAST_SHARE = 12, 1e-3


@dataclass(frozen=True)
class KernelProfile:
    """One kernel call of a program.

    seconds: of the program's time; worker_seconds: of all threads together.
    flops, bytes: as in `KernelSummary`, without the operations that a shorter way to the same result saves.
    limit: the seconds that the machine's peaks allow, and bound what they are the limit of: "compute" or "memory".
    lines: the user's, as "file.py:12".
    """

    number: int
    launch: int
    name: str
    stores: tuple[str, ...]
    seconds: float
    worker_seconds: float
    flops: int
    bytes: int
    chunks: int
    limit: float
    bound: str
    layers: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def of_limit(self) -> float:
        """The share of the limit that is reached: 1 at best, by the measured peaks."""
        return self.limit / self.seconds if self.seconds else 1.0


@dataclass(frozen=True, eq=False)
class Profile:
    """What a profile found. Printing it shows the table.

    seconds: the time of a whole run that notes nothing, called from Python; noted_seconds: of one that does, within.
    call_seconds: of the same call of a program that does nothing. Times are means of the middle half of all runs.
    arena: bytes of intermediates alive during each launch; arguments: bytes of inputs and outputs.
    """

    kernels: tuple[KernelProfile, ...]
    seconds: float
    noted_seconds: float
    call_seconds: float
    arena: tuple[int, ...]
    arguments: int
    peaks: Peaks
    run: Run

    @property
    def kernel_seconds(self) -> float:
        """The kernels' times together."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def rest_seconds(self) -> float:
        """What is neither the kernels' time nor the call's: what the entry does before, between and after them."""
        return max(0.0, self.seconds - self.kernel_seconds - self.call_seconds)

    def table(self, most: int | None = 30) -> str:
        """The kernels by time, the longest first, at most `most` of them, and what a run takes besides."""
        rows: list[tuple[str, ...]] = [_HEAD]
        ordered = sorted(self.kernels, key=lambda kernel: -kernel.seconds)
        for kernel in ordered[:most]:
            seconds = kernel.seconds
            rates = _rate(kernel.flops, seconds), _rate(kernel.bytes, seconds), f"{kernel.of_limit:.0%}"
            rows.append((
                str(kernel.number), str(kernel.launch), format_seconds(seconds), self._share(seconds),
                *(rates if seconds >= _UNSEEN else "---"), kernel.bound, kernel.name,
                _few(kernel.layers), _few(kernel.lines),
            ))  # fmt: skip
        if most is not None and len(ordered) > most:
            rest = sum(kernel.seconds for kernel in ordered[most:])
            rows.append(self._other_row(rest, f"{len(ordered) - most} more kernels"))
        rows.append(self._other_row(self.call_seconds, "the call from Python"))
        rows.append(self._other_row(self.rest_seconds, "between kernels"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        return "\n".join([*(_aligned(row, widths) for row in rows), "", self.summary()])

    def _share(self, seconds: float) -> str:
        return f"{seconds / max(self.seconds, 1e-30):.1%}"

    def _other_row(self, seconds: float, what: str) -> tuple[str, ...]:
        """A row of the table for what is no single kernel."""
        return ("", "", format_seconds(seconds), self._share(seconds), "", "", "", "", what, "", "")

    def summary(self) -> str:
        """The whole run in a few lines."""
        flops, moved = sum(k.flops for k in self.kernels), sum(k.bytes for k in self.kernels)
        limit = sum(kernel.limit for kernel in self.kernels)
        busy = sum(kernel.worker_seconds for kernel in self.kernels)
        workers = self.peaks.threads
        return "\n".join([
            f"a run takes {format_seconds(self.seconds)}; its {len(self.kernels)} kernels add up to "
            f"{format_seconds(self.kernel_seconds)} ({self._share(self.kernel_seconds)}), the call from Python takes "
            f"{format_seconds(self.call_seconds)}",
            f"{flops:,} operations and {moved:,} bytes: the measured peaks ({self.peaks.flops / 1e9:.0f} GFLOP/s, "
            f"{self.peaks.bandwidth[-1][1] / 1e9:.0f} GB/s from memory, {workers} threads) allow "
            f"{format_seconds(limit)}, {limit / max(self.seconds, 1e-30):.0%} of it",
            f"threads work {busy / max(self.kernel_seconds * workers, 1e-30):.0%} of the time; "
            f"arguments {self.arguments / 1e6:.1f} MB, intermediates up to {max(self.arena, default=0) / 1e6:.1f} MB",
        ])

    def __repr__(self) -> str:
        return self.table()

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write one run as a trace of threads, and the memory of its intermediates, for Perfetto or chrome://tracing.

        The format is Chrome's trace events, as JSON.
        """
        text = json.dumps({"traceEvents": self._trace_events(), "displayTimeUnit": "ns"})
        whole_files.write(path, text.encode())

    def _trace_events(self) -> list[dict[str, Any]]:
        start = self.run.stamps[0]
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": worker, "args": {"name": f"worker {worker}"}}
            for worker in sorted({event.worker for event in self.run.events})
        ]
        events.append({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "kaun"}})
        for event in sorted(self.run.events, key=lambda event: (event.begin, event.worker)):
            kernel = self.kernels[event.call]
            events.append({
                "ph": "X", "pid": 1, "tid": event.worker, "ts": (event.begin - start) / 1e3,
                "dur": (event.end - event.begin) / 1e3, "cat": kernel.bound, "name": f"{kernel.number} {kernel.name}",
                "args": {
                    "stores": ", ".join(kernel.stores), "layers": ", ".join(kernel.layers),
                    "lines": ", ".join(kernel.lines), "flops": kernel.flops, "bytes": kernel.bytes,
                    "of limit": round(kernel.of_limit, 3),
                },
            })  # fmt: skip
        for launch, stamp in enumerate(self.run.stamps[:-1]):
            events.append({
                "ph": "C", "pid": 1, "ts": (stamp - start) / 1e3, "name": "intermediates alive",
                "args": {"bytes": self.arena[launch]},
            })  # fmt: skip
        return events

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the roofline to a PNG: operations a second over operations a byte, a dot for each kernel.

        Williams, Waterman and Patterson, Roofline: an insightful visual performance model (2009). ValueError, naming
        the extra to install, if matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ValueError(
                "profile.plot: matplotlib is not installed; install it with pip install 'kaun[plot]'"
            ) from error
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes, names = figure.subplots(1, 2, width_ratios=(5, 3))
        least = _LEAST_SHARE * self.kernel_seconds
        shown = [k for k in self.kernels if k.flops and k.bytes and k.seconds >= max(least, 1e-12)]
        intensities = [kernel.flops / kernel.bytes for kernel in shown]
        low, high = min([*intensities, 0.1]) / 2, max([*intensities, 100.0]) * 2
        self._draw_peaks(axes, low, high)
        most = max((kernel.seconds for kernel in shown), default=1.0)
        for bound, colour in (("compute", "#3f74b8"), ("memory", "#c4702b")):
            chosen = [kernel for kernel in shown if kernel.bound == bound]
            axes.scatter(
                [k.flops / k.bytes for k in chosen], [k.flops / k.seconds / 1e9 for k in chosen],
                s=[10 + 300 * k.seconds / most for k in chosen], color=colour, alpha=0.5,
            )  # fmt: skip
            axes.scatter([], [], s=40, color=colour, alpha=0.5, label=f"bound by {bound}")
        longest = sorted(shown, key=lambda kernel: -kernel.seconds)[:_NAMED]
        for kernel in longest:
            place = (kernel.flops / kernel.bytes, kernel.flops / kernel.seconds / 1e9)
            axes.annotate(str(kernel.number), place, ha="center", va="center", fontsize=7)
        axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations a byte", ylabel="GFLOP/s")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="lower right", title="area: time", title_fontsize=8)
        lines = [f"{k.number:>4}  {format_seconds(k.seconds):>8}  {k.of_limit:4.0%}  {k.name[:44]}" for k in longest]
        head = f"{'kernel':>6}{'time':>8}  limit  computes"
        text = "\n".join([f"{format_seconds(self.seconds)} a run, {len(self.kernels)} kernels", "", head, *lines])
        names.axis("off")
        names.text(0, 1, text, va="top", family="monospace", fontsize=7.5, transform=names.transAxes)
        whole_files.write_figure(path, figure)

    def _draw_peaks(self, axes: Any, low: float, high: float) -> None:
        """The roofs: the multiply-add peak, and each level of memory where it is lower."""
        levels = list(zip(self.peaks.bandwidth, _level_names(len(self.peaks.bandwidth)), strict=True))
        for number, ((_, rate), name) in enumerate(levels):
            points = [low, min(self.peaks.flops / rate, high), high]
            axes.plot(points, [min(x * rate, self.peaks.flops) / 1e9 for x in points], color="#9aa5ad", linewidth=1)
            start = low * 1.3 * 2**number
            place = (start, start * rate / 1e9)
            axes.annotate(
                f"{name} {rate / 1e9:.0f} GB/s", place, xytext=(5, -2), textcoords="offset points", fontsize=8,
                color="#69747c", ha="left", va="top",
            )  # fmt: skip
        peak = self.peaks.flops / 1e9
        axes.text(high / 1.2, peak * 1.1, f"{peak:.0f} GFLOP/s", fontsize=8, ha="right", color="#69747c")


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers to the right, words to the left."""
    cells = zip(row, widths, strict=True)
    return "  ".join(f"{cell:>{w}}" if i < _NUMBERS else f"{cell:<{w}}" for i, (cell, w) in enumerate(cells)).rstrip()


def _level_names(count: int) -> list[str]:
    return [*(f"L{level}" for level in range(2, count + 1)), "memory"]


def _few(items: Sequence[str]) -> str:
    from kaun.compiler.ir.text import visible

    return visible(", ".join(items[:2])) + (f" and {len(items) - 2} more" if len(items) > 2 else "") if items else "-"


def _rate(count: int, seconds: float) -> str:
    rate = count / seconds / 1e9 if seconds else 0.0
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


def format_seconds(seconds: float) -> str:
    """Seconds for people: "12.3 us", "4.56 ms", "1.23 s"."""
    for limit, scale, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}" if seconds * scale >= 1 else f"{seconds * scale:.2f} {unit}"
    return f"{seconds:.3g} s"


# --- measuring -------------------------------------------------------------------------------------------------------


def profile(
    compiled: CompiledProgram, compilation: Compilation, inputs: Sequence[Storage], *, seconds: float = 1.0
) -> Profile:
    """Profile a program, which `compilation` is the way to, on copies of these inputs, for about `seconds` of runs.

    Outputs that may take the memory of an input do, as in a training loop: each run goes on from the state the last one
    left. Raises ValueError for a program without kernels.
    """
    program = compiled.executable.program
    if not program.calls:
        raise ValueError("profiling.profile: the program has no kernels: its outputs are its inputs")
    owned = _arguments(compiled, inputs)
    arguments = [storage.address for storage in owned]
    record = compiled.executable.record(arguments)
    tracer = tracer_of(compiled)

    nothing = without_kernels(record, targets.host())

    def call(which: array[int]) -> float:
        started = time.perf_counter()
        compiled.executable.start(which)
        return time.perf_counter() - started

    call(record)
    tracer.run(arguments)
    activity.now(f"running it for {seconds:g} s")
    whole: list[float] = []
    idle: list[float] = []
    runs: list[Run] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(runs) < _LEAST_RUNS:
        # One after the other, so that both see the machine in the same state.
        call(record)
        whole.append(call(record))
        idle.append(call(nothing))
        tracer.run(arguments)
        runs.append(tracer.run(arguments))
    activity.now("measuring what this machine can do")
    peaks = _peaks(targets.host(), tracer.threads)
    return Profile(
        kernels=_kernels(compilation, runs, clock_seconds(targets.host()), peaks),
        seconds=_middle(whole),
        noted_seconds=_middle([_length(run) for run in runs]),
        call_seconds=_middle(idle),
        arena=alive_bytes(compilation),
        arguments=sum(array.nbytes for array in (*program.inputs, *program.outputs)),
        peaks=peaks,
        run=sorted(runs, key=_length)[len(runs) // 2],
    )


def kernel_seconds(compiled: CompiledProgram, inputs: Sequence[Storage], *, seconds: float) -> list[float]:
    """What each kernel takes in its place, as in a profile and in the order of the calls, from about `seconds` of runs
    on copies of these inputs."""
    program = compiled.executable.program
    if not program.calls:
        return []
    owned = _arguments(compiled, inputs)
    arguments = [storage.address for storage in owned]
    tracer = tracer_of(compiled)
    tracer.run(arguments)
    runs: list[Run] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(runs) < _FEW_RUNS:
        runs.append(tracer.run(arguments))
    return [taken for taken, _ in call_times(program, runs, clock_seconds(targets.host()))]


def _arguments(compiled: CompiledProgram, inputs: Sequence[Storage]) -> list[Storage]:
    """Copies of the inputs, and outputs, those that may take the memory of an input in that copy."""
    owned = [_copy(storage) for storage in inputs]
    outputs = zip(compiled.outputs, compiled.donors, strict=True)
    return [*owned, *(Storage(result) if donor is None else owned[donor] for result, donor in outputs)]


def _copy(storage: Storage) -> Storage:
    made = Storage(Result.of(storage.dtype, storage.shape, storage.nbytes))
    made.view(storage.dtype.numpy, storage.shape)[...] = storage.array
    return made


def tracer_of(compiled: CompiledProgram) -> Tracer:
    """What runs the program and notes when its kernels begin and end."""
    from kaun.compiler.codegen import traced_entry

    program, target = compiled.executable.program, targets.host()

    def emit(name: str, clock: int) -> str:
        return traced_entry.emit_traced_entry(program, name, vector_target(target), clock)

    words = traced_entry.worker_words(program)
    layout = Layout(words, traced_entry.EVENT_WORDS, traced_entry.scratch_stride(program))

    return Tracer(compiled.executable, target, emit, layout)


@functools.lru_cache(maxsize=4)
def _peaks(target: targets.Target, threads: int) -> Peaks:
    """Measured once in a process: `threads` tells apart what `set_num_threads` changes."""
    return measure_peaks(target, seconds=_PEAK_SECONDS)


def _length(run: Run) -> float:
    return (run.stamps[-1] - run.stamps[0]) * 1e-9


def markdown_table(compilation: Compilation, run: Run) -> tuple[float, str]:
    """(seconds of all kernels, a table of them in Markdown, the longest first) for one run of a program."""
    from kaun.compiler.schedule.naming import describe

    times = call_times(compilation.program, [run])
    rows = ["| kernel | time | share | computes | layers |", "| ---: | ---: | ---: | --- | --- |"]
    whole = sum(seconds for seconds, _ in times)
    for number in sorted(range(len(times)), key=lambda number: -times[number][0]):
        scheduled, seconds = compilation.kernels[number], times[number][0]
        layers = sorted({node.source.path for node in scheduled.nodes if node.source.path})
        share, where = seconds / max(whole, 1e-30), _few(layers).replace("|", "\\|")
        rows.append(f"| {number} | {format_seconds(seconds)} | {share:.1%} | {describe(scheduled)} | {where} |")
    return whole, "\n".join(rows)


def call_times(program: Program, runs: Sequence[Run], clock: float = 0.0) -> list[tuple[float, float]]:
    """(seconds of the program's time, seconds of all threads) of each call of the program, the usual over the runs.

    clock: seconds that a look at the clock takes, which is no part of them: one lies in each event, and in each launch
    one, and two for each event of the worker that has most of them.
    """
    launches = [i for i, bundle in enumerate(program.bundles) for chain in bundle for _ in chain.calls]
    shares: list[list[float]] = [[] for _ in launches]
    works: list[list[float]] = [[] for _ in launches]
    for run in runs:
        work: defaultdict[int, float] = defaultdict(float)
        looks: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for event in run.events:
            work[event.call] += max(0.0, 1e-9 * (event.end - event.begin) - clock)
            looks[launches[event.call]][event.worker] += 2
        together: defaultdict[int, float] = defaultdict(float)
        for call, launch in enumerate(launches):
            together[launch] += work[call]
        for call, launch in enumerate(launches):
            length = 1e-9 * (run.stamps[launch + 1] - run.stamps[launch])
            length -= clock * (1 + max(looks[launch].values(), default=0))
            shares[call].append(max(0.0, length) * work[call] / max(1e-12, together[launch]))
            works[call].append(work[call])
    return [(_middle(share), _middle(work)) for share, work in zip(shares, works, strict=True)]


def _middle(values: Sequence[float]) -> float:
    """The mean of the middle half: as steady as a median, and finer than the steps of a clock."""
    ordered, cut = sorted(values), len(values) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def _kernels(compilation: Compilation, runs: list[Run], clock: float, peaks: Peaks) -> tuple[KernelProfile, ...]:
    program = compilation.program
    launches = [i for i, bundle in enumerate(program.bundles) for chain in bundle for _ in chain.calls]
    rows = zip(launches, compilation.kernels, program.calls, call_times(program, runs, clock), strict=True)
    return tuple(
        _kernel(number, launch, scheduled, call.chunks, *times, peaks, compilation.target)
        for number, (launch, scheduled, call, times) in enumerate(rows)
    )


def _kernel(
    number: int, launch: int, scheduled: ScheduledKernel, chunks: int, seconds: float, work: float, peaks: Peaks,
    target: VectorTarget,
) -> KernelProfile:  # fmt: skip
    from kaun.compiler.codegen.kernels import saved_multiply_adds
    from kaun.compiler.schedule.naming import describe
    from kaun.compiler.schedule.traffic import traffic_bytes

    flops = sum(node.op.flops(node) for node in scheduled.nodes) - 2 * saved_multiply_adds(scheduled.kernel, target)
    moved = traffic_bytes(scheduled.reads, scheduled.outputs, scheduled.nodes)
    computing, moving = flops / peaks.flops, moved / bandwidth_of(peaks.bandwidth, moved)
    sources = [node.source for node in scheduled.nodes if node.source.file]
    lines = dict.fromkeys(f"{os.path.basename(source.file)}:{source.line}" for source in sources)
    return KernelProfile(
        number=number,
        launch=launch,
        name=describe(scheduled),
        stores=tuple(f"{n.op.name} {n.dtype}{list(n.shape)}" for n in scheduled.outputs),
        seconds=seconds,
        worker_seconds=work,
        flops=flops,
        bytes=moved,
        chunks=chunks,
        limit=max(computing, moving),
        bound="compute" if computing > moving else "memory",
        layers=tuple(sorted({source.path for source in sources if source.path})),
        lines=tuple(lines),
    )


def alive_bytes(compilation: Compilation) -> tuple[int, ...]:
    """The most bytes of intermediates alive during each launch; see `Compilation.lifetimes` for what its steps are."""
    launch_of = []
    for launch, bundle in enumerate(compilation.program.bundles):
        alone = len(bundle) == 1
        launch_of += [launch] * (len(bundle[0].calls) + 1 if alone else 1)
    changes = [0] * (len(launch_of) + 1)
    for life in compilation.lifetimes.values():
        changes[life.first] += life.nbytes
        changes[life.last + 1] -= life.nbytes
    alive = [0] * len(compilation.program.bundles)
    total = 0
    for launch, change in zip(launch_of, changes, strict=False):
        total += change
        alive[launch] = max(alive[launch], total)
    return tuple(alive)
