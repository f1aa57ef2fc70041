// Explorers on the static page. The sliders and presets come with the figure, from explorers.py. Here an explorer is
// three functions: view computes (in memory.js), draw says which numbers go into which trace and into the layout, words
// tells the picture in a sentence. The kit below them does the rest: sliders, presets, address, text, redrawing.
"use strict";

const vlaExplorer = (function () {
  const round = (x) => (x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? Number(x).toExponential(2) : String(Number(Number(x).toPrecision(3))));

  // ---- the explorers

  // A flat matrix with n columns as rows.
  const square = (flat, n) => Array.from({ length: n }, (_, i) => flat.subarray(i * n, (i + 1) * n));
  const largest = (x) => x.reduce((most, y) => Math.max(most, Math.abs(y)), 0);
  const highest = (view) => Math.max(10, ...Object.values(view.norms).map((norm) => 1.5 * Math.max(...norm)));

  function normsInWords(view, t) {
    const at = view.times.findLastIndex((time) => time <= t);
    const norms = Object.entries(view.norms)
      .map(([name, norm]) => `${name} ${norm[at] === null ? "off the chart" : round(norm[at])}`);
    return `After ${t} tokens the state norms are: ${norms.join(", ")}.`;
  }

  const explorers = {
    penalty: {
      view: (p) => vlaMemory.penaltyView(p),
      draw(view, p) {
        const curves = Object.values(view.norms).map((y) => ({ x: view.times, y }));
        const limit = largest(view.M);
        const M = { z: square(view.M, p.K), zmin: -limit, zmax: limit };
        return [
          [...curves, { x: [p.t, p.t] }, M, { z: square(view.A, p.K) }],
          { "yaxis.range": [-1, Math.log10(highest(view))] },
        ];
      },
      words: (view, p) => `${normsInWords(view, p.t)} The condition number of M is ${round(view.cond)}.`,
    },

    norms: {
      view: (p) => vlaMemory.normsView(p),
      draw: (view) => [
        Object.values(view.norms).map((y) => ({ x: view.times, y })),
        { "yaxis.range": [-1, Math.log10(highest(view))] },
      ],
      words: (view, p) => normsInWords(view, p.T),
    },

    recall: {
      view: (p) => vlaMemory.recallView(p),
      draw(view, p) {
        const curves = (x, all) => Object.values(all).map((y) => ({ x, y }));
        const shown = [view.by_pairs, view.by_correlation].flatMap((all) => Object.values(all).flat());
        const log = p.measure === "read-back error", layout = {};
        for (const axis of ["yaxis", "yaxis2"]) {
          layout[`${axis}.title.text`] = p.measure + (log ? " (log scale)" : "");
          layout[`${axis}.type`] = log ? "log" : "linear";
          layout[`${axis}.range`] = log ? [-6, Math.max(0.3, Math.log10(1.5 * Math.max(...shown)))] : [0, 1.05];
        }
        return [
          [
            ...curves(view.pairs, view.by_pairs), { x: [p.n, p.n] },
            ...curves(view.correlations, view.by_correlation), { x: [p.correlation, p.correlation] },
          ],
          layout,
        ];
      },
      words: (view, p) => `After ${p.n} pairs at width ${p.K}, ${p.measure}: ` +
        `${Object.entries(view.here).map(([memory, y]) => `${memory} ${round(y)}`).join(", ")}.`,
    },

    adversary: {
      view: (p) => vlaMemory.adversaryView(p),
      draw(view, p) {
        const now = p.t - 1, steps = view.keys.map((_, i) => i + 1), seen = view.keys.slice(0, p.t);
        const arrow = (end) => ({ x: [0, end[now][0]], y: [0, end[now][1]] });
        const curve = (norms) => ({ x: steps, y: norms.map((norm) => Math.max(norm, 1e-3)) });
        const [x, y] = view.ellipse, reach = 1.1 * Math.max(1, largest(x), largest(y));
        return [
          [
            {}, { x, y }, { x: seen.map((key) => key[0]), y: seen.map((key) => key[1]) },
            arrow(view.keys), arrow(view.gains), arrow(view.u),
            curve(view.product), curve(view.random), curve(view.bound), {}, { x: [p.t, p.t] },
          ],
          {
            "xaxis.range": [-reach, reach],
            "yaxis.range": [-reach, reach],
            "yaxis2.range": [-2, Math.log10(2 * Math.max(...view.bound, ...view.product))],
          },
        ];
      },
      words(view, p) {
        const now = p.t - 1, angle = vlaMemory.between(view.keys[now], view.gains[now]);
        return `Step ${p.t}: the write is turned by ${round(angle)}° from the key. The product of all steps so far has ` +
          `norm ${round(view.product[now])}, its largest until step ${view.product.length} is ` +
          `${round(Math.max(...view.product))}; the bound here is ${round(view.bound[now])}.`;
      },
    },

    angle: {
      view: (p) => vlaMemory.angleView(p),
      draw: (view, p) => [
        [
          ...[view.mean, view.largest, view.limit].map((y) => ({ x: view.lambdas, y })),
          { x: view.times, y: view.actual }, { x: [p.lambda_0, p.lambda_0] }, { x: [p.t, p.t] },
        ],
        { "xaxis2.range": [0, view.times.length + 1] },
      ],
      words(view, p) {
        const [mean, most, limit] = view.here, stretch = (1 + Math.sqrt(5 - 4 * Math.cos(most * Math.PI / 180))) / 2;
        return `After ${p.t} tokens, with λ₀ = ${round(p.lambda_0)}, the next ${view.times.length - p.t} keys would be ` +
          `written at ${round(mean)}° to themselves on average and ${round(most)}° at most; no key could exceed ` +
          `${round(limit)}°. At the largest angle a step stretches by ${round(stretch)}.`;
      },
    },
  };

  // ---- the kit

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // One labelled slider or list; `changed` is called with the new value.
  function makeControl(control, id, changed) {
    const output = element("output", { id: id + "-value" });
    output.setAttribute("for", id);
    const input = control.options
      ? element("select", { id }, ...control.options.map((name) => element("option", { value: name }, name)))
      : element("input", { id, type: "range", min: control.low, max: control.high, step: control.step });
    const read = () => (control.options ? input.value : control.log ? 10 ** Number(input.value) : Number(input.value));
    const show = (value, params) => {
      if (control.most) input.max = params[control.most];
      input.value = control.log ? Math.log10(value) : value;
      if (control.options) return;
      output.textContent = round(value) + control.unit;
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => changed({ [control.name]: read() }));
    const label = element("label", { htmlFor: id }, control.label);
    return { show, box: element("div", { className: "vla-control" }, label, input, output) };
  }

  // Parameters that a control could have; what it could not have is left out.
  function allowed(controls, wanted) {
    const found = {};
    for (const { name, options, low, high, log, step } of controls) {
      const value = wanted[name];
      if (value === undefined || value === "") continue;
      if (options) {
        if (options.includes(value)) found[name] = value;
      } else if (Number.isFinite(Number(value)) && !(log && Number(value) <= 0)) {
        const place = Math.min(high, Math.max(low, log ? Math.log10(value) : Number(value)));
        const rounded = Number((low + Math.round((place - low) / step) * step).toPrecision(12));
        found[name] = log ? 10 ** rounded : rounded;
      }
    }
    return found;
  }

  // A view's address: #explore=name and the parameters that differ from the start.
  function addressOf(name, params, start) {
    const changed = Object.entries(params).filter(([key, value]) => value !== start[key]);
    return changed.length ? "#" + new URLSearchParams({ explore: name, ...Object.fromEntries(changed) }) : "";
  }

  function fromAddress(name) {
    const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    return found.explore === name ? found : null;
  }

  function mount(figure, plot, { name, label, controls, presets }) {
    const explorer = explorers[name];
    const start = Object.fromEntries(controls.map((control) => [control.name, control.start]));
    const params = { ...start, ...allowed(controls, fromAddress(name) ?? {}) };
    const words = element("p", { className: "vla-words" });
    words.setAttribute("aria-live", "polite");
    const id = `vla-${name}-${document.querySelectorAll(".vla-controls").length}`;
    let waiting = false, toAddress = null;

    async function draw() {
      waiting = false;
      const view = explorer.view(params);
      const [traces, layout] = explorer.draw(view, params);
      traces.forEach((changes, i) => Object.assign(plot.data[i], changes));
      for (const [path, value] of Object.entries(layout)) {
        const steps = path.split("."), last = steps.pop();
        steps.reduce((part, step) => (part[step] ??= {}), plot.layout)[last] = value;
      }
      await Plotly.react(plot, plot.data, plot.layout);
      words.textContent = explorer.words(view, params); // last: Plotly measures, and words move the page below them
      plot.setAttribute("aria-label", words.textContent);
    }

    function update(changes) {
      Object.assign(params, changes);
      for (const { name: key, most } of controls) if (most) params[key] = Math.min(params[key], params[most]);
      for (const key of Object.keys(made)) made[key].show(params[key], params);
      if (waiting) return; // several moves within a frame are drawn once
      waiting = true;
      requestAnimationFrame(async () => {
        await draw();
        figure.dataset.redraws = Number(figure.dataset.redraws || 0) + 1;
      });
    }

    // The reader's own moves are kept in the address, so that a view can be linked; browsers want that done sparingly.
    function move(changes) {
      update(changes);
      clearTimeout(toAddress);
      toAddress = setTimeout(() => {
        history.replaceState(history.state, "", location.pathname + location.search + addressOf(name, params, start));
      }, 300);
    }

    const made = {};
    for (const control of controls) made[control.name] = makeControl(control, `${id}-${control.name}`, move);
    const buttons = [...presets, ["Reset", {}]].map(([title, changes]) => {
      const button = element("button", { type: "button" }, title);
      button.addEventListener("click", () => move({ ...start, ...changes }));
      return button;
    });
    const panel = element(
      "div",
      { className: "vla-controls", role: "group" },
      element("div", { className: "vla-sliders" }, ...Object.values(made).map((control) => control.box)),
      element("div", { className: "vla-presets" }, ...buttons),
      words,
    );
    panel.setAttribute("aria-label", label);
    figure.prepend(panel);
    addEventListener("hashchange", () => {
      const wanted = fromAddress(name);
      if (wanted) update({ ...start, ...allowed(controls, wanted) });
    });
    update({});
    if (fromAddress(name)) panel.scrollIntoView({ block: "start" });
  }

  return { mount };
})();
