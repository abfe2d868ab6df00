// The page: trains with the compiled step and shows what it learns. `load` is of step.mjs, which stands above.

const BATCH = 64;
const element = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// Images of 8 x 8 pixels from 0 to 16, one byte each, and the digits they show; the module; how many steps there are
// until the learning rate has fallen to zero.
const given = JSON.parse(element("data").textContent);
const data = ([images, labels]) => ({ x: Float32Array.from(bytes(images), (pixel) => pixel / 16), y: bytes(labels) });
const training = data(given.training);
const test = data(given.test);
const TOTAL = given.steps;
const step = await load(bytes(given.module));

// --- training ---------------------------------------------------------------------------------------------------

let order = [];
let losses = [];
let accuracies = [];
let running = false;

/** The next batch of a random order of all digits. */
function batch() {
  const x = new Float32Array(BATCH * 64);
  const y = new Int32Array(BATCH);
  if (order.length < BATCH) {
    order = [...training.y.keys()];
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
  }
  order.splice(-BATCH).forEach((number, row) => {
    x.set(training.x.subarray(64 * number, 64 * number + 64), 64 * row);
    y[row] = training.y[number];
  });
  return { x, y };
}

/** The probabilities of the ten digits for each image; as many at a time as the step was compiled for. */
function probabilities(images) {
  const count = images.length / 64;
  const result = [];
  for (let start = 0; start < count; start += BATCH) {
    const x = new Float32Array(BATCH * 64);
    x.set(images.subarray(64 * start, 64 * Math.min(count, start + BATCH)));
    const { output } = step.predict({ x });
    for (let row = 0; row < Math.min(BATCH, count - start); row++) {
      const scores = output.subarray(10 * row, 10 * row + 10);
      const highest = Math.max(...scores);
      const powers = Array.from(scores, (score) => Math.exp(score - highest));
      const sum = powers.reduce((a, b) => a + b);
      result.push(powers.map((power) => power / sum));
    }
  }
  return result;
}

const best = (chances) => chances.indexOf(Math.max(...chances));

/** Test the network, and remember and show how well it did. */
function measure() {
  const guesses = probabilities(test.x).map(best);
  const accuracy = guesses.filter((guess, i) => guess === test.y[i]).length / guesses.length;
  accuracies.push([losses.length, accuracy]);
  element("accuracy").textContent = `${(100 * accuracy).toFixed(1)} %`;
  showDigits(guesses);
}

let timed = 0;
let seconds = 0;

function frame() {
  if (!running) return;
  const fast = element("fast").checked;
  const started = performance.now();
  let count = 0;
  while (losses.length < TOTAL && count < (fast ? 1000 : 2) && performance.now() - started < 12) {
    losses.push(step.run(batch()).loss[0]);
    count++;
    if (losses.length % 22 === 0) measure(); // once each time it has seen them all
  }
  seconds += (performance.now() - started) / 1000;
  timed += count;
  if (losses.length >= TOTAL) running = false;
  show();
  requestAnimationFrame(frame);
}

function show() {
  element("step").textContent = `${losses.length}`;
  element("loss").textContent = losses.length ? losses.at(-1).toFixed(3) : "–";
  element("speed").textContent = timed ? Math.round(timed / Math.max(seconds, 1e-3)).toLocaleString("en") : "–";
  element("train").textContent = running ? "Pause" : losses.length ? "Go on" : "Train";
  element("train").disabled = losses.length >= TOTAL;
  if (losses.length >= TOTAL) element("train").textContent = "Trained";
  drawChart();
  guess();
}

element("train").onclick = () => {
  running = !running;
  show();
  if (running) requestAnimationFrame(frame);
};

element("again").onclick = () => {
  step.init();
  [losses, accuracies, order, running, timed, seconds] = [[], [], [], false, 0, 0];
  measure();
  show();
};

// --- the chart --------------------------------------------------------------------------------------------------

