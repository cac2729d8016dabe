/** One picture over the whole window: arrow keys and swipes walk, Escape and Back close. */

import { $, h, icon, setText, stepOf } from "./dom.js";
import { dragOriginal } from "./drag.js";
import { t } from "./i18n.js";
import { Stored } from "./stored.js";
import { placeToasts } from "./toast.js";

const SWIPE_PX = 50;
/** @type {("favourite" | "download" | "again" | "copyPrompt" | "remove")[]} */
const ACTIONS = ["favourite", "download", "again", "copyPrompt", "remove"];
const KEYS = ["f", "d", "r", "c", "delete"]; // of the actions, in their order

export class Viewer {
  #dialog = $("#viewer");
  /** @type {Gallery | null} */
  #gallery = null;
  /** @type {Drawn | null} */
  #item = null;
  #stored = new Stored($("#viewer-image"));
  #leaving = false; // it goes back in the history by itself

  /** @param {Pick<Actions, typeof ACTIONS[number]>} actions */
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
    const { prompt, seed, width, height, steps, format, negative_prompt, favourite } = item.picture;
    $("#viewer-image").alt = prompt;
    $("#viewer-image").style.setProperty("--ratio", String(width / height));
    this.#stored.show(this.#gallery?.card(item.id)?.url ?? item.picture.url);
    const facts = [`${width} × ${height}`, t("meta", { seed }), steps ? t("metaSteps", { n: steps }) : ""];
    if (negative_prompt) facts.push(t("metaWithout", { negative: negative_prompt }));
    setText($("#viewer-prompt"), prompt);
    setText($("#viewer-meta"), [...facts, format.toUpperCase()].filter(Boolean).join("  ·  "));
    const items = this.#gallery?.pictures ?? [];
    const more = this.#gallery?.source?.hasMore ? "+" : ""; // on the server, and not shown yet
    setText($("#viewer-place"), `${items.indexOf(item) + 1} / ${items.length}${more}`);
    const actions = $("#viewer-actions");
    const focused = [...actions.children].indexOf(/** @type {Element} */ (document.activeElement));
    const star = this.#action("favourite", "star");
    star.classList.add("star");
    star.setAttribute("aria-pressed", String(Boolean(favourite)));
    actions.replaceChildren(
      star,
      this.#action("download", "download"),
      this.#action("again", "again", () => this.#dialog.close()),
      this.#action("copyPrompt", "copy"),
      this.#action("remove", "trash", () => this.#leave()),
    );
    this.#button(focused)?.focus();
    $("#viewer-prev").disabled = !this.#neighbour(-1);
    $("#viewer-next").disabled = !this.#neighbour(+1) && !more;
    // A button that is disabled gives the focus away, and with it the keys.
    const lost = !document.activeElement?.matches("#viewer :enabled");
    if (lost && this.#dialog.open) $("#viewer-close").focus();
  }

  /**
   * @param {typeof ACTIONS[number]} name
   * @param {string} iconName
   */
  #action(name, iconName, before = () => {}) {
    const run = () => {
      const item = this.#item;
      if (!item) return;
      before();
      this.actions[name](item);
    };
    const key = KEYS[ACTIONS.indexOf(name)];
    const shortcut = { "aria-keyshortcuts": key, title: `${t(name)} (${key.toUpperCase()})` };
    const words = h("span", {}, t(name));
    return h("button", { type: "button", class: `ghost ${name}`, onclick: run, ...shortcut }, icon(iconName), words);
  }

  /** @param {number} place */
  #button(place) {
    return /** @type {HTMLElement | undefined} */ ($("#viewer-actions").children[place]);
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
    const chosen = this.#button(KEYS.indexOf(event.key.toLowerCase()));
    if (!chosen?.checkVisibility()) return;
    event.preventDefault(); // the key may move the focus to the form, and would be typed there
    if (!event.repeat) chosen.click();
  }

  // `again` has moved the focus to the form already.
  #closed() {
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
