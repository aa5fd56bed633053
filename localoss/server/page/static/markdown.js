// From a model's Markdown to what is shown: made by the worker, sanitized here, mathematics and buttons put in.

import { html, useEffect, useRef } from "./view.js";
import { copyText } from "./clipboard.js";
import "./vendor/purify.js";

const LEAST_SLICE_MS = 25; // of drawing at a time, and the pause after it
const MOST_SLICE_MS = 100;
const PAUSE_MS = 16;
const MOST_LAID_OUT = 200; // blocks: of more, those out of sight aren't laid out
const MOST_FORMULAS = 1000; // of a block: others stay as they are written
const PATIENCE_MS = 6000; // a text that takes longer is shown as it stands
const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "b", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "i", "kbd", "li", "ol", "p",
    "pre", "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "u", "ul",
  ],
  ALLOWED_ATTR: ["href", "class", "start", "align", "data-tex", "data-display", "data-language"],
  ADD_URI_SAFE_ATTR: ["start", "align", "data-tex", "data-display", "data-language"], // no addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_TRUSTED_TYPE: true,
};

const policy = window.trustedTypes?.createPolicy("localoss", { createScriptURL: () => workerAddress() });
const workerAddress = () => new URL("./markdown_worker.js", import.meta.url).href;

let worker = null;
let waiting = []; // jobs for the worker: the last goes first, for a conversation is opened at its end
let current = null; // the worker's
let timer = null;

/** The blocks of `text` as HTML; null for a text that can't be made into any. */
function blocksOf(text, isLive) {
  return new Promise((resolve) => {
    waiting.push({ asked: { text, isLive }, resolve });
    if (!current) next();
  });
}

function next() {
  current = waiting.pop() ?? null;
  if (!current) return;
  worker ??= started();
  worker.postMessage(current.asked);
  timer = setTimeout(() => {
    worker.terminate();
    worker = null;
    finish(null);
  }, PATIENCE_MS);
}

function started() {
  const made = new Worker(policy ? policy.createScriptURL("") : workerAddress(), { type: "module" });
  made.onmessage = ({ data }) => finish(data.blocks);
  made.onerror = () => finish(null);
  return made;
}

function finish(blocks) {
  clearTimeout(timer);
  const done = current;
  next();
  done?.resolve(blocks);
}

blocksOf("", false); // the worker is there before the first answer

/** Markdown, drawn again block by block as `text` grows. */
export function Markdown({ text, isLive = false }) {
  const place = useRef(null);
  const state = useRef({ shown: null, wanted: null, isBusy: false, blocks: [], isPlain: false });
  useEffect(() => {
    const mine = state.current;
    mine.wanted = { text, isLive };
    if (!mine.isBusy) drawAll(place, mine);
  }, [text, isLive]);
  return html`<div class="markdown" ref=${place} aria-busy=${isLive}></div>`;
}

/** Draw what is wanted, and what is wanted by then, until that is there. */
async function drawAll(place, mine) {
  mine.isBusy = true;
  while (mine.shown !== mine.wanted && place.current) {
    const drawn = mine.wanted;
    const blocks = mine.isPlain ? null : await blocksOf(drawn.text, drawn.isLive);
    mine.shown = drawn;
    if (blocks === null) mine.isPlain = true;
    worked = performance.now(); // the page wasn't kept waiting by the worker
    if (place.current) await draw(place.current, mine, blocks, drawn.text);
    await rest();
  }
  mine.isBusy = false;
}

let worked = 0; // since when the page has no time for others
let slice = LEAST_SLICE_MS;

/** Let the page draw and hear what is typed; a tab that isn't shown has nothing to draw. */
async function rest() {
  const began = performance.now();
  const late = Math.max(began - worked - slice, 0); // a block that is long is drawn in one go
  if (!document.hidden) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS + 2 * late));
  worked = performance.now();
  slice = Math.min(Math.max(worked - began - 2 * late, LEAST_SLICE_MS), MOST_SLICE_MS); // as long as a frame takes
}

async function restAtTimes() {
  if (performance.now() - worked > slice) await rest();
}

async function draw(place, mine, blocks, text) {
  if (blocks === null) {
    const plain = document.createElement("pre");
    plain.className = "plain";
    plain.textContent = text;
    place.replaceChildren(plain);
    mine.blocks = [];
    return;
  }
  if (!mine.blocks.length) place.replaceChildren();
  place.classList.toggle("is-long", blocks.length > MOST_LAID_OUT);
  for (let i = 0; i < blocks.length; i++) {
    if (mine.blocks[i] === blocks[i]) continue;
    const block = document.createElement("div");
    block.className = "block";
    block.innerHTML = DOMPurify.sanitize(blocks[i], ALLOWED);
    finished(block);
    const now = setMath(block); // at once, unless there is too much of it
    if (place.children[i]) place.replaceChild(block, place.children[i]);
    else place.append(block);
    await now;
    await restAtTimes();
  }
  while (place.children.length > blocks.length) place.lastChild.remove();
  mine.blocks = blocks;
}

/** Links that leave the page, code with a button, tables that scroll. */
function finished(block) {
  for (const link of block.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of block.querySelectorAll("table")) {
    const around = element("div", "table");
    scrollable(around, "Table");
    table.replaceWith(around);
    around.append(table);
  }
  for (const code of block.querySelectorAll("pre")) {
    const around = element("div", "code");
    const head = element("div", "code-head");
    const button = element("button", "copy");
    button.type = "button";
    button.textContent = "Copy";
    head.append(element("span", "", code.dataset.language || "text"), button);
    code.replaceWith(around);
    around.append(head, code);
    scrollable(code, "Code");
  }
}

function scrollable(place, label) {
  place.tabIndex = 0;
  place.setAttribute("role", "region");
  place.setAttribute("aria-label", label);
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

async function setMath(block) {
  const places = [...block.querySelectorAll(".math[data-tex]")].slice(0, MOST_FORMULAS);
  if (!places.length) return;
  if (!window.katex) await import("./vendor/katex.js"); // which waits for a frame, even if it is there
  for (const place of places) {
    const { tex, display } = place.dataset;
    const options = { displayMode: display === "true", strict: "ignore", trust: false };
    const source = place.textContent;
    try {
      window.katex.render(tex, place, { ...options, maxSize: 20, maxExpand: 300 });
      if (display === "true") scrollable(place, "Formula");
    } catch {
      place.textContent = source; // no formula: as it was written
    }
    await restAtTimes();
  }
}

addEventListener("click", async ({ target }) => {
  const button = target instanceof Element ? target.closest(".code .copy") : null;
  if (!button) return;
  const isCopied = await copyText(button.closest(".code").querySelector("code").textContent);
  button.textContent = isCopied ? "Copied" : "Select it and copy";
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
