/** Every word of the page in English and Chinese, and the functions that put them there. */

import { load, save } from "./settings.js";

// key: [English, Chinese]. `{name}` is filled in where it is given; with `n`, `one|many` goes by it.
export const STRINGS = {
  formTitle: ["Draw pictures", "绘制图片"],
  modeLabel: ["What to draw", "绘制方式"],
  modePrompts: ["Prompts", "提示词"],
  modeTemplate: ["Template", "模板"],
  history: ["Earlier prompts", "历史提示词"],
  historyEmpty: ["What you draw is remembered here.", "画过的提示词会记在这里。"],
  templateLabel: ["Template", "模板"],
  templatePlaceholder: ["a {red|blue} poster of {product}", "{红色|蓝色}的{product}海报"],
  templateHelp: [
    "{red|blue} draws each choice, {product} each value that you list below.",
    "{红色|蓝色} 会逐个选用，{product} 会逐个换成下面列出的值。",
  ],
  templateExample: ["Example", "示例"],
  values: ["{n} value|{n} values", "{n} 个值"],
  valuesNone: ["one value a line", "每行一个值"],
  expanded: ["{n} picture, from these prompts|{n} pictures, from these prompts", "共 {n} 张图，提示词如下"],
  expandedRest: ["… and {n} more", "……另有 {n} 条"],
  expandedLabel: ["Expanded prompts", "展开后的提示词"],
  quick: ["{n} variant|{n} variants", "每条 {n} 张"],
  guidance: ["Guidance", "引导强度"],
  negative: ["Negative prompt", "反向提示词"],
  negativeHelp: ["What to avoid. Works with guidance above 0 only.", "不想出现的内容，仅在引导强度大于 0 时有效。"],
  jobName: ["Job name", "任务名称"],
  fromPicture: ["Start from a picture…", "从图片开始…"],
  settingsFromPicture: ["Settings from a picture…", "从图片读取参数…"],
  dropHere: ["Drop a picture to draw from it, or to take its settings", "松开鼠标，以此图作画或读取其参数"],
  dropForSettings: ["Drop a picture to use its settings", "松开鼠标，从这张图片读取参数"],
  choiceTitle: ["How do you want to use this picture?", "如何使用这张图片？"],
  drawFrom: ["Draw from it", "以此图作画"],
  useSettings: ["Use its settings", "使用其参数"],
  sourceLabel: ["Draws from this picture", "以此图作画"],
  sourceRemove: ["Draw without the picture", "不再使用这张图片"],
  strength: ["Strength", "重绘幅度"],
  strengthLow: ["keeps it", "接近原图"],
  strengthHigh: ["draws anew", "自由重绘"],
  maskPaint: ["Paint a part", "局部重绘"],
  maskTitle: ["Paint what shall be drawn anew", "涂抹要重绘的部分"],
  maskHelp: [
    "The rest stays as it is. Keys: arrows move the brush, Space paints, [ and ] change its size.",
    "其余部分保持不变。键盘：方向键移动画笔，空格键涂抹，[ 和 ] 调整大小。",
  ],
  maskCanvas: ["The picture to paint on", "涂抹画布"],
  maskTool: ["Tool", "工具"],
  maskBrush: ["Brush", "画笔"],
  maskErase: ["Eraser", "橡皮"],
  maskSize: ["Brush size", "笔刷大小"],
  redo: ["Redo", "重做"],
  maskInvert: ["Invert", "反选"],
  maskClear: ["Clear", "清空"],
  maskDone: ["Done", "完成"],
  maskShare: ["{percent} % is drawn anew", "将重绘 {percent}%"],
  maskEmpty: ["Nothing is painted yet", "尚未涂抹"],
  model: ["Model", "模型"],
  modelMissed: ["{model} is not available: {now} is used instead", "{model} 当前不可用，改用 {now}"],
  loras: ["Styles", "风格"],
  loraAdd: ["Add a style…", "添加风格…"],
  loraFind: ["Find a style", "查找风格"],
  loraStrength: ["Strength of {name}", "{name} 的强度"],
  loraRemove: ["Remove {name}", "移除 {name}"],
  loraGone: ["No longer available, or not for your key", "已不存在，或您的密钥无权使用"],
  loraChanged: ["The file has changed: pictures may differ", "文件已更换，画面可能不同"],
  errorLora: ["Remove {names} to draw: it is no longer available, or not for your key.", "{names} 已不存在，或您的密钥无权使用。移除后即可绘制。"],
  fits: ["Where the size is not the picture's", "尺寸与原图不同时"],
  fitCover: ["Fill the size", "填满尺寸"],
  fitExtend: ["Extend the picture", "向外扩图"],
  sides: ["Where to extend it", "扩图方向"],
  sideAround: ["All around", "四周"],
  sideLeft: ["Left", "向左"],
  sideRight: ["Right", "向右"],
  sideUp: ["Up", "向上"],
  sideDown: ["Down", "向下"],
  errorAround: ["Extended, it is at least {w} × {h}: the picture keeps its size.", "扩图后至少为 {w} × {h}，原图大小不变。"],
  errorNothingAround: ["Nothing is left around the picture: choose a larger size.", "图片四周没有空余，请选择更大的尺寸。"],
  errorAroundPixels: ["Too large: at most {max} pixels. Choose a size nearer to the picture's.", "尺寸过大：最多 {max} 像素，请选择更接近原图的尺寸。"],
  asSource: ["As the picture", "与原图一致"],
  noPicture: ["This file is no picture that can be drawn from", "无法读取这个图片文件"],
  noSettings: ["This picture does not say how it was drawn", "这张图片里没有绘制参数"],
  asJob: ["Runs in the background. You can close this page.", "在后台运行，可以关闭本页。"],
  promptLabel: ["Prompts", "提示词"],
  promptPlaceholder: ["Describe a picture. Each line is a picture of its own.", "描述想要的画面，每行一张图。"],
  lines: ["{n} line|{n} lines", "{n} 行"],
  linesHint: ["one line, one picture", "一行一张图"],
  sizeLabel: ["Size", "尺寸"],
  custom: ["Custom", "自定义"],
  width: ["Width", "宽"],
  height: ["Height", "高"],
  variants: ["Variants", "每条提示词张数"],
  fewer: ["One variant fewer", "减少一张"],
  more: ["One variant more", "增加一张"],
  seed: ["Seed", "随机种子"],
  seedPlaceholder: ["random", "随机"],
  seedRandom: ["Use a random seed", "改用随机种子"],
  advanced: ["Advanced", "高级选项"],
  steps: ["Steps", "步数"],
  stepsDefault: ["default ({n})", "默认（{n}）"],
  stepsDefaultUnknown: ["default", "默认"],
  format: ["File format", "文件格式"],
  draw: ["Draw", "开始绘制"],
  drawCount: ["Draw {n} picture|Draw {n} pictures", "绘制 {n} 张图"],

  errorPromptEmpty: ["Enter a prompt", "请输入提示词"],
  errorTemplateEmpty: ["Enter a template", "请输入模板"],
  errorVariable: ["Give {names} at least one value.", "请为 {names} 至少填写一个值。"],
  errorChars: ["Too long: {n} of {max} characters", "太长：{n} / {max} 个字符"],
  and: [" and ", "、"],
  chars: ["{n} / {most} characters", "{n} / {most} 字符"],
  tokens: ["{n} / {most} tokens", "{n} / {most} token"],
  errorGuidance: ["A number from 0 to 30, or nothing.", "请填写 0 到 30 的数字，或留空。"],
  errorTooMany: ["{n} pictures at once are too many: at most {max}.", "一次 {n} 张太多了，最多 {max} 张。"],
  errorCount: ["Choose 1 to {max}.", "请填写 1 到 {max}。"],
  errorSide: ["Each side must be a multiple of {m}: try {w} × {h}.", "边长必须是 {m} 的倍数，例如 {w} × {h}。"],
  errorPixels: ["Too large: at most {max} pixels, such as {w} × {h}.", "尺寸过大：最多 {max} 像素，例如 {w} × {h}。"],
  errorSmall: ["Each side must be at least {min}.", "边长至少为 {min}。"],
  errorSizeEmpty: ["Fill in width and height.", "请填写宽和高。"],
  errorSeed: ["A whole number from 0 to 4294967295, or nothing.", "请填写 0 到 4294967295 的整数，或留空。"],
  errorSteps: ["A whole number from 1 to {max}, or nothing.", "请填写 1 到 {max} 的整数，或留空。"],
  errorLine: ["Line {line}: {message}", "第 {line} 行：{message}"],

  results: ["Results", "结果"],
  views: ["Views", "视图"],
  gallery: ["Gallery", "图库"],
  search: ["Prompt, seed or job", "提示词、种子或任务"],
  favouritesOnly: ["Favourites only", "只看收藏"],
  nothingFound: ["No matches", "没有符合条件的图片"],
  showMore: ["Show more", "显示更多"],
  galleryAway: ["The gallery cannot be reached now", "暂时无法读取图库"],
  tileSize: ["Size of the previews", "缩略图大小"],
  tileSmall: ["S", "小"],
  tileMedium: ["M", "中"],
  tileLarge: ["L", "大"],
  cancelAll: ["Cancel all", "全部取消"],
  count: ["{n} picture|{n} pictures", "{n} 张"],
  countMore: ["{n}+ pictures", "{n}+ 张"],
  progress: ["{done} of {all} drawn", "已完成 {done} / {all}"],
  emptyTitle: ["Your pictures appear here", "图片会出现在这里"],
  emptyText: ["Write a line and press Draw, or begin with one of these:", "写一行提示词，点击“开始绘制”，或者从下面的例子开始："],

  waitHere: ["Waiting on this page", "在本页等待"],
  waitHereAhead: ["Waiting on this page, {n} ahead", "在本页等待，前面还有 {n} 个"],
  sending: ["Sending…", "正在提交…"],
  queuedNext: ["Next in line", "下一张"],
  queuedAhead: ["{n} ahead in the queue", "前面还有 {n} 个"],
  about: ["about {time}", "约 {time}"],
  soon: ["any moment", "即将开始"],
  drawingStep: ["Step {step} of {steps}", "第 {step} / {steps} 步"],
  left: ["{time} left", "剩余 {time}"],
  finishing: ["Finishing…", "即将完成…"],
  limited: ["Too many at a time", "同时请求过多"],
  busy: ["All workers are busy", "所有绘图进程都在忙"],
  retryIn: ["tries again in {time}", "{time} 后自动重试"],
  lost: ["Connection lost", "连接中断"],
  reconnected: ["reconnected", "已重新连接"],
  seconds: ["{n} s", "{n} 秒"],
  hours: ["{n} h", "{n} 小时"],
  minutes: ["{n} min", "{n} 分钟"],
  failed: ["Not drawn", "绘制失败"],
  errorNetwork: ["The server cannot be reached.", "无法连接服务器。"],
  errorPage: ["This page did not understand the answer. Load it anew.", "本页无法理解服务器的回复，请刷新页面。"],
  errorStream: ["The connection broke {n} times.", "连接中断了 {n} 次。"],
  reason_too_many_tokens: [
    "Too long: {tokens} tokens, and the model reads {most}. Shorten it by about {percent} %.",
    "太长：共 {tokens} 个 token，模型最多读取 {most} 个。请缩短约 {percent}%。",
  ],
  reason_images_per_day: [
    "{drawn} of {most} pictures today, and {asked} more are wanted; again at {time}.",
    "今日已画 {drawn} / {most} 张，还需要 {asked} 张；{time} 起可以继续。",
  ],
  reason_brace_open: ["Character {at}: this { is not closed. Write \\{ for a plain one.", "第 {at} 个字符：这个 { 没有闭合。普通花括号请写成 \\{。"],
  reason_brace_closes_nothing: ["Character {at}: this } closes nothing. Write \\} for a plain one.", "第 {at} 个字符：这个 } 没有对应的 {。普通花括号请写成 \\}。"],
  reason_brace_no_name: [
    "Character {at}: these braces hold neither choices, as in {red|blue}, nor a name.",
    "第 {at} 个字符：花括号里既不是 {红色|蓝色} 这样的选项，也不是变量名。",
  ],
  reason_too_many_prompts: ["It makes more than {most} prompts. Take away choices or values.", "展开后超过 {most} 条提示词，请减少选项或取值。"],
  reason_prompt_chars: ["A prompt that it makes has more than {most} characters. Shorten it or its values.", "展开后有提示词超过 {most} 个字符，请缩短模板或取值。"],
  error_picture_lost: ["The picture to draw from is no longer in this browser. Choose it again.", "浏览器中已找不到原图，请重新选择。"],
  error_unknown_lora: ["One of its styles is no longer available, or not for this key.", "所用的风格已不存在，或此密钥无权使用。"],
  error_model_not_found: ["The model is no longer available. Choose another.", "该模型已不可用，请选择其他模型。"],
  error_invalid_api_key: ["The key is wrong, expired or switched off.", "密钥错误、已过期或已停用。"],
  error_forbidden: ["This key may not do that.", "此密钥没有这项权限。"],
  error_not_found: ["It does not exist, or no longer.", "不存在，或已被删除。"],
  error_wrong_state: ["Its state does not allow that.", "当前状态不允许此操作。"],
  error_deadline_passed: ["It was not drawn in the time that it had.", "未能在限定时间内完成。"],
  error_request_too_large: ["The request is too large.", "请求过大。"],
  error_request_refused: ["The model declines this request: change the prompt or the size.", "模型拒绝了此请求，请修改提示词或尺寸。"],
  error_too_slow: ["It takes too long to draw: ask for a smaller size or fewer steps.", "绘制时间过长，请减小尺寸或步数。"],
  error_out_of_memory: ["It does not fit the device: ask for a smaller size.", "显存不足，请减小尺寸。"],
  error_rate_limit_exceeded: ["Over a limit of the key or the address.", "超出密钥或地址的限额。"],
  error_drawing_failed: ["Drawing failed. It may work the next time.", "绘制出错，可以重试。"],
  error_storage_failed: ["The picture cannot be stored: there is no room.", "存储空间不足，无法保存图片。"],
  error_store_unavailable: ["The database cannot be used now. Try again.", "数据库暂时不可用，请稍后再试。"],
  error_overloaded: ["All workers are busy. Try again.", "所有绘图进程都在忙，请稍后再试。"],
  error_not_ready: ["No worker is ready. Try again.", "没有就绪的绘图进程，请稍后再试。"],
  error_draining: ["The worker is about to restart. Try again.", "绘图进程正在重启，请重试。"],
  error_unavailable: ["Nobody can take it now. Try again.", "暂时无法处理，请稍后再试。"],
  error_server_error: ["The server failed on this. Operators find the cause in its log.", "服务器内部错误，管理员可在日志中查看原因。"],
  errorHttp: ["The server answered {status}.", "服务器返回 {status}。"],

  cancel: ["Cancel", "取消"],
  cancelOf: ["Cancel: {prompt}", "取消：{prompt}"],
  tryAgain: ["Try again", "重试"],
  dismiss: ["Dismiss", "移除"],
  open: ["Open: {prompt} (seed {seed})", "打开：{prompt}（种子 {seed}）"],
  download: ["Download", "下载"],
  again: ["Reuse settings", "复用参数"],
  favourite: ["Favourite", "收藏"],
  copyPrompt: ["Copy prompt", "复制提示词"],
  remove: ["Delete", "删除"],
  copied: ["Prompt copied", "提示词已复制"],
  copyFailed: ["The browser did not allow copying", "浏览器不允许复制"],
  reused: ["Settings loaded", "参数已填入表单"],
  sourceMissed: ["without the picture that it was drawn from", "未找到当时的原图"],
  lorasNotTaken: ["this model takes no styles", "此模型不支持风格"],
  removed: ["Picture deleted|{n} pictures deleted", "已删除 {n} 张图片"],
  cancelled: ["Picture cancelled|{n} pictures cancelled", "已取消 {n} 张图"],
  dismissed: ["Failed picture removed|{n} failed pictures removed", "已移除 {n} 张失败的图"],
  replaced: ["Your text was replaced", "已替换原来的文字"],
  undo: ["Undo", "撤销"],
  undoOf: ["Undo ({n})", "撤销（{n}）"],

  jobs: ["Jobs", "任务"],
  job: ["Job", "任务"],
  running: ["Running jobs", "正在运行的任务"],
  jobPictures: ["Pictures of this job", "本任务的图片"],
  allJobs: ["← All jobs", "← 全部任务"],
  noJobs: [
    "No jobs yet. More than ten pictures, or a template, become a job: it goes on when you close this page.",
    "还没有任务。超过十张图或使用模板时会创建任务，关闭页面也会继续。",
  ],
  jobUnnamed: ["Job of {time}", "{time} 的任务"],
  jobBegun: ["Job started: {n} picture|Job started: {n} pictures", "任务已开始：{n} 张图"],
  readyAt: ["ready at {time}, in {left}", "预计 {time} 完成，还需 {left}"],
  took: ["took {time}", "用时 {time}"],
  failedCount: ["{n} failed", "{n} 张失败"],
  runningCount: ["{n} being drawn", "{n} 张绘制中"],
  pause: ["Pause", "暂停"],
  resume: ["Resume", "继续"],
  retry: ["Retry what failed", "重试失败项"],
  retryCancelled: ["Draw the rest", "继续绘制其余图片"],
  jobForgotten: ["Job deleted|{n} jobs deleted", "已删除 {n} 个任务"],
  jobCancelled: ["Job cancelled|{n} jobs cancelled", "已取消 {n} 个任务"],
  forgetJob: ["Delete the job; its pictures stay", "删除任务（保留图片）"],
  zip: ["Download all as ZIP", "打包下载全部"],
  pictureGone: ["The picture was deleted.", "图片已被删除。"],
  state_waiting: ["Waiting", "等待中"],
  state_running: ["running", "运行中"],
  state_paused: ["paused", "已暂停"],
  state_cancelled: ["cancelled", "已取消"],
  state_completed: ["completed", "已完成"],
  state_failed: ["some failed", "部分失败"],
  key_disabled: ["on hold: key disabled", "已搁置：密钥停用"],
  key_expired: ["on hold: key expired", "已搁置：密钥过期"],
  key_deleted: ["on hold: key deleted", "已搁置：密钥已删除"],
  model_missing: ["on hold: its model is not served now", "已搁置：所用模型当前未提供"],
  key_limit: ["on hold: daily limit reached", "已搁置：今日额度已用完"],

  usage: ["Usage", "用量"],
  usageTitle: ["Pictures of the last 30 days", "最近 30 天的图片"],
  usageBy: ["by", "按"],
  byDay: ["Day", "日期"],
  byKey: ["Key", "密钥"],
  byModel: ["Model", "模型"],
  usage_requests: ["Requests", "请求"],
  usage_images: ["Pictures", "图片"],
  usage_megapixel_steps: ["Compute (megapixels × steps)", "计算量（百万像素×步）"],
  usage_gpu_seconds: ["GPU seconds", "GPU 秒"],
  usage_queue_seconds: ["Seconds waited", "等待秒数"],
  usage_refusals: ["Refused", "被拒"],
  usage_failures: ["Failed", "失败"],

  signInTitle: ["Sign in", "登录"],
  signInText: ["Paste the API key that your operators gave you.", "请粘贴管理员提供的 API 密钥。"],
  key: ["API key", "API 密钥"],
  signIn: ["Sign in", "登录"],
  signOut: ["Sign out", "退出登录"],
  signOutEverywhere: ["Sign out everywhere", "在所有设备上退出"],
  signOutFailed: ["Others may still be signed in: {why}", "其他设备可能仍处于登录状态：{why}"],
  operations: ["Operations", "运维"],
  wrongKey: ["This key is wrong, expired or switched off.", "密钥错误、已过期或已停用。"],
  today: ["{n} picture today|{n} pictures today", "今日已画 {n} 张"],
  todayOf: ["{n} of {max} pictures today", "今日已画 {n} / {max} 张"],

  gone: ["Picture is gone", "图片已不在"],
  goneText: ["Its file was deleted or lost. “Reuse settings” draws it again.", "文件已被删除或丢失。点击“复用参数”可以重新绘制。"],

  alike: ["More like this", "更多相似图"],
  upscale: ["Upscale 2×", "放大 2 倍"],
  compare: ["Before / after", "前后对比"],
  compareLabel: ["How much of the picture before is seen", "原图显示的比例"],
  before: ["Before", "原图"],
  after: ["After", "结果"],
  viewer: ["Picture", "图片"],
  previous: ["Previous picture", "上一张"],
  next: ["Next picture", "下一张"],
  close: ["Close", "关闭"],
  meta: ["Seed {seed}", "种子 {seed}"],
  metaSteps: ["{n} step|{n} steps", "{n} 步"],
  metaLoras: ["style: {names}|styles: {names}", "风格：{names}"],
  metaWithout: ["without: {negative}", "排除：{negative}"],

  workers: ["{open} of {of} workers ready", "{open} / {of} 个绘图进程就绪"],
  noWorkers: ["No worker is ready", "没有就绪的绘图进程"],
  offline: ["No connection", "无法连接"],
  connecting: ["Connecting…", "正在连接…"],
  state_loading: ["loading", "加载中"],
  state_ready: ["ready", "就绪"],
  state_busy: ["drawing", "绘制中"],
  state_draining: ["draining", "排空中"],
  state_drained: ["drained", "已排空"],
  state_stuck: ["stuck", "卡死"],
  state_silent: ["silent", "无响应"],
  state_dead: ["ended", "已退出"],
  state_backoff: ["restarting", "重启中"],
  state_fatal: ["failed", "故障"],

  language: ["中文", "EN"],
  languageLabel: ["切换到中文", "Switch to English"],
  themeDark: ["Dark theme", "深色主题"],
  themeLight: ["Light theme", "浅色主题"],
};

