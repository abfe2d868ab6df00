// The model: the data of the page with what is looked up in it, and nothing of how it is shown.

async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const PHASES = ["forward", "backward", "update"];

class Stage {
  // nodes: {number, op, type, path, phase, file, line, inputs, users, note, bytes}
  constructor(data, strings) {
    this.name = data.name;
    this.text = data.text;
    this.outputs = new Set(data.outputs);
    this.nodes = data.nodes.map(([op, type, path, phase, file, line, inputs, note, bytes], number) => ({
      number, op: strings[op], type: strings[type], path: strings[path], phase: strings[phase], file: strings[file],
      line, inputs, users: [], note: strings[note], bytes, weight: 0, kept: 0,
    }));
    for (const node of this.nodes) for (const input of node.inputs) this.nodes[input].users.push(node.number);
    // An input belongs to the phase that reads it first.
    for (const node of this.nodes) {
      node.isInput = node.phase === "input";
      if (node.isInput) node.phase = node.users.length ? this.nodes[Math.min(...node.users)].phase : "forward";
      node.isConstant = !node.isInput && node.inputs.length === 0;
    }
    this.links = data.links;
    this.after = this.nodes.map(() => []); // counterparts in the next stage
    this.inputCount = this.nodes.filter((node) => node.isInput).length;
  }

  // Which line of the stage's text a node is on, and the other way round: the first line names all inputs.
  lineOf(number) {
    return number < this.inputCount ? 0 : number - this.inputCount + 1;
  }

  nodesOfLine(line) {
    if (line === 0) return this.nodes.filter((node) => node.isInput).map((node) => node.number);
    const number = line - 1 + this.inputCount;
    return number < this.nodes.length ? [number] : [...this.outputs];
  }
}

// The code that equal kernels share: its texts, and for which lines of its loop IR each line of the others is.
class Module {
  constructor(data) {
    this.texts = { loop: data.loop, llvm: data.llvm, assembly: data.assembly };
    this.runs = data.lines;
    this.sets = data.sets;
    this.split = {};
    this.spread = {};
  }

  lines(name) {
    return (this.split[name] ||= this.texts[name].split("\n"));
  }

  // The lines of loop IR, counted from 1, that a line of a text, counted from 0, is for; none if nothing tells.
  loopLines(name, line) {
    if (name === "loop") return [line + 1];
    if (!this.spread[name]) {
      const runs = this.runs[name];
      this.spread[name] = [];
      for (let i = 0; i < runs.length; i += 2) for (let k = 0; k < runs[i + 1]; k++) this.spread[name].push(this.sets[runs[i]]);
    }
    return this.spread[name][line] || [];
  }

  // The lines of a text that are for these lines of loop IR, and of those that have none (a product, where it is part of a
  // multiply-add) the lines for what uses them, or all if there are none either: {own, nearest}
  linesFor(name, wanted) {
    const [own, nearest, there] = [new Set(), new Set(), new Map()];
    this.lines(name).forEach((_, line) => {
      for (const one of this.loopLines(name, line)) {
        if (!there.has(one)) there.set(one, []);
        there.get(one).push(line);
      }
    });
    for (const one of wanted) for (const line of there.get(one) || []) own.add(line);
    const next = [...wanted].filter((one) => !there.has(one));
    for (const one of next) {
      for (const user of this.users(one)) {
        if (there.has(user)) there.get(user).forEach((line) => own.has(line) || nearest.add(line));
        else if (!next.includes(user)) next.push(user);
      }
    }
    return { own, nearest: own.size || nearest.size ? nearest : new Set(this.lines(name).keys()) };
  }

  // The lines of loop IR that use what one of them defines, all counted from 1.
  users(line) {
    if (!this.uses) {
      this.uses = new Map();
      let contraction = 0;
      this.lines("loop").forEach((text, i) => {
        if (/^\s*(contract|product|sum) /.test(text)) contraction = i + 1;
        const user = /^\s*(left|right) /.test(text) ? contraction : i + 1;
        for (const name of new Set(text.match(/\b[vsp]\d+\b/g) || [])) {
          if (name !== definedIn(text)) this.uses.set(name, [...(this.uses.get(name) || []), user]);
        }
      });
    }
    return this.uses.get(definedIn(this.lines("loop")[line - 1])) || [];
  }
}

// The name that a line of loop IR gives to what it computes, keeps or closes.
const definedIn = (text) => (/^\s*(?:([vs]\d+) = |(?:keep v\d+|\}) = (p\d+))/.exec(text) || []).slice(1).find(Boolean);

