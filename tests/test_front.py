"""The first page and what surrounds the book: times, paths, print, archive, search, launch buttons, the workflow."""

import base64
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from browser import ROOT, absent, complaints, tab

from vla_teach import delta_rule, front, linear_attention, vla_recurrent
from vla_teach.figures import MIME
from vla_teach.site import front as page_parts
from vla_teach.site import launch, notebooks, offline, times
from vla_teach.streams import correlated_stream

FIRST = "book/index"
DESKTOP = dict(width=1280, height=800)


# ---- the run behind the picture -----------------------------------------------------------------------------------


@lru_cache
def states(seed=front.SEED):
    """{(memory, likeness, penalty): [the state [64, K] after each pair]}, run with the digits themselves."""
    v, found = front.digits(), {}
    for likeness, correlation in front.LIKENESS.items():
        for penalty, direction in front.PENALTIES.items():
            k, _, u = correlated_stream(10, front.K, correlation=correlation, direction=direction, seed=seed)
            for memory, f in dict([("linear attention", linear_attention), ("DeltaNet", delta_rule)]).items():
                found[memory, likeness, penalty] = k, [f(k[:t], k[:t], v[:t])[1].S for t in range(1, 11)]
            vla = [vla_recurrent(k[:t], k[:t], v[:t], u[:t], lambda_0=0.1)[1].S for t in range(1, 11)]
            found["VLA", likeness, penalty] = k, vla
    return found


def test_the_page_mixes_what_the_memories_answer():
    """Guards the picture: the stored mixtures of digits are what each memory, run with the digits, answers."""
    v, runs = front.digits(), front.content()["runs"]
    assert len(runs) == 3 + 3 + 6
    for (memory, likeness, penalty), (k, S) in states().items():
        run = runs[front.name_of(memory, likeness, penalty)]
        for t in range(1, 11):
            W = np.reshape(run["mixtures"][t - 1], (t, t))
            np.testing.assert_allclose(W @ v[:t], k[:t] @ S[t - 1].T, atol=5e-3 * t)
            assert run["errors"][t - 1] == pytest.approx(front.error(k[:t] @ S[t - 1].T, v[:t]), abs=1e-6)


def test_error_is_an_angle():
    """Guards the number beside each row: 0 for the picture at any brightness, 1 for nothing of it, or its negative."""
    v = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert front.error(7 * v, v) == pytest.approx(0, abs=1e-7)
    assert front.error(np.array([[-4.0, 3.0], [0.0, 2.0]]), v) == pytest.approx(1)
    assert front.error(-v, v) == front.error(0 * v, v) == pytest.approx(1)
    assert front.error(np.array([[3.0, 4.0], [1.0, 1.0]]), v) == pytest.approx(np.sqrt(0.5) / 2)


@pytest.mark.parametrize("seed", range(10))
def test_what_the_first_page_says_of_the_picture(seed):
    """Guards its sentences, for other draws of keys too: along the key VLA is ahead, least for keys much alike; with
    the paper's directions, untrained, it is as DeltaNet is."""
    v = front.digits()
    error = {name: front.error(k @ S[-1].T, v) for name, (k, S) in states(seed).items()}
    along, papers = front.PENALTIES
    for likeness in front.LIKENESS:
        assert error["VLA", likeness, along] < 0.75 * error["DeltaNet", likeness, along]
        assert error["VLA", likeness, along] < error["linear attention", likeness, along]
        assert abs(error["VLA", likeness, papers] - error["DeltaNet", likeness, papers]) < 0.06
    ours = [error["VLA", likeness, along] for likeness in front.LIKENESS]
    assert max(ours[:2]) < ours[2]


