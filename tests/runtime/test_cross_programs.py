"""Programs compiled for other machines compute there what the interpreter computes here, beside nobody's memory.

Each machine is emulated and its compiler is the system's; where one is missing, its tests are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from cross_machines import MACHINES, run_graphs
from graph_strategies import Example, assert_outputs_agree, graph_from_seed
from guarded_programs import FAMILIES
from kaun.compiler.ir import print_graph
from kaun.compiler.ir.interpreter import evaluate
from schedule_examples import MODELS

# Families of examples that take an emulator a second or less.
QUICK = ("movement", "reductions", "scatters", "narrow_single_lanes", "rows_of_padding", "rows_read_again")


def check(name: str, examples: Sequence[Example], folder: Path) -> None:
    machine = MACHINES[name]
    if machine.missing:
        pytest.skip(machine.missing)
    results = run_graphs(machine, [e.graph for e in examples], [e.arguments for e in examples], folder)
    for number, (example, outputs) in enumerate(zip(examples, results, strict=True)):
        try:
            assert_outputs_agree(example, outputs, evaluate(example.graph, example.arguments))
        except AssertionError as error:
            error.add_note(f"example {number}\n{print_graph(example.graph)}")
            raise


@pytest.mark.parametrize("name", MACHINES)
def test_random_graphs_agree_with_the_interpreter(name: str, tmp_path: Path) -> None:
    check(name, [graph_from_seed(seed) for seed in range(40)], tmp_path)


@pytest.mark.parametrize("name", MACHINES)
def test_awkward_kernels_agree_with_the_interpreter(name: str, tmp_path: Path) -> None:
    check(name, [example for family in QUICK for example in FAMILIES[family]()], tmp_path)


@pytest.mark.parametrize("name", MACHINES)
def test_training_steps_agree_with_the_interpreter(name: str, tmp_path: Path) -> None:
    # Gradients that are zero but for rounding become steps of full size in Adam, so the model with such is left out.
    steps = [model() for model_name, model in MODELS.items() if model_name != "convolutional"]
    examples = [Example(s.graph, s.arguments, tuple(_tolerance(s.graph, s.arguments))) for s in steps]
    check(name, examples, tmp_path)


def _tolerance(graph, arguments):
    """A hundred-thousandth of the largest number of each output, or of 1."""
    for output in evaluate(graph, arguments):
        yield 1e-5 * max(1.0, float(abs(output.astype("float64")).max())) if output.dtype.kind == "f" else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MACHINES)
def test_every_family_of_examples_agrees_with_the_interpreter(name: str, family: str, tmp_path: Path) -> None:
    check(name, list(FAMILIES[family]()), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 5))
@pytest.mark.parametrize("name", MACHINES)
def test_hundreds_of_random_graphs_agree_with_the_interpreter(name: str, hundred: int, tmp_path: Path) -> None:
    check(name, [graph_from_seed(seed) for seed in range(100 * hundred, 100 * hundred + 100)], tmp_path)
