"""What the first page is made of: the picture that moves, the parts and chapters with their times, the reading paths.

Directives `first-picture`, `parts`, `chapters` and `reading-path`. All read `_toc.yml`, so a chapter is entered once.
"""

import html
import json
from pathlib import Path

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from vla_teach import front
from vla_teach.site import times

FORMULAS = {  # what each memory does with a pair, as HTML
    "linear attention": "S + v kᵀ",
    "DeltaNet": "S + (v − S k) kᵀ",
    "VLA": "S + (v − S k) gᵀ, g ∝ A k",
}


def page(root, doc):
    """The file of a page, a notebook or Markdown."""
    notebook = root / f"{doc}.ipynb"
    return notebook if notebook.exists() else root / f"{doc}.md"


def contents(root):
    """[(caption of a part, [its pages])], back matter left out: it is looked up, not read through."""
    parts = yaml.safe_load((root / "_toc.yml").read_text())["parts"]
    chapters = [(part["caption"], [chapter["file"] for chapter in part["chapters"]]) for part in parts]
    return [(caption, docs) for caption, docs in chapters if caption != "Back matter"]


def reading(root, docs):
    """Minutes for some pages: the sum of what is shown for each."""
    return sum(times.rounded(times.reading(page(root, doc))) for doc in docs)


def run_time(root, docs):
    """In words, how long the notebooks of some pages run; a dash where one has not been measured."""
    known = times.running(root)
    return times.machine(sum(known[doc] for doc in docs)) if all(doc in known for doc in docs) else "–"


# ---- the picture ------------------------------------------------------------------------------------------------


def tiles(pictures):
    """Ten pictures side by side; the script replaces them by what it mixes."""
    return "".join(f'<span><img src="{address}" alt=""></span>' for address in pictures)


def picture():
    """The picture as HTML: all ten pairs written, which is also what is printed and seen without scripts."""
    v, t = front.digits(), front.PAIRS
    likeness, penalty = front.FIRST
    errors, rows = {}, []
    for memory in front.MEMORIES:
        answers = front.mixtures(memory, likeness, penalty)[-1] @ v
        errors[memory] = front.error(answers, v)
        rows.append(
            f'<div class="vla-row" data-memory="{memory}"><div class="vla-name"><b>{memory}</b> '
            f'<i>{FORMULAS[memory]}</i></div><div class="vla-tiles">{tiles(map(front.png, front.ink(answers)))}</div>'
            f'<div class="vla-error">{errors[memory]:.2f}</div></div>'
        )
    words = front.sentence(t, errors)
    keys = "".join(f"<span>{'<b></b>' * front.K}</span>" for _ in range(t))
    content = json.dumps(front.content(), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")

    def choice(name, label, options, chosen):
        entries = "".join(f"<option{' selected' * (o == chosen)}>{html.escape(o)}</option>" for o in options)
        return f'<label>{label} <select data-name="{name}">{entries}</select></label>'

    return (
        '<div class="vla-first"><div class="vla-first-picture" role="img" '
        f'aria-label="{html.escape(words)}">'
        f'<div class="vla-row vla-keys"><div class="vla-name">keys</div><div class="vla-tiles">{keys}</div>'
        '<div class="vla-error"></div></div>'
        '<div class="vla-row vla-stored"><div class="vla-name">values to keep</div>'
        f'<div class="vla-tiles">{tiles(map(front.png, v))}</div><div class="vla-error">error</div></div>'
        f"{''.join(rows)}</div>"
        '<div class="vla-first-controls" hidden><button type="button">Play</button>'
        f'<label>pairs written <input type="range" min="1" max="{t}" value="{t}"> <output>{t}</output></label>'
        + choice("likeness", "keys", front.LIKENESS, likeness)
        + choice("penalty", "VLA's penalty", front.PENALTIES, penalty)
        + f'</div><p class="vla-words">{html.escape(words)}</p>'
        f'<p class="vla-settings">{html.escape(front.settings())}</p>'
        f'<script type="application/json">{content}</script></div>'
    )


class FirstPicture(Directive):
    """The picture that moves."""

    def run(self):
        self.state.document.settings.env.metadata[self.state.document.settings.env.docname]["first_picture"] = True
        return [nodes.raw(text=picture(), format="html")]


def add_script(app, name, template, context, doctree):
    """The picture's script and the first page's style, on this page alone."""
    if app.env.metadata.get(name, {}).get("first_picture"):
        app.add_js_file("front.js")
        app.add_css_file("front.css")


# ---- what there is, and how long it takes ---------------------------------------------------------------------


class Written(Directive):
    """A directive that writes MyST, which is then read as if it stood in the page."""

    def run(self):
        env = self.state.document.settings.env
        env.note_dependency(str(Path(env.srcdir) / "_toc.yml"))
        env.note_dependency(str(Path(env.srcdir) / "book" / "times.json"))
        holder = nodes.container(classes=["vla-written"])
        lines = self.lines(Path(env.srcdir)).splitlines()
        self.state.nested_parse(StringList(lines, self.state.document.current_source), self.content_offset, holder)
        return holder.children


class Parts(Written):
    """A card for each part: how many chapters, how long to read, how long their code runs. Leads to the first."""

    def lines(self, root):
        cards = [
            f"```{{grid-item-card}} {caption}\n:link: /{docs[0]}\n:link-type: doc\n"
            f"{len(docs)} chapters: {times.hours(reading(root, docs))} to read, {run_time(root, docs)} to run\n```"
            for caption, docs in contents(root)
        ]
        return "\n".join(["````{grid} 2 2 4 4", ":gutter: 2", ":class-container: vla-parts", "", *cards, "````"])


class Chapters(Written):
    """The table of all chapters."""

    def lines(self, root):
        rows = ["| Chapter | To read | To run |", "|---|---|---|"]
        for caption, docs in contents(root):
            for title, counted in [(f"**{caption}**", docs), *((f"{{doc}}`/{doc}`", [doc]) for doc in docs)]:
                rows.append(f"| {title} | {times.hours(reading(root, counted))} | {run_time(root, counted)} |")
        return "\n".join(["::::{container} vla-chapters", *rows, "::::"])


class ReadingPath(Written):
    """Some chapters in the order in which to read them, named in the body, one a line, and their time."""

    has_content = True

    def lines(self, root):
        docs = [line.strip() for line in self.content if line.strip()]
        listed = [f"1. {{doc}}`/{doc}` ({times.hours(reading(root, [doc]))})" for doc in docs]
        return "\n".join([*listed, "", f"In all {times.hours(reading(root, docs))}."])


def setup(app):
    for name, directive in (
        ("first-picture", FirstPicture),
        ("parts", Parts),
        ("chapters", Chapters),
        ("reading-path", ReadingPath),
    ):
        app.add_directive(name, directive)
    app.connect("html-page-context", add_script)
