// The page of the sliders: what follows a move. The form is the state, the address its link, and every tile a function of it.

import { Slowly, alertWith, ask, placed, randomSeed, show, tileOf, withLevels } from "./common.js";
import { drawDifference, percent } from "./difference.js";
import { attributes, complaint, form, inWords, label, query, setTo, take } from "./form.js";

const QUIET = 250; // milliseconds without a move, after which rows, readings and the link follow
const find = (id) => document.getElementById(id);
const [before, now, difference, status, hold] = ["before", "now", "difference", "status", "hold"].map(find);
const stage = document.querySelector(".stage");

let shownQuery = ""; // of the tile "now"
let beforeQuery = ""; // of the tile "before"
let moving = false; // a move has begun, and its "before" stands
let drawing = false; // one tile at a time; what is set meanwhile is drawn next
let wanted = null;
let comparing = Promise.resolve(); // "before" and the difference, one after the other
let quiet = 0;
let asking = new AbortController();
const sweep = new Slowly(), grid = new Slowly(), nearest = new Slowly();

/** Draw what the form says; the last one wins. */
async function draw() {
  if (!form.checkValidity()) return alertWith(complaint());
  label();
  wanted = query();
  clearTimeout(quiet);
  [sweep, grid, nearest].forEach((row) => row.stop());
  asking.abort();
  if (drawing) return;
  drawing = true;
  stage.setAttribute("aria-busy", "true");
  try {
    while (wanted !== null && wanted !== shownQuery) {
      const one = wanted;
      wanted = null;
      await show(now, `/tile.png?${one}`);
      now.dataset.query = shownQuery = one;
      await compare();
    }
    if (form.checkValidity()) alertWith("");
    quiet = setTimeout(follow, QUIET);
  } catch (error) {
    alertWith(error.message);
  } finally {
    drawing = false;
    stage.setAttribute("aria-busy", "false");
  }
}

/** "Before" and the difference, for what "now" shows; one after the other, since a move may come while "before" is being held. */
function compare() {
  return (comparing = comparing.catch(() => {}).then(async () => {
    if (before.dataset.query !== beforeQuery) {
      await show(before, `/tile.png?${beforeQuery || shownQuery}`);
      before.dataset.query = beforeQuery;
    }
    if (now.naturalWidth) difference.dataset.changed = drawDifference(difference, before, now); // else the next tile is on its way
  }));
}

/** A move begins: what is shown becomes "before", unless it is held. */
function begin() {
  if (moving) return;
  moving = true;
  if (!hold.checked) beforeQuery = shownQuery;
}

/** A move ends: the address bar gets the link, and Back undoes the move. */
function settle() {
  moving = false;
  const link = `?${query()}`;
  if (link !== location.search && form.checkValidity()) history.pushState(null, "", link);
}

/** What follows when the sliders are still: rows, reading, neighbours, and words for what changed. */
function follow() {
  const share = Number(difference.dataset.changed);
  status.textContent = shownQuery === (beforeQuery || shownQuery) ? "Move a slider: what changes is shown beside it." : `${percent(share)} of the pixels changed.`;
  drawSweep().then(drawGrid);
  asking = new AbortController();
  readOff(asking.signal).catch((error) => error.name === "AbortError" || alertWith(error.message));
}

async function readOff(signal) {
  if (find("reading")) {
    const told = await (await ask(`/reading?${shownQuery}`, signal)).json();
    for (const row of find("reading").querySelectorAll("tbody tr")) fillReading(row, attributes.get(row.dataset.name), told.levels);
  }
  if (find("nearest")) {
    const { tiles } = await (await ask(`/nearest?${shownQuery}`, signal)).json();
    const shown = tiles.map(({ row, levels }) => {
      const text = Object.entries(levels).map(([name, level]) => `${name}: ${level}`);
      return [tileOf(text.join("\n"), `Real tile. ${text.join(", ")}`), `/real/${row}.png`];
    });
    find("nearest").replaceChildren(...shown.map(([{ figure }]) => figure));
    nearest.load(shown.map(([{ image }, address]) => [image, address]));
  }
}

