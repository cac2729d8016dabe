/** What each key used in the last week; only where somebody is signed in with a key of the role ops. */

import { $, h } from "../js/dom.js";
import { t } from "../js/i18n.js";
import { number, span } from "./format.js";

const DAYS = 7;
const MOST = 20;
/** @type {Words[]} */
const COLUMNS = ["opsKey", "opsKeyImages", "opsGpuTime", "opsKeyRefused", "opsKeyFailed"];

/** @param {number} now */
export const usagePath = (now) => `usage?by=key&since=${dayOf(now - (DAYS - 1) * 86_400)}`;
/** @param {number} at */
const dayOf = (at) => new Date(at * 1000).toISOString().slice(0, 10);

/**
 * `usage`: the answer of /v1/usage by key, or null where there is none.
 * @param {{ data: UsageRow[] } | null} usage
 */
export function showUsage(usage) {
  $("#usage-box").hidden = !usage;
  if (!usage) return;
  const rows = usage.data.toSorted((a, b) => (b.images ?? 0) - (a.images ?? 0));
  const most = Math.max(1, rows[0]?.images ?? 0);
  const head = h("thead", {}, h("tr", {}, ...COLUMNS.map((key) => h("th", { scope: "col" }, t(key)))));
  $("#usage").replaceChildren(head, h("tbody", {}, ...rows.slice(0, MOST).map((row) => line(row, most))));
  $("#usage-more").textContent = rows.length > MOST ? t("opsMoreKeys", { n: rows.length - MOST }) : "";
}

/**
 * @param {UsageRow} row
 * @param {number} most
 */
function line({ key, images, gpu_seconds: gpu_s, refusals, failures }, most) {
  const bar = h("meter", { min: 0, max: most, value: images, "aria-hidden": "true" });
  const cells = [[number(images), bar], [span(gpu_s ?? 0)], [number(refusals)], [number(failures)]];
  const rest = cells.map((content, n) => h("td", { "data-label": t(COLUMNS[n + 1]) }, ...content));
  return h("tr", {}, h("th", { scope: "row" }, key ?? ""), ...rest);
}
