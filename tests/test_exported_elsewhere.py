"""Training steps exported for other machines train there as in Python: other processors, a bare board, Node.js."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cross_machines import CORTEX_M7, HERE, MACHINES, Machine, succeed
from kaun.runtime.export import Exported

import kaun as kn
from kaun import nx

Array = Any
LINUX = ("raspberry-pi-4", "linux-riscv64", "linux-riscv64,+v")
WEB = ("wasm32", "wasm32,-simd128")


@dataclass(frozen=True)
class Problem:
    """A compiled step for the digits, batches of them, and what Python makes of both."""

    step: Any
    batches: Sequence[tuple[Array, Array]]
    losses: Array
    state: kn.train.State

    def assert_agree(self, losses: Sequence[float], file: Path) -> None:
        """Losses and parameters, to 1e-5."""
        assert len(losses) == len(self.losses)
        np.testing.assert_allclose(losses, self.losses, rtol=1e-5, atol=1e-5)
        assert self.losses[-1] < self.losses[0] / 2
        found = self.step.read_state(file)
        for one, other in zip(kn.ptree.leaves(found.vars.params), kn.ptree.leaves(self.state.vars.params), strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-5)


def problem(hidden: int, batch: int, steps: int, optimizer: kn.optim.Transformation, distinct: int) -> Problem:
    """`distinct` batches, over and over."""
    model = kn.layer.sequential([
        kn.layer.linear(in_features=64, out_features=hidden), kn.layer.relu(),
        kn.layer.linear(in_features=hidden, out_features=10),
    ])  # fmt: skip
    trainer = kn.train.make(model=model, optimizer=optimizer)
    with nx.rng.run(seed=3):
        state = kn.train.init(trainer)
    step = kn.train.compile(
        trainer, x=kn.spec((batch, 64)), y=kn.spec(batch, kn.int32), loss=kn.loss.cross_entropy_sparse, state=state
    )
    data = kn.datasets.digits(flatten=True)
    images, labels = data.x_train.numpy(), data.y_train.numpy().astype(np.int32)
    starts = [batch * (number % distinct) for number in range(steps)]
    batches = [(images[s : s + batch], labels[s : s + batch]) for s in starts]
    losses = []
    for x, y in batches:
        value, state = step(state, x, y)
        losses.append(float(value))
    return Problem(step, batches, np.array(losses), state)


@pytest.fixture(scope="module")
def classifier() -> Problem:
    return problem(hidden=128, batch=64, steps=200, optimizer=kn.optim.adamw(lr=1e-3), distinct=20)


@pytest.fixture(scope="module")
def small_classifier() -> Problem:
    return problem(hidden=32, batch=16, steps=60, optimizer=kn.optim.sgd(lr=0.05, momentum=0.9), distinct=8)


def machine_or_skip(name: str) -> Machine:
    machine = MACHINES[name]
    if machine.missing:
        pytest.skip(machine.missing)
    return machine


def printed_losses(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"^step \d+: loss (\S+)", text, re.MULTILINE)]


@pytest.mark.parametrize("name", LINUX)
def test_main_c_trains_as_python_on_other_processors(name: str, classifier: Problem, tmp_path: Path) -> None:
    machine = machine_or_skip(name)
    classifier.step.export(tmp_path, target=name)
    machine.build(tmp_path, ["main.c", "step.o"])
    (tmp_path / "data").write_bytes(b"".join(x.tobytes() + y.tobytes() for x, y in classifier.batches))
    printed = machine.start(tmp_path, "data", "--threads", "2", "--save", "step.state")
    classifier.assert_agree(printed_losses(printed), tmp_path / "step.state")


def write_data(problem: Problem, distinct: int, folder: Path) -> None:
    """data.h for `train_on_board.c`."""
    batches = problem.batches[:distinct]
    size = len(batches[0][1])

    def rows(arrays: Sequence[Array]) -> str:
        return ",\n".join(f"{{{', '.join(map(str, array.ravel().tolist()))}}}" for array in arrays)

    (folder / "data.h").write_text(
        f"#include <stdint.h>\nenum {{ STEPS = {len(problem.batches)}, BATCHES = {distinct} }};\n"
        f"static const float x[BATCHES][{size * 64}] = {{{rows([x for x, _ in batches])}}};\n"
        f"static const int32_t y[BATCHES][{size}] = {{{rows([y for _, y in batches])}}};\n"
    )


def test_a_cortex_m7_trains_as_python_in_static_memory(
    small_classifier: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = machine_or_skip("cortex-m7")
    exported = small_classifier.step.export(tmp_path, target="cortex-m7")
    write_data(small_classifier, 8, tmp_path)
    machine.build(tmp_path, [str(HERE / "train_on_board.c"), "step.o"], ["-std=c11", "-Wall", "-Werror", "-I."])
    printed = machine.start(tmp_path)
    small_classifier.assert_agree(printed_losses(printed), tmp_path / "step.state")
    flash, ram = sizes(tmp_path, exported)
    with capsys.disabled():
        print(f"\ncortex-m7: MLP 64-32-10, batch 16: {flash:,} bytes of flash, {ram:,} bytes of RAM")
    assert flash < 64 << 10 and ram < 64 << 10


def sizes(folder: Path, exported: Exported) -> tuple[int, int]:
    """Bytes of the object's code and constants, and of the memory that its caller brings."""
    text = succeed(["arm-none-eabi-size", "step.o"], folder).splitlines()[1].split()
    assert text[1:3] == ["0", "0"], "nothing in the object is written to"
    return int(text[0]), exported.state_bytes + exported.workspace_bytes


