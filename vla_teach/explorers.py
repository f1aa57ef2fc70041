"""Pictures with sliders. In JupyterLab they run this package; on a static page `book/_static/explorer.js` takes over.

An `Explorer` is a list of controls and presets, written once, here: the page's script finds them in the cell's output.
Its view is a plain function from parameters to numbers, which `book/_static/memory.js` has too, so the two can be
compared; `draw` says where the numbers go in the figure, `summary` tells the picture in a sentence.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.checks import GAINS, check_count
from vla_teach.chunkwise import chunk_write, state_norms, vla_chunk
from vla_teach.reference import delta_rule, linear_attention, unit_rows
from vla_teach.streams import DIRECTIONS, correlated_stream, uniform

MEMORIES = ("linear attention", "DeltaNet", "VLA", "recursive least squares", "exact least squares")
OFF_THE_CHART = 1e6  # a norm above this is a memory that has exploded; its curve stops there


# ---- the kit ------------------------------------------------------------------------------------------------------


class Slider(NamedTuple):
    """A number from low to high. log: low, high and step are powers of ten. most: the slider that this one ends at."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float
    unit: str = ""
    log: bool = False
    most: str | None = None


class Choice(NamedTuple):
    """One of a few names."""

    name: str
    label: str
    options: tuple
    start: str


class Explorer(NamedTuple):
    """A picture with sliders; `show` displays it, live in Jupyter and as a stored figure where VLA_STATIC is set."""

    name: str  # also in the page's script, and in the address of a view
    label: str  # of the panel, for screen readers
    controls: tuple  # of Slider and Choice
    presets: dict  # title: {name: value} on top of the start; Reset comes by itself
    view: Callable  # view(**p) -> dict of numbers
    frame: Callable  # frame() -> figure with every trace and axis, but no numbers
    draw: Callable  # draw(view, p) -> one dict of changes for each trace, {path in the layout: value}
    summary: Callable  # summary(view, p) -> str
    caption: str

    @property
    def start(self):
        """The parameters that the sliders start from."""
        return {control.name: control.start for control in self.controls}

    def fit(self, p):
        """p with every slider inside the slider that it ends at."""
        ends = {control.name: control.most for control in self.controls if getattr(control, "most", None)}
        return {name: min(value, p[ends[name]]) if name in ends else value for name, value in p.items()}

    def figure(self, **changes):
        """The figure for the start parameters and changes to them, and its summary."""
        p = self.fit(self.start | changes)
        view, fig = self.view(**p), self.frame()
        put(fig, *self.draw(view, p))
        return fig, self.summary(view, p)

    def for_the_page(self):
        """What the page's script needs, as JSON can hold it."""
        controls = [control._asdict() for control in self.controls]
        return dict(name=self.name, label=self.label, controls=controls, presets=list(self.presets.items()))

    def show(self):
        """Display the explorer. Returns the widget, or None where the figure is stored."""
        fig, words = self.figure()
        if os.environ.get("VLA_STATIC"):
            figures.show(fig, self.caption, words, explorer=self.for_the_page())
            return None
        return widget(self, go.FigureWidget(fig))


def put(fig, traces, layout):
    """Change a figure's traces and layout as `draw` says."""
    for trace, changes in zip(fig.data, traces, strict=True):
        trace.update({name: figures.thin(value) if name in "xyz" else value for name, value in changes.items()})
    for path, value in layout.items():
        fig.layout[path] = value


def widget(explorer, fig):
    """Sliders above a FigureWidget, which is drawn anew at every move."""
    import ipywidgets as w

    controls = {control.name: control_widget(control) for control in explorer.controls}
    words = w.HTML()

    def redraw(_=None):
        p = explorer.fit({name: control.value for name, control in controls.items()})
        for control in explorer.controls:
            if getattr(control, "most", None):
                controls[control.name].max = p[control.most]
        view = explorer.view(**p)
        with fig.batch_update():
            put(fig, *explorer.draw(view, p))
        words.value = explorer.summary(view, p)

    def button(title, changes):
        def choose(_):
            for name, value in (explorer.start | changes).items():
                controls[name].value = value

        made = w.Button(description=title, layout={"width": "auto"})
        made.on_click(choose)
        return made

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    panel = w.Box(list(controls.values()), layout={"flex_flow": "row wrap"})
    presets = [button(*preset) for preset in (explorer.presets | {"Reset": {}}).items()]
    return w.VBox([panel, w.Box(presets, layout={"flex_flow": "row wrap"}), words, fig])


