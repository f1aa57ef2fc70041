"""The chapters as they are stored: run in order, with the code that the package has now, with figures that speak."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from vla_teach.site import notebooks

CHAPTERS = notebooks.chapters()
ROOT = notebooks.ROOT
MIME = "application/vnd.plotly.v1+json"


def test_every_notebook_is_in_the_table_of_contents():
    """A chapter outside _toc.yml would be built, run and checked by nobody."""
    stored = [path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    assert sorted(stored) == sorted(CHAPTERS)
    assert len(CHAPTERS) >= 6


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_stored_as_it_was_run(path):
    """Outputs present, cells run in order, no error, no stderr, the package unchanged since."""
    assert notebooks.problems(path) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_only_figures_and_times_escape_the_comparison(path):
    """nbval compares every output but those of cells tagged nbval-ignore-output; these must be figures."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
        figures = [o for o in cell.outputs if MIME in o.get("data", {})]
        assert ignored == bool(figures), cell.source[:200]
        for figure in figures:
            assert len(figure.data[MIME]["layout"]["meta"]["alt"]) > 20


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_opens_with_its_aims_and_closes_with_exercises(path):
    """Every chapter says what the reader will be able to do; it has exercises of four kinds, with folded solutions."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert "After this chapter you can" in text[:400]
    exercises = text.count("{exercise-start}")
    assert exercises >= 4
    kinds = re.findall(r"\{exercise-start\}\n:label: [\w-]+\n```\n\*\*(By hand|In code|Puzzle|Explore|Hard)", text)
    assert {"By hand", "Explore", "Hard"} < set(kinds) and {"In code", "Puzzle"} & set(kinds), kinds
    assert text.count("{solution-start}") == text.count("{solution-end}") == exercises
    assert text.count(":class: dropdown") == exercises + text.count("{hint}")


EXERCISE = re.compile(
    r"\{exercise-start\}\n:label: ([\w-]+)\n```\n\*\*([\w ]+)[.:]"
    r".*?\{exercise-end\}(.*?)\{solution-start\} \1\n",
    re.DOTALL,
)
HINT = re.compile(r"```\{hint\}\n:class: dropdown\n(?!```)\S")


def without_hint(path):
    """Labels of the exercises to be programmed, and of the hard ones, with no folded hint before their solution."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    exercises = EXERCISE.findall(text)
    assert len(exercises) == text.count("{exercise-start}")
    asked = [(label, between) for label, kind, between in exercises if kind in ("In code", "Puzzle", "Hard")]
    return [label for label, between in asked if not HINT.search(between)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_hard_exercise_has_a_folded_hint(path):
    """A stuck reader finds one idea before the whole solution: in code, puzzles and hard ones, folded, in between."""
    assert without_hint(path) == []


def lose(text):
    return re.sub(r"```\{hint\}.*?\n```\n", "", text, count=1, flags=re.DOTALL)


def empty(text):
    return re.sub(r"(```\{hint\}\n:class: dropdown\n).*?\n```\n", r"\1```\n", text, count=1, flags=re.DOTALL)


def unfold(text):
    return text.replace("```{hint}\n:class: dropdown\n", "```{hint}\n", 1)


def into_the_exercise(text):
    hint = re.search(r"```\{hint\}.*?\n```\n", text, re.DOTALL).group()
    head, tail = text.replace(hint, "", 1).split("```{exercise-end}", 1)
    return f"{head}{hint}```{{exercise-end}}{tail}"


@pytest.mark.parametrize("change", [lose, empty, unfold, into_the_exercise])
def test_a_missing_hint_is_noticed(change, tmp_path):
    """The check above can fail: on a hint that is gone, empty, open, or not between the exercise and its solution."""
    book = nbformat.read(CHAPTERS[0], as_version=4)
    cell = next(cell for cell in book.cells if "{hint}" in cell.source)
    label = re.search(r"\{solution-start\} ([\w-]+)", cell.source.split("{hint}")[1]).group(1)
    cell.source = change(cell.source)
    nbformat.write(book, tmp_path / "chapter.ipynb")
    assert without_hint(tmp_path / "chapter.ipynb") == [label]


def broken(change):
    """The problems of the first chapter after `change` was applied to its notebook."""

    def problems(folder):
        path = folder / CHAPTERS[0].name
        book = nbformat.read(CHAPTERS[0], as_version=4)
        change(book, [cell for cell in book.cells if cell.cell_type == "code"])
        nbformat.write(book, path)
        return notebooks.problems(path)

    return problems


def strip(book, code):
    for cell in code:
        cell.outputs = []


def skip_a_cell(book, code):
    code[2].execution_count = None


def run_out_of_order(book, code):
    code[2].execution_count, code[3].execution_count = code[3].execution_count, code[2].execution_count


def edit_a_cell(book, code):
    code[1].source += "\n1 + 1"


def raise_in_a_cell(book, code):
    code[1].outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]))


