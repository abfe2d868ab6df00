"""Lines of loop IR know the nodes they come from, whatever fusion and the passes behind it did to them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from kaun.compiler.ir import ops
from kaun.compiler.schedule.chain_passes import without_keeps
from kaun.compiler.schedule.collapse import all_values, collapse, roots_of
from kaun.compiler.schedule.loop_ir import ChainKernel, Kernel, LoopKernel, Origin
from kaun.compiler.schedule.origins import line_nodes
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.text import line_origins, print_kernel
from schedule_examples import attentive, convolutional, normalised, perceptron, trace

from kaun import nx

EXAMPLES = (perceptron, convolutional, normalised, attentive)
# Lines that only open and close loops and blocks.
_STRUCTURE = re.compile(r"kernel\(.*|parallel.*|for .*\{|once \{|chain .*\{|pass \{|rows \{|image .*|\}")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_every_line_that_computes_loads_or_stores_comes_from_a_node_of_its_kernel(example):
    for scheduled in example().compilation.kernels:
        known = {*scheduled.nodes, *scheduled.reads, *scheduled.outputs}
        text = print_kernel(scheduled.kernel).splitlines()
        for line, origin in zip(text, line_origins(scheduled.kernel), strict=True):
            if _STRUCTURE.fullmatch(line.strip()):
                assert origin is None, line
            else:
                assert origin in known or origin.op.kind == "leaf", (line, origin)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_what_was_parsed_comes_from_its_line(example):
    for scheduled in example().compilation.kernels:
        text = print_kernel(scheduled.kernel)
        parsed = line_origins(parse_kernel(text))
        for number, (line, origin) in enumerate(zip(text.splitlines(), parsed, strict=True), 1):
            words = line.split()
            if words[0] in ("left", "right", "keep"):
                assert text.splitlines()[origin - 1].split()[0] == words[1]
            elif words[0] == "column":
                assert "accumulator" in text.splitlines()[origin - 1]
            elif words[0] == "}" and len(words) > 1:
                assert "product over" in text.splitlines()[origin - 1]
            else:
                assert origin == (None if _STRUCTURE.fullmatch(line.strip()) else number), line


def _origins(kernel: Kernel) -> set[Origin]:
    return {value.origin for value in all_values(roots_of(kernel))} | set(line_origins(kernel))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_what_code_is_made_of_comes_from_the_same_nodes(example):
    for scheduled in example().compilation.kernels:
        kernel = scheduled.kernel
        if isinstance(kernel, LoopKernel):
            assert _origins(collapse(kernel)) == _origins(kernel)
        if isinstance(kernel, ChainKernel):
            assert _origins(without_keeps(kernel)) == _origins(kernel)


def test_kernels_with_one_text_have_nodes_of_their_own():
    x = np.ones((8, 16), np.float32)
    compilation = trace(lambda x: (nx.exp(x) / 3.0, nx.exp(x + x[::-1].sum()) / 3.0), x).compilation
    by_text = {}
    for scheduled in compilation.kernels:
        by_text.setdefault(print_kernel(scheduled.kernel), []).append(line_nodes(scheduled))
    for tables in by_text.values():
        for number, line in enumerate(tables[0]):
            assert [node.op for node in line] == [node.op for node in tables[-1][number]]


def test_a_softmax_is_told_apart_line_by_line():
    (scheduled,) = trace(lambda x: nx.softmax(x), np.ones((8, 100), np.float32)).compilation.kernels
    found = {}
    for line, nodes in zip(print_kernel(scheduled.kernel).splitlines(), line_nodes(scheduled), strict=True):
        for node in nodes:
            found.setdefault(node.op.name, []).append(line.strip())
    assert all("exp(" in line for line in found["exp"]) and found["exp"]
    assert any("reduce_max" in line for line in found["reduce_max"])
    assert any("reduce_sum" in line for line in found["reduce_sum"])
    assert any("store" in line for line in found["div"])


def test_a_node_that_only_moves_is_where_what_it_moves_is_loaded():
    (scheduled,) = trace(lambda x: nx.exp(x.T), np.ones((8, 16), np.float32)).compilation.kernels
    text = print_kernel(scheduled.kernel).splitlines()
    (permute,) = [node for node in scheduled.nodes if node.op is ops.permute]
    found = [line for line, nodes in zip(text, line_nodes(scheduled), strict=True) if permute in nodes]
    assert len(found) == 1 and "load" in found[0]
