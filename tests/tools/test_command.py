"""The `kaun` command finds its tools, explains itself and ends cleanly."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kaun.tools import command, demo

from kaun import train


def test_help_names_every_tool(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and what in text for name, what in command.TOOLS.items())


def test_without_a_tool_it_explains_itself_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "kaun demo" in capsys.readouterr().out


@pytest.mark.parametrize("name", command.TOOLS)
def test_every_tool_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert f"kaun {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["demo", "--model", "vgg"], ["demo", "--epochs", "0"], ["demo", "--seed", "-1"],
     ["cache", "burn"], ["bench", "--only", "everything"], ["bench", "--rounds", "0"],
     ["bench", "--peer-python", "/no/such/python"]],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_an_interruption_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> demo.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert command.main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."


@pytest.mark.parametrize("step", [1, 2, 9], ids=["while it compiles", "in the first step", "in a later one"])
def test_the_demo_is_interrupted_in_any_of_its_steps(
    step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    count = 0
    make = train._Loop.step

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt
        return make(*arguments)

    monkeypatch.setattr(train._Loop, "step", interrupted)
    assert command.main(["demo", "--epochs", "1", "--checkpoint", str(tmp_path / "file")]) == 130
    assert capsys.readouterr().err.strip().endswith("Interrupted.") and not (tmp_path / "file").exists()


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = "import sys; from kaun.tools import cache, command\n"
    program += "def broken(*_, **__): raise BrokenPipeError\n"
    program += "cache.main = broken\nsys.exit(command.main(['cache']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_tools_are_modules_with_a_main() -> None:
    for name in command.TOOLS:
        assert callable(importlib.import_module(f"kaun.tools.{name}").main)
