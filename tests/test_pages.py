"""The built book as a reader meets it: first the files, then every page in a browser, then the sliders.

The numbers that the pages compute are compared with Python's. VLA_PAGES names another folder than _build/html.
"""

import base64
import json
import re
from functools import lru_cache
from html.parser import HTMLParser
from statistics import median
from urllib.parse import unquote, urlencode, urlsplit

import numpy as np
import pytest
import yaml
from browser import ROOT, check_norms, complaints, numbers, tab, violations

from vla_teach.explorers import EXPLORERS, PENALTY
from vla_teach.explorers.kit import Slider
from vla_teach.explorers.memories import penalty_view
from vla_teach.figures import MIME
from vla_teach.streams import DIRECTIONS, correlated_stream, normal, uniform

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
DOCS = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]


@lru_cache
def figures_of(doc):
    """The Plotly figures stored in a page's notebook; none for a page of words."""
    path = ROOT / f"{doc}.ipynb"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]


CHAPTERS = [doc for doc in DOCS if (ROOT / f"{doc}.ipynb").exists()]
FRAMED = [
    (doc, n, i)
    for doc in DOCS
    for n, figure in enumerate(figures_of(doc))
    if figure.get("frames")
    for i in range(len(figure["layout"].get("sliders") or ()))
]
MENUS = [
    (doc, n, i)
    for doc in DOCS
    for n, figure in enumerate(figures_of(doc))
    for i in range(len(figure["layout"].get("updatemenus") or ()))
]
every_page = pytest.mark.parametrize("doc", DOCS)


# ---- the files ----------------------------------------------------------------------------------------------------


LOADED = set("stylesheet icon preload prefetch modulepreload preconnect dns-prefetch manifest".split())  # of links


