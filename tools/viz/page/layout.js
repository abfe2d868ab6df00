// Where the boxes and lines of a graph lie: layers inside layers, placed by ELK in a worker.
//
// A graph of few lines is laid out as one, and each line goes from box to box. One of many lines is composed: every open
// layer is laid out by itself, the innermost first and equal ones once, and what goes from one open layer into another
// is drawn together, as one line between the two. That takes a time that grows with the kinds of layers, not with their
// number, and can be read, since lines do not run through all of the picture.

const NODE_HEIGHT = 34, LAYER_HEIGHT = 42;
const PADDING = { top: 28, side: 12 };
const ROW_GAP = { x: 30, y: 14 };
// More boxes than these, or more lines across the borders of open layers, and the graph is composed.
const MOST_BOXES = 250, MOST_CROSSING = 40;
// The shape that pictures should have: that of the pane they are seen in.
const ASPECT = 1.8;
const WIDTH_STEP = 16; // so that layers whose texts differ by a letter are equal

const OPTIONS = {
  "elk.algorithm": "layered", "elk.layered.spacing.nodeNodeBetweenLayers": "26", "elk.spacing.nodeNode": "14",
  "elk.layered.spacing.edgeNodeBetweenLayers": "12", "elk.edgeRouting": "ORTHOGONAL", "elk.aspectRatio": String(ASPECT),
};
// Of a layer by itself: what is equal in kind stays in the order of the program, and chains are straight.
const COMPOSED = {
  ...OPTIONS, "elk.layered.considerModelOrder.strategy": "NODES_AND_EDGES", "elk.layered.considerModelOrder.components": "MODEL_ORDER",
  "elk.layered.thoroughness": "3",
};
// Takes the longer, the more boxes there are.
const STRAIGHT = { "elk.layered.nodePlacement.strategy": "NETWORK_SIMPLEX" }, MOST_STRAIGHT = 80;
// For a single layer of thousands of boxes: what takes long is to make lines cross as little as possible, and straight.
const MANY_BOXES = 600;
const QUICKLY = {
  "elk.layered.thoroughness": "1", "elk.layered.nodePlacement.strategy": "SIMPLE", "elk.edgeRouting": "POLYLINE",
  "elk.layered.layering.strategy": "LONGEST_PATH", "elk.layered.crossingMinimization.greedySwitch.type": "OFF",
  "elk.layered.crossingMinimization.greedySwitchHierarchical.type": "OFF",
};

// An item is what a picture is made of: {id, parent, depth, and width and height, or children if it is an open layer}.
// A line is {from, to: items, value: the number of the node that goes there, type}.

class Layouts {
  constructor(elk) {
    this.elk = elk;
    this.known = new Map(); // the text of a layer -> the promise of where its parts lie
  }

  // The picture: {root, boxes by id, size, isComposed}; progress(layers laid out, of how many) is called meanwhile.
  async picture(root, lines, progress) {
    const open = [...itemsOf(root)].filter((item) => item.children);
    const boxes = [...itemsOf(root)].length - open.length;
    const crossing = new Set();
    for (const { from, to } of lines) if (from.parent !== to.parent) crossing.add(`${from.id}>${to.id}`);
    const isSmall = boxes <= MOST_BOXES && crossing.size <= MOST_CROSSING;
    const whole = isSmall ? await this.whole(root, lines) : null;
    const placed = whole || (await this.composed(root, open, lines, progress));
    const byId = new Map();
    for (const layer of itemsOf(placed)) {
      for (const box of layer.children || []) byId.set(box.id, Object.assign(box, { layer }));
    }
    return { root: placed, boxes: byId, size: { width: placed.width, height: placed.height }, isComposed: !whole };
  }

  // --- as one ---

  async whole(root, lines) {
    const edges = merged(lines, (line) => [line.from, line.to]);
    const build = (item) => {
      if (!item.children) return { id: item.id, width: item.width, height: item.height };
      return { id: item.id, children: item.children.map(build), layoutOptions: { "elk.padding": padding(item) } };
    };
    const graph = build(root);
    graph.layoutOptions = {
      ...graph.layoutOptions, ...OPTIONS, "elk.direction": "RIGHT", "elk.hierarchyHandling": "INCLUDE_CHILDREN",
      "elk.json.shapeCoords": "ROOT", "elk.json.edgeCoords": "ROOT",
    };
    graph.edges = edges.map((edge, i) => ({ id: `e${i}`, sources: [edge.from], targets: [edge.to] }));
    const found = await this.asked(graph);
    if (!found) return null;
    const collect = (shape, depth) => ({
      id: shape.id, x: shape.x, y: shape.y, width: shape.width, height: shape.height, depth, edges: [],
      children: shape.children?.map((child) => collect(child, depth + 1)),
    });
    const box = collect(found, 0);
    box.edges = found.edges.flatMap((edge, i) => (edge.sections ? [drawn(edges[i], pointsOf(edge), 0, 0)] : []));
    return box;
  }

