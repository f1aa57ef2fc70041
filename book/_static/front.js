// The first page's picture: mixes the ten stored digits as each memory does, after one pair, two pairs, ... ten.
// The mixtures come from a run of vla_teach/front.py; see there.
"use strict";

(function () {
  const STEP = 900; // ms for a pair
  const BLUE = [33, 102, 172], RED = [178, 24, 43];

  function mount(figure) {
    const { memories, keys, values, runs } = JSON.parse(figure.querySelector("script").textContent);
    const controls = figure.querySelector(".vla-first-controls");
    const button = controls.querySelector("button"), slider = controls.querySelector("input");
    const chosen = Object.fromEntries([...controls.querySelectorAll("select")].map((s) => [s.dataset.name, s]));
    const rows = Object.fromEntries(memories.map((m) => [m, figure.querySelector(`[data-memory="${m}"]`)]));
    const canvases = {};
    for (const memory of memories) {
      canvases[memory] = [...rows[memory].querySelectorAll("span")].map((tile) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
        tile.replaceChildren(canvas);
        return canvas;
      });
    }

    // One answer: the mixture of the values, drawn as dark as it can be; what is below 0 is paper.
    function paint(canvas, weights) {
      const answer = values[0].map((_, pixel) => weights.reduce((sum, w, s) => sum + w * values[s][pixel], 0));
      const brightest = Math.max(...answer, 1e-9);
      const image = new ImageData(8, 8);
      answer.forEach((ink, pixel) => { image.data[4 * pixel + 3] = Math.round((255 * Math.max(ink, 0)) / brightest); });
      canvas.getContext("2d").putImageData(image, 0, 0);
    }

    function draw() {
      const t = Number(slider.value), likeness = chosen.likeness.value, penalty = chosen.penalty.value;
      slider.nextElementSibling.textContent = t;
      slider.setAttribute("aria-valuetext", `${t} of ${slider.max}`);
      figure.querySelectorAll(".vla-keys span").forEach((tile, i) => {
        tile.classList.toggle("vla-now", i === t - 1);
        tile.classList.toggle("vla-later", i >= t);
        [...tile.children].forEach((cell, j) => {
          const x = keys[likeness][i][j];
          cell.style.background = `rgba(${x < 0 ? BLUE : RED}, ${Math.min(1, Math.abs(x) * 2).toFixed(2)})`;
        });
      });
      figure.querySelectorAll(".vla-stored span").forEach((tile, i) => {
        tile.classList.toggle("vla-now", i === t - 1);
        tile.classList.toggle("vla-later", i >= t);
      });
      const said = memories.map((memory) => {
        const run = runs[memory === "VLA" ? `${memory}/${likeness}/${penalty}` : `${memory}/${likeness}`];
        canvases[memory].forEach((canvas, i) => {
          canvas.parentElement.classList.toggle("vla-now", i === t - 1);
          if (i < t) paint(canvas, run.mixtures[t - 1].slice(i * t, i * t + t));
          else canvas.getContext("2d").clearRect(0, 0, 8, 8);
        });
        const error = run.errors[t - 1];
        const shown = rows[memory].querySelector(".vla-error");
        shown.textContent = error.toFixed(2);
        shown.style.setProperty("--error", error);
        return `${memory} ${error.toFixed(2)}`;
      });
      const sentence = `After ${t} of ${slider.max} pairs, asked for all of them, the answers are off by: ` +
        `${said.join(", ")}. (0 is the picture itself.)`;
      figure.querySelector(".vla-words").textContent = sentence;
      figure.querySelector(".vla-first-picture").setAttribute("aria-label", sentence);
    }

    let timer = null;
    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    }
    function play() {
      if (slider.value === slider.max) slider.value = slider.min;
      draw();
      button.textContent = "Stop";
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        draw();
        if (slider.value === slider.max) stop();
      }, STEP);
    }
    button.addEventListener("click", () => (timer === null ? play() : stop()));
    slider.addEventListener("input", () => { stop(); draw(); });
    for (const list of Object.values(chosen)) list.addEventListener("change", draw);
    addEventListener("beforeprint", () => { stop(); slider.value = slider.max; draw(); });

    controls.hidden = false;
    draw();
    figure.dataset.drawn = "yes";
    // It plays once by itself, when it is seen, unless the reader's system asks for less motion.
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const watcher = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        watcher.disconnect();
        play();
      }
    }, { threshold: 0.6 });
    watcher.observe(figure);
  }

  const start = () => document.querySelectorAll(".vla-first").forEach(mount);
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
})();