// What each kind of model draws well: shapes for the shipped tiny one, anything for the others.
export const EXAMPLES = {
  tiny: [
    ["a large red circle on a white background", "白色背景上的一个大红色圆形"],
    ["a small blue star on a yellow background", "黄色背景上的一个小蓝色星形"],
    ["a green triangle on a black background", "黑色背景上的一个绿色三角形"],
  ],
  any: [
    ["a lighthouse on a cliff at dusk, soft pastel colours", "黄昏时悬崖上的灯塔，柔和的粉彩色调"],
    ["a paper-cut style fox in a snowy forest", "剪纸风格的狐狸，雪中森林"],
    ["studio photo of a ceramic teapot, morning light", "陶瓷茶壶的棚拍照片，清晨的光线"],
  ],
};

export const TEMPLATE_EXAMPLE = [
  {
    template: "a {large|small} {colour} {shape} on a {white|black} background",
    variables: { colour: "red\nblue\nyellow", shape: "circle\nstar" },
  },
  {
    template: "{白色|黑色}背景上的一个{大|小}{颜色}{形状}",
    variables: { 颜色: "红色\n蓝色\n黄色", 形状: "圆形\n星形" },
  },
];

const LANGUAGES = ["en", "zh"];
const preferred = () => (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

const saved = load("language");
let language = LANGUAGES.includes(saved) ? saved : preferred();

export const currentLanguage = () => language;

/**
 * The words for `key`, with `{name}`s filled from `values`; a key without words stands for itself.
 * @param {Words} key
 * @param {Record<string, unknown>} values
 */
export function t(key, values = {}) {
  const words = /** @type {Record<string, string[]>} */ (STRINGS)[key]?.[LANGUAGES.indexOf(language)] ?? key;
  const [one, many = one] = "n" in values ? words.split("|") : [words];
  return (values.n === 1 ? one : many).replace(/\{(\w+)\}/g, (braces, name) => {
    if (!(name in values)) return braces;
    const value = values[name];
    return typeof value === "number" && name === "n" ? value.toLocaleString(language) : String(value);
  });
}

/**
 * Why the server refused: by its `details` or `code`, never by its message, which is English.
 * @param {{ code?: string | null, message?: string, details?: Refusal["details"] }} error
 */
export function reasonOf({ code, message = "", details }) {
  const exact = `reason_${details?.reason}`;
  if (details && has(exact)) return t(exact, { ...details, time: clock(Number(details.resets_at)) });
  if (message && language === "en") return message;
  const general = `error_${code}`;
  return has(general) ? t(general) : message;
}

/**
 * @param {string} key
 * @returns {key is Words}
 */
export const has = (key) => Object.hasOwn(STRINGS, key);
/**
 * The words for what the server calls `name`; a later server may have names that this page does not know.
 * @param {string} prefix
 * @param {string} name
 */
export function named(prefix, name) {
  const key = prefix + name;
  return has(key) ? t(key) : name.replaceAll("_", " ");
}
/**
 * @template Content
 * @param {Content[]} pair
 */
export const inLanguage = (pair) => pair[LANGUAGES.indexOf(language)];

/**
 * Seconds since the epoch as a time of day, with the day where it is not today.
 * @param {number} at
 */
export function clock(at) {
  const date = new Date(at * 1000);
  const today = date.toDateString() === new Date().toDateString();
  /** @type {Intl.DateTimeFormatOptions} */
  const day = today ? {} : { month: "short", day: "numeric" };
  return date.toLocaleString(language === "zh" ? "zh-CN" : "en-GB", { ...day, hour: "2-digit", minute: "2-digit" });
}

/**
 * Seconds as a person says them; never a false precision.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds >= 5400) return t("hours", { n: Math.round(seconds / 360) / 10 });
  if (seconds >= 90) return t("minutes", { n: Math.round(seconds / 60) });
  return t("seconds", { n: Math.max(1, Math.ceil(seconds)) });
}

/**
 * Fill everything in the document that names its words by `data-i18n` or `data-i18n-attr`.
 * @param {ParentNode} root
 */
export function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-i18n]")) {
    element.textContent = t(/** @type {Words} */ (element.getAttribute("data-i18n")));
  }
  for (const element of root.querySelectorAll("[data-i18n-attr]")) {
    for (const pair of element.getAttribute("data-i18n-attr")?.split(";") ?? []) {
      const [name, key] = pair.split(":");
      element.setAttribute(name, t(/** @type {Words} */ (key)));
    }
  }
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  save("language", language);
}
