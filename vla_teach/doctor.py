"""What this machine can run of the book, and what to do where something is missing: python -m vla_teach.doctor

Looks, and changes nothing. Needs the standard library alone, so that it can say what else is missing, and runs from
Python 3.8 on, so that it can say that it is too old. Packages are imported in processes of their own: one that is
broken, or brings its process down, is reported like one that is not there. Exit code 0 if parts I and II can run,
else 1.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]  # the repository, where the package has not been copied out of it
SUPPORTED = ((3, 11), (3, 12))
REQUIREMENTS = ("requirements.txt", "requirements-torch.txt")
# What the parts of the book import, by distribution. The other pinned packages are looked up, but not imported.
MODULES = {
    "numpy": "numpy",
    "scikit-learn": "sklearn",
    "sympy": "sympy",
    "plotly": "plotly",
    "ipykernel": "ipykernel",
    "torch": "torch",
    "triton": "triton",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
}
CHAPTERS = ("numpy", "scikit-learn", "sympy", "plotly", "ipykernel")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CAPABILITY = (8, 0)  # the oldest GPUs that Triton names as supported
SECONDS = 120  # the most that one import may take
DISK = 10  # GB for .venv with PyTorch for CUDA, and the built book, generously

ASK_FOR_GPUS = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(i)
        gpus.append([one.name, one.total_memory, one.major, one.minor])
built_for = torch.version.cuda or getattr(torch.version, "hip", None)
print(json.dumps({"gpus": gpus, "cuda": torch.version.cuda, "built for": built_for}))
"""


# ---- looking ----------------------------------------------------------------------------------------------------


def pinned(folder=HERE):
    """{distribution: version} of the requirements that apply here; empty where this is not the repository."""
    found = {}
    for name in REQUIREMENTS:
        try:
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            match = re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)(.*)", line)
            if match and not ("sys_platform" in match[3] and sys.platform != "linux"):
                found[match[1].lower()] = match[2]
    return found


def demanded():
    """{distribution: version or ""} that the installed package asks for by itself, for use outside its repository."""
    try:
        asked = metadata.requires("vla_teach") or []
    except Exception:
        asked = []
    found = {}
    for line in asked or ["numpy"]:
        match = re.match(r"([A-Za-z0-9._-]+)", line)
        found[match[1].lower()] = ""
    return found


def version_of(distribution):
    """The installed version, or None."""
    try:
        return metadata.version(distribution)
    except Exception:  # not there, or its record is damaged
        return None


