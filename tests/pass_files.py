"""The files in `passes/`: a graph, the passes to run on it, and the text that comes out.

    # what the file shows
    passes: simplify

    graph(...) {
    }

    becomes

    graph(...) {
    }

The passes are named as for `kaun opt`. `python tests/pass_files.py` writes down what comes out now, to be read
in the difference before it is believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, parse_graph
from kaun.tools import opt

FOLDER = Path(__file__).resolve().parent / "passes"
SEPARATOR = "\nbecomes\n\n"
# So that what is printed is the same on every machine.
TARGET = VectorTarget(
    vector_bits=256, vector_registers=16, has_fma=True, l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20
)


@dataclass(frozen=True, eq=False)
class PassFile:
    """A file, taken apart."""

    path: Path
    comment: str
    passes: tuple[str, ...]
    before: str
    expected: str

    @classmethod
    def read(cls, path: Path) -> PassFile:
        head, separator, expected = path.read_text().partition(SEPARATOR)
        assert separator, f"{path.name} has no line `becomes`"
        lines = head.splitlines()
        comment = [line for line in lines if line.startswith("#")]
        (wanted,) = (line.removeprefix("passes:") for line in lines if line.startswith("passes:"))
        before = "\n".join(line for line in lines if not line.startswith(("#", "passes:"))).strip() + "\n"
        return cls(path, "\n".join(comment), opt.names(wanted), before, expected)

    @property
    def graph(self) -> Graph:
        return parse_graph(self.before)

    def result(self) -> str:
        """The text that the passes make now."""
        return opt.apply(self.graph, self.passes, TARGET)


def files() -> list[PassFile]:
    return [PassFile.read(path) for path in sorted(FOLDER.glob("*.ir"))]


if __name__ == "__main__":
    for each in files():
        head = each.path.read_text().partition(SEPARATOR)[0]
        each.path.write_text(head + SEPARATOR + each.result())
