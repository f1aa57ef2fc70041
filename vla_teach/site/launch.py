"""Buttons that open a chapter in JupyterLab on Binder, or in Colab: only where `_config.yml` names a public repository.

    python -m vla_teach.site.launch FOLDER      write the chapters' copies for Colab, which the site is published with

Binder builds its machine from `.binder/`, which has no PyTorch; so chapters that need it get no Binder button. Colab
opens one notebook and nothing beside it; so its button opens a copy whose first cell, added here, fetches the rest.
The chapters themselves stay as they are.
"""

import re
import sys
from pathlib import Path

import nbformat
import yaml

from vla_teach.site import notebooks

PUBLISHED = "gh-pages"  # the branch that the site is published from
COLAB = "colab"  # the folder of the copies in it
HEAVY = re.compile(r"^\s*(?:import|from) (?:torch|triton)\b", re.MULTILINE)
CELL = """\
# Only in Colab: the rest of the book, what the chapters need, and figures as Colab shows them.
!git clone --quiet --depth 1 --branch {branch} {url} /content/book
%pip install --quiet {packages}
import os
import sys

os.environ["VLA_STATIC"] = "1"  # pictures with sliders stand still
os.chdir("/content/book/{folder}")
sys.path.insert(0, "/content/book")


def as_html(message):
    figure = message["content"].get("data", {{}}).get("application/vnd.plotly.v1+json")
    if figure:
        from plotly.io import to_html

        figure = {{name: figure[name] for name in ("data", "layout", "frames") if name in figure}}
        message["content"]["data"]["text/html"] = to_html(figure, include_plotlyjs="cdn", full_html=False)
    return message


get_ipython().display_pub.register_hook(as_html)"""
PACKAGES = ("numpy", "scikit-learn", "sympy", "plotly", "anywidget")  # Colab brings PyTorch and Triton


def repository(root=notebooks.ROOT):
    """(url, branch) of the public repository, as _config.yml names it; url is "" where there is none.

    Raises ValueError where the url is not one of a GitHub repository.
    """
    named = yaml.safe_load((root / "_config.yml").read_text()).get("repository") or {}
    url = (named.get("url") or "").rstrip("/")
    if url and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise ValueError(
            f"repository.url in _config.yml is {url!r}; expected https://github.com/OWNER/NAME, or nothing"
        )
    return url, named.get("branch") or "main"


def needs_torch(path):
    """Whether a notebook, or a module of the package that it loads, imports PyTorch or Triton."""
    book = nbformat.read(path, as_version=4)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    for module in book.metadata.get("vla_teach", {}).get("modules", {}):
        source = notebooks.ROOT / (module.replace(".", "/") + ".py")
        code += [source.read_text()] if source.exists() else []
    return any(HEAVY.search(source) for source in code)


# ---- the buttons ------------------------------------------------------------------------------------------------


def switch(app, config):
    """Hand the repository and the services to the theme; without a public repository neither, and no button."""
    url, branch = repository(Path(app.srcdir))
    if url:
        services = yaml.safe_load((Path(app.srcdir) / "_config.yml").read_text())["launch_buttons"]
        config.html_theme_options.update(
            repository_url=url, repository_branch=branch, use_repository_button=True, launch_buttons=services
        )


def correct(app, page, template, context, doctree):
    """Take Binder from chapters that it cannot run; lead Colab to the copy that fetches the package."""
    path = Path(app.srcdir) / f"{page}.ipynb"
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            if path.exists() and needs_torch(path):
                group["buttons"] = [button for button in group["buttons"] if button["text"] != "Binder"]
            for button in group["buttons"]:
                if button["text"] == "Colab":
                    button["url"] = re.sub(r"/blob/.*?/book/", f"/blob/{PUBLISHED}/{COLAB}/book/", button["url"])


def setup(app):
    app.connect("config-inited", switch)
    app.connect("html-page-context", correct, priority=910)  # after the theme has made its buttons


# ---- the copies for Colab ---------------------------------------------------------------------------------------


def first_cell(url, branch, folder, root=notebooks.ROOT):
    """The code of the cell that a copy begins with; folder: the chapter's, from the repository's root."""
    pins = re.findall(r"^([\w-]+)==(\S+)", (root / "requirements.txt").read_text(), re.MULTILINE)
    packages = " ".join(f"{name}=={version}" for name, version in pins if name in PACKAGES)
    return CELL.format(url=url, branch=branch, folder=folder, packages=packages)


def copies(target, url, branch, root=notebooks.ROOT):
    """Write every chapter, with its first cell, below the folder `target`. Returns the paths."""
    written = []
    for path in notebooks.chapters(root):
        book, place = nbformat.read(path, as_version=4), path.relative_to(root)
        cell = nbformat.v4.new_code_cell(first_cell(url, branch, place.parent.as_posix(), root), id="for-colab")
        book.cells.insert(0, cell)
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(nbformat.writes(book) + "\n")
        written.append(target / place)
    return written


def main(arguments):
    if len(arguments) != 1:
        sys.exit(__doc__)
    url, branch = repository()
    if not url:
        return print("repository.url in _config.yml names no public repository, so there are no copies for Colab.")
    print(f"{len(copies(Path(arguments[0]), url, branch))} chapters for Colab in {arguments[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
