"""How much of n pairs is read back, against their number and their correlation."""

import numpy as np
from plotly.subplots import make_subplots

from vla_teach import figures
from vla_teach.chunkwise import vla_chunk
from vla_teach.explorers.kit import CORRELATION, LAMBDA, SEED, Choice, Explorer, Slider
from vla_teach.reference import delta_rule, linear_attention
from vla_teach.streams import DIRECTIONS, correlated_stream

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
        layout[f"{axis}.dtick"] = 1 if log else 0.2
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
        Slider("n", "number n", 4, MOST_PAIRS, 4, 24, " pairs"),
        CORRELATION,
        Slider("K", "key width K", 4, 64, 4, 32),
        LAMBDA._replace(start=0.01),
        Choice("measure", "measure", MEASURES, MEASURES[0]),
        SEED,
    ),
    to_try="raise the key correlation and watch which curves climb; then raise the "
    "number of pairs n past the key width K.",
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
