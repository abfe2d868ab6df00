"""The verifier: whether a graph is well formed. Run after every pass in the tests."""

from __future__ import annotations

from .graph import Graph, Node
from .ops import TABLE


class VerificationError(ValueError):
    """A graph breaks a rule of the representation."""


def verify(graph: Graph) -> None:
    """Raise VerificationError unless every node is known, typed as its rule says, and fed by inputs only.

    Checks: ops are in the table; attributes are the declared ones; dtype and shape are what the op's rule infers;
    every `input` node reached is one of the graph's inputs; inputs are distinct; no node depends on itself.
    """
    if len(set(graph.inputs)) != len(graph.inputs):
        raise VerificationError("verify: the graph lists an input twice")
    if graph.input_names and len(graph.input_names) != len(graph.inputs):
        raise VerificationError("verify: input_names and inputs differ in length")
    known = set(graph.inputs)
    seen: set[Node] = set()
    for node in graph.nodes:
        if node.op.name not in TABLE or TABLE[node.op.name] is not node.op:
            raise VerificationError(f"verify: unknown op {node.op.name} in {node!r}")
        if any(child not in seen for child in node.inputs) and node not in known:
            raise VerificationError(f"verify: {node!r} comes before its inputs")
        seen.add(node)
        if node in known:
            continue
        if node.op.name == "input":
            raise VerificationError(f"verify: {node!r} is read but is not an input of the graph")
        if tuple(node.attributes) != node.op.attributes:
            raise VerificationError(f"verify: {node!r} has attributes {tuple(node.attributes)}")
        if len(node.inputs) != node.op.arity and (node.op.arity is not None or not node.inputs):
            raise VerificationError(f"verify: {node!r} has {len(node.inputs)} inputs")
        try:
            dtype, shape = node.op.infer(node.inputs, node.attributes)
        except (TypeError, ValueError) as error:
            raise VerificationError(f"verify: {node!r}: {error}") from error
        if (dtype, shape) != (node.dtype, node.shape):
            raise VerificationError(f"verify: {node!r} should be {dtype}{list(shape)}")
