
// ---- colours of the page, as the canvas needs them
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function fitted(canvas) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}
// light to dark on a light page, dark to light on a dark one
const RAMPS = { light: [[233, 196, 106], [214, 98, 70], [122, 40, 120], [38, 24, 92]],
  dark: [[70, 60, 130], [170, 70, 140], [240, 130, 90], [250, 225, 140]] };
const KINDS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1"];
function ramp(share) {
  const stops = RAMPS[isDark() ? "dark" : "light"], at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
  const low = Math.floor(at), part = at - low;
  return `rgb(${stops[low].map((one, j) => Math.round(one + part * (stops[low + 1][j] - one))).join(",")})`;
}
function isDark() {
  const said = document.documentElement.dataset.theme;
  return said ? said === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// ---- density and maximum of all latents: a histogram in two dimensions, with a brush
const CELLS = [32, 16];
let ends = null, brush = null;
function overviewEnds() {
  const of = (values) => {
    const logs = Float64Array.from(values.filter((one) => one > 0), (one) => Math.log10(one)).sort();
    if (!logs.length) return [0, 1];
    // the few that lie far out are drawn in the outermost cells
    const at = (part) => logs[Math.round(part * (logs.length - 1))];
    const low = at(0.004), high = at(0.996);
    return high - low < 1e-6 ? [low - 0.5, high + 0.5] : [low, high];
  };
  return { x: of(index.density), y: of(index.max) };
}
function share(value, [low, high]) { return Math.min(1, Math.max(0, (Math.log10(value) - low) / (high - low))); }
function drawOverview() {
  const { pen, width, height } = fitted($("overview"));
  if (!width) return;
  const all = new Float64Array(CELLS[0] * CELLS[1]), kept = new Float64Array(all.length);
  const cell = (i) => Math.min(CELLS[0] - 1, Math.floor(share(index.density[i], ends.x) * CELLS[0]))
    + CELLS[0] * Math.min(CELLS[1] - 1, Math.floor(share(index.max[i], ends.y) * CELLS[1]));
  for (let i = 0; i < count; i++) if (index.density[i] > 0 && index.max[i] > 0) all[cell(i)]++;
  for (const i of order) if (index.density[i] > 0 && index.max[i] > 0) kept[cell(i)]++;
  const most = Math.log1p(all.reduce((a, b) => Math.max(a, b), 1)), w = width / CELLS[0], h = height / CELLS[1];
  all.forEach((some, at) => {
    if (!some) return;
    const x = (at % CELLS[0]) * w, y = height - (Math.floor(at / CELLS[0]) + 1) * h;
    pen.globalAlpha = 0.16;
    pen.fillStyle = colour("--soft");
    pen.fillRect(x, y, w - 1, h - 1);
    if (!kept[at]) return;
    pen.globalAlpha = 1;
    pen.fillStyle = ramp(Math.log1p(kept[at]) / most);
    pen.fillRect(x, y, w - 1, h - 1);
  });
  pen.globalAlpha = 1;
  const mark = place.get(state.latent);
  if (mark !== undefined && index.density[mark] > 0 && index.max[mark] > 0) {
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.arc(share(index.density[mark], ends.x) * width, height - share(index.max[mark], ends.y) * height, 4, 0, 7);
    pen.stroke();
  }
  const box = brush ?? brushOf();
  if (box) {
    pen.fillStyle = pen.strokeStyle = colour("--accent");
    pen.globalAlpha = 0.12;
    pen.fillRect(box[0] * width, (1 - box[3]) * height, (box[2] - box[0]) * width, (box[3] - box[1]) * height);
    pen.globalAlpha = 1;
    pen.strokeRect(box[0] * width, (1 - box[3]) * height, (box[2] - box[0]) * width, (box[3] - box[1]) * height);
  }
}
function brushOf() {
  const { d0, d1, m0, m1 } = state;
  if (!d0 && !d1 && !m0 && !m1) return null;
  const of = (value, range, otherwise) => (value > 0 ? share(Number(value), range) : otherwise);
  return [of(d0, ends.x, 0), of(m0, ends.y, 0), of(d1, ends.x, 1), of(m1, ends.y, 1)];
}
function startOverview() {
  ends = overviewEnds();
  const canvas = $("overview");
  let from = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const clip = (one) => (one < 0.02 ? 0 : one > 0.98 ? 1 : one);  // the ends are open
    return [clip((event.clientX - box.left) / box.width), clip(1 - (event.clientY - box.top) / box.height)];
  };
  const spanned = (to) => [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
  canvas.addEventListener("pointerdown", (event) => { from = at(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => { if (from) { brush = spanned(at(event)); drawOverview(); } });
  canvas.addEventListener("pointerup", (event) => {
    if (!from) return;
    const [x0, y0, x1, y1] = spanned(at(event));
    from = brush = null;
    const value = (part, [low, high], isUpper) => {
      const one = 10 ** (low + part * (high - low));  // rounded outwards, so that ends stay in
      return part <= 0 && !isUpper || part >= 1 && isUpper ? "" : String(Number((one * (isUpper ? 1.0005 : 0.9995)).toPrecision(4)));
    };
    if (x1 - x0 < 0.02 && y1 - y0 < 0.04) set({ d0: "", d1: "", m0: "", m1: "" });
    else set({ d0: value(x0, ends.x), d1: value(x1, ends.x, true), m0: value(y0, ends.y), m1: value(y1, ends.y, true) });
  });
  canvas.addEventListener("pointercancel", () => { from = brush = null; drawOverview(); });
}

// ---- the map of decoder rows
const view = { zoom: 1, x: 0.5, y: 0.5 };
let colouring = "density", hues = null;
// pixels per unit of either axis; the map fills its place, stretched by up to two
function spread(width, height) {
  const wide = width - 28, tall = height - 28;
  return [Math.min(wide, 2 * tall) * view.zoom, Math.min(tall, 2 * wide) * view.zoom];
}
function placed(width, height) {
  const [wide, tall] = spread(width, height);
  return (i) => [width / 2 + (index.x[i] - view.x) * wide, height / 2 + (view.y - index.y[i]) * tall];
}
// a concept is mostly that of one latent; families of them are named by their first word
function familyOf(i) { return index.concept[i] === null ? null : index.concepts[index.concept[i]].split("-")[0]; }
function huesOf() {
  const often = new Map();
  for (let i = 0; i < count; i++) { const one = familyOf(i); if (one !== null) often.set(one, (often.get(one) ?? 0) + 1); }
  const first = [...often].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, KINDS.length);
  return new Map(first.map(([one], j) => [one, KINDS[j]]));
}
function rangeOf() {
  if (colouring === "density") return ends.x;
  if (colouring === "max") return ends.y;
  const known = index[colouring].filter((one) => one !== null);
  return [known.reduce((a, b) => Math.min(a, b), 1), known.reduce((a, b) => Math.max(a, b), 0)];
}
const LINEAR = ["score", "f1"];
// null where there is nothing to colour by
function colourOf(i, [low, high]) {
  if (colouring === "concept") return hues.get(familyOf(i)) ?? null;
  const value = LINEAR.includes(colouring) ? index[colouring][i] : Math.log10(index[colouring][i]);
  return value === null || !Number.isFinite(value) ? null : ramp((value - low) / Math.max(1e-9, high - low));
}
let isDrawing = false;
function drawMap() {
  if ($("map-panel").hidden || isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => { isDrawing = false; paintMap(); });
}
function paintMap() {
  const canvas = $("map"), { pen, width, height } = fitted(canvas), at = placed(width, height), range = rangeOf();
  const kept = new Set(order), size = Math.min(6, Math.min(3.6, Math.max(1.6, 90 / Math.sqrt(count))) * Math.sqrt(view.zoom));
  pen.globalAlpha = 0.22;
  pen.fillStyle = colour("--soft");
  for (let i = 0; i < count; i++) {
    if (index.x[i] === null || kept.has(i)) continue;
    const [x, y] = at(i);
    pen.fillRect(x - size / 2, y - size / 2, size, size);
  }
  const plain = colour("--point");
  for (const i of order) {
    if (index.x[i] === null) continue;
    const [x, y] = at(i);
    if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
    const own = colourOf(i, range);
    pen.globalAlpha = own === null ? 0.45 : 0.9;
    pen.fillStyle = own ?? plain;
    pen.beginPath();
    pen.arc(x, y, size, 0, 7);
    pen.fill();
  }
  pen.globalAlpha = 1;
  const mark = place.get(state.latent);
  if (mark !== undefined && index.x[mark] !== null) {
    const [x, y] = at(mark);
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, size + 4, 0, 7);
    pen.stroke();
  }
  if (document.activeElement === canvas && canvas.dataset.keys) {
    pen.strokeStyle = colour("--accent");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(width / 2 - 9, height / 2); pen.lineTo(width / 2 + 9, height / 2);
    pen.moveTo(width / 2, height / 2 - 9); pen.lineTo(width / 2, height / 2 + 9);
    pen.stroke();
  }
}
function drawLegend() {
  const legend = $("legend");
  if (colouring === "concept") {
    legend.replaceChildren(...[...hues].flatMap(([one, hue]) => [el("i", { class: "dot", css: { background: hue } }), ...drawn(one), " "]),
      el("i", { class: "dot none" }), "others");
  } else {
    const [low, high] = rangeOf(), value = (one) => (LINEAR.includes(colouring) ? number(one, 2) : number(10 ** one, 2));
    legend.replaceChildren(value(low), el("i", { class: "ramp", css: { background: `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(",")})` } }), value(high));
  }
}
function nearestOnMap(x, y, reach) {
  const canvas = $("map"), at = placed(canvas.clientWidth, canvas.clientHeight), kept = new Set(order);
  let best = null, least = reach;
  for (let i = 0; i < count; i++) {
    if (index.x[i] === null) continue;
    const [px, py] = at(i), far = Math.hypot(px - x, py - y) + (kept.has(i) ? 0 : 3);
    if (far < least) { least = far; best = i; }
  }
  return best;
}
function zoomBy(factor, x, y) {
  const canvas = $("map"), before = spread(canvas.clientWidth, canvas.clientHeight);
  const offset = [(x ?? canvas.clientWidth / 2) - canvas.clientWidth / 2, canvas.clientHeight / 2 - (y ?? canvas.clientHeight / 2)];
  view.zoom = Math.min(60, Math.max(1, view.zoom * factor));
  const after = spread(canvas.clientWidth, canvas.clientHeight);
  view.x += offset[0] / before[0] - offset[0] / after[0];
  view.y += offset[1] / before[1] - offset[1] / after[1];
  if (view.zoom === 1) { view.x = view.y = 0.5; }
  drawMap();
}
function startMap() {
  if (!index.map) { $("map-button").hidden = true; return; }
  hues = huesOf();
  if (!hues.size) for (const one of ["concept", "f1"]) $("colour").querySelector(`[value=${one}]`).remove();
  if (index.score.every((one) => one === null)) $("colour").querySelector("[value=score]").remove();
  const canvas = $("map"), held = new Map();
  let moved = 0, apart = 0;
  const local = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(Math.exp(-event.deltaY / 400), ...local(event)); }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { held.set(event.pointerId, local(event)); moved = 0; apart = 0; delete canvas.dataset.keys; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    const now = local(event), before = held.get(event.pointerId);
    if (!before) {
      const near = nearestOnMap(...now, 14);
      canvas.style.cursor = near === null ? "grab" : "pointer";
      if (near === null) { tipOff(); return; }
      const box = canvas.getBoundingClientRect(), [x, y] = placed(canvas.clientWidth, canvas.clientHeight)(near);
      tipAt({ left: box.left + x, top: box.top + y - 6, bottom: box.top + y + 6, width: 0 }, el("b", {}, `#${index.latent[near]}`), " ", ...drawn(index.label[near] ?? "no label"));
      return;
    }
    held.set(event.pointerId, now);
    if (held.size === 2) {
      const [a, b] = [...held.values()], far = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (apart) zoomBy(far / apart, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      apart = far;
      moved = 9;
      return;
    }
    const [wide, tall] = spread(canvas.clientWidth, canvas.clientHeight);
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    view.x -= (now[0] - before[0]) / wide;
    view.y += (now[1] - before[1]) / tall;
    tipOff();
    drawMap();
  });
  canvas.addEventListener("pointerup", (event) => {
    const was = held.delete(event.pointerId);
    if (!was || moved > 4) return;
    const near = nearestOnMap(...local(event), 14);
    if (near !== null) go(index.latent[near]);
  });
  canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointerleave", tipOff);
  for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, drawMap);
  canvas.addEventListener("keydown", (event) => {
    const [wide, tall] = spread(canvas.clientWidth, canvas.clientHeight);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (moves[event.key]) { view.x += (moves[event.key][0] * 40) / wide; view.y += (moves[event.key][1] * 40) / tall; drawMap(); }
    else if (event.key === "+" || event.key === "=") zoomBy(1.4);
    else if (event.key === "-") zoomBy(1 / 1.4);
    else if (event.key === "0") { Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 }); drawMap(); }
    else if (event.key === "Enter") {
      const near = nearestOnMap(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity);
      if (near !== null) go(index.latent[near]);
    } else return;
    canvas.dataset.keys = "yes";
    event.preventDefault();
    event.stopPropagation();
  });
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => {
    if (button.dataset.zoom === "all") { Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 }); drawMap(); }
    else zoomBy(button.dataset.zoom === "in" ? 1.6 : 1 / 1.6);
  });
  $("colour").addEventListener("change", () => { colouring = $("colour").value; drawLegend(); drawMap(); });
  new ResizeObserver(drawMap).observe(canvas);
  drawLegend();
}
function showMap(isOpen) {
  $("map-panel").hidden = !isOpen;
  $("map-button").setAttribute("aria-pressed", String(isOpen));
  tipOff();
  drawMap();
}
