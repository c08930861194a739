const $ = (id) => document.getElementById(id);
const REDUCED = matchMedia("(prefers-reduced-motion: reduce)");
const DEFAULTS = { latent: null, q: "", sort: "index", dir: "", dead: "hide", dense: "show",
  concept: "show", duplicate: "show", s0: "", s1: "", d0: "", d1: "", m0: "", m1: "", map: "" };
const FALLING = new Set(["density", "max", "score", "f1", "confidence"]);
const ROW = 56;
let index = null, state = { ...DEFAULTS }, order = [], place = new Map(), count = 0;

// ---- elements and text: every string becomes a text node, never markup
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/u;
const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
const LONG = 160;
function signOf(character) {
  if (character in SIGNS) return SIGNS[character];
  if (!HIDDEN.test(character)) return null;
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}
// text with what cannot be seen drawn as signs; `edges` draws spaces at the ends as well
function drawn(text, edges = false) {
  const all = [...text], shown = all.slice(0, LONG), made = [];
  let plain = "";
  const flush = () => { if (plain) made.push(document.createTextNode(plain)); plain = ""; };
  shown.forEach((character, i) => {
    const isEdge = edges && character === " " && (i === 0 || i === all.length - 1);
    const sign = isEdge ? "␣" : signOf(character);
    if (sign === null) plain += character;
    else { flush(); made.push(el("span", { class: "sign" }, sign)); }
  });
  flush();
  if (all.length > LONG) made.push(el("span", { class: "sign" }, `… ${number(all.length - LONG)} more characters`));
  return made;
}
function plainText(text) { return [...text].slice(0, LONG).map((c) => signOf(c) ?? c).join(""); }
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-4 && size > 0)) return value.toExponential(Math.max(0, digits - 1));
  return String(Number(value.toPrecision(digits)));
}
function percent(share) { return share === 0 ? "0 %" : share < 1e-4 ? `${number(100 * share, 2)} %` : `${number(100 * share, 3)} %`; }

// ---- data: packed JSON inside the page
async function unpack(text) {
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text)
    : Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}
const parsed = new Promise((done) => {
  if (document.readyState !== "loading") done();
  else addEventListener("DOMContentLoaded", done, { once: true });
});
const chunks = new Map();
async function chunkOf(at) {
  if (chunks.has(at)) return chunks.get(at);
  if (!$(`c${at + 1}`)) await parsed;  // the next one is there: this one is whole
  const found = unpack($(`c${at}`).textContent);
  chunks.set(at, found);
  if (chunks.size > 24) chunks.delete(chunks.keys().next().value);
  return found;
}
async function detailOf(i) {
  const chunk = await chunkOf(Math.floor(i / index.chunk));
  return { tokens: chunk.t, ...chunk.l[i % index.chunk] };
}

// ---- texts to search, read in the background
const texts = { said: [], shown: [], read: 0, total: 0 };
function joined(tokens, ids) {
  const words = ids.map((id) => tokens[id]);
  const spaced = words.some((word) => /^\s|\s$/.test(word));
  return words.join(spaced ? "" : " ");
}
const idle = () => new Promise((done) => (self.requestIdleCallback && !state.q
  ? requestIdleCallback(done, { timeout: 200 }) : setTimeout(done)));
async function readTexts() {
  await parsed;
  texts.total = Math.ceil(count / index.chunk);
  for (let at = 0; at < texts.total; at++) {
    await idle();
    const chunk = await (chunks.get(at) ?? unpack($(`c${at}`).textContent));
    chunk.l.forEach((own, j) => {
      const i = at * index.chunk + j;
      texts.said[i] = own.e.map((one) => `${one[1]} ${one[4].join(" ")}`).join("\n").toLowerCase();
      texts.shown[i] = own.x.filter((one) => one[0] === "top" || one[0] === "quantile")
        .map((one) => joined(chunk.t, one[1])).join("\n").toLowerCase();
    });
    texts.read = at + 1;
    if (state.q && (at % 16 === 15 || texts.read === texts.total)) arrange();
  }
  document.documentElement.dataset.searchable = "yes";
}

