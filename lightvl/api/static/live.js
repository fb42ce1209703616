// The server's load, read from /metrics while the panel is open and the page can be seen.

import { ApiError, getText } from "./api.js";
import { byId, bytes, make, short } from "./dom.js";

const EVERY_MS = 2000;
const POINTS = 45;
const SVG = "http://www.w3.org/2000/svg";

const rates = [];
const values = {};
let line;
let last = null;
let timer = 0;

/** Parses Prometheus' text; series of one name are added up. */
export function parseMetrics(text) {
  const sums = {};
  for (const row of text.split("\n")) {
    const match = /^lightvl:(\w+)(?:\{[^}]*\})? (\S+)/.exec(row);
    if (match) sums[match[1]] = (sums[match[1]] ?? 0) + Number(match[2]);
  }
  return sums;
}

/** Polls from now on whenever somebody can look. */
export function startLive() {
  const body = byId("live-body");
  const graph = document.createElementNS(SVG, "svg");
  graph.setAttribute("viewBox", `0 0 ${POINTS - 1} 20`);
  graph.setAttribute("preserveAspectRatio", "none");
  graph.setAttribute("class", "graph");
  graph.setAttribute("aria-hidden", "true");
  line = document.createElementNS(SVG, "polyline");
  graph.append(line);
  const list = make("dl");
  for (const name of ["Tokens a second", "Running", "Waiting", "First token, mean", "KV cache in use",
    "Prompt from cache", "Pictures from cache", "Pictures kept"]) {
    values[name] = make("dd", { text: "–" });
    list.append(make("div", {}, make("dt", { text: name }), values[name]));
  }
  body.append(graph, list);
  byId("live").addEventListener("toggle", update);
  document.addEventListener("visibilitychange", update);
  new MutationObserver(update).observe(byId("panel"), { attributeFilter: ["hidden"] });
}

function isSeen() {
  return byId("live").open && !byId("panel").hidden && document.visibilityState === "visible";
}

function update() {
  if (isSeen() && !timer) poll();
  if (!isSeen()) {
    clearTimeout(timer);
    timer = 0;
    last = null;
  }
}

async function poll() {
  timer = -1; // asking
  const error = byId("live-error");
  let wait = EVERY_MS;
  try {
    show(parseMetrics(await getText("metrics")));
    error.hidden = true;
  } catch (reason) {
    if (!(reason instanceof ApiError)) throw reason;
    error.textContent = reason.message;
    error.hidden = false;
    wait *= 5;
  }
  timer = isSeen() ? setTimeout(poll, wait) : 0;
}

const share = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");

function show(now) {
  const at = performance.now();
  const get = (name) => now[name] ?? 0;
  if (last) {
    const tokens = get("generation_tokens_total") - last.tokens;
    rates.push(Math.max(0, (1000 * tokens) / (at - last.at)));
    if (rates.length > POINTS) rates.shift();
    const most = Math.max(...rates, 1);
    const x = (i) => POINTS - rates.length + i;
    line.setAttribute("points", rates.map((rate, i) => `${x(i)},${19 - (18 * rate) / most}`).join(" "));
    values["Tokens a second"].textContent = short(rates.at(-1));
  }
  last = { at, tokens: get("generation_tokens_total") };
  const pictures = get("image_cache_hits_total") + get("image_cache_misses_total");
  const first = get("time_to_first_token_seconds_count");
  const texts = {
    "Running": short(get("num_requests_running")),
    "Waiting": short(get("num_requests_queued")),
    "First token, mean": first ? `${short((1000 * get("time_to_first_token_seconds_sum")) / first)} ms` : "–",
    "KV cache in use": share(get("kv_cache_usage_perc"), 1),
    "Prompt from cache": share(get("prefix_cache_hits_total"), get("prefix_cache_queries_total")),
    "Pictures from cache": share(get("image_cache_hits_total"), pictures),
    "Pictures kept": `${short(get("image_cache_images"))}, ${bytes(get("image_cache_bytes"))}`,
  };
  for (const [name, text] of Object.entries(texts)) values[name].textContent = text;
}
