/** A grid of cards, newest batch first. */

import { Card } from "./card.js";
import { stepOf } from "./dom.js";
import { dragOriginal } from "./drag.js";

export class Gallery {
  /** @type {Map<string, Card>} */
  #cards = new Map(); // by item id, in no order: the grid's is the order
  /** @type {Map<string, string>} */
  #shown = new Map(); // the same, by picture id
  #grid;
  /** @type {Set<string>} */
  #dirty = new Set();

  /**
   * @param {HTMLElement} grid
   * @param {Actions} actions
   */
  constructor(grid, actions) {
    this.#grid = grid;
    this.actions = actions;
    /** @type {Source | null} */
    this.source = null; // of further pictures
    grid.addEventListener("keydown", (event) => this.#walk(event));
    grid.addEventListener("dragstart", (event) => this.#drag(event));
    setInterval(() => this.#tick(), 1000);
  }

  /** Finished pictures in the order of the grid. */
  get pictures() {
    return /** @type {Drawn[]} */ (this.#items.filter((item) => item.picture));
  }

  get size() {
    return this.#cards.size;
  }

  /** @param {string} id */
  card(id) {
    return this.#cards.get(id);
  }

  /**
   * The item of the picture called `id`.
   * @param {string} id
   */
  itemOf(id) {
    const card = this.#cards.get(this.#shown.get(id) ?? "");
    return /** @type {Drawn | undefined} */ (card?.item);
  }

  /**
   * Put items, already in order, in front of all others.
   * @param {Item[]} items
   */
  prepend(items) {
    this.#grid.prepend(...items.map((item) => this.#make(item)));
  }

  /** @param {Item[]} items */
  append(items) {
    this.#grid.append(...items.map((item) => this.#make(item)));
  }

  /**
   * Put one item where its batch and order belong. A picture that is here already is brought up to date.
   * @param {Item} item
   */
  insert(item) {
    const known = item.picture && this.itemOf(item.picture.id);
    if (known) return this.#update(known, item.picture);
    this.#grid.insertBefore(this.#make(item), this.#after(item));
  }

  /**
   * `item` has become `picture`.
   * @param {Item} item
   * @param {Picture} picture
   */
  finish(item, picture) {
    const double = this.itemOf(picture.id);
    if (double && double !== item) this.remove(double.id);
    item.picture = picture;
    item.finishedAt = performance.now();
    this.#shown.set(picture.id, item.id);
  }

  /** @param {string} id */
  remove(id) {
    const card = this.#cards.get(id);
    card?.remove();
    this.#cards.delete(id);
    if (card?.item.picture) this.#shown.delete(card.item.picture.id);
  }

  /**
   * What is still being drawn stays, and what was finished here after `since`.
   * @param {number} since
   */
  clear(since) {
    for (const [id, { item }] of this.#cards) if (item.picture && !((item.finishedAt ?? 0) > since)) this.remove(id);
  }

  empty() {
    for (const id of [...this.#cards.keys()]) this.remove(id);
  }

  /**
   * Show the item's present state with the next frame.
   * @param {string} id
   */
  refresh(id) {
    if (!this.#dirty.size) requestAnimationFrame(() => this.#paint());
    this.#dirty.add(id);
  }

  /** All words anew. */
  render() {
    for (const card of this.#cards.values()) card.rebuild();
  }

  get #items() {
    return [...this.#grid.children].map((element) => this.#itemAt(element));
  }

  /** @param {Element} element */
  #itemAt(element) {
    const card = this.#cards.get(element.getAttribute("data-id") ?? "");
    return /** @type {Card} */ (card).item; // nothing else stands in the grid
  }

  /**
   * @param {Drawn} item
   * @param {Picture} picture
   */
  #update(item, { favourite }) {
    if (item.picture.favourite === favourite || item.marking) return;
    item.picture.favourite = favourite;
    this.refresh(item.id);
  }

  /** @param {Item} item */
  #make(item) {
    const card = new Card(item, this.actions);
    card.element.dataset.id = item.id;
    this.#cards.set(item.id, card);
    if (item.picture) this.#shown.set(item.picture.id, item.id);
    return card.element;
  }

  /** @param {Item} item */
  #after(item) {
    /** @param {Element} element */
    const later = (element) => {
      const other = this.#itemAt(element);
      return other.batchAt < item.batchAt || (other.batchAt === item.batchAt && other.order > item.order);
    };
    const last = this.#grid.lastElementChild;
    if (!last || !later(last)) return null; // pages come in order
    return [...this.#grid.children].find(later) ?? null;
  }

  #paint() {
    for (const id of this.#dirty) this.#cards.get(id)?.update();
    this.#dirty.clear();
  }

  // Waits count down by themselves between two events.
  #tick() {
    for (const [id, { item }] of this.#cards) if (!item.picture && item.shot.until) this.refresh(id);
  }

  /** @param {DragEvent} event */
  #drag(event) {
    const element = /** @type {Element} */ (event.target).closest(".card");
    const picture = element && this.#itemAt(element).picture;
    if (picture) dragOriginal(event, picture);
  }

  /** @param {KeyboardEvent} event */
  #walk(event) {
    const by = stepOf(event.key);
    const opener = /** @type {HTMLElement} */ (event.target);
    if (!by || !opener.matches(".open")) return;
    const openers = /** @type {HTMLElement[]} */ ([...this.#grid.querySelectorAll(".open")]);
    openers[openers.indexOf(opener) + by]?.focus();
  }
}
