/** Reads from a picture's file how it was drawn: PNG's text, or EXIF in JPEG and WebP. */

const PNG = 0x89504e47;

// A picture comes from anywhere: what is not drawn so must not keep the page busy, or fill its memory.
const MAX_BYTES = 64 * 2 ** 20;
const MAX_PARTS = 20_000; // chunks or segments; those of 64 MiB are 8 KiB each
const MAX_TEXT_BYTES = 2 ** 18; // unpacked
const MAX_KEYWORD_BYTES = 79; // says the PNG specification

/**
 * {prompt, negative_prompt, steps, guidance_scale, seed, width, height} of a picture that this kit
 * or a tool with the same habits has drawn, or null.
 * @param {File} file
 * @returns {Promise<Recipe | null>}
 */
export async function settingsOf(file) {
  if (file.size > MAX_BYTES) return null;
  try {
    const view = new DataView(await file.arrayBuffer());
    const text = await textOf(view);
    return text === null ? null : parse(text);
  } catch {
    return null; // cut short, or not what it says it is, or a folder
  }
}

/** @param {DataView<ArrayBuffer>} view */
async function textOf(view) {
  if (view.getUint32(0) === PNG) return pngText(view);
  const exif = view.getUint16(0) === 0xffd8 ? jpegExif(view) : webpExif(view);
  return exif && userComment(exif);
}

/**
 * @param {DataView<ArrayBuffer>} view
 * @param {number} at
 * @param {number} length
 */
const ascii = (view, at, length) => String.fromCharCode(...bytesOf(view, at, length));
/**
 * @param {DataView<ArrayBuffer>} view
 * @param {number} at
 * @param {number} length
 */
const bytesOf = (view, at, length) => new Uint8Array(view.buffer, view.byteOffset + at, length);

/** @param {DataView<ArrayBuffer>} view */
async function pngText(view) {
  let at = 8;
  for (let k = 0; k < MAX_PARTS && at + 8 < view.byteLength; k++) {
    const length = view.getUint32(at);
    const kind = ascii(view, at + 4, 4);
    if (["tEXt", "iTXt", "zTXt"].includes(kind)) {
      const data = bytesOf(view, at + 8, length);
      const end = data.subarray(0, MAX_KEYWORD_BYTES + 1).indexOf(0);
      if (end > 0 && new TextDecoder("latin1").decode(data.subarray(0, end)) === "parameters") {
        return chunkText(kind, data.subarray(end + 1));
      }
    }
    at += 12 + length;
  }
  return null;
}

/**
 * @param {string} kind
 * @param {Uint8Array<ArrayBuffer>} data
 */
async function chunkText(kind, data) {
  if (kind === "tEXt") return decoded(data, "latin1");
  if (kind === "zTXt") return inflated(data.subarray(1), "latin1");
  let at = 2; // compression flag and method; then language and translated keyword, each with a zero
  for (let k = 0; k < 2; k++) at = data.indexOf(0, at) + 1;
  const rest = data.subarray(at);
  return data[0] ? inflated(rest, "utf-8") : decoded(rest, "utf-8");
}

/**
 * @param {Uint8Array} data
 * @param {string} encoding
 */
const decoded = (data, encoding) => (data.length > MAX_TEXT_BYTES ? null : new TextDecoder(encoding).decode(data));

/**
 * A few bytes may unpack to gigabytes: no more of them is taken than is a text.
 * @param {Uint8Array<ArrayBuffer>} data
 * @param {string} encoding
 */
async function inflated(data, encoding) {
  const unpacked = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  const decoder = new TextDecoder(encoding);
  let [text, bytes] = ["", 0];
  for (const reader = unpacked.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    bytes += value.length;
    if (bytes > MAX_TEXT_BYTES) return reader.cancel().then(() => null);
    text += decoder.decode(value, { stream: true });
  }
}

/** @param {DataView<ArrayBuffer>} view */
function jpegExif(view) {
  let at = 2;
  for (let k = 0; k < MAX_PARTS && at + 10 < view.byteLength; k++) {
    const marker = view.getUint16(at);
    if (marker === 0xffe1 && ascii(view, at + 4, 6) === "Exif\0\0") return slice(view, at + 10);
    if (marker === 0xffda) break;
    at += 2 + view.getUint16(at + 2);
  }
  return null;
}

