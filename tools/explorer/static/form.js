// The form of the sliders: the state, as controls, as words, and as the query of a link.

import { placed } from "./common.js";
import { percent } from "./difference.js";

export const form = document.getElementById("controls");
const find = (id) => document.getElementById(id);

/** By name; levels are pairs of number and name, lowest first. */
export const attributes = new Map([...form.querySelectorAll(".attribute")].map((part) => [part.dataset.name, attributeOf(part)]));

function attributeOf(part) {
  const levels = JSON.parse(part.dataset.levels);
  return {
    name: part.dataset.name,
    title: part.querySelector("label").textContent,
    levels,
    slider: part.querySelector("input[type=range]"),
    unclear: part.querySelector("input[type=checkbox]"),
    output: part.querySelector("output"),
  };
}

/** The state as a query, the model's identity included. */
export function query() {
  const parts = new URLSearchParams(new FormData(form));
  for (const { name } of attributes.values()) if (parts.has(`a.${name}`)) parts.set(`a.${name}`, placed(name, parts.get(`a.${name}`)));
  if (Number(find("mix").value) === 0) ["mix", "mix_seed"].forEach((key) => parts.delete(key));
  parts.set("model", find("main").dataset.model);
  return parts.toString();
}

/** The place of a level in a link: by place, by name, or between two names that are numbers. */
function placeOf({ name, levels }, text) {
  if (text.startsWith("#")) return text.slice(1);
  const named = levels.find(([, label]) => label === text);
  if (named) return named[0];
  if (placed(name, 0) === "0") return text;
  const value = Number(text), same = levels.find(([, label]) => Number(label) === value);
  if (same) return same[0];
  const k = levels.findIndex(([, label], at) => at + 1 < levels.length && (value - Number(label)) * (value - Number(levels[at + 1][1])) < 0);
  const [low, high] = [Number(levels[k]?.[1]), Number(levels[k + 1]?.[1])];
  return levels[k]?.[0] + (value - low) / (high - low);
}

/** Set the form to what a query says; the server has checked that of the page, and history holds none but ours. */
export function setTo(text) {
  const parts = new URLSearchParams(text);
  for (const attribute of attributes.values()) {
    const { name, slider, unclear } = attribute;
    if (unclear) unclear.checked = parts.has(`na.${name}`);
    if (parts.has(`a.${name}`)) slider.value = placeOf(attribute, parts.get(`a.${name}`));
  }
  find("seed").value = parts.get("seed");
  if (parts.has("mix_seed")) find("mix_seed").value = parts.get("mix_seed");
  find("mix").value = parts.get("mix") ?? 0;
  find("truncate").checked = parts.has("truncation");
  if (parts.has("truncation")) find("truncation").value = parts.get("truncation");
  find("size").value = parts.get("size");
  label();
}

/** A level in words: "mild", or "mild to moderate" with its number. */
export function inWords(attribute, level) {
  const below = attribute.levels.findLast(([at]) => at <= level), above = attribute.levels.find(([at]) => at >= level);
  return below[0] === above[0] ? below[1] : `${placed(attribute.name, level)} · ${below[1]} to ${above[1]}`;
}

/** Outputs beside the sliders, and what a screen reader says of them. */
export function label() {
  for (const attribute of attributes.values()) {
    const { slider, unclear, output } = attribute;
    slider.disabled = Boolean(unclear?.checked);
    output.textContent = slider.disabled ? "not assessable" : inWords(attribute, Number(slider.value));
    slider.setAttribute("aria-valuetext", output.textContent);
    for (const tick of slider.parentElement.querySelectorAll(".ticks button"))
      tick.classList.toggle("on", !slider.disabled && tick.value === slider.value);
  }
  find("truncation").disabled = !find("truncate").checked;
  tell("mix", percent(Number(find("mix").value)));
  tell("truncation", find("truncate").checked ? `± ${Number(find("truncation").value).toFixed(1)}` : "off");
  find("download").href = `/tile.png?${query()}&download=1`;
}

function tell(id, text) {
  form.querySelector(`output[for=${id}]`).textContent = text;
  find(id).setAttribute("aria-valuetext", text);
}

/** Set attributes to levels. */
export function take(levels) {
  for (const [name, level] of Object.entries(levels)) {
    const { slider, unclear } = attributes.get(name);
    slider.value = level;
    if (unclear) unclear.checked = false;
  }
}

/** What is wrong with what was typed. */
export function complaint() {
  const field = form.querySelector(":invalid:not(fieldset)");
  return `${field.labels[0].textContent}: ${field.validationMessage}`;
}
