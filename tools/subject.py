"""What a tool looks at: `module:function`, `FILE.py:function`, a saved file, a file of IR text or a reproducer.

A function takes no arguments and returns what `kn.compile` returns, or a step that `kn.train.compile` compiled, a
trainer that has made a step, or what `kn.jit` returns once it has been called.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kaun.compiler.ir import Graph, parse_graph
from kaun.runtime import activity
from kaun.runtime.saved_file import MAGIC
from kaun.tools.failures import UserCodeError, code_of, reason

from kaun import saved, train
from kaun.compiled import AheadOfTime
from kaun.tracing import Function, Specialisation

Array = np.ndarray[Any, np.dtype[Any]]

HELP = (
    "module:function or FILE.py:function (a function without arguments that returns what kn.compile or "
    "kn.train.compile gives), a file that one of those saved, the text of a graph, or a reproducer (.npz)"
)


# The longest text that is read.
_LONGEST_TEXT = 64 << 20


class SubjectError(ValueError):
    """The name leads nowhere, or to nothing that can be looked at."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A graph, and its inputs if they are known."""

    graph: Graph
    inputs: tuple[Array, ...] | None = None


def find(name: str, part: str | None = None) -> Subject:
    """What `name` stands for. `part` chooses among the functions of a compiled training step ("step").

    SubjectError tells what is wrong with the name.
    """
    if ":" in name and not os.path.exists(name):
        return _of_function(name, part)
    if not os.path.exists(name):
        raise SubjectError(f"there is no file {name!r}; expected {HELP}")
    _refuse_export(name)
    if name.endswith(".npz"):
        from kaun.debug import reproducer

        try:
            kept = reproducer.load(name)
        except ValueError as error:
            raise SubjectError(str(error)) from error
        return Subject(kept.graph, kept.inputs)
    if is_saved(name):
        return _of_saved(name, part)
    return Subject(graph_of_text(read_text(name), name))


