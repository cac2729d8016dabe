/** The table of hosts behind a front, with the words of `zimage hosts` and the runbook. */

import { $, h } from "../js/dom.js";
import { t } from "../js/i18n.js";
import { number, seconds, span, stateWord } from "./format.js";

/** @type {Words[]} */
const COLUMNS = ["opsHost", "opsState", "opsHostWorkers", "opsPredicted", "opsAddress"];

/**
 * @param {HostState[]} hosts
 * @param {number} now
 */
export function showHosts(hosts, now) {
  $("#hosts-box").hidden = !hosts.length;
  if (!hosts.length) return;
  const head = h("thead", {}, h("tr", {}, ...COLUMNS.map((key) => h("th", { scope: "col" }, t(key)))));
  $("#hosts").replaceChildren(head, h("tbody", {}, ...hosts.map((host) => row(host, now))));
}

/**
 * @param {HostState} host
 * @param {number} now
 */
function row(host, now) {
  const contents = [state(host, now), [`${number(host.ready)} / ${number(host.workers)}`], [seconds(host.wait_s)], [host.address]];
  const cells = contents.map((content, n) => h("td", { "data-label": t(COLUMNS[n + 1]) }, ...content));
  return h("tr", { "data-state": host.state }, h("th", { scope: "row" }, host.name), ...cells);
}

/** @param {string} text */
const small = (text) => h("small", {}, text);

/**
 * @param {HostState} host
 * @param {number} now
 */
function state({ state: name, since, open, why }, now) {
  const out = open ? [] : [small(t("opsOut"))];
  const reason = open || !why ? [] : [small(why)];
  return [h("span", { class: "state" }, h("span", { class: "dot", "aria-hidden": "true" }), stateWord(name)), small(t("opsSince", { time: span(now - since) })), ...out, ...reason];
}
