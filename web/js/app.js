/** Puts the rooms together: the form makes drawings and jobs, the gallery and the job views show them. */

import { ApiError, createJob } from "./api.js";
import { messageOf } from "./card.js";
import { choose } from "./choice.js";
import { copyText } from "./clipboard.js";
import { $, h, setText } from "./dom.js";
import { fileNameOf } from "./drag.js";
import { bindDrop } from "./drop.js";
import { jobFieldsOf } from "./edits.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Health } from "./health.js";
import { EXAMPLES, inLanguage, switchLanguage, t, translate } from "./i18n.js";
import { Job, OPEN } from "./job.js";
import { Jobs, JobView } from "./jobs.js";
import { Library } from "./library.js";
import { settingsOf } from "./metadata.js";
import { Models } from "./models.js";
import { isTold, originOf, rememberOrigin, storedOriginOf } from "./origins.js";
import { DrawQueue } from "./queue.js";
import { Session } from "./session.js";
import { load, loadForTab, save, saveForTab } from "./settings.js";
import { limitsOf, upscaled } from "./sizes.js";
import { originOfFile, originOfPicture } from "./source.js";
import { bindThemeSwitch, showThemeSwitch } from "./theme.js";
import { toast } from "./toast.js";
import { offerUndo, settleActs } from "./undo.js";
import { Usage } from "./usage.js";
import { Viewer } from "./viewer.js";
import { whyNot } from "./why.js";

const SEARCH_WAIT_MS = 300;
const ALIKE = 4; // pictures at a time

/** @type {JobActions} */
const forPictures = {
  can, favourite, alike, drawFrom, upscale, again, download, copyPrompt, remove, open: (item, where) => viewer.open(item, where),
};
/** @type {Actions} */
const actions = {
  ...forPictures,
  open: (item) => viewer.open(item, gallery),
  ahead: (/** @type {Own} */ { shot }) => queue.ahead(shot.job),
  cancel: (/** @type {Own} */ { shot }) => cancel([shot]),
  dismiss,
  retry,
};

const models = new Models(useModel);
const form = new Form(models, draw, begin);
const queue = new DrawQueue({ changed, settled });
const gallery = new Gallery($("#grid"), actions);
const library = new Library(gallery, renderProgress);
const jobs = new Jobs();
const jobView = new JobView(forPictures, jobs);
const viewer = new Viewer(forPictures);
const health = new Health((entries) => models.take(entries), () => session.open);
const usage = new Usage();
const session = new Session(start, stop);

// How much of what was asked for since the page was last idle is done.
const progress = { done: 0, all: 0 };

// Drawing

/** @param {Values} values */
function draw({ lines, n, seed, ...settings }) {
  const batchAt = Date.now();
  let order = 0;
  const drawings = lines.map((prompt, index) => {
    const line = lines.length > 1 ? index + 1 : null;
    const shots = Array.from({ length: n }, (_, k) => ({
      id: crypto.randomUUID?.() ?? `${batchAt}-${order}`, // only secure contexts have UUIDs
      order: order++,
      seed: seed === null ? null : (seed + k) % 2 ** 32,
    }));
    return new Job({ settings: { ...settings, prompt }, shots, batchAt, line });
  });
  const shots = drawings.flatMap((drawing) => drawing.shots);
  progress.all += shots.length;
  if (library.filtered) showAll();
  gallery.prepend(shots.map(itemOf));
  queue.add(drawings);
  renderProgress();
  show("gallery");
  // Once the gallery is on show.
  setTimeout(() => gallery.card(shots[0].id)?.element.scrollIntoView({ block: "nearest" }));
}

/**
 * Make a job: it is drawn whether this page is open or not.
 * @param {{ size: string }} body
 * @param {Origin | null} origin
 */
async function begin(body, origin) {
  const button = $("#draw");
  button.disabled = true;
  try {
    const key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    const from = origin ? await jobFieldsOf(origin, body.size) : {};
    const job = await createJob({ ...body, ...from, idempotency_key: key });
    if (origin) rememberOrigin(job.id, origin);
    toast(t("jobBegun", { n: job.total }));
    await jobs.poll();
    show(`job=${job.id}`);
  } catch (error) {
    if (error instanceof ApiError) lookAgain(error);
    form.showError(error instanceof ApiError ? error.param : null, whyNot(error));
  } finally {
    button.disabled = false;
  }
}

/**
 * The models are others than the page knows.
 * @param {ShotNews["error"]} error
 */
function lookAgain(error) {
  if (error?.code === "model_not_found") health.askModels();
}

