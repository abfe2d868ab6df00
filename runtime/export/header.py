"""The header that C and C++ programs include: sizes, offsets, types and functions, each with what it is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from kaun.runtime.artifact import Leaf
from kaun.runtime.export import native, state_file
from kaun.runtime.export.layout import ALIGNMENT, Entry, Layout
from kaun.runtime.export.names import c_type

_DOES = {
    "run": "One training step: the loss of the batch, and the state after it.",
    "predict": "The model's output in evaluation mode: nothing is drawn and the state stays as it is.",
    "evaluate": "The loss of a batch in evaluation mode: the state stays as it is.",
}

_ERRORS = (
    ("OK", native.OK, "done"),
    ("ERROR_NULL", native.NULL, "an address is null; nothing was done, as with all errors"),
    ("ERROR_ALIGNMENT", native.ALIGN, "an address is not a multiple of what it has to be"),
    ("ERROR_WORKSPACE", native.WORKSPACE, "the workspace was not zeroed, or has threads already"),
    ("ERROR_FILE", native.FILE, "not a state of this model, not whole, or not of this size"),
    ("ERROR_THREADS", native.THREADS, "a number of threads that cannot be"),
)


def header(layout: Layout, embedded: bool) -> str:
    """The text of the header. `embedded`: there is an `init`."""
    guard = f"{layout.prefix.upper()}_H"
    parts = [
        _introduction(layout),
        f"#ifndef {guard}\n#define {guard}\n\n#include <stddef.h>\n#include <stdint.h>\n",
        '#ifdef __cplusplus\nextern "C" {\n#endif\n',
        _codes(layout),
        _workspace(layout),
    ]
    if layout.state.slots:
        parts += [_state(layout), _state_functions(layout, embedded)]
    parts += [_entry(layout, entry) for entry in layout.entries]
    if layout.most_threads > 1:
        parts.append(_threads(layout))
    return "\n".join([*parts, f"#ifdef __cplusplus\n}}\n#endif\n\n#endif /* {guard} */\n"])


def described(leaf: Leaf) -> str:
    """The leaf for people: `float32[64, 10]`, and what its elements are in C where that is not the same."""
    notes = {"bool": ", each 0 or 1", "bfloat16": ", as their bits", "float16": ", as their bits"}
    return f"{leaf.dtype}{list(leaf.shape)}{notes.get(leaf.dtype.name, '')}"


def count_of(leaf: Leaf) -> int:
    """The number of elements."""
    return leaf.nbytes // leaf.dtype.itemsize


def macro(layout: Layout, *words: str) -> str:
    """The name of a constant."""
    return "_".join([layout.prefix, *words]).upper()


def _comment(*paragraphs: str) -> str:
    """A comment block of C."""
    lines: list[str] = []
    for number, paragraph in enumerate(paragraphs):
        lines += [""] if number else []
        for line in paragraph.splitlines():
            indent = " " * (len(line) - len(line.lstrip()))
            lines += textwrap.wrap(line, 110, subsequent_indent=indent, break_on_hyphens=False) or [""]
    safe = [line.replace("*/", "* /").replace("/*", "/ *") for line in lines]
    if len(safe) == 1:
        return f"/* {safe[0]} */"
    return "\n".join([f"/* {safe[0]}", *(f" * {line}".rstrip() for line in safe[1:]), " */"])


def _define(name: str, value: str, remark: str = "") -> str:
    line = f"#define {name} {value}"
    return f"{line} {_comment(remark)}" if remark else line


def _introduction(layout: Layout) -> str:
    prefix, artifact = layout.prefix, layout.artifact
    what = "A training step" if layout.state.slots else f"The function `{artifact.name}`"
    threads = " and -pthread" if layout.most_threads > 1 else ""
    use = (
        f"The state and the workspace are memory of yours, at addresses that are multiples of {ALIGNMENT}: "
        f"{macro(layout, 'STATE_SIZE')} and {macro(layout, 'WORKSPACE_SIZE')}(threads) bytes. "
        if layout.state.slots
        else f"The workspace is memory of yours, at an address that is a multiple of {ALIGNMENT}: "
        f"{macro(layout, 'WORKSPACE_SIZE')}(threads) bytes. "
    )
    return _comment(
        f"{layout.name}.h: {what[0].lower()}{what[1:]} compiled ahead of time by Kaun for {artifact.target.triple}. "
        "Generated, not to be edited.",
        f"Link with {layout.name}.o{threads}. It needs memcpy, memset and what arithmetic the compiler's own library "
        "holds, allocates nothing, and keeps nothing between calls but what is in the memory you give it.",
        use + "Calls that share neither may happen at the same time. Arrays are in C order, and of the "
        "arrays of one call none may overlap another.",
        f"Every function returns {prefix.upper()}_OK or a negative code.",
    )


def _codes(layout: Layout) -> str:
    lines = [f"    {macro(layout, name)} = {value}, {_comment(remark)}" for name, value, remark in _ERRORS]
    last = lines[-1].replace(",", "", 1)
    return "\n".join(["enum {", *lines[:-1], last, "};\n"])


def _workspace(layout: Layout) -> str:
    parts = [_define(macro(layout, "ALIGNMENT"), str(ALIGNMENT))]
    if layout.header_bytes:
        parts.append(
            _comment(
                f"The first {layout.header_bytes} bytes of a workspace must be zero before it is first used; what is "
                "behind them may be anything."
            )
        )
    per_thread = (layout.workspace_bytes(2) - layout.workspace_bytes(1)) if layout.most_threads > 1 else 0
    first = layout.workspace_bytes(1)
    size = f"((size_t){first} + (size_t){per_thread} * ((size_t)(threads) - 1))" if per_thread else f"((size_t){first})"
    parts += [
        _define(macro(layout, "WORKSPACE_HEADER"), str(layout.header_bytes)),
        _define(f"{macro(layout, 'WORKSPACE_SIZE')}(threads)", size),
        _define(macro(layout, "MOST_THREADS"), str(layout.most_threads), "including the caller's"),
    ]
    return "\n".join(parts) + "\n"


def _state(layout: Layout) -> str:
    lines = [
        _comment(
            "The state: parameters, what layers and the optimizer keep, the number of steps made and the key of random "
            "numbers. Each leaf with its path, the bytes from the start of the state, and the number of elements:",
            f"    float *p = (float *)((char *)state + {macro(layout, layout.state.slots[0].identifier)}_OFFSET);",
        ),
        _define(macro(layout, "STATE_SIZE"), str(layout.state.nbytes)),
    ]
    for slot in layout.state.slots:
        name = macro(layout, slot.identifier)
        lines.append(_comment(f"{slot.leaf.name}: {described(slot.leaf)}, {c_type(slot.leaf.dtype)}"))
        lines += [_define(f"{name}_OFFSET", str(slot.offset)), _define(f"{name}_COUNT", str(count_of(slot.leaf)))]
    return "\n".join(lines) + "\n"


def _state_functions(layout: Layout, embedded: bool) -> str:
    prefix = layout.prefix
    parts = []
    if embedded:
        parts.append(_comment("The state at the start of training.") + f"\nint {prefix}_init(void *state);\n")
    total = state_file.HEADER_BYTES + layout.state.nbytes
    parts += [
        _define(macro(layout, "FILE_SIZE"), str(total), "bytes of a state in a file"),
        _comment(
            "A state from and to the content of a file, in memory of FILE_SIZE bytes at any address. The content is "
            "checked before anything is written: whose it is, its size, and sums that find damage."
        ),
        f"int {prefix}_load(void *state, const void *bytes, size_t size);",
        f"int {prefix}_save(const void *state, void *bytes, size_t size);\n",
    ]
    return "\n".join(parts)


def _entry(layout: Layout, entry: Entry) -> str:
    name = f"{layout.prefix}_{entry.verb}"
    inputs, outputs = f"{name}_inputs", f"{name}_outputs"
    parameters = [f"const {inputs} *inputs" if entry.inputs else "const void *inputs"]
    parameters.append(f"const {outputs} *outputs" if entry.outputs else "const void *outputs")
    if layout.state.slots:
        parameters.insert(0, "void *state" if entry.writes_state else "const void *state")
    structs = [
        _struct(inputs, entry.inputs, entry.input_names, "const "),
        _struct(outputs, entry.outputs, entry.output_names, ""),
    ]
    does = _DOES.get(entry.verb, f"`{entry.function.name}`.") if layout.state.slots else f"`{layout.artifact.name}`."
    counts = [
        _define(macro(layout, entry.verb, name, "count"), str(count_of(leaf)))
        for leaf, name in zip((*entry.inputs, *entry.outputs), entry.names, strict=True)
    ]
    unused = [word for word, leaves in (("inputs", entry.inputs), ("outputs", entry.outputs)) if not leaves]
    more = f"There are no {' and no '.join(unused)}: that argument is not looked at." if unused else ""
    return "\n".join(
        [
            _comment("How many elements the arrays have that a caller gives for input and output.") if counts else "",
            *counts,
            "",
            *(struct for struct in structs if struct),
            _comment(f"{does} {more}".strip()),
            _prototype(name, [*parameters, "void *workspace"]),
        ]
    )


def _prototype(name: str, parameters: Sequence[str]) -> str:
    """A declaration, on two lines if it is long."""
    start, rest = f"int {name}(", f"{', '.join(parameters)});\n"
    if len(start) + len(rest) <= 110:
        return start + rest
    first, *others = parameters
    lines = [f"{start}{first},", *textwrap.wrap(f"{', '.join(others)});", 100, break_on_hyphens=False)]
    return ("\n" + " " * len(start)).join(lines) + "\n"


def _struct(name: str, leaves: Sequence[Leaf], fields: Sequence[str], const: str) -> str:
    """Addresses of arrays."""
    lines = [
        f"    {const}{c_type(leaf.dtype)} *{field}; {_comment(f'{leaf.name}: {described(leaf)}')}"
        for leaf, field in zip(leaves, fields, strict=True)
    ]
    return "\n".join(["typedef struct {", *lines, f"}} {name};\n"]) if lines else ""


def _threads(layout: Layout) -> str:
    prefix = layout.prefix
    return "\n".join(_thread_lines(layout, prefix))


def _thread_lines(layout: Layout, prefix: str) -> Iterator[str]:
    yield _comment(
        "Start threads that wait in this workspace for work, so that calls with it run on as many with the caller's. "
        f"Returns how many there are, from 1 to what was asked for, at most {macro(layout, 'MOST_THREADS')}, or a "
        "code. Results do not depend on it, not in one bit. Without it, calls run on the caller's thread."
    )
    yield f"int {prefix}_threads_start(void *workspace, int threads);"
    yield _comment(
        "End them. To be called before the memory is given up; no call may be using it. In a forked child there are no "
        "threads: calls run on the caller's, this forgets its parent's, and threads can be started anew."
    )
    yield f"int {prefix}_threads_stop(void *workspace);\n"
