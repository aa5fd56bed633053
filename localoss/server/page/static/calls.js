// What the model called and what came back, folded into a line; pictures that were drawn are in sight.

import { html, useEffect, useRef, useState } from "./view.js";
import { picture } from "./api.js";
import { calm } from "./calm.js";
import { approve } from "./store.js";

export function Call({ call, result, isOpen = false }) {
  const seconds = result?.seconds === undefined ? "" : `${result.seconds.toFixed(1)} s`;
  const asked = call === result ? "" : call.text; // a result whose call is not in sight
  return html`
    <details class=${isOpen && !call.question ? "call is-live" : "call"}>
      <summary>
        <span class="what">${call.question ? "Wants to call" : isOpen ? "Calling" : "Called"} <code>${call.name}</code></span>
        <span class="excerpt">${excerpt(asked)}</span>
        <span class="took">${seconds}</span>
      </summary>
      ${asked && html`<${Text} label="What was asked" text=${asked} />`}
      ${result && html`<${Text} label="What came back" text=${result.text || "nothing"} />`}
    </details>
    ${call.question && html`<${Asked} key=${call.question.id} name=${call.name} question=${call.question} />`}
    ${result?.pictures?.map((name) => html`<${Picture} key=${name} name=${name} from=${call.name} />`)}
  `;
}

/** Exactly what would run, and whether it may. */
function Asked({ name, question }) {
  const place = useRef(null);
  useEffect(() => place.current.scrollIntoView({ block: "nearest" }), []);
  const say = (said) => () => approve(question, said);
  const button = (said, label) =>
    html`<button type="button" disabled=${question.isAnswered} onClick=${say(said)}>${label}</button>`;
  return html`
    <div class="asked" ref=${place} role="group" aria-label=${`May ${name} run?`}>
      <p>The model wants this to run:</p>
      <pre tabindex="0" role="region" aria-label="What would run">${calm(question.detail ? `${question.detail}\n${question.text}` : question.text)}</pre>
      <div class="row">
        ${button("yes", "Allow once")} ${button("always", "Always allow")} ${button("no", "Don’t allow")} ${button("never", "Never allow")}
      </div>
    </div>
  `;
}

function Text({ label, text }) {
  return html`
    <h3>${label}</h3>
    <pre tabindex="0" role="region" aria-label=${label}>${calm(text)}</pre>
  `;
}

/** What a call is about, in a line: its code's first line, or the values of its arguments. */
function excerpt(text) {
  let shown = text;
  try {
    const values = JSON.parse(text);
    if (values && typeof values === "object") shown = Object.values(values).join(", ");
  } catch {
    // Code, or half of the arguments so far.
  }
  return shown.trim().split("\n", 1)[0].slice(0, 200);
}

/** Asked for with the server's key, which an address in the page's HTML couldn't carry. */
function Picture({ name, from }) {
  const [address, setAddress] = useState(null);
  const [isGone, setGone] = useState(false);
  useEffect(() => {
    let made = null;
    picture(name).then(
      (blob) => setAddress((made = URL.createObjectURL(blob))),
      () => setGone(true),
    );
    return () => made && URL.revokeObjectURL(made);
  }, [name]);
  if (isGone) return html`<p class="unanswered">The picture is no longer kept.</p>`;
  return address && html`<img class="picture" src=${address} alt=${`A picture drawn by ${from}`} />`;
}
