"""Values that a traced function shows or checks: further outputs of its program, which the host looks at after a run.

A probe recorded while a function is traced waits in the innermost collector. Transformations that trace with stand-ins
(gradients, rematerialisation) resolve the nodes of what was recorded inside and hand it on; `jit` puts the nodes in
front of the function's results. So a function without probes is the same program as before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kaun.compiler.ir import Graph, Node
from kaun.compiler.ir.source import Source, current

if TYPE_CHECKING:
    from kaun.execution import Storage


class CheckError(AssertionError):
    """A condition given to `kn.debug.check` did not hold.

    Within `train.fit`, `step` is the number of the step, from 1, and `element` what it was made on; with
    `check_finite`, `state` is the training state before it. Elsewhere they are None.
    """

    step: int | None = None
    element: Any = None
    state: Any = None


@dataclass(frozen=True, eq=False)
class Probe:
    """A value to look at: `kind` is "print", "check" or "note", `text` its label, message or name."""

    kind: str
    text: str
    source: Source
    node: Node

    def resolved(self, node: Node) -> Probe:
        return replace(self, node=node)

    def report(self, array: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Print the value, or note it; CheckError if it is a condition that does not hold everywhere."""
        if self.kind == "note":
            notes = _notes.get()
            if notes is not None:
                notes[self.text] = float(array)
            return
        if self.kind == "print":
            label = f"{self.text}: " if self.text else ""
            value = f"\n{array}" if array.ndim else f" {array}"
            print(f"{label}{self.node.dtype}{list(array.shape)} at {self.source}{value}", file=sys.stdout, flush=True)
            return
        if not array.all():
            failed = np.argwhere(~array)
            place = f", first at {failed[0].tolist()}" if array.ndim else ""
            raise CheckError(
                f"debug.check: {self.text} (at {self.source}: {len(failed):,} of {array.size:,} do not hold{place})"
            )


_collector: ContextVar[list[Probe] | None] = ContextVar("probes", default=None)
_notes: ContextVar[dict[str, float] | None] = ContextVar("notes", default=None)


@contextmanager
def noting() -> Iterator[dict[str, float]]:
    """What functions note while they run inside is in the dictionary, by name; they are traced so that they note it."""
    found: dict[str, float] = {}
    token = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(token)


def is_noting() -> bool:
    """Whether this is inside `noting`."""
    return _notes.get() is not None


def note(name: str, node: Node) -> None:
    """Note the number of a scalar each time the code around runs, where somebody asked for notes."""
    if is_noting():
        record(Probe("note", name, current(), node))


@contextmanager
def collecting() -> Iterator[list[Probe]]:
    """What is recorded inside goes into the list."""
    found: list[Probe] = []
    token = _collector.set(found)
    try:
        yield found
    finally:
        _collector.reset(token)


def record(probe: Probe) -> None:
    """Keep the probe for the function being traced; outside of one, report it now."""
    collector = _collector.get()
    if collector is not None:
        collector.append(probe)
        return
    from kaun import execution  # which traced functions, and so probes, are a part of

    probe.report(execution.array(probe.node))


def showing(graph: Graph, probes: Sequence[Probe]) -> Graph:
    """The graph with the probes' values in front of its outputs."""
    return Graph(graph.inputs, (*(probe.node for probe in probes), *graph.outputs), graph.input_names)


def shown(probes: Sequence[Probe], outputs: list[Storage]) -> list[Storage]:
    """The outputs of such a graph without the probes' values, which are reported in the order of the code.

    All are printed before the first check that does not hold ends the call.
    """
    count = len(probes)
    pairs = list(zip(probes, outputs[:count], strict=True))
    for probe, storage in sorted(pairs, key=lambda pair: pair[0].kind == "check"):
        probe.report(storage.array)
    return outputs[count:]