def control_widget(control):
    """The ipywidget of a Slider or a Choice."""
    import ipywidgets as w

    style = dict(description=control.label, style={"description_width": "9em"}, layout={"width": "26em"})
    if isinstance(control, Choice):
        return w.Dropdown(value=control.start, options=control.options, **style)
    whole = not control.log and all(isinstance(x, int) for x in (control.low, control.step))
    kind = w.FloatLogSlider if control.log else w.IntSlider if whole else w.FloatSlider
    return kind(control.start, min=control.low, max=control.high, step=control.step, **style)


# ---- state norms and penalty heatmaps -----------------------------------------------------------------------------


def penalty_view(lambda_0, K, T, correlation, gain, direction, seed, t):
    """What the penalty explorer draws: |S_t|_F of every memory, and the penalty and its inverse at token t.

    lambda_0 above 0; K, T whole numbers; correlation in [0, 1); gain, direction: see `vla_recurrent` and
    `correlated_stream`; t from 1 to T. Returns a dict: times [n], norms {memory: [n]} (NaN once above
    OFF_THE_CHART), M [K, K] = M_t - lambda_0 I, A [K, K] = lambda_0 A_t - I, cond, the condition number of M_t.
    """
    k, v, u = correlated_stream(T, K, correlation=correlation, direction=direction, seed=seed)
    check_count("t", t, 1, T)
    added = u[:t].T @ u[:t]
    eigenvalues = np.linalg.eigvalsh(added) + lambda_0
    return norms_of_memories(k, v, u, lambda_0, gain) | dict(
        M=added,
        A=np.linalg.inv(np.eye(K) + added / lambda_0) - np.eye(K),
        cond=eigenvalues[-1] / eigenvalues[0],
    )


def norms_of_memories(k, v, u, lambda_0, gain):
    """The state norms of all MEMORIES, as times [n], and norms {memory: [n]}."""
    (T, K), V = k.shape, v.shape[1]
    times = np.unique(np.linspace(1, T, 200).round().astype(int))
    zero = np.zeros((V, K))
    with np.errstate(over="ignore", invalid="ignore"):  # the raw gain can explode, and the picture shows it
        _, vla = vla_chunk(k, k, v, u, lambda_0, gain=gain, trace=True)
        _, rls = vla_chunk(k, k, v, k, lambda_0, gain="least_squares", trace=True)
        norms = {
            "linear attention": state_norms(zero[None], v[None], k[None])[0],
            "DeltaNet": chunk_write(k, k, v, k, zero, 64, norms=True)[2],
            "VLA": vla.trace.norm_S,
            "recursive least squares": rls.trace.norm_S,
        }
    norms = {memory: until_off_the_chart(norm)[times - 1] for memory, norm in norms.items()}
    norms["exact least squares"] = exact_norms(k, v, u, lambda_0, times)
    return dict(times=times, norms=norms)


def until_off_the_chart(norm):
    """norm [T], NaN from the first token at which it is too large to draw: what comes after is mostly rounding."""
    return np.where(np.logical_and.accumulate(norm < OFF_THE_CHART), norm, np.nan)


def exact_norms(k, v, u, lambda_0, times):
    """|S*_t|_F [n] of the exact solution of the objective, at the tokens in `times` [n], counted from 1."""
    H, targets = lambda_0 * np.eye(k.shape[1]), np.zeros((k.shape[1], v.shape[1]))
    norms, first = np.empty(len(times)), 0
    for i, last in enumerate(times):
        some = slice(first, last)
        H = H + k[some].T @ k[some] + u[some].T @ u[some]
        targets = targets + k[some].T @ v[some]
        norms[i], first = np.linalg.norm(np.linalg.solve(H, targets)), last
    return norms


