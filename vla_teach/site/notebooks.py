"""Run the chapters, and tell whether a stored chapter is still what the package would give.

    python -m vla_teach.site.notebooks [chapter.ipynb ...]     run them (all of _toc.yml if none is named)

A run stores, beside the outputs, the hash of every vla_teach module that the chapter loaded; and in book/times.json
how long it took.
"""

import hashlib
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
ASK_FOR_MODULES = "import sys; print(*sorted(m for m in sys.modules if m.split('.')[0] == 'vla_teach'))"


def chapters(root=ROOT):
    """The notebooks of the table of contents, as paths."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc.get("parts", []) for chapter in part["chapters"]]
    return [path for file in files if (path := root / f"{file}.ipynb").exists()]


def fingerprint(module):
    """Short hash of a module's source, or "gone" where there is none."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return "gone"
    return short_hash(Path(spec.origin).read_bytes())


def problems(path):
    """What is wrong with a stored chapter, one sentence each; an empty list if nothing is."""
    book = nbformat.read(path, as_version=4)
    name, found = path.name, []
    code = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]
    for n, cell in enumerate(code, start=1):
        if cell.execution_count != n:
            found.append(f"{name}: code cell {n} was not run in order from a fresh kernel")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{name}: code cell {n} raised {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"{name}: code cell {n} wrote to stderr: {output.text.strip()[:80]}")
    if code and not any(cell.outputs for cell in code):
        found.append(f"{name}: its outputs were stripped")
    if cell_hash(book) != book.metadata.get("vla_teach", {}).get("cells"):
        found.append(f"{name}: its code changed after it was last run")
    for module, stored in book.metadata.get("vla_teach", {}).get("modules", {}).items():
        if fingerprint(module) != stored:
            found.append(f"{name}: {module} changed after it was last run")
    return found


def cell_hash(book):
    """Short hash of all code of a notebook."""
    return short_hash(json.dumps([cell.source for cell in book.cells if cell.cell_type == "code"]).encode())


def short_hash(data):
    """The first twelve digits of the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()[:12]


def run(path):
    """Execute a chapter from a fresh kernel and store it. A cell that raises stops it and leaves the file as it was.

    Returns the seconds it took.
    """
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    book.metadata = {"kernelspec": KERNEL}
    client = NotebookClient(
        book, timeout=300, record_timing=False, coalesce_streams=True, resources={"metadata": {"path": path.parent}}
    )
    asked = nbformat.v4.new_code_cell(ASK_FOR_MODULES)
    began = time.perf_counter()
    with client.setup_kernel():
        n = 0
        for index, cell in enumerate(book.cells):
            if cell.cell_type == "code" and cell.source.strip():
                n += 1
                client.execute_cell(cell, index, execution_count=n)
        seconds = time.perf_counter() - began
        book.cells.append(asked)
        client.execute_cell(asked, len(book.cells) - 1, store_history=False)
    book.cells.pop()
    modules = asked.outputs[0].text.split() if asked.outputs else []
    book.metadata = {
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},
        "vla_teach": {
            "cells": cell_hash(book),
            "modules": {module: fingerprint(module) for module in modules},
        },
    }
    path.write_text(nbformat.writes(book) + "\n")
    return seconds


def main(arguments):
    from tqdm import tqdm

    from vla_teach.site import times

    os.environ["VLA_STATIC"] = "1"  # explorers store their figure, not a widget that only a kernel can move
    for path in tqdm([Path(a).resolve() for a in arguments] or chapters(), unit="chapter"):
        seconds = run(path)
        for problem in problems(path):
            sys.exit(problem)
        if path.is_relative_to(ROOT):
            times.store(ROOT, path.relative_to(ROOT).with_suffix("").as_posix(), seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
