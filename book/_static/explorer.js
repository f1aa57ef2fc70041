// Sliders for the static page. An explorer is a list of controls and four functions: fit makes parameters agree,
// view computes (from memory.js), draw puts a view into the Plotly figure, words tells it in a sentence. What the sliders
// start from and the presets come with the figure, from explorers.py.
"use strict";

const vlaExplorer = (function () {
  const round = (x) => (x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? Number(x).toExponential(1) : String(Number(Number(x).toPrecision(3))));

  const explorers = {
    penalty: {
      label: "Sliders for the state norms and the penalty heatmaps",
      controls: [
        { name: "lambda_0", label: "λ₀ (log scale)", min: -3, max: 3, step: 0.1, log: true },
        { name: "K", label: "key width K", min: 4, max: 64, step: 4 },
        { name: "T", label: "tokens T", min: 100, max: 1000, step: 50 },
        { name: "correlation", label: "key correlation", min: 0, max: 0.95, step: 0.05 },
        { name: "t", label: "time t", min: 1, max: 1000, step: 1, most: "T" },
        { name: "gain", label: "gain", options: ["unit", "interpolate", "least_squares"] },
        { name: "direction", label: "penalty direction", options: ["projected", "along the key"] },
        { name: "seed", label: "seed", min: 0, max: 9, step: 1 },
      ],
      fit(p) {
        p.t = Math.min(p.t, p.T);
      },
      view: (p) => vlaMemory.penaltyView(p),
      draw(plot, view, p) {
        const { data, layout } = plot;
        const memories = Object.keys(view.norms);
        memories.forEach((name, i) => Object.assign(data[i], { x: view.times, y: view.norms[name] }));
        const [mark, M, A] = data.slice(memories.length);
        mark.x = [p.t, p.t];
        const limit = view.M.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
        Object.assign(M, { z: square(view.M, p.K), zmin: -limit, zmax: limit });
        A.z = square(view.A, p.K);
        const highest = Math.max(10, ...memories.map((name) => 1.5 * Math.max(...view.norms[name])));
        layout.yaxis.range = [-1, Math.log10(highest)];
        return Plotly.react(plot, data, layout);
      },
      words(view, p) {
        const at = view.times.findLastIndex((t) => t <= p.t);
        const norms = Object.entries(view.norms)
          .map(([name, norm]) => `${name} ${norm[at] === null ? "off the chart" : round(norm[at])}`);
        return `After ${p.t} tokens the state norms are: ${norms.join(", ")}. ` +
          `The condition number of M is ${round(view.cond)}.`;
      },
    },
  };

  function square(flat, n) {
    return Array.from({ length: n }, (_, i) => Array.from(flat.subarray(i * n, (i + 1) * n)));
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // One labelled slider or list; `changed` is called with the new value.
  function makeControl(control, id, changed) {
    const output = element("output", { id: id + "-value" });
    const input = control.options
      ? element("select", { id }, ...control.options.map((name) => element("option", { value: name }, name)))
      : element("input", { id, type: "range", min: control.min, max: control.max, step: control.step });
    const read = () => (control.options ? input.value : control.log ? 10 ** Number(input.value) : Number(input.value));
    const show = (value, params) => {
      if (control.most) input.max = params[control.most];
      input.value = control.log ? Math.log10(value) : value;
      const shown = control.options ? value : round(value);
      if (!control.options) {
        output.textContent = shown;
        input.setAttribute("aria-valuetext", shown);
      }
    };
    input.addEventListener("input", () => changed(control.name, read()));
    const label = element("label", { htmlFor: id }, control.label);
    return { show, box: element("div", { className: "vla-control" }, label, input, output) };
  }

  function mount(figure, plot, name, initial, presets) {
    const explorer = explorers[name];
    const params = { ...initial };
    const words = element("p", { className: "vla-words" });
    words.setAttribute("aria-live", "polite");
    const controls = {};
    const id = `vla-${name}-${document.querySelectorAll(".vla-controls").length}`;
    let waiting = false;

    function update(changes) {
      Object.assign(params, changes);
      explorer.fit(params);
      for (const key of Object.keys(controls)) controls[key].show(params[key], params);
      if (waiting) return; // several moves within a frame are drawn once
      waiting = true;
      requestAnimationFrame(async () => {
        waiting = false;
        const view = explorer.view(params);
        words.textContent = explorer.words(view, params);
        plot.setAttribute("aria-label", words.textContent);
        await explorer.draw(plot, view, params);
        figure.dataset.redraws = Number(figure.dataset.redraws || 0) + 1;
      });
    }

    for (const control of explorer.controls) {
      controls[control.name] = makeControl(control, `${id}-${control.name}`, (key, value) => update({ [key]: value }));
    }
    const buttons = presets.map(([title, changes]) => {
      const button = element("button", { type: "button" }, title);
      button.addEventListener("click", () => update({ ...initial, ...changes }));
      return button;
    });
    const panel = element(
      "div",
      { className: "vla-controls", role: "group" },
      element("div", { className: "vla-sliders" }, ...Object.values(controls).map((control) => control.box)),
      element("div", { className: "vla-presets" }, ...buttons),
      words,
    );
    panel.setAttribute("aria-label", explorer.label);
    figure.prepend(panel);
    update({});
  }

  return { mount };
})();
