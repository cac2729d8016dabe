// A classic script in the head: the chosen theme must hold before the first paint.
(() => {
  try {
    const theme = JSON.parse(localStorage.getItem("zimage.theme") ?? "null");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is blocked or holds something else: follow the system.
  }
})();
