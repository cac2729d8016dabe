/** How long the longest line is: characters, and where it comes near the model's limit, its tokens. */

import { previewJob } from "./api.js";
import { $, setText } from "./dom.js";
import { t } from "./i18n.js";

const WAIT_MS = 350; // after the last key

/**
 * As many as a person counts; a letter that JavaScript has as two is one.
 * @param {string} text
 */
export const charsIn = (text) => [...text].length;

export class Counter {
  #line = "";
  /** @type {string | null} */
  #model = null;
  /** @type {number | null} */
  #tokens = null;
  /** @type {Timer} */
  #timer;
  /** @type {AbortController | null} */
  #asking = null;

  /**
   * @param {string[]} lines
   * @param {Limits} limits
   * @param {string | null} model as requests say it
   */
  update(lines, limits, model) {
    const line = lines.reduce((longest, each) => (each.length > longest.length ? each : longest), "");
    this.#show(line, limits);
    if (line === this.#line && model === this.#model) return;
    this.#line = line;
    this.#model = model;
    this.#tokens = null;
    this.#asking?.abort();
    clearTimeout(this.#timer);
    // No more tokens than that can be in a line, or hardly: most have two characters or more.
    const near = limits.maxTokens && charsIn(line) > limits.maxTokens / 2;
    if (near && charsIn(line) <= (limits.maxChars ?? Infinity)) this.#timer = setTimeout(() => this.#ask(line, limits), WAIT_MS);
  }

  /**
   * @param {string} line
   * @param {Limits} limits
   */
  async #ask(line, limits) {
    const asking = new AbortController();
    this.#asking = asking;
    const tokens = await previewJob({ prompts: [line], ...(this.#model ? { model: this.#model } : {}) }, asking.signal).then(
      (answer) => answer.tokens ?? null,
      (error) => Number(error.details?.tokens) || null,
    );
    if (asking !== this.#asking || line !== this.#line) return;
    this.#tokens = tokens;
    this.#show(line, limits);
  }

  /**
   * @param {string} line
   * @param {Limits} limits
   */
  #show(line, { maxChars, maxTokens }) {
    const n = charsIn(line);
    const parts = n && maxChars ? [t("chars", { n, most: maxChars.toLocaleString() })] : [];
    const tokens = line === this.#line ? this.#tokens : null;
    if (tokens && maxTokens) parts.push(t("tokens", { n: tokens, most: maxTokens.toLocaleString() }));
    setText($("#chars"), parts.join("  ·  "));
    const over = (maxChars && n > maxChars) || (tokens && maxTokens && tokens > maxTokens);
    $("#chars").classList.toggle("over", Boolean(over));
  }
}
