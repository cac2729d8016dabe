/** The form: what shall be drawn, checked before it is sent, remembered as it is typed. */

import { Counter, charsIn } from "./counter.js";
import { $, h, setText } from "./dom.js";
import { asked } from "./edits.js";
import { History } from "./history.js";
import { t } from "./i18n.js";
import { Loras } from "./loras.js";
import { load, save } from "./settings.js";
import { SIDES, Source } from "./source.js";
import { LIMITS, RATIOS, around, fit, ratioOf, sizeOf } from "./sizes.js";
import { TemplateEditor } from "./template.js";
import { offerUndo } from "./undo.js";

/** More than this is drawn as a job, which outlives the page. */
export const MAX_STREAMED = 10;
const MAX_PICTURES = 10_000;
const MAX_SEED = 2 ** 32 - 1;
const FIELDS = [
  "model", "prompt", "template", "image", "lora", "size", "n", "seed", "steps", "output_format", "guidance_scale", "name", "negative_prompt", "form",
];
const ADVANCED = new Set(["steps", "output_format", "guidance_scale", "name", "negative_prompt"]);
/** @type {Record<string, string>} */
const ALIASES = {
  prompts: "prompt", variables: "template", variants: "n", mask: "image", strength: "image", fit: "size", position: "size",
};
const BLANK = {
  mode: "prompts", prompt: "", template: "", n: 1, ratio: "1:1", width: "", height: "", seed: "", steps: "",
  format: "png", guidance: "", negative: "", name: "",
};
const NAMES = /** @type {(keyof FormState)[]} */ (Object.keys(BLANK));
const QUICK = [1, 4, 10];
const AS_SOURCE = "source"; // in place of a ratio

/** @param {string} prompt */
const linesOf = (prompt) => prompt.split("\n").map((line) => line.trim()).filter(Boolean);
/**
 * @param {string} text
 * @param {number} least
 * @param {number} most
 */
const isWhole = (text, least, most) => /^\d+$/.test(text) && +text >= least && +text <= most;

/**
 * @param {string} field
 * @returns {HTMLElement[]}
 */
const controlsOf = (field) => [...$(`[data-field=${field}]`).querySelectorAll("textarea,input,select")].map(
  (control) => /** @type {HTMLElement} */ (control),
);
/** @param {HTMLElement} control */
const isOffered = (control) => !control.closest("[hidden]");

export class Form {
  #limits = LIMITS;
  /** @type {FormState} */
  #state = { ...BLANK, ...load("form", {}) };
  #form = $("#form");
  #counter = new Counter();
  #template = new TemplateEditor(() => (this.#errors(false).length ? null : this.#body()));
  #history = new History((prompt) => this.setPrompt(prompt));
  #source = new Source(() => this.#sourceChanged());
  #loras = new Loras(() => (this.#clearError("lora"), this.render()));

  #models;

