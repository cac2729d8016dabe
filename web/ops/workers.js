/** The table of workers, with the words of `zimage status` and the runbook. */

import { $, h } from "../js/dom.js";
import { named, t } from "../js/i18n.js";
import { gibibytes, number, percent, seconds, span, stateWord } from "./format.js";

/** @type {Words[]} */
const COLUMNS = ["opsName", "opsState", "opsActivity", "opsQueued", "opsPredicted", "opsDevice", "opsMemory", "opsRestarts", "opsFault"];

/**
 * @param {WorkerState[]} workers
 * @param {number} now
 */
export function showWorkers(workers, now) {
  const head = h("thead", {}, h("tr", {}, ...COLUMNS.map((key) => h("th", { scope: "col" }, t(key)))));
  $("#workers").replaceChildren(head, h("tbody", {}, ...workers.map((worker) => row(worker, now))));
}

/**
 * @param {WorkerState} worker
 * @param {number} now
 */
function row(worker, now) {
  const contents = [state(worker, now), activity(worker), queue(worker), wait(worker), device(worker), memory(worker), restarts(worker), fault(worker, now)];
  const cells = contents.map((content, n) => h("td", { "data-label": t(COLUMNS[n + 1]) }, ...content));
  return h("tr", { "data-state": worker.state }, h("th", { scope: "row" }, worker.name), ...cells);
}

/** @param {string} text */
const small = (text) => h("small", {}, text);

/**
 * @param {WorkerState} worker
 * @param {number} now
 */
function state({ state: name, since, open }, now) {
  const out = open ? [] : [small(t("opsOut"))];
  return [h("span", { class: "state" }, h("span", { class: "dot", "aria-hidden": "true" }), stateWord(name)), small(t("opsSince", { time: span(now - since) })), ...out];
}

/** @param {WorkerState} worker */
function activity({ phase, phase_age_s: age_s, in_step: requests }) {
  if (!phase) return ["–"];
  if (phase === "idle") return [t("phase_idle")];
  const age = age_s === null ? [] : [small(seconds(age_s))];
  return [named("phase_", phase), ...age, ...(requests ? [small(t("opsRequests", { n: requests }))] : [])];
}

/** @param {WorkerState} worker */
const queue = ({ queued, running }) => [`${number(queued)} · ${number(running)}`];
/** @param {WorkerState} worker */
const wait = ({ predicted_wait_s: wait_s }) => [wait_s ? seconds(wait_s) : "–"];
/** @param {WorkerState} worker */
const restarts = ({ restarts: n }) => [number(n)];

/** @param {WorkerState} worker */
function device({ device: id, device_name: name, gpu }) {
  const label = h("span", { title: id }, name || id);
  if (!gpu) return [label];
  const use = gpu.utilization_ratio;
  const words = [use === null ? null : percent(use), gpu.temperature_c === null ? null : `${gpu.temperature_c} °C`];
  return [label, ...(use === null ? [] : [meter(use)]), small(words.filter(Boolean).join(" · "))];
}

/** @param {WorkerState} worker */
function memory({ resident_bytes: bytes, gpu }) {
  const own = bytes ? t("opsRss", { size: gibibytes(bytes) }) : "–";
  if (!gpu) return [own];
  const card = { used: gibibytes(gpu.memory_used_bytes), size: gibibytes(gpu.memory_bytes) };
  return [own, meter(gpu.memory_used_bytes / gpu.memory_bytes), small(t("opsGpuMemory", card))];
}

/**
 * @param {WorkerState} worker
 * @param {number} now
 */
function fault({ last_fault: last }, now) {
  if (!last) return ["–"];
  return [h("span", { class: "fault" }, last.what), small(t("opsAgo", { time: span(now - last.at) }))];
}

/** @param {number} ratio */
const meter = (ratio) => h("meter", { min: 0, max: 1, value: ratio, "aria-label": percent(ratio) });
