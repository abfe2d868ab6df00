"""Emitted kernels touch no memory but their own and agree with the interpreter, for every vector width."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kaun.runtime.target import host

SCRIPT = Path(__file__).parents[2] / "guarded_programs.py"
WIDTHS = [bits for bits in (512, 256, 128, 64) if bits <= host().vector_bits]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pages that may not be touched, as POSIX has")


@pytest.mark.parametrize("bits", WIDTHS)
def test_programs_between_guard_pages_agree_with_the_interpreter(bits: int) -> None:
    environment = {**os.environ, "KAUN_TARGET_VECTOR_BITS": str(bits)}
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{bits} bits: ended with {done.returncode} in example {last}\n{done.stderr}"
