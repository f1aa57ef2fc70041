"""CONTRIBUTING.md: a map without gaps, and recipes that name what is there."""

import re

from vla_teach.site.notebooks import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_map_names_every_module_once():
    """Each module of vla_teach has a line in the map, and each line a module; only __init__ and __main__ need none."""
    named = re.findall(r"^  ([\w/]+\.py) +\S", TEXT.split("```")[1], re.MULTILINE)
    package = ROOT / "vla_teach"
    modules = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if "__" not in path.name]
    assert sorted(named) == sorted(modules)


def test_the_recipes_name_what_is_there():
    """Files, make targets and names in capitals that the text tells a reader to touch exist."""
    for path in set(re.findall(r"\b(?:vla_teach|tests|book)/[\w/]+\.\w+", TEXT)) - {"book/PART/NAME.ipynb"}:
        assert path == "book/results/NAME.json" or (ROOT / path).exists(), path
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)\b", TEXT.replace("env` and `make", "env make"))) - {"make"} <= set(targets)
    code = "\n".join(path.read_text() for folder in ("vla_teach", "tests") for path in (ROOT / folder).rglob("*.py"))
    for name in ("CHAPTERS", "CATALOGUE", "MEASUREMENTS", "KERNELS", "ABOUT", "MINUTES", "SIZES"):
        assert f"`{name}`" in TEXT and re.search(rf"^{name}\b.*=", code, re.MULTILINE), name


def test_the_figure_recipe_runs():
    """The lines that a newcomer copies draw a figure."""
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], {})
