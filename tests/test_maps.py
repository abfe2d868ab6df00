"""The maps of the files stay true: every file has its place in its folder's, and none is named that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["compiler/codegen", "compiler/schedule"]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]

# A file in backticks, from the root or from the compiler's folder.
NAMED = re.compile(r"`((?:\w+/)+(?:\w+\.py)?)`")


def files_named(text: str) -> set[str]:
    return set(NAMED.findall(text))


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_map_of_a_folder_names_its_files_and_no_others(folder: str) -> None:
    files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"\w+\.py", (ROOT / folder / "__init__.py").read_text()))
    assert named == files, f"{folder}/__init__.py is a map of the files in its folder: it should name each of them"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_that_a_page_names_are_there(page: str) -> None:
    named = files_named((ROOT / page).read_text())
    missing = [name for name in named if not any((ROOT / start / name).exists() for start in ("", "compiler"))]
    assert not missing


def test_names_are_found_in_the_pages() -> None:
    assert files_named("see `kaun/train.py`, `tests/`, `compiler/ir/` and `a.b` or `pytest`") == {
        "kaun/train.py", "tests/", "compiler/ir/",
    }  # fmt: skip
    assert {"kaun/train.py", "compiler/codegen/", "runtime/engine.py"} <= files_named((ROOT / "README.md").read_text())
