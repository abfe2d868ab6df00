"""Runs every Kaun snippet of the documentation, page by page, and compares what it prints with what the page shows.

- A block ```python runs, in one namespace for each page; `<!-- run ... -->` runs too and is not shown to readers.
- A block ```python title="PyTorch" (or "Flax") belongs to another library and only has to be Python.
- A block ```text title="Output" is what the block before it printed; "..." stands for anything within a line, and for
  any lines if alone on one.

With KAUN_REWRITE_DOCS=1 in the environment, outputs that are out of date are written into the pages.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import pkgutil
import re
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import kaun as kn
from kaun import nx

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "reference")
REWRITE = bool(os.environ.get("KAUN_REWRITE_DOCS"))

_BLOCK = re.compile(
    r"^```(?P<info>[^\n`]+)\n(?P<shown>.*?)^```$|^<!-- run\n(?P<hidden>.*?)^-->$", re.MULTILINE | re.DOTALL
)
_PEERS = ("PyTorch", "Flax")


@dataclass(frozen=True)
class Block:
    """A fenced block: what follows its opening fence, its text, and where the text lies in the page."""

    info: str
    text: str
    start: int
    end: int
    line: int

    @property
    def is_ours(self) -> bool:
        return self.info == "run" or (self.info.startswith("python") and not self.is_peers)

    @property
    def is_peers(self) -> bool:
        return any(f'title="{peer}"' in self.info for peer in _PEERS)

    @property
    def is_output(self) -> bool:
        return self.info == 'text title="Output"'


def blocks(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(page):
        group = "shown" if match["info"] else "hidden"
        start, end = match.span(group)
        line = page.count("\n", 0, start) + 1
        found.append(Block((match["info"] or "run").strip(), match[group], start, end, line))
    return found


def printed_by(block: Block, name: str, namespace: dict[str, object]) -> str:
    """What a block prints. Errors carry the lines of the page."""
    code = compile("\n" * (block.line - 1) + block.text, name, "exec")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    return output.getvalue()


def matches(shown: str, printed: str) -> bool:
    """Whether the output on the page stands for what was printed."""
    lines = [line.rstrip() for line in shown.strip("\n").split("\n")]
    pattern = ""
    for line in lines:
        pattern += "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
    tidy = "".join(line.rstrip() + "\n" for line in printed.strip("\n").split("\n"))
    return re.fullmatch(pattern, tidy) is not None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_snippets_of_a_page_run_and_print_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = path.read_text()
    name = path.relative_to(ROOT).as_posix()
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed, stale = "", []
    for block in blocks(page):
        if block.is_ours:
            printed = printed_by(block, name, namespace)
        elif block.is_output and not matches(block.text, printed):
            stale.append((block, printed))
    for block, text in reversed(stale) if REWRITE else ():
        page = page[: block.start] + text.rstrip("\n") + "\n" + page[block.end :]
        path.write_text(page)
    if not REWRITE:
        shown = "\n".join(f"{name}:{block.line} shows\n{block.text}\nbut this is printed:\n{text}" for block, text in stale)
        assert not stale, f"{shown}\nKAUN_REWRITE_DOCS=1 writes the new outputs into the page"


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
