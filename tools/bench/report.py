"""Results as tables, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaun.runtime.peaks import bandwidth_of
from kaun.tools.bench.measure import Benchmark, Result, Timing
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

# Kernels below this share of their step are summed up in one line.
_SMALL_SHARE = 0.005


@dataclass(frozen=True)
class Table:
    """Text in rows and columns. The first column is a name, the others are numbers, except `text_columns`."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    text_columns: tuple[int, ...] = (0,)


def tables(benchmark: Benchmark, *, least: bool = False, kernels: bool = True) -> list[Table]:
    """The tables of a benchmark: steps, products, first steps and, if wanted, the kernels of each problem.

    `least` shows the least times instead of medians, for a machine that does other things meanwhile.
    """
    steps, operations, products = (
        [result for result in benchmark.results if result.kind == kind] for kind in ("step", "operation", "product")
    )
    made: list[Table] = []
    if steps:
        made.append(_times_table("Training step", steps, benchmark, least))
    if any(result.compile_times for result in steps):
        made.append(_first_steps_table(steps, benchmark))
    if any(timing.peak_bytes for result in steps for timing in result.timings.values()):
        made.append(_memory_table(steps, benchmark))
    if operations:
        made.append(_times_table("Operation", operations, benchmark, least))
    if products:
        made.append(_products_table(products, benchmark, least))
    if kernels:
        behind = [result for result in operations if (ratio_to_best(result, least) or 1.0) < 1.0]
        made += [_kernels_table(result, benchmark.peaks, least) for result in [*steps, *behind]]
    return made


def description(benchmark: Benchmark) -> str:
    """What was measured on what, in one line."""
    peaks = benchmark.peaks
    rates = ", ".join(
        f"{rate / 1e9:.0f} GB/s in {_level(index, len(peaks['bandwidth']))}"
        for index, (_, rate) in enumerate(peaks["bandwidth"])
    )
    threads = f"{benchmark.threads} thread{'s' if benchmark.threads > 1 else ''}"
    systems = ", ".join(f"{system.title} {system.version}" for system in benchmark.systems.values())
    made = (
        f"{systems}; float32, {threads} of {peaks['target']}; "
        f"peaks measured alongside: {peaks['flops'] / 1e9:.0f} GFLOP/s multiply-add, copying {rates}."
    )
    if "fork_and_join" in peaks:
        made += (
            f" Fork and join: {peaks['fork_and_join'] * 1e6:.1f} us, "
            f"{peaks['fork_and_join_after_serial'] * 1e6:.1f} us after a millisecond on one thread."
        )
    return made


def _level(index: int, count: int) -> str:
    return "memory" if index == count - 1 else ("L2", "L3")[index]


def _shown(timing: Timing, least: bool) -> float:
    return timing.least if least else timing.median


def _present(results: Sequence[Result], benchmark: Benchmark) -> list[str]:
    """The systems that took part in some of these results, in order."""
    return [name for name in benchmark.systems if any(name in result.timings for result in results)]


def _titles(names: Sequence[str], benchmark: Benchmark) -> list[str]:
    return [benchmark.systems[name].title for name in names]


def ratio_to_best(result: Result, least: bool = False) -> float | None:
    """The time of the fastest peer over Kaun's; None if no peer has one."""
    peers = [_shown(t, least) for name, t in result.timings.items() if name != "kaun" and not t.error]
    return min(peers) / _shown(result.timings["kaun"], least) if peers else None


def threads_gain(result: Result, least: bool = False) -> float | None:
    """Kaun's time on one thread over that on all; None if it was not taken."""
    if result.single_thread is None:
        return None
    return _shown(result.single_thread, least) / _shown(result.timings["kaun"], least)


def limit_seconds(kernel: dict[str, Any], peaks: dict[str, Any]) -> float:
    """The time that the measured peaks allow for a kernel's operations and bytes."""
    bandwidth = bandwidth_of(peaks["bandwidth"], kernel["bytes"])
    return float(max(kernel["flops"] / peaks["flops"], kernel["bytes"] / bandwidth))


def share_of_limit(result: Result, peaks: dict[str, Any], least: bool = False) -> float:
    """The limits of all kernels together over the time that a run takes."""
    return sum(limit_seconds(kernel, peaks) for kernel in result.kernels) / _shown(result.timings["kaun"], least)


