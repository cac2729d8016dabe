/** What pictures were drawn from, as far as this browser knows it: by their ids in the gallery. */

import { load, save } from "./settings.js";
import { urlOf } from "./stash.js";

const MOST = 200;

/** @type {[string, Origin][]} */
let known = load("origins", []);

/**
 * @param {string} id
 * @param {Origin} origin
 */
export function rememberOrigin(id, origin) {
  known = [...known.filter(([other]) => other !== id), /** @type {[string, Origin]} */ ([id, origin])].slice(-MOST);
  save("origins", known);
}

/**
 * @param {string} id
 * @returns {Origin | null}
 */
export const originOf = (id) => known.find(([other]) => other === id)?.[1] ?? null;

export function forgetOrigins() {
  known = [];
  save("origins", known);
}

/**
 * Where its picture can be seen, or null where it is gone.
 * @param {Origin} origin
 */
export const seenAt = async ({ file, id }) => (file && (await urlOf(file))) || (id ? `v1/images/${id}` : null);