class Page(HTMLParser):
    """What a page has: ids, links, addresses it loads, figures, their text alternatives."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.figures, self.labels = set(), [], [], 0, []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        loaded = tag != "a" and (tag != "link" or LOADED & set(attributes.get("rel", "").split()))
        for name in ("href", "src"):
            if name in attributes:
                (self.loads if loaded else self.links).append(attributes[name])
        if tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh":
            self.links.append(attributes["content"].partition("url=")[2])
        self.figures += "vla-figure" in classes
        if "vla-plot" in classes:
            self.labels.append(attributes.get("aria-label"))


read = lru_cache(Page)


def is_elsewhere(address):
    parts = urlsplit(address)
    return bool(parts.netloc or parts.scheme) and parts.scheme != "data"


def target(path, address):
    """The file that a page's address leads to, and the fragment."""
    parts = urlsplit(address)
    return (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


@pytest.fixture(scope="module")
def reachable(pages):
    """Every page that links lead to from the first one and from the table of contents."""
    waiting = [(pages / f"{doc}.html").resolve() for doc in ["index", *DOCS]]
    found = {}
    while waiting:
        path = waiting.pop()
        if path not in found and path.exists():
            found[path] = read(path)
            near = (target(path, link)[0] for link in found[path].links if not is_elsewhere(link))
            waiting += [other for other in near if other.suffix == ".html"]
    return found


@every_page
def test_page_has_its_figures(pages, doc):
    """Guards that a page exists, shows every figure its notebook stores, and tells each in words."""
    page = read(pages / f"{doc}.html")
    assert page.figures == len(figures_of(doc))
    assert len(page.labels) == page.figures and all(label and label.strip() for label in page.labels)
    assert page.figures or doc not in CHAPTERS, "a chapter without a figure"


def test_links_lead_somewhere(reachable):
    """Guards every internal link: the file is there, and so is the place in it."""
    broken = []
    for path, page in reachable.items():
        for link in page.links:
            if not is_elsewhere(link):
                other, fragment = target(path, link)
                if not other.exists() or (fragment and fragment not in read(other).ids):
                    broken.append(f"{path.name}: {link}")
    assert not broken


def test_pages_load_only_themselves(reachable):
    """Guards that no page names a script, style, picture or frame of another host, or one that is not there."""
    wrong = [
        f"{path.name}: {address}"
        for path, page in reachable.items()
        for address in page.loads
        if not address.startswith("data:") and (is_elsewhere(address) or not target(path, address)[0].exists())
    ]
    assert not wrong


OWN = ("figures.js", "explorer.js", "memory.js", "vla.css")


@every_page
def test_page_is_light(pages, doc):
    """Guards the weight of a page beyond the theme's: its HTML with its figures' numbers, and all the book's own files.

    The libraries are loaded apart, once and only where needed: `test_scripts_come_where_they_are_needed`.
    """
    page = (pages / f"{doc}.html").stat().st_size
    own = sum((pages / "_static" / name).stat().st_size for name in OWN)
    assert page + own < 1_000_000, f"{(page + own) / 1e6:.2f} MB"
    inline = re.findall(
        r"<script(?![^>]*application/json)[^>]*>(.*?)</script>", (pages / f"{doc}.html").read_text(), re.S
    )
    assert max(map(len, inline), default=0) < 20_000, "a library inside the page"


# ---- every page, large and light, small and dark ------------------------------------------------------------------

SCREENS = {
    "desktop": dict(width=1280, height=900, color_scheme="light"),
    "phone": dict(width=390, height=844, color_scheme="dark"),
}

# The least contrast (WCAG) between a figure's words and what lies behind them, and the lightness of those words.
READ_FIGURE = """figure => {
  const rgba = words => words.match(/[\\d.]+/g).map(Number);
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) =>
    sum + part * (c[i] <= 10 ? c[i] / 3294 : ((c[i] / 255 + 0.055) / 1.055) ** 2.4), 0);
  const svg = figure.querySelector('.main-svg'), box = svg.getBoundingClientRect();
  let behind = svg;
  while (behind.parentElement && (rgba(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
    behind = behind.parentElement;
  const paper = light(rgba(getComputedStyle(behind).backgroundColor));
  const words = [...figure.querySelectorAll('.main-svg text')]
    .filter(text => text.textContent.trim() && !text.closest('.heatmap-label'))
    .map(text => light(rgba(getComputedStyle(text).fill)));
  return {
    width: box.width, height: box.height, left: box.left, right: box.right,
    visible: svg.checkVisibility(), marks: figure.querySelectorAll('.mlayer path, .mlayer image').length,
    lightness: [Math.min(...words), Math.max(...words)],
    contrast: Math.min(...words.map(w => (Math.max(w, paper) + 0.05) / (Math.min(w, paper) + 0.05))),
    unlabelled: [...figure.querySelectorAll('input, select')].filter(input => ![...input.labels].some(
      label => [...label.childNodes].some(part => !part.matches?.('input, output') && part.textContent.trim()))).length,
  };
}"""

# Words of figures that leave their figure or lie on each other, and formulas that end behind an edge nobody can scroll.
CUT_OFF = """() => {
  const found = [], box = part => part.getBoundingClientRect();
  for (const svg of document.querySelectorAll('.vla-figure .main-svg')) {
    const edge = box(svg);
    for (const text of svg.querySelectorAll('text')) {
      const { left, right } = box(text);
      if (left < edge.left - 2 || right > edge.right + 2) found.push('words: ' + text.textContent);
    }
    const titles = [...svg.querySelectorAll('.annotation text')];
    titles.forEach((a, i) => titles.slice(0, i).forEach(b => {
      const p = box(a), q = box(b);
      if (p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom)
        found.push(`words on words: ${b.textContent}, ${a.textContent}`);
    }));
  }
  for (const formula of document.querySelectorAll('main mjx-container')) {
    const end = Math.max(...[...formula.querySelectorAll('mjx-mi, mjx-mo, mjx-mn')].map(glyph => box(glyph).right));
    for (let part = formula; part.tagName !== 'MAIN'; part = part.parentElement) {
      const overflow = getComputedStyle(part).overflowX;
      if (overflow === 'auto' || overflow === 'scroll') break;
      if (overflow === 'hidden' && end > box(part).right + 2) {
        found.push('formula: ' + formula.querySelector('mjx-assistive-mml').textContent);
        break;
      }
    }
  }
  return found;
}"""


def draw_all(page):
    """Scroll to every figure and wait until it is drawn. Returns the figures."""
    figures = page.query_selector_all(".vla-figure")
    for figure in figures:
        figure.scroll_into_view_if_needed()
        page.wait_for_function("figure => figure.dataset.drawn === 'yes'", arg=figure)
    return figures


def check_figure(seen, width, dark):
    """What READ_FIGURE saw: something is drawn, inside the screen, in readable words, each control with a name."""
    assert seen["visible"] and seen["width"] > 100 and seen["height"] > 100 and seen["marks"]
    assert seen["left"] >= 0 and seen["right"] <= width
    assert seen["contrast"] > 4.5 and (seen["lightness"][0] > 0.4 if dark else seen["lightness"][1] < 0.2)
    assert seen["unlabelled"] == 0


@pytest.mark.parametrize("screen", SCREENS)
@every_page
def test_page_in_a_browser(browser, site, doc, screen):
    """Guards what a reader sees: no error, nothing from elsewhere, figures drawn, maths set, no one shut out."""
    width, dark = SCREENS[screen]["width"], SCREENS[screen]["color_scheme"] == "dark"
    with tab(browser, **SCREENS[screen]) as page:
        wrong = complaints(page)
        page.goto(f"{site}/{doc}.html")
        page.evaluate("() => window.MathJax?.startup?.promise")
        figures = draw_all(page)
        assert len(figures) == len(figures_of(doc))
        for figure in figures:
            check_figure(figure.evaluate(READ_FIGURE), width, dark)
        maths = page.evaluate("""() => {
          const all = [...document.querySelectorAll('.math')];
          return { all: all.length, set: all.filter(math => math.querySelector('mjx-container')).length,
                   wrong: document.querySelectorAll('mjx-merror').length };
        }""")
        assert maths["set"] == maths["all"] and maths["wrong"] == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        assert page.evaluate(CUT_OFF) == []
        assert violations(page) == []
        assert not wrong


def test_figures_follow_the_theme(browser, site):
    """Guards that figures change colour with the page, when its button is pressed."""
    with tab(browser, **SCREENS["desktop"]) as page:
        page.goto(f"{site}/{FRAMED[0][0]}.html")
        figures = draw_all(page)
        for _ in range(3):  # the button goes round: as the system does, light, dark
            page.locator(".theme-switch-button").locator("visible=true").first.click()
            dark = page.evaluate("document.documentElement.dataset.theme") == "dark"
            page.wait_for_timeout(300)
            for figure in figures:
                check_figure(figure.evaluate(READ_FIGURE), 1280, dark)
            if dark:
                return
        pytest.fail("the button never led to the dark theme")


# ---- the sliders of figures with frames ---------------------------------------------------------------------------


def flat(values):
    """A stored or drawn array of any shape, NaN for null, in one row."""
    if isinstance(values, dict):  # Plotly's packed form
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).astype(float)
    return np.array(values, float).ravel()


