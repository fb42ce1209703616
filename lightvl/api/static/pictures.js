// Pictures that are about to be sent, and pictures in the conversation with their tiles.

import { byId, count, make } from "./dom.js";

let attached = [];

/** Takes the pictures waiting in the composer. */
export function takeAttached() {
  const taken = attached;
  attached = [];
  showAttached();
  return taken;
}

export const hasAttached = () => attached.length > 0;

/** Adds files to the composer; returns a sentence about those that are no pictures, or "". */
export function attach(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  const added = pictures.map((file) => ({ file, url: URL.createObjectURL(file), name: file.name || "pasted picture" }));
  attached.push(...added);
  showAttached();
  const others = files.length - pictures.length;
  return others ? `${count(others, "file")} left out: no picture.` : "";
}

/** Frees pictures that are shown nowhere any more. */
export function forget(pictures) {
  for (const picture of pictures) URL.revokeObjectURL(picture.url);
}

function showAttached() {
  const list = byId("attached");
  list.hidden = attached.length === 0;
  list.replaceChildren(
    ...attached.map((picture) =>
      make("li", {},
        make("img", { src: picture.url, alt: picture.name }),
        make("button", { type: "button", class: "remove", text: "×", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) }),
      ),
    ),
  );
}

function remove(picture) {
  attached = attached.filter((other) => other !== picture);
  forget([picture]);
  showAttached();
  byId("text").focus();
}

/** Returns a picture as the content part of a message; reads the file once. */
export async function contentPart(picture) {
  picture.data ??= await dataUrl(picture.file);
  return { type: "image_url", image_url: { url: picture.data } };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} can't be read.`));
    reader.readAsDataURL(file);
  });
}

/** Returns the picture's figure; `tell` it what the server says of it. */
export function pictureFigure(picture) {
  const grid = make("span", { class: "grid", "aria-hidden": "true" });
  const caption = make("figcaption", { text: picture.name });
  const figure = make("figure", { class: "picture" },
    make("span", { class: "frame" }, make("img", { src: picture.url, alt: picture.name }), grid),
    caption,
  );
  return { figure, tell: (details) => tell(grid, caption, details) };
}

function tell(grid, caption, { width, height, cols, rows, thumbnail, tokens, cached }) {
  const lines = [];
  for (let i = 1; i < cols; i += 1) lines.push(line("column", "left", i / cols));
  for (let i = 1; i < rows; i += 1) lines.push(line("row", "top", i / rows));
  grid.replaceChildren(...lines);
  const cut = cols * rows === 1 ? "1 tile" : `${cols} × ${rows} tiles`;
  caption.replaceChildren(
    make("span", { text: `${width} × ${height} px` }),
    make("span", { text: cut + (thumbnail ? " + overview" : "") }),
    make("span", { text: count(tokens, "token") }),
    make("span", { class: cached ? "badge cached" : "badge", text: cached ? "cached" : "computed" }),
  );
}

function line(kind, side, share) {
  const element = make("span", { class: kind });
  element.style[side] = `${100 * share}%`;
  return element;
}
