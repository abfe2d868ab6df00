"""Takes the pictures of the viewer in the docs anew: `python tests/viewer_pictures.py`, where there is a Chromium.

Each is the page of `kaun viz` as somebody sees it who opened a layer, or clicked on a line of assembly.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from browser import chromium, opened

REPOSITORY = Path(__file__).resolve().parent.parent
TARGETS = {
    "digits": "examples/digits_cnn.py:compiled",
    "gpt": "kaun.tools.bench.steps:gpt_128",
    "gpt-2": "kaun.tools.bench.steps:gpt_2_small",
}
# The picture, the page it is of, and the layer that is selected in it.
LAYERS = [
    ("viz-digits-cnn.png", "digits", "4"),
    ("viz-gpt.png", "gpt", "2.attend"),
    ("viz-gpt-2-small.png", "gpt-2", "8.feed"),
]


def main() -> None:
    with TemporaryDirectory() as folder, chromium() as browser:
        for name, target in TARGETS.items():
            kaun = [str(Path(sys.executable).with_name("kaun")), "viz", target, "--out", f"{folder}/{name}.html"]
            subprocess.run(kaun, check=True, cwd=REPOSITORY)
        for picture, name, layer in LAYERS:
            with opened(browser, f"file://{folder}/{name}.html", 1500, 940) as tab:
                tab.wait_for_selector("html[data-ready]", state="attached")
                select_layer(tab, layer)
                take(tab, picture)
        with opened(browser, f"file://{folder}/digits.html") as tab:
            tab.wait_for_selector("html[data-ready]", state="attached")
            select_line(tab, kernel="reduce_max reduce_sum", instruction="vfmadd")
            take(tab, "viz-one-line.png")


def select_layer(tab: Any, path: str) -> None:
    parts = path.split(".")
    for depth in range(1, len(parts)):
        tab.click(f"#layers [data-path='{'.'.join(parts[:depth])}'] .twist")
    tab.click(f"#layers [data-path='{path}'] .label")


def select_line(tab: Any, kernel: str, instruction: str) -> None:
    """The first line of assembly of a kernel that has an instruction (of x86)."""
    number = tab.evaluate(f"viewer.model.kernels.find((k) => k.name.includes('{kernel}')).number")
    tab.evaluate(f"viewer.select(Selection.ofKernel(viewer.model, {number}))")
    line = tab.evaluate(f"viewer.code.assembly.lines.findIndex((line) => line.includes('{instruction}'))")
    tab.evaluate(f"viewer.select(Selection.ofCode(viewer.model, {number}, 'assembly', {line}))")


def take(tab: Any, picture: str) -> None:
    tab.evaluate("viewer.revealSelection()")
    tab.wait_for_timeout(2500)  # what moves has come to rest
    tab.screenshot(path=REPOSITORY / "docs" / picture)
    print(f"docs/{picture}")


if __name__ == "__main__":
    main()
