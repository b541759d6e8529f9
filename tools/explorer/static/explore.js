// The explorer page. The form holds the state, the address bar its link; every tile is a function of the state.

import { SequentialLoader, alertWith, ask, createTile, levelText, randomSeed, show, withLevels } from "./common.js";
import { drawDifference, percent } from "./difference.js";
import { attributes, form, levelName, query, setForm, setLevels, updateTexts, validationMessage } from "./form.js";

const IDLE_MS = 250; // time without a change after which rows, predictions and the link are updated
const find = (id) => document.getElementById(id);
const [before, now, difference, status, hold] = ["before", "now", "difference", "status", "hold"].map(find);
const stage = document.querySelector(".stage");

let shownQuery = ""; // of the current tile
let beforeQuery = ""; // of the tile "before"
let changing = false; // a change is in progress, and "before" is set
let drawing = false; // one tile at a time; a state set meanwhile is drawn next
let nextQuery = null;
let comparing = Promise.resolve(); // updates of "before" and the difference, one after the other
let idleTimer = 0;
let analyzing = new AbortController();
const sweep = new SequentialLoader(), grid = new SequentialLoader(), nearest = new SequentialLoader();

/** Draw the state of the form; only the latest state if it changes meanwhile. */
async function draw() {
  if (!form.checkValidity()) return alertWith(validationMessage());
  updateTexts();
  nextQuery = query();
  clearTimeout(idleTimer);
  [sweep, grid, nearest].forEach((row) => row.stop());
  analyzing.abort();
  if (drawing) return;
  drawing = true;
  stage.setAttribute("aria-busy", "true");
  try {
    while (nextQuery !== null && nextQuery !== shownQuery) {
      const current = nextQuery;
      nextQuery = null;
      await show(now, `/tile.png?${current}`);
      now.dataset.query = shownQuery = current;
      await compare();
    }
    if (form.checkValidity()) alertWith("");
    idleTimer = setTimeout(updateDetails, IDLE_MS);
  } catch (error) {
    alertWith(error.message);
  } finally {
    drawing = false;
    stage.setAttribute("aria-busy", "false");
  }
}

/** Update "before" and the difference for the current tile; sequentially, since "before" may be fixed while a change is drawn. */
function compare() {
  return (comparing = comparing.catch(() => {}).then(async () => {
    if (before.dataset.query !== beforeQuery) {
      await show(before, `/tile.png?${beforeQuery || shownQuery}`);
      before.dataset.query = beforeQuery;
    }
    if (now.naturalWidth) difference.dataset.changed = drawDifference(difference, before, now); // else the tile is still loading
  }));
}

/** Start a change: the current tile becomes "before", unless that is fixed. */
function beginChange() {
  if (changing) return;
  changing = true;
  if (!hold.checked) beforeQuery = shownQuery;
}

/** End a change: put the link into the address bar, so that Back undoes the change. */
function endChange() {
  changing = false;
  const link = `?${query()}`;
  if (link !== location.search && form.checkValidity()) history.pushState(null, "", link);
}

/** Update what is slow, once the sliders are idle: rows, predictions, nearest tiles, status. */
function updateDetails() {
  const share = Number(difference.dataset.changed);
  status.textContent = shownQuery === (beforeQuery || shownQuery) ? "Move a slider to see what changes." : `${percent(share)} of the pixels changed.`;
  drawSweep().then(drawGrid);
  analyzing = new AbortController();
  analyze(analyzing.signal).catch((error) => error.name === "AbortError" || alertWith(error.message));
}

/** Show predicted levels and nearest real tiles. */
async function analyze(signal) {
  if (find("predictions")) {
    const { levels } = await (await ask(`/levels?${shownQuery}`, signal)).json();
    for (const row of find("predictions").querySelectorAll("tbody tr")) fillPrediction(row, attributes.get(row.dataset.name), levels);
  }
  if (find("nearest")) {
    const { tiles } = await (await ask(`/nearest?${shownQuery}`, signal)).json();
    const shown = tiles.map(({ row, levels }) => {
      const text = Object.entries(levels).map(([name, level]) => `${name}: ${level}`);
      return [createTile(text.join("\n"), `Real tile. ${text.join(", ")}`), `/real/${row}.png`];
    });
    find("nearest").replaceChildren(...shown.map(([{ figure }]) => figure));
    nearest.load(shown.map(([{ image }, address]) => [image, address]));
  }
}

function fillPrediction(row, attribute, levels) {
  const requested = attribute.slider.disabled ? null : Number(attribute.slider.value), predicted = levels[attribute.name];
  const [low, high] = [attribute.levels[0][0], attribute.levels.at(-1)[0]];
  const cells = row.querySelectorAll("td");
  const nearest = (level) => attribute.levels.reduce((a, b) => (Math.abs(b[0] - level) < Math.abs(a[0] - level) ? b : a))[1];
  cells[0].textContent = requested === null ? "not assessable" : `${levelText(attribute.name, requested.toFixed(1))} · ${nearest(requested)}`;
  cells[1].textContent = requested === null ? "–" : `${levelText(attribute.name, predicted.toFixed(1))} · ${nearest(predicted)}`;
  const marks = requested === null ? [] : [["requested", requested], ["predicted", predicted]];
  row.querySelector(".scale").replaceChildren(...marks.map(([kind, level]) => {
    const mark = Object.assign(document.createElement("span"), { className: kind });
    mark.style.left = `${(100 * (level - low)) / (high - low)}%`;
    return mark;
  }));
}

