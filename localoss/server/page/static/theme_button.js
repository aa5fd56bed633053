import { html, useState } from "./view.js";
import { Icon } from "./icons.js";

const NEXT = { system: "light", light: "dark", dark: "system" };
const ICONS = { system: "system", light: "sun", dark: "moon" };

/** As the system has it, light, dark, and round again. */
export function ThemeButton() {
  const [theme, setTheme] = useState(localStorage.getItem("localoss.theme") ?? "system");
  const turn = () => {
    const next = NEXT[theme];
    setTheme(next);
    if (next === "system") localStorage.removeItem("localoss.theme");
    else localStorage.setItem("localoss.theme", next);
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
  };
  const label = `Theme: ${theme}`;
  return html`
    <button type="button" class="icon-button" aria-label=${label} title=${label} onClick=${turn}>
      <${Icon} name=${ICONS[theme]} />
    </button>
  `;
}
