/** Prompts that were drawn, newest first, to be taken up again. */

import { $, h } from "./dom.js";
import { load, save } from "./settings.js";

const MOST = 40;

export class History {
  /** @type {string[]} */
  #entries = load("history", []);
  #box = $("#history");

  /**
   * `take(prompt)` when one is chosen.
   * @param {(prompt: string) => void} take
   */
  constructor(take) {
    this.take = take;
    this.#box.addEventListener("toggle", () => this.#box.open && this.#show());
    document.addEventListener("click", (event) => {
      if (!this.#box.contains(/** @type {Node} */ (event.target))) this.#box.open = false;
    });
    this.#box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.#box.open = false;
      $("summary", this.#box).focus();
    });
  }

  /** @param {string} prompt */
  add(prompt) {
    this.#entries = [prompt, ...this.#entries.filter((other) => other !== prompt)].slice(0, MOST);
    save("history", this.#entries);
  }

  #show() {
    $("#history-empty").hidden = this.#entries.length > 0;
    $("#history-list").replaceChildren(...this.#entries.map((prompt) => this.#entry(prompt)));
  }

  /** @param {string} prompt */
  #entry(prompt) {
    const choose = () => {
      this.#box.open = false;
      this.take(prompt);
    };
    return h("li", {}, h("button", { type: "button", onclick: choose }, prompt));
  }
}