def penalty_frame():
    """The penalty explorer's figure, without numbers."""
    fig = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        row_heights=[0.52, 0.48],
        vertical_spacing=0.2,
        horizontal_spacing=0.12,
        subplot_titles=("", "M<sub>t</sub> − λ₀I", "λ₀A<sub>t</sub> − I"),
    )
    fig.update_layout(template="vla", height=700, margin=dict(t=60, b=70), legend=dict(y=1.0))
    norm_curves(fig, MEMORIES)
    fig.update_xaxes(title="tokens seen, t (log scale)", type="log", row=1, col=1)
    fig.update_yaxes(title="‖S<sub>t</sub>‖<sub>F</sub>, in lengths of v (log scale)", type="log", row=1, col=1)
    for col, name in ((1, "M"), (2, "A")):
        bar = dict(len=0.4, x=0.22 + 0.56 * (col - 1))
        fig.add_trace(figures.penalty_heatmap(np.zeros((1, 1)), 1, colorbar=bar, name=name), row=2, col=col)
        fig.update_yaxes(autorange="reversed", scaleanchor=f"x{col + 1}", constrain="domain", row=2, col=col)
        fig.update_xaxes(constrain="domain", row=2, col=col)
    return fig


def norm_curves(fig, memories):
    """Add an empty curve for each memory, and a thin vertical line."""
    for memory in memories:
        figures.line(fig, memory, [], [])
    fig.add_scatter(x=[], y=[0.1, OFF_THE_CHART], mode="lines", name="token t", showlegend=False)
    fig.data[-1].update(line=dict(color="rgba(128,128,128,0.8)", width=1), hoverinfo="skip")


def penalty_draw(view, p):
    """Where the numbers of `penalty_view` go."""
    limit = float(np.abs(view["M"]).max())
    curves = [dict(x=view["times"], y=norm) for norm in view["norms"].values()]
    mark, M, A = dict(x=[p["t"], p["t"]]), dict(z=view["M"], zmin=-limit, zmax=limit), dict(z=view["A"])
    return [*curves, mark, M, A], {"yaxis.range": [-1, np.log10(highest(view))]}


def highest(view):
    """Where the norms' axis ends: half above the largest norm, and never below 10."""
    return max(10, 1.5 * max(np.nanmax(norm) for norm in view["norms"].values()))


def penalty_summary(view, p):
    """The picture in words, for the text alternative and the line under it."""
    return f"{norms_in_words(view, p['t'])} The condition number of M is {view['cond']:.3g}."


def norms_in_words(view, t):
    """All state norms at the last drawn token up to t."""
    last = {m: norm[np.searchsorted(view["times"], t, side="right") - 1] for m, norm in view["norms"].items()}
    shown = ", ".join(f"{m} {'off the chart' if np.isnan(x) else format(x, '.3g')}" for m, x in last.items())
    return f"After {t} tokens the state norms are: {shown}."


LAMBDA = Slider("lambda_0", "λ₀ (log scale)", -3, 3, 0.1, 0.1, log=True)
CORRELATION = Slider("correlation", "key correlation", 0.0, 0.95, 0.05, 0.5)
SEED = Slider("seed", "seed", 0, 9, 1, 0)

PENALTY = Explorer(
    name="penalty",
    label="Sliders for the state norms and the penalty heatmaps",
    controls=(
        LAMBDA,
        Slider("K", "key width K", 4, 64, 4, 32),
        Slider("T", "tokens T", 100, 1000, 50, 500),
        CORRELATION,
        Slider("t", "time t", 1, 1000, 1, 250, most="T"),
        Choice("gain", "gain", GAINS, "unit"),
        Choice("direction", "penalty direction", DIRECTIONS, "projected"),
        SEED,
    ),
    presets={
        "Uncorrelated keys": dict(correlation=0),
        "Correlated keys": dict(correlation=0.9, direction="along the key", lambda_0=0.01),
        "λ₀ → ∞ is DeltaNet": dict(lambda_0=1000),
        "The raw gain explodes": dict(gain="least_squares", lambda_0=0.1, direction="projected"),
    },
    view=penalty_view,
    frame=penalty_frame,
    draw=penalty_draw,
    summary=penalty_summary,
    caption="Above, how large each memory's state has grown by token t; below, how far the penalty and its inverse at "
    "the token that the time slider names are from their start, coordinate by coordinate (white: unchanged).",
)


