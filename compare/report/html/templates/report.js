"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { steps, tensors, factor } = data;

function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const codes = new Uint16Array((bytes.length / 3) * 2);
  for (let from = 0, to = 0; from < bytes.length; from += 3) {
    codes[to++] = bytes[from] | ((bytes[from + 1] & 15) << 8);
    codes[to++] = (bytes[from + 1] >> 4) | (bytes[from + 2] << 4);
  }
  return codes;
}

/** A number out of its code: 0 is zero, 4094 infinity, 4095 nothing, and else it is its logarithm's. */
function number(code) {
  if (code === 0) return 0;
  if (code === 4094) return Infinity;
  return code === 4095 ? NaN : 10 ** ((code - 1) / 160 - 20);
}

const codes = Object.fromEntries(["error64", "expected", "torch32", "jax32"].map((key) => [key, unpacked(data[key])]));
const at = (key, row, step) => number(codes[key][row * steps + step]);

function digits(row, step) {
  const code = codes.error64[row * steps + step];
  return code === 0 ? 16 : code > 4093 ? 0 : Math.max(0, Math.min(16, 20 - (code - 1) / 160));
}

function ratio(row, step) {
  const error = at("error64", row, step), expected = at("expected", row, step);
  if (error === 0) return 0;
  return error === Infinity ? Infinity : error / expected;
}

function shown(value) {
  if (Number.isNaN(value)) return "not reached";
  if (value === Infinity) return "infinite";
  return value === 0 ? "0" : value.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
}