  // --- composed ---

  async composed(root, open, lines, progress) {
    const inside = new Map(open.map((item) => [item, []]));
    for (const line of lines) {
      const [from, to, around] = meeting(line);
      if (from !== to) inside.get(around).push({ ...line, outer: [from, to] });
    }
    let done = 0;
    const place = async (item) => {
      await Promise.all(item.children.filter((child) => child.children).map(place));
      const edges = merged(inside.get(item), (line) => line.outer);
      item.placed = { edges, ...(await this.layer(item, edges)) };
      Object.assign(item, { width: item.placed.width, height: item.placed.height });
      progress(++done, open.length);
    };
    await place(root);
    const collect = (item, x, y) => {
      const box = { id: item.id, x, y, width: item.width, height: item.height, depth: item.depth, edges: [] };
      if (!item.children) return box;
      const { places, routes, edges } = item.placed;
      box.children = item.children.map((child, i) => collect(child, x + places[i].x, y + places[i].y));
      box.edges = edges.flatMap((edge, i) => (routes[i] ? [drawn(edge, routes[i], x, y)] : []));
      return box;
    };
    return collect(root, 0, 0);
  }

  // Where the children of a layer lie within it, and how its lines run; equal layers share one answer.
  layer(item, edges) {
    const number = new Map(item.children.map((child, i) => [child.id, i]));
    const ends = edges.map((edge) => [number.get(edge.from), number.get(edge.to)]);
    const sizes = item.children.map((child) => [child.width, child.height]);
    const direction = directionOf(item, edges);
    const text = JSON.stringify([direction, padding(item), sizes, ends]);
    if (!this.known.has(text)) this.known.set(text, this.ask(direction, padding(item), sizes, ends));
    return this.known.get(text);
  }

  async ask(direction, inset, sizes, ends) {
    // Of all lines into a box the one from the latest should be straight: those from far away may go around.
    const latest = [];
    for (const [from, to] of ends) latest[to] = Math.max(from, latest[to] ?? 0);
    const found = await this.asked({
      id: "layer",
      layoutOptions: {
        ...COMPOSED, ...(sizes.length > MANY_BOXES ? QUICKLY : sizes.length <= MOST_STRAIGHT ? STRAIGHT : {}),
        "elk.direction": direction, "elk.padding": inset,
      },
      // Lines at the middle of a box: else chains of large boxes are stairs, since one comes in beside it and one leaves it.
      children: sizes.map(([width, height], i) => ({ id: `c${i}`, width, height, layoutOptions: { "elk.portAlignment.default": "CENTER" } })),
      edges: ends.map(([from, to], i) => ({
        id: `e${i}`, sources: [`c${from}`], targets: [`c${to}`],
        layoutOptions: { "elk.layered.priority.straightness": from === latest[to] ? "20" : "1" },
      })),
    });
    if (!found) return inRows(sizes, ends);
    return {
      width: found.width, height: found.height, places: found.children.map(({ x, y }) => ({ x, y })),
      routes: found.edges.map((edge) => edge.sections && pointsOf(edge)),
    };
  }

  // ELK's answer, or null where it has none: its recursion ends at chains of some thousands.
  async asked(graph) {
    try {
      return await this.elk.layout(graph);
    } catch (error) {
      console.info(`laid out in rows: ${error.message || error}`);
      return null;
    }
  }
}

