"""The package as a whole: what an import needs, and what the README promises."""

import re
import subprocess
import sys

from vla_teach.site.notebooks import ROOT

ONLY_NUMPY = """
import sys

REFUSED = {"torch", "triton", "plotly", "ipywidgets", "IPython", "sympy", "sklearn", "scipy", "yaml", "sphinx"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Refuse())
from vla_teach import *
import vla_teach.streams
import vla_teach.tasks
try:
    import vla_teach.ops
except ImportError as error:
    assert "make torch" in str(error), error
else:
    raise AssertionError("torch was not refused")
print("fine")
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_needs_numpy_alone():
    """Every name of `vla_teach` works where nothing but NumPy is installed; what needs PyTorch says how to get it."""
    done = run(ONLY_NUMPY)
    assert done.stdout == "fine\n", done.stderr


def test_the_readme_example_runs():
    """The first code that a visitor copies works and prints the third value."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    done = run(example)
    assert done.stdout.strip() == "[4. 5.]", done.stdout + done.stderr


def test_make_help_lists_the_readme_commands():
    """Every `make ...` that the README names is a target."""
    targets = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    named = set(re.findall(r"make ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert {"book", "test", "lab", "serve", "notebooks"} <= named
    for name in named:
        assert f"make {name} " in targets, name
