"""A line of the terminal tells what a tool does now, and nothing of it is left, or seen where no terminal is."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kaun.runtime import activity
from kaun.tools import status

MODEL = """\
import kaun as kn

def product():
    print("made by the user")
    return kn.compile(lambda x: kn.nx.tanh(x @ x), kn.spec((4, 4)))
"""
VIZ = ["running model.py:product", "emitting kernel 1 of 2", "compiling kernel 2 of 2", "writing out kernel 1 of 1"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What stands for a terminal now; for both streams."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setenv("TERM", "xterm")
    return made


def seen(written: str) -> list[str]:
    """What stands on the lines of a terminal in the end."""
    lines = [""]
    for piece in re.split(r"(\r\x1b\[K|\n)", written):
        if piece == "\n":
            lines.append("")
        elif piece.startswith("\r"):
            lines[-1] = ""
        else:
            lines[-1] += piece
    return lines


def test_the_line_says_what_is_done_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with status.shown("looking"):
        assert seen(terminal.getvalue()) == ["looking"]
        activity.now("compiling kernel 1 of 2")
        assert seen(terminal.getvalue()) == ["compiling kernel 1 of 2"]
    activity.now("something else")
    assert seen(terminal.getvalue()) == [""]
    assert sys.stdout is terminal and sys.stderr is terminal


def test_what_others_print_stands_above_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with status.shown("looking"):
        print("of the user")
        activity.now("compiling")
        print("a warning", file=sys.stderr)
        print("without an end", end="")
        activity.now("writing")
    assert seen(terminal.getvalue()) == ["of the user", "a warning", "without an end", ""]


def test_a_long_line_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with status.shown("x" * 500 + "\ny"):
        assert seen(terminal.getvalue()) == ["x" * 78 + "…"]


def test_it_goes_away_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with pytest.raises(KeyboardInterrupt), status.shown("looking"):
        raise KeyboardInterrupt
    assert seen(terminal.getvalue()) == [""] and not activity._listeners


@pytest.mark.parametrize("kind", ["no terminal", "dumb"])
def test_nothing_is_shown_where_it_could_not_be_written_over(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    if kind == "dumb":
        monkeypatch.setattr(sys, "stderr", Terminal())
    with status.shown("looking"):
        activity.now("compiling")
    assert capsys.readouterr().err == "" and (kind != "dumb" or sys.stderr.getvalue() == "")  # type: ignore[attr-defined]


def on_a_terminal(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """(status, standard output, what a terminal got of standard error) of `kaun ...`, with an empty cache."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "KAUN_CACHE_DIR": str(folder / "cache"), "TERM": "xterm"}
    command = [sys.executable, "-m", "kaun.tools.command", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=theirs) as running:
        os.close(theirs)
        got = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that nobody has the other end any more
                break
            if not piece:
                break
            got += piece
        assert running.stdout is not None
        out = running.stdout.read().decode()
    os.close(ours)
    return running.returncode, out, got.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["viz", "model.py:product", "--no-times"], VIZ),
        (["profile", "model.py:product", "--seconds", "0"], ["running it for 0 s", "measuring what this machine"]),
        (["check", "model.py:product"], ["comparing the graph before and after pass", "comparing kernel 1 of 1"]),
        (["bisect", "model.py:product"], ["comparing gradient rules: dot_general", "comparing kernel 1 of 1"]),
        (["ir", "model.py:product", "--stage", "llvm"], ["making the stage llvm"]),
    ],
)  # fmt: skip
def test_tools_tell_a_terminal_what_they_do(arguments: list[str], told: list[str], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    code, out, shown = on_a_terminal(arguments, tmp_path)
    assert code == 0 and all(text in shown for text in told), shown
    assert seen(shown) == [""]
    assert out.splitlines()[0] == "made by the user"