/** @param {DataView<ArrayBuffer>} view */
function webpExif(view) {
  if (ascii(view, 0, 4) !== "RIFF" || ascii(view, 8, 4) !== "WEBP") return null;
  let at = 12;
  for (let k = 0; k < MAX_PARTS && at + 8 < view.byteLength; k++) {
    const length = view.getUint32(at + 4, true);
    if (ascii(view, at, 4) === "EXIF") {
      const named = ascii(view, at + 8, 6) === "Exif\0\0";
      return slice(view, at + 8 + (named ? 6 : 0));
    }
    at += 8 + length + (length % 2);
  }
  return null;
}

/**
 * @param {DataView<ArrayBuffer>} view
 * @param {number} at
 */
const slice = (view, at) => new DataView(view.buffer, view.byteOffset + at);

const EXIF_FOLDER = 0x8769;
const USER_COMMENT = 0x9286;

/**
 * `exif` begins with the byte order, from which all its offsets count.
 * @param {DataView<ArrayBuffer>} exif
 */
function userComment(exif) {
  const little = exif.getUint16(0) === 0x4949;
  /**
   * @param {number} folder
   * @param {number} tag
   */
  const entry = (folder, tag) => {
    for (let k = 0; k < exif.getUint16(folder, little); k++) {
      const at = folder + 2 + 12 * k;
      if (exif.getUint16(at, little) === tag) return at;
    }
    return null;
  };
  const folder = entry(exif.getUint32(4, little), EXIF_FOLDER);
  const at = folder && entry(exif.getUint32(folder + 8, little), USER_COMMENT);
  if (!at) return null;
  if (exif.getUint32(at + 4, little) > MAX_TEXT_BYTES) return null;
  const data = bytesOf(exif, exif.getUint32(at + 8, little), exif.getUint32(at + 4, little));
  const kind = new TextDecoder("latin1").decode(data.subarray(0, 8));
  if (!kind.startsWith("UNICODE")) return new TextDecoder().decode(data.subarray(8));
  // Nothing says the byte order: the right one makes sense.
  const texts = ["utf-16be", "utf-16le"].map((order) => new TextDecoder(order).decode(data.subarray(8)));
  return texts.find((text) => /Steps: \d/.test(text)) ?? null;
}

const MAX_LORA_CHARS = 1000;
const MAX_LORAS = 4; // of a drawing
const NEGATIVE = "Negative prompt: ";

/**
 * Prompt, negative prompt and last line, without a pattern that tries every place for each part.
 * @param {string} text
 * @returns {Recipe | null}
 */
function parse(text) {
  const whole = text.trimEnd();
  const last = whole.lastIndexOf("\n");
  const line = whole.slice(last + 1);
  if (last < 0 || !/^Steps: \d/.test(line)) return null;
  const head = `\n${whole.slice(0, last)}`;
  const at = head.indexOf(`\n${NEGATIVE}`);
  const prompt = head.slice(1, at < 0 ? undefined : Math.max(at, 1));
  const negative = at < 0 ? "" : head.slice(at + 1 + NEGATIVE.length);
  const facts = Object.fromEntries(line.split(", ").map((fact) => fact.split(": ")));
  const [width, height] = (facts.Size ?? "").split("x").map(Number);
  /** @param {string} name */
  const number = (name) => (Number.isFinite(Number(facts[name])) ? Number(facts[name]) : null);
  return {
    prompt,
    negative_prompt: negative,
    steps: number("Steps"),
    guidance_scale: number("CFG scale"),
    seed: number("Seed"),
    width: width || null,
    height: height || null,
    ...(facts.Model ? { model: facts.Model } : {}),
    ...(facts.Lora ? { lora: lorasIn(facts.Lora) } : {}),
  };
}

/**
 * Adapters as files tell them: `name*scale@sha256`, with `;` between.
 * @param {string} text
 * @returns {Lora[]}
 */
const lorasIn = (text) => text.slice(0, MAX_LORA_CHARS).split(";").flatMap((part) => {
  const [, name, scale, sha256] = part.match(/^([a-z0-9._-]{1,64})\*(-?\d[\d.]*)@([0-9a-f]{64})$/) ?? [];
  return name ? [{ name, scale: Number(scale), sha256 }] : [];
}).slice(0, MAX_LORAS);
