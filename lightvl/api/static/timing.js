// Where an answer's time went, as a bar with its numbers.

import { count, make, milliseconds, short } from "./dom.js";

const NAMES = {
  fetch: "receive",
  prepare: "tokenize",
  queue: "queue",
  image_decode: "decode picture",
  preprocess: "cut into patches",
  vision: "vision tower",
  prefill: "prefill",
  decode: "write answer",
};

/** Returns the line of numbers and the bar of an answer's usage. */
export function timing(usage) {
  const times = usage.lightvl?.timings_ms;
  if (!times) return [];
  const { total, ...stages } = times;
  const shown = Object.entries(stages).filter(([name]) => name in NAMES);
  const told = shown.map(([name, ms]) => `${NAMES[name]} ${milliseconds(ms)}`).join(", ");
  const bar = make("div", { class: "bar", role: "img", "aria-label": `Where the time went: ${told}` });
  const legend = make("ul", { class: "legend", "aria-label": "Stages" });
  for (const [name, ms] of shown) {
    const part = make("span", { class: `stage ${name}`, title: `${NAMES[name]}: ${milliseconds(ms)}` });
    part.style.flexGrow = String(ms / total);
    bar.append(part);
    legend.append(make("li", {},
      make("span", { class: `swatch ${name}`, "aria-hidden": "true" }),
      make("span", { text: NAMES[name] }),
      make("span", { class: "value", text: milliseconds(ms) }),
    ));
  }
  return [make("p", { class: "numbers", text: numbers(usage, times) }), bar, legend];
}

function numbers(usage, { total, decode }) {
  const tokens = usage.completion_tokens;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const parts = [
    `${count(tokens, "token")} in ${milliseconds(total)}`,
    decode !== undefined ? `first after ${milliseconds(total - decode)}` : "",
    tokens > 1 && decode > 0 ? `${short((1000 * (tokens - 1)) / decode)} tokens/s` : "",
    `prompt ${count(usage.prompt_tokens, "token")}` + (cached ? `, ${cached.toLocaleString("en")} from the cache` : ""),
  ];
  return parts.filter(Boolean).join(" · ");
}
