"""Holds the arrows between the rooms: who may import whom, read from the sources, imports inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"kaun": ROOT / "kaun", "kaun.compiler": ROOT / "compiler", "kaun.runtime": ROOT / "runtime"}
ROOMS["kaun.tools"] = ROOT / "tools"

# The compiler's data types, which the runtime may know; everything else in the compiler is the front end's business.
COMPILER_DATA_TYPES = ("kaun.compiler.ir", "kaun.compiler.program", "kaun.compiler.target")


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def room_of(module: str) -> str:
    return next((room for room in ROOMS if room != "kaun" and within(module, (room,))), "kaun")


def allowed(importer: str, imported: str) -> bool:
    """Whether the arrow from one module of the package to another is one of the design's."""
    match room_of(importer):
        case "kaun.compiler":
            return within(imported, ("kaun.compiler",))
        case "kaun.runtime":
            return within(imported, ("kaun.runtime", *COMPILER_DATA_TYPES))
        case "kaun.tools":
            return True
        case _:
            return not within(imported, ("kaun.tools",))


def modules() -> Iterator[tuple[str, Path]]:
    for room, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((room, *(part for part in parts if part != "__init__"))), path


KNOWN = {name: path for name, path in modules()}


def imports(name: str, path: Path, source: str) -> Iterator[tuple[int, str]]:
    """The modules of this package that a module imports, with line numbers; `from p import m` counts as `p.m`."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in KNOWN else base for alias in node.names]
        else:
            continue
        yield from ((node.lineno, module) for module in found if within(module, ("kaun",)))


def violations(name: str, path: Path, source: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {name} imports {module}"
        for line, module in imports(name, path, source)
        if not allowed(name, module)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_the_way_of_the_design(room: str) -> None:
    found = [
        violation
        for name, path in KNOWN.items()
        if room_of(name) == room
        for violation in violations(name, path, path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["compiler", "runtime", "tools"])
def test_rooms_are_imported_by_their_names_in_the_package(folder: str) -> None:
    for name, path in KNOWN.items():
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module or ""]
            assert not any(within(module, (folder,)) for module in found), f"{name} imports a top-level {folder}"


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("kaun.compiler.ir", "from kaun import nx", 1),
        ("kaun.compiler.ir", "def f():\n    import kaun.runtime", 1),
        ("kaun.compiler.ir", "from ...runtime import engine\nfrom ..ir import graph\nfrom . import ops", 1),
        ("kaun.compiler.ir", "import numpy\nfrom kaun.compiler.ir import graph\nfrom kaun.compiler import ir", 0),
        ("kaun.runtime", "from kaun.compiler import pipeline\nimport kaun.compiler.passes.fold", 2),
        ("kaun.runtime", "from kaun.compiler.ir import graph\nfrom kaun.runtime import cache\nimport kaun", 1),
        ("kaun", "from kaun.tools import command", 1),
        ("kaun", "import kaun.compiler.ir\nfrom kaun.runtime import engine\nfrom . import optim", 0),
        ("kaun.tools", "from kaun import nx\nimport kaun.compiler, kaun.runtime", 0),
    ],
)
def test_a_forbidden_arrow_is_found(name: str, source: str, count: int) -> None:
    assert len(violations(name, KNOWN[name], source)) == count


def test_every_room_was_read() -> None:
    assert {room_of(name) for name in KNOWN} == set(ROOMS)
