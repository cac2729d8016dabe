/** A `details` over the page, which goes by a click elsewhere and by Escape. */

import { $ } from "./dom.js";

/** @param {HTMLDetailsElement} box */
export function closesByItself(box) {
  document.addEventListener("click", ({ target }) => {
    if (!box.contains(/** @type {Node} */ (target))) box.open = false;
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !box.open) return;
    box.open = false;
    $("summary", box).focus();
  });
}
