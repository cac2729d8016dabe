/** The pool's health in the header, and the models: asked for only while the page is seen. */

import { getCell, getModels } from "./api.js";
import { $, h, setText } from "./dom.js";
import { named, t } from "./i18n.js";

const POLL_MS = 3000;
const MODELS_MS = 60_000; // operators add some and take some away

export class Health {
  /** @type {CellState | null | undefined} */
  #cell; // undefined: not asked yet; null: no answer
  #modelsAt = -Infinity; // when they were last told
  /** @type {Timer} */
  #timer;

  /**
   * `onModels(entries)` now and then, with what /v1/models tells. `mayAsk()`: whether requests are
   * answered; one that came too early might be refused after somebody signed in, and would sign them out.
   * @param {(entries: ModelEntry[]) => void} onModels
   * @param {() => boolean} mayAsk
   */
  constructor(onModels, mayAsk) {
    this.onModels = onModels;
    this.mayAsk = mayAsk;
    document.addEventListener("visibilitychange", () => this.#schedule(0));
    document.addEventListener("click", closeOutside);
    document.addEventListener("keydown", closeByKey);
  }

  /** Ask now, and then every few seconds. */
  start() {
    this.#schedule(0);
  }

  /** @param {number} delay_ms */
  #schedule(delay_ms) {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#poll(), delay_ms);
  }

  async #poll() {
    this.#cell = await getCell();
    this.render();
    const due = performance.now() - this.#modelsAt > MODELS_MS;
    if (due && this.mayAsk() && this.#cell?.pool?.open) await this.askModels();
    this.#schedule(POLL_MS);
  }

  async askModels() {
    const entries = (await getModels())?.data;
    if (!entries?.length) return; // the next poll asks again
    this.#modelsAt = performance.now();
    this.onModels(entries);
  }

  render() {
    const pool = this.#cell?.pool;
    setText($("#health-text"), this.#text(pool));
    setText($("#health-short"), pool ? `${pool.open} / ${pool.of}` : "–");
    $("#health").dataset.level = level(this.#cell, pool);
    $("#health-workers").replaceChildren(...(this.#cell?.workers ?? []).map(workerRow));
  }

  /** @param {CellState["pool"] | undefined} pool */
  #text(pool) {
    if (this.#cell === undefined) return t("connecting");
    if (!pool) return t("offline");
    return pool.open ? t("workers", pool) : t("noWorkers");
  }
}

/**
 * @param {CellState | null | undefined} cell
 * @param {CellState["pool"] | undefined} pool
 */
function level(cell, pool) {
  if (cell === undefined) return "unknown";
  if (!pool?.open) return "down";
  return pool.open < pool.of ? "partial" : "good";
}

/** @param {Pick<WorkerState, "name" | "state" | "device">} worker */
function workerRow({ name, state, device }) {
  const words = named("state_", state);
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const row = h("li", { "data-state": state }, dot, h("b", {}, name), h("span", {}, words));
  if (device) row.append(h("span", { class: "device" }, device));
  return row;
}

/** @param {MouseEvent} event */
function closeOutside(event) {
  if (!(event.target instanceof Element && event.target.closest("#health"))) $("#health").open = false;
}

/** @param {KeyboardEvent} event */
function closeByKey(event) {
  if (event.key === "Escape") $("#health").open = false;
}
