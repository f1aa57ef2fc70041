"""What a whole step makes of the old states, by the angle between key and write."""

import numpy as np
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.explorers.kit import Explorer, Slider

ANGLES = 5 * np.arange(37)
TURN = 2 * np.pi * np.arange(73) / 72


def step_view(angle, beta, n):
    """What the step explorer draws: F = I - beta k a^T in width 2, n times over, k = (1, 0), a at `angle` degrees.

    F^n = [[p, b], [0, 1]]. Returns a dict: ellipse [2, 73], what F^n makes of the states of length 1 (rows: S F^n);
    longest, write [2], the ellipse's longest radius and a; angles [37], stretch, second [37], the spectral norm and
    the other eigenvalue p of F^n at each; here (stretch, second) at the given angle.
    """
    p, b, stretch = step_power(np.deg2rad(angle), beta, n)
    # the state that is stretched most: the first eigenvector of F^n (F^n)^T; b is never above 0
    at = -np.arctan2(2 * abs(b), p**2 + b**2 - 1) / 2
    x, y = np.cos(TURN), np.sin(TURN)
    over = step_power(np.deg2rad(ANGLES), beta, n)
    return dict(
        ellipse=np.array([x * p, x * b + y]),
        longest=np.array([np.cos(at) * p, np.cos(at) * b + np.sin(at)]),
        write=np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))]),
        angles=ANGLES,
        stretch=over[2],
        second=over[0],
        here=(stretch, p),
    )


def step_power(angle, beta, n):
    """p, b of F^n and its spectral norm; angle, in radians, a number or an array."""
    one, side = 1 - beta * np.cos(angle), -beta * np.sin(angle)
    p, b = one**n, side * sum(one**i for i in range(n))
    squares = p**2 + b**2 + 1
    return p, b, np.sqrt((squares + np.sqrt(np.maximum(0, squares**2 - 4 * p**2))) / 2)


def step_frame():
    """The step explorer's figure, without numbers."""
    fig = make_subplots(rows=2, cols=1, row_heights=[0.62, 0.38], vertical_spacing=0.14)
    green, blue, orange = figures.STYLES["VLA"]["color"], figures.STYLES["DeltaNet"]["color"], "#D55E00"
    thin = dict(mode="lines", line=dict(color="#7F7F7F", width=1), showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=np.cos(TURN), y=np.sin(TURN), **thin)
    fig.add_scatter(x=[], y=[], mode="lines", line=dict(color=orange), name="states after")
    for name, color, dash in (("key k", blue, "solid"), ("write a", green, "solid"), ("longest", orange, "dot")):
        arrow = dict(mode="lines+markers", marker=dict(size=[0, 9], color=color), line=dict(color=color, dash=dash))
        fig.add_scatter(x=[0, 1], y=[0, 0], name=name, **arrow)
    for name, color, dash, symbol in (("stretch", orange, "solid", "circle"), ("eigenvalue", green, "dash", "square")):
        fig.add_scatter(x=[], y=[], mode="lines", name=name, line=dict(color=color, dash=dash), row=2, col=1)
        dot = dict(mode="markers", marker=dict(size=11, color=color, symbol=symbol), showlegend=False)
        fig.add_scatter(x=[], y=[], row=2, col=1, **dot)
    fig.update_layout(
        template="vla",
        height=760,
        margin=dict(t=90),
        yaxis=dict(scaleanchor="x"),
        xaxis2=dict(title="angle, degrees", dtick=45, range=[0, 180]),
        yaxis2=dict(title="factor"),
    )
    return fig


def step_draw(view, p):
    """Where the numbers of `step_view` go."""
    (x, y), (stretch, second) = view["ellipse"], view["here"]
    arrows = [dict(x=[0, end[0]], y=[0, end[1]]) for end in (view["write"], view["longest"])]
    curves = []
    for name, now in (("stretch", stretch), ("second", second)):
        curves += [dict(x=view["angles"], y=view[name]), dict(x=[p["angle"]], y=[now])]
    reach = 1.1 * max(2, np.abs(view["ellipse"]).max())
    top = min(6, 1.1 * max(2, view["stretch"].max()))
    layout = {"xaxis.range": [-reach, reach], "yaxis.range": [-reach, reach], "yaxis2.range": [0, top]}
    return [{}, dict(x=x, y=y), {}, *arrows, *curves], layout


def step_summary(view, p):
    """The picture in words."""
    stretch, second = view["here"]
    return (
        f"At an angle of {p['angle']}° and with β = {p['beta']:.3g}, after {p['n']} such steps some state is longer by "
        f"a factor of {stretch:.3g}; the state along the write is multiplied by {second:.3g}."
    )


STEP = Explorer(
    name="step",
    label="Sliders for the Jacobian of a step",
    controls=(
        Slider("angle", "angle", 0, 180, 1, 60, "°"),
        Slider("beta", "write size β", 0.0, 1.0, 0.05, 1.0),
        Slider("n", "the same", 1, 20, 1, 1, " times"),
    ),
    to_try="open the angle from 0° to 90° and read the stretching; then repeat the same step, at 60° and at 90°.",
    presets={
        "Golden ratio": dict(angle=90),
        "The claim holds": dict(angle=0),
        "Half a write": dict(angle=90, beta=0.5),
        "The same 20 times": dict(n=20),
        "The wrong sign": dict(angle=180),
    },
    view=step_view,
    frame=step_frame,
    draw=step_draw,
    summary=step_summary,
    caption="Above: the grey circle of all states of length 1, and what the step makes of them (orange), with the key, "
    "the write and the longest radius. Below: that radius, which is the spectral norm of the Jacobian, and its second "
    "eigenvalue, at every angle. Only at 0° is nothing stretched; at 90° one full step stretches by the golden ratio.",
)
