"""Graphs print and parse back to themselves, and malformed ones are refused by parser and verifier."""

from __future__ import annotations

import pytest
from graph_strategies import Example, graphs
from hypothesis import HealthCheck, given, settings
from kaun.compiler.ir import Graph, VerificationError, dtypes, full, key, ops, parse_graph, print_graph, source, verify
from kaun.compiler.ir.graph import Node, Op
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.ir.source import Source

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
        ("mul(%0, %1)", "mul %0, %1", "line 3, column 11: expected '\\('"),
        ("  return %2\n", "  return %2\n  return %1\n", "line 5, column 3: expected '}' after the return line"),
        ("  return %2\n", "  %1 = neg(%0) : float32[2, 3]\n  return %2\n", "line 4, column 3: %1 is defined twice"),
        ("(%0: float32[2, 3])", "(%0: float32[2, 3], what)", "line 1, column 26: expected %0 or another number"),
        ("(%0: float32[2, 3])", "(%0: float32[-2, 3])", "line 1, column 18: expected a shape"),
        ("(%0: float32[2, 3])", f"(%0: float32[{'9' * 5000}])", "expected a shape"),
        ("(%0: float32[2, 3])", f"(%0: float32[{2**63}])", "too many elements"),
        ("value=2.0", "value=9**9**9", r"'9\*\*9\*\*9' is no value of an attribute"),
        ("value=2.0", "value='a'", "is no value of an attribute"),
        ("value=2.0", "value=(1, 2)", "cannot be the value of anything"),
        ("value=2.0", "value=1j", "'1j' is no value"),
        ("value=2.0", "value=1else", "'1else' is no value"),
        ("value=2.0", "value=" + "(" * 10000, "expected a value"),
        ("value=2.0", "value=" + "-" * 10000 + "1", "is no value"),
        ("shape=(2, 3)", "shape=(2.5, 3)", "cannot be the shape of anything"),
        ("shape=(2, 3)", "shape=[2, 3]", "is no value of an attribute"),
        ("shape=(2, 3)", "shape=True", "cannot be the shape of anything"),
        ("dtype=float32", "dtype=3", "cannot be the dtype of anything"),
        ("value=2.0, dtype=float32", "value=300, dtype=int8", "constant: 300 is no int8"),
        ("value=2.0, dtype=float32", "value=nan, dtype=int8", "constant: nan is no int8"),
        ("mul(%0, %1)", "input(identity=0, dtype=float32, shape=())", "inputs belong in the first line"),
        ("%1) : float32[2, 3]", "%1) : float32[2, 3]  @ \"f\":3 \"\" sideways", "unknown phase"),
        ("%1) : float32[2, 3]", "%1) : float32[2, 3]  @ \"\\xZ\":3 \"\" forward", "no text in double quotes"),
        ("}\n", "}\n}\n", "line 6, column 1: expected nothing after '}'"),
        ("}\n", "", "line 4, column 12: expected '}' on the last line"),
    ],
)
def test_text_that_is_wrong_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=rf"text\.parse_graph: (?=line \d+, column \d+: ).*({message})") as raised:
        parse_graph(GOOD.replace(old, new))
    # A long line is shown around the place alone, and the place is pointed at.
    _, shown, pointer = str(raised.value).splitlines()
    assert len(shown) <= 120 and pointer.strip() == "^" and len(pointer) <= len(shown) + 1


NAMES = ["a\nb", "a\rb", "a\x0bb", "a\x85b", "a\u2028b", "a\x00b", "a\udc80b", 'a"b\\', "ä ∂ 😀"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_and_file_is_read_back(name: str) -> None:
    x = ops.input_(identity=("text", name), dtype=dtypes.float32, shape=(2,))
    with source.inherit(Source(name, 3, name)):
        graph = Graph((x,), (ops.exp(x),), (name,))
    text = print_graph(graph)
    text.encode()
    assert len(text.split("\n")) == len(text.splitlines()) + 1 == 5
    read = parse_graph(text)
    assert print_graph(read) == text and read.input_names == (name,)


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


def test_equal_nodes_of_two_texts_keep_the_lines_that_each_text_gives_them():
    text = 'graph(%0: float32[3]) {\n  %1 = exp(%0) : float32[3]  @ "first.py":1 "" forward\n  return %1\n}\n'
    first = parse_graph(text)
    second = parse_graph(text.replace("first.py", "second.py"))
    assert [graph.outputs[0].source.file for graph in (first, second)] == ["first.py", "second.py"]
