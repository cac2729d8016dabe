/** Puts the page of operators together. It only reads: what to do about it is said in the runbook. */

import { $, h, setText } from "../js/dom.js";
import { currentLanguage, has, switchLanguage, t, translate } from "../js/i18n.js";
import { load, save } from "../js/settings.js";
import { bindThemeSwitch, showThemeSwitch } from "../js/theme.js";
import { Chart } from "./charts.js";
import { clock, number, percent, range, seconds, short, span } from "./format.js";
import { showHosts } from "./hosts.js";
import { laneOf, showLanes } from "./lanes.js";
import { bucketsOf, perMinute, rowsOf } from "./points.js";
import { watch } from "./source.js";
import "./strings.js";
import { showUsage, usagePath } from "./usage.js";
import { showWorkers } from "./workers.js";

const RANGES_S = [1800, 7200, 21_600];
const RECENT_S = 300;
const STALE_S = 5; // as the command line has it
const BUCKETS = 60;

const charts = [
  new Chart({ title: "opsImages", kind: "areas", format: short, series: [{ name: "one", label: "opsImagesLine", value: perMinute("images") }] }),
  new Chart({
    title: "opsAnswers",
    kind: "bars",
    format: short,
    series: [
      { name: "good", label: "opsAnswered", value: perMinute("answered") },
      { name: "warn", label: "opsRefused", value: perMinute("refused") },
      { name: "bad", label: "opsFailedLine", value: perMinute("failed") },
    ],
  }),
  new Chart({
    title: "opsLatency",
    kind: "lines",
    format: seconds,
    series: [
      { name: "one", label: "opsP50", value: ({ p50_s }) => p50_s },
      { name: "two", label: "opsP95Line", value: ({ p95_s }) => p95_s },
    ],
  }),
  new Chart({
    title: "opsDepth",
    kind: "areas",
    format: short,
    series: [
      { name: "one", label: "opsDrawing", value: ({ running }) => running },
      { name: "two", label: "opsWaiting", value: ({ queued }) => queued },
    ],
  }),
];
const gpuChart = new Chart({ title: "opsGpu", kind: "areas", format: percent, series: [{ name: "one", label: "opsGpuLine", value: ({ gpu_ratio }) => gpu_ratio }] });

/** @type {CellState | null} */
let state = null;
let now = 0;
let reachable = true;
/** @type {PoolHistory | null} */
let history = null;
/** @type {{ data: UsageRow[] } | null} */
let usage = null;
/** @type {number} */
let range_s = RANGES_S.includes(load("opsRange")) ? load("opsRange") : RANGES_S[0];

/**
 * @param {CellState | null} fresh
 * @param {number} at
 */
function onState(fresh, at) {
  reachable = fresh !== null;
  if (reachable) [state, now] = [fresh, at];
  renderState();
}

/** @param {PoolHistory | null} fresh */
function onHistory(fresh) {
  history = fresh;
  renderHistory();
}

/** @param {{ data: UsageRow[] } | null} fresh */
function onUsage(fresh) {
  usage = fresh;
  showUsage(usage);
}

function renderState() {
  renderAlarms();
  if (!state) return;
  setText($("#cell"), state.name ?? "");
  document.title = t("opsDocument", { cell: state.name ?? "Z-Image" });
  renderFigures(state);
  showHosts(state.hosts ?? [], now);
  showWorkers(workersOf(state), now);
  renderEvents(state);
}

function renderHistory() {
  if (!history || !state) return;
  const to = now;
  const span_s = { from: to - range_s, to };
  const rows = rowsOf(history);
  const buckets = bucketsOf(rows, { ...span_s, interval_s: history.interval_s, count: BUCKETS });
  for (const chart of charts) chart.show(buckets, span_s);
  gpuChart.element.hidden = !rows.some(({ gpu_ratio }) => gpu_ratio !== null);
  gpuChart.show(buckets, span_s);
  const present = Object.fromEntries(state.workers.map((worker) => [worker.name, laneOf(worker)]));
  showLanes(history.lanes, present, span_s);
  renderFigures(state);
}

function renderAlarms() {
  const age_s = state ? now - state.at : 0;
  const found = (state?.alarms ?? []).map(alarm);
  if (!reachable) found.unshift(notice(t("opsUnreachable", { time: state ? clock(state.at, true) : "–" })));
  else if (age_s > STALE_S) found.unshift(notice(t("opsStale", { time: span(age_s) }), "guard_down"));
  const words = found.map(({ textContent }) => textContent).join();
  if ($("#alarms").dataset.words === words) return; // said again, it would be read aloud again
  $("#alarms").dataset.words = words;
  $("#alarms").replaceChildren(...found);
}

