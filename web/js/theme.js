/** Dark and light: the system's wish, unless the switch says otherwise. */

import { icon } from "./dom.js";
import { t } from "./i18n.js";
import { load, save } from "./settings.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

const systemTheme = () => (system.matches ? "dark" : "light");
const currentTheme = () => root.dataset.theme; // boot.js has set it

/** @param {HTMLElement} button */
export function showThemeSwitch(button) {
  const other = currentTheme() === "dark" ? "light" : "dark";
  const name = t(other === "dark" ? "themeDark" : "themeLight");
  button.replaceChildren(icon(other === "dark" ? "moon" : "sun"));
  button.setAttribute("aria-label", name);
  button.title = name;
  return other;
}

/** @param {HTMLElement} button */
export function bindThemeSwitch(button) {
  button.addEventListener("click", () => {
    const theme = currentTheme() === "dark" ? "light" : "dark";
    // Choosing what the system wishes anyway means to follow it again.
    save("theme", theme === systemTheme() ? null : theme);
    root.dataset.theme = theme;
    showThemeSwitch(button);
  });
  system.addEventListener("change", () => {
    if (!load("theme")) root.dataset.theme = systemTheme();
    showThemeSwitch(button);
  });
}
