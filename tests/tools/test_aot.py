"""`kaun aot` exports what a function returns, shows what is in exports, and says what is wrong with its arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kaun.runtime import saved_file
from kaun.runtime.presets import PRESETS
from kaun.runtime.saved_file import Section
from kaun.tools import command, subject

MODULE = """\
import kaun as kn
from kaun import nx

def product():
    return kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((4, 8)), kn.spec((8, 3)))

compiled = product()

def step():
    model = kn.layer.sequential([
        kn.layer.linear(in_features=6, out_features=5), kn.layer.relu(), kn.layer.linear(in_features=5, out_features=3),
    ])
    trainer = kn.train.make(model=model, optimizer=kn.optim.adamw(lr=1e-3))
    with nx.rng.run(seed=0):
        state = kn.train.init(trainer)
    loss = kn.loss.cross_entropy_sparse
    return kn.train.compile(trainer, x=kn.spec((4, 6)), y=kn.spec(4, kn.int32), loss=loss, state=state)

def number():
    return 3

def needs(argument):
    return argument

def fails():
    raise ValueError("from the model")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ahead.py").write_text(MODULE)
    return tmp_path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(["aot", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_build_writes_a_folder_and_says_how_large_everything_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["aot", "build", "ahead.py:step", "--out", "made", "--target", "cortex-m7"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("made: step step for arm-cortex-m7-32\n")
    for file in ("step.o", "step.h", "step.json", "main.c", "CMakeLists.txt"):
        size = (folder / "made" / file).stat().st_size
        assert f"{size:,} bytes" in next(line for line in printed.splitlines() if line.split()[0] == file)
    described = json.loads((folder / "made" / "step.json").read_text())
    assert described["target"]["cpu"] == "cortex-m7"
    assert f"{described['state']['bytes']:,} bytes of the caller's memory" in printed


def test_build_says_that_there_are_no_numbers_to_start_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "without.py").write_text(MODULE.replace(", state=state)", ")"))
    assert command.main(["aot", "build", "without.py:step", "--out", "made", "--target", "wasm32"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("no numbers to start from: compile with `kn.train.compile(..., state=)`, or")
    assert "step.write_state" in line
    assert command.main(["aot", "build", "ahead.py:step", "--out", "made", "--target", "wasm32"]) == 0
    assert "no numbers" not in capsys.readouterr().out


def test_build_takes_what_is_compiled_itself_and_all_options(folder: Path) -> None:
    arguments = ["--out", "made", "--name", "act", "--threads", "1"]
    assert command.main(["aot", "build", "ahead.py:compiled", *arguments]) == 0
    header = (folder / "made" / "act.h").read_text()
    assert "int kaun_act_run(" in header and "#define KAUN_ACT_MOST_THREADS 1" in header
    assert command.main(["aot", "build", "ahead.py:step", "--out", "other", "--initial", "file"]) == 0
    assert (folder / "other" / "step.state").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ahead.py:number"], "gave int, expected what kn.compile or kn.train.compile returns"),
        (["ahead.py:needs"], "has to be a function without arguments: missing a required argument"),
        (["ahead.py:missing"], "ahead.py has no function 'missing'; it has product, "),
        (["nowhere.py:step"], "there is no file 'nowhere.py'"),
        (["no_such_module:step"], "there is no module 'no_such_module'"),
        (["step"], "got 'step', expected module:function or FILE.py:function"),
        (["ahead.py:product", "--target", "cortex-m8"], "did you mean 'cortex-m7'?"),
        (["ahead.py:product", "--target", "cortex-m7", "--threads", "2"], "expected 1 for thumbv7em"),
        (["ahead.py:product", "--initial", "file"], "there is no state to start from"),
        (["ahead.py:product", "--name", "9lives"], "got the name '9lives'"),
    ],
)
def test_build_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in complaint(capsys, "build", *arguments, "--out", "made")


def test_errors_of_the_model_itself_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["aot", "build", "ahead.py:fails", "--out", "made"]) == 1
    assert capsys.readouterr().err.endswith("ValueError: from the model\n")


def test_inspect_shows_signature_memory_kernels_and_operations(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["aot", "build", "ahead.py:step", "--out", "made", "--target", "linux-riscv64"])
    capsys.readouterr()
    assert command.main(["aot", "inspect", "made"]) == 0
    shown = capsys.readouterr().out
    described = json.loads(Path("made/step.json").read_text())
    assert "step.json: training step step\n" in shown
    assert "riscv64-generic-rv64-32 (riscv64-unknown-linux-gnu), 64-bit addresses" in shown
    assert "run(x: float32[4, 6], y: int32[4]) -> loss: float32[] and the state\n" in shown
    assert "predict(x: float32[4, 6]) -> output: float32[4, 3]\n" in shown
    for leaf in described["state"]["leaves"]:
        assert any(leaf["path"] in line and f"{leaf['bytes']:,}" in line for line in shown.splitlines())
    run = described["functions"]["run"]
    assert f"{run['flops']:,} operations" in shown and f"arena {run['memory']['arena']:,}" in shown
    section = shown[shown.index("\nrun(") : shown.index("\npredict(")]
    assert len(section.strip().splitlines()) == 4 + len(run["kernels"])
    assert command.main(["aot", "inspect", "made/step.json"]) == 0
    assert capsys.readouterr().out == shown


def test_inspect_shows_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["aot", "build", "ahead.py:product", "--out", "made", "--name", "product"])
    capsys.readouterr()
    assert command.main(["aot", "inspect", "made"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("product.json: function ") and "state" not in shown
    assert "float32[4, 8]" in shown and "-> result: float32[4, 3]\n" in shown


def test_inspect_shows_a_saved_file_for_whatever_machine_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = subject.value_of("ahead.py:step")
    step.save("here.kaun")
    assert command.main(["aot", "inspect", "here.kaun"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("here.kaun: training step step\n") and "with numbers to start from" in shown
    assert "step(x: float32[4, 6], y: int32[4]) -> loss: float32[] and the state\n" in shown
    assert "init(key: uint32[2], first: uint32[]) -> " in shown
    assert f"{step.cost.flops:,} operations" in shown and f"arena {step.memory.arena:,}" in shown
    assert shown.count(" kernel  launch  chunks ") >= 4  # a table for each function
    # Cut short, and changed in the middle.
    content = (folder / "here.kaun").read_bytes()
    (folder / "cut.kaun").write_bytes(content[:-1])
    assert "cut short" in complaint(capsys, "inspect", "cut.kaun")
    (folder / "bad.kaun").write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    assert "damaged" in complaint(capsys, "inspect", "bad.kaun")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is not a file that `save`"),
        (b"GIF89a", "this is not a file that `save`"),
        (b"{", "is not the description of an export"),
        (b"{}", "has format None, expected 1"),
        (b'{"format": 2}', "has format 2, expected 1"),
        (b'{"format": 1}', "is not the description of an export: KeyError('target')"),
        (b'{"format": 1, "target": 3, "versions": {}, "kind": "step", "name": ""}', "is not the description"),
        (b"{\xff}", "is not the description of an export"),
    ],
)
def test_inspect_trusts_no_file(
    content: bytes, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "some.json").write_bytes(content)
    assert message in complaint(capsys, "inspect", "some.json")


def test_names_in_a_file_are_shown_and_do_nothing_to_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["aot", "build", "ahead.py:step", "--out", "made"])
    described = Path("made/step.json")
    described.write_bytes(described.read_bytes().replace(b"bias", rb"bi\u001b[2J\nas\u202e\ud800"))
    subject.value_of("ahead.py:step").save("here.kaun")
    sections = saved_file.read("here.kaun")
    about = sections["about"].content().replace(b"bias", rb"bi\u001b[2J\nas\u202e\ud800")
    saved_file.write("here.kaun", {**sections, "about": Section.packed(about)})
    capsys.readouterr()
    for file in ("made", "here.kaun"):
        assert command.main(["aot", "inspect", file]) == 0
        shown = capsys.readouterr().out
        assert r"params.0.bi\x1b[2J\nas\u202e\ud800" in shown
        assert all(line.isprintable() for line in shown.splitlines())
    wrong = about.replace(b'"versions":{', rb'"versions":{"\u001b[2J":3,')
    saved_file.write("wrong.kaun", {**sections, "about": Section.packed(wrong)})
    told = complaint(capsys, "inspect", "wrong.kaun")
    assert r"about.versions.\x1b[2J: got '3', expected a text" in told and told.replace("\n", "").isprintable()


def test_a_saved_file_is_exported_for_its_machine_or_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject.value_of("ahead.py:step").save("here.kaun")
    assert command.main(["aot", "build", "here.kaun", "--out", "made"]) == 0
    assert command.main(["aot", "build", "ahead.py:step", "--out", "same"]) == 0
    assert (folder / "made/step.o").read_bytes() == (folder / "same/step.o").read_bytes()
    capsys.readouterr()
    assert command.main(["aot", "build", "here.kaun", "--out", "other", "--target", "cortex-m7"]) == 0
    assert "for arm-cortex-m7-32\n" in capsys.readouterr().out
    (folder / "cut.kaun").write_bytes((folder / "here.kaun").read_bytes()[:-1])
    assert "kn.load: cut.kaun: the file has" in complaint(capsys, "build", "cut.kaun", "--out", "made")


def test_inspect_asks_for_the_folder_of_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["aot", "build", "ahead.py:step", "--out", "made", "--target", "cortex-m7"])
    assert "made/step.o is a part of an export; give the folder: made" in complaint(capsys, "inspect", "made/step.o")


def test_lines_of_inspect_are_no_wider_than_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    subject.value_of("ahead.py:step").save("here.kaun")
    capsys.readouterr()
    assert command.main(["aot", "inspect", "here.kaun"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("init(key") for line in lines)


def test_inspect_says_that_a_folder_is_none_of_its(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    assert "is a folder with 0 descriptions" in complaint(capsys, "inspect", "empty")
    assert "No such file" in complaint(capsys, "inspect", "nothing")


def test_targets_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["aot", "targets"]) == 0
    shown = capsys.readouterr().out
    assert all(any(line.startswith(f"{name} ") for line in shown.splitlines()) for name in PRESETS)
    assert "aarch64-linux-gnu,cpu=cortex-a76,+dotprod" in shown
