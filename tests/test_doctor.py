"""The doctor: what it says of machines that lack something, real ones as far as a test can make them so."""

import ast
import os
import re
import subprocess
import sys

import browser
import pytest

from vla_teach import doctor
from vla_teach.site.notebooks import ROOT

REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if {condition}:
            raise ModuleNotFoundError("No module named " + repr(name))

sys.meta_path.insert(0, Refuse())
"""
FAKE_TORCH = """
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)

    class get_device_properties:
        name, total_memory, major, minor = "Fake H100", 80 * 10**9, 9, 0
        __init__ = lambda self, i: None

class version:
    cuda = "13.0"
"""


def run(folder, file=None, text="", **environment):
    """The doctor in a process of its own, with one file on its path before all others. Returns (exit code, report)."""
    if file:
        (folder / file).write_text(text)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "vla_teach.doctor"],
        capture_output=True, text=True, cwd=folder, env=kept | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def row(report, name):
    """What the table at the end says of one part of the book."""
    return re.search(rf"^  {re.escape(name)} +(.*)$", report.split("What runs here:")[1], re.MULTILINE)[1]


def machine(**change):
    """What `look` would see on a machine with everything, but for the changes."""
    wanted = doctor.pinned()
    seen = {
        "python": (3, 12, 1),
        "platform": "linux",
        "repository": True,
        "wanted": wanted,
        "versions": wanted | {"fla-core": "0.6", "playwright": "1"},
        "reasons": dict.fromkeys(doctor.MODULES),
        "gpu": {"gpus": [["Fake H100", 80 * 10**9, 9, 0]], "cuda": "13.0", "built for": "13.0"},
        "driver": True,
        "interpret": False,
        "browser": "chromium",
        "free": 50 * 10**9,
        "pages": True,
        "make": True,
        "other venv": False,
    }
    assert change.keys() <= seen.keys()
    return seen | change


def without(*names):
    """The reasons of a machine on which these modules are missing."""
    return dict.fromkeys(doctor.MODULES) | dict.fromkeys(names, "No module named that")


def answers(seen):
    """{part: True or what to do}."""
    return {name: needs(seen) or True for name, needs in doctor.PARTS}


def test_with_everything_there(tmp_path):
    """In the tests' own environment, which has all but a GPU, parts I to III and the experiments run; exit code 0."""
    code, report = run(tmp_path)
    assert code == 0
    for part in ("parts I and II", "part III, interpreted on the CPU", "the experiments"):
        assert row(report, part) == "yes"
    for name, version in doctor.pinned().items():
        if name in doctor.MODULES:
            assert re.search(rf"^  {name} +{re.escape(version)}(\+\w+)?$", report, re.MULTILINE), name
    assert all(answer is True for answer in answers(machine()).values())


def test_without_torch(tmp_path):
    """Parts I and II still run; whatever needs PyTorch names the command that brings it."""
    code, report = run(tmp_path, "sitecustomize.py", REFUSE.format(condition="name.split('.')[0] == 'torch'"))
    assert code == 0 and row(report, "parts I and II") == "yes"
    for part in ("part III, interpreted on the CPU", "the kernels on a GPU", "the experiments"):
        assert re.fullmatch(r"no: .*torch.*\(torch.*\)", row(report, part)), report


def test_without_numpy_or_anything(tmp_path):
    """With the standard library alone the doctor runs to its end, and ends with 1."""
    for condition in (
        "name.split('.')[0] == 'numpy'",
        "name.split('.')[0] not in sys.stdlib_module_names | {'vla_teach'}",
    ):
        code, report = run(tmp_path, "sitecustomize.py", REFUSE.format(condition=condition))
        assert code == 1
        assert re.fullmatch(r"no: .*\(numpy.*\)", row(report, "parts I and II")), report
        assert "No module named 'numpy'" in report


def test_a_faked_gpu(tmp_path):
    """A GPU is named with its memory and its compute capability, and Triton would compile for it."""
    code, report = run(tmp_path, "torch.py", FAKE_TORCH)
    assert code == 0
    assert "Fake H100, 80 GB, compute capability 9.0" in report and "compiles for this GPU" in report
    assert row(report, "the kernels on a GPU") == "yes"
    _, report = run(tmp_path, TRITON_INTERPRET="1")
    assert row(report, "the kernels on a GPU") == "no: unset TRITON_INTERPRET"
    assert "interprets" in report


@pytest.mark.parametrize("death", ["import os; os.abort()", "import sys; sys.exit(3)", "1 / 0", "syntax error"])
def test_a_package_that_breaks_is_reported(tmp_path, death):
    """An import that fails in any way, even one that kills its process, is a line of the report."""
    code, report = run(tmp_path, "sympy.py", death)
    assert code == 1 and "is there, but: " in report
    assert "(sympy)" in row(report, "parts I and II")


