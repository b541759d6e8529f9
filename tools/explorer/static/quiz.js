// The quiz: a round is a number, the server says what it asks and what was right; the score stays in this page.

import { Slowly, alertWith, ask, placed, randomSeed, show, tileOf, withLevels } from "./common.js";

const find = (id) => document.getElementById(id);
const [form, choices, verdict] = ["question", "choices", "verdict"].map(find);
const score = { right: 0, rounds: 0, off: 0 };
const levels = new Slowly();
let round = null;
let coming = new AbortController();

/** A new tile and its question, in place of one that is still to come. */
async function next() {
  coming.abort();
  const { signal } = (coming = new AbortController());
  const parts = new URLSearchParams({ round: randomSeed(), attribute: find("about").value });
  try {
    const asked = await (await ask(`/quiz/question?${parts}`, signal)).json();
    await show(find("tile"), `/quiz/tile.png?round=${asked.round}`, signal);
    round = asked;
  } catch (error) {
    return error.name === "AbortError" || alertWith(error.message);
  }
  alertWith("");
  find("asked").textContent = `${round.title} of this tile?`;
  choices.replaceChildren(...round.choices.map(({ level, name }) => {
    const label = Object.assign(document.createElement("label"), { className: "check" });
    label.append(Object.assign(document.createElement("input"), { type: "radio", name: "level", value: level, required: true }), ` ${name}`);
    return label;
  }));
  find("answer").disabled = false;
  find("after").hidden = true;
  verdict.textContent = "";
  verdict.className = "verdict";
}

/** Tell whether the visitor was right, and show the levels side by side. */
async function answer(event) {
  event.preventDefault();
  if (find("answer").disabled) return;
  find("answer").disabled = true; // a second press counts no second time
  const asked = round, given = new FormData(form).get("level");
  const parts = new URLSearchParams({ round: round.round, attribute: round.attribute, level: given });
  let told;
  try {
    told = await (await ask(`/quiz/answer?${parts}`, coming.signal)).json();
  } catch (error) {
    if (error.name === "AbortError") return;
    find("answer").disabled = false;
    return alertWith(error.message);
  }
  if (round !== asked) return; // the next tile was quicker
  for (const input of choices.querySelectorAll("input")) {
    input.disabled = true;
    input.parentElement.classList.toggle("true", Number(input.value) === told.level);
    input.parentElement.classList.toggle("given", input.checked);
  }
  score.rounds += 1;
  score.right += told.right;
  score.off += told.off;
  showScore();
  const read = told.read === null ? "" : ` The judge reads ${placed(round.attribute, told.read.toFixed(1))}.`;
  verdict.textContent = `${told.right ? "Right" : "Not quite"}: ${round.title.toLowerCase()} is ${told.name} (${placed(round.attribute, told.level)}).${read}`;
  verdict.className = `verdict ${told.right ? "right" : "wrong"}`;
  find("next").focus();
  showLevels(told);
}

function showLevels(told) {
  const tiles = round.choices.map(({ level, name }) => {
    const tile = tileOf(name, `${round.title} ${name}`);
    tile.figure.classList.toggle("on", level === told.level);
    return [tile, `/tile.png?${withLevels(told.link, { [round.attribute]: level })}`];
  });
  find("levels").replaceChildren(...tiles.map(([{ figure }]) => figure));
  find("open").href = `/?${told.link}`;
  find("after").hidden = false;
  levels.load(tiles.map(([{ image }, address]) => [image, address]));
}

function showScore() {
  find("score").textContent = `${score.right} of ${score.rounds}`;
  find("off").textContent = score.rounds ? `, ${(score.off / score.rounds).toFixed(1)} levels off on average` : "";
}

form.addEventListener("submit", answer);
find("next").addEventListener("click", async () => {
  await next();
  if (document.activeElement === find("next")) choices.querySelector("input")?.focus(); // which reads out the question
});
find("about").addEventListener("change", next);
find("clear").addEventListener("click", () => { Object.assign(score, { right: 0, rounds: 0, off: 0 }); showScore(); });
await next();
