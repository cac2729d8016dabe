/** Short notices at the foot of the page or the top of a dialog, with an optional action such as Undo. */

import { $, h } from "./dom.js";

const SHOWN_MS = 4000;
/** How long an action such as Undo is offered. */
export const UNDO_MS = 8000;

/**
 * In place of the notice before it, but none without an action takes away one that has one.
 * @param {string} text
 * @param {{ label: string, run: () => void } | null} action
 */
export function toast(text, action = null) {
  const element = h("div", { class: action ? "toast acting" : "toast" }, h("span", {}, text));
  const remove = () => element.remove();
  if (action) {
    const act = () => (remove(), action.run());
    element.append(h("button", { type: "button", class: "ghost", onclick: act }, action.label));
  }
  const box = $("#toasts");
  for (const other of [...box.children]) if (other.className === element.className) other.remove();
  placeToasts();
  box.append(element);
  setTimeout(remove, action ? UNDO_MS : SHOWN_MS);
}

/** To where they are seen and can be used: beside an open dialog nothing can. */
export function placeToasts() {
  const place = $("dialog[open]") ?? document.body;
  if ($("#toasts").parentElement !== place) place.append($("#toasts"));
}

document.addEventListener("close", placeToasts, true); // of dialogs; it does not bubble
