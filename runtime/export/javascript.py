"""What JavaScript imports of an export to WebAssembly: the module with its memory laid out, arrays in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from string import Template

from kaun.runtime.artifact import Leaf
from kaun.runtime.export import state_file
from kaun.runtime.export.header import count_of, described
from kaun.runtime.export.layout import ALIGNMENT, Entry, Layout

# JavaScript's arrays of each type; narrow floats are their bits.
_ARRAYS = {
    "bool": "Uint8Array", "uint8": "Uint8Array", "int8": "Int8Array", "uint16": "Uint16Array", "int16": "Int16Array",
    "uint32": "Uint32Array", "int32": "Int32Array", "uint64": "BigUint64Array", "int64": "BigInt64Array",
    "float32": "Float32Array", "float64": "Float64Array", "float16": "Uint16Array", "bfloat16": "Uint16Array",
}  # fmt: skip

_TEXT = Template("""\
// ${name}.mjs: ${what} compiled ahead of time by Kaun for WebAssembly. Generated, not to be edited.
//
//     import { load } from "./${name}.mjs";
//     const ${name} = await load(fetch("${name}.wasm"));   // or its bytes
${usage}//
// Arrays are in row-major order. Results are new arrays; inputs are copied.

const ALIGNMENT = ${ALIGNMENT};
const STATE_SIZE = ${STATE_SIZE};
const FILE_SIZE = ${FILE_SIZE};
const WORKSPACE_SIZE = ${WORKSPACE_SIZE};

// Path, type, number of elements and place of each leaf of the state.
const leaves = {${leaves}};

// What each function takes and gives: name, type, number of elements.
const functions = {${functions}};

const errors = {
  "-1": "an address is null",
  "-2": "an address is not aligned",
  "-3": "the workspace is not one",
  "-4": "not a state of this model, not whole, or not of this size",
};

/** The functions, with a state of their own. source: bytes, a WebAssembly.Module, a Response, or a promise of one. */
export async function load(source) {
  const given = await source;
  const bytes = typeof Response !== "undefined" && given instanceof Response ? await given.arrayBuffer() : given;
  const module = bytes instanceof WebAssembly.Module ? bytes : await WebAssembly.compile(bytes);
  return new Compiled((await WebAssembly.instantiate(module, {})).exports);
}

class Compiled {
  #exports;
  #state;
  #workspace;
  #file;
  #places = {};
${field}
  constructor(exports) {
    let top = exports.__heap_base.value;
    const place = (size) => {
      const start = Math.ceil(top / ALIGNMENT) * ALIGNMENT;
      top = start + Math.max(1, size);
      return start;
    };
    this.#exports = exports;
    this.#state = place(STATE_SIZE);
    this.#workspace = place(WORKSPACE_SIZE);
    this.#file = place(FILE_SIZE);
    for (const [name, { inputs, outputs }] of Object.entries(functions)) {
      const arrays = (list) => list.map(([, type, count]) => place(type.BYTES_PER_ELEMENT * count));
      const where = { inputs: arrays(inputs), outputs: arrays(outputs) };
      where.table = place(4 * (inputs.length + outputs.length));
      this.#places[name] = where;
    }
    const missing = top - exports.memory.buffer.byteLength;
    if (missing > 0) exports.memory.grow(Math.ceil(missing / 65536));
    for (const { inputs, outputs, table } of Object.values(this.#places)) {
      this.#view(Uint32Array, table, inputs.length + outputs.length).set([...inputs, ...outputs]);
    }
${init}  }

  #view(type, address, count) {
    return new type(this.#exports.memory.buffer, address, count);
  }

  #check(code) {
    if (code < 0) throw new Error(`${name}: $${errors[code] ?? `code $${code}`}`);
  }

