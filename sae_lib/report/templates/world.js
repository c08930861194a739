"use strict";
const names = JSON.parse(document.getElementById("names").textContent);
const panel = document.getElementById("panel");
const words = [...document.querySelectorAll(".doc button")];
const inventory = [...document.querySelectorAll("#concepts button.chip")];
const contextual = new Set(
  inventory.filter((b) => b.classList.contains("context")).map((b) => Number(b.dataset.k)));
let chosen = null;
const placesOf = new Map(words.map((w) => [w, w.dataset.c === "" ? [] : w.dataset.c.split(" ").map(Number)]));
function highlight(concept) {
  chosen = concept;
  for (const word of words) word.classList.toggle("on", placesOf.get(word).includes(concept));
  for (const chip of document.querySelectorAll(".chip")) {
    chip.classList.toggle("on", Number(chip.dataset.k) === concept);
  }
}
function chip(concept) {
  const made = document.createElement("button");
  made.className = "chip" + (contextual.has(concept) ? " context" : "");
  made.dataset.k = concept;
  made.textContent = names[concept];
  return made;
}
function show(title, concepts) {
  const heading = document.createElement("b");
  heading.textContent = title + " ";
  panel.replaceChildren(heading, ...concepts.map(chip));
  if (chosen !== null) highlight(chosen);
}
document.addEventListener("click", (event) => {
  const target = event.target;
  if (!(target instanceof HTMLButtonElement)) return;
  if (target.dataset.k !== undefined) {
    const concept = Number(target.dataset.k);
    highlight(concept);
    if (!panel.contains(target)) {
      const found = words.filter((w) => placesOf.get(w).includes(concept));
      show(found.length + " words here carry", [concept]);
      if (found.length > 0) found[0].scrollIntoView({ block: "center" });
    }
  } else if (target.dataset.c !== undefined) {
    show(target.textContent, placesOf.get(target));
  }
});
document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelectorAll("#concepts tbody tr")) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
});
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement, column = header.cellIndex;
    const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const difference = Number(value(a)) - Number(value(b));
      return direction * (Number.isNaN(difference) ? value(a).localeCompare(value(b), "en", { numeric: true }) : difference);
    });
    body.append(...rows);
  });
}
