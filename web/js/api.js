/** The cell's HTTP interface. */

import { StreamCut, eventsOf, untilCut } from "./sse.js";

/** The server refused or failed; the fields are those of its error envelope. */
export class ApiError extends Error {
  /** @param {Partial<Refusal>} told */
  constructor({ status = 0, message = "", param = null, code = null, details = null, retryAfterS = null, retry = true }) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.details = details;
    this.retryAfterS = retryAfterS;
    this.retry = retry;
  }

  /** Nothing is wrong with the request: the same one may succeed soon. */
  get busy() {
    return this.status === 503 || (this.status === 429 && this.retry);
  }

  /** The worker or the way to it went away. */
  get lost() {
    return [502, 504].includes(this.status) || LOST_CODES.has(this.code ?? "");
  }
}

// `error` events of a stream whose worker gives up: another worker can draw the request.
const LOST_CODES = new Set(["unavailable", "overloaded", "not_ready", "draining"]);

const TIMEOUT_MS = 20_000;
const UPLOAD_TIMEOUT_MS = 300_000; // of up to 24 MiB
const signedOut = new EventTarget();

/**
 * Calls `listener()` when the cell asks for a key.
 * @param {() => void} listener
 */
export const onSignedOut = (listener) => signedOut.addEventListener("out", listener);

/**
 * A picture request's events, up to and including `….done`; without what their names begin with.
 * @param {string} path
 * @param {object | FormData} body
 * @param {AbortSignal} signal
 */
export async function* drawEvents(path, body, signal) {
  const form = body instanceof FormData;
  const headers = new Headers({ Accept: "text/event-stream" });
  if (!form) headers.set("Content-Type", "application/json");
  const sent = form ? body : JSON.stringify(body);
  const response = await untilCut(fetch(path, { method: "POST", headers, body: sent, signal }));
  if (!response.ok) throw await errorOf(response);
  if (!response.body) throw new StreamCut();
  for await (const event of eventsOf(response.body)) {
    if (event.type === "error") throw new ApiError(event.error);
    const name = event.type.replace(/^image_(generation|edit)\./, "");
    yield { ...event, name };
    if (name === "done") return;
  }
  throw new StreamCut();
}

/** @param {Response} response */
async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) signedOut.dispatchEvent(new Event("out"));
  return new ApiError({
    ...body.error,
    status: response.status,
    retryAfterS: secondsOf(response.headers.get("Retry-After")),
    retry: response.headers.get("X-Should-Retry") !== "false",
  });
}

/** @param {string | null} header */
function secondsOf(header) {
  const seconds = Number.parseFloat(header ?? "");
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

/**
 * The JSON answer, or null where there is none; throws `ApiError`, or what `fetch` throws.
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @param {RequestInit} options
 * @returns {Promise<any>}
 */
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

/**
 * JSON of a GET, or null when it cannot be had within `timeout_ms`.
 * @param {string} path
 */
async function get(path, timeout_ms = 5000) {
  return call("GET", path, undefined, { signal: AbortSignal.timeout(timeout_ms) }).catch(() => null);
}

/** @param {Record<string, string | number | boolean | null | undefined>} values */
const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
};

/** @returns {Promise<{ data?: ModelEntry[] } | null>} */
export const getModels = () => get("v1/models");
/**
 * @param {string | null} model null: there is one
 * @returns {Promise<{ data: LoraEntry[], max_loras: number, max_scale: number } | null>}
 */
export const getLoras = (model) => get(`v1/loras${query({ model })}`);
/** @returns {Promise<CellState | null>} */
export const getCell = () => get("cell.json");

/**
 * @param {Partial<Filter> & { after?: string | null, limit: number }} values
 * @returns {Promise<Page<StoredPicture>>}
 */
export const listImages = (values) => call("GET", `v1/images${query(values)}`);
/**
 * @param {string} id
 * @param {boolean} favourite
 */
export const markImage = (id, favourite) => call("PATCH", `v1/images/${id}`, { favourite });
/**
 * `leaving`: the page goes; the request must outlive it.
 * @param {string} id
 */
export const deleteImage = (id, leaving = false) =>
  call("DELETE", `v1/images/${id}`, undefined, leaving ? { keepalive: true } : {});

/**
 * @param {Blob} picture
 * @returns {Promise<{ id: string, expires_at: number }>}
 */
export const uploadPicture = (picture) => call("POST", "v1/uploads", undefined, {
  headers: { "Content-Type": picture.type }, body: picture, signal: AbortSignal.timeout(UPLOAD_TIMEOUT_MS),
});

/**
 * @param {object} body
 * @returns {Promise<StoredJob>}
 */
export const createJob = (body) => call("POST", "v1/jobs", body);
/**
 * @param {object} body
 * @param {AbortSignal} signal
 * @returns {Promise<Preview>}
 */
export const previewJob = (body, signal) => call("POST", "v1/jobs/preview", body, { signal });
/** @returns {Promise<Page<StoredJob>>} */
export const listJobs = () => call("GET", "v1/jobs?limit=50");
/**
 * @param {string} id
 * @returns {Promise<StoredJob>}
 */
export const getJob = (id) => call("GET", `v1/jobs/${id}`);
/**
 * @param {string} id
 * @param {{ after: number, limit: number }} values
 * @returns {Promise<Page<StoredItem>>}
 */
export const listItems = (id, values) => call("GET", `v1/jobs/${id}/items${query(values)}`);
/**
 * `verb`: pause, resume, cancel or retry; `paused`: what is tried again waits until it is resumed.
 * @param {string} id
 * @param {Verb} verb
 * @returns {Promise<StoredJob>}
 */
export const steerJob = (id, verb, paused = false) =>
  call("POST", `v1/jobs/${id}/${verb}${paused ? query({ paused: "true" }) : ""}`);
/**
 * `leaving` as of `deleteImage`.
 * @param {string} id
 * @returns {Promise<null>}
 */
export const deleteJob = (id, leaving = false) =>
  call("DELETE", `v1/jobs/${id}`, undefined, leaving ? { keepalive: true } : {});
/**
 * @param {string} id
 * @param {number | string} after
 */
export const jobEvents = (id, after) => new EventSource(`v1/jobs/${id}/events?after=${after}`);
/** @param {string} id */
export const zipOf = (id) => `v1/jobs/${id}/results.zip`;

/**
 * Whether the cell knows of nothing at `path`; false, too, where nobody answers.
 * @param {string} path
 */
export const isMissing = (path) => call("HEAD", path).then(
  () => false,
  (error) => error instanceof ApiError && error.status === 404,
);

/**
 * @param {UsageBy} by
 * @param {string} since
 * @returns {Promise<{ data: UsageRow[] }>}
 */
export const getUsage = (by, since) => call("GET", `v1/usage${query({ by, since })}`);

/** @returns {Promise<SessionAnswer>} */
export const getSession = () => call("GET", "v1/session");
/** @param {string} key */
export const signIn = (key) => call("POST", "v1/session", { key });
/**
 * `everywhere`: also whoever else is signed in with the same key.
 * @param {boolean} [everywhere]
 */
export const signOut = (everywhere) => call("DELETE", `v1/session${query({ everywhere: everywhere || null })}`);

/**
 * Bytes of a base64 picture. (A `data:` fetch would need a wider CSP.)
 * @param {string} base64
 * @param {string} format
 */
export function blobOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}
