// Before a page is printed: the light theme, and figures that shrink with the paper. Afterwards all is as it was.
"use strict";

(function () {
  const root = document.documentElement;
  let theme = null;

  // With a viewBox a picture drawn for the screen can be scaled; see print.css.
  function scale() {
    for (const svg of document.querySelectorAll(".vla-plot .main-svg:not([viewBox])")) {
      const { width, height } = svg.getBoundingClientRect();
      if (width) svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    }
  }
  const drawn = new MutationObserver(scale);

  function before() {
    if (theme === null) {
      theme = root.dataset.theme;
      root.dataset.theme = "light"; // figures.js follows
    }
    scale();
    drawn.observe(document.body, { childList: true, subtree: true }); // figures.js draws now what was never seen
    for (const plot of document.querySelectorAll(".vla-plot")) plot.dataset.words = plot.getAttribute("aria-label");
  }

  function after() {
    if (theme !== null) root.dataset.theme = theme;
    theme = null;
    drawn.disconnect();
    for (const svg of document.querySelectorAll(".vla-plot .main-svg")) svg.removeAttribute("viewBox");
    for (const plot of document.querySelectorAll(".vla-plot")) delete plot.dataset.words;
  }

  addEventListener("beforeprint", before);
  addEventListener("afterprint", after);
})();
