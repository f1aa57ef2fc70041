"""The words of book/glossary.md, marked where a chapter first uses them, with their meaning beside them.

A chapter needs no markup for this. In the chapter that an entry leads to, the first use (a bold one, if there is
one) goes into the index; in any other chapter the first use before the exercises is a link to the glossary, which
glossary.js turns into a small note. Headings, formulas, code and links are left alone.
"""

import html
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

PARTS = ("derivation", "reference", "kernel", "evidence")
TOO_COMMON = {"key", "value", "query", "token", "state", "sweep"}  # in every second sentence, or in other senses too
# Words that mean something else elsewhere: marked in the part of the book that they belong to.
AT_HOME = {
    "anchor",
    "grid",
    "head",
    "kernel",
    "mask",
    "pivot",
    "posterior",
    "prior",
    "program",
    "rank",
    "register",
    "tile",
}
SKIPPED = (nodes.literal, nodes.math, nodes.reference, nodes.raw, addnodes.pending_xref)


class Entry(NamedTuple):
    """One entry of the glossary."""

    meaning: str  # its first paragraph
    home: str  # the chapter that it leads to, as in derivation/forgetting


@cache
def entries(path):
    """{word: Entry} of the glossary at `path`; empty where there is none."""
    if not Path(path).exists():
        return {}
    text = Path(path).read_text().split("```{glossary}")[-1]
    found = re.findall(r"^(\S.*)\n  (\S.*)\n\n  \[.*\]\(([\w/]+)\.ipynb", text, re.MULTILINE)
    return {word: Entry(meaning, home) for word, meaning, home in found}


def pattern(words):
    """A regular expression for any of the words, the longest first, in the plural too."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest))})(s?)(?![\w-])", re.IGNORECASE)


def prose(doctree):
    """The pieces of running text of a chapter, up to its exercises."""
    for text in doctree.findall(nodes.Text):
        above, node = [], text.parent
        while node is not None:
            above.append(node)
            node = node.parent
        if any("exercises" in node.get("names", ()) for node in above if isinstance(node, nodes.section)):
            return
        in_words = any(isinstance(node, nodes.paragraph) for node in above)
        if in_words and not any(isinstance(n, SKIPPED) or "cell_output" in n.get("classes", ()) for n in above[:-1]):
            yield text


def is_verb(before):
    """Whether "gain" or "mask" behind these words is something done."""
    return re.search(r"\b(to|can|could|we|you|not|would|may|rule|memory) $", before.lower()) is not None


class Mark(SphinxTransform):
    """Marks the words of the glossary in a chapter, before Sphinx turns quotes and collects its index."""

    default_priority = 740

    def apply(self, **options):
        known = entries(Path(self.env.srcdir, "book", "glossary.md"))
        doc = self.env.docname.removeprefix("book/")
        if known and doc.split("/")[0] in PARTS:
            mark(self.document, doc, known)


def mark(doctree, doc, known):
    """Mark the words in the tree of one chapter; doc as in derivation/forgetting."""
    names, found, seen = {word.lower(): word for word in known}, pattern(known), set()
    home = {word for word, entry in known.items() if entry.home == doc}
    bold = {
        text.parent: names[match[1].lower()]
        for text in prose(doctree)
        if isinstance(text.parent, nodes.strong) and (match := found.fullmatch(text.astext()))
    }
    for node, word in bold.items():
        if word in home - seen:
            node.insert(0, index(word))
            seen.add(word)
    for text in list(prose(doctree)):
        parts, at, line = [], 0, text.astext()
        for match in found.finditer(line):
            word = names[match[1].lower()]
            elsewhere = word in AT_HOME and known[word].home.split("/")[0] != doc.split("/")[0]
            if word in seen or elsewhere or is_verb(line[: match.start()]):
                continue
            if word in home:
                parts += [nodes.Text(line[at : match.start()]), index(word), nodes.Text(match[0])]
            elif word not in TOO_COMMON:
                parts += [nodes.Text(line[at : match.start()]), link(match[0], word)]
            else:
                continue
            seen.add(word)
            at = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(line[at:])])


def index(word):
    """A place that the index leads to."""
    place = f"index-{nodes.make_id(word)}"
    node = addnodes.index(entries=[("single", word, place, "", None)])
    return nodes.inline("", "", node, nodes.target("", "", ids=[place]))


def link(text, word):
    """What the role {term} makes."""
    shown = nodes.inline("", text, classes=["xref", "std", "std-term"])
    return addnodes.pending_xref(
        "", shown, refdomain="std", reftype="term", reftarget=word, refexplicit=True, refwarn=True
    )


def add_meanings(app, page, template, context, doctree):
    """Put its meaning beside every link to the glossary, for glossary.js to show."""
    known = entries(Path(app.srcdir, "book", "glossary.md"))
    meanings = {nodes.make_id(word): html.escape(entry.meaning) for word, entry in known.items()}

    def add(match):
        meaning = meanings.get(match[2].lower(), "")
        return f'{match[1]} data-meaning="{meaning}">' if meaning else match[0]

    if "body" in context:
        links = r'(<a class="reference internal" href="[^"]*#term-([^"]+)")>(?=<span class="xref std std-term)'
        context["body"] = re.sub(links, add, context["body"])
