"""Everything about an export that a program may want to read, as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from kaun.runtime.artifact import Leaf
from kaun.runtime.export import state_file
from kaun.runtime.export.header import count_of
from kaun.runtime.export.layout import ALIGNMENT, Entry, Layout
from kaun.runtime.export.names import c_type

FORMAT = 1


def description(layout: Layout, embedded: bool) -> str:
    """The text. `embedded`: whether the object has the state at the start of training."""
    artifact = layout.artifact
    data: dict[str, Any] = {
        "format": FORMAT,
        "kind": artifact.kind,
        "name": artifact.name,
        "prefix": layout.prefix,
        "versions": dict(artifact.versions),
        "target": {
            **dataclasses.asdict(artifact.target),
            "name": artifact.target.name,
            "pointer_bits": artifact.target.pointer_bits,
        },
        "alignment": ALIGNMENT,
        "workspace": {
            "header": layout.header_bytes,
            "one_thread": layout.workspace_bytes(1),
            "more_for_each_thread": layout.workspace_bytes(2) - layout.workspace_bytes(1),
            "most_threads": layout.most_threads,
        },
        "functions": {entry.verb: _entry(layout, entry) for entry in layout.entries},
    }
    if layout.state.slots:
        data["state"] = {
            "bytes": layout.state.nbytes,
            "file_bytes": state_file.HEADER_BYTES + layout.state.nbytes,
            "fingerprint": f"{layout.state.fingerprint:016x}",
            "initial": "embedded" if embedded else "file" if artifact.initial is not None else "none",
            "leaves": [{**_leaf(slot.leaf, slot.identifier), "offset": slot.offset} for slot in layout.state.slots],
        }
    return json.dumps(data, indent=1) + "\n"


def _leaf(leaf: Leaf, identifier: str) -> dict[str, Any]:
    return {
        "path": leaf.name,
        "identifier": identifier,
        "dtype": leaf.dtype.name,
        "c_type": c_type(leaf.dtype),
        "shape": list(leaf.shape),
        "count": count_of(leaf),
        "bytes": leaf.nbytes,
    }


def _entry(layout: Layout, entry: Entry) -> dict[str, Any]:
    details, program = entry.function.details, entry.function.program
    return {
        "symbol": f"{layout.prefix}_{entry.verb}",
        "writes_state": entry.writes_state,
        "inputs": [_leaf(*pair) for pair in zip(entry.inputs, entry.input_names, strict=True)],
        "outputs": [_leaf(*pair) for pair in zip(entry.outputs, entry.output_names, strict=True)],
        "flops": details.cost.flops,
        "bytes": details.cost.bytes,
        "memory": {
            "arena": program.arena_bytes,
            "staging": entry.staging_bytes,
            "scratch_for_each_thread": program.scratch_bytes,
            "copied_after_a_call": sum(copy.nbytes for copy in entry.copies),
            "constants": sum(array.nbytes for array in entry.function.constants),
        },
        "kernels": [dataclasses.asdict(kernel) for kernel in details.kernels],
    }
