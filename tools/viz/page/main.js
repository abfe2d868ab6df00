// The page: makes the panes, and brings a selection that starts in one of them to all.

let tipElement = null;

function showTip(event, text) {
  if (!tipElement) {
    tipElement = document.createElement("div");
    tipElement.id = "tip";
    document.body.append(tipElement);
  }
  tipElement.textContent = text;
  tipElement.hidden = false;
  tipElement.style.left = `${Math.min(event.clientX + 14, innerWidth - tipElement.offsetWidth - 8)}px`;
  tipElement.style.top = `${Math.min(event.clientY + 14, innerHeight - tipElement.offsetHeight - 8)}px`;
}

function hideTip() {
  if (tipElement) tipElement.hidden = true;
}

class Viewer {
  constructor(model, elk) {
    this.model = model;
    this.layouts = new Layouts(elk);
    this.selection = new Selection(model);
    this.openLayers = new Set([""]);
    document.title = `${model.title} · Kaun`;
    byId("title").textContent = model.title;
    byId("title").title = model.title;
    for (const what of ["textContent", "title"]) byId("subtitle")[what] = model.subtitle;
    this.handlers = {
      nodes: (stage, numbers, label) => this.select(Selection.ofNodes(model, stage, numbers, label)),
      clear: () => this.select(new Selection(model)),
    };
    this.graphs = new Map();
    this.drawLayers();
    this.drawKernels();
    this.makeTexts();
    this.show(model.stages.length - 1, true);
    this.drawToggles();
    this.drawLegend();
    this.listen();
    this.select(this.selection);
  }

  // --- panes ---

  // Show or hide the graph of a stage.
  show(stage, wanted) {
    const found = this.graphs.get(stage);
    if (found && !wanted && this.graphs.size > 1) {
      found.element.remove();
      this.graphs.delete(stage);
    } else if (!found && wanted) {
      const view = new GraphView(byId("graphs"), this.model, stage, this.layouts, this.handlers);
      view.setMode(byId("colour").value);
      view.setSelection(this.selection);
      this.graphs.set(stage, view);
      const later = [...this.graphs.keys()].filter((other) => other > stage).sort()[0];
      if (later !== undefined) byId("graphs").insertBefore(view.element, this.graphs.get(later).element);
    }
  }

  drawLayers() {
    const rows = [];
    const most = this.model.layers.phases.reduce((a, b) => a + b, 0) || 1;
    const add = (layer, depth) => {
      const own = layer.phases.reduce((a, b) => a + b, 0);
      const isOpen = this.openLayers.has(layer.path);
      const row = element("div", "row");
      row.dataset.path = layer.path;
      row.tabIndex = 0;
      row.style.paddingLeft = `${6 + 12 * depth}px`;
      const twist = element("span", "twist", layer.children.size ? (isOpen ? "▾" : "▸") : "");
      const bar = element("span", "bar");
      layer.phases.forEach((share, i) => {
        const part = element("i");
        part.style.cssText = `width:${(100 * share) / most}%;background:var(--${PHASES[i]})`;
        bar.append(part);
      });
      const label = element("span", "label", layer.name || "whole step");
      const kind = this.model.kinds.get(layer.path);
      if (kind) label.append(element("small", "", ` ${kind}`));
      row.append(twist, label, element("span", "number", this.model.formatCost(own)), bar);
      row.title = `${layer.path || "everything"}: ${layer.nodes} nodes\n${layer.made || ""}`;
      rows.push(row);
      if (isOpen) for (const child of layer.children.values()) add(child, depth + 1);
    };
    add(this.model.layers, 0);
    byId("layers").querySelector(".body").replaceChildren(...rows);
    this.markLayers();
  }