/** @param {Alarm} alarm */
function alarm({ name, worker, since, text }) {
  const key = `alarm_${name}`;
  const title = has(key) ? t(key) : name;
  const where = worker ? `${worker}: ` : "";
  return notice(`${where}${title}`, name, `${text} (${clock(since, true)})`);
}

/**
 * @param {string} title
 * @param {string | null} entry
 * @param {string | null} text
 */
function notice(title, entry = null, text = null) {
  const book = currentLanguage() === "zh" ? "runbook.zh-CN.md" : "runbook.md";
  const link = entry && h("a", { href: `docs/${book}#${entry}`, target: "_blank" }, `${t("opsRunbook")}: ${entry}`);
  return h("p", { class: "alarm" }, h("b", {}, title), ...(text ? [h("span", {}, text)] : []), ...(link ? [link] : []));
}

/**
 * A front shows those of its hosts: its own, where it has any, are among them.
 * @param {CellState} state
 */
const workersOf = (state) => state.workers_of_hosts ?? state.workers;

/** @param {CellState} state */
function renderFigures(state) {
  const { pool } = state;
  const workers = workersOf(state);
  /** @param {"queued" | "running"} key */
  const total = (key) => workers.reduce((sum, worker) => sum + (worker[key] ?? 0), 0);
  const waits = workers.filter(({ open }) => open).map((worker) => worker.predicted_wait_s ?? 0);
  const recent = since(RECENT_S);
  const rate = history && recent.length ? (sumOf(recent, "images") * 60) / (recent.length * history.interval_s) : null;
  const slowest = recent.map(({ p95_s }) => p95_s).filter((value) => value !== null);
  const inRange = t("opsInRange", { range: range(range_s) });
  const level = pool.open === pool.of ? "good" : pool.open ? "warn" : "bad";
  const failed = sumOf(since(range_s), "failed");
  $("#figures").replaceChildren(
    figure("opsPool", t("opsPoolOf", pool), "", level),
    figure("opsQueue", `${number(total("queued"))} · ${number(total("running"))}`),
    figure("opsWait", seconds(waits.length ? Math.min(...waits) : null)),
    figure("opsRate", short(rate), t("opsLast5")),
    figure("opsP95", seconds(slowest.length ? Math.max(...slowest) : null), t("opsLast5")),
    figure("opsFailed", `${number(failed)} · ${number(sumOf(since(range_s), "refused"))}`, inRange, failed ? "bad" : ""),
  );
}

/** @param {number} seconds */
const since = (seconds) => (history ? rowsOf(history).filter(({ at }) => at > now - seconds) : []);
/**
 * @param {Row[]} rows
 * @param {string} column
 */
const sumOf = (rows, column) => rows.reduce((sum, row) => sum + (row[column] ?? 0), 0);

/**
 * @param {Words} label
 * @param {string} value
 * @param {string} note
 * @param {string} level
 */
function figure(label, value, note = "", level = "") {
  return h("li", { class: "box", "data-level": level }, h("span", {}, t(label)), h("b", {}, value), h("small", {}, note));
}

/** @param {CellState} state */
function renderEvents({ events }) {
  const latest = [...events].reverse();
  const items = latest.map(({ at, worker, what }) =>
    h("li", {}, h("time", {}, clock(at, true)), h("b", {}, worker ?? ""), h("span", {}, what)),
  );
  $("#events").replaceChildren(...(items.length ? items : [h("li", {}, t("opsNone"))]));
}

function renderRanges() {
  /** @param {number} value */
  const choice = (value) => {
    const input = h("input", { type: "radio", name: "range", value, checked: value === range_s });
    input.addEventListener("change", () => {
      range_s = value;
      save("opsRange", value);
      renderHistory();
    });
    return h("label", {}, input, h("span", {}, range(value)));
  };
  const [legend] = $("#ranges").children;
  $("#ranges").replaceChildren(legend, ...RANGES_S.map(choice));
}

function render() {
  translate();
  setText($("#language"), t("language"));
  $("#language").setAttribute("aria-label", t("languageLabel"));
  showThemeSwitch($("#theme"));
  renderRanges();
  renderState();
  renderHistory();
  showUsage(usage);
}

$("#charts").append(...charts.map(({ element }) => element), gpuChart.element);
$("#language").addEventListener("click", () => (switchLanguage(), render()));
bindThemeSwitch($("#theme"));
addEventListener("resize", renderHistory);
render();
watch({ onState, onHistory, onUsage, usagePath });
