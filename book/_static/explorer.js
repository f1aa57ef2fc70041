// Explorers on the static page. The sliders and presets come with the figure, from explorers/. Here an explorer is
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
          {
            "yaxis.range": [-1, Math.log10(highest(view))],
            "xaxis2.title.text": `darkest: ±${Number(limit.toPrecision(2))}`,
          },
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
          layout[`${axis}.dtick`] = log ? 1 : 0.2;
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

    step: {
      view: (p) => vlaMemory.stepView(p),
      draw(view, p) {
        const [x, y] = view.ellipse, reach = 1.1 * Math.max(2, largest(x), largest(y));
        const arrow = (end) => ({ x: [0, end[0]], y: [0, end[1]] }), dot = (now) => ({ x: [p.angle], y: [now] });
        const [stretch, second] = view.here, curve = (values) => ({ x: view.angles, y: values });
        return [
          [
            {}, { x, y }, {}, arrow(view.write), arrow(view.longest),
            curve(view.stretch), dot(stretch), curve(view.second), dot(second),
          ],
          {
            "xaxis.range": [-reach, reach],
            "yaxis.range": [-reach, reach],
            "yaxis2.range": [0, Math.min(6, 1.1 * Math.max(2, ...view.stretch))],
          },
        ];
      },
      words: (view, p) => `At an angle of ${p.angle}° and with β = ${round(p.beta)}, after ${p.n} such steps some ` +
        `state is longer by a factor of ${round(view.here[0])}; the state along the write is multiplied by ` +
        `${round(view.here[1])}.`,
    },

    chunks: {
      view: (p) => vlaMemory.chunksView(p),
      ends: (p) => ({ steps: vlaMemory.stepsOf(p.T, p.C) }),
      draw(view, { T, C }) {
        const ticks = [1], every = T <= 32 ? 8 : 16;
        for (let tick = 8; tick <= T; tick += every) ticks.push(tick);
        const curve = (y) => ({ x: view.sizes, y });
        return [
          [{ z: view.cells }, {}, {}, {}, {}, {}, curve(view.pairs), curve(view.steps), { x: [C, C] }],
          {
            "xaxis.range": [0.4, T + 2.6],
            "yaxis.range": [T + 0.6, 0.4],
            "xaxis.tickvals": ticks,
            "yaxis.tickvals": ticks,
            "xaxis2.range": [0, T + 1],
            "yaxis2.range": [0, Math.log10(T * (T + 1))],
          },
        ];
      },
      words(view, { T, C, step }) {
        const steps = view.steps[C - 1];
        const does = step === steps ? "is all answers at once"
          : step === 1 ? "is the triangles of all chunks at once" : "passes the state on to the next chunk";
        return `${T} tokens in chunks of ${C}: ${view.pairs[C - 1]} pairs inside chunks, out of ${view.pairs.at(-1)} ` +
          `in all, and ${steps} steps in a row. Step ${step} ${does}.`;
      },
    },

    digits: {
      view: (p) => vlaMemory.digitsView(p),
      draw(view, p) {
        const curves = Object.values(view.right).map((y) => ({ x: view.seen, y }));
        const squares = view.rows.reduce((sum, row) => row.reduce((all, x) => all + x * x, sum), 0);
        const limit = 2.5 * Math.sqrt(squares / 640), tiles = Array.from({ length: 17 }, () => new Array(44).fill(null));
        view.rows.forEach((row, d) => row.forEach((x, i) => {
          tiles[9 * Math.floor(d / 5) + Math.floor(i / 8)][9 * (d % 5) + i % 8] = x;
        }));
        const memory = { z: tiles, zmin: -limit, zmax: limit };
        return [[...curves, { x: [p.t, p.t] }, memory, { z: view.image }, { y: view.answers }], {}];
      },
      words(view, p) {
        const right = Object.entries(view.right).map(([memory, shares]) => `${memory} ${round(shares[p.t / 10 - 1])}`);
        return `After ${p.t} digits, the share of 100 new ones answered right: ${right.join(", ")}. ` +
          `New digit ${p.asked} is a ${view.label}; VLA answers ${vlaMemory.largestAt(view.answers)}.`;
      },
    },
  };

  // ---- the kit

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // Moves a slider to its end, about forty places; from its end it begins again.
  function playButton(input, name) {
    const button = element("button", { type: "button", className: "vla-play" }, "Play");
    button.setAttribute("aria-label", `Play ${name}`);
    let timer = null;
    const move = (value) => {
      input.value = value;
      input.dispatchEvent(new Event("input"));
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    };
    const next = () => {
      const places = Math.ceil((input.max - input.min) / input.step / 40);
      move(Number(input.value) + places * input.step);
      if (input.value === input.max) stop();
    };
    button.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (input.value === input.max) move(input.min);
      button.textContent = "Stop";
      timer = setInterval(next, 250);
    });
    return button;
  }

  // One labelled slider or list; `changed` is called with the new value.
  function makeControl(control, id, changed) {
    const output = element("output", { id: id + "-value" });
    output.setAttribute("for", id);
    const input = control.options
      ? element("select", { id }, ...control.options.map((name) => element("option", { value: name }, name)))
      : element("input", { id, type: "range", min: control.low, max: control.high, step: control.step });
    const read = () => (control.options ? input.value : control.log ? 10 ** Number(input.value) : Number(input.value));
    const show = (value, end) => {
      if (end !== undefined) input.max = end;
      input.value = control.log ? Math.log10(value) : value;
      const shown = round(value) + control.unit;
      if (control.options || output.textContent === shown) return;
      output.textContent = shown;
      input.setAttribute("aria-valuetext", shown);
    };
    input.addEventListener("input", () => changed({ [control.name]: read() }));
    const label = element("label", { htmlFor: id }, control.label);
    const play = control.play ? [playButton(input, control.label)] : [];
    return { show, box: element("div", { className: "vla-control" }, label, input, output, ...play) };
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

  // ---- drawing

  const REST = 80; // ms without a move, after which the whole figure is drawn

  // Whether two values, lists or lists of lists are the same.
  function same(a, b) {
    if (a === b) return true;
    if (typeof a !== "object" || !a?.length || a.length !== b?.length) return false;
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i] && !same(a[i], b[i])) return false;
    return true;
  }

  // Puts values, as {path: value}, into a layout. Returns the paths of those that were not there yet.
  function put(layout, values) {
    return Object.entries(values).filter(([path, value]) => {
      const steps = path.split("."), last = steps.pop();
      const part = steps.reduce((found, step) => (found[step] ??= {}), layout), is = same(value, part[last]);
      part[last] = value;
      return !is;
    }).map(([path]) => path);
  }

  // Puts what an explorer's `draw` returned into the figure, and draws what a move changes of it: the marks, and the
  // axes that end elsewhere. Plotly draws a figure anew in 20 to 40 ms, most of them for legend, titles and margins, so
  // here its parts are called by themselves: names with _ are Plotly's own, and may change with its version. Returns
  // whether all is drawn that changes but for words of titles; if not, nothing is drawn.
  async function sketch(plot, traces, layout, can) {
    const full = plot._fullLayout, axes = {}, subplots = new Set();
    for (const path of put(plot.layout, layout)) {
      if (path.endsWith(".range")) axes[path] = layout[path];
      else if (!path.endsWith(".text")) can = false; // the words of titles wait
    }
    const changed = traces.map((changes, i) => {
      const trace = plot.data[i], names = Object.keys(changes).filter((name) => !same(changes[name], trace[name]));
      Object.assign(trace, changes);
      return names;
    });
    if (!can) return false;

    changed.forEach((names, i) => {
      const trace = plot._fullData[i], before = trace.z, id = trace.xaxis + trace.yaxis, { xaxis, yaxis } = full._plots[id];
      if (!names.length || trace.visible !== true) return;
      for (const name of names) trace[name] = plot.data[i][name];
      if (!trace.z) trace._length = Math.min(trace.x.length, trace.y.length);
      const points = trace._length === 0 ? [{}] : trace._module.calc(plot, trace);
      Object.assign(points[0], { trace, t: points[0].t ?? {} });
      plot.calcdata[i] = points;
      trace._module.crossTraceCalc?.(plot, full._plots[id]);
      subplots.add(id);
      const resized = trace.z && (before.length !== trace.z.length || before[0].length !== trace.z[0].length);
      if (xaxis.autorange && (resized || names.includes("x"))) axes[`${xaxis._name}.autorange`] = xaxis.autorange;
      if (yaxis.autorange && (resized || names.includes("y"))) axes[`${yaxis._name}.autorange`] = yaxis.autorange;
    });

    const moved = Object.keys(axes).map((path) => full[path.split(".")[0]]);
    if (moved.length) {
      // Axes of one scale would make `relayout` begin with nothing. It need not: it keeps them to their scale anyhow.
      const groups = moved.map((axis) => axis._constraintGroup);
      for (const axis of moved) axis._constraintGroup = undefined;
      const done = Plotly.relayout(plot, axes);
      moved.forEach((axis, i) => { axis._constraintGroup = groups[i]; });
      await done;
    } else {
      for (const id of subplots) drawMarks(plot, id);
    }
    return true;
  }

  // Draws all traces of one subplot.
  function drawMarks(plot, id) {
    const subplot = plot._fullLayout._plots[id], kinds = new Map();
    for (const points of plot.calcdata) {
      const { trace } = points[0];
      if (trace.xaxis + trace.yaxis !== id || trace.visible !== true) continue;
      kinds.set(trace._module, [...(kinds.get(trace._module) ?? []), points]);
    }
    for (const [kind, all] of kinds) kind.plot(plot, subplot, all, subplot.plot.select(`.${kind.name}layer`));
  }

  function mount(figure, plot, { name, label, to_try, controls, presets, data }) {
    const explorer = explorers[name];
    const start = Object.fromEntries(controls.map((control) => [control.name, control.start]));
    const params = { ...start, ...allowed(controls, fromAddress(name) ?? {}) };
    const words = element("p", { className: "vla-words" });
    const spoken = element("p", { className: "vla-spoken", role: "status" }); // polite: waits until the reader is done
    const id = `vla-${name}-${document.querySelectorAll(".vla-controls").length}`;
    let drawing = false, moved = false, wanted = {}, resting = null, toAddress = null;

    // Draws at once, then once a frame as long as there were moves in between; and all of the figure once they rest.
    async function redraw() {
      clearTimeout(resting);
      if (drawing) return;
      drawing = true;
      while (moved) {
        moved = false;
        const p = { ...params }, view = explorer.view({ ...p, data });
        const [traces, layout] = explorer.draw(view, p);
        wanted = layout;
        const whole = !await sketch(plot, traces, layout, "redraws" in figure.dataset);
        if (whole) await Plotly.redraw(plot);
        words.textContent = explorer.words(view, p); // last: Plotly measures, and words move the page below them
        plot.setAttribute("aria-label", words.textContent);
        figure.dataset.whole = whole ? "yes" : "no";
        figure.dataset.redraws = Number(figure.dataset.redraws || 0) + 1;
        await new Promise((done) => { requestAnimationFrame(done); });
      }
      drawing = false;
      if (figure.dataset.whole === "no") resting = setTimeout(finish, REST);
    }

    async function finish() {
      drawing = true;
      put(plot.layout, wanted); // Plotly has widened axes that have one scale
      await Plotly.redraw(plot);
      figure.dataset.whole = moved ? "no" : "yes";
      drawing = false;
      if (moved) redraw();
    }

    // The number that a slider with `most` ends at; undefined for the others.
    const endOf = ({ most }) => (most ? { ...params, ...explorer.ends?.(params) }[most] : undefined);

    function update(changes) {
      Object.assign(params, changes);
      for (const control of controls) {
        const end = endOf(control);
        if (end !== undefined) params[control.name] = Math.min(params[control.name], end);
        made[control.name].show(params[control.name], end);
      }
      moved = true;
      return redraw();
    }

    // The reader's own moves are kept in the address, so that a view can be linked, and told to screen readers. Both
    // wait for a rest: browsers want the one done sparingly, listeners the other.
    function move(changes) {
      update(changes);
      clearTimeout(toAddress);
      toAddress = setTimeout(() => {
        history.replaceState(history.state, "", location.pathname + location.search + addressOf(name, params, start));
        if (spoken.textContent !== words.textContent) spoken.textContent = words.textContent;
      }, 500);
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
      element("p", { className: "vla-try" }, element("strong", {}, "Try: "), to_try),
      element("div", { className: "vla-sliders" }, ...Object.values(made).map((control) => control.box)),
      element("div", { className: "vla-presets" }, ...buttons),
      words,
      spoken,
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
