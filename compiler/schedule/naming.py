"""Kernels in a few words, for people who look at many of them."""

from __future__ import annotations

from ..ir import ops
from ..ir.graph import Node, topological
from .fusion import ScheduledKernel


def computed(scheduled: ScheduledKernel) -> list[Node]:
    """What the kernel computes: the nodes between those it reads from memory and those it stores."""
    read = set(scheduled.reads)
    return [node for node in topological(scheduled.outputs, stop=read.__contains__) if node not in read]


def describe(scheduled: ScheduledKernel) -> str:
    """The kernel in a few words: its contractions or reductions, the number of other operations, what it stores."""
    computing = [node for node in computed(scheduled) if node.op.kind not in ("leaf", "movement")]
    contractions = [node for node in computing if node.op is ops.dot_general]
    heavy = contractions or [node for node in computing if node.op.kind in ("reduce", "index")]
    names = [_contraction(node) if node.op is ops.dot_general else node.op.name for node in heavy]
    rest = len(computing) - len(heavy)
    words = [*dict.fromkeys(names), *([f"{'+' if names else ''}{rest} elementwise"] if rest else [])]
    largest = max(scheduled.outputs, key=lambda node: node.size)
    stored = "" if contractions else f" to {'x'.join(map(str, largest.shape)) or 'a scalar'}"
    return f"{' '.join(words) or 'copy'}{stored}"


def _contraction(node: Node) -> str:
    depth = node.op.flops(node) // (2 * max(1, node.size))
    return f"dot {'x'.join(map(str, node.shape))} over {depth}"
