"""Graphs print and parse back to themselves, and malformed ones are refused by parser and verifier."""

from __future__ import annotations

import pytest
from graph_strategies import Example, graphs
from hypothesis import HealthCheck, given, settings
from kaun.compiler.ir import Graph, VerificationError, dtypes, full, key, ops, parse_graph, print_graph, source, verify
from kaun.compiler.ir.graph import Node, Op
from kaun.compiler.ir.interpreter import evaluate

relaxed = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@relaxed
@given(graphs())
def test_printed_graphs_parse_back(example: Example) -> None:
    text = print_graph(example.graph)
    parsed = parse_graph(text)
    verify(parsed)
    assert key(parsed) == key(example.graph)
    # Sources are kept by nodes that did not exist before.
    assert print_graph(parse_graph(print_graph(parsed))) == print_graph(parsed)
    for before, after in zip(
        evaluate(example.graph, example.arguments), evaluate(parsed, example.arguments), strict=True
    ):
        assert before.tobytes() == after.tobytes()


def test_names_sources_and_awkward_values_survive() -> None:
    x = ops.input_(identity=("text", "x"), dtype=dtypes.float32, shape=())
    with source.inherit(source.Source('odd "name"\n.py', 7, "0.left", "backward")):
        y = x + full(float("-inf"), dtypes.float32) * full(-0.0, dtypes.float32)
        y = ops.maximum(y, full(float("nan"), dtypes.float32))
    text = print_graph(Graph((x,), (y, x), ('the "x"',)))
    assert "value=-inf" in text and "value=-0.0" in text and "value=nan" in text
    del x, y
    parsed = parse_graph(text)
    assert print_graph(parsed) == text
    assert parsed.input_names == ('the "x"',)
    assert parsed.outputs[0].source == source.Source('odd "name"\n.py', 7, "0.left", "backward")


GOOD = """graph(%0: float32[2, 3]) {
  %1 = constant(value=2.0, dtype=float32, shape=(2, 3)) : float32[2, 3]
  %2 = mul(%0, %1) : float32[2, 3]
  return %2
}
"""


def test_the_text_form_is_the_documented_one() -> None:
    x = ops.input_(identity=("text", "m"), dtype=dtypes.float32, shape=(2, 3))
    assert key(Graph((x,), (x * 2,))) == GOOD
    assert key(parse_graph(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("graph(", "grph(", "expected 'graph"),
        ("mul(%0", "mull(%0", "unknown op 'mull'"),
        ("mul(%0", "mul(%7", "%7 is used before it is defined"),
        ("%1) : float32[2, 3]", "%1) : float32[3, 2]", "has type float32"),
        ("%1) : float32[2, 3]", "%1) : float64[2, 3]", "has type float32"),
        ("shape=(2, 3)", "shape=(2, 4)", "has type float32|expected equal shapes"),
        ("value=2.0, ", "", "value"),
        ("  return %2\n", "", "no return line"),
        ("mul(%0, %1)", "mul %0, %1", "cannot parse line"),
    ],
)
def test_text_that_is_wrong_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"text\.parse_graph: .*({message})"):
        parse_graph(GOOD.replace(old, new))


def broken(node: Node, **changes: object) -> Node:
    """A copy of a node with slots overwritten, as no public function would make it."""
    copy = Node()
    for name in ("op", "inputs", "attributes", "dtype", "shape", "source", "serial", "value"):
        setattr(copy, name, changes.get(name, getattr(node, name)))
    return copy


def test_the_verifier_accepts_what_ops_build() -> None:
    verify(parse_graph(GOOD))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (3, 2)}, r"should be float32\[2, 3\]"),
        ({"dtype": dtypes.float64}, r"should be float32\[2, 3\]"),
        ({"attributes": {"axis": 0}}, "has attributes"),
        ({"inputs": ()}, "has 0 inputs"),
        ({"op": Op("mul", "binary", 2, (), ops.mul.infer, ops.mul.meaning)}, "unknown op mul"),
    ],
)
def test_the_verifier_rejects_nodes_that_break_their_rule(changes: dict[str, object], message: str) -> None:
    good = parse_graph(GOOD)
    with pytest.raises(VerificationError, match=message):
        verify(Graph(good.inputs, (broken(good.outputs[0], **changes),)))


def test_the_verifier_rejects_missing_repeated_and_misnamed_inputs() -> None:
    good = parse_graph(GOOD)
    with pytest.raises(VerificationError, match="is not an input of the graph"):
        verify(Graph((), good.outputs))
    with pytest.raises(VerificationError, match="lists an input twice"):
        verify(Graph(good.inputs * 2, good.outputs))
    with pytest.raises(VerificationError, match="differ in length"):
        verify(Graph(good.inputs, good.outputs, ("a", "b")))


def test_the_verifier_rejects_a_node_that_depends_on_itself() -> None:
    x = ops.input_(identity=("text", "cycle"), dtype=dtypes.float32, shape=(2,))
    first = broken(x + x)
    second = broken(x + x, inputs=(first, x))
    first.inputs = (second, x)
    with pytest.raises(VerificationError, match="comes before its inputs"):
        verify(Graph((x,), (second,)))
