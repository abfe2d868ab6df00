"""The table of exported steps measures what it says, and says why where it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cross_machines import MACHINES
from kaun.tools import aot_table


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_table, "STEPS", 20)


def test_a_row_for_webassembly_has_sizes_and_the_speed_in_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if MACHINES["wasm32"].missing:
        pytest.skip(MACHINES["wasm32"].missing)
    monkeypatch.setattr(aot_table, "_ways", lambda name: [aot_table._in_node])
    row = aot_table.measured("wasm32", tmp_path)
    assert row.object_bytes == (tmp_path / "step.o").stat().st_size
    # Parameters and two moments of each.
    assert row.state_bytes > 3 * 4 * (64 * 128 + 128 + 128 * 10 + 10) and row.workspace_bytes > 64 * 128 * 4
    assert re.fullmatch(r"[\d,]+ \(Node\.js\)", row.speed)


def test_a_row_for_a_microcontroller_counts_instructions(tmp_path: Path) -> None:
    if MACHINES["cortex-m7"].missing:
        pytest.skip(MACHINES["cortex-m7"].missing)
    row = aot_table.measured("cortex-m7", tmp_path)
    millions = float(row.speed.split(" million instructions")[0])
    # A multiply-add for each weight and image forward, two for each backward but those of the first layer's input.
    multiply_adds = 64 * (64 * 128 * 2 + 128 * 10 * 3)
    assert multiply_adds < 1e6 * millions < 8 * multiply_adds


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = {name: aot_table.measured(name, tmp_path).speed for name in ("cortex-m7", "wasm32")}
    assert rows["cortex-m7"] == "needs arm-none-eabi-gcc and qemu-system-arm"
    assert rows["wasm32"] == "Node.js: needs wasm-ld and node; Chromium: needs wasm-ld and chromium"
