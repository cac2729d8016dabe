/** What pictures were drawn from, as far as this browser knows it: by their ids in the gallery, or their jobs'. */

import { getJob } from "./api.js";
import { cornerOf } from "./edits.js";
import { load, save } from "./settings.js";
import { keep, urlOf } from "./stash.js";

const MOST = 200;
const FETCH_TIMEOUT_MS = 60_000;

/** @type {[string, Origin][]} */
let known = load("origins", []);

/**
 * @param {string} id of a picture or a job
 * @param {Origin} origin
 */
export function rememberOrigin(id, origin) {
  known = [...known.filter(([other]) => other !== id), /** @type {[string, Origin]} */ ([id, origin])].slice(-MOST);
  save("origins", known);
}

/**
 * @param {Pick<Picture, "id" | "job">} picture
 * @returns {Origin | null}
 */
export const originOf = ({ id, job }) => known.find(([other]) => other === id || other === job?.id)?.[1] ?? null;

/**
 * Whether a job drew it from a picture, which the job tells.
 * @param {Picture} picture
 */
export const isOfJob = ({ job, image_sha256 }) => Boolean(job && image_sha256);

/**
 * The same as `originOf` from the job that drew it, in whatever browser; null where nothing tells, or the picture is gone.
 * @param {Picture} picture
 * @returns {Promise<Origin | null>}
 */
export async function storedOriginOf(picture) {
  if (!picture.job || !isOfJob(picture)) return null;
  try {
    const { image: id, mask, strength = null, fit = "cover", position } = (await getJob(picture.job.id)).parameters;
    if (!id) return null;
    const { width, height } = await createImageBitmap(await blobAt(id));
    const side = sideOf(position, { width, height }, picture);
    if (side === null) return null;
    const kept = mask ? await keep(await blobAt(mask)) : null;
    const origin = { file: null, id, mask: kept, strength, fit, width, height, side };
    rememberOrigin(picture.job.id, origin);
    return origin;
  } catch {
    return null;
  }
}

/**
 * Where the picture was extended: undefined all around, null at a place that the page has no word for.
 * @param {string | undefined} position
 * @param {{ width: number, height: number }} origin
 * @param {Picture} picture
 */
function sideOf(position, origin, picture) {
  if (!position) return undefined;
  const sides = /** @type {const} */ ([undefined, "left", "right", "up", "down"]);
  const at = sides.findIndex((side) => cornerOf({ ...origin, side }, picture.width, picture.height).join() === position);
  return at < 0 ? null : sides[at];
}

/** @param {string} id */
const addressOf = (id) => (id.startsWith("upload_") ? `v1/uploads/${id}/content` : `v1/images/${id}`);

/** @param {string} id */
async function blobAt(id) {
  const answer = await fetch(addressOf(id), { signal: AbortSignal.timeout(FETCH_TIMEOUT_MS) });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.blob();
}

export function forgetOrigins() {
  known = [];
  save("origins", known);
}

/**
 * Where its picture can be seen, or null where it is gone.
 * @param {Origin} origin
 */
export const seenAt = async ({ file, id }) => (file && (await urlOf(file))) || (id ? addressOf(id) : null);