/** Set the levels of a clicked tile or tick, or of a key. */
function goTo(levels) {
  setLevels(levels);
  if (location.search === `?${query()}`) return; // no change
  beginChange();
  draw();
  endChange();
}

/** A clickable tile that sets levels, and its address. */
function choice(text, levels) {
  const label = Object.entries(levels).map(([name, level]) => `${attributes.get(name).title} ${levelName(attributes.get(name), level)}`);
  const tile = createTile(text, label.join(", "), () => goTo(levels));
  const isSet = ([name, level]) => !attributes.get(name).slider.disabled && Number(attributes.get(name).slider.value) === level;
  tile.figure.ariaPressed = Object.entries(levels).every(isSet);
  tile.figure.classList.toggle("on", tile.figure.ariaPressed === "true");
  return [tile, `/tile.png?${withLevels(shownQuery, levels)}`];
}

async function drawSweep() {
  const attribute = attributes.get(find("sweep-attribute").value);
  const tiles = attribute.levels.map(([level, name]) => choice(name, { [attribute.name]: level }));
  replaceTiles(find("sweep"), tiles);
  return sweep.load(tiles.map(([{ image }, address]) => [image, address]));
}

/** Replace tiles; keeps the focus, and shows the old pictures until the new ones have loaded. */
function replaceTiles(container, tiles, build = () => tiles.map(([{ figure }]) => figure)) {
  const old = [...container.querySelectorAll(".tile")], at = old.indexOf(document.activeElement);
  if (old.length === tiles.length) tiles.forEach(([{ image }], k) => (image.src = old[k].querySelector("img").src));
  container.replaceChildren(...build());
  tiles[at]?.[0].figure.focus();
}

function drawGrid() {
  if (!find("grid-part").open) return;
  const down = attributes.get(find("grid-down").value), across = attributes.get(find("grid-across").value);
  if (down === across) return find("grid").replaceChildren(Object.assign(document.createElement("caption"), { textContent: "Choose two different attributes." }));
  const tiles = [];
  const cell = (kind, text, scope) => Object.assign(document.createElement(kind), scope ? { textContent: text, scope } : {});
  const line = (cells) => { const row = document.createElement("tr"); row.append(...cells); return row; };
  const rows = [line([cell("td"), ...across.levels.map(([, name]) => cell("th", name, "col"))])];
  for (const [level, name] of down.levels) {
    const cells = across.levels.map(([other]) => {
      const tile = choice("", { [down.name]: level, [across.name]: other });
      const box = cell("td");
      box.append(tile[0].figure);
      tiles.push(tile);
      return box;
    });
    rows.push(line([cell("th", name, "row"), ...cells]));
  }
  replaceTiles(find("grid"), tiles, () => rows);
  grid.load(tiles.map(([{ image }, address]) => [image, address]));
}

form.addEventListener("input", () => { beginChange(); draw(); });
form.addEventListener("change", endChange);
find("size").addEventListener("change", () => { // applies to both tiles; not a change
  const parts = new URLSearchParams(beforeQuery || shownQuery);
  parts.set("size", find("size").value);
  beforeQuery = parts.toString();
  draw();
  endChange();
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return; // keyboard shortcuts of the browser
  const attribute = attributes.get(event.target.name?.replace(/^a\./, ""));
  if (attribute?.slider !== event.target) return;
  const byName = levelText(attribute.name, 0) !== "0", level = attribute.levels.find(([at, name]) => (byName ? name : String(at)) === event.key)?.[0];
  if (level !== undefined) goTo({ [attribute.name]: level });
});
form.addEventListener("click", (event) => {
  if (event.target.matches(".ticks button")) goTo({ [event.target.closest(".attribute").dataset.name]: event.target.value });
});
find("new").addEventListener("click", () => { beginChange(); find("seed").value = randomSeed(); draw(); endChange(); });
find("reset").addEventListener("click", () => { location.href = "/"; });
find("copy").addEventListener("click", async () => {
  endChange();
  try {
    await navigator.clipboard.writeText(location.href);
    status.textContent = "Link copied.";
  } catch { // no permission, or no clipboard without https
    status.textContent = "Copy the link from the address bar: this browser does not allow pages to copy it.";
  }
});
find("sweep-attribute").addEventListener("change", drawSweep);
for (const id of ["grid-down", "grid-across"]) find(id).addEventListener("change", drawGrid);
find("grid-part").addEventListener("toggle", drawGrid);
hold.addEventListener("change", () => { if (hold.checked) { beforeQuery = shownQuery; compare().then(updateDetails, (error) => alertWith(error.message)); } });
window.addEventListener("popstate", () => { if (location.search && location.search !== `?${query()}`) { beginChange(); setForm(location.search); draw(); changing = false; } });

const linkErrors = find("alert").textContent; // from the server
updateTexts();
history.replaceState(null, "", `?${query()}`);
await draw();
alertWith(linkErrors);
