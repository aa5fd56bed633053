// Sets the theme before anything is drawn: what was chosen here, or what the system has.
(() => {
  const chosen = localStorage.getItem("localoss.theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
