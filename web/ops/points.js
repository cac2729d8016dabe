/** The history's rows, gathered into as many buckets as a chart can show. Pure. */

const COUNTS = ["images", "answered", "refused", "failed", "replayed"];

/**
 * One object a row, by column; times in seconds.
 * @param {PoolHistory} history
 * @returns {Row[]}
 */
export function rowsOf({ columns, points }) {
  return points.map((point) => /** @type {Row} */ (Object.fromEntries(columns.map((column, n) => [column, point[n]]))));
}

/**
 * `count` buckets from `from` to `to`. Counts are sums, p95 the worst, everything else a mean; null
 * where nobody looked. `seconds`: how much of the bucket was watched.
 * @param {Row[]} rows
 * @param {Span & { interval_s: number, count: number }} into
 */
export function bucketsOf(rows, { from, to, interval_s, count }) {
  const width = Math.max(interval_s, (to - from) / count);
  /** @type {{ at: number, width: number, rows: Row[] }[]} */
  const buckets = [];
  for (let at = from; at < to - 1e-6; at += width) buckets.push({ at, width, rows: [] });
  for (const row of rows) {
    const bucket = buckets[Math.floor((row.at - from) / width)];
    if (row.at >= from && bucket) bucket.rows.push(row);
  }
  return buckets.map((bucket) => gathered(bucket, interval_s));
}

/**
 * @param {{ at: number, width: number, rows: Row[] }} bucket
 * @param {number} interval_s
 */
function gathered({ at, width, rows }, interval_s) {
  /** @type {Bucket} */
  const bucket = { at, width, seconds: rows.length * interval_s };
  if (!rows.length) return bucket;
  for (const column of Object.keys(rows[0])) {
    if (column === "at") continue;
    const values = rows.map((row) => row[column]).filter((value) => value !== null);
    bucket[column] = values.length || COUNTS.includes(column) ? merged(column, values) : null;
  }
  return bucket;
}

/**
 * @param {string} column
 * @param {number[]} values
 */
function merged(column, values) {
  const sum = values.reduce((total, value) => total + value, 0);
  if (COUNTS.includes(column)) return sum;
  return column === "p95_s" ? Math.max(...values) : sum / values.length;
}

/**
 * Counts of a bucket by the minute; null where nobody looked.
 * @param {string} column
 */
export const perMinute = (column) => (/** @type {Bucket} */ bucket) =>
  bucket.seconds ? ((bucket[column] ?? 0) * 60) / bucket.seconds : null;