class Model {
  constructor(data) {
    Object.assign(this, { title: data.title, subtitle: data.subtitle, measured: data.measured });
    this.modules = data.modules.map((module) => new Module(module));
    this.stages = data.stages.map((stage) => new Stage(stage, data.strings));
    for (let k = 1; k < this.stages.length; k++) {
      this.stages[k].links.forEach((before, number) => {
        for (const other of before) this.stages[k - 1].after[other].push(number);
      });
    }
    this.kernels = data.kernels.map((kernel, number) => ({ number, ...kernel }));
    this.sources = data.sources.map((source) => ({ ...source, file: data.strings[source.file] }));
    this.memory = data.memory;
    this.texts = { fused: data.fused, entry: data.entry };
    this.weigh();
  }

  // The nodes that lines of a kernel's loop IR come from: {line, counted from 1: nodes}
  nodesByLine(kernel) {
    if (!kernel.byLine) {
      kernel.byLine = new Map();
      for (let i = 0; i < kernel.lines.length; i += 2) {
        const [line, node] = kernel.lines.slice(i, i + 2);
        kernel.byLine.set(line, [...(kernel.byLine.get(line) || []), node]);
      }
    }
    return kernel.byLine;
  }

  // The kernels that load or compute a node, by the lines of their loop IR.
  kernelsWith(node) {
    if (!this.withNode) {
      this.withNode = new Map();
      for (const kernel of this.kernels) {
        for (const n of new Set([...this.nodesByLine(kernel).values()].flat())) {
          if (!this.withNode.has(n)) this.withNode.set(n, []);
          this.withNode.get(n).push(kernel.number);
        }
      }
    }
    return this.withNode.get(node) || [];
  }

  get last() {
    return this.stages[this.stages.length - 1];
  }

  // What a kernel costs: its time if that was measured, else what it computes and moves, a byte like 4 operations.
  cost(kernel) {
    return this.measured ? kernel.seconds : kernel.flops + 4 * kernel.bytes;
  }

  // Spread each kernel's cost over its nodes, by their size, and give it to the layers. What a node keeps in memory are
  // its bytes if a kernel stores it or it is given, and else none: most nodes exist only while a kernel runs.
  weigh() {
    const last = this.last;
    this.kernelsOf = last.nodes.map(() => []);
    this.total = 0;
    for (const kernel of this.kernels) {
      const cost = this.cost(kernel);
      this.total += cost;
      const working = kernel.nodes.filter((number) => !last.nodes[number].isConstant && !last.nodes[number].isInput);
      const sizes = working.map((number) => last.nodes[number].bytes + 1);
      const sum = sizes.reduce((a, b) => a + b, 0);
      working.forEach((number, i) => (last.nodes[number].weight += (cost * sizes[i]) / sum));
      for (const number of kernel.nodes) this.kernelsOf[number].push(kernel.number);
    }
    for (const node of last.nodes) if (node.isInput) node.kept = node.bytes;
    for (const kernel of this.kernels) for (const number of kernel.outputs) last.nodes[number].kept = last.nodes[number].bytes;
    for (let k = this.stages.length - 1; k > 0; k--) {
      for (const node of this.stages[k].nodes) {
        const before = this.stages[k].links[node.number];
        for (const number of before) {
          this.stages[k - 1].nodes[number].weight += node.weight / before.length;
          this.stages[k - 1].nodes[number].kept += node.kept / before.length;
        }
      }
    }
    this.layers = layerTree(last.nodes, firstSeen(this.stages[0].nodes));
    this.kinds = new Map();
    this.describe(this.layers);
  }

  // What made each layer: the line of the source that most of its forward pass comes from, and its kind if that is certain,
  // from all layers of a line together or, where a function makes them for several parents, from those of each.
  describe(root) {
    const together = new Map(); // place -> path of a parent -> layers
    const collect = (layer) => {
      for (const child of layer.children.values()) {
        collect(child);
        const place = child.children.size ? undefined : this.placeOf(child);
        if (!place) continue;
        if (!together.has(place)) together.set(place, new Map());
        const parents = together.get(place);
        parents.set(layer.path, [...(parents.get(layer.path) || []), child]);
      }
    };
    collect(root);
    for (const [place, parents] of together) {
      const [file, line] = place.split("\n");
      const lines = this.sources.find((source) => source.file === file)?.lines || [];
      const whole = [...parents.values()].flat();
      const groups = kindsOn(lines, Number(line), whole.length).length ? [whole] : parents.values();
      for (const made of groups) {
        const kinds = kindsOn(lines, Number(line), made.length);
        made.forEach((layer, i) => {
          layer.made = (lines[line - 1] || "").trim();
          if (kinds[i]) this.kinds.set(layer.path, kinds[i]);
        });
      }
    }
  }

