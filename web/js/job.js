/**
 * One request to the cell: a prompt line and its variants.
 *
 * A job has `shots`, one a variant. A shot's `state` is one of
 *   waiting → sending → queued → drawing → done, with `paused` between tries,
 *   or failed, or cancelled.
 * A shot knows its seed from the form, or else from the first event of the first stream; a job
 * that is sent again asks for exactly the shots that are still open, by their seeds, and with
 * `resume`, the place in the queue that the last stream told.
 */

import { ApiError, blobOf, drawEvents } from "./api.js";
import { asked, formOf, pathFor } from "./edits.js";
import { StreamCut } from "./sse.js";

export const OPEN = new Set(["waiting", "sending", "queued", "drawing", "paused"]);

const SEEDS = 2 ** 32;
const MAX_LOST_TRIES = 7; // in a row without a picture: about 30 s of a cell being away
const MAX_BUSY_TRIES = 60;
const BUSY_WAIT_S = 5; // when a 503 carries no Retry-After
const NOT_READY = new Set(["not_ready", "draining", "unavailable"]);
const PREVIEWS = 3;
const SILENCE_S = 900; // above every phase a worker is allowed, compiling included

export class Job {
  /**
   * `settings`: {prompt, width, height, steps, format, negative, guidance, lora, model, origin}; `shots`: [{id, seed}],
   * seeds all or none.
   * @param {SavedJob} saved
   */
  constructor({ settings, shots, batchAt, line = null, resume = null }) {
    this.settings = settings;
    this.batchAt = batchAt;
    this.line = line;
    this.resume = resume;
    this.abort = new AbortController();
    /** @type {Shot[]} */
    this.shots = shots.map((shot) => ({ ...shot, job: this, state: "waiting" }));
  }

  get open() {
    return this.shots.filter((shot) => OPEN.has(shot.state));
  }

  /** What is left to do, as plain data: enough to go on after the page was loaded anew. */
  toJSON() {
    const shots = this.open.map(({ id, order, seed }) => ({ id, order, seed }));
    const { settings, batchAt, line, resume } = this;
    return { settings, batchAt, line, resume, shots };
  }

  /**
   * Open shots by their place in the next request; null for one that needs no drawing again.
   * @returns {Slots}
   */
  slots() {
    const open = this.open;
    const first = open[0].seed;
    if (first === null) return open;
    /** @type {Shot[]} */
    const slots = [];
    for (const shot of open) slots[(Number(shot.seed) - first + SEEDS) % SEEDS] = shot;
    return Array.from(slots, (shot) => shot ?? null);
  }

  /** @param {Slots} slots */
  body(slots) {
    const { prompt, width, height, steps, format, negative, guidance, lora, model, origin } = this.settings;
    const shape = { n: slots.length, size: `${width}x${height}`, partial_images: PREVIEWS };
    /** @type {Record<string, unknown>} */
    const body = { prompt, ...(origin?.as === "upscale" ? {} : shape), output_format: format, stream: true };
    const seed = slots[0]?.seed ?? null;
    if (seed !== null) body.seed = seed;
    if (this.resume) body.resume = this.resume;
    if (steps) body.steps = steps;
    if (negative) body.negative_prompt = negative;
    if (guidance !== null && guidance !== undefined) body.guidance_scale = guidance;
    if (model) body.model = model;
    if (lora?.length) body.lora = asked(lora);
    return body;
  }

  /** @param {Slots} slots */
  async request(slots) {
    const { origin } = this.settings;
    return origin ? formOf(origin, this.body(slots)) : this.body(slots);
  }
}

/**
 * Draw `job`, over as many tries as it takes. `changed(shot)` is called after every change.
 * Returns when each shot is done, failed or cancelled; never throws.
 * @param {Job} job
 * @param {(shot: Shot) => void} changed
 */
export async function runJob(job, changed) {
  const tries = { lost: 0, busy: 0 };
  while (job.open.length) {
    const before = job.open.length;
    try {
      await attempt(job, tries, changed);
    } catch (error) {
      if (job.abort.signal.aborted) return;
      if (job.open.length < before) tries.lost = 0;
      const pause = pauseAfter(error, tries);
      if (pause === null) return fail(job, error, tries, changed);
      await waitOut(job, pause, changed);
    }
  }
}

/**
 * @param {Job} job
 * @param {Tries} tries
 * @param {(shot: Shot) => void} changed
 */
async function attempt(job, tries, changed) {
  const slots = job.slots();
  each(job, changed, { state: "sending", step: 0, until: null });
  const silence = watch(job.abort.signal);
  try {
    const request = await job.request(slots);
    for await (const event of drawEvents(pathFor(job.settings.origin), request, silence.signal)) {
      silence.reset();
      take(event, slots, tries, changed);
    }
  } finally {
    silence.end();
  }
  if (job.open.some((shot) => slots.includes(shot))) throw new StreamCut();
}

/**
 * A signal that aborts with `outer`, or by itself after `SILENCE_S` without a `reset()`.
 * @param {AbortSignal} outer
 */
function watch(outer) {
  const inner = new AbortController();
  /** @type {Timer} */
  let timer;
  const reset = () => {
    clearTimeout(timer);
    timer = setTimeout(() => inner.abort(new StreamCut()), SILENCE_S * 1000);
  };
  reset();
  const signal = AbortSignal.any([outer, inner.signal]);
  return { signal, reset, end: () => clearTimeout(timer) };
}

