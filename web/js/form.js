/** The form: what shall be drawn, checked before it is sent, remembered as it is typed. */

import { $, h, setText } from "./dom.js";
import { t } from "./i18n.js";
import { load, save } from "./settings.js";
import { LIMITS, RATIOS, fit, ratioOf, sizeOf } from "./sizes.js";

export const MAX_PICTURES_AT_ONCE = 200;
const MAX_SEED = 2 ** 32 - 1;
const FIELDS = ["prompt", "size", "n", "seed", "steps", "output_format", "form"];
const BLANK = { prompt: "", n: 1, ratio: "1:1", width: "", height: "", seed: "", steps: "", format: "png" };

const linesOf = (prompt) => prompt.split("\n").map((line) => line.trim()).filter(Boolean);
const isWhole = (text, least, most) => /^\d+$/.test(text) && +text >= least && +text <= most;

export class Form {
  #limits = LIMITS;
  #state = { ...BLANK, ...load("form", {}) };
  #form = $("#form");

  /** `onDraw({lines, n, seed, width, height, steps, format})` with checked values. */
  constructor(onDraw) {
    this.onDraw = onDraw;
    this.#buildRatios();
    this.#write();
    this.#bind();
    this.render();
  }

  setLimits(limits) {
    this.#limits = limits;
    this.render();
  }

  /** Take over the settings of one picture: drawing now gives the same picture again. */
  fill({ prompt, width, height, seed, steps, format }) {
    const ratio = ratioOf(width, height, this.#limits) ?? "custom";
    const size = ratio === "custom" ? { width, height } : {};
    this.#change({ prompt, n: 1, ratio, ...size, seed: seed ?? "", steps: steps ?? "", format });
    this.focus();
  }

  setPrompt(prompt) {
    this.#change({ prompt });
    this.focus();
  }

  focus() {
    const prompt = $("#prompt");
    prompt.focus();
    prompt.setSelectionRange(prompt.value.length, prompt.value.length);
  }

  /** Show `message` at the field that `param` names, or above the button. */
  showError(param, message) {
    const name = FIELDS.find((field) => field === param?.match(/^\w+/)?.[0]) ?? "form";
    setText($(`#error-${name}`), message);
    this.#mark(name, true);
    if (["steps", "output_format"].includes(name)) $("#advanced").open = true;
  }

  /** Everything that depends on language or limits. */
  render() {
    const { n, ratio, prompt } = this.#state;
    const lines = linesOf(prompt).length;
    setText($("#lines"), lines > 1 ? t("lines", { n: lines }) : t("linesHint"));
    const all = lines * (Number(n) || 0);
    setText($("#draw-label"), all > 0 ? t("drawCount", { n: all }) : t("draw"));
    setText($("#draw-keys"), /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵");
    $("#custom-size").hidden = ratio !== "custom";
    $("#n").max = this.#limits.maxImages;
    const { steps } = this.#limits;
    $("#steps").placeholder = steps ? t("stepsDefault", { n: steps }) : t("stepsDefaultUnknown");
    for (const side of ["width", "height"]) {
      $(`#${side}`).placeholder = this.#limits[side];
      $(`#${side}`).step = this.#limits.multiple;
    }
    this.#renderRatios();
  }

  #buildRatios() {
    const tiles = [...RATIOS, "custom"].map((ratio) => {
      const shape = h("span", { class: "shape", "aria-hidden": "true" });
      const [across, down] = ratio === "custom" ? [1, 1] : ratio.split(":").map(Number);
      shape.style.setProperty("--w", across / Math.max(across, down));
      shape.style.setProperty("--h", down / Math.max(across, down));
      const input = h("input", { type: "radio", name: "ratio", value: ratio });
      const tile = h("label", { class: "ratio", "data-ratio": ratio }, input, shape);
      tile.append(h("span", { class: "name" }), h("span", { class: "pixels" }));
      return tile;
    });
    $("#ratios").append(...tiles);
  }

  #renderRatios() {
    for (const tile of $("#ratios").children) {
      const { ratio } = tile.dataset;
      const custom = ratio === "custom";
      setText($(".name", tile), custom ? t("custom") : ratio);
      setText($(".pixels", tile), custom ? "" : sizeOf(ratio, this.#limits).join(" × "));
    }
  }

  #bind() {
    this.#form.addEventListener("submit", (event) => (event.preventDefault(), this.#submit()));
    this.#form.addEventListener("input", (event) => this.#typed(event.target));
    $("#advanced").addEventListener("toggle", () => save("advanced", $("#advanced").open));
    $("#advanced").open = load("advanced", false);
    $("#fewer").addEventListener("click", () => this.#count(-1));
    $("#more").addEventListener("click", () => this.#count(+1));
    $("#random").addEventListener("click", () => this.#change({ seed: "" }));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault(); // in some fields Enter submits by itself
      if (!event.repeat && !$("dialog[open]")) this.#form.requestSubmit();
    });
  }

  #count(by) {
    const n = Math.min(this.#limits.maxImages, Math.max(1, (Number(this.#state.n) || 1) + by));
    this.#change({ n });
  }

  #typed(control) {
    this.#read();
    this.#clearError(control.closest("[data-field]")?.dataset.field);
    this.#clearError("form");
    this.#keep();
  }

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
    for (const name of Object.keys(BLANK)) this.#state[name] = this.#form.elements[name].value;
  }

