"""The command line: python -m vla_teach.experiments {list, run NAME, show NAME}."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from vla_teach.experiments.catalogue import CATALOGUE, OFFICIAL, SIZES, variants
from vla_teach.experiments.results import ROOT, provenance, read_results, write_results
from vla_teach.experiments.sweep import run_experiment
from vla_teach.experiments.train import metric, mlp_widths
from vla_teach.tasks.lra import FOLDER

EVERY = CATALOGUE | OFFICIAL
RESULTS = dict(gpu="book/results", cpu="book/results/small")


def main(words=None):
    """Runs one command; returns the exit code: 0, 1 after an error, 2 where the command is wrong, 130 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m vla_teach.experiments", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every experiment in a line, and its minutes by size")
    run = commands.add_parser("run", help="train all models of an experiment and write the results")
    run.add_argument("--size", choices=SIZES, default="smoke", help="smoke: seconds; cpu: minutes; gpu: what counts")
    run.add_argument("--seeds", type=whole, help="how many at the best rate, in the place of the size's own")
    run.add_argument("--models", nargs="+", metavar="LABEL", help="these and no others; `show` names the usual ones")
    run.add_argument("--add", action="store_true", help="put --models into results that are there, made as they were")
    run.add_argument("--jobs", type=whole, default=1, help="training runs at a time, each in a process of its own")
    run.add_argument(
        "--together",
        type=whole,
        default=1,
        help="runs of one model that a process trains at once, as one "
        "stack: for a GPU, which small models leave idle; a stack that is stopped starts anew",
    )
    run.add_argument("--device", help="cpu, cuda, cuda:1 ...; the GPU if there is one for size gpu, else cpu")
    run.add_argument("--cache", type=Path, help="folder of checkpoints; .cache/experiments in the repository")
    run.add_argument("--fresh", action="store_true", help="forget what an earlier run of this left half-done")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    show = commands.add_parser("show", help="the settings of an experiment, and its results if there are any")
    for command in (run, show):
        command.add_argument("name", choices=EVERY, metavar="NAME", help=", ".join(EVERY))
        command.add_argument("--data", type=Path, help=f"folder of official files, for {', '.join(OFFICIAL)}")
        command.add_argument(
            "--out",
            type=Path,
            help="folder of results; book/results, its small for size cpu, a temporary one for smoke",
        )
    args = parser.parse_args(words)
    try:
        if getattr(args, "data", None):
            os.environ[FOLDER] = str(args.data.resolve())  # other processes read it there
        return dict(list=list_all, run=run_one, show=show_one)[args.command](args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def whole(text):
    """A whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def list_all(_):
    print("Minutes, with two jobs on two cores: size smoke 0.1, size cpu as given. Size gpu wants a GPU and hours.")
    for name, experiment in CATALOGUE.items():
        print(f"{name:16}{experiment.about} (cpu: {experiment.minutes})")
    print("With --data FOLDER, where the official files are:")
    for name, experiment in OFFICIAL.items():
        print(f"{name:16}{experiment.about}")
    return 0


def run_one(args):
    settings = EVERY[args.name].sizes[args.size]
    chosen = dict(seeds=args.seeds, labels=tuple(dict.fromkeys(args.models or ())))
    settings = replace(settings, **{name: value for name, value in chosen.items() if value})
    if unknown := [label for label in settings.labels if label not in variants(1)]:
        raise ValueError(f"--models {unknown[0]} is not known; expected some of {', '.join(variants(1))}")
    device = check_device(args.device or ("cuda" if args.size == "gpu" and torch.cuda.is_available() else "cpu"))
    out = results_folder(args)
    if args.add and (not args.models or args.seeds):
        raise ValueError("--add wants --models, and takes --seeds from the results")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder")
    before = read_results(out / f"{args.name}.json") if args.add else dict(runs=[])
    if args.add and before["size"] != args.size:
        raise ValueError(f"--add wants results of size {args.size}; they are of size {before['size']}")
    if args.add:
        settings = joined(settings, before)
    cache = (args.cache or home(".cache", "--cache") / "experiments") / f"{args.name}-{args.size}"
    if args.fresh:
        shutil.rmtree(cache, ignore_errors=True)
    started = time.perf_counter()
    runs, models, comparisons = run_experiment(
        settings, cache, device, args.jobs, args.quiet, args.together, before["runs"]
    )
    words = f"run {args.name} --size {args.size}" + (f" --seeds {args.seeds}" if args.seeds else "")
    words += f" --models {' '.join(args.models)}" + " --add" * args.add if args.models else ""
    words += f" --jobs {args.jobs}" + (f" --together {args.together}" if args.together > 1 else "")
    words += f" --device {args.device}" if args.device else ""
    about = provenance(f"python -m vla_teach.experiments {words}", device, time.perf_counter() - started)
    if args.add:
        added = [*before["provenance"].get("added", ()), dict(models=list(args.models)) | about]
        about = before["provenance"] | dict(added=added)
    results = dict(experiment=args.name, size=args.size, metric=metric(settings.task), provenance=about)
    results |= dict(settings=settings.described(), models=models, comparisons=comparisons, runs=runs)
    write_results(out / f"{args.name}.json", results)
    shutil.rmtree(cache, ignore_errors=True)
    print(table(results))
    print(f"written to {out / args.name}.json")
    return 0


def joined(settings, before):
    """The settings with the results' models before the new ones. Raises ValueError where anything else differs."""
    old, usual = before["settings"]["labels"], EVERY[before["experiment"]].sizes[before["size"]].labels
    if again := [label for label in settings.labels if label in old]:
        raise ValueError(f"--models {again[0]} is in the results already; expected new ones")
    every = [*old, *settings.labels]
    labels = [*(label for label in usual if label in every), *(label for label in every if label not in usual)]
    settings = replace(settings, labels=tuple(labels), seeds=before["settings"]["seeds"])
    plain, stored = json.loads(json.dumps(settings.described())), before["settings"]
    if other := [name for name in plain if name != "labels" and plain[name] != stored.get(name)]:
        raise ValueError(f"--add wants results of the same settings; {other[0]} is another there")
    sizes = {label: width for label, (width, _) in mlp_widths(settings).items()}
    if any(sizes[label] != model["mlp_width"] for label, model in before["models"].items()):
        raise ValueError("--add wants models no larger than those of the results, which would have to grow with them")
    return settings


def show_one(args):
    print(EVERY[args.name].about)
    for size, settings in EVERY[args.name].sizes.items():
        print(f"\n{size}")
        for name, value in settings.described().items():
            print(f"  {name}: {value}")
        counts = {label: parameters for label, (_, parameters) in mlp_widths(settings).items()}
        print(f"  parameters: {counts}")
    folders = [args.out] if args.out else [home(RESULTS[size], "--out") for size in ("gpu", "cpu")]
    found = [path for folder in folders if (path := folder / f"{args.name}.json").exists()]
    print("\n" + ("\n\n".join(table(read_results(path)) for path in found) or "no results yet"))
    return 0


def table(results):
    """The results as text, a line a model."""
    about, tests = results["provenance"], ["test", *results["settings"]["tests"]]
    lines = [f"{'model':18}{'rate':>8}  " + "  ".join(f"{name:>16}" for name in tests)]
    for label, model in results["models"].items():
        rate, cells = f"{model['rate']:g}" + ("*" if model["at_edge"] else ""), [cell(model["tests"][t]) for t in tests]
        lines.append(f"{label:18}{rate:>8}  " + "  ".join(f"{text:>16}" for text in cells))
    head = f"{results['experiment']}, {results['size']}: {results['metric']} on {about['device']}, {about['when']}"
    return "\n".join([head, *lines, "* the smallest or largest rate tried"])


def cell(scores):
    """Mean and standard deviation as text."""
    if scores["mean"] is None:
        return "diverged"
    return f"{scores['mean']:.4f}" + ("" if scores["sd"] is None else f" +- {scores['sd']:.4f}")


def check_device(name):
    """A device that is there."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not to be had: {str(error).splitlines()[0]}") from None
    return name


def results_folder(args):
    """Where `run` writes: --out, or the folder of the size; for smoke a new temporary one."""
    if args.out is not None:
        return args.out
    if args.size == "smoke":
        return Path(tempfile.mkdtemp(prefix="vla_teach_"))
    return home(RESULTS[args.size], "--out")


def home(folder, option):
    """A folder of the repository."""
    if not (ROOT / "book").is_dir():
        raise ValueError(f"this package is not in its repository; say where with {option} FOLDER")
    return ROOT / folder


if __name__ == "__main__":
    sys.exit(main())
