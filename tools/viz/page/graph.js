// A graph on a canvas: layers as boxes that open and close.

// So many lines of selected nodes into other layers are drawn, if layers hide them.
const MOST_CURVES = 400;

class GraphView {
  // onPick(numbers of nodes, label) and onPickLayer(path) are called for clicks.
  constructor(parent, model, stage, layouts, handlers) {
    Object.assign(this, { model, number: stage, stage: model.stages[stage], layouts, handlers });
    this.element = document.createElement("section");
    this.element.className = "pane graph";
    const does = (what, word, icon, title) =>
      `<button data-do="${what}" title="${title}" aria-label="${word}"><span class="word">${word}</span><span class="icon">${icon}</span></button>`;
    this.element.innerHTML = `<h2><span></span><small></small><span class="spacer"></span>
      ${does("open", "open all", "+", "open every layer")}${does("close", "close all", "−", "close every layer")}
      ${does("fit", "fit", "□", "show the whole graph")}</h2><div class="body"><canvas tabindex="0"></canvas></div>`;
    this.element.querySelector("span").textContent = this.stage.name;
    this.note = this.element.querySelector("small");
    this.body = this.element.querySelector(".body");
    this.body.style.overflow = "hidden";
    this.canvas = this.element.querySelector("canvas");
    this.painter = new Painter(this.canvas, model);
    this.widths = new Map();
    parent.append(this.element);
    this.element.querySelector("h2").addEventListener("click", (event) => {
      const what = event.target.closest("button")?.dataset.do;
      if (what === "open") this.openAll();
      if (what === "close") this.closeAll();
      if (what === "fit") this.fit();
    });
    this.view = { x: 0, y: 0, zoom: 1 };
    this.selection = new Selection(model);
    this.picked = new Set();
    this.curves = [];
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
        this.groups.set(id, { id, name, path, kind: this.model.kinds.get(path) || "", parent, phase: id.split("/")[0], children: [], nodes: [], own: [] });
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
      group.kept = group.nodes.reduce((sum, n) => sum + this.stage.nodes[n].kept, 0);
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
    const boxes = [...this.picked].map((id) => this.boxes?.get(id)).filter(Boolean);
    if (!boxes.length) return;
    const ends = boxes.flatMap((b) => [{ x: b.x, y: b.y }, { x: b.x + b.width, y: b.y + b.height }]);
    const whole = bounds(ends);
    const { clientWidth: width, clientHeight: height } = this.body;
    const zoom = Math.min(1.1, (width - 60) / whole.width, (height - 60) / whole.height);
    if (zoom < 0.07) return this.centre(boxes[0]);
    this.view = { zoom, x: width / 2 - (whole.x + whole.width / 2) * zoom, y: height / 2 - (whole.y + whole.height / 2) * zoom };
    this.draw();
  }

  // Lay out what is seen now; `anchor`, a box, stays where it is on the screen.
  async layout(anchor) {
    const turn = (this.turn = (this.turn || 0) + 1);
    this.element.classList.add("busy");
    this.note.textContent = "laying out …";
    const { root, lines } = this.seen();
    const picture = await this.layouts.picture(root, lines, (done, of) => {
      if (turn === this.turn) this.note.textContent = `laying out: ${done} of ${of} layers`;
    });
    if (turn !== this.turn) return; // a later one is on its way
    const before = anchor && this.boxes?.get(anchor);
    this.picture = picture;
    this.boxes = picture.boxes;
    this.size = picture.size;
    for (const box of this.boxes.values()) this.described(box);
    const shown = [...this.boxes.keys()].filter((id) => id[0] === "n").length;
    const closed = [...this.boxes.values()].filter((box) => box.group && !box.isOpen).length;
    const more = ` nodes${closed ? `, the others in ${closed} closed layers` : ""}`;
    this.note.replaceChildren(`${shown} of ${this.groupOf.size}`, element("span", "word", more));
    this.note.title = this.note.textContent + (picture.isComposed ? ".\nLines from one open layer into another are drawn as one; point at a node, or select it, for its own." : "");
    const after = before && this.boxes.get(anchor);
    if (after) {
      this.view.x += (before.x - after.x) * this.view.zoom;
      this.view.y += (before.y - after.y) * this.view.zoom;
    }
    this.element.classList.remove("busy");
    this.pick();
    this.setMode(this.mode);
  }

