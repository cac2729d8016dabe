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
 * Whether it says what it was drawn from, or the job that drew it does.
 * @param {Picture} picture
 */
export const isTold = ({ job, image_sha256, drawn_from }) => Boolean(drawn_from || (job && image_sha256));

/** @param {Picture} picture */
const isUpscaled = ({ drawn_from }) => drawn_from?.fit === "upscale";

/**
 * The same as `originOf` as the server has it, in whatever browser; null where nothing tells, or the picture is gone.
 * @param {Picture} picture
 * @returns {Promise<Origin | null>}
 */
export async function storedOriginOf(picture) {
  try {
    const told = await toldOf(picture);
    if (!told?.image) return null;
    const { image: id, mask, strength, position } = told;
    const fit = /** @type {Origin["fit"]} */ (told.fit === "extend" ? "extend" : "cover");
    const { width, height } = await createImageBitmap(await blobAt(id));
    const side = sideOf(position, { width, height }, picture);
    if (side === null) return null;
    const kept = mask ? await keep(await blobAt(mask)) : null;
    const as = isUpscaled(picture) ? /** @type {const} */ ("upscale") : undefined;
    const origin = { file: null, id, mask: kept, strength, fit, width, height, side, as };
    rememberOrigin(picture.job?.id ?? picture.id, origin);
    return origin;
  } catch {
    return null;
  }
}

/** @param {Picture} picture */
async function toldOf({ job, image_sha256, drawn_from, strength }) {
  const told = drawn_from ?? (job && image_sha256 ? (await getJob(job.id)).parameters : null);
  return told && { strength: strength ?? null, ...told };
}

/**
 * Where the picture was extended: undefined all around, null at a place that the page has no word for.
 * @param {string | null | undefined} position
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
