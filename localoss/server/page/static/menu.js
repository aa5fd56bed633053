// A menu below a button: arrow keys move, Escape closes, and the button has the focus again.

import { html, useLayoutEffect, useRef } from "./view.js";

export function Menu({ items, below, onClose }) {
  const place = useRef(null);
  const before = useRef(document.activeElement);
  const close = (isBack) => {
    onClose();
    if (isBack) before.current?.focus();
  };
  useLayoutEffect(() => {
    const menu = place.current;
    const height = menu.offsetHeight;
    const top = below.bottom + height + 8 > innerHeight ? below.top - height - 4 : below.bottom + 4;
    menu.style.top = `${Math.max(top, 8)}px`;
    menu.style.left = `${Math.max(8, Math.min(below.left, innerWidth - menu.offsetWidth - 8))}px`;
    menu.querySelector("button").focus();
    const outside = ({ target }) => {
      if (!menu.contains(target) && !before.current?.contains(target)) onClose();
    };
    addEventListener("pointerdown", outside);
    return () => removeEventListener("pointerdown", outside);
  }, []);
  const move = (event) => {
    const buttons = [...place.current.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) buttons.at(to % buttons.length).focus();
    else if (event.key === "Escape" || event.key === "Tab") close(event.key === "Escape");
    else return;
    if (event.key !== "Tab") event.preventDefault();
    event.stopPropagation();
  };
  return html`
    <div class="menu" role="menu" ref=${place} onKeyDown=${move}>
      ${items.map(
        ([label, act, className = ""]) => html`
          <button
            type="button"
            role="menuitem"
            tabindex="-1"
            class=${className}
            onClick=${() => {
              close(true);
              act();
            }}
          >
            ${label}
          </button>
        `,
      )}
    </div>
  `;
}
