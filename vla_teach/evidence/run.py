"""One measurement, a piece at a time, kept after each piece; and reading what it wrote."""

import json
import time
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from vla_teach.evidence import MEASUREMENTS
from vla_teach.experiments.results import provenance, read_json, write_json

KIND, FORMAT = "measurement", 1


def module(name):
    """The module of a measurement."""
    if name not in MEASUREMENTS:
        raise ValueError(f"there is no measurement {name!r}; expected one of {', '.join(MEASUREMENTS)}")
    return import_module(f"vla_teach.evidence.{name}")


def measure(name, size, out, fresh=False, quiet=False):
    """Runs all pieces and writes `out`; returns what is in it. A stopped run goes on from OUT.partial.

    Raises ValueError where OUT.partial was made with other settings, or a piece gives what JSON cannot hold.
    """
    settings = json.loads(json.dumps(module(name).SIZES[size]))
    partial = out.with_name(out.name + ".partial")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; expected a file")
    kept = dict(name=name, settings=settings, pieces={}, seconds=0.0)
    if partial.exists() and not fresh:
        kept = read_json(partial)
        if (kept.get("name"), kept.get("settings")) != (name, settings):
            raise ValueError(f"{partial} is of another run; expected the same settings, or --fresh")
    pieces = module(name).pieces(settings)
    with tqdm(pieces.items(), desc=name, unit=" pieces", disable=quiet) as bar:
        for piece, function in bar:
            if piece in kept["pieces"]:
                continue
            started = time.perf_counter()
            kept["pieces"][piece] = function()
            kept["seconds"] += time.perf_counter() - started
            write_json(partial, kept)
    command = f"python -m vla_teach.evidence run {name}" + (f" --size {size}" if size != "full" else "")
    content = dict(kind=KIND, format=FORMAT, name=name, size=size, settings=settings)
    content |= dict(provenance=provenance(command, "cpu", kept["seconds"]), pieces=kept["pieces"])
    write_json(out, content)
    partial.unlink(missing_ok=True)
    return content


def read_measurement(path: Path) -> dict:
    """What `measure` wrote. Raises FileNotFoundError, or ValueError where it is broken or something else."""
    content = read_json(path)
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (KIND, FORMAT):
        raise ValueError(f"{path.name} is no {KIND} of format {FORMAT}; expected what vla_teach.evidence writes")
    return content