function color(name) {
  // A canvas knows no light-dark(): what it stands for here is found by giving it to something.
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function drawChart() {
  const canvas = element("chart");
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, 240];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const [left, right, top, bottom] = [34, width - 42, 10, height - 24];
  const along = (number) => left + (number / TOTAL) * (right - left);
  const up = (share) => bottom - share * (bottom - top);
  const most = 2.5;
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.lineWidth = 1;
  for (const share of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    context.strokeStyle = color("line");
    context.beginPath();
    context.moveTo(left, up(share));
    context.lineTo(right, up(share));
    context.stroke();
    context.fillStyle = color("loss");
    context.textAlign = "right";
    context.fillText((most * share).toFixed(1), left - 6, up(share));
    context.fillStyle = color("accuracy");
    context.textAlign = "left";
    context.fillText(`${100 * share} %`, right + 6, up(share));
  }
  context.fillStyle = color("soft");
  context.textAlign = "center";
  for (let part = 0; part <= 4; part++) {
    const number = Math.round((TOTAL * part) / 4);
    context.fillText(`${number}`, along(number), bottom + 14);
  }
  context.lineJoin = "round";
  line(context, "loss", 1.25, losses.map((loss, i) => [along(i + 1), up(Math.min(1, loss / most))]));
  line(context, "accuracy", 2.25, accuracies.map(([number, share]) => [along(number), up(share)]));
}

function line(context, name, width, points) {
  context.strokeStyle = color(name);
  context.lineWidth = width;
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

// --- drawing ----------------------------------------------------------------------------------------------------

const pad = element("pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
let last = null;

function clear() {
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, 256, 256);
  guess();
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * 256, ((event.clientY - box.top) / box.height) * 256];
}

pad.onpointerdown = (event) => {
  pad.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(event);
};
pad.onpointermove = (event) => last && stroke(event);
pad.onpointerup = pad.onpointercancel = () => (last = null);
element("clear").onclick = clear;

function stroke(event) {
  const next = place(event);
  ink.strokeStyle = "#111";
  ink.lineWidth = 26;
  ink.lineCap = "round";
  ink.beginPath();
  ink.moveTo(...last);
  ink.lineTo(...next);
  ink.stroke();
  last = next;
  guess();
}

/** The drawing as the digits of the data are: cut out, 8 pixels high, in the middle. Null if there is none. */
function drawing() {
  const pixels = ink.getImageData(0, 0, 256, 256).data;
  let [left, right, top, bottom] = [256, -1, 256, -1];
  for (let y = 0; y < 256; y++) {
    for (let x = 0; x < 256; x++) {
      if (pixels[4 * (256 * y + x)] < 128) {
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
      }
    }
  }
  if (right < 0) return null;
  const size = Math.max(right - left, bottom - top) + 1;
  const [x0, y0] = [(left + right + 1 - size) / 2, (top + bottom + 1 - size) / 2];
  const image = new Float32Array(64);
  for (let i = 0; i < 64; i++) {
    // The share of dark places in one of 8 x 8 squares, of 16 x 16 places each.
    let dark = 0;
    for (let j = 0; j < 256; j++) {
      const x = Math.floor(x0 + (size * ((i % 8) + ((j % 16) + 0.5) / 16)) / 8);
      const y = Math.floor(y0 + (size * (Math.floor(i / 8) + (Math.floor(j / 16) + 0.5) / 16)) / 8);
      if (x >= 0 && x < 256 && y >= 0 && y < 256 && pixels[4 * (256 * y + x)] < 128) dark++;
    }
    image[i] = dark / 256;
  }
  return image;
}

/** Paint an image of 8 x 8 pixels on a canvas of that size. */
function paint(canvas, image) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(8, 8);
  for (let i = 0; i < 64; i++) picture.data.set([0, 0, 0].fill(255 - 255 * image[i]).concat(255), 4 * i);
  context.putImageData(picture, 0, 0);
}

const bars = Array.from({ length: 10 }, (_, digit) => {
  const bar = document.createElement("i");
  element("bars").append(Object.assign(document.createElement("span"), { textContent: digit }), bar);
  return bar;
});

function guess() {
  const image = drawing();
  paint(element("seen"), image ?? new Float32Array(64));
  const chances = image ? probabilities(image)[0] : new Array(10).fill(0);
  bars.forEach((bar, digit) => {
    bar.style.width = `${100 * chances[digit]}%`;
    bar.classList.toggle("best", image !== null && digit === best(chances));
  });
  element("guess").textContent = image ? best(chances) : "\u00a0";
}

// --- digits to look at ------------------------------------------------------------------------------------------

const shown = Array.from({ length: 32 }, (_, i) => (i * 11) % test.y.length);
const captions = shown.map((number) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  paint(canvas, test.x.subarray(64 * number, 64 * number + 64));
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  figure.append(canvas, caption);
  element("digits").append(figure);
  return caption;
});

function showDigits(guesses) {
  captions.forEach((caption, i) => {
    const right = guesses[shown[i]] === test.y[shown[i]];
    caption.textContent = guesses[shown[i]];
    caption.className = right ? "right" : "wrong";
  });
}

clear();
measure();
show();
addEventListener("resize", drawChart);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawChart);
