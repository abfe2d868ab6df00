"""Runs every example in a short mode: it learns something, and stays short enough to be read in one go."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHORT = {"xor": ("--steps", 2), "digits_mlp": ("--epochs", 1), "digits_cnn": ("--epochs", 1),
         "char_transformer": ("--steps", 2)}  # fmt: skip


def example(name: str) -> ModuleType:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_xor_is_learned() -> None:
    assert example("xor").main(steps=300) == [0, 1, 1, 0]


def test_the_perceptron_learns_to_read_digits_and_its_file_does_too() -> None:
    assert example("digits_mlp").main(epochs=4) > 0.88


def test_the_convolutional_network_learns_to_read_shifted_digits() -> None:
    assert example("digits_cnn").main(epochs=4) > 0.88


def test_shifted_images_are_the_images_moved_by_at_most_a_pixel() -> None:
    import numpy as np

    images = np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32)
    moved = example("digits_cnn").shifted(images, np.random.default_rng(1))
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for image, around in zip(moved, padded, strict=True):
        places = [(i, j) for i in range(3) for j in range(3) if (around[0, i : i + 8, j : j + 8] == image[0]).all()]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_shorter_than_a_hundred_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 100


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_from_the_command_line_as_its_docstring_says(path: Path, tmp_path: Path) -> None:
    assert f"`python examples/{path.name}`" in path.read_text()
    option, value = SHORT[path.stem]
    done = subprocess.run(
        [sys.executable, path, option, str(value)], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
