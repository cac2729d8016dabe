/** How a drawing that goes on from a picture is asked for. */

import { ApiError, uploadPicture } from "./api.js";
import { t } from "./i18n.js";
import { find } from "./stash.js";

/** As the API has it: of a picture that may change everywhere, and of one with a part to be drawn. */
export const STRENGTH = 0.6;
export const STRENGTH_OF_PART = 1;

/** @param {Origin} origin */
export const defaultStrength = ({ mask, fit }) => (mask || fit === "extend" ? STRENGTH_OF_PART : STRENGTH);

/**
 * [x, y] of its upper left corner where it is extended to `wide` × `high`.
 * @param {Pick<Origin, "side" | "width" | "height">} origin
 * @param {number} wide
 * @param {number} high
 */
export function cornerOf({ side, width, height }, wide, high) {
  const [x, y] = [wide - width, high - height];
  return [
    side === "left" ? x : side === "right" ? 0 : Math.floor(x / 2),
    side === "up" ? y : side === "down" ? 0 : Math.floor(y / 2),
  ];
}

/**
 * How it becomes as large as the drawing.
 * @param {Origin} origin
 * @param {string} size
 * @returns {Record<string, string>}
 */
function placeOf(origin, size) {
  if (origin.fit !== "extend") return {};
  const [wide, high] = size.split("x").map(Number);
  return { fit: "extend", ...(origin.side ? { position: cornerOf(origin, wide, high).join() } : {}) };
}

/**
 * As requests name them: what a name stands for now is drawn with.
 * @param {Lora[]} loras
 */
export const asked = (loras) => loras.map(({ name, scale }) => ({ name, scale }));

/** @param {Origin | null | undefined} origin */
export const pathFor = (origin) => `v1/images/${origin ? PATHS[origin.as ?? "edit"] : "generations"}`;
const PATHS = { edit: "edits", like: "variations", upscale: "upscale" };

/**
 * `body` and the picture, as a form; throws `ApiError` where this browser has it no more.
 * @param {Origin} origin
 * @param {Record<string, unknown>} body
 */
export async function formOf(origin, body) {
  const { file, id, mask, strength } = origin;
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  if (strength !== null) form.append("strength", String(strength));
  for (const [name, value] of Object.entries(placeOf(origin, String(body.size)))) form.append(name, value);
  const blob = file && (id ? await find(file) : await found(file));
  if (blob) form.append("image", blob, "image");
  else form.append("image", String(id));
  if (mask) form.append("mask", await found(mask), "mask.png");
  return form;
}

/**
 * What a job says of the picture that it goes on from: it is sent first, once, for the job outlives this page.
 * @param {Origin} origin
 * @param {string} size of the drawings
 * @returns {Promise<Record<string, unknown>>}
 */
export async function jobFieldsOf(origin, size) {
  const { file, id, mask, strength } = origin;
  const there = file && (!id || (await find(file)));
  return {
    image: there ? await uploaded(file) : id,
    ...(mask ? { mask: await uploaded(mask) } : {}),
    ...(strength === null ? {} : { strength }),
    ...placeOf(origin, size),
  };
}

/** @type {Map<string, { id: string, expires_at: number }>} */
const uploads = new Map(); // of this page, by their keys in stash.js
const SPARE_S = 3600; // of an upload's time, for the job to be made

/** @param {string} key */
async function uploaded(key) {
  const known = uploads.get(key);
  if (known && known.expires_at - SPARE_S > Date.now() / 1000) return known.id;
  const upload = await uploadPicture(await found(key));
  uploads.set(key, upload);
  return upload.id;
}

/** @param {string} key */
async function found(key) {
  const blob = await find(key);
  if (!blob) throw new ApiError({ status: 410, code: "picture_lost", param: "image", message: t("error_picture_lost") });
  return blob;
}
