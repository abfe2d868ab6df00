"""Passes: graph -> graph, one file per pass, named after it.

Every pass is pure, keeps the graph's inputs and outputs in order, and leaves a graph that the verifier accepts. A
graph's inputs may be computed nodes; every pass turns them into `input` nodes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..ir import Graph
from .canonicalise import canonicalise
from .eliminate_dead_code import eliminate_dead_code
from .fold_constants import fold_constants
from .join_products import join_products
from .lower_convolutions import lower_convolutions
from .reduce_vectors import reduce_vectors
from .rules import isolate_inputs
from .share_subexpressions import share_subexpressions
from .simplify import simplify
from .split_concatenations import split_concatenations
from .split_reductions import split_reductions
from .widen_accumulations import widen_accumulations

Pass = Callable[[Graph], Graph]

PASSES: dict[str, Pass] = {
    function.__name__: function
    for function in (
        canonicalise,
        fold_constants,
        reduce_vectors,
        simplify,
        lower_convolutions,
        share_subexpressions,
        join_products,
        split_concatenations,
        split_reductions,
        widen_accumulations,
        eliminate_dead_code,
    )
}

# What a traced graph goes through before it is scheduled. (`simplify` includes the rules of canonicalise,
# fold_constants and reduce_vectors, which stand on their own to be looked at one by one.) Operands are ordered once so
# that simplify sees equal as equal, and once more for what it made. Reductions are split last: simplify would merge
# them again.
STANDARD: tuple[str, ...] = (
    "lower_convolutions",
    "canonicalise",
    "fold_constants",
    "share_subexpressions",
    "simplify",
    "share_subexpressions",
    "join_products",
    "split_concatenations",
    "split_reductions",
    "widen_accumulations",
    "eliminate_dead_code",
)


def run(graph: Graph, names: Iterable[str] = STANDARD) -> Graph:
    """`graph` after the named passes, in order. ValueError for a name that is not in PASSES."""
    for name in names:
        if name not in PASSES:
            raise ValueError(f"passes.run: unknown pass {name!r}; expected one of {', '.join(PASSES)}")
        graph = PASSES[name](graph)
    return graph


__all__ = [
    "PASSES", "STANDARD", "Pass", "canonicalise", "eliminate_dead_code", "fold_constants", "isolate_inputs",
    "join_products",
    "lower_convolutions", "reduce_vectors", "run", "share_subexpressions", "simplify", "split_concatenations",
    "split_reductions",
    "widen_accumulations",
]  # fmt: skip
