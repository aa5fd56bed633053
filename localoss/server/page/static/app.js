// The page: a list of conversations, the one that is open, and where the next message is written.

import { html, render, useEffect } from "./view.js";
import { Composer } from "./composer.js";
import { Dialog } from "./dialogs.js";
import { Icon } from "./icons.js";
import { Sidebar } from "./sidebar.js";
import { change, live, navigate, onChange, start, state, stop } from "./store.js";
import { Thread } from "./thread.js";

function Header() {
  const listed = state.sessions.find(({ name }) => name === state.name);
  const title = state.view?.title || listed?.title || (state.name ? state.name : "New conversation");
  return html`
    <header class="top">
      <button
        type="button"
        class="icon-button only-narrow"
        aria-label="Conversations"
        aria-expanded=${state.hasSidebar}
        aria-controls="sidebar"
        onClick=${() => change({ hasSidebar: true })}
      >
        <${Icon} name="menu" />
      </button>
      <h1>${title}</h1>
      <span class="model" title=${about(state.about)}>${state.about?.model ?? ""}</span>
      <button
        type="button"
        class="icon-button only-narrow"
        aria-label="New conversation"
        onClick=${() => navigate(null)}
      >
        <${Icon} name="new" />
      </button>
    </header>
  `;
}

function about(server) {
  const tools = Object.keys(server?.tools ?? {});
  return tools.length ? `The model of this server; it may call ${tools.join(", ")}` : "The model of this server";
}

function onKey(event) {
  const isCommand = event.ctrlKey || event.metaKey;
  const isTyping = event.target.matches?.("input, textarea, [role=menuitem]");
  if (state.dialog) return;
  if (event.key === "Escape" && live() && !event.defaultPrevented) {
    event.preventDefault();
    stop();
  } else if (event.key === "Escape" && state.editing !== null && !event.defaultPrevented) change({ editing: null });
  else if (event.key === "Escape" && state.hasSidebar) change({ hasSidebar: false });
  else if (isCommand && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    navigate(null);
    document.querySelector("#message")?.focus();
  } else if (isCommand && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    change({ hasSidebar: true });
    requestAnimationFrame(() => document.querySelector("#filter")?.focus());
  } else if (event.key === "/" && !isTyping && !isCommand) {
    event.preventDefault();
    document.querySelector("#message")?.focus();
  } else if (event.key === "?" && !isTyping && !isCommand) {
    change({ dialog: { kind: "keys" } });
  }
}

function App() {
  useEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  useEffect(() => {
    document.title = state.view?.title ? `${state.view.title} · localoss` : "localoss";
  });
  return html`
    <a class="skip" href="#message" onClick=${skip}>To the message field</a>
    <${Sidebar} />
    <main>
      <${Header} />
      <${Thread} />
      <${Composer} key=${state.opened} />
    </main>
    <p class="unseen" role="status">${state.notice}</p>
    <${Dialog} />
  `;
}

function skip(event) {
  event.preventDefault(); // the address's # names a conversation
  document.querySelector("#message")?.focus();
}

const place = document.querySelector("#app");
const draw = () => render(html`<${App} />`, place);
onChange(draw);
draw();
start();