def test_an_object_for_a_microcontroller_needs_nothing_but_memcpy_and_memset(
    small_classifier: Problem, tmp_path: Path
) -> None:
    machine_or_skip("cortex-m7")
    small_classifier.step.export(tmp_path, target="cortex-m7")
    command = ["arm-none-eabi-gcc", *CORTEX_M7, "-nostdlib", "-r", "step.o", "-lgcc", "-o", "linked.o"]
    succeed(command, tmp_path)
    needed = set(succeed(["arm-none-eabi-nm", "-u", "linked.o"], tmp_path).split()) - {"U"}
    assert needed <= {f"__aeabi_mem{what}{size}" for what in ("cpy", "set", "clr") for size in ("", "4", "8")}


@pytest.mark.parametrize("name", WEB)
def test_node_trains_as_python(name: str, classifier: Problem, tmp_path: Path) -> None:
    machine_or_skip(name)
    exported = classifier.step.export(tmp_path, target=name)
    assert {"step.wasm", "step.mjs"} <= set(exported.files)
    xs, ys = ([batch[part].ravel().tolist() for batch in classifier.batches[:20]] for part in (0, 1))
    (tmp_path / "data.json").write_text(json.dumps({"steps": len(classifier.batches), "x": xs, "y": ys}))
    printed = succeed(["node", str(HERE / "train_in_node.mjs")], tmp_path)
    classifier.assert_agree(printed_losses(printed), tmp_path / "step.state")


def node(folder: Path, code: str) -> str:
    """What JavaScript prints that has `step`, loaded from the export in the folder."""
    start = (
        'import { readFileSync } from "node:fs"; import { load } from "./step.mjs";\n'
        'const step = await load(readFileSync("step.wasm"));\n'
    )
    (folder / "test.mjs").write_text(start + code)
    return succeed(["node", "test.mjs"], folder)


