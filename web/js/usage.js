/** What was drawn, by day, key or model: a chart to look at and a table to read. */

import { getUsage } from "./api.js";
import { $, h, setText } from "./dom.js";
import { t } from "./i18n.js";

const DAYS = 30;
const REFRESH_MS = 5000;
/** @type {UsageColumn[]} */
const COLUMNS = ["requests", "images", "megapixel_steps", "gpu_seconds", "queue_seconds", "refusals", "failures"];

/** @type {Record<UsageBy, Words>} */
const BY = { day: "byDay", key: "byKey", model: "byModel" };

/** @param {number} ms */
const dayOf = (ms) => new Date(ms).toISOString().slice(0, 10);

export class Usage {
  /** @type {UsageRow[]} */
  #rows = [];
  /** @type {UsageBy} */
  #by = "day";

  constructor() {
    $("#usage-by").addEventListener("change", () => {
      this.#by = /** @type {UsageBy} */ ($("#usage-by").value);
      this.load();
    });
    setInterval(() => this.#seen() && this.load(), REFRESH_MS);
  }

  #seen() {
    return !document.hidden && !$("#view-usage").hidden;
  }

  /** Show the tab where the cell counts. */
  async start() {
    const answer = await getUsage("day", dayOf(Date.now())).catch(() => null);
    $("#usage-tab").hidden = !answer;
  }

  async load() {
    const by = this.#by;
    const answer = await getUsage(by, dayOf(Date.now() - (DAYS - 1) * 86_400_000)).catch(() => null);
    if (!answer || by !== this.#by) return;
    this.#rows = by === "day" ? everyDay(answer.data) : answer.data;
    this.render();
  }

  render() {
    const by = this.#by;
    const rows = this.#rows;
    const most = Math.max(1, ...rows.map(({ images }) => images ?? 0));
    $("#chart").dataset.by = by;
    $("#chart").replaceChildren(...rows.map((row) => this.#bar(row, most)));
    const head = [t(BY[by]), ...COLUMNS.map((name) => t(`usage_${name}`))];
    /** @param {UsageRow} row */
    const cells = (row) => COLUMNS.map((name) => h("td", {}, numberOf(row[name])));
    const shown = by === "day" ? rows.filter(({ requests, images }) => requests || images).reverse() : rows;
    $("#usage-table").replaceChildren(
      h("thead", {}, h("tr", {}, ...head.map((word) => h("th", { scope: "col" }, word)))),
      h("tbody", {}, ...shown.map((row) => h("tr", {}, h("th", { scope: "row" }, String(row[by] ?? "–")), ...cells(row)))),
    );
  }

  /**
   * @param {UsageRow} row
   * @param {number} most
   */
  #bar(row, most) {
    const name = String(row[this.#by] ?? "–");
    const fill = h("span", { class: "fill" });
    fill.style.setProperty("--part", String((row.images ?? 0) / most));
    const value = h("span", { class: "value" });
    setText(value, row.images ? numberOf(row.images) : "");
    const label = this.#by === "day" ? name.slice(5) : name;
    return h("div", { class: "column", title: `${name}: ${numberOf(row.images)}` }, value, fill, h("span", { class: "label" }, label));
  }
}

/** @param {number | undefined} value */
const numberOf = (value) => (value ?? 0).toLocaleString(document.documentElement.lang, { maximumFractionDigits: 1 });

// A day on which nothing was drawn has no row, but its place in the chart.
/**
 * @param {UsageRow[]} rows
 * @returns {UsageRow[]}
 */
function everyDay(rows) {
  const found = new Map(rows.map((row) => [row.day, row]));
  return Array.from({ length: DAYS }, (_, k) => {
    const day = dayOf(Date.now() - (DAYS - 1 - k) * 86_400_000);
    return found.get(day) ?? { day, requests: 0, images: 0 };
  });
}
