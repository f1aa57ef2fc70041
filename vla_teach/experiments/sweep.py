"""Many runs of one experiment: every rate of every model, the best rate by validation with all seeds, and the sums."""

import math
import multiprocessing
import os
import statistics
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import vla_teach
from vla_teach.experiments.catalogue import RIVALS
from vla_teach.experiments.results import device_name, read_json, write_json
from vla_teach.experiments.together import train_together
from vla_teach.experiments.train import better, digest, load_data, metric, mlp_widths, train

PACKAGE = Path(vla_teach.__file__).parent


class Run(NamedTuple):
    """One training run to make."""

    label: str
    rate: float
    seed: int


# ---- what to run, and what to make of it ------------------------------------------------------------------------


def sweep_runs(settings):
    """Every rate of every model, with the first seeds."""
    rates = {label: sorted({*settings.rates, *settings.more_rates.get(label, ())}) for label in settings.labels}
    seeds = range(min(settings.sweep_seeds, settings.seeds))
    return [Run(label, rate, seed) for label in settings.labels for rate, seed in product(rates[label], seeds)]


def sweep_of(settings, found):
    """Those of the found runs that decide the rates: of the first seeds."""
    return [run for run in found if run["seed"] < settings.sweep_seeds]


def best_rates(task, found):
    """{label: the rate whose mean validation score is best}, the smallest of equals. found: what `train` returned."""
    chosen = {}
    for label in dict.fromkeys(run["label"] for run in found):
        scores = {}
        for run in found:
            if run["label"] == label:
                scores.setdefault(run["rate"], []).append(run["validation"])
        means = {rate: None if None in some else statistics.mean(some) for rate, some in sorted(scores.items())}
        chosen[label] = min(means)
        for rate, mean in means.items():
            if better(task, mean, means[chosen[label]]):
                chosen[label] = rate
    return chosen


def summary(settings, found, chosen):
    """{label: parameters, rate, scores of every seed at that rate, their mean and standard deviation, by test set}."""
    models = {}
    for label, (mlp_width, parameters) in mlp_widths(settings).items():
        rates = sorted({run["rate"] for run in found if run["label"] == label})
        final = [run for run in found if (run["label"], run["rate"]) == (label, chosen[label])]
        final.sort(key=lambda run: run["seed"])
        tests = {}
        for name in ("test", *settings.tests):
            scores = [run["tests"].get(name) for run in final]
            known = [score for score in scores if score is not None]
            sd = statistics.stdev(known) if len(known) > 1 else None
            tests[name] = dict(scores=scores, mean=statistics.mean(known) if known else None, sd=sd)
        # At the edge a better rate may lie outside; the reader should know.
        edge = len(rates) > 1 and chosen[label] in (rates[0], rates[-1])
        models[label] = dict(parameters=parameters, mlp_width=mlp_width, rate=chosen[label], at_edge=edge, tests=tests)
    return models


def comparisons(models, test="test"):
    """Every variant of VLA against every baseline and against no penalty, seed by seed, with p by Holm's method too."""
    pairs = product(models, (*RIVALS, "vla_off"))
    return paired(models, [(a, b) for a, b in pairs if a.startswith("vla") and a != b and b in models], test)


def paired(models, pairs, test="test"):
    """Pairs of labels, seed by seed: difference of the means, p, and p by Holm's method over these pairs."""
    found = []
    for label, other in pairs:
        scores = zip(*(models[one]["tests"][test]["scores"] for one in (label, other)), strict=True)
        differences = [a - b for a, b in scores if None not in (a, b)]
        mean = statistics.mean(differences) if differences else None
        found.append(dict(model=label, against=other, n=len(differences), difference=mean, p=paired_p(differences)))
    tested = [one for one in found if one["p"] is not None]
    for one, p in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one["p_holm"] = p
    return found


