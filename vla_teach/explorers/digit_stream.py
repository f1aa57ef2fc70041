"""Memories that read handwritten digits, one after the other."""

from functools import cache

import numpy as np
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.checks import GAINS, check_count
from vla_teach.chunkwise import vla_chunk
from vla_teach.explorers.kit import LAMBDA, Choice, Explorer, Slider
from vla_teach.reference import delta_rule, linear_attention, unit_rows

LEARNED, ASKED, EVERY = 240, 100, 10
ORDERS = ("shuffled", "sorted by digit")
READING = ("linear attention", "DeltaNet", "VLA", "recursive least squares")
SHADES = "0123456789abcdefg"  # grey levels 0 to 16


@cache
def some_digits():
    """The first digits of `digits_stream`: images [340, 64], labels [340], to learn and then to ask."""
    from vla_teach.tasks.digits import digits_stream

    parts = [(d.images[:n], d.labels[:n]) for d, n in zip(digits_stream(), (LEARNED, ASKED), strict=True)]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images.reshape(-1, 64).astype(int), labels


def digits_data():
    """The digits as the page gets them: a character a pixel, a character a label."""
    images, labels = some_digits()
    return dict(images="".join(SHADES[x] for x in images.ravel()), labels="".join(map(str, labels)))


def digits_view(t, lambda_0, gain, order, asked):
    """What the digits explorer draws: memories that have seen t digits, a multiple of 10, with u = k.

    order: one of ORDERS; asked: which of the 100 new images, from 1. Returns a dict: seen [24] and right {memory:
    [24]}, the share of new digits answered right after so many; rows [10, 64], VLA's state after t; image [8, 8] and
    label of the one asked; answers [10], what VLA says to it.
    """
    check_count("t", t, EVERY, LEARNED)
    check_count("asked", asked, 1, ASKED)
    images, labels = some_digits()
    k, v = unit_rows(images.astype(float)), np.eye(10)[labels]
    stream = np.arange(LEARNED) if order == ORDERS[0] else np.argsort(labels[:LEARNED], kind="stable")
    new, states, right = k[LEARNED:], [None] * 4, {memory: [] for memory in READING}
    for first in range(0, LEARNED, EVERY):
        x, y = k[stream[first : first + EVERY]], v[stream[first : first + EVERY]]
        states = [
            linear_attention(x, x, y, initial_state=states[0])[1],
            delta_rule(x, x, y, initial_state=states[1])[1],
            vla_chunk(x, x, y, x, lambda_0, gain=gain, initial_state=states[2])[1],
            vla_chunk(x, x, y, x, lambda_0, gain="least_squares", initial_state=states[3])[1],
        ]
        for memory, state in zip(READING, states, strict=True):
            right[memory].append(np.mean(np.argmax(new @ state.S.T, axis=1) == labels[LEARNED:]))
        if first + EVERY == t:
            rows = states[2].S
    return dict(
        seen=np.arange(EVERY, LEARNED + 1, EVERY),
        right={memory: np.array(shares) for memory, shares in right.items()},
        rows=rows,
        image=images[LEARNED + asked - 1].reshape(8, 8),
        label=int(labels[LEARNED + asked - 1]),
        answers=rows @ new[asked - 1],
    )


