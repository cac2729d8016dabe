/** Prompts that were drawn, newest first, to be taken up again. */

import { $, h } from "./dom.js";
import { closesByItself } from "./popover.js";
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
    closesByItself(this.#box);
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
