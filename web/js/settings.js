/** What is remembered between visits: one JSON value per name. Works, forgetfully, without storage. */

const PREFIX = "zimage.";

function read(storage, name, fallback) {
  try {
    return JSON.parse(storage().getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

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

export const load = (name, fallback = null) => read(local, name, fallback);
export const save = (name, value) => write(local, name, value);

/** The same, for this tab alone: two tabs must not both resume one drawing. */
export const loadForTab = (name, fallback = null) => read(session, name, fallback);
export const saveForTab = (name, value) => write(session, name, value);
