"""One run of the benchmark: one contestant after the other checked, then timed, kept after each measurement."""

import hashlib
import importlib.metadata
import json
import math
import secrets
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from vla_teach.bench.contestants import CONTESTANTS, GAIN, LAMBDA_0, PASSES, STEPS, VLA, draw, missing
from vla_teach.bench.measure import (
    STATE_LIMIT,
    ceilings,
    check,
    check_step,
    floor,
    floor_times,
    last_head,
    measure,
    measure_step,
    passed,
)
from vla_teach.bench.report import FORMAT, KIND, NO_MEMORY, RAN, failure
from vla_teach.experiments.results import ROOT, device_name, provenance, read_json, write_json

LENGTHS = tuple(2**i for i in range(10, 17))
SHORTER = {128: (4096, 16384, 65536)}  # D = 128 at fewer lengths


@dataclass(frozen=True)
class Settings:
    """What is to be measured."""

    lengths: dict = field(default_factory=lambda: {64: LENGTHS} | SHORTER)  # {D: every T}
    B: int = 1
    H: int = 16
    dtype: str = "bfloat16"
    contestants: tuple = tuple(CONTESTANTS)
    seconds: float = 1.0  # the most for all repetitions of one measurement
    decode: tuple = (1, 16, 64)  # sequences at a time
    copy_bytes: int = 2**31
    matmul: int = 8192

    def described(self):
        """As it stands in the file."""
        return json.loads(json.dumps(asdict(self) | dict(lambda_0=LAMBDA_0, gain=GAIN)))

    def jobs(self):
        """Every measurement: contestant, D, T, passes."""
        for D, lengths in self.lengths.items():
            for T in lengths:
                for name in self.contestants:
                    taken = PASSES if CONTESTANTS[name].backward else PASSES[:1]
                    yield from ((name, D, T, passes) for passes in taken if CONTESTANTS[name].fits(T, passes))


def bench(
    settings: Settings,
    out: Path,
    device: torch.device | str,
    resume: bool = False,
    command: str = "",
    quiet: bool = False,
) -> dict:
    """Checks each contestant, then times it; writes the file `out` and returns what is in it.

    After each measurement all that is known goes to OUT.partial; with resume a run goes on from there, where settings,
    device, versions and sources are the same: else ValueError. A contestant that was not done is checked anew.
    """
    started, device, partial = time.perf_counter(), torch.device(device), out.with_name(out.name + ".partial")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; expected a file")
    key = dict(settings=settings.described(), device=device_name(device), versions=versions(), sources=sources())
    fresh = dict(key=key, seeds=[], done=[], checks=[], skipped={}, rows=[], ceilings=None, seconds=0.0)
    kept = read_partial(partial, key) if resume else fresh
    before, seed = kept["seconds"], secrets.randbits(32)
    kept["seeds"].append(seed)
    print(f"seed {seed}", flush=True)
    generator = torch.Generator(device).manual_seed(seed)
    kept["ceilings"] = kept["ceilings"] or ceilings(device, settings.copy_bytes, settings.matmul)

    def keep():
        kept["seconds"] = before + time.perf_counter() - started
        write_json(partial, kept)

    def tell(checks, skipped):
        kept["checks"] += checks
        kept["skipped"] |= skipped
        for line in [f"left out: {name}: {reason}" for name, reason in skipped.items()] + failures(checks):
            print(line, file=sys.stderr, flush=True)

    for name, D in dict.fromkeys(job[:2] for job in settings.jobs()):
        if [name, D] in kept["done"]:
            continue
        one = replace(settings, contestants=(name,), lengths={D: settings.lengths[D]}, decode=())
        runs, _, checks, skipped = check_all(one, generator, quiet)
        time_all(one, runs, kept, checks, generator, keep, quiet)
        if (name, D) not in runs:
            kept["rows"] = [row for row in kept["rows"] if (row["contestant"], row["D"]) != (name, D)]
        tell(checks, skipped)
        kept["done"].append([name, D])
        keep()
    _, steps, checks, skipped = check_all(replace(settings, contestants=()), generator, quiet)
    decode = time_steps(settings, steps, checks, generator)
    tell(checks, skipped)
    about = provenance(command, device, before + time.perf_counter() - started)
    about = about | dict(versions=about["versions"] | key["versions"], sources=key["sources"])
    content = dict(kind=KIND, format=FORMAT, provenance=about, settings=key["settings"], seeds=kept["seeds"])
    content |= {name: kept[name] for name in ("ceilings", "checks", "rows", "skipped")} | dict(decode=decode)
    write_json(out, content)
    partial.unlink(missing_ok=True)
    return content


