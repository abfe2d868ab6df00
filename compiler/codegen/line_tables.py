"""Reads for which lines of a kernel's text the lines of its LLVM IR and assembly are, and takes the locations out.

What is left is the text that the same kernel has without locations (see `locations.py`), but that LLVM for AArch64
saves registers in another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# For each line of a text the lines of the kernel's text, counted from 1, that it is for; () where nothing tells.
Lines = tuple[tuple[int, ...], ...]

_LOCATION = re.compile(r"^(!\d+) = !DILocation\((?:.*, )?line: (\d+),", re.MULTILINE)
_ATTACHED = re.compile(r" ?,? !dbg (!\d+)")
# Metadata that locations add; what else there is has the numbers that are left.
_ADDED = re.compile(
    r'!llvm\.(?:dbg\.cu|module\.flags) = |!\d+ = (?:(?:distinct )?!DI|!\{ ?null ?\}|!\{ ?i32 2, !"Debug Info)'
)
_METADATA = re.compile(r"![0-9]+")
_DEFINED = re.compile(r'^define .*?@"?([^"(]+)"?\(')
_CALLED = re.compile(r'\bcall [^@]*@"?([^"(]+)"?\(')
# What locations add to assembly: where they are, what a debugger would need to unwind the stack, and sections for it,
# from which some formats go back to the one before. Where functions have sizes, their ends have labels anyway.
_NOISE = re.compile(r"\t\.(?:loc|cfi_\w+)\b|\t\.file\t\d|\.?L(?:tmp|func_begin)\d+:")
_END = re.compile(r"\.?Lfunc_end\d+:")
_SECTION = re.compile(r"\t\.(?:section|globl)\t|\.subsections_via_symbols|$")
_DEBUG_SECTION = re.compile(r"\t\.section\t(?:__DWARF,|\.debug|\.custom_section\.producers)")
_MOVED_TO = re.compile(r"\t\.loc\t\d+ (\d+) ")
_LABEL = re.compile(r'_?"?([^"\s:]+)"?:')


@dataclass(frozen=True)
class Located:
    """A text without locations, the lines of the kernel's text that each of its lines is for, and its helpers'."""

    text: str
    lines: Lines
    helpers: Mapping[str, tuple[int, ...]]


def read_llvm(text: str) -> Located:
    """LLVM IR with locations, as codegen wrote it or as LLVM prints it."""
    numbers = {name: int(line) for name, line in _LOCATION.findall(text)}
    kept: list[str] = []
    lines: list[tuple[int, ...]] = []
    calls: dict[str, set[int]] = {}
    helper, inside = "", {}
    for line in text.split("\n"):
        if _ADDED.match(line):
            continue
        attached = _ATTACHED.search(line)
        kept.append(_ATTACHED.sub("", line))
        number = numbers.get(attached.group(1), 0) if attached else 0
        lines.append((number,) if number else ())
        defined = _DEFINED.match(line)
        if defined:
            helper = "" if attached else defined.group(1)
        if helper and line.startswith("  "):
            inside[len(lines) - 1] = helper
        called = _CALLED.search(line) if number else None
        if called:
            calls.setdefault(called.group(1), set()).add(number)
    helpers = {name: tuple(sorted(calls.get(name, ()))) for name in dict.fromkeys(inside.values())}
    for at, name in inside.items():
        lines[at] = helpers[name]
    names = {line.partition(" ")[0] for line in kept if _METADATA.match(line)}
    renumbered = {name: f"!{number}" for number, name in enumerate(sorted(names, key=lambda name: int(name[1:])))}
    left = _METADATA.sub(lambda found: renumbered.get(found.group(), found.group()), "\n".join(kept))
    return Located(left, tuple(lines), helpers)


def read_assembly(text: str, helpers: Mapping[str, tuple[int, ...]]) -> Located:
    """Assembly made of LLVM IR with locations, which had these helpers."""
    kept: list[str] = []
    lines: list[tuple[int, ...]] = []
    here: tuple[int, ...] = ()
    ends_named, for_debuggers = "func_end0-" in text, False
    for line in text.split("\n"):
        if _SECTION.match(line):
            was, for_debuggers = for_debuggers, _DEBUG_SECTION.match(line) is not None
            if was and line.startswith("\t.section"):
                continue
        if for_debuggers or (not ends_named and _END.match(line)):
            continue
        moved = _MOVED_TO.match(line)
        if moved:
            here = (int(moved.group(1)),) if moved.group(1) != "0" else ()
        if _NOISE.match(line):
            continue
        label = _LABEL.match(line)
        if label and label.group(1) in helpers:
            here = helpers[label.group(1)]
        kept.append(line)
        lines.append(here if re.match(r"\t[^.\s#@/;]", line) else ())
    return Located("\n".join(kept), tuple(lines), helpers)
