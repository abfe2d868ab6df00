"""What the `kaun` command says where files, names, disks and readers fail it: one line, without the usage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kaun.runtime import saved_file
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


def test_a_pipe_that_a_file_was_asked_to_be_stays_one(folder: Path) -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        saved_file.replace_file("pipe", [b"written ", b"through"])
        assert reader.stdout is not None and reader.stdout.read() == b"written through"
    assert Path("pipe").is_fifo() and sorted(os.listdir()) == ["model.py", "pipe"]


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


def examples(tool: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The examples in a tool's help, in their order."""
    with pytest.raises(SystemExit):
        command.main([tool, "--help"])
    _, _, after = capsys.readouterr().out.partition("\nexample")
    return [line.strip() for line in after.splitlines() if line.startswith("  kaun ")]


def test_help_ends_with_examples_and_those_that_need_no_file_of_yours_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.py").unlink()
    Path("examples").symlink_to(Path(__file__).resolve().parent.parent.parent / "examples")
    ran = []
    for tool in ("ir", "opt", "run", "check", "bisect", "reduce", "viz", "profile", "plot"):
        lines = examples(tool, capsys)
        assert lines, f"kaun {tool} --help has no examples"
        for line in lines:
            words = line.split()
            target = words[2].partition(":")[0]
            # A transformer takes long, as does `bisect` where `check` goes before it; a browser is not for us to open.
            if tool == "bisect" or target.startswith("kaun.") or "--open" in words or not Path(target).exists():
                continue
            done = subprocess.run(
                ["bash", "-c", line.replace("kaun", f"{sys.executable} -m kaun.tools.command", 1)],
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}: {done.stderr}"
            ran.append(line)
    assert len(ran) >= 6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("profile model.py:product --seconds -1", "got -1, expected at least 0 seconds"),
        ("profile model.py:product --seconds nan", "got nan, expected at least 0 seconds"),
        ("profile model.py:product --top -1", "got -1, expected at least 0"),
        ("reduce model.npz --tries -1", "got -1, expected at least 0"),
        ("bench --seconds inf", "got inf, expected at least 0 seconds"),
        ("opt model.py:product --pass nothing", "unknown pass 'nothing'"),
        ("viz model.py", "model.py is a program; name a function in it, as in model.py:step"),
        ("viz :", "got ':', expected module:function or FILE.py:function"),
    ],
)
def test_arguments_that_mean_nothing_are_told(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_code_that_ends_the_program_is_a_failure_of_that_code(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ends.py").write_text("import sys\ndef step():\n    sys.exit()\n")
    assert command.main(["ir", "ends.py:step"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("kaun ir: ends.py:step failed:\n") and "sys.exit()" in err and "tools" not in err


def test_an_interrupt_in_the_users_code_ends_without_a_traceback(folder: Path) -> None:
    Path("sleeps.py").write_text(
        "import signal\ndef step():\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
    )
    done = kaun("viz sleeps.py:step", "")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "Interrupted.")
