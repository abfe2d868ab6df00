"""Importing the package is quick: what only compiling and running need is loaded when something is compiled or run."""

import subprocess
import sys

import pytest

# LLVM itself, the compiler's stages and code generation, and libraries that are slow to load.
LATER = (
    "llvmlite", "networkx", "rich", "kaun.compiler.pipeline", "kaun.compiler.codegen.kernels", "kaun.runtime.engine",
    "kaun.saved", "kaun.compiler.program_verify", "kaun.compiler.schedule.parse",
)  # fmt: skip


@pytest.mark.parametrize("module", LATER)
def test_importing_the_package_does_not_load(module):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, kaun; sys.exit({module!r} in sys.modules)"], timeout=60
    )
    assert done.returncode == 0


def test_what_was_not_loaded_is_there_when_it_is_needed():
    script = (
        "import kaun as kn\n"
        "assert kn.jit(lambda x: x + 1)(kn.nx.ones(3)).tolist() == [2.0] * 3\n"
        "assert 'fused' in kn.compile(lambda x: x, kn.spec(3)).stages\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0