# ---- state norms alone --------------------------------------------------------------------------------------------


def norms_view(lambda_0, K, T, correlation, gain, direction, seed):
    """What the norms explorer draws: times [n], and |S_t|_F of every memory, norms {memory: [n]}.

    Arguments as for `penalty_view`.
    """
    k, v, u = correlated_stream(T, K, correlation=correlation, direction=direction, seed=seed)
    return norms_of_memories(k, v, u, lambda_0, gain)


def norms_frame():
    """The norms explorer's figure, without numbers."""
    fig = figures.figure("tokens seen, t", "‖S<sub>t</sub>‖<sub>F</sub>, in lengths of v", log="xy", height=440)
    for memory in MEMORIES:
        figures.line(fig, memory, [], [])
    return fig


def norms_draw(view, p):
    """Where the numbers of `norms_view` go."""
    return [dict(x=view["times"], y=norm) for norm in view["norms"].values()], {
        "yaxis.range": [-1, np.log10(highest(view))]
    }


NORMS = Explorer(
    name="norms",
    label="Sliders for the state norms",
    controls=(
        LAMBDA,
        Slider("K", "key width K", 4, 64, 4, 16),
        Slider("T", "tokens T", 100, 2000, 100, 1000),
        CORRELATION,
        Choice("gain", "gain", GAINS, "unit"),
        Choice("direction", "penalty direction", DIRECTIONS[::-1], "along the key"),
        SEED,
    ),
    presets={
        "The published settings": dict(direction="projected"),
        "Raw gain, short u": dict(direction="projected", gain="least_squares"),
        "Wide, few tokens": dict(K=64, T=100, correlation=0.9, lambda_0=0.01),
    },
    view=norms_view,
    frame=norms_frame,
    draw=norms_draw,
    summary=lambda view, p: norms_in_words(view, p["T"]),
    caption="How large each memory's state has grown after t tokens. The sliders choose the keys, the penalty and the "
    "gain; the values are random, of length 1.",
)


# ---- how much is read back ----------------------------------------------------------------------------------------

RECALLING = ("linear attention", "DeltaNet", "VLA", "VLA, interpolating", "recursive least squares")
MEASURES = ("read-back error", "share recalled")
MOST_PAIRS = 64


def recall_view(n, correlation, K, lambda_0, measure, seed):
    """What the recall explorer draws: each memory's answers to all its keys, after it has seen n pairs.

    Returns a dict: pairs [16] and by_pairs {memory: [16]} at this correlation, correlations [20] and by_correlation
    {memory: [20]} at this n, here {memory: number} at both. VLA and least squares have u = k. Measures: see `recall`.
    """
    pairs = np.arange(4, MOST_PAIRS + 1, 4)
    correlations = 0.05 * np.arange(20)
    states, (k, v, _) = (
        {},
        correlated_stream(MOST_PAIRS, K, correlation=correlation, direction=DIRECTIONS[1], seed=seed),
    )
    by_pairs = {memory: [] for memory in RECALLING}
    for last in pairs:
        states = learn(k[last - 4 : last], v[last - 4 : last], lambda_0, states)
        for memory, state in states.items():
            by_pairs[memory].append(recall(state.S, k[:last], v[:last], measure))
    by_correlation = {memory: [] for memory in RECALLING}
    for c in correlations:
        k, v, _ = correlated_stream(n, K, correlation=c, direction=DIRECTIONS[1], seed=seed)
        for memory, state in learn(k, v, lambda_0, {}).items():
            by_correlation[memory].append(recall(state.S, k, v, measure))
    return dict(
        pairs=pairs,
        by_pairs={memory: np.array(y) for memory, y in by_pairs.items()},
        correlations=correlations,
        by_correlation={memory: np.array(y) for memory, y in by_correlation.items()},
        here={memory: y[list(pairs).index(n)] for memory, y in by_pairs.items()},
    )