def is_saved(name: str) -> bool:
    """Whether there is such a file, and it begins as those do that `save` writes. SubjectError if it cannot be read."""
    if not os.path.isfile(name):
        return False
    try:
        with open(name, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise SubjectError(reason(error)) from error


def _refuse_export(name: str) -> None:
    """SubjectError for what `export` wrote, or any other folder."""
    path = Path(name)
    found = sorted(path.glob("*.json")) if path.is_dir() else [path] if name.endswith(".json") else []
    if any(_describes_export(file) for file in found):
        raise SubjectError(f"{name} is an export; `kaun aot inspect {name}` shows it")
    if path.is_dir():
        raise SubjectError(f"{name} is a folder; expected {HELP}")


def _describes_export(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "functions", "target"} <= set(found)


def _of_saved(name: str, part: str | None) -> Subject:
    """A function of a saved file. Its code does not run: only the graph is looked at, and compiled anew."""
    try:
        return _part(name, _graphs(saved.load(name, recompile=True)), part)
    except (ValueError, OSError) as error:
        raise SubjectError(reason(error)) from error


def _part(name: str, graphs: dict[str, Graph], part: str | None) -> Subject:
    chosen = part or next(iter(graphs))
    if chosen not in graphs:
        raise SubjectError(f"{name} has no part {chosen!r}; it has {', '.join(graphs)}")
    return Subject(graphs[chosen])


def read_text(name: str) -> str:
    """The text of a file, or of standard input for "-".

    SubjectError if it cannot be read, is an export, or is longer than any graph, as a device that never ends.
    """
    if name != "-":
        _refuse_export(name)
    try:
        if name == "-":
            text = sys.stdin.read(_LONGEST_TEXT + 1)
        else:
            with open(name, encoding="utf-8") as file:
                text = file.read(_LONGEST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SubjectError(reason(error) if isinstance(error, OSError) else f"{name} is no text: {error}") from error
    if len(text) > _LONGEST_TEXT:
        raise SubjectError(f"{name} is longer than {_LONGEST_TEXT:,} characters; expected {HELP}")
    return text


def kind_of(text: str) -> str:
    """What a text is: "graph", "kernel", "program" or "" for neither."""
    start = text.lstrip()
    if start.startswith("graph("):
        return "graph"
    if "\nprogram {\n" in f"\n{start}":
        return "program"
    return "kernel" if start.startswith("kernel(") else ""


def graph_of_text(text: str, name: str) -> Graph:
    """The graph of a text. SubjectError names the line that is wrong."""
    if kind_of(text) != "graph":
        if name.endswith(".py"):
            raise SubjectError(f"{name} is a program; name a function in it, as in {name}:step")
        what = f"a {kind_of(text)}" if kind_of(text) else "something else"
        raise SubjectError(f"{name} holds {what}; expected the text of a graph, which starts with `graph(`")
    try:
        return parse_graph(text)
    except ValueError as error:
        raise SubjectError(f"{name}: {error}") from error


def value_of(name: str) -> Any:
    """What the function `module:function` or `FILE.py:function` gives, or what is compiled under that name itself.

    SubjectError if there is no such function, or it takes arguments; UserCodeError for what the function raises.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise SubjectError(f"got {name!r}, expected module:function or FILE.py:function")
    module = _module(place)
    try:
        made = getattr(module, function)
    except AttributeError:
        known = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        raise SubjectError(f"{place} has no function {function!r}; it has {known or 'none'}") from None
    if not callable(made) or _graphs(made):
        return made
    try:
        inspect.signature(made).bind()
    except (TypeError, ValueError) as error:
        raise SubjectError(f"{name} has to be a function without arguments: {error}") from error
    activity.now(f"running {name}")
    with code_of(name):
        return made()


def _of_function(name: str, part: str | None) -> Subject:
    value = value_of(name)
    graphs = _graphs(value)
    if not graphs:
        raise SubjectError(
            f"{name} gave {type(value).__name__}, expected what kn.compile or kn.train.compile returns"
        )
    return _part(name, graphs, part)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            with code_of(place):
                return importlib.import_module(place)
        except UserCodeError as error:
            missing = error.__cause__
            if isinstance(missing, ModuleNotFoundError) and f"{place}.".startswith(f"{missing.name}."):
                raise SubjectError(f"there is no module {place!r}: {missing}") from missing
            raise
        finally:
            sys.path.remove(os.getcwd())
    if not os.path.exists(place):
        raise SubjectError(f"there is no file {place!r}")
    found = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    # What the file imports may lie beside it, as when it is run.
    sys.path.insert(0, str(Path(place).resolve().parent))
    try:
        with code_of(place):
            found.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _graphs(value: Any) -> dict[str, Graph]:
    """The graphs of whatever has been compiled, by name."""
    function = getattr(value, "compiled", value)
    if isinstance(function, Function):
        return _last(function._specialisations.values())
    if isinstance(value, Specialisation):
        return {"call": value.graph}
    if isinstance(value, AheadOfTime):
        main = value._main
        return {name: value.functions[name].graph for name in (main, *(n for n in value.functions if n != main))}
    if isinstance(value, train.Trainer):
        steps = [f for key, f in value._compiled.items() if isinstance(key, tuple) and key[0] == "step"]
        return _last(special for step in steps for special in step._specialisations.values())
    return {}


def _last(specials: Iterable[Specialisation]) -> dict[str, Graph]:
    found = list(specials)
    return {"call": found[-1].graph} if found else {}


def example_inputs(graph: Graph) -> tuple[Array, ...]:
    """Arrays to run a graph on where nobody gave any, the same each time.

    Floating-point numbers are between 0 and 1, so that roots and logarithms of them exist; integers and bools are 0,
    which is a place in anything that is not empty.
    """
    random = np.random.default_rng(0)
    arrays = []
    for node in graph.inputs:
        if node.dtype.is_float:
            arrays.append(random.random(node.shape, np.float32).astype(node.dtype.numpy))
        else:
            arrays.append(np.zeros(node.shape, node.dtype.numpy))
    return tuple(arrays)
