// Starts the page: wires the composer, pictures from everywhere, the panel.

import { ApiError, getJson } from "./api.js";
import { ask, clear, isRunning, stop } from "./conversation.js";
import { byId } from "./dom.js";
import { startLive } from "./live.js";
import { attach, hasAttached, takeAttached } from "./pictures.js";
import { sampling, showPanel, startSettings } from "./settings.js";

const text = byId("text");

function tell(message) {
  byId("note").textContent = message;
  byId("note").hidden = !message;
}

function add(files) {
  if (files.length) tell(attach(files));
  text.focus();
}

async function send() {
  const question = text.value.trim();
  if (isRunning() || sampling() === null) return;
  if (!question && !hasAttached()) {
    tell("Type a question or add a picture first.");
    return;
  }
  tell("");
  text.value = "";
  grow();
  await ask(question, takeAttached());
  showModel();
}

function grow() {
  text.style.height = "auto";
  const border = text.offsetHeight - text.clientHeight;
  text.style.height = `${text.scrollHeight + border}px`;
}

async function showModel() {
  const model = byId("model");
  if (model.textContent) return;
  try {
    model.textContent = (await getJson("v1/models")).data[0].id;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // it is asked for again after an answer
  }
}

function startComposer() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  text.addEventListener("input", grow);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  byId("stop").addEventListener("click", () => {
    stop();
    text.focus();
  });
  byId("clear").addEventListener("click", () => {
    clear();
    text.focus();
  });
}

function startPictures() {
  for (const [button, field] of [["choose", "files"], ["shoot", "camera"]]) {
    byId(button).addEventListener("click", () => byId(field).click());
    byId(field).addEventListener("change", () => {
      add(byId(field).files);
      byId(field).value = "";
    });
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      add(event.clipboardData.files);
    }
  });
  const isFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!isFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) byId("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!isFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = true;
    add(event.dataTransfer.files);
  });
}

function startPanel() {
  const wide = matchMedia("(min-width: 60rem)");
  showPanel(wide.matches);
  wide.addEventListener("change", () => showPanel(wide.matches));
  byId("panel-button").addEventListener("click", () => showPanel(byId("panel").hidden));
  byId("panel").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !wide.matches) {
      showPanel(false);
      byId("panel-button").focus();
    }
  });
}

startSettings(showModel);
startComposer();
startPictures();
startPanel();
startLive();
showModel();
