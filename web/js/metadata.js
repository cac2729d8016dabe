/** Reads from a picture's file how it was drawn: PNG's text, or EXIF in JPEG and WebP. */

const PNG = 0x89504e47;
const MAX_BYTES = 64 * 2 ** 20;

/**
 * {prompt, negative_prompt, steps, guidance_scale, seed, width, height} of a picture that this kit
 * or a tool with the same habits has drawn, or null.
 */
export async function settingsOf(file) {
  if (file.size > MAX_BYTES) return null;
  const view = new DataView(await file.arrayBuffer());
  try {
    const text = await textOf(view);
    return text === null ? null : parse(text);
  } catch {
    return null; // cut short, or not what it says it is
  }
}

async function textOf(view) {
  if (view.getUint32(0) === PNG) return pngText(view);
  const exif = view.getUint16(0) === 0xffd8 ? jpegExif(view) : webpExif(view);
  return exif && userComment(exif);
}

const ascii = (view, at, length) => String.fromCharCode(...bytesOf(view, at, length));
const bytesOf = (view, at, length) => new Uint8Array(view.buffer, view.byteOffset + at, length);

async function pngText(view) {
  for (let at = 8; at + 8 < view.byteLength; at += 12 + view.getUint32(at)) {
    const kind = ascii(view, at + 4, 4);
    if (!["tEXt", "iTXt", "zTXt"].includes(kind)) continue;
    const data = bytesOf(view, at + 8, view.getUint32(at));
    const end = data.indexOf(0);
    if (new TextDecoder("latin1").decode(data.subarray(0, end)) === "parameters") return chunkText(kind, data.subarray(end + 1));
  }
  return null;
}

async function chunkText(kind, data) {
  if (kind === "tEXt") return new TextDecoder("latin1").decode(data);
  if (kind === "zTXt") return inflated(data.subarray(1), "latin1");
  let at = 2; // compression flag and method; then language and translated keyword, each with a zero
  for (let k = 0; k < 2; k++) at = data.indexOf(0, at) + 1;
  const rest = data.subarray(at);
  return data[0] ? inflated(rest, "utf-8") : new TextDecoder().decode(rest);
}

async function inflated(data, encoding) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new TextDecoder(encoding).decode(await new Response(stream).arrayBuffer());
}

function jpegExif(view) {
  for (let at = 2; at + 10 < view.byteLength; at += 2 + view.getUint16(at + 2)) {
    const marker = view.getUint16(at);
    if (marker === 0xffe1 && ascii(view, at + 4, 6) === "Exif\0\0") return slice(view, at + 10);
    if (marker === 0xffda) break;
  }
  return null;
}

function webpExif(view) {
  if (ascii(view, 0, 4) !== "RIFF" || ascii(view, 8, 4) !== "WEBP") return null;
  for (let at = 12; at + 8 < view.byteLength; ) {
    const length = view.getUint32(at + 4, true);
    if (ascii(view, at, 4) === "EXIF") {
      const named = ascii(view, at + 8, 6) === "Exif\0\0";
      return slice(view, at + 8 + (named ? 6 : 0));
    }
    at += 8 + length + (length % 2);
  }
  return null;
}

const slice = (view, at) => new DataView(view.buffer, view.byteOffset + at);

const EXIF_FOLDER = 0x8769;
const USER_COMMENT = 0x9286;

/** `exif` begins with the byte order, from which all its offsets count. */
function userComment(exif) {
  const little = exif.getUint16(0) === 0x4949;
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
  const data = bytesOf(exif, exif.getUint32(at + 8, little), exif.getUint32(at + 4, little));
  const kind = new TextDecoder("latin1").decode(data.subarray(0, 8));
  if (!kind.startsWith("UNICODE")) return new TextDecoder().decode(data.subarray(8));
  // Nothing says the byte order: the right one makes sense.
  const texts = ["utf-16be", "utf-16le"].map((order) => new TextDecoder(order).decode(data.subarray(8)));
  return texts.find((text) => /Steps: \d/.test(text)) ?? null;
}

function parse(text) {
  const match = text.match(/^([\s\S]*?)(?:\n?Negative prompt: ([\s\S]*?))?\n(Steps: \d+[^\n]*)\s*$/);
  if (!match) return null;
  const [, prompt, negative, line] = match;
  const facts = Object.fromEntries(line.split(", ").map((fact) => fact.split(": ")));
  const [width, height] = (facts.Size ?? "").split("x").map(Number);
  const number = (name) => (facts[name] === undefined ? null : Number(facts[name]));
  return {
    prompt,
    negative_prompt: negative ?? "",
    steps: number("Steps"),
    guidance_scale: number("CFG scale"),
    seed: number("Seed"),
    width: width || null,
    height: height || null,
  };
}