def holm(ps):
    """p values corrected for their number by Holm's method, in the order given; None stays None and is not counted."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    corrected, least = [None] * len(ps), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, ps[i] * (len(order) - rank)))
        corrected[i] = least
    return corrected


def paired_p(differences):
    """The two-sided p of a paired t-test; None for fewer than two pairs, or for differences that are all the same."""
    n = len(differences)
    if n < 2 or statistics.stdev(differences) == 0:
        return None
    t = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    # Student's t for whole degrees of freedom f: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    f, angle = n - 1, math.atan(abs(t) / math.sqrt(n - 1))
    term = math.cos(angle) if f % 2 else 1.0
    total = 0.0
    for k in range(1 + f % 2, f, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if f % 2 else math.sin(angle) * total
    return max(0.0, 1 - inside)


# ---- running ----------------------------------------------------------------------------------------------------

STEPS = None  # how many steps all processes have made, shared between them


def run_experiment(settings, folder, device="cpu", jobs=1, quiet=False, together=1, known=()):
    """All runs: (what `train` returned for each, in order; models; comparisons). jobs: how many processes at a time.

    together: how many runs of one model a process trains at once, see `train_together`.
    known: runs made before, of models that then are not run again.
    folder: for checkpoints and finished runs, from which an experiment that was stopped goes on.
    """
    if settings.pool:
        load_data(settings, folder)  # drawn once, before several processes want it
    new = [label for label in settings.labels if label not in {run["label"] for run in known}]
    first = [run for run in sweep_runs(settings) if run.label in new]
    rest = len(new) * (settings.seeds - min(settings.sweep_seeds, settings.seeds))
    total = settings.steps * (len(first) + rest)
    with tqdm(total=total, unit=" steps", disable=quiet, smoothing=0.02) as bar, processes(jobs) as pool:
        found = run_all(first, settings, folder, device, pool, bar, together)
        rates = best_rates(settings.task, found)
        more = [Run(label, rate, seed) for label, rate in rates.items() for seed in range(settings.seeds)]
        found += run_all([run for run in more if run not in first], settings, folder, device, pool, bar, together)
    found = [*known, *found]
    models = summary(settings, found, best_rates(settings.task, sweep_of(settings, found)))
    return found, models, comparisons(models)


def run_all(runs, settings, folder, device, pool, bar, together=1):
    """What `train` returned for each run, in their order, whatever the order in which they end."""
    stacks = [
        stack
        for label in dict.fromkeys(run.label for run in runs)
        for stack in batched([run for run in runs if run.label == label], together)
    ]

    def note(run):
        score = "diverged" if run["validation"] is None else f"{metric(settings.task)} {run['validation']:.4f}"
        bar.set_postfix_str(f"{run['label']} at {run['rate']:g}, seed {run['seed']}: {score}")
        return run

    if pool is None:
        return [note(run) for stack in stacks for run in one_stack(settings, stack, folder, device, bar.update)]
    futures = [pool.submit(one_stack, settings, stack, folder, device) for stack in stacks]
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        bar.update(STEPS.value - bar.n)
        for future in done:
            for run in future.result():
                note(run)
    return [run for future in futures for run in future.result()]


def batched(some, n):
    """Lists of at most n, in order (itertools has it from Python 3.12 on)."""
    rest = iter(some)
    return list(iter(lambda: list(islice(rest, n)), []))


def one_stack(settings, stack, folder, device, tick=None):
    """`train` for one run, or `train_together` for several of one model, less those whose result is in the folder."""
    keys = [digest(source(), settings.described(), run, device_name(device), torch.__version__) for run in stack]
    paths, tick = [folder / f"{key}.json" for key in keys], tick or count_steps
    left = [i for i, path in enumerate(paths) if not path.exists()]
    tick(settings.steps * (len(stack) - len(left)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small to share between cores, and sums keep their order
    key = keys[left[0]] if len(left) == 1 else digest([keys[i] for i in left])
    kept = checkpoint(folder / f"{key}.json")
    try:
        data = load_data(settings, folder) if left else None
        if len(left) > 1:
            some = [stack[i][1:] for i in left]
            found = train_together(settings, stack[0].label, some, device, data, kept, key, tick)
        else:
            found = [train(settings, *stack[i], device, data, kept, key, tick) for i in left]
    finally:
        torch.set_num_threads(threads)
    for i, one in zip(left, found, strict=True):
        write_json(paths[i], one)
    kept.unlink(missing_ok=True)
    return [read_json(path) for path in paths]


def checkpoint(path):
    """Where a run that is not done is kept, beside where its result will be."""
    return path.with_suffix(".safetensors")


@cache
def source():
    """A digest of the package's code: what other code began is not gone on with."""
    return sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py")))).hexdigest()


# ---- processes --------------------------------------------------------------------------------------------------


@contextmanager
def processes(jobs):
    """A pool of processes, or None for one job, which needs none. After an error what waits is dropped."""
    global STEPS
    if jobs == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    STEPS = context.Value("q", 0)
    pool = ProcessPoolExecutor(jobs, context, start_process, (STEPS,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def start_process(steps):
    """In a new process: keep the counter, and end when the process that started this one has ended."""
    global STEPS
    STEPS = steps
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def count_steps(n):
    """Counts n more steps for the progress bar."""
    with STEPS.get_lock():
        STEPS.value += n
