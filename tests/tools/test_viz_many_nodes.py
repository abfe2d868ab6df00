"""A graph of many nodes is composed in the viewer: each kind of layer laid out once, and drawn as far as it is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium, opened
from kaun.tools import viz
from kaun.tools.viz.page import page

import kaun as kn
from kaun import layer, loss, train

OPENED = "view.open.size === view.groups.size && !view.element.matches('.busy')"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of ten equal layers, with everything open; `view` is its graph, `notes` what its head told."""
    one = [layer.linear(in_features=16, out_features=16), layer.layer_norm(dim=16), layer.tanh()]
    trainer = train.make(model=layer.sequential(one * 10), optimizer=kn.optim.adamw(lr=1e-3))
    step = train.compile(trainer, x=kn.spec((4, 16)), y=kn.spec((4, 16)), loss=loss.mse)
    file = tmp_path_factory.mktemp("deep") / "page.html"
    file.write_text(page(viz.model_of(step.functions["step"].graph, "deep", times=False)), encoding="utf-8")
    with chromium() as program, opened(program, file.as_uri()) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        tab.evaluate("""() => {
            window.view = [...viewer.graphs.values()][0];
            window.notes = [];
            new MutationObserver(() => notes.push(view.note.textContent)).observe(view.note, { childList: true });
            view.openAll();
        }""")
        tab.wait_for_function(OPENED)
        yield tab


def test_every_box_of_a_composed_graph_lies_in_its_layer_and_beside_the_others(deep: Any) -> None:
    assert deep.evaluate("view.picture.isComposed") and deep.evaluate("view.groupOf.size") > 250
    wrong = deep.evaluate("""() => {
        const right = (a) => a.x + a.width, bottom = (a) => a.y + a.height;
        const apart = (a, b) => right(a) <= b.x || right(b) <= a.x || bottom(a) <= b.y || bottom(b) <= a.y;
        const inside = (a, b) => a.x >= b.x && a.y >= b.y && right(a) <= right(b) && bottom(a) <= bottom(b);
        const wrong = [];
        for (const layer of itemsOf(view.picture.root)) {
            const boxes = layer.children || [];
            boxes.forEach((a, i) => {
                if (!inside(a, layer)) wrong.push([a.id, "outside"]);
                for (const b of boxes.slice(0, i)) if (!apart(a, b)) wrong.push([a.id, b.id]);
            });
        }
        return wrong;
    }""")
    assert wrong == []
    assert deep.evaluate("view.boxes.size") == deep.evaluate("view.groupOf.size + view.groups.size - 1")


def test_every_line_is_drawn_by_itself_or_in_that_of_the_layers_it_joins(deep: Any) -> None:
    missing = deep.evaluate("""() => {
        const around = (box) => (box ? [box.id, ...around(box.layer)] : []);
        const drawn = new Set();
        for (const box of itemsOf(view.picture.root)) {
            for (const { from, to, nodes } of box.edges) for (const value of nodes) drawn.add(`${from}>${to}>${value}`);
        }
        const missing = [];
        for (const node of view.stage.nodes) for (const value of node.inputs) {
            if (!view.groupOf.has(value) || !view.groupOf.has(node.number)) continue;
            const [from, to] = [view.boxes.get(`n${value}`), view.boxes.get(`n${node.number}`)].map(around);
            const isDrawn = from.some((a) => to.some((b) => drawn.has(`${a}>${b}>${value}`)));
            if (!isDrawn) missing.push([value, node.number]);
        }
        return missing;
    }""")
    assert missing == []


def test_equal_layers_are_laid_out_once_and_the_head_tells_how_far_it_is(deep: Any) -> None:
    layers, nodes, notes = deep.evaluate("[view.groups.size, view.groupOf.size, notes]")
    assert layers > 30 and deep.evaluate("viewer.layouts.known.size") < layers / 2
    assert f"laying out: {layers} of {layers} layers" in notes
    assert notes[-1] == f"{nodes} of {nodes} nodes"


def test_a_picture_that_was_there_before_is_not_laid_out_again(deep: Any) -> None:
    deep.evaluate("""async () => {
        await view.toggle("forward/3");
        const { elk } = viewer.layouts, layout = elk.layout;
        window.asked = 0;
        elk.layout = (graph) => (asked++, layout.call(elk, graph));
        await view.toggle("forward/3");
        await view.toggle("forward/3");
        await view.toggle("forward/3");
        elk.layout = layout;
    }""")
    assert deep.evaluate("asked") == 0 and deep.evaluate(OPENED)


def test_only_what_is_in_view_and_can_be_told_apart_is_drawn(deep: Any) -> None:
    leaves = "(view.paint(), view.painter.seen(view.picture.root).leaves.length)"
    whole = deep.evaluate(f"(view.fit(), {leaves})")
    near = deep.evaluate(f"(view.centre([...view.boxes.values()].find((box) => box.node)), {leaves})")
    far = deep.evaluate(f"(view.fit(), view.view.zoom = 0.005, {leaves})")
    assert 0 < near < 60 < whole and far < whole


def test_a_node_that_is_selected_or_pointed_at_shows_its_lines_into_other_layers(deep: Any) -> None:
    number = deep.evaluate("""view.stage.nodes.find((node) => view.groupOf.has(node.number) && node.users.some(
        (user) => view.groupOf.get(user) !== view.groupOf.get(node.number))).number""")
    deep.evaluate(f"viewer.handlers.nodes(2, [{number}], 'one')")
    ends = "view.curves.map(([from, to]) => [from.id, to.id])"
    shown = deep.evaluate(ends)
    assert shown and all(f"n{number}" in pair for pair in shown)
    deep.evaluate("viewer.handlers.clear()")
    assert deep.evaluate(ends) == []
    deep.evaluate(f"view.centre(view.boxes.get('n{number}')); view.paint()")
    box = deep.locator("#graphs canvas").bounding_box()
    deep.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert deep.evaluate("view.hovered") == number
    deep.mouse.move(5, 5)
    assert deep.evaluate("view.hovered === undefined")


def test_names_of_layers_too_small_for_their_heads_can_be_read_and_clicked(deep: Any) -> None:
    deep.evaluate("view.fit(); view.paint()")
    tags = {name: place for name, *place in deep.evaluate(
        "view.painter.tags.map((tag) => [tag.box.group.id, tag.left, tag.top])"
    )}  # fmt: skip
    assert {"forward", "backward", "update"} <= set(tags)
    left, top = tags["backward"]
    box = deep.locator("#graphs canvas").bounding_box()
    deep.mouse.click(box["x"] + left + 6, box["y"] + top + 6)
    assert deep.inner_text("#selection b") == "backward"
    deep.evaluate("viewer.handlers.clear()")
