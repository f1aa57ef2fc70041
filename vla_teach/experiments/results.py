"""Results as JSON files: what came out, with all that is needed to judge it and to make it again."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

FORMAT = 1
ROOT = Path(__file__).parents[2]
PARTS = dict(experiment=str, size=str, provenance=dict, settings=dict, models=dict, runs=list, comparisons=list)


@contextmanager
def writing(path):
    """A path to write to, which becomes `path` at the end; after an error nothing is left, and an old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(suffix=path.suffix, prefix=".", dir=path.parent)
    os.close(handle)
    os.chmod(new, 0o644)
    try:
        yield new
        os.replace(new, path)
    finally:
        Path(new).unlink(missing_ok=True)


def write_json(path, content):
    """Plain data as a JSON file with a checksum, never half of it."""
    with writing(path) as new:
        text = json.dumps(content | dict(checksum=checksum(content)), indent=1, allow_nan=False)
        Path(new).write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """What `write_json` wrote. Raises ValueError if that is not what the file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        claimed = content.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path.name} is broken: no JSON with a checksum; make it again") from None
    if claimed != checksum(content):
        raise ValueError(f"{path.name} is broken: its checksum does not fit what it holds; make it again")
    return content


def checksum(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_results(path, content):
    """The results of an experiment, see PARTS."""
    write_json(path, dict(format=FORMAT) | content)


def read_results(path: Path) -> dict:
    """Results as a dict. Raises FileNotFoundError, or ValueError if the file is broken or of another format."""
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path.name} has format {content.get('format')}; expected {FORMAT}")
    for name, kind in PARTS.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{path.name} has no {name}; expected results of vla_teach.experiments")
    return content


def provenance(command, device, seconds):
    """How numbers came about. No path and no machine's name is in it."""
    versions = dict(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return dict(command=command, **commit(), device=device_name(device), versions=versions, seconds=seconds, when=when)


def commit():
    """The commit, and whether the package differed from it; None where there is no git."""

    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return dict(commit=git("rev-parse", "HEAD"), dirty=bool(git("status", "--porcelain", "--", "vla_teach")))
    except (OSError, subprocess.CalledProcessError):
        return dict(commit=None, dirty=None)


def device_name(device):
    """The model of a GPU or CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine() or sys.platform