DRAWN = "plot => plot._fullData.map(trace => Array.from(trace.z ?? trace.y, x => x?.length ? Array.from(x) : x))"
WHOLE = "plot => [...plot.querySelectorAll('.mlayer')].map(layer => layer.innerHTML).join()"
MARKS = """plot => [...plot.querySelectorAll('.mlayer path, .mlayer image')]
  .map(mark => mark.getAttribute('d') ?? mark.getAttribute('href') ?? mark.getAttribute('xlink:href')).join()"""


@pytest.mark.parametrize(("doc", "n", "i"), FRAMED)
def test_frame_slider(browser, site, doc, n, i):
    """Guards each slider of a figure with frames: by keyboard it names and draws the frame of its place."""
    stored = figures_of(doc)[n]
    steps, active = (stored["layout"]["sliders"][i].get(name, 0) for name in ("steps", "active"))
    frames = {frame["name"]: frame for frame in stored["frames"]}
    with tab(browser) as page:
        wrong = complaints(page)
        page.goto(f"{site}/{doc}.html")
        figure = draw_all(page)[n]
        plot, slider = figure.query_selector(".vla-plot"), figure.query_selector_all(".vla-frames input")[i]
        slider.focus()
        at = int(slider.input_value())
        assert at == active
        keys = ["ArrowRight", "ArrowRight", "ArrowLeft"] if at < 2 else ["ArrowLeft", "ArrowLeft", "ArrowRight"]
        for key in [*keys, "Home", "End"]:
            marks = plot.evaluate(MARKS)
            page.keyboard.press(key)
            page.wait_for_function(f"([plot, marks]) => ({MARKS})(plot) !== marks", arg=[plot, marks])
            at = {"Home": 0, "End": len(steps) - 1}.get(key, at + (key == "ArrowRight") - (key == "ArrowLeft"))
            label = steps[at]["label"]
            assert figure.query_selector_all(".vla-frames output")[i].text_content() == label
            assert slider.get_attribute("aria-valuetext") == label
            frame, drawn = frames[steps[at]["args"][0][0]], plot.evaluate(DRAWN)
            traces = (frame.get("traces") or range(len(drawn))) if "data" in frame else ()  # colours alone change
            for trace, data in zip(traces, frame.get("data", ()), strict=True):
                wanted = flat(data["z"] if "z" in data else data["y"])
                assert np.array_equal(flat(drawn[trace]), wanted, equal_nan=True)
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert slider.evaluate("slider => slider === document.activeElement"), "Tab does not reach the slider"
        assert not wrong


@pytest.mark.parametrize(("doc", "n", "i"), MENUS)
def test_menu(browser, site, doc, n, i):
    """Guards the dropdown of a figure: it is a native one, and each entry draws its frame, or its data."""
    stored = figures_of(doc)[n]
    menu, frames = stored["layout"]["updatemenus"][i], {frame["name"]: frame for frame in stored.get("frames") or ()}
    with tab(browser) as page:
        wrong = complaints(page)
        page.goto(f"{site}/{doc}.html")
        figure = draw_all(page)[n]
        plot, selects = figure.query_selector(".vla-plot"), figure.query_selector_all(".vla-frames select")
        assert len(selects) == len(stored["layout"]["updatemenus"])
        select = selects[len(selects) - 1 - i]  # each was put in front of the last
        labels = [button["label"] for button in menu["buttons"]]
        assert select.evaluate("select => [...select.options].map(option => option.label)") == labels
        assert select.evaluate("select => select.labels[0].textContent").startswith(menu.get("name") or "Show: ")
        assert int(select.input_value()) == menu.get("active", 0)
        assert not plot.query_selector_all(".updatemenu-button")
        for entry in [*range(1, len(labels)), 0]:
            marks, button = plot.evaluate(WHOLE), menu["buttons"][entry]
            select.select_option(str(entry))
            page.wait_for_function(f"([plot, marks]) => ({WHOLE})(plot) !== marks", arg=[plot, marks])
            if button["method"] == "animate":
                frame, drawn = frames[button["args"][0][0]], plot.evaluate(DRAWN)
                for trace, data in zip(frame.get("traces") or range(len(drawn)), frame["data"], strict=True):
                    assert np.array_equal(flat(drawn[trace]), flat(data["y"]), equal_nan=True)
            elif button["method"] == "restyle":
                (changed, traces), drawn = button["args"], plot.evaluate(DRAWN)
                if "x" in changed:
                    drawn = plot.evaluate("plot => plot._fullData.map(trace => Array.from(trace.x))")
                wanted = changed.get("z") or changed.get("y") or changed["x"]
                for trace, data in zip(traces, wanted, strict=True):
                    assert np.array_equal(flat(drawn[trace]), flat(data), equal_nan=True)
            else:
                seen = plot.evaluate("plot => plot._fullData.map(trace => trace.visible)")
                assert seen == button["args"][0]["visible"] and any(seen)
        assert not wrong


