/** The server's pictures, page by page, as far down as somebody has looked. */

import { ApiError, deleteImage, listImages, markImage } from "./api.js";
import { $, whenNear } from "./dom.js";

const PAGE = 60;
const FRESH = 30; // looked at again and again, for what was drawn elsewhere
const POLL_MS = 5000;
const AGAIN_MS = 1500; // a picture is in the gallery a moment after it was drawn

export class Library {
  #gallery;
  /** @type {Filter} */
  #filter = { q: "", favourite: null };
  /** @type {string | null} */
  #last = null; // id of the last picture of the last page
  #more = false;
  /** @type {Promise<Page<StoredPicture> | null> | null} */
  #busy = null;
  #started = false;
  /** @type {Set<string>} */
  #gone = new Set();

  /**
   * Fills `gallery`; `changed()` after each page.
   * @param {Gallery} gallery
   * @param {() => void} changed
   */
  constructor(gallery, changed) {
    this.#gallery = gallery;
    this.changed = changed;
    /** @type {boolean | null} */
    this.reachable = null; // not known yet
    gallery.source = this;
    const foot = $("#more-pictures");
    $("button", foot).addEventListener("click", () => this.more());
    whenNear(foot, () => this.more());
    setInterval(() => document.hidden || this.refresh(), POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  start() {
    this.#started = true;
    return this.show();
  }

  stop() {
    this.#started = false;
  }

  get filtered() {
    return Boolean(this.#filter.q || this.#filter.favourite);
  }

  get hasMore() {
    return this.#more;
  }

  /** Show what fits `filter`: {q, favourite}, from the newest on. */
  async show(filter = this.#filter) {
    this.#filter = filter;
    // The list knows nothing of later pictures, and of the last ones perhaps not yet.
    const since = this.filtered ? Infinity : performance.now() - AGAIN_MS;
    const turn = this.#page(null);
    this.#busy = turn;
    const page = await turn;
    if (turn !== this.#busy) return; // another filter was chosen meanwhile
    if (page) {
      this.#gallery.clear(since);
      this.#take(page);
    }
    this.#busy = null;
    this.changed();
  }

  /** The next page; whether it came. */
  async more() {
    if (this.#busy || !this.#more) return false;
    this.#busy = this.#page(this.#last);
    const page = await this.#busy;
    this.#busy = null;
    if (page) this.#take(page);
    this.changed();
    return page !== null;
  }

  /** What is new, from whatever browser. */
  async refresh() {
    if (!this.#started || this.#busy || this.filtered) return;
    const page = await listImages({ limit: FRESH }).catch(() => null);
    if (this.reachable === false && page) return this.show(); // the first page never came
    if (!page || this.#busy || this.filtered) return;
    page.data.forEach((picture) => this.#insert(picture));
    this.changed();
  }

  /**
   * @param {Picture} picture
   * @param {boolean} favourite
   */
  async mark(picture, favourite) {
    await this.#patiently(() => markImage(picture.id, favourite));
  }

  /**
   * Not shown again; `delete` makes it true, `restore` takes it back.
   * @param {string} id
   */
  forget(id) {
    this.#gone.add(id);
  }

  /** @param {string} id */
  restore(id) {
    this.#gone.delete(id);
  }

  /**
   * Throws where the picture stays.
   * @param {string} id
   */
  async delete(id, leaving = false) {
    try {
      await this.#patiently(() => deleteImage(id, leaving));
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return; // by somebody else
      this.restore(id);
      throw error;
    }
  }

  /** @param {() => Promise<unknown>} work */
  async #patiently(work) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      return work();
    }
  }

  /** @param {string | null} after */
  async #page(after) {
    const { q, favourite } = this.#filter;
    const page = await listImages({ q, favourite, after, limit: PAGE }).catch(() => null);
    this.reachable = page !== null;
    return page;
  }

  /** @param {Page<StoredPicture>} page */
  #take(page) {
    page.data.forEach((picture) => this.#insert(picture));
    this.#last = page.data.at(-1)?.id ?? this.#last;
    this.#more = page.has_more;
  }

  /** @param {StoredPicture} picture */
  #insert(picture) {
    if (this.#gone.has(picture.id)) return;
    const order = Number(picture.id.match(/-(\d+)$/)?.[1] ?? 0);
    this.#gallery.insert({ id: picture.id, batchAt: picture.created_at * 1000, order, shot: null, picture });
  }
}
