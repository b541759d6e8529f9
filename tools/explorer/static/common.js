// What both pages share: answers of the server, messages, rows of tiles that load one after the other.

/** Show a message that must not be missed; "" takes it away. */
export function alertWith(text) {
  const box = document.getElementById("alert");
  if (box.textContent !== text) box.textContent = text;
  box.hidden = !text;
}

/** An answer of the server; throws with the server's own words where it refuses. */
export async function ask(address, signal) {
  let response;
  try {
    response = await fetch(address, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is attributegan-explore still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Error(told.error || `The server answered ${response.status}.`);
}

/** Load a picture into an <img>. The address of a row's tile has "&" in it, so it is the server's to read. */
export async function show(image, address, signal) {
  const blob = await (await ask(address, signal)).blob();
  signal?.throwIfAborted();
  const old = image.src;
  image.src = URL.createObjectURL(blob);
  await image.decode();
  if (old.startsWith("blob:")) URL.revokeObjectURL(old);
}

const numbered = new Set(JSON.parse(document.getElementById("main").dataset.numbered));

/** A level by its place, as links have it: with "#" where a bare number would be taken for a level's name. */
export function placed(name, level) {
  return numbered.has(name) ? `#${level}` : `${level}`;
}

/** The query of a tile with some of its attributes at other levels, in the model's own size. */
export function withLevels(query, levels) {
  const parts = new URLSearchParams(query);
  for (const [name, level] of Object.entries(levels)) {
    parts.delete(`na.${name}`);
    parts.set(`a.${name}`, placed(name, level));
  }
  parts.delete("size");
  return parts;
}

/** Load pictures one after the other, so that a tile asked for meanwhile waits for one at most; a new call ends the last one. */
export class Slowly {
  #running = new AbortController();

  stop() {
    this.#running.abort();
  }

  async load(pairs) {
    this.stop();
    const { signal } = (this.#running = new AbortController());
    for (const [image, address] of pairs) {
      if (signal.aborted) return;
      try {
        await show(image, address, signal);
      } catch (error) {
        if (error.name !== "AbortError" && error.name !== "EncodingError") alertWith(error.message);
        return;
      }
    }
  }
}

/** A tile with a text under it; a button where `press` is given. `words` say it to those who don't see it. */
export function tileOf(text, words, press) {
  const figure = document.createElement(press ? "button" : "figure");
  if (press) Object.assign(figure, { type: "button", onclick: press, ariaLabel: words });
  const image = Object.assign(document.createElement("img"), { alt: press ? "" : words, width: 128, height: 128 });
  const caption = Object.assign(document.createElement(press ? "span" : "figcaption"), { textContent: text });
  figure.className = "tile";
  figure.append(image, caption);
  return { figure, image };
}

/** Seeds and rounds are drawn here, so that no two visitors share them. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}