  placeOf(layer) {
    const counts = new Map();
    for (const node of this.last.nodes) {
      if (node.path !== layer.path || node.phase !== "forward" || !node.file || node.isInput) continue;
      const key = `${node.file}\n${node.line}`;
      counts.set(key, (counts.get(key) || 0) + 1);
    }
    return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
  }

  formatCost(cost) {
    return this.measured ? formatSeconds(cost) : `${((100 * cost) / this.total || 0).toFixed(1)}%`;
  }
}

// The kinds of `count` layers that a line, counted from 1, makes: the one it names, or each the one in its place if it names
// as many; of a layer that is made by hand the function it is made in. Empty if the line does not tell.
function kindsOn(lines, line, count) {
  const text = lines[line - 1] || "";
  const named = (text.match(/\blayer\.\w+(?=\()/g) || []).map((name) => name.slice("layer.".length));
  const kinds = named.filter((name) => !["sequential", "compose", "residual"].includes(name)); // these are made of others
  if (kinds.length === count) return kinds;
  if (kinds.length === 1 && named.length === 1) return Array(count).fill(kinds[0]);
  return named.length || !/\bLayer\(/.test(text) ? [] : Array(count).fill(functionAround(lines, line));
}

// The name of the function that a line is in, by how far the lines are indented.
function functionAround(lines, line) {
  let least = lines[line - 1].search(/\S/);
  for (let i = line - 2; i >= 0 && least > 0; i--) {
    const indent = lines[i].search(/\S/);
    if (indent < 0 || indent >= least || /^\s*[)\]}]/.test(lines[i])) continue; // a bracket ends what began above it
    const name = /^\s*(?:async )?def (\w+)/.exec(lines[i])?.[1];
    if (name) return name;
    least = indent;
  }
  return undefined;
}

// Where in the forward pass each layer is, by its path: the middle of its nodes' numbers.
function firstSeen(nodes) {
  const places = new Map();
  for (const node of nodes) {
    if (node.isConstant || node.isInput || node.phase !== "forward") continue;
    const parts = node.path ? node.path.split(".") : [];
    for (let depth = 1; depth <= parts.length; depth++) {
      const path = parts.slice(0, depth).join(".");
      const place = places.get(path) || { sum: 0, count: 0 };
      places.set(path, { sum: place.sum + node.number, count: place.count + 1 });
    }
  }
  return new Map([...places].map(([path, { sum, count }]) => [path, sum / count]));
}

// The layers by the parts of their paths, in the order of `seen`: {name, path, children, nodes, phases: cost of each}
function layerTree(nodes, seen) {
  const root = { name: "", path: "", children: new Map(), nodes: 0, phases: [0, 0, 0] };
  for (const node of nodes) {
    if (node.isConstant) continue;
    let here = root;
    const add = () => {
      here.nodes += 1;
      here.phases[PHASES.indexOf(node.phase)] += node.weight;
    };
    add();
    for (const part of node.path ? node.path.split(".") : []) {
      if (!here.children.has(part)) {
        const path = here.path ? `${here.path}.${part}` : part;
        here.children.set(part, { name: part, path, children: new Map(), nodes: 0, phases: [0, 0, 0] });
      }
      here = here.children.get(part);
      add();
    }
  }
  const place = (layer) => seen.get(layer.path) ?? Infinity;
  const isNumber = (layer) => /^\d+$/.test(layer.name);
  const sort = (layer) => {
    const children = [...layer.children.values()].sort((a, b) => place(a) - place(b) || 0);
    const numbered = children.filter(isNumber).sort((a, b) => a.name - b.name);
    layer.children = new Map(children.map((child) => (isNumber(child) ? numbered.shift() : child)).map((child) => [child.name, child]));
    layer.children.forEach(sort);
  };
  sort(root);
  return root;
}

const inLayer = (node, path) => node.path === path || node.path.startsWith(`${path}.`);

function formatSeconds(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  if (seconds >= 1e-3) return `${(seconds * 1e3).toFixed(2)} ms`;
  return `${(seconds * 1e6).toFixed(1)} µs`;
}

function formatCount(count) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (count >= size) return `${(count / size).toFixed(1)}${unit}`;
  return String(count);
}