def pixels(address):
    """What a PNG made by `front.png` shows: its opacity, [64] of 0 ... 1."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    at = data.index(b"IDAT")
    raw = zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at], "big")])
    rows = np.frombuffer(raw, np.uint8).reshape(8, 17)
    assert not rows[:, 0].any() and not rows[:, 1::2].any()
    return rows[:, 2::2].ravel() / 255


def test_png_holds_its_pixels():
    """Guards the pictures that are seen without scripts and on paper."""
    ink = front.ink(np.array([np.linspace(-1, 2, 64)]))[0]
    assert ink.min() == 0 and ink.max() == 1
    np.testing.assert_allclose(pixels(front.png(ink)), ink, atol=1 / 255)


# ---- times and paths ----------------------------------------------------------------------------------------------


def test_reading_time_counts_what_is_read(tmp_path):
    """Guards the sum: words, formulas, open code and figures count; folded code and exercises do not."""
    cell, words = nbformat.v4, "word " * 180
    shown = cell.new_output("display_data", data={MIME: {}})
    parts = [
        (cell.new_markdown_cell(words + "$$x$$\n\n```{math}\nx\n```"), 1 + 4 / 180 + 2 * 0.5),
        (cell.new_code_cell("a = 1\n\nb = 2"), 2 * 0.05),
        (cell.new_code_cell("c = 1\n" * 50, metadata={"tags": ["hide-input"]}, outputs=[shown]), 1),
        (cell.new_markdown_cell("## Exercises\n\n" + words), 0),
        (cell.new_code_cell("d = 1\n" * 50), 0),
    ]
    for n in range(1, len(parts) + 1):
        path = tmp_path / f"{n}.ipynb"
        nbformat.write(cell.new_notebook(cells=[part for part, _ in parts[:n]]), path)
        assert times.reading(path) == pytest.approx(sum(m for _, m in parts[:n]), abs=1e-9), n


def test_times_in_words():
    """Guards how times are told: no minute is lost, and no second pretended."""
    told = [times.hours(m).replace("\u00a0", " ") for m in (5, 59, 60, 61, 125)]
    assert told == ["5 min", "59 min", "1 h", "1 h 1 min", "2 h 5 min"]
    told = [times.machine(s).replace("\u00a0", " ") for s in (0.2, 4.4, 12, 47, 58, 200)]
    assert told == ["1 s", "4 s", "10 s", "50 s", "1 min", "3 min"]
    assert [times.rounded(m) for m in (0.1, 7, 8, 41)] == [5, 5, 10, 40]


def test_every_chapter_has_been_timed():
    """Guards book/times.json: `make notebooks` has stored a time for every chapter, and none for what is gone."""
    chapters = {path.relative_to(ROOT).with_suffix("").as_posix() for path in notebooks.chapters()}
    assert set(times.running(ROOT)) == chapters


def test_a_time_about_the_same_changes_nothing(tmp_path):
    """Guards quiet diffs: a run that took a third longer leaves the file; one that took twice as long is stored."""
    (tmp_path / "book").mkdir()
    for seconds, stored in ((10.2, 10), (13, 10), (7, 10), (20, 20), (0.1, 1)):
        times.store(tmp_path, "book/a", seconds)
        assert times.running(tmp_path) == {"book/a": stored}


def test_the_first_page_lists_what_there_is(pages):
    """Guards parts, chapters and paths: every chapter once in the table, with its times; sums are of what is shown."""
    text = (pages / f"{FIRST}.html").read_text().replace("\u00a0", " ")
    table = re.search(r'class="vla-chapters.*?</table>', text, re.DOTALL)[0]
    rows = re.findall(r"<td>(.*?)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", table.replace("<p>", "").replace("</p>", ""))
    listed = [re.search(r'href="(.*?)\.html"', name)[1] for name, *_ in rows if "href" in name]
    wanted = page_parts.contents(ROOT)
    assert listed == [doc.removeprefix("book/") for _, docs in wanted for doc in docs]
    assert all(
        re.fullmatch(r"(\d+ h ?)?(\d+ min)?", read) and re.fullmatch(r"\d+ (s|min)", ran) for _, read, ran in rows
    )

    def minutes(told):
        return sum(int(n) * (60 if unit == "h" else 1) for n, unit in re.findall(r"(\d+) (h|min)", told))

    assert sum(minutes(read) for name, read, _ in rows if "href" in name) == sum(
        minutes(read) for name, read, _ in rows if "href" not in name
    )
    paths = re.findall(r"<ol.*?</ol>\s*<p.*?>In all (.*?)\.</p>", text, re.DOTALL)
    lists = re.findall(r"(<ol.*?</ol>)\s*<p.*?>In all", text, re.DOTALL)
    assert len(paths) == 3
    for told, entries in zip(paths, lists, strict=True):
        each = re.findall(r"</a> \((.*?)\)", entries)
        assert len(each) >= 5 and sum(map(minutes, each)) == minutes(told)


# ---- the first page in a browser ----------------------------------------------------------------------------------

BOX = (
    "part => { const b = part.getBoundingClientRect(); return [b.left, b.top + scrollY, b.right, b.bottom + scrollY] }"
)
SEEN = """() => {
  const figure = document.querySelector('.vla-first');
  const ink = canvas => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 === 3);
  return {
    t: Number(figure.querySelector('input').value), button: figure.querySelector('button').textContent,
    words: figure.querySelector('.vla-words').textContent, errors: [...figure.querySelectorAll('.vla-error')]
      .map(e => e.textContent).slice(-3), label: figure.querySelector('[role=img]').getAttribute('aria-label'),
    ink: [...figure.querySelectorAll('[data-memory]')].map(row => [...row.querySelectorAll('canvas')].map(ink)),
  };
}"""


@contextmanager
def first_page(browser, site, **options):
    """The first page, with its picture mounted."""
    with tab(browser, **{**DESKTOP, "reduced_motion": "reduce", **options}) as page:
        wrong = complaints(page)
        page.goto(f"{site}/{FIRST}.html")
        page.wait_for_selector(".vla-first[data-drawn]")
        yield page
        assert not wrong


@pytest.mark.parametrize(
    ("width", "height", "screens", "scheme"), [(1280, 800, 1, "light"), (390, 844, 2, "dark"), (390, 844, 2, "light")]
)
def test_the_first_screen_has_it_all(browser, site, width, height, screens, scheme):
    """Guards what a newcomer sees without scrolling (on a phone: by scrolling once): picture, aims, start, times."""
    with first_page(browser, site, width=width, height=height, color_scheme=scheme) as page:
        for part in (".vla-first", ".vla-start", ".vla-start pre", ".vla-parts"):
            left, top, right, bottom = page.query_selector(part).evaluate(BOX)
            assert left >= 0 and right <= width and bottom <= screens * height, part
            assert right - left > 100 and bottom - top > 20, part
        assert page.inner_text(".vla-start pre").strip() == "make lab"
        tiles = [tile.evaluate(BOX) for tile in page.query_selector_all(".vla-tiles span")]
        assert len(tiles) == 50 and min(right - left for left, _, right, _ in tiles) > 20
        inverted = page.eval_on_selector(".vla-tiles canvas", "canvas => getComputedStyle(canvas).filter")
        assert inverted == ("invert(1)" if scheme == "dark" else "none")


def check_picture(page, t, likeness, penalty):
    """The page shows what the memories answer after t pairs: pixels, errors, words, and the same words for a reader."""
    v, seen, errors = front.digits(), page.evaluate(SEEN), {}
    for memory, drawn in zip(front.MEMORIES, seen["ink"], strict=True):
        k, S = states()[memory, likeness, penalty]
        answers = k[:t] @ S[t - 1].T
        errors[memory] = front.error(answers, v[:t])
        np.testing.assert_allclose(np.array(drawn[:t]) / 255, front.ink(answers), atol=0.02)
        assert not np.any(drawn[t:])
    assert seen["t"] == t and seen["words"] == seen["label"] == front.sentence(t, errors)
    assert seen["errors"] == [f"{error:.2f}" for error in errors.values()]


def test_the_picture_by_keyboard(browser, site):
    """Guards slider and lists: every setting shows what the package computes; the words follow."""
    with first_page(browser, site) as page:
        check_picture(page, 10, *front.FIRST)
        page.focus(".vla-first input")
        page.keyboard.press("Home")
        check_picture(page, 1, *front.FIRST)
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        check_picture(page, 4, *front.FIRST)
        page.keyboard.press("End")
        for likeness in front.LIKENESS:
            page.select_option("[data-name=likeness]", likeness)
            for penalty in front.PENALTIES:
                page.select_option("[data-name=penalty]", penalty)
                check_picture(page, 10, likeness, penalty)


def test_the_picture_plays_by_itself_once(browser, site):
    """Guards motion: it plays unasked, stops at the end, and can be stopped and played again by keyboard."""
    with first_page(browser, site, reduced_motion="no-preference") as page:
        page.wait_for_function(f"({SEEN})().t === 3")
        assert page.evaluate(SEEN)["button"] == "Stop"
        check_picture(page, 3, *front.FIRST)
        page.focus(".vla-first button")
        page.keyboard.press("Enter")
        t = page.evaluate(SEEN)["t"]
        page.wait_for_timeout(1200)
        assert (page.evaluate(SEEN)["t"], page.evaluate(SEEN)["button"]) == (t, "Play")
        page.keyboard.press("Enter")
        page.wait_for_function(f"({SEEN})().t === 10 && ({SEEN})().button === 'Play'")
        page.wait_for_timeout(1200)
        assert page.evaluate(SEEN)["t"] == 10


def test_the_picture_rests_for_who_wants_less_motion(browser, site):
    """Guards the reader's setting: nothing moves until Play is pressed, and all is there."""
    with first_page(browser, site) as page:
        page.wait_for_timeout(1500)
        assert page.evaluate(SEEN)["t"] == 10 and page.evaluate(SEEN)["button"] == "Play"
        page.click(".vla-first button")
        page.wait_for_function(f"({SEEN})().t === 2")


