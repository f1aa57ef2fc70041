"""Where the time of one forward and backward pass goes, kernel by kernel, by Nsight Compute's counters.

    python -m vla_teach.bench.profile

It starts itself again under `ncu`, which must be installed and allowed to read the GPU's counters, and writes
book/results/profile.json.
"""

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vla_teach.bench.contestants import BOTH, CONTESTANTS, draw
from vla_teach.bench.measure import gradients, leaves, random_like
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


def main(words=None):
    """Returns the exit code: 0, 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m vla_teach.bench.profile", description=__doc__)
    parser.add_argument("--D", type=int, default=64, help="the width of a head")
    parser.add_argument("--T", type=int, default=65536, help="tokens")
    parser.add_argument("--H", type=int, default=16, help="heads")
    parser.add_argument("--out", type=Path, default=ROOT / "book/results/profile.json", help="the file to write")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if not torch.cuda.is_available():
        print(f"{parser.prog}: error: there is no CUDA GPU here; nothing was measured", file=sys.stderr)
        return 2
    if args.inside:
        one_call(args.T, args.H, args.D)
        return 0
    try:
        profile(args.T, args.H, args.D, args.out)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"written to {args.out}")
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


def profile(T, H, D, out):
    """Runs `one_call` under ncu and writes what `kernels` makes of its counters."""
    ncu = shutil.which("ncu")
    if ncu is None:
        raise ValueError("there is no ncu (Nsight Compute) on the path")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "counters.csv"
        words = [ncu, "--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none"]
        words += [word for name in SECTIONS for word in ("--section", name)] + ["--log-file", str(log)]
        words += [sys.executable, "-m", "vla_teach.bench.profile", "--inside"]
        words += ["--D", str(D), "--T", str(T), "--H", str(H)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        text = log.read_text() if log.exists() else ""
    if done.returncode or "Kernel Name" not in text:
        raise ValueError(f"ncu failed: {(done.stderr or done.stdout or text).strip()[-300:]}")
    about = provenance("python -m vla_teach.bench.profile", "cuda", time.perf_counter() - started)
    about |= dict(versions=about["versions"] | versions(), sources=sources())
    settings = dict(B=1, T=T, H=H, D=D, dtype="bfloat16", passes=BOTH)
    write_json(out, dict(kind=KIND, format=FORMAT, provenance=about, settings=settings, kernels=kernels(text)))


def kernels(text):
    """A list of dict(name, launches, ms, share, and counters), the longest first, from ncu's table as text.

    A counter of several launches is their mean, weighed by time. share: of the time of all kernels.
    """
    start = next((i for i, line in enumerate(text.splitlines()) if '"Kernel Name"' in line), None)
    if start is None:
        raise ValueError("the profiler's table has no column Kernel Name")
    units, *rows = csv.DictReader(io.StringIO("\n".join(text.splitlines()[start:])))
    wanted = COUNTERS | {f"stall_{name}": STALL.format(name) for name in STALLS}
    found = {}
    for row in rows:
        ns = number(row[TIME]) * NS[units[TIME]]
        one = found.setdefault(row["Kernel Name"].split("(")[0], dict(launches=0, ns=0.0) | dict.fromkeys(wanted, 0.0))
        one["launches"] += 1
        one["ns"] += ns
        for name, counter in wanted.items():
            one[name] += ns * number(row[counter])
    total = sum(one["ns"] for one in found.values())
    kept = [
        dict(name=name, launches=one["launches"], ms=one["ns"] / 1e6, share=one["ns"] / total)
        | {counter: one[counter] / one["ns"] for counter in wanted}
        for name, one in found.items()
    ]
    return sorted(kept, key=lambda one: -one["ms"])


def number(word):
    return float(word.replace(",", ""))


def read_profile(path):
    """What `profile` wrote. Raises FileNotFoundError, or ValueError where it is something else."""
    content = read_json(path)
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (KIND, FORMAT):
        raise ValueError(f"{path.name} is no {KIND} of format {FORMAT}; expected what vla_teach.bench.profile writes")
    return content


if __name__ == "__main__":
    sys.exit(main())
