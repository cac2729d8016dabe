/** The page's own queue: a bounded number of streams is open, the other jobs wait here. */

import { runJob } from "./job.js";

export const MAX_STREAMS = 3; // HTTP/1.1 browsers open six connections to a host; one follows a job

export class DrawQueue {
  /** @type {Job[]} */
  #waiting = [];
  /** @type {Set<Job>} */
  #running = new Set();

  /**
   * `changed(shot)` after every change of a shot; `settled(job)` once none of its shots is open.
   * @param {{ changed: (shot: Shot) => void, settled: (job: Job) => void }} heard
   */
  constructor({ changed, settled }) {
    this.changed = changed;
    this.settled = settled;
  }

  get jobs() {
    return [...this.#running, ...this.#waiting];
  }

  get openShots() {
    return this.jobs.flatMap((job) => job.open);
  }

  /** @param {Job[]} jobs */
  add(jobs) {
    this.#waiting.push(...jobs);
    this.#pump();
  }

  /**
   * How many jobs of this page start before `job`; -1 once it has started.
   * @param {Job} job
   */
  ahead(job) {
    return this.#waiting.indexOf(job);
  }

  /** @param {Shot[]} shots */
  cancel(shots) {
    for (const shot of shots) {
      shot.state = "cancelled";
      this.changed(shot);
    }
    for (const job of new Set(shots.map((shot) => shot.job))) this.#end(job);
    this.#pump();
  }

  // The stream ends with its last open shot; a sibling that was cancelled alone is drawn unseen.
  /** @param {Job} job */
  #end(job) {
    if (job.open.length) return;
    job.abort.abort();
    const index = this.#waiting.indexOf(job);
    if (index < 0) return;
    this.#waiting.splice(index, 1);
    this.settled(job);
  }

  #pump() {
    while (this.#running.size < MAX_STREAMS) {
      const next = this.#waiting.shift();
      if (!next) break;
      this.#start(next);
    }
    this.#waiting.flatMap((job) => job.open).forEach(this.changed); // each has fewer ahead now
  }

  /** @param {Job} job */
  async #start(job) {
    this.#running.add(job);
    await runJob(job, this.changed);
    this.#running.delete(job);
    this.settled(job);
    this.#pump();
  }
}