/** @type {DrawHandlers} */
const HANDLERS = {
  queued(event, slots, { tries }) {
    slots.requestId = event.request_id;
    slots.pictureS = event.picture_s ?? undefined;
    jobOf(slots).resume = event.resume ?? null;
    for (const [index, shot] of slots.entries()) {
      if (!shot || !OPEN.has(shot.state) || shot.state === "drawing") continue;
      shot.seed ??= event.seeds[index];
      become(shot, { state: "queued", reconnected: shot.reconnected || tries.lost > 0 });
    }
    return lineUp(slots, event.position, event.wait_s);
  },
  step({ image_index, step, steps, remaining_s }, slots) {
    const drawn = update(slots[image_index], { state: "drawing", step, steps, until: inS(remaining_s) });
    const together = slots.filter((shot) => shot?.state === "drawing").length;
    if (step < steps && together) slots.pictureS = (remaining_s * steps) / (steps - step) / together;
    return [...drawn, ...lineUp(slots, 0, remaining_s)];
  },
  partial_image({ image_index, b64_json, output_format }, slots, { format }) {
    return update(slots[image_index], { preview: blobOf(b64_json, output_format ?? format) });
  },
  completed({ image_index, b64_json, seed, output_format }, slots, { format }) {
    const shot = slots[image_index];
    const blob = blobOf(b64_json, output_format ?? format);
    const imageId = `${slots.requestId}-${image_index}`; // its name in the gallery
    return update(shot, { state: "done", preview: null, seed: seed ?? shot?.seed, blob, imageId });
  },
};

/**
 * Give each picture that has not begun a place and a wait of its own: `position` and `wait_s` are those of the first.
 * @param {Slots} slots
 * @param {number} position
 * @param {number} wait_s
 */
function lineUp(slots, position, wait_s) {
  const waiting = slots.filter((shot) => shot?.state === "queued");
  waiting.forEach((shot, k) => {
    const until = k && slots.pictureS === undefined ? null : inS(wait_s + k * (slots.pictureS ?? 0));
    become(/** @type {Shot} */ (shot), { position: position + k, until });
  });
  return waiting;
}

/**
 * @param {{ name: string } & any} event
 * @param {Slots} slots
 * @param {Tries} tries
 * @param {(shot: Shot) => void} changed
 */
function take(event, slots, tries, changed) {
  if (!Object.hasOwn(HANDLERS, event.name)) return; // `done`, and whatever later versions add
  const handler = HANDLERS[/** @type {keyof DrawEvents} */ (event.name)];
  const touched = handler(event, slots, { tries, format: jobOf(slots).settings.format });
  for (const shot of touched) if (shot) changed(shot);
}

/**
 * @param {Shot | null | undefined} shot
 * @param {Partial<ShotNews>} change
 */
function update(shot, change) {
  if (!shot || !OPEN.has(shot.state)) return [];
  become(shot, change);
  return [shot];
}

/**
 * @param {Shot} shot
 * @param {Partial<ShotNews>} change
 */
const become = (shot, change) => Object.assign(shot, change);

/**
 * A request asks for one shot or more.
 * @param {Slots} slots
 */
const jobOf = (slots) => /** @type {Shot} */ (slots.find(Boolean)).job;

/** @param {number | null | undefined} seconds */
const inS = (seconds) => Date.now() + 1000 * (seconds ?? 0);

/**
 * {reason, wait_s} before the next try, or null when there shall be none.
 * @param {unknown} error
 * @param {Tries} tries
 * @returns {Pause | null}
 */
function pauseAfter(error, tries) {
  if (error instanceof ApiError && error.busy) {
    if (++tries.busy > MAX_BUSY_TRIES) return null;
    const reason = error.status === 429 ? "limited" : NOT_READY.has(error.code ?? "") ? "noWorkers" : "busy";
    return { reason, wait_s: error.retryAfterS ?? BUSY_WAIT_S };
  }
  const lost = (error instanceof ApiError && error.lost) || error instanceof StreamCut;
  if (!lost || ++tries.lost > MAX_LOST_TRIES) return null;
  return { reason: "lost", wait_s: Math.min(8, 0.25 * 2 ** tries.lost) * (0.75 + Math.random() / 2) };
}

/**
 * @param {Job} job
 * @param {Pause} pause
 * @param {(shot: Shot) => void} changed
 * @returns {Promise<void>}
 */
function waitOut(job, { reason, wait_s }, changed) {
  each(job, changed, { state: "paused", reason, until: inS(wait_s), preview: null });
  return new Promise((/** @type {(nothing: void) => void} */ resolve) => {
    const timer = setTimeout(resolve, wait_s * 1000);
    job.abort.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/**
 * @param {Job} job
 * @param {unknown} error
 * @param {Tries} tries
 * @param {(shot: Shot) => void} changed
 */
function fail(job, error, tries, changed) {
  const known = error instanceof ApiError ? error : new ApiError({ code: error instanceof StreamCut ? "lost" : "page_fault" });
  if (known.code === "page_fault") console.error(error); // of an answer that this page does not understand
  each(job, changed, { state: "failed", error: known, tries: tries.lost });
}

/**
 * @param {Job} job
 * @param {(shot: Shot) => void} changed
 * @param {Partial<ShotNews>} change
 */
function each(job, changed, change) {
  for (const shot of job.open) {
    Object.assign(shot, change);
    changed(shot);
  }
}
