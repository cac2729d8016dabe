/**
 * Finished pictures, kept in IndexedDB over reloads: the newest `MAX_PICTURES`.
 *
 * A picture is {id, batchAt, order, prompt, width, height, seed, steps, format, blob}; `batchAt`
 * (ms since the epoch) and `order` give its place in the gallery.
 */

export const MAX_PICTURES = 200;
const SPARE = 20; // pictures given up at once when the disk is full

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("zimage", 1);
    request.onupgradeneeded = () => {
      const store = request.result.createObjectStore("pictures", { keyPath: "id" });
      store.createIndex("place", ["batchAt", "order"]);
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** Run `work(store)` in one transaction; resolves with the result of the request it returns. */
async function within(mode, work) {
  const transaction = (await database()).transaction("pictures", mode);
  const request = work(transaction.objectStore("pictures"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** All kept pictures, newest batch first. Empty when the browser keeps nothing. */
export async function allPictures() {
  const pictures = await within("readonly", (store) => store.getAll()).catch(() => []);
  return pictures.sort((a, b) => b.batchAt - a.batchAt || a.order - b.order);
}

/** Keep `picture`; the oldest make room for it. False when it could not be kept. */
export async function keepPicture(picture) {
  try {
    await put(picture, MAX_PICTURES);
    return true;
  } catch {
    return put(picture, (await count()) - SPARE).then(() => true, () => false);
  }
}

export const forgetPicture = (id) => within("readwrite", (store) => store.delete(id)).catch(() => {});

const count = () => within("readonly", (store) => store.count()).catch(() => 0);

async function put(picture, most) {
  await trim(most - 1);
  await within("readwrite", (store) => store.put(picture));
}

async function trim(most) {
  const keys = await within("readonly", (store) => store.index("place").getAllKeys());
  const excess = keys.slice(0, Math.max(0, keys.length - Math.max(0, most)));
  if (excess.length) {
    await within("readwrite", (store) => void excess.forEach((key) => store.delete(key)));
  }
}
