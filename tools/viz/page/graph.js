// A graph on a canvas: layers as boxes that open and close, laid out by ELK in a worker, drawn as far as it is in view.

const NODE_HEIGHT = 34;
// For a graph of thousands of boxes: what takes long is to make lines cross as little as possible, and to straighten them.
const QUICKLY = {
  "elk.layered.thoroughness": "1", "elk.layered.nodePlacement.strategy": "SIMPLE", "elk.edgeRouting": "POLYLINE",
  "elk.layered.layering.strategy": "LONGEST_PATH", "elk.layered.crossingMinimization.greedySwitch.type": "OFF",
  "elk.layered.crossingMinimization.greedySwitchHierarchical.type": "OFF",
};
const FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';

class GraphView {
  // onPick(numbers of nodes, label) and onPickLayer(path) are called for clicks.
  constructor(parent, model, stage, elk, handlers) {
    Object.assign(this, { model, number: stage, stage: model.stages[stage], elk, handlers });
    this.element = document.createElement("section");
    this.element.className = "pane";
    this.element.innerHTML = `<h2><span></span><small></small><span class="spacer"></span>
      <button data-do="open" title="open every layer">open all</button><button data-do="close">close all</button>
      <button data-do="fit" title="show the whole graph">fit</button></h2><div class="body"><canvas tabindex="0"></canvas></div>`;
    this.element.querySelector("span").textContent = this.stage.name;
    this.note = this.element.querySelector("small");
    this.body = this.element.querySelector(".body");
    this.body.style.overflow = "hidden";
    this.canvas = this.element.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    parent.append(this.element);
    this.element.querySelector("h2").addEventListener("click", (event) => {
      const what = event.target.dataset.do;
      if (what === "open") this.openAll();
      if (what === "close") this.closeAll();
      if (what === "fit") this.fit();
    });
    this.view = { x: 0, y: 0, zoom: 1 };
    this.selection = new Selection(model);
    this.makeGroups();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.body);
    this.open = this.openAtFirst();
    this.layout().then(() => this.begin());
  }

  // Groups by id: "", a phase, a phase with a layer's path.
  makeGroups() {
    this.groups = new Map();
    this.groupOf = new Map();
    const group = (id, name, path, parent) => {
      if (!this.groups.has(id)) {
        this.groups.set(id, { id, name, path, parent, phase: id.split("/")[0], children: [], nodes: [], own: [] });
        if (parent !== null) this.groups.get(parent).children.push(id);
      }
      return id;
    };
    group("", "", "", null);
    for (const node of this.stage.nodes) {
      if (node.isConstant || (node.isInput && !node.users.length)) continue;
      let here = group(node.phase, node.phase, "", "");
      let path = "";
      for (const part of node.path ? node.path.split(".") : []) {
        path = path ? `${path}.${part}` : part;
        here = group(`${node.phase}/${path}`, part, path, here);
      }
      this.groupOf.set(node.number, here);
      this.groups.get(here).own.push(node.number);
      for (let id = here; id !== null; id = this.groups.get(id).parent) this.groups.get(id).nodes.push(node.number);
    }
    for (const group of this.groups.values()) {
      group.weight = group.nodes.reduce((sum, n) => sum + this.stage.nodes[n].weight, 0);
      group.bytes = group.nodes.reduce((sum, n) => sum + this.stage.nodes[n].bytes, 0);
    }
  }

  // What stands for a node: itself if every group around it is open, else the outermost closed one.
  standIn(number) {
    let stands = `n${number}`;
    for (let id = this.groupOf.get(number); id; id = this.groups.get(id).parent) if (!this.open.has(id)) stands = `g${id}`;
    return stands;
  }

  openAll() {
    for (const id of this.groups.keys()) this.open.add(id);
    this.layout().then(() => this.fit());
  }

  // The phases, but for an update of many parameters, which is the same for each.
  openAtFirst() {
    const open = new Set(["", ...PHASES]);
    if ((this.groups.get("update")?.nodes.length || 0) > 60) open.delete("update");
    return open;
  }

  closeAll() {
    this.open = this.openAtFirst();
    this.layout().then(() => this.fit());
  }

  toggle(id) {
    if (!this.open.delete(id)) this.open.add(id);
    return this.layout(`g${id}`);
  }

  // Open what is around the selection, and show it: a picked layer as a whole, otherwise its first nodes.
  async revealSelection() {
    const { path } = this.selection;
    const wanted = new Set();
    const around = (id) => {
      for (; id; id = this.groups.get(id).parent) wanted.add(id);
    };
    if (path !== null) for (const phase of PHASES) around(this.groups.has(`${phase}/${path}`) ? `${phase}/${path}` : "");
    else [...this.selection.nodes[this.number]].filter((n) => this.groupOf.has(n)).slice(0, 40).forEach((n) => around(this.groupOf.get(n)));
    if ([...wanted].some((id) => !this.open.has(id))) {
      wanted.forEach((id) => this.open.add(id));
      await this.layout();
    }
    const boxes = [...this.pickedBoxes()].map((id) => this.boxes?.get(id)).filter(Boolean);
    if (!boxes.length) return;
    const ends = boxes.flatMap((b) => [{ x: b.x, y: b.y }, { x: b.x + b.width, y: b.y + b.height }]);
    const whole = bounds(ends);
    const { clientWidth: width, clientHeight: height } = this.body;
    const zoom = Math.min(1.1, (width - 60) / whole.width, (height - 60) / whole.height);
    if (zoom < 0.12) return this.centre(boxes[0]);
    this.view = { zoom, x: width / 2 - (whole.x + whole.width / 2) * zoom, y: height / 2 - (whole.y + whole.height / 2) * zoom };
    this.draw();
  }

  // Lay out what is seen now; `anchor`, a box, stays where it is on the screen.
  async layout(anchor) {
    const turn = (this.turn = (this.turn || 0) + 1);
    this.element.classList.add("busy");
    const seen = new Map();
    const edges = new Map();
    for (const node of this.stage.nodes) {
      if (!this.groupOf.has(node.number)) continue;
      const to = this.standIn(node.number);
      seen.set(to, node);
      for (const input of node.inputs) {
        if (!this.groupOf.has(input)) continue;
        const from = this.standIn(input);
        if (from === to) continue;
        const id = `${from}>${to}`;
        const types = edges.get(id) || { from, to, types: new Set(), nodes: new Set() };
        types.types.add(this.stage.nodes[input].type);
        types.nodes.add(input);
        edges.set(id, types);
      }
    }
    const build = (id) => {
      const group = this.groups.get(id);
      const children = group.own.map((n) => this.leaf(n));
      for (const child of group.children) children.push(this.open.has(child) ? build(child) : this.closed(child));
      const padding = id ? "[top=26,left=10,bottom=10,right=10]" : "[top=0,left=0,bottom=0,right=0]";
      return { id: `g${id}`, children, layoutOptions: { "elk.padding": padding } };
    };
    const graph = build("");
    graph.id = "root";
    graph.layoutOptions = {
      ...graph.layoutOptions,
      "elk.algorithm": "layered", "elk.direction": "RIGHT", "elk.hierarchyHandling": "INCLUDE_CHILDREN",
      "elk.json.shapeCoords": "ROOT", "elk.json.edgeCoords": "ROOT", "elk.layered.spacing.nodeNodeBetweenLayers": "26",
      "elk.spacing.nodeNode": "14", "elk.layered.spacing.edgeNodeBetweenLayers": "12", "elk.edgeRouting": "ORTHOGONAL",
      ...(seen.size > 1000 ? QUICKLY : {}),
    };
    graph.edges = [...edges].map(([id, edge]) => ({ id, sources: [edge.from], targets: [edge.to] }));
    const placed = await this.elk.layout(graph);
    if (turn !== this.turn) return; // a later one is on its way
    const before = anchor && this.boxes?.get(anchor);
    this.boxes = new Map();
    const collect = (shape, depth) => {
      const box = { id: shape.id, x: shape.x, y: shape.y, width: shape.width, height: shape.height, depth };
      if (shape.id !== "root") this.boxes.set(shape.id, this.described(box));
      for (const child of shape.children || []) collect(child, depth + 1);
    };
    collect(placed, 0);
    this.edges = placed.edges.filter((edge) => edge.sections).map((edge) => {
      const { startPoint, bendPoints = [], endPoint } = edge.sections[0];
      const { types, nodes } = edges.get(edge.id);
      const points = [startPoint, ...bendPoints, endPoint];
      const label = types.size === 1 ? [...types][0] : `${types.size} kinds`;
      return { points, label, nodes, from: edge.sources[0], to: edge.targets[0], box: bounds(points) };
    });
    this.size = { width: placed.width, height: placed.height };
    const shown = [...this.boxes.keys()].filter((id) => id[0] === "n").length;
    this.note.textContent = `${shown} of ${this.groupOf.size} nodes shown, the others in ${[...this.boxes.values()].filter((box) => box.group && !box.isOpen).length} closed layers`;
    const after = before && this.boxes.get(anchor);
    if (after) {
      this.view.x += (before.x - after.x) * this.view.zoom;
      this.view.y += (before.y - after.y) * this.view.zoom;
    }
    this.element.classList.remove("busy");
    this.setMode(this.mode);
  }

  leaf(number) {
    const node = this.stage.nodes[number];
    return { id: `n${number}`, width: Math.max(70, this.measure(this.title(node), 12), this.measure(node.type, 10)) + 16, height: NODE_HEIGHT };
  }

  closed(id) {
    const group = this.groups.get(id);
    return { id: `g${id}`, width: Math.max(110, this.measure(group.name, 13) + 60), height: 42 };
  }

  title(node) {
    return node.isInput ? node.note || "input" : node.op;
  }

  measure(text, size) {
    this.context.font = `${size}px ${FONT}`;
    return this.context.measureText(text).width;
  }

  // A box with what it shows.
  described(box) {
    const id = box.id.slice(1);
    if (box.id[0] === "n") return Object.assign(box, { node: this.stage.nodes[Number(id)] });
    return Object.assign(box, { group: this.groups.get(id), isOpen: this.open.has(id) });
  }

  // --- the view ---

  resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, this.body.clientWidth * ratio);
    this.canvas.height = Math.max(1, this.body.clientHeight * ratio);
    this.draw();
  }

  fit() {
    if (!this.size) return;
    const { clientWidth: width, clientHeight: height } = this.body;
    const zoom = Math.min(1.1, (width - 24) / this.size.width, (height - 24) / this.size.height);
    this.view = { zoom, x: (width - this.size.width * zoom) / 2, y: (height - this.size.height * zoom) / 2 };
    this.draw();
  }

  // The first look: the whole graph if it can be read so, else its beginning.
  begin() {
    this.fit();
    const least = 0.5;
    if (!this.size || this.view.zoom >= least) return;
    this.view = { zoom: least, x: 12, y: Math.max(12, (this.body.clientHeight - this.size.height * least) / 2) };
    this.draw();
  }

  centre(box) {
    const zoom = Math.max(this.view.zoom, 0.7);
    const { clientWidth: width, clientHeight: height } = this.body;
    this.view = { zoom, x: width / 2 - (box.x + box.width / 2) * zoom, y: height / 2 - (box.y + box.height / 2) * zoom };
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
    });
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    const found = {};
    for (const name of ["pane", "ink", "faint", "line", "accent", "picked", "picked-strong", "forward", "backward", "update", "input", "group", "node", "edge"]) {
      found[name] = style.getPropertyValue(`--${name}`).trim();
    }
    return found;
  }

  paint() {
    const c = this.context;
    const ratio = devicePixelRatio || 1;
    const colour = this.colours();
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = colour.pane;
    c.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.boxes) return;
    const { x, y, zoom } = this.view;
    c.setTransform(ratio * zoom, 0, 0, ratio * zoom, ratio * x, ratio * y);
    const area = { left: -x / zoom, top: -y / zoom, right: (this.body.clientWidth - x) / zoom, bottom: (this.body.clientHeight - y) / zoom };
    const visible = (b) => b.x < area.right && b.y < area.bottom && b.x + b.width > area.left && b.y + b.height > area.top;
    const picked = this.pickedBoxes();
    for (const box of this.boxes.values()) if (box.isOpen && visible(box)) this.paintOpen(box, colour, picked);
    for (const edge of this.edges) if (visible(edge.box)) this.paintEdge(edge, colour, picked);
    for (const box of this.boxes.values()) if (!box.isOpen && visible(box)) this.paintBox(box, colour, picked);
  }

  // The boxes that stand for selected nodes.
  pickedBoxes() {
    const picked = new Set();
    for (const number of this.selection.nodes[this.number]) if (this.groupOf.has(number)) picked.add(this.standIn(number));
    return picked;
  }

  shade(weight, bytes, phase, colour) {
    if (this.mode === "phase") return colour[phase] || colour.input;
    const share = this.mode === "time" ? weight / this.hottest.weight : bytes / this.hottest.bytes;
    return heat(share);
  }

  paintOpen(box, colour, picked) {
    const c = this.context;
    const { group } = box;
    c.fillStyle = colour.group;
    c.globalAlpha = 0.55;
    rounded(c, box, 8);
    c.fill();
    c.globalAlpha = 1;
    c.strokeStyle = colour[group.phase] || colour.line;
    c.lineWidth = picked.has(box.id) ? 2.5 : 1;
    c.stroke();
    if (this.view.zoom * 12 > 5) {
      c.fillStyle = colour[group.phase] || colour.ink;
      c.font = `600 12px ${FONT}`;
      c.fillText(`− ${group.name}`, box.x + 9, box.y + 17);
    }
  }

  paintEdge(edge, colour, picked) {
    const c = this.context;
    const strong = picked.has(edge.from) && picked.has(edge.to);
    c.strokeStyle = strong ? colour.accent : colour.edge;
    c.lineWidth = strong ? 1.8 : 1;
    c.globalAlpha = strong || !picked.size ? 0.95 : 0.5;
    c.beginPath();
    edge.points.forEach((p, i) => (i ? c.lineTo(p.x, p.y) : c.moveTo(p.x, p.y)));
    c.stroke();
    const end = edge.points[edge.points.length - 1];
    c.fillStyle = c.strokeStyle;
    c.beginPath();
    c.moveTo(end.x, end.y);
    c.lineTo(end.x - 6, end.y - 3);
    c.lineTo(end.x - 6, end.y + 3);
    c.fill();
    if (this.view.zoom > 0.75) {
      const start = edge.points[0];
      c.font = `9px ${FONT}`;
      c.fillStyle = colour.faint;
      c.fillText(edge.label, start.x + 4, start.y - 3);
    }
    c.globalAlpha = 1;
  }

  paintBox(box, colour, picked) {
    const c = this.context;
    const isPicked = picked.has(box.id);
    const item = box.node || box.group;
    const shade = this.shade(item.weight, item.bytes, item.phase, colour);
    c.globalAlpha = picked.size && !isPicked ? 0.55 : 1;
    rounded(c, box, box.node?.isInput ? 16 : 6);
    c.fillStyle = isPicked ? colour["picked-strong"] : colour.node;
    c.fill();
    c.strokeStyle = isPicked ? colour.accent : shade;
    c.lineWidth = isPicked ? 2.4 : 1.4;
    c.stroke();
    c.fillStyle = shade;
    c.fillRect(box.x + 1, box.y + 6, 4, box.height - 12);
    if (this.view.zoom * 12 > 4.5) {
      c.fillStyle = colour.ink;
      c.font = `${box.group ? "600 13px" : "12px"} ${FONT}`;
      c.fillText(box.group ? `+ ${box.group.name}` : this.title(box.node), box.x + 10, box.y + 15);
      c.fillStyle = colour.faint;
      c.font = `10px ${FONT}`;
      const below = box.group ? `${box.group.nodes.length} nodes  ${this.model.formatCost(box.group.weight)}` : box.node.type;
      c.fillText(below, box.x + 10, box.y + (box.group ? 32 : 28));
    }
    c.globalAlpha = 1;
  }

  setMode(mode) {
    this.mode = mode;
    const working = this.stage.nodes.filter((node) => this.groupOf.has(node.number));
    const boxes = this.boxes ? [...this.boxes.values()].filter((box) => !box.isOpen).map((box) => box.node || box.group) : working;
    this.hottest = {
      weight: boxes.reduce((most, item) => Math.max(most, item.weight), 1e-30),
      bytes: boxes.reduce((most, item) => Math.max(most, item.bytes), 1),
    };
    this.draw();
  }

  setSelection(selection) {
    this.selection = selection;
    this.follow();
    this.draw();
  }

  // Bring what is selected into view, if nothing of it is.
  follow() {
    const picked = [...this.pickedBoxes()].map((id) => this.boxes?.get(id)).filter(Boolean);
    const { x, y, zoom } = this.view;
    const { clientWidth: width, clientHeight: height } = this.body;
    const inView = (b) => b.x * zoom + x < width && b.y * zoom + y < height && (b.x + b.width) * zoom + x > 0 && (b.y + b.height) * zoom + y > 0;
    if (picked.length && !picked.some(inView)) this.centre(picked[0]);
  }

  // --- the pointer ---

  at(event) {
    const place = this.canvas.getBoundingClientRect();
    const x = (event.clientX - place.left - this.view.x) / this.view.zoom;
    const y = (event.clientY - place.top - this.view.y) / this.view.zoom;
    let found = null;
    for (const box of this.boxes?.values() || []) {
      const inside = x >= box.x && x <= box.x + box.width && y >= box.y && y <= box.y + box.height;
      if (inside && (!found || box.depth >= found.depth)) found = box;
    }
    return found && found.isOpen && y > found.y + 24 ? { ...found, isBackground: true } : found;
  }

  listen() {
    this.mode = "phase";
    let drag = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.clientX, y: event.clientY, moved: false };
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!drag) return this.tip(event);
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (Math.abs(dx) + Math.abs(dy) > 3 || drag.moved) {
        this.view.x += dx;
        this.view.y += dy;
        drag = { x: event.clientX, y: event.clientY, moved: true };
        this.draw();
      }
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const clicked = drag && !drag.moved;
      drag = null;
      if (clicked) this.click(event);
    });
    this.canvas.addEventListener("pointerleave", () => hideTip());
    this.canvas.addEventListener("dblclick", (event) => {
      const box = this.at(event);
      if (box?.group && !box.isBackground) this.toggle(box.group.id);
    });
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const place = this.canvas.getBoundingClientRect();
      const [px, py] = [event.clientX - place.left, event.clientY - place.top];
      const zoom = Math.min(3, Math.max(0.01, this.view.zoom * Math.exp(-event.deltaY * 0.0015)));
      const factor = zoom / this.view.zoom;
      this.view = { zoom, x: px - (px - this.view.x) * factor, y: py - (py - this.view.y) * factor };
      this.draw();
    }, { passive: false });
  }

  click(event) {
    const box = this.at(event);
    if (!box || box.isBackground) return this.handlers.clear();
    if (box.node) return this.handlers.nodes(this.number, [box.node.number], `${this.title(box.node)} ${box.node.type}`);
    const place = this.canvas.getBoundingClientRect();
    const x = (event.clientX - place.left - this.view.x) / this.view.zoom;
    if (x < box.x + 24) return this.toggle(box.group.id); // the sign in front of the name
    return this.handlers.nodes(this.number, box.group.nodes, `${box.group.phase} ${box.group.path}`.trim());
  }

  tip(event) {
    const box = this.at(event);
    if (!box || box.isBackground) return hideTip();
    if (box.group) return showTip(event, `${box.group.phase} ${box.group.path}\n${box.group.nodes.length} nodes, ${formatCount(box.group.bytes)}B, ${this.model.formatCost(box.group.weight)}`);
    const { node } = box;
    const where = node.file ? `\n${node.file.split("/").pop()}:${node.line}` : "";
    showTip(event, `%${node.number} ${this.title(node)}  ${node.type}\n${node.isInput ? "" : `${node.note}\n`}${node.phase} ${node.path}${where}`);
  }
}

function bounds(points) {
  const [xs, ys] = [points.map((p) => p.x), points.map((p) => p.y)];
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x: x - 2, y: y - 2, width: Math.max(...xs) - x + 4, height: Math.max(...ys) - y + 4 };
}

function rounded(context, box, radius) {
  context.beginPath();
  context.roundRect(box.x, box.y, box.width, box.height, Math.min(radius, box.height / 2));
}

// From pale to red: square root, so that what is a hundredth of the hottest is still told from nothing.
function heat(share) {
  const level = Math.sqrt(Math.min(1, Math.max(0, share)));
  return `hsl(${50 - 50 * level} ${35 + 55 * level}% ${72 - 26 * level}%)`;
}
