// Panes of text: only the lines in view are in the document, so that hundreds of thousands scroll smoothly.

const LINE_HEIGHT = 16;

class TextPane {
  // onLine(number of the line, from 0) is called for a click.
  constructor(parent, title, onLine) {
    this.element = document.createElement("section");
    this.element.className = "pane";
    this.element.innerHTML = `<h2><span></span><small></small></h2><div class="body text"><div class="sizer"></div></div>`;
    this.element.querySelector("span").textContent = title;
    this.note = this.element.querySelector("small");
    this.head = this.element.querySelector("h2");
    this.body = this.element.querySelector(".body");
    this.sizer = this.element.querySelector(".sizer");
    this.lines = [];
    this.picked = new Set();
    this.marked = new Set();
    this.nearest = new Set();
    this.first = 0;
    this.body.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.body);
    this.sizer.addEventListener("click", (event) => {
      const line = event.target.closest(".line");
      if (line && getSelection().isCollapsed) onLine(Number(line.dataset.line));
    });
    parent.append(this.element);
  }

  // A new text starts at line `begin`; lines picked are brought into view, or those that come nearest to what
  // is meant, which are shown more faintly.
  show(text, note = "", picked = new Set(), marked = new Set(), begin = 0, nearest = new Set()) {
    const lines = Array.isArray(text) ? text : text.split("\n");
    const same = lines === this.lines || (lines.length === this.lines.length && lines.every((l, i) => l === this.lines[i]));
    this.note.textContent = note;
    this.note.title = note;
    this.picked = picked;
    this.marked = marked;
    this.nearest = nearest;
    if (!same) {
      this.lines = lines;
      this.sizer.style.height = `${lines.length * LINE_HEIGHT}px`;
      this.sizer.style.width = `${Math.min(4000, 70 + 7 * lines.reduce((most, line) => Math.max(most, line.length), 0))}px`;
      this.body.scrollTop = begin * LINE_HEIGHT;
      this.body.scrollLeft = 0;
    }
    // The first line of a graph's text names all its inputs: it is shown only if nothing else is picked.
    const some = picked.size || nearest.size === lines.length ? picked : nearest;
    const shown = some.size > 1 ? [...some].filter((line) => line > 0) : [...some];
    if (shown.length && !shown.some((line) => this.isInView(line))) this.reveal(longestRun(shown));
    this.draw();
  }

  isInView(line) {
    const { scrollTop, clientHeight } = this.body;
    return line * LINE_HEIGHT >= scrollTop && (line + 1) * LINE_HEIGHT <= scrollTop + clientHeight;
  }

  reveal(line) {
    if (!this.isInView(line)) this.body.scrollTop = Math.max(0, line * LINE_HEIGHT - this.body.clientHeight / 3);
  }

  draw() {
    const from = Math.max(0, Math.floor(this.body.scrollTop / LINE_HEIGHT) - 8);
    const to = Math.min(this.lines.length, from + Math.ceil(this.body.clientHeight / LINE_HEIGHT) + 16);
    const rows = [];
    for (let i = from; i < to; i++) {
      const row = document.createElement("div");
      row.className = this.picked.has(i) ? "line picked" : this.nearest.has(i) ? "line nearest" : "line";
      row.style.top = `${i * LINE_HEIGHT}px`;
      row.dataset.line = i;
      const gutter = document.createElement("span");
      gutter.className = this.marked.has(i) ? "gutter mark" : "gutter";
      gutter.textContent = i + 1;
      row.append(gutter, this.lines[i]);
      rows.push(row);
    }
    this.sizer.replaceChildren(...rows);
  }
}

// The first of the most lines that follow one another.
function longestRun(lines) {
  const sorted = [...lines].sort((a, b) => a - b);
  let [best, most, start] = [sorted[0], 1, 0];
  for (let i = 1; i < sorted.length; i++) {
    if (sorted[i] !== sorted[i - 1] + 1) start = i;
    if (i - start + 1 > most) [best, most] = [sorted[start], i - start + 1];
  }
  return best;
}
