/** Numbers and times as this page writes them. */

import { currentLanguage, has, t } from "../js/i18n.js";

const NONE = "–";
/**
 * @param {number | null | undefined} value
 * @returns {value is number}
 */
const known = (value) => Number.isFinite(value);

/**
 * @param {number | null | undefined} value
 * @param {number} digits
 */
export function number(value, digits = 0) {
  if (!known(value)) return NONE;
  return value.toLocaleString(currentLanguage(), { maximumFractionDigits: digits });
}

/**
 * As many digits as matter: 0.42, 3.1, 128.
 * @param {number | null | undefined} value
 */
export const short = (value) => number(value, !known(value) || value >= 10 ? 0 : value < 1 ? 2 : 1);

/** @param {number | null | undefined} value */
export function seconds(value) {
  if (!known(value)) return NONE;
  return value < 90 ? `${short(value)} s` : span(value);
}

/** @param {number | null | undefined} ratio */
export const percent = (ratio) => (known(ratio) ? `${number(ratio * 100)} %` : NONE);
/** @param {number} bytes */
export const gibibytes = (bytes) => number(bytes / 2 ** 30, 1);

/**
 * A duration in the two units that matter, as `zimage status` writes it.
 * @param {number} value
 */
export function span(value) {
  const whole = Math.max(0, Math.floor(value));
  if (whole >= 86400) return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
  if (whole >= 3600) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} m`;
  return whole >= 60 ? `${Math.floor(whole / 60)} m ${whole % 60} s` : `${whole} s`;
}

/**
 * @param {number} at
 * @param {boolean} withSeconds
 */
export function clock(at, withSeconds = false) {
  /** @type {Intl.DateTimeFormatOptions} */
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(at * 1000).toLocaleTimeString(currentLanguage(), options);
}

/**
 * As the command line and the runbook name it; in Chinese with what it means.
 * @param {string} name
 */
export function stateWord(name) {
  const key = `state_${name}`;
  return currentLanguage() === "zh" && has(key) ? `${name} ${t(key)}` : name;
}

/** @param {number} value_s */
export function range(value_s) {
  return value_s < 3600 ? t("opsMinutes", { n: value_s / 60 }) : t("opsHours", { n: value_s / 3600 });
}
