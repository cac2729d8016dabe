/** Durable jobs: the list, the strip of those that run, and one job with its pictures as they come. */

import { deleteJob, getJob, jobEvents, listItems, listJobs, steerJob, zipOf } from "./api.js";
import { $, h, icon, setText, whenNear } from "./dom.js";
import { Gallery } from "./gallery.js";
import { clock, duration, named, t } from "./i18n.js";
import { toast } from "./toast.js";
import { offerUndo } from "./undo.js";
import { whyNot } from "./why.js";

const BUSY_MS = 2000;
const CALM_MS = 10_000;
const PAGE = 200;
const RUNNING = new Set(["running", "paused"]);
const OVER = new Set(["cancelled", "completed", "failed"]); // of a state of neither kind this page knows nothing

/** All jobs of this person, as the server last told. */
export class Jobs {
  /** @type {Map<string, JobRow[]>} */
  #rows = new Map(); // by job id: [row in the list, row in the strip]
  /** @type {Timer} */
  #timer;

  /** @type {Set<string>} */
  #forgotten = new Set(); // ids of those that are deleted unless that is taken back

  constructor() {
    /** @type {StoredJob[]} */
    this.all = [];
    this.started = false;
    document.addEventListener("visibilitychange", () => this.poll());
  }

  get running() {
    return this.all.filter(({ state }) => RUNNING.has(state));
  }

  start() {
    this.started = true;
    this.poll();
  }

