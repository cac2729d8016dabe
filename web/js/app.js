/** Puts the rooms together: the form makes jobs, the queue draws them, the gallery shows them. */

import { messageOf } from "./card.js";
import { copyText } from "./clipboard.js";
import { $, h, setText } from "./dom.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Health } from "./health.js";
import { EXAMPLES, inLanguage, switchLanguage, t, translate } from "./i18n.js";
import { Job, OPEN } from "./job.js";
import { allPictures, forgetPicture, keepPicture, MAX_PICTURES } from "./pictures.js";
import { DrawQueue } from "./queue.js";
import { load, loadForTab, save, saveForTab } from "./settings.js";
import { limitsOf } from "./sizes.js";
import { bindThemeSwitch, showThemeSwitch } from "./theme.js";
import { toast } from "./toast.js";
import { Viewer } from "./viewer.js";

const actions = {
  open: (item) => viewer.open(item),
  ahead: (item) => queue.ahead(item.shot.job),
  cancel: (item) => queue.cancel(item.shot),
  dismiss: (item) => drop(item),
  retry,
  again,
  download,
  copyPrompt,
  remove,
};

const form = new Form(draw);
const queue = new DrawQueue({ changed, settled });
const gallery = new Gallery(actions);
const viewer = new Viewer(gallery, actions);
const health = new Health(useModel);

// How much of what was asked for since the page was last idle is done.
const progress = { done: 0, all: 0 };
let model = null;

function draw({ lines, n, seed, ...settings }) {
  const batchAt = Date.now();
  let order = 0;
  const jobs = lines.map((prompt, index) => {
    const line = lines.length > 1 ? index + 1 : null;
    const shots = Array.from({ length: n }, (_, k) => ({
      id: crypto.randomUUID?.() ?? `${batchAt}-${order}`, // only secure contexts have UUIDs
      order: order++,
      seed: seed === null ? null : (seed + k) % 2 ** 32,
    }));
    return new Job({ settings: { ...settings, prompt }, shots, batchAt, line });
  });
  begin(jobs);
  const narrow = matchMedia("(max-width: 860px)").matches;
  if (narrow) $("#stage").scrollIntoView();
}

function begin(jobs) {
  const shots = jobs.flatMap((job) => job.shots);
  progress.all += shots.length;
  gallery.prepend(shots.map(itemOf));
  queue.add(jobs);
  renderProgress();
}

const itemOf = (shot) => ({ id: shot.id, batchAt: shot.job.batchAt, order: shot.order, shot, picture: null });

function changed(shot) {
  if (shot.state === "done") finish(shot);
  if (shot.state === "cancelled") forgo(shot);
  if (shot.state === "failed") failed(shot);
  gallery.refresh(shot.id);
  if (!OPEN.has(shot.state)) renderProgress();
}

function settled() {
  renderProgress();
  if (!queue.jobs.length) Object.assign(progress, { done: 0, all: 0 });
}

function forgo(shot) {
  progress.all -= 1;
  gallery.remove(shot.id);
}

async function finish(shot) {
  const card = gallery.card(shot.id);
  if (!card) return;
  const { prompt, width, height, steps, format } = shot.job.settings;
  const { id, seed, blob } = shot;
  const place = { batchAt: shot.job.batchAt, order: shot.order };
  const picture = { id, ...place, prompt, width, height, seed, steps: steps ?? shot.steps ?? null, format, blob };
  card.item.picture = picture;
  shot.blob = null;
  progress.done += 1;
  viewer.render();
  if (!(await keepPicture(picture))) toast(t("notKept"));
}

// One card tells of the whole request: its siblings failed for the same reason.
function failed(shot) {
  const { job } = shot;
  const first = job.shots.find(({ state }) => state === "failed");
  if (first !== shot) return gallery.remove(shot.id);
  const { param, status } = shot.error;
  if (status < 400 || status >= 500) return;
  const message = messageOf(shot);
  const ofLine = job.line && param?.startsWith("prompt");
  form.showError(param, ofLine ? t("errorLine", { line: job.line, message }) : message);
}

