"use strict";
// Tables that sort, charts whose dots open their case, and the window that shows a case.

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const element = (tag, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), { textContent: text }, properties);
const shown = (value, digits) => value === null ? "–" : value.toFixed(digits);

// ---------------------------------------------------------------- tables

function sortKey(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace("−", "-"));
  return Number.isNaN(number) ? text : number;
}

function compareKeys(first, second) {
  if (typeof first === "number" && typeof second === "number") return first - second;
  return String(first).localeCompare(String(second), undefined, { numeric: true });
}

function sortBy(table, head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  all("th[aria-sort]", table).forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const [last, sorted] = [all("tr.total", body), all("tr:not(.total)", body)];
  const column = head.cellIndex;
  const empty = row => row.cells[column].textContent.trim() === "–";
  sorted.sort((a, b) => empty(a) - empty(b)
    || (ascending ? 1 : -1) * compareKeys(sortKey(a, column), sortKey(b, column)));
  body.append(...sorted, ...last);
}

for (const table of all("table.sortable")) {
  for (const head of all("thead th", table)) {
    const button = element("button", "", { type: "button", innerHTML: head.innerHTML });
    button.addEventListener("click", () => sortBy(table, head));
    head.replaceChildren(button);
  }
}

// ---------------------------------------------------------------- dots

function nearestDot(track, x) {
  const distance = dot => Math.abs(dot.getBoundingClientRect().x + dot.offsetWidth / 2 - x);
  return all(".dot", track).reduce((near, dot) => distance(dot) < distance(near) ? dot : near);
}

// A track is one stop of the Tab key; arrows go along its dots, the lowest first.
for (const chart of all(".dots")) {
  const readout = chart.querySelector(".readout");
  const read = dot => {
    all(".near", chart).forEach(other => other.classList.remove("near"));
    dot.classList.add("near");
    readout.textContent = dot.title;
  };
  for (const track of all(".track", chart)) {
    const dots = all(".dot", track);
    dots.forEach((dot, at) => {
      dot.tabIndex = at ? -1 : 0;
      dot.addEventListener("focus", () => read(dot));
    });
    track.addEventListener("pointermove", event => read(nearestDot(track, event.clientX)));
    track.addEventListener("click", event => {
      // A press of Enter clicks the dot itself, and has no place.
      const dot = event.detail ? nearestDot(track, event.clientX) : event.target.closest(".dot");
      if (dot) openCase(dot.dataset.case, dot.dataset.run);
    });
    track.addEventListener("keydown", event => {
      const at = dots.indexOf(event.target);
      const places = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: dots.length - 1 };
      const to = places[event.key];
      if (dots[to] === undefined) return;
      event.preventDefault();
      dots[at].tabIndex = -1;
      dots[to].tabIndex = 0;
      dots[to].focus();
    });
  }
}

// ---------------------------------------------------------------- one case

const cases = JSON.parse(document.getElementById("cases")?.textContent ?? "[]");
const panel = document.getElementById("case");
const part = name => panel.querySelector(`[data-part="${name}"]`);
const chosen = { place: 0, run: "" };
let viewer;

function openCase(name, run) {
  chosen.place = cases.findIndex(one => one.name === name && runsOf(one).includes(run));
  chosen.run = run;
  if (!panel.open) {
    panel.showModal();
    part("close").focus();
  }
  showCase();
}

function stepCase(by) {
  chosen.place = (chosen.place + by + cases.length) % cases.length;
  const runs = runsOf(cases[chosen.place]);
  if (!runs.includes(chosen.run)) chosen.run = runs[0];
  showCase();
}

const runsOf = one => [...new Set(one.scores.map(([run]) => run))];

function showCase() {
  const one = cases[chosen.place];
  part("name").textContent = one.name;
  part("place").textContent =
    `${chosen.place + 1} of ${cases.length} test cases, from the lowest mean Dice on`;
  part("run").replaceChildren(...runsOf(one).map(run => new Option(run)));
  part("run").value = chosen.run;
  part("scores").replaceChildren(...one.scores.map(scoreRow));
  showPictures(one);
}

function scoreRow([run, name, dice, hd95, outcome]) {
  const row = element("tr", "", { className: run === chosen.run ? "chosen" : "" });
  const words = [run, name].map(text => element("td", text, { className: "words" }));
  const numbers = [shown(dice, 1), shown(hd95, 2), outcome].map(text => element("td", text));
  row.append(...words, ...numbers);
  return row;
}