def warn_in_a_cell(book, code):
    code[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="DeprecationWarning"))


def change_the_package(book, code):
    book.metadata["vla_teach"]["modules"]["vla_teach.reference"] = "0" * 12


def lose_a_module(book, code):
    book.metadata["vla_teach"]["modules"]["vla_teach.no_such_module"] = "0" * 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (strip, "stripped"),
        (skip_a_cell, "not run in order"),
        (run_out_of_order, "not run in order"),
        (edit_a_cell, "code changed"),
        (raise_in_a_cell, "raised ValueError"),
        (warn_in_a_cell, "stderr"),
        (change_the_package, "vla_teach.reference changed"),
        (lose_a_module, "no_such_module changed"),
    ],
)
def test_a_broken_chapter_is_noticed(change, words, tmp_path):
    """The check above can fail: each way to leave a chapter half-done is named."""
    assert any(words in problem for problem in broken(change)(tmp_path))


def test_a_cell_that_raises_stops_the_run_and_leaves_the_file(tmp_path):
    """`make notebooks` must not store half a chapter."""
    path = tmp_path / "bad.ipynb"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)"), nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(book, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.run(path)
    assert path.read_bytes() == before


def test_a_run_stores_outputs_and_fingerprints(tmp_path):
    """A run numbers the cells, keeps what they print, and notes the modules they loaded."""
    path = tmp_path / "good.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import vla_teach.streams\nprint(6 * 7)")]), path
    )
    notebooks.run(path)
    book = json.loads(path.read_text())
    assert book["cells"][0]["outputs"][0]["text"] == ["42\n"]
    assert "vla_teach.streams" in book["metadata"]["vla_teach"]["modules"]
    assert notebooks.problems(path) == []


def nbval(path):
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", path.name]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True)


def test_nbval_notices_a_changed_output(tmp_path):
    """The comparison can fail: a stored number that the code does not give turns nbval red."""
    path = tmp_path / "chapter.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")]), path)
    notebooks.run(path)
    assert nbval(path).returncode == 0
    path.write_text(path.read_text().replace("42", "43"))
    assert nbval(path).returncode == 1


def tiny_book(folder, page):
    """A book of one page with this book's own settings."""
    for file in ("_config.yml", "book/references.bib"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    shutil.copytree(ROOT / "book/_static", folder / "book/_static")
    (folder / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "book/index"}))
    (folder / "book/index.md").write_text(page)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "--all", "-W", "-n", "--keep-going"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).returncode


def test_the_build_fails_on_a_warning(tmp_path):
    """A dead reference is a warning, and a warning stops the build; the same page without it builds."""
    for folder in ("good", "bad"):
        (tmp_path / folder).mkdir()
    assert tiny_book(tmp_path / "good", "# A page\n\nSome words.\n") == 0
    assert tiny_book(tmp_path / "bad", "# A page\n\n{doc}`nowhere`\n") != 0


def test_the_build_refuses_a_chapter_that_raised(tmp_path):
    """The extension stops the build before a page with a stored error is made."""
    from types import SimpleNamespace

    from sphinx.errors import ExtensionError

    from vla_teach import site

    (tmp_path / "book").mkdir()
    toc = {"format": "jb-book", "root": "book/index", "parts": [{"chapters": [{"file": "book/chapter"}]}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    cell = nbformat.v4.new_code_cell("1 / 0", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="no", traceback=[])]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "book/chapter.ipynb")
    with pytest.raises(ExtensionError, match="ZeroDivisionError"):
        site.check_chapters(SimpleNamespace(srcdir=tmp_path))
