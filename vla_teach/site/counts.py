"""How many checks there are, counted from the sources for the page that says how the book was checked."""

import ast
import json
from functools import cache

from vla_teach.site.notebooks import ROOT, chapters


def pairs(tree):
    """The (original, broken) pairs of text in a file of mutations."""
    tuples = [node for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    return [node for node in tuples if all(isinstance(x, ast.Constant) and isinstance(x.value, str) for x in node.elts)]


def solutions(cells):
    """For each solution of a chapter, whether there is code in it."""
    found, inside = [], False
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and inside:
            found[-1] = True
        if "{solution-start}" in text:
            found.append(False)
            inside = True
        inside = inside and "{solution-end}" not in text.rpartition("{solution-start}")[2]
    return found


@cache
def counts():
    """{name: number}, for {{ name }} on the book's pages."""
    from vla_teach.proofs import STATEMENTS

    files = {path.name: ast.parse(path.read_text()) for path in (ROOT / "tests").glob("*.py")}
    functions = [node for tree in files.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    books = [json.loads(path.read_text())["cells"] for path in chapters()]
    cells = [cell for book in books for cell in book]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    words = "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])
    bench = json.loads((ROOT / "book/results/bench.json").read_text())
    return dict(
        chapters=len(chapters()),
        cells=len(code),
        compared=sum("nbval-ignore-output" not in cell["metadata"].get("tags", ()) for cell in code),
        exercises=words.count("{exercise-start}"),
        run=sum(has_code for book in books for has_code in solutions(book)),
        statements=len(STATEMENTS),
        in_symbols=sum(statement.symbols is not None for statement in STATEMENTS.values()),
        twins=sum(len(statement.twins) for statement in STATEMENTS.values()),
        tests=sum(node.name.startswith("test_") for node in functions),
        mutations=sum(len(pairs(tree)) for name, tree in files.items() if name.endswith("mutations.py")),
        gpu=bench["provenance"]["device"],
        gpu_checks=len(bench["checks"]),
        gpu_passed=sum(check["passed"] for check in bench["checks"]),
    )