def learn(k, v, lambda_0, states):
    """The states of RECALLING after the pairs k [n, K], v [n, V], from earlier ones or from nothing, u = k."""
    past = [states.get(memory) for memory in RECALLING]
    new = [linear_attention(k, k, v, initial_state=past[0])[1], delta_rule(k, k, v, initial_state=past[1])[1]]
    for gain, state in zip(("unit", "interpolate", "least_squares"), past[2:], strict=True):
        new.append(vla_chunk(k, k, v, k, lambda_0, gain=gain, initial_state=state)[1])
    return dict(zip(RECALLING, new, strict=True))


def recall(S, k, v, measure):
    """How well S [V, K] answers the keys k [n, K] with their values v [n, V].

    "read-back error": sum of |v - S k|^2 over sum of |v|^2. "share recalled": of the keys whose answer, among all n
    values, has the largest product with their own.
    """
    answers = k @ S.T
    if measure == "read-back error":
        return np.sum((v - answers) ** 2) / np.sum(v**2)
    return np.mean(np.argmax(answers @ v.T, axis=1) == np.arange(len(v)))


def recall_frame():
    """The recall explorer's figure, without numbers."""
    fig = make_subplots(rows=2, cols=1, vertical_spacing=0.17)
    for row in (1, 2):
        for memory in RECALLING:
            style = dict(line=figures.STYLES[memory], mode="lines", name=memory, legendgroup=memory)
            fig.add_scatter(x=[], y=[], showlegend=row == 1, row=row, col=1, **style)
        line = dict(color="rgba(128,128,128,0.8)", width=1)
        fig.add_scatter(
            x=[], y=[1e-9, 1e3], mode="lines", line=line, hoverinfo="skip", showlegend=False, row=row, col=1
        )
    fig.update_layout(template="vla", height=640, xaxis_title="pairs n", xaxis2_title="key correlation")
    return fig


def recall_draw(view, p):
    """Where the numbers of `recall_view` go."""
    traces = [dict(x=view["pairs"], y=y) for y in view["by_pairs"].values()] + [dict(x=[p["n"]] * 2)]
    traces += [dict(x=view["correlations"], y=y) for y in view["by_correlation"].values()]
    shown = np.concatenate([*view["by_pairs"].values(), *view["by_correlation"].values()])
    log = p["measure"] == "read-back error"
    layout = {}
    for axis in ("yaxis", "yaxis2"):
        layout[f"{axis}.title.text"] = p["measure"] + " (log scale)" * log
        layout[f"{axis}.type"] = "log" if log else "linear"
        layout[f"{axis}.range"] = [-6, max(0.3, np.log10(1.5 * shown.max()))] if log else [0, 1.05]
    return [*traces, dict(x=[p["correlation"]] * 2)], layout


def recall_summary(view, p):
    """The picture in words."""
    shown = ", ".join(f"{memory} {y:.3g}" for memory, y in view["here"].items())
    return f"After {p['n']} pairs at width {p['K']}, {p['measure']}: {shown}."


RECALL = Explorer(
    name="recall",
    label="Sliders for what is read back",
    controls=(
        Slider("n", "pairs n", 4, MOST_PAIRS, 4, 24),
        CORRELATION,
        Slider("K", "key width K", 4, 64, 4, 32),
        LAMBDA._replace(start=0.01),
        Choice("measure", "measure", MEASURES, MEASURES[0]),
        SEED,
    ),
    presets={
        "Similar keys": dict(correlation=0.9),
        "More pairs than width": dict(K=16, n=48),
        "Which pairs are told apart": dict(measure="share recalled", correlation=0.9),
    },
    view=recall_view,
    frame=recall_frame,
    draw=recall_draw,
    summary=recall_summary,
    caption="What is left of n pairs when all of them are read back. Above: against the number of pairs; below: "
    "against the correlation of the keys. VLA and least squares have u = k. Thin lines: where the sliders stand.",
)


# ---- an adversary -------------------------------------------------------------------------------------------------

STEPS = 60
PENALISED = ("chosen too", "along the key")


