/** What is remembered between visits: one JSON value per name. Works, forgetfully, without storage. */

const PREFIX = "zimage.";

/**
 * @param {() => Storage} storage
 * @param {string} name
 * @param {any} fallback
 * @returns {any}
 */
function read(storage, name, fallback) {
  try {
    return JSON.parse(storage().getItem(PREFIX + name) ?? "null") ?? fallback;
  } catch {
    return fallback;
  }
}

/**
 * @param {() => Storage} storage
 * @param {string} name
 * @param {unknown} value
 */
function write(storage, name, value) {
  try {
    storage().setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Blocked or full: the page still draws.
  }
}

// Behind functions, because merely naming a blocked storage throws.
const local = () => localStorage;
const session = () => sessionStorage;

/**
 * @param {string} name
 * @param {unknown} fallback
 */
export const load = (name, fallback = null) => read(local, name, fallback);
/**
 * @param {string} name
 * @param {unknown} value
 */
export const save = (name, value) => write(local, name, value);

/**
 * The same, for this tab alone: two tabs must not both resume one drawing.
 * @param {string} name
 * @param {unknown} fallback
 */
export const loadForTab = (name, fallback = null) => read(session, name, fallback);
/**
 * @param {string} name
 * @param {unknown} value
 */
export const saveForTab = (name, value) => write(session, name, value);
