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


@pytest.mark.parametrize("width", [360, 700, 1000, 1280, 1500, 1600])
def test_what_a_search_finds_is_inside_the_window_and_wide_windows_have_heads_of_one_line(
    program: Any, address: str, width: int
) -> None:
    with opened(program, address, width, 720) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        for text in ("layer", "nothing of this"):
            tab.fill("#query", text)
            box = tab.locator("#found li").first.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, box
            assert tab.locator("#found").bounding_box()["height"] > box["height"] > 10
        assert tab.inner_text("#found") == "nothing found"
        assert width < 1280 or tab.locator("header").bounding_box()["height"] < 50


def test_heads_of_three_graphs_side_by_side_are_whole(program: Any, address: str) -> None:
    with opened(program, address, 1500, 900) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        for stage in range(3):
            tab.evaluate(f"viewer.show({stage}, true)")
        tab.wait_for_function("[...viewer.graphs.values()].every((view) => view.boxes)")
        for part in ("h2", "small", "button"):
            over = f"[...document.querySelectorAll('.graph {part}')].map((one) => one.scrollWidth - one.clientWidth)"
            assert max(tab.evaluate(over)) == 0, part
        tab.locator(".graph [data-do=open]").first.click()
        all_open = "({ groups, open }) => [...groups.keys()].every((id) => open.has(id))"
        tab.wait_for_function(f"({all_open})(viewer.graphs.get(0))")


@pytest.mark.parametrize("moved", [True, False])
def test_graphs_keep_their_middle_when_another_opens_or_closes(tab: Any, moved: bool) -> None:
    view = "viewer.graphs.get(viewer.model.stages.length - 1)"
    middle = f"(({view}.body.clientWidth / 2 - {view}.view.x) / {view}.view.zoom)"
    tab.evaluate(f"{view}.closeAll()")
    tab.wait_for_function(f"{view}.placed?.by === 'fit' && !{view}.element.classList.contains('busy')")
    if moved:
        tab.evaluate(f"{view}.view = {{ x: 40, y: 30, zoom: 0.9 }}")
    before, zoom, wide = tab.evaluate(f"[{middle}, {view}.view.zoom, {view}.body.clientWidth]")
    for shown, sign in ((True, "<"), (False, "===")):
        tab.evaluate(f"viewer.show(0, {str(shown).lower()})")
        tab.wait_for_function(f"{view}.body.clientWidth {sign} {wide} && {view}.room.width === {view}.body.clientWidth")
        assert tab.evaluate(middle) == pytest.approx(before)
        if moved:
            assert tab.evaluate(f"{view}.view.zoom") == zoom
    assert tab.evaluate(f"{view}.view.zoom") == pytest.approx(zoom)


def test_layers_are_named_by_what_made_them_or_not_at_all(tab: Any) -> None:
    # The model of this test has three layers of one line, which names them in their order.
    kinds = tab.evaluate("Object.fromEntries(viewer.model.kinds)")
    assert kinds == {"0": "linear", "1.0": "relu", "1.1": "layer_norm", "2": "linear"}
    tab.click("#layers [data-path='1'] .twist")
    assert tab.locator("#layers [data-path='1.0'] .label").inner_text() == "0 relu"
    lines = [
        "def block(", "    width: int,", ") -> Layer:", "    def apply(x):", "        return x",
        "    return Layer(init, apply)", "a, b = layer.relu(), layer.tanh()", "many = [layer.linear(n, n) for n in ns]",
        "made = block(3)", "layer.residual(layer.linear(2, 2))", "top = Layer(init, apply)",
    ]  # fmt: skip
    cases = [
        (6, 2, ["block", "block"]), (7, 2, ["relu", "tanh"]), (7, 1, []), (7, 3, []), (8, 3, ["linear"] * 3),
        (9, 1, []), (10, 1, ["linear"]), (11, 1, [None]), (99, 1, []),
    ]  # fmt: skip
    for line, count, expected in cases:
        assert tab.evaluate("([lines, line, count]) => kindsOn(lines, line, count)", [lines, line, count]) == expected


def test_a_search_finds_lines_by_their_place_and_values_by_their_type(tab: Any) -> None:
    file, line = tab.evaluate("[viewer.model.sources[0].file.split('/').pop(), viewer.model.sources[0].used[0]]")
    tab.fill("#query", f"{file}:{line}")
    assert f"{file}:{line}" in tab.locator("#found li").first.inner_text()
    tab.keyboard.press("Enter")
    assert tab.inner_text("#selection b") == f"{file}:{line}"
    for text in ("float32[16, 48]", "FLOAT32[16,48]"):
        tab.fill("#query", text)
        assert tab.locator("#found li").first.inner_text().startswith("float32[16, 48]")
    tab.keyboard.press("Enter")
    types = "[...viewer.selection.nodes.at(-1)].map((n) => viewer.model.last.nodes[n].type)"
    assert set(tab.evaluate(types)) == {"float32[16, 48]"}


def test_another_selection_shows_the_source_from_its_left_edge(tab: Any) -> None:
    tab.evaluate("viewer.source.sizer.style.width = '4000px'; viewer.source.body.scrollLeft = 300")
    assert tab.evaluate("viewer.source.body.scrollLeft") == 300
    tab.click("#layers [data-path='2'] .label")
    assert tab.evaluate("viewer.source.body.scrollLeft") == 0


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
