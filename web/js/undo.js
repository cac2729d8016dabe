/** What was done and can be taken back for a while: one notice, whose Undo takes back the last act first. */

import { t } from "./i18n.js";
import { toast, UNDO_MS } from "./toast.js";

/** @type {Act[]} */
const acts = [];
/** @type {Timer} */
let timer;

/**
 * Tell of `act`, which the page has done already, and of those before it that may still be taken back.
 * @param {Act} act
 */
export function offerUndo(act) {
  acts.push(act);
  tell();
}

function tell() {
  clearTimeout(timer);
  const last = acts.at(-1);
  if (!last) return;
  const kept = acts.findLastIndex(({ words }) => words !== last.words) + 1;
  const n = acts.slice(kept).reduce((sum, act) => sum + (act.n ?? 1), 0);
  const label = acts.length > 1 ? t("undoOf", { n: acts.length }) : t("undo");
  const text = [t(last.words, { n }), ...(last.more ?? [])].filter(Boolean).join(" · ");
  toast(text, { label, run: takeBack });
  timer = setTimeout(settleActs, UNDO_MS);
}

function takeBack() {
  acts.pop()?.undo();
  tell();
}

/** From now on nothing is taken back. `leaving`: the page goes; what is sent must outlive it. */
export function settleActs(leaving = false) {
  clearTimeout(timer);
  for (const { settle } of acts.splice(0)) settle?.(leaving);
}
