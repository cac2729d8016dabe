/** What modules of the page hand to each other, and what the cell answers: docs/api.md. Times are seconds of
 * the epoch, or with `_s` a span, where nothing else is said. */

/** Elements by selector, where they are more than an HTMLElement. */
interface Elements {
  "#account": HTMLDetailsElement;
  "#advanced": HTMLDetailsElement;
  "#choice": HTMLDialogElement;
  "#compare-before": HTMLImageElement;
  "#compare-divider": HTMLInputElement;
  "#choice-image": HTMLImageElement;
  "#draw": HTMLButtonElement;
  "#file": HTMLInputElement;
  "#form": HTMLFormElement;
  "#guidance": HTMLInputElement;
  "#health": HTMLDetailsElement;
  "#height": HTMLInputElement;
  "#history": HTMLDetailsElement;
  "#key": HTMLInputElement;
  "#lora-add": HTMLDetailsElement;
  "#lora-find": HTMLInputElement;
  "#mask-canvas": HTMLCanvasElement;
  "#mask-editor": HTMLDialogElement;
  "#mask-erase": HTMLInputElement;
  "#mask-image": HTMLImageElement;
  "#mask-redo": HTMLButtonElement;
  "#mask-size": HTMLInputElement;
  "#mask-undo": HTMLButtonElement;
  "#model-pick": HTMLSelectElement;
  "#n": HTMLInputElement;
  "#prompt": HTMLTextAreaElement;
  "#search": HTMLInputElement;
  "#sign-in": HTMLDialogElement;
  "#source-image": HTMLImageElement;
  "#source-mask": HTMLImageElement;
  "#steps": HTMLInputElement;
  "#strength": HTMLInputElement;
  "#template": HTMLTextAreaElement;
  "#usage-by": HTMLSelectElement;
  "#viewer": HTMLDialogElement;
  "#viewer-image": HTMLImageElement;
  "#viewer-next": HTMLButtonElement;
  "#viewer-prev": HTMLButtonElement;
  "#width": HTMLInputElement;
  "dialog[open]": HTMLDialogElement | null;
}

/** A key of the words of either page. */
type Words =
  | keyof typeof import("../../web/js/i18n.js").STRINGS
  | keyof typeof import("../../web/ops/strings.js").OPS_STRINGS;

type Timer = number | undefined;

/** `words` tell what was done, with the number `n` of what it was done to; `more`: texts beside it. */
type Act = { words: Words; n?: number; more?: string[]; undo: () => void; settle?: (leaving: boolean) => void };

// Drawing from this page

type Job = import("../../web/js/job.js").Job;
type Gallery = import("../../web/js/gallery.js").Gallery;
type Models = import("../../web/js/models.js").Models;
type Card = import("../../web/js/card.js").Card;

type Limits = {
  width: number;
  height: number;
  multiple: number;
  minSide: number;
  maxPixels: number;
  steps: number | null;
  guidance: number | null;
  maxSteps: number;
  maxImages: number;
  maxChars: number | null;
  maxTokens: number | null;
  edits: boolean;
  masks: boolean;
  loras: boolean;
};

/** What one picture is drawn with; null: as the model has it. */
type Settings = {
  prompt: string;
  width: number;
  height: number;
  steps: number | null;
  format: string;
  guidance: number | null;
  negative: string;
  lora?: Lora[];
  model?: string | null;
  origin?: Origin | null;
};

/** An adapter of a drawing; `sha256`: of its file, where that is known. */
type Lora = { name: string; scale: number; sha256?: string };

/** A picture that a drawing goes on from, and how: `file` and `mask` are keys of stash.js, `id` is of the gallery.
 * `as`: an edit, where nothing is said. With both, `file` may be gone. */
type Origin = {
  file: string | null;
  id: string | null;
  mask: string | null;
  strength: number | null;
  fit: "cover" | "extend";
  width: number;
  height: number;
  as?: "like" | "upscale";
  /** Where it is extended; all around, where nothing is said. */
  side?: "left" | "right" | "up" | "down";
};

/** A line of the brush; `radius` and `points` in pixels of the canvas. */
type Stroke = { kind: "stroke"; erase: boolean; radius: number; points: [number, number][] };
type Operation = Stroke | { kind: "clear" } | { kind: "invert" };

/** A checked form. */
type Values = Omit<Settings, "prompt"> & { lines: string[]; n: number; seed: number | null };

/** The form's fields: texts as they were typed, or what was filled in. */
type FormState = {
  mode: string;
  prompt: string;
  template: string;
  n: string | number;
  ratio: string;
  width: string | number;
  height: string | number;
  seed: string | number;
  steps: string | number;
  format: string;
  guidance: string;
  negative: string;
  name: string;
};

