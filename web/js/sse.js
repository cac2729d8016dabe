/** Server-sent events out of a fetch body (EventSource cannot POST). */

/** The connection was not made, or the stream ended without its final event: its worker died. */
export class StreamCut extends Error {}

/**
 * What a call of the browser's network gives; whatever it throws is a `StreamCut`. Around nothing else: faults
 * of the page are TypeErrors as well, and asking again does not mend them.
 * @template Result
 * @param {Promise<Result>} call
 */
export const untilCut = (call) => call.catch((error) => {
  throw new StreamCut(String(error));
});

/**
 * The `data` of each event, parsed as JSON. Ends with the body, whole or not.
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 * @returns {AsyncGenerator<any>}
 */
export async function* eventsOf(body) {
  let rest = "";
  for await (const text of textOf(body)) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop() ?? ""; // an unfinished event waits for its end; a cut one is dropped
    for (const block of blocks) {
      const data = dataOf(block);
      if (data) yield JSON.parse(data);
    }
  }
}

/** @param {string} block */
function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

// Streams are not async iterable in every browser that is still in use.
/** @param {ReadableStream<Uint8Array<ArrayBuffer>>} body */
async function* textOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await untilCut(reader.read());
      if (done) return;
      yield value.replaceAll("\r\n", "\n");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
