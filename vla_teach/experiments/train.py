"""One training run: a model, a task, AdamW, a look at the validation set now and then; and how to go on after a kill.

Run twice it gives the same numbers, on the CPU to the last bit, whether in one go or resumed from its checkpoint.
"""

import hashlib
import json
import math
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from vla_teach.experiments.results import writing
from vla_teach.layers import check_option
from vla_teach.models import Backbone, count, matched
from vla_teach.tasks.base import Batch
from vla_teach.tasks.stored import Examples
from vla_teach.tensor_checks import FINITE

FORMAT = 2  # of checkpoints
NOT_DECAYED = ("log_rate", "step", "raw_lambda_0", "raw_ridge")  # besides all with one axis
TRAIN, VALIDATION, TEST, INIT = range(4)  # what random numbers are for


# ---- the model --------------------------------------------------------------------------------------------------


class TaskModel(nn.Module):
    """What a task asks for, from tokens [B, T], pairs of tokens [B, T, 2] or floats [B, T, D]: [asked, classes].

    pooling: "asked" reads the answer off the token where it is asked, "mean" off the mean of all tokens up to there.
    related: whether each token also gets the sum of the tokens before it, weighted with the task's relation W.
    Where the answers are tokens, the head uses the embedding's weights. backbone: see `models.Backbone`.
    """

    def __init__(self, task, width, depth, pooling="asked", related=False, **backbone):
        super().__init__()
        self.backbone = Backbone(width, depth, **backbone)
        self.pooling, self.related = check_option("pooling", pooling, ("asked", "mean")), related
        if task.inputs == "floats":
            self.embedding = nn.Linear(task.batch(1, 0).x.shape[2], width)
        else:
            self.embedding = nn.Embedding(task.vocab, width)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.head = None if task.kind == "tokens" and task.vocab == task.classes else nn.Linear(width, task.classes)

    def forward(self, x, asked, W=None):
        """asked: where in the B T positions, counted row after row. W [B, T, T] or None."""
        x = self.embedding(x)
        x = x.sum(2) if x.ndim == 4 else x  # keys and values are different tokens, so that a sum tells them apart
        if self.related:
            x = x + W.tril(-1) @ x
        uses = [getattr(block.layer, "penalty", None) == "relation" for block in self.backbone.blocks]
        y, _ = self.backbone(x, None, W if any(uses) else None)
        y = self.pooled(y, asked) if self.pooling == "mean" else y.flatten(0, 1)[asked]
        return F.linear(y, self.embedding.weight) if self.head is None else self.head(y)

    def pooled(self, y, asked):
        """The mean over each row up to where it is asked, once a row: y [B, T, D] -> [B, D]."""
        T = y.shape[1]
        seen = torch.arange(T, device=y.device) <= (asked % T)[:, None]
        return (y * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)


def mlp_widths(settings):
    """{label: (mlp_width, parameters)} so that all models have about the same number of parameters."""
    with torch.device("meta"):
        models = matched(TaskModel, settings.variants, task=settings.task, **settings.model)
    return {label: (model.backbone.blocks[0].mlp.out.in_features, count(model)) for label, model in models.items()}


def build(settings, label, seed):
    """The model of this label, with weights that its label and the seed decide."""
    torch.manual_seed(number(INIT, seed))
    mlp_width, _ = mlp_widths(settings)[label]
    options = settings.model | settings.variants[label] | dict(mlp_width=mlp_width)
    return TaskModel(settings.task, **options)


# ---- data -------------------------------------------------------------------------------------------------------


def number(*parts):
    """One seed from several whole numbers, so that different uses never share one."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Data(NamedTuple):
    """The held-out examples as Batches, and where training batches come from; None for fresh ones."""

    validation: Batch
    tests: dict  # by name; "test" first
    pool: Batch | Examples | None


def rows(batch, index):
    """Some examples of a Batch."""
    return Batch(*(None if part is None else part[index] for part in batch))


def load_data(settings, folder=None):
    """Data for these settings. A pool takes long to draw: it is kept in the folder, where one is given."""
    task, n, pool = settings.task, settings.held_out, None
    more = {name: one.batch(n, number(TEST, i + 1)) for i, (name, one) in enumerate(settings.tests.items())}
    if hasattr(task, "split"):
        pool, *held = (replace(task, split=name).examples for name in ("train", "val", "test"))
        validation, test = (part.pick(range(min(n, len(part)))) for part in held)
    elif settings.pool:  # in one draw, so that a task that removes duplicates removes them from all of it
        drawn = stored_draw(task, settings.pool + 2 * n, folder)
        validation, test, pool = (rows(drawn, s) for s in (slice(n), slice(n, 2 * n), slice(2 * n, None)))
    else:
        validation, test = task.batch(n, number(VALIDATION)), task.batch(n, number(TEST))
    return Data(validation, {"test": test} | more, pool)


def stored_draw(task, B, folder):
    """task.batch(B, ...), from the folder's file if it is there, else put there."""
    if folder is None:
        return task.batch(B, number(TRAIN))
    path = folder / f"data-{digest(type(task).__name__, vars(task), B)}.npz"
    if not path.exists():
        drawn = Batch(*map(small, task.batch(B, number(TRAIN))))
        with writing(path) as new:
            np.savez(new, **{name: part for name, part in drawn._asdict().items() if part is not None})
    with np.load(path, allow_pickle=False) as parts:
        return Batch(**parts)