def test_an_import_that_hangs_is_left(monkeypatch):
    """The doctor waits for a package only so long."""
    monkeypatch.setattr(doctor, "SECONDS", 0.2)
    well, said = doctor.child("import time; time.sleep(60)")
    assert not well and "timed out after 0.2 seconds" in said


@pytest.mark.parametrize("version", [(3, 8, 0), (3, 10, 9), (3, 13, 0), (4, 0, 0)])
def test_a_wrong_python(version, monkeypatch, capsys):
    """Nothing but the pages runs on a Python outside the supported versions, and the exit code says so."""
    monkeypatch.setattr(doctor, "look", lambda: machine(python=version))
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert "not 3.11 or 3.12" in said and row(said, "read the pages") == "yes"
    assert "install Python 3.11 or 3.12" in row(said, "parts I and II") == row(said, "the experiments")


def test_a_wrong_package_version():
    """A package in another version than the pinned one is named, whether the doctor imports it or not; +cpu is none."""
    versions = machine()["versions"]
    assert "not the pinned" not in doctor.report(machine(versions=versions | {"torch": versions["torch"] + "+cpu"}))
    said = doctor.report(machine(versions=versions | {"numpy": "1.26.0", "sphinx": "8.0", "nbval": None}))
    assert f"1.26.0, not the pinned {versions['numpy']}" in said
    assert f"sphinx 8.0, not {versions['sphinx']}" in said and "not there: nbval" in said


@pytest.mark.parametrize(
    ("part", "change", "todo"),
    [
        ("read the pages", dict(pages=False), "make book"),
        ("read the pages", dict(pages=False, make=False), "jupyter-book build"),
        ("parts I and II", dict(reasons=without("plotly")), "make env  (plotly)"),
        ("parts I and II", dict(reasons=without("sympy"), make=False), "pip install -r requirements.txt"),
        ("parts I and II", dict(reasons=without("sympy"), repository=False), "get the book's repository"),
        ("part III, interpreted on the CPU", dict(reasons=without("triton")), "make torch  (triton)"),
        ("part III, interpreted on the CPU", dict(platform="win32"), "WSL"),
        ("the kernels on a GPU", dict(gpu=dict(gpus=[], cuda=None)), "CUDA build"),
        ("the kernels on a GPU", dict(gpu=dict(gpus=[], cuda="13.0")), "nvidia-smi"),
        ("the kernels on a GPU", dict(gpu=dict(gpus=[], cuda=None), driver=False), "a machine with a CUDA GPU"),
        ("the kernels on a GPU", dict(gpu=dict(gpus=[["old", 1, 7, 5]], cuda="12.0")), "8.0 or more"),
        ("the kernels on a GPU", dict(gpu=dict(gpus=[["amd", 1, 9, 0]], cuda=None)), "ROCm"),
        ("the kernels on a GPU", dict(interpret=True), "unset TRITON_INTERPRET"),
        ("the benchmark, with all peers", dict(versions=machine()["versions"] | {"fla-core": None}), "fla-core"),
        ("the benchmark, with all peers", dict(reasons=without("tqdm")), "tqdm"),
        ("the experiments", dict(reasons=without("safetensors")), "make torch  (safetensors)"),
    ],
)  # fmt: skip
def test_what_is_missing_stops_its_part(part, change, todo):
    """Each lack turns its part of the book to "no", with the thing to do; a machine without the lack says yes."""
    seen = (
        machine(**change) if "gpu" not in change else machine(**change | {"gpu": {"built for": None} | change["gpu"]})
    )
    assert todo in str(answers(seen)[part])
    assert row(doctor.report(seen), part).startswith("no: ")
    assert answers(machine())[part] is True


def test_it_says_more_where_it_helps():
    """The book's own .venv, a full disk and a missing browser are pointed out, and only where they are so."""
    well = doctor.report(machine())
    ill = " ".join(doctor.report(machine(free=10**9, browser=None, **{"other venv": True})).split())
    for words in ("make doctor", "the book wants up to", "tests of the pages are skipped"):
        assert words in ill and words not in well


def test_it_agrees_with_the_repository(tmp_path):
    """Every make command is a target, the browsers are the tests' own, the requirements are read, the Pythons fit."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    source = (ROOT / "vla_teach" / "doctor.py").read_text()
    assert set(re.findall(r"\bmake (env|book|torch|doctor)\b", source)) | {"torch"} <= set(targets)
    assert browser.NAMES == doctor.BROWSERS
    assert doctor.MODULES.keys() <= doctor.pinned().keys() and len(doctor.pinned()) > 20
    assert doctor.pinned(tmp_path) == {}
    assert "numpy" in doctor.demanded()
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()
    assert doctor.SUPPORTED == tuple((3, minor) for minor in range(int(low), int(high)))


def test_it_needs_the_standard_library_alone():
    """The file parses on Python 3.8 and imports nothing that Python does not bring along; nor does the package."""
    for file in ("doctor.py", "__init__.py"):
        tree = ast.parse((ROOT / "vla_teach" / file).read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
