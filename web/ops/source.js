/** What the guard writes, asked for only while the page is seen. */

const STATE_MS = 2000;
const HISTORY_MS = 5000; // mostly "not modified"
const USAGE_MS = 60_000;
const TIMEOUT_MS = 5000;

/**
 * @param {string} path
 * @returns {Promise<{ now: number, value: any }>}
 */
async function get(path) {
  const response = await fetch(path, { cache: "no-cache", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  const now = Date.parse(response.headers.get("Date") ?? "") / 1000; // the host's clock, not the browser's
  return { now, value: response.status === 204 ? null : await response.json() };
}

/**
 * Calls `onState(state | null, now)`, `onHistory(history)` and, while somebody may see it,
 * `onUsage(usage | null)` of `usagePath(now)`; `now` in seconds of the host.
 * @param {{ onState: (state: CellState | null, now: number) => void, onHistory: (history: PoolHistory | null) => void,
 * onUsage: (usage: { data: UsageRow[] } | null) => void, usagePath: (now: number) => string }} heard
 */
export function watch({ onState, onHistory, onUsage, usagePath }) {
  const usage = () => get(usagePath(Date.now() / 1000));
  repeat(USAGE_MS, usage, ({ value }) => onUsage(value), () => onUsage(null));
  repeat(STATE_MS, () => get("cell.json"), ({ value, now }) => onState(value, now), () => onState(null, 0));
  repeat(HISTORY_MS, () => get("history.json"), ({ value }) => onHistory(value), () => {});
}

/**
 * @template Answer
 * @param {number} interval_ms
 * @param {() => Promise<Answer>} ask
 * @param {(answer: Answer) => void} take
 * @param {() => void} miss
 */
function repeat(interval_ms, ask, take, miss) {
  /** @type {Timer} */
  let timer;
  let asking = false;
  const turn = async () => {
    clearTimeout(timer);
    if (document.hidden || asking) return;
    asking = true;
    // What goes wrong in drawing what came is no lost connection: let the console say it.
    const answer = await ask().catch(() => null);
    asking = false;
    timer = setTimeout(turn, interval_ms);
    if (answer) take(answer);
    else miss();
  };
  document.addEventListener("visibilitychange", turn);
  turn();
}
