"""What the parsers of tools share: help that ends with examples, and numbers that are checked as they are read."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence

# Of help, in a terminal of the usual width.
_WIDTH = 78


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def count(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def seconds(text: str) -> float:
    """A finite time of at least 0 seconds."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 0 seconds")
    return value


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"got {value}, expected at least {least}")
    return value


def parser_of(prog: str, description: str, notes: str = "", examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser whose help ends with notes, and with examples that can be copied line by line."""
    paragraphs = [textwrap.fill(notes, _WIDTH)] if notes else []
    if examples:
        name = "example" if len(examples) == 1 else "examples"
        paragraphs.append("\n".join([f"{name}:", *(f"  {example}" for example in examples)]))
    return argparse.ArgumentParser(
        prog=prog,
        description=textwrap.fill(description, _WIDTH),
        epilog="\n\n".join(paragraphs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