  // What is to be laid out: {root: the items of what is seen, lines between them}; see `Layouts`.
  seen() {
    const items = new Map();
    const build = (id, parent) => {
      const group = this.groups.get(id);
      const item = { id: id ? `g${id}` : "root", parent, depth: parent ? parent.depth + 1 : 0 };
      const leaf = (box) => {
        const made = { ...box, parent: item, depth: item.depth + 1 };
        items.set(made.id, made);
        return made;
      };
      item.children = group.own.map((n) => leaf(this.leaf(n)));
      for (const child of group.children) item.children.push(this.open.has(child) ? build(child, item) : leaf(this.closed(child)));
      return item;
    };
    const root = build("", null);
    const lines = [];
    for (const node of this.stage.nodes) {
      if (!this.groupOf.has(node.number)) continue;
      const to = items.get(this.standIn(node.number));
      for (const value of node.inputs) {
        const from = this.groupOf.has(value) && items.get(this.standIn(value));
        if (from && from !== to) lines.push({ from, to, value, type: this.stage.nodes[value].type });
      }
    }
    return { root, lines };
  }

  leaf(number) {
    const node = this.stage.nodes[number];
    return { id: `n${number}`, width: this.width(Math.max(70, this.measure(titleOf(node), 12), this.measure(node.type, 10)) + 16), height: NODE_HEIGHT };
  }

  closed(id) {
    const group = this.groups.get(id);
    return { id: `g${id}`, width: this.width(Math.max(110, this.measure(group.name, 13) + this.measure(group.kind, 12) + 60)), height: LAYER_HEIGHT };
  }

  // Layers are laid out alike if their boxes are equal, which the number of a layer in a name should not change.
  width(least) {
    return Math.ceil(least / WIDTH_STEP) * WIDTH_STEP;
  }

  measure(text, size) {
    const key = `${size} ${text}`;
    if (!this.widths.has(key)) {
      this.painter.context.font = `${size}px ${FONT}`;
      this.widths.set(key, this.painter.context.measureText(text).width);
    }
    return this.widths.get(key);
  }

  // A box with what it shows.
  described(box) {
    const id = box.id.slice(1);
    if (box.id[0] === "n") return Object.assign(box, { node: this.stage.nodes[Number(id)] });
    return Object.assign(box, { group: this.groups.get(id), isOpen: this.open.has(id) });
  }

  // --- the view ---

