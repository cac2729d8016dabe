/** One place in the gallery: a picture, or what is known about one that is still to come. */

import { h, icon, setText } from "./dom.js";
import { duration, reasonOf, t } from "./i18n.js";
import { OPEN } from "./job.js";
import { Stored } from "./stored.js";

const PENDING = new Set([...OPEN, "planned"]);

/**
 * @param {Item} item
 * @returns {keyof typeof FACES}
 */
const faceOf = (item) => {
  if (item.picture) return "picture";
  return PENDING.has(item.shot.state) ? "pending" : "failed";
};

// What the items of such cards have.
/** @param {Card} card */
const drawnOf = (card) => /** @type {Drawn} */ (card.item);
/** @param {Card} card */
const pendingOf = (card) => /** @type {Pending} */ (card.item);

export class Card {
  element = h("li", { class: "card" });
  /** @type {keyof typeof FACES | null} */
  #face = null;
  /** @type {Blob | null} */
  #shown = null; // the blob on display
  /** @type {string | null} */
  #url = null;
  /** @type {Face | null} */
  #parts = null;

  /**
   * `item`: {id, shot, picture}; `actions`: functions of the item, by name.
   * @param {Item} item
   * @param {Actions} actions
   */
  constructor(item, actions) {
    this.item = item;
    this.actions = actions;
    const { width, height } = item.picture ?? item.shot.job.settings;
    this.element.style.setProperty("--ratio", String(width / height));
    this.update();
  }

  get opener() {
    return this.#parts?.opener;
  }

  /** Of the whole picture. */
  get url() {
    return this.#url ?? drawnOf(this).picture.url;
  }