  drawKernels() {
    const rows = [];
    const most = Math.max(...this.model.kernels.map((kernel) => this.model.cost(kernel)), 1e-30);
    let launch = -1;
    for (const kernel of this.model.kernels) {
      if (kernel.launch !== launch) {
        launch = kernel.launch;
        const alive = this.model.memory[launch];
        rows.push(element("div", "row launch", `launch ${launch}` + (alive ? ` · ${formatCount(alive)}B of intermediates alive` : "")));
      }
      const row = element("div", "row");
      row.dataset.kernel = kernel.number;
      row.tabIndex = 0;
      const bar = element("span", "bar");
      const part = element("i");
      part.style.cssText = `width:${(100 * this.model.cost(kernel)) / most}%;background:var(--accent)`;
      bar.append(part);
      row.append(
        element("span", "number", String(kernel.number).padStart(3, " ")), element("span", "label", `${kernel.name} → ${kernel.stores[0].replace(/^\w+ /, "")}`),
        element("span", "number", this.model.formatCost(this.model.cost(kernel))), bar,
      );
      row.title = `stores ${kernel.stores.join(", ")}\n${formatCount(kernel.flops)} operations, ${formatCount(kernel.bytes)}B, ${kernel.chunks} chunks\n` +
        kernel.apart.map((reason) => `apart from others: ${reason}`).join("\n");
      rows.push(row);
    }
    byId("kernels").querySelector(".body").replaceChildren(...rows);
    byId("kernels").querySelector("h2").textContent = `Kernels (${this.model.kernels.length} in ${launch + 1} ${launch ? "launches" : "launch"})`;
  }

  makeTexts() {
    const { model } = this;
    const parent = byId("texts");
    this.source = new TextPane(parent, "Source", (line) => this.select(Selection.ofLine(model, this.shownFile, line + 1)));
    this.stageText = new TextPane(parent, "Graph text", (line) => {
      const numbers = model.stages[this.textStage].nodesOfLine(line);
      this.select(Selection.ofNodes(model, this.textStage, numbers, `line ${line + 1} of ${model.stages[this.textStage].name}`));
    });
    const ofShown = (text) => (line) => {
      if (this.selection.first !== null) this.select(Selection.ofCode(model, this.selection.first, text, line));
    };
    this.code = {
      loop: new TextPane(parent, "Loop IR", ofShown("loop")),
      llvm: new TextPane(parent, "LLVM IR", ofShown("llvm")),
      assembly: new TextPane(parent, "Assembly", ofShown("assembly")),
    };
    this.panes = { source: this.source, "graph text": this.stageText, "loop IR": this.code.loop, "LLVM IR": this.code.llvm, assembly: this.code.assembly };
    this.textStage = model.stages.length - 1;
    this.shownFile = model.sources[0]?.file;
    const files = element("select");
    for (const source of model.sources) files.append(new Option(source.file.split("/").pop(), source.file));
    files.addEventListener("change", () => {
      this.shownFile = files.value;
      this.drawSource();
    });
    this.files = files;
    if (model.sources.length > 1) this.source.head.append(files);
    const stages = element("select");
    model.stages.forEach((stage, k) => stages.append(new Option(stage.name, k, k === this.textStage, k === this.textStage)));
    stages.addEventListener("change", () => {
      this.textStage = Number(stages.value);
      this.drawStageText();
    });
    this.stageText.head.append(stages);
  }

  // --- the selection ---

  select(selection) {
    if (selection !== this.selection) this.source.body.scrollLeft = 0;
    this.selection = selection;
    for (const view of this.graphs.values()) view.setSelection(selection);
    this.markLayers();
    this.markKernels();
    this.drawSource();
    this.drawStageText();
    this.drawCode();
    this.drawSelection();
  }

  drawSelection() {
    const bar = byId("selection");
    const { selection, model } = this;
    bar.replaceChildren();
    if (selection.empty) {
      bar.append(element("span", "", "Click a layer, a node, a kernel or a line: what belongs to it lights up in every stage. Double-click opens a layer; / searches."));
    } else {
      const counts = model.stages.map((stage, k) => `${selection.nodes[k].size} ${stage.name}`).join(", ");
      const label = element("b", "", selection.label);
      bar.append(label, element("span", "", `${counts} nodes · ${selection.kernels.size} ${selection.kernels.size === 1 ? "kernel" : "kernels"}`));
      if (selection.kernels.size > 1) {
        bar.append(
          button("‹", "the kernel before", () => this.step(-1)), element("span", "", `showing kernel ${selection.first}`),
          button("›", "the next kernel", () => this.step(1)),
        );
      }
      const path = this.layerOfSelection();
      if (path && selection.path === null) bar.append(button(`layer ${path}`, "select the layer", () => this.select(Selection.ofLayer(model, path))));
      bar.append(button("show in graph", "open the layers around it", () => this.revealSelection()), button("clear", "select nothing", () => this.handlers.clear()));
    }
  }

