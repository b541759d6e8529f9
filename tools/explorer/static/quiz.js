// The quiz: a round is a number from which the server derives question and answer. The score stays in this page.

import { SequentialLoader, alertWith, ask, createTile, levelText, randomSeed, show, withLevels } from "./common.js";

const find = (id) => document.getElementById(id);
const [form, choices, verdict] = ["question", "choices", "verdict"].map(find);
const score = { right: 0, rounds: 0, off: 0 };
const levels = new SequentialLoader();
let round = null;
let loading = new AbortController();

/** Load a new tile and its question; cancels a request that is still loading. */
async function next() {
  loading.abort();
  const { signal } = (loading = new AbortController());
  form.ariaBusy = "true";
  const parts = new URLSearchParams({ round: randomSeed(), attribute: find("about").value });
  try {
    const question = await (await ask(`/quiz/question?${parts}`, signal)).json();
    await show(find("tile"), `/quiz/tile.png?round=${question.round}`, signal);
    round = question;
  } catch (error) {
    if (error.name === "AbortError") return; // by the next call, which is still loading
    form.ariaBusy = "false";
    return alertWith(error.message);
  }
  form.ariaBusy = "false";
  alertWith("");
  find("prompt").textContent = `${round.title} of this tile?`;
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

/** Show whether the answer is right, and the tile at every level. */
async function answer(event) {
  event.preventDefault();
  if (find("answer").disabled) return;
  find("answer").disabled = true; // a second click must not count
  const answered = round, given = new FormData(form).get("level");
  const parts = new URLSearchParams({ round: round.round, attribute: round.attribute, level: given });
  let reply;
  try {
    reply = await (await ask(`/quiz/answer?${parts}`, loading.signal)).json();
  } catch (error) {
    if (error.name === "AbortError") return;
    find("answer").disabled = false;
    return alertWith(error.message);
  }
  if (round !== answered) return; // the next tile has loaded first
  for (const input of choices.querySelectorAll("input")) {
    input.disabled = true;
    input.parentElement.classList.toggle("true", Number(input.value) === reply.level);
    input.parentElement.classList.toggle("given", input.checked);
  }
  score.rounds += 1;
  score.right += reply.right;
  score.off += reply.off;
  showScore();
  const predicted = reply.predicted === null ? "" : ` Predicted level: ${levelText(round.attribute, reply.predicted.toFixed(1))}.`;
  verdict.textContent = `${reply.right ? "Right" : "Not quite"}: ${round.title.toLowerCase()} is ${reply.name} (${levelText(round.attribute, reply.level)}).${predicted}`;
  verdict.className = `verdict ${reply.right ? "right" : "wrong"}`;
  find("next").focus();
  showLevels(reply);
}

function showLevels(reply) {
  const tiles = round.choices.map(({ level, name }) => {
    const tile = createTile(name, `${round.title} ${name}`);
    tile.figure.classList.toggle("on", level === reply.level);
    return [tile, `/tile.png?${withLevels(reply.link, { [round.attribute]: level })}`];
  });
  find("levels").replaceChildren(...tiles.map(([{ figure }]) => figure));
  find("open").href = `/?${reply.link}`;
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
  if (document.activeElement === find("next")) choices.querySelector("input")?.focus(); // so that screen readers read the question
});
find("about").addEventListener("change", next);
find("clear").addEventListener("click", () => { Object.assign(score, { right: 0, rounds: 0, off: 0 }); showScore(); });
await next();
