/** A drawing and what it was drawn from, one over the other: a divider shows as much of either as is wanted. */

import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { cornerOf } from "./edits.js";
import { isTold, originOf, seenAt, storedOriginOf } from "./origins.js";
import { toast } from "./toast.js";

export class Compare {
  #box = $("#compare");
  #before = $("#compare-before");
  #divider = $("#compare-divider");
  /** @type {string | null} */
  #id = null; // of the picture that it belongs to

  constructor() {
    this.#divider.addEventListener("input", () => this.#divide());
    // The viewer walks by swipes and arrow keys; the divider moves by them.
    for (const type of ["pointerdown", "pointerup"]) this.#divider.addEventListener(type, (event) => event.stopPropagation());
    this.#divider.addEventListener("keydown", (event) => event.key.startsWith("Arrow") && event.stopPropagation());
    this.#before.addEventListener("error", () => this.hide()); // deleted since
  }

  get shown() {
    return !this.#box.hidden;
  }

  /** @param {Picture} picture */
  static can = (picture) => originOf(picture) !== null || isTold(picture);

  /**
   * Show it for `picture`, or hide it.
   * @param {Picture} picture
   */
  async toggle(picture) {
    if (this.shown) return this.hide();
    this.#id = picture.id;
    const origin = originOf(picture) ?? (await storedOriginOf(picture));
    const url = origin && (await seenAt(origin));
    if (this.#id !== picture.id) return;
    if (!url) return toast(t("gone"));
    this.#place(origin, picture);
    this.#before.src = url;
    this.#divider.value = "50";
    this.#divide();
    this.#box.hidden = false;
    this.#divider.focus();
  }

  hide() {
    this.#id = null;
    this.#box.hidden = true;
  }

  /**
   * Hide what belongs to another picture than `picture`.
   * @param {Picture} picture
   */
  keepFor(picture) {
    if (this.#id !== picture.id) this.hide();
  }

  #divide() {
    this.#box.style.setProperty("--at", `${this.#divider.value}%`);
  }

  /**
   * The picture as the server placed it: over the whole drawing, or as large as it is, where it was put.
   * @param {Origin} origin
   * @param {Picture} picture
   */
  #place(origin, picture) {
    const extended = origin.fit === "extend";
    const { width, height } = extended ? origin : picture;
    const [x, y] = extended ? cornerOf(origin, picture.width, picture.height) : [0, 0];
    this.#box.style.setProperty("--ratio", String(picture.width / picture.height));
    const parts = { wide: width / picture.width, high: height / picture.height, x: x / picture.width, y: y / picture.height };
    for (const [name, part] of Object.entries(parts)) this.#before.style.setProperty(`--${name}`, `${100 * part}%`);
  }
}
