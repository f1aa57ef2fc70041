"""Where the time of one forward and backward pass goes, kernel by kernel, by Nsight Compute's counters.

    python -m vla_teach.bench.profile

It starts itself again under `ncu`, which must be installed and allowed to read the GPU's counters, and writes
book/results/profile.json.
"""

import argparse
import csv
import io
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vla_teach.bench.__main__ import whole, without_out
from vla_teach.bench.contestants import BOTH, CONTESTANTS, draw
from vla_teach.bench.measure import gradients, leaves, random_like
from vla_teach.bench.report import above_0, expect
from vla_teach.bench.run import sources, versions
from vla_teach.experiments.results import ROOT, provenance, read_json, write_json

KIND, FORMAT = "profile", 1
SECTIONS = ("SpeedOfLight", "Occupancy", "SchedulerStats", "WarpStateStats", "LaunchStats", "ComputeWorkloadAnalysis")
TIME = "gpu__time_duration.sum"
NS = dict(nsecond=1, ns=1, usecond=1e3, us=1e3, msecond=1e6, ms=1e6)
# What is kept, in percent of the most that the GPU can do; the counters' own names.
COUNTERS = dict(
    compute="sm__throughput.avg.pct_of_peak_sustained_elapsed",
    memory="gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    issue="smsp__issue_active.avg.pct_of_peak_sustained_active",
    occupancy="sm__warps_active.avg.pct_of_peak_sustained_active",
)
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"  # warps that wait for this, an instruction
STALLS = (
    "barrier",
    "long_scoreboard",
    "short_scoreboard",
    "wait",
    "math_pipe_throttle",
    "mio_throttle",
    "not_selected",
)
PARTS = dict(provenance=dict, settings=dict, kernels=list)
KERNEL = dict(name=str, launches=int, ms=float, share=float)
BUSY = 50  # percent; what is busy that much cannot become twice as fast without doing less


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 where it cannot be done or for a wrong command, 130 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m vla_teach.bench.profile", description=__doc__)
    parser.add_argument("--D", type=whole, default=64, help="the width of a head")
    parser.add_argument("--T", type=whole, default=65536, help="tokens")
    parser.add_argument("--H", type=whole, default=16, help="heads")
    parser.add_argument("--out", type=Path, help="the file to write; book/results/profile.json")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    try:
        if not torch.cuda.is_available():
            raise ValueError("there is no CUDA GPU here; nothing was measured")
        if args.inside:
            one_call(args.T, args.H, args.D)
            return 0
        if args.out is None and not (ROOT / "book").is_dir():
            raise ValueError("this package is not in its repository; say where with --out FILE")
        out = args.out or ROOT / "book/results/profile.json"
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder; expected a file")
        command = " ".join([parser.prog, *without_out(sys.argv[1:] if words is None else words)])
        profile(args.T, args.H, args.D, out, command)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"written to {out}")
    return 0


