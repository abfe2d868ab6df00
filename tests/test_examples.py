"""Runs every example in a short mode: it learns something, and stays short enough to be read in one go."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from c_programs import c_compiler, run, tool

import kaun as kn
from kaun import nx

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TRAINING_IN_C = ROOT / "examples" / "aot_c"
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
    images = np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32)
    moved = example("digits_cnn").shifted(images, np.random.default_rng(1))
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for image, around in zip(moved, padded, strict=True):
        places = [(i, j) for i in range(3) for j in range(3) if (around[0, i : i + 8, j : j + 8] == image[0]).all()]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_the_transformer_reaches_pytorchs_validation_loss_from_equal_weights_and_batches() -> None:
    # Written by tests/reference/compare_char_transformer.py, which trains the same model in PyTorch.
    record = json.loads((ROOT / "tests" / "reference" / "char_transformer.json").read_text())
    transformer = example("char_transformer")
    alphabet = "".join(sorted(set(record["text"])))
    codes = np.array([alphabet.index(character) for character in record["text"]])
    training, validation = np.split(codes, [int(0.9 * len(codes))])
    trainer, state = transformer.learn(training, len(alphabet), record["steps"])
    loss = transformer.mean_loss(trainer, state, transformer.windows(validation, 16, seed=2))
    assert loss == pytest.approx(record["torch"], rel=0.02)
    # The example as it is, on its own text, in the run that made the file.
    assert record["full"]["steps"] >= 500
    assert record["full"]["kaun"] == pytest.approx(record["full"]["torch"], rel=0.02)


def test_the_transformer_does_not_see_later_characters() -> None:
    transformer = example("char_transformer")
    model = transformer.make_model(10, width=16)
    with nx.rng.run(seed=0):
        variables = kn.layer.init(model)
    codes = np.arange(8)[None] % 10
    changed = codes.copy()
    changed[0, 5:] = 9
    one, other = (kn.layer.apply(model, variables, x, training=False)[0].numpy() for x in (codes, changed))
    np.testing.assert_allclose(one[:, :5], other[:, :5], atol=1e-5)
    assert np.abs(one[:, 5:] - other[:, 5:]).max() > 1e-2


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


# Training from C


@pytest.fixture(scope="module")
def training_in_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, copied, with what its Makefile makes."""
    folder = tmp_path_factory.mktemp("example") / "aot_c"
    make, _ = tool("make", "gmake"), c_compiler()
    shutil.copytree(TRAINING_IN_C, folder, ignore=shutil.ignore_patterns("exported", "train"))
    run(make, f"PYTHON={sys.executable}", "CFLAGS=-O2 -std=c99 -Wall -Wextra -pedantic -Werror", folder=folder)
    return folder


def test_a_c_program_learns_to_read_digits_and_says_how_well(training_in_c: Path) -> None:
    lines = run("./train", 4, folder=training_in_c).splitlines()
    assert len(lines) == 4 and float(lines[-1].split("test accuracy ")[1]) > 0.93
    assert run("./train", 4, 2, folder=training_in_c).splitlines() == lines


def test_the_c_program_is_c_plus_plus_too(training_in_c: Path) -> None:
    words = ["-std=c++11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Iexported", "-x", "c++", "-c", "train.c"]
    run(tool("c++", "g++", "clang++"), *words, "-o", "train.object", folder=training_in_c)


def test_the_c_program_without_data_says_what_is_missing(training_in_c: Path, tmp_path: Path) -> None:
    done = subprocess.run([training_in_c / "train"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "run export.py first" in done.stderr


def test_the_script_of_the_c_example_is_short_and_says_how_to_run_it() -> None:
    text = (TRAINING_IN_C / "export.py").read_text()
    assert len(text.splitlines()) < 100 and "`python examples/aot_c/export.py`" in text
    assert "make" in (TRAINING_IN_C / "README.md").read_text()