  // Which graphs and texts are shown.
  drawToggles() {
    const bar = byId("shown");
    const toggle = (name, title, isShown, change) => {
      const made = button(name, title, () => {
        change();
        this.drawToggles();
      });
      made.setAttribute("aria-pressed", String(isShown));
      bar.append(made);
    };
    bar.replaceChildren(element("span", "", "graphs"));
    this.model.stages.forEach((stage, k) => {
      toggle(stage.name, "show or hide this stage's graph", this.graphs.has(k), () => this.show(k, !this.graphs.has(k)));
    });
    bar.append(element("span", "", "texts"));
    for (const [name, pane] of Object.entries(this.panes)) {
      toggle(name, "show or hide this text", !pane.element.hidden, () => (pane.element.hidden = !pane.element.hidden));
    }
  }

  // What the colours of the graph mean.
  drawLegend() {
    const mode = byId("colour").value;
    const patch = (colour, text) => {
      const made = element("i");
      made.style.background = colour;
      return [made, element("span", "", text)];
    };
    const steps = [0, 0.0625, 0.25, 0.5625, 1].map(heat);
    byId("legend").replaceChildren(...(mode === "phase" ? PHASES.flatMap((phase) => patch(`var(--${phase})`, phase))
      : [element("span", "", "none"), ...patch(`linear-gradient(90deg, ${steps.join(", ")})`, mode === "time" ? "most time" : "most bytes kept")]));
    byId("legend").className = mode;
  }

  // The layer that most of the selected nodes are in.
  layerOfSelection() {
    const counts = new Map();
    const last = this.model.last;
    for (const n of this.selection.nodes[this.model.stages.length - 1]) {
      const node = last.nodes[n];
      if (node.path && !node.isInput) counts.set(node.path, (counts.get(node.path) || 0) + node.weight + 1e-12);
    }
    return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
  }

  step(by) {
    const kernels = [...this.selection.kernels];
    const place = (kernels.indexOf(this.selection.first) + by + kernels.length) % kernels.length;
    this.selection.first = kernels[place];
    this.selection.takeCode(this.model);
    this.select(this.selection);
  }

  revealSelection() {
    for (const view of this.graphs.values()) view.revealSelection();
  }

  markLayers() {
    const paths = new Set();
    const last = this.model.last;
    for (const n of this.selection.nodes[this.model.stages.length - 1]) if (!last.nodes[n].isInput) paths.add(last.nodes[n].path);
    for (const row of byId("layers").querySelectorAll(".row")) {
      const { path } = row.dataset;
      row.classList.toggle("picked", path !== "" && [...paths].some((one) => one === path || one.startsWith(`${path}.`)));
      row.classList.toggle("first", this.selection.path === path);
    }
  }

  markKernels() {
    let shown = null;
    for (const row of byId("kernels").querySelectorAll("[data-kernel]")) {
      const number = Number(row.dataset.kernel);
      row.classList.toggle("picked", this.selection.kernels.has(number));
      row.classList.toggle("first", this.selection.first === number);
      if (this.selection.first === number) shown = row;
    }
    if (!shown) return;
    const body = shown.parentElement; // the pane alone scrolls, not a narrow page
    const [top, bottom] = [shown.offsetTop, shown.offsetTop + shown.offsetHeight - body.clientHeight];
    body.scrollTop = Math.min(top, Math.max(bottom, body.scrollTop));
  }

  drawSource() {
    const { selection, model } = this;
    if (!selection.empty && selection.lines.size && !selection.lines.has(this.shownFile)) {
      this.shownFile = [...selection.lines].sort((a, b) => b[1].size - a[1].size)[0][0];
      this.files.value = this.shownFile;
    }
    const source = model.sources.find((one) => one.file === this.shownFile);
    if (!source) return this.source.show("", "no line of yours");
    const lines = source.lines.length ? source.lines : ["(this file cannot be read here)"];
    const picked = new Set([...(selection.lines.get(source.file) || [])].map((line) => line - 1));
    this.source.show(lines, model.sources.length > 1 ? "" : source.file.split("/").pop(), picked, new Set(source.used.map((line) => line - 1)));
  }

