// Small pictures, drawn in the color of the text beside them; their meaning is in the button's label.

import { html } from "./view.js";

const PATHS = {
  attach: "M13.5 6.5 7 13a2 2 0 0 0 2.8 2.8l7-7a3.6 3.6 0 0 0-5.1-5.1l-7 7a5.2 5.2 0 0 0 7.4 7.4l5.9-5.9",
  check: "m4.5 10.5 3.5 3.5 7.5-8",
  close: "m5.5 5.5 9 9m0-9-9 9",
  copy: "M7.5 7.5h8v8h-8zM12.5 7.5v-3h-8v8h3",
  down: "M10 4v11m-4.5-4.5L10 15l4.5-4.5",
  edit: "m12 5 3 3-8 8H4v-3zM10.5 6.5l3 3",
  file: "M5.5 3h6l3.5 3.5V17h-9.5zM11 3v4h4",
  fold: "m7.5 5.5 4.5 4.5-4.5 4.5",
  help: "M7.5 7.5a2.5 2.5 0 1 1 3.6 2.3c-.7.3-1.1.8-1.1 1.6v.4M10 14.4v.2",
  keyboard: "M3 5.5h14v9H3zM6 8.5h.1m2.6 0h.1m2.6 0h.1m2.6 0h.1M6.5 11.7h7",
  left: "m12 5.5-4.5 4.5 4.5 4.5",
  menu: "M4 6h12M4 10h12M4 14h12",
  moon: "M16 11.6A6.5 6.5 0 0 1 8.4 4a6.5 6.5 0 1 0 7.6 7.6z",
  more: "M5 10h.1m4.8 0h.1m4.8 0h.1",
  new: "M10 4.5v11M4.5 10h11",
  regenerate: "M15.5 8.5A6 6 0 1 0 16 11.5M16 4.5v4h-4",
  right: "m8 5.5 4.5 4.5L8 14.5",
  send: "M10 16V4.5M5 9.5l5-5 5 5",
  settings: "M4 6.5h7m4 0h1M4 13.5h1m4 0h7M13 4.5v4M7 11.5v4",
  stop: "M6 6h8v8H6z",
  sun: "M10 6.8a3.2 3.2 0 1 0 0 6.4 3.2 3.2 0 0 0 0-6.4zM10 2.5v1.2m0 12.6v1.2M2.5 10h1.2m12.6 0h1.2M4.7 4.7l.9.9m8.8 8.8.9.9m0-10.6-.9.9m-8.8 8.8-.9.9",
  system: "M3 4.5h14v9H3zM7.5 16.5h5",
};

export function Icon({ name }) {
  return html`<svg class="icon icon-${name}" viewBox="0 0 20 20" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}
