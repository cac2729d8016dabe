/** Copying text, also where the page came without TLS and `navigator.clipboard` does not exist. */

import { $, h } from "./dom.js";

/**
 * Resolves to whether `text` is on the clipboard now.
 * @param {string} text
 */
export async function copyText(text) {
  if (!navigator.clipboard) return copyBySelection(text);
  return navigator.clipboard.writeText(text).then(() => true, () => false);
}

/** @param {string} text */
function copyBySelection(text) {
  const before = document.activeElement;
  const field = h("textarea", { class: "sr-only", readonly: true });
  field.value = text;
  ($("dialog[open]") ?? document.body).append(field); // an open dialog lets nothing else have the focus
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (before instanceof HTMLElement) before.focus();
  return copied;
}