def adversary_view(t, lambda_0, choices, penalised, seed):
    """What the adversary explorer draws: steps of width 2 whose product an adversary makes as large as she can.

    At every step she picks, out of `choices` random keys (and as many directions u, or u = k), those that make the
    norm of F_1 ... F_t largest; of equals the first. Returns a dict: product, bound, random [60], the norm of the
    product of her steps, the square root of det M_t / det M_0, and the norm where she has no choice; keys, u, gains
    [60, 2], her choices; ellipse [2, 73], what the product of t steps makes of the states of length 1.
    """
    check_count("t", t, 1, STEPS)
    product, bound, keys, u, gains, products = attack(lambda_0, choices, penalised, seed)
    turn = 2 * np.pi * np.arange(73) / 72
    ellipse = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ products[t - 1]
    alone = attack(lambda_0, 1, penalised, seed)[0]
    return dict(product=product, bound=bound, random=alone, keys=keys, u=u, gains=gains, ellipse=ellipse.T)


def attack(lambda_0, choices, penalised, seed):
    """The adversary of `adversary_view`: norms [60], bounds [60], keys, u, gains [60, 2], products [60, 2, 2]."""
    angles = 2 * np.pi * uniform((2, STEPS, 200), seed, 40)[:, :, :choices]
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # [2, 60, choices, 2]
    A, product, log_det, found = np.eye(2) / lambda_0, np.eye(2), 0.0, []
    for keys, u in zip(circle[0], circle[0 if penalised == "along the key" else 1], strict=True):
        Au = u @ A
        a = np.sum(u * Au, axis=1)
        after_A = A - Au[:, :, None] * Au[:, None] / (1 + a)[:, None, None]
        gains = unit_rows(np.einsum("nij,nj->ni", after_A, keys))
        after = product - (keys @ product.T)[:, :, None] * gains[:, None]
        size = np.linalg.norm(after, 2, axis=(1, 2))
        i = np.argmax(size >= (1 - 1e-9) * size.max())  # rounding must not choose among equals
        A, product, log_det = after_A[i], after[i], log_det + np.log1p(a[i])
        found.append((size[i], np.exp(log_det / 2), keys[i], u[i], gains[i], product))
    return [np.array(x) for x in zip(*found, strict=True)]


def adversary_frame():
    """The adversary explorer's figure, without numbers."""
    fig = make_subplots(rows=2, cols=1, row_heights=[0.58, 0.42], vertical_spacing=0.14)
    vla, delta, thin_line = (
        figures.STYLES["VLA"],
        figures.STYLES["DeltaNet"],
        dict(width=1, color="rgba(128,128,128,0.8)"),
    )
    turn = 2 * np.pi * np.arange(73) / 72
    fig.add_scatter(x=np.cos(turn), y=np.sin(turn), mode="lines", line=thin_line, showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=[], y=[], mode="lines", name="states now", line=dict(color="#D55E00"), showlegend=False)
    dots = dict(mode="markers", marker=dict(size=4, color="rgba(128,128,128,0.8)"))
    fig.add_scatter(x=[], y=[], name="keys so far", showlegend=False, **dots)
    for name, color, dash in (
        ("key k", delta["color"], "solid"),
        ("write g", vla["color"], "solid"),
        ("u", "#CC79A7", "dot"),
    ):
        arrow = dict(mode="lines+markers", marker=dict(size=[0, 9], color=color), line=dict(color=color, dash=dash))
        fig.add_scatter(x=[], y=[], name=name, **arrow)
    curves = (
        ("adversary", "#D55E00", "solid"),
        ("random keys", delta["color"], "dash"),
        ("bound", "#E69F00", "longdash"),
    )
    for name, color, dash in curves:
        fig.add_scatter(x=[], y=[], mode="lines", name=name, line=dict(color=color, dash=dash), row=2, col=1)
    fig.add_scatter(
        x=[0, STEPS], y=[1, 1], mode="lines", line=thin_line, showlegend=False, hoverinfo="skip", row=2, col=1
    )
    fig.add_scatter(x=[], y=[1e-9, 1e9], mode="lines", line=thin_line, showlegend=False, hoverinfo="skip", row=2, col=1)
    fig.update_layout(
        template="vla",
        height=760,
        margin=dict(t=90),
        yaxis=dict(scaleanchor="x"),
        xaxis2=dict(title="steps t", range=[0, STEPS]),
        yaxis2=dict(title="norm of the product (log scale)", type="log"),
    )
    return fig


