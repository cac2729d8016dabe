/** What to do with a picture that was dropped, pasted or chosen: its settings, or drawing from it. */

import { $ } from "./dom.js";

/** Until the last one's close event has come: it comes late, and would answer for the next. */
let closed = Promise.resolve();

/**
 * "settings", "draw", or null where neither is wanted.
 * @param {Blob} file
 * @returns {Promise<"settings" | "draw" | null>}
 */
export async function choose(file) {
  const dialog = $("#choice");
  if (!dialog.open) await closed;
  if (dialog.open) return null;
  const url = URL.createObjectURL(file);
  $("#choice-image").src = url;
  dialog.returnValue = "";
  dialog.showModal();
  closed = new Promise((resolve) => dialog.addEventListener("close", () => resolve(), { once: true }));
  await closed;
  URL.revokeObjectURL(url);
  const chosen = dialog.returnValue;
  return chosen === "settings" || chosen === "draw" ? chosen : null;
}