# ---- the memory in JavaScript -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(browser, site):
    """An empty page with memory.js."""
    with tab(browser) as page:
        page.add_script_tag(url=f"{site}/_static/memory.js")
        yield page


@pytest.mark.parametrize(("n", "seed", "lane"), [(64_000, 0, 0), (1000, 9, 7), (1, 3, 1)])
def test_draws_in_javascript(memory, n, seed, lane):
    """Guards that the page draws the random numbers that Python draws."""
    got = memory.evaluate("a => [[...vlaMemory.uniform(...a)], [...vlaMemory.normal(...a)]]", [n, seed, lane])
    assert np.array_equal(got[0], uniform((n,), seed, lane))
    np.testing.assert_allclose(got[1], normal((n,), seed, lane), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("T", "K", "V", "correlation", "seed"), [(1000, 64, 16, 0.95, 9), (7, 4, 3, 0, 0)])
def test_stream_in_javascript(memory, T, K, V, correlation, direction, seed):
    """Guards that the page draws the stream that Python draws."""
    ask = (
        "a => { const { k, v, u } = vlaMemory.correlatedStream(...a); return [k, v, u].map(x => x.map(r => [...r])); }"
    )
    got = memory.evaluate(ask, [T, K, V, correlation, direction, seed])
    for part, wanted in zip(got, correlated_stream(T, K, V, correlation, direction, seed), strict=True):
        np.testing.assert_allclose(part, wanted, rtol=0, atol=1e-13)


NAMES = ("lambda_0", "K", "T", "correlation", "gain", "direction", "seed", "t")
SETTINGS = [  # both ends of every slider and all of both lists
    tuple(PENALTY.start[name] for name in NAMES),
    (1e-3, 64, 1000, 0.95, "unit", "along the key", 9, 1000),
    (1e3, 4, 100, 0, "interpolate", "projected", 3, 1),
    (0.1, 32, 500, 0.5, "least_squares", "projected", 0, 250),
    (1e-3, 64, 1000, 0.95, "least_squares", "projected", 0, 1000),
    (1e-3, 4, 1000, 0.95, "least_squares", "along the key", 5, 1),
    (1e-3, 64, 100, 0, "interpolate", "along the key", 7, 100),
    (1e3, 64, 1000, 0, "least_squares", "projected", 1, 500),
    (10**0.3, 12, 250, 0.3, "unit", "projected", 2, 1),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting)))
def test_view_in_javascript(memory, setting):
    """Guards that the page computes what Python computes, at the sliders' ends too."""
    p = dict(zip(NAMES, setting, strict=True))
    ask = "p => { const view = vlaMemory.penaltyView(p); return { ...view, M: [...view.M], A: [...view.A] }; }"
    got, wanted = memory.evaluate(ask, p), penalty_view(**p)
    assert got["times"] == wanted["times"].tolist()
    check_norms(got["norms"], wanted["norms"])
    for name in ("M", "A"):
        np.testing.assert_allclose(got[name], wanted[name].ravel(), rtol=0, atol=1e-6 * np.abs(wanted[name]).max())
    assert got["cond"] == pytest.approx(wanted["cond"], rel=1e-6)


# ---- the explorers ------------------------------------------------------------------------------------------------


def page_of(name):
    """The chapter that an explorer is in."""
    (doc,) = (
        doc for doc in DOCS for f in figures_of(doc) if f["layout"]["meta"].get("explorer", {}).get("name") == name
    )
    return doc


STATE = """figure => {
  const plot = figure.querySelector('.vla-plot'), places = {}, words = {};
  for (const input of figure.querySelectorAll('.vla-controls input, .vla-controls select')) {
    const name = input.id.replace(/^.*-/, '');
    places[name] = input.type === 'range' ? Number(input.value) : input.value;
    words[name] = input.type === 'range' ? document.getElementById(input.id + '-value').textContent : input.value;
    if (input.type === 'range' && input.getAttribute('aria-valuetext') !== words[name]) words[name] = 'unlike aria';
  }
  const flat = x => x === undefined ? null : Array.from(x).flatMap(y => y?.length ? Array.from(y) : [y]);
  return {
    places, words, sentence: figure.querySelector('.vla-words').textContent, label: plot.getAttribute('aria-label'),
    traces: plot.data.map(t => ({ x: flat(t.x), y: flat(t.y), z: flat(t.z), zmin: t.zmin, zmax: t.zmax })),
    layout: Object.fromEntries(Object.entries(plot._fullLayout).filter(([name]) => /^[xy]axis/.test(name))
      .map(([name, { range, type, title, dtick, tickvals }]) =>
        [name, { range, type, title: { text: title.text }, dtick, tickvals }])),
  };
}"""


def figures_in(sentence):
    """A sentence without its numbers, and the numbers."""
    pattern = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
    return re.sub(pattern, "#", sentence), [float(x) for x in re.findall(pattern, sentence)]


