"""What the tests of `vla_teach.experiments.ranks` share: small settings, and a run on each of some processes."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from oracle_distributed import module
from safetensors.torch import load_file

from vla_teach.experiments.catalogue import Settings
from vla_teach.experiments.train import digest, train
from vla_teach.tasks import Copy, DelayedRecall

MORE = dict(batch=7, every=2, held_out=5)
MODEL = dict(width=8, depth=2, heads=2)
SETTINGS = {
    "copy": Settings(Copy(n=7, symbols=5, shown=True), ("vla_gated",), MODEL, steps=6, **MORE),
    "recall": Settings(DelayedRecall(10, keys=3), ("vla_rank_2",), MODEL | dict(depth=1), steps=8, **MORE),
}
RATE, SEED = 1e-2, 3


@contextmanager
def double():
    """All weights in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def key(settings):
    return digest(settings.described(), settings.labels[0], RATE, SEED)


def alone(name, path):
    """(what `train` returns, the tensors of its last checkpoint): one process."""
    settings = SETTINGS[name]
    with double():
        found = train(settings, settings.labels[0], RATE, SEED, checkpoint=path, key=key(settings))
    return plain(found), load_file(path)


def plain(found):
    return {name: value for name, value in found.items() if name != "seconds"}


def train_some(groups, name, sequence, path, original=None, broken=None, die_at=None, how=None, timeout=30):
    """A rank's part of a run: what it returns, or the words of its error and the seconds until it came.

    die_at: the step in which the last rank ends, or is late.
    """
    ranks = module("vla_teach.experiments.ranks", original, broken)
    settings, steps = SETTINGS[name], 0
    place = ranks.place_of(sequence, timeout)
    last = time.monotonic()

    def tick(n):
        nonlocal steps, last
        steps, last = steps + n, time.monotonic()
        if steps == die_at and dist.get_rank() == dist.get_world_size() - 1:
            os._exit(1) if how == "ends" else time.sleep(3 * timeout)

    with double():
        try:
            args = settings, settings.labels[0], RATE, SEED, place
            return plain(ranks.train_over(*args, checkpoint=Path(path) if path else None, tick=tick)[0])
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - last
