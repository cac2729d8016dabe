/** Small helpers around the DOM. */

/**
 * An element that the page is known to have.
 * @template {string} S
 * @param {S} selector
 * @param {ParentNode} root
 * @returns {S extends keyof Elements ? Elements[S] : HTMLElement}
 */
export const $ = (selector, root = document) => /** @type {any} */ (root.querySelector(selector));

/**
 * An element with properties (`on…` listeners, `class`, `data-…`, `aria-…` attributes) and children.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} props
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/**
 * Calls `act()` whenever `element` comes near the window, and again while it stays there and `act` says
 * that it brought more.
 * @param {Element} element
 * @param {() => Promise<boolean>} act
 */
export function whenNear(element, act) {
  const observer = new IntersectionObserver(async (entries) => {
    if (!entries.at(-1)?.isIntersecting || !(await act())) return; // the last entry tells how it is now
    observer.unobserve(element);
    observer.observe(element); // tells anew
  }, { rootMargin: "600px" });
  observer.observe(element);
}

/**
 * Where an arrow key leads in a row, or 0.
 * @param {string} key
 */
export const stepOf = (key) => (key === "ArrowLeft" ? -1 : key === "ArrowRight" ? 1 : 0);

/**
 * One of the symbols in index.html.
 * @param {string} name
 */
export function icon(name) {
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/**
 * Write `text` only when it changes, so that screen readers and layout stay calm.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
