"""The directive `{api}`: the reference of a module, from its source alone, so that the book is built without PyTorch.

    ```{api} vla_teach.reference
    vla_recurrent State
    ```

gives both names their signature, docstring and an address (`vla_teach.reference.State`), and enters them in the index.
"""

import ast
import inspect
import re
import tokenize
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).resolve().parents[1]
WIDTH = 119  # where this package's lines are broken, less one


def source_of(module):
    """The file of a module of this package, which need not be importable."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def definitions(path):
    """{name: syntax tree} of the functions and classes at the top of a file."""
    tree = ast.parse(path.read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def signature(node):
    """What stands in the brackets, and the result: "(q: Array, k: Array) -> Array". A NamedTuple's fields are not."""
    if isinstance(node, ast.ClassDef):
        node = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None)
        if node is None:
            return ""
    arguments = ast.unparse(node.args)
    first = re.compile(r"^self(, |$)")
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"({first.sub('', arguments)}){result}"


def fields(node, path):
    """The fields of a NamedTuple or dataclass, (name, type, default or "", the comment beside it)."""
    with tokenize.open(path) as file:
        comments = {t.start[0]: t.string for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT}
    rows = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and not part.target.id.startswith("_"):
            value = ast.unparse(part.value) if part.value else ""
            said = " ".join(comments.get(part.end_lineno, "").lstrip("# ").split())
            rows.append((part.target.id, ast.unparse(part.annotation), value, said))
    return rows


def paragraphs(docstring, indent, names):
    """The paragraphs of a docstring as lists of lines: a line begins where an argument does, or "Returns", "Raises".

    All other ends of lines are the margin's, and so is one before a word that had no room in the line above.
    """
    found = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines, room = [], 0
        for line in block.splitlines():
            word = line.split()[0]
            begins = word.endswith(":") or word.strip(",") in names or word in ("Returns", "Raises")
            if lines and (len(word) > room or not begins):
                lines[-1] += " " + line.strip()
            else:
                lines.append(line)
            room = WIDTH - indent - len(line)
        found.append(lines)
    return found


def inline(text, module):
    """Words, with `code`, shapes such as [T, K] and "words" set as code; a name that the reference has is a link."""
    found = []
    for part in re.split(r"""(`[^`]+`|\[[A-Z0-9.][^\[\]]*\]|"[^"\s]+")""", text):
        code = nodes.literal(part.strip("`"), part.strip("`"))
        if re.fullmatch(r"`[\w.]+`", part):
            code = addnodes.pending_xref(
                part, code, refdomain="py", reftype="obj", reftarget=part.strip("`"), refspecific=True
            )
            code["py:module"] = module
        found.append(code if part[:1] in ("`", "[", '"') and part[1:] else nodes.Text(part))
    return found


def prose(docstring, module, node):
    """The nodes of a docstring of a definition: paragraphs, with a line for each argument."""
    arguments = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
    names, found = arguments | {name for name, *_ in fields(node, source_of(module))}, []
    for lines in paragraphs(docstring, node.col_offset + 4, names):
        if len(lines) == 1:
            found.append(nodes.paragraph("", "", *inline(lines[0].strip(), module)))
        else:
            found.append(nodes.line_block("", *(nodes.line(line, "", *inline(line.strip(), module)) for line in lines)))
    return found


def field_list(rows, module):
    """Fields, each with its type and what the source says beside it."""
    items = []
    for name, kind, value, said in rows:
        words = nodes.paragraph("", "", nodes.literal(name, name), nodes.Text(": "), nodes.literal(kind, kind))
        words += [nodes.Text(" = "), nodes.literal(value, value)] if value else []
        words += inline(f" · {said}", module) if said else []
        items.append(nodes.list_item("", words))
    return nodes.bullet_list("", *items)


class Api(SphinxDirective):
    """The reference of some names of one module."""

    required_arguments = 1
    has_content = True

    def run(self):
        (module,) = self.arguments
        path = source_of(module)
        self.env.note_dependency(str(path))
        self.env.ref_context["py:module"] = module
        known, found = definitions(path), []
        for name in " ".join(self.content).split():
            if name not in known:
                raise self.error(f"{module} has no function or class {name}")
            found += self.entry(module, path, known[name])
        return found

    def entry(self, module, path, node):
        """One name: its signature, its docstring, its fields, and what is said of calling it."""
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        text = ["```{py:" + kind + "} " + node.name + signature(node), "```"]
        holder = nodes.container()
        self.state.nested_parse(StringList(text, str(path)), 0, holder)
        (content,) = holder.findall(addnodes.desc_content)
        content += prose(ast.get_docstring(node, clean=False), module, node)
        if rows := fields(node, path):
            content += field_list(rows, module)
        for part in node.body if kind == "class" else ():
            if getattr(part, "name", "") == "forward" and ast.get_docstring(part):
                content += prose("A call: " + ast.get_docstring(part, clean=False), module, part)
        return holder.children
