"""Pictures with sliders. In JupyterLab they run this package; on a static page `book/_static/explorer.js` takes over.

A view is a plain function from parameters to a figure's data, so the two can be compared number by number.
"""

import os

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.checks import GAINS, check_count
from vla_teach.chunkwise import chunk_write, state_norms, vla_chunk
from vla_teach.streams import DIRECTIONS, correlated_stream

MEMORIES = ("linear attention", "DeltaNet", "VLA", "recursive least squares", "exact least squares")
OFF_THE_CHART = 1e6  # a norm above this is a memory that has exploded; its curve stops there
PRESETS = {
    "Uncorrelated keys": dict(correlation=0),
    "Correlated keys": dict(correlation=0.9, direction="along the key", lambda_0=0.01),
    "λ₀ → ∞ is DeltaNet": dict(lambda_0=1000),
    "The raw gain explodes": dict(gain="least_squares", lambda_0=0.1, direction="projected"),
    "Reset": {},
}
PENALTY = dict(lambda_0=0.1, K=32, T=500, correlation=0.5, gain="unit", direction="projected", seed=0, t=250)


def penalty_view(lambda_0, K, T, correlation, gain, direction, seed, t):
    """What the penalty explorer draws: |S_t|_F of every memory, and the penalty and its inverse at token t.

    lambda_0 above 0; K, T whole numbers; correlation in [0, 1); gain, direction: see `vla_recurrent` and
    `correlated_stream`; t from 1 to T. Returns a dict: times [n], norms {memory: [n]} (NaN once above
    OFF_THE_CHART), M [K, K] = M_t - lambda_0 I, A [K, K] = lambda_0 A_t - I, cond, the condition number of M_t.
    """
    k, v, u = correlated_stream(T, K, correlation=correlation, direction=direction, seed=seed)
    check_count("t", t, 1, T)
    times = np.unique(np.linspace(1, T, 200).round().astype(int))
    zero = np.zeros((v.shape[1], K))
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
    added = u[:t].T @ u[:t]
    eigenvalues = np.linalg.eigvalsh(added) + lambda_0
    return dict(
        times=times,
        norms=norms,
        M=added,
        A=np.linalg.inv(np.eye(K) + added / lambda_0) - np.eye(K),
        cond=eigenvalues[-1] / eigenvalues[0],
    )


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


def penalty_figure(view, t):
    """The penalty explorer's figure from what `penalty_view` returned."""
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
    for memory in MEMORIES:
        figures.line(fig, memory, view["times"], view["norms"][memory])
    fig.add_scatter(x=[t, t], y=[0.1, OFF_THE_CHART], mode="lines", name="token t", showlegend=False)
    fig.data[-1].update(line=dict(color="rgba(128,128,128,0.8)", width=1), hoverinfo="skip")
    for col, name, limit in ((1, "M", None), (2, "A", 1)):
        bar = dict(len=0.4, x=0.22 + 0.56 * (col - 1))
        fig.add_trace(figures.penalty_heatmap(view[name], limit, colorbar=bar, name=name), row=2, col=col)
    fig.update_xaxes(title="tokens seen, t (log scale)", type="log", row=1, col=1)
    fig.update_yaxes(title="‖S<sub>t</sub>‖<sub>F</sub>, in lengths of v (log scale)", type="log", row=1, col=1)
    fig.update_yaxes(range=[-1, np.log10(highest(view))], row=1, col=1)
    for col in (1, 2):
        fig.update_yaxes(autorange="reversed", scaleanchor=f"x{col + 1}", constrain="domain", row=2, col=col)
        fig.update_xaxes(constrain="domain", row=2, col=col)
    return fig


def highest(view):
    """Where the norms' axis ends: half above the largest norm, and never below 10."""
    return max(10, 1.5 * max(np.nanmax(norm) for norm in view["norms"].values()))


def penalty_summary(view, t):
    """The picture in words, for the text alternative and the line under it."""
    last = {m: norm[np.searchsorted(view["times"], t, side="right") - 1] for m, norm in view["norms"].items()}
    shown = ", ".join(f"{m} {'off the chart' if np.isnan(x) else format(x, '.3g')}" for m, x in last.items())
    return f"After {t} tokens the state norms are: {shown}. The condition number of M is {view['cond']:.3g}."


def penalty():
    """The penalty explorer: sliders in a live Jupyter, the stored figure where VLA_STATIC is set (the book's build)."""
    view = penalty_view(**PENALTY)
    fig = penalty_figure(view, PENALTY["t"])
    if os.environ.get("VLA_STATIC"):
        figures.show(
            fig,
            "Above, how large each memory's state has grown by token t; below, how far the penalty and its inverse at "
            "the token that the time slider names are from their start, coordinate by coordinate (white: unchanged).",
            penalty_summary(view, PENALTY["t"]),
            explorer=dict(name="penalty", params=PENALTY, presets=list(PRESETS.items())),
        )
        return None
    return penalty_widget(go.FigureWidget(fig))


def penalty_widget(fig):
    """Sliders above a FigureWidget that redraw it from `penalty_view` at every move."""
    import ipywidgets as w

    style = dict(style={"description_width": "9em"}, layout={"width": "26em"})
    p = PENALTY
    controls = dict(
        lambda_0=w.FloatLogSlider(p["lambda_0"], min=-3, max=3, step=0.1, description="λ₀", **style),
        K=w.IntSlider(p["K"], min=4, max=64, step=4, description="key width K", **style),
        T=w.IntSlider(p["T"], min=100, max=1000, step=50, description="tokens T", **style),
        correlation=w.FloatSlider(p["correlation"], min=0, max=0.95, step=0.05, description="key correlation", **style),
        t=w.IntSlider(p["t"], min=1, max=1000, description="time t", **style),
        gain=w.Dropdown(value=p["gain"], options=GAINS, description="gain", **style),
        direction=w.Dropdown(value=p["direction"], options=DIRECTIONS, description="penalty direction", **style),
        seed=w.IntSlider(p["seed"], min=0, max=9, description="seed", **style),
    )
    words = w.HTML()

    def redraw(_=None):
        p = {name: control.value for name, control in controls.items()}
        controls["t"].max, p["t"] = p["T"], min(p["t"], p["T"])
        view = penalty_view(**p)
        with fig.batch_update():
            update_penalty_figure(fig, view, p["t"])
        words.value = penalty_summary(view, p["t"])

    def preset(name):
        def choose(_):
            for control, value in {**PENALTY, **PRESETS[name]}.items():
                controls[control].value = value

        button = w.Button(description=name, layout={"width": "auto"})
        button.on_click(choose)
        return button

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    panel = w.Box(list(controls.values()), layout={"flex_flow": "row wrap"})
    presets = w.Box([preset(name) for name in PRESETS], layout={"flex_flow": "row wrap"})
    return w.VBox([panel, presets, words, fig])


def update_penalty_figure(fig, view, t):
    """Put a new view into the figure that `penalty_figure` made."""
    for trace, memory in zip(fig.data, MEMORIES, strict=False):
        trace.x, trace.y = view["times"], figures.thin(view["norms"][memory])
    mark, M, A = fig.data[len(MEMORIES) :]
    mark.x = [t, t]
    limit = float(np.abs(view["M"]).max())
    M.update(z=figures.thin(view["M"]), zmin=-limit, zmax=limit)
    A.z = figures.thin(view["A"])
    fig.layout.yaxis.range = [-1, np.log10(highest(view))]
