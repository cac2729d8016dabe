/** The pool's history: a lane for each worker, coloured by where it was. */

import { $ } from "../js/dom.js";
import { t } from "../js/i18n.js";
import { hideTip, legendItem, s, showTip, timeAxis, timeScale } from "./charts.js";
import { clock, span, stateWord } from "./format.js";

const LANE = 22;
const GAP = 8;
const LEFT = 44;
/** @type {("in" | "loading" | "draining" | "silent" | "down" | "unknown")[]} */
const LEGEND = ["in", "loading", "draining", "silent", "down", "unknown"];
/** @type {Record<string, string>} */
const COLOURS = { in: "in", loading: "loading", draining: "draining", drained: "draining", silent: "silent", unknown: "unknown" };

/** @param {string} state */
const colourOf = (state) => COLOURS[state] ?? "down";

/**
 * `lanes`: { worker: [[since, state], …] }; `present`: { worker: state } of this moment.
 * @param {{ [worker: string]: Lane }} lanes
 * @param {{ [worker: string]: string }} present
 * @param {Span} range
 */
export function showLanes(lanes, present, range) {
  const svg = s("svg", { role: "img", "aria-label": t("opsLanes") });
  $("#lanes").replaceChildren(svg);
  $("#lanes-legend").replaceChildren(...LEGEND.map((name) => legendItem(name, t(`lane_${name}`))));
  const width = svg.clientWidth;
  const names = Object.keys(present);
  const height = names.length * (LANE + GAP) + 28;
  svg.setAttribute("height", String(height));
  svg.append(timeAxis(range, width, height, LEFT));
  names.forEach((name, n) => svg.append(lane(name, lanes[name] ?? [], present[name], range, width, n * (LANE + GAP) + 8)));
}

/**
 * @param {string} name
 * @param {Lane} changes
 * @param {string} present
 * @param {Span} range
 * @param {number} width
 * @param {number} y
 */
function lane(name, changes, present, range, width, y) {
  const x = timeScale(range, width, LEFT);
  const group = s("g", {}, s("text", { class: "name", x: LEFT - 8, y: y + 15, "text-anchor": "end" }, name));
  for (const { since, until, state } of stretches(changes, present, range)) {
    const [left, right] = [x(Math.max(since, range.from)), x(until)];
    // A moment out of the pool is what one looks for: it is never too thin to see.
    const wide = Math.max(state === "in" ? 0.5 : 2, right - left);
    const rect = s("rect", { class: colourOf(state), x: left, y, width: wide, height: LANE, rx: 2 });
    const words = [laneWord(state), `${clock(since, true)} – ${clock(until, true)}, ${span(until - since)}`];
    rect.addEventListener("pointermove", (event) => showTip(event, name, words));
    rect.addEventListener("pointerleave", hideTip);
    group.append(rect);
  }
  return group;
}

/** @param {string} state */
const laneWord = (state) => (state === "in" || state === "unknown" ? t(`lane_${state}`) : stateWord(state));

/**
 * What of a lane lies in `range`, up to now; short stretches last, so that they lie on top.
 * @param {Lane} changes
 * @param {string} present
 * @param {Span} range
 */
function stretches(changes, present, { from, to }) {
  const known = [...changes];
  const last = known.at(-1);
  if (last && last[1] !== present) known.push([to, present]);
  const all = known.map(([since, state], n) => ({ since, state, until: Math.min(to, known[n + 1]?.[0] ?? to) }));
  return all.filter(({ until }) => until > from).sort((a, b) => Number(b.state === "in") - Number(a.state === "in"));
}

/** @param {WorkerState} worker */
export const laneOf = (worker) => (worker.open ? "in" : worker.state);