def adversary_draw(view, p):
    """Where the numbers of `adversary_view` go."""
    now, steps = p["t"] - 1, np.arange(1, STEPS + 1)
    seen = view["keys"][: p["t"]].T
    arrows = [dict(x=[0, end[now, 0]], y=[0, end[now, 1]]) for end in (view["keys"], view["gains"], view["u"])]
    curves = [dict(x=steps, y=np.maximum(view[name], 1e-3)) for name in ("product", "random", "bound")]
    x, y = view["ellipse"]
    reach = 1.1 * max(1, np.abs(view["ellipse"]).max())
    layout = {"xaxis.range": [-reach, reach], "yaxis.range": [-reach, reach]}
    layout["yaxis2.range"] = [-2, np.log10(2 * max(view["bound"].max(), view["product"].max()))]
    return [{}, dict(x=x, y=y), dict(x=seen[0], y=seen[1]), *arrows, *curves, {}, dict(x=[p["t"]] * 2)], layout


def adversary_summary(view, p):
    """The picture in words."""
    now = p["t"] - 1
    (angle,) = np.rad2deg(between(view["keys"][now : now + 1], view["gains"][now : now + 1]))
    return (
        f"Step {p['t']}: the write is turned by {angle:.3g}° from the key. The product of all steps so far has norm "
        f"{view['product'][now]:.3g}, its largest until step {STEPS} is {view['product'].max():.3g}; "
        f"the bound here is {view['bound'][now]:.3g}."
    )


ADVERSARY = Explorer(
    name="adversary",
    label="Sliders for the adversary's steps",
    controls=(
        Slider("t", "step t", 1, STEPS, 1, 3),
        LAMBDA._replace(start=0.01),
        Slider("choices", "candidate keys", 1, 200, 1, 200),
        Choice("penalised", "direction u", PENALISED, PENALISED[0]),
        SEED,
    ),
    presets={
        "After all steps": dict(t=STEPS),
        "Along the key": dict(penalised=PENALISED[1], lambda_0=0.1),
        "No choice": dict(choices=1),
    },
    view=adversary_view,
    frame=adversary_frame,
    draw=adversary_draw,
    summary=adversary_summary,
    caption="Width 2, unit gain. Above, the grey circle of states of length 1 and what t steps have made of it "
    "(orange), with the key, the write and u that the adversary chose for step t, and her earlier keys (dots); below, "
    "the norm of the product of her steps.",
)


# ---- how far a write is turned ------------------------------------------------------------------------------------

LATER = 32  # keys that the angles are taken over


def angle_view(lambda_0, t, K, correlation, direction, seed):
    """What the angle explorer draws: the angle between k and A k, in degrees.

    Returns a dict: lambdas [21]; mean, largest, limit [21], over the 32 keys after token t, with the penalty as it
    stands after t, for each of these lambda_0; times [n] and actual [n], the angle of each token's own write up to
    t + 32 at the given lambda_0; here (mean, largest, limit) at the given lambda_0.
    """
    T = t + LATER
    k, v, u = correlated_stream(T, K, correlation=correlation, direction=direction, seed=seed)
    lambdas = 10 ** (0.3 * np.arange(21) - 3)
    values, vectors = np.linalg.eigh(u[:t].T @ u[:t])
    later = k[t:] @ vectors  # [32, K]

    def angles(lambda_0):
        a = later * (lambda_0 / (lambda_0 + values))
        turned = np.rad2deg(between(later, a))
        kappa = (lambda_0 + values[-1]) / (lambda_0 + values[0])
        return turned.mean(), turned.max(), np.rad2deg(np.arctan2(kappa - 1, 2 * np.sqrt(kappa)))

    mean, largest, limit = np.transpose([angles(x) for x in lambdas])
    gains = vla_chunk(k, k, v, u, lambda_0, trace=True)[1].trace.gains
    return dict(
        lambdas=lambdas,
        mean=mean,
        largest=largest,
        limit=limit,
        times=np.arange(1, T + 1),
        actual=np.rad2deg(between(k, gains)),
        here=angles(lambda_0),
    )


