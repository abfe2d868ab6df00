"""What the `kaun` command says where files, names, disks and readers fail it: one line, without the usage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kaun.tools import command, files

MODEL = """\
import kaun as kn

def product():
    return kn.compile(lambda x: kn.nx.tanh(x @ x), kn.spec((4, 4)))

def nothing():
    return 3

limit = 5

if __name__ == "__main__":
    raise SystemExit("not to be run")
"""
TARGETS = ("viz", "profile", "check", "bisect", "ir", "aot build --out made")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    return tmp_path


def refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that is printed."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    (line,) = err.splitlines()
    name = " ".join(arguments.split()[: 2 if arguments.startswith("aot") else 1])
    assert line.startswith(f"kaun {name}: "), line
    return line


@pytest.mark.parametrize("tool", TARGETS)
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere.py:product", "there is no file 'nowhere.py'"),
        ("no_such_module:product", "there is no module 'no_such_module'"),
        ("model.py:products", "model.py has no function 'products'; it has product, nothing"),
        ("model.py:nothing", "model.py:nothing gave int, expected what kn.compile or kn.train.compile returns"),
    ],
)
def test_a_target_that_leads_nowhere_is_told_in_one_line(
    tool: str, target: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(f"{tool} {target}", capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("viz nothing.npz", "there is no file 'nothing.npz'"),
        ("reduce nothing.npz", "cannot read nothing.npz: No such file or directory"),
        ("run nothing.txt", "cannot read nothing.txt: No such file or directory"),
        ("aot inspect nothing", "cannot read nothing: No such file or directory"),
        ("aot build model.py:product --out made --target pdp-11", "pdp-11"),
        ("bench --only everything", "everything"),
        ("bench --show nothing.json", "cannot read nothing.json: No such file or directory"),
        ("bench --peer-python /no/such/python", "cannot run /no/such/python: No such file or directory"),
        ("profile model.py:product --part loss", "model.py:product has no part 'loss'; it has call"),
    ],
)
def test_files_and_names_that_are_not_there_are_told_in_one_line(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(arguments, capsys)
    assert told in line and "[Errno" not in line


def test_a_log_that_is_not_there_cannot_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plot", "nothing"]) == 1
    assert capsys.readouterr().err == "kaun plot: there is no folder 'nothing'\n"


def test_a_stage_that_is_none_is_named_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["ir", "model.py:product", "--stage", "fusion"])
    assert ended.value.code == 2
    assert "'fusion'" in (err := capsys.readouterr().err) and "simplified" in err


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ("viz model.py:product --no-times --out no/where.html", "no/where.html"),
        ("profile model.py:product --seconds 0 --trace no/where.json", "no/where.json"),
        ("profile model.py:product --seconds 0 --plot no/where.png", "no/where.png"),
        ("aot build model.py:product --out model.py", "model.py"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(
    arguments: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments.split()) == 1
    *_, line = capsys.readouterr().err.splitlines()
    name = "kaun aot" if arguments.startswith("aot") else f"kaun {arguments.split()[0]}"
    assert line.startswith(f"{name}: cannot write {place}: ") and "Errno" not in line


@full
def test_a_full_disk_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main("viz model.py:product --no-times --out /dev/full".split()) == 1
    assert capsys.readouterr().err == "kaun viz: cannot write /dev/full: No space left on device\n"


def kaun(arguments: str, output: str) -> subprocess.CompletedProcess[str]:
    """`kaun ...` in a shell, with its output sent somewhere; the status is the command's own."""
    command = ["bash", "-c", f"set -o pipefail; {sys.executable} -m kaun.tools.command {arguments} {output}"]
    # Without a buffer argparse writes help itself, and looks away where that fails.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@full
@pytest.mark.parametrize("arguments", ["ir model.py:product --stage llvm", "--help", "ir --help", "--version"])
def test_output_that_does_not_fit_is_an_error_of_one_line(arguments: str) -> None:
    done = kaun(arguments, "> /dev/full")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("kaun") and line.endswith("cannot write the output: No space left on device")


@pytest.mark.parametrize("arguments", ["ir model.py:product --stage assembly", "aot targets", "--help"])
def test_a_reader_that_has_gone_is_not_told_about_it(arguments: str) -> None:
    done = kaun(arguments, "| (exec true)")
    assert done.stderr == "" and done.returncode in (0, 1)


def test_written_files_are_told_with_size_and_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    Path("made").write_bytes(b"x" * 2048)
    files.wrote("made", "look at it")
    assert capsys.readouterr().err == "Wrote made (2.0 KiB): look at it\n"
    # A program that reads our output is given the name alone.
    files.wrote("made", "look at it", is_result=True)
    assert capsys.readouterr().out == "made\n"


def test_side_files_of_a_profile_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main("profile model.py:product --seconds 0 --plot roof.png --trace trace.json".split()) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Wrote roof.png \(\d+\.\d KiB\): .*", first)
    assert re.fullmatch(r"Wrote trace.json \(.*\): open it in https://ui.perfetto.dev or .*", second)
