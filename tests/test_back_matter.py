"""Notation, glossary, the package's reference, citations, and the page of counts: complete, and true of the sources."""

import ast
import json
import re
import subprocess
import sys

import pytest
import yaml
from browser import ROOT, complaints, tab
from docutils import nodes
from docutils.core import publish_doctree

from vla_teach.site import api, glossary
from vla_teach.site.counts import counts, pairs, solutions
from vla_teach.site.notebooks import chapters

BOOK = ROOT / "book"
PACKAGE = ROOT / "vla_teach"
ENTRIES = glossary.entries(BOOK / "glossary.md")
DOCUMENTED = {
    module: names.split()
    for module, names in re.findall(r"```\{api\} (\S+)\n(.*?)```", (BOOK / "api.md").read_text(), re.DOTALL)
}
# Their names have entries; types are still to come.
NOT_YET_TYPED = {"vla_teach.distributed", "vla_teach.rivals"}


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def slugs(path):
    """The headings of a chapter as addresses, and "" for its top."""
    text = "\n".join("".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "markdown")
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {"", *(re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads)}


def places(text):
    """(chapter, heading) of every link into a chapter."""
    return re.findall(r"\]\(([\w/]+\.ipynb)#?([^)]*)\)", text)


@pytest.mark.parametrize("page", ["notation.md", "glossary.md"])
def test_links_into_chapters_lead_to_a_heading(page):
    """Guards that "First" in the notation and each entry of the glossary lead to a place that is there."""
    found = places((BOOK / page).read_text())
    assert len(found) > 40
    for chapter, heading in found:
        assert heading in slugs(BOOK / chapter), (chapter, heading)


# ---- notation -----------------------------------------------------------------------------------------------------


def identifiers(tree):
    """All names in a piece of Python: arguments, variables, attributes, functions."""
    found = set()
    for node in ast.walk(tree):
        found |= {getattr(node, field) for field in ("arg", "id", "attr", "name") if hasattr(node, field)}
    return found


