
// ---- controls, keys, and the beginning
function problem(text) { $("problem").textContent = text; $("problem").hidden = false; }
function toggleMap() {
  if (!index.map) return;
  const isOpen = $("map-panel").hidden;
  set({ map: isOpen === mapByDefault() ? "" : isOpen ? "on" : "off" });
  showMap(isOpen);
  if (isOpen && document.body.classList.contains("at-list")) document.body.classList.replace("at-list", "at-latent");
}
const mapByDefault = () => matchMedia("(min-width: 1500px)").matches;
function applyTheme(said) {
  if (said === "dark" || said === "light") document.documentElement.dataset.theme = said;
  drawOverview();
  drawLegend_();
  drawMap();
}
function drawLegend_() { if (index.map) drawLegend(); }
function toggleTheme() {
  const next = isDark() ? "light" : "dark";
  try { localStorage.setItem("sae-dashboard-theme", next); } catch { /* private windows keep nothing */ }
  applyTheme(next);
}
function savedTheme() { try { return localStorage.getItem("sae-dashboard-theme"); } catch { return null; } }
function openDialog(id) { tipOff(); if (!$(id).open) $(id).showModal(); }
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]")) return;
  const target = event.target, isText = target.matches?.("input, textarea");
  const isControl = isText || target.matches?.("select, button, summary, a");
  if (event.key === "Escape") {
    tipOff();
    if (target === $("query") && state.q) set({ q: "" });
    else if (target === $("query") || document.body.classList.contains("at-latent") || $("latent").contains(target)) backToList();
    else if (state.q) set({ q: "" });
    return;
  }
  if (target === $("query")) {
    const isLeft = event.key === "Enter" || event.key === "ArrowDown";
    if (isLeft && $("query").value !== state.q) set({ q: $("query").value });  // what was typed last counts
    if (event.key === "Enter" && order.length) { event.preventDefault(); go(index.latent[order[0]]); $("latent").focus({ preventScroll: true }); }
    else if (event.key === "ArrowDown") { event.preventDefault(); $("list").focus({ preventScroll: true }); if (atInList() < 0) step(1); }
    return;
  }
  if (isText) return;
  const run = {
    j: () => step(1), k: () => step(-1), "/": () => { document.body.classList.replace("at-latent", "at-list"); $("query").focus(); $("query").select(); },
    "?": () => openDialog("help"), m: toggleMap, t: toggleTheme,
    r: () => { if (order.length) go(index.latent[order[Math.floor(Math.random() * order.length)]], { look: false }); },
  };
  const inList = target === $("list");
  if (inList || (target === document.body)) {
    run.ArrowDown = () => step(1);
    run.ArrowUp = () => step(-1);
  }
  if (inList) {
    const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
    Object.assign(run, { PageDown: () => step(page), PageUp: () => step(-page), Home: () => step(-count), End: () => step(count),
      Enter: () => { document.body.classList.replace("at-list", "at-latent"); $("latent").focus({ preventScroll: true }); } });
  }
  if (!run[event.key] || (isControl && event.key.length > 1)) return;
  event.preventDefault();
  run[event.key]();
}
function wire() {
  let soon = 0;
  $("query").addEventListener("input", () => {
    clearTimeout(soon);
    soon = setTimeout(() => set({ q: $("query").value }), count > 4096 ? 120 : 0);
  });
  $("sort").addEventListener("change", () => set({ sort: $("sort").value, dir: "" }));
  $("direction").addEventListener("click", () => set({ dir: state.dir ? "" : "back" }));
  for (const field of document.querySelectorAll("[data-filter]"))
    field.addEventListener("change", () => set({ [field.dataset.filter]: field.value }));
  $("clear").addEventListener("click", () => {
    const keys = [...document.querySelectorAll("[data-filter]")].map((field) => field.dataset.filter);
    set(Object.fromEntries(keys.map((key) => [key, DEFAULTS[key]])));
  });
  let isSoon = false;
  $("list").addEventListener("scroll", () => {
    if (isSoon) return;
    isSoon = true;
    requestAnimationFrame(() => { isSoon = false; drawList(); });
  }, { passive: true });
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest?.(".row");
    if (row) { go(Number(row.dataset.latent)); $("list").focus({ preventScroll: true }); $("main").scrollTop = 0; }
  });
  $("map-button").addEventListener("click", toggleMap);
  $("theme-button").addEventListener("click", toggleTheme);
  $("help-button").addEventListener("click", () => openDialog("help"));
  $("about-button").addEventListener("click", () => openDialog("about"));
  for (const dialog of document.querySelectorAll("dialog"))
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("keydown", onKey);
  addEventListener("resize", () => { drawList(); drawOverview(); drawMap(); tipOff(); });
  $("main").addEventListener("scroll", tipOff, { passive: true });
  for (const kind of ["popstate", "hashchange"]) addEventListener(kind, () => {
    if (addressOf(state) === (location.hash || "#")) return;
    state = readAddress();
    showControls();
    arrange();
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme(null));
}
function show() {
  showMap(index.map !== null && (state.map === "on" || (state.map === "" && mapByDefault())));
  if (state.latent !== null) go(state.latent, { push: false });
  else if (order.length) go(index.latent[order[0]], { push: false, look: false });
}
function hideWhatIsNotThere() {
  const empty = (values) => values.every((one) => one === null);
  for (const [key, values] of [["score", index.score], ["f1", index.f1], ["confidence", index.confidence], ["label", index.label]])
    if (empty(values)) $("sort").querySelector(`[value=${key}]`).remove();
  const drop = (key) => document.querySelector(`[data-filter=${key}]`).parentElement.remove();
  if (empty(index.score)) drop("s0");
  if (empty(index.concept)) drop("concept");
  if (empty(index.cosine)) drop("duplicate");
}
async function begin() {
  const theme = savedTheme();
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  if (!self.DecompressionStream) {
    problem("This browser is too old for this page: its data are compressed, and DecompressionStream is missing. Chrome 80, Firefox 113, Safari 16.4 and anything newer have it.");
    return;
  }
  index = await unpack($("index").textContent);
  count = index.latent.length;
  index.latent.forEach((latent, i) => place.set(latent, i));
  hideWhatIsNotThere();
  index.order = $("sort").querySelector("[value=score]") ? "score" : $("sort").querySelector("[value=f1]") ? "f1" : "index";
  wire();
  startOverview();
  startMap();
  state = readAddress();
  showControls();
  arrange();
  show();
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
    readTexts().catch((error) => problem(`The texts cannot be read: ${error}`));
  });
}
begin().catch((error) => problem(`The data of this page cannot be read: ${error}`));
