"""`kaun bisect`: names what brought an error in: a gradient rule, a pass, or a stage of the compiler."""

from __future__ import annotations

from collections.abc import Sequence

from kaun.tools import check


def main(arguments: Sequence[str], prog: str = "kaun bisect") -> int:
    """Search, and show what was found. The exit status is 1 if something is wrong."""
    return check.compare(
        arguments, prog, True,
        "Find what brought an error in: gradient rules against differences, the graph before and after each pass, "
        "each kernel from its loops and as it was compiled, and the program around them.",
    )  # fmt: skip