// ---- what is in the list, and in which order
function terms(query) {
  return [...query.toLowerCase().matchAll(/"([^"]+)"?|(\S+)/g)].map((one) => one[1] ?? one[2]);
}
// 0: nowhere; 1: a word of label or concept, or the number; 2: part of one; 3: in an explanation;
// 4: in examples
function whereFound(i, wanted) {
  let worst = 1;
  const concept = index.concept[i] === null ? "" : index.concepts[index.concept[i]];
  const head = `${index.label[i] ?? ""}\n${concept}`.toLowerCase();
  for (const term of wanted) {
    if (term === `#${index.latent[i]}` || term === String(index.latent[i])) continue;
    if (head.includes(term)) {
      if (!` ${head.replace(/[^\p{L}\p{N}]+/gu, " ")} `.includes(` ${term} `)) worst = Math.max(worst, 2);
    } else if (texts.said[i]?.includes(term)) worst = Math.max(worst, 3);
    else if (texts.shown[i]?.includes(term)) worst = 4;
    else return 0;
  }
  return worst;
}
const isDead = (i) => index.density[i] === 0;
const isDense = (i) => index.density[i] > index.dense;
const isDuplicate = (i) => index.cosine[i] !== null && index.cosine[i] > index.duplicate;
function within(value, low, high) {
  if (low === "" && high === "") return true;
  return value !== null && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
}
function passes(i) {
  const is = (flag, wish) => wish === "show" || flag === (wish === "only");
  return is(isDead(i), state.dead) && is(isDense(i), state.dense)
    && is(index.concept[i] !== null, state.concept) && is(isDuplicate(i), state.duplicate)
    && within(index.score[i], state.s0, state.s1) && within(index.density[i], state.d0, state.d1)
    && within(index.max[i], state.m0, state.m1);
}
const found = new Map();
function arrange() {
  const wanted = terms(state.q), kept = [];
  found.clear();
  let dead = 0;
  for (let i = 0; i < count; i++) {
    if (!passes(i)) { if (isDead(i) && state.dead === "hide") dead++; continue; }
    const where = wanted.length ? whereFound(i, wanted) : 1;
    if (where) { kept.push(i); found.set(i, where); }
  }
  const values = state.sort === "index" ? index.latent : index[state.sort];
  const sign = (FALLING.has(state.sort) ? -1 : 1) * (state.dir ? -1 : 1);
  const compare = (a, b) => {
    const x = values[a], y = values[b];
    if (x === null || y === null) return x === y ? a - b : x === null ? 1 : -1;  // no value: last
    const one = typeof x === "string" ? x.localeCompare(y, "en") : x - y;
    return sign * one || a - b;
  };
  kept.sort((a, b) => found.get(a) - found.get(b) || compare(a, b));
  order = kept;
  const hidden = dead ? `, ${number(dead)} dead hidden` : "";
  const reading = wanted.length && texts.read < texts.total
    ? ` · reading texts, ${Math.floor(100 * texts.read / texts.total)} %` : "";
  $("count").textContent = `${number(order.length)} of ${number(count)} latents${hidden}${reading}`;
  drawList();
  self.drawOverview?.();
  self.drawMap?.();
}

