"""One training run over several ranks: parts of the batch, slices of the sequences, or both; started by torchrun.

    torchrun --standalone --nproc-per-node 4 --max-restarts 3 \\
        -m vla_teach.experiments.ranks --sequence 2 --checkpoint FILE

This is `train`, with its model, batches, optimiser and checkpoints, and gives its numbers but for rounding. Ranks stand
in rows: the `sequence` ranks of a row share the same examples, each with a slice of their tokens, and the rows share
out the batch. What a rank sends in a step:

    to its row, a layer   the last inputs of the convolution, then what `vla_teach.distributed` exchanges
    to all                its share of the gradient of every weight, to be added up; at a look also what it counted

Every rank draws the whole batch from the seed and keeps its part: so no data are sent. A rank that is lost ends the
others with an error, after --timeout seconds at the latest; torchrun --max-restarts starts all again, and they go on
from the checkpoint, which does not depend on the number of ranks.
"""

import argparse
import json
import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from vla_teach import ops
from vla_teach.checks import check_count
from vla_teach.distributed import Gather
from vla_teach.experiments.catalogue import Settings
from vla_teach.experiments.results import provenance, write_json
from vla_teach.experiments.train import (
    build,
    digest,
    finite_or_none,
    load_checkpoint,
    load_data,
    look,
    make_optimiser,
    on_device,
    rate_at,
    rows,
    save_checkpoint,
    training_batch,
)
from vla_teach.layers import VariationalLinearAttention
from vla_teach.tasks import Copy, DelayedRecall
from vla_teach.tasks.base import Batch

TIMEOUT = 60  # seconds


class Place(NamedTuple):
    """Where a rank stands. Ranks count along the rows."""

    row: int  # which part of the batch
    rows: int
    slice: int  # which part of the tokens
    slices: int
    group: dist.ProcessGroup  # of its row
    all: dist.ProcessGroup


def place_of(sequence, timeout):
    """The Place of this process, with `sequence` ranks in a row. All processes must come here.

    Not by init_device_mesh: it has no way to hand a timeout on, and its groups would wait for half an hour.
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    if n % check_count("sequence", sequence):
        raise ValueError(f"sequence is {sequence}; expected a divisor of the number of ranks, {n}")
    wait, mine = timedelta(seconds=timeout), None
    for first in range(0, n, sequence):
        group = dist.new_group(list(range(first, first + sequence)), timeout=wait)
        mine = group if first <= rank < first + sequence else mine
    return Place(rank // sequence, n // sequence, rank % sequence, sequence, mine, dist.group.WORLD)


def join(backend, timeout):
    """init_process_group, also after torchrun has started all again.

    The store, in which processes leave their addresses, outlives them, and in PyTorch 2.13 the new ones at times found
    the addresses of the dead. So each attempt has a corner of its own.
    """
    wait = timedelta(seconds=timeout)
    store, rank, n = next(dist.rendezvous("env://", timeout=wait))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=wait)


def part(n, i, of):
    """Piece i of n things that are shared out evenly, as a slice."""
    return slice(n * i // of, n * (i + 1) // of)


def piece(batch, place):
    """This rank's rows and tokens of a Batch."""
    own = rows(batch, part(len(batch.x), place.row, place.rows))
    mine = part(batch.x.shape[1], place.slice, place.slices)
    return Batch(*(None if a is None else a[:, mine] for a in own))


# ---- the model --------------------------------------------------------------------------------------------------


class SlicedVLA(VariationalLinearAttention):
    """The layer where each rank of a group has a slice of the tokens. It holds the same weights, under the same names.

    The state that comes back is that after the whole sequence, but its `conv` and `tokens` are of the slice.
    """

    def shift(self, qkv, past):
        """The convolution looks back over the border: its first tokens need the last inputs of the rank before."""
        if self.conv is not None:
            n, rank = self.conv_width - 1, dist.get_rank(self.group)
            if qkv.shape[1] < n:
                raise ValueError(f"a slice has {qkv.shape[1]} tokens; expected {n} at least, or fewer ranks")
            # Times 0 on the first rank, and not left out: it has to come to the exchange of the gradient, too.
            past = Gather.apply(qkv[:, qkv.shape[1] - n :], self.group)[rank - 1] * (rank > 0)
        return super().shift(qkv, past)

    def write(self, q, k, v, u, beta, state):
        start = ops.State(state.S, state.A)
        options = dict(gain=self.gain, initial_state=start, output_final_state=True, backend=self.backend)
        o, last = ops.vla(q, k, v, u, beta, group=self.group, **options)
        return o, *last