def notation():
    """The rows of the table: text, meaning, code, shape, first."""
    lines = [line for line in (BOOK / "notation.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_letter_has_a_first_place_and_its_code_exists():
    """Guards each row: five cells, a link, and names that the package or the linked chapter has."""
    package = set().union(*(identifiers(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")))
    assert len(notation()) > 40
    for row in notation():
        assert len(row) == 5 and places(row[4]), row[0]
        linked = [
            "".join(c["source"]) for p, _ in places(row[4]) for c in cells_of(BOOK / p) if c["cell_type"] == "code"
        ]
        known = package.union(*(identifiers(ast.parse(cell)) for cell in linked))
        for code in re.findall(r"`([^`]+)`", row[2]):
            assert identifiers(ast.parse(code)) <= known, code


def test_notation_has_the_letters_of_the_statements():
    """Guards completeness: the letters with an index t, the bold ones and those in the main formulas have a row."""
    text = "".join(row[0] for row in notation())
    said = "".join("".join(cell["source"]) for path in chapters() for cell in cells_of(path))
    used = {
        letter for letter in set(re.findall(r"\\mathbf\{?([A-Z])\}?", said)) if said.count(rf"mathbf{{{letter}}}") > 4
    }
    assert used <= set(re.findall(r"\\mathbf\{(\w)\}", text)), used
    for letter in ("k", "v", "q", "o", "u", "S", "M", "A", "H", "e", "g", "F", "c", "a", "b", "z"):
        assert rf"{letter}_t" in text, letter
    for letter in ("lambda_0", "lambda_t", "beta_t", "rho", "sigma", "phi", "varphi", "kappa", "ell", "varepsilon"):
        assert rf"\{letter}" in text, letter


# ---- glossary -----------------------------------------------------------------------------------------------------


def test_entries_are_short_sorted_and_all_read():
    """Guards two sentences at most, the order of the alphabet, and that no entry escapes the reader of the file."""
    text = (BOOK / "glossary.md").read_text().split("```{glossary}")[1]
    words = re.findall(r"^(?!```)(\S.*)$", text, re.MULTILINE)
    assert words == list(ENTRIES) == sorted(words, key=str.lower) and len(words) > 70
    for word, entry in ENTRIES.items():
        assert len(re.findall(r"[.!?)](?= [A-Z(]|$)", entry.meaning)) <= 2, word
        assert entry.meaning.endswith((".", ")", "?")) and (BOOK / f"{entry.home}.ipynb").exists(), word


WORDS = {
    "gain": glossary.Entry("A vector.", "derivation/a"),
    "unit gain": glossary.Entry("Another.", "derivation/b"),
    "unit gain map": glossary.Entry("A third.", "reference/c"),
    "grid": glossary.Entry("Programs.", "kernel/c"),
}
TEXT = """
A title with a gain
===================

What can you gain? ``gain`` A unit gain is no gain. All gains, and a unit gain. A regain. A grid.

Exercises
=========

A unit gain map.
"""


def marked(doc):
    """The marks in TEXT, read as the chapter `doc`: (links, index entries)."""
    tree = publish_doctree(TEXT, settings_overrides={"doctitle_xform": False})
    glossary.mark(tree, doc, WORDS)
    assert tree.astext().replace("\n", "") == publish_doctree(
        TEXT, settings_overrides={"doctitle_xform": False}
    ).astext().replace("\n", "")
    links = [(node.astext(), node["reftarget"]) for node in tree.findall(glossary.addnodes.pending_xref)]
    return links, [node["entries"][0][1] for node in tree.findall(glossary.addnodes.index)]


def test_first_uses_are_marked():
    """Guards which words are marked: the first in the text, the longest, no verb, no code, no title, no exercise."""
    assert marked("reference/x") == ([("unit gain", "unit gain"), ("gain", "gain")], [])
    assert marked("derivation/b") == ([("gain", "gain")], ["unit gain"])
    assert marked("kernel/x")[0][-1] == ("grid", "grid")
    assert glossary.pattern(WORDS).search("Two unit gain maps.")[0] == "unit gain maps"


def test_every_word_is_used_where_its_entry_leads(pages):
    """Guards the index: each word has a place in its own chapter, and the index leads there."""
    listed = (pages / "genindex.html").read_text()
    for word, entry in ENTRIES.items():
        place = f"index-{nodes.make_id(word)}"
        assert f'id="{place}"' in (pages / f"book/{entry.home}.html").read_text(), word
        assert f'href="book/{entry.home}.html#{place}"' in listed, word


def test_meanings_are_beside_the_links(pages):
    """Guards that every marked word carries its own meaning, and that the chapters have many."""
    total = 0
    for path in chapters():
        page = (pages / path.relative_to(ROOT)).with_suffix(".html").read_text()
        links = re.findall(r'href="[^"]*glossary\.html#term-([^"]+)"( data-meaning="[^"]+")?', page)
        assert all(meaning for _, meaning in links), path.stem
        total += len(links)
    assert total > 150


@pytest.fixture
def word_page(browser, site):
    with tab(browser) as page:
        wrong = complaints(page)
        page.goto(f"{site}/book/reference/recurrence.html")
        yield page
        assert not wrong


def test_a_meaning_by_mouse_and_keyboard(word_page):
    """Guards the note: it comes with pointer or focus, names its word for screen readers, and Escape takes it away."""
    word, note = word_page.locator("a[data-meaning]").nth(2), word_page.locator("#vla-note")
    meaning = word.get_attribute("data-meaning")
    word.scroll_into_view_if_needed()
    word.hover()
    note.wait_for(state="visible")
    assert note.text_content() == meaning and note.get_attribute("role") == "tooltip"
    assert word.get_attribute("aria-describedby") == "vla-note"
    note.hover()  # one can go into the note
    word_page.wait_for_timeout(400)
    assert note.is_visible()
    word_page.mouse.move(0, 0)
    note.wait_for(state="hidden")
    word_page.keyboard.press("Tab")
    word.focus()
    note.wait_for(state="visible")
    box = note.bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= 1280
    word_page.keyboard.press("Escape")
    note.wait_for(state="hidden")
    assert word.get_attribute("aria-describedby") is None


def test_a_meaning_by_touch(browser, site):
    """Guards the phone: the first tap shows the meaning, a tap elsewhere hides it, a second one leads on."""
    with tab(browser, 390, 844, has_touch=True, is_mobile=True) as page:
        page.goto(f"{site}/book/reference/recurrence.html")
        word, note = page.locator("a[data-meaning]").nth(4), page.locator("#vla-note")
        word.scroll_into_view_if_needed()
        word.tap()
        note.wait_for(state="visible")
        box = note.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= 390 and "recurrence" in page.url
        page.touchscreen.tap(200, 30)
        note.wait_for(state="hidden")
        word.tap()
        note.wait_for(state="visible")
        word.tap()
        page.wait_for_url("**/glossary.html#term-*")


# ---- the package, name by name ------------------------------------------------------------------------------------


def imported():
    """(module, name) of all that chapters import from modules of the package, as far as it is a function or class."""
    found = set()
    for path in chapters():
        for cell in cells_of(path):
            if cell["cell_type"] == "code":
                for node in ast.walk(ast.parse("".join(cell["source"]))):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vla_teach"):
                        found |= {(node.module, name.name) for name in node.names}
    return found


# Insides that chapters open to explain them, or tools of one chapter.
INSIDES = (
    "vla_teach.kernels",
    "vla_teach.claims",
    "vla_teach.evidence.",
    "vla_teach.experiments.t",
    "vla_teach.experiments.s",
    "vla_teach.experiments.catalogue",
    "vla_teach.experiments.ranks",
)


def test_what_chapters_import_has_an_entry():
    """Guards the reference: a function or class that a reader meets in an import can be looked up."""
    import vla_teach

    entries = {name for names in DOCUMENTED.values() for name in names}
    assert set(vla_teach.__all__) <= entries
    for module, name in imported():
        if module == "vla_teach.tasks" and not name.isupper():
            assert name in entries or (PACKAGE / "tasks" / f"{name}.py").exists(), name
        elif not module.startswith(INSIDES) and name in api.definitions(api.source_of(module)):
            assert name in DOCUMENTED.get(module, ()), (module, name)


def shown():
    """(module, name, tree) of every entry."""
    return [
        pytest.param(module, node, id=f"{module}.{name}")
        for module, names in DOCUMENTED.items()
        for name in names
        for node in [api.definitions(api.source_of(module))[name]]
    ]


def callables(node):
    """What is called by the name: the function, or a class's constructor and its documented methods."""
    if isinstance(node, ast.FunctionDef):
        return [node]
    return [
        part
        for part in node.body
        if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or api.is_shown(part))
    ]


@pytest.mark.parametrize(("module", "node"), shown())
def test_an_entry_says_types_shapes_and_errors(module, node):
    """Guards each entry: a docstring, a type for every argument, shapes of arrays, and what is raised."""
    text = " ".join(ast.get_docstring(part) or "" for part in (node, *callables(node)))
    assert ast.get_docstring(node), "no docstring"
    source = ast.unparse(node)
    if module not in NOT_YET_TYPED:
        for part in callables(node):
            given = [*part.args.args, *part.args.kwonlyargs, part.args.vararg, part.args.kwarg]
            bare = [one.arg for one in given if one and one.annotation is None and one.arg != "self"]
            assert not bare, f"{part.name} has no type for {bare}"
            assert part.returns is not None or part.name == "__init__", f"{part.name} has no type of its result"
        if re.search(r"\bcheck_\w+\(|\braise |as_floats\(", source):
            assert re.search(r"[Rr]aise|[Ee]rror|refused", text), "checks, but does not say what it raises"
    arrays = [part for part in callables(node) if re.search(r": (Array|ArrayLike|Tensor)\b", ast.unparse(part.args))]
    if arrays and module.split(".")[1] not in ("figures", "proofs", "counting"):
        assert re.search(r"\[[^\]]+\]|any shape|Any shape|`vla_recurrent`", text), "no shapes"


def test_a_broken_entry_is_noticed():
    """Guards the check above: no type, no result, no docstring and no word of errors each fail it."""
    good = 'def f(x: Array) -> Array:\n    """x [T]. Raises ValueError."""\n    return check_x(x)'
    test_an_entry_says_types_shapes_and_errors("vla_teach.reference", ast.parse(good).body[0])
    for old, new in ((": Array", ""), (" -> Array", ""), ("x [T]. ", ""), ("Raises ValueError", "Fine"), ('"""', "#")):
        with pytest.raises(AssertionError):
            test_an_entry_says_types_shapes_and_errors(
                "vla_teach.reference", ast.parse(good.replace(old, new, 1 if old == ": Array" else -1)).body[0]
            )


def test_the_reference_is_on_its_page(pages):
    """Guards that every entry has its address and its signature on the page."""
    page = (pages / "book/api.html").read_text()
    for module, names in DOCUMENTED.items():
        for name in names:
            assert f'id="{module}.{name}"' in page, f"{module}.{name}"
    assert "<em" in page and "lambda_0" in page


def test_lines_of_a_docstring():
    """Guards the reading of docstrings: a line for each argument, and no break where only the margin made one."""
    first, second, third = "x" * 100, "lambda_0: above 0", "goes on here"
    found = api.paragraphs(f"Says.\n\n{first}\n{second}\n{third}\nReturns x.", 0, {"lambda_0"})
    assert found == [["Says."], [first, f"{second} {third}", "Returns x."]]
    assert api.paragraphs("y" * 115 + "\nlambda_0 more", 0, {"lambda_0"}) == [["y" * 115 + " lambda_0 more"]]


# ---- citations, counts --------------------------------------------------------------------------------------------


def test_every_work_is_cited_and_every_citation_is_a_work():
    """Guards the bibliography both ways, and the works that a public review lists for the paper."""
    works = re.findall(r"^@\w+\{(\w+),", (BOOK / "references.bib").read_text(), re.MULTILINE)
    text = "".join(path.read_text() for path in [*BOOK.rglob("*.ipynb"), *BOOK.glob("*.md")])
    cited = {key for keys in re.findall(r"\{cite\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited == set(works) and len(works) == len(set(works))
    sources = "arora2023 blelloch1990 choromanski2021 gu2023mamba katharopoulos2020 ramsauer2021 schmidhuber1992"
    assert {*sources.split(), "vaswani2017", "schlag2021", "yang2024", "tay2021"} <= cited


def test_the_citation_file_fits_the_package():
    """Guards CITATION.cff: the fields that the format demands, and one version, date and title everywhere."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cff.keys() and cff["cff-version"] == "1.2.0"
    assert cff["type"] in ("software", "dataset") and all(author.get("name") for author in cff["authors"])
    assert f'version = "{cff["version"]}"' in (ROOT / "pyproject.toml").read_text()
    page = (BOOK / "bibliography.md").read_text()
    assert all(f"{{{cff[name]}}}" in page for name in ("title", "version", "date-released"))
    assert cff["title"] in (ROOT / "_config.yml").read_text()


def test_counts(pages):
    """Guards the numbers of the page: counted again in another way, and printed as they are."""
    found = counts()
    text = "".join(path.read_text() for path in chapters())
    assert found["exercises"] == text.count("{exercise-start}") == text.count("{solution-start}") >= found["run"]
    assert found["chapters"] == len(list(BOOK.rglob("*.ipynb"))) and found["compared"] < found["cells"]
    trees = [ast.parse(path.read_text()) for path in PACKAGE.glob("proofs/*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert found["statements"] == sum(getattr(call.func, "id", "") == "Statement" for call in calls)
    assert found["twins"] >= found["statements"] >= found["in_symbols"] > 30
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    assert abs(found["tests"] - len(re.findall(r"^\s*def test_", tests, re.M))) <= 2
    page = (pages / "book/how_checked.html").read_text()
    assert "{{" not in page and all(f">{found[n]}" in page or f" {found[n]}" in page for n in ("twins", "exercises"))


def test_counting_tells_code_from_words():
    """Guards two counters on small examples."""
    cells = [dict(cell_type=kind, source=[text]) for kind, text in (
        ("markdown", "{solution-start} a"), ("code", "1"), ("markdown", "{solution-end}\n{solution-start} b"),
        ("markdown", "{solution-end}"), ("code", "2"),
    )]  # fmt: skip
    assert solutions(cells) == [True, False]
    assert len(pairs(ast.parse("X = (('a', 'b'), ('c', 1), ('d', 'e', 'f'))"))) == 1


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "triton"}:
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Refuse())
from vla_teach.site import api, counts, glossary
assert counts.counts()["statements"] and api.definitions(api.source_of("vla_teach.ops"))["vla"]
print("fine")
"""


def test_pages_are_made_without_pytorch():
    """Guards `make book` where only the small requirements are installed: signatures and counts need no PyTorch."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "fine\n", done.stderr