function retry(item) {
  const { settings, shots, batchAt, line } = item.shot.job;
  drop(item);
  const open = shots.filter(({ state }) => state === "failed").map(({ id, order, seed }) => ({ id, order, seed }));
  const job = new Job({ settings, shots: open, batchAt, line });
  progress.all += open.length;
  job.shots.map(itemOf).forEach((again) => gallery.insert(again));
  queue.add([job]);
  renderProgress();
}

function drop(item) {
  gallery.remove(item.id);
  renderProgress();
}

function again({ picture }) {
  form.fill(picture);
  toast(t("reused"));
}

function download({ id, picture }) {
  const words = picture.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 48).replace(/^-|-$/g, "");
  const extension = picture.format === "jpeg" ? "jpg" : picture.format;
  h("a", { href: gallery.card(id).url, download: `${words}-${picture.seed}.${extension}` }).click();
}

async function copyPrompt({ picture }) {
  toast(t((await copyText(picture.prompt)) ? "copied" : "copyFailed"));
}

function remove(item) {
  drop(item);
  forgetPicture(item.id);
  viewer.render();
  const undo = () => {
    gallery.insert(item);
    keepPicture(item.picture);
    renderProgress();
  };
  toast(t("removed"), { label: t("undo"), run: undo });
}

function renderProgress() {
  const open = queue.openShots.length;
  const text = open ? t("progress", progress) : gallery.size ? t("count", { n: gallery.pictures.length }) : "";
  setText($("#summary"), text);
  if (progress.all) setText($("#live"), t("progress", progress));
  document.title = open ? `(${progress.done}/${progress.all}) Z-Image` : "Z-Image";
  $("#cancel-all").hidden = !open;
  $("#empty").hidden = gallery.size > 0;
}

function useModel(entry) {
  model = entry;
  form.setLimits(limitsOf(entry));
  renderModel();
}

function renderModel() {
  setText($("#model"), model?.id?.split("/").pop() ?? "");
  const examples = EXAMPLES[/tiny/.test(model?.id ?? "") ? "tiny" : "any"].map(inLanguage);
  const fill = (text) => () => form.setPrompt(text);
  const chip = (text) => h("button", { type: "button", class: "chip", onclick: fill(text) }, text);
  $("#examples").replaceChildren(...examples.map(chip));
}

function render() {
  translate();
  $("#language").textContent = t("language");
  $("#language").setAttribute("aria-label", t("languageLabel"));
  showThemeSwitch($("#theme"));
  form.render();
  gallery.render();
  health.render();
  viewer.render();
  renderModel();
  renderProgress();
}

function bind() {
  $("#language").addEventListener("click", () => (switchLanguage(), render()));
  bindThemeSwitch($("#theme"));
  $("#cancel-all").addEventListener("click", () => queue.cancelAll());
  const tile = load("tile", "m");
  $("#grid").dataset.tile = tile;
  for (const input of $("#tiles").querySelectorAll("input")) {
    input.checked = input.value === tile;
    input.addEventListener("change", () => {
      $("#grid").dataset.tile = input.value;
      save("tile", input.value);
    });
  }
  // Both, because a phone may end a hidden page without a further word.
  addEventListener("pagehide", () => remember(true));
  document.addEventListener("visibilitychange", () => remember(document.hidden));
}

// Nothing is left there while the page lives: a tab that is duplicated must not draw it all again.
function remember(leaving) {
  saveForTab("open", leaving ? queue.jobs.filter((job) => job.open.length) : []);
}

async function restore() {
  const pictures = await allPictures();
  for (const { id, batchAt, order, ...rest } of pictures.slice(0, MAX_PICTURES)) {
    gallery.insert({ id, batchAt, order, shot: null, picture: { id, batchAt, order, ...rest } });
  }
  const jobs = loadForTab("open", []).map((saved) => new Job(saved));
  saveForTab("open", []);
  const shots = jobs.flatMap((job) => job.shots);
  progress.all += shots.length;
  shots.map(itemOf).forEach((item) => gallery.insert(item));
  queue.add(jobs);
  renderProgress();
}

bind();
render();
health.start();
restore();
