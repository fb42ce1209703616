// Markdown as models write it, made into elements: paragraphs, headings, lists, quotes, code, tables,
// emphasis and links. Texts become text nodes and nothing is parsed as HTML, so that no answer can
// bring elements or attributes of its own. Links lead to http, https and mailto alone; pictures
// become links, since the page loads nothing from elsewhere.

import { make } from "./dom.js";

const DEEPEST = 6; // levels of lists, quotes and emphasis within each other
const FARTHEST = 2000; // characters from a mark to the one that closes it

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])(?: +|$)/;
const TABLE = /^\|? *:?-+:?(?: *\| *:?-+:?)* *\|?$/; // the line below a table's head
const ESCAPABLE = /[!-/:-@[-`{-~]/;

/** Returns what writes an answer into an element: called with the text so far, again and again.
 *
 * Blocks that haven't changed keep their elements, and so what is selected in them.
 */
export function writer(container) {
  let drawn = [];
  return (text) => {
    const blocks = split(text.split("\n"));
    const sources = blocks.map((block) => JSON.stringify(block));
    const kept = sources.findIndex((source, i) => source !== drawn[i]);
    if (kept < 0 && drawn.length === sources.length) return;
    const first = kept < 0 ? sources.length : kept;
    while (container.children.length > first) container.lastElementChild.remove();
    container.append(...blocks.slice(first).map((block) => element(block, 0)));
    drawn = sources;
  };
}

/** Cuts lines into blocks: {kind, lines} and what else an element needs. */
function split(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = take(lines, at);
    if (block) blocks.push(block);
    at = next;
  }
  return blocks;
}

function take(lines, at) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const fence = line.match(FENCE);
  if (fence) return takeCode(lines, at, fence[1]);
  const heading = line.match(HEADING);
  if (heading) return [{ kind: `h${heading[1].length}`, lines: [heading[2].trim()] }, at + 1];
  if (RULE.test(line)) return [{ kind: "hr", lines: [] }, at + 1];
  if (QUOTE.test(line)) {
    const end = until(lines, at, (other) => !QUOTE.test(other));
    return [{ kind: "blockquote", lines: lines.slice(at, end).map((l) => l.replace(QUOTE, "")) }, end];
  }
  if (ITEM.test(line)) return takeList(lines, at);
  if (line.includes("|") && TABLE.test((lines[at + 1] ?? "").trim())) {
    const end = until(lines, at + 2, (other) => !other.includes("|"));
    return [{ kind: "table", lines: [line, ...lines.slice(at + 2, end)] }, end];
  }
  const end = until(lines, at + 1, (other) => !other.trim() || begins(other));
  return [{ kind: "p", lines: lines.slice(at, end) }, end];
}

const begins = (line) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

function until(lines, from, ends) {
  let at = from;
  while (at < lines.length && !ends(lines[at])) at += 1;
  return at;
}

function takeCode(lines, at, mark) {
  const closes = (line) => {
    const text = line.trim();
    return text.length >= mark.length && text === mark[0].repeat(text.length);
  };
  const end = until(lines, at + 1, closes);
  const indent = lines[at].length - lines[at].trimStart().length;
  const body = lines.slice(at + 1, end).map((l) => l.slice(Math.min(indent, l.length - l.trimStart().length)));
  return [{ kind: "pre", lines: body }, end + 1];
}

/** A list goes on as long as lines are items or indented; an empty line may stand between them. */
function takeList(lines, at) {
  const [, indent, number] = lines[at].match(ITEM);
  const items = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const item = line.match(ITEM);
    const depth = line.length - line.trimStart().length;
    if (item && depth <= indent.length + 1) {
      if (depth < indent.length || (item[2] === undefined) !== (number === undefined)) break;
      items.push({ width: item[0].length, lines: [line.slice(item[0].length)] });
      continue;
    }
    const blank = !line.trim();
    const after = !lines[end - 1].trim();
    if (!blank && depth <= indent.length && (after || begins(line))) break;
    const { width, lines: own } = items.at(-1);
    own.push(line.slice(Math.min(width, depth)));
  }
  const kind = number === undefined ? "ul" : "ol";
  return [{ kind, start: Number(number ?? 1), items: items.map((item) => item.lines), lines: [] }, end];
}

function element({ kind, lines, items, start }, depth) {
  switch (kind) {
    case "hr":
      return make("hr");
    case "pre":
      return make("pre", { tabindex: "0" }, make("code", { text: lines.join("\n") }));
    case "blockquote":
      return make("blockquote", {}, ...nested(lines, depth));
    case "ul":
    case "ol": {
      const list = items.map((own) => make("li", {}, ...tight(nested(own, depth))));
      return make(kind, kind === "ol" && start !== 1 ? { start: String(start) } : {}, ...list);
    }
    case "table":
      return table(lines.map(cells));
    default: // headings of the page itself are h1 and h2
      return make(kind === "p" ? "p" : `h${Math.min(6, Number(kind[1]) + 2)}`, {}, ...inline(lines.join("\n"), 0));
  }
}

function nested(lines, depth) {
  if (depth >= DEEPEST) return [make("p", { text: lines.join("\n") })];
  return split(lines).map((block) => element(block, depth + 1));
}

/** An item's first paragraph stands beside its mark. */
const tight = (children) =>
  children[0]?.tagName === "P" ? [...children[0].childNodes, ...children.slice(1)] : children;

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split("|").map((cell) => cell.trim());
}

function table([head, ...rows]) {
  const row = (tag, texts) =>
    make("tr", {}, ...head.map((_, i) => make(tag, {}, ...inline(texts[i] ?? "", 0))));
  return make("div", { class: "table", tabindex: "0" }, make("table", {},
    make("thead", {}, row("th", head)),
    make("tbody", {}, ...rows.map((texts) => row("td", texts))),
  ));
}

/** Returns the nodes of a text with code, emphasis and links. */
function inline(text, depth) {
  const nodes = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const found = depth < DEEPEST ? mark(text, at, depth) : null;
    if (!found) {
      plain += text[at];
      at += 1;
      continue;
    }
    if (typeof found.node === "string") plain += found.node;
    else {
      if (plain) nodes.push(plain);
      plain = "";
      nodes.push(found.node);
    }
    at = found.end;
  }
  return plain ? [...nodes, plain] : nodes;
}

function mark(text, at, depth) {
  switch (text[at]) {
    case "\\":
      return ESCAPABLE.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
    case "`":
      return code(text, at);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth);
    case "[":
      return link(text, at, depth);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, depth) : null;
    case "<": {
      const end = text.slice(at, at + FARTHEST).search(/[\s>]/);
      const href = text[at + end] === ">" ? address(text.slice(at + 1, at + end)) : null;
      return href && { node: anchor(href, href), end: at + end + 1 };
    }
    default:
      return null;
  }
}