// ---- the list: only the rows that can be seen exist
function badgesOf(i) {
  const made = [];
  if (isDead(i)) made.push(el("span", { class: "badge" }, "dead"));
  if (isDense(i)) made.push(el("span", { class: "badge" }, "dense"));
  if (isDuplicate(i)) made.push(el("span", { class: "badge" }, "duplicate"));
  return made;
}
const PLACES = { 3: "in an explanation", 4: "in examples" };
function rowOf(at) {
  const i = order[at], here = index.latent[i];
  const facts = [isDead(i) ? "never fires" : percent(index.density[i])];
  if (!isDead(i)) facts.push(`max ${number(index.max[i])}`);
  if (index.score[i] !== null) facts.push(`score ${number(index.score[i], 2)}`);
  if (index.concept[i] !== null) facts.push(`${index.concepts[index.concept[i]]} ${number(index.f1[i], 2)}`);
  if (PLACES[found.get(i)]) facts.push(PLACES[found.get(i)]);
  return el("div", { class: "row", role: "option", id: `r${here}`, "data-latent": here,
    "aria-selected": here === state.latent ? "true" : "false", "aria-setsize": order.length,
    "aria-posinset": at + 1, css: { transform: `translateY(${at * ROW}px)` } },
    el("span", { class: "what" }, el("b", {}, String(here)),
      el("span", { class: "label" }, ...(index.label[i] ? drawn(index.label[i]) : [el("i", { class: "soft" }, "no label")])),
      ...badgesOf(i)),
    el("span", { class: "facts", title: facts.map(plainText).join(" · ") }, ...drawn(facts.join(" · "))));
}
function drawList() {
  const list = $("list"), rows = $("rows");
  rows.style.height = `${order.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  const made = [];
  for (let at = first; at < last; at++) made.push(rowOf(at));
  if (!order.length) made.push(el("p", { class: "soft pad" }, state.q ? "Nothing found." : "No latent passes the filters."));
  rows.replaceChildren(...made);
  if ($(`r${state.latent}`)) list.setAttribute("aria-activedescendant", `r${state.latent}`);
  else list.removeAttribute("aria-activedescendant");
}
function atInList() { return state.latent === null ? -1 : order.indexOf(place.get(state.latent)); }
function reveal() {
  const at = atInList(), list = $("list");
  if (at < 0) return;
  const away = Math.max(list.scrollTop - at * ROW, (at + 1) * ROW - list.scrollTop - list.clientHeight);
  if (away > 2 * ROW) list.scrollTop = Math.max(0, at * ROW - list.clientHeight / 2);  // a jump: into the middle
  else if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
  else if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
}

// ---- state and address
function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const next = { ...DEFAULTS, sort: index.order };
  for (const key of Object.keys(DEFAULTS)) if (said.has(key)) next[key] = said.get(key);
  next.latent = said.has("latent") && place.has(Number(next.latent)) ? Number(next.latent) : null;
  const known = [...$("sort").options].map((one) => one.value);
  if (!known.includes(next.sort)) next.sort = index.order;
  for (const key of ["dead", "dense", "concept", "duplicate"])
    if (!["show", "hide", "only"].includes(next[key])) next[key] = DEFAULTS[key];
  return next;
}
function addressOf(wanted) {
  const said = new URLSearchParams();
  for (const [key, value] of Object.entries(wanted))
    if (value !== null && value !== (key === "sort" ? index.order : DEFAULTS[key])) said.set(key, value);
  return `#${said}`;
}
function remember(push = false) {
  const address = addressOf(state);
  if (address === (location.hash || "#")) return;
  try { history[push ? "pushState" : "replaceState"](null, "", address); } catch { location.hash = address; }
}
function set(changes, { push = false } = {}) {
  state = { ...state, ...changes };
  remember(push);
  showControls();
  if (Object.keys(changes).some((key) => key !== "latent" && key !== "map")) { $("list").scrollTop = 0; arrange(); }
}
function go(latent, { push = true, look = true } = {}) {
  if (!place.has(latent)) return;
  state.latent = latent;
  remember(push);
  if (look) document.body.classList.replace("at-list", "at-latent");
  reveal();
  drawList();
  showLatent(place.get(latent));
  self.drawMap?.();
}
function step(by) {
  if (!order.length) return;
  const at = atInList();
  const next = at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + by));
  go(index.latent[order[next]], { push: false, look: false });
}
function showControls() {
  if ($("query").value !== state.q) $("query").value = state.q;
  $("sort").value = state.sort;
  const falls = FALLING.has(state.sort) !== Boolean(state.dir);
  $("direction").textContent = falls ? "↓" : "↑";
  $("direction").setAttribute("aria-label", falls ? "Largest first; turn round" : "Smallest first; turn round");
  let used = 0;
  for (const field of document.querySelectorAll("[data-filter]")) {
    const key = field.dataset.filter;
    if (field.value !== state[key]) field.value = state[key];
    if (state[key] !== DEFAULTS[key]) used++;
  }
  $("filter-count").textContent = used ? ` (${used})` : "";
  const brushed = ["d0", "d1", "m0", "m1"].some((key) => state[key] !== "");
  $("brushed").textContent = brushed ? "selected; click to clear" : "drag to select";
}
