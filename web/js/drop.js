/** Pictures that are dropped on the page, pasted or chosen. */

import { $ } from "./dom.js";

/**
 * `take(file)` for each picture.
 * @param {(file: File) => void} take
 */
export function bindDrop(take) {
  const cover = $("#drop");
  /** @param {DragEvent} event */
  const holds = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    cover.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) cover.hidden = true;
  });
  addEventListener("drop", (event) => {
    cover.hidden = true;
    if (!holds(event)) return;
    event.preventDefault(); // the browser would open the file in place of the page
    const [file] = event.dataTransfer?.files ?? [];
    if (file) take(file);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) take(file);
  });
  $("#from-file").addEventListener("click", () => $("#file").click());
  $("#file").addEventListener("change", () => {
    const [file] = $("#file").files ?? [];
    if (file) take(file);
    $("#file").value = "";
  });
}
