/** Pictures that drawings go on from, kept in this browser: drawings outlive a reload, and so must these. */

const NAME = "zimage";
const STORE = "pictures";
const PATIENCE_MS = 5000; // some browsers never answer
const MOST = 40; // each up to 24 MiB; the oldest go

/** @type {Map<string, Blob>} */
const kept = new Map();
/** @type {Map<string, string>} */
const urls = new Map();
/** @type {Set<string | null>} */
let held = new Set();

/**
 * These are kept, however old they are.
 * @param {(string | null)[]} keys
 */
export function hold(keys) {
  held = new Set(keys);
}

/** @param {string[]} keys */
const tooMany = (keys) => keys.filter((key) => !held.has(key)).slice(0, -MOST);

/**
 * The key by which `blob` is found again, also after a reload where the browser stores such.
 * @param {Blob} blob
 */
export async function keep(blob) {
  const key = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`; // by age, as text
  kept.set(key, blob);
  for (const old of tooMany([...kept.keys()])) forget(old);
  await within("readwrite", (store) => {
    store.put(blob, key);
    const all = store.getAllKeys();
    all.onsuccess = () => tooMany(all.result.map(String)).forEach((old) => store.delete(old));
    return all;
  });
  return key;
}

/**
 * What was kept as `key`, or null.
 * @param {string} key
 * @returns {Promise<Blob | null>}
 */
export async function find(key) {
  const blob = kept.get(key) ?? (await within("readonly", (store) => store.get(key)));
  if (!(blob instanceof Blob)) return null;
  kept.set(key, blob);
  return blob;
}

/**
 * An address for it, good as long as the page.
 * @param {string} key
 */
export async function urlOf(key) {
  const blob = await find(key);
  if (blob && !urls.has(key)) urls.set(key, URL.createObjectURL(blob));
  return urls.get(key) ?? null;
}

/** Nothing of one person's stays for the next. */
export async function emptyStash() {
  [...kept.keys()].forEach(forget);
  await within("readwrite", (store) => store.clear());
}

/** @param {string} key */
function forget(key) {
  kept.delete(key);
  const url = urls.get(key);
  if (url) URL.revokeObjectURL(url);
  urls.delete(key);
}

/** @returns {Promise<IDBDatabase>} */
function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}

/**
 * The result of `work`; undefined where the browser stores nothing: then the page's own memory is all.
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} work
 * @returns {Promise<any>}
 */
async function within(mode, work) {
  const late = new Promise((_, reject) => setTimeout(reject, PATIENCE_MS));
  return Promise.race([done(mode, work), late]).catch(() => undefined);
}

/**
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} work
 */
async function done(mode, work) {
  const database = await opened();
  try {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    return await new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}
