/** The models that draw here, and which of them draws next: nobody is asked where there is one. */

import { $, h, setText } from "./dom.js";
import { t } from "./i18n.js";
import { load, save } from "./settings.js";
import { toast } from "./toast.js";

/**
 * What people call it: the end of an id such as `authors/model`.
 * @param {string} id
 */
export const nameOf = (id) => id.split("/").pop() || id;

export class Models {
  /** @type {ModelEntry[]} */
  #all = []; // the cell's own first
  /** @type {string | null} */
  #wanted = load("model");

  /**
   * `changed(entry)` when another one is picked, or the same can do other things.
   * @param {(entry: ModelEntry) => void} changed
   */
  constructor(changed) {
    this.changed = changed;
    $("#model-pick").addEventListener("change", () => this.pick($("#model-pick").value));
  }

  get picked() {
    return this.named(this.#wanted) ?? this.#all[0] ?? null;
  }

  /** @param {string | null | undefined} id */
  named(id) {
    return this.#all.find((entry) => entry.id === id) ?? null;
  }

  /**
   * The one that drew `picture`, or where it is not here, the one that is picked.
   * @param {Pick<Recipe, "model">} picture
   */
  of({ model }) {
    return this.named(model) ?? this.picked;
  }

  /**
   * What requests say, so that `entry` draws them: null where there is no other.
   * @param {ModelEntry | null} entry
   */
  asked(entry = this.picked) {
    return this.#all.length > 1 && entry ? entry.id : null;
  }

  /**
   * That another one than `recipe` tells of draws; empty where it is the same.
   * @param {Pick<Recipe, "model">} recipe
   */
  missed({ model }) {
    const now = this.picked;
    return model && now && !this.named(model) ? t("modelMissed", { model: nameOf(model), now: nameOf(now.id) }) : "";
  }

  /**
   * As `/v1/models` tells them.
   * @param {ModelEntry[]} entries
   */
  take(entries) {
    const own = entries.filter(({ alias_of }) => !alias_of);
    if (!own.length || JSON.stringify(own) === JSON.stringify(this.#all)) return;
    const before = JSON.stringify(this.picked);
    this.#all = own;
    const missed = this.missed({ model: this.#wanted ?? undefined });
    if (missed) {
      toast(missed);
      this.#want(null);
    }
    this.render();
    if (this.picked && JSON.stringify(this.picked) !== before) this.changed(this.picked);
  }

  /** @param {string | null | undefined} id nothing changes where it is not here */
  pick(id) {
    const entry = this.named(id);
    if (!entry || entry === this.picked) return;
    this.#want(entry.id);
    this.render();
    this.changed(entry);
  }

  render() {
    const { picked } = this;
    setText($("#model"), picked ? nameOf(picked.id) : "");
    $("#models").hidden = this.#all.length < 2;
    const select = $("#model-pick");
    const ids = this.#all.map(({ id }) => id);
    if (ids.join() !== [...select.options].map(({ value }) => value).join()) {
      select.replaceChildren(...ids.map((id) => h("option", { value: id }, nameOf(id))));
    }
    if (picked) select.value = picked.id;
  }

  /** @param {string | null} id */
  #want(id) {
    this.#wanted = id;
    save("model", id);
  }
}