  async poll() {
    clearTimeout(this.#timer);
    if (document.hidden || !this.started) return;
    const answer = await listJobs().catch(() => null);
    if (answer) this.#take(answer.data);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.poll(), this.running.length ? BUSY_MS : CALM_MS);
  }

  stop() {
    clearTimeout(this.#timer);
    this.started = false;
  }

  /** Words anew. */
  render() {
    this.#rows.clear();
    this.#show();
  }

  /**
   * Show `job` as it was told to be; nobody is asked.
   * @param {StoredJob} job
   */
  put(job) {
    const place = this.all.findIndex(({ id }) => id === job.id);
    if (place >= 0) this.all[place] = job;
    this.#show();
  }

  /**
   * Delete `job` once nobody may take that back any more.
   * @param {StoredJob} job
   */
  forget({ id }) {
    const where = location.hash;
    const set = (/** @type {boolean} */ gone) => {
      if (gone) this.#forgotten.add(id);
      else this.#forgotten.delete(id);
      this.#show();
    };
    set(true);
    if (where === `#job=${id}`) location.hash = "#jobs";
    const undo = () => {
      set(false);
      location.hash = where;
    };
    const stays = (/** @type {unknown} */ error) => (set(false), toast(whyNot(error)));
    const settle = (/** @type {boolean} */ leaving) => void deleteJob(id, leaving).catch(stays);
    offerUndo({ words: "jobForgotten", undo, settle });
  }

  /** @param {StoredJob[]} jobs */
  #take(jobs) {
    const known = new Map(this.all.map((job) => [job.id, job]));
    this.all = jobs.map((job) => {
      const other = known.get(job.id); // whose events may have come first
      return (other?.revision ?? 0) > (job.revision ?? 0) ? /** @type {StoredJob} */ (other) : job;
    });
    this.#show();
  }

  #show() {
    const shown = this.all.filter(({ id }) => !this.#forgotten.has(id));
    const running = shown.filter(({ state }) => RUNNING.has(state));
    arrange($("#jobs"), shown.map((job) => this.#row(job, 0)));
    arrange($("#strip"), running.map((job) => this.#row(job, 1)));
    $("#no-jobs").hidden = shown.length > 0;
    $("#jobs-count").hidden = !running.length;
    setText($("#jobs-count"), String(running.length));
  }

  /**
   * @param {StoredJob} job
   * @param {number} place
   */
  #row(job, place) {
    const acted = (/** @type {StoredJob | undefined} */ now) => (now ? this.put(now) : this.poll());
    const rows = this.#rows.get(job.id) ?? [new JobRow(acted, this), new JobRow(acted, this)];
    this.#rows.set(job.id, rows);
    rows[place].update(job);
    return rows[place].element;
  }
}

/**
 * Put `elements` into `list` in their order, touching only what is elsewhere: the focus stays.
 * @param {HTMLElement} list
 * @param {Element[]} elements
 */
function arrange(list, elements) {
  for (const element of [...list.children]) if (!elements.includes(element)) element.remove();
  elements.forEach((element, k) => {
    if (list.children[k] !== element) list.insertBefore(element, list.children[k] ?? null);
  });
}

const ICONS = { pause: "pause", resume: "play", cancel: "close", retry: "again" };

/**
 * What can be done with `job` now.
 * @param {StoredJob} job
 */
function verbsOf({ state, counts }) {
  /** @type {Verb[]} */
  const verbs = [];
  if (state === "running") verbs.push("pause");
  if (state === "paused") verbs.push("resume");
  if (OVER.has(state) && counts.failed + counts.cancelled > 0) verbs.push("retry");
  if (RUNNING.has(state)) verbs.push("cancel");
  return verbs;
}

/** One job: name, bar, numbers, buttons. */
export class JobRow {
  element = h("li", { class: "job" });
  #buttons = "";
  #paused = false;
  /** @type {Record<"name" | "badge" | "bar" | "fill" | "facts" | "tools", HTMLElement> | null} */
  #parts = null;

  /**
   * `acted(job)` after each button, with what the job became: undefined where nothing came of it. `jobs`
   * are those among which it stands.
   * @param {(job?: StoredJob) => void} acted
   * @param {Jobs} jobs
   */
  constructor(acted, jobs) {
    this.acted = acted;
    this.jobs = jobs;
  }

  /** @param {StoredJob} job */
  update(job) {
    const parts = this.#parts ?? this.#build(job);
    this.#parts = parts;
    const { name, bar, fill, facts, badge, tools } = parts;
    const { done, failed } = job.counts;
    this.#paused = job.state === "paused";
    this.element.dataset.state = job.held ? "paused" : job.state;
    setText(name, job.name || t("jobUnnamed", { time: clock(job.created_at) }));
    setText(badge, job.held ? named("", job.held) : named("state_", job.state));
    setText(facts, factsOf(job).join("  ·  "));
    bar.setAttribute("aria-valuenow", String(done));
    bar.setAttribute("aria-valuemax", String(job.total));
    bar.setAttribute("aria-label", name.textContent);
    fill.style.setProperty("--done", String((done + failed) / job.total));
    fill.style.setProperty("--bad", String(failed / job.total));
    this.#renderButtons(job, tools);
  }

  /** @param {StoredJob} job */
  #build(job) {
    const name = h("a", { class: "name", href: `#job=${job.id}` });
    const badge = h("span", { class: "badge" });
    const fill = h("span");
    const bar = h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0 }, fill);
    const facts = h("p", { class: "facts" });
    const tools = h("div", { class: "job-tools" });
    this.element.replaceChildren(h("div", { class: "job-head" }, name, badge), tools, bar, facts);
    return { name, badge, bar, fill, facts, tools };
  }

  /**
   * @param {StoredJob} job
   * @param {HTMLElement} tools
   */
  #renderButtons(job, tools) {
    const verbs = verbsOf(job);
    const zip = job.counts.done > 0;
    const key = [...verbs, zip, job.state].join();
    if (key === this.#buttons) return;
    this.#buttons = key;
    const focused = tools.contains(document.activeElement);
    /** @type {HTMLElement[]} */
    const buttons = verbs.map((verb) => {
      const words = verb === "retry" && job.state === "cancelled" ? "retryCancelled" : verb;
      return button(words, ICONS[verb], () => this.#steer(job.id, verb));
    });
    if (zip) {
      const all = { class: "ghost", href: zipOf(job.id), download: "", title: t("zip"), "aria-label": t("zip") };
      buttons.push(h("a", all, icon("download"), h("span", {}, "ZIP")));
    }
    if (OVER.has(job.state)) buttons.push(button("forgetJob", "trash", () => this.jobs.forget(job)));
    tools.replaceChildren(...buttons);
    if (focused) buttons[0]?.focus();
  }

  /**
   * @param {string} id
   * @param {Verb} verb
   * @param {boolean} paused
   */
  async #steer(id, verb, paused = false) {
    const wasPaused = this.#paused;
    const job = await steerJob(id, verb, paused).catch((error) => {
      toast(whyNot(error));
      return undefined;
    });
    this.acted(job);
    if (verb === "cancel" && job) offerUndo({ words: "jobCancelled", undo: () => this.#steer(id, "retry", wasPaused) });
  }
}

/**
 * @param {Words} name
 * @param {string} iconName
 * @param {() => void} run
 */
function button(name, iconName, run) {
  const label = { title: t(name), "aria-label": t(name) };
  return h("button", { type: "button", class: "ghost icon-only", onclick: run, ...label }, icon(iconName));
}

/** @param {StoredJob} job */
function factsOf({ state, counts, total, predicted_finish_at, finished_at, created_at, parameters }) {
  const facts = [t("progress", { done: counts.done, all: total })];
  if (counts.failed) facts.push(t("failedCount", { n: counts.failed }));
  if (counts.running && state === "running") facts.push(t("runningCount", { n: counts.running }));
  if (state === "running" && predicted_finish_at) {
    const left_s = predicted_finish_at - Date.now() / 1000;
    facts.push(t("readyAt", { time: clock(predicted_finish_at), left: duration(Math.max(1, left_s)) }));
  }
  if (finished_at) facts.push(t("took", { time: duration(finished_at - created_at) }));
  if (parameters?.size) facts.push(parameters.size.replace("x", " × "));
  return facts;
}

/** One job on show: what it has drawn, what it draws, what is still to come. */
export class JobView {
  #grid;
  /** @type {JobRow | null} */
  #row = null;
  /** @type {StoredJob | null} */
  #job = null;
  /** @type {EventSource | null} */
  #events = null;
  #last = 0; // the number of the last item on show
  /** @type {string | null} */
  #asked = null; // id of the job that is to be on show
  /** @type {string | null} */
  #loading = null; // id of the job whose items are asked for
  /** @type {number | string} */
  #heard = 0; // the revision of the job that is on show

  /**
   * `actions` as of a gallery; `jobs`, which hear of what this one becomes.
   * @param {JobActions} actions
   * @param {Jobs} jobs
   */
  constructor(actions, jobs) {
    this.jobs = jobs;
    this.#grid = new Gallery($("#job-grid"), { ...actions, open: (item) => actions.open(item, this.#grid) });
    this.#grid.source = this;
    const foot = $("#more-items");
    $("button", foot).addEventListener("click", () => this.more());
    whenNear(foot, () => this.more());
  }

  get gallery() {
    return this.#grid;
  }

  /** @param {string} id */
  async open(id) {
    this.close();
    this.#asked = id;
    const job = await getJob(id).catch((error) => error);
    if (id !== this.#asked) return; // left meanwhile
    if (job instanceof Error) {
      toast(whyNot(job));
      location.hash = "#jobs";
      return;
    }
    this.#job = job;
    this.#heard = job.revision ?? 0;
    this.#renew(job);
    $("#more-items").hidden = false;
    await this.more();
    if (id === this.#asked) this.#follow(id);
  }

  close() {
    this.#events?.close();
    this.#events = this.#job = this.#asked = this.#loading = null;
    this.#last = 0;
    this.#grid.empty();
  }

  render() {
    if (!this.#job) return;
    this.#renew(this.#job);
    this.#grid.render();
  }

  /**
   * A row of this job's own: links and buttons of another must not stay.
   * @param {StoredJob} job
   */
  #renew(job) {
    this.#row = new JobRow((acted) => this.#acted(acted), this.jobs);
    $("#job-head").replaceChildren(this.#row.element);
    this.#row.update(job);
  }

  get hasMore() {
    return !$("#more-items").hidden;
  }

  /** The next items; whether they came. */
  async more() {
    const job = this.#job;
    if (!job || this.#loading || $("#more-items").hidden) return false;
    this.#loading = job.id;
    const page = await listItems(job.id, { after: this.#last, limit: PAGE }).catch(() => null);
    if (job.id !== this.#job?.id) return false; // left meanwhile
    this.#loading = null;
    if (!page) return false;
    const fresh = page.data.filter(({ number }) => !this.#grid.card(String(number)));
    this.#grid.append(fresh.map((item) => itemOf(item, job)));
    this.#last = page.data.at(-1)?.number ?? this.#last;
    $("#more-items").hidden = !page.has_more;
    return true;
  }

  /** @param {StoredJob | undefined} job */
  #acted(job) {
    if (!job) return this.jobs.poll();
    if (job.id !== this.#job?.id) return this.jobs.put(job);
    this.#updated(job);
    // A job that was over may run again.
    if (this.#events && this.#events.readyState !== EventSource.OPEN) this.#follow(job.id);
  }

  // The end of a stream may be cut off between the last item and the job's own last event.
  /** @param {string} id */
  async #look(id) {
    const job = await getJob(id).catch(() => null);
    if (job && job.id === this.#job?.id) this.#updated(job);
  }

  /**
   * Hear of everything after what was heard or loaded last.
   * @param {string} id
   */
  #follow(id) {
    this.#events?.close();
    const events = jobEvents(id, this.#heard);
    this.#events = events;
    /**
     * @template {keyof JobEvents} Name
     * @param {Name} name
     * @param {(event: JobEvents[Name]) => void} take
     */
    const on = (name, take) =>
      events.addEventListener(name, (event) => {
        if (events !== this.#events) return;
        this.#heard = event.lastEventId || this.#heard;
        take(JSON.parse(event.data));
      });
    events.onerror = () => events === this.#events && events.readyState === EventSource.CLOSED && this.#look(id);
    on("job.updated", ({ job }) => this.#updated(job));
    on("job.item", ({ item }) => this.#changed(item));
    on("job.step", ({ number, step, steps }) => this.#stepped(number, step, steps));
  }

  /** @param {StoredJob} job */
  #updated(job) {
    this.#job = job;
    this.#row?.update(job);
    this.jobs.put(job);
  }

  /** @param {StoredItem} item */
  #changed(item) {
    const card = this.#grid.card(String(item.number));
    if (!card || !this.#job) return; // below what was looked at
    const { shot, picture } = itemOf(item, this.#job);
    card.item.shot = shot;
    if (picture) this.#grid.finish(card.item, picture);
    this.#grid.refresh(card.item.id);
  }

  /**
   * @param {number} number
   * @param {number} step
   * @param {number} steps
   */
  #stepped(number, step, steps) {
    const shot = this.#grid.card(String(number))?.item.shot;
    if (!shot || shot.state === "done") return;
    Object.assign(shot, { state: "drawing", step, steps });
    this.#grid.refresh(String(number));
  }
}

const STATES = /** @type {const} */ ({ waiting: "planned", running: "drawing", done: "done", failed: "failed", cancelled: "cancelled" });

/**
 * A job's item as the cards know shots of this page.
 * @param {StoredItem} item
 * @param {StoredJob} job
 * @returns {Item & Pending}
 */
function itemOf({ number, prompt, seed, state, step, steps, error, image }, { parameters }) {
  const [width, height] = parameters.size.split("x").map(Number);
  /** @type {ShownShot} */
  const shot = { state: STATES[state] ?? "planned", step, steps, seed, job: { settings: { prompt, width, height } } };
  if (state === "failed") shot.error = error ?? {};
  if (state === "done" && !image) Object.assign(shot, { state: "failed", error: { message: t("pictureGone") } });
  return { id: String(number), batchAt: 0, order: number, shot, picture: image };
}
