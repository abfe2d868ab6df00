"""The viewer's page at any width, by keyboard, with colours that are explained and numbers that are true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, opened
from kaun.tools import viz
from kaun.tools.viz.model import Model, _lines_of, _stage, _Strings
from kaun.tools.viz.page import page

import kaun as kn
from kaun import layer, loss, nx, train
from kaun.debug.native import host_compilation

VIEW = "[...viewer.graphs.values()][0]"


@pytest.fixture(scope="module")
def program() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def step() -> train.CompiledStep:
    model = layer.sequential([
        layer.linear(in_features=32, out_features=48), layer.sequential([layer.relu(), layer.layer_norm(dim=48)]),
        layer.linear(in_features=48, out_features=10),
    ])  # fmt: skip
    trainer = train.make(model=model, optimizer=kn.optim.adamw(lr=1e-3))
    return train.compile(trainer, x=kn.spec((16, 32)), y=kn.spec((16,), kn.int64), loss=loss.cross_entropy_sparse)


def written(graph: Any, folder: Path) -> str:
    file = folder / "page.html"
    file.write_text(page(viz.model_of(graph, "page", times=False)), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def address(step: train.CompiledStep, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(step.functions["step"].graph, tmp_path_factory.mktemp("page"))


@pytest.fixture
def tab(program: Any, address: str) -> Iterator[Any]:
    with opened(program, address, 1280, 720) as found:
        found.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        yield found


@pytest.mark.parametrize("width", [360, 700, 900, 1000, 1280])
def test_every_pane_can_be_seen_at_any_width(program: Any, address: str, width: int) -> None:
    with opened(program, address, width, 720) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        sizes = tab.eval_on_selector_all(".pane", "panes => panes.map((p) => [p.clientWidth, p.clientHeight])")
        assert len(sizes) == 8
        # The texts are five side by side where there is room for that.
        assert all(wide > (width - 30) * (0.9 if width <= 900 else 0.15) and high > 100 for wide, high in sizes), sizes
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.click("#layers [data-path='2'] .label")
        assert tab.evaluate("scrollY") == 0


def test_a_page_works_by_keyboard_alone(tab: Any) -> None:
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "query"
    tab.focus("#layers .row")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    assert tab.inner_text("#selection b") == "layer 1.0"
    for key in ("ArrowUp", "ArrowLeft"):
        tab.keyboard.press(key)
    assert tab.evaluate("document.activeElement.dataset.path") == "1"
    assert not tab.locator("#layers [data-path='1.0']").count()
    tab.focus("#kernels .row[tabindex]")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert tab.inner_text("#selection b") == "kernel 1"
    tab.focus("canvas")
    before = tab.evaluate(f"({{...{VIEW}.view}})")
    for key in ("+", "ArrowLeft"):
        tab.keyboard.press(key)
    after = tab.evaluate(f"({{...{VIEW}.view}})")
    assert after["zoom"] == pytest.approx(1.25 * before["zoom"]) and after["x"] != before["x"]


def test_colours_are_explained(tab: Any) -> None:
    assert tab.locator("#legend").inner_text().split() == ["forward", "backward", "update"]
    for mode, text in (("time", "most time"), ("memory", "most bytes kept")):
        tab.select_option("#colour", mode)
        assert text in tab.locator("#legend").inner_text()


def test_memory_is_what_the_program_keeps(tab: Any, step: train.CompiledStep) -> None:
    compilation = host_compilation(step.functions["step"].graph)
    stored = {node for kernel in compilation.kernels for node in kernel.outputs} | set(compilation.simplified.inputs)
    kept = tab.evaluate("viewer.model.last.nodes.map((node) => node.kept)")
    assert kept == [node.nbytes if node in stored else 0 for node in compilation.simplified.nodes]
    with nx.rng.run(seed=0):
        profile = step.profile(step.init(), np.zeros((16, 32), np.float32), np.zeros(16, np.int64), seconds=0.0)
    assert tab.evaluate("viewer.model.memory") == list(profile.arena)
    assert tab.evaluate("viewer.model.kernels.map((kernel) => kernel.flops)") == [k.flops for k in profile.kernels]


def test_a_search_that_finds_more_than_it_shows_says_so_and_goes_away(tab: Any) -> None:
    tab.evaluate("viewer.model.kernels = Array(9).fill(viewer.model.kernels).flat()")
    tab.fill("#query", "e")
    assert tab.locator("#found li").count() == 61 and "more" in tab.locator("#found li").last.inner_text()
    tab.locator("#found li").last.click()
    tab.mouse.click(640, 300)
    assert not tab.is_visible("#found")


def test_a_chain_of_ten_thousand_nodes_is_drawn(program: Any, tmp_path: Path) -> None:
    def chain(x: nx.Tensor) -> nx.Tensor:
        for number in range(5000):
            x = nx.abs(x) + float(number)
        return x

    graph = kn.compile(chain, kn.spec((2,))).functions["call"].graph
    strings = _Strings()
    stages = [_stage("simplified", graph, None, strings)]
    empty: dict[str, Any] = {key: [] for key in ("modules", "kernels", "memory", "sources")}
    data = {"title": "chain", "subtitle": "", "fused": "", "entry": "", "measured": False, **empty}
    made = Model("chain", {**data, "stages": stages, "strings": strings.table})
    (tmp_path / "page.html").write_text(page(made), encoding="utf-8")
    with opened(program, (tmp_path / "page.html").as_uri()) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        boxes, busy = tab.evaluate(f"[{VIEW}.boxes.size, {VIEW}.element.matches('.busy')]")
        assert boxes > 10_000 and not busy
        assert tab.evaluate(f"Math.max({VIEW}.size.width, {VIEW}.size.height) < 40000")


def test_only_code_is_shown_as_source(tmp_path: Path) -> None:
    code, key = tmp_path / "model.py", tmp_path / "id_rsa"
    code.write_text("a\nb\n")
    key.write_text("secret")
    assert _lines_of(code) == ["a", "b", ""]
    others = (key, Path("/dev/zero"), Path("a\0.py"), tmp_path / "none.py", tmp_path)
    assert [_lines_of(path) for path in others] == [[]] * 5