def test_the_picture_without_scripts(browser, site):
    """Guards the page as it is stored: all fifty tiles, ten digits and thirty answers, and no dead control."""
    with tab(browser, **DESKTOP, java_script_enabled=False) as page:
        page.goto(f"{site}/{FIRST}.html")
        images = page.locator(".vla-tiles img")
        assert images.count() == 40 and not page.locator(".vla-first-controls").is_visible()
        answers = [pixels(images.nth(30 + i).get_attribute("src")) for i in range(10)]
        k, S = states()["VLA", *front.FIRST]
        np.testing.assert_allclose(answers, front.ink(k @ S[-1].T), atol=2 / 255)


# ---- on paper -----------------------------------------------------------------------------------------------------

CUT_OFF = """() => {
  const cut = part => {
    const { left, right, width } = part.getBoundingClientRect();
    return width && (right > innerWidth + 1 || left < -1);
  };
  const tooLong = part => part.tagName === 'PRE' && part.scrollWidth > part.clientWidth + 1;
  const outside = part => part.tagName === 'text' && part.textContent.trim() &&
    part.getBoundingClientRect().right > part.closest('.main-svg').getBoundingClientRect().right + 2;
  const parts = 'main :is(p, li, pre, td, h1, h2, .main-svg, .main-svg text, mjx-container, img)';
  return [...document.querySelectorAll(parts)].filter(part => part.checkVisibility())
    .filter(part => cut(part) || tooLong(part) || outside(part)).map(part => part.outerHTML.slice(0, 120));
}"""