def small(part):
    """Whole numbers in the smallest type that holds them; other arrays as they are."""
    if part is None or part.dtype.kind != "i":
        return part
    return part.astype(np.result_type(*(np.min_scalar_type(end) for end in (part.min(), part.max()))))


def training_batch(settings, data, seed, step):
    """The Batch of one step: decided by seed and step alone, so that all models and rates see the same."""
    if data.pool is None:
        return settings.task.batch(settings.batch, number(TRAIN, seed, step))
    stored = isinstance(data.pool, Examples)  # which are many and long, and padded only when they are used
    total = len(data.pool if stored else data.pool.x)
    chosen = np.random.default_rng(number(TRAIN, seed, step)).choice(total, settings.batch, replace=False)
    return data.pool.pick(chosen) if stored else rows(data.pool, chosen)


def on_device(batch, device):
    """A Batch as tensors: x, where answers are asked (see TaskModel), the answers there, W or None."""
    asked = np.flatnonzero(batch.mask)  # here and not on a GPU, which would have to be waited for
    y = batch.y.reshape(-1, *batch.y.shape[2:])[asked]
    parts = (torch.from_numpy(np.ascontiguousarray(part)) for part in (batch.x, asked, y))
    x, asked, y = (part.float() if part.is_floating_point() else part.long() for part in parts)
    W = None if batch.W is None else torch.from_numpy(batch.W).float().to(device)
    return x.to(device), asked.to(device), y.to(device), W


# ---- training ---------------------------------------------------------------------------------------------------


def metric(task):
    """What the score of a task is: higher is better for an accuracy, lower for a mean square error."""
    return "mse" if task.kind == "regress" else "accuracy"


def better(task, score, than):
    """Whether one score beats another. None, the score of a run that diverged at once, beats nothing."""
    if score is None or than is None:
        return score is not None
    return score < than if metric(task) == "mse" else score > than


def loss_of(task, logits, y):
    return F.mse_loss(logits, y) if task.kind == "regress" else F.cross_entropy(logits, y)


@torch.no_grad()
def evaluate(model, task, batch, size, device):
    """The score on a Batch, `size` examples at a time; None where the model gives NaN or infinity."""
    total, asked = 0.0, 0
    for start in range(0, len(batch.x), size):
        x, where, y, W = on_device(rows(batch, slice(start, start + size)), device)
        out = finite_or_none(lambda x=x, where=where, W=W: model(x, where, W))
        if out is None or not out.isfinite().all():
            return None
        right = (out - y).square() if task.kind == "regress" else out.argmax(-1) == y
        total, asked = total + right.double().sum().item(), asked + right.numel()
    return total / asked


def finite_or_none(compute):
    """compute(), or None where a layer refuses NaN, which layers do on the CPU alone."""
    try:
        return compute()
    except ValueError as error:
        if FINITE in str(error):
            return None
        raise


def rate_at(settings, rate, step):
    """The learning rate: a straight line up, then a cosine down to 0."""
    warm_up = settings.warm_up * settings.steps
    if step < warm_up:
        return rate * (step + 1) / (warm_up + 1)
    return rate * (1 + math.cos(math.pi * (step - warm_up) / (settings.steps - warm_up))) / 2


def make_optimiser(model, settings):
    """AdamW that pulls matrices to 0, but not gains, biases, and numbers that set a scale."""
    groups = [], []
    for name, p in model.named_parameters():
        groups[not undecayed(name, p.ndim)].append(p)
    decays = zip(groups, (0.0, settings.weight_decay), strict=True)
    return torch.optim.AdamW([dict(params=group, weight_decay=decay) for group, decay in decays], lr=0.0)


def undecayed(name, ndim):
    """Whether a parameter is left alone by the weight decay."""
    return ndim <= 1 or name.rsplit(".", 1)[-1] in NOT_DECAYED


def step(model, optimiser, settings, batch):
    """One update; the loss before it, a tensor."""
    x, asked, y, W = batch
    loss = loss_of(settings.task, model(x, asked, W), y)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimiser.step()
    return loss.detach()


