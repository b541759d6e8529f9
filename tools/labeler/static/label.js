// The label page: shows the next tile, takes its levels by button or key, and continues once the server has saved them.

const find = (id) => document.getElementById(id);
const form = find("levels"), image = find("tile"), comment = find("comment"), save = find("save"), skip = find("skip"), undo = find("undo"), questions = find("questions");
const scales = [...form.querySelectorAll("fieldset.graded")];
const rater = form.dataset.rater;
let shown = null; // state of the current tile, from the server
let busy = false, loaded = false; // loaded: the picture is shown, so the tile may be labelled

/** Fetch JSON from the server; throws an Error with the server's message if the request fails. */
async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ rater, ...body }) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not respond. Is attributegan-label still running? Saved answers are not lost.");
  }
  if (response.ok) return response.json();
  const reply = await response.json().catch(() => ({}));
  throw Object.assign(new Error(reply.error || `The server returned status ${response.status}.`), { reload: reply.reload });
}

/** Show an error message; "" hides it. */
function alertWith(text) {
  const box = find("alert");
  if (box.textContent !== text) box.textContent = text;
  box.hidden = !text;
}

const checked = (scale) => scale.querySelector("input:checked");
const complete = () => scales.every(checked);

function refresh() {
  save.disabled = busy || !loaded || !complete();
  skip.disabled = busy || !shown?.file;
  undo.disabled = busy || !shown?.can_undo;
  form.setAttribute("aria-busy", busy);
}

/** Show a tile, with its answer after an undo. `message` is for the status line. */
async function show(state, message) {
  shown = state;
  loaded = false;
  form.reset();
  for (const scale of scales) {
    const level = state.levels?.[scale.dataset.name];
    if (level !== undefined) scale.querySelector(`input[value="${level}"]`).checked = true;
  }
  comment.value = state.comment;
  const total = state.done + state.left;
  find("progress").max = Math.max(total, 1);
  find("progress").value = state.done;
  find("progress-text").textContent = `${state.done} done, ${state.left} to go${state.skipped ? `, ${state.skipped} of them skipped` : ""}`;
  if (state.last) showLast(state.last);
  const finished = !state.file;
  questions.hidden = save.hidden = skip.hidden = image.hidden = finished;
  find("end").hidden = !finished;
  find("again").hidden = !state.skipped;
  find("tile-name").textContent = finished ? "No more tiles" : state.file;
  if (finished) {
    find("end-text").textContent = state.skipped ? `All other tiles are done; ${state.skipped} skipped.`
      : state.left ? "The remaining tiles are currently shown to other raters." : "All tiles are done. Thank you.";
    image.removeAttribute("src");
    find("end-text").focus();
  } else await load(state);
  alertWith([state.write_error, finished || loaded ? "" : `${state.file} can't be displayed; skip it.`].filter(Boolean).join("\n"));
  find("status").textContent = finished ? message : `${message} ${state.file}. ${find("progress-text").textContent}.`.trim();
}

async function load(state) {
  image.alt = `Tile ${state.file}`;
  image.src = state.image;
  try {
    await image.decode();
    loaded = shown === state;
  } catch {
    loaded = false;
  }
  if (state.preload) new Image().src = state.preload;
  focusOn(scales.find((scale) => !checked(scale)) ?? scales[0]);
}

function focusOn(scale) {
  (checked(scale) ?? scale.querySelector("input")).focus();
}

function showLast({ rows }) {
  find("last").hidden = false;
  find("last").querySelector("tbody").replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.append(Object.assign(document.createElement("th"), { scope: "row", textContent: row.title }));
    for (const text of [row.given, row.predicted]) if (text !== undefined) line.append(Object.assign(document.createElement("td"), { textContent: text }));
    return line;
  }));
}

/** Send one request at a time; the page changes only after the server has saved the answer. */
async function act(path, body, message) {
  if (busy) return;
  busy = true;
  refresh();
  try {
    await show(await ask(path, body), message);
  } catch (error) {
    if (error.reload) await show(await ask(`/next?${new URLSearchParams({ rater })}`), "").catch(() => {});
    alertWith(error.message);
  }
  busy = false;
  refresh();
}

function answer() {
  if (save.disabled) return;
  const levels = Object.fromEntries(scales.map((scale) => [scale.dataset.name, Number(checked(scale).value)]));
  return act("/answer", { file: shown.file, revision: shown.revision, levels, comment: comment.value }, "Saved.");
}

/** Set the level of a key, for the focused attribute or the first one without a level. */
function choose(key) {
  const scale = document.activeElement.closest?.("fieldset.graded") ?? scales.find((one) => !checked(one));
  const byIndex = scale && !scale.hasAttribute("data-numbered"); // else a digit is only ever the name of a level
  const input = [...(scale?.querySelectorAll("input") ?? [])].find((one) => one.dataset.key === key || (byIndex && one.value === key));
  if (!input) return false;
  input.checked = true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  const later = [...scales.slice(scales.indexOf(scale) + 1), ...scales].find((one) => !checked(one));
  if (busy) return true; // already saved
  later ? focusOn(later) : save.focus();
  return true;
}

form.addEventListener("change", (event) => {
  refresh();
  if (event.target.type === "radio" && find("auto").checked && complete()) answer();
});
form.addEventListener("submit", (event) => { event.preventDefault(); answer(); });
skip.addEventListener("click", () => act("/skip", { file: shown.file, revision: shown.revision }, "Skipped."));
undo.addEventListener("click", () => act("/undo", {}, "Undone."));
find("again").addEventListener("click", () => act("/again", {}, ""));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target === comment) return focusOn(scales.find((scale) => !checked(scale)) ?? scales[0]);
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !find("keys").checked || event.target.matches("textarea, input[type=text]")) return;
  const key = event.key.toLowerCase();
  if (key === "enter" && event.target.matches("body, main")) answer();
  else if (key === "s") skip.click();
  else if (key === "u") undo.click();
  else if (key === "c" && !questions.hidden) comment.focus();
  else if (questions.hidden || busy || !choose(key)) return;
  event.preventDefault();
});

for (const id of ["keys", "auto"]) {
  const kept = localStorage.getItem(`label-${id}`);
  if (kept !== null) find(id).checked = kept === "true";
  find(id).addEventListener("change", () => localStorage.setItem(`label-${id}`, find(id).checked));
}
await act(`/next?${new URLSearchParams({ rater })}`, null, "");
