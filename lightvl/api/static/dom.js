// Small helpers for elements. Text goes in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** Makes an element with properties (`class`, `text`, `aria-*`, listeners as `onclick`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const numbers = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** A number with three digits that count, or whole if larger. */
export const short = (value) =>
  value >= 1000 ? Math.round(value).toLocaleString("en") : numbers.format(value);

export const milliseconds = (ms) => (ms >= 1000 ? `${short(ms / 1000)} s` : `${short(ms)} ms`);

export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit += 1) n /= 1024;
  return `${short(n)} ${units[unit]}`;
}