// The plainest layout: boxes in columns by how far they are from the first, columns one after another like words in lines.
function inRows(sizes, ends) {
  const users = sizes.map(() => []), waitsFor = sizes.map(() => 0), column = sizes.map(() => 0);
  for (const [from, to] of ends) {
    users[from].push(to);
    waitsFor[to] += 1;
  }
  const ready = sizes.flatMap((_, i) => (waitsFor[i] ? [] : [i]));
  for (let next = 0; next < ready.length; next++) {
    for (const user of users[ready[next]]) {
      column[user] = Math.max(column[user], column[ready[next]] + 1);
      if (--waitsFor[user] === 0) ready.push(user);
    }
  }
  const columns = [];
  column.forEach((place, i) => (columns[place] ||= []).push(i));
  const area = sizes.reduce((sum, [width, height]) => sum + (width + ROW_GAP.x) * (height + ROW_GAP.y), 0);
  const longest = Math.sqrt(area * ASPECT);
  const places = [];
  let [x, top, bottom, right] = [PADDING.side, PADDING.top, PADDING.top, 0];
  for (const boxes of columns.filter(Boolean)) {
    const width = Math.max(...boxes.map((i) => sizes[i][0]));
    if (x > PADDING.side && x + width > longest) [x, top] = [PADDING.side, bottom + ROW_GAP.y];
    let y = top;
    for (const i of boxes) {
      places[i] = { x, y };
      y += sizes[i][1] + ROW_GAP.y;
    }
    bottom = Math.max(bottom, y);
    right = Math.max(right, x + width);
    x += width + ROW_GAP.x;
  }
  const end = (i, side) => ({ x: places[i].x + side * sizes[i][0], y: places[i].y + sizes[i][1] / 2 });
  return { width: right + PADDING.side, height: bottom + PADDING.side, places, routes: ends.map(([from, to]) => [end(from, 1), end(to, 0)]) };
}

function* itemsOf(item) {
  yield item;
  for (const child of item.children || []) yield* itemsOf(child);
}

// The innermost layer around both ends of a line, and what is directly in it around each.
function meeting({ from, to }) {
  let [a, b] = [from, to];
  while (a.depth > b.depth) a = a.parent;
  while (b.depth > a.depth) b = b.parent;
  while (a.parent !== b.parent) [a, b] = [a.parent, b.parent];
  return [a, b, a.parent];
}

// Lines with the same ends are one edge: {from, to, types, nodes}.
function merged(lines, endsOf) {
  const edges = new Map();
  for (const line of lines) {
    const [from, to] = endsOf(line);
    const key = `${from.id}>${to.id}`;
    if (!edges.has(key)) edges.set(key, { from: from.id, to: to.id, types: new Set(), nodes: new Set(), isBundle: from !== line.from || to !== line.to });
    edges.get(key).types.add(line.type);
    edges.get(key).nodes.add(line.value);
  }
  return [...edges.values()];
}

function drawn({ from, to, types, nodes, isBundle }, route, x, y) {
  const points = route.map((point) => ({ x: point.x + x, y: point.y + y }));
  const [only] = types;
  const label = nodes.size > 1 && isBundle ? `${nodes.size} values` : types.size === 1 ? only : `${types.size} kinds`;
  return { from, to, nodes, points, label, isBundle, box: bounds(points) };
}

// Where open layers follow each other they lie in a row, or one below the other if that gives the better shape; where they
// do not, the other way round, since equals lie across the direction of lines.
function directionOf(item, edges) {
  const open = item.children.filter((child) => child.children);
  if (open.length < 2) return "RIGHT";
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const [widths, heights] = [open.map((child) => child.width), open.map((child) => child.height)];
  const badness = (width, height) => Math.abs(Math.log(width / height / ASPECT));
  const isRow = badness(sum(widths), Math.max(...heights)) <= badness(Math.max(...widths), sum(heights));
  return isRow === longestChain(item.children, edges) > open.length / 2 ? "RIGHT" : "DOWN";
}

// How many open layers follow each other at most.
function longestChain(children, edges) {
  const users = new Map(children.map((child) => [child.id, []]));
  for (const edge of edges) users.get(edge.from).push(edge.to);
  const weight = new Map(children.map((child) => [child.id, child.children ? 1 : 0]));
  const length = new Map();
  const visit = (id) => {
    if (!length.has(id)) {
      length.set(id, 0); // where layers go round in a circle, that is cut here
      length.set(id, weight.get(id) + Math.max(0, ...users.get(id).map(visit)));
    }
    return length.get(id);
  };
  return Math.max(...children.map((child) => visit(child.id)));
}

function padding(item) {
  return item.parent ? `[top=${PADDING.top},left=${PADDING.side},bottom=${PADDING.side},right=${PADDING.side}]` : "[top=0,left=0,bottom=0,right=0]";
}

function pointsOf(edge) {
  const { startPoint, bendPoints = [], endPoint } = edge.sections[0];
  return [startPoint, ...bendPoints, endPoint];
}

function bounds(points) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const { x, y } of points) {
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  }
  return { x: left - 2, y: top - 2, width: right - left + 4, height: bottom - top + 4 };
}