@pytest.fixture(scope="module")
def web(small_classifier: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine_or_skip("wasm32")
    folder = tmp_path_factory.mktemp("web")
    small_classifier.step.export(folder, target="wasm32")
    return folder


def test_javascript_predicts_and_evaluates_as_python(small_classifier: Problem, web: Path) -> None:
    code = """
    const x = Float32Array.from({ length: 16 * 64 }, (_, i) => (i % 17) / 16);
    const y = Int32Array.from({ length: 16 }, (_, i) => i % 10);
    console.log(JSON.stringify([...step.predict({ x }).output, step.evaluate({ x, y }).loss[0]]));
    """
    found = json.loads(node(web, code))
    x, y = (np.arange(16 * 64) % 17 / 16).astype(np.float32).reshape(16, 64), np.arange(16, dtype=np.int32) % 10
    step = small_classifier.step
    expected = [*step.predict(step.initial, x).numpy().ravel(), float(step.evaluate(step.initial, x, y))]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_javascript_says_what_is_wrong_and_keeps_the_state(web: Path) -> None:
    code = """
    const x = new Float32Array(16 * 64), y = new Int32Array(16);
    const attempt = (what) => { try { what(); console.log("done"); } catch (error) { console.log(error.message); } };
    attempt(() => step.run({ x }));
    attempt(() => step.run({ x: new Float32Array(3), y }));
    attempt(() => step.leaf("params.9"));
    const kept = step.save();
    step.run({ x, y });
    kept[kept.length - 1] ^= 1;
    attempt(() => step.restore(kept));
    attempt(() => step.restore(kept.subarray(1)));
    console.log(step.leaf("step")[0]);
    kept[kept.length - 1] ^= 1;
    step.restore(kept);
    console.log(step.leaf("step")[0]);
    """
    first, second, third, *others = node(web, code).splitlines()
    assert first == "step.run: got no elements of y, expected 16"
    assert second == "step.run: got 3 elements of x, expected 1024"
    assert third.startswith("step.leaf: got params.9, expected one of params.0.weight,")
    assert others == [
        "step: not a state of this model, not whole, or not of this size",
        "step: not a state of this model, not whole, or not of this size",
        "1",
        "0",
    ]


def test_a_module_without_numbers_trains_only_after_they_are_restored(
    small_classifier: Problem, tmp_path: Path
) -> None:
    machine_or_skip("wasm32")
    files = small_classifier.step.export(tmp_path, target="wasm32", initial="file").files
    assert "step.state" in files
    code = """
    const x = new Float32Array(16 * 64), y = new Int32Array(16);
    const attempt = (what) => { try { what(); console.log("done"); } catch (error) { console.log(error.message); } };
    for (const what of [() => step.run({ x, y }), () => step.predict({ x }), () => step.save()]) attempt(what);
    attempt(() => step.restore(readFileSync("step.o")));
    attempt(() => step.leaf("step"));
    step.restore(readFileSync("step.state"));
    attempt(() => step.run({ x, y }));
    """
    none = "step: no numbers to start from: call restore(bytes) first"
    wrong = "step: not a state of this model, not whole, or not of this size"
    assert node(tmp_path, code).splitlines() == [none, none, none, wrong, none, "done"]


def test_a_module_imports_nothing(web: Path) -> None:
    code = 'console.log(WebAssembly.Module.imports(await WebAssembly.compile(readFileSync("step.wasm"))).length);'
    assert node(web, code).strip() == "0"


def test_a_function_without_a_state_is_called_from_javascript(tmp_path: Path) -> None:
    machine_or_skip("wasm32")

    def scaled(x: nx.Tensor, by: nx.Tensor) -> tuple[nx.Tensor, nx.Tensor]:
        return x * by, nx.sum(x)

    kn.compile(scaled, kn.spec((3, 5)), kn.spec(())).export(tmp_path, target="wasm32", name="step")
    code = "console.log(JSON.stringify(step.run({ value_0: new Float32Array(15).fill(2), by: [1.5] })));"
    names = json.loads((tmp_path / "step.json").read_text())["functions"]["run"]
    x, by = (leaf["identifier"] for leaf in names["inputs"])
    code = code.replace("value_0", x).replace("by:", f"{by}:")
    results = json.loads(node(tmp_path, code))
    product, total = (results[leaf["identifier"]] for leaf in names["outputs"])
    assert list(product.values()) == [3.0] * 15 and list(total.values()) == [30.0]


def test_without_a_linker_there_is_an_object_to_link(
    small_classifier: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    exported = small_classifier.step.export(tmp_path, target="wasm32")
    assert "step.o" in exported.files and "step.wasm" not in exported.files
    (told,) = exported.missing
    assert told.startswith("step.wasm is made by wasm-ld, LLVM's linker")