/** @param {string} view */
function show(view) {
  location.hash = `#${view}`;
  const narrow = matchMedia("(max-width: 860px)").matches;
  if (narrow) $("#stage").scrollIntoView();
}

/**
 * @param {Shot} shot
 * @returns {Own}
 */
const itemOf = (shot) => ({ id: shot.id, batchAt: shot.job.batchAt, order: shot.order, shot, picture: null });

/** @param {Shot} shot */
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

/** @param {Shot} shot */
function forgo(shot) {
  progress.all -= 1;
  gallery.remove(shot.id);
}

/** @param {Shot} shot */
function finish(shot) {
  const card = gallery.card(shot.id);
  const id = shot.imageId;
  if (!card || !id) return;
  const { prompt, width, height, steps, format, guidance, negative, lora } = shot.job.settings;
  const model = models.named(shot.job.settings.model) ?? models.picked;
  const { origin } = shot.job.settings;
  // From a picture, a part of the steps is drawn, as strength says.
  const usual = origin ? model?.default_steps : shot.steps;
  const drawn = { prompt, width, height, format, seed: shot.seed, steps: steps ?? usual ?? null };
  const url = `v1/images/${id}`;
  const stored = { id, url, thumbnail_url: `${url}/thumbnail`, favourite: false };
  const rest = { guidance_scale: guidance, negative_prompt: negative ?? "", lora, model: model?.id, blob: shot.blob };
  if (origin) rememberOrigin(id, origin);
  gallery.finish(card.item, { ...stored, ...drawn, ...rest });
  shot.blob = null;
  progress.done += 1;
  viewer.render();
}

// One card tells of the whole request: its siblings failed for the same reason.
/** @param {Shot} shot */
function failed(shot) {
  const { job } = shot;
  const first = job.shots.find(({ state }) => state === "failed");
  if (first !== shot) return gallery.remove(shot.id);
  lookAgain(shot.error);
  const { param, status = 0 } = shot.error ?? {};
  if (status < 400 || status >= 500 || job.settings.origin?.as) return; // or not by the form
  const message = messageOf(shot);
  const ofLine = job.line && param?.startsWith("prompt");
  form.showError(param, ofLine ? t("errorLine", { line: job.line, message }) : message);
}

/** @param {Own} item */
function retry(item) {
  gallery.remove(item.id);
  redraw(item.shot.job.shots.filter(({ state }) => state === "failed"));
}

/**
 * Draw `shots` after all, with the seeds and in the places that they have.
 * @param {Shot[]} shots
 */
function redraw(shots) {
  const drawings = [...new Set(shots.map(({ job }) => job))].map((job) => {
    const own = shots.filter((shot) => shot.job === job).map(({ id, order, seed }) => ({ id, order, seed }));
    const { settings, batchAt, line, resume } = job;
    return new Job({ settings, shots: own, batchAt, line, resume });
  });
  progress.all += shots.length;
  drawings.flatMap((drawing) => drawing.shots.map(itemOf)).forEach((item) => gallery.insert(item));
  queue.add(drawings);
  renderProgress();
}

/** @param {Shot[]} shots */
function cancel(shots) {
  if (!shots.length) return;
  queue.cancel(shots);
  offerUndo({ words: "cancelled", n: shots.length, undo: () => redraw(shots) });
}

/** @param {Item} item */
function dismiss(item) {
  gallery.remove(item.id);
  renderProgress();
  offerUndo({ words: "dismissed", undo: () => (gallery.insert(item), renderProgress()) });
}

// What is done with pictures

/**
 * Whether the model can do that with `picture`: what it cannot is not offered.
 * @param {"alike" | "drawFrom" | "upscale"} name
 * @param {Picture} picture
 */
function can(name, picture) {
  const model = name === "drawFrom" ? models.picked : models.of(picture);
  return Boolean(model?.edits) && (name !== "upscale" || largerThan(picture) !== null);
}

/** @param {Picture} picture */
function largerThan(picture) {
  const model = models.of(picture);
  return model && upscaled(picture, limitsOf(model));
}

/** @param {Drawn} item */
async function again({ picture }) {
  const known = originOf(picture) ?? (isTold(picture) ? await storedOriginOf(picture) : null);
  const origin = picture.mask_sha256 && !known?.mask ? null : known; // with no mask it would be another picture
  const drawable = origin && origin.as !== "upscale"; // the form draws nothing as large
  const missed = picture.image_sha256 && !origin ? [t("sourceMissed")] : [];
  form.fill(picture, drawable ? { ...origin, as: undefined } : null, missed);
}

