/** One picture over the whole window: arrow keys and swipes walk, Escape and Back close. */

import { Compare } from "./compare.js";
import { $, h, icon, setText, stepOf } from "./dom.js";
import { dragOriginal } from "./drag.js";
import { t } from "./i18n.js";
import { wordsOf } from "./loras.js";
import { nameOf } from "./models.js";
import { Stored } from "./stored.js";
import { placeToasts } from "./toast.js";

const SWIPE_PX = 50;
/** @typedef {"favourite" | "download" | "alike" | "drawFrom" | "upscale" | "again" | "copyPrompt" | "remove"} Name */
/** Drawn in the page behind. */
const FURTHER = /** @type {const} */ ({ alike: "alike", drawFrom: "brush", upscale: "larger" });
/** @type {Record<Name | "compare", string>} */
const KEYS = {
  favourite: "f", download: "d", compare: "b", alike: "m", drawFrom: "e", upscale: "u", again: "r", copyPrompt: "c", remove: "delete",
};

export class Viewer {
  #dialog = $("#viewer");
  /** @type {Gallery | null} */
  #gallery = null;
  /** @type {Drawn | null} */
  #item = null;
  #stored = new Stored($("#viewer-image"));
  #compare = new Compare();
  #leaving = false; // it goes back in the history by itself

