/** The grid of cards, newest batch first. */

import { Card } from "./card.js";
import { $ } from "./dom.js";

export class Gallery {
  #cards = new Map(); // by item id, in no order: the grid's is the order
  #grid = $("#grid");
  #dirty = new Set();

  constructor(actions) {
    this.actions = actions;
    this.#grid.addEventListener("keydown", (event) => this.#walk(event));
    setInterval(() => this.#tick(), 1000);
  }

  /** Finished pictures in the order of the grid. */
  get pictures() {
    return [...this.#grid.children]
      .map((element) => this.#cards.get(element.dataset.id).item)
      .filter((item) => item.picture);
  }

  get size() {
    return this.#cards.size;
  }

  card(id) {
    return this.#cards.get(id);
  }

  /** Put items, already in order, in front of all others. */
  prepend(items) {
    this.#grid.prepend(...items.map((item) => this.#make(item)));
  }

  /** Put one item where its batch and order belong. */
  insert(item) {
    const later = [...this.#grid.children].find((element) => {
      const other = this.#cards.get(element.dataset.id).item;
      return other.batchAt < item.batchAt || (other.batchAt === item.batchAt && other.order > item.order);
    });
    this.#grid.insertBefore(this.#make(item), later ?? null);
  }

  remove(id) {
    this.#cards.get(id)?.remove();
    this.#cards.delete(id);
  }

  /** Show the item's present state with the next frame. */
  refresh(id) {
    if (!this.#dirty.size) requestAnimationFrame(() => this.#paint());
    this.#dirty.add(id);
  }

  /** All words anew. */
  render() {
    for (const card of this.#cards.values()) card.rebuild();
  }

  #make(item) {
    const card = new Card(item, this.actions);
    card.element.dataset.id = item.id;
    this.#cards.set(item.id, card);
    return card.element;
  }

  #paint() {
    for (const id of this.#dirty) this.#cards.get(id)?.update();
    this.#dirty.clear();
  }

  // Waits count down by themselves between two events.
  #tick() {
    for (const [id, { item }] of this.#cards) if (!item.picture && item.shot.until) this.refresh(id);
  }

  #walk(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !event.target.matches(".open")) return;
    const openers = [...this.#grid.querySelectorAll(".open")];
    openers[openers.indexOf(event.target) + by]?.focus();
  }
}
