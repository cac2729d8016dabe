/** The picture in the form that the next drawing goes on from, and how far it may leave it. */

import { $, setText } from "./dom.js";
import { defaultStrength } from "./edits.js";
import { MaskEditor } from "./mask-editor.js";
import { seenAt } from "./origins.js";
import { load, save } from "./settings.js";
import { LIMITS, shrinkToExtend } from "./sizes.js";
import { hold, keep, urlOf } from "./stash.js";

// What the server takes of a file; a larger picture is made smaller here.
const MAX_PIXELS = 4096 * 4096;
const MAX_BYTES = 24 * 2 ** 20;
const KINDS = new Set(["image/png", "image/jpeg", "image/webp"]);

/** Where a picture is extended. */
export const SIDES = /** @type {const} */ ({
  around: "sideAround", left: "sideLeft", right: "sideRight", up: "sideUp", down: "sideDown",
});

export class Source {
  /** @type {Origin | null} */
  #origin = load("source");
  /** @type {Origin | null} */
  #whole = null; // before it was made smaller, to be extended
  #shown = "";
  #editor = new MaskEditor();
  limits = LIMITS;

  /**
   * `changed()` after every change but of the strength.
   * @param {() => void} changed
   */
  constructor(changed) {
    this.changed = changed;
    this.#put(this.#origin);
    $("#strength").addEventListener("input", () => this.#set({ strength: Number($("#strength").value) }));
    $("#source-paint").addEventListener("click", () => this.#paint());
    for (const radio of radios("#fits")) {
      radio.addEventListener("change", () => this.#fit(/** @type {Origin["fit"]} */ (radio.value)));
    }
    for (const radio of radios("#sides")) radio.addEventListener("change", () => this.#extend(radio.value));
    $("#source-remove").addEventListener("click", () => (this.use(null), $("#from-file").focus()));
  }

  /** As far as the model can draw from it. */
  get origin() {
    const { edits, masks } = this.limits;
    if (!edits || !this.#origin) return null;
    return masks ? this.#origin : { ...this.#origin, mask: null, fit: /** @type {const} */ ("cover") };
  }

  /** @param {Origin | null} origin */
  use(origin) {
    this.#whole = null;
    this.#put(origin);
    this.changed();
  }

  /** @param {Partial<Origin>} change */
  #set(change) {
    if (!this.#origin) return;
    this.#put({ ...this.#origin, ...change });
    this.render();
  }

  /** @param {Origin | null} origin */
  #put(origin) {
    this.#origin = origin;
    hold([origin, this.#whole].flatMap((one) => (one ? [one.file, one.mask] : [])));
    save("source", origin);
  }

  /**
   * To be extended, a picture must leave room around it.
   * @param {Origin["fit"]} fit
   */
  async #fit(fit) {
    if (!this.#origin) return;
    const { strength } = this.#origin;
    const from = { ...(this.#whole ?? this.#origin), strength, fit };
    this.use(from);
    const shrink = shrinkToExtend(from.width, from.height, this.limits);
    const smaller = fit === "extend" && shrink < 1 ? await shrunk(from, shrink) : null;
    if (!smaller || this.#origin !== from) return;
    this.#whole = from;
    this.#put(smaller);
    this.changed();
  }

  /** @param {string} side */
  #extend(side) {
    this.#set({ side: side === "around" ? undefined : /** @type {Origin["side"]} */ (side) });
    this.changed();
  }

  async #paint() {
    const from = this.#origin;
    const mask = from && (await this.#editor.edit(from));
    if (mask !== undefined && this.#origin === from) this.#set({ mask });
  }

  render() {
    const { origin } = this;
    $("#source-paint").hidden = !this.limits.masks;
    $("#fits").hidden = !origin || !this.limits.masks;
    $("#sides").hidden = $("#fits").hidden || origin?.fit !== "extend";
    for (const radio of radios("#fits")) radio.checked = radio.value === origin?.fit;
    for (const radio of radios("#sides")) radio.checked = radio.value === (origin?.side ?? "around");
    $("#source").hidden = !origin;
    $("#from-file").hidden = Boolean(origin);
    if (!origin) {
      this.#shown = "";
      return;
    }
    const strength = origin.strength ?? defaultStrength(origin);
    $("#strength").value = String(strength);
    setText($("#strength-value"), `${Math.round(strength * 100)} %`);
    $("#strength").setAttribute("aria-valuetext", `${Math.round(strength * 100)} %`);
    setText($("#source-size"), `${origin.width} × ${origin.height}`);
    this.#show(origin);
  }

  /** @param {Origin} origin */
  async #show(origin) {
    const shown = [origin.file, origin.id, origin.mask].join();
    if (shown === this.#shown) return;
    this.#shown = shown;
    const url = await seenAt(origin);
    const mask = origin.mask && (await urlOf(origin.mask));
    if (this.#shown !== shown) return;
    if (!url) return this.use(null); // the browser has forgotten it
    $("#source-image").src = url;
    $("#source-mask").hidden = !mask;
    if (mask) $("#source-mask").src = mask;
    if (origin.mask && !mask) this.#set({ mask: null });
  }
}

/**
 * @param {"#fits" | "#sides"} group
 * @returns {NodeListOf<HTMLInputElement>}
 */
const radios = (group) => $(group).querySelectorAll("input");

/**
 * A file as something to draw from, or null where it is no picture that can be.
 * @param {Blob} file
 * @returns {Promise<Origin | null>}
 */
export async function originOfFile(file) {
  try {
    const bitmap = await createImageBitmap(file); // turned as its EXIF says, as the server turns it
    const { width, height } = bitmap;
    const fits = KINDS.has(file.type) && file.size <= MAX_BYTES && width * height <= MAX_PIXELS;
    // A copy: the file may change before it is sent.
    if (fits) return await originAs(new Blob([await file.arrayBuffer()], { type: file.type }), width, height);
    const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / 4 / (width * height)));
    const kind = file.type === "image/jpeg" ? file.type : "image/png";
    const [wide, high] = [width, height].map((side) => Math.floor(side * shrink));
    const blob = await redrawn(bitmap, wide, high, kind);
    return blob && (await originAs(blob, wide, high));
  } catch {
    return null;
  }
}

/**
 * @param {Picture} picture
 * @returns {Promise<Origin>}
 */
export async function originOfPicture({ id, blob, width, height }) {
  const file = blob ? await keep(blob) : null; // the gallery has it a moment later, or never
  return { ...PLAIN, file, id, width, height };
}

/** @type {Pick<Origin, "mask" | "strength" | "fit">} */
const PLAIN = { mask: null, strength: null, fit: "cover" };

/**
 * @param {Blob} blob
 * @param {number} width
 * @param {number} height
 * @returns {Promise<Origin>}
 */
const originAs = async (blob, width, height) => ({ ...PLAIN, file: await keep(blob), id: null, width, height });

/**
 * `origin` with picture and mask made smaller; null where they are gone.
 * @param {Origin} origin
 * @param {number} shrink
 * @returns {Promise<Origin | null>}
 */
async function shrunk(origin, shrink) {
  const [width, height] = [origin.width, origin.height].map((side) => Math.floor(side * shrink));
  /** @param {string | null} url */
  const smaller = async (url) => {
    const image = Object.assign(new Image(), { src: url ?? "" });
    await image.decode();
    const blob = await redrawn(image, width, height, "image/png");
    return blob && keep(blob);
  };
  try {
    const mask = origin.mask && (await smaller(await urlOf(origin.mask)));
    const file = await smaller(await seenAt(origin));
    return file ? { ...origin, file, id: null, mask, width, height } : null;
  } catch {
    return null;
  }
}

/**
 * @param {ImageBitmap | HTMLImageElement} bitmap
 * @param {number} width
 * @param {number} height
 * @param {string} kind
 * @returns {Promise<Blob | null>}
 */
function redrawn(bitmap, width, height, kind) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, kind, 0.95));
}
