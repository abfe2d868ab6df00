"""Runs every Kaun snippet of the documentation, page by page, and compares what it prints with what the page shows.

- A block ```python runs, in one namespace for each page; `<!-- run ... -->` runs too and is not shown to readers.
- A block ```python title="PyTorch" (or "Flax") belongs to another library and only has to be Python.
- A block ```text title="Output" is what the block before it printed; "..." stands for anything within a line, and for
  any lines if alone on one.

With KAUN_REWRITE_DOCS=1 in the environment, outputs that are out of date are written into the pages.
"""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import docs_pages
import pytest
from docs_pages import ROOT, blocks, matches

import kaun as kn
from kaun import nx

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "reference")
REWRITE = bool(os.environ.get("KAUN_REWRITE_DOCS"))


def run_alone(path: Path, folder: Path) -> list[str]:
    """What the blocks of a page print in a process of their own, where the compiler has seen nothing before."""
    # -P, because the folder of tests for the package has the package's name.
    command = [sys.executable, "-P", docs_pages.__file__, str(path)]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_snippets_of_a_page_run_and_print_what_it_shows(path: Path, tmp_path: Path) -> None:
    page, name = path.read_text(), path.relative_to(ROOT).as_posix()
    printed, stale = "", []
    for block, output in zip(blocks(page), run_alone(path, tmp_path), strict=True):
        if block.is_ours:
            printed = output
        elif block.is_output and not matches(block.text, printed):
            stale.append((block, printed))
    if REWRITE and stale:
        for block, text in reversed(stale):
            page = page[: block.start] + text.rstrip("\n") + "\n" + page[block.end :]
        path.write_text(page)
        return
    shown = [f"{name}:{block.line} shows\n{block.text}\nbut this is printed:\n{text}" for block, text in stale]
    assert not stale, "\n".join([*shown, "KAUN_REWRITE_DOCS=1 writes the new outputs into the page"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_blocks_of_other_libraries_are_python_and_not_ours(path: Path) -> None:
    for block in blocks(path.read_text()):
        if block.is_peers:
            ast.parse(block.text)
            assert "kn." not in block.text and "kaun" not in block.text


def test_every_fence_was_understood() -> None:
    for path in PAGES:
        page = path.read_text()
        assert page.count("\n```") == 2 * sum(block.info != "run" for block in blocks(page)), path
        assert page.count("<!-- run") == sum(block.info == "run" for block in blocks(page)), path


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("loss ...\n", "loss 0.5\n", True),
        ("a ... c\n", "a b c \n", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ("a.\n", "ab\n", False),
    ],
)
def test_outputs_are_compared_exactly_but_for_the_dots(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_every_public_module_and_transformation_has_a_reference_page() -> None:
    shown = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    modules = [getattr(kn, name) for name in kn.__all__ if isinstance(getattr(kn, name), types.ModuleType)]
    assert len(modules) > 12
    for module in [*modules, nx.rng, kn.optim.schedule]:
        assert re.search(rf"^::: {re.escape(module.__name__)}$", shown, re.MULTILINE), module.__name__
    for name in kn.__all__:
        found = getattr(kn, name)
        if isinstance(found, types.FunctionType):
            assert f"`kn.{name}`" in shown, name


def test_what_the_reference_shows_has_a_docstring() -> None:
    for path in sorted((DOCS / "reference").glob("*.md")):
        for name in re.findall(r"^::: (kaun\S*)$", path.read_text(), re.MULTILINE):
            module = pkgutil.resolve_name(name)
            public = getattr(module, "__all__", None) or [
                name for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            ]  # fmt: skip
            for member in public if isinstance(module, types.ModuleType) else ():
                value = getattr(module, member)
                if isinstance(value, (types.FunctionType, type)):
                    assert value.__doc__, f"{name}.{member}"
