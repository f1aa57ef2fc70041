"""What every explorer is made of: controls, presets, a view, a figure; and how JupyterLab shows it."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from vla_teach import figures
from vla_teach.reference import unit_rows


class Slider(NamedTuple):
    """A number from low to high. log: low, high and step are powers of ten.

    most: the slider, or the entry of `ends`, that this one ends at. play: a button in the page moves it by itself.
    """

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float
    unit: str = ""
    log: bool = False
    most: str | None = None
    play: bool = False


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
    to_try: str  # a sentence: what to do with the sliders, and what to look for
    presets: dict  # title: {name: value} on top of the start; Reset comes by itself
    view: Callable  # view(**p) -> dict of numbers
    frame: Callable  # frame() -> figure with every trace and axis, but no numbers
    draw: Callable  # draw(view, p) -> one dict of changes for each trace, {path in the layout: value}
    summary: Callable  # summary(view, p) -> str
    caption: str
    ends: Callable = dict  # ends(**p) -> {name: number}: ends of sliders (their `most`) that follow from several others
    data: Callable | None = None  # data() -> what the view in the page needs besides p, as JSON can hold it

    @property
    def start(self):
        """The parameters that the sliders start from."""
        return {control.name: control.start for control in self.controls}

    def fit(self, p):
        """p with every slider inside the slider that it ends at."""
        for control in self.controls:
            if getattr(control, "most", None):
                p = p | {control.name: min(p[control.name], self.end(control, p))}
        return p

    def end(self, control, p):
        """The number that a slider with `most` ends at."""
        return (p | self.ends(**p))[control.most]

    def wider(self, **highs):
        """The same explorer with sliders that go further; highs: {name: the slider's new end}, powers where log.

        Raises ValueError for a name that is no slider's, or an end below the start.
        """
        sliders = {control.name: control for control in self.controls if isinstance(control, Slider)}
        for name, high in highs.items():
            if name not in sliders:
                raise ValueError(f"no slider is called {name!r}; expected some of {', '.join(sliders)}")
            slider = sliders[name]
            if not high > (np.log10(slider.start) if slider.log else slider.start):
                raise ValueError(f"{name} would end at {high!r}, below its start, {slider.start}")
        controls = [c._replace(high=highs[c.name]) if c.name in highs else c for c in self.controls]
        return self._replace(controls=tuple(controls))

    def figure(self, **changes):
        """The figure for the start parameters and changes to them, and its summary."""
        p = self.fit(self.start | changes)
        view, fig = self.view(**p), quick_axes(self.frame())
        put(fig, *self.draw(view, p))
        return fig, self.summary(view, p)

    def for_the_page(self):
        """What the page's script needs, as JSON can hold it."""
        controls = [control._asdict() for control in self.controls]
        told = dict(name=self.name, label=self.label, to_try=self.to_try, controls=controls)
        told["presets"] = list(self.presets.items())
        return told | (dict(data=self.data()) if self.data else {})

    def show(self, live=True):
        """Display the explorer. Returns the widget, or None where the figure is stored; live: the page has its view."""
        fig, words = self.figure()
        if os.environ.get("VLA_STATIC"):
            figures.show(fig, self.caption, words, explorer=self.for_the_page() if live else None)
            return None
        return widget(self, go.FigureWidget(fig))


def quick_axes(fig):
    """fig with axes that Plotly draws fast: half of a redraw went into labels on log axes and their overlaps."""
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        axis.ticklabeloverflow = "allow"
        if axis.type == "log":
            axis.dtick = 1
    return fig


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
                controls[control.name].max = explorer.end(control, p)
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
    to_try = w.HTML(f"<b>Try:</b> {explorer.to_try}")
    return w.VBox([to_try, panel, w.Box(presets, layout={"flex_flow": "row wrap"}), words, fig])


def control_widget(control):
    """The ipywidget of a Slider or a Choice."""
    import ipywidgets as w

    label = f"{control.label}, {control.unit.strip()}" if getattr(control, "unit", "") else control.label
    style = dict(description=label, style={"description_width": "9em"}, layout={"width": "26em"})
    if isinstance(control, Choice):
        return w.Dropdown(value=control.start, options=control.options, **style)
    whole = not control.log and all(isinstance(x, int) for x in (control.low, control.step))
    kind = w.FloatLogSlider if control.log else w.IntSlider if whole else w.FloatSlider
    return kind(control.start, min=control.low, max=control.high, step=control.step, **style)


# ---- what several explorers use

LAMBDA = Slider("lambda_0", "λ₀ (log scale)", -3, 3, 0.1, 0.1, log=True)
CORRELATION = Slider("correlation", "key correlation", 0.0, 0.95, 0.05, 0.5)
SEED = Slider("seed", "seed", 0, 9, 1, 0)


def between(x, y):
    """The angle between the rows of x and y [n, K], exact for small ones too."""
    x, y = unit_rows(x), unit_rows(y)
    return 2 * np.arctan2(np.linalg.norm(x - y, axis=1), np.linalg.norm(x + y, axis=1))
