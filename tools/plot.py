"""`kaun plot`: draws what training wrote to its log: loss, learning rate, norm of the gradients, speed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kaun.tools import event_files

# Names of scalars, their titles, and whether their axis is logarithmic.
_PANELS = (
    ("loss", "loss", True),
    ("learning_rate", "learning rate", False),
    ("gradient_norm", "norm of the gradients", True),
    ("steps_per_second", "steps a second", False),
)
# The smooth line is an exponential mean over about so many of a curve's points.
_SMOOTH_OVER = 40


def main(arguments: Sequence[str], prog: str = "kaun plot") -> int:
    """Draw the log of a folder to a PNG. The exit status is 1 if there is nothing to draw or it cannot be written."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Draw what kn.train.fit(..., log_dir=DIR) logged: loss, learning rate, gradient norm."
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the log")
    parser.add_argument("--out", metavar="PNG", help="the file to write (default: DIR/training.png)")
    given = parser.parse_args(arguments)
    path = Path(given.out) if given.out else Path(given.folder) / "training.png"
    try:
        draw(event_files.scalars(given.folder), path, Path(given.folder).resolve().name)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def draw(found: dict[str, list[tuple[int, float]]], path: Path, title: str) -> None:
    """Write the picture. ValueError if none of the curves is there, or matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("matplotlib is not installed; install it with pip install 'kaun[plot]'") from error
    panels = [panel for panel in _PANELS if found.get(panel[0])]
    if not panels:
        raise ValueError(f"the log holds {', '.join(sorted(found)) or 'nothing'}, and none of what is drawn")
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, label, logarithmic) in zip(axes, panels, strict=True):
        steps, values = zip(*found[name], strict=True)
        many = len(values) > _SMOOTH_OVER
        panel.plot(steps, values, color="#3f74b8", linewidth=1, alpha=0.35 if many else 1, marker=None if many else ".")
        if many:
            panel.plot(steps, _smooth(values), color="#3f74b8", linewidth=1.6)
        if logarithmic and min(values) > 0 and max(values) / min(values) > 5:
            panel.set_yscale("log")
        panel.set_ylabel(label, fontsize=9)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
    axes[0].set_title(title, fontsize=10)
    axes[-1].set_xlabel("step", fontsize=9)
    figure.savefig(str(path), dpi=130)


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential means, corrected for their start, which has no past."""
    keep = 1 - 1 / _SMOOTH_OVER
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed
