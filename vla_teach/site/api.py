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


class FullNames(ast.NodeTransformer):
    """Names that a module imports from this package, written out, so that types lead to the right entry."""

    def __init__(self, tree):
        found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module.startswith("vla_teach")]
        self.full = {name.asname or name.name: f"{node.module}.{name.name}" for node in found for name in node.names}

    def visit_Name(self, node):
        return ast.Name(self.full.get(node.id, node.id))


def definitions(path):
    """{name: syntax tree} of the functions and classes at the top of a file."""
    tree = ast.parse(path.read_text())
    names = FullNames(tree)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if isinstance(getattr(node, field, None), ast.expr):
                setattr(node, field, names.visit(getattr(node, field)))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def signature(node):
    """What stands in the brackets, and the result: "(q: Array, k: Array) -> Array". A NamedTuple's fields are not."""
    if isinstance(node, ast.ClassDef):
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            given = [ast.unparse(part).replace(" ", "") for part in node.body if isinstance(part, ast.AnnAssign)]
            return f"({', '.join(re.sub(r':[^=]*', '', one) for one in given)})"
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
            kind = re.sub(r"vla_teach\.[\w.]*\.", "", ast.unparse(part.annotation))
            rows.append((part.target.id, kind, value, said))
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
        """One name: its signature, its docstring, its fields; of a class also the methods that have a docstring."""
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        parts = [part for part in node.body if is_shown(part)] if kind == "class" else []
        text = ["````{py:" + kind + "} " + node.name + signature(node)]
        for part in parts:
            is_property = any(isinstance(x, ast.Name) and x.id == "property" for x in part.decorator_list)
            how = "" if is_property else signature(part)
            text += ["```{py:" + ("attribute" if is_property else "method") + "} " + part.name + how, "```"]
        holder = nodes.container()
        self.state.nested_parse(StringList([*text, "````"], str(path)), 0, holder)
        contents = list(holder.findall(addnodes.desc_content))
        for part, content in zip([node, *parts], contents, strict=True):
            own = prose(ast.get_docstring(part, clean=False), module, part)
            if part is node and (rows := fields(node, path)):
                own.append(field_list(rows, module))
            content[:0] = own
        return holder.children


def is_shown(part):
    """Whether a part of a class is a method for its users: it says what it does, and what type it returns."""
    shown = isinstance(part, ast.FunctionDef) and part.name[0] != "_" and part.returns is not None
    return shown and ast.get_docstring(part) is not None
