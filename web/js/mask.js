/** Which part of a picture is drawn anew: strokes on a canvas that can be undone, and the file that says it. */

const PAINT = "#ff5a3c";
const MAX_SIDE = 1536; // strokes need no more; the file is as large as the picture
const SAMPLE = 64;

export class Mask {
  /** @type {Operation[]} */
  #done = [];
  /** @type {Operation[]} */
  #undone = [];
  /** @type {HTMLCanvasElement | null} */
  #base = null;
  #canvas;
  #context;

  /**
   * For a picture of `width` × `height`, drawn on `canvas`, which gets its proportions.
   * @param {HTMLCanvasElement} canvas
   * @param {number} width
   * @param {number} height
   */
  constructor(canvas, width, height) {
    const shrink = Math.min(1, MAX_SIDE / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * shrink));
    canvas.height = Math.max(1, Math.round(height * shrink));
    this.width = width;
    this.height = height;
    this.#canvas = canvas;
    this.#context = contextOf(canvas);
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /**
   * Go on from a mask that `toBlob` made.
   * @param {Blob} file
   */
  async load(file) {
    const base = blank(this.#canvas.width, this.#canvas.height);
    const context = contextOf(base);
    context.drawImage(await createImageBitmap(file), 0, 0, base.width, base.height);
    const pixels = context.getImageData(0, 0, base.width, base.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
    context.putImageData(pixels, 0, 0);
    fill(context, "source-in", PAINT);
    this.#base = base;
    this.#replay();
  }

  /**
   * Begin a stroke; `radius` in pixels of the canvas, as all that follows.
   * @param {{ erase: boolean, radius: number, x: number, y: number }} stroke
   */
  begin({ erase, radius, x, y }) {
    this.#do({ kind: "stroke", erase, radius, points: [[x, y]] });
  }

  /**
   * @param {number} x
   * @param {number} y
   */
  extend(x, y) {
    const stroke = this.#done.at(-1);
    if (stroke?.kind !== "stroke") return;
    stroke.points.push([x, y]);
    this.#line(stroke, stroke.points.length - 1);
  }

  clear() {
    this.#do({ kind: "clear" });
  }

  invert() {
    this.#do({ kind: "invert" });
  }

  undo() {
    const last = this.#done.pop();
    if (last) this.#undone.push(last);
    this.#replay();
  }

  redo() {
    const next = this.#undone.pop();
    if (!next) return;
    this.#done.push(next);
    this.#draw(next);
  }

  /** How much of the picture is drawn anew: 0 … 1. */
  get share() {
    const small = contextOf(blank(SAMPLE, SAMPLE));
    small.drawImage(this.#canvas, 0, 0, SAMPLE, SAMPLE);
    const { data } = small.getImageData(0, 0, SAMPLE, SAMPLE);
    let sum = 0;
    for (let at = 3; at < data.length; at += 4) sum += data[at];
    return sum / 255 / SAMPLE ** 2;
  }

  /**
   * As the API wants it: as large as the picture, white where that is drawn anew, else black.
   * @returns {Promise<Blob | null>}
   */
  toBlob() {
    const file = contextOf(blank(this.width, this.height));
    file.drawImage(this.#canvas, 0, 0, this.width, this.height);
    fill(file, "source-in", "#fff");
    fill(file, "destination-over", "#000");
    return new Promise((resolve) => file.canvas.toBlob(resolve, "image/png"));
  }

  /** @param {Operation} operation */
  #do(operation) {
    this.#done.push(operation);
    this.#undone = [];
    this.#draw(operation);
  }

  #replay() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (this.#base) this.#context.drawImage(this.#base, 0, 0);
    for (const operation of this.#done) this.#draw(operation);
  }

  /** @param {Operation} operation */
  #draw(operation) {
    if (operation.kind === "clear") this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    else if (operation.kind === "invert") fill(this.#context, "source-out", PAINT);
    else operation.points.forEach((_, index) => this.#line(operation, index));
  }

  /**
   * From the point before `index` to it; the first is a dot.
   * @param {Stroke} stroke
   * @param {number} index
   */
  #line({ erase, radius, points }, index) {
    const context = this.#context;
    const [x, y] = points[index];
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    Object.assign(context, { strokeStyle: PAINT, fillStyle: PAINT, lineCap: "round", lineWidth: 2 * radius });
    context.beginPath();
    if (index) {
      context.moveTo(...points[index - 1]);
      context.lineTo(x, y);
      context.stroke();
    } else {
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalCompositeOperation = "source-over";
  }
}

/**
 * @param {number} width
 * @param {number} height
 */
const blank = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

/** @param {HTMLCanvasElement} canvas */
const contextOf = (canvas) =>
  /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));

/**
 * @param {CanvasRenderingContext2D} context
 * @param {GlobalCompositeOperation} how
 * @param {string} colour
 */
function fill(context, how, colour) {
  context.globalCompositeOperation = how;
  context.fillStyle = colour;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
}
