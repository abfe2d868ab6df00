"""Every pass does to the graphs in `passes/` what is written beside them, and keeps their meaning."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler import passes
from kaun.compiler.ir import Graph, dtypes, parse_graph, verify
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.program_run import run_program
from kaun.tools import opt
from pass_files import PassFile, files

from kaun.debug import native

FILES = files()
names = pytest.mark.parametrize("file", FILES, ids=[file.path.stem for file in FILES])


def arguments(graph: Graph) -> list[np.ndarray]:
    """Small integers: sums of them are exact in any order."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 3, node.shape).astype(node.dtype.numpy) for node in graph.inputs]


@names
def test_what_comes_out_is_what_the_file_says(file: PassFile) -> None:
    assert file.result() == file.expected


@names
def test_the_graph_is_well_formed_and_the_file_says_what_it_shows(file: PassFile) -> None:
    verify(file.graph)
    assert file.comment


@names
def test_what_comes_out_has_the_same_meaning(file: PassFile) -> None:
    given = arguments(file.graph)
    expected = evaluate(file.graph, given)
    if file.passes[-1] == "schedule":
        found = run_program(native.program_of(file.expected), given)
    elif file.passes[-1] in opt.LATER:
        found = native.run_program(native.host_compilation(file.graph, file.passes[:-1]).program, given)
    else:
        found = evaluate(parse_graph(file.expected), given)
    for one, other in zip(found, expected, strict=True):
        if other.dtype == dtypes.bfloat16.numpy:
            one, other = one.astype(np.float32), other.astype(np.float32)
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_there_is_a_file_for_every_pass() -> None:
    assert {name for file in FILES for name in file.passes} >= {*passes.PASSES, "fuse", "schedule"}
