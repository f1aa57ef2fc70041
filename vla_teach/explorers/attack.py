"""An adversary in width 2, who makes the product of the steps as large as she can."""

import numpy as np
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.checks import check_count
from vla_teach.explorers.kit import LAMBDA, SEED, Choice, Explorer, Slider, between
from vla_teach.reference import unit_rows
from vla_teach.streams import uniform

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
        Slider("t", "time t", 1, STEPS, 1, 3, " steps", play=True),
        LAMBDA._replace(start=0.01),
        Slider("choices", "candidates", 1, 200, 1, 200, " keys"),
        Choice("penalised", "direction u", PENALISED, PENALISED[0]),
        SEED,
    ),
    to_try="go through time t from 1 upwards. When does she stop gaining? Then take Along the key.",
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
