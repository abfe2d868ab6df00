"""Reads and runs the snippets of documentation pages; as a program, prints what the blocks of one print, as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

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


def outputs(path: Path) -> list[str]:
    """What each block of the page prints, in one namespace; nothing for blocks that do not run."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    return [printed_by(block, path.name, namespace) if block.is_ours else "" for block in blocks(path.read_text())]


if __name__ == "__main__":
    print(json.dumps(outputs(Path(sys.argv[1]))))
