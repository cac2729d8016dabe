/** One place in the gallery: a picture, or what is known about one that is still to come. */

import { h, icon, setText } from "./dom.js";
import { duration, reasonOf, t } from "./i18n.js";
import { OPEN } from "./job.js";
import { Stored } from "./stored.js";

const PENDING = new Set([...OPEN, "planned"]);

const faceOf = (item) => {
  if (item.picture) return "picture";
  return PENDING.has(item.shot.state) ? "pending" : "failed";
};

export class Card {
  element = h("li", { class: "card" });
  #face = null;
  #shown = null; // the blob on display
  #url = null;
  #parts = {};

  /** `item`: {id, shot, picture}; `actions`: functions of the item, by name. */
  constructor(item, actions) {
    this.item = item;
    this.actions = actions;
    const { width, height } = item.picture ?? item.shot.job.settings;
    this.element.style.setProperty("--ratio", width / height);
    this.update();
  }

  get opener() {
    return this.#parts.open;
  }

  /** Of the whole picture. */
  get url() {
    return this.#url ?? this.item.picture.url;
  }

  update() {
    const face = faceOf(this.item);
    if (face !== this.#face) this.#turn(face);
    FACES[face].update(this, this.#parts);
  }

  /** Build the words anew, as after a change of language. */
  rebuild() {
    this.#face = null;
    this.update();
  }

  show(image, blob) {
    if (this.#shown !== blob) {
      if (this.#url) URL.revokeObjectURL(this.#url);
      this.#url = blob ? URL.createObjectURL(blob) : null;
      this.#shown = blob;
    }
    image.hidden = !blob;
    if (!blob) image.removeAttribute("src");
    else if (image.src !== this.#url) image.src = this.#url;
  }

  remove() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.element.remove();
  }

  #turn(face) {
    const focused = this.element.contains(document.activeElement);
    this.#face = face;
    this.element.dataset.face = face;
    delete this.element.dataset.state;
    this.#parts = FACES[face].build(this);
    this.element.replaceChildren(this.#parts.frame, this.#parts.caption);
    if (focused) this.element.querySelector("button")?.focus();
  }
}

function button(card, name, iconName, extra = {}) {
  const label = t(name);
  const run = () => card.actions[name](card.item);
  const properties = { type: "button", class: "tool", "aria-label": label, title: label, onclick: run };
  return h("button", { ...properties, ...extra }, icon(iconName));
}

function caption(prompt, ...more) {
  return h("div", { class: "caption" }, h("p", { class: "words", title: prompt }, prompt), ...more);
}

function buildPicture(card) {
  const { prompt, seed, width, height } = card.item.picture;
  const image = h("img", { alt: "", loading: "lazy", decoding: "async", width, height });
  const label = t("open", { prompt, seed });
  const run = () => card.actions.open(card.item);
  const open = h("button", { type: "button", class: "open", "aria-label": label, onclick: run }, image);
  const star = button(card, "favourite", "star", { class: "tool star" });
  const tools = h(
    "div",
    { class: "tools" },
    star,
    button(card, "download", "download", { class: "tool download" }),
    button(card, "again", "again"),
    button(card, "copyPrompt", "copy"),
  );
  const meta = h("p", { class: "meta" }, h("span", {}, `${width} × ${height}`), h("span", {}, `#${seed}`));
  if (card.item.shot?.reconnected) meta.append(h("span", { class: "badge" }, t("reconnected")));
  const stored = new Stored(image);
  const frame = h("div", { class: "frame" }, stored.words, open, tools);
  return { frame, caption: caption(prompt, meta), open, image, stored, star };
}

function buildPending(card) {
  const { prompt } = card.item.shot.job.settings;
  const image = h("img", { alt: "", class: "preview", hidden: true });
  const title = h("p", { class: "title" });
  const detail = h("p", { class: "detail" });
  const bar = h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-label": prompt });
  bar.append(h("span"));
  const ownCancel = { class: "tool cancel", "aria-label": t("cancelOf", { prompt }) };
  const cancel = card.actions.cancel ? button(card, "cancel", "close", ownCancel) : ""; // a job is cancelled whole
  const badge = h("span", { class: "badge", hidden: true }, t("reconnected"));
  const words = h("div", { class: "status" }, badge, title, detail, bar);
  const frame = h("div", { class: "frame" }, image, words, cancel);
  return { frame, caption: caption(prompt), image, title, detail, bar, badge };
}

function buildFailed(card) {
  const { job, error } = card.item.shot;
  const words = h("p", { class: "detail" }, messageOf(card.item.shot));
  const cancelled = card.item.shot.state === "cancelled";
  const title = h("p", { class: "title" }, icon("alert"), t(cancelled ? "state_cancelled" : "failed"));
  const again = h("button", { type: "button", class: "ghost" }, t("tryAgain"));
  again.addEventListener("click", () => card.actions.retry(card.item));
  const away = h("button", { type: "button", class: "ghost" }, t("dismiss"));
  away.addEventListener("click", () => card.actions.dismiss(card.item));
  // What the server refused once, it refuses again: only a changed form helps.
  const refused = error?.status >= 400 && error?.status < 500;
  const choices = card.actions.retry ? (refused ? [away] : [again, away]) : [];
  const buttons = h("div", { class: "choices" }, ...choices);
  const status = h("div", { class: "status" }, title, words, buttons);
  return { frame: h("div", { class: "frame" }, status), caption: caption(job.settings.prompt) };
}

export function messageOf({ error, tries }) {
  if (!error) return "";
  if (error.message) return reasonOf(error);
  if (error.status) return t("errorHttp", { status: error.status });
  return tries ? t("errorStream", { n: tries }) : t("errorNetwork");
}

function updatePicture(card, { image, stored, star }) {
  const { picture } = card.item;
  if (picture.blob) card.show(image, picture.blob);
  else stored.show(picture.thumbnail_url);
  star.setAttribute("aria-pressed", String(Boolean(picture.favourite)));
  card.element.classList.toggle("loved", Boolean(picture.favourite));
}

function updatePending(card, { image, title, detail, bar, badge }) {
  const { shot } = card.item;
  const [first, second] = wordsOf(shot, card.actions.ahead?.(card.item) ?? -1);
  card.element.dataset.state = shot.state;
  setText(title, first);
  setText(detail, second);
  badge.hidden = !shot.reconnected;
  const drawing = shot.state === "drawing";
  bar.hidden = !drawing;
  bar.style.setProperty("--done", drawing ? shot.step / shot.steps : 0);
  bar.setAttribute("aria-valuenow", drawing ? shot.step : 0);
  bar.setAttribute("aria-valuemax", shot.steps ?? 1);
  card.show(image, shot.preview ?? null);
}

/** [what happens, how long it still takes] */
function wordsOf(shot, ahead) {
  const left_s = (shot.until - Date.now()) / 1000;
  switch (shot.state) {
    case "planned":
      return [t("state_waiting"), ""];
    case "waiting":
      return [ahead > 0 ? t("waitHereAhead", { n: ahead }) : t("waitHere"), ""];
    case "sending":
      return [t("sending"), ""];
    case "queued":
      return [
        shot.position > 0 ? t("queuedAhead", { n: shot.position }) : t("queuedNext"),
        left_s > 0.5 ? t("about", { time: duration(left_s) }) : t("soon"),
      ];
    case "paused":
      return [t(shot.reason), t("retryIn", { time: duration(left_s) })];
    default:
      if (shot.step >= shot.steps) return [t("finishing"), ""];
      return [
        t("drawingStep", { step: shot.step, steps: shot.steps }),
        left_s > 0.5 ? t("left", { time: duration(left_s) }) : "",
      ];
  }
}

const FACES = {
  picture: {
    build: buildPicture,
    update: updatePicture,
  },
  pending: { build: buildPending, update: updatePending },
  failed: { build: buildFailed, update: () => {} },
};
