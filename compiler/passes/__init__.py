"""Passes: graph -> graph, one file per pass, named after it.

Every pass is pure, keeps the graph's inputs and outputs in order, and leaves a graph that the verifier accepts. A
graph's inputs may be computed nodes; every pass turns them into `input` nodes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..ir import Graph, Node, VerificationError
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


class ChangedResult(VerificationError):
    """A pass gave a graph whose results are of other types, or not as many, or that has other inputs.

    position: which result it is, or None where it is not about one.
    """

    def __init__(self, message: str, position: int | None = None):
        super().__init__(message)
        self.position = position


def run(graph: Graph, names: Iterable[str] = STANDARD) -> Graph:
    """`graph` after the named passes, in order. ValueError for a name that is not in PASSES.

    ChangedResult for a pass that changes what is computed from what; an error that a pass raises notes which it was.
    """
    for name in names:
        if name not in PASSES:
            raise ValueError(f"passes.run: unknown pass {name!r}; expected one of {', '.join(PASSES)}")
        try:
            after = PASSES[name](graph)
        except Exception as error:
            error.add_note(f"while running pass {name}")
            raise
        _refuse_other_types(name, graph, after)
        graph = after
    return graph


def _refuse_other_types(name: str, before: Graph, after: Graph) -> None:
    """ChangedResult unless inputs and outputs have the types they had: callers hand over memory of those sizes."""
    for what, old, new in (("input", before.inputs, after.inputs), ("result", before.outputs, after.outputs)):
        if len(old) != len(new):
            raise ChangedResult(f"{name} changed the number of {what}s from {len(old)} to {len(new)}")
        for position, (one, other) in enumerate(zip(old, new, strict=True)):
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                which = f"the {what}" if len(old) == 1 else f"{what} {position}"
                raise ChangedResult(
                    f"{name} changed {which} from {_type_text(one)} to {_type_text(other)}",
                    position if what == "result" else None,
                )


def _type_text(node: Node) -> str:
    return f"{node.dtype}{list(node.shape)}"


__all__ = [
    "PASSES", "STANDARD", "ChangedResult", "Pass", "canonicalise", "eliminate_dead_code", "fold_constants",
    "isolate_inputs", "join_products",
    "lower_convolutions", "reduce_vectors", "run", "share_subexpressions", "simplify", "split_concatenations",
    "split_reductions",
    "widen_accumulations",
]  # fmt: skip
