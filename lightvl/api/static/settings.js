// The panel's fields. They live as long as the tab; the key is kept nowhere else.

import { byId } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_completion_tokens", "repetition_penalty", "seed"];
const FIELDS = [...NUMBERS, "system", "key"];

export const key = () => byId("key").value.trim();
export const system = () => byId("system").value.trim();

/** Restores the fields and keeps what is typed. */
export function startSettings(onKey) {
  for (const id of FIELDS) {
    const field = byId(id);
    field.value = sessionStorage.getItem(id) ?? "";
    field.addEventListener("input", () => sessionStorage.setItem(id, field.value));
  }
  byId("key").addEventListener("change", onKey);
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("key").blur(); // its `change` follows
    byId("text").focus();
  });
}

/** Returns the fields of a request that are set; null, and the field focused, if one is wrong. */
export function sampling() {
  const set = {};
  for (const id of NUMBERS) {
    const field = byId(id);
    if (!field.validity.valid) {
      openPanel("sampling");
      field.reportValidity();
      return null;
    }
    if (field.value !== "") set[id] = field.valueAsNumber;
  }
  return set;
}

/** Shows the panel with one part of it open. */
export function openPanel(part) {
  showPanel(true);
  byId(part).open = true;
}

export function showPanel(shown) {
  byId("panel").hidden = !shown;
  byId("panel-button").setAttribute("aria-expanded", String(shown));
}
