"""Measures the exported digits step for every target and prints the table of docs/aot.md.

`python -m kaun.tools.aot_table`, from a checkout only: the step is that of `examples/aot_c`, and what starts the
microcontroller's board is in `tests/cross`. What is needed to run a target (a compiler for it, an emulator, Node.js,
Chromium) may be missing; its row says so.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaun.runtime.presets import PRESETS
from kaun.runtime.target import host, named

ROOT = Path(__file__).resolve().parent.parent
CROSS = ROOT / "tests" / "cross"
STEPS = 400

_TIMED_C = """
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "step.h"
static _Alignas(64) unsigned char state[KAUN_STEP_STATE_SIZE], workspace[KAUN_STEP_WORKSPACE_SIZE(1)];
static float x[KAUN_STEP_RUN_X_COUNT];
static int32_t y[KAUN_STEP_RUN_Y_COUNT];
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
int main(void) {
    for (int i = 0; i < KAUN_STEP_RUN_X_COUNT; i++) x[i] = (float)(i * 7919 % 17) / 17;
    for (int i = 0; i < KAUN_STEP_RUN_Y_COUNT; i++) y[i] = i % 10;
    float loss;
    const kaun_step_run_inputs inputs = {x, y};
    const kaun_step_run_outputs outputs = {&loss};
    double best = 1e9;
    kaun_step_init(state);
    for (int turn = 0; turn < 5; turn++) {
        double start = now();
        for (int i = 0; i < STEPS; i++) if (kaun_step_run(state, &inputs, &outputs, workspace)) return 1;
        double seconds = (now() - start) / STEPS;
        if (seconds < best) best = seconds;
    }
    printf("%.9f\\n", best);
    return 0;
}
"""

_BOARD_C = """
#include <stdio.h>
#include "step.h"
static _Alignas(64) unsigned char state[KAUN_STEP_STATE_SIZE], workspace[KAUN_STEP_WORKSPACE_SIZE(1)];
static float x[KAUN_STEP_RUN_X_COUNT];
static int32_t y[KAUN_STEP_RUN_Y_COUNT];
int main(void) {
    for (int i = 0; i < KAUN_STEP_RUN_X_COUNT; i++) x[i] = (float)(i * 7919 % 17) / 17;
    float loss;
    const kaun_step_run_inputs inputs = {x, y};
    const kaun_step_run_outputs outputs = {&loss};
    volatile unsigned long *timer = (unsigned long *)0xE000E010; /* counts down, once in 40 instructions */
    kaun_step_init(state);
    timer[1] = 0xFFFFFF; timer[2] = 0; timer[0] = 5;
    unsigned long before = timer[2];
    if (kaun_step_run(state, &inputs, &outputs, workspace)) return 1;
    printf("%lu\\n", 40 * ((before - timer[2]) & 0xFFFFFF));
    return 0;
}
"""

_TIMED_JS = """
const x = new Float32Array(64 * 64).map((_, i) => ((i * 7919) % 17) / 17), y = new Int32Array(64).map((_, i) => i % 10);
let best = Infinity;
for (let turn = 0; turn < 5; turn++) {
  const start = performance.now();
  for (let i = 0; i < STEPS; i++) step.run({ x, y });
  best = Math.min(best, (performance.now() - start) / STEPS / 1000);
}
"""


@dataclass(frozen=True)
class Row:
    """What was measured of a target; `speed` is in words, also why there is none."""

    name: str
    object_bytes: int
    state_bytes: int
    workspace_bytes: int
    speed: str


def main() -> int:
    """Print the table. The exit status is 0, whatever could not be run here."""
    print("| target | object | state | workspace | steps a second |\n| --- | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("host", *PRESETS):
            row = measured(name, Path(temporary) / name)
            sizes = (row.object_bytes, row.state_bytes, row.workspace_bytes)
            shown = f"this machine, {host().name}" if name == "host" else f"`{name}`"
            print(f"| {shown} | {' | '.join(f'{size / 1000:.0f} kB' for size in sizes)} | {row.speed} |", flush=True)
    return 0


def measured(name: str, folder: Path) -> Row:
    """Export the step of the example in C for a target, and run it."""
    spec = importlib.util.spec_from_file_location("export_to_c", ROOT / "examples" / "aot_c" / "export.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        module.main(folder, name)
    described = json.loads((folder / "step.json").read_text())
    return Row(
        name=name,
        object_bytes=(folder / "step.o").stat().st_size,
        state_bytes=described["state"]["bytes"],
        workspace_bytes=described["workspace"]["one_thread"],
        speed="; ".join(way(folder) for way in _ways(name)),
    )


def _ways(name: str) -> list[Callable[[Path], str]]:
    """How a target can be run here."""
    target = named(name)
    if target.architecture == "wasm32":
        return [_in_node, _in_chromium]
    if target.system == "none":
        return [_on_board]
    if target.architecture != host().architecture:
        return [_emulated(target.architecture)]
    lacking = target.vector_bits > host().vector_bits
    return [lambda folder: "wider vectors than here" if lacking else _native(folder)]


def _rate(seconds: str | float, remark: str = "") -> str:
    return f"{1 / float(seconds):,.0f}{f' ({remark})' if remark else ''}"


def _native(folder: Path) -> str:
    if not (folder / "step.so").exists():
        return "no C compiler"
    return _rate(_timed_program(folder, ["cc"], ["./timed"]), "one thread")


def _timed_program(folder: Path, compiler: list[str], command: list[str], steps: int = STEPS) -> str:
    (folder / "timed.c").write_text(_TIMED_C)
    build = [*compiler, "-O2", "-std=gnu11", f"-DSTEPS={steps}", "timed.c", "step.o", "-pthread", "-o", "timed"]
    _output(build, folder)
    return _output(command, folder)


def _emulated(architecture: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        compiler, emulator = f"{architecture}-linux-gnu-gcc", f"qemu-{architecture}"
        if not (shutil.which(compiler) and shutil.which(emulator)):
            return f"needs {compiler} and {emulator}"
        command = [emulator, "-L", f"/usr/{architecture}-linux-gnu", "./timed"]
        return _rate(_timed_program(folder, [compiler], command, STEPS // 20), "emulated by qemu-user")

    return run


def _on_board(folder: Path) -> str:
    if not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")):
        return "needs arm-none-eabi-gcc and qemu-system-arm"
    (folder / "counted.c").write_text(_BOARD_C)
    processor = ["-mcpu=cortex-m7", "-mthumb", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"]
    board = ["-T", str(CROSS / "mps2_an500.ld"), str(CROSS / "mps2_an500.c"), "-nostartfiles", "--specs=rdimon.specs"]
    _output(["arm-none-eabi-gcc", *processor, "-O2", *board, "counted.c", "step.o", "-o", "counted"], folder)
    machine = ["qemu-system-arm", "-M", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none"]
    one_at_a_time = ["-icount", "shift=0", "-semihosting-config", "enable=on,target=native", "-kernel", "counted"]
    count = int(_output([*machine, *one_at_a_time], folder))
    return f"{count / 1e6:.1f} million instructions a step (counted by the emulator)"


def _in_node(folder: Path) -> str:
    if not (folder / "step.wasm").exists() or shutil.which("node") is None:
        return "Node.js: needs wasm-ld and node"
    load = 'import { readFileSync } from "node:fs"; import { load } from "./step.mjs";\n'
    step = f'const STEPS = {STEPS};\nconst step = await load(readFileSync("step.wasm"));'
    (folder / "timed.mjs").write_text(f"{load}{step}{_TIMED_JS}console.log(best);")
    return _rate(_output(["node", "timed.mjs"], folder), "Node.js")


def _in_chromium(folder: Path) -> str:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not (folder / "step.wasm").exists() or browser is None:
        return "Chromium: needs wasm-ld and chromium"
    module = base64.b64encode((folder / "step.wasm").read_bytes()).decode()
    step = f'const step = await load(Uint8Array.from(atob("{module}"), (c) => c.charCodeAt(0)));'
    script = f"{(folder / 'step.mjs').read_text()}\nconst STEPS = {STEPS};\n{step}{_TIMED_JS}"
    script += "document.title = `seconds ${best}`;"
    (folder / "timed.html").write_text(f'<title>none</title><script type="module">{script}</script>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    page = _output([browser, *flags, "--timeout=8000", "--dump-dom", (folder / "timed.html").as_uri()], folder)
    found = re.search(r"<title>seconds (\S+)</title>", page)
    return _rate(found[1], "Chromium") if found else "Chromium: not done in 8 s"


def _output(command: list[str], folder: Path) -> str:
    """What a command prints. RuntimeError with what it said if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
