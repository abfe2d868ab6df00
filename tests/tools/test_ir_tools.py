"""The tools that print, change and run IR text at the shell."""

from __future__ import annotations

import importlib
import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from kaun.compiler.ir import dtypes, parse_graph
from kaun.compiler.pipeline import STAGES
from kaun.tools import command

import kaun as kn
from kaun import nx
from kaun.debug import reproducer

GRAPH = """\
graph(%0: float32[2, 3] "x", %1: float32[2, 3] "y") {
  %2 = constant(value=1.0, dtype=float32, shape=(2, 3)) : float32[2, 3]
  %3 = mul(%0, %2) : float32[2, 3]
  %4 = add(%3, %1) : float32[2, 3]
  return %4
}
"""
MODULE = """\
import kaun as kn
from kaun import nx

def product():
    return kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((4, 8)), kn.spec((8, 3)))

@kn.jit
def doubled(x):
    return x * 2

def called():
    doubled(nx.ones(3))
    return doubled

def trained():
    trainer = kn.train.make(model=kn.layer.linear(in_features=2, out_features=1), optimizer=kn.optim.sgd(lr=0.1))
    with nx.rng.run(seed=0):
        state = kn.train.init(trainer)
    kn.train.step(trainer, state, nx.ones((4, 2)), loss=lambda output: nx.mean(output))
    return trainer

def nothing():
    return 3

def needs(argument):
    return argument
"""
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module, a graph and inputs for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.py").write_text(MODULE)
    (tmp_path / "g.ir").write_text(GRAPH)
    np.savez(tmp_path / "named.npz", x=X, y=X + 1)
    np.savez(tmp_path / "ordered.npz", X, X + 1)
    return tmp_path


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(list(arguments)) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("stage", [*STAGES, "assembly"])
@pytest.mark.parametrize("target", ["made.py:product", "made.py:called", "made.py:trained", "g.ir"])
def test_ir_prints_every_stage_of_whatever_can_be_looked_at(
    stage: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(capsys, "ir", target, "--stage", stage)
    start = {"fused": "launch 0", "scheduled": "kernel(", "llvm": "; ModuleID", "assembly": "\t"}.get(stage, "graph(")
    assert text.startswith(start) and text.endswith("\n")


@pytest.mark.parametrize("target", ["made.py:product", "made.py:trained", "g.ir"])
def test_lines_of_llvm_ir_say_what_they_are_for_and_are_the_same_otherwise(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = output(capsys, "ir", target, "--stage", "llvm")
    told = output(capsys, "ir", target, "--stage", "llvm", "--lines")
    assert re.sub(r"(?<=.)  ; [\w :.]+$", "", told, flags=re.MULTILINE) == plain
    if target == "made.py:product":
        assert re.search(r" fdiv .*  ; tanh made.py:5$", told, flags=re.MULTILINE)
        assert re.search(r" load <.*  ; dot_general made.py:5$", told, flags=re.MULTILINE)


def test_lines_of_assembly_say_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "ir", "made.py:product", "--stage", "assembly", "--lines")
    assert re.search(r"div.*  \S+ tanh made.py:5$", told, flags=re.MULTILINE)
    assert re.search(r"call|bl\b.*  \S+ dot_general made.py:5$", told, flags=re.MULTILINE)


def test_only_code_has_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--lines goes with --stage llvm or assembly, got fused" in refusal(
        capsys, "ir", "made.py:product", "--stage", "fused", "--lines"
    )


def test_ir_names_modules_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a_module_of_this_test.py").write_text(MODULE)
    assert "tanh" in output(capsys, "ir", "a_module_of_this_test:product")


