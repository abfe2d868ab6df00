"""The `kaun` command finds its tools, explains itself and ends cleanly."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from kaun.tools import command, demo


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


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = "import sys; from kaun.tools import cache, command\n"
    program += "def broken(*_, **__): raise BrokenPipeError\n"
    program += "cache.main = broken\nsys.exit(command.main(['cache']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_tools_are_modules_with_a_main() -> None:
    for name in command.TOOLS:
        assert callable(importlib.import_module(f"kaun.tools.{name}").main)