def one_call(T, H, D):
    """A forward and backward pass between the marks that the profiler waits for, after one to compile."""
    generator = torch.Generator("cuda").manual_seed(0)
    contestant = CONTESTANTS["vla_triton"]
    run = contestant.load()
    x = draw(1, T, H, D, torch.bfloat16, "cuda", generator)
    given, do = leaves({name: x[name] for name in contestant.takes}), random_like(x["v"], generator)
    gradients(run(**given), given, do)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    gradients(run(**given), given, do)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def profile(T, H, D, out, command):
    """Runs `one_call` under ncu and writes what `kernels` makes of its counters. Raises ValueError where ncu fails."""
    ncu = shutil.which("ncu")
    if ncu is None:
        raise ValueError("there is no ncu (Nsight Compute) on the path; nothing was measured")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "counters.csv"
        words = [ncu, "--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none"]
        words += [word for name in SECTIONS for word in ("--section", name)] + ["--log-file", str(log)]
        words += [sys.executable, "-m", "vla_teach.bench.profile", "--inside"]
        words += ["--D", str(D), "--T", str(T), "--H", str(H)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        text = log.read_text(encoding="utf-8") if log.exists() else ""
    if done.returncode or "Kernel Name" not in text:
        raise ValueError(f"ncu failed: {complaint(text, done.stdout, done.stderr)}")
    found = kernels(text)
    about = provenance(command, "cuda", time.perf_counter() - started)
    about |= dict(versions=about["versions"] | versions(), sources=sources())
    settings = dict(B=1, T=T, H=H, D=D, dtype="bfloat16", passes=BOTH)
    write_json(out, dict(kind=KIND, format=FORMAT, provenance=about, settings=settings, kernels=found))


def complaint(log, stdout, stderr):
    """The lines that say what went wrong: ncu's own, and the last of what the call left behind."""
    own = [line for line in f"{log}\n{stdout}".splitlines() if line.startswith("==ERROR==")]
    last = [line for line in stderr.splitlines() if line.strip()][-1:]
    return " ".join([*own, *last]) or "it says nothing"


def kernels(text):
    """A list of dict(name, launches, ms, share, and counters), the longest first, from ncu's table as text.

    A counter of several launches is their mean, weighed by time. share: of the time of all kernels. Kernels with the
    same name up to the first bracket are one. Raises ValueError where the table is not what `profile` asks ncu for.
    """
    start = next((i for i, line in enumerate(text.splitlines()) if '"Kernel Name"' in line), None)
    if start is None:
        raise ValueError("the profiler's table has no column Kernel Name")
    units, *rows = [*csv.DictReader(io.StringIO("\n".join(text.splitlines()[start:])))] or [{}]
    wanted = COUNTERS | {f"stall_{name}": STALL.format(name) for name in STALLS}
    absent = [counter for counter in (TIME, *wanted.values()) if counter not in units]
    if absent or not rows:
        raise ValueError(f"the profiler's table has no {f'column {absent[0]}' if absent else 'kernels'}")
    if units[TIME] not in NS:
        raise ValueError(f"the profiler's times are in {units[TIME]!r}; expected one of {', '.join(NS)}")
    found = {}
    for row in rows:
        ns = number(row, TIME) * NS[units[TIME]]
        one = found.setdefault(row["Kernel Name"].split("(")[0], dict(launches=0, ns=0.0) | dict.fromkeys(wanted, 0.0))
        one["launches"] += 1
        one["ns"] += ns
        for name, counter in wanted.items():
            one[name] += ns * number(row, counter)
    total = sum(one["ns"] for one in found.values())
    kept = [
        dict(name=name, launches=one["launches"], ms=one["ns"] / 1e6, share=one["ns"] / total)
        | {counter: one[counter] / one["ns"] for counter in wanted}
        for name, one in found.items()
    ]
    return sorted(kept, key=lambda one: -one["ms"])


def number(row, column):
    """A number of the table, which has commas between thousands; the time must be above 0."""
    try:
        value = float((row[column] or "").replace(",", ""))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (column == TIME and value <= 0):
        raise ValueError(f"the profiler's table has {row[column]!r} for {column} of {row['Kernel Name']}")
    return value


def read_profile(path: Path) -> dict:
    """What `profile` wrote. Raises FileNotFoundError, or ValueError where it is something else."""
    content = read_json(path)
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (KIND, FORMAT):
        raise ValueError(f"{path.name} is no {KIND} of format {FORMAT}; expected what vla_teach.bench.profile writes")
    expect(path, "it", content, PARTS)
    if not content["kernels"]:
        raise ValueError(f"{path.name} has no kernels")
    for i, one in enumerate(content["kernels"]):
        expect(path, f"kernels[{i}]", one, KERNEL | dict.fromkeys((*COUNTERS, *(f"stall_{x}" for x in STALLS)), float))
        if not above_0(one["ms"]) or not 0 < one["share"] <= 1:
            raise ValueError(f"{path.name}: kernels[{i}] has {one['ms']} ms, share {one['share']}")
    return content


def bound(kernel: dict) -> str:
    """What a kernel of `kernels` is limited by: "memory" or "instructions", whichever is busier, if it is busy half of
    the time; else "waiting": neither is, and its warps wait for each other's, or their own, results."""
    instructions = max(kernel["compute"], kernel["issue"])
    if max(instructions, kernel["memory"]) < BUSY:
        return "waiting"
    return "memory" if kernel["memory"] >= instructions else "instructions"


if __name__ == "__main__":
    sys.exit(main())