/** How a picture was drawn, as its file or the server tells. */
type Recipe = {
  prompt: string;
  negative_prompt: string;
  steps: number | null;
  guidance_scale: number | null;
  seed: number | null;
  width: number | null;
  height: number | null;
  format?: string;
  lora?: Lora[];
  model?: string;
};

/** `resume`: its place in the queue. */
type SavedJob = {
  settings: Settings;
  shots: { id: string; order: number; seed: number | null }[];
  batchAt: number;
  line?: number | null;
  resume?: string | null;
};

type ShotState =
  | "waiting" | "sending" | "queued" | "drawing" | "paused" | "done" | "failed" | "cancelled" | "planned";

/** What may be said of a picture that is still to come. `until`: milliseconds. */
type ShotNews = {
  state: ShotState;
  seed?: number | null;
  position?: number;
  until?: number | null;
  step?: number;
  steps?: number;
  preview?: Blob | null;
  blob?: Blob | null;
  imageId?: string;
  reason?: Pause["reason"];
  reconnected?: boolean;
  error?: Partial<import("../../web/js/api.js").ApiError>;
  tries?: number;
};

/** A picture to come, as cards show it: of this page, or of a durable job. */
type ShownShot = ShotNews & { job: { settings: Pick<Settings, "prompt" | "width" | "height"> } };

/** A picture to come of this page. */
type Shot = ShotNews & { id: string; order: number; seed: number | null; job: import("../../web/js/job.js").Job };

/** Shots by their place in a request; null for one that is drawn unseen. */
type Slots = (Shot | null)[] & { requestId?: string; pictureS?: number };

/** Before the next try. */
type Pause = { reason: "lost" | "busy" | "noWorkers" | "limited"; wait_s: number };

type Tries = { lost: number; busy: number };

type DrawEvents = {
  queued: { request_id: string; seeds: number[]; position: number; wait_s: number; picture_s?: number | null; resume?: string };
  step: { image_index: number; step: number; steps: number; remaining_s: number };
  partial_image: { image_index: number; b64_json: string; output_format?: string };
  completed: { image_index: number; b64_json: string; output_format?: string; seed?: number };
};

type DrawHandlers = {
  [Name in keyof DrawEvents]: (event: DrawEvents[Name], slots: Slots, now: { tries: Tries; format: string }) => (Shot | null)[];
};

// The gallery

/** A picture of the gallery; `blob`: the bytes, where this page drew it. */
type Picture = Recipe & {
  id: string;
  width: number;
  height: number;
  format: string;
  url: string;
  thumbnail_url: string;
  favourite: boolean;
  created_at?: number;
  job?: { id: string; number: number } | null;
  image_sha256?: string | null;
  mask_sha256?: string | null;
  drawn_from?: { image: string; mask: string | null; fit: "cover" | "extend" | "upscale"; position: string | null } | null;
  strength?: number;
  blob?: Blob | null;
};

/** As the server tells of it. */
type StoredPicture = Picture & { created_at: number };

/** A place in a grid: a picture, or a shot that becomes one. `batchAt`: milliseconds. */
type Item = Place & ({ picture: Picture; shot: ShownShot | null } | { picture: null; shot: ShownShot });
type Drawn = Item & { picture: Picture };
type Pending = Item & { shot: ShownShot };
/** Of this page's own requests. */
type Own = Item & { shot: Shot };

interface Place {
  id: string;
  batchAt: number;
  order: number;
  /** `performance.now()` of its last step */
  finishedAt?: number;
  /** on the way to the server: what that says is older */
  marking?: boolean;
}

/** What can be done with items; what lacks is not offered, nor what `can` says no to. */
interface Actions {
  can(name: "alike" | "drawFrom" | "upscale", picture: Picture): boolean;
  favourite(item: Drawn): void;
  alike(item: Drawn): void;
  drawFrom(item: Drawn): void;
  upscale(item: Drawn): void;
  again(item: Drawn): void;
  download(item: Drawn): void;
  copyPrompt(item: Drawn): void;
  remove(item: Drawn): void;
  open(item: Drawn): void;
  ahead?(item: Pending): number;
  cancel?(item: Pending): void;
  retry?(item: Pending): void;
  dismiss?(item: Pending): void;
}

/** The same for the grid of a durable job; `where`: its gallery. */
interface JobActions extends Omit<Actions, "open"> {
  open(item: Drawn, where: Gallery): void;
}

/** What a card shows; `update` brings it up to the state of its item. */
type Face = { frame: HTMLElement; caption: HTMLElement; opener?: HTMLElement; update: () => void };

/** Where a grid's further pictures come from; `more` tells whether some came. */
type Source = { hasMore: boolean; more(): Promise<boolean> };

