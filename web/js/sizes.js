/** Picture sizes: from an aspect ratio and the model's limits to whole numbers that it can draw. */

export const RATIOS = ["1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16"];

/**
 * What is known before `/v1/models` has answered.
 * @type {Limits}
 */
export const LIMITS = {
  width: 1024,
  height: 1024,
  multiple: 16,
  minSide: 16,
  maxPixels: 1024 * 1024,
  steps: null,
  guidance: null,
  maxSteps: 50,
  maxImages: 10,
  maxChars: null,
  maxTokens: null,
  edits: true,
  masks: true,
  loras: true,
};

/**
 * Limits from an entry of /v1/models; what it lacks stays as in `LIMITS`.
 * @param {ModelEntry} entry
 * @returns {Limits}
 */
export function limitsOf(entry) {
  const { default_size, default_steps, default_guidance_scale, side_multiple, min_side, max_pixels, max_steps, max_images } =
    entry;
  const { max_prompt_chars, max_prompt_tokens, edits = false, masks = edits, loras = false } = entry;
  const [width, height] = String(default_size ?? "").match(/\d+/g)?.map(Number) ?? [];
  return {
    width: number(width) ?? LIMITS.width,
    height: number(height) ?? LIMITS.height,
    multiple: number(side_multiple) ?? LIMITS.multiple,
    maxPixels: number(max_pixels) ?? LIMITS.maxPixels,
    minSide: number(min_side) ?? LIMITS.minSide,
    steps: number(default_steps) ?? LIMITS.steps,
    guidance: default_guidance_scale ?? LIMITS.guidance,
    maxSteps: number(max_steps) ?? LIMITS.maxSteps,
    maxImages: Math.min(number(max_images) ?? LIMITS.maxImages, 10),
    maxChars: number(max_prompt_chars),
    maxTokens: number(max_prompt_tokens),
    edits,
    masks,
    loras,
  };
}

/** @param {number | null | undefined} value */
const number = (value) => (value && Number.isInteger(value) && value > 0 ? value : null);

/**
 * [width, height] of about the default's area in the given ratio.
 * @param {string} ratio
 * @param {Limits} limits
 */
export function sizeOf(ratio, limits) {
  const [across, down] = ratio.split(":").map(Number);
  const area = Math.min(limits.width * limits.height, limits.maxPixels);
  const width = Math.sqrt((area * across) / down);
  return fit(width, area / width, limits);
}

const BORDER = 1.25;

/**
 * [width, height] around a picture: in the given ratio, or without one, all around it or on its `side`.
 * May be more than `maxPixels`.
 * @param {string | null} ratio
 * @param {Pick<Origin, "width" | "height" | "side">} picture
 * @param {Pick<Limits, "multiple" | "minSide">} limits
 */
export function around(ratio, { width, height, side: only }, { multiple, minSide }) {
  const [across, down] = ratio?.split(":").map(Number) ?? [
    only === "up" || only === "down" ? width : width * BORDER,
    only === "left" || only === "right" ? height : height * BORDER,
  ];
  const wide = ratio ? Math.max(width, (height * across) / down) : across;
  /** @param {number} side */
  const up = (side) => Math.max(minSide, Math.ceil(side / multiple) * multiple);
  return [up(wide), up((wide * down) / across)];
}

/**
 * By how much to make a picture of `width` × `height` smaller, so that there is room around it.
 * @param {number} width
 * @param {number} height
 * @param {Pick<Limits, "maxPixels">} limits
 */
export const shrinkToExtend = (width, height, { maxPixels }) =>
  Math.min(1, Math.sqrt(maxPixels / (width * height)) / BORDER ** 2);

/**
 * The nearest size that is allowed: sides are multiples, and not too many pixels.
 * @param {number} width
 * @param {number} height
 * @param {Pick<Limits, "multiple" | "minSide" | "maxPixels">} limits
 */
export function fit(width, height, { multiple, minSide, maxPixels }) {
  const shrink = Math.min(1, Math.sqrt(maxPixels / (width * height)));
  /** @param {number} side */
  const round = (side) => Math.max(minSide, Math.round((side * shrink) / multiple) * multiple);
  let [w, h] = [round(width), round(height)];
  while (w * h > maxPixels && Math.max(w, h) > minSide) {
    if (w >= h) w -= multiple;
    else h -= multiple;
  }
  return [w, h];
}

const SCALE = 2;
const MAX_UPSCALED_PIXELS = 4096 * 4096;

/**
 * [width, height] of a picture that is made twice as large, or null where that is too large.
 * @param {{ width: number, height: number }} picture
 * @param {Pick<Limits, "multiple" | "minSide" | "maxPixels">} limits
 */
export function upscaled({ width, height }, { multiple, minSide, maxPixels }) {
  const [w, h] = [width, height].map((side) => Math.max(minSide, Math.round((SCALE * side) / multiple) * multiple));
  return w * h <= Math.min(SCALE ** 2 * maxPixels, MAX_UPSCALED_PIXELS) ? [w, h] : null;
}

/**
 * The preset ratio that gives exactly this size, or null.
 * @param {number} width
 * @param {number} height
 * @param {Limits} limits
 */
export function ratioOf(width, height, limits) {
  /** @param {string} ratio */
  const same = (ratio) => sizeOf(ratio, limits).join() === [width, height].join();
  return RATIOS.find(same) ?? null;
}
