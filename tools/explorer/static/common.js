// Shared by the explorer and the quiz: requests, messages, rows of tiles that load one after the other.

/** Show an error message; "" hides it. */
export function alertWith(text) {
  const box = document.getElementById("alert");
  if (box.textContent !== text) box.textContent = text;
  box.hidden = !text;
}

/** Fetch from the server; throws an Error with the server's message if the request fails. */
export async function ask(address, signal) {
  let response;
  try {
    response = await fetch(address, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not respond. Is attributegan-explore still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error || `The server returned status ${response.status}.`);
}

/** Load a picture into an <img>. */
export async function show(image, address, signal) {
  const blob = await (await ask(address, signal)).blob();
  signal?.throwIfAborted();
  const old = image.src;
  image.src = URL.createObjectURL(blob);
  await image.decode();
  if (old.startsWith("blob:")) URL.revokeObjectURL(old);
}

const numbered = new Set(JSON.parse(document.getElementById("main").dataset.numbered));

/** A level by its number, as in links: with "#" if the attribute's level names are numbers themselves. */
export function levelText(name, level) {
  return numbered.has(name) ? `#${level}` : `${level}`;
}

/** The query of a tile with some attributes at other levels, in the model's own size. */
export function withLevels(query, levels) {
  const parts = new URLSearchParams(query);
  for (const [name, level] of Object.entries(levels)) {
    parts.delete(`na.${name}`);
    parts.set(`a.${name}`, levelText(name, level));
  }
  parts.delete("size");
  return parts;
}

/** Loads pictures one after the other, so that a tile requested meanwhile waits for one at most. A new call cancels the previous one. */
export class SequentialLoader {
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

/** A tile with a caption; a button if `onclick` is given. `label` is the accessible name. */
export function createTile(text, label, onclick) {
  const figure = document.createElement(onclick ? "button" : "figure");
  if (onclick) Object.assign(figure, { type: "button", onclick, ariaLabel: label });
  const image = Object.assign(document.createElement("img"), { alt: onclick ? "" : label, width: 128, height: 128 });
  const caption = Object.assign(document.createElement(onclick ? "span" : "figcaption"), { textContent: text });
  figure.className = "tile";
  figure.append(image, caption);
  return { figure, image };
}

/** A random seed, drawn in the browser so that users do not share them. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}
