// Dialogs: names, deletion, settings, keys of the keyboard and the server's key.

import { html, useEffect, useRef, useState } from "./view.js";
import { change, changeSession, deleteSession, enterKey, setSampling, state } from "./store.js";

const KINDS = { rename: Rename, delete: Delete, settings: Settings, keys: Keys, key: Key };

export function Dialog() {
  if (!state.dialog) return null;
  const { kind, ...given } = state.dialog;
  return html`<${Frame} key=${kind} kind=${kind}><${KINDS[kind]} ...${given} /><//>`;
}

function Frame({ kind, children }) {
  const place = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    place.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`
    <dialog ref=${place} class="dialog" aria-labelledby="dialog-title" onCancel=${(event) => (kind === "key" ? event.preventDefault() : close())} onClose=${close}>
      ${children}
    </dialog>
  `;
}

const close = () => change({ dialog: null });

function Rename({ session }) {
  const [title, setTitle] = useState(session.title);
  const send = (event) => {
    event.preventDefault();
    if (title.trim()) changeSession(session.name, { title: title.trim().slice(0, 200) });
  };
  return html`
    <form onSubmit=${send}>
      <h2 id="dialog-title">Rename</h2>
      <label>Name <input type="text" maxlength="200" value=${title} autofocus onInput=${({ target }) => setTitle(target.value)} /></label>
      <p class="hint">In a terminal it is <code>localoss chat --session ${session.name}</code>; its name there follows.</p>
      <${Buttons} label="Rename" isOff=${!title.trim()} />
    </form>
  `;
}

function Delete({ session }) {
  const send = (event) => {
    event.preventDefault();
    deleteSession(session.name);
  };
  return html`
    <form onSubmit=${send}>
      <h2 id="dialog-title">Delete this conversation?</h2>
      <p>“${session.title || session.name}” and its saved cache are removed from this computer for good.</p>
      <${Buttons} label="Delete" className="danger" />
    </form>
  `;
}

const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.1, "How freely words are drawn; 0 takes the likeliest."],
  ["top_p", "Top p", 0.01, 1, 0.01, "Words outside this share of probability are left out."],
  ["max_tokens", "Most tokens of an answer", 1, 1_000_000, 1, "Thinking included; empty for no limit."],
  ["think_budget", "Most tokens of thinking", 0, 1_000_000, 1, "Then the answer begins; empty for no limit."],
];

function Settings() {
  const [values, setValues] = useState({ ...state.sampling });
  const [instructions, setInstructions] = useState(state.view?.instructions ?? state.setup.instructions);
  const send = (event) => {
    event.preventDefault();
    const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null);
    setSampling(Object.fromEntries(given.map(([name, value]) => [name, Number(value)])));
    if (!state.view) change({ setup: { ...state.setup, instructions }, dialog: null });
    else if (instructions === state.view.instructions) close();
    else changeSession(state.name, { setup: { instructions }, revision: state.view.revision });
  };
  return html`
    <form onSubmit=${send}>
      <h2 id="dialog-title">Settings</h2>
      <label>
        Instructions for this conversation
        <textarea rows="4" value=${instructions} placeholder="You answer in one sentence." onInput=${({ target }) => setInstructions(target.value)}></textarea>
      </label>
      <div class="numbers">
        ${NUMBERS.map(
          ([name, label, least, most, step, hint]) => html`<label>
            ${label}
            <input type="number" min=${least} max=${most} step=${step} value=${values[name] ?? ""} placeholder=${state.about?.sampling[name] ?? "no limit"} onInput=${({ target }) => setValues({ ...values, [name]: target.value })} />
            <small>${hint}</small>
          </label>`,
        )}
      </div>
      <${Buttons} label="Save" />
    </form>
  `;
}

const SHORTCUTS = [
  ["Enter", "send"],
  ["Shift Enter", "a new line"],
  ["Esc", "stop the answer; leave a dialog or an edit"],
  ["↑", "in an empty field: edit the last question"],
  ["Ctrl Enter", "send an edited question"],
  ["Ctrl Shift O", "a new conversation"],
  ["Ctrl K", "search conversations"],
  ["/", "to the message field"],
  ["?", "this list"],
];

function Keys() {
  return html`
    <form method="dialog">
      <h2 id="dialog-title">Keyboard</h2>
      <dl class="keys">
        ${SHORTCUTS.map(
          ([keys, meaning]) => html`<div>
            <dt>${keys.split(" ").map((key) => html`<kbd>${key}</kbd>`)}</dt>
            <dd>${meaning}</dd>
          </div>`,
        )}
      </dl>
      <div class="row"><button type="button" class="primary" autofocus onClick=${close}>Close</button></div>
    </form>
  `;
}

function Key({ isWrong }) {
  const [key, setKey] = useState("");
  const send = (event) => {
    event.preventDefault();
    if (key) enterKey(key);
  };
  return html`
    <form onSubmit=${send}>
      <h2 id="dialog-title">This server asks for its key</h2>
      ${isWrong && html`<p class="warning" role="alert">That isn't it.</p>`}
      <label>Key <input type="password" autocomplete="current-password" autofocus value=${key} onInput=${({ target }) => setKey(target.value)} /></label>
      <p class="hint">The one that <code>localoss serve --api-key</code> or LOCALOSS_API_KEY gave.</p>
      <div class="row"><button type="submit" class="primary" disabled=${!key}>Go on</button></div>
    </form>
  `;
}

function Buttons({ label, className = "primary", isOff = false }) {
  return html`
    <div class="row">
      <button type="button" class="quiet" onClick=${close}>Cancel</button>
      <button type="submit" class=${className} disabled=${isOff}>${label}</button>
    </div>
  `;
}
