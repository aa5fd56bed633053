// Where the next message is written, with its files, the effort, and how full the context is.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import { Refused } from "./api.js";
import { Icon } from "./icons.js";
import { change, draftKey, effort, live, readFile, say, setEffort, state, stop } from "./store.js";

const MOST_PIXELS = 260;

export function Composer() {
  const [text, setText] = useState(sessionStorage.getItem(draftKey(state.name)) ?? "");
  const [files, setFiles] = useState([]);
  const [isDropping, setDropping] = useState(false);
  const place = useRef(null);
  const picker = useRef(null);
  const mine = live();
  useEffect(() => {
    if (!matchMedia("(pointer: coarse)").matches) place.current.focus();
  }, []);
  useLayoutEffect(() => {
    place.current.style.height = "auto";
    place.current.style.height = `${Math.min(place.current.scrollHeight, MOST_PIXELS)}px`;
  }, [text]);
  const write = (value) => {
    setText(value);
    sessionStorage.setItem(draftKey(state.name), value);
  };
  const ready = files.filter((file) => !file.isReading);
  const isReading = ready.length < files.length;
  const canSend = (text.trim() || ready.length > 0) && !isReading && !mine;
  const send = (event) => {
    event?.preventDefault();
    if (!canSend) return;
    const clear = () => {
      write("");
      setFiles([]);
    };
    clear();
    say({
      text: text.trim(),
      files: ready.map(({ name, text: words }) => ({ name, text: words })),
      shown: { text: text.trim(), files: ready },
      onTaken: () => place.current?.value === text && clear(), // what was refused before
      onRefused: () => {
        if (!place.current?.value) write(text); // nothing is lost
        setFiles((now) => (now.length ? now : files));
      },
    });
  };
  const add = async (picked) => {
    for (const file of picked) {
      const entry = { name: file.name, isReading: true };
      setFiles((now) => [...now, entry]);
      try {
        const read = await readFile(file);
        setFiles((now) => now.map((one) => (one === entry ? read : one)));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        setFiles((now) => now.filter((one) => one !== entry));
        change({ error: { message: error.message, code: error.code } });
      }
    }
  };
  const onKey = (event) => {
    if (event.isComposing) return;
    const isPhone = matchMedia("(pointer: coarse)").matches;
    if (event.key === "Enter" && !event.shiftKey && (!isPhone || event.ctrlKey)) send(event);
    else if (event.key === "ArrowUp" && !text && state.view?.exchanges.length && !mine) {
      event.preventDefault();
      change({ editing: state.view.exchanges.length - 1 });
    }
  };
  const drag = {
    onDragOver: (event) => {
      event.preventDefault();
      setDropping(true);
    },
    onDragLeave: () => setDropping(false),
    onDrop: (event) => {
      event.preventDefault();
      setDropping(false);
      add(event.dataTransfer.files);
    },
  };
  const onPaste = (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  };
  return html`
    <form class=${isDropping ? "composer is-dropping" : "composer"} onSubmit=${send} ...${drag}>
      <div class="field">
        ${files.length > 0 &&
        html`<ul class="files" aria-label="Files for the next message">
          ${files.map(
            (file) => html`<li>
              <${Icon} name="file" /> ${file.name}
              <small>${file.isReading ? "reading…" : `${file.tokens.toLocaleString("en")} tokens`}</small>
              <button type="button" aria-label=${`Leave ${file.name} out`} onClick=${() => setFiles(files.filter((one) => one !== file))}>
                <${Icon} name="close" />
              </button>
            </li>`,
          )}
        </ul>`}
        <textarea
          id="message"
          ref=${place}
          rows="1"
          aria-label="Message"
          placeholder="Write a message"
          value=${text}
          onInput=${({ target }) => write(target.value)}
          onKeyDown=${onKey}
          onPaste=${onPaste}
        ></textarea>
        <div class="tools">
          <button type="button" class="icon-button" aria-label="Attach files" title="Attach text, PDF or Word files" onClick=${() => picker.current.click()}>
            <${Icon} name="attach" />
          </button>
          <input
            ref=${picker}
            class="unseen"
            type="file"
            multiple
            tabindex="-1"
            aria-label="Files to attach"
            onChange=${({ target }) => {
              add([...target.files]);
              target.value = "";
            }}
          />
          <${Effort} />
          ${mine
            ? html`<button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick=${stop}><${Icon} name="stop" /></button>`
            : html`<button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled=${!canSend}><${Icon} name="send" /></button>`}
        </div>
      </div>
      <${Context} mine=${mine} />
    </form>
  `;
}

function Effort() {
  const now = effort();
  return html`
    <fieldset class="effort" title="How long the model thinks">
      <legend class="unseen">How long the model thinks</legend>
      ${["low", "medium", "high"].map(
        (value) => html`<label class=${value === now ? "is-chosen" : ""}>
          <input class="unseen" type="radio" name="effort" value=${value} checked=${value === now} onChange=${() => setEffort(value)} />
          ${value}
        </label>`,
      )}
    </fieldset>
  `;
}

/** How much of the context is taken, and how fast the answer comes. */
function Context({ mine }) {
  const room = state.about?.context_tokens ?? 0;
  const used = mine?.promptTokens ? mine.promptTokens + mine.tokens : (state.view?.tokens ?? 0);
  if (!room) return html`<div class="context"></div>`;
  const share = Math.min(used / room, 1);
  const last = state.figures[`${state.name} ${(state.view?.exchanges.length ?? 0) - 1}`];
  const speed = mine ? mine.speed : (last?.tokens_per_s ?? 0);
  const told = `${used.toLocaleString("en")} of ${room.toLocaleString("en")} tokens`;
  return html`
    <div class="context">
      <meter class=${share > 0.8 ? "is-high" : ""} min="0" max="1" value=${share} aria-label="Context in use" title=${told}></meter>
      <span>${told}</span>
      ${share > 0.8 && html`<span class="warning">the context is ${Math.round(share * 100)} % full</span>`}
      <span class="speed">${speed ? `${speed.toFixed(1)} tokens/s` : ""}</span>
    </div>
  `;
}