def test_ir_reads_saved_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kn.compile(lambda x: nx.tanh(x) * 2, kn.spec((4, 8))).save(folder / "saved.kaun")
    text = output(capsys, "ir", "saved.kaun")
    assert [node.op.name for node in parse_graph(text).nodes] == ["input", "tanh", "constant", "mul"]
    assert output(capsys, "check", "saved.kaun").startswith("All 4 nodes agree. Gradient rules were not looked at")
    assert "saved.kaun has no part 'step'; it has call" in refusal(capsys, "ir", "saved.kaun", "--part", "step")
    damaged = bytearray((folder / "saved.kaun").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (folder / "damaged.kaun").write_bytes(damaged)
    assert "damaged.kaun" in refusal(capsys, "ir", "damaged.kaun")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no.ir", "there is no file 'no.ir'"),
        ("no.py:f", "there is no file 'no.py'"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("made.py:absent", "made.py has no function 'absent'; it has product"),
        ("made.py:nothing", "made.py:nothing gave int, expected what kn.compile or kn.train.compile returns"),
        ("made.py:needs", "made.py:needs has to be a function without arguments"),
        ("made.py", "made.py is a program; name a function in it, as in made.py:step"),
        ("named.npz", "it holds no `graph`, so it is no reproducer"),
    ],
)
def test_what_cannot_be_looked_at_is_explained(
    target: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refusal(capsys, "ir", target)


@pytest.mark.parametrize("tool", ["ir", "check", "bisect", "profile", "run", "opt"])
def test_refusals_are_one_line(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, tool, "no.py:f")
    assert text == f"kaun {tool}: there is no file 'no.py'\n"
    assert "usage:" in refusal(capsys, tool, "made.py:product", "--no-such-option")


MISTAKES = {
    "import no_such_package\n": ["line 1, in <module>", "No module named 'no_such_package'"],
    "def f(:\n": ["line 1", "SyntaxError: "],
    "def f():\n    return g()\ndef g():\n    return 1 / 0\n": ["line 2, in f", "line 4, in g", "ZeroDivisionError: "],
    """import kaun as kn
from kaun import nx

def f():
    model = kn.layer.sequential([
        kn.layer.relu(),
        kn.layer.linear(in_features=7, out_features=5),
    ])
    trainer = kn.train.make(model=model, optimizer=kn.optim.sgd(lr=0.1))
    return kn.train.compile(trainer, x=kn.spec((4, 6)), y=kn.spec((4, 5)), loss=kn.loss.mse)
""": ["line 10, in f", "(in layer 1)\n", "layer 1 was made at ", "wrong.py:7\n"],
}


@pytest.mark.parametrize("module", MISTAKES)
@pytest.mark.parametrize("target", ["wrong.py:f", "wrong:f"])
def test_mistakes_of_the_user_show_the_lines_of_the_user_alone(
    module: str, target: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    (folder / "wrong.py").write_text(module)
    importlib.invalidate_caches()
    try:
        assert command.main(["ir", target]) == 1
    finally:
        sys.modules.pop("wrong", None)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    text = capsys.readouterr().err
    assert text.startswith("kaun ir: wrong") and all(part in text for part in MISTAKES[module]), text
    files = {line.split('"')[1] for line in text.splitlines() if line.startswith('  File "')}
    assert {Path(file).name for file in files} <= {"wrong.py"}, text


def test_exports_are_sent_to_the_tool_that_shows_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["aot", "build", "made.py:product", "--out", "exported", "--target", "cortex-m7"]) == 0
    (description,) = (folder / "exported").glob("*.json")
    (folder / "empty").mkdir()
    for tool in ("ir", "check", "profile", "run"):
        for name in ("exported", f"exported/{description.name}"):
            assert f"{name} is an export; `kaun aot inspect {name}` shows it" in refusal(capsys, tool, name)
        assert "empty is a folder; expected module:function" in refusal(capsys, tool, "empty")


def test_opt_runs_the_named_passes(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "opt", "g.ir", "--pass", "simplify")
    assert [node.op.name for node in parse_graph(text).nodes] == ["input", "input", "add"]
    assert output(capsys, "opt", "g.ir", "--pass", "eliminate_dead_code") == GRAPH
    assert "computes mul add" in output(capsys, "opt", "g.ir", "--pass", "fuse")
    assert "computes add" in output(capsys, "opt", "g.ir", "--pass", "standard,fuse")
    assert "program {" in output(capsys, "opt", "g.ir", "--pass", "standard,schedule")
    assert "define void" in output(capsys, "opt", "g.ir", "--pass", "emit")


def test_opt_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(GRAPH))
    assert "add(%0, %1)" in output(capsys, "opt", "-", "--pass", "simplify")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["g.ir", "--pass", "simplfy"], "unknown pass 'simplfy'; expected one of canonicalise"),
        (["g.ir", "--pass", "fuse,simplify"], "'simplify' cannot follow 'fuse', which does not make a graph"),
        (["bad.ir"], "bad.ir: text.parse_graph: line 3, column 8: unknown op 'mull'\n"),
    ],
)
def test_opt_explains_what_it_refuses(
    arguments: list[str], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.ir").write_text(GRAPH.replace("mul(", "mull("))
    assert reason in refusal(capsys, "opt", *arguments)


@pytest.mark.parametrize("tool", ["run", "check"])
def test_what_no_memory_can_hold_is_told_in_one_line(
    tool: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 10**13
    line = f"%0 = constant(value=1.0, dtype=float32, shape=({size},)) : float32[{size}]"
    (folder / "huge.ir").write_text(f"graph() {{\n  {line}\n  return %0\n}}\n")
    assert command.main([tool, "huge.ir"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"kaun {tool}: there is not enough memory: ") and err.count("\n") == 1


def test_what_never_ends_is_not_read_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/dev/zero is longer than" in refusal(capsys, "run", "/dev/zero")


def test_opt_tells_what_a_graph_has_to_go_through_before_it_is_fused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.ir").write_text(
        'graph(%0: float32[1, 1, 5] "x", %1: float32[1, 1, 3] "w") {\n'
        "  %2 = conv_general(%0, %1, strides=(1,), padding=((1, 1),), lhs_dilation=(1,), rhs_dilation=(1,), groups=1)"
        " : float32[1, 1, 5]\n  return %2\n}\n"
    )
    assert command.main(["opt", "c.ir", "--pass", "simplify,fuse"]) == 1
    assert "try --pass standard,fuse" in capsys.readouterr().err
    assert "kernel 0" in output(capsys, "opt", "c.ir", "--pass", "standard,fuse")


@pytest.mark.parametrize("inputs", ["named.npz", "ordered.npz"])
@pytest.mark.parametrize("backend", ["compiled", "interpreter"])
def test_run_computes_a_graph(
    inputs: str, backend: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output(capsys, "run", "g.ir", "--inputs", inputs, "--backend", backend, "--output", "out.npz") == ""
    with np.load(folder / "out.npz") as found:
        np.testing.assert_array_equal(found["output_0"], 2 * X + 1)


@pytest.mark.parametrize("backend", ["compiled", "interpreter"])
def test_run_computes_a_program_and_a_kernel(
    backend: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(capsys, "ir", "g.ir", "--stage", "scheduled")
    (folder / "program.ir").write_text(text)
    (folder / "kernel.ir").write_text(text.partition("\nprogram {")[0])
    np.savez(folder / "inputs.npz", input_0=X, input_1=X, buffer_0=X.reshape(-1), buffer_1=X.reshape(-1))
    shown = output(capsys, "run", "program.ir", "--inputs", "inputs.npz", "--backend", backend)
    assert shown.startswith("output_0 float32[2, 3]\n[[ 0.  2.  4.]")
    shown = output(capsys, "run", "kernel.ir", "--inputs", "inputs.npz", "--backend", backend)
    assert shown == "buffer_2 float32[6]\n[ 0.  2.  4.  6.  8. 10.]\n"


PRODUCTS = """\
graph(%0: float32[64, 64], %1: float32[64, 64]) {
  %2 = dot_general(%0, %1, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,)) : float32[64, 64]
  %3 = tanh(%2) : float32[64, 64]
  %4 = dot_general(%3, %1, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,)) : float32[64, 64]
  %5 = reduce_max(%4, axes=(1,)) : float32[64]
  return %5
}
"""


@pytest.mark.parametrize(
    ("graph", "old", "new", "reason"),
    [
        (PRODUCTS, r"scratch \d+", "scratch 8", "the program has 8 bytes of scratch memory, its kernels need"),
        (GRAPH, r"kernel 0 in 1 ", "kernel 0 in 9 ", "kernel 0 is run in 9 chunks, on this machine it has 1"),
        (PRODUCTS, r"input 1, arena 16384", "input 1, arena 64", "kernel 1 writes"),
        (PRODUCTS, r"arena 0\)", "arena 4096000)", "expected places that hold"),
    ],
)
def test_programs_that_would_write_elsewhere_are_not_run(
    graph: str, old: str, new: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "products.ir").write_text(graph)
    text = output(capsys, "ir", "products.ir", "--stage", "scheduled")
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    (folder / "changed.ir").write_text(changed)
    shape = parse_graph(graph).inputs[0].shape
    np.savez(folder / "inputs.npz", input_0=np.ones(shape, np.float32), input_1=np.ones(shape, np.float32))
    shown = refusal(capsys, "run", "changed.ir", "--inputs", "inputs.npz")
    assert shown.startswith("kaun run: changed.ir: ") and reason in shown


def test_run_replays_a_reproducer_bit_for_bit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = parse_graph(GRAPH.replace("float32", "bfloat16"))
    arrays = tuple(array.astype(dtypes.bfloat16.numpy) for array in (X, X + 0.3))
    kept = reproducer.Reproducer(graph, arrays).save("failure")
    assert kept.name == "failure.npz"
    again = reproducer.load("failure.npz")
    assert [array.tobytes() for array in again.inputs] == [array.tobytes() for array in arrays]
    shown = [output(capsys, "run", "failure.npz", "--backend", each) for each in ("compiled", "interpreter")]
    assert shown[0] == shown[1] and shown[0].startswith("output_0 bfloat16[2, 3]")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": X}, "input 1 of the graph is missing: expected `y` or `input_1`, found x"),
        ({"x": X, "y": X.T}, "`y` is float32[3, 2], the graph's input is float32[2, 3]"),
        ({"x": X, "y": X.astype(np.float64)}, "`y` is float64[2, 3], the graph's input is float32[2, 3]"),
        ({"x": X, "y": np.zeros((2000, 3), np.float32)}, "`y` takes 24,128 bytes, expected at most 24"),
        ({"x": X, "y": np.array([object()])}, "`y` cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_run_refuses_inputs_that_do_not_fit(
    arrays: dict[str, np.ndarray], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "inputs.npz", **arrays)
    assert reason in refusal(capsys, "run", "g.ir", "--inputs", "inputs.npz")


def test_run_asks_for_inputs_that_were_not_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "g.ir has 2 inputs; give their values with --inputs X.npz" in refusal(capsys, "run", "g.ir")
    (folder / "text.npz").write_text("not an archive")
    assert "it is no .npz file" in refusal(capsys, "run", "g.ir", "--inputs", "text.npz")
    assert "it is no .npz file" in refusal(capsys, "run", "text.npz")