def between(x, y):
    """The angle between the rows of x and y [n, K], exact for small ones too."""
    x, y = unit_rows(x), unit_rows(y)
    return 2 * np.arctan2(np.linalg.norm(x - y, axis=1), np.linalg.norm(x + y, axis=1))


def angle_frame():
    """The angle explorer's figure, without numbers."""
    fig = make_subplots(rows=2, cols=1, vertical_spacing=0.17)
    vla, thin_line = figures.STYLES["VLA"], dict(width=1, color="rgba(128,128,128,0.8)")
    looks = (
        ("mean", vla),
        ("largest", figures.STYLES["DeltaNet"]),
        ("limit", figures.STYLES["recursive least squares"]),
    )
    for name, look in looks:
        fig.add_scatter(x=[], y=[], mode="lines", name=name, line=look)
    dots = dict(mode="markers", marker=dict(size=4, color=vla["color"]), name="each write")
    fig.add_scatter(x=[], y=[], row=2, col=1, **dots)
    for row in (1, 2):
        fig.add_scatter(
            x=[], y=[0, 90], mode="lines", line=thin_line, showlegend=False, hoverinfo="skip", row=row, col=1
        )
    fig.update_layout(
        template="vla",
        height=640,
        xaxis=dict(title="λ₀ (log scale)", type="log", range=[-3, 3]),
        xaxis2_title="token",
        yaxis=dict(title="degrees", range=[0, 90]),
        yaxis2=dict(title="degrees", range=[0, 90]),
    )
    return fig


def angle_draw(view, p):
    """Where the numbers of `angle_view` go."""
    curves = [dict(x=view["lambdas"], y=view[name]) for name in ("mean", "largest", "limit")]
    marks = [dict(x=[p["lambda_0"]] * 2), dict(x=[p["t"]] * 2)]
    return [*curves, dict(x=view["times"], y=view["actual"]), *marks], {"xaxis2.range": [0, p["t"] + LATER + 1]}


def angle_summary(view, p):
    """The picture in words."""
    mean, largest, limit = view["here"]
    stretch = (1 + np.sqrt(5 - 4 * np.cos(np.deg2rad(largest)))) / 2
    return (
        f"After {p['t']} tokens, with λ₀ = {p['lambda_0']:.3g}, the next {LATER} keys would be written at {mean:.3g}° "
        f"to themselves on average and {largest:.3g}° at most; no key could exceed {limit:.3g}°. "
        f"At the largest angle a step stretches by {stretch:.3g}."
    )


ANGLE = Explorer(
    name="angle",
    label="Sliders for the angle between key and write",
    controls=(
        LAMBDA,
        Slider("t", "tokens seen t", 1, 400, 1, 40),
        Slider("K", "key width K", 4, 64, 4, 32),
        CORRELATION,
        Choice("direction", "penalty direction", DIRECTIONS[::-1], DIRECTIONS[1]),
        SEED,
    ),
    presets={
        "One token": dict(t=1),
        "The published settings": dict(direction="projected", correlation=0.9),
        "A flat price list": dict(lambda_0=1000),
    },
    view=angle_view,
    frame=angle_frame,
    draw=angle_draw,
    summary=angle_summary,
    caption="The angle between a key and the direction in which VLA writes its error. Above: over the next 32 keys, "
    "for every λ₀, with the limit that no key can exceed. Below: each token's own write, at the slider's λ₀.",
)


EXPLORERS = {explorer.name: explorer for explorer in (PENALTY, NORMS, RECALL, ADVERSARY, ANGLE)}


def penalty():
    """The penalty explorer."""
    return PENALTY.show()


def norms():
    """The norms explorer."""
    return NORMS.show()


def recalled():
    """The recall explorer."""
    return RECALL.show()


def adversary():
    """The adversary explorer."""
    return ADVERSARY.show()


def angle():
    """The angle explorer."""
    return ANGLE.show()