/** @param {Drawn} item */
async function drawFrom({ picture }) {
  form.drawFrom(await originOfPicture(picture), picture.prompt);
}

/** @param {Drawn} item */
async function alike({ picture }) {
  const { prompt, width, height, steps, format, guidance_scale: guidance, negative_prompt: negative, lora } = picture;
  const model = drawnBy(picture);
  const settings = { width, height, steps, format, guidance, negative, lora, model };
  const n = Math.min(ALIKE, models.of(picture)?.max_images ?? ALIKE);
  draw({ ...settings, lines: [prompt], n, seed: null, origin: { ...(await originOfPicture(picture)), as: "like" } });
}

/**
 * The model for another one like `picture`, as requests say it. Tells where it cannot be the same.
 * @param {Picture} picture
 */
function drawnBy(picture) {
  const missed = models.missed(picture);
  if (missed) toast(missed);
  return models.asked(models.of(picture));
}

/** @param {Drawn} item */
async function upscale({ picture }) {
  const size = largerThan(picture);
  if (!size) return;
  const [width, height] = size;
  const { prompt, format, guidance_scale: guidance, negative_prompt: negative, lora } = picture;
  const settings = { width, height, steps: null, format, guidance, negative, lora, model: drawnBy(picture) };
  draw({ ...settings, lines: [prompt], n: 1, seed: null, origin: { ...(await originOfPicture(picture)), as: "upscale" } });
}

