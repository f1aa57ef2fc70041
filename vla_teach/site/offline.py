"""The built book in one file: `make zip` packs the pages, `make pdf` prints them.

python -m vla_teach.site.offline zip      _build/vla-book.zip: unpack, open index.html; nothing comes from a network
python -m vla_teach.site.offline pdf      _build/vla-book.pdf: every page, printed by a Chromium, links within it kept
python -m vla_teach.site.offline picture  book/_static/page.png: the first page's first screen, for the README
"""

import io
import shutil
import sys
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from vla_teach.doctor import BROWSERS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "_build" / "html"
NAME = "variational-linear-attention"  # the folder in the archive
LEFT_OUT = {".built", ".buildinfo", ".doctrees"}


def pack(pages, target):
    """Write the folder `pages` to the archive `target`: the same bytes for the same files, whenever and wherever.

    Raises FileNotFoundError where the book is not built.
    """
    if not (pages / "index.html").exists():
        raise FileNotFoundError(f"no pages in {pages}: run make book")
    files = [path for path in pages.rglob("*") if path.is_file() and not LEFT_OUT & set(path.parts)]
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(files, key=lambda path: path.relative_to(pages).as_posix()):
            entry = zipfile.ZipInfo(f"{NAME}/{path.relative_to(pages).as_posix()}", (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return target


def documents(root):
    """[(part or None, page)] in the order of _toc.yml."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [(None, toc["root"])] + [(part["caption"], c["file"]) for part in toc["parts"] for c in part["chapters"]]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def serving(folder):
    """The address of a server of this folder, on this machine alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def print_page(page, address):
    """One page as the bytes of a PDF; page: of Playwright. Every figure is drawn first."""
    page.goto(address)
    page.evaluate("() => window.MathJax?.startup?.promise")
    for figure in page.query_selector_all(".vla-figure"):
        figure.scroll_into_view_if_needed()
        page.wait_for_function("figure => figure.dataset.drawn === 'yes'", arg=figure)
    return page.pdf(format="A4", print_background=False, tagged=True)


def bind(printed, base, target):
    """Write one PDF from [(part, page, title, bytes)]: an outline of parts and titles, links to pages within it.

    A link to a place in another page leads to that page's beginning.
    """
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import ArrayObject, NameObject

    book, first, part_entry, last = PdfWriter(), {}, None, None
    for part, doc, title, data in printed:
        number = first[f"/{doc}.html"] = len(book.pages)
        book.append(PdfReader(io.BytesIO(data)), import_outline=False)
        if part != last:
            part_entry, last = book.add_outline_item(title=part, page_number=number), part
        book.add_outline_item(title=title, page_number=number, parent=part_entry)
    first["/index.html"] = 0
    for leaf in book.pages:
        for note in leaf.get("/Annots") or ():
            link = note.get_object()
            address = str(link.get("/A", {}).get("/URI", ""))
            number = first.get(unquote(urlsplit(address).path)) if address.startswith(base) else None
            if number is not None:
                del link["/A"]
                link[NameObject("/Dest")] = ArrayObject([book.pages[number].indirect_reference, NameObject("/Fit")])
    book.add_metadata({"/Title": "Variational Linear Attention, from least squares to the GPU"})
    book.write(target)
    return len(book.pages)


@contextmanager
def chromium():
    """A running browser. Raises RuntimeError with what is missing, where a browser or a package is."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise RuntimeError(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RuntimeError("playwright is missing: run make env") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def print_book(pages, target, docs):
    """Print `docs`, [(part, page)], into the PDF `target`. Returns how many sheets it has.

    Raises RuntimeError with what is missing, where a browser or a package is.
    """
    if find_spec("pypdf") is None:
        raise RuntimeError("pypdf is missing: run make env")
    from tqdm import tqdm

    printed = []
    with chromium() as browser, serving(pages) as base:
        for part, doc in tqdm(docs, unit="page"):
            page = browser.new_page(viewport=dict(width=1280, height=900), color_scheme="light")
            page.set_default_timeout(60_000)
            data = print_page(page, f"{base}/{doc}.html")
            printed.append((part, doc, page.title().partition(" — ")[0], data))
            page.close()
        return bind(printed, base, target)


def take_picture(pages, target):
    """The first screen of the first page as a picture, with all pairs written."""
    with chromium() as browser, serving(pages) as base:
        page = browser.new_page(viewport=dict(width=1280, height=800), color_scheme="light", reduced_motion="reduce")
        page.goto(f"{base}/book/index.html")
        page.wait_for_selector(".vla-first[data-drawn]")
        page.screenshot(path=str(target))


def main(arguments):
    if arguments == ["zip"]:
        target = pack(PAGES, PAGES.parent / "vla-book.zip")
        size = target.stat().st_size / 1e6
        print(f"{target.relative_to(ROOT)}, {size:.0f} MB: unpack it, open index.html in a browser.")
    elif arguments == ["pdf"]:
        try:
            sheets = print_book(PAGES, PAGES.parent / "vla-book.pdf", documents(ROOT))
        except RuntimeError as error:
            return print(f"No PDF was made: {error}. Any page prints from a browser as well.")
        print(f"_build/vla-book.pdf, {sheets} pages.")
    elif arguments == ["picture"]:
        take_picture(PAGES, ROOT / "book" / "_static" / "page.png")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
