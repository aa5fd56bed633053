// A question with its files and versions, and an answer with its thinking.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import { calm } from "./calm.js";
import { copyText } from "./clipboard.js";
import { Icon } from "./icons.js";
import { Markdown } from "./markdown.js";
import { Call } from "./calls.js";
import { change, chooseWay, editAnswer, live, say, state } from "./store.js";

export function Question({ number, question, isLive }) {
  if (state.editing === number) {
    const send = (text, keptFiles) =>
      say({ text, keptFiles, number, shown: { text, files: keptFiles.map((index) => question.files[index]) } });
    return html`<${Editor} label="The question" before=${question.text} files=${question.files} done="Send" send=${send} />`;
  }
  return html`
    <div class="question">
      ${question.is_left_out && html`<p class="left-out">The model no longer sees this.</p>`}
      ${question.files.length > 0 &&
      html`<ul class="files" aria-label="Files">
        ${question.files.map((file) => html`<li><${Icon} name="file" /> ${file.name}</li>`)}
      </ul>`}
      ${question.text && html`<div class="bubble">${calm(question.text)}</div>`}
      <div class="actions">
        <${Ways} number=${number} versions=${question} isAnswer=${false} />
        ${!isLive &&
        html`
          <${Copy} text=${question.text} label="Copy the question" />
          <${Act} icon="edit" label="Edit the question" isOff=${Boolean(live())} act=${() => change({ editing: number })} />
        `}
      </div>
    </div>
  `;
}

function Editor({ label, before, files, done, send: sendIt }) {
  const [text, setText] = useState(before);
  const [kept, setKept] = useState(files.map((_, index) => index));
  const place = useRef(null);
  useLayoutEffect(() => {
    place.current.focus();
    place.current.setSelectionRange(text.length, text.length);
  }, []);
  const cancel = () => change({ editing: null });
  const send = (event) => {
    event?.preventDefault();
    if (text.trim()) sendIt(text, kept);
  };
  const onKey = (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      cancel();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
  };
  return html`
    <form class="editor" onSubmit=${send}>
      ${kept.length > 0 &&
      html`<ul class="files" aria-label="Files">
        ${kept.map(
          (index) => html`<li>
            <${Icon} name="file" /> ${files[index].name}
            <button type="button" aria-label=${`Leave ${files[index].name} out`} onClick=${() => setKept(kept.filter((one) => one !== index))}>
              <${Icon} name="close" />
            </button>
          </li>`,
        )}
      </ul>`}
      <textarea ref=${place} aria-label=${label} value=${text} rows=${Math.min(text.split("\n").length + 1, 12)} onInput=${({ target }) => setText(target.value)} onKeyDown=${onKey}></textarea>
      <div class="row">
        <small>The version before stays: ‹ and › go back to it.</small>
        <button type="button" class="quiet" onClick=${cancel}>Cancel</button>
        <button type="submit" class="primary" disabled=${!text.trim()}>${done}</button>
      </div>
    </form>
  `;
}

export function Answer({ number, answer, mine, isLast }) {
  const parts = mine ? mine.parts : answer.parts;
  const figures = mine ? null : state.figures[`${state.name} ${number}`];
  const said = parts.filter(({ kind }) => kind === "answer" || kind === "preamble");
  const text = said.map((part) => part.text).join("\n\n");
  const regenerate = () => say({ number });
  const place = `answer ${number}`; // among those that can be edited
  if (state.editing === place) {
    const written = parts.filter(({ kind }) => kind === "answer").map((part) => part.text);
    const send = (changed) => editAnswer(number, changed);
    return html`<${Editor} label="The answer" before=${written.join("\n\n")} files=${[]} done="Save" send=${send} />`;
  }
  if (!mine && !parts.length) {
    return html`
      <div class="answer">
        <p class="unanswered">This message has no answer yet.</p>
        <div class="actions is-shown">
          <${Ways} number=${number} versions=${answer} isAnswer=${true} />
          <button type="button" disabled=${Boolean(live())} onClick=${regenerate}>Answer it</button>
        </div>
      </div>
    `;
  }
  return html`
    <div class="answer" aria-busy=${Boolean(mine)}>
      ${parts.map((part, index) => {
        const result = parts[index + 1]?.kind === "result" ? parts[index + 1] : null;
        const isResult = parts[index - 1]?.kind === "call";
        const isOpen = mine && index === parts.length - 1;
        return html`<${Part} key=${index} ...${{ part, result, isResult, mine, isOpen }} thought=${figures?.thought_s} />`;
      })}
      ${mine && !parts.length && html`<${Waiting} mine=${mine} />`}
      ${!mine &&
      html`<div class=${isLast ? "actions is-shown" : "actions"}>
        <${Ways} number=${number} versions=${answer} isAnswer=${true} />
        <${Copy} text=${text} label="Copy the answer" />
        <${Act} icon="edit" label="Edit the answer" isOff=${Boolean(live())} act=${() => change({ editing: place })} />
        <${Act} icon="regenerate" label="Another answer" isOff=${Boolean(live())} act=${regenerate} />
        ${figures && html`<span class="figures">${describe(figures)}</span>`}
      </div>`}
    </div>
  `;
}