def texts(data):
    """The words of each page of a PDF, and where each piece begins: (text, [(x, y, width of the page)])."""
    try:
        from pypdf import PdfReader
    except ImportError:
        absent("no pypdf: run make env")
    import io

    found, places = [], []
    for page in PdfReader(io.BytesIO(data)).pages:

        def visit(text, cm, tm, font, size, width=float(page.mediabox.width)):
            if text.strip():
                x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
                places.append((text, x, width))

        found.append(page.extract_text(visitor_text=visit))
    return found, places


@pytest.mark.parametrize("doc", ["book/reference/penalty", "book/kernel/chunk"])
def test_a_page_on_paper(browser, site, doc):
    """Guards print, from a dark screen, never scrolled: words, figures and solutions are there, sliders are not."""
    with tab(browser, width=1600, height=900, color_scheme="dark") as page:
        page.goto(f"{site}/{doc}.html")
        page.wait_for_function("window.Plotly")
        sheets, places = texts(page.pdf(format="A4"))
        assert page.evaluate("document.documentElement.dataset.theme") == "dark", "the screen is not as it was"
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", " ".join(sheets)))  # no ligatures
        book = nbformat.read(ROOT / f"{doc}.ipynb", as_version=4)
        words = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
        for heading in re.findall(r"^## (.*)$", "\n".join(words), re.MULTILINE):
            assert heading.split("$")[0].strip()[:20] in text, heading
        code = next(cell.source for cell in reversed(book.cells) if cell.cell_type == "code")
        assert max(code.splitlines(), key=len).strip()[:40] in text, "the last solution's code"
        for figure in (
            o.data[MIME] for cell in book.cells for o in cell.get("outputs", ()) if MIME in o.get("data", {})
        ):
            title = figure["layout"].get("xaxis", {}).get("title", {}).get("text", "")
            assert re.sub(r"<.*?>", "", title)[:12] in text
        for gone in ("→ ∞ is DeltaNet", "Show code cell", "Skip to main content", "Next", "Ctrl"):
            assert gone not in text
        assert min(x for _, x, _ in places) > 20 and all(x < width - 20 for _, x, width in places)