def train(settings, label, rate, seed, device="cpu", data=None, checkpoint=None, key="", tick=None):
    """One run: its scores on validation and test, taken where validation was best, as plain data.

    data: from `load_data`. checkpoint: a path; a run that finds its file there goes on from it. key: what the file must
    say it belongs to. tick(n) is called after n more steps.
    A run that meets NaN stops there; what it reached before counts, its scores are None if that is nothing.
    Raises ValueError if the file is broken, of another format or another run's.
    """
    data = load_data(settings) if data is None else data
    task, model = settings.task, build(settings, label, seed).to(device)
    optimiser = make_optimiser(model, settings)
    now = dict(step=0, history=[], best=None, best_step=0, stopped=None, seconds=0.0)
    best = {name: x.clone() for name, x in model.state_dict().items()}
    if checkpoint is not None and checkpoint.exists():
        now, best = load_checkpoint(checkpoint, key, model.load_state_dict, optimiser, device)
    started, losses = time.perf_counter() - now["seconds"], []
    tick = tick or (lambda n: None)
    tick(now["step"])
    while now["step"] < settings.steps and not now["stopped"]:
        for group in optimiser.param_groups:
            group["lr"] = rate_at(settings, rate, now["step"])
        batch = on_device(training_batch(settings, data, seed, now["step"]), device)
        now["step"] += 1
        losses.append(finite_or_none(lambda batch=batch: step(model, optimiser, settings, batch)))
        tick(1)
        if losses[-1] is not None and now["step"] % settings.every and now["step"] < settings.steps:
            continue
        mean = math.nan if losses[-1] is None else torch.stack(losses).mean().item()  # a GPU is waited for only here
        score = evaluate(model, task, data.validation, settings.batch, device) if math.isfinite(mean) else None
        if look(settings, now, mean, score):
            best = {name: x.clone() for name, x in model.state_dict().items()}
        if now["stopped"] == "diverged":
            break
        losses.clear()
        now["seconds"] = time.perf_counter() - started
        if checkpoint is not None:
            save_checkpoint(checkpoint, key, now, model.state_dict(), best, optimiser)
    tick(settings.steps - now["step"])
    model.load_state_dict(best)
    reached = now["best"] is not None
    names = data.tests if reached else {}
    tests = {name: evaluate(model, task, batch, settings.batch, device) for name, batch in names.items()}
    found = dict(label=label, rate=rate, seed=seed, validation=now["best"], tests=tests)
    ended = {name: now[name] for name in ("best_step", "step", "stopped", "history")}
    return found | ended | dict(seconds=time.perf_counter() - started)


def look(settings, now, mean, score):
    """Notes one look at the validation set in `now`: loss, score, and whether to stop. Returns whether it is the best.

    score: None where a model gives NaN or infinity.
    """
    if score is None or not math.isfinite(mean):
        now["stopped"] = "diverged"
        return False
    now["history"].append(dict(step=now["step"], loss=mean, validation=score))
    best = better(settings.task, score, now["best"])
    if best:
        now |= dict(best=score, best_step=now["step"])
    if metric(settings.task) == "accuracy" and now["best"] == 1:
        now["stopped"] = "perfect"
    elif now["step"] - now["best_step"] >= settings.patience * settings.every:
        now["stopped"] = "no better"
    return best


# ---- checkpoints ------------------------------------------------------------------------------------------------


def digest(*parts):
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(path, key, now, weights, best, optimiser):
    """Weights now and at their best, optimiser and torch's random state as tensors, the rest as JSON beside them."""
    tensors = {f"weights/{name}": x for name, x in weights.items()} | {"rng": torch.get_rng_state()}
    tensors |= {f"best/{name}": x for name, x in best.items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{i}/{name}": x for name, x in state.items()}
    with writing(path) as new:
        save_file(tensors, new, dict(format=str(FORMAT), key=key, now=json.dumps(now)))


def load_checkpoint(path, key, put, optimiser, device):
    """Puts optimiser and random state back, the weights by put(weights); returns what else was saved: (now, best)."""
    try:
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
        if about.get("format") != str(FORMAT):
            raise ValueError(f"it has format {about.get('format')}; expected {FORMAT}")
        if about["key"] != key:
            raise ValueError("it is of another run, or of other code")
        parts, now = dict(weights={}, best={}, optimiser={}), json.loads(about["now"])
        for name, x in tensors.items():
            if name != "rng":
                part, rest = name.split("/", 1)
                parts[part][rest] = x if part == "optimiser" else x.to(device)
        put(parts["weights"])
        state = {}
        for name, x in parts["optimiser"].items():
            i, what = name.split("/")
            state.setdefault(int(i), {})[what] = x
        optimiser.load_state_dict(optimiser.state_dict() | dict(state=state))
        torch.set_rng_state(tensors["rng"])
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path.name} is no checkpoint to go on from: {why}; start anew with --fresh") from None
    return now, parts["best"]
