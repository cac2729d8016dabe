// A classic script in the head: the theme must hold before the first paint.
(() => {
  let chosen = null;
  try {
    chosen = JSON.parse(localStorage.getItem("zimage.theme") ?? "null");
  } catch {
    // Storage is blocked or holds something else: follow the system.
  }
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = ["dark", "light"].includes(chosen) ? chosen : system;
})();