  drawStageText() {
    const stage = this.model.stages[this.textStage];
    stage.lines ||= stage.text.split("\n");
    this.stageText.show(stage.lines, "", new Set([...this.selection.nodes[this.textStage]].map((n) => stage.lineOf(n))));
  }

  drawCode() {
    const { first, code } = this.selection;
    if (first === null) {
      this.code.loop.show(this.model.texts.fused, "launches and kernels");
      this.code.llvm.show(this.model.texts.entry, "the entry, which calls the kernels");
      this.code.assembly.show("", "select something that has a kernel");
      return;
    }
    const kernel = this.model.kernels[first];
    const module = this.model.modules[kernel.module];
    const others = this.model.kernels.filter((other) => other.module === kernel.module).length - 1;
    const note = `kernel ${first}` + (others ? `, the same code as ${others} more` : "");
    for (const [name, pane] of Object.entries(this.code)) {
      const lines = module.lines(name);
      const begins = lines.findIndex((line) => /^(define .*@"?|_?)kernel_\d+"?[:(]/.test(line));
      const { own, nearest } = code ? module.linesFor(name, code) : { own: new Set(), nearest: new Set(lines.keys()) };
      pane.show(lines, note, own, new Set(), Math.max(0, begins), nearest);
    }
  }

  // --- what people do ---

  listen() {
    byId("layers").addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      const { path } = row.dataset;
      if (event.target.closest(".twist")?.textContent) {
        if (!this.openLayers.delete(path)) this.openLayers.add(path);
        this.drawLayers();
      } else this.select(Selection.ofLayer(this.model, path));
    });
    byId("layers").addEventListener("dblclick", (event) => event.target.closest(".row") && this.revealSelection());
    byId("kernels").addEventListener("click", (event) => {
      const row = event.target.closest("[data-kernel]");
      if (row) this.select(Selection.ofKernel(this.model, Number(row.dataset.kernel)));
    });
    byId("colour").addEventListener("change", () => {
      for (const view of this.graphs.values()) view.setMode(byId("colour").value);
      this.drawLegend();
    });
    for (const id of ["layers", "kernels"]) byId(id).addEventListener("keydown", (event) => this.rowKey(event));
    document.addEventListener("pointerdown", (event) => {
      if (!event.target.closest("#search")) byId("found").hidden = true;
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.graphs.forEach((view) => view.draw()));
    document.addEventListener("keydown", (event) => {
      const typing = event.target.matches("input, select");
      if (event.key === "/" && !typing) {
        event.preventDefault();
        byId("query").focus();
      } else if (event.key === "Escape") {
        byId("found").hidden = true;
        if (!typing) this.handlers.clear();
      } else if ((event.key === "[" || event.key === "]") && !typing && this.selection.kernels.size > 1) this.step(event.key === "[" ? -1 : 1);
    });
    byId("query").addEventListener("input", () => this.search(byId("query").value));
    byId("query").addEventListener("keydown", (event) => this.searchKey(event));
    byId("found").addEventListener("click", (event) => this.take(event.target.closest("li")));
  }

  // Rows by the keyboard: up and down, to open and close a layer right and left, to select Enter.
  rowKey(event) {
    const row = event.target.closest(".row[tabindex]");
    if (!row) return;
    const rows = [...event.currentTarget.querySelectorAll(".row[tabindex]")];
    const to = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (to) rows[rows.indexOf(row) + to]?.focus();
    else if (event.key === "Enter" || event.key === " ") row.querySelector(".label").click();
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const { path } = row.dataset;
      if (!row.querySelector(".twist")?.textContent || this.openLayers.has(path) === (event.key === "ArrowRight")) return;
      row.querySelector(".twist").click();
      byId("layers").querySelector(`[data-path="${CSS.escape(path)}"]`).focus();
    } else return;
    event.preventDefault();
  }

  search(text) {
    const list = byId("found");
    this.hits = text.trim() ? find(this.model, text.trim().toLowerCase()) : [];
    list.replaceChildren(...this.hits.map((hit, i) => {
      const row = element("li", i ? "" : "current", hit.label);
      row.dataset.hit = i;
      row.append(element("small", "", `  ${hit.what}`));
      return row;
    }));
    if (!this.hits.length && text.trim()) list.append(element("li", "", "nothing found"));
    list.hidden = !text.trim();
  }

