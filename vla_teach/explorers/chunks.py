"""Who needs whom, and when: a sequence in chunks."""

import numpy as np
from plotly.subplots import make_subplots

from vla_teach.checks import check_count
from vla_teach.explorers.kit import Explorer, Slider

NEVER, LATER, NOW, INSIDE, STATE, ANSWER = range(6)
LOOKS = (
    ("rgba(0,0,0,0)", ""),
    ("rgba(127,127,127,0.28)", "later"),
    ("#E69F00", "in this step"),
    ("#009E73", "in the chunk"),
    ("#0072B2", "by the state"),
    ("#CC79A7", "answers"),
)


def steps_of(T, C):
    """How many steps are taken in a row: all chunks at once, one for each state passed on, all answers at once."""
    return -(-T // C) + 1


def chunks_view(T, C, step):
    """What the chunk explorer draws: T tokens in chunks of C (the last may be shorter), at a step of `steps_of`.

    Returns a dict: cells [T, T + 2], row t with the tokens that token t needs, then nothing, then its answer, each
    NEVER, LATER, NOW or how it was met; sizes [T], pairs, steps [T], the pairs of tokens inside chunks and the steps
    in a row for every chunk size.
    """
    check_count("C", C, 1, T)
    check_count("step", step, 1, steps_of(T, C))
    t, s = np.arange(T)[:, None], np.arange(T + 2)
    kinds = np.where(s > t, NEVER, np.where(s // C == t // C, INSIDE, STATE))
    kinds[:, T + 1] = ANSWER
    when = np.choose(kinds, [0, 0, 0, 1, 1 + t // C, steps_of(T, C)])
    sizes = np.arange(1, T + 1)
    rest = T % sizes
    return dict(
        cells=np.where(kinds == NEVER, NEVER, np.where(when > step, LATER, np.where(when == step, NOW, kinds))),
        sizes=sizes,
        pairs=T // sizes * (sizes * (sizes + 1) // 2) + rest * (rest + 1) // 2,
        steps=steps_of(T, sizes),
    )


def chunks_frame():
    """The chunk explorer's figure, without numbers."""
    fig = make_subplots(rows=2, cols=1, row_heights=[0.68, 0.32], vertical_spacing=0.13)
    colours = [[(i + end) / len(LOOKS), look] for i, (look, _) in enumerate(LOOKS) for end in (0, 1)]
    heat = dict(zmin=-0.5, zmax=5.5, colorscale=colours, showscale=False, x0=1, y0=1, xgap=1, ygap=1)
    fig.add_heatmap(z=[[0]], hovertemplate="t %{y}, s %{x}<extra></extra>", **heat)
    for colour, name in LOOKS[1:]:
        fig.add_scatter(
            x=[None], y=[None], name=name, mode="markers", marker=dict(color=colour, symbol="square", size=10)
        )
    for name, colour, dash in (("pairs inside", "#009E73", "solid"), ("steps in a row", "#0072B2", "dash")):
        fig.add_scatter(x=[], y=[], name=name, mode="lines", line=dict(color=colour, dash=dash), row=2, col=1)
    mark = dict(mode="lines", line=dict(color="rgba(128,128,128,0.8)", width=1), showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=[], y=[1, 1e4], row=2, col=1, **mark)
    fig.update_layout(
        template="vla",
        height=760,
        margin=dict(t=80),
        xaxis=dict(showgrid=False, title="token s; far right: the answer"),
        yaxis=dict(showgrid=False, title="token t"),
        xaxis2=dict(title="chunk size C"),
        yaxis2=dict(title="number (log scale)", type="log"),
    )
    return fig


def chunks_draw(view, p):
    """Where the numbers of `chunks_view` go."""
    T = p["T"]
    ticks = [1, *range(8, T + 1, 8 if T <= 32 else 16)]
    curves = [dict(x=view["sizes"], y=view[name]) for name in ("pairs", "steps")]
    layout = {"xaxis.range": [0.4, T + 2.6], "yaxis.range": [T + 0.6, 0.4], "xaxis.tickvals": ticks}
    layout |= {"yaxis.tickvals": ticks, "xaxis2.range": [0, T + 1], "yaxis2.range": [0, np.log10(T * (T + 1))]}
    return [dict(z=view["cells"]), *[{}] * 5, *curves, dict(x=[p["C"]] * 2)], layout


def chunks_summary(view, p):
    """The picture in words."""
    pairs, steps, step = view["pairs"][p["C"] - 1], view["steps"][p["C"] - 1], p["step"]
    does = "passes the state on to the next chunk"
    if step == 1:
        does = "is the triangles of all chunks at once"
    if step == steps:
        does = "is all answers at once"
    return (
        f"{p['T']} tokens in chunks of {p['C']}: {pairs} pairs inside chunks, out of {view['pairs'][-1]} in all, and "
        f"{steps} steps in a row. Step {step} {does}."
    )


CHUNKS = Explorer(
    name="chunks",
    label="Sliders for a sequence in chunks",
    controls=(
        Slider("T", "length T", 8, 64, 8, 32, " tokens"),
        Slider("C", "chunk size C", 1, 64, 1, 4, " tokens", most="T"),
        Slider("step", "step", 1, 65, 1, 5, most="steps", play=True),
    ),
    to_try="move the time to its end and watch the state go from chunk to chunk; then find the chunk size with the "
    "fewest steps, and see what it costs in pairs.",
    presets={
        "The loop, C = 1": dict(C=1),
        "The attention map, C = T": dict(C=32, step=1),
        "64 tokens in eights": dict(T=64, C=8, step=4),
        "A short last chunk": dict(C=12, step=4),
    },
    view=chunks_view,
    frame=chunks_frame,
    draw=chunks_draw,
    summary=chunks_summary,
    caption="Above: row t has the tokens that token t needs, and at its far right its answer. Green cells are met in "
    "matrix products inside a chunk, blue ones through the state, which comes to one chunk after the other. Below: "
    "what every chunk size costs, in pairs and in steps that wait for each other.",
    ends=lambda T, C, step: dict(steps=steps_of(T, C)),
)
