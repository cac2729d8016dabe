/** What to do with a picture that was dropped, pasted or chosen: its settings, or drawing from it. */

import { $ } from "./dom.js";

/**
 * "settings", "draw", or null where neither is wanted.
 * @param {Blob} file
 * @returns {Promise<"settings" | "draw" | null>}
 */
export function choose(file) {
  const dialog = $("#choice");
  if (dialog.open) return Promise.resolve(null);
  const url = URL.createObjectURL(file);
  $("#choice-image").src = url;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = () => {
      URL.revokeObjectURL(url);
      const chosen = dialog.returnValue;
      resolve(chosen === "settings" || chosen === "draw" ? chosen : null);
    };
    dialog.addEventListener("close", done, { once: true });
  });
}
