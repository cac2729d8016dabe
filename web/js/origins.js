/** What pictures were drawn from, as far as this browser knows it: by their ids in the gallery, or their jobs'. */

import { load, save } from "./settings.js";
import { urlOf } from "./stash.js";

const MOST = 200;

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

export function forgetOrigins() {
  known = [];
  save("origins", known);
}

/**
 * Where its picture can be seen, or null where it is gone.
 * @param {Origin} origin
 */
export const seenAt = async ({ file, id }) => (file && (await urlOf(file))) || (id ? `v1/images/${id}` : null);
