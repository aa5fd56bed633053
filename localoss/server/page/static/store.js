// What the page knows, and everything that it does with it. Components are drawn from `state`.

import { Refused, download, events, get, post, remove, useKey } from "./api.js";

export const state = {
  about: null,
  sessions: [],
  filter: "",
  opened: 0, // how often one was opened: what is drawn anew then
  name: null, // of the conversation that is shown; null for a new one
  view: null, // that conversation, as the server has it
  lives: {}, // answers that are being written, by conversation; "" is one that has no name yet
  figures: {}, // of answers that were written while this page looked on
  error: null, // { message, code, retry }
  notice: "", // what a screen reader is told
  dialog: null,
  hasSidebar: false, // on a narrow screen
  editing: null, // number of the question that is being edited
  setup: { effort: localStorage.getItem("localoss.effort") ?? "medium", instructions: "" }, // of a new one
  sampling: JSON.parse(localStorage.getItem("localoss.sampling") ?? "{}"),
};

let redraw = () => {};
let isDrawing = false;
const others = new BroadcastChannel("localoss");

export function onChange(draw) {
  redraw = draw;
}

export function change(patch) {
  Object.assign(state, patch);
  if (isDrawing) return;
  isDrawing = true; // once a frame, however much comes; a tab that isn't shown has no frames
  const draw = () => {
    isDrawing = false;
    redraw();
  };
  if (document.hidden) setTimeout(draw, 100);
  else requestAnimationFrame(draw);
}

export const live = () => state.lives[state.name ?? ""] ?? null;

export const effort = () => state.view?.effort ?? state.setup.effort;

export async function start() {
  others.onmessage = () => refresh();
  addEventListener("focus", () => refresh());
  addEventListener("hashchange", () => openByAddress());
  await attempt(async () => {
    change({ about: await get("about") });
    await Promise.all([list(), openByAddress()]);
  });
}

/** Do it, and show what the server says against it. */
async function attempt(work, retry) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.code === "invalid_api_key") change({ dialog: { kind: "key", isWrong: state.dialog?.kind === "key" } });
    else change({ error: { message: error.message, code: error.code, retry } });
  }
}

export async function enterKey(key) {
  useKey(key);
  await attempt(async () => {
    change({ about: await get("about"), dialog: null });
    await Promise.all([list(), openByAddress()]);
  });
}

async function list() {
  change({ sessions: (await get("sessions")).sessions });
}