  // What is in the middle stays there; a first look or a whole graph that nobody has moved is shown anew.
  resize() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.body;
    this.canvas.width = Math.max(1, width * ratio);
    this.canvas.height = Math.max(1, height * ratio);
    const { placed, view } = this;
    if (placed && ["x", "y", "zoom"].every((part) => view[part] === placed.view[part])) this[placed.by]();
    else if (this.room) this.view = { ...view, x: view.x + (width - this.room.width) / 2, y: view.y + (height - this.room.height) / 2 };
    this.room = { width, height };
    this.draw();
  }

  fit() {
    if (!this.size) return;
    const { clientWidth: width, clientHeight: height } = this.body;
    const zoom = Math.min(1.1, (width - 24) / this.size.width, (height - 24) / this.size.height);
    this.view = { zoom, x: (width - this.size.width * zoom) / 2, y: (height - this.size.height * zoom) / 2 };
    this.placed = { by: "fit", view: { ...this.view } };
    this.draw();
  }

  // The first look: the whole graph if it can be read so, else its beginning.
  begin() {
    this.fit();
    const least = 0.5;
    if (!this.size || this.view.zoom >= least) return;
    this.view = { zoom: least, x: 12, y: Math.max(12, (this.body.clientHeight - this.size.height * least) / 2) };
    this.placed = { by: "begin", view: { ...this.view } };
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

  paint() {
    this.painter.paint(this.picture, this.view, { width: this.body.clientWidth, height: this.body.clientHeight }, {
      picked: this.picked, curves: this.hovered !== undefined ? this.linesOf([this.hovered]) : this.curves, shade: (item) => this.shade(item),
    });
  }

  shade({ phase, weight, kept }) {
    if (this.mode === "phase") return this.painter.colour[phase] || this.painter.colour.input;
    return heat(this.mode === "time" ? weight / this.hottest.weight : kept / this.hottest.kept);
  }

  // The boxes that stand for selected nodes, and their lines into other layers.
  pick() {
    this.picked = this.pickedBoxes();
    this.curves = this.linesOf(this.selection.nodes[this.number]);
  }

  pickedBoxes() {
    const picked = new Set();
    for (const number of this.selection.nodes[this.number]) if (this.groupOf.has(number)) picked.add(this.standIn(number));
    return picked;
  }

  // The lines of some nodes that are not drawn by themselves: pairs of boxes.
  linesOf(numbers) {
    const found = new Map();
    if (!this.picture?.isComposed) return [];
    const add = (value, user) => {
      if (!this.groupOf.has(value) || !this.groupOf.has(user)) return;
      const [from, to] = [this.boxes.get(this.standIn(value)), this.boxes.get(this.standIn(user))];
      if (from && to && from !== to && from.layer !== to.layer) found.set(`${from.id}>${to.id}`, [from, to]);
    };
    for (const number of numbers) {
      for (const input of this.stage.nodes[number].inputs) add(input, number);
      for (const user of this.stage.nodes[number].users) add(number, user);
      if (found.size > MOST_CURVES) return [];
    }
    return [...found.values()];
  }

  setMode(mode) {
    this.mode = mode;
    const working = this.stage.nodes.filter((node) => this.groupOf.has(node.number));
    const boxes = this.boxes ? [...this.boxes.values()].filter((box) => !box.isOpen).map((box) => box.node || box.group) : working;
    this.hottest = {
      weight: boxes.reduce((most, item) => Math.max(most, item.weight), 1e-30),
      kept: boxes.reduce((most, item) => Math.max(most, item.kept), 1),
    };
    this.draw();
  }

  setSelection(selection) {
    this.selection = selection;
    this.pick();
    this.follow();
    this.draw();
  }

  // Bring what is selected into view, if nothing of it is.
  follow() {
    const picked = [...this.picked].map((id) => this.boxes?.get(id)).filter(Boolean);
    const { x, y, zoom } = this.view;
    const { clientWidth: width, clientHeight: height } = this.body;
    const inView = (b) => b.x * zoom + x < width && b.y * zoom + y < height && (b.x + b.width) * zoom + x > 0 && (b.y + b.height) * zoom + y > 0;
    if (picked.length && !picked.some(inView)) this.centre(picked[0]);
  }

  // --- the pointer ---

  at(event) {
    const place = this.canvas.getBoundingClientRect();
    const [left, top] = [event.clientX - place.left, event.clientY - place.top];
    const tag = this.painter.tags.find((tag) => left >= tag.left && left <= tag.right && top >= tag.top && top <= tag.bottom);
    if (tag) return { ...tag.box, isTag: true };
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
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointerleave", () => {
      hideTip();
      this.hover(undefined);
    });
    this.canvas.addEventListener("dblclick", (event) => {
      const box = this.at(event);
      if (box?.group && !box.isBackground) this.toggle(box.group.id);
    });
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const place = this.canvas.getBoundingClientRect();
      this.zoomAt(event.clientX - place.left, event.clientY - place.top, Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
  }

  // The arrows move the picture, + and - make it larger and smaller about the middle, 0 shows all of it.
  key(event) {
    const { clientWidth: width, clientHeight: height } = this.body;
    const step = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] }[event.key];
    if (step) [this.view.x, this.view.y] = [this.view.x + step[0], this.view.y + step[1]];
    else if (event.key === "+" || event.key === "=") this.zoomAt(width / 2, height / 2, 1.25);
    else if (event.key === "-") this.zoomAt(width / 2, height / 2, 0.8);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
    this.draw();
  }

  zoomAt(x, y, by) {
    const zoom = Math.min(3, Math.max(0.01, this.view.zoom * by));
    const factor = zoom / this.view.zoom;
    this.view = { zoom, x: x - (x - this.view.x) * factor, y: y - (y - this.view.y) * factor };
    this.draw();
  }

  click(event) {
    const box = this.at(event);
    if (!box || box.isBackground) return this.handlers.clear();
    if (box.node) return this.handlers.nodes(this.number, [box.node.number], `${titleOf(box.node)} ${box.node.type}`);
    const place = this.canvas.getBoundingClientRect();
    const x = (event.clientX - place.left - this.view.x) / this.view.zoom;
    if (!box.isTag && x < box.x + 24) return this.toggle(box.group.id); // the sign in front of the name
    return this.handlers.nodes(this.number, box.group.nodes, `${box.group.phase} ${box.group.path}`.trim());
  }

  // A node that is pointed at shows its lines into other layers.
  hover(number) {
    if (number === this.hovered) return;
    this.hovered = number;
    this.draw();
  }

  tip(event) {
    const box = this.at(event);
    this.hover(box?.node?.number);
    if (!box || box.isBackground) return hideTip();
    if (box.group) return showTip(event, `${box.group.phase} ${box.group.path}\n${box.group.nodes.length} nodes, ${formatCount(Math.round(box.group.kept))}B in memory, ${this.model.formatCost(box.group.weight)}`);
    const { node } = box;
    const where = node.file ? `\n${node.file.split("/").pop()}:${node.line}` : "";
    showTip(event, `%${node.number} ${titleOf(node)}  ${node.type}\n${node.isInput ? "" : `${node.note}\n`}${node.phase} ${node.path}${where}\n${this.model.formatCost(node.weight)}, ${node.kept ? `${formatCount(Math.round(node.kept))}B in memory` : "not in memory"}`);
  }
}
