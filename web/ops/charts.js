/** Small charts in SVG: stacked bars, areas and lines over time. */

import { $, h, setText } from "../js/dom.js";
import { t } from "../js/i18n.js";
import { clock } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 150;
const TOP = 8;
const BOTTOM = 20;
const LEFT = 44;
const TICK_STEPS_S = [300, 600, 900, 1800, 3600, 7200];

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number>} attributes
 * @param {(Node | string)[]} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * Where a time stands, in pixels of an SVG of `width`.
 * @param {Span} range
 * @param {number} width
 * @param {number} left
 */
export const timeScale = ({ from, to }, width, left = LEFT) => (/** @type {number} */ at) =>
  left + ((at - from) / (to - from)) * (width - left - 2);

/**
 * Upright lines at round times, with their words below.
 * @param {Span} range
 * @param {number} width
 * @param {number} height
 * @param {number} left
 */
export function timeAxis({ from, to }, width, height, left = LEFT) {
  const x = timeScale({ from, to }, width, left);
  const fitting = Math.max(2, Math.floor((width - left) / 70));
  const step = TICK_STEPS_S.find((seconds) => (to - from) / seconds <= fitting) ?? 7200;
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  const axis = s("g", { class: "axis" });
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= to; at += step) {
    axis.append(s("line", { x1: x(at), x2: x(at), y1: TOP, y2: height - BOTTOM }));
    if (x(at) > left + 16 && x(at) < width - 16) {
      axis.append(s("text", { x: x(at), y: height - 5, "text-anchor": "middle" }, clock(at)));
    }
  }
  return axis;
}

/**
 * `series`: [{ name, label, value(bucket) → number | null }]; `kind` "bars" and "areas" are
 * stacked, "lines" are not. `format` writes a value.
 */
export class Chart {
  /** @type {Bucket[]} */
  #buckets = [];
  /** @type {Span | null} */
  #range = null;

  /** @param {{ title: Words, kind: "bars" | "areas" | "lines", series: Series[], format: (value: number) => string }} chart */
  constructor({ title, kind, series, format }) {
    this.title = title;
    this.kind = kind;
    this.series = series;
    this.format = format;
    this.heading = h("h3");
    this.svg = s("svg", { role: "img", height: HEIGHT });
    this.legend = h("ul", { class: "legend" });
    this.element = h("figure", { class: `box chart ${kind}` }, this.heading, this.svg, this.legend);
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => hideTip());
    new ResizeObserver(() => this.#draw()).observe(this.element);
  }