def read_partial(path, key):
    """What a stopped run left. Raises ValueError where there is none, or it was made otherwise than `key` says."""
    if not path.exists():
        raise ValueError(f"--resume: there is no {path}; run without it")
    kept = read_json(path)
    for name, value in key.items():
        if (was := kept.get("key", {}).get(name)) != value:
            raise ValueError(f"--resume: {path} has other {name}: {was}; now {value}")
    return kept


def versions():
    """Of what else decides how fast it goes; None for what is not there."""

    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    return dict(triton=version("triton"), fla=version("fla-core"), cuda=torch.version.cuda, driver=driver)


def sources():
    """One checksum of all code of the package: times of different code never stand in one file."""
    package = Path(ROOT / "vla_teach")
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return hashlib.sha256(b"".join(name.encode() + (package / name).read_bytes() for name in files)).hexdigest()


# ---- checks -----------------------------------------------------------------------------------------------------


def check_all(settings, generator, quiet=False):
    """(functions that passed {(name, D): run}, those for decoding, every check, {name: why it is left out})."""
    runs, steps, checks, skipped = {}, {}, [], {}

    def leave_out(name, D, error):
        if missing(error):
            skipped[name] = first_line(error)
        else:
            checks.append(failed(name, D, "loading", error))

    jobs = list(dict.fromkeys((name, D) for name, D, *_ in settings.jobs()))
    with tqdm(jobs, unit=" checks", disable=quiet) as bar:
        for name, D in bar:
            bar.set_description(name)
            if settings.dtype not in CONTESTANTS[name].limits:
                skipped[name] = f"it takes no {settings.dtype}"
                continue
            try:
                run = CONTESTANTS[name].load()
                found = checks_of(settings, name, run, D, generator)
            except Exception as error:
                leave_out(name, D, error)
                continue
            checks += found
            if all(one["passed"] for one in found):
                runs[name, D] = run
    for name, load in STEPS.items() if settings.decode else ():
        for D in settings.lengths:
            try:
                step = load()
                found = check_of_step(settings, name, step, D, generator)
            except Exception as error:
                leave_out(name, D, error)
                continue
            checks.append(found)
            if found["passed"]:
                steps[name, D] = step
    return runs, steps, checks, skipped


def checks_of(settings, name, run, D, generator):
    """A list of checks: at an odd length, and at the longest that memory allows, there on one head."""
    contestant = CONTESTANTS[name]
    limit, dtype = contestant.limits[settings.dtype], getattr(torch, settings.dtype)
    # A gradient passes through about twice as many roundings as o.
    limits = {"o": limit, "o, recorded": limit} | {f"d{one}": 2 * limit for one in contestant.takes}

    def at(B, T, part):
        x = draw(B, T, settings.H, D, dtype, generator.device, generator)
        x = contestant.arrange({one: x[one] for one in contestant.takes})
        return check(contestant, run, x, generator, part)

    def one(what, *size):
        found = verdict(lambda: at(*size), limits)
        return dict(contestant=name, D=D, what=what, dtype=settings.dtype, limits=limits) | found

    B, T = settings.B + 1, contestant.check_T
    found = [one(f"B = {B}, T = {T}", B, T, lambda x: x)]
    for T in sorted(settings.lengths[D], reverse=True) if contestant.long and found[0]["passed"] else ():
        last = one(f"B = {settings.B}, T = {T}, last head", settings.B, T, last_head)
        if last["message"] != NO_MEMORY:
            return [*found, last]
    return found


