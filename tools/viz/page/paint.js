// Draws a picture of a graph on a canvas: only what is in view, and only as much of it as can be seen at that size.

const FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
// In pixels of the screen: layers lower than this are a patch of colour, nodes lower than this are without a frame, lines
// shorter than this are left out, and text smaller than this.
const LEAST_LAYER = 7, LEAST_FRAME = 7, LEAST_LINE = 3, LEAST_TEXT = 6;
const TAG = 11; // the size of the names of layers that are too small for their own head
const COLOURS = ["pane", "ink", "faint", "line", "accent", "picked", "picked-strong", "forward", "backward", "update", "input", "group", "node", "edge"];

class Painter {
  constructor(canvas, model) {
    Object.assign(this, { canvas, model, context: canvas.getContext("2d"), tags: [] });
  }

  // picture: as `Layouts` gives it, each box with its node, or its group; view: {x, y, zoom}; size of the pane.
  // state: {picked: ids of boxes, curves: [[from, to]] boxes joined besides, shade: what colours a node or group}
  paint(picture, view, size, state) {
    const c = this.context;
    const ratio = devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    this.colour = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    Object.assign(this, { view, state, zoom: view.zoom });
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.globalAlpha = 1;
    c.fillStyle = this.colour.pane;
    c.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!picture) return;
    c.setTransform(ratio * view.zoom, 0, 0, ratio * view.zoom, ratio * view.x, ratio * view.y);
    this.area = { left: -view.x / view.zoom, top: -view.y / view.zoom, right: (size.width - view.x) / view.zoom, bottom: (size.height - view.y) / view.zoom };
    const { layers, leaves, edges } = this.seen(picture.root);
    for (const box of layers) this.paintLayer(box);
    this.paintEdges(edges);
    this.paintCurves();
    this.paintLeaves(leaves);
    this.paintTags(layers);
  }

  isVisible(box) {
    const { left, top, right, bottom } = this.area;
    return box.x < right && box.y < bottom && box.x + box.width > left && box.y + box.height > top;
  }

  // What is in view and large enough to be told apart, from the outside to the inside.
  seen(root) {
    const found = { layers: [], leaves: [], edges: [] };
    const visit = (box) => {
      if (!this.isVisible(box)) return;
      if (!box.children) return found.leaves.push(box);
      if (box !== root) found.layers.push(box);
      if (box !== root && box.height * this.zoom < LEAST_LAYER) return;
      for (const edge of box.edges) {
        if (Math.max(edge.box.width, edge.box.height) * this.zoom >= LEAST_LINE && this.isVisible(edge.box)) found.edges.push(edge);
      }
      for (const child of box.children) visit(child);
    };
    visit(root);
    return found;
  }

  paintLayer(box) {
    const c = this.context;
    const { group } = box;
    const own = this.colour[group.phase] || this.colour.line;
    const isPatch = box.height * this.zoom < LEAST_LAYER;
    if (isPatch) {
      c.globalAlpha = 0.45;
      c.fillStyle = own;
      return c.fillRect(box.x, box.y, box.width, box.height);
    }
    rounded(c, box, 8);
    c.globalAlpha = 0.55;
    c.fillStyle = this.colour.group;
    c.fill();
    c.globalAlpha = this.state.picked.has(box.id) ? 1 : 0.75;
    c.strokeStyle = own;
    c.lineWidth = Math.max(this.state.picked.has(box.id) ? 2.5 : 1, 0.7 / this.zoom);
    c.stroke();
    c.globalAlpha = 1;
    if (12 * this.zoom < LEAST_TEXT) return;
    c.fillStyle = own;
    c.font = `600 12px ${FONT}`;
    c.fillText(`− ${group.name}`, box.x + 9, box.y + 17);
  }

  // Plain lines in one stroke, those between two selected boxes over them.
  paintEdges(edges) {
    const { picked } = this.state;
    const isStrong = (edge) => picked.has(edge.from) && picked.has(edge.to);
    const strong = picked.size ? edges.filter(isStrong) : [];
    const plain = picked.size ? edges.filter((edge) => !isStrong(edge)) : edges;
    const thin = plain.filter((edge) => !edge.isBundle);
    const alpha = picked.size ? 0.5 : 0.95;
    this.stroke(thin, this.colour.edge, 1, alpha);
    for (const edge of plain) if (edge.isBundle) this.stroke([edge], this.colour.edge, 1 + Math.log2(1 + edge.nodes.size) / 1.5, alpha);
    this.stroke(strong, this.colour.accent, 1.8, 0.95);
    if (this.zoom < 0.6) return;
    const c = this.context;
    c.globalAlpha = alpha;
    c.font = `9px ${FONT}`;
    c.fillStyle = this.colour.faint;
    for (const { label, points, points: [start, next] } of edges) {
      if (points.length === 2 && c.measureText(label).width > next.x - start.x - 6) continue; // the box has it, too
      if (start.y === next.y) c.fillText(label, start.x + 4, start.y - 3);
      else c.fillText(label, start.x + 4, start.y + 9);
    }
    c.globalAlpha = 1;
  }

  stroke(edges, colour, width, alpha) {
    if (!edges.length) return;
    const c = this.context;
    c.globalAlpha = alpha;
    c.strokeStyle = c.fillStyle = colour;
    c.lineWidth = Math.max(width, 0.6 / this.zoom);
    c.beginPath();
    for (const { points } of edges) points.forEach((p, i) => (i ? c.lineTo(p.x, p.y) : c.moveTo(p.x, p.y)));
    c.stroke();
    if (this.zoom > 0.2) {
      c.beginPath();
      for (const { points } of edges) arrow(c, points[points.length - 2], points[points.length - 1], 2.2 + width * 0.8);
      c.fill();
    }
    c.globalAlpha = 1;
  }

  paintLeaves(leaves) {
    const c = this.context;
    const { picked, shade } = this.state;
    const isSmall = NODE_HEIGHT * this.zoom < LEAST_FRAME;
    for (const box of leaves) {
      const item = box.node || box.group;
      const isPicked = picked.has(box.id);
      const colour = shade(item);
      c.globalAlpha = picked.size && !isPicked ? 0.55 : 1;
      if (isSmall) {
        c.fillStyle = isPicked ? this.colour.accent : colour;
        c.fillRect(box.x, box.y, box.width, box.height);
      } else this.paintBox(box, item, colour, isPicked);
    }
    c.globalAlpha = 1;
  }

  paintBox(box, item, shade, isPicked) {
    const c = this.context;
    rounded(c, box, box.node?.isInput ? 16 : 6);
    c.fillStyle = isPicked ? this.colour["picked-strong"] : this.colour.node;
    c.fill();
    c.strokeStyle = isPicked ? this.colour.accent : shade;
    c.lineWidth = isPicked ? 2.4 : 1.4;
    c.stroke();
    c.fillStyle = shade;
    c.fillRect(box.x + 1, box.y + 6, 4, box.height - 12);
    if (12 * this.zoom < LEAST_TEXT) return;
    c.fillStyle = this.colour.ink;
    c.font = `${box.group ? "600 13px" : "12px"} ${FONT}`;
    const title = box.group ? `+ ${box.group.name}` : titleOf(box.node);
    c.fillText(title, box.x + 10, box.y + 15);
    const kindAt = box.x + 15 + c.measureText(title).width;
    c.fillStyle = this.colour.faint;
    c.font = `12px ${FONT}`;
    if (box.group) c.fillText(box.group.kind, kindAt, box.y + 15);
    c.font = `10px ${FONT}`;
    const below = box.group ? `${box.group.nodes.length} nodes  ${this.model.formatCost(box.group.weight)}` : box.node.type;
    c.fillText(below, box.x + 10, box.y + (box.group ? 32 : 28));
  }

  // From the right side of one box to the left of another, under the boxes.
  paintCurves() {
    const { curves } = this.state;
    if (!curves.length) return;
    const c = this.context;
    c.strokeStyle = c.fillStyle = this.colour.accent;
    c.lineWidth = Math.max(1.3, 1 / this.zoom);
    c.globalAlpha = curves.length > 60 ? 0.35 : 0.8;
    c.beginPath();
    for (const [from, to] of curves) {
      const [x, y, u, v] = [from.x + from.width, from.y + from.height / 2, to.x, to.y + to.height / 2];
      const bend = Math.max(40, Math.abs(u - x) / 3);
      c.moveTo(x, y);
      c.bezierCurveTo(x + bend, y, u - bend, v, u, v);
    }
    c.stroke();
    c.globalAlpha = 1;
  }

  // The names of layers whose own heads cannot be read, in letters of one size, where there is room for them.
  paintTags(layers) {
    this.tags = [];
    if (12 * this.zoom >= LEAST_TEXT) return;
    const c = this.context;
    const ratio = devicePixelRatio || 1;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.font = `600 ${TAG}px ${FONT}`;
    for (const box of layers) {
      const { group } = box;
      const width = c.measureText(group.name).width + 8;
      const [left, top] = [Math.max(0, box.x * this.zoom + this.view.x), Math.max(0, box.y * this.zoom + this.view.y)];
      const right = (box.x + box.width) * this.zoom + this.view.x, bottom = (box.y + box.height) * this.zoom + this.view.y;
      const tag = { box, left: left + 2, top: top + 2, right: left + 2 + width, bottom: top + 4 + TAG + 2 };
      if (tag.right > right || tag.bottom > bottom + 2) continue;
      if (this.tags.some((other) => tag.left < other.right && tag.right > other.left && tag.top < other.bottom && tag.bottom > other.top)) continue;
      this.tags.push(tag);
      c.globalAlpha = 0.88;
      c.fillStyle = this.colour.pane;
      c.beginPath();
      c.roundRect(tag.left, tag.top, width, TAG + 4, 4);
      c.fill();
      c.globalAlpha = 1;
      c.fillStyle = this.colour[group.phase] || this.colour.ink;
      c.fillText(group.name, tag.left + 4, tag.top + TAG);
    }
  }
}

function arrow(c, before, end, size) {
  const length = Math.hypot(end.x - before.x, end.y - before.y) || 1;
  const [x, y] = [(end.x - before.x) / length, (end.y - before.y) / length];
  c.moveTo(end.x, end.y);
  c.lineTo(end.x - 2 * size * x - size * y, end.y - 2 * size * y + size * x);
  c.lineTo(end.x - 2 * size * x + size * y, end.y - 2 * size * y - size * x);
}

function rounded(context, box, radius) {
  context.beginPath();
  context.roundRect(box.x, box.y, box.width, box.height, Math.min(radius, box.height / 2));
}

function titleOf(node) {
  return node.isInput ? node.note || "input" : node.op;
}

// From pale to red: square root, so that what is a hundredth of the hottest is still told from nothing.
function heat(share) {
  const level = Math.sqrt(Math.min(1, Math.max(0, share)));
  return `hsl(${50 - 50 * level} ${35 + 55 * level}% ${72 - 26 * level}%)`;
}