  #write() {
    for (const name of Object.keys(BLANK)) this.#form.elements[name].value = this.#state[name];
  }

  #submit() {
    FIELDS.forEach((field) => this.#clearError(field));
    const errors = this.#errors();
    for (const [field, message] of errors) this.showError(field, message);
    if (errors.length) return $(`[data-field=${errors[0][0]}]`).querySelector("textarea,input,select").focus();
    this.onDraw(this.#values());
  }

  #values() {
    const { prompt, n, seed, steps, format } = this.#state;
    const [width, height] = this.#size();
    return {
      lines: linesOf(prompt),
      n: Number(n),
      seed: seed === "" ? null : Number(seed),
      steps: steps === "" ? null : Number(steps),
      width,
      height,
      format,
    };
  }

  #size() {
    const { ratio, width, height } = this.#state;
    return ratio === "custom" ? [Number(width), Number(height)] : sizeOf(ratio, this.#limits);
  }

  /** [[field, message], …] in the order of the form. */
  #errors() {
    const { prompt, n, seed, steps } = this.#state;
    const { maxImages, maxSteps } = this.#limits;
    const lines = linesOf(prompt).length;
    const all = lines * Number(n);
    const checks = [
      ["prompt", lines === 0 && t("errorPromptEmpty")],
      ["prompt", all > MAX_PICTURES_AT_ONCE && t("errorTooMany", { n: all, max: MAX_PICTURES_AT_ONCE })],
      ["size", this.#sizeError()],
      ["n", !isWhole(String(n), 1, maxImages) && t("errorCount", { max: maxImages })],
      ["seed", seed !== "" && !isWhole(String(seed), 0, MAX_SEED) && t("errorSeed")],
      ["steps", steps !== "" && !isWhole(String(steps), 1, maxSteps) && t("errorSteps", { max: maxSteps })],
    ];
    return checks.filter(([, message]) => message);
  }

  #sizeError() {
    const [width, height] = this.#size();
    if (!(width > 0 && height > 0)) return t("errorSizeEmpty");
    const { multiple, minSide, maxPixels } = this.#limits;
    const [w, h] = fit(width, height, this.#limits);
    if (width % multiple || height % multiple) return t("errorSide", { m: multiple, w, h });
    if (Math.min(width, height) < minSide) return t("errorSmall", { min: minSide });
    return width * height > maxPixels && t("errorPixels", { max: maxPixels.toLocaleString(), w, h });
  }

  #mark(field, wrong) {
    for (const control of $(`[data-field=${field}]`).querySelectorAll("textarea,input,select")) {
      if (wrong) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
  }

  #clearError(field) {
    if (!field) return;
    setText($(`#error-${field}`), "");
    this.#mark(field, false);
  }
}
