"""One look for every picture: a template, a colour and a dash for each memory, captions and text alternatives."""

import inspect
import json
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import Markdown, display
from numpy.typing import ArrayLike

MIME = "application/vnd.plotly.v1+json"

# Okabe and Ito's colours, told apart by colour-blind readers too; the dash tells them apart in grey.
STYLES = {
    "linear attention": dict(color="#D55E00", dash="solid"),
    "DeltaNet": dict(color="#0072B2", dash="dash"),
    "VLA": dict(color="#009E73", dash="solid"),
    "VLA, interpolating": dict(color="#CC79A7", dash="dashdot"),
    "recursive least squares": dict(color="#56B4E9", dash="dot"),
    "exact least squares": dict(color="#E69F00", dash="longdash"),
    "softmax": dict(color="#7F7F7F", dash="solid"),
}
DIVERGING = [[0, "#2166AC"], [0.25, "#92C5DE"], [0.5, "#F7F7F7"], [0.75, "#F4A582"], [1, "#B2182B"]]
# Colour bars lie below, so that heatmaps keep their size on narrow screens.
BAR = dict(orientation="h", thickness=10, y=0, yanchor="top", ypad=28, len=0.8, tickangle=0, nticks=4)
GRID = "rgba(128,128,128,0.25)"

_axis = dict(
    gridcolor=GRID,
    zerolinecolor=GRID,
    linecolor="rgba(128,128,128,0.6)",
    ticks="outside",
    automargin=True,
    exponentformat="power",
)
pio.templates["vla"] = go.layout.Template(
    layout=dict(
        font=dict(family="system-ui, sans-serif", size=13, color="#222222"),
        colorway=[style["color"] for style in STYLES.values()],
        paper_bgcolor="white",
        plot_bgcolor="rgba(0,0,0,0)",
        margin=dict(l=56, r=24, t=36, b=48),
        legend=dict(orientation="h", yanchor="bottom", y=1.02, x=0),
        hovermode="closest",
        xaxis=_axis,
        yaxis=_axis,
        height=380,
    )
)


def figure(x: str = "", y: str = "", log: str = "", **layout: Any) -> go.Figure:
    """An empty figure in the book's look; x, y: axis titles, with units; log: the axes that are, "x", "y" or "xy"."""
    fig = go.Figure(layout=dict(template="vla", **layout))
    for name, title, axis in (("x", x, fig.layout.xaxis), ("y", y, fig.layout.yaxis)):
        axis.title = f"{title} (log scale)" if name in log else title
        axis.type = "log" if name in log else None
    return fig


def line(fig: go.Figure, memory: str, x: ArrayLike, y: ArrayLike, name: str | None = None, **trace: Any) -> go.Figure:
    """Add one memory's curve in its own colour and dash; x, y [n]. Returns fig."""
    return fig.add_scatter(x=thin(x), y=thin(y), name=name or memory, mode="lines", line=STYLES[memory], **trace)


def level(fig: go.Figure, x: ArrayLike, y: float, text: str) -> go.Figure:
    """Add a thin horizontal line at height y from x[0] to x[1], with words below its right end. Returns fig."""
    thin_line = dict(width=1, color="rgba(128,128,128,0.9)")
    return fig.add_scatter(
        x=x, y=[y, y], text=["", text], mode="lines+text", textposition="bottom left", line=thin_line, showlegend=False
    )


def penalty_heatmap(change: np.ndarray, limit: float | None = None, **trace: Any) -> go.Heatmap:
    """Heatmap of how far a penalty [K, K] is from where it began: white unchanged, red above, blue below."""
    limit = float(limit if limit is not None else np.abs(change).max() or 1)
    bar = dict(BAR, **trace.pop("colorbar", {}))
    return go.Heatmap(z=thin(change), zmin=-limit, zmax=limit, colorscale=DIVERGING, colorbar=bar, **trace)


def thin(x: ArrayLike) -> np.ndarray:
    """An array at the precision of a picture: single floats, a third of the bytes."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def show(fig: go.Figure, caption: str, alt: str, explorer: dict | None = None) -> None:
    """Display fig above its caption.

    caption: one sentence, Markdown, that says what to see. alt: the picture in words, for who cannot see it.
    explorer: what the page's own script needs to make the sliders live (see `vla_teach.explorers`).
    """
    fig.update_layout(meta=dict(alt=alt, explorer=explorer) if explorer else dict(alt=alt))
    display({MIME: json.loads(fig.to_json()), "text/plain": f"Figure: {alt}"}, raw=True)
    display(Markdown(f"*{caption}*"))


def show_source(*objects: Any) -> None:
    """Display the package's own source of functions or classes, so that a chapter never copies it."""
    for thing in objects:
        display(Markdown(f"```python\n{inspect.getsource(thing).rstrip()}\n```"))