def check_numbers(got, wanted, where, rtol=1e-6):
    """Curves and matrices from a page are Python's; a curve may leave the chart one sample apart."""
    got, wanted = numbers(got), np.asarray(wanted, float).ravel()
    assert got.shape == wanted.shape, where
    on = ~np.isnan(got) & ~np.isnan(wanted)
    assert (np.isnan(got) != np.isnan(wanted)).sum() <= 1, f"{where} ends elsewhere"
    size = np.abs(wanted[on]) if where.endswith(("x", "y")) else np.abs(wanted[on]).max()
    off = np.abs(got[on] - wanted[on]) - 1e-10  # an angle of 0 is 0 to rounding
    assert np.all(off <= rtol * size), f"{where} is off by {np.max(off / (size + 1e-300)):.1e} of its size"


class InPage:
    """An explorer in a page."""

    def __init__(self, page, explorer):
        self.page, self.explorer = page, explorer
        self.figure = page.query_selector(f"#explore-{explorer.name}")
        self.plot = self.figure.query_selector(".vla-plot")

    def control(self, name):
        return self.figure.query_selector(f":is(input, select)[id$='-{name}']")

    def after(self, act):
        """Act, wait until all of the figure is drawn again, and return the parameters and the view that are shown."""
        before = int(self.figure.get_attribute("data-redraws"))
        act()
        done = "([f, n]) => Number(f.dataset.redraws) > n && f.dataset.whole === 'yes'"
        self.page.wait_for_function(done, arg=[self.figure, before])
        return self.check()

    def press(self, key):
        return self.after(lambda: self.page.keyboard.press(key))

    def click(self, title):
        return self.after(self.figure.query_selector(f".vla-presets button:text-is('{title}')").click)

    def check(self):
        """All that is shown belongs together, and is what Python gives. Returns the parameters and Python's view."""
        state, p = self.figure.evaluate(STATE), {}
        for control in self.explorer.controls:
            place, shown = state["places"][control.name], state["words"][control.name]
            p[control.name] = value = 10**place if getattr(control, "log", False) else place
            if isinstance(control, Slider):
                assert shown.endswith(control.unit)
                assert float(shown.removesuffix(control.unit)) == pytest.approx(value, rel=6e-3), control.name
        view = self.explorer.view(**p)
        traces, layout = self.explorer.draw(view, p)
        assert len(traces) == len(state["traces"])
        for i, (got, wanted) in enumerate(zip(state["traces"], traces, strict=True)):
            for name, value in wanted.items():
                if name in "xyz":
                    check_numbers(got[name], value, f"trace {i}, {name}")
                elif name in got:
                    assert got[name] == pytest.approx(value, rel=1e-6)
        for path, value in layout.items():
            got = state["layout"]
            for step in path.split("."):
                got = got[step]
            if self.explorer.name in ("adversary", "step") and path in ("xaxis.range", "yaxis.range"):
                # the two have one scale, so the longer side shows more than was asked for
                assert got[0] <= value[0] + 1e-6 and got[1] >= value[1] - 1e-6, path
            else:
                assert got == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), path
        assert state["label"] == state["sentence"]
        words, values = figures_in(state["sentence"])
        wanted_words, wanted_values = figures_in(self.explorer.summary(view, p))
        assert words == wanted_words
        assert values == pytest.approx(wanted_values, rel=6e-3, abs=1e-12)
        return p, view


@pytest.fixture(scope="module", params=EXPLORERS)
def explorer_page(browser, site, request):
    with tab(browser) as page:
        wrong = complaints(page)
        page.goto(f"{site}/{page_of(request.param)}.html")
        draw_all(page)
        page.wait_for_selector(f"#explore-{request.param}[data-redraws]")
        yield page, EXPLORERS[request.param]
        assert not wrong


@pytest.fixture
def explorer(explorer_page):
    """The explorer, reset."""
    found = InPage(*explorer_page)
    assert found.click("Reset")[0] == pytest.approx(found.explorer.start)
    return found


@pytest.fixture(params=["penalty"], scope="module")
def penalty_page(browser, site, request):
    with tab(browser) as page:
        page.goto(f"{site}/{page_of('penalty')}.html")
        page.wait_for_selector("#explore-penalty[data-redraws]")
        yield page


@pytest.fixture
def penalty(penalty_page):
    """The penalty explorer, reset."""
    found = InPage(penalty_page, PENALTY)
    found.click("Reset")
    return found


def test_reset(explorer):
    """Guards that Reset brings back what the figure was stored with, words included."""
    first = next(control.name for control in explorer.explorer.controls if isinstance(control, Slider))
    explorer.control(first).focus()
    explorer.press("End")
    p, _ = explorer.click("Reset")
    assert p == pytest.approx(explorer.explorer.start)


def test_sliders(explorer):
    """Guards every slider, by keyboard, one step and to both ends: number, picture and words follow, alone."""
    for slider in (control for control in explorer.explorer.controls if isinstance(control, Slider)):
        start = explorer.click("Reset")[0]
        explorer.control(slider.name).focus()
        before = start[slider.name]
        place = np.log10(before) if slider.log else before
        for key in ("ArrowRight" if place < slider.high else "ArrowLeft", "End", "Home"):
            marks = explorer.plot.evaluate(MARKS)
            p, _ = explorer.press(key)
            assert p[slider.name] != before and (p[slider.name] > before) == (key in ("ArrowRight", "End")), slider.name
            assert explorer.plot.evaluate(MARKS) != marks, f"{slider.name}: the picture stayed as it was"
            before = p[slider.name]
            assert p == pytest.approx(explorer.explorer.fit(p | start | {slider.name: before})), slider.name
            start = p  # a slider that ends at this one stays where it was pushed


