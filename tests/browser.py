"""A Chromium and a small server for the tests that look at pages (`test_pages.py`) and at JupyterLab (`test_lab.py`).

Where Chromium or the built book is missing these tests are skipped, or fail if VLA_REQUIRE_BROWSER is set.
"""

import os
import shutil
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vla_teach.explorers.memories import MEMORIES, OFF_THE_CHART

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def absent(reason):
    """Skip the test, or fail it where a browser is required."""
    (pytest.fail if os.environ.get("VLA_REQUIRE_BROWSER") else pytest.skip)(reason)


def pages_folder():
    """The built book, _build/html; the environment variable VLA_PAGES names another folder."""
    folder = Path(os.environ.get("VLA_PAGES") or ROOT / "_build" / "html")
    if not (folder / "index.html").exists():
        absent(f"no pages in {folder}: run make book")
    return folder


@contextmanager
def chromium():
    """A running browser."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        absent(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser, width=1280, height=900, **options):
    """A fresh page in a fresh context."""
    context = browser.new_context(viewport=dict(width=width, height=height), **options)
    context.set_default_timeout(15_000)
    try:
        yield context.new_page()
    finally:
        context.close()


def complaints(page):
    """A list that fills with what goes wrong in a page: errors, failed requests, requests to elsewhere."""
    found = []

    def on_request(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            found.append(f"asks {request.url}")

    page.on("request", on_request)
    page.on("requestfailed", lambda request: found.append(f"no answer from {request.url}"))
    page.on("response", lambda answer: answer.status >= 400 and found.append(f"{answer.status} from {answer.url}"))
    page.on("console", lambda message: message.type == "error" and found.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    return found


@cache
def axe():
    """The source of axe-core, from the package that carries it."""
    spec = find_spec("axe_playwright_python")
    if spec is None:
        absent("no axe-core: pip install -r requirements.txt")
    return (Path(spec.origin).parent / "axe.min.js").read_text()


def violations(page):
    """What axe-core finds in a page that is serious or critical, as "rule: place: what to mend"."""
    page.evaluate(axe())
    return page.evaluate("""async () => {
      const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false });
      return violations.filter(({ impact }) => impact === "serious" || impact === "critical").flatMap(({ id, nodes }) =>
        nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`));
    }""")


def numbers(values):
    """A curve from a page as an array [n], NaN for null."""
    return np.array([np.nan if value is None else value for value in values], float)


def check_norms(drawn, wanted, rtol=1e-6):
    """drawn {memory: curve from a page} shows wanted {memory: [n]}; a curve may leave the chart one sample apart."""
    assert list(drawn) == list(MEMORIES) == list(wanted)
    for memory in MEMORIES:
        got, want = numbers(drawn[memory]), wanted[memory]
        assert got.shape == want.shape, memory
        apart = np.isnan(got) != np.isnan(want)
        assert apart.sum() <= 1, f"{memory} leaves the chart elsewhere"
        edge = np.where(np.isnan(got), want, got)[apart]
        assert np.all(np.abs(edge / OFF_THE_CHART - 1) < 1e-3), f"{memory} leaves the chart at {edge}"
        on = ~np.isnan(got) & ~np.isnan(want)
        off = np.max(np.abs(got[on] - want[on]) / want[on])
        assert off < rtol, f"{memory} is off by {off:.1e} of its norm"