@pytest.mark.parametrize("doc", ["book/reference/penalty", "book/kernel/race", "book/index", "book/notation"])
def test_nothing_is_wider_than_paper(browser, site, doc):
    """Guards long lines, wide tables and figures drawn for a large screen: on A4 they end where the paper does."""
    with tab(browser, width=2000, height=900, color_scheme="dark") as page:
        # Figures stay as the large screen had them, as they do when a page is printed.
        page.add_init_script("addEventListener('resize', event => event.stopImmediatePropagation(), true)")
        page.goto(f"{site}/{doc}.html")
        page.evaluate("() => window.MathJax?.startup?.promise")
        for figure in page.query_selector_all(".vla-figure"):
            figure.scroll_into_view_if_needed()
            page.wait_for_function("figure => figure.dataset.drawn === 'yes'", arg=figure)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        page.set_viewport_size(dict(width=690, height=980))
        page.wait_for_timeout(300)
        assert page.evaluate(CUT_OFF) == []
        ink = page.evaluate("getComputedStyle(document.querySelector('main p')).color")
        assert max(map(int, re.findall(r"\d+", ink)[:3])) < 100, "pale words on paper"


def test_pages_are_bound_with_their_links(pages, tmp_path):
    """Guards `make pdf` on two pages: an outline, links between them kept inside, those to elsewhere as they were."""
    try:
        from pypdf import PdfReader
    except ImportError:
        absent("no pypdf: run make env")
    target = tmp_path / "two.pdf"
    try:
        with ThreadPoolExecutor() as aside:  # a thread of its own for its own browser
            docs = [(None, FIRST), ("A part", "book/notation")]
            sheets = aside.submit(offline.print_book, pages, target, docs).result()
    except RuntimeError as error:
        absent(str(error))
    book = PdfReader(target)
    assert sheets == len(book.pages) > 2
    assert [entry if isinstance(entry, str) else getattr(entry, "title", len(entry)) for entry in book.outline][1:] == [
        "A part",
        1,
    ]
    notes = [note.get_object() for page in book.pages for note in page.get("/Annots") or ()]
    inside = [note["/Dest"] for note in notes if isinstance(note.get("/Dest"), list)]
    notation = book.get_destination_page_number(book.outline[1])
    assert notation in [book.get_page_number(dest[0].get_object()) for dest in inside]