def tiles(rows):
    """The ten rows [10, 64] as pictures in two lines of five, with gaps of NaN: [17, 44]."""
    out = np.full((17, 44), np.nan)
    for d, row in enumerate(rows):
        down, across = 9 * (d // 5), 9 * (d % 5)
        out[down : down + 8, across : across + 8] = row.reshape(8, 8)
    return out


def digits_frame():
    """The digits explorer's figure, without numbers."""
    wide = [{"colspan": 2}, None]
    fig = make_subplots(
        rows=3,
        cols=2,
        specs=[wide, wide, [{}, {}]],
        row_heights=[0.38, 0.33, 0.29],
        column_widths=[0.3, 0.7],
        vertical_spacing=0.16,
        horizontal_spacing=0.16,
        subplot_titles=("", "VLA's memory, a row a digit", "asked", "VLA's answer"),
    )
    for memory in READING:
        figures.line(fig, memory, [], [])
    mark = dict(mode="lines", line=dict(color="rgba(128,128,128,0.8)", width=1), showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=[], y=[0, 1], **mark)
    memory = dict(colorscale=figures.DIVERGING, showscale=False, hovertemplate="%{z:.3g}<extra></extra>")
    fig.add_heatmap(z=[[0]], row=2, col=1, **memory)
    fig.add_heatmap(z=[[0]], zmin=0, zmax=16, colorscale="Greys", showscale=False, row=3, col=1)
    fig.add_bar(x=np.arange(10), y=[], marker_color=figures.STYLES["VLA"]["color"], showlegend=False, row=3, col=2)
    still = dict(constrain="domain", showgrid=False, zeroline=False)
    fig.update_layout(
        template="vla",
        height=860,
        margin=dict(t=80),
        xaxis=dict(title="digits seen", range=[0, LEARNED + 5]),
        yaxis=dict(title="share right", range=[0, 1]),
        xaxis2=dict(tickvals=[3.5 + 9 * i for i in range(5)], ticktext=[f"{i}, {i + 5}" for i in range(5)], **still),
        yaxis2=dict(tickvals=[3.5, 12.5], ticktext=["0–4", "5–9"], autorange="reversed", scaleanchor="x2", **still),
        xaxis3=dict(showticklabels=False, ticks="", **still),
        yaxis3=dict(showticklabels=False, ticks="", autorange="reversed", scaleanchor="x3", **still),
        xaxis4=dict(dtick=1, title="digit"),
    )
    return fig


def digits_draw(view, p):
    """Where the numbers of `digits_view` go."""
    curves = [dict(x=view["seen"], y=shares) for shares in view["right"].values()]
    limit = 2.5 * float(np.sqrt(np.mean(view["rows"] ** 2)))  # a few pixels that are hardly ever inked weigh much more
    memory = dict(z=tiles(view["rows"]), zmin=-limit, zmax=limit)
    return [*curves, dict(x=[p["t"]] * 2), memory, dict(z=view["image"]), dict(y=view["answers"])], {}


def digits_summary(view, p):
    """The picture in words."""
    i = p["t"] // EVERY - 1
    shown = ", ".join(f"{memory} {shares[i]:.3g}" for memory, shares in view["right"].items())
    return (
        f"After {p['t']} digits, the share of {ASKED} new ones answered right: {shown}. "
        f"New digit {p['asked']} is a {view['label']}; VLA answers {np.argmax(view['answers'])}."
    )


DIGITS = Explorer(
    name="digits",
    label="Sliders for the stream of digits",
    controls=(
        Slider("t", "time t", EVERY, LEARNED, EVERY, 120, " digits", play=True),
        LAMBDA,
        Choice("gain", "gain", GAINS, "unit"),
        Choice("order", "order", ORDERS, ORDERS[0]),
        Slider("asked", "new digit no.", 1, ASKED, 1, 1),
    ),
    to_try="sort the stream by digit and move the time t: DeltaNet knows only what it has seen last. Then raise λ₀ to "
    "its end and watch VLA go the same way.",
    presets={
        "Sorted by digit": dict(order=ORDERS[1]),
        "λ₀ → ∞ is DeltaNet": dict(lambda_0=1000),
        "After twenty": dict(t=20),
        "Each one exactly": dict(gain="interpolate", t=240),
    },
    view=digits_view,
    frame=digits_frame,
    draw=digits_draw,
    summary=digits_summary,
    caption="Above: the share of 100 new digits that each memory answers right as it reads 240; middle: VLA's ten rows "
    "at time t (red speaks for the digit, blue against it); below: a new digit, and what each row says to it.",
    data=digits_data,
)
