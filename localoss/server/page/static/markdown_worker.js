// Markdown to HTML, off the page's thread: a text that takes for ever holds up this worker alone.
// Raw HTML stays text, images become links, and what is made here is sanitized by the page all the same.

import { calm } from "./calm.js";
import { Marked } from "./vendor/marked.mjs";
import highlighter from "./vendor/highlight.mjs";

const MOST_TAGS = 20_000; // of a block
const MOST_HIGHLIGHTED = 50_000; // characters of a block of code

function escaped(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (character) => names[character]);
}

function math(tex, isDisplay, source) {
  return `<span class="math" data-tex="${escaped(tex)}" data-display="${isDisplay}">${escaped(source)}</span>`;
}

const BLOCK = [/^ {0,3}\$\$([\s\S]{1,3000}?)\$\$[ \t]*(?:\n|$)/, /^ {0,3}\\\[([\s\S]{1,3000}?)\\\][ \t]*(?:\n|$)/];
const INLINE = [
  [/^\$\$([^\n]{1,3000}?)\$\$/, true],
  [/^\\\[([\s\S]{1,3000}?)\\\]/, true],
  [/^\\\(([\s\S]{1,3000}?)\\\)/, false],
  [/^\$(?![\s$])((?:\\[\s\S]|[^\\$\n]){0,2000}?[^\s\\$])\$(?!\d)/, false],
];

const blockMath = {
  name: "blockMath",
  level: "block",
  start(text) {
    return /\n {0,3}(?:\$\$|\\\[)/.exec(text)?.index;
  },
  tokenizer(text) {
    for (const pattern of BLOCK) {
      const match = pattern.exec(text);
      if (match) return { type: "blockMath", raw: match[0], tex: match[1].trim() };
    }
  },
  renderer: (token) => `<p>${math(token.tex, true, token.raw.trim())}</p>`,
};

const inlineMath = {
  name: "inlineMath",
  level: "inline",
  start(text) {
    return /\$|\\[([]/.exec(text)?.index;
  },
  tokenizer(text) {
    for (const [pattern, isDisplay] of INLINE) {
      const match = pattern.exec(text);
      if (match) return { type: "inlineMath", raw: match[0], tex: match[1].trim(), isDisplay };
    }
  },
  renderer: (token) => math(token.tex, token.isDisplay, token.raw),
};

function colored(code, language) {
  if (code.length > MOST_HIGHLIGHTED || !highlighter.getLanguage(language)) return escaped(code);
  const html = highlighter.highlight(code, { language, ignoreIllegals: true }).value;
  return hasMany(html) ? escaped(code) : html;
}

/** Whether there are so many tags that the page would stand still. */
function hasMany(html) {
  let tags = 0;
  for (let at = html.indexOf("<"); at >= 0; at = html.indexOf("<", at + 1)) tags++;
  return tags > MOST_TAGS;
}

// The few tags that models use where Markdown has no mark; anything else stays as it was written.
const PLAIN_TAG = /^<(?:br\s*\/?|\/?(?:sub|sup|kbd|b|i|u))>$/i;

const renderer = {
  html(token) {
    if (token.block) return `<p>${escaped(token.text)}</p>`;
    return PLAIN_TAG.test(token.text) ? token.text : escaped(token.text);
  },
  code({ text, lang }) {
    const language = /^[\w+#.-]{1,30}/.exec(lang ?? "")?.[0].toLowerCase() ?? "";
    return `<pre data-language="${escaped(language)}"><code>${colored(text, language)}</code></pre>`;
  },
  heading({ tokens, depth }) {
    const level = Math.min(depth + 2, 6); // below the page's own headings
    return `<h${level} class="h${depth}">${this.parser.parseInline(tokens)}</h${level}>`;
  },
  link({ href, tokens }) {
    const inside = this.parser.parseInline(tokens);
    return /^(?:https?:|mailto:)/i.test(href) ? `<a href="${escaped(href)}">${inside}</a>` : inside;
  },
  image({ href, text }) {
    const label = escaped(text || href); // nothing is fetched from where a model says
    return /^https?:/i.test(href) ? `<a href="${escaped(href)}">${label}</a>` : label;
  },
  checkbox: ({ checked }) => `<span class="tick">${checked ? "☑" : "☐"}</span> `,
};

const marked = new Marked({ gfm: true });
marked.use({ extensions: [blockMath, inlineMath], renderer });

// HTML by Markdown source: while an answer is written, all but its last blocks stay as they are.
let rendered = new Map();
let last = { text: "", blocks: [] }; // each block with its HTML and where it ends

/** The blocks of `text`; of one that is being written, which goes on from the last, only those at its end are new. */
function blocks(text, isLive) {
  const goesOn = isLive && last.text && text.startsWith(last.text);
  const kept = goesOn ? last.blocks.slice(0, -2) : []; // what comes may belong to the last ones
  const start = kept.at(-1)?.end ?? 0;
  const made = [...kept, ...lexed(text.slice(start), start)];
  last = { text, blocks: made };
  return made.map((block) => block.html);
}

function lexed(text, start) {
  const tokens = marked.lexer(text);
  const links = Object.keys(tokens.links).length; // definitions change what stands far from them
  const now = new Map();
  const made = [];
  let end = start;
  for (const token of tokens) {
    end += token.raw.length;
    if (token.type === "space") continue;
    const key = `${links} ${token.raw}`;
    const html = now.get(key) ?? rendered.get(key) ?? bounded(token, tokens.links);
    now.set(key, html);
    made.push({ html, end });
  }
  rendered = now;
  return made;
}

/** A block's HTML, or its source if that is too much. */
function bounded(token, links) {
  const html = marked.parser(Object.assign([token], { links }));
  return hasMany(html) ? `<pre class="plain">${escaped(token.raw)}</pre>` : html;
}

addEventListener("message", ({ data: { text, isLive } }) => {
  try {
    postMessage({ blocks: blocks(calm(text.replaceAll("\r\n", "\n").replaceAll("\r", "\n")), isLive) });
  } catch {
    postMessage({ blocks: null }); // nested too deep, for one: shown as it stands
  }
});