  searchKey(event) {
    const rows = [...byId("found").children];
    const current = rows.findIndex((row) => row.classList.contains("current"));
    if (event.key === "Enter") this.take(rows[current]);
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    const next = (current + (event.key === "ArrowDown" ? 1 : -1) + rows.length) % rows.length;
    rows.forEach((row, i) => row.classList.toggle("current", i === next));
    rows[next]?.scrollIntoView({ block: "nearest" });
  }

  take(row) {
    const hit = this.hits?.[row?.dataset.hit];
    if (!hit?.select) return;
    byId("found").hidden = true;
    this.select(hit.select());
    this.revealSelection();
  }
}

// What a search finds: layers first, then inputs, ops by kind, kernels, source lines (also by file.py:29) and types.
function find(model, text) {
  const hits = [];
  const most = 60;
  const layers = (layer) => {
    if (layer.path.toLowerCase().includes(text)) hits.push({ label: layer.path, what: `layer, ${layer.nodes} nodes`, select: () => Selection.ofLayer(model, layer.path) });
    for (const child of layer.children.values()) layers(child);
  };
  layers(model.layers);
  const last = model.stages.length - 1;
  const kinds = new Map();
  for (const node of model.last.nodes) {
    if (node.isInput && node.note.toLowerCase().includes(text)) {
      hits.push({ label: node.note, what: `input ${node.type}`, select: () => Selection.ofNodes(model, last, [node.number], node.note) });
    } else if (!node.isInput && node.op.includes(text)) {
      if (!kinds.has(node.op)) kinds.set(node.op, []);
      kinds.get(node.op).push(node.number);
    }
  }
  for (const [op, numbers] of kinds) hits.push({ label: op, what: `op, ${numbers.length} nodes`, select: () => Selection.ofNodes(model, last, numbers, `every ${op}`) });
  for (const kernel of model.kernels) {
    const label = `kernel ${kernel.number}`;
    if (`${label} ${kernel.name}`.toLowerCase().includes(text)) hits.push({ label, what: kernel.name, select: () => Selection.ofKernel(model, kernel.number) });
  }
  for (const source of model.sources) {
    for (const line of source.used) {
      const shown = (source.lines[line - 1] || "").trim();
      const place = `${source.file.split("/").pop()}:${line}`;
      const isPlace = text.includes(":") && place.toLowerCase().startsWith(text);
      if (isPlace || shown.toLowerCase().includes(text)) hits.push({ label: shown || place, what: place, select: () => Selection.ofLine(model, source.file, line) });
    }
  }
  const plain = (type) => type.toLowerCase().replaceAll(" ", "");
  const types = new Map();
  for (const node of model.last.nodes) {
    if (node.isConstant || !plain(node.type).includes(plain(text))) continue;
    types.set(node.type, [...(types.get(node.type) || []), node.number]);
  }
  for (const [type, numbers] of types) hits.push({ label: type, what: `type of ${numbers.length} ${numbers.length === 1 ? "node" : "nodes"}`, select: () => Selection.ofNodes(model, last, numbers, `every ${type}`) });
  return hits.length > most ? [...hits.slice(0, most), { label: `and ${hits.length - most} more`, what: "write more of it", select: null }] : hits;
}

const byId = (id) => document.getElementById(id);

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function button(text, title, onClick) {
  const made = element("button", "", text);
  made.title = title;
  made.addEventListener("click", onClick);
  return made;
}

async function start() {
  const began = performance.now();
  const [data, worker] = await Promise.all([unpacked("data"), unpacked("layout-worker")]);
  const url = URL.createObjectURL(new Blob([worker], { type: "text/javascript" }));
  const elk = new ELK({ workerFactory: () => new Worker(url) });
  const viewer = new Viewer(new Model(JSON.parse(data)), elk);
  window.viewer = viewer;
  const [view] = viewer.graphs.values();
  const wait = setInterval(() => {
    if (!view.boxes) return;
    clearInterval(wait);
    document.documentElement.dataset.ready = String(Math.round(performance.now() - began));
  }, 10);
}

start().catch((error) => {
  byId("selection").textContent = `This page could not be drawn: ${error.message}`;
  document.documentElement.dataset.failed = String(error);
});