function fillReading(row, attribute, levels) {
  const asked = attribute.slider.disabled ? null : Number(attribute.slider.value), read = levels[attribute.name];
  const [low, high] = [attribute.levels[0][0], attribute.levels.at(-1)[0]];
  const cells = row.querySelectorAll("td");
  const nearest = (level) => attribute.levels.reduce((a, b) => (Math.abs(b[0] - level) < Math.abs(a[0] - level) ? b : a))[1];
  cells[0].textContent = asked === null ? "not assessable" : `${placed(attribute.name, asked.toFixed(1))} · ${nearest(asked)}`;
  cells[1].textContent = asked === null ? "–" : `${placed(attribute.name, read.toFixed(1))} · ${nearest(read)}`;
  const marks = asked === null ? [] : [["asked", asked], ["read", read]];
  row.querySelector(".scale").replaceChildren(...marks.map(([kind, level]) => {
    const mark = Object.assign(document.createElement("span"), { className: kind });
    mark.style.left = `${(100 * (level - low)) / (high - low)}%`;
    return mark;
  }));
}

/** Go to the levels of a tile, a tick or a key that was pressed. */
function goTo(levels) {
  take(levels);
  if (location.search === `?${query()}`) return; // there already
  begin();
  draw();
  settle();
}

/** A tile to press, with its address. */
function choice(text, levels) {
  const words = Object.entries(levels).map(([name, level]) => `${attributes.get(name).title} ${inWords(attributes.get(name), level)}`);
  const tile = tileOf(text, words.join(", "), () => goTo(levels));
  const isSet = ([name, level]) => !attributes.get(name).slider.disabled && Number(attributes.get(name).slider.value) === level;
  tile.figure.ariaPressed = Object.entries(levels).every(isSet);
  tile.figure.classList.toggle("on", tile.figure.ariaPressed === "true");
  return [tile, `/tile.png?${withLevels(shownQuery, levels)}`];
}

async function drawSweep() {
  const attribute = attributes.get(find("sweep-attribute").value);
  const tiles = attribute.levels.map(([level, name]) => choice(name, { [attribute.name]: level }));
  refill(find("sweep"), tiles);
  return sweep.load(tiles.map(([{ image }, address]) => [image, address]));
}

/** Put tiles in place of others, with the focus where it was and their pictures until the new ones come. */
function refill(place, tiles, build = () => tiles.map(([{ figure }]) => figure)) {
  const old = [...place.querySelectorAll(".tile")], at = old.indexOf(document.activeElement);
  if (old.length === tiles.length) tiles.forEach(([{ image }], k) => (image.src = old[k].querySelector("img").src));
  place.replaceChildren(...build());
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
      const place = cell("td");
      place.append(tile[0].figure);
      tiles.push(tile);
      return place;
    });
    rows.push(line([cell("th", name, "row"), ...cells]));
  }
  refill(find("grid"), tiles, () => rows);
  grid.load(tiles.map(([{ image }, address]) => [image, address]));
}

form.addEventListener("input", () => { begin(); draw(); });
form.addEventListener("change", settle);
find("size").addEventListener("change", () => { // of both tiles; no move
  const parts = new URLSearchParams(beforeQuery || shownQuery);
  parts.set("size", find("size").value);
  beforeQuery = parts.toString();
  draw();
  settle();
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own keys
  const attribute = attributes.get(event.target.name?.replace(/^a\./, ""));
  if (attribute?.slider !== event.target) return;
  const byName = placed(attribute.name, 0) !== "0", level = attribute.levels.find(([at, name]) => (byName ? name : String(at)) === event.key)?.[0];
  if (level !== undefined) goTo({ [attribute.name]: level });
});
form.addEventListener("click", (event) => {
  if (event.target.matches(".ticks button")) goTo({ [event.target.closest(".attribute").dataset.name]: event.target.value });
});
find("new").addEventListener("click", () => { begin(); find("seed").value = randomSeed(); draw(); settle(); });
find("reset").addEventListener("click", () => { location.href = "/"; });
find("copy").addEventListener("click", async () => {
  settle();
  try {
    await navigator.clipboard.writeText(location.href);
    status.textContent = "Link copied.";
  } catch { // not allowed, or no clipboard without https
    status.textContent = "The link is in the address bar; this browser does not let a page copy it.";
  }
});
find("sweep-attribute").addEventListener("change", drawSweep);
for (const id of ["grid-down", "grid-across"]) find(id).addEventListener("change", drawGrid);
find("grid-part").addEventListener("toggle", drawGrid);
hold.addEventListener("change", () => { if (hold.checked) { beforeQuery = shownQuery; compare().then(follow, (error) => alertWith(error.message)); } });
window.addEventListener("popstate", () => { if (location.search && location.search !== `?${query()}`) { begin(); setTo(location.search); draw(); moving = false; } });

const told = find("alert").textContent; // by the server, of the link
label();
history.replaceState(null, "", `?${query()}`);
await draw();
alertWith(told);
