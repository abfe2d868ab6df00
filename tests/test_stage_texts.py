"""The text of every stage of every program that the examples run: printed, parsed and printed again, it is the same."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
from kaun.compiler.ir import Graph, key, parse_graph, print_graph
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program_text import print_program
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.text import print_kernel

from kaun import observe
from kaun.debug import native

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SHORT: dict[str, dict[str, int]] = {
    "xor": {"steps": 1}, "digits_mlp": {"epochs": 1}, "digits_cnn": {"epochs": 1},
    "char_transformer": {"steps": 2, "written": 1},
}  # fmt: skip
PYTHON = sorted(path.stem for path in FOLDER.glob("*.py"))


@cache
def compilations(name: str) -> tuple[Compilation, ...]:
    """Every program that an example runs, once for each structure."""
    found: dict[str, Graph] = {}

    def remember(graph: Graph, inputs: Any) -> None:
        found.setdefault(key(graph), graph)

    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with observe.observing(remember):
        spec.loader.exec_module(module)
        module.main(**SHORT[name])
    assert found
    return tuple(native.host_compilation(graph) for graph in found.values())


examples = pytest.mark.parametrize("name", PYTHON)


@examples
@pytest.mark.parametrize("stage", ["traced", "differentiated", "simplified"])
def test_graphs_print_and_parse(name: str, stage: str) -> None:
    for compilation in compilations(name):
        text = compilation.stage(stage)
        assert print_graph(parse_graph(text)) == text


@examples
def test_programs_and_kernels_print_and_parse(name: str) -> None:
    for compilation in compilations(name):
        text = compilation.stage("scheduled")
        program = native.program_of(text)
        assert print_program(program) == text
        for module in program.kernels:
            assert print_kernel(parse_kernel(module.text)) == module.text


@examples
def test_llvm_reads_what_is_emitted(name: str) -> None:
    seen: set[str] = set()
    for compilation in compilations(name):
        program = compilation.program
        for module in (*program.kernels, program.entry):
            if module.text not in seen:
                seen.add(module.text)
                parsed = llvm.parse_assembly(module.emit("function"), llvm.create_context())
                parsed.verify()
                # What LLVM prints of it, LLVM reads again as the same.
                again = llvm.parse_assembly(str(parsed), llvm.create_context())
                assert str(again) == str(parsed)


def test_every_example_is_run() -> None:
    assert set(SHORT) == set(PYTHON)