function describe({ completion_tokens: tokens, tokens_per_s: speed, reason }) {
  const ended = { length: "the context or the limit ended it", stopped: "stopped" }[reason];
  const words = [`${tokens.toLocaleString("en")} tokens`, speed ? `${speed.toFixed(1)} tokens/s` : "", ended];
  return words.filter(Boolean).join(" · ");
}

function Part({ part, result, isResult, mine, isOpen, thought }) {
  if (part.kind === "thinking") return html`<${Thinking} part=${part} mine=${mine} isOpen=${isOpen} thought=${thought} />`;
  if (part.kind === "call") return html`<${Call} call=${part} result=${result} isOpen=${isOpen || (mine && !result)} />`;
  if (part.kind === "result") return isResult ? null : html`<${Call} call=${part} result=${part} />`;
  return html`<${Markdown} text=${part.text} isLive=${Boolean(isOpen)} />`;
}

/** Thinking: in sight while it lasts, then folded into a line; whoever turns it has the last word. */
function Thinking({ part, mine, isOpen, thought }) {
  const [chosen, choose] = useState(null);
  const isShown = chosen ?? Boolean(isOpen);
  const place = useRef(null);
  useEffect(() => {
    if (isOpen && place.current) place.current.scrollTop = place.current.scrollHeight;
  });
  const seconds = isOpen ? (Date.now() - part.began) / 1000 : (mine?.thought ?? thought);
  const duration = seconds ? ` for ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s` : "";
  return html`
    <div class=${isOpen ? "thinking is-live" : "thinking"}>
      <button type="button" class="fold" aria-expanded=${isShown} onClick=${() => choose(!isShown)}>
        <${Icon} name="fold" /> ${isOpen ? "Thinking" : "Thought"}${duration}
      </button>
      ${isShown && html`<div class="thoughts" ref=${place} tabindex="0" role="region" aria-label="Thinking">${calm(part.text)}</div>`}
    </div>
  `;
}

function Waiting({ mine }) {
  const { reading, isWaiting } = mine;
  const told = reading
    ? `Reading ${reading.done.toLocaleString("en")} of ${reading.total.toLocaleString("en")} tokens`
    : isWaiting
      ? "Waiting for its turn"
      : "";
  return html`
    <div class="waiting">
      <span class="dots" aria-hidden="true"><i></i><i></i><i></i></span>
      <span>${told}</span>
      ${reading && html`<progress max=${reading.total} value=${reading.done} aria-label="Reading"></progress>`}
    </div>
  `;
}

function Ways({ number, versions, isAnswer }) {
  const { rank, ways } = versions;
  if (ways < 2) return null;
  const what = isAnswer ? "answer" : "question";
  const turn = (to) => chooseWay(number, isAnswer, to);
  return html`
    <span class="ways">
      <${Act} icon="left" label=${`Version before, of the ${what}`} isOff=${rank === 0 || Boolean(live())} act=${() => turn(rank - 1)} />
      <span>${rank + 1} / ${ways}</span>
      <${Act} icon="right" label=${`Next version of the ${what}`} isOff=${rank === ways - 1 || Boolean(live())} act=${() => turn(rank + 1)} />
    </span>
  `;
}

function Copy({ text, label }) {
  const [isDone, setDone] = useState(false);
  const copy = async () => {
    if (!(await copyText(text))) return;
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<${Act} icon=${isDone ? "check" : "copy"} label=${isDone ? "Copied" : label} act=${copy} />`;
}

function Act({ icon, label, act, isOff = false }) {
  return html`
    <button type="button" class="icon-button small" aria-label=${label} title=${label} disabled=${isOff} onClick=${act}>
      <${Icon} name=${icon} />
    </button>
  `;
}
