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
  const { file, id, mask, strength, fit } = origin;
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  if (strength !== null) form.append("strength", String(strength));
  if (fit === "extend") form.append("fit", fit);
  const blob = file && (id ? await find(file) : await found(file));
  if (blob) form.append("image", blob, "image");
  else form.append("image", String(id));
  if (mask) form.append("mask", await found(mask), "mask.png");
  return form;
}

/**
 * What a job says of the picture that it goes on from: it is sent first, once, for the job outlives this page.
 * @param {Origin} origin
 * @returns {Promise<Record<string, unknown>>}
 */
export async function jobFieldsOf({ file, id, mask, strength, fit }) {
  const there = file && (!id || (await find(file)));
  return {
    image: there ? await uploaded(file) : id,
    ...(mask ? { mask: await uploaded(mask) } : {}),
    ...(strength === null ? {} : { strength }),
    ...(fit === "extend" ? { fit } : {}),
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
