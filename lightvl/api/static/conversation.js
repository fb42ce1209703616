// The turns: what was asked, what was answered, and the answer that is being written.

import { ApiError, chat } from "./api.js";
import { byId, make } from "./dom.js";
import { writer } from "./markdown.js";
import { contentPart, forget, pictureFigure } from "./pictures.js";
import { openPanel, sampling, system } from "./settings.js";
import { timing } from "./timing.js";

// A turn: {text, pictures, tellers, answer, row}; `answer` is null until there is text to go on from.
let turns = [];
let running = null;

const DRAW_MS = 30; // what comes within this time is drawn at once

export const isRunning = () => running !== null;

export function stop() {
  running?.abort();
}

/** Forgets everything. */
export function clear() {
  stop();
  forget(turns.flatMap((turn) => turn.pictures));
  turns = [];
  byId("log").replaceChildren();
  byId("empty").hidden = false;
}

/** Adds a question with pictures and has it answered. */
export async function ask(text, pictures) {
  byId("empty").hidden = true;
  const shown = pictures.map(pictureFigure);
  const question = make("li", { class: "turn user" },
    make("h2", { class: "who", text: "You" }),
    make("div", { class: "bubble" },
      ...(shown.length ? [make("div", { class: "pictures" }, ...shown.map((s) => s.figure))] : []),
      ...(text ? [make("p", { class: "text", text })] : []),
    ),
  );
  byId("log").append(question);
  const turn = { text, pictures, tellers: shown.map((s) => s.tell), answer: null, row: null };
  turns.push(turn);
  await answer(turn);
}

async function retry() {
  const turn = turns.at(-1);
  if (running || !turn) return;
  turn.row?.remove();
  turn.answer = null;
  byId("text").focus();
  await answer(turn);
}

/** The turns that a model is told of: those with an answer, and the last one. */
const answered = (last) => turns.filter((turn) => turn === last || turn.answer !== null);

async function messages() {
  const list = system() ? [{ role: "system", content: system() }] : [];
  for (const { text, pictures, answer: reply } of answered(turns.at(-1))) {
    const parts = await Promise.all(pictures.map(contentPart));
    if (text) parts.push({ type: "text", text });
    list.push({ role: "user", content: parts });
    if (reply !== null) list.push({ role: "assistant", content: reply });
  }
  return list;
}

async function answer(turn) {
  const settings = sampling();
  if (settings === null) return;
  document.querySelector(".retry")?.remove();
  const reply = make("div", { class: "text" });
  const below = make("div", { class: "below" });
  turn.row = make("li", { class: "turn assistant writing" },
    make("h2", { class: "who", text: "Answer" }),
    make("div", { class: "bubble" }, reply, below),
  );
  byId("log").append(turn.row);
  follow(true);
  setRunning(new AbortController());
  byId("status").textContent = "Answering";
  const write = writer(reply);
  let text = "";
  let note = "";
  let timer = 0;
  const draw = () => {
    const near = isNearEnd();
    timer = 0;
    write(text);
    follow(near);
  };
  try {
    for await (const part of chat(await messages(), settings, running.signal)) {
      const near = isNearEnd();
      if (part.text) text += part.text;
      if (part.text) timer ||= setTimeout(draw, DRAW_MS);
      if (part.reason === "length") note = "Cut at the longest length allowed.";
      if (part.usage) showUsage(turn, part.usage, below);
      follow(near);
    }
  } catch (error) {
    if (error.name === "AbortError") note = "Stopped.";
    else if (error instanceof ApiError) showError(below, error);
    else showError(below, new ApiError(error.message));
  }
  clearTimeout(timer);
  draw();
  if (text) turn.answer = text;
  if (note) below.prepend(make("p", { class: "hint", text: note }));
  finish(turn, below, text, note);
}

function finish(turn, below, text, note) {
  const near = isNearEnd();
  turn.row.classList.remove("writing");
  below.append(make("button", { type: "button", class: "retry", text: "Retry", onclick: retry }));
  setRunning(null);
  const failed = below.querySelector(".error") !== null;
  byId("status").textContent = failed ? "" : `Answer: ${text} ${note}`; // an error is an alert already
  follow(near);
}

function setRunning(controller) {
  running = controller;
  byId("stop").hidden = controller === null;
  byId("send").hidden = controller !== null;
}

function showUsage(turn, usage, below) {
  const before = answered(turn).slice(0, -1).flatMap((earlier) => earlier.pictures).length;
  const images = usage.lightvl?.images ?? [];
  turn.tellers.forEach((tell, i) => images[before + i] && tell(images[before + i]));
  below.append(...timing(usage));
}

function showError(below, error) {
  const message = make("p", { class: "error", role: "alert" });
  below.append(message);
  message.textContent = error.message;
  if (error.status === 401) {
    const enter = () => {
      openPanel("access");
      byId("key").focus();
    };
    below.append(make("button", { type: "button", text: "Enter key", onclick: enter }));
  }
}

function isNearEnd() {
  const page = document.documentElement;
  return page.scrollHeight - page.scrollTop - page.clientHeight < 120;
}

function follow(wanted) {
  if (wanted) window.scrollTo(0, document.documentElement.scrollHeight);
}
