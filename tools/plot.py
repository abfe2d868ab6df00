"""`kaun plot`: draws what training wrote to its log: loss, learning rate, norm of the gradients, speed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from kaun.compiler.ir.text import visible
from kaun.tools import event_files
from kaun.tools.arguments import parser_of
from kaun.tools.files import writing, wrote

from kaun import whole_files

# Names of scalars, their titles, and whether their axis is logarithmic.
_PANELS = (
    ("loss", "loss", True),
    ("learning_rate", "learning rate", False),
    ("gradient_norm", "norm of the gradients", True),
    ("steps_per_second", "steps a second", False),
)
# The smooth line of a curve of many points is the mean of this share of them around each.
_MANY, _SHARE = 40, 0.05
_COLOURS = ("#3f74b8", "#c4702b", "#3f8b5c", "#8a5fb0", "#7b868e")
_STYLES = ("-", "--", ":", "-.")
_ALARM = "#b3261e"


def main(arguments: Sequence[str], prog: str = "kaun plot") -> int:
    """Draw the log of a folder to a PNG. The exit status is 1 if there is nothing to draw or it cannot be written."""
    parser = parser_of(
        prog,
        "Draw what kn.train.fit(..., log_dir=DIR) logged: loss, learning rate, gradient norm.",
        "Logs and pictures need what `pip install 'kaun[log]'` installs.",
        ["kaun plot log --out training.png"],
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the log")
    parser.add_argument("-o", "--out", metavar="PNG", help="the file to write (default: DIR/training.png)")
    given = parser.parse_args(arguments)
    path = Path(given.out) if given.out else Path(given.folder) / "training.png"
    try:
        runs = event_files.runs(given.folder)
        with writing(path):
            draw(runs, path, Path(given.folder).resolve().name)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    wrote(path, "the curves of the log", is_result=True)
    return 0


def draw(runs: Sequence[dict[str, list[tuple[int, float]]]], path: Path, title: str) -> None:
    """Write the picture, a colour for each run. ValueError if no curve is there, or matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("matplotlib is not installed; install it with pip install 'kaun[plot]'") from error
    panels = [panel for panel in _PANELS if any(run.get(panel[0]) for run in runs)]
    if not panels:
        names = sorted({name for run in runs for name in run})
        raise ValueError(f"the log holds {', '.join(names) or 'nothing'}, and none of what is drawn")
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, label, logarithmic) in zip(axes, panels, strict=True):
        every: list[float] = []
        for number, run in enumerate(runs):
            if run.get(name):
                every += _draw_curve(panel, run[name], number)
        _mark_not_finite(panel, [point for run in runs for point in run.get(name, ())])
        finite = [value for value in every if math.isfinite(value)]
        if finite and logarithmic and min(finite) > 0 and max(finite) / min(finite) > 5:
            panel.set_yscale("log")
        else:
            panel.ticklabel_format(axis="y", useOffset=False)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.ticklabel_format(axis="x", style="plain", useOffset=False)
        if finite and max(finite) - min(finite) <= 1e-6 * abs(max(finite)):
            panel.set_ylim(*sorted((0.9 * finite[0] - 1e-12, 1.1 * finite[0] + 1e-12)))
        panel.set_ylabel(label, fontsize=9)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
    if len(runs) > 1:
        for line in axes[0].legend(fontsize=8, ncols=1 + len(runs) // 10).get_lines():
            line.set_alpha(1)
    axes[0].set_title(f"{visible(title)}; strong lines are means over the points around", fontsize=10, parse_math=False)
    axes[-1].set_xlabel("step", fontsize=9)
    whole_files.write_figure(path, figure)


def _draw_curve(panel: Any, points: Sequence[tuple[int, float]], number: int) -> list[float]:
    """Draw a run's curve, the runs being numbered from 0; its values."""
    colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number // len(_COLOURS) % len(_STYLES)]
    steps, values = [step for step, _ in points], [value for _, value in points]
    many = len(values) > _MANY
    marker = None if many else "."
    about = {"color": colour, "linestyle": style}
    panel.plot(steps, values, **about, linewidth=1, alpha=0.35 if many else 1, marker=marker, label=f"run {number + 1}")
    if many:
        panel.plot(steps, _smooth(values), **about, linewidth=1.6)
    return values


def _mark_not_finite(panel: Any, points: Sequence[tuple[int, float]]) -> None:
    """Mark the steps that no curve can show, and say which is the first."""
    steps = sorted({step for step, value in points if not math.isfinite(value)})
    if not steps:
        return
    panel.plot(steps, [0.03] * len(steps), "x", color=_ALARM, markersize=5, transform=panel.get_xaxis_transform())
    text = f"NaN or infinite at {len(steps)} step{'s' * (len(steps) > 1)}, first at step {steps[0]}"
    panel.text(0.01, 0.1, text, color=_ALARM, fontsize=8, transform=panel.transAxes)


def _smooth(values: Sequence[float]) -> list[float]:
    """Means over the finite points around each, fewer at the ends; NaN where there are none."""
    half = max(1, round(_SHARE * len(values) / 2))
    sums = [0.0, *accumulate(value if math.isfinite(value) else 0.0 for value in values)]
    counts = [0, *accumulate(map(math.isfinite, values))]
    ends = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    found = [(sums[last] - sums[first], counts[last] - counts[first]) for first, last in ends]
    return [total / count if count else math.nan for total, count in found]
