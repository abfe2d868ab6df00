"""`kaun demo` learns to read digits, says what it did, and compiles nothing the second time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kaun.tools import demo
from rich.console import Console

import kaun as kn


def run_demo(folder: Path, *arguments: str) -> str:
    """What the demo prints in a process of its own, whose kernels are kept in `folder`."""
    environment = {**os.environ, "KAUN_CACHE_DIR": str(folder / "kernels")}
    command = [sys.executable, "-m", "kaun.tools.command", "demo", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def fact(text: str, name: str) -> str:
    found = re.search(rf"^  {name}  +(.*)$", text, re.MULTILINE)
    assert found, text
    return found[1]


def number(text: str) -> float:
    return float(text.split()[0].rstrip(",").replace(",", ""))


def test_it_reads_97_percent_and_compiles_nothing_the_second_time(tmp_path: Path) -> None:
    first = run_demo(tmp_path)
    assert number(fact(first, "test accuracy")) >= 97.0
    compiled = number(fact(first, "compiled"))
    assert compiled > 0
    second = run_demo(tmp_path)
    assert number(fact(second, "compiled")) == 0
    assert number(fact(second, "cache hits")) == compiled
    # The same seed trains the same network, whether its kernels were compiled or loaded.
    assert fact(second, "test accuracy") == fact(first, "test accuracy")
    assert fact(second, "checkpoint") == str(tmp_path / demo.DEFAULT_CHECKPOINT)
    layers, _ = demo.network("mlp")
    with kn.nx.rng.run(seed=0):
        fresh = kn.layer.init(layers)
    loaded = fresh.with_params(kn.checkpoint.load(tmp_path / demo.DEFAULT_CHECKPOINT, like=fresh.params))
    _, _, x_test, y_test = kn.datasets.digits(flatten=True)
    logits, _ = kn.layer.apply(layers, loaded, x_test, training=False)
    assert f"{100 * kn.metric.accuracy(logits, y_test):.1f} %" in fact(first, "test accuracy")


def test_a_log_gets_plain_lines(tmp_path: Path) -> None:
    text = run_demo(tmp_path, "--epochs", "1")
    assert "\x1b" not in text and "\r" not in text
    assert len([line for line in text.splitlines() if "steps/s" in line and "22/22" in line]) == 1


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_both_networks_reach_97_percent_from_other_seeds(model: str, seed: int, tmp_path: Path) -> None:
    quiet = Console(file=(tmp_path / "log").open("w"))
    path = str(tmp_path / "digits.safetensors")
    result = demo.run(quiet, model=model, seed=seed, epochs=demo.EPOCHS[model], checkpoint=path)
    assert result.accuracy >= 0.97


def test_a_checkpoint_that_cannot_be_written_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    path = str(tmp_path / "file" / "digits.safetensors")
    assert demo.main(["--epochs", "1", "--checkpoint", path]) == 1
    text = capsys.readouterr().out
    assert f"Could not write the checkpoint {path}" in text
    assert "not written" in text
