"""State norms of all memories, with and without the penalty heatmaps."""

import numpy as np
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.checks import GAINS, check_count
from vla_teach.chunkwise import chunk_write, state_norms, vla_chunk
from vla_teach.explorers.kit import CORRELATION, LAMBDA, SEED, Choice, Explorer, Slider
from vla_teach.streams import DIRECTIONS, correlated_stream

MEMORIES = ("linear attention", "DeltaNet", "VLA", "recursive least squares", "exact least squares")
OFF_THE_CHART = 1e6  # a norm above this is a memory that has exploded; its curve stops there


def penalty_view(lambda_0, K, T, correlation, gain, direction, seed, t):
    """What the penalty explorer draws: |S_t|_F of every memory, and the penalty and its inverse at token t.

    lambda_0 above 0; K, T whole numbers; correlation in [0, 1); gain, direction: see `vla_recurrent` and
    `correlated_stream`; t from 1 to T. Returns a dict: times [n], norms {memory: [n]} (NaN once above
    OFF_THE_CHART), M [K, K] = M_t - lambda_0 I, A [K, K] = lambda_0 A_t - I, cond, the condition number of M_t.
    """
    k, v, u = correlated_stream(T, K, correlation=correlation, direction=direction, seed=seed)
    check_count("t", t, 1, T)
    return norms_of_memories(k, v, u, lambda_0, gain) | penalty_at(u, lambda_0, t)


def penalty_at(u, lambda_0, t):
    """M and A [K, K], as their change since the start, and cond, the condition number of M, after t tokens of u."""
    added, eye = u[:t].T @ u[:t], np.eye(u.shape[1])
    eigenvalues = np.linalg.eigvalsh(added) + lambda_0
    return dict(M=added, A=np.linalg.inv(eye + added / lambda_0) - eye, cond=eigenvalues[-1] / eigenvalues[0])


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
    for col, name in ((1, "M"), (2, "A")):  # no colour bars and no ticks: they took a quarter of a redraw
        fig.add_trace(figures.penalty_heatmap(np.zeros((1, 1)), 1, showscale=False, name=name), row=2, col=col)
        still = dict(constrain="domain", showticklabels=False, ticks="", showgrid=False, zeroline=False)
        fig.update_yaxes(autorange="reversed", scaleanchor=f"x{col + 1}", row=2, col=col, **still)
        fig.update_xaxes(title="darkest: ±1", row=2, col=col, **still)
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
    layout = {"yaxis.range": [-1, np.log10(highest(view))], "xaxis2.title.text": f"darkest: ±{float(f'{limit:.2g}'):g}"}
    return [*curves, mark, M, A], layout


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


PENALTY = Explorer(
    name="penalty",
    label="Sliders for the state norms and the penalty heatmaps",
    controls=(
        LAMBDA,
        Slider("K", "key width K", 4, 64, 4, 32),
        Slider("T", "length T", 100, 1000, 50, 500, " tokens"),
        CORRELATION,
        Slider("t", "time t", 1, 1000, 1, 250, " tokens", most="T", play=True),
        Choice("gain", "gain", GAINS, "unit"),
        Choice("direction", "penalty direction", DIRECTIONS, "projected"),
        SEED,
    ),
    to_try="move time t from 1 to the end and watch the penalty M grow and its inverse A fade; then raise λ₀ until "
    "VLA's curve lies on DeltaNet's.",
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
    "the token that the time slider names are from their start, coordinate by coordinate (white: unchanged, red: more, "
    "blue: less).",
)


# ---- state norms alone


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
        Slider("T", "length T", 100, 2000, 100, 1000, " tokens"),
        CORRELATION,
        Choice("gain", "gain", GAINS, "unit"),
        Choice("direction", "penalty direction", DIRECTIONS[::-1], "along the key"),
        SEED,
    ),
    to_try="lengthen the stream to its end. Which curves settle, and which sink? Then take Raw gain, short u, and "
    "raise λ₀ until VLA's curve is back on the chart.",
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


# ---- own keys and values, in JupyterLab


def with_own(explorer, k, v, u=None):
    """NORMS or PENALTY for a stream of your own: k [T, K], v [T, V], u [T, K] (the keys, if None), of any size.

    Only λ₀, the gain and, in PENALTY, the time are left to choose. A page without a kernel shows the start alone.
    """
    u = k if u is None else u
    T = len(k)
    kept = [control for control in explorer.controls if control.name in ("lambda_0", "gain", "t")]
    kept = [c._replace(high=T, start=max(1, T // 2), most=None) if c.name == "t" else c for c in kept]

    def view(lambda_0, gain, t=T):
        shown = norms_of_memories(k, v, u, lambda_0, gain)
        return shown | penalty_at(u, lambda_0, t) if explorer is PENALTY else shown

    def words(shown, p):
        return explorer.summary(shown, p | dict(T=T))

    return explorer._replace(controls=tuple(kept), presets={}, view=view, summary=words)
