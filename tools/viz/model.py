"""What the viewer shows, as plain data: the graphs, kernels, texts and source lines of a compilation, and their ties.

Numbers tie things together. A node is its position in its stage's list, a kernel that in the order of the calls, a
module (a kernel's loop IR, LLVM IR and assembly, which equal kernels share) that in the program's table. Each stage's
nodes name their counterparts in the stage before, kernels the nodes they compute and those that each line of their loop
IR comes from, lines of LLVM IR and assembly the lines of loop IR they are for, nodes the line of the user's file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kaun.compiler.codegen.kernels import saved_multiply_adds
from kaun.compiler.codegen.line_tables import read_assembly, read_llvm
from kaun.compiler.ir import Graph, Node
from kaun.compiler.ir.text import format_type, format_value, print_graph
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.fusion import ScheduledKernel
from kaun.compiler.schedule.naming import describe
from kaun.compiler.schedule.origins import line_nodes
from kaun.compiler.schedule.traffic import traffic_bytes

from kaun.profiling import alive_bytes

GRAPH_STAGES = ("traced", "differentiated", "simplified")

# Of a user's file, what is shown: a longer one is cut around the lines that nodes come from.
_MOST_SOURCE_LINES = 4000
_AROUND = 20
_LARGEST_SOURCE = 16 << 20
# A node that passes made of many has some of them as counterparts.
_MOST_COUNTERPARTS = 16


@dataclass(frozen=True)
class Model:
    """A compilation as the viewer takes it; `data` is what JSON can hold."""

    title: str
    data: dict[str, Any]


def make_model(
    title: str,
    compilation: Compilation,
    assembly: Callable[[str], str],
    seconds: Sequence[float] | None = None,
    subtitle: str = "",
) -> Model:
    """The model of a compilation.

    assembly: of a module's LLVM IR text. seconds: what each kernel call takes, in order, if that was measured.
    """
    graphs = {name: getattr(compilation, name) for name in GRAPH_STAGES}
    strings = _Strings()
    stages = []
    before: Graph | None = None
    for name, graph in graphs.items():
        stages.append(_stage(name, graph, before, strings))
        before = graph
    modules, kernels = _kernels(compilation, graphs["simplified"], assembly, seconds)
    data = {
        "title": title,
        "subtitle": subtitle,
        "stages": stages,
        "strings": strings.table,
        "modules": modules,
        "kernels": kernels,
        "entry": compilation.program.entry.emit("entry"),
        "fused": compilation.stage("fused"),
        "memory": list(alive_bytes(compilation)),
        "sources": _sources(strings),
        "measured": seconds is not None,
    }
    return Model(title, data)


class _Strings:
    """Strings that many nodes share, each once; a place among them stands for one."""

    def __init__(self) -> None:
        self.table: list[str] = []
        self._places: dict[str, int] = {}
        self.lines: defaultdict[str, set[int]] = defaultdict(set)

    def place(self, text: str) -> int:
        found = self._places.get(text)
        if found is None:
            found = self._places[text] = len(self.table)
            self.table.append(text)
        return found


# --- graphs ----------------------------------------------------------------------------------------------------------


def _stage(name: str, graph: Graph, before: Graph | None, strings: _Strings) -> dict[str, Any]:
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    given = _named_inputs(graph)
    paths = _paths(graph)
    nodes = []
    for node in graph.nodes:
        inputs = [] if node in given else [numbers[child] for child in node.inputs]
        source = node.source
        if source.file:
            strings.lines[source.file].add(source.line)
        nodes.append([
            strings.place("input" if node in given else node.op.name),
            strings.place(format_type(node)),
            strings.place(paths[node]),
            strings.place("input" if node in given else source.phase),
            strings.place(source.file),
            source.line,
            inputs,
            strings.place(given[node] if node in given else _attributes(node)),
            node.nbytes,
        ])
    links = [] if before is None else _links(graph, before, paths, _paths(before)) 
    outputs = [numbers[node] for node in graph.outputs]
    return {"name": name, "nodes": nodes, "links": links, "outputs": outputs, "text": print_graph(graph)}


def _attributes(node: Node) -> str:
    shown = {name: value for name, value in node.attributes.items() if name not in ("dtype", "shape", "identity")}
    return ", ".join(f"{name}={format_value(value)}" for name, value in shown.items())


def _common(paths: Iterable[str]) -> str:
    """The longest path that all of these begin with, by whole parts; "" for none."""
    rows = [path.split(".") if path else [] for path in paths]
    shared = []
    for parts in zip(*rows, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _named_inputs(graph: Graph) -> dict[Node, str]:
    names = (name.replace("/", ".") for name in graph.input_names or ("",) * len(graph.inputs))
    return dict(zip(graph.inputs, names, strict=True))


def _paths(graph: Graph) -> dict[Node, str]:
    """The layer of each node.

    An input has the one that all forward nodes reading it are in. A node of no layer, as the optimizer's are, has that
    of the only one whose parameters it depends on, or else that of the only one it serves.
    """
    given = set(graph.inputs)
    paths: dict[Node, str] = {}
    for node in graph.nodes:
        if node in given:
            paths[node] = _common(u.source.path for u in graph.users[node] if u.source.phase == "forward")
        else:
            paths[node] = node.source.path
        if not paths[node] and node.source.phase == "update" and node not in given:
            known = {paths[child] for child in node.inputs if paths[child]}
            paths[node] = known.pop() if len(known) == 1 else ""
    for node in reversed(graph.nodes):
        if not paths[node] and (node in given or node.source.phase == "update"):
            known = {paths[user] for user in graph.users[node]}
            paths[node] = known.pop() if len(known) == 1 else ""
    return paths


def _links(graph: Graph, before: Graph, paths: dict[Node, str], paths_before: dict[Node, str]) -> list[list[int]]:
    """For each node its counterparts in the stage before: itself, or what is most like it on its line of its layer."""
    numbers = {node: number for number, node in enumerate(before.nodes)}
    alike: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for node, number in numbers.items():
        for key in _likeness(node, paths_before[node]):
            alike[key].append(number)
    found = []
    for node in graph.nodes:
        if node in numbers:
            found.append([numbers[node]])
        else:
            nearest = next((alike[key] for key in _likeness(node, paths[node]) if key in alike), [])
            found.append(nearest[:_MOST_COUNTERPARTS])
    return found


def _likeness(node: Node, path: str) -> list[tuple[Any, ...]]:
    """What counterparts have in common, the strictest first; nothing for what comes from no line."""
    if not node.source.file:
        return []
    place = (node.source, path)
    return [(*place, node.op, node.dtype, node.shape), (*place, node.op), (*place, node.dtype, node.shape), place]


# --- kernels ---------------------------------------------------------------------------------------------------------


def _kernels(
    compilation: Compilation, simplified: Graph, assembly: Callable[[str], str], seconds: Sequence[float] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    program = compilation.program
    modules = [_module(module.text, compilation.located(number), assembly)
               for number, module in enumerate(program.kernels)]  # fmt: skip
    numbers: dict[Node, int] = {}
    for number, node in enumerate(simplified.nodes):
        numbers.setdefault(compilation.scheduled_nodes[node], number)
    launches = [i for i, bundle in enumerate(program.bundles) for chain in bundle for _ in chain.calls]
    rows = zip(compilation.kernels, program.calls, launches, strict=True)
    kernels = []
    for number, (scheduled, call, launch) in enumerate(rows):
        computed = scheduled.nodes
        kernels.append({
            "module": call.kernel,
            "launch": launch,
            "chunks": call.chunks,
            "nodes": sorted({numbers[node] for node in computed if node in numbers}),
            "outputs": sorted({numbers[node] for node in scheduled.outputs if node in numbers}),
            "lines": _node_lines(scheduled, numbers),
            "stores": [f"{node.op.name} {format_type(node)}" for node in scheduled.outputs],
            "name": describe(scheduled),
            "flops": sum(node.op.flops(node) for node in computed)
            - 2 * saved_multiply_adds(scheduled.kernel, compilation.target),
            "bytes": traffic_bytes(scheduled.reads, scheduled.outputs, computed),
            "seconds": None if seconds is None else seconds[number],
            "apart": sorted(set(scheduled.apart.values())),
        })
    return modules, kernels


def _node_lines(scheduled: ScheduledKernel, numbers: dict[Node, int]) -> list[int]:
    """Line of the loop IR from 1, node, line, node, ...: which lines of the kernel's text come from which nodes."""
    lines = enumerate(line_nodes(scheduled), 1)
    return [each for line, nodes in lines for node in nodes if node in numbers for each in (line, numbers[node])]


