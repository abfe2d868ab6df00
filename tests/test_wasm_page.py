"""The page that trains in the browser: it learns, reads what is drawn, starts again, and raises no errors."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened
from cross_machines import MACHINES

BUILD = Path(__file__).resolve().parent.parent / "examples" / "aot_wasm" / "build.py"

# Strokes in shares of the pad's width and height, which a person might make for these digits.
STROKES = {
    "7": [(0.2, 0.2), (0.5, 0.2), (0.8, 0.2), (0.65, 0.45), (0.5, 0.7), (0.42, 0.9)],
    "1": [(0.5, 0.1), (0.5, 0.3), (0.5, 0.5), (0.5, 0.7), (0.5, 0.9)],
    "0": [(0.5, 0.1), (0.3, 0.25), (0.24, 0.5), (0.3, 0.75), (0.5, 0.9), (0.7, 0.75), (0.76, 0.5), (0.7, 0.25),
          (0.5, 0.1)],
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MACHINES["wasm32"].missing:
        pytest.skip(MACHINES["wasm32"].missing)
    spec = importlib.util.spec_from_file_location("build_page", BUILD)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Path(module.main(tmp_path_factory.mktemp("page") / "digits.html"))


@pytest.fixture(scope="module")
def page(built: Path) -> Iterator[Any]:
    """The page, opened from the disk and trained to the end with the mouse."""
    with chromium() as browser, opened(browser, built.as_uri(), width=1000, height=900) as page:
        page.wait_for_function("document.querySelector('#accuracy').textContent.includes('%')")
        assert accuracy(page) < 40
        assert text(page, "#step") == "0" and text(page, "#loss") == "–"
        page.click("#fast")
        page.click("#train")
        page.wait_for_function("document.querySelector('#train').textContent === 'Trained'")
        yield page


def text(page: Any, selector: str) -> str:
    return str(page.text_content(selector))


def accuracy(page: Any) -> float:
    """In percent."""
    return float(text(page, "#accuracy").removesuffix(" %"))


def draw(page: Any, strokes: Sequence[tuple[float, float]]) -> None:
    """Along points with the mouse."""
    page.locator("#pad").scroll_into_view_if_needed()
    pad = page.locator("#pad").bounding_box()
    for number, (x, y) in enumerate(strokes):
        page.mouse.move(pad["x"] + pad["width"] * x, pad["y"] + pad["height"] * y)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def test_the_page_needs_no_other_file(built: Path) -> None:
    text = built.read_text()
    assert not re.search(r'\b(src|href)="|@import|\bimport\s*\(|https?://', text)
    assert len(text) < 400_000


def test_the_network_learns_to_read(page: Any) -> None:
    assert text(page, "#step") == "440"
    assert accuracy(page) > 95
    assert float(text(page, "#loss")) < 0.3
    shown = page.evaluate("[...document.querySelectorAll('#digits figcaption')].map((e) => e.className)")
    assert len(shown) == 32 and shown.count("right") >= 28
    # Both lines of the chart are drawn.
    colours = page.evaluate(
        "(() => { const c = document.querySelector('#chart'); const p = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; const found = new Set();"
        "for (let i = 0; i < p.length; i += 4) if (p[i + 3] === 255) found.add(`${p[i]},${p[i + 1]},${p[i + 2]}`);"
        "return [...found]; })()"
    )
    assert {"194,65,12", "15,118,110"} <= set(colours)


@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_read(digit: str, page: Any) -> None:
    page.click("#clear")
    assert text(page, "#guess").strip() == ""
    draw(page, STROKES[digit])
    assert text(page, "#guess") == digit
    assert page.evaluate("document.querySelectorAll('#bars i.best').length") == 1


def test_training_pauses_goes_on_and_starts_again(page: Any) -> None:
    page.click("#again")
    assert text(page, "#step") == "0" and accuracy(page) < 40
    page.click("#fast")
    page.click("#train")
    page.wait_for_function("Number(document.querySelector('#step').textContent) > 4")
    page.click("#train")
    paused = text(page, "#step")
    assert text(page, "#train") == "Go on"
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert text(page, "#step") == paused
    page.click("#train")
    page.wait_for_function(f"Number(document.querySelector('#step').textContent) > {paused}")