function showPictures(one) {
  const held = one.volume?.runs.includes(chosen.run) ?? false;
  if (held && canShowVolumes()) {
    showVolume(one.volume);
  } else {
    showSlices(one, held
      ? "This browser cannot show volumes: it lacks WebGL 2 or DecompressionStream."
      : "This case's volume is not on the page.");
  }
}

// The slices that the page shows of the case and run, if it shows any.
function showSlices(one, why) {
  const drawn = all("figure.overlay").filter(
    figure => figure.dataset.case === one.name && figure.dataset.run === chosen.run);
  const panels = drawn.slice(0, 1).map(figure => figure.querySelector(".panels").cloneNode(true));
  part("viewer").hidden = true;
  part("slices").replaceChildren(...panels);
  part("absent").textContent = why;
}

async function showVolume(volume) {
  const one = cases[chosen.place];
  part("viewer").hidden = false;
  part("viewer").setAttribute("aria-busy", "true");
  part("slices").replaceChildren();
  part("absent").textContent = "";
  part("about").textContent = [
    "Cut to the surroundings of the structures.",
    volume.thinned ? "Thinned: some voxels are left out." : "",
    volume.spacing_known ? "" : "The spacing is unknown: 1 stands in.",
  ].join(" ");
  viewer ??= new Viewer(part("canvas"), (slice, slices) => {
    part("slice").max = slices - 1;
    part("slice").value = slice;
    part("slice-number").textContent = `${slice + 1} of ${slices}`;
  });
  try {
    await viewer.show(volume, chosen.run);
  } catch (error) {
    showSlices(one, `The viewer failed: ${error.message}`);
    return;
  }
  if (cases[chosen.place] !== one) return;
  part("viewer").setAttribute("aria-busy", "false");
  part("view").value = viewer.view;
  showLegend();
}

function showLegend() {
  const { classes } = cases[chosen.place].volume;
  const entries = { scan: [], difference: DIFFERENCES }[viewer.layer] ?? classes;
  part("legend").replaceChildren(...entries.map(([name, colour]) => {
    const item = element("li", name);
    const swatch = element("span", "", { className: "swatch" });
    swatch.style.background = colour;
    item.prepend(swatch);
    return item;
  }));
}

function setLayer() {
  viewer.setLayer(panel.querySelector("[name=layer]:checked").value, part("opacity").value / 100);
  showLegend();
}

const KEYS = {
  ArrowUp: () => viewer.step(1),
  ArrowDown: () => viewer.step(-1),
  ArrowRight: () => stepCase(1),
  ArrowLeft: () => stepCase(-1),
  1: () => chooseLayer(0),
  2: () => chooseLayer(1),
  3: () => chooseLayer(2),
  4: () => chooseLayer(3),
};

function chooseLayer(number) {
  all("[name=layer]", panel)[number].checked = true;
  setLayer();
}

if (panel) {
  all("[data-open-lowest]").forEach(button =>
    button.addEventListener("click", () => openCase(cases[0].name, cases[0].scores[0][0])));
  all("[data-open]").forEach(button => {
    const { dataset } = button.closest("figure");
    button.addEventListener("click", () => openCase(dataset.case, dataset.run));
  });
  part("close").addEventListener("click", () => panel.close());
  part("previous").addEventListener("click", () => stepCase(-1));
  part("next").addEventListener("click", () => stepCase(1));
  part("run").addEventListener("change", event => { chosen.run = event.target.value; showCase(); });
  part("slice").addEventListener("input", event => viewer.goTo(Number(event.target.value)));
  part("view").addEventListener("change", event => viewer.setView(event.target.value));
  part("opacity").addEventListener("input", setLayer);
  all("[name=layer]", panel).forEach(radio => radio.addEventListener("change", setLayer));
  // In the capture phase: before niivue's own keys, which would do something else.
  panel.addEventListener("keydown", event => {
    const isTaken = event.target.matches("select, input, .scroll") && event.key.startsWith("Arrow");
    const isCommand = event.altKey || event.ctrlKey || event.metaKey;
    const changesCase = ["ArrowLeft", "ArrowRight"].includes(event.key);
    if (isTaken || isCommand || !KEYS[event.key]) return;
    if (part("viewer").hidden && !changesCase) return;
    event.preventDefault();
    event.stopPropagation();
    KEYS[event.key]();
  }, true);
}
