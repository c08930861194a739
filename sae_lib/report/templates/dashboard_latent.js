
// ---- one latent
let turn = 0;
function linkTo(latent, ...children) {
  if (!place.has(latent)) return el("span", { class: "soft", title: "not on this page" }, `#${latent}`, ...children);
  return el("a", { href: addressOf({ ...state, latent }), "data-latent": latent, onclick: (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(latent);
    $("main").scrollTop = 0;
  } }, `#${latent}`, ...children);
}
function sqlBox(panel) {
  const text = `${index.sql[panel]}${state.latent};`;
  const copy = el("button", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(text); copy.textContent = "copied"; } catch {
      getSelection().selectAllChildren(copy.previousSibling);
      copy.textContent = "selected";
    }
  } }, "copy");
  return el("details", { class: "sql" }, el("summary", { "aria-label": `SQL of ${panel}` }, "SQL"),
    el("div", {}, el("pre", {}, text), copy));
}
function panel(title, name, ...children) {
  return el("section", { class: "panel", "data-panel": name },
    el("h3", {}, title, index.sql[name] ? sqlBox(name) : null), ...children);
}
function missing(name, fallback) { return el("p", { class: "missing" }, index.absent[name] ?? fallback); }
function chip(word, score, strongest) {
  return el("span", { class: "chip", title: score === undefined ? null : number(score),
    css: { "--a": strongest ? (Math.abs(score) / strongest).toFixed(2) : "0" } }, ...drawn(word, true));
}
function warnings(i, own) {
  const made = [];
  if (isDead(i)) made.push("Dead: it never fired on the text that was read, so nothing can be said about it.");
  if (isDense(i)) made.push(`Dense: it fires on ${percent(index.density[i])} of tokens; its strongest examples are not typical of it.`);
  if (isDuplicate(i)) {
    const near = own.n.find((one) => one[0] === "decoder");
    made.push(el("span", {}, `Duplicate: cosine ${number(index.cosine[i])} with `, near ? linkTo(near[1]) : "another latent", "."));
  }
  return made.map((text) => el("p", { class: "warning" }, el("span", { "aria-hidden": "true" }, "⚠ "), text));
}
function tile(name, value, note) {
  return el("div", { class: "tile" }, el("span", {}, name), el("b", {}, value), note ? el("span", {}, note) : null);
}
function explanations(i, own) {
  const made = own.e.map(([method, text, score, what, words, scores]) => {
    const judged = (own.q ?? []).filter((one) => one[3] === method && one[4] !== null);
    const strongest = Math.max(0, ...scores.filter((one) => one !== null).map(Math.abs));
    if (what === "no_answer") return el("div", { class: "said" }, el("div", { class: "said-head" },
      el("span", { class: "method" }, ...drawn(method)), el("span", { class: "soft small" }, "no answer")), el("p", { class: "soft" }, ...drawn(text)));
    const notes = score !== null ? [`${what ?? "score"} ${number(score, 2)}`] : [];
    for (const one of judged.slice(0, 3)) notes.push(`${one[1]} ${number(one[4], 2)}${one[2].includes("another") ? " (control)" : ""}`);
    return el("div", { class: "said" },
      el("div", { class: "said-head" }, el("span", { class: "method" }, ...drawn(method)),
        el("span", { class: "soft small" }, ...drawn(notes.join(" · ") || "not scored"))),
      el("p", {}, ...drawn(text)),
      index.signed.includes(method) || !words.length ? null
        : el("div", { class: "words" }, ...words.map((word, j) => chip(word, scores[j], strongest))));
  });
  if (!made.length) made.push(missing("explanations", "No method says anything about this latent."));
  return panel("Explanations", "explanations", ...made);
}
const NS = "http://www.w3.org/2000/svg";
function shape(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function histogram(own) {
  if (!own.h) return missing("histogram", "It never fired.");
  const [counts, edges] = own.h, width = 300, height = 96, floor = 78;
  const log = (value) => Math.log2(Math.max(value, 1e-12));
  const low = log(edges[0] || edges[1] / 2), high = log(edges.at(-1)), most = Math.max(...counts);
  const x = (value) => ((log(value || edges[1] / 2) - low) / Math.max(1e-9, high - low)) * width;
  const total = counts.reduce((sum, one) => sum + one, 0);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "histogram",
    "aria-label": `Activations of ${number(total)} tokens between ${number(edges[0])} and ${number(edges.at(-1))}, mean ${number(own.m)}` });
  counts.forEach((one, j) => {
    const from = x(edges[j]), to = x(edges[j + 1]), tall = (one / most) * (floor - 6);
    const bar = shape("rect", { x: from, y: floor - tall, width: Math.max(0.6, to - from - 0.7), height: tall });
    bar.append(shape("title", {}, `${number(one)} tokens from ${number(edges[j])} to ${number(edges[j + 1])}`));
    svg.append(bar);
  });
  svg.append(shape("line", { x1: 0, x2: width, y1: floor, y2: floor, class: "axis" }));
  if (own.m !== null) {
    svg.append(shape("line", { x1: x(own.m), x2: x(own.m), y1: 0, y2: floor, class: "mean" }));
    const left = x(own.m) > width * 0.8;
    svg.append(shape("text", { x: x(own.m) + (left ? -4 : 4), y: 10, "text-anchor": left ? "end" : "start" }, "mean"));
  }
  for (const [value, anchor, at] of [[edges[0], "start", 0], [edges.at(-1), "end", width]])
    svg.append(shape("text", { x: at, y: height - 4, "text-anchor": anchor }, number(value)));
  svg.append(shape("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, "activation, log scale"));
  return svg;
}

// ---- examples
function example(one, tokens, i) {
  const [kind, ids, shares, peak, value, document_, position] = one, strong = new Map();
  for (let j = 0; j < shares.length; j += 2) strong.set(shares[j], shares[j + 1] / 1000);
  const words = ids.map((id) => tokens[id]);
  const spaced = words.some((word) => /^\s|\s$/.test(word));
  const text = el("div", { class: "text", role: "group", "aria-label": `Example, document ${document_}` });
  const scale = index.max[i] > 0 ? index.max[i] : value;
  words.forEach((word, j) => {
    if (!spaced && j) text.append(" ");
    const share = strong.get(j) ?? 0, isPeak = j === peak;
    if (share || isPeak) {
      const exact = isPeak && kind !== "silent" && kind !== "near_miss" ? value : share * scale;
      text.append(el("span", { class: `on${isPeak ? " peak" : ""}`, tabindex: isPeak ? "0" : "-1",
        "data-value": number(exact, 4), "data-share": percent(scale > 0 ? exact / scale : 0),
        css: { "--a": Math.max(0, Math.min(1, share)).toFixed(3) } }, ...drawn(word)));
    } else text.append(el("span", {}, ...drawn(word)));
  });
  return el("div", { class: "example" }, text,
    el("span", { class: "soft small at", title: `document ${number(document_)}, position ${number(position)}` },
      kind === "top" || kind === "quantile" ? number(value) : kind === "near_miss" ? linkTo(one[7]) : ""));
}
function examples(i, own) {
  const of = (kind) => own.x.filter((one) => one[0] === kind), draw = (one) => example(one, own.tokens, i);
  const made = [], top = of("top"), drawnOnes = of("quantile"), silent = of("silent"), near = of("near_miss");
  made.push(panel("Strongest", "examples", ...(top.length ? top.map(draw)
    : [missing("top", isDead(i) ? "It never fired." : "No example was kept.")])));
  const byInterval = new Map();
  for (const one of drawnOnes) byInterval.set(one[7], [...(byInterval.get(one[7]) ?? []), one]);
  const intervals = [...byInterval.keys()].sort((a, b) => b - a).map((interval) => {
    const some = byInterval.get(interval), [low, high, share] = some[0].slice(8);
    return el("div", { class: "interval" }, el("h4", {}, `${number(low)} to ${number(high)}`,
      el("span", { class: "soft" }, ` ${percent(share)} of its firing tokens`)), ...some.map(draw));
  });
  if (!isDead(i)) made.push(panel("By strength", "", ...(intervals.length ? intervals
    : [missing("quantile", "No example of it was kept.")])));
  const folded = (title, name, some, note) => el("details", { class: "folded", "data-kind": name },
    el("summary", {}, `${title} (${some.length})`), el("p", { class: "soft small" }, note),
    ...(some.length ? some.map(draw) : [missing(name, "None was found.")]));
  if (!isDead(i)) made.push(
    folded("Near misses", "near_miss", near, "A latent near to this one is strong at the marked token, and this one is silent on the whole stretch."),
    folded("Silent", "silent", silent, "Stretches of contexts in which this latent does not fire at all."));
  return made;
}
function logits(own) {
  const made = [], signed = own.e.filter((one) => index.signed.includes(one[0]));
  for (const [method, , , , words, scores] of signed) {
    const pairs = words.map((word, j) => [word, scores[j]]), strongest = Math.max(0, ...scores.map(Math.abs));
    for (const [title, some] of [["promotes", pairs.filter((one) => one[1] > 0)], ["suppresses", pairs.filter((one) => one[1] < 0)]]) {
      if (!some.length) continue;
      made.push(el("div", { class: `bars ${title}` }, el("h4", { title: method }, title, signed.length > 1 ? el("span", { class: "soft" }, ` ${method}`) : null),
        ...some.slice(0, 10).map(([word, score]) => el("div", { class: "barline" },
          el("span", { class: "word" }, ...drawn(word, true)),
          el("span", { class: "bar", "aria-hidden": "true", css: { "--a": (Math.abs(score) / strongest).toFixed(3) } }),
          el("span", { class: "num" }, number(score))))));
    }
  }
  if (!made.length) made.push(missing("logits", "No output words stand out."));
  return panel("Output words", "explanations", el("div", { class: "two" }, ...made));
}
function neighbours(own, kind, title, note) {
  const some = own.n.filter((one) => one[0] === kind);
  const lines = some.map(([, other, value, tokens, share, lift]) => {
    const label = place.has(other) ? index.label[place.get(other)] : null;
    const more = kind === "cofire" && share !== null
      ? `on ${percent(share)} of its tokens${lift === null ? "" : `, ${number(lift, 2)} × chance`}` : null;
    return el("li", { title: tokens === null ? null : `on ${number(tokens)} tokens together` },
      linkTo(other), el("span", { class: "label" }, ...drawn(label ?? "")), el("span", { class: "num" }, number(value, 2)),
      more ? el("span", { class: "soft small" }, more) : null);
  });
  return panel(title, "near", lines.length ? el("ul", { class: "near" }, ...lines) : missing(kind, note));
}
function concept(own) {
  if (!own.c) return index.absent.concept ? null : panel("True concept", "concept", el("p", { class: "missing" }, "No concept of the world has this latent as its own or its best."));
  return panel("True concept", "concept", ...own.c.map(([name, f1, precision, recall, how]) => el("div", { class: "concept" },
    el("b", {}, ...drawn(name)), el("span", { class: "num" }, `F1 ${number(f1, 2)}`),
    el("span", { class: "soft small" }, how === "own" ? `matched one to one; precision ${number(precision, 2)}, recall ${number(recall, 2)}`
      : "the best latent for it; another is matched with it"))));
}
function scores(own) {
  if (!own.q?.length) return null;
  const lines = own.q.map(([metric, name, definition, method, value, n, reason]) => el("tr", {},
    el("td", {}, name, el("span", { class: "soft small" }, ` ${metric}, ${definition}`)),
    el("td", {}, method ?? ""), el("td", { class: "num" }, value === null ? el("span", { class: "soft", title: reason }, "–") : number(value)),
    el("td", { class: "num" }, n === null ? "" : number(n))));
  return el("details", { class: "folded" }, el("summary", {}, `All scores (${own.q.length})`), el("div", { class: "scroll" },
    el("table", {}, el("thead", {}, el("tr", {}, ...["score", "of", "value", "n"].map((one) => el("th", { scope: "col" }, one)))),
      el("tbody", {}, ...lines))), sqlBox("scores"));
}
async function showLatent(i) {
  const mine = ++turn, article = $("latent");
  article.setAttribute("aria-busy", "true");
  let own;
  try { own = await detailOf(i); } catch (error) { problem(`This latent cannot be read: ${error}`); return; }
  if (mine !== turn) return;
  const latent = index.latent[i], label = index.label[i];
  const head = el("header", { class: "head" },
    el("div", { class: "step" },
      el("button", { type: "button", class: "back", onclick: backToList }, "‹ List"),
      el("span", { class: "soft" }, `latent ${latent}`),
      el("button", { type: "button", "aria-label": "Latent before", onclick: () => step(-1) }, "↑"),
      el("button", { type: "button", "aria-label": "Next latent", onclick: () => step(1) }, "↓")),
    el("h2", {}, ...(label ? drawn(label) : [el("span", { class: "soft" }, `latent ${latent}`)]), ...badgesOf(i)),
    el("div", { class: "tiles" },
      tile("density", percent(index.density[i]), "of tokens"),
      tile("maximum", isDead(i) ? "–" : number(index.max[i])),
      tile("mean", number(own.m), own.s === null || own.s === undefined ? null : `± ${number(own.s)}`),
      index.whats.length ? tile("best score", number(index.score[i], 2), index.what[i] === null ? "not scored" : index.whats[index.what[i]].replaceAll("_", " ")) : null,
      index.whats.length ? tile("label confidence", number(index.confidence[i], 2), index.confidence[i] === null ? "not measured" : "score of its source") : null,
      index.f1[i] === null ? null : tile("concept", number(index.f1[i], 2), `F1, ${index.concepts[index.concept[i]]}`)),
    ...warnings(i, own));
  article.replaceChildren(head, el("div", { class: "grid" },
    el("div", { class: "wide" }, explanations(i, own), ...examples(i, own)),
    el("div", { class: "narrow" }, panel("Activations", "statistics", histogram(own)), logits(own), concept(own),
      neighbours(own, "decoder", "Nearest decoder rows", "No neighbours were recorded, and the SAE's files were not at hand."),
      neighbours(own, "cofire", "Fires together with", "It was not counted which latents fire together."), scores(own))));
  article.removeAttribute("aria-busy");
  document.title = `#${latent} ${plainText(label ?? "")} – ${index.cell.variant}`;
}
function backToList() {
  document.body.classList.replace("at-latent", "at-list");
  $("list").focus({ preventScroll: true });
}

// ---- values of tokens, where the pointer or the focus is
function tipAt(box, ...children) {
  const tip = $("tip");
  tip.replaceChildren(...children);
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  const left = Math.min(innerWidth - width - 6, Math.max(6, box.left + box.width / 2 - width / 2));
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top - height - 6 > 0 ? box.top - height - 6 : box.bottom + 6}px`;
}
function tipOff() { $("tip").hidden = true; }
for (const kind of ["mouseover", "focusin"]) $("latent").addEventListener(kind, (event) => {
  const token = event.target.closest?.(".on");
  if (!token) return;
  const silent = token.dataset.value === "0";
  tipAt(token.getBoundingClientRect(), el("b", {}, silent ? "silent" : token.dataset.value),
    silent ? "" : ` ${token.dataset.share} of its maximum`);
});
for (const kind of ["mouseout", "focusout"]) $("latent").addEventListener(kind, tipOff);
$("latent").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  const token = event.target.closest?.(".on");
  if (!token) return;
  const all = [...token.parentElement.querySelectorAll(".on")];
  const next = all[all.indexOf(token) + (event.key === "ArrowRight" ? 1 : -1)];
  if (next) { event.preventDefault(); next.focus(); }
});