  update() {
    const face = faceOf(this.item);
    if (face !== this.#face) this.#turn(face);
    this.#parts?.update();
  }

  /** Build the words anew, as after a change of language. */
  rebuild() {
    this.#face = null;
    this.update();
  }

  /**
   * @param {HTMLImageElement} image
   * @param {Blob | null} blob
   */
  show(image, blob) {
    if (this.#shown !== blob) {
      if (this.#url) URL.revokeObjectURL(this.#url);
      this.#url = blob ? URL.createObjectURL(blob) : null;
      this.#shown = blob;
    }
    image.hidden = !blob;
    if (!blob) image.removeAttribute("src");
    else if (this.#url && image.src !== this.#url) image.src = this.#url;
  }

  remove() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.element.remove();
  }

  /** @param {keyof typeof FACES} face */
  #turn(face) {
    const focused = this.element.contains(document.activeElement);
    this.#face = face;
    this.element.dataset.face = face;
    delete this.element.dataset.state;
    const parts = FACES[face](this);
    this.#parts = parts;
    this.element.replaceChildren(parts.frame, parts.caption);
    if (focused) this.element.querySelector("button")?.focus();
  }
}

/**
 * @param {Card} card
 * @param {"favourite" | "download" | "alike" | "again" | "copyPrompt"} name
 * @param {string} iconName
 * @param {Record<string, string>} extra
 */
function button(card, name, iconName, extra = {}) {
  const run = () => card.actions[name](drawnOf(card));
  return tool(t(name), iconName, run, extra);
}

/**
 * @param {string} label
 * @param {string} iconName
 * @param {() => void} run
 * @param {Record<string, string>} extra
 */
function tool(label, iconName, run, extra) {
  const properties = { type: "button", class: "tool", "aria-label": label, title: label, onclick: run };
  return h("button", { ...properties, ...extra }, icon(iconName));
}

/**
 * @param {string} prompt
 * @param {Node[]} more
 */
function caption(prompt, ...more) {
  return h("div", { class: "caption" }, h("p", { class: "words", title: prompt }, prompt), ...more);
}

/**
 * @param {Card} card
 * @returns {Face}
 */
function buildPicture(card) {
  const { prompt, seed, width, height } = drawnOf(card).picture;
  const image = h("img", { alt: "", loading: "lazy", decoding: "async", width, height });
  const label = t("open", { prompt, seed });
  const run = () => card.actions.open(drawnOf(card));
  const open = h("button", { type: "button", class: "open", "aria-label": label, onclick: run }, image);
  const star = button(card, "favourite", "star", { class: "tool star" });
  const tools = h(
    "div",
    { class: "tools" },
    star,
    button(card, "download", "download", { class: "tool download" }),
    ...(card.actions.can("alike", drawnOf(card).picture) ? [button(card, "alike", "alike")] : []),
    button(card, "again", "again"),
    button(card, "copyPrompt", "copy", { class: "tool copy" }),
  );
  const meta = h("p", { class: "meta" }, h("span", {}, `${width} × ${height}`), h("span", {}, `#${seed}`));
  if (card.item.shot?.reconnected) meta.append(h("span", { class: "badge" }, t("reconnected")));
  const stored = new Stored(image);
  const frame = h("div", { class: "frame" }, stored.words, open, tools);
  const update = () => updatePicture(card, image, stored, star);
  return { frame, caption: caption(prompt, meta), opener: open, update };
}

/**
 * @param {Card} card
 * @returns {Face}
 */
function buildPending(card) {
  const { prompt } = pendingOf(card).shot.job.settings;
  const image = h("img", { alt: "", class: "preview", hidden: true });
  const title = h("p", { class: "title" });
  const detail = h("p", { class: "detail" });
  const bar = h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-label": prompt });
  bar.append(h("span"));
  const ownCancel = { class: "tool cancel", "aria-label": t("cancelOf", { prompt }) };
  const { cancel } = card.actions; // a job is cancelled whole
  const tools = cancel ? tool(t("cancel"), "close", () => cancel(pendingOf(card)), ownCancel) : "";
  const badge = h("span", { class: "badge", hidden: true }, t("reconnected"));
  const words = h("div", { class: "status" }, badge, title, detail, bar);
  const frame = h("div", { class: "frame" }, image, words, tools);
  const update = () => updatePending(card, { image, title, detail, bar, badge });
  return { frame, caption: caption(prompt), update };
}

/**
 * @param {Card} card
 * @returns {Face}
 */
function buildFailed(card) {
  const { shot } = pendingOf(card);
  const { job, error } = shot;
  const words = h("p", { class: "detail" }, messageOf(shot));
  const cancelled = shot.state === "cancelled";
  card.element.dataset.state = shot.state;
  const title = h("p", { class: "title" }, icon("alert"), t(cancelled ? "state_cancelled" : "failed"));
  const again = h("button", { type: "button", class: "ghost" }, t("tryAgain"));
  again.addEventListener("click", () => card.actions.retry?.(pendingOf(card)));
  const away = h("button", { type: "button", class: "ghost" }, t("dismiss"));
  away.addEventListener("click", () => card.actions.dismiss?.(pendingOf(card)));
  // What the server refused once, it refuses again: only a changed form helps.
  const status = error?.status ?? 0;
  const refused = status >= 400 && status < 500 && status !== 429;
  const choices = card.actions.retry ? (refused ? [away] : [again, away]) : [];
  const buttons = h("div", { class: "choices" }, ...choices);
  const face = h("div", { class: "status" }, title, words, buttons);
  return { frame: h("div", { class: "frame" }, face), caption: caption(job.settings.prompt), update: () => {} };
}

/** @param {Pick<ShotNews, "error" | "tries">} shot */
export function messageOf({ error, tries }) {
  if (!error) return "";
  if (error.message || error.details) return reasonOf(error);
  if (error.status) return t("errorHttp", { status: error.status });
  if (error.code === "page_fault") return t("errorPage");
  return tries ? t("errorStream", { n: tries }) : t("errorNetwork");
}

/**
 * @param {Card} card
 * @param {HTMLImageElement} image
 * @param {Stored} stored
 * @param {HTMLElement} star
 */
function updatePicture(card, image, stored, star) {
  const { picture } = drawnOf(card);
  if (picture.blob) card.show(image, picture.blob);
  else stored.show(picture.thumbnail_url);
  star.setAttribute("aria-pressed", String(Boolean(picture.favourite)));
  card.element.classList.toggle("loved", Boolean(picture.favourite));
}

/**
 * @param {Card} card
 * @param {Record<"title" | "detail" | "bar" | "badge", HTMLElement> & { image: HTMLImageElement }} parts
 */
function updatePending(card, { image, title, detail, bar, badge }) {
  const item = pendingOf(card);
  const { shot } = item;
  const [first, second] = wordsOf(shot, card.actions.ahead?.(item) ?? -1);
  card.element.dataset.state = shot.state;
  setText(title, first);
  setText(detail, second);
  badge.hidden = !shot.reconnected;
  const drawing = shot.state === "drawing";
  bar.hidden = !drawing;
  const { step = 0, steps = 1 } = shot;
  bar.style.setProperty("--done", String(drawing ? step / steps : 0));
  bar.setAttribute("aria-valuenow", String(drawing ? step : 0));
  bar.setAttribute("aria-valuemax", String(steps));
  card.show(image, shot.preview ?? null);
}

/**
 * [what happens, how long it still takes]
 * @param {ShownShot} shot
 * @param {number} ahead
 */
function wordsOf(shot, ahead) {
  const left_s = ((shot.until ?? 0) - Date.now()) / 1000;
  const { position = 0, step = 0, steps = 1 } = shot;
  switch (shot.state) {
    case "planned":
      return [t("state_waiting"), ""];
    case "waiting":
      return [ahead > 0 ? t("waitHereAhead", { n: ahead }) : t("waitHere"), ""];
    case "sending":
      return [t("sending"), ""];
    case "queued":
      return [
        position > 0 ? t("queuedAhead", { n: position }) : t("queuedNext"),
        left_s > 0.5 ? t("about", { time: duration(left_s) }) : position > 0 ? "" : t("soon"),
      ];
    case "paused":
      return [t(shot.reason ?? "lost"), t("retryIn", { time: duration(left_s) })];
    default:
      if (step >= steps) return [t("finishing"), ""];
      return [
        t("drawingStep", { step, steps }),
        left_s > 0.5 ? t("left", { time: duration(left_s) }) : "",
      ];
  }
}

const FACES = { picture: buildPicture, pending: buildPending, failed: buildFailed };
