// The form with the sliders: the state as controls, as text, and as the query of a link.

import { levelText } from "./common.js";
import { percent } from "./difference.js";

export const form = document.getElementById("controls");
const find = (id) => document.getElementById(id);

/** Attributes by name; their levels are pairs [number, name], lowest first. */
export const attributes = new Map([...form.querySelectorAll(".attribute")].map((part) => [part.dataset.name, attributeOf(part)]));

function attributeOf(part) {
  const levels = JSON.parse(part.dataset.levels);
  return {
    name: part.dataset.name,
    title: part.querySelector("label").textContent,
    levels,
    slider: part.querySelector("input[type=range]"),
    notAssessable: part.querySelector("input[type=checkbox]"),
    output: part.querySelector("output"),
  };
}

/** The state as a query, including the model's identity. */
export function query() {
  const parts = new URLSearchParams(new FormData(form));
  for (const { name } of attributes.values()) if (parts.has(`a.${name}`)) parts.set(`a.${name}`, levelText(name, parts.get(`a.${name}`)));
  if (Number(find("mix").value) === 0) ["mix", "mix_seed"].forEach((key) => parts.delete(key));
  parts.set("model", find("main").dataset.model);
  return parts.toString();
}

/** The number of a level in a link, which is given by number, by name, or between two names that are numbers. */
function parseLevel({ name, levels }, text) {
  if (text.startsWith("#")) return text.slice(1);
  const named = levels.find(([, label]) => label === text);
  if (named) return named[0];
  if (levelText(name, 0) === "0") return text;
  const value = Number(text), same = levels.find(([, label]) => Number(label) === value);
  if (same) return same[0];
  const k = levels.findIndex(([, label], at) => at + 1 < levels.length && (value - Number(label)) * (value - Number(levels[at + 1][1])) < 0);
  const [low, high] = [Number(levels[k]?.[1]), Number(levels[k + 1]?.[1])];
  return levels[k]?.[0] + (value - low) / (high - low);
}

/** Set the form to a query. It is valid: the server has checked the page's query, and the history contains only our own. */
export function setForm(text) {
  const parts = new URLSearchParams(text);
  for (const attribute of attributes.values()) {
    const { name, slider, notAssessable } = attribute;
    if (notAssessable) notAssessable.checked = parts.has(`na.${name}`);
    if (parts.has(`a.${name}`)) slider.value = parseLevel(attribute, parts.get(`a.${name}`));
  }
  find("seed").value = parts.get("seed");
  if (parts.has("mix_seed")) find("mix_seed").value = parts.get("mix_seed");
  find("mix").value = parts.get("mix") ?? 0;
  find("truncate").checked = parts.has("truncation");
  if (parts.has("truncation")) find("truncation").value = parts.get("truncation");
  find("size").value = parts.get("size");
  updateTexts();
}

/** A level by name: "mild", or its number and "mild to moderate". */
export function levelName(attribute, level) {
  const below = attribute.levels.findLast(([at]) => at <= level), above = attribute.levels.find(([at]) => at >= level);
  return below[0] === above[0] ? below[1] : `${levelText(attribute.name, level)} · ${below[1]} to ${above[1]}`;
}

/** Update the texts next to the sliders, and those for screen readers. */
export function updateTexts() {
  for (const attribute of attributes.values()) {
    const { slider, notAssessable, output } = attribute;
    slider.disabled = Boolean(notAssessable?.checked);
    output.textContent = slider.disabled ? "not assessable" : levelName(attribute, Number(slider.value));
    slider.setAttribute("aria-valuetext", output.textContent);
    for (const tick of slider.parentElement.querySelectorAll(".ticks button"))
      tick.classList.toggle("on", !slider.disabled && tick.value === slider.value);
  }
  find("truncation").disabled = !find("truncate").checked;
  setOutput("mix", percent(Number(find("mix").value)));
  setOutput("truncation", find("truncate").checked ? `± ${Number(find("truncation").value).toFixed(1)}` : "off");
  find("download").href = `/tile.png?${query()}&download=1`;
}

function setOutput(id, text) {
  form.querySelector(`output[for=${id}]`).textContent = text;
  find(id).setAttribute("aria-valuetext", text);
}

/** Set attributes to levels. */
export function setLevels(levels) {
  for (const [name, level] of Object.entries(levels)) {
    const { slider, notAssessable } = attributes.get(name);
    slider.value = level;
    if (notAssessable) notAssessable.checked = false;
  }
}

/** The error message of an invalid field. */
export function validationMessage() {
  const field = form.querySelector(":invalid:not(fieldset)");
  return `${field.labels[0].textContent}: ${field.validationMessage}`;
}