def geometric_mean(ratios: Sequence[float]) -> float:
    """exp(mean of logarithms) of some positive numbers."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _times_table(title: str, results: Sequence[Result], benchmark: Benchmark, least: bool) -> Table:
    names = _present(results, benchmark)
    scaled = any(result.single_thread for result in results)
    rows: list[tuple[str, ...]] = []
    for result in results:
        ours = _shown(result.timings["kaun"], least)
        cells = [result.title]
        for name in names:
            timing = result.timings.get(name, Timing(error="-"))
            time = _shown(timing, least)
            ratio = f" ({time / ours:.2f}x)" if name != "kaun" else ""
            cells.append("-" if timing.error else f"{duration(time)}{ratio}")
        best = ratio_to_best(result, least)
        cells.append("-" if best is None else f"{best:.2f}x")
        cells.append(f"{share_of_limit(result, benchmark.peaks, least):.0%}")
        if scaled:
            gain = threads_gain(result, least)
            cells.append("-" if gain is None else f"{gain:.2f}x")
        rows.append(tuple(cells))
    ratios = [best for best in (ratio_to_best(result, least) for result in results) if best is not None]
    if ratios:
        mean = f"{geometric_mean(ratios):.2f}x"
        rows.append(("geometric mean", *("" for _ in names), mean, "", *([""] if scaled else [])))
    what = "least" if least else "median"
    subject = "a step with AdamW" if results[0].kind == "step" else "one call, results in new memory"
    note = (
        f"Time of {subject} ({what}); in brackets how many times as long as Kaun's, then the best peer so. `of limit`: "
        "the time in which the measured peaks would allow the operations and bytes of Kaun's kernels, over Kaun's time."
    )
    more = []
    if scaled:
        more.append("threads")
        note += f" `threads`: Kaun's time on one thread over that on {benchmark.threads}."
    return Table(title, ("", *_titles(names, benchmark), "best peer", "of limit", *more), rows, note)


def _first_steps_table(results: Sequence[Result], benchmark: Benchmark) -> Table:
    names = [name for name in _present(results, benchmark) if name != "kaun"]
    rows = []
    for result in results:
        times = result.compile_times
        ours = (duration(times.cold), duration(times.warm), str(times.kernels)) if times else ("-",) * 3
        theirs = (result.timings.get(name, Timing(error="-")) for name in names)
        rows.append((result.title, *ours, *("-" if t.error else duration(t.first_seconds) for t in theirs)))
    columns = ("", "Kaun, cold", "Kaun, warm", "kernels", *_titles(names, benchmark))
    note = (
        "From the model to the end of the first step, imports not counted. Kaun in a new process: cold with an empty "
        "cache folder (everything is compiled), warm with what that run left there (nothing is)."
    )
    return Table("First step", columns, rows, note)


def _memory_table(results: Sequence[Result], benchmark: Benchmark) -> Table:
    names = _present(results, benchmark)
    rows = []
    for result in results:
        ours = result.timings["kaun"].peak_bytes
        cells = [result.title]
        for name in names:
            peak = result.timings[name].peak_bytes if name in result.timings else 0
            ratio = f" ({peak / ours:.2f}x)" if name != "kaun" and ours else ""
            cells.append(f"{peak / 1e6:,.0f}{ratio}" if peak else "-")
        sizes = (result.state_bytes, result.arena_bytes, result.lower_bound_bytes)
        cells += [f"{size / 1e6:,.1f}" for size in sizes]
        least = result.frugal
        if least:
            needed = [least.get(name, 0) for name in ("peak_bytes", "compiled_peak_bytes", "arena_bytes")]
            cells += [f"{size / 1e6:,.1f}" if size else "-" for size in needed]
        rows.append((*cells, *((duration(least["seconds"]),) if least else ("-",) * 4)))
    own = ("state", "arena", "alive at once", "frugal peak", "where compiled", "frugal arena", "frugal step")
    columns = ("MB", *_titles(names, benchmark), *own)
    note = (
        "The most memory resident in a process while it makes steps, beyond what was before the model was made; in "
        "brackets how many times as much as Kaun's, which finds its programs on disk as every process but the first "
        "does. `where compiled` is the first, with what compiling left behind. `state` are the parameters and the "
        "optimizer's moments; `arena` holds Kaun's intermediates, of which so many bytes are alive at once. `frugal` "
        "is with `memory_budget=0`: the least memory, for computing again what is needed twice."
    )
    return Table("Peak memory of training", columns, rows, note)


def _products_table(results: Sequence[Result], benchmark: Benchmark, least: bool) -> Table:
    names = _present(results, benchmark)
    rows = []
    for result in results:
        size = int(result.name.rpartition("-")[2])
        rates = {
            name: 2 * size**3 / _shown(timing, least) / 1e9
            for name, timing in result.timings.items()
            if not timing.error
        }
        share = f"{rates['kaun'] / rates['numpy']:.0%}" if "numpy" in rates else "-"
        peak = f"{rates['kaun'] * 1e9 / benchmark.peaks['flops']:.0%}"
        rows.append((result.title, *(f"{rates[n]:.0f}" if n in rates else "-" for n in names), share, peak))
    columns = ("GFLOP/s", *_titles(names, benchmark), "Kaun / NumPy", "Kaun / peak")
    return Table("float32 matrix product", columns, rows)


def _kernels_table(result: Result, peaks: dict[str, Any], least: bool) -> Table:
    total = sum(kernel["seconds"] for kernel in result.kernels)
    rows, small = [], []
    for number, kernel in enumerate(result.kernels):
        if kernel["seconds"] < _SMALL_SHARE * total:
            small.append(kernel["seconds"])
            continue
        rows.append((str(number), *_kernel_cells(kernel, total, peaks)))
    if small:
        shares = (duration(sum(small)), f"{sum(small) / total:.0%}", "", "", "")
        rows.append(("", f"{len(small)} smaller kernels", "", *shares))
    step = _shown(result.timings["kaun"], least)
    note = (
        f"{len(result.kernels)} kernels in {result.launches} launches, {duration(total)} when each runs alone again "
        f"and again; the step takes {duration(step)}. Arena {result.arena_bytes:,} bytes. `of limit`: the time that "
        "the measured peaks allow for the kernel's operations and bytes (each buffer once), over the time it takes."
    )
    if result.closures is not None:
        closures = result.closures
        note += (
            f" With a fresh closure as the loss of each of {closures['steps']:,} batches a step takes "
            f"{duration(closures['step'])}, {duration(max(0.0, closures['step'] - closures['native']))} beyond the "
            f"native call, and compiles {closures['compiled']} further kernels."
        )
    if result.kind == "operation":
        note += " " + " ".join(" ".join(kernel["text"].split()) for kernel in result.kernels)
    columns = ("", "kernel", "layers", "time", "share", "GFLOP/s", "GB/s", "of limit")
    return Table(f"Kernels of {result.title}", columns, rows, note, (0, 1, 2))


def _kernel_cells(kernel: dict[str, Any], total: float, peaks: dict[str, Any]) -> tuple[str, ...]:
    seconds = max(kernel["seconds"], 1e-12)
    flops, traffic = kernel["flops"] / seconds, kernel["bytes"] / seconds
    return (
        kernel["what"], kernel["where"], duration(seconds), f"{seconds / total:.0%}",
        f"{flops / 1e9:.1f}", f"{traffic / 1e9:.1f}", f"{limit_seconds(kernel, peaks) / seconds:.0%}",
    )  # fmt: skip


def duration(seconds: float) -> str:
    """Three digits or so: "12.3 µs", "4.56 ms", "1.23 s"."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms"), (1.0, "s")):
        value = seconds * factor
        if value < 999.5 or unit == "s":
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    raise AssertionError("the loop ends with seconds")


def failures(benchmark: Benchmark) -> list[str]:
    """Why systems have no time where they should have one."""
    return [
        f"{result.title}: {benchmark.systems[name].title} left out: {timing.error}"
        for result in benchmark.results
        for name, timing in result.timings.items()
        if timing.error
    ]


def print_tables(console: Console, made: Sequence[Table]) -> None:
    """Tables for the terminal."""
    for table in made:
        rich = RichTable(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
        for index, column in enumerate(table.columns):
            text = index in table.text_columns
            rich.add_column(escape(column), justify="left" if text else "right", no_wrap=not text)
        for row in table.rows:
            rich.add_row(*map(escape, row))
        console.print(rich)
        console.print()


def markdown(made: Sequence[Table]) -> str:
    """Tables for a README."""
    parts = []
    for table in made:
        marks = ("---" if index in table.text_columns else "---:" for index in range(len(table.columns)))
        lines = [f"**{table.title}.** {table.note}".strip(), "", _line(table.columns), _line(tuple(marks))]
        parts.append("\n".join([*lines, *map(_line, table.rows)]))
    return "\n\n".join(parts) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
