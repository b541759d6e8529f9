// The 2AFC page: shows the next pair, takes the choice by button or key, and continues once the server has saved it. No feedback.

const find = (id) => document.getElementById(id);
const buttons = [...find("pair").querySelectorAll("button")];
const reader = find("pair").dataset.reader;
const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right" };
let shown = null; // state of the current pair, from the server
let busy = false, loaded = false; // loaded: both pictures are shown, so the reader may choose
let since = 0; // when they were shown, ms

/** Fetch JSON from the server; throws an Error with the server's message if the request fails. */
async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ reader, ...body }) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not respond. Is attributegan-label still running? Saved choices are not lost.");
  }
  if (response.ok) return response.json();
  const reply = await response.json().catch(() => ({}));
  throw Object.assign(new Error(reply.error || `The server returned status ${response.status}.`), { reload: reply.reload });
}

/** Show an error message; "" hides it. */
function alertWith(text) {
  find("alert").textContent = text;
  find("alert").hidden = !text;
}

function refresh() {
  for (const button of buttons) button.disabled = busy || !loaded;
  find("pair").setAttribute("aria-busy", busy || !loaded);
}

/** Show a pair, or go to the score after the last one. */
async function show(state) {
  shown = state;
  loaded = false;
  refresh();
  find("progress").max = Math.max(state.total, 1);
  find("progress").value = state.done;
  find("progress-text").textContent = `${state.done} of ${state.total} pairs done`;
  if (state.pair === null) return location.replace(`/result?${new URLSearchParams({ reader })}`);
  const images = buttons.map((button) => button.querySelector("img"));
  images.forEach((image, number) => { image.src = state.images[buttons[number].dataset.side]; });
  try {
    await Promise.all(images.map((image) => image.decode()));
    loaded = shown === state;
    since = performance.now();
  } catch {
    throw new Error("The tiles can't be displayed. Reload the page; if this does not help, check the folder of the study.");
  }
  for (const address of state.preload) new Image().src = address;
  find("status").textContent = `Pair ${state.done + 1} of ${state.total}.`;
}

/** Send one request at a time; the page changes only after the server has saved the choice. */
async function act(path, body) {
  if (busy) return;
  busy = true;
  refresh();
  try {
    await show(await ask(path, body));
    alertWith("");
  } catch (error) {
    if (error.reload) await show(await ask(`/next?${new URLSearchParams({ reader })}`)).catch(() => {});
    alertWith(error.message);
  }
  busy = false;
  refresh();
}

function choose(side) {
  if (busy || !loaded) return;
  return act("/answer", { pair: shown.pair, chosen: side, seconds: (performance.now() - since) / 1000 });
}

for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.side));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !KEYS[event.key]) return;
  event.preventDefault();
  choose(KEYS[event.key]);
});
await act(`/next?${new URLSearchParams({ reader })}`, null);
