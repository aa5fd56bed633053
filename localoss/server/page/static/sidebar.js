// The conversations: the sessions on this machine, the terminal's among them.

import { html, useEffect, useRef, useState } from "./view.js";
import { Icon } from "./icons.js";
import { Menu } from "./menu.js";
import { change, exportSession, navigate, state } from "./store.js";
import { ThemeButton } from "./theme_button.js";

export function Sidebar() {
  const wanted = state.filter.trim().toLowerCase();
  const shown = state.sessions.filter((one) => `${one.title} ${one.name}`.toLowerCase().includes(wanted));
  return html`
    ${state.hasSidebar && html`<div class="shade only-narrow" onClick=${() => change({ hasSidebar: false })}></div>`}
    <nav id="sidebar" class=${state.hasSidebar ? "sidebar is-open" : "sidebar"} aria-label="Conversations">
      <div class="brand">
        <img src="localoss/page/icon.svg" alt="" width="26" height="26" />
        <strong>localoss</strong>
        <button
          type="button"
          class="icon-button only-narrow"
          aria-label="Close the list"
          onClick=${() => change({ hasSidebar: false })}
        >
          <${Icon} name="close" />
        </button>
      </div>
      <button type="button" class="new" onClick=${() => navigate(null)}>
        <${Icon} name="new" /> New conversation
      </button>
      <input
        id="filter"
        type="search"
        placeholder="Search"
        aria-label="Search conversations"
        value=${state.filter}
        onInput=${({ target }) => change({ filter: target.value })}
      />
      <div class="list">
        ${grouped(shown).map(
          ([label, sessions]) => html`
            <h2 key=${label}>${label}</h2>
            <ul key=${`${label} list`}>
              ${sessions.map((one) => html`<${Entry} key=${one.name} session=${one} />`)}
            </ul>
          `,
        )}
        ${!shown.length && html`<p class="empty">${wanted ? "Nothing found." : "Conversations appear here."}</p>`}
      </div>
      <div class="bottom">
        <${ThemeButton} />
        <button
          type="button"
          class="icon-button"
          aria-label="Settings"
          title="Settings"
          onClick=${() => change({ dialog: { kind: "settings" } })}
        >
          <${Icon} name="settings" />
        </button>
        <button
          type="button"
          class="icon-button"
          aria-label="Keyboard"
          title="Keyboard (?)"
          onClick=${() => change({ dialog: { kind: "keys" } })}
        >
          <${Icon} name="keyboard" />
        </button>
      </div>
    </nav>
  `;
}

function Entry({ session }) {
  const place = useRef(null);
  const [menu, setMenu] = useState(null);
  const title = session.problem ? `${session.name} can't be read` : session.title || session.name;
  const isOpen = session.name === state.name;
  useEffect(() => {
    if (isOpen) place.current?.scrollIntoView({ block: "nearest" });
  }, [isOpen]);
  const openMenu = ({ currentTarget }) => setMenu(menu ? null : currentTarget.getBoundingClientRect());
  const items = [
    ["Rename…", () => change({ dialog: { kind: "rename", session } })],
    ["Save as Markdown", () => exportSession(session.name, "md")],
    ["Save as JSON", () => exportSession(session.name, "json")],
    ["Delete…", () => change({ dialog: { kind: "delete", session } }), "is-danger"],
  ];
  return html`
    <li ref=${place} class=${isOpen ? "is-current" : ""}>
      <a
        href=${`#${encodeURIComponent(session.name)}`}
        title=${`${title}\n${session.name}`}
        aria-current=${isOpen ? "page" : null}
        onClick=${(event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          navigate(session.name);
        }}
      >
        ${(session.is_writing || state.lives[session.name]) && html`<span class="dot" title="An answer is written"></span>`}
        <span class="title">${title}</span>
      </a>
      <button
        type="button"
        class="icon-button"
        aria-label=${`Options of ${title}`}
        aria-haspopup="menu"
        aria-expanded=${Boolean(menu)}
        onClick=${openMenu}
      >
        <${Icon} name="more" />
      </button>
      ${menu && html`<${Menu} items=${items} below=${menu} onClose=${() => setMenu(null)} />`}
    </li>
  `;
}

/** The sessions by when they were used last: pairs of a label and those that belong there. */
function grouped(sessions) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  const day = 86_400;
  const labels = [
    ["Today", midnight],
    ["Yesterday", midnight - day],
    ["Last 7 days", midnight - 7 * day],
    ["Last 30 days", midnight - 30 * day],
    ["Earlier", -Infinity],
  ];
  const groups = new Map();
  for (const session of sessions) {
    const [label] = labels.find(([, since]) => session.changed >= since);
    groups.set(label, [...(groups.get(label) ?? []), session]);
  }
  return [...groups];
}
