// Trains in Node.js on data.json with an export for WebAssembly; prints each loss and writes step.state.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { load } = await import(pathToFileURL("step.mjs").href);
const { steps, x, y } = JSON.parse(readFileSync("data.json", "utf8"));
const step = await load(readFileSync("step.wasm"));
for (let number = 0; number < steps; number++) {
  const batch = number % x.length;
  const { loss } = step.run({ x: Float32Array.from(x[batch]), y: Int32Array.from(y[batch]) });
  console.log(`step ${number + 1}: loss ${loss[0]}`);
}
writeFileSync("step.state", step.save());
