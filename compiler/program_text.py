"""Programs as text: the kernels, then what runs on what; the form in which a program is kept on disk.

    kernel(%0: float32[192] in, %1: float32[128] out) {
      ...
    }

    program {
      input float32[64, 3]
      output float32[64, 2]
      return output 0, input 0
      alias input 0, output 0
      arena 1024
      scratch 128
      launch {
        pieces 4
          kernel 0 in 12 (input 0, arena 512)
        pieces 1
          kernel 1 in 1 (input 0, arena 0)
          kernel 2 in 1 (arena 0, output 0)
      }
    }

`alias` tells of an output that may be written over an input. The two groups of the launch are chains. `in` tells a
kernel's chunks, the brackets where its buffers are, in the arena by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .ir import dtypes
from .program import Array, Bundle, Call, Chain, EntryEmitter, Module, Place, Program

_ARRAY = re.compile(r"(\w+)\[([\d, ]*)\]")
_PLACE = re.compile(r"(input|output|arena) (\d+)")
_CALL = re.compile(r"kernel (\d+) in (\d+) \(([^)]*)\)")
_BUFFER = re.compile(r"%\d+: (\w+)\[(\d+)\] (in|out)")


def print_program(program: Program) -> str:
    """The program as text."""
    return "\n".join([*(module.text for module in program.kernels), _program_block(program)])


def _program_block(program: Program) -> str:
    lines = ["program {"]
    lines += [f"  input {_format_array(array)}" for array in program.inputs]
    lines += [f"  output {_format_array(array)}" for array in program.outputs]
    lines.append(f"  return {_format_places(program.results)}".rstrip())
    lines += [f"  alias input {given}, output {output}" for given, output in program.aliases]
    lines += [f"  arena {program.arena_bytes}", f"  scratch {program.scratch_bytes}"]
    for bundle in program.bundles:
        lines.append("  launch {")
        for chain in bundle:
            lines.append(f"    pieces {chain.pieces}")
            lines += [f"      {_format_call(call)}" for call in chain.calls]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _format_array(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _format_places(places: Iterable[Place]) -> str:
    return ", ".join(f"{place.kind} {place.position}" for place in places)


def _format_call(call: Call) -> str:
    return f"kernel {call.kernel} in {call.chunks} ({_format_places(call.places)})"


def parse_program(text: str, emit_kernel: Callable[[str, str], str], emit_entry: EntryEmitter) -> Program:
    """The program that `print_program` printed: printing it again gives `text`.

    `emit_kernel(text, name)` writes LLVM IR for a kernel's text, and `emit_entry` that of the entry function; neither
    is called here. ValueError tells what does not parse, or the first call whose places do not fit its kernel or the
    program. Whether the calls make sense together is for `verify_program` to say.
    """
    kernels, separator, block = text.rpartition("program {\n")
    if not separator:
        raise ValueError("program_text.parse_program: expected a line `program {`")
    texts = [f"{part}\n" for part in kernels.rstrip("\n").split("\n\n")] if kernels.strip() else []
    fields = _Fields(iter(block.splitlines()))
    program = Program(
        inputs=tuple(fields.inputs),
        outputs=tuple(fields.outputs),
        results=fields.results,
        bundles=tuple(fields.bundles),
        kernels=tuple(Module(each, partial(emit_kernel, each)) for each in texts),
        emit_entry=emit_entry,
        arena_bytes=fields.numbers["arena"],
        scratch_bytes=fields.numbers["scratch"],
        aliases=tuple(fields.aliases),
    )
    _check_places(program)
    return program


class _Fields:
    """What the lines of a program's block say."""

    def __init__(self, lines: Iterator[str]):
        self.inputs: list[Array] = []
        self.outputs: list[Array] = []
        self.results: tuple[Place, ...] = ()
        self.aliases: list[tuple[int, int]] = []
        self.numbers = {"arena": 0, "scratch": 0}
        self.bundles: list[Bundle] = []
        places: dict[str, Place] = {}
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word in ("input", "output"):
                (self.inputs if word == "input" else self.outputs).append(_parse_array(rest))
            elif word == "return":
                self.results = _parse_places(rest, places)
            elif word == "alias":
                self.aliases.append(_parse_alias(rest, places))
            elif word in self.numbers and rest.isdecimal():
                self.numbers[word] = int(rest)
            elif word == "launch" and rest == "{":
                self.bundles.append(_parse_bundle(lines, places))
            elif line == "}":
                return
            else:
                raise _unexpected(line, "a line of a program")
        raise _unexpected("the end of the text", "`}`")


