"""The examples run, and learn what they say they do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_xor_learns_exclusive_or(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("xor").main(steps=200) == [0, 1, 1, 0]
    assert "1 xor 1 = 0" in capsys.readouterr().out


def test_digits_mlp_learns_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("digits_mlp").main(epochs=4) > 0.9
    assert "epoch  4  loss 0." in capsys.readouterr().out
