"""Mistakes planted in the compiler, one at a time: `kn.debug` names the op and the pass or stage in each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from miscompiled import Patch

FOLDER = Path(__file__).resolve().parent / "miscompilations"
PATCHES = [Patch.read(path) for path in sorted(FOLDER.glob("*.patch"))]
ids = [patch.path.stem for patch in PATCHES]


def run(patch: Patch, *options: str) -> dict[str, Any]:
    """What `miscompiled.py` tells of a mistake."""
    script = Path(__file__).resolve().parent / "miscompiled.py"
    done = subprocess.run([sys.executable, script, patch.path, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("name", "ops", "elements"),
    [
        ("a_tail_of_lanes_is_one_short", ["exp"], 20),
        ("adding_a_negative_swaps_the_operands", ["neg", "add"], 2),
        ("padding_is_read_from_its_neighbours", ["pad"], 4),
        ("gradient_of_cos_has_the_wrong_sign", ["cos"], 1),
    ],
)
def test_a_failure_is_reduced_to_the_op_and_few_elements(name: str, ops: list[str], elements: int) -> None:
    (patch,) = (patch for patch in PATCHES if patch.path.stem == name)
    found = run(patch, "--reduce")
    assert found["ops"] == ops
    assert 0 < found["elements"] <= elements


@pytest.mark.parametrize("patch", PATCHES, ids=ids)
def test_the_mistake_is_found_and_named(patch: Patch) -> None:
    found = run(patch)
    assert found["bisect"] == patch.finds, found["text"]
    # A gradient is a graph like any other, which compiled code and interpreter compute alike: that it is the gradient
    # of something is for `bisect` to check.
    assert found["compare"] == ("" if patch.finds.startswith("gradient ") else patch.finds), found["text"]


@pytest.mark.parametrize("patch", PATCHES, ids=ids)
def test_without_the_mistake_the_same_program_is_right(patch: Patch) -> None:
    import numpy as np

    import kaun as kn
    from kaun import nx

    draw = np.random.default_rng(0)
    arguments = [nx.asarray(draw.normal(size=shape).astype(np.float32)) for shape in eval(f"({patch.on},)")]
    found = kn.debug.bisect(kn.jit(eval(patch.run, {"kn": kn, "nx": nx})), *arguments)
    assert found, found


def test_every_part_of_the_compiler_has_mistakes_and_there_are_at_least_twenty() -> None:
    stages = [patch.finds.split()[0] for patch in PATCHES]
    assert len(PATCHES) >= 20
    compiler = ("gradient", "simplified", "scheduled", "llvm", "program")
    assert all(stages.count(stage) >= 3 for stage in compiler)
    # What ran may be another program than the one that was compiled.
    assert set(stages) == {*compiler, "run"}
