"""The viewer ties every stage together, opens from disk, and other programs can read its graphs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx
import numpy as np
import pytest
from browser import chromium, opened
from kaun.compiler.ir import parse_graph, print_graph
from kaun.tools import command, subject, viz
from kaun.tools.viz.formats import FORMATS, as_networkx
from kaun.tools.viz.page import page

import kaun as kn
from kaun import execution, layer, loss, nx, profiling, train
from kaun.debug.native import host_compilation

STAGES = ("traced", "differentiated", "simplified")


def step_graph() -> Any:
    model = layer.sequential([
        layer.conv2d(in_channels=1, out_channels=4), layer.relu(), layer.flatten(),
        layer.linear(in_features=4 * 64, out_features=10),
    ])  # fmt: skip
    trainer = train.make(model=model, optimizer=kn.optim.adamw(lr=1e-3))
    step = train.compile(trainer, x=kn.spec((8, 1, 8, 8)), y=kn.spec((8,), kn.int64), loss=loss.cross_entropy_sparse)
    return step.functions["step"].graph


@pytest.fixture(scope="module")
def graph() -> Any:
    return step_graph()


@pytest.fixture(scope="module")
def model(graph):
    return viz.model_of(graph, "digits", times=False)


@pytest.fixture(scope="module")
def program() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def html(model, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(model), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def browser(program, html) -> Iterator[Any]:
    with opened(program, html) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        yield tab


# --- the model -------------------------------------------------------------------------------------------------------


def test_nodes_are_those_of_the_stages_and_name_their_inputs(graph, model):
    compilation, strings = host_compilation(graph), model.data["strings"]
    for stage in model.data["stages"]:
        nodes = getattr(compilation, stage["name"]).nodes
        assert [strings[row[0]] for row in stage["nodes"] if row[6]] == [n.op.name for n in nodes if n.inputs]
        assert all(max(row[6], default=-1) < number for number, row in enumerate(stage["nodes"]))


def test_every_node_but_constants_has_a_counterpart_in_the_stage_before(model):
    strings = model.data["strings"]
    for before, stage in zip(model.data["stages"], model.data["stages"][1:], strict=False):
        assert all(number < len(before["nodes"]) for links in stage["links"] for number in links)
        if stage["name"] == "simplified":
            lost = [row for row, links in zip(stage["nodes"], stage["links"], strict=True) if not links and row[6]]
            assert not lost, [strings[row[0]] for row in lost]


def test_every_computed_node_has_a_kernel_and_every_kernel_its_texts(graph, model):
    data = model.data
    program = host_compilation(graph).program
    assert len(data["kernels"]) == len(program.calls) and len(data["modules"]) == len(program.kernels)
    computing = {n for kernel in data["kernels"] for n in kernel["nodes"]}
    nodes = host_compilation(graph).simplified.nodes
    assert {n for n, node in enumerate(nodes) if node.op.kind == "contract"} <= computing
    for module in data["modules"]:
        assert module["loop"].startswith("kernel(") and "define" in module["llvm"] and "ret" in module["assembly"]


def test_the_optimizer_s_nodes_belong_to_the_layer_they_update(model):
    strings, simplified = model.data["strings"], model.data["stages"][-1]
    rows = [[strings[row[i]] for i in (1, 2, 3)] for row in simplified["nodes"]]
    updates = [path for kind, path, phase in rows if phase == "update" and "[10]" in kind]
    assert updates and set(updates) == {"3"}


def test_what_is_computed_again_has_its_kernels_too():
    model = layer.sequential([
        layer.linear(in_features=64, out_features=256), layer.gelu(), layer.linear(in_features=256, out_features=256),
        layer.tanh(), layer.layer_norm(dim=256), layer.linear(in_features=256, out_features=10),
    ])  # fmt: skip
    trainer = train.make(model=model, optimizer=kn.optim.sgd(lr=0.1), memory_budget=300_000)
    spec = {"x": kn.spec((128, 64)), "y": kn.spec((128,), kn.int64)}
    graph = train.compile(trainer, **spec, loss=loss.cross_entropy_sparse).functions["step"].graph
    data = viz.model_of(graph, "frugal", times=False).data
    strings, nodes = data["strings"], data["stages"][-1]["nodes"]
    again = [number for number, row in enumerate(nodes) if strings[row[0]] == "again"]
    tied = {node for kernel in data["kernels"] for node in (*kernel["nodes"], *kernel["lines"][1::2])}
    assert again and set(again) <= tied
    lost = [strings[row[0]] for number, row in enumerate(nodes) if number not in tied and row[6]]
    assert len(lost) < len(nodes) / 20, lost
    assert all(kernel["nodes"] and kernel["lines"] for kernel in data["kernels"])


def test_measured_kernels_have_the_times_of_a_profile(graph, monkeypatch):
    runs = []
    timed = profiling.call_times

    def noted(program, found, *clock):
        runs.append(timed(program, found, *clock))
        return runs[-1]

    monkeypatch.setattr(profiling, "call_times", noted)
    measured = viz.model_of(graph, "digits")
    (times,) = runs
    assert measured.data["measured"]
    assert [kernel["seconds"] for kernel in measured.data["kernels"]] == [seconds for seconds, _ in times]
    assert sum(kernel["seconds"] for kernel in measured.data["kernels"]) > 0


def test_timing_the_kernels_leaves_the_inputs_as_they_are(graph):
    compiled = execution.compiled(graph)
    inputs = [execution.Storage.of(array) for array in subject.example_inputs(graph)]
    before = [storage.array.copy() for storage in inputs]
    assert len(profiling.kernel_seconds(compiled, inputs, seconds=0.0)) == len(compiled.executable.program.calls)
    for storage, array in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(storage.array, array)


def test_a_page_of_a_program_without_kernels_is_made_with_times_too():
    unchanged = kn.compile(lambda x: x, kn.spec((3,)))
    assert viz.model_of(unchanged.functions["call"].graph, "unchanged").data["kernels"] == []


def test_lines_of_code_lead_to_nodes_and_every_line_of_text_is_counted(graph, model):
    data, strings = model.data, model.data["strings"]
    nodes = data["stages"][-1]["nodes"]
    for module in data["modules"]:
        for text in ("llvm", "assembly"):
            runs = module["lines"][text]
            assert sum(runs[1::2]) == len(module[text].split("\n"))
            assert max(runs[::2]) < len(module["sets"])
        last = len(module["loop"].splitlines())
        assert all(0 < line <= last for lines in module["sets"] for line in lines)
    for kernel in data["kernels"]:
        loop = data["modules"][kernel["module"]]["loop"].splitlines()
        assert kernel["lines"]
        for line, node in zip(kernel["lines"][::2], kernel["lines"][1::2], strict=True):
            op = strings[nodes[node][0]]
            if loop[line - 1].strip().split(" = ")[-1].startswith("exp("):
                assert op == "exp"


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(model):
    text = page(model)
    assert "$DATA" not in text and "<script src" not in text and "<link" not in text
    assert page(model) == text


def picked(browser: Any, pane: str) -> list[str]:
    return browser.eval_on_selector_all(f"#{pane} .row.picked", "rows => rows.map((row) => row.textContent)")


def test_a_click_on_a_layer_leads_to_its_kernels_their_code_and_back(browser, model):
    browser.click("#layers [data-path='3'] .label")
    rows = picked(browser, "kernels")
    assert rows and any("dot" in row for row in rows)
    texts = browser.evaluate("Object.values(viewer.code).map((pane) => pane.lines.join('\\n'))")
    shown = model.data["modules"][model.data["kernels"][browser.evaluate("viewer.selection.first")]["module"]]
    assert texts == [shown["loop"], shown["llvm"], shown["assembly"]]
    browser.click("#kernels .row.first")
    assert "3" in [row[0] for row in picked(browser, "layers")]
    assert "kernel" in browser.inner_text("#selection b")


def test_a_box_says_which_layer_it_is_where_a_line_names_as_many_as_it_makes(browser):
    kinds = {"0": "conv2d", "1": "relu", "2": "flatten", "3": "linear"}
    assert browser.evaluate("Object.fromEntries(viewer.model.kinds)") == kinds


def test_lines_of_code_and_of_source_select_what_they_are_of(browser):
    browser.click("#layers [data-path='0'] .label")
    first = browser.evaluate("viewer.selection.first")
    browser.evaluate("viewer.code.llvm.element.querySelectorAll('.line')[3].click()")
    assert browser.evaluate("[...viewer.selection.kernels]") == [first]
    line = browser.evaluate("[...viewer.selection.lines.values()].flatMap((set) => [...set])[0]")
    browser.evaluate(f"viewer.select(Selection.ofLine(viewer.model, viewer.shownFile, {line}))")
    assert browser.evaluate("viewer.selection.kernels.size") >= 1


@pytest.fixture(scope="module")
def softmax(program, tmp_path_factory) -> Iterator[Any]:
    """The page of a function that is one kernel of many nodes."""
    compiled = kn.compile(lambda x: nx.softmax(x * 2.0), kn.spec((64, 100)))
    made = viz.model_of(compiled.functions["call"].graph, "softmax", times=False)
    file = tmp_path_factory.mktemp("softmax") / "page.html"
    file.write_text(page(made), encoding="utf-8")
    with opened(program, file.as_uri()) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        assert tab.evaluate("viewer.model.kernels.length") == 1
        tab.evaluate("viewer.select(Selection.ofKernel(viewer.model, 0))")
        yield tab


def ops_selected(tab: Any) -> list[str]:
    return tab.evaluate("[...viewer.selection.nodes[2]].map((n) => viewer.model.last.nodes[n].op)")


def lines_picked(tab: Any, text: str) -> list[str]:
    return tab.evaluate(f"[...viewer.code.{text}.picked].map((line) => viewer.code.{text}.lines[line].trim())")


def click_on(tab: Any, text: str, part: str) -> None:
    """Click on the first line of a text of the shown kernel that has `part` in it."""
    pane = f"viewer.code.{text}"
    line = tab.evaluate(f"{pane}.lines.findIndex((line) => line.includes({part!r}))")
    assert line >= 0
    tab.evaluate(f"{pane}.reveal({line}), {pane}.element.id = 'clicked'")
    tab.click(f"#clicked .line[data-line='{line}']", position={"x": 90, "y": 8})
    tab.evaluate(f"{pane}.element.id = ''")


@pytest.mark.parametrize("text, part", [("assembly", "div"), ("llvm", "fdiv"), ("loop", "div(")])
def test_a_click_on_a_line_of_a_fused_kernel_lights_its_node_and_not_the_whole_kernel(softmax, text, part):
    softmax.evaluate("viewer.select(Selection.ofKernel(viewer.model, 0))")
    assert len(ops_selected(softmax)) > 4
    click_on(softmax, text, part)
    assert ops_selected(softmax) == ["div"]
    assert [line.split(" = ")[-1][:4] for line in lines_picked(softmax, "loop")] == ["div("]
    for name, operation in (("llvm", "fdiv"), ("assembly", "div")):
        picked = lines_picked(softmax, name)
        assert any(operation in line for line in picked), name
        assert len(picked) < softmax.evaluate(f"viewer.code.{name}.lines.length") / 2
    files = softmax.evaluate("[...viewer.selection.lines].map(([file, lines]) => [file.split('/').pop(), lines.size])")
    assert len(files) == 1 and files[0][1] == 1
    assert "div" in softmax.inner_text("#selection b")


def test_a_node_lights_its_very_lines_and_brings_them_into_view(softmax):
    softmax.evaluate(
        "viewer.select(Selection.ofNodes(viewer.model, 2, "
        "viewer.model.last.nodes.filter((node) => node.op === 'exp').map((node) => node.number), 'exp'))"
    )
    assert any("exp(" in line for line in lines_picked(softmax, "loop"))
    for name in ("llvm", "assembly"):
        pane = f"viewer.code.{name}"
        assert len(lines_picked(softmax, name)) > 3
        assert softmax.evaluate(f"[...{pane}.picked].some((line) => {pane}.isInView(line))")
        assert softmax.locator(".line.picked").count() > 0
    assert softmax.locator(".line.nearest").count() == 0


def test_where_no_line_is_known_all_of_the_kernel_is_lit_more_weakly(softmax):
    click_on(softmax, "loop", "parallel")
    assert "kernel 0" in softmax.inner_text("#selection b")
    assert lines_picked(softmax, "loop") == [] and softmax.locator(".line.nearest").count() > 10
    names = ["--picked", "--picked-nearest", "--pane"]
    colours = softmax.evaluate(f"{names}.map((name) => getComputedStyle(document.body).getPropertyValue(name))")
    assert len(set(colours)) == 3


def test_what_became_part_of_another_instruction_is_shown_there_more_faintly(program, tmp_path):
    compiled = kn.compile(lambda x, y: nx.exp(x) * y + 3.0, kn.spec((64, 100)), kn.spec((64, 100)))
    made = viz.model_of(compiled.functions["call"].graph, "multiply-add", times=False)
    (module,) = made.data["modules"]
    (line,) = [n for n, text in enumerate(module["loop"].splitlines(), 1) if "mul(" in text]
    fused = all(line not in module["sets"][number] for number in module["lines"]["assembly"][::2])
    (tmp_path / "page.html").write_text(page(made), encoding="utf-8")
    with opened(program, (tmp_path / "page.html").as_uri()) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        tab.evaluate(f"viewer.select(Selection.ofCode(viewer.model, 0, 'loop', {line - 1}))")
        assert any("fmul" in text for text in lines_picked(tab, "llvm"))
        pane = "viewer.code.assembly"
        nearest = tab.evaluate(f"[...{pane}.nearest].map((line) => {pane}.lines[line].trim())")
        assert bool(nearest) == fused and bool(lines_picked(tab, "assembly")) != fused
        if fused:
            assert any(re.match(r"v?f\w*m\w*(add|la)", text) for text in nearest)
            assert tab.evaluate(f"[...{pane}.nearest].some((line) => {pane}.isInView(line))")


def test_every_node_of_a_step_leads_to_some_lines_of_its_kernel_s_code(browser):
    """To lines of its own or of what uses it, that is; only constants may have become part of what is everywhere."""
    found = browser.evaluate("""viewer.model.kernels.flatMap((kernel) => {
        const module = viewer.model.modules[kernel.module];
        return kernel.nodes.flatMap((n) => {
            const lines = [...viewer.model.nodesByLine(kernel)];
            const code = new Set(lines.filter(([, own]) => own.includes(n)).map(([line]) => line));
            return ["loop", "llvm", "assembly"].map((name) => {
                const { own, nearest } = module.linesFor(name, code);
                const node = viewer.model.last.nodes[n];
                return [node.op, name, own.size, nearest.size < module.lines(name).length, node.isConstant];
            });
        });
    })""")
    assert len(found) > 300
    lost = [(op, name) for op, name, own, fine, is_constant in found if not own and not fine and not is_constant]
    assert not lost
    assert all(own for op, name, own, *_ in found if name == "loop")
    assert sum(bool(own) for _, name, own, *_ in found if name == "assembly") > 0.6 * len(found) / 3


def test_what_is_given_leads_to_where_it_is_loaded(softmax):
    softmax.evaluate("viewer.select(Selection.ofNodes(viewer.model, 2, [0], 'x'))")
    picked = lines_picked(softmax, "loop")
    assert picked and all("load %0" in line for line in picked)


def test_layers_open_and_close_in_the_graph(browser):
    browser.evaluate("viewer.handlers.clear()")
    boxes = "[...viewer.graphs.values()][0].boxes.size"
    before = browser.evaluate(boxes)
    browser.evaluate("[...viewer.graphs.values()][0].openAll()")
    browser.wait_for_function(f"{boxes} > {before}")
    view = "[...viewer.graphs.values()][0]"
    assert browser.evaluate(f"[...{view}.boxes.keys()].filter((id) => id[0] === 'n').length") == browser.evaluate(
        f"{view}.groupOf.size"
    )
    browser.evaluate("[...viewer.graphs.values()][0].closeAll()")
    browser.wait_for_function(f"{boxes} === {before}")


def test_a_search_finds_layers_ops_parameters_and_kernels(browser):
    browser.fill("#query", "weight")
    assert any("params" in text for text in browser.locator("#found li").all_inner_texts())
    browser.fill("#query", "dot_general")
    browser.press("#query", "Enter")
    assert "every dot_general" in browser.inner_text("#selection b")
    browser.fill("#query", "no such thing")
    assert browser.inner_text("#found") == "nothing found"
    browser.fill("#query", "")


def test_a_name_that_looks_like_markup_is_shown_as_it_is(program, tmp_path):
    compiled = kn.compile(lambda tree: tree["<b>&\"'</script>"] + 1.0, {"<b>&\"'</script>": kn.spec((2,))})
    made = viz.model_of(compiled.functions["call"].graph, "<i>title</i>", times=False)
    (tmp_path / "page.html").write_text(page(made), encoding="utf-8")
    with opened(program, (tmp_path / "page.html").as_uri()) as tab:
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        assert tab.inner_text("#title") == "<i>title</i>"
        assert "<b>&\"'<.script>" in tab.evaluate("viewer.model.last.nodes[0].note")


# --- graphs for other programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_graphs_keep_nodes_edges_and_where_they_come_from(graph, stage):
    nodes = getattr(host_compilation(graph), stage)
    made = as_networkx(nodes)
    assert made.number_of_nodes() == len(nodes.nodes)
    given = set(nodes.inputs)
    assert made.number_of_edges() == sum(len(node.inputs) for node in nodes.nodes if node not in given)
    assert networkx.is_directed_acyclic_graph(made)
    read = networkx.parse_graphml(FORMATS["graphml"](made), node_type=int)
    assert dict(read.nodes(data=True)) == dict(made.nodes(data=True))
    again = networkx.node_link_graph(json.loads(FORMATS["json"](made)), edges="edges")
    assert list(again.edges(data=True)) == list(made.edges(data=True))
    drawing = ElementTree.parse(io.StringIO(FORMATS["svg"](made)))
    assert len(drawing.findall(".//{http://www.w3.org/2000/svg}rect")) == made.number_of_nodes()
    assert FORMATS["dot"](made).count(" -> ") == made.number_of_edges()


def test_an_empty_looking_graph_is_drawn_too():
    x = kn.compile(lambda x: x, kn.spec((2,)))
    compilation = host_compilation(x.functions["call"].graph)
    for write in FORMATS.values():
        assert write(as_networkx(compilation.simplified))


def test_the_tool_writes_the_file_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(
        "import kaun as kn\ndef product():\n    return kn.compile(lambda x: x + 1.0, kn.spec((4, 8)))\n"
    )
    assert command.main(["viz", "model.py:product", "--no-times"]) == 0
    assert capsys.readouterr().out.strip() == "model-product.html"
    assert Path("model-product.html").read_text().startswith("<!doctype html>")
    assert command.main(["viz", "model.py:product", "--format", "dot", "--out", "graph.dot"]) == 0
    assert Path("graph.dot").read_text().startswith("digraph {")
    assert command.main(["viz", "model.py:product", "--no-times", "--out", "no/where.html"]) == 1
    assert "no/where.html" in capsys.readouterr().err


HOSTILE = ("a\x1bred", "q\"'<b>&</script>", "new\nline\\N\\", "r\u202etl", "nul\0", "\ud800", "\\", "))>")


def test_names_that_formats_cannot_hold_are_written_with_escapes(tmp_path: Path):
    compiled = kn.compile(lambda tree: sum(tree.values()), {name: kn.spec((2,)) for name in HOSTILE})
    simplified = host_compilation(compiled.functions["call"].graph).simplified
    made = as_networkx(simplified)
    for name, write in FORMATS.items():
        text = write(made)
        text.encode()
        assert "\x1b" not in text and "\0" not in text and "\u202e" not in text, name
    read = networkx.parse_graphml(FORMATS["graphml"](made), node_type=int)
    assert dict(read.nodes(data=True)) == dict(made.nodes(data=True))
    drawing = ElementTree.fromstring(FORMATS["svg"](made))
    assert len(drawing.findall(".//{http://www.w3.org/2000/svg}rect")) == made.number_of_nodes()
    shown = [line for line in FORMATS["dot"](made).splitlines() if "color" in line]
    assert all(re.fullmatch(r'  \d+ \[label="([^"\\]|\\.)*", color="#\w+"\];', line) for line in shown) and shown
    again = parse_graph(print_graph(simplified))
    assert again.input_names == simplified.input_names and print_graph(again) == print_graph(simplified)
    assert page(viz.model_of(compiled.functions["call"].graph, "\ud800\x1b", times=False)).encode()


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text("import kaun as kn\ndef f():\n    return kn.compile(lambda x: x + 1.0, kn.spec(4))\n")
    Path("page.html").write_text("the old one")
    Path("link.html").symlink_to("page.html")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert command.main(["viz", "model.py:f", "--no-times", "--out", "page.html"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert Path("page.html").read_text() == "the old one" and len(list(tmp_path.iterdir())) == 3
    assert command.main(["viz", "model.py:f", "--no-times", "--out", "link.html"]) == 0
    assert Path("link.html").is_symlink() and Path("page.html").read_text().startswith("<!doctype html>")
    assert command.main(["viz", "model.py:f", "--format", "dot", "--out", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