  /** @param {Pick<Actions, Name | "can">} actions */
  constructor(actions) {
    this.actions = actions;
    $(".viewer-picture").append(this.#stored.words);
    $("#viewer-prev").addEventListener("click", () => this.#walk(-1));
    $("#viewer-next").addEventListener("click", () => this.#walk(+1));
    $("#viewer-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#dialog.addEventListener("close", () => this.#closed());
    this.#bindSwipe($(".viewer-picture"));
    $("#viewer-image").addEventListener("dragstart", (event) => this.#item && dragOriginal(event, this.#item.picture));
    addEventListener("popstate", () => this.#popped());
  }

  /**
   * `item` of `gallery`, through whose pictures the arrows walk.
   * @param {Drawn} item
   * @param {Gallery} gallery
   */
  open(item, gallery) {
    this.#gallery = gallery;
    this.#show(item);
    if (this.#dialog.open) return $("#viewer-close").focus(); // or the keys of the viewer go nowhere
    this.#dialog.showModal();
    this.#enter();
    placeToasts();
  }

  // Of the history: whoever goes back leaves the picture, not the page.
  #enter() {
    history.scrollRestoration = "manual"; // the page behind stays where it is
    history.pushState({ viewer: true }, "");
  }

  #popped() {
    const byItself = this.#leaving;
    this.#leaving = false;
    history.scrollRestoration = "auto";
    if (!this.#dialog.open) return;
    if (byItself) this.#enter(); // opened again before the browser had gone back
    else this.#dialog.close();
  }

  get isOpen() {
    return this.#dialog.open;
  }

  /** Words anew, or a picture more or less beside the one on view. */
  render() {
    this.#stored.render();
    if (!this.#dialog.open || !this.#item) return;
    // Its grid may have been filled anew meanwhile, or show something else.
    const item = this.#gallery?.itemOf(this.#item.picture.id);
    if (item) this.#show(item);
    else this.#dialog.close();
  }

  /** @param {Drawn} item */
  #show(item) {
    this.#item = item;
    const { prompt, seed, width, height, steps, format, negative_prompt, favourite, lora, model } = item.picture;
    $("#viewer-image").alt = prompt;
    $("#viewer-image").style.setProperty("--ratio", String(width / height));
    this.#stored.show(this.#gallery?.card(item.id)?.url ?? item.picture.url);
    const facts = [`${width} × ${height}`, t("meta", { seed }), steps ? t("metaSteps", { n: steps }) : ""];
    if (lora?.length) facts.push(t("metaLoras", { n: lora.length, names: wordsOf(lora) }));
    if (negative_prompt) facts.push(t("metaWithout", { negative: negative_prompt }));
    setText($("#viewer-prompt"), prompt);
    setText($("#viewer-meta"), [...facts, model && nameOf(model), format.toUpperCase()].filter(Boolean).join("  ·  "));
    const items = this.#gallery?.pictures ?? [];
    const more = this.#gallery?.source?.hasMore ? "+" : ""; // on the server, and not shown yet
    setText($("#viewer-place"), `${items.indexOf(item) + 1} / ${items.length}${more}`);
    this.#compare.keepFor(item.picture);
    const actions = $("#viewer-actions");
    const focused = actions.contains(document.activeElement) && document.activeElement?.getAttribute("data-action");
    const star = this.#action("favourite", "star");
    star.classList.add("star");
    star.setAttribute("aria-pressed", String(Boolean(favourite)));
    actions.replaceChildren(
      star,
      this.#action("download", "download"),
      ...(Compare.can(item.picture) ? [this.#comparing(item)] : []),
      ...this.#further(item),
      this.#action("again", "again", () => this.#dialog.close()),
      this.#action("copyPrompt", "copy"),
      this.#action("remove", "trash", () => this.#leave()),
    );
    if (focused) this.#button(focused)?.focus();
    $("#viewer-prev").disabled = !this.#neighbour(-1);
    $("#viewer-next").disabled = !this.#neighbour(+1) && !more;
    // A button that is disabled gives the focus away, and with it the keys.
    const lost = !document.activeElement?.matches("#viewer :enabled");
    if (lost && this.#dialog.open) $("#viewer-close").focus();
  }

  /**
   * @param {Name} name
   * @param {string} iconName
   */
  #action(name, iconName, before = () => {}) {
    return this.#tool(name, iconName, () => {
      const item = this.#item;
      if (!item) return;
      before();
      this.actions[name](item);
    });
  }

  /** @param {Drawn} item */
  #further({ picture }) {
    const names = /** @type {(keyof typeof FURTHER)[]} */ (Object.keys(FURTHER));
    return names
      .filter((name) => this.actions.can(name, picture))
      .map((name) => this.#action(name, FURTHER[name], () => this.#dialog.close()));
  }

  /** @param {Drawn} item */
  #comparing({ picture }) {
    const button = this.#tool("compare", "compare", async () => {
      await this.#compare.toggle(picture);
      button.setAttribute("aria-pressed", String(this.#compare.shown));
    });
    button.setAttribute("aria-pressed", String(this.#compare.shown));
    return button;
  }

  /**
   * @param {keyof typeof KEYS} name
   * @param {string} iconName
   * @param {() => void} run
   */
  #tool(name, iconName, run) {
    const key = KEYS[name];
    const shortcut = { "aria-keyshortcuts": key, title: `${t(name)} (${key.toUpperCase()})` };
    const words = h("span", {}, t(name));
    const named = { class: `ghost ${name}`, "data-action": name };
    return h("button", { type: "button", ...named, onclick: run, ...shortcut }, icon(iconName), words);
  }

  /** @param {string} name */
  #button(name) {
    return /** @type {HTMLElement | null} */ ($("#viewer-actions").querySelector(`[data-action=${name}]`));
  }

  /**
   * @param {number} by
   * @returns {Drawn | undefined}
   */
  #neighbour(by) {
    const items = this.#gallery?.pictures ?? [];
    return items[items.indexOf(/** @type {Drawn} */ (this.#item)) + by];
  }

  /** @param {number} by */
  async #walk(by) {
    const source = this.#gallery?.source;
    const from = this.#item;
    if (by > 0 && !this.#neighbour(by) && source?.hasMore) await source.more();
    const item = this.#neighbour(by);
    if (item && from === this.#item) this.#show(item);
  }

  // The picture on view goes away: show its neighbour, or nothing.
  #leave() {
    const item = this.#neighbour(+1) ?? this.#neighbour(-1);
    if (item) this.#show(item);
    else this.#dialog.close();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = stepOf(event.key);
    if (by) return this.#walk(by);
    const [name] = Object.entries(KEYS).find(([, key]) => key === event.key.toLowerCase()) ?? [];
    const chosen = name ? this.#button(name) : null;
    if (!chosen?.checkVisibility()) return;
    event.preventDefault(); // the key may move the focus to the form, and would be typed there
    if (!event.repeat) chosen.click();
  }

  // `again` has moved the focus to the form already.
  #closed() {
    this.#compare.hide();
    if (history.state?.viewer) {
      this.#leaving = true;
      history.back();
    }
    if (!this.#item || $("#form").contains(document.activeElement)) return;
    this.#gallery?.card(this.#item.id)?.opener?.focus();
  }

  /** @param {HTMLElement} surface */
  #bindSwipe(surface) {
    /** @type {number | null} */
    let start = null;
    surface.addEventListener("pointerdown", (event) => (start = event.clientX));
    surface.addEventListener("pointerup", (event) => {
      const moved = event.clientX - (start ?? event.clientX);
      if (event.pointerType === "touch" && Math.abs(moved) > SWIPE_PX) this.#walk(moved < 0 ? 1 : -1);
      start = null;
    });
  }
}
