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

/** JSON of a GET, or null when it cannot be had within `timeout_ms`. */
async function get(path, timeout_ms = 5000) {
  try {
    const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(timeout_ms) });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

export const getModels = () => get("/v1/models");
export const getCell = () => get("/cell.json");

/** Bytes of a base64 picture. (A `data:` fetch would need a wider CSP.) */
export function blobOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}
