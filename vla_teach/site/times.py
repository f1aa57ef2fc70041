"""How long a chapter takes: to read, from its words; to run, as `make notebooks` last measured it.

Reading: 180 words a minute, half a minute for a displayed formula, 3 seconds for a line of code that is not folded,
a minute for a figure. Exercises come on top. The sum is rounded to five minutes.
"""

import json
import re

import nbformat

from vla_teach.figures import MIME

WORDS, FORMULA, LINE, FIGURE = 1 / 180, 0.5, 0.05, 1.0  # minutes for each


def reading(path):
    """Minutes to read a page, a notebook or Markdown, without its exercises."""
    if path.suffix != ".ipynb":
        return minutes(path.read_text())
    text, lines, figures = [], 0, 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            before, exercises, _ = cell.source.partition("## Exercises")
            text.append(before)
            if exercises:
                break
        elif cell.cell_type == "code":
            folded = any(tag.startswith(("hide", "remove")) for tag in cell.metadata.get("tags", []))
            lines += 0 if folded else sum(bool(line.strip()) for line in cell.source.splitlines())
            figures += sum(MIME in output.get("data", {}) for output in cell.outputs)
    return minutes("\n".join(text), lines, figures)


def minutes(text, lines=0, figures=0):
    """The sum that the head of this file explains."""
    formulas = text.count("$$") / 2 + len(re.findall(r"^:*`*\{math\}", text, re.MULTILINE))
    return len(text.split()) * WORDS + formulas * FORMULA + lines * LINE + figures * FIGURE


def rounded(minutes):
    """Minutes to the next five."""
    return max(5, 5 * round(minutes / 5))


def running(root):
    """{page: seconds that its notebook took from a fresh kernel}, as stored in book/times.json."""
    path = root / "book" / "times.json"
    return json.loads(path.read_text()) if path.exists() else {}


def store(root, page, seconds):
    """Note how long a chapter ran; a time that is about the stored one leaves the file as it is."""
    known = running(root)
    old = known.get(page, 0)
    if not old / 1.5 <= seconds <= old * 1.5:
        known[page] = max(1, round(seconds))
        (root / "book" / "times.json").write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def hours(minutes):
    """Minutes in words, on one line: 25 min, 2 h 10 min."""
    whole, rest = divmod(round(minutes), 60)
    return " ".join([f"{whole} h"] * bool(whole) + [f"{rest} min"] * bool(rest or not whole)).replace(
        " ", "\N{NO-BREAK SPACE}"
    )


def machine(seconds):
    """Seconds in words, as coarse as they are certain: 4 s, 20 s, 3 min."""
    if seconds < 10:
        told = f"{max(1, round(seconds))} s"
    else:
        told = f"{10 * round(seconds / 10)} s" if seconds < 55 else f"{round(seconds / 60)} min"
    return told.replace(" ", "\N{NO-BREAK SPACE}")