/** How often the character at a place is repeated there. */
function run(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function code(text, at) {
  const size = run(text, at);
  const last = Math.min(text.length, at + FARTHEST);
  for (let end = at + size; end < last; ) {
    if (text[end] !== "`") end += 1;
    else {
      const closing = run(text, end);
      if (closing === size) {
        const inner = text.slice(at + size, end).replaceAll("\n", " ");
        const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
        return { node: make("code", { text: padded ? inner.slice(1, -1) : inner }), end: end + size };
      }
      end += closing;
    }
  }
  return { node: text.slice(at, at + size), end: at + size };
}

const isWord = (char) => char !== undefined && /[\p{L}\p{N}]/u.test(char);
const isSpace = (char) => char === undefined || /\s/.test(char);

function emphasis(text, at, depth) {
  const char = text[at];
  const length = run(text, at);
  const size = Math.min(length, 2);
  const inWord = char === "_" && isWord(text[at - 1]);
  if (length > 3 || (char === "~" && size < 2) || isSpace(text[at + length]) || inWord) {
    return { node: text.slice(at, at + length), end: at + length };
  }
  const last = Math.min(text.length, at + FARTHEST);
  for (let end = at + size + 1; end < last; end += 1) {
    if (text[end] === "\\") end += 1;
    else if (text[end] === char) {
      const closing = run(text, end);
      const fits = closing === size || closing === 3 || (size === 2 && closing > 2);
      const open = isSpace(text[end - 1]) || (char === "_" && isWord(text[end + closing]));
      if (fits && !open) {
        const start = closing > size ? end + closing - size : end;
        const tag = char === "~" ? "del" : size === 2 ? "strong" : "em";
        return { node: make(tag, {}, ...inline(text.slice(at + size, start), depth + 1)), end: start + size };
      }
      end += closing - 1;
    }
  }
  return { node: text.slice(at, at + size), end: at + size };
}

function link(text, at, depth) {
  const near = text.slice(at, at + FARTHEST);
  const middle = near.indexOf("](");
  if (middle < 0) return null;
  const label = near.slice(1, middle);
  if (label.includes("[") || label.includes("\n\n")) return null;
  let end = middle + 2;
  for (let open = 1; end < near.length; end += 1) {
    if (near[end] === "(") open += 1;
    else if (near[end] === ")") open -= 1;
    if (!open || near[end] === "\n") break;
  }
  if (near[end] !== ")") return null;
  const href = address(near.slice(middle + 2, end).trim().split(/\s/)[0]);
  return href && { node: anchor(href, ...(label ? inline(label, depth + 1) : [href])), end: at + end + 1 };
}

/** Returns a whole address that a link may lead to, or null. */
function address(text) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const anchor = (href, ...children) =>
  make("a", { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
