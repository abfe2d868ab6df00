"""Plain, editable and wheel installs, each in a clean virtual environment: the package is whole, under one name."""

import importlib.metadata
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"kaun": "kaun", "compiler": "kaun/compiler", "runtime": "kaun/runtime", "tools": "kaun/tools"}
FORBIDDEN_AT_THE_TOP = {"compiler", "runtime", "tools", "tests", "examples"}

IMPORT_EVERYTHING = """
import importlib.metadata, importlib.util, kaun, kaun.compiler, kaun.runtime, kaun.tools, kaun.datasets
for name in ("compiler", "runtime", "tools"):
    assert importlib.util.find_spec(name) is None, f"a top-level package {name} is visible"
from kaun.datasets.uci_digits import load_arrays
assert load_arrays()[0].shape == (1797, 8, 8)
print(kaun.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def source_files(sources: Path) -> set[str]:
    """The modules and data of the sources, by their place in the package."""
    return {
        f"{place}/{path.relative_to(sources / folder).as_posix()}"
        for folder, place in ROOMS.items()
        for path in (sources / folder).rglob("*")
        if path.suffix in {".py", ".npz", ".txt", ".typed", ".html", ".css", ".js", ".md"}
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: builds leave folders behind, and pick up what earlier builds left."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in ROOMS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to what is installed beside kaun here, so that nothing is downloaded and kaun itself is not seen."""
    folder = tmp_path_factory.mktemp("dependencies")
    for packages in map(Path, site.getsitepackages()):
        for entry in packages.iterdir() if packages.is_dir() else ():
            ours = entry.name.lower().startswith(("kaun", "__editable__", "_kaun")) or entry.suffix == ".pth"
            if not ours and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


def build_options() -> list[str]:
    """Skip the isolated build environment, and its download, where a setuptools that can build us is installed."""
    try:
        major = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        major = 0
    return ["--no-build-isolation"] if major >= 77 else []


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *build_options())
    run(*pip, "--wheel-dir", folder, ".", cwd=sources)
    (built,) = folder.glob("*.whl")
    return built


def installed(folder: Path, dependencies: Path, sources: Path, *what: object) -> Path:
    """A virtual environment with kaun installed so; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", *build_options())
    run(*pip, *what, cwd=sources)
    assert not FORBIDDEN_AT_THE_TOP & {entry.stem for entry in packages.iterdir()}
    return python


@pytest.mark.parametrize("kind", ["plain", "editable", "strict editable", "wheel"])
def test_every_kind_of_install_gives_the_whole_package_under_one_name(
    kind: str, tmp_path: Path, sources: Path, dependencies: Path, request: pytest.FixtureRequest
) -> None:
    what: tuple[object, ...] = {
        "plain": (".",),
        "editable": ("-e", "."),
        "strict editable": ("-e", ".", "--config-settings", "editable_mode=strict"),
        "wheel": (),
    }[kind] or (request.getfixturevalue("wheel"),)
    python = installed(tmp_path / "environment", dependencies, sources, *what)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    location = Path(run(python, "-c", IMPORT_EVERYTHING, cwd=elsewhere).strip())
    expected = sources if "editable" in kind else tmp_path / "environment"
    assert location.resolve().is_relative_to(expected.resolve())
    assert (tmp_path / "environment" / "bin" / "kaun").exists()


def test_the_wheel_holds_every_source_and_nothing_else(wheel: Path, sources: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == source_files(sources)


def test_type_checkers_see_an_installed_package(tmp_path: Path, sources: Path, dependencies: Path, wheel: Path) -> None:
    pytest.importorskip("mypy")
    python = installed(tmp_path / "environment", dependencies, sources, wheel)
    user = tmp_path / "user.py"
    user.write_text("import kaun.ptree\nimport kaun.compiler.ir\n")
    # Skipping what is imported still looks for it, and reports a package that does not declare its types.
    options = ("--strict", "--follow-imports=skip", "--cache-dir", tmp_path / "cache", "--python-executable", python)
    assert "Success" in run(sys.executable, "-m", "mypy", *options, user, cwd=tmp_path)