def test_no_pdf_without_a_browser(monkeypatch, tmp_path, capsys):
    """Guards `make pdf` where there is no browser: it says so, and does not fail."""
    monkeypatch.setattr(offline, "BROWSERS", ("no-such-browser",))
    monkeypatch.setattr(offline, "find_spec", lambda name: name)
    offline.main(["pdf"])
    assert "no-such-browser is on the PATH" in capsys.readouterr().out


# ---- offline ------------------------------------------------------------------------------------------------------


def test_the_archive_is_the_same_each_time(tmp_path):
    """Guards `make zip`: the same files give the same bytes, whenever they were written and in whatever order."""
    archives = []
    for n, names in enumerate((["index.html", "b/c.js", "a.css"], ["a.css", "b/c.js", "index.html"])):
        folder = tmp_path / str(n)
        for i, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"words of {name}")
            os.utime(folder / name, (10**9 + n * 10**7 + i,) * 2)
        (folder / ".built").write_text(str(n))
        archives.append(offline.pack(folder, tmp_path / f"{n}.zip").read_bytes())
    assert archives[0] == archives[1]
    assert zipfile.ZipFile(tmp_path / "0.zip").namelist() == [
        f"{offline.NAME}/{name}" for name in ("a.css", "b/c.js", "index.html")
    ]
    with pytest.raises(FileNotFoundError, match="make book"):
        offline.pack(tmp_path / "nothing", tmp_path / "2.zip")


@pytest.fixture(scope="module")
def unpacked(pages, tmp_path_factory):
    """The built book, packed and unpacked: its folder."""
    folder = tmp_path_factory.mktemp("offline")
    with zipfile.ZipFile(offline.pack(pages, folder / "book.zip")) as archive:
        archive.extractall(folder)
    return folder / offline.NAME


def from_disk(page, unpacked):
    """A list that fills with what goes wrong in a page opened from a disk; a request to elsewhere is wrong."""
    wrong = []
    base = unpacked.as_uri()
    page.on("request", lambda r: r.url.startswith((base, "data:", "blob:")) or wrong.append(f"asks {r.url}"))
    page.on("requestfailed", lambda r: wrong.append(f"no answer from {r.url}"))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    return wrong


def test_the_archive_opens_from_a_disk(browser, unpacked):
    """Guards the book without a server or a network: pages, picture, figures, sliders and formulas."""
    with tab(browser, reduced_motion="reduce") as page:
        wrong = from_disk(page, unpacked)
        page.goto((unpacked / "index.html").as_uri())
        page.wait_for_selector(".vla-first[data-drawn]")
        assert page.url.endswith("/book/index.html")
        page.goto((unpacked / "book/reference/penalty.html").as_uri())
        page.wait_for_selector("#explore-penalty[data-redraws]")
        redraws = page.get_attribute("#explore-penalty", "data-redraws")
        page.focus("#explore-penalty input[type=range]")
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"document.querySelector('#explore-penalty').dataset.redraws > {redraws}")
        page.wait_for_selector("main mjx-container mjx-mi")
        assert not wrong


@pytest.mark.parametrize("where", ["served", "from a disk"])
def test_search(browser, site, unpacked, where):
    """Guards the search, with no network: a word of two chapters finds them; a click opens one; a silly word none."""
    with tab(browser, **DESKTOP) as page:
        wrong = complaints(page) if where == "served" else from_disk(page, unpacked)
        base = site if where == "served" else unpacked.as_uri()
        page.goto(f"{base}/{FIRST}.html")
        page.keyboard.press("Control+k")
        page.wait_for_selector("dialog[open] input[type=search]")
        page.keyboard.type("adversary")
        page.keyboard.press("Enter")
        page.wait_for_function("/finished|did not match/.test(document.querySelector('#search-results')?.innerText)")
        page.wait_for_selector("#search-results li a")
        found = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
        assert any("reference/penalty.html" in link for link in found)
        page.locator("#search-results li a[href*='reference/penalty']").first.click()
        page.wait_for_selector("article h1")
        page.wait_for_selector("#explore-penalty[data-redraws]")  # to leave while it loads would count as wrong
        assert "reference/penalty.html" in page.url
        page.goto(f"{base}/search.html?q=xyzzyq")
        page.wait_for_function("/did not match/.test(document.querySelector('#search-results')?.innerText)")
        assert not wrong


