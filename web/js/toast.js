/** Short notices at the foot of the page, with an optional action such as Undo. */

import { $, h } from "./dom.js";

const SHOWN_MS = 4000;
/** How long an action such as Undo is offered. */
export const UNDO_MS = 8000;

/**
 * @param {string} text
 * @param {{ label: string, run: () => void } | null} action
 */
export function toast(text, action = null) {
  const element = h("div", { class: "toast" }, h("span", {}, text));
  const remove = () => element.remove();
  if (action) {
    const act = () => (remove(), action.run());
    element.append(h("button", { type: "button", class: "ghost", onclick: act }, action.label));
  }
  $("#toasts").replaceChildren(element);
  setTimeout(remove, action ? UNDO_MS : SHOWN_MS);
}
