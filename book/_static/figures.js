// Draws the figures stored in a page. Plotly and the explorers are fetched, from beside this file, only where a page
// has figures, and each figure is drawn when it comes near the screen.
"use strict";

(function () {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const loaded = {};

  function load(file) {
    loaded[file] ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = here + file;
      script.onload = done;
      script.onerror = () => failed(new Error("cannot load " + file));
      document.head.append(script);
    });
    return loaded[file];
  }

  // The page's own colours, so that a figure follows the light and the dark theme.
  function pageColours() {
    const style = getComputedStyle(document.body);
    const text = style.getPropertyValue("--pst-color-text-base").trim() || style.color;
    const surface = style.getPropertyValue("--pst-color-surface").trim() || "white";
    return {
      "font.color": text,
      "paper_bgcolor": "rgba(0,0,0,0)",
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": text,
      "hoverlabel.bgcolor": surface,
      "hoverlabel.font.color": text,
    };
  }

  // Plotly's own sliders cannot be moved by keyboard; native ones in their place can, and a screen reader names them.
  // With several, each one's frames must leave alone what the others' change.
  async function addSliders(figure, plot, stored) {
    const rows = stored.layout.sliders.map(({ steps, active = 0, currentvalue }) => {
      const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: steps.length - 1 });
      const output = document.createElement("output");
      const label = document.createElement("label");
      label.append(currentvalue.prefix, input, output);
      const show = () => {
        output.textContent = steps[input.value].label;
        input.setAttribute("aria-valuetext", output.textContent);
      };
      input.addEventListener("input", () => {
        show();
        const [frame, options] = steps[input.value].args;
        Plotly.animate(plot, frame, options);
      });
      input.value = active;
      show();
      const row = Object.assign(document.createElement("div"), { className: "vla-frames" });
      row.append(label);
      return row;
    });
    figure.prepend(...rows);
    await Plotly.relayout(plot, { sliders: [] });
  }

  // The same for dropdowns: a native one is reached by keyboard, Plotly's own is not.
  function addMenus(figure, plot, stored) {
    for (const { buttons, active = 0, name } of stored.layout.updatemenus) {
      const select = document.createElement("select");
      buttons.forEach((button, i) => select.append(new Option(button.label, i, i === active, i === active)));
      const label = Object.assign(document.createElement("label"), { className: "vla-frames" });
      label.append(name ?? "Show: ", select);
      figure.prepend(label);
      select.addEventListener("change", () => {
        const { method, args } = buttons[select.value];
        Plotly[method](plot, ...args);
      });
    }
    return Plotly.relayout(plot, { updatemenus: [] });
  }

  async function draw(figure) {
    const plot = figure.querySelector(".vla-plot");
    const stored = JSON.parse(figure.querySelector("script").textContent);
    await load("vendor/plotly.min.js");
    plot.replaceChildren();
    const config = { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };
    await Plotly.newPlot(plot, stored.data, stored.layout, config);
    plot.setAttribute("role", "figure"); // no longer an image: it has Plotly's buttons; its label tells what it shows
    plot.querySelectorAll(".main-svg").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
    await Plotly.relayout(plot, pageColours());
    if (stored.frames?.length) await Plotly.addFrames(plot, stored.frames);
    if (stored.layout.sliders?.length) await addSliders(figure, plot, stored);
    if (stored.layout.updatemenus?.length) await addMenus(figure, plot, stored);
    const explorer = stored.layout.meta?.explorer;
    if (explorer) {
      await load("memory.js");
      await load("explorer.js");
      vlaExplorer.mount(figure, plot, explorer);
    }
    figure.dataset.drawn = "yes";
  }

  function start() {
    const figures = [...document.querySelectorAll(".vla-figure")];
    if (!figures.length) return;
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          watcher.unobserve(entry.target);
          draw(entry.target);
        }
      }
    }, { rootMargin: "800px" });
    figures.forEach((figure) => watcher.observe(figure));
    const linked = new URLSearchParams(location.hash.slice(1)).get("explore"); // an explorer's view, see explorer.js
    document.getElementById(`explore-${linked}`)?.scrollIntoView();
    // What is printed before it was seen is drawn at once, if Plotly is there.
    addEventListener("load", () => setTimeout(() => load("vendor/plotly.min.js"), 1000));
    addEventListener("beforeprint", () => figures.filter((f) => !f.dataset.drawn).forEach(draw));
    new MutationObserver(() => {
      for (const figure of figures.filter((f) => f.dataset.drawn)) {
        Plotly.relayout(figure.querySelector(".vla-plot"), pageColours());
      }
    }).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
})();
