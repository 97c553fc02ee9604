// Runs before the first paint: the colours that this browser chose earlier. Not a module, because those run later.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("signalmesh.theme"); } catch { /* storage is closed to this page */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