# Every mark, tick, line and word that is drawn, with its place and its colours.
PICTURE = """plot => [...plot.querySelectorAll('.main-svg :is(g, path, image, text)')]
  .filter(part => !part.closest('.hoverlayer, .zoomlayer, .draglayer'))
  .filter(part => part.tagName !== 'g' || part.getAttribute('transform'))
  .map(part => [part.tagName, part.tagName === 'text' ? part.textContent : '',
    ...['d', 'href', 'xlink:href', 'x', 'y', 'width', 'height', 'transform'].map(name => part.getAttribute(name)),
    ...['fill', 'stroke', 'opacity', 'display'].map(name => part.style[name])].join(' ')
    .replace(/-?\\d+\\.\\d{3,}/g, number => Number(number).toFixed(1))).sort()"""

# What Plotly draws from nothing with the numbers that a figure has; ranges: of its axes, as the explorer asks for them.
AFRESH = f"""async (plot, ranges) => {{
  const {{ width, height }} = plot.getBoundingClientRect(), other = document.createElement('div');
  other.style.cssText = `position: absolute; top: 0; width: ${{width}}px; height: ${{height}}px`;
  document.body.append(other);
  const ask = () => Object.entries(ranges).forEach(([axis, range]) => {{ layout[axis].range = [...range]; }});
  const data = structuredClone(plot.data), layout = structuredClone(plot.layout);
  ask();
  await Plotly.newPlot(other, data, layout);
  ask(); // the margins are right only now, and Plotly widens axes that have one scale
  await Plotly.redraw(other);
  const picture = ({PICTURE})(other);
  Plotly.purge(other);
  other.remove();
  return picture;
}}"""

# Moves an input through places, two a frame, so that every second move comes while the one before is drawn. Returns
# the marks as they are drawn first after the last move, whether the whole figure was, and its marks when it is.
MOVE_FAST = f"""async (input, places) => {{
  const figure = input.closest('.vla-figure'), plot = figure.querySelector('.vla-plot'), marks = {MARKS};
  const wait = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  const size = () => {{ const {{ l, t, w, h }} = plot._fullLayout._size; return [l, t, w, h].join(); }};
  for (const [i, place] of places.entries()) {{
    if (i % 2 === 0) await wait();
    input.value = place;
    input.dispatchEvent(new Event('input'));
  }}
  await wait();
  await wait();
  const first = marks(plot), whole = figure.dataset.whole, before = size();
  while (figure.dataset.whole !== 'yes') await wait();
  return {{ first, whole, last: marks(plot), resized: size() !== before }};
}}"""