type Filter = { q: string; favourite: true | null };

// The cell's answers

/** The error envelope, with what its headers say; `details`: numbers and names for words of one's own. */
type Refusal = {
  status: number;
  message: string;
  param: string | null;
  code: string | null;
  details: ({ reason?: string } & { [name: string]: string | number }) | null;
  retryAfterS: number | null;
  retry: boolean;
};

type Page<Row> = { data: Row[]; has_more: boolean };

type ModelEntry = {
  id: string;
  alias_of?: string | null;
  default_size?: string;
  default_steps?: number;
  default_guidance_scale?: number | null;
  side_multiple?: number;
  min_side?: number;
  max_pixels?: number;
  max_steps?: number;
  max_images?: number;
  max_prompt_chars?: number;
  max_prompt_tokens?: number | null;
  edits?: boolean;
  masks?: boolean;
  loras?: boolean;
};

/** Of `GET /v1/loras`. */
type LoraEntry = { name: string; sha256: string; rank: number };

type SessionAnswer = {
  auth: string;
  signed_in: boolean;
  key: { name: string; role: string; images_today: number | null; images_per_day: number | null } | null;
};

type JobState = "running" | "paused" | "cancelled" | "completed" | "failed";
type Verb = "pause" | "resume" | "cancel" | "retry";

/** A job as the server keeps it. */
type StoredJob = {
  id: string;
  name: string;
  state: JobState;
  held: "key_disabled" | "key_expired" | "key_deleted" | "key_limit" | null;
  created_at: number;
  finished_at: number | null;
  total: number;
  counts: { done: number; failed: number; cancelled: number; running: number };
  predicted_finish_at: number | null;
  revision?: number;
  parameters: {
    size: string;
    image?: string;
    mask?: string;
    strength?: number;
    fit?: Origin["fit"];
    position?: string;
  };
};

type StoredItem = {
  number: number;
  prompt: string;
  seed: number;
  state: "waiting" | "running" | "done" | "failed" | "cancelled";
  step: number;
  steps: number;
  error: { code: string; message: string } | null;
  image: Picture | null;
};

type JobEvents = {
  "job.updated": { job: StoredJob };
  "job.item": { item: StoredItem };
  "job.step": { number: number; step: number; steps: number };
};

/** `tokens`: of the longest prompt, where the model counts them. */
type Preview = { count: number; prompts: string[]; tokens?: number | null };

type UsageColumn =
  | "requests" | "images" | "megapixel_steps" | "gpu_seconds" | "queue_seconds" | "refusals" | "failures";
type UsageBy = "day" | "key" | "model";
type UsageRow = { [column in UsageColumn]?: number } & { [by in UsageBy]?: string };

// What the guard writes

type WorkerState = {
  name: string;
  state: string;
  since: number;
  open: boolean;
  phase: "boot" | "load" | "compile" | "idle" | "encode" | "step" | "decode" | "ended" | null;
  phase_age_s: number | null;
  in_step: number;
  queued: number;
  running: number;
  predicted_wait_s: number | null;
  restarts: number;
  last_fault: { at: number; what: string } | null;
  device: string;
  device_name: string;
  resident_bytes: number;
  gpu: {
    memory_used_bytes: number;
    memory_bytes: number;
    utilization_ratio: number | null;
    temperature_c: number | null;
  } | null;
};

/** A host of a front's cluster, as the front's guard sees it. */
type HostState = {
  name: string;
  address: string;
  state: string;
  since: number;
  open: boolean;
  why: string;
  silent_s: number | null;
  wait_s: number | null;
  workers: number;
  ready: number;
};

type Alarm = { name: string; worker: string | null; since: number; text: string };

/** cell.json. */
type CellState = {
  at: number;
  name: string | null;
  pool: { open: number; of: number };
  workers: WorkerState[];
  /** Of a front alone, with the workers of its hosts. */
  hosts?: HostState[];
  workers_of_hosts?: WorkerState[];
  alarms: Alarm[];
  events: { at: number; worker: string | null; what: string }[];
};

type Lane = [since: number, state: string][];
type PoolHistory = { interval_s: number; columns: string[]; points: (number | null)[][]; lanes: { [worker: string]: Lane } };

/** One point of the history, by column; null where nothing is known. */
type Row = { at: number; [column: string]: number | null };
/** Points of `width` seconds together; `seconds`: how many of them were watched. */
type Bucket = { at: number; width: number; seconds: number; [column: string]: number | null };

/** What a chart shows, in seconds of the epoch. */
type Span = { from: number; to: number };
type Series = { name: string; label: Words; value: (bucket: Bucket) => number | null | undefined };