/** Look what became of the conversations elsewhere: in another tab, or in a terminal. */
async function refresh() {
  if (!state.about || state.dialog?.kind === "key") return;
  try {
    await list();
    if (state.name && !live()) await load(state.name);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
}

function openByAddress() {
  const name = decodeURIComponent(location.hash.slice(1)) || null;
  return name === state.name && state.view ? null : open(name);
}

export function open(name) {
  const opened = state.opened + 1;
  change({ opened, name, view: null, error: null, editing: null, hasSidebar: false, dialog: null });
  history.replaceState(null, "", name ? `#${encodeURIComponent(name)}` : location.pathname);
  if (name) return attempt(() => load(name));
}

export function navigate(name) {
  if (name === state.name && (name === null || state.view)) return change({ hasSidebar: false });
  history.pushState(null, "", name ? `#${encodeURIComponent(name)}` : location.pathname);
  return open(name);
}

async function load(name) {
  const view = await get(`sessions/${encodeURIComponent(name)}`);
  if (state.name !== name) return;
  change({ view });
  if (view.is_writing && !state.lives[name]) follow(name, view.exchanges.length - 1);
}

/** Another tab's answer, or this one's from before it was loaded again. */
async function follow(name, number) {
  const mine = newLive(number);
  state.lives[name] = mine;
  await attempt(() => listen(events(`sessions/${encodeURIComponent(name)}/answer`), mine));
  await ended(mine);
}

function newLive(number) {
  return { name: state.name, number, parts: [], tokens: 0, speed: 0, thought: 0, began: Date.now() };
}

/**
 * Say something, or have another answer: `number` of the question that is meant, `text` null for another answer.
 * `shown`: the question as it is shown until the server has it. `onTaken`: called once the server has it.
 */
export async function say(asked) {
  const { text = null, files = [], keptFiles = [], number = null, shown = null, trim = false } = asked;
  const name = state.name;
  if (live()) return;
  const before = state.view;
  const turn = {
    session: name,
    revision: before?.revision ?? null,
    exchange: number,
    text,
    files,
    kept_files: keptFiles,
    setup: name ? { effort: effort() } : state.setup,
    sampling: state.sampling,
    trim,
  };
  const mine = newLive(number ?? before?.exchanges.length ?? 0);
  mine.question = shown;
  state.lives[name ?? ""] = mine;
  change({ error: null, editing: null, notice: "Waiting for the answer" });
  let isTaken = false;
  try {
    await listen(events("turns", turn), mine, () => {
      isTaken = true;
      asked.onTaken?.();
    });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (!isTaken) return refused(error, mine, asked);
    change({ error: { message: error.message, code: error.code } });
  }
  await ended(mine);
}

async function refused(error, mine, asked) {
  asked.onRefused?.();
  const retry = asked.trim ? null : () => say({ ...asked, trim: true });
  delete state.lives[mine.name ?? ""];
  if (error.code === "conversation_changed") await attempt(() => load(mine.name)); // what is sent next builds on it
  if (error.code === "invalid_api_key") change({ dialog: { kind: "key" } });
  else change({ error: { message: error.message, code: error.code, retry } });
}

async function listen(told, mine, onStart = () => {}) {
  for await (const event of told) {
    if (event.error) throw new Refused(event.error.message, event.error.code);
    if (event.type === "started") {
      begin(mine, event);
      onStart();
    } else hear(mine, event);
    change({});
  }
}

export const draftKey = (name) => `localoss.draft.${name ?? ""}`;

/** What was written meanwhile belongs to the conversation that has its name now. */
function moveDraft(name) {
  const draft = sessionStorage.getItem(draftKey(null));
  if (draft) sessionStorage.setItem(draftKey(name), draft);
  sessionStorage.removeItem(draftKey(null));
}

function begin(mine, { session, prompt_tokens: tokens }) {
  const wasNew = mine.name === null;
  const isShown = state.name === mine.name && state.lives[mine.name ?? ""] === mine;
  mine.promptTokens = tokens;
  if (!wasNew) return;
  delete state.lives[""];
  mine.name = session;
  state.lives[session] = mine;
  if (isShown) {
    state.name = session;
    moveDraft(session);
    history.replaceState(null, "", `#${encodeURIComponent(session)}`);
  }
  others.postMessage("changed");
  attempt(list);
}

function hear(mine, event) {
  const last = mine.parts.at(-1);
  if (event.type === "reading") mine.reading = event;
  else if (event.type === "waiting") mine.isWaiting = true;
  else if (event.type === "opened") {
    mine.isWaiting = false;
    mine.reading = null;
    mine.parts.push({ kind: event.part, name: event.name, text: "", began: Date.now() });
    state.notice = { thinking: "Thinking", call: `Calling ${event.name}` }[event.part] ?? "Answering";
  } else if (event.type === "text") {
    last.text += event.text;
    mine.tokens = event.tokens;
    mine.speed = event.tokens_per_s;
  } else if (event.type === "result") mine.parts.push({ ...event, kind: "result" });
  else if (event.type === "question") {
    last.question = event;
    state.notice = `May ${last.name} run?`;
  } else if (event.type === "answered") last.question = null;
  else if (event.type === "left_out") {
    const names = event.servers.join(", ");
    state.error = { message: `MCP: no tools from ${names} now; the server's log says why. The answer goes on without.` };
  } else if (event.type === "closed") mine.thought = event.thought_s;
  else if (event.type === "done") {
    mine.figures = event;
    state.notice = event.reason === "stopped" ? "Stopped" : "The answer is complete";
  } else if (event.type === "error") {
    state.error = { message: event.message, code: event.code };
  }
}

/** The answer is over: show the conversation as the server has it now. */
async function ended(mine) {
  await attempt(async () => {
    if (mine.figures) state.figures[`${mine.name} ${mine.number}`] = mine.figures;
    if (state.name === mine.name) {
      const view = await get(`sessions/${encodeURIComponent(mine.name)}`);
      if (state.name === mine.name) state.view = view;
    }
    delete state.lives[mine.name];
    change({});
    await list();
  });
  if (state.lives[mine.name] === mine) delete state.lives[mine.name];
  change({});
  others.postMessage("changed");
}

export function stop() {
  const mine = live();
  if (mine?.name) attempt(() => post(`sessions/${encodeURIComponent(mine.name)}/stop`, {}));
}

/** Say whether a call that waits may be made: yes, no, always or never. */
export function approve(question, said) {
  question.isAnswered = true; // until the server says so
  change({});
  const name = encodeURIComponent(live().name);
  return attempt(() => post(`sessions/${name}/approval`, { id: question.id, said }));
}

export function chooseWay(number, isAnswer, rank) {
  return goOn("way", number, { is_answer: isAnswer, rank });
}

/** Other words in an answer's place, which stays as a version. */
export function editAnswer(number, text) {
  return goOn("edit", number, { text });
}

/** Have the conversation go on from another version of a message. */
function goOn(how, number, more) {
  const { revision } = state.view;
  return attempt(async () => {
    const asked = { revision, exchange: number, ...more };
    const view = await post(`sessions/${encodeURIComponent(state.name)}/${how}`, asked);
    delete state.figures[`${view.name} ${number}`];
    change({ view, error: null, editing: null });
    others.postMessage("changed");
  });
}

/** Other words over a conversation, other instructions or another effort. */
export function changeSession(name, what) {
  return attempt(async () => {
    const view = await post(`sessions/${encodeURIComponent(name)}/change`, what);
    if (state.name === name) {
      history.replaceState(null, "", `#${encodeURIComponent(view.name)}`);
      change({ name: view.name, view });
    }
    change({ dialog: null, error: null });
    others.postMessage("changed");
    await list();
  });
}

export function setEffort(value) {
  localStorage.setItem("localoss.effort", value);
  state.setup.effort = value;
  if (state.view) state.view = { ...state.view, effort: value }; // kept with the next message
  change({});
}

export function deleteSession(name) {
  return attempt(async () => {
    await remove(`sessions/${encodeURIComponent(name)}`);
    change({ dialog: null });
    if (state.name === name) await open(null);
    others.postMessage("changed");
    await list();
  });
}

export function copySession() {
  return attempt(async () => {
    const view = await post(`sessions/${encodeURIComponent(state.name)}/copy`, {});
    await list();
    await open(view.name);
  });
}

export function exportSession(name, form) {
  return attempt(async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await download(`sessions/${encodeURIComponent(name)}/export/${form}`));
    link.download = `${name}.${form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

export function setSampling(sampling) {
  localStorage.setItem("localoss.sampling", JSON.stringify(sampling));
  change({ sampling });
}

/** The text of a file that was picked or dropped, as the terminal's /read makes it. */
export async function readFile(file) {
  if (file.size > 11_000_000) throw new Refused(`${file.name} is larger than 11 MB`, "too_large");
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let i = 0; i < bytes.length; i += 32_768) binary += String.fromCharCode(...bytes.subarray(i, i + 32_768));
  return post("documents", { name: file.name, data: btoa(binary) });
}
