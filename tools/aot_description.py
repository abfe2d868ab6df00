"""What is in an exported folder or a saved file, as text for people: signature, memory, kernels, operations."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kaun.runtime.artifact import Leaf
from kaun.runtime.saved_file import MAGIC

from kaun.plain_data import printable

# Endings of what lies beside the description of an export.
_PARTS = (".o", ".so", ".dylib", ".a", ".h", ".c", ".wasm", ".mjs", ".state")
_WIDTH = 100


def of_file(name: str) -> str:
    """The text. ValueError, which names the file, if it is neither; OSError if it cannot be read."""
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{name} is a folder with {len(found)} descriptions (*.json): {names}; expected one")
        path = found[0]
    with path.open("rb") as file:
        is_json = file.read(1) == b"{"
        file.seek(0)
        if path.suffix in _PARTS and file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{name} is a part of an export; give the folder: {path.parent}")
    try:
        description = _shown(_read_export(path) if is_json else _read_saved(path))
        return "\n".join(row for line in _lines(_shown(path.name), description) for row in _wrapped(line)) + "\n"
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the description of an export: {error!r}") from error


def _read_export(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text or of JSON
        raise ValueError(f"{path} is not the description of an export: {error}") from error
    if found.get("format") != 1:
        raise ValueError(f"{path} has format {found.get('format')!r}, expected 1: no export, or of another version")
    assert isinstance(found, dict)
    return found


def _shown(value: Any) -> Any:
    """Plain data whose texts, which anybody may have written, do nothing to a terminal but show."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_shown(key): _shown(entry) for key, entry in value.items()}
    return [_shown(entry) for entry in value] if isinstance(value, list | tuple) else value


def _wrapped(line: str) -> list[str]:
    """The lines of a long one; the later ones begin below its last column, or where its text does."""
    columns = [found.end() for found in re.finditer(r"\S {2,}(?=\S)", line)]
    indent = columns[-1] if columns else len(line) - len(line.lstrip()) + 4
    if indent > _WIDTH - 30:
        indent = 4
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _lines(file: str, found: Mapping[str, Any]) -> Iterator[str]:
    target, versions = found["target"], found["versions"]
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"{file}: {'training step' if found['kind'] == 'step' else 'function'} {found['name']}"
    yield f"  target     {target['name']} ({target['triple']}), {target['pointer_bits']}-bit addresses"
    yield f"  made by    {made}"
    if "needs" in found:
        yield f"  needs      {', '.join(found['needs']) or 'nothing special'} of the processor"
    if "state" in found:
        yield from _state(found["state"])
    if "workspace" in found:
        workspace = found["workspace"]
        more = f", {workspace['more_for_each_thread']:,} more for each of up to {workspace['most_threads']} threads"
        threads = more if workspace["most_threads"] > 1 else ", without threads"
        yield f"  workspace  {workspace['one_thread']:,} bytes{threads}"
    for name, function in found["functions"].items():
        yield ""
        yield from _function(name, function)


def _state(state: Mapping[str, Any]) -> Iterator[str]:
    initial = {"embedded": "with numbers to start from", "file": "numbers to start from in a file"}
    yield f"  state      {state['bytes']:,} bytes, {initial.get(state['initial'], 'no numbers to start from')}"
    rows = [(leaf["path"], f"{leaf['dtype']}{leaf['shape']}", f"{leaf['bytes']:,}") for leaf in state["leaves"]]
    yield from _table(("", "type", "bytes"), rows, indent=13)


def _function(name: str, function: Mapping[str, Any]) -> Iterator[str]:
    given, results = ([f"{leaf['path']}: {leaf['dtype']}{leaf['shape']}" for leaf in function[each]]
                      for each in ("inputs", "outputs"))  # fmt: skip
    state = " and the state" if function["writes_state"] else ""
    memory = function["memory"]
    yield f"{name}({', '.join(given)}) -> {', '.join(results)}{state}"
    yield f"  {function['flops']:,} operations, {function['bytes']:,} bytes read and written by kernels"
    parts = [f"{key.replace('_', ' ')} {value:,}" for key, value in memory.items() if value]
    yield f"  bytes of memory: {', '.join(parts) or 'none'}"
    rows = [
        (str(number), str(kernel["launch"]), str(kernel["chunks"]), f"{kernel['flops']:,}", f"{kernel['bytes']:,}",
         _stored(kernel["stores"]), ", ".join(kernel["layers"]) or "-")
        for number, kernel in enumerate(function["kernels"])
    ]  # fmt: skip
    if rows:
        headings = ("kernel", "launch", "chunks", "operations", "bytes", "stores", "layers")
        yield from _table(headings, rows, indent=2, left=2)


def _stored(stores: Sequence[str]) -> str:
    """What a kernel stores, equal ones counted."""
    counts = Counter(stores)
    return ", ".join(what if count == 1 else f"{count} of {what}" for what, count in counts.items())


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], indent: int, left: int = 2) -> Iterator[str]:
    """Aligned columns; the last `left` of a wide table to the left, the first and second of a narrow one."""
    narrow = len(headings) == 3
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    for row in [headings, *rows]:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            to_left = column < 2 if narrow else column >= len(headings) - left
            cells.append(cell.ljust(width) if to_left else cell.rjust(width))
        yield (" " * indent + "  ".join(cells)).rstrip()


def _read_saved(path: Path) -> dict[str, Any]:
    """A saved file as an export describes itself."""
    from kaun import saved

    data, programs = saved.described(path)
    found: dict[str, Any] = {
        "kind": data.kind,
        "name": data.name,
        "versions": data.versions,
        "target": {
            "name": data.target.name, "triple": data.target.triple, "pointer_bits": data.target.pointer_bits,
        },
        "needs": data.needs,
        "functions": {},
    }  # fmt: skip
    if data.state:
        found["state"] = {
            "bytes": sum(leaf.nbytes for leaf in data.state),
            "initial": "embedded" if data.has_initial else "none",
            "leaves": [_leaf(leaf) for leaf in data.state],
        }
    kept = {leaf.name for leaf in data.state}
    for function in data.functions:
        given = function.inputs[: len(function.inputs) - function.constants]
        written = kept if function.name == "step" else set()
        found["functions"][function.name] = {
            "inputs": [_leaf(leaf) for leaf in given if leaf.name not in kept],
            "outputs": [_leaf(leaf) for leaf in function.outputs if leaf.name not in written],
            "writes_state": bool(written),
            "flops": sum(kernel.flops for kernel in function.kernels),
            "bytes": sum(kernel.bytes for kernel in function.kernels),
            "memory": {
                "arena": programs[function.name].arena_bytes,
                "scratch_for_each_thread": programs[function.name].scratch_bytes,
                "constants": sum(leaf.nbytes for leaf in function.inputs[len(given) :]),
            },
            "kernels": [dataclasses.asdict(kernel) for kernel in function.kernels],
        }
    return found


def _leaf(leaf: Leaf) -> dict[str, Any]:
    return {"path": leaf.name, "dtype": leaf.dtype.name, "shape": list(leaf.shape), "bytes": leaf.nbytes}