def over_slices(model, group):
    """The TaskModel, with layers that work together over the group. Raises ValueError where one cannot."""
    layers = [block.layer for block in model.backbone.blocks]
    for name, wrong in (
        ("a layer other than VLA", any(type(layer) is not VariationalLinearAttention for layer in layers)),
        ("positions", model.backbone.positions is not None),
        ("pooling over tokens", model.pooling == "mean"),
        (
            "a relation between all tokens",
            model.related or any(getattr(x, "penalty", None) == "relation" for x in layers),
        ),
        ("a nudge", any(getattr(x, "nudge", 0) for x in layers)),
        ("a sum over all features", any(getattr(x, "z_normaliser", False) for x in layers)),
    ):
        if wrong:
            raise ValueError(f"the model has {name}; expected one without where sequences are cut into slices")
    for layer in layers:
        layer.__class__, layer.group = SlicedVLA, group
    return model


# ---- training ---------------------------------------------------------------------------------------------------


def add_up(tensors, group):
    """Every tensor becomes the sum of those of all ranks, in one exchange."""
    flat = torch.cat([x.flatten() for x in tensors])
    try:
        dist.all_reduce(flat, group=group)
    except RuntimeError as error:
        raise RuntimeError("another rank has ended, failed, or not come within the group's timeout") from error
    for x, total in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
        x.copy_(total.view_as(x))


def total_loss(task, out, y):
    """The sum of the losses of the answers here, which may be none."""
    return F.mse_loss(out, y, reduction="sum") if task.kind == "regress" else F.cross_entropy(out, y, reduction="sum")


def step(model, optimiser, settings, batch, place, device):
    """One update, the same on all ranks; the loss of the whole batch before it, a tensor."""
    x, asked, y, _ = on_device(piece(batch, place), device)
    count = int(batch.mask.sum()) * (batch.y.shape[2] if settings.task.kind == "regress" else 1)
    loss = total_loss(settings.task, model(x, asked), y) / count
    optimiser.zero_grad()
    loss.backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    for p in weights:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    loss = loss.detach().clone()
    add_up([loss, *(p.grad for p in weights)], place.all)
    nn.utils.clip_grad_norm_(weights, settings.clip)
    optimiser.step()
    return loss


@torch.no_grad()
def evaluate(model, task, batch, size, place, device):
    """The score on a Batch, `size` examples at a time; None where the model gives NaN or infinity."""
    found = torch.zeros(3, dtype=torch.float64, device=device)  # what is right, how much was asked, what is not finite
    for start in range(0, len(batch.x), size):
        x, asked, y, _ = on_device(piece(rows(batch, slice(start, start + size)), place), device)
        out = finite_or_none(lambda x=x, asked=asked: model(x, asked))
        if out is None:  # weights with NaN, and so on all ranks
            return None
        right = (out - y).square() if task.kind == "regress" else out.argmax(-1) == y
        wrong = (~out.isfinite()).sum()
        found += torch.stack([right.double().sum(), wrong.new_tensor(right.numel()), wrong])
    add_up([found], place.all)
    right, asked, wrong = found.tolist()
    return None if wrong else right / asked


def agree(model, place):
    """Raises RuntimeError where the ranks' weights are not the same to the last bit."""
    total = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
    all_ = [torch.empty_like(total) for _ in range(place.rows * place.slices)]
    dist.all_gather(all_, total, group=place.all)
    if any(not torch.equal(x, total) and x.isfinite() for x in all_):
        raise RuntimeError(f"the ranks have different weights; their sums are {[x.item() for x in all_]}")


