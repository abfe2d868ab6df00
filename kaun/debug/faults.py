"""What the search for a fault finds: which stage went wrong, at which node, and how to see it again."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from kaun.compiler.ir import Graph, Node
from kaun.debug.reproducer import Array, Reproducer
from kaun.debug.rounding import Difference

# What each stage does that may be wrong, in words.
STAGES = {
    "gradient": "the rule by which gradients are taken",
    "simplified": "a pass from graph to graph",
    "fused": "fusion: which nodes share a kernel, and in which order kernels run",
    "scheduled": "the lowering of nodes to loops",
    "llvm": "the emission of LLVM IR from loops",
    "assembly": "LLVM's own optimisation",
    "program": "the program around the kernels",
    "run": "the program that ran is not the one that is compiled now",
}


@dataclass(frozen=True, eq=False)
class Fault:
    """A place where compiled code and the interpreter (or a gradient and a difference) disagree.

    stage: "gradient", "simplified", "fused", "scheduled", "llvm", "assembly", "program" or "run".
    culprit: the pass, the op whose rule is wrong, the part of the program ("alias", "memory plan", "launches",
        "entry"), or "the runtime".
    node: the first node that disagrees; it knows its layer path and the user's line (`node.source`).
    difference: how far off it is; None where something broke before there were numbers, which `reason` then tells.
    reproducer: the smallest part of the graph that shows it, with inputs.
    """

    stage: str
    culprit: str
    node: Node | None
    difference: Difference | None
    reason: str
    reproducer: Reproducer

    @property
    def op(self) -> str:
        """The name of the node's operation."""
        return self.node.op.name if self.node is not None else ""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the reproducer, which `kaun run`, `kaun check`, `kaun bisect` and `kaun reduce` take."""
        return self.reproducer.save(path)

    def within(self, graph: Graph, inputs: tuple[Array, ...]) -> Fault:
        """The same fault with another reproducer."""
        return replace(self, reproducer=Reproducer(graph, inputs))

    def __str__(self) -> str:
        if self.stage == "gradient":
            return self._gradient_text()
        lines = [f"introduced by {self.culprit}: {STAGES[self.stage]} (stage `{self.stage}`)"]
        if self.node is not None:
            lines.insert(0, f"the first node that disagrees is {describe(self.node)}")
        if self.difference is not None:
            lines.append(str(self.difference))
        if self.reason:
            lines.append(self.reason)
        return "\n    ".join(lines)

    def _gradient_text(self) -> str:
        assert self.node is not None and self.difference is not None
        return "\n    ".join([
            f"the gradient is wrong from {describe(self.node)} on",
            self.reason,
            f"along a random direction it gives {self.difference.found:.9g}, differences give "
            f"{self.difference.expected:.9g} (give or take {self.difference.allowed:.2g})",
        ])


def describe(node: Node) -> str:
    """A node for people: its op, type, layer, line and phase."""
    source = node.source
    kind = f"`{node.op.name}` {node.dtype}{list(node.shape)}"
    if not source.file:
        return kind
    layer = f" in layer `{source.path}`" if source.path else ""
    return f"{kind}{layer} at {os.path.basename(source.file)}:{source.line} ({source.phase})"
