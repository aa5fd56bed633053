// The open conversation: questions, answers, and what can be done with each.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import { Answer, Question } from "./messages.js";
import { Icon } from "./icons.js";
import { change, copySession, live, state } from "./store.js";

const NEAR = 80; // pixels: as close to its end as counts as there

export function Thread() {
  const place = useRef(null);
  const follows = useRef(true);
  const [isAway, setAway] = useState(false);
  const mine = live();
  const last = useRef({ top: 0, height: 0 });
  const looked = () => {
    const { scrollHeight: height, scrollTop: top, clientHeight } = place.current;
    if (height - top - clientHeight < NEAR) follows.current = true;
    else if (top < last.current.top && height >= last.current.height) follows.current = false; // who reads stays
    last.current = { top, height };
    setAway(!follows.current);
  };
  const toEnd = () => {
    follows.current = true;
    place.current.scrollTop = place.current.scrollHeight;
  };
  useLayoutEffect(toEnd, [state.opened, Boolean(state.view), Boolean(mine)]);
  useEffect(() => {
    const observer = new ResizeObserver(() => follows.current && toEnd());
    observer.observe(place.current.firstElementChild);
    return () => observer.disconnect();
  }, []);
  const isLoading = state.name && !state.view && !mine && !state.error;
  return html`
    <div class="thread" ref=${place} onScroll=${looked} tabindex="0" role="region" aria-label="Conversation">
      <div class="column">
        ${!state.name && !mine && html`<${Welcome} />`} ${isLoading && html`<p class="loading">Opening…</p>`}
        ${exchanges(mine).map(([number, one]) => html`<${Exchange} key=${`${state.opened} ${number}`} number=${number} exchange=${one} mine=${mine} />`)}
        ${state.error && html`<${Problem} />`}
      </div>
      ${isAway &&
      html`<button type="button" class="to-end" aria-label="To the end" onClick=${toEnd}><${Icon} name="down" /></button>`}
    </div>
  `;
}

/** What is to be shown: the conversation as the server has it, with what is being asked now at its place. */
function exchanges(mine) {
  const there = state.view?.exchanges ?? [];
  if (!mine) return there.map((one, number) => [number, one]);
  const before = there[mine.number];
  const question = mine.question ? { ...mine.question, rank: 0, ways: 1 } : before?.question;
  const now = question ? [{ question, answer: { parts: [], rank: 0, ways: 1 }, isLive: true }] : [];
  return [...there.slice(0, mine.number), ...now].map((one, number) => [number, one]);
}

function Exchange({ number, exchange, mine }) {
  const isLast = number === (state.view?.exchanges.length ?? 0) - 1;
  return html`
    <section class="exchange" aria-label=${`Exchange ${number + 1}`}>
      <${Question} number=${number} question=${exchange.question} isLive=${exchange.isLive} />
      <${Answer} number=${number} answer=${exchange.answer} mine=${exchange.isLive ? mine : null} isLast=${isLast} />
    </section>
  `;
}

function Welcome() {
  const { about } = state;
  if (!about) return null;
  const tools = Object.entries(about.tools); // one of which may be the web
  return html`
    <div class="welcome">
      <img src="localoss/page/icon.svg" alt="" width="52" height="52" />
      <h2>What can I do for you?</h2>
      <p>${about.introduction ?? html`<b>${about.model}</b> runs on this computer. ${!tools.length && "Nothing that you write leaves it."}`}</p>
      <${Tools} tools=${tools} />
    </div>
  `;
}

/** What the model may call, and what that can reach. */
function Tools({ tools }) {
  if (!tools.length) return null;
  return html`
    <p class="may-call">It may call these, and shows each call:</p>
    <dl class="tool-list">
      ${tools.map(([name, reach]) => html`<div><dt><code>${name}</code></dt> <dd>reaches ${reach}</dd></div>`)}
    </dl>
  `;
}

function Problem() {
  const { message, code, retry } = state.error;
  return html`
    <div class="problem" role="alert">
      <p>${message}</p>
      <div class="row">
        ${code === "context_length_exceeded" &&
        retry &&
        html`<button type="button" onClick=${retry}>Leave the oldest messages out</button>`}
        ${code === "conversation_busy" && html`<button type="button" onClick=${copySession}>Go on in a copy</button>`}
        <button type="button" class="quiet" onClick=${() => change({ error: null })}>Dismiss</button>
      </div>
    </div>
  `;
}