  #call(name, given) {
${check}    const { inputs, outputs } = functions[name];
    const places = this.#places[name];
    inputs.forEach(([input, type, count], number) => {
      const array = given?.[input];
      if (array?.length !== count) {
        const got = array?.length ?? "no";
        throw new TypeError(`${name}.$${name}: got $${got} elements of $${input}, expected $${count}`);
      }
      this.#view(type, places.inputs[number], count).set(array);
    });
    const tables = [places.table, places.table + 4 * inputs.length, this.#workspace];
    this.#check(this.#exports[`${prefix}_$${name}`](${state_argument}...tables));
    const results = outputs.map(([output, type, count], number) => [
      output,
      this.#view(type, places.outputs[number], count).slice(),
    ]);
    return Object.fromEntries(results);
  }
${methods}}
""")

_STATE_METHODS = Template("""\

  /** A copy of the leaf of the state at a path. */
  leaf(path) {
${check}\
    if (!(path in leaves)) throw new TypeError(`${name}.leaf: got $${path}, expected one of $${Object.keys(leaves)}`);
    const [type, count, offset] = leaves[path];
    return this.#view(type, this.#state + offset, count).slice();
  }

  /** The state as the content of a file, which \\`restore\\`, C and Python read. */
  save() {
${check}    this.#check(this.#exports.${prefix}_save(this.#state, this.#file, FILE_SIZE));
    return this.#view(Uint8Array, this.#file, FILE_SIZE).slice();
  }

  /** Go on from the content of a file; an error, and no change, if it is not one of this model. */
  restore(bytes) {
    if (bytes.length !== FILE_SIZE) this.#check(-4);
    this.#view(Uint8Array, this.#file, FILE_SIZE).set(bytes);
    this.#check(this.#exports.${prefix}_load(this.#state, this.#file, FILE_SIZE));
${restored}  }
""")

# Without numbers in the module, a state of zeros would be trained as though it were one.
_CHECK = """\
    if (!this.#hasState) throw new Error("{name}: no numbers to start from: call restore(bytes) first");
"""

_INIT_METHOD = Template("""\

  /** Back to the state at the start of training. */
  init() {
    this.#check(this.#exports.${prefix}_init(this.#state));
  }
""")

_METHOD = Template("""\

  /** ${does} */
  ${verb}(inputs) {
    return this.#call("${verb}", inputs);
  }
""")


def javascript(layout: Layout, embedded: bool) -> str:
    """The text of the module. `embedded`: the object has the state at the start of training."""
    has_state = bool(layout.state.slots)
    empty = has_state and not embedded
    names = {
        "name": layout.name,
        "prefix": layout.prefix,
        "field": "  #hasState = false;\n" if empty else "",
        "check": _CHECK.format(name=layout.name) if empty else "",
        "restored": "    this.#hasState = true;\n" if empty else "",
    }
    methods = [
        _METHOD.substitute(verb=entry.verb, does=f"{_arrays(entry.inputs, entry.input_names)} -> "
        f"{_arrays(entry.outputs, entry.output_names)}")
        for entry in layout.entries
    ]  # fmt: skip
    methods += [_INIT_METHOD.substitute(names)] if embedded else []
    methods += [_STATE_METHODS.substitute(names).replace("\\`", "`")] if has_state else []
    return _TEXT.substitute(
        names,
        what="a training step" if has_state else f"the function {json.dumps(layout.artifact.name)}",
        usage="".join(f"//     {line}\n" for line in _usage(layout, empty)),
        ALIGNMENT=ALIGNMENT,
        STATE_SIZE=layout.state.nbytes,
        FILE_SIZE=state_file.HEADER_BYTES + layout.state.nbytes if has_state else 0,
        WORKSPACE_SIZE=layout.workspace_bytes(1),
        leaves=_lines(
            f"{json.dumps(slot.leaf.name)}: [{_type(slot.leaf)}, {count_of(slot.leaf)}, {slot.offset}]"
            for slot in layout.state.slots
        ),
        functions=_lines(f"{entry.verb}: {_signature(entry)}" for entry in layout.entries),
        init="    this.init();\n" if embedded else "",
        state_argument="this.#state, " if has_state else "",
        methods="".join(methods),
    )


def _type(leaf: Leaf) -> str:
    return _ARRAYS[leaf.dtype.name]


def _signature(entry: Entry) -> str:
    def rows(leaves: tuple[Leaf, ...], names: list[str]) -> str:
        pairs = zip(names, leaves, strict=True)
        return ", ".join(f"[{json.dumps(name)}, {_type(leaf)}, {count_of(leaf)}]" for name, leaf in pairs)

    inputs, outputs = rows(entry.inputs, entry.input_names), rows(entry.outputs, entry.output_names)
    return f"{{ inputs: [{inputs}], outputs: [{outputs}] }}"


def _lines(items: Iterable[str]) -> str:
    lines = "".join(f"\n  {item}," for item in items)
    return f"{lines}\n" if lines else ""


def _arrays(leaves: tuple[Leaf, ...], names: list[str]) -> str:
    return f"{{ {', '.join(f'{n}: {described(leaf)}' for n, leaf in zip(names, leaves, strict=True))} }}"


def _usage(layout: Layout, empty: bool) -> list[str]:
    """How it is used. `empty`: there are no numbers to start from."""
    start = f"{layout.name}.restore(bytes);   // a state: of `save`, or of Python's `step.write_state`"
    lines = [start] if empty else []
    for entry in layout.entries:
        given, results = ", ".join(entry.input_names), ", ".join(entry.output_names)
        lines.append(f"const {{ {results} }} = {layout.name}.{entry.verb}({{ {given} }});")
    return lines