def _unexpected(found: str, expected: str) -> ValueError:
    return ValueError(f"program_text.parse_program: got {found!r}, expected {expected}")


def _parse_array(text: str) -> Array:
    found = _ARRAY.fullmatch(text)
    if found is None:
        raise _unexpected(text, "the type of an array")
    return Array(dtypes.of(found[1]), tuple(int(extent) for extent in found[2].split(", ")) if found[2] else ())


def _parse_places(text: str, known: dict[str, Place]) -> tuple[Place, ...]:
    """The places, of which there are many fewer than are named: each is one object in all of a program."""
    places = []
    for part in text.split(", ") if text else ():
        if part not in known:
            found = _PLACE.fullmatch(part)
            if found is None:
                raise _unexpected(part, "a place")
            known[part] = Place(found[1], int(found[2]))
        places.append(known[part])
    return tuple(places)


def _parse_alias(text: str, known: dict[str, Place]) -> tuple[int, int]:
    places = _parse_places(text, known)
    if [place.kind for place in places] != ["input", "output"]:
        raise _unexpected(text, "an input and an output")
    return places[0].position, places[1].position


def _parse_bundle(lines: Iterator[str], known: dict[str, Place]) -> Bundle:
    chains: list[tuple[int, list[Call]]] = []
    for line in lines:
        text = line.strip()
        if text == "}":
            return tuple(Chain(tuple(calls), pieces) for pieces, calls in chains)
        word, _, pieces = text.partition(" ")
        if word == "pieces" and pieces.isdecimal():
            chains.append((int(pieces), []))
        elif chains:
            chains[-1][1].append(_parse_call(text, known))
        else:
            raise _unexpected(line, "a chain")
    raise _unexpected("the end of the text", "`}`")


def _parse_call(text: str, known: dict[str, Place]) -> Call:
    found = _CALL.fullmatch(text)
    if found is None:
        raise _unexpected(text, "a call")
    return Call(int(found[1]), _parse_places(found[3], known), int(found[2]))


def buffer_types(kernel_text: str) -> list[tuple[str, int, bool]]:
    """(dtype, elements, whether the kernel writes it) of each buffer, from the first line of a kernel's text."""
    header = kernel_text.partition("\n")[0]
    return [(dtype, int(size), way == "out") for dtype, size, way in _BUFFER.findall(header)]


def _check_places(program: Program) -> None:
    """ValueError unless every buffer lies inside what it is said to be in."""
    types = [buffer_types(module.text) for module in program.kernels]
    arrays = {"input": program.inputs, "output": program.outputs}
    for place in program.results:
        if place.kind == "arena" or place.position >= len(arrays[place.kind]):
            raise _unexpected(_format_places([place]), "a result that the program has")
    for given, output in program.aliases:
        if given >= len(program.inputs) or output >= len(program.outputs):
            raise _unexpected(f"alias input {given}, output {output}", "an input and an output that the program has")
    for call in program.calls:
        if call.kernel >= len(types) or len(types[call.kernel]) != len(call.places) or call.chunks < 1:
            raise _unexpected(_format_call(call), "a kernel of the program and a place for each of its buffers")
        for place, (dtype, size, _) in zip(call.places, types[call.kernel], strict=True):
            if place.kind == "arena":
                fits = place.position + size * dtypes.of(dtype).itemsize <= program.arena_bytes
            else:
                fits = place.position < len(arrays[place.kind])
                if fits:
                    array = arrays[place.kind][place.position]
                    fits = array.dtype.name == dtype and array.nbytes == size * array.dtype.itemsize
            if not fits:
                raise _unexpected(_format_call(call), f"places that hold what the kernel's buffers hold, not {place}")
