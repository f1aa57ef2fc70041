"""How far a write is turned from its key."""

import numpy as np
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.chunkwise import vla_chunk
from vla_teach.explorers.kit import CORRELATION, LAMBDA, SEED, Choice, Explorer, Slider, between
from vla_teach.streams import DIRECTIONS, correlated_stream

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
        Slider("t", "time t", 1, 400, 1, 40, " tokens"),
        Slider("K", "key width K", 4, 64, 4, 32),
        CORRELATION,
        Choice("direction", "penalty direction", DIRECTIONS[::-1], DIRECTIONS[1]),
        SEED,
    ),
    to_try="lower λ₀ and watch the angles open; then raise the time t. Do they go on opening?",
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