def check_of_step(settings, name, step, D, generator):
    """The check of one way of decoding."""
    limits, dtype = dict(o=VLA["limits"][settings.dtype], S=STATE_LIMIT, A=STATE_LIMIT), getattr(torch, settings.dtype)
    found = verdict(lambda: check_step(step, 2, settings.H, D, dtype, generator), limits)
    return dict(contestant=name, D=D, what="8 tokens, B = 2", dtype=settings.dtype, limits=limits) | found


def verdict(errors_of, limits):
    """The errors, whether they pass, and what went wrong else; raises what says that something is not there."""
    try:
        errors = errors_of()
    except torch.OutOfMemoryError:
        return dict(errors={}, passed=False, message=NO_MEMORY)
    except Exception as error:
        if missing(error):
            raise
        return dict(errors={}, passed=False, message=first_line(error))
    stored = {name: x if math.isfinite(x) else None for name, x in errors.items()}
    return dict(errors=stored, passed=passed(errors, limits), message=None)


def failed(name, D, what, error):
    """A check that an error has ended."""
    return dict(contestant=name, D=D, what=what, errors={}, passed=False, message=first_line(error))


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def failures(checks):
    return [failure(one) for one in checks if not one["passed"]]


# ---- times ------------------------------------------------------------------------------------------------------


def time_all(settings, runs, kept, checks, generator, keep, quiet=False):
    """Adds a row to kept["rows"] for every measurement that is not there yet.

    A contestant that breaks here gets a failed check, and loses its function and its rows.
    """
    size_bytes, fixed = getattr(torch, settings.dtype).itemsize, dict(B=settings.B, H=settings.H, dtype=settings.dtype)
    done = {(row["contestant"], row["D"], row["T"], row["passes"]) for row in kept["rows"]}
    jobs = [job for job in settings.jobs() if job[:2] in runs and job not in done]
    with tqdm(jobs, unit=" times", disable=quiet) as bar:
        for name, D, T, passes in bar:
            bar.set_description(f"{name}, T = {T}")
            if (name, D) not in runs:
                continue
            sizes = (settings.B, T, settings.H, D, getattr(torch, settings.dtype))
            row = dict(contestant=name, D=D, T=T, passes=passes, **fixed)
            try:
                found = measure(CONTESTANTS[name], runs[name, D], sizes, passes, generator, settings.seconds)
            except torch.OutOfMemoryError:
                kept["rows"].append(row | dict(status=NO_MEMORY, median_ms=None))
            except Exception as error:
                checks.append(failed(name, D, f"timing, {passes}, T = {T}", error))
                del runs[name, D]
            else:
                if found["peak_bytes"]:
                    found["peak_over_inputs"] = found["peak_bytes"] / found["inputs_bytes"]
                if name.startswith("vla"):
                    counts = floor(settings.B, T, settings.H, D, D, size_bytes, passes)
                    least = floor_times(counts, kept["ceilings"], size_bytes)
                    found |= counts | least | dict(share=max(least.values()) / found["median_ms"])
                kept["rows"].append(row | dict(status=RAN) | found)
            keep()


def time_steps(settings, steps, checks, generator):
    """Decoding: times a token, and the bytes that one sequence carries on, beside those of a softmax cache."""
    rows, dtype, H = [], getattr(torch, settings.dtype), settings.H
    for (name, D), step in steps.items():
        some = []
        for B in settings.decode:
            row = dict(contestant=name, B=B, H=H, D=D, dtype=settings.dtype)
            try:
                some.append(row | dict(status=RAN) | measure_step(step, B, H, D, dtype, generator, settings.seconds))
            except torch.OutOfMemoryError:
                some.append(row | dict(status=NO_MEMORY, median_ms=None))
            except Exception as error:
                checks.append(failed(name, D, f"timing, B = {B}", error))
                some = []
                break
        rows += some
    state = {str(D): 2 * H * D * D * 4 for D in settings.lengths}  # S and A in float32
    cache = {str(D): {str(T): 2 * H * D * T * dtype.itemsize for T in Ts} for D, Ts in settings.lengths.items()}
    return dict(rows=rows, state_bytes=state, cache_bytes=cache)