  /**
   * One of `models` draws. `onDraw` gets checked values, `onJob` the body of a job and the picture that it goes on from.
   * @param {Models} models
   * @param {(values: Values) => void} onDraw
   * @param {(body: { size: string }, origin: Origin | null) => void} onJob
   */
  constructor(models, onDraw, onJob) {
    this.#models = models;
    this.onDraw = onDraw;
    this.onJob = onJob;
    this.#buildRatios();
    if (!this.#source.origin && this.#state.ratio === AS_SOURCE) this.#state.ratio = BLANK.ratio;
    this.#write();
    this.#bind();
    this.render();
  }

  /** @param {Limits} limits those of the model that is picked */
  setLimits(limits) {
    this.#limits = limits;
    this.#source.limits = limits;
    this.#loras.setModel(limits.loras, this.#models.asked());
    this.#sourceChanged();
  }

  /**
   * Take over the settings of one picture: drawing now gives the same picture again.
   * @param {Recipe} recipe
   * @param {Origin | null} origin what it was drawn from
   * @param {string[]} told what else there is to tell
   */
  fill(recipe, origin = null, told = []) {
    const { prompt, seed, steps, format, guidance_scale, negative_prompt, lora = [] } = recipe;
    const before = this.#models.picked?.id;
    this.#models.pick(recipe.model);
    const [width, height] = this.#drawable(recipe);
    const sized = width && height;
    const ratio = this.#ratioFor(width, height, origin);
    const size = ratio === "custom" && sized ? { width, height } : {};
    const rest = format ? { format } : {};
    const guidance = guidance_scale ? String(guidance_scale) : "";
    const exact = { seed: seed ?? "", steps: steps ?? "", guidance, negative: negative_prompt ?? "" };
    const words = prompt.replaceAll("\n", " ");
    const more = [...told, this.#models.missed(recipe), lora.length && !this.#limits.loras ? t("lorasNotTaken") : ""];
    this.#replace({ mode: "prompts", prompt: words, n: 1, ratio, ...size, ...exact, ...rest }, "reused", { origin, lora, model: before, more });
    if (guidance || exact.negative) $("#advanced").open = true;
    this.focus();
  }

  /**
   * The recipe's size, or where that is too large to be drawn at once, as one that was made larger is, the nearest that is not.
   * @param {Recipe} recipe
   */
  #drawable({ width, height }) {
    const large = (width ?? 0) * (height ?? 0) > this.#limits.maxPixels;
    return width && height && large ? fit(width, height, this.#limits) : [width, height];
  }

  /**
   * @param {number | null} width
   * @param {number | null} height
   * @param {Origin | null} origin
   */
  #ratioFor(width, height, origin) {
    const { ratio } = this.#state;
    if (!width || !height) return ratio === AS_SOURCE && !origin ? BLANK.ratio : ratio;
    if (origin?.fit === "extend") return "custom"; // the others go by the picture
    return ratioOf(width, height, this.#limits) ?? "custom";
  }

  /** @param {string} prompt */
  setPrompt(prompt) {
    const typed = this.#state.prompt.trim();
    if (typed && typed !== prompt) this.#replace({ mode: "prompts", prompt }, "replaced", {});
    else this.#change({ mode: "prompts", prompt });
    this.focus();
  }

  /**
   * Fill in `values`, and tell by `words` how to have back what stood there.
   * @param {Partial<FormState>} values
   * @param {Words} words
   * @param {{ origin?: Origin | null, lora?: Lora[], model?: string, more?: string[] }} beside what is no field of text;
   * `model`: the one that was picked, `more`: what else there is to tell
   */
  #replace(values, words, { origin, lora, model, more }) {
    const before = { ...this.#state };
    const from = this.#source.origin;
    const styles = this.#loras.all;
    if (origin !== undefined && origin !== from) this.#source.use(origin);
    if (lora) this.#loras.use(lora);
    this.#change(values);
    const undo = () => {
      this.#models.pick(model);
      this.#source.use(from);
      this.#loras.use(styles);
      const since = this.#state.prompt.trim();
      if (since && since !== values.prompt) this.#history.add(since); // that was typed, too
      this.#change(before);
    };
    offerUndo({ words, more, undo });
  }

  /**
   * The next drawing goes on from `origin`, at its size; `prompt` is what it shows.
   * @param {Origin} origin
   * @param {string} prompt
   */
  drawFrom(origin, prompt = "") {
    this.#source.use(origin);
    const words = this.#state.prompt.trim() ? {} : { prompt: prompt.replaceAll("\n", " ") };
    this.#change({ mode: "prompts", ratio: AS_SOURCE, ...words });
    $("#source").scrollIntoView({ block: "nearest" });
    this.focus();
  }

  #sourceChanged() {
    if (!this.#source.origin && this.#state.ratio === AS_SOURCE) this.#change({ ratio: BLANK.ratio });
    else this.render();
  }

  focus() {
    const prompt = $("#prompt");
    prompt.focus();
    prompt.setSelectionRange(prompt.value.length, prompt.value.length);
  }

  /**
   * Show `message` at the field that `param` names, or above the button.
   * @param {string | null | undefined} param
   * @param {string} message
   */
  showError(param, message) {
    const told = param?.match(/^\w+/)?.[0] ?? "";
    let name = FIELDS.find((field) => field === (ALIASES[told] ?? told)) ?? "form";
    if ($(`[data-field=${name}]`).hidden) name = "form";
    setText($(`#error-${name}`), message);
    this.#mark(name, true);
    if (ADVANCED.has(name)) $("#advanced").open = true;
    if (told === "lora") this.#loras.ask(); // others than were known
  }

  /** Everything that depends on language or limits. */
  render() {
    const { ratio, prompt, mode } = this.#state;
    const lines = linesOf(prompt).length;
    this.#source.render();
    this.#loras.render();
    this.#counter.update(linesOf(prompt), this.#limits, this.#models.asked());
    $("[data-field=prompt]").hidden = mode !== "prompts";
    $("[data-field=template]").hidden = mode !== "template";
    setText($("#lines"), lines > 1 ? t("lines", { n: lines }) : t("linesHint"));
    setText($("#draw-keys"), /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵");
    $("#custom-size").hidden = ratio !== "custom";
    const { steps, guidance } = this.#limits;
    $("#steps").placeholder = steps ? t("stepsDefault", { n: steps }) : t("stepsDefaultUnknown");
    $("#guidance").placeholder = guidance === null ? t("stepsDefaultUnknown") : t("stepsDefault", { n: guidance });
    for (const side of /** @type {const} */ (["width", "height"])) {
      $(`#${side}`).placeholder = String(this.#limits[side]);
      $(`#${side}`).step = String(this.#limits.multiple);
    }
    this.#renderRatios();
    this.#renderQuick();
    this.#template.update();
    this.#renderCount();
  }

  #renderCount() {
    const all = this.#count;
    setText($("#draw-label"), all > 0 ? t("drawCount", { n: all }) : t("draw"));
    const asJob = this.#asJob;
    $("#as-job").hidden = !asJob;
    if (asJob) setText($("#as-job"), t("asJob"));
  }

  /** Pictures that Draw would draw now; 0 where that is not known. */
  get #count() {
    const { mode, prompt, n } = this.#state;
    if (mode === "template") return this.#template.count ?? 0; // variants included
    return linesOf(prompt).length * (Number(n) || 0);
  }

  get #asJob() {
    const { mode, n } = this.#state;
    return mode === "template" || this.#count > MAX_STREAMED || Number(n) > this.#limits.maxImages;
  }

  #renderQuick() {
    /** @param {number} n */
    const chip = (n) => {
      const pressed = String(Number(this.#state.n) === n);
      const set = () => this.#change({ n });
      const named = { "aria-label": t("quick", { n }), "aria-pressed": pressed };
      return h("button", { type: "button", class: "link", onclick: set, ...named }, `× ${n}`);
    };
    const most = this.#limits.maxImages;
    const box = $("#quick");
    const focused = [...box.children].indexOf(/** @type {Element} */ (document.activeElement));
    const chips = QUICK.filter((n) => n <= most).map(chip);
    box.replaceChildren(...chips);
    chips[focused]?.focus();
  }

  #buildRatios() {
    const tiles = [AS_SOURCE, ...RATIOS, "custom"].map((ratio) => {
      const shape = h("span", { class: "shape", "aria-hidden": "true" });
      const [across, down] = ratio.includes(":") ? ratio.split(":").map(Number) : [1, 1];
      shape.style.setProperty("--w", String(across / Math.max(across, down)));
      shape.style.setProperty("--h", String(down / Math.max(across, down)));
      const input = h("input", { type: "radio", name: "ratio", value: ratio });
      const tile = h("label", { class: "ratio", "data-ratio": ratio }, input, shape);
      tile.append(h("span", { class: "name" }), h("span", { class: "pixels" }));
      return tile;
    });
    $("#ratios").append(...tiles);
  }

  #renderRatios() {
    for (const tile of $("#ratios").children) {
      const ratio = tile.getAttribute("data-ratio") ?? "";
      const custom = ratio === "custom";
      const asSource = ratio === AS_SOURCE;
      tile.toggleAttribute("hidden", asSource && !this.#source.origin);
      const { fit: how, side } = this.#source.origin ?? {};
      const own = t(how === "extend" ? SIDES[side ?? "around"] : "asSource");
      setText($(".name", tile), asSource ? own : custom ? t("custom") : ratio);
      setText($(".pixels", tile), custom ? "" : this.#sizeAt(ratio).join(" × "));
    }
  }

  #bind() {
    this.#form.addEventListener("submit", (event) => (event.preventDefault(), this.#submit()));
    this.#form.addEventListener("input", (event) => this.#typed(/** @type {HTMLElement} */ (event.target)));
    this.#form.addEventListener("counted", () => this.#renderCount());
    $("#advanced").addEventListener("toggle", () => save("advanced", $("#advanced").open));
    $("#advanced").open = load("advanced", false);
    $("#fewer").addEventListener("click", () => this.#add(-1));
    $("#more").addEventListener("click", () => this.#add(+1));
    $("#random").addEventListener("click", () => this.#change({ seed: "" }));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault(); // in some fields Enter submits by itself
      if (!event.repeat && !$("dialog[open]")) this.#form.requestSubmit();
    });
  }

  /** @param {number} by */
  #add(by) {
    const n = Math.min(MAX_PICTURES, Math.max(1, (Number(this.#state.n) || 1) + by));
    this.#change({ n });
  }

  /** @param {HTMLElement} control */
  #typed(control) {
    this.#read();
    this.#clearError(control.closest("[data-field]")?.getAttribute("data-field"));
    this.#clearError("form");
    this.#keep();
  }

  /** @param {Partial<FormState>} values */
  #change(values) {
    Object.assign(this.#state, values);
    this.#write();
    FIELDS.forEach((field) => this.#clearError(field));
    this.#keep();
  }

  #keep() {
    save("form", this.#state);
    this.render();
  }

  #read() {
    for (const name of NAMES) this.#state[name] = this.#field(name).value;
  }

  #write() {
    for (const name of NAMES) this.#field(name).value = String(this.#state[name]);
  }

  /** @param {string} name */
  #field(name) {
    return /** @type {HTMLInputElement | RadioNodeList} */ (this.#form.elements.namedItem(name));
  }

  #submit() {
    FIELDS.forEach((field) => this.#clearError(field));
    const errors = this.#errors();
    for (const [field, message] of errors) this.showError(field, message);
    if (errors.length) return controlsOf(errors[0][0]).find(isOffered)?.focus();
    if (this.#state.mode === "prompts") this.#history.add(this.#state.prompt.trim());
    if (this.#asJob) this.onJob(this.#body(), this.#source.origin);
    else this.onDraw(this.#values());
  }

  #values() {
    const { prompt, n, seed, steps, format, guidance, negative } = this.#state;
    const [width, height] = this.#size();
    return {
      lines: linesOf(prompt),
      n: Number(n),
      seed: seed === "" ? null : Number(seed),
      steps: steps === "" ? null : Number(steps),
      guidance: guidance === "" ? null : Number(guidance),
      negative: negative.trim(),
      width,
      height,
      format,
      lora: this.#loras.chosen,
      model: this.#models.asked(),
      origin: this.#source.origin,
    };
  }

  /** What `POST /v1/jobs` takes, but for a picture. */
  #body() {
    const { lines, n, seed, steps, guidance, negative, width, height, format, lora, model } = this.#values();
    const { mode, name } = this.#state;
    /** @type {{ size: string } & Record<string, unknown>} */
    const body = { variants: n, size: `${width}x${height}`, output_format: format };
    if (name.trim()) body.name = name.trim();
    if (seed !== null) body.seed = seed;
    if (steps !== null) body.steps = steps;
    if (guidance !== null) body.guidance_scale = guidance;
    if (negative) body.negative_prompt = negative;
    if (model) body.model = model;
    if (lora?.length) body.lora = asked(lora);
    return { ...body, ...(mode === "template" ? this.#template.body : { prompts: lines }) };
  }

  /** @returns {number[]} */
  #size() {
    const { ratio, width, height } = this.#state;
    return ratio === "custom" ? [Number(width), Number(height)] : this.#sizeAt(ratio);
  }

  /** @param {string} ratio */
  #sizeAt(ratio) {
    const origin = this.#source.origin;
    const given = ratio === AS_SOURCE ? null : ratio;
    if (origin?.fit === "extend") return around(given, origin, this.#limits);
    if (given) return sizeOf(given, this.#limits);
    return origin ? fit(origin.width, origin.height, this.#limits) : [0, 0];
  }

  /**
   * [[field, message], …] in the order of the form; without `whole`, of the settings alone.
   * @returns {[field: string, message: string][]}
   */
  #errors(whole = true) {
    const { n, seed, steps, guidance } = this.#state;
    const { maxSteps } = this.#limits;
    /** @type {[string, string | false][]} */
    const checks = [
      ...(whole ? [...this.#promptErrors(), ...this.#loraErrors()] : []),
      ["size", this.#sizeError()],
      ["n", !isWhole(String(n), 1, MAX_PICTURES) && t("errorCount", { max: MAX_PICTURES.toLocaleString() })],
      ["seed", seed !== "" && !isWhole(String(seed), 0, MAX_SEED) && t("errorSeed")],
      ["steps", steps !== "" && !isWhole(String(steps), 1, maxSteps) && t("errorSteps", { max: maxSteps })],
      ["guidance_scale", guidance !== "" && !(Number(guidance) >= 0 && Number(guidance) <= 30) && t("errorGuidance")],
    ];
    return checks.flatMap(([field, message]) => (message ? [[field, message]] : []));
  }

  /** @returns {[string, string | false][]} */
  #promptErrors() {
    if (this.#state.mode === "template") {
      const { unfilled, body } = this.#template;
      return [
        ["template", !body.template && t("errorTemplateEmpty")],
        ["template", unfilled.length > 0 && t("errorVariable", { names: unfilled.map((name) => `{${name}}`).join(t("and")) })],
        ["template", this.#tooLong(body.template)],
      ];
    }
    const all = this.#count;
    const long = linesOf(this.#state.prompt).find((line) => this.#tooLong(line));
    return [
      ["prompt", long !== undefined && this.#tooLong(long)],
      ["prompt", !linesOf(this.#state.prompt).length && t("errorPromptEmpty")],
      ["prompt", all > MAX_PICTURES && t("errorTooMany", { n: all, max: MAX_PICTURES })],
    ];
  }

  /** @returns {[string, string | false][]} */
  #loraErrors() {
    const names = this.#loras.missing.map(({ name }) => name).join(t("and"));
    return [["lora", names !== "" && t("errorLora", { names })]];
  }

  /** @param {string} text */
  #tooLong(text) {
    const max = this.#limits.maxChars ?? Infinity;
    const n = charsIn(text);
    return n > max && t("errorChars", { n, max: max.toLocaleString() });
  }

  #sizeError() {
    const [width, height] = this.#size();
    if (!(width > 0 && height > 0)) return t("errorSizeEmpty");
    const { multiple, minSide, maxPixels } = this.#limits;
    const [w, h] = fit(width, height, this.#limits);
    if (width % multiple || height % multiple) return t("errorSide", { m: multiple, w, h });
    if (Math.min(width, height) < minSide) return t("errorSmall", { min: minSide });
    const origin = this.#source.origin;
    if (origin?.fit === "extend") {
      if (width < origin.width || height < origin.height) return t("errorAround", { w: origin.width, h: origin.height });
      if (width === origin.width && height === origin.height) return t("errorNothingAround");
      if (width * height > maxPixels) return t("errorAroundPixels", { max: maxPixels.toLocaleString() });
    }
    return width * height > maxPixels && t("errorPixels", { max: maxPixels.toLocaleString(), w, h });
  }

  /**
   * @param {string} field
   * @param {boolean} wrong
   */
  #mark(field, wrong) {
    for (const control of controlsOf(field)) {
      if (wrong && isOffered(control)) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
  }

  /** @param {string | null | undefined} field */
  #clearError(field) {
    if (!field) return;
    setText($(`#error-${field}`), "");
    this.#mark(field, false);
  }
}
