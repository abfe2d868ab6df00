// A selection: what somebody picked, and its counterparts in every stage.

const TEXT_NAMES = { loop: "loop IR", llvm: "LLVM IR", assembly: "assembly" };

class Selection {
  constructor(model) {
    this.label = "";
    this.nodes = model.stages.map(() => new Set());
    this.kernels = new Set();
    this.first = null; // the kernel whose texts are shown
    this.code = null; // the lines of its loop IR, counted from 1, that are meant; null for all of it
    this.lines = new Map(); // file -> lines
    this.path = null; // of a layer, if one was picked
    this.empty = true;
  }

  // From nodes of one stage to their counterparts in the others, their kernels and their lines.
  static ofNodes(model, stage, numbers, label) {
    const found = new Selection(model);
    found.label = label;
    found.nodes[stage] = new Set(numbers);
    for (let k = stage; k > 0; k--) {
      for (const n of found.nodes[k]) for (const before of model.stages[k].links[n]) found.nodes[k - 1].add(before);
    }
    for (let k = stage; k + 1 < model.stages.length; k++) {
      for (const n of found.nodes[k]) for (const after of model.stages[k].after[n]) found.nodes[k + 1].add(after);
    }
    found.takeKernels(model);
    found.finish(model);
    return found;
  }

  static ofLayer(model, path) {
    const found = new Selection(model);
    found.label = path ? `layer ${path}` : "the whole step";
    found.path = path;
    model.stages.forEach((stage, k) => {
      for (const node of stage.nodes) if (!path || inLayer(node, path)) found.nodes[k].add(node.number);
    });
    found.takeKernels(model);
    found.finish(model);
    return found;
  }

  static ofKernel(model, number) {
    const found = new Selection(model);
    const kernel = model.kernels[number];
    found.label = `kernel ${number}`;
    found.kernels.add(number);
    found.first = number;
    const last = model.stages.length - 1;
    for (const n of kernel.nodes) if (!model.last.nodes[n].isConstant) found.nodes[last].add(n);
    found.takeBefore(model);
    found.finish(model);
    return found;
  }

  // A line of one of the texts of a kernel, counted from 0: what it is for or, where nothing tells, all of the kernel.
  static ofCode(model, number, text, line) {
    const kernel = model.kernels[number];
    const lines = model.modules[kernel.module].loopLines(text, line);
    const nodes = new Set(lines.flatMap((one) => model.nodesByLine(kernel).get(one) || []));
    if (!nodes.size) return Selection.ofKernel(model, number);
    const found = new Selection(model);
    const last = model.stages.length - 1;
    const ops = [...new Set([...nodes].map((n) => model.last.nodes[n].op))].join(", ");
    found.label = `${ops}: line ${line + 1} of kernel ${number}'s ${TEXT_NAMES[text]}`;
    found.nodes[last] = nodes;
    found.takeBefore(model);
    found.kernels.add(number);
    found.first = number;
    found.code = new Set(lines);
    found.finish(model);
    return found;
  }

  static ofLine(model, file, line) {
    const found = new Selection(model);
    found.label = `${file.split("/").pop()}:${line}`;
    model.stages.forEach((stage, k) => {
      for (const node of stage.nodes) if (node.line === line && node.file === file) found.nodes[k].add(node.number);
    });
    found.takeKernels(model);
    found.finish(model);
    return found;
  }

  // The counterparts of the last stage's nodes in those before it.
  takeBefore(model) {
    for (let k = model.stages.length - 1; k > 0; k--) {
      for (const n of this.nodes[k]) for (const before of model.stages[k].links[n]) this.nodes[k - 1].add(before);
    }
  }

  takeKernels(model) {
    const work = new Map();
    const last = model.last;
    for (const n of this.nodes[model.stages.length - 1]) {
      const node = last.nodes[n];
      if (node.isInput || node.isConstant) continue;
      for (const kernel of model.kernelsOf[n]) work.set(kernel, (work.get(kernel) || 0) + node.weight + 1e-12);
    }
    // Nothing computes what is given: its kernels are those that read it.
    if (!work.size) for (const n of this.nodes[model.stages.length - 1]) for (const kernel of model.kernelsWith(n)) work.set(kernel, model.cost(model.kernels[kernel]));
    this.kernels = new Set([...work.keys()].sort((a, b) => a - b));
    let most = -1;
    for (const [kernel, weight] of work) if (weight > most) [most, this.first] = [weight, kernel];
    if (this.first !== null) this.takeCode(model);
  }

  // Of the kernel whose texts are shown the lines that come from the nodes; all of it if no line is known to.
  takeCode(model) {
    const nodes = this.nodes[model.stages.length - 1];
    const lines = new Set();
    for (const [line, own] of model.nodesByLine(model.kernels[this.first])) if (own.some((n) => nodes.has(n))) lines.add(line);
    this.code = lines.size ? lines : null;
  }

  finish(model) {
    for (const [k, stage] of model.stages.entries()) {
      for (const n of this.nodes[k]) {
        const node = stage.nodes[n];
        if (!node.file) continue;
        if (!this.lines.has(node.file)) this.lines.set(node.file, new Set());
        this.lines.get(node.file).add(node.line);
      }
    }
    this.empty = false;
  }
}
