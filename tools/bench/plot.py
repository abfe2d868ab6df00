"""A benchmark as a picture: how many times as long the best peer takes, and the share of the machine's limit."""

from __future__ import annotations

import math
from pathlib import Path

from kaun.tools.bench import report
from kaun.tools.bench.measure import Benchmark, Result

_AHEAD, _BEHIND, _LIMIT = "#2f7d5b", "#b5483a", "#4a6fa5"


def save(benchmark: Benchmark, file: str | Path, *, least: bool = False) -> None:
    """Write a PNG with a bar for each step and operation in two panels: ratio to the best peer, share of the limit.

    ValueError, naming the extra to install, if matplotlib is missing, and if there is no step or operation to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("matplotlib is not installed; install it with pip install 'kaun[plot]'") from error
    rows = [result for result in benchmark.results if result.kind in ("step", "operation")]
    if not rows:
        raise ValueError("got a benchmark without steps and operations: there is nothing to draw")
    figure = Figure(figsize=(12, 1.4 + 0.25 * len(rows)), layout="constrained")
    ratios, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = list(range(len(rows)))
    heights = [report.ratio_to_best(result, least) or math.nan for result in rows]
    colours = [_AHEAD if height >= 1 else _BEHIND for height in heights]
    ratios.barh(places, [height - 1 for height in heights], left=1, color=colours, height=0.7)
    ratios.axvline(1, color="black", linewidth=0.8)
    ratios.set_xscale("log", base=2)
    known = [height for height in heights if not math.isnan(height)]
    low, high = min([*known, 0.9]), max([*known, 2.0])
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if low / 1.2 <= t <= high * 1.2]
    ratios.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    ratios.set_xlim(low / 1.15, high * 1.5)
    for place, height in zip(places, heights, strict=True):
        if not math.isnan(height):
            ratios.text(max(height, 1) * 1.03, place, f"{height:.2f}", va="center", fontsize=8)
    ratios.set_yticks(places, [result.title for result in rows], fontsize=8)
    ratios.set_ylim(len(rows) - 0.4, -0.6)
    ratios.set_title(_title(rows, benchmark, least), fontsize=9)
    shares.barh(
        places, [100 * report.share_of_limit(r, benchmark.peaks, least) for r in rows], color=_LIMIT, height=0.7
    )
    shares.set_title("percent of the measured peak", fontsize=9)
    shares.axvline(100, color="black", linewidth=0.8)
    shares.set_xlim(0, 110)
    for axes in (ratios, shares):
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="x", labelsize=8)
    figure.savefig(str(file), dpi=130)


def _title(rows: list[Result], benchmark: Benchmark, least: bool) -> str:
    peers = [system.title for name, system in benchmark.systems.items() if name != "kaun"]
    ratios = [ratio for ratio in (report.ratio_to_best(result, least) for result in rows) if ratio is not None]
    mean = f", geometric mean {report.geometric_mean(ratios):.2f}" if ratios else ""
    return f"best of {', '.join(peers) or 'no peer'} over Kaun{mean}"
