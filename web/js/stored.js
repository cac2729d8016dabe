/** Pictures of the server's gallery, of which a file may be gone, or which nobody can send just now. */

import { isMissing } from "./api.js";
import { h, icon, setText } from "./dom.js";
import { t } from "./i18n.js";

const AGAIN_MS = [1000, 4000, 15_000, 60_000];

export class Stored {
  #image;
  #tries = 0;
  #title = h("span");
  #detail = h("p", { class: "detail" });
  /** Belongs beside the image: seen when there is nothing else to see. */
  words = h("div", { class: "status gone", hidden: true }, h("p", { class: "title" }, icon("alert"), this.#title), this.#detail);

  /** @param {HTMLImageElement} image */
  constructor(image) {
    this.#image = image;
    image.addEventListener("load", () => this.#turn("there"));
    image.addEventListener("error", () => this.#failed(image.src));
  }

  /** The words in the language of now. */
  render() {
    setText(this.#title, this.words.hidden ? "" : t("gone"));
    setText(this.#detail, this.words.hidden ? "" : t("goneText"));
  }

  /** @param {string} url */
  show(url) {
    if (this.#image.getAttribute("src") === url) return;
    this.#tries = 0;
    this.#turn("there");
    this.#image.src = url;
  }

  /**
   * `state`: there, away or gone. The image keeps its place, or a lazy one would never be tried again.
   * @param {"there" | "away" | "gone"} state
   */
  #turn(state) {
    this.#image.classList.toggle("unseen", state !== "there");
    this.words.hidden = state !== "gone";
    this.render();
  }

  /** @param {string} src */
  async #failed(src) {
    this.#turn("away");
    const gone = await isMissing(src);
    if (this.#image.src !== src) return; // shows another one by now
    if (gone) this.#turn("gone");
    else if (this.#tries < AGAIN_MS.length) setTimeout(() => this.#again(src), AGAIN_MS[this.#tries++]);
  }

  /** @param {string} src */
  #again(src) {
    if (this.#image.src === src) this.#image.src = src;
  }
}