function made(parent, tag, look, text) {
  const element = document.createElement(tag);
  if (look) element.className = look;
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

// What is filtered: a part of a name, and whether to show only what differs. The map and the trees both ask.

const wanted = document.getElementById("filter"), differing = document.getElementById("differing");
const asked = (text, differs) => text.toLowerCase().includes(wanted.value.trim().toLowerCase()) && (!differing.checked || differs);

function whenFiltered(update) {
  wanted.addEventListener("input", update);
  differing.addEventListener("change", update);
}

// The map. Each stage has a canvas of its own; of several tensors or steps in one square, the worst is drawn.

const map = document.getElementById("map");
if (map && tensors.length && steps) {
  const blocks = [];
  let row = data.first ? data.first[0] : 0;
  let step = data.first ? data.first[1] : 0;
  if (data.first) made(map, "div", "flag-room").style.height = "1.6rem";
  tensors.forEach(([stage], index) => {
    let block = blocks.at(-1);
    if (!block || block.stage !== stage) {
      const element = made(map, "div", "stage");
      made(element, "span", "", stage);
      block = { stage, element, all: [], rows: [], canvas: made(element, "canvas") };
      blocks.push(block);
    }
    block.all.push(index);
  });
  const axis = made(map, "div", "steps");
  made(axis, "span", "", steps > 1 ? "step 0" : "0 digits");
  made(axis, "span", "", steps > 1 ? `step ${steps - 1}` : "16 digits");
  const origin = data.first && made(map, "div", "mark origin");
  const chosen = made(map, "div", "mark chosen");
  const line = data.first && made(map, "div", "mark line");
  const flag = data.first && made(map, "div", "mark flag", data.mark);
  const wrongAt = (row, step) => ratio(row, step) > factor;

  /** Show the rows that the filter leaves. */
  function fill() {
    const everyStep = [...Array(steps).keys()];
    const fits = (index) => asked(tensors[index].slice(0, 3).join(" "), differing.checked && everyStep.some((s) => wrongAt(index, s)));
    for (const block of blocks) {
      block.rows = block.all.filter(fits);
      block.element.hidden = !block.rows.length;
    }
    const left = blocks.flatMap(({ rows }) => rows);
    const tall = Math.min(12, 400 / left.length);
    for (const { rows, canvas } of blocks) canvas.style.height = `${Math.max(8, Math.round(rows.length * tall))}px`;
    if (left.length && !left.includes(row)) row = left[0];
    paint();
    show();
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
    const [few, many] = [read("--few"), read("--many")];
    const scale = Array.from({ length: 65 }, (_, i) => few.map((low, j) => Math.round(low + ((many[j] - low) * i) / 64)));
    return { scale, wrong: read("--wrong"), follows: read("--follows"), panel: read("--panel") };
  }

  function paint() {
    const { scale, wrong, follows, panel } = colours();
    for (const { canvas, rows } of blocks) {
      if (!rows.length) continue;
      const lines = Math.max(1, Math.min(rows.length, Math.floor(canvas.clientHeight * devicePixelRatio)));
      const columns = steps > 1 ? Math.max(1, Math.min(steps, Math.floor(canvas.clientWidth * devicePixelRatio))) : 64;
      canvas.width = columns;
      canvas.height = lines;
      const context = canvas.getContext("2d"), image = context.createImageData(columns, lines);
      for (let r = 0; r < lines; r++) {
        const together = rows.slice(Math.floor((r * rows.length) / lines), Math.ceil(((r + 1) * rows.length) / lines));
        for (let column = 0; column < columns; column++) {
          const start = steps > 1 ? Math.floor((column * steps) / columns) : 0;
          const end = steps > 1 ? Math.ceil(((column + 1) * steps) / columns) : 1;
          let least = 16, differs = false, decides = false;
          for (const index of together) {
            for (let s = start; s < end; s++) {
              const here = wrongAt(index, s);
              least = Math.min(least, digits(index, s));
              differs ||= here;
              decides ||= here && tensors[index][3];
            }
          }
          let colour = differs ? (decides ? wrong : follows) : scale[Math.round(least * 4)];
          if (steps === 1 && column > Math.max(1, least * 4)) colour = panel; // a bar
          image.data.set([...colour, 255], 4 * (r * columns + column));
        }
      }
      context.putImageData(image, 0, 0);
    }
    mark();
  }

  /** Where a square lies within the map, in CSS pixels; nothing of a row that is filtered out. */
  function place(row, step) {
    const block = blocks.find(({ rows }) => rows.includes(row));
    if (!block) return null;
    const outer = map.getBoundingClientRect(), inner = block.canvas.getBoundingClientRect();
    const width = inner.width / steps, tall = inner.height / block.rows.length;
    return { x: inner.left - outer.left + step * width, y: inner.top - outer.top + block.rows.indexOf(row) * tall, width, tall };
  }

  /** Put a frame around a square, and never one too small to see. */
  function frame(element, row, step, room) {
    const at = place(row, step);
    element.hidden = !at;
    if (!at) return;
    const { x, y, width, tall } = at;
    const wide = Math.max(width, 6) + 2 * room, high = Math.max(tall, 6) + 2 * room;
    const [left, top] = [x + (width - wide) / 2, y + (tall - high) / 2];
    Object.assign(element.style, { left: `${left}px`, top: `${top}px`, width: `${wide}px`, height: `${high}px` });
  }

  function mark() {
    frame(chosen, row, step, 3);
    if (!data.first) return;
    frame(origin, ...data.first, 3);
    const spot = place(...data.first);
    line.hidden = flag.hidden = !spot;
    if (!spot) return;
    const middle = spot.x + spot.width / 2;
    Object.assign(line.style, { left: `${middle}px`, top: "1.3rem" });
    line.style.height = `${Math.max(0, spot.y - 2 - line.offsetTop)}px`;
    const room = map.clientWidth - flag.offsetWidth;
    Object.assign(flag.style, { left: `${Math.max(0, Math.min(room, middle - flag.offsetWidth / 2))}px`, top: "0.1rem" });
  }

  const figures = Object.fromEntries([...document.querySelectorAll("[data-figure]")].map((each) => [each.dataset.figure, each]));

  function show() {
    const [stage, torch, jax] = tensors[row];
    const times = ratio(row, step), wrong = times > factor;
    figures.place.textContent = `step ${step}, ${stage}`;
    figures.torch.textContent = torch;
    figures.jax.textContent = jax;
    figures.verdict.className = wrong ? "mismatch" : "match";
    const size = times === Infinity ? "finite on one side only" : `${times < 1000 ? times.toPrecision(2) : times.toExponential(0).replace("+", "")} times what rounding explains`;
    figures.verdict.textContent = wrong
      ? `✗ differs: ${size}`
      : at("expected", row, step) === Infinity ? "✓ float32 has no correct digit here, so that this step says nothing" : "✓ agrees: no more than rounding explains";
    figures.digits.textContent = digits(row, step).toFixed(1);
    for (const key of ["error64", "expected", "torch32", "jax32"]) figures[key].textContent = shown(at(key, row, step));
    course();
  }

  /** Draw the chosen tensor's float64 difference over the steps, and what rounding explains. */
  function course() {
    const box = document.getElementById("course");
    if (steps < 2) return;
    const level = (code) => (code > 4093 ? null : Math.max((code - 1) / 160 - 20, -17));
    const lines = ["expected", "error64"].map((key) => Array.from({ length: steps }, (_, s) => level(codes[key][row * steps + s])));
    const known = lines.flat().filter((value) => value !== null);
    const low = Math.floor(Math.min(-16, ...known)), high = Math.ceil(Math.max(-14, ...known));
    const x = (s) => 40 + (s / (steps - 1)) * 250, y = (value) => 8 + ((high - value) / (high - low)) * 84;
    const path = (values) => values.map((value, s) => (value === null ? "" : `${s && values[s - 1] !== null ? "L" : "M"}${x(s).toFixed(1)} ${y(value).toFixed(1)}`)).join("");
    box.innerHTML =
      `<svg viewBox="0 0 296 126" role="img" aria-label="Over the steps: the float64 difference, and what rounding explains">` +
      `<text x="36" y="12" text-anchor="end">1e${high}</text><text x="36" y="95" text-anchor="end">1e${low}</text>` +
      `<path d="M40 8V92H290" stroke="var(--line)"/><path d="M${x(step)} 8V92" stroke="var(--dim)" stroke-dasharray="2 2"/>` +
      `<path d="${path(lines[0])}" stroke="var(--fair)"/><path d="${path(lines[1])}" stroke="var(--jax)"/>` +
      `<text x="40" y="114"><tspan style="fill:var(--jax)">float64 difference</tspan> <tspan dx="8" style="fill:var(--fair)">rounding explains</tspan></text></svg>`;
  }

  function choose(newRow, newStep) {
    row = newRow;
    step = Math.max(0, Math.min(steps - 1, newStep));
    mark();
    show();
  }

  /** The row so many below the chosen one, of those that are shown. */
  function below(offset) {
    const shownRows = blocks.flatMap(({ rows }) => rows);
    return shownRows[Math.max(0, Math.min(shownRows.length - 1, shownRows.indexOf(row) + offset))] ?? row;
  }

  function stageAt(offset) {
    const seen = blocks.filter(({ rows }) => rows.length);
    const now = seen.findIndex(({ rows }) => rows.includes(row));
    return seen[Math.max(0, Math.min(seen.length - 1, now + offset))]?.rows[0] ?? row;
  }

  map.addEventListener("click", (event) => {
    const near = blocks.filter(({ rows }) => rows.length).map((block) => [block, block.canvas.getBoundingClientRect()]);
    if (!near.length) return;
    const [block, box] = near.find(([, { bottom }]) => event.clientY < bottom) || near.at(-1);
    const inside = (value, from, size, count) => Math.max(0, Math.min(count - 1, Math.floor(((value - from) / size) * count)));
    choose(block.rows[inside(event.clientY, box.top, box.height, block.rows.length)], inside(event.clientX, box.left, box.width, steps));
  });
  map.addEventListener("keydown", (event) => {
    const moves = {
      ArrowDown: () => choose(below(1), step), ArrowUp: () => choose(below(-1), step),
      ArrowRight: () => choose(row, step + 1), ArrowLeft: () => choose(row, step - 1),
      Home: () => choose(row, 0), End: () => choose(row, steps - 1),
      PageDown: () => choose(stageAt(1), step), PageUp: () => choose(stageAt(-1), step),
      Enter: () => document.getElementById("figures").scrollIntoView({ block: "nearest" }),
    };
    if (!moves[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    moves[event.key]();
  });
  document.getElementById("first")?.addEventListener("click", () => {
    if (data.first) choose(...data.first);
    map.focus();
  });
  new ResizeObserver(paint).observe(map);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  whenFiltered(fill);
  fill();
}

// The lines between the two trees, from what is to be seen of each weight: itself, or the folded module around it.

const trees = document.querySelector(".trees");
if (trees) {
  const drawing = trees.querySelector("svg");
  const ends = [0, 1].map((side) => {
    const found = new Map();
    for (const element of trees.querySelectorAll(`[data-side="${side}"] [data-links]`)) {
      for (const link of element.dataset.links.split(" ")) found.set(link, element);
    }
    return found;
  });

  function visible(element) {
    let seen = element;
    for (let outer = element.parentElement; outer !== trees; outer = outer.parentElement) {
      if (outer.tagName === "DETAILS" && !outer.open) seen = outer.querySelector("summary");
    }
    return seen;
  }

  function connect() {
    const box = trees.getBoundingClientRect(), lines = new Map();
    for (const [link, left] of ends[0]) {
      const right = ends[1].get(link);
      if (!right) continue;
      const state = left.querySelector(".mismatch") || right.querySelector(".mismatch") ? "mismatch" : left.querySelector(".match") ? "match" : "unknown";
      if (left.closest(".hidden") || right.closest(".hidden")) continue;
      const [from, to] = [visible(left), visible(right)].map((each) => each.getBoundingClientRect());
      const [x1, x2, y1, y2] = [from.right - box.left + 4, to.left - box.left - 4, from.top + from.height / 2 - box.top, to.top + to.height / 2 - box.top];
      const bend = (x1 + x2) / 2, path = `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}`;
      if (lines.get(path) !== "mismatch") lines.set(path, state);
    }
    drawing.innerHTML = [...lines].map(([path, state]) => `<path d="${path}" class="${state}"/>`).join("");
  }

  // A filter hides rows whose names lack it, and those that agree; a module stays for the sake of what is in it.
  function filtered() {
    const fits = (row) => asked(row.textContent, row.querySelector(".mismatch"));
    for (const row of trees.querySelectorAll("div.row")) row.classList.toggle("hidden", !fits(row));
    for (const module of [...trees.querySelectorAll("details")].reverse()) {
      const inside = module.querySelector(":scope > .inside > :not(.hidden)");
      module.classList.toggle("hidden", !inside && !fits(module.querySelector("summary")));
    }
    connect();
  }

  whenFiltered(filtered);
  trees.addEventListener("toggle", connect, true);
  new ResizeObserver(connect).observe(trees);
}

// A diff is copied without the button beside it.

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Pages from a file may not write to the clipboard: the text is chosen instead, for the reader to copy.
      getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
      button.textContent = "Selected: press Ctrl-C";
    }
  });
}
