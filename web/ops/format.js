/** Numbers and times as this page writes them. */

import { currentLanguage, has, t } from "/js/i18n.js";

const NONE = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function number(value, digits = 0) {
  if (!known(value)) return NONE;
  return value.toLocaleString(currentLanguage(), { maximumFractionDigits: digits });
}

/** As many digits as matter: 0.42, 3.1, 128. */
export const short = (value) => number(value, value < 1 ? 2 : value < 10 ? 1 : 0);

export function seconds(value) {
  if (!known(value)) return NONE;
  return value < 90 ? `${short(value)} s` : span(value);
}

export const percent = (ratio) => (known(ratio) ? `${number(ratio * 100)} %` : NONE);
export const gibibytes = (bytes) => number(bytes / 2 ** 30, 1);

/** A duration in the two units that matter, as `zimage status` writes it. */
export function span(value) {
  const whole = Math.max(0, Math.floor(value));
  for (const [size, unit, small, smallUnit] of [[86400, "d", 3600, "h"], [3600, "h", 60, "m"]]) {
    if (whole >= size) return `${Math.floor(whole / size)} ${unit} ${Math.floor((whole % size) / small)} ${smallUnit}`;
  }
  return whole >= 60 ? `${Math.floor(whole / 60)} m ${whole % 60} s` : `${whole} s`;
}

export function clock(at, withSeconds = false) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(at * 1000).toLocaleTimeString(currentLanguage(), options);
}

/** As the command line and the runbook name it; in Chinese with what it means. */
export function stateWord(name) {
  if (currentLanguage() !== "zh" || !has(`state_${name}`)) return name;
  return `${name} ${t(`state_${name}`)}`;
}

export function range(value_s) {
  return value_s < 3600 ? t("opsMinutes", { n: value_s / 60 }) : t("opsHours", { n: value_s / 3600 });
}
