/** The cell's HTTP interface. */

import { eventsOf } from "./sse.js";

/** The server refused or failed; the fields are those of its error envelope. */
export class ApiError extends Error {
  constructor({ status = 0, message = "", param = null, code = null, retryAfterS = null }) {
    super(message);
    Object.assign(this, { status, param, code, retryAfterS });
  }

  /** Nothing is wrong with the request: the same one may succeed later. */
  get busy() {
    return this.status === 503 || this.status === 429;
  }

  /** The worker or the way to it went away. */
  get lost() {
    return [502, 504].includes(this.status) || LOST_CODES.has(this.code);
  }
}

// `error` events of a stream whose worker gives up: another worker can draw the request.
const LOST_CODES = new Set(["unavailable", "overloaded", "not_ready", "draining"]);

/** The stream ended without its final event: its worker died. */
export class StreamCut extends Error {}

const TIMEOUT_MS = 20_000;
const signedOut = new EventTarget();

/** Calls `listener()` when the cell asks for a key. */
export const onSignedOut = (listener) => signedOut.addEventListener("out", listener);

/** A picture request's events, up to and including `image_generation.done`. */
export async function* drawEvents(body, signal) {
  const response = await fetch("/v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await errorOf(response);
  for await (const event of eventsOf(response.body)) {
    if (event.type === "error") throw new ApiError(event.error);
    yield event;
    if (event.type === "image_generation.done") return;
  }
  throw new StreamCut();
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) signedOut.dispatchEvent(new Event("out"));
  return new ApiError({
    ...body.error,
    status: response.status,
    retryAfterS: secondsOf(response.headers.get("Retry-After")),
  });
}

function secondsOf(header) {
  const seconds = Number.parseFloat(header);
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

/** The JSON answer, or null where there is none; throws `ApiError`, or what `fetch` throws. */
async function call(method, path, body, options = {}) {
  const response = await fetch(path, {
    method,
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
    ...(body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    ...options,
  });
  if (!response.ok) throw await errorOf(response);
  return response.status === 204 ? null : response.json();
}

/** JSON of a GET, or null when it cannot be had within `timeout_ms`. */
async function get(path, timeout_ms = 5000) {
  return call("GET", path, undefined, { signal: AbortSignal.timeout(timeout_ms) }).catch(() => null);
}

const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

export const getModels = () => get("/v1/models");
export const getCell = () => get("/cell.json");

export const listImages = (values) => call("GET", `/v1/images${query(values)}`);
export const markImage = (id, favourite) => call("PATCH", `/v1/images/${id}`, { favourite });
/** `leaving`: the page goes; the request must outlive it. */
export const deleteImage = (id, leaving = false) =>
  call("DELETE", `/v1/images/${id}`, undefined, leaving ? { keepalive: true } : {});

export const createJob = (body) => call("POST", "/v1/jobs", body);
export const previewJob = (body, signal) => call("POST", "/v1/jobs/preview", body, { signal });
export const listJobs = () => call("GET", "/v1/jobs?limit=50");
export const getJob = (id) => call("GET", `/v1/jobs/${id}`);
export const listItems = (id, values) => call("GET", `/v1/jobs/${id}/items${query(values)}`);
/** `verb`: pause, resume, cancel or retry. */
export const steerJob = (id, verb) => call("POST", `/v1/jobs/${id}/${verb}`);
export const deleteJob = (id) => call("DELETE", `/v1/jobs/${id}`);
export const jobEvents = (id, after) => new EventSource(`/v1/jobs/${id}/events?after=${after}`);
export const zipOf = (id) => `/v1/jobs/${id}/results.zip`;

/** Whether the cell knows of nothing at `path`; false, too, where nobody answers. */
export const isMissing = (path) => call("HEAD", path).then(
  () => false,
  ({ status }) => status === 404,
);

export const getUsage = (by, since) => call("GET", `/v1/usage${query({ by, since })}`);

export const getSession = () => call("GET", "/v1/session");
export const signIn = (key) => call("POST", "/v1/session", { key });
/** `everywhere`: also whoever else is signed in with the same key. */
export const signOut = (everywhere) => call("DELETE", `/v1/session${query({ everywhere: everywhere || null })}`);

/** Bytes of a base64 picture. (A `data:` fetch would need a wider CSP.) */
export function blobOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}
