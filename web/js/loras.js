/** Adapters (LoRA) that the next drawing has, and how strongly: on the page they are styles. */

import { getLoras } from "./api.js";
import { $, h, icon, setText } from "./dom.js";
import { t } from "./i18n.js";
import { closesByItself } from "./popover.js";
import { load, save } from "./settings.js";

const USUAL_SCALE = 2; // stronger ones ruin most pictures: the slider goes further only where one is
const FEW = 8; // more are searched

/** @param {number} scale */
const shown = (scale) => String(Math.round(scale * 100) / 100);

/**
 * What `loras` are called, with their strengths.
 * @param {Lora[]} loras
 */
export const wordsOf = (loras) => loras.map(({ name, scale }) => `${name} ${shown(scale)}`).join(t("and"));

export class Loras {
  /** @type {Lora[]} */
  #chosen = load("loras", []);
  /** @type {LoraEntry[] | null} */
  #known = null; // not told yet
  #most = 4;
  #maxScale = 4;
  #able = true;
  /** @type {string | null} */
  #model = null;
  #box = $("#lora-add");
  #built = "";

  /**
   * `changed()` after every change of what is chosen.
   * @param {() => void} changed
   */
  constructor(changed) {
    this.changed = changed;
    closesByItself(this.#box);
    this.#box.addEventListener("toggle", () => this.#box.open && this.#opened());
    $("#lora-find").addEventListener("input", (event) => {
      event.stopPropagation(); // the form has nothing to do with it
      this.#list();
    });
    $("#lora-find").addEventListener("keydown", (event) => event.key === "Enter" && this.#takeFirst(event));
  }

  get all() {
    return this.#chosen;
  }

  /** As far as the model takes them. */
  get chosen() {
    return this.#able ? this.#chosen : [];
  }

  /** Those among them that are not there any more, or not for this key. */
  get missing() {
    return this.#known ? this.chosen.filter(({ name }) => !this.#entry(name)) : [];
  }

  /**
   * @param {boolean} able whether the model takes any
   * @param {string | null} model as requests say it
   */
  setModel(able, model) {
    this.#able = able;
    this.#model = model;
    this.ask();
  }

  /** Which there are now. */
  async ask() {
    const model = this.#model;
    const answer = this.#able ? await getLoras(model) : null;
    if (!answer || model !== this.#model) return;
    this.#known = answer.data;
    this.#most = answer.max_loras;
    this.#maxScale = answer.max_scale;
    this.render();
  }

  /** @param {Lora[]} loras */
  use(loras) {
    this.#chosen = loras.map(({ name, scale, sha256 }) => ({ name, scale, sha256 }));
    save("loras", this.#chosen);
  }

  render() {
    const { chosen } = this;
    const some = this.#able && Boolean(this.#known?.length);
    $("#loras").hidden = !some && !chosen.length;
    $("#lora-chips").hidden = !chosen.length;
    this.#box.hidden = !some || chosen.length >= this.#most;
    const key = JSON.stringify([t("loras"), this.#maxScale, chosen.map(({ name }) => [name, this.#problemOf(name)])]);
    if (key !== this.#built) $("#lora-chips").replaceChildren(...chosen.map((lora) => this.#chip(lora)));
    this.#built = key;
    chosen.forEach((lora, k) => this.#renderScale($("#lora-chips").children[k], lora));
    this.#list();
  }

  /** @param {string} name */
  #entry(name) {
    return this.#known?.find((entry) => entry.name === name);
  }

  /** @param {string} name */
  #problemOf(name) {
    if (!this.#known) return "";
    const entry = this.#entry(name);
    if (!entry) return t("loraGone");
    const digest = this.#chosen.find((lora) => lora.name === name)?.sha256;
    return digest && digest !== entry.sha256 ? t("loraChanged") : "";
  }

  #opened() {
    $("#lora-find").value = "";
    this.#list();
    this.ask(); // some may have been added since
    if (!$("#lora-find").hidden) $("#lora-find").focus();
  }

  /** What can still be added. */
  get #offered() {
    const words = $("#lora-find").value.trim().toLowerCase().split(/\s+/);
    const taken = this.#chosen.map(({ name }) => name);
    return (this.#known ?? []).filter(({ name }) => !taken.includes(name) && words.every((word) => name.includes(word)));
  }

  #list() {
    $("#lora-find").hidden = (this.#known?.length ?? 0) <= FEW;
    const names = this.#offered.map(({ name }) => name);
    const box = $("#lora-list");
    if (names.join() === [...box.children].map((row) => row.textContent).join()) return;
    box.replaceChildren(...names.map((name) => h("li", {}, this.#choice(name))));
  }

  /** @param {string} name */
  #choice(name) {
    return h("button", { type: "button", onclick: () => this.#add(name) }, name);
  }

  /** @param {KeyboardEvent} event */
  #takeFirst(event) {
    event.preventDefault(); // it would draw
    const [first] = this.#offered;
    if (first) this.#add(first.name);
  }

  /** @param {string} name */
  #add(name) {
    this.#box.open = false;
    this.use([...this.#chosen, { name, scale: 1, sha256: this.#entry(name)?.sha256 }]);
    this.changed();
    $("li:last-child input", $("#lora-chips")).focus();
  }

  /** @param {string} name */
  #remove(name) {
    const at = this.#chosen.findIndex((lora) => lora.name === name);
    this.use(this.#chosen.filter((lora) => lora.name !== name));
    this.changed();
    const next = $("#lora-chips").children[Math.min(at, this.#chosen.length - 1)]?.querySelector("button");
    (next ?? (this.#box.hidden ? $("#prompt") : $("summary", this.#box))).focus();
  }

  /** @param {Lora} lora */
  #chip({ name }) {
    const range = h("input", { type: "range", step: "0.05", "aria-label": t("loraStrength", { name }) });
    range.addEventListener("input", () => this.#scale(name, Number(range.value)));
    const label = t("loraRemove", { name });
    const gone = { type: "button", class: "tool-plain", "aria-label": label, title: label };
    const remove = h("button", { ...gone, onclick: () => this.#remove(name) }, icon("close"));
    const problem = this.#problemOf(name);
    const words = h("span", { class: "lora-name", title: name }, name);
    return h("li", {}, words, h("output"), remove, range, ...(problem ? [h("p", { class: "hint" }, problem)] : []));
  }

  /**
   * @param {Element} chip
   * @param {Lora} lora
   */
  #renderScale(chip, { scale }) {
    const range = /** @type {HTMLInputElement} */ (chip.querySelector("input"));
    range.min = String(scale < 0 ? -this.#maxScale : 0);
    range.max = String(scale > USUAL_SCALE ? this.#maxScale : USUAL_SCALE);
    range.value = String(scale);
    range.setAttribute("aria-valuetext", shown(scale));
    setText(/** @type {Element} */ (chip.querySelector("output")), shown(scale));
  }

  /**
   * @param {string} name
   * @param {number} scale
   */
  #scale(name, scale) {
    this.use(this.#chosen.map((lora) => (lora.name === name ? { ...lora, scale } : lora)));
  }
}
