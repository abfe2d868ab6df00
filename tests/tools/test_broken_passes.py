"""What the tools at the shell say of a pass that is broken, or a gradient rule that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from kaun.compiler import passes
from kaun.compiler.autodiff import vjp
from kaun.compiler.ir import Graph, Node, ops, rewrite
from kaun.tools import command

import kaun as kn

GRAPH = """\
graph(%0: float32[1, 3] "w") {
  %1 = broadcast(%0, shape=(4, 3)) : float32[4, 3]
  %2 = exp(%1) : float32[4, 3]
  return %2
}
"""
MODULE = """\
import kaun as kn
from kaun import nx

def compiled():
    return kn.compile(lambda w: nx.exp(w) * 3.125, kn.spec((2, 7)))
"""
CHANGED = "simplify changed the result from float32[4, 3] to float32[1, 3]"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a graph and a module, and a cache in which no program is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAUN_CACHE", "0")
    (tmp_path / "g.ir").write_text(GRAPH)
    (tmp_path / "model.py").write_text(MODULE)


def without_broadcast(graph: Graph) -> Graph:
    """A pass with a mistake: the op is applied to what is smaller, and not broadcast."""

    def small(node: Node, inputs: tuple[Node, ...]) -> Node:
        is_broadcast = node.op is ops.exp and inputs[0].op is ops.broadcast
        return node.op(*(inputs[0].inputs if is_broadcast else inputs), **node.attributes)

    return rewrite(graph, small)


def misspelt(graph: Graph) -> Graph:
    """A pass that raises an error."""
    raise NameError("name 'c' is not defined")


@pytest.mark.parametrize("tool", ["check", "bisect"])
def test_a_pass_that_changes_a_shape_is_what_is_found(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(passes.PASSES, "simplify", without_broadcast)
    assert command.main([tool, "g.ir", "--save", "wrong.npz"]) == 1
    shown = capsys.readouterr()
    assert CHANGED in shown.out and "introduced by simplify" in shown.out and "`exp` float32[4, 3]" in shown.out
    assert "Traceback" not in shown.err
    assert command.main([tool, "wrong.npz"]) == 1
    assert CHANGED in capsys.readouterr().out


def test_opt_does_not_print_a_graph_whose_result_has_another_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(passes.PASSES, "simplify", without_broadcast)
    assert command.main(["opt", "g.ir", "--pass", "simplify"]) == 1
    assert capsys.readouterr() == ("", f"kaun opt: {CHANGED}\n")


def test_a_pass_has_to_keep_the_number_of_inputs_and_results() -> None:
    x = ops.input_(identity=("kept", "x"), dtype=kn.float32, shape=(2,))
    graph = Graph((x,), (ops.exp(x), ops.neg(x)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(passes.PASSES, "simplify", lambda graph: Graph(graph.inputs, graph.outputs[:1]))
        with pytest.raises(passes.ChangedResult, match="simplify changed the number of results from 2 to 1"):
            passes.run(graph, ["simplify"])
        patch.setitem(passes.PASSES, "simplify", lambda graph: Graph((*graph.inputs, ops.neg(x)), graph.outputs))
        with pytest.raises(passes.ChangedResult, match="simplify changed the number of inputs from 1 to 2"):
            passes.run(graph, ["simplify"])


@pytest.mark.parametrize("target", ["g.ir", "model.py:compiled"])
@pytest.mark.parametrize("tool", ["check", "bisect"])
def test_a_pass_that_raises_is_what_is_found(
    tool: str, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(passes.PASSES, "simplify", misspelt)
    assert command.main([tool, target]) == 1
    shown, frames = capsys.readouterr()
    assert shown.startswith(f"{target}: introduced by simplify: ")
    assert "it raised NameError: name 'c' is not defined (at test_broken_passes.py:" in shown
    assert " in misspelt, from __init__.py:" in shown
    if target == "model.py:compiled":
        assert 'in misspelt\n' in frames and "\nwhile running pass simplify\n" in frames


@pytest.mark.parametrize("arguments", [["ir", "model.py:compiled"], ["opt", "g.ir", "--pass", "simplify"]])
def test_the_frames_of_a_pass_that_raises_are_shown_and_its_name(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(passes.PASSES, "simplify", misspelt)
    assert command.main(arguments) == 1
    shown = capsys.readouterr().err
    assert "in misspelt" in shown and "NameError: name 'c' is not defined\nwhile running pass simplify" in shown
    assert "subject.py" not in shown and "opt.py" not in shown
    assert ("model.py" in shown) == (arguments[0] == "ir")


def test_check_says_that_it_does_not_look_at_gradient_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", "g.ir"]) == 0
    told = "All 3 nodes agree. Gradient rules were not looked at: `kaun bisect g.ir` does that.\n"
    assert capsys.readouterr().out == told
    assert command.main(["bisect", "g.ir"]) == 0
    assert capsys.readouterr().out == "All 3 nodes agree.\n"
    with pytest.raises(SystemExit):
        command.main(["check", "--help"])
    assert "Gradient rules are not looked at" in " ".join(capsys.readouterr().out.split())


def test_what_is_said_of_a_saved_fault_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vjp.RULES, "exp", lambda node, cotangent: (cotangent * 2.0,))
    assert command.main(["bisect", "g.ir", "--save", "wrong.npz"]) == 1
    shown = capsys.readouterr()
    assert "`kaun bisect wrong.npz` shows it again" in shown.out + shown.err
    assert command.main(["bisect", "wrong.npz"]) == 1
    assert "the gradient is wrong from `exp`" in capsys.readouterr().out