def test_many_moves_end_right(explorer):
    """Guards pictures drawn in part, as they are during moves: no mark is stale, and nothing is after a rest.

    Each slider goes through six places, two a frame. What is seen after the last move are the marks of the whole
    figure; at rest the numbers are Python's, and the picture is what Plotly draws with them from nothing.
    """
    in_part = 0
    for slider in (control for control in explorer.explorer.controls if isinstance(control, Slider)):
        explorer.click("Reset")
        steps = round((slider.high - slider.low) / slider.step)
        places = [slider.low + slider.step * (steps * i // 7) for i in (1, 6, 2, 5, 7, 4)]
        seen = explorer.control(slider.name).evaluate(MOVE_FAST, places)
        assert seen["resized"] or seen["first"] == seen["last"], f"{slider.name}: marks are stale until the rest"
        in_part += seen["whole"] == "no"
        p, view = explorer.check()
        asked = {path: np.array(value, float).tolist() for path, value in explorer.explorer.draw(view, p)[1].items()
                 if path.endswith(".range")}  # fmt: skip
        ranges = {path.split(".")[0]: value for path, value in asked.items()}
        assert explorer.plot.evaluate(PICTURE) == explorer.plot.evaluate(AFRESH, ranges), slider.name
    assert in_part, "every move drew the whole figure"


def test_lists(explorer):
    """Guards every entry of the lists."""
    start = explorer.explorer.start
    for choice in (control for control in explorer.explorer.controls if not isinstance(control, Slider)):
        control = explorer.control(choice.name)
        entries = control.evaluate("list => [...list.options].map(option => option.value)")
        assert entries == list(choice.options) and control.input_value() == choice.start
        for entry in [*(e for e in entries if e != choice.start), choice.start]:
            marks = explorer.plot.evaluate(MARKS)
            p, _ = explorer.after(lambda control=control, entry=entry: control.select_option(entry))
            assert p == pytest.approx(start | {choice.name: entry})
            assert explorer.plot.evaluate(MARKS) != marks, "the picture stayed as it was"


def test_presets(explorer):
    """Guards that the page has Python's presets, and that each changes what it says."""
    titles = [b.text_content() for b in explorer.figure.query_selector_all(".vla-presets button")]
    assert titles == [*explorer.explorer.presets, "Reset"]
    for title, changes in explorer.explorer.presets.items():
        assert explorer.click(title)[0] == pytest.approx(explorer.explorer.start | changes)


def test_penalty_presets(penalty):
    """Guards what the presets of the penalty explorer claim in their titles."""
    view = penalty.click("Correlated keys")[1]
    assert view["norms"]["VLA"][-1] > view["norms"]["DeltaNet"][-1]
    view = penalty.click("λ₀ → ∞ is DeltaNet")[1]
    np.testing.assert_allclose(view["norms"]["VLA"], view["norms"]["DeltaNet"], rtol=1e-3)
    view = penalty.click("The raw gain explodes")[1]
    assert np.isnan(view["norms"]["VLA"][-1]) and not np.isnan(view["norms"]["DeltaNet"]).any()


def test_controls_by_keyboard(explorer):
    """Guards that Tab goes through all controls, in their order, each button after the slider that it plays."""
    wanted = explorer.figure.evaluate(
        """figure => [...figure.querySelectorAll('.vla-controls :is(input, select, button)')]
          .map(part => part.id || part.textContent)"""
    )
    names, titles = [control.name for control in explorer.explorer.controls], [*explorer.explorer.presets, "Reset"]
    assert [name.split("-")[-1] for name in wanted if name.startswith("vla-")] == names
    assert [title for title in wanted if not title.startswith("vla-") and title != "Play"] == titles
    explorer.control(names[0]).focus()
    explorer.page.keyboard.press("Shift+Tab")
    reached = []
    for _ in wanted:
        explorer.page.keyboard.press("Tab")
        reached.append(explorer.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached == wanted


def test_play_button(explorer):
    """Guards the button beside a slider of time: by keyboard it goes on place by place, stops, and begins again."""
    for slider in (control for control in explorer.explorer.controls if getattr(control, "play", False)):
        place = explorer.control(slider.name)
        button = explorer.figure.query_selector(f".vla-control:has([id$='-{slider.name}']) button")
        assert slider.label in button.get_attribute("aria-label")
        first = float(place.input_value())
        button.focus()
        explorer.page.keyboard.press("Enter")
        explorer.page.wait_for_function("([x, first]) => Number(x.value) > first", arg=[place, first])
        explorer.page.keyboard.press("Enter")
        stopped = place.input_value()
        explorer.page.wait_for_timeout(600)
        assert place.input_value() == stopped and button.text_content() == "Play"
        explorer.check()
        place.focus()
        explorer.press("End")
        button.focus()
        explorer.page.keyboard.press("Enter")
        explorer.page.wait_for_function("x => Number(x.value) < Number(x.max)", arg=place)
        place.focus()
        explorer.page.wait_for_function("([x, first]) => Number(x.value) > Number(x.min)", arg=[place, first])
        button.focus()
        explorer.page.keyboard.press("Enter")


def test_explorer_in_words(explorer):
    """Guards what a screen reader gets: a named group, a sentence to try, a polite status that speaks at rest, once."""
    panel = explorer.figure.query_selector(".vla-controls")
    assert panel.get_attribute("role") == "group" and panel.get_attribute("aria-label") == explorer.explorer.label
    assert panel.query_selector(".vla-try").text_content() == f"Try: {explorer.explorer.to_try}"
    assert not panel.query_selector_all("[aria-live]"), "a live region that changes at every move"
    status = panel.query_selector("[role=status]")
    explorer.page.wait_for_timeout(700)
    status.evaluate("""status => {
      window.spoken = [];
      new MutationObserver(() => spoken.push(status.textContent)).observe(status, { childList: true });
    }""")
    first = next(control.name for control in explorer.explorer.controls if isinstance(control, Slider))
    explorer.control(first).evaluate("""async input => {
      for (const value of [input.max, input.min, input.max, input.min, input.max]) {
        input.value = value;
        input.dispatchEvent(new Event('input'));
        await new Promise(done => setTimeout(done, 30));
      }
    }""")
    explorer.page.wait_for_function("spoken.length > 0")
    explorer.page.wait_for_timeout(700)
    assert explorer.page.evaluate("spoken") == [explorer.figure.query_selector(".vla-words").text_content()]


def test_scripts_come_where_they_are_needed(browser, site):
    """Guards light pages: explorers bring their scripts, once; figures bring Plotly; words bring neither."""
    with_explorers = {page_of(name) for name in EXPLORERS}
    figures_alone = next(doc for doc in CHAPTERS if figures_of(doc) and doc not in with_explorers)
    for doc, wanted in ((page_of("norms"), (1, 1, 1)), (figures_alone, (1, 0, 0)), (TOC["root"], (0, 0, 0))):
        with tab(browser) as page:
            asked = []
            page.on("request", lambda request, asked=asked: asked.append(urlsplit(request.url).path.rpartition("/")[2]))
            page.goto(f"{site}/{doc}.html")
            draw_all(page)
            got = tuple(asked.count(name) for name in ("plotly.min.js", "memory.js", "explorer.js"))
            assert got == wanted, doc


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_view_has_an_address(browser, site, name):
    """Guards that the address follows the sliders, and that it brings the view back, on a phone too."""
    explorer = EXPLORERS[name]
    first = next(control for control in explorer.controls if isinstance(control, Slider))
    address = f"{site}/{page_of(name)}.html"
    with tab(browser) as page:
        wrong = complaints(page)
        page.goto(address)
        page.query_selector(f"#explore-{name}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#explore-{name}[data-redraws]")
        shown = InPage(page, explorer)
        shown.click("Reset")
        shown.control(first.name).focus()
        shown.press("End")
        title = next(iter(explorer.presets))
        shown.click(title)
        shown.control(first.name).focus()
        moved, _ = shown.press("ArrowLeft")
        page.wait_for_function("location.hash.startsWith('#explore=')")
        page.wait_for_timeout(500)
        linked = page.url
        shown.click("Reset")
        page.wait_for_function("location.hash === ''")
        assert not wrong
    with tab(browser, **SCREENS["phone"]) as page:
        wrong = complaints(page)
        page.goto(linked)
        page.wait_for_selector(f"#explore-{name}[data-redraws]")
        p, _ = InPage(page, explorer).check()
        assert p == pytest.approx(moved) and p != pytest.approx(explorer.start)
        page.wait_for_function(f"document.querySelector('#explore-{name}').getBoundingClientRect().top < innerHeight")
        page.evaluate("hash => { location.hash = hash }", f"explore={name}&{first.name}=nonsense&gain=none&other=1")
        page.wait_for_function(f"document.querySelector('#explore-{name}').dataset.redraws > 1")
        page.wait_for_selector(f"#explore-{name}[data-whole='yes']")
        assert InPage(page, explorer).check()[0] == pytest.approx(explorer.start), "nonsense changed the view"
        assert not wrong


LARGEST = dict(penalty=dict(K=64, T=500), norms=dict(K=64, T=500), angle=dict(K=64), recall=dict(K=64))


# Moves an input through places, after pauses of some ms. Returns for each move the ms until its picture was painted and
# whether the marks changed; and the ms from the last move until all of the figure was drawn.
TIME_MOVES = f"""async (input, [places, pauses]) => {{
  const figure = input.closest('.vla-figure'), plot = figure.querySelector('.vla-plot'), marks = {MARKS};
  const sleep = ms => new Promise(done => setTimeout(done, ms)), times = [], changed = [];
  const told = wanted => new Promise(done => {{
    const observer = new MutationObserver(() => {{
      if (!wanted()) return;
      observer.disconnect();
      done();
    }});
    observer.observe(figure, {{ attributes: true }});
  }});
  const painted = () => new Promise(done => requestAnimationFrame(() => {{
    const {{ port1, port2 }} = new MessageChannel(); // its message comes after the frame that is now made
    port1.onmessage = done;
    port2.postMessage(0);
  }}));
  let start;
  for (const [i, place] of places.entries()) {{
    await sleep(pauses[i % pauses.length]);
    const old = marks(plot), before = figure.dataset.redraws, drawn = told(() => figure.dataset.redraws !== before);
    start = performance.now();
    input.value = place;
    input.dispatchEvent(new Event('input'));
    await drawn;
    await painted();
    times.push(performance.now() - start);
    changed.push(marks(plot) !== old);
  }}
  if (figure.dataset.whole === 'no') await told(() => figure.dataset.whole === 'yes');
  return {{ times, changed, rest: performance.now() - start }};
}}"""


EVERY_SLIDER = [
    (name, control.name)
    for name, explorer in EXPLORERS.items()
    for control in explorer.controls
    if isinstance(control, Slider)
]


@pytest.mark.parametrize(("name", "moved"), EVERY_SLIDER)
def test_redraw_is_quick(browser, site, name, moved):
    """Guards the time from a move to the new picture at K = 64, T = 500: 50 ms are wanted, on an idle machine.

    Measured is the time from the slider's event until the frame with all the new marks is painted: curves, dots, bars
    and heatmaps, and the axes where they end elsewhere. Moves come 20 to 250 ms after the last picture, so that some
    wait for the whole figure that is drawn at rest. That one brings titles and margins up to date: 150 ms are wanted
    for it, from the last move on. All other sizes are the largest while one slider moves.
    """
    explorer = EXPLORERS[name]
    slider = next(control for control in explorer.controls if control.name == moved)
    sizes = {key: size for key, size in LARGEST.get(name, {}).items() if key != moved}
    with tab(browser) as page:
        page.goto(f"{site}/{page_of(name)}.html#explore={name}&{urlencode(sizes)}")
        page.wait_for_selector(f"#explore-{name}[data-redraws]")
        shown = InPage(page, explorer)
        control = shown.control(slider.name)
        start, high = float(control.input_value()), float(control.get_attribute("max"))
        first = (name, moved) == next(pair for pair in EVERY_SLIDER if pair[0] == name)
        up = slider.low + slider.step * np.round(np.linspace(0, (high - slider.low) / slider.step, 10 if first else 4))
        places = [
            place
            for place, before in zip([*up, *up[-2::-1]], [start, *up, *up[-2::-1]], strict=False)
            if place != before
        ]
        seen = control.evaluate(TIME_MOVES, [places, [20, 50, 90, 120, 250]])
        p, _ = shown.check()
    assert all(seen["changed"]), "a move left the picture as it was"
    assert {key: p[key] for key in sizes} == sizes
    times, rest = seen["times"], seen["rest"]
    print(f"{name}: a redraw takes {median(times):.0f} ms, {slider.name} moved; the whole figure {rest:.0f} ms")
    assert median(times) < 150, f"a redraw takes {median(times):.0f} ms ({len(times)} moves: {times})"
    assert rest < 450, f"the whole figure is there {rest:.0f} ms after the last move"