def train_over(settings, label, rate, seed, place, device="cpu", checkpoint=None, tick=None):
    """`train` over the ranks of a Place: its arguments and results on every rank, its numbers to rounding.

    checkpoint: a path that all ranks can read; rank 0 writes it, at every look. tick(n): called after n more steps.
    What ends the run is known to all ranks, so that they end together.
    """
    task, data, key = settings.task, load_data(settings), digest(settings.described(), label, rate, seed)
    model = build(settings, label, seed).to(device)
    model = over_slices(model, place.group) if place.slices > 1 else model
    check_fits(settings, model, place)
    optimiser = make_optimiser(model, settings)
    now = dict(step=0, history=[], best=None, best_step=0, stopped=None, seconds=0.0)
    best = {name: x.clone() for name, x in model.state_dict().items()}
    if checkpoint is not None and checkpoint.exists():
        now, best = load_checkpoint(checkpoint, key, model.load_state_dict, optimiser, device)
    dist.barrier(group=place.all)  # nobody writes the file while another looks for it
    started, losses = time.perf_counter() - now["seconds"], []
    tick = tick or (lambda n: None)
    while now["step"] < settings.steps and not now["stopped"]:
        for group in optimiser.param_groups:
            group["lr"] = rate_at(settings, rate, now["step"])
        batch = training_batch(settings, data, seed, now["step"])
        now["step"] += 1
        losses.append(finite_or_none(lambda batch=batch: step(model, optimiser, settings, batch, place, device)))
        tick(1)
        if losses[-1] is not None and now["step"] % settings.every and now["step"] < settings.steps:
            continue
        mean = math.nan if losses[-1] is None else torch.stack(losses).mean().item()
        score = evaluate(model, task, data.validation, settings.batch, place, device) if math.isfinite(mean) else None
        if look(settings, now, mean, score):
            best = {name: x.clone() for name, x in model.state_dict().items()}
        if now["stopped"] == "diverged":
            break
        agree(model, place)
        losses.clear()
        now["seconds"] = time.perf_counter() - started
        if checkpoint is not None and dist.get_rank() == 0:
            save_checkpoint(checkpoint, key, now, model.state_dict(), best, optimiser)
    model.load_state_dict(best)
    names = data.tests if now["best"] is not None else {}
    tests = {name: evaluate(model, task, batch, settings.batch, place, device) for name, batch in names.items()}
    found = dict(label=label, rate=rate, seed=seed, validation=now["best"], tests=tests)
    ended = {name: now[name] for name in ("best_step", "step", "stopped", "history")}
    return found | ended | dict(seconds=time.perf_counter() - started), model


def check_fits(settings, model, place):
    """Refuses what cannot be shared out."""
    if settings.batch < place.rows or settings.held_out < place.rows:
        raise ValueError(
            f"batch is {settings.batch} and held_out is {settings.held_out}; expected {place.rows} at least"
        )
    if settings.task.length < place.slices:
        raise ValueError(f"the task has {settings.task.length} tokens; expected {place.slices} at least")


# ---- the command line -------------------------------------------------------------------------------------------


def main(words=None):
    """One rank of the run. Returns the exit code: 0, or 2 for a wrong command."""
    parser = argparse.ArgumentParser(
        prog="torchrun -m vla_teach.experiments.ranks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--sequence", type=int, default=1, help="ranks that share a sequence; the others share the batch"
    )
    parser.add_argument("--task", choices=("recall", "copy"), default="recall", help="delayed recall, or copying")
    parser.add_argument("--length", type=int, default=1024, help="tokens of an example")
    parser.add_argument("--label", default="vla", help="which VLA: vla, vla_gated, vla_rank_2, ...")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="examples of a step, of all ranks together")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="steps from one look, and checkpoint, to the next")
    parser.add_argument("--held-out", type=int, default=256, help="examples to validate, and as many to test")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="where to keep it; a run that finds it goes on from there")
    parser.add_argument("--out", type=Path, help="a JSON file for the scores")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds that a rank waits for another")
    args = parser.parse_args(words)
    if "RANK" not in os.environ:
        parser.error("it is one rank of many; start it with torchrun")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    started = time.perf_counter()
    join("nccl" if cuda else "gloo", args.timeout)
    try:
        found = train_over(settings_of(args), args.label, args.rate, args.seed, place_of(args.sequence, args.timeout),
                           device, args.checkpoint)[0]  # fmt: skip
    except ValueError as error:
        print(f"rank {dist.get_rank()}: error: {error}", file=sys.stderr)
        return 2
    if dist.get_rank() == 0:
        for one in found["history"]:
            print(f"step {one['step']:6d}  loss {one['loss']:.4f}  validation {one['validation']:.4f}")
        print("test:", json.dumps(found["tests"]))
        if args.out is not None:
            command = " ".join([parser.prog, *(sys.argv[1:] if words is None else words)])
            about = provenance(command, device, time.perf_counter() - started)
            write_json(args.out, dict(provenance=about, ranks=dist.get_world_size(), run=found))
    dist.barrier()  # nobody leaves before all are done
    dist.destroy_process_group()
    return 0


def settings_of(args):
    """Settings for the command line."""
    task = Copy(args.length // 2) if args.task == "copy" else DelayedRecall(args.length - 3)
    model = dict(width=args.width, depth=args.depth, heads=args.heads)
    names = ("batch", "steps", "every", "held_out")
    return Settings(task, (args.label,), model, **{name: getattr(args, name) for name in names})


if __name__ == "__main__":
    sys.exit(main())
