/** A grid of cards, newest batch first. */

import { Card } from "./card.js";

export class Gallery {
  #cards = new Map(); // by item id, in no order: the grid's is the order
  #shown = new Map(); // the same, by picture id
  #grid;
  #dirty = new Set();

  constructor(grid, actions) {
    this.#grid = grid;
    this.actions = actions;
    grid.addEventListener("keydown", (event) => this.#walk(event));
    setInterval(() => this.#tick(), 1000);
  }

  /** Finished pictures in the order of the grid. */
  get pictures() {
    return [...this.#grid.children].map((element) => this.#itemOf(element)).filter((item) => item.picture);
  }

  get size() {
    return this.#cards.size;
  }

  card(id) {
    return this.#cards.get(id);
  }

  /** The item of the picture called `id`. */
  itemOf(id) {
    return this.#cards.get(this.#shown.get(id))?.item;
  }

  /** Put items, already in order, in front of all others. */
  prepend(items) {
    this.#grid.prepend(...items.map((item) => this.#make(item)));
  }

  append(items) {
    this.#grid.append(...items.map((item) => this.#make(item)));
  }

  /** Put one item where its batch and order belong. A picture that is here already is brought up to date. */
  insert(item) {
    const known = item.picture && this.itemOf(item.picture.id);
    if (known) return this.#update(known, item.picture);
    this.#grid.insertBefore(this.#make(item), this.#after(item));
  }

  /** `item` has become `picture`. */
  finish(item, picture) {
    const double = this.itemOf(picture.id);
    if (double && double !== item) this.remove(double.id);
    item.picture = picture;
    item.finishedAt = performance.now();
    this.#shown.set(picture.id, item.id);
  }

  remove(id) {
    const card = this.#cards.get(id);
    card?.remove();
    this.#cards.delete(id);
    if (card?.item.picture) this.#shown.delete(card.item.picture.id);
  }

  /** What is still being drawn stays, and what was finished here after `since`. */
  clear(since) {
    for (const [id, { item }] of this.#cards) if (item.picture && !(item.finishedAt > since)) this.remove(id);
  }

  empty() {
    for (const id of [...this.#cards.keys()]) this.remove(id);
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

  #itemOf(element) {
    return this.#cards.get(element.dataset.id).item;
  }

  #update(item, { favourite }) {
    if (item.picture.favourite === favourite || item.marking) return;
    item.picture.favourite = favourite;
    this.refresh(item.id);
  }

  #make(item) {
    const card = new Card(item, this.actions);
    card.element.dataset.id = item.id;
    this.#cards.set(item.id, card);
    if (item.picture) this.#shown.set(item.picture.id, item.id);
    return card.element;
  }

  #after(item) {
    const later = (element) => {
      const other = this.#itemOf(element);
      return other.batchAt < item.batchAt || (other.batchAt === item.batchAt && other.order > item.order);
    };
    const last = this.#grid.lastElementChild;
    if (!last || !later(last)) return null; // pages come in order
    return [...this.#grid.children].find(later);
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
