"""The book's Sphinx extension: figures, MathJax and search with no network, and a build that refuses stale chapters."""

import html
import json
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

MIME = "application/vnd.plotly.v1+json"
# What a page can ask of MathJax: the engine, its fonts, the menu and the accessibility parts.
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml", "a11y", "ui", "input/tex/extensions")


class FigureRenderer:
    """MyST-NB render plugin: a stored Plotly figure becomes a div with inert JSON, which figures.js draws."""

    mime_priority_overrides = (("*", MIME, 5),)

    @staticmethod
    def handle_mime(renderer, data, inline):
        from docutils import nodes

        if data.mime_type != MIME:
            return None
        layout = data.content["layout"]
        alt = layout.get("meta", {}).get("alt", "")
        if not alt:
            raise ValueError("a figure without a text alternative: display it with vla_teach.figures.show")
        explorer = layout["meta"].get("explorer")
        place = f' id="explore-{html.escape(explorer["name"])}"' if explorer else ""
        content = json.dumps(data.content, separators=(",", ":")).replace("<", "\\u003c")
        markup = (
            f'<div class="vla-figure"{place}><div class="vla-plot" role="img" aria-label="{html.escape(alt)}" '
            f'style="min-height:{layout.get("height", 380)}px"><noscript>{html.escape(alt)}</noscript></div>'
            f'<script type="application/json">{content}</script></div>'
        )
        return [nodes.raw(text=markup, format="html")]


def check_chapters(app):
    """Stop the build at a chapter that raised, was never run, or was run with other code than the package now has."""
    from sphinx.errors import ExtensionError

    from vla_teach.site import notebooks

    root = Path(app.srcdir)
    found = [problem for path in notebooks.chapters(root) for problem in notebooks.problems(path)]
    if found:
        raise ExtensionError("Run `make notebooks` first:\n  " + "\n  ".join(found))


def copy_libraries(app, error):
    """Put the two big libraries beside the pages, once; only the pages that need one load it."""
    if error or app.builder.format != "html":
        return
    vendor = Path(app.outdir) / "_static" / "vendor"
    vendor.mkdir(parents=True, exist_ok=True)
    import plotly

    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", vendor)
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    for part in MATHJAX_PARTS:
        target = vendor / "mathjax" / part
        if (source / part).is_dir():
            shutil.copytree(source / part, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part, target)


def drop_thebe(app, page, template, context, doctree):
    """Jupyter Book 1 loads Thebe's scripts on every page, used or not; they ask a CDN and clash with each other."""
    for key in ("script_files", "css_files"):
        context[key] = [file for file in context[key] if "thebe" not in str(vars(file)).lower()]


SEARCH = """
// Opened from a disk, a page may not read other pages, so the search shows their titles alone.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
// A word of the index leads to an empty mark, of which Sphinx cannot show the text: it shows the page's.
document.addEventListener("DOMContentLoaded", () => {
  const text = Search.htmlToText;
  Search.htmlToText = (html, anchor) => text(html, anchor) || text(html);
});
"""


def mend_search(app, page, template, context, doctree):
    """Two cases that Sphinx's search does not think of."""
    if page == "search":
        app.add_js_file(None, body=SEARCH)


def style_claims(app, page, template, context, doctree):
    """The rules for the audit's buttons that are too slow for other pages, on its page alone."""
    if "vla-chooser" in context.get("body", ""):
        app.add_css_file("claims.css")


def count(app, config):
    """Numbers of the book for its pages, as in {{ statements }}."""
    from vla_teach.site.counts import counts

    config.myst_substitutions = counts()


def mend_lists(app, page, template, context, doctree):
    """Lists that screen readers would miss: citations with a role that a list may not have, arguments without terms."""
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = re.sub(r"<dl>(?=\s*<dd>)", '<dl role="presentation">', body)


def setup(app):
    from vla_teach.site import api, front, glossary, launch

    front.setup(app)
    launch.setup(app)
    app.add_directive("api", api.Api)
    app.connect("config-inited", count)
    app.add_transform(glossary.Mark)
    app.connect("html-page-context", glossary.add_meanings)
    app.connect("html-page-context", mend_search)
    app.connect("html-page-context", mend_lists)
    app.connect("html-page-context", style_claims)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("builder-inited", check_chapters)
    app.connect("build-finished", copy_libraries)
    app.config.mathjax_path = "vendor/mathjax/tex-chtml.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
