"""The graph representation: ops, types, text form, verifier and interpreter."""

from . import dtypes, ops, source
from .graph import (
    Graph,
    Node,
    Op,
    detached,
    forget_dead_nodes,
    full,
    rebuild,
    rewrite,
    substitute,
    topological,
    unshared,
)
from .kept import KeptGraph
from .parse import parse_graph
from .text import key, print_graph
from .verify import VerificationError, verify

__all__ = [
    "Graph", "KeptGraph", "Node", "Op", "VerificationError", "detached", "dtypes", "forget_dead_nodes", "full", "key",
    "ops", "parse_graph", "print_graph", "rebuild", "rewrite", "source", "substitute", "topological", "unshared",
    "verify",
]  # fmt: skip