/** @param {Drawn} item */
function download({ picture }) {
  const href = picture.blob ? URL.createObjectURL(picture.blob) : `${picture.url}?download=1`;
  h("a", { href, download: fileNameOf(picture) }).click();
  if (picture.blob) setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/** @param {Drawn} item */
async function copyPrompt({ picture }) {
  toast(t((await copyText(picture.prompt)) ? "copied" : "copyFailed"));
}

/** @param {Drawn} item */
async function favourite(item) {
  const wanted = !item.picture.favourite;
  setFavourite(item.picture.id, wanted);
  item.marking = true; // what the server last said is older than this
  await library.mark(item.picture, wanted).catch((error) => {
    setFavourite(item.picture.id, !wanted);
    toast(whyNot(error));
  });
  item.marking = false;
}

/**
 * @param {string} id
 * @param {boolean} loved
 */
function setFavourite(id, loved) {
  for (const grid of [gallery, jobView.gallery]) {
    const item = grid.itemOf(id);
    if (!item) continue;
    item.picture.favourite = loved;
    grid.refresh(item.id);
  }
  viewer.render();
}

/** @param {Drawn} item */
function remove({ picture }) {
  const { id } = picture;
  const places = [gallery, jobView.gallery].flatMap((grid) => {
    const item = grid.itemOf(id);
    return item ? [{ grid, item }] : [];
  });
  for (const { grid, item } of places) grid.remove(item.id);
  library.forget(id);
  renderProgress();
  viewer.render();
  const back = () => {
    library.restore(id);
    for (const { grid, item } of places) grid.insert(item);
    renderProgress();
    viewer.render();
  };
  const undo = () => {
    back();
    const { item, grid } = places[0];
    if (viewer.isOpen) viewer.open(item, grid);
  };
  const stays = (/** @type {unknown} */ error) => (back(), toast(whyNot(error)));
  offerUndo({ words: "removed", undo, settle: (leaving) => library.delete(id, leaving).catch(stays) });
}

/** @param {File} file */
async function takeUp(file) {
  if ($("#mask-editor").open) return;
  const settings = await settingsOf(file);
  const edits = models.picked?.edits;
  const origin = edits ? await originOfFile(file) : null;
  if (!settings && !origin) return toast(t(edits ? "noPicture" : "noSettings"));
  const use = !origin ? "settings" : !settings ? "draw" : await choose(file);
  if (use === "settings" && settings) form.fill(settings);
  if (use === "draw" && origin) form.drawFrom(origin, settings?.prompt);
}

// What is on show

const VIEWS = ["gallery", "jobs", "job", "usage"];

function route() {
  const [, name, id] = location.hash.match(/^#(\w+)(?:=([\w-]+))?$/) ?? [];
  const view = VIEWS.includes(name ?? "") && (name === "job") === Boolean(id) ? name : "gallery";
  for (const other of VIEWS) $(`#view-${other}`).hidden = other !== view;
  for (const tab of document.querySelectorAll(".tabs a")) {
    const of = tab.getAttribute("data-view");
    const here = of === view || (view === "job" && of === "jobs");
    if (here) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  $("#strip").hidden = view === "job" || view === "jobs"; // they show the same
  if (!session.open) return;
  if (view === "job" && id) jobView.open(id);
  else jobView.close();
  viewer.render();
  if (view === "jobs") jobs.poll();
  if (view === "usage") usage.load();
}

function renderProgress() {
  const open = queue.openShots.length;
  const { length } = gallery.pictures;
  const counted = t(library.hasMore ? "countMore" : "count", { n: length });
  const text = open ? t("progress", progress) : library.reachable === false ? t("galleryAway") : length ? counted : "";
  setText($("#summary"), text);
  if (progress.all) setText($("#live"), t("progress", progress));
  document.title = open ? `(${progress.done}/${progress.all}) Z-Image` : "Z-Image";
  $("#cancel-all").hidden = !open;
  $("#nothing").hidden = gallery.size > 0 || !library.filtered;
  $("#empty").hidden = gallery.size > 0 || library.filtered || library.reachable === null;
  $("#more-pictures").hidden = !library.hasMore;
}

/** @param {ModelEntry} entry */
function useModel(entry) {
  form.setLimits(limitsOf(entry));
  renderModel();
  for (const part of [gallery, jobView, viewer]) part.render(); // they offer what it can
}

function renderModel() {
  const model = models.picked;
  setText($("#from-file-label"), t(model?.edits ? "fromPicture" : "settingsFromPicture"));
  setText($("#drop-words"), t(model?.edits ? "dropHere" : "dropForSettings"));
  const examples = EXAMPLES[/tiny/.test(model?.id ?? "") ? "tiny" : "any"].map(inLanguage);
  /** @param {string} text */
  const chip = (text) => h("button", { type: "button", class: "chip", onclick: () => form.setPrompt(text) }, text);
  $("#examples").replaceChildren(...examples.map(chip));
}

function render() {
  translate();
  $("#language").textContent = t("language");
  $("#language").setAttribute("aria-label", t("languageLabel"));
  showThemeSwitch($("#theme"));
  for (const part of [models, form, gallery, jobs, jobView, health, viewer, usage, session]) part.render();
  renderModel();
  renderProgress();
}

function bind() {
  $("#language").addEventListener("click", () => (switchLanguage(), render()));
  bindThemeSwitch($("#theme"));
  bindDrop(takeUp);
  bindFilter();
  $("#cancel-all").addEventListener("click", () => cancel(queue.openShots));
  const tile = load("tile", "m");
  /** @param {string} value */
  const setTile = (value) => {
    for (const grid of ["#grid", "#job-grid"]) $(grid).dataset.tile = value;
  };
  setTile(tile);
  for (const input of $("#tiles").querySelectorAll("input")) {
    input.checked = input.value === tile;
    input.addEventListener("change", () => {
      setTile(input.value);
      save("tile", input.value);
    });
  }
  addEventListener("hashchange", route);
  // Both, because a phone may end a hidden page without a further word.
  addEventListener("pagehide", () => {
    remember(true);
    settleActs(true);
  });
  document.addEventListener("visibilitychange", () => remember(document.hidden));
}

function bindFilter() {
  /** @type {Timer} */
  let timer;
  const apply = () => {
    const favourite = $("#favourites").getAttribute("aria-pressed") === "true" ? /** @type {const} */ (true) : null;
    library.show({ q: $("#search").value.trim(), favourite });
  };
  $("#search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(apply, SEARCH_WAIT_MS);
  });
  $("#favourites").addEventListener("click", () => {
    const pressed = $("#favourites").getAttribute("aria-pressed") === "true";
    $("#favourites").setAttribute("aria-pressed", String(!pressed));
    apply();
  });
}

function showAll() {
  $("#search").value = "";
  $("#favourites").setAttribute("aria-pressed", "false");
  library.show({ q: "", favourite: null });
}

// Nothing is left there while the page lives: a tab that is duplicated must not draw it all again.
/** @param {boolean} away */
function remember(away) {
  saveForTab("open", away ? queue.jobs.filter((job) => job.open.length) : []);
}

function restore() {
  /** @type {SavedJob[]} */
  const saved = loadForTab("open", []);
  const drawings = saved.map((job) => new Job(job));
  saveForTab("open", []);
  const shots = drawings.flatMap((drawing) => drawing.shots);
  progress.all += shots.length;
  shots.map(itemOf).forEach((item) => gallery.insert(item));
  queue.add(drawings);
}

/** Everything that the server has for this person. */
function start() {
  health.start();
  library.start();
  jobs.start();
  usage.start();
  route();
}

/** Nobody is signed in: nothing is asked for. */
function stop() {
  jobs.stop();
  library.stop();
}

bind();
render();
health.start();
restore();
session.start();
