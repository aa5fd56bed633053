// What the model called and what came back, folded into a line; pictures that were drawn are in sight.

import { html, useEffect, useState } from "./view.js";
import { picture } from "./api.js";
import { calm } from "./calm.js";

export function Call({ call, result, isOpen = false }) {
  const seconds = result?.seconds === undefined ? "" : `${result.seconds.toFixed(1)} s`;
  const asked = call === result ? "" : call.text; // a result whose call is not in sight
  return html`
    <details class=${isOpen ? "call is-live" : "call"}>
      <summary>
        <span class="what">${isOpen ? "Calling" : "Called"} <code>${call.name}</code></span>
        <span class="excerpt">${excerpt(asked)}</span>
        <span class="took">${seconds}</span>
      </summary>
      ${asked && html`<${Text} label="What was asked" text=${asked} />`}
      ${result && html`<${Text} label="What came back" text=${result.text || "nothing"} />`}
    </details>
    ${result?.pictures?.map((name) => html`<${Picture} key=${name} name=${name} from=${call.name} />`)}
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