def child(code):
    """Run code in a Python of its own. Returns (whether it ended well, its output or the last line of its error)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=SECONDS)
    except Exception as error:  # no such program, or it took too long
        return False, str(error)
    if done.returncode == 0:
        return True, done.stdout.decode("utf-8", "replace").strip()
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return False, said[-1] if said else f"its import ended with exit code {done.returncode}"


def broken(module):
    """Why a module cannot be imported, or None if it can."""
    well, said = child(f"import {module}")
    return None if well else said


def gpus():
    """What torch sees: {"gpus": [[name, bytes, major, minor], ...], "cuda": its CUDA, "built for": CUDA or ROCm}."""
    nothing = {"gpus": [], "cuda": None, "built for": None}
    well, said = child(ASK_FOR_GPUS)
    try:
        return {**nothing, **json.loads(said.splitlines()[-1])} if well else nothing
    except (ValueError, IndexError, TypeError):
        return nothing


def there(path):
    """Whether a file or folder exists, as far as we may see."""
    try:
        return path.exists()
    except OSError:
        return False


def look():
    """All that the report is made of, as a dict; nothing here judges."""
    wanted = pinned()
    versions = {name: version_of(name) for name in [*(wanted or demanded()), *MODULES, "fla-core", "playwright"]}
    reasons = {name: broken(module) for name, module in MODULES.items()}
    try:
        free = shutil.disk_usage(str(HERE)).free
    except OSError:
        free = None
    venv = HERE / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    return {
        "python": tuple(sys.version_info[:3]),
        "platform": sys.platform,
        "repository": bool(wanted),
        "wanted": wanted or demanded(),
        "versions": versions,
        "reasons": reasons,
        "gpu": gpus() if reasons["torch"] is None else {"gpus": [], "cuda": None, "built for": None},
        "driver": shutil.which("nvidia-smi") is not None,
        "interpret": os.environ.get("TRITON_INTERPRET") == "1",
        "browser": next((name for name in BROWSERS if shutil.which(name)), None),
        "free": free,
        "pages": there(HERE / "_build" / "html" / "index.html"),
        "make": shutil.which("make") is not None,
        "other venv": there(venv) and Path(sys.prefix).resolve() != venv.parent.parent.resolve(),
    }


# ---- judging ----------------------------------------------------------------------------------------------------


def python_fits(seen):
    return seen["python"][:2] in SUPPORTED


def lacking(seen, names):
    """The names that cannot be imported."""
    return [name for name in names if seen["reasons"].get(name) is not None]


def install(seen, target="env"):
    """The command that brings what is missing: of the Makefile, or of pip where there is no make or no repository."""
    if not seen["repository"]:
        return "get the book's repository, and run make " + target + " in it"
    if seen["make"]:
        return "make " + target
    files = REQUIREMENTS[:1] if target == "env" else REQUIREMENTS
    return "python -m pip install " + " ".join("-r " + name for name in files)


def new_python(seen):
    """What to do about a Python that is too old or too new."""
    command = "make env PYTHON=/path/to/python3.12" if seen["make"] else "python3.12 -m venv .venv"
    return "install Python 3.11 or 3.12, then " + command


def chapters_need(seen):
    """What to do before parts I and II can run, or None."""
    if not python_fits(seen):
        return new_python(seen)
    missing = lacking(seen, CHAPTERS)
    return f"{install(seen)}  ({', '.join(missing)})" if missing else None


def pages_need(seen):
    if seen["pages"]:
        return None
    if not seen["repository"]:
        return install(seen, "book")
    return "make book" if seen["make"] else install(seen) + " && jupyter-book build ."


def interpreter_needs(seen):
    """What to do before part III can run on the CPU."""
    if chapters_need(seen):
        return chapters_need(seen)
    if seen["platform"] != "linux":
        return "use Linux, or WSL on Windows: Triton has no wheel for this system"
    missing = lacking(seen, ("torch", "triton"))
    return f"{install(seen, 'torch')}  ({', '.join(missing)})" if missing else None


def gpu_needs(seen):
    """What to do before the kernels can run on a GPU."""
    if interpreter_needs(seen):
        return interpreter_needs(seen)
    gpu = seen["gpu"]
    if not gpu["gpus"]:
        if seen["driver"] and not gpu["cuda"]:
            return "put PyTorch's CUDA build in the place of this one, as pytorch.org says how"
        if seen["driver"]:
            return "see why torch finds no GPU: nvidia-smi"
        return "go to a machine with a CUDA GPU; here the interpreter runs the kernels"
    if not gpu["cuda"]:
        return "go to a CUDA GPU; the kernels were never tried with ROCm"
    if tuple(gpu["gpus"][0][2:]) < CAPABILITY:
        return "go to a GPU of compute capability 8.0 or more, which Triton compiles for"
    if seen["interpret"]:
        return "unset TRITON_INTERPRET"
    return None


def bench_needs(seen):
    """What to do before VLA can be timed beside all others."""
    if gpu_needs(seen):
        return gpu_needs(seen)
    if lacking(seen, ["tqdm"]):
        return install(seen) + "  (tqdm)"
    return None if seen["versions"].get("fla-core") else "python -m pip install fla-core  (without it: fewer peers)"


def experiments_need(seen):
    """What to do before models can be trained, on the CPU or on a GPU."""
    if chapters_need(seen):
        return chapters_need(seen)
    missing = lacking(seen, ("torch", "safetensors", "tqdm"))
    return f"{install(seen, 'torch')}  ({', '.join(missing)})" if missing else None


PARTS = (
    ("read the pages", pages_need),
    ("parts I and II", chapters_need),
    ("part III, interpreted on the CPU", interpreter_needs),
    ("the kernels on a GPU", gpu_needs),
    ("the benchmark, with all peers", bench_needs),
    ("the experiments", experiments_need),
)


# ---- saying -----------------------------------------------------------------------------------------------------


def checks(seen):
    """The lines on what was found: pairs of a name and what there is to say."""
    yield "Python", "{}.{}.{}".format(*seen["python"]) + ("" if python_fits(seen) else ", not 3.11 or 3.12")
    for name, reason in seen["reasons"].items():
        version = seen["versions"].get(name)
        wanted = seen["wanted"].get(name)
        if reason is not None:
            said = f"{version} is there, but: {reason}" if version else "not there"
        else:
            said = version or "there, version unknown"
            if wanted and version and version.split("+")[0] != wanted:
                said += f", not the pinned {wanted}"
        yield name, said
    rest = [name for name in seen["wanted"] if name not in seen["reasons"]]
    absent = [name for name in rest if seen["versions"].get(name) is None]
    other = [
        f"{name} {seen['versions'][name]}, not {seen['wanted'][name]}"
        for name in rest
        if seen["versions"].get(name) and seen["wanted"][name] not in ("", seen["versions"][name].split("+")[0])
    ]
    if rest:
        yield "other packages", f"{len(rest) - len(absent) - len(other)} of {len(rest)} as pinned"
    if absent:
        yield "", "not there: " + ", ".join(absent)
    for line in other:
        yield "", line
    yield "GPU", gpu_line(seen)
    yield "Triton", triton_line(seen)
    yield "browser", browser_line(seen)
    if seen["free"] is None:
        yield "disk", "unknown"
    else:
        few = "" if seen["free"] >= DISK * 1e9 else f"; with PyTorch for CUDA the book wants up to {DISK}"
        yield "disk", f"{seen['free'] / 1e9:.0f} GB free{few}"


def gpu_line(seen):
    if seen["reasons"].get("torch") is not None:
        return "an NVIDIA driver, and no torch to use it" if seen["driver"] else "none that torch could see"
    found = [
        f"{name}, {size / 1e9:.0f} GB, compute capability {major}.{minor}"
        for name, size, major, minor in seen["gpu"]["gpus"]
    ]
    return "; ".join(found) or f"torch sees none (it was built for {seen['gpu']['built for'] or 'the CPU'})"


def triton_line(seen):
    if seen["reasons"].get("triton") is not None:
        return "not there"
    if gpu_needs(seen) is None:
        measured = seen["gpu"]["gpus"][0][2:] == [9, 0]
        return "compiles for this GPU" + ("" if measured else " (the book's kernels were measured on 9.0 only)")
    return "interprets: TRITON_INTERPRET=1" + (" is set" if seen["interpret"] else ", which the chapters set")


def browser_line(seen):
    if not seen["browser"]:
        return "none of " + ", ".join(BROWSERS) + ": the tests of the pages are skipped"
    return seen["browser"] + ("" if seen["versions"].get("playwright") else ", but playwright is not there")


def report(seen):
    """The whole report, as text."""
    lines = []
    for name, said in checks(seen):
        lines += textwrap.wrap(said, 100, initial_indent=f"  {name:16s}", subsequent_indent=" " * 18)
    if seen["other venv"]:
        lines += ["", "This is not the Python of the book's .venv. Ask that one:", "  make doctor"]
    lines += ["", "What runs here:"]
    for name, needs in PARTS:
        todo = needs(seen)
        lines.append(f"  {name:34s}" + ("yes" if todo is None else "no: " + todo))
    return "\n".join(lines)


def main() -> int:
    """Prints the report; returns the exit code, 0 if parts I and II can run, else 1."""
    seen = look()
    try:
        print(report(seen))
    except UnicodeEncodeError:  # a terminal that cannot show some name
        print(report(seen).encode("ascii", "replace").decode())
    return 0 if chapters_need(seen) is None else 1


if __name__ == "__main__":
    sys.exit(main())