# ---- launch -------------------------------------------------------------------------------------------------------


def test_no_buttons_without_a_repository(pages):
    """Guards against dead links: where _config.yml names no repository, no page offers to open it elsewhere."""
    if launch.repository()[0]:
        pytest.skip("a repository is named")
    for path in pages.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"mybinder\.org|colab\.research|launch-buttons|executablebooks/jupyter-book\"", text), path


def small_book(folder, url):
    """Build a book of two chapters with this book's settings and a repository. Returns (its pages' folder, the run)."""
    for file in ("_config.yml", "book/references.bib", "book/reference/penalty.ipynb", "book/kernel/token.ipynb"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    shutil.copytree(ROOT / "book/_static", folder / "book/_static")
    config = (folder / "_config.yml").read_text()
    (folder / "_config.yml").write_text(re.sub(r'^  url: ".*"', f'  url: "{url}"', config, flags=re.MULTILINE))
    files = [{"file": "book/reference/penalty"}, {"file": "book/kernel/token"}]
    (folder / "_toc.yml").write_text(
        yaml.safe_dump({"format": "jb-book", "root": "book/index", "parts": [{"caption": "I", "chapters": files}]})
    )
    (folder / "book/index.md").write_text("# A page\n\nSome words.\n")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "--all", "--quiet"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return folder / "_build/html/book", done


def test_buttons_lead_to_the_chapter(tmp_path):
    """Guards the one place: with a repository named there, each chapter's buttons lead to it, and to itself."""
    pages, done = small_book(tmp_path, "https://github.com/someone/a.book-1")
    assert done.returncode == 0, done.stderr[-2000:]
    colab = "https://colab.research.google.com/github/someone/a.book-1/blob/gh-pages/colab/book"
    binder = "https://mybinder.org/v2/gh/someone/a.book-1/main?urlpath=lab/tree/book/reference/penalty.ipynb"
    for name, wanted in (
        ("reference/penalty", {binder, f"{colab}/reference/penalty.ipynb"}),
        ("kernel/token", {f"{colab}/kernel/token.ipynb"}),
        ("index", set()),
    ):
        text = (pages / f"{name}.html").read_text()
        assert set(re.findall(r'href="(https://(?:mybinder|colab)[^"]*)"', text)) == wanted
        assert 'href="https://github.com/someone/a.book-1"' in text


@pytest.mark.parametrize("url", ["someone/book", "https://example.org/someone/book", "https://github.com/someone"])
def test_a_wrong_repository_is_refused(tmp_path, url):
    """Guards against buttons that lead nowhere: an address that is no GitHub repository stops the build, with words."""
    (tmp_path / "_config.yml").write_text(yaml.safe_dump({"repository": {"url": url}}))
    with pytest.raises(ValueError, match="OWNER/NAME"):
        launch.repository(tmp_path)
    (tmp_path / "_config.yml").write_text("title: x\n")
    assert launch.repository(tmp_path) == ("", "main")


def test_who_needs_torch():
    """Guards which chapters Binder is offered for: those of parts I and II, and not those that load PyTorch."""
    heavy = {path.parent.name + "/" + path.stem: launch.needs_torch(path) for path in notebooks.chapters()}
    assert not any(value for name, value in heavy.items() if name.startswith(("derivation/", "reference/")))
    assert heavy["kernel/token"] and heavy["kernel/layer"] and heavy["evidence/real_keys"]


def test_binder_installs_what_the_book_needs():
    """Guards .binder: requirements that are there, a supported Python, and the package itself."""
    folder = ROOT / ".binder"
    (line,) = re.findall(r"^-r (.*)$", (folder / "requirements.txt").read_text(), re.MULTILINE)
    assert (folder / line).resolve() == ROOT / "requirements.txt"
    assert (folder / "runtime.txt").read_text().strip() in ("python-3.11", "python-3.12")
    assert os.access(folder / "postBuild", os.X_OK)
    subprocess.run(["bash", "-n", folder / "postBuild"], check=True)
    assert "--editable ." in (folder / "postBuild").read_text()


def test_colab_gets_copies(tmp_path):
    """Guards the chapters: a copy differs by its first cell alone, which fetches this repository."""
    written = launch.copies(tmp_path, "https://github.com/someone/book", "main")
    assert len(written) == len(notebooks.chapters())
    for path in written:
        copy = nbformat.read(path, as_version=4)
        nbformat.validate(copy)
        original = nbformat.read(ROOT / path.relative_to(tmp_path), as_version=4)
        assert copy.cells[1:] == original.cells and copy.metadata == original.metadata
        first = copy.cells[0].source
        assert "git clone --quiet --depth 1 --branch main https://github.com/someone/book /content/book" in first
        assert f'os.chdir("/content/book/{path.relative_to(tmp_path).parent.as_posix()}")' in first
        assert all(f"{name}==" in first for name in launch.PACKAGES)


def test_colabs_first_cell_runs(tmp_path):
    """Guards that cell as far as it can be run here: without its two shell lines it finds the package and gives every
    figure as HTML beside what it was."""
    from nbclient import NotebookClient

    cell = launch.first_cell("https://github.com/someone/book", "main", "book/reference")
    cell = "\n".join(line for line in cell.splitlines() if not line.startswith(("!", "%")))
    figure = "from vla_teach.figures import figure, line, show\nshow(line(figure(), 'VLA', [1, 2], [3, 4]), 'A.', 'B.')"
    sources = [cell.replace("/content/book", str(ROOT)), "import os\nprint(os.getcwd())", figure]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(book, timeout=60, resources={"metadata": {"path": tmp_path}}).execute()
    assert book.cells[1].outputs[0].text.strip() == str(ROOT / "book/reference")
    data = book.cells[2].outputs[0].data
    assert "Plotly.newPlot" in data["text/html"] and MIME in data


# ---- the workflow -------------------------------------------------------------------------------------------------


def test_the_workflow():
    """Guards what runs on GitHub: pinned actions, the README's commands, and no right to write but to publish."""
    text = (ROOT / ".github/workflows/book.yml").read_text()
    workflow = yaml.safe_load(text)
    used = re.findall(r"uses: (\S+)( # v\d+\.\d+\.\d+)?", text)
    assert len(used) >= 4
    for action, version in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) and version, action
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in jobs["test"]
    assert jobs["publish"]["permissions"] == {"contents": "write"} and jobs["publish"]["needs"] == "test"
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    readme, targets = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    commands = [run for run in runs if run.startswith("make ")]
    assert {"make book", "make test"} <= set(commands)
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", targets, re.MULTILINE), command
        assert command in readme or command in (ROOT / "CONTRIBUTING.md").read_text()
    assert any("push --quiet --force" in run and run.rstrip().endswith(launch.PUBLISHED) for run in runs)
    python = jobs["test"]["steps"][1]["with"]["python-version"]
    assert python in ("3.11", "3.12")


def test_the_readmes_picture_is_the_first_page():
    """Guards the README's picture: it is there, a PNG of a screen, and has words for who cannot see it."""
    ((alt, path),) = re.findall(r"!\[(.*?)\]\((.*?)\)", (ROOT / "README.md").read_text())
    data = (ROOT / path).read_bytes()
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") == 1280 and len(alt) > 50
