// Runs compiled programs on the inputs in input.bin and writes their outputs to output.bin: run_programs.c for
// WebAssembly. What the programs are is in table.json; the module exports their entries.
import { readFileSync, writeFileSync } from "node:fs";

const GUARD = 64;
const RUBBISH = 0xff;
const module = await WebAssembly.compile(readFileSync("programs.wasm"));
const { exports } = await WebAssembly.instantiate(module, {});
const input = readFileSync("input.bin");
const results = [];
let position = 0;

for (const [number, program] of JSON.parse(readFileSync("table.json", "utf8")).entries()) {
  let top = exports.__heap_base.value;
  const place = (size) => {
    const start = Math.ceil((top + GUARD) / GUARD) * GUARD;
    top = start + size + GUARD;
    return start;
  };
  const starts = program.sizes.map(place);
  const workspace = place(program.workspace);
  const table = place(4 * Math.max(1, starts.length));
  const needed = Math.ceil((top - exports.memory.buffer.byteLength) / 65536);
  if (needed > 0) exports.memory.grow(needed);
  const bytes = new Uint8Array(exports.memory.buffer);
  bytes.fill(RUBBISH, exports.__heap_base.value, top);
  starts.slice(0, program.inputs).forEach((start, i) => {
    bytes.set(input.subarray(position, position + program.sizes[i]), start);
    position += program.sizes[i];
  });
  new Uint32Array(exports.memory.buffer, table, starts.length).set(starts);
  exports[program.name](table, 0, workspace);
  const kept = new Uint8Array(exports.memory.buffer);
  [...program.sizes, program.workspace].forEach((size, i) => {
    const start = i < starts.length ? starts[i] : workspace;
    for (let at = 0; at < GUARD; at++) {
      if (kept[start - GUARD + at] !== RUBBISH || kept[start + size + at] !== RUBBISH) {
        console.error(`program ${number} wrote beside array ${i}`);
        process.exit(1);
      }
    }
  });
  for (let i = program.inputs; i < starts.length; i++) {
    results.push(Buffer.from(kept.slice(starts[i], starts[i] + program.sizes[i])));
  }
}
writeFileSync("output.bin", Buffer.concat(results));
