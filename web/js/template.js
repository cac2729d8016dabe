/** A template with choices and variables, and a look at the prompts that it stands for. */

import { ApiError, previewJob } from "./api.js";
import { $, h, setText } from "./dom.js";
import { inLanguage, reasonOf, t, TEMPLATE_EXAMPLE } from "./i18n.js";
import { load, save } from "./settings.js";
import { offerUndo } from "./undo.js";

const WAIT_MS = 350; // after the last key
const MAX_VARIABLES = 20; // the server's bound: it says so where a template has more
const PARAMS = /^(template|variables|prompts|variants)/;

/** @param {string} text */
const linesOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/**
 * Names in braces, in order; choices and escaped braces are none.
 * @param {string} template
 */
function namesIn(template) {
  const plain = template.replace(/\\[\s\S]/g, "  ");
  const names = [...plain.matchAll(/\{\s*([\p{L}_][\p{L}\p{N}_]*)\s*\}/gu)].map(([, name]) => name);
  return [...new Set(names)];
}

export class TemplateEditor {
  /** @type {{ [name: string]: string }} */
  #values = load("variables", {}); // what was typed, by name: also of names that are gone for now
  /** @type {Timer} */
  #timer;
  /** @type {AbortController | null} */
  #asking = null;
  /** @type {Preview | null} */
  #shown = null; // the last answer

  /**
   * `settings()`: the rest of the job's body, or null while it is wrong.
   * @param {() => object | null} settings
   */
  constructor(settings) {
    this.settings = settings;
    /** @type {number | null} */
    this.count = null;
    $("#template-example").addEventListener("click", () => this.#example());
    $("#variables").addEventListener("input", (event) => this.#typed(/** @type {HTMLTextAreaElement} */ (event.target)));
  }

  /** {template, variables} as the API takes them. */
  get body() {
    const template = $("#template").value.trim();
    const variables = Object.fromEntries(namesIn(template).map((name) => [name, linesOf(this.#values[name] ?? "")]));
    return { template, ...(Object.keys(variables).length ? { variables } : {}) };
  }

  /** Names of the variables without a value. */
  get unfilled() {
    const filled = Object.entries(this.body.variables ?? {});
    if (filled.length > MAX_VARIABLES) return [];
    return filled.filter(([, values]) => !values.length).map(([name]) => name);
  }

  /** After any change of the form, or of the language. */
  update() {
    this.#renderVariables();
    this.#renderPreview();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), WAIT_MS);
  }

  #renderVariables() {
    const names = namesIn($("#template").value).slice(0, MAX_VARIABLES);
    const box = $("#variables");
    const there = [...box.children].map((row) => row.getAttribute("data-name"));
    if (names.join("\n") !== there.join("\n")) box.replaceChildren(...names.map((name) => this.#row(name)));
    for (const row of box.children) {
      const n = linesOf(this.#values[row.getAttribute("data-name") ?? ""] ?? "").length;
      setText($(".hint", row), n ? t("values", { n }) : t("valuesNone"));
    }
  }

  /** @param {string} name */
  #row(name) {
    const id = `variable-${name}`;
    const field = h("textarea", { id, rows: 2, spellcheck: "false", "data-variable": name });
    field.value = this.#values[name] ?? "";
    const label = h("label", { for: id }, h("code", {}, `{${name}}`));
    const head = h("div", { class: "label-row" }, label, h("span", { class: "hint" }));
    return h("div", { class: "variable", "data-name": name }, head, field);
  }

  /** @param {HTMLTextAreaElement} field */
  #typed(field) {
    this.#values[field.dataset.variable ?? ""] = field.value;
    save("variables", this.#values);
  }

  async #ask() {
    this.#asking?.abort();
    const rest = this.settings();
    if ($("#template").closest("[hidden]") || !rest || !this.body.template || this.unfilled.length) return this.#show(null);
    const asking = new AbortController();
    this.#asking = asking;
    try {
      const answer = await previewJob({ ...rest, ...this.body }, asking.signal);
      if (asking === this.#asking) this.#show(answer);
    } catch (error) {
      if (asking !== this.#asking) return;
      const ours = error instanceof ApiError && PARAMS.test(error.param ?? "");
      this.#show(null, ours ? reasonOf(error) : "");
    }
  }

  /**
   * @param {Preview | null} answer
   * @param {string} problem
   */
  #show(answer, problem = "") {
    this.#shown = answer;
    this.count = answer?.count ?? null;
    setText($("#error-template"), problem);
    this.#renderPreview();
    $("#template").dispatchEvent(new Event("counted", { bubbles: true }));
  }

  #renderPreview() {
    const answer = this.#shown;
    $("#expanded").hidden = !answer;
    if (!answer) return;
    setText($("#expanded-count"), t("expanded", { n: answer.count }));
    const rows = answer.prompts.map((prompt) => h("li", {}, prompt));
    const left = answer.count - answer.prompts.length;
    if (left > 0) rows.push(h("li", { class: "rest" }, t("expandedRest", { n: left })));
    $("#expanded-list").replaceChildren(...rows);
  }

  #example() {
    const { template, variables } = inLanguage(TEMPLATE_EXAMPLE);
    const before = { template: $("#template").value, values: this.#values };
    this.#fill(template, Object.assign({}, this.#values, variables));
    $("#template").focus();
    if (!before.template.trim() || before.template === template) return;
    offerUndo({ words: "replaced", undo: () => this.#fill(before.template, before.values) });
  }

  /**
   * @param {string} template
   * @param {{ [name: string]: string }} values
   */
  #fill(template, values) {
    this.#values = values;
    save("variables", values);
    $("#variables").replaceChildren(); // to be built with the new values
    $("#template").value = template;
    $("#template").dispatchEvent(new Event("input", { bubbles: true }));
  }
}