  /**
   * @param {Bucket[]} buckets
   * @param {Span} range
   */
  show(buckets, range) {
    [this.#buckets, this.#range] = [buckets, range];
    this.#draw();
  }

  #draw() {
    setText(this.heading, t(this.title));
    this.legend.replaceChildren(...this.series.map((one) => legendItem(one.name, t(one.label))));
    const width = this.svg.clientWidth;
    if (!width || !this.#range) return;
    const stacks = this.#buckets.map((bucket) => this.#stack(bucket));
    const top = niceTop(Math.max(0, ...stacks.flat().filter((value) => value !== null)));
    /** @param {number} value */
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    const known = stacks.some((stack) => stack.some((value) => value !== null));
    this.svg.setAttribute("aria-label", `${t(this.title)}: ${this.#summary(known)}`);
    const x = timeScale(this.#range, width);
    this.svg.replaceChildren(
      this.#valueAxis(top, y, width),
      timeAxis(this.#range, width, HEIGHT),
      ...(this.kind === "bars" ? this.#bars(stacks, x, y) : this.#curves(stacks, x, y)),
      ...(known ? [] : [s("text", { class: "none", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, t("opsNoData"))]),
    );
  }

  /**
   * Upper edges of the series in one bucket: summed where they are stacked.
   * @param {Bucket} bucket
   */
  #stack(bucket) {
    let below = 0;
    return this.series.map(({ value }) => {
      const own = value(bucket) ?? null;
      if (own === null || this.kind === "lines") return own;
      below += own;
      return below;
    });
  }

  /**
   * @param {number} top
   * @param {(value: number) => number} y
   * @param {number} width
   */
  #valueAxis(top, y, width) {
    const axis = s("g", { class: "axis" });
    for (const value of [0, top / 2, top]) {
      axis.append(s("line", { x1: LEFT, x2: width, y1: y(value), y2: y(value) }));
      axis.append(s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, this.format(value)));
    }
    return axis;
  }

  /**
   * @param {(number | null)[][]} stacks
   * @param {(at: number) => number} x
   * @param {(value: number) => number} y
   */
  #bars(stacks, x, y) {
    /** @type {SVGRectElement[]} */
    const bars = [];
    stacks.forEach((stack, n) => {
      const { at, width: seconds } = this.#buckets[n];
      const wide = Math.max(1, x(at + seconds) - x(at) - 1);
      stack.forEach((upper, k) => {
        const lower = (k ? stack[k - 1] : 0) ?? 0;
        if (upper === null || upper <= lower) return;
        bars.push(s("rect", { class: this.series[k].name, x: x(at), y: y(upper), width: wide, height: y(lower) - y(upper) }));
      });
    });
    return bars;
  }

  /**
   * @param {(number | null)[][]} stacks
   * @param {(at: number) => number} x
   * @param {(value: number) => number} y
   */
  #curves(stacks, x, y) {
    /** @param {number} n */
    const middle = (n) => x(this.#buckets[n].at + this.#buckets[n].width / 2);
    return this.series.flatMap(({ name }, k) =>
      runsOf(stacks.map((stack) => stack[k])).flatMap((run) => {
        const upper = run.map((n) => `${middle(n)},${y(stacks[n][k] ?? 0)}`);
        const line = run.length > 1 ? s("polyline", { class: name, points: upper.join(" ") }) : s("circle", { class: name, cx: middle(run[0]), cy: y(stacks[run[0]][k] ?? 0), r: 2 });
        if (this.kind === "lines" || run.length < 2) return [line];
        const lower = run.map((n) => `${middle(n)},${y(k ? (stacks[n][k - 1] ?? 0) : 0)}`).reverse();
        return [s("polygon", { class: name, points: [...upper, ...lower].join(" ") }), line];
      }),
    );
  }

  /**
   * @param {Bucket} bucket
   * @returns {[string, number][]}
   */
  #values(bucket) {
    return this.series.flatMap(({ label, value }) => {
      const own = value(bucket) ?? null;
      return own === null ? [] : [[t(label), own]];
    });
  }

  /** @param {boolean} known */
  #summary(known) {
    const last = this.#buckets.findLast((bucket) => this.#values(bucket).length);
    if (!known || !last) return t("opsNoData");
    return this.#values(last).map(([label, value]) => `${label} ${this.format(value)}`).join(", ");
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const box = this.svg.getBoundingClientRect();
    const { from, to } = this.#range ?? { from: 0, to: 1 };
    const at = from + ((event.clientX - box.left - LEFT) / (box.width - LEFT - 2)) * (to - from);
    const bucket = this.#buckets.find((one) => at >= one.at && at < one.at + one.width);
    const values = bucket ? this.#values(bucket) : [];
    if (!bucket || !values.length) return hideTip();
    showTip(event, clock(bucket.at), values.map(([label, value]) => `${label} ${this.format(value)}`));
  }
}

/**
 * @param {string} name
 * @param {string} text
 */
export const legendItem = (name, text) => h("li", {}, h("span", { class: `swatch ${name}` }), text);

/**
 * @param {MouseEvent} event
 * @param {string} title
 * @param {string[]} lines
 */
export function showTip(event, title, lines) {
  const tip = $("#tip");
  tip.replaceChildren(h("b", {}, title), ...lines.map((line) => h("span", {}, line)));
  tip.hidden = false;
  const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 10)}px`;
}

export const hideTip = () => ($("#tip").hidden = true);

/**
 * Indices of neighbours that are all known.
 * @param {(number | null)[]} values
 */
function runsOf(values) {
  /** @type {number[][]} */
  const runs = [];
  values.forEach((value, n) => {
    if (value === null) return;
    if (n && values[n - 1] !== null) runs.at(-1)?.push(n);
    else runs.push([n]);
  });
  return runs;
}

/**
 * A round number that is not below `value`.
 * @param {number} value
 */
function niceTop(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((times) => times * unit).find((top) => top >= value * 0.999) ?? 10 * unit;
}