def _module(loop: str, llvm: str, assembly: Callable[[str], str]) -> dict[str, Any]:
    """The texts of a module, and for their lines the sets of lines of its loop IR that they are for.

    `sets` are those that occur; of LLVM IR and assembly, each text's `lines` are: which set, for how many lines, which
    set, ...
    """
    read = read_llvm(llvm)
    machine = read_assembly(assembly(llvm), read.helpers)
    shown = [(line, of) for line, of in zip(read.text.split("\n"), read.lines, strict=True) if not _EMPTY.match(line)]
    sets: dict[tuple[int, ...], int] = {(): 0}
    return {
        "loop": loop,
        "llvm": "\n".join(line for line, _ in shown),
        "assembly": machine.text,
        "lines": {"llvm": _runs((of for _, of in shown), sets), "assembly": _runs(machine.lines, sets)},
        "sets": [list(of) for of in sets],
    }


# Lines of LLVM IR that say nothing: the module's name and the empty target.
_EMPTY = re.compile(r"; ModuleID|source_filename|target (?:triple|datalayout) = ")


def _runs(lines: Iterable[tuple[int, ...]], sets: dict[tuple[int, ...], int]) -> list[int]:
    """How long the same set goes on: the number of a set, of lines, of a set, ... New sets are added."""
    runs: list[int] = []
    for of, same in groupby(lines):
        runs += (sets.setdefault(of, len(sets)), sum(1 for _ in same))
    return runs


# --- the user's files ------------------------------------------------------------------------------------------------


def _sources(strings: _Strings) -> list[dict[str, Any]]:
    """The files that nodes come from, with their lines; [] for one that is not there to be read."""
    files = []
    for file, used in sorted(strings.lines.items(), key=lambda item: -len(item[1])):
        lines = _lines_of(Path(file))
        if len(lines) > _MOST_SOURCE_LINES:
            first, last = max(0, min(used) - _AROUND), max(used) + _AROUND
            lines = [line if first <= number < last else "" for number, line in enumerate(lines[:last], 1)]
        files.append({"file": strings.place(file), "lines": lines, "used": sorted(used)})
    return files


def _lines_of(path: Path) -> list[str]:
    """The lines of a file of Python code, [] if there is none.

    Names may come from a file that somebody else saved: what else lies at such a place is not shown.
    """
    try:
        if path.suffix != ".py" or not path.is_file() or path.stat().st_size > _LARGEST_SOURCE:
            return []
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, ValueError):  # ValueError for names that no file can have
        return []
