/** A picture over the whole window on which is painted what shall be drawn anew: mouse, touch, pen or keys. */

import { $, setText } from "./dom.js";
import { t } from "./i18n.js";
import { Mask } from "./mask.js";
import { seenAt } from "./origins.js";
import { find, keep } from "./stash.js";

const ERASER = 32; // of a pen, among the buttons that are down
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class MaskEditor {
  #dialog = $("#mask-editor");
  #canvas = $("#mask-canvas");
  #cursor = $("#mask-cursor");
  /** @type {Mask | null} */
  #mask = null;
  #at = { x: 0, y: 0 }; // of the brush, in pixels of the canvas
  /** @type {"pointer" | "key" | null} */
  #painting = null;
  #changed = false;

  constructor() {
    for (const name of /** @type {const} */ (["undo", "redo", "invert", "clear"])) {
      $(`#mask-${name}`).addEventListener("click", () => this.#act(name));
    }
    this.#dialog.addEventListener("close", () => history.state?.mask && history.back());
    addEventListener("popstate", () => this.#dialog.close());
    for (const id of ["#mask-done", "#mask-close"]) $(id).addEventListener("click", () => this.#dialog.close());
    $("#mask-size").addEventListener("input", () => this.#moveTo(this.#at.x, this.#at.y));
    this.#dialog.addEventListener("keydown", (event) => this.#shortcut(event));
    this.#bindPointer();
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("keyup", (event) => event.key === " " && this.#stop());
    this.#canvas.addEventListener("blur", () => this.#stop());
  }

  /**
   * The key of the mask that is painted on the picture of `origin`, null for an empty one; undefined where
   * nothing was changed. Closing keeps what is painted.
   * @param {Origin} origin
   * @returns {Promise<string | null | undefined>}
   */
  async edit(origin) {
    const url = await seenAt(origin);
    if (!url || this.#dialog.open) return undefined;
    $("#mask-image").src = url;
    $("#mask-sheet").style.setProperty("--ratio", String(origin.width / origin.height));
    const mask = new Mask(this.#canvas, origin.width, origin.height);
    this.#mask = mask;
    this.#changed = false;
    const before = origin.mask && (await find(origin.mask));
    if (before) await mask.load(before);
    this.#dialog.showModal();
    history.pushState({ mask: true }, ""); // whoever goes back leaves the editor, not the page
    this.#canvas.focus();
    this.#moveTo(this.#canvas.width / 2, this.#canvas.height / 2);
    this.#tell();
    await new Promise((resolve) => this.#dialog.addEventListener("close", resolve, { once: true }));
    return this.#changed ? this.#kept(mask) : undefined;
  }

  /** @param {Mask} mask */
  async #kept(mask) {
    const file = mask.share > 0 ? await mask.toBlob() : null;
    return file && keep(file);
  }

  get #radius() {
    const { width, height } = this.#canvas;
    return Math.max(1, (Number($("#mask-size").value) / 400) * Math.max(width, height));
  }

  get #erases() {
    return $("#mask-erase").checked;
  }

  /** @param {"undo" | "redo" | "invert" | "clear"} name */
  #act(name) {
    this.#stop();
    this.#mask?.[name]();
    this.#told();
    // A button that is disabled gives the focus away, and with it the keys.
    if (!document.activeElement?.matches("#mask-editor :enabled")) this.#canvas.focus();
  }

  #bindPointer() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || (event.button !== 0 && !(event.buttons & ERASER))) return;
      canvas.setPointerCapture(event.pointerId);
      this.#moveTo(...this.#placeOf(event));
      this.#start("pointer", this.#erases || Boolean(event.buttons & ERASER));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.isPrimary) return;
      // What came between two frames belongs to the stroke, too.
      for (const each of event.getCoalescedEvents?.() ?? []) this.#moveTo(...this.#placeOf(each));
      this.#moveTo(...this.#placeOf(event));
    });
    for (const type of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(type, () => this.#painting === "pointer" && this.#stop());
    }
  }

  /**
   * @param {PointerEvent} event
   * @returns {[number, number]}
   */
  #placeOf(event) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [
      ((event.clientX - left) / width) * this.#canvas.width,
      ((event.clientY - top) / height) * this.#canvas.height,
    ];
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const by = (event.shiftKey ? 2 : 0.5) * this.#radius;
      const { width, height } = this.#canvas;
      const x = Math.min(width, Math.max(0, this.#at.x + by * arrow[0]));
      this.#moveTo(x, Math.min(height, Math.max(0, this.#at.y + by * arrow[1])));
    } else if (event.key !== " ") return;
    else if (!event.repeat) this.#start("key", this.#erases);
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  #shortcut(event) {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      const name = key === "y" || (key === "z" && event.shiftKey) ? "redo" : key === "z" ? "undo" : null;
      if (!name) return;
      event.preventDefault();
      return this.#act(name);
    }
    if (key !== "[" && key !== "]") return;
    const size = $("#mask-size");
    size.value = String(Number(size.value) + (key === "[" ? -5 : 5));
    this.#moveTo(this.#at.x, this.#at.y);
  }

  /**
   * @param {"pointer" | "key"} by
   * @param {boolean} erase
   */
  #start(by, erase) {
    this.#stop();
    this.#painting = by;
    this.#mask?.begin({ erase, radius: this.#radius, ...this.#at });
  }

  #stop() {
    if (!this.#painting) return;
    this.#painting = null;
    this.#told();
  }

  /**
   * The brush is there now, and has painted on its way where it is down.
   * @param {number} x
   * @param {number} y
   */
  #moveTo(x, y) {
    const { width, height } = this.#canvas;
    if (this.#painting && (x !== this.#at.x || y !== this.#at.y)) this.#mask?.extend(x, y);
    this.#at = { x, y };
    const style = this.#cursor.style;
    style.setProperty("--x", `${(100 * x) / width}%`);
    style.setProperty("--y", `${(100 * y) / height}%`);
    style.setProperty("--size", `${(200 * this.#radius) / width}%`);
  }

  #told() {
    this.#changed = true;
    this.#tell();
  }

  #tell() {
    const { share = 0, canUndo = false, canRedo = false } = this.#mask ?? {};
    $("#mask-undo").disabled = !canUndo;
    $("#mask-redo").disabled = !canRedo;
    const n = share > 0 ? Math.max(1, Math.round(100 * share)) : 0;
    setText($("#mask-told"), n ? t("maskShare", { percent: n }) : t("maskEmpty"));
  }
}
