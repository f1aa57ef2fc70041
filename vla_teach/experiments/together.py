"""Several training runs of one model at once: the same arithmetic on stacked weights, for a GPU that one leaves idle.

Models this small spend their time on starting kernels. Stacked, a kernel serves every seed and rate of a model.
"""

import copy
import time
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_teach.experiments.train import (
    build,
    evaluate,
    load_checkpoint,
    load_data,
    look,
    loss_of,
    on_device,
    rate_at,
    rows,
    save_checkpoint,
    training_batch,
    undecayed,
)
from vla_teach.tensor_checks import unchecked


def train_together(
    settings, label, runs, device="cpu", data=None, checkpoint=None, key="", tick=None, models=None, pause=30
):
    """What `train` returns for every (rate, seed) in `runs`, a list, up to rounding; `together` says how many.

    Every run has its own weights, batches, rate, clipping and end; those that have ended wait for the others.
    checkpoint, key: as for `train`; written at most every `pause` seconds. tick(n) is called after n more steps of all
    runs together. models: a dict that gets the trained models, by (rate, seed), as they were where validation was best.
    Raises ValueError where the runs' batches have different shapes and cannot be stacked, or as `train` does.
    """
    data = load_data(settings) if data is None else data
    task, tick = settings.task, tick or (lambda n: None)
    built = [build(settings, label, seed).to(device) for _, seed in runs]
    base = chunked(copy.deepcopy(built[0]))
    weights = {name: x.detach() for name, x in stack_module_state(built)[0].items()}
    best = {name: x.clone() for name, x in weights.items()}
    optimiser, rates = stacked_optimiser(weights, runs, settings)
    now = dict(step=0, seconds=0.0)
    now["runs"] = [dict(step=0, history=[], best=None, best_step=0, stopped=None) for _ in runs]
    if checkpoint is not None and checkpoint.exists():
        now, best = load_checkpoint(checkpoint, key, partial(put, weights), optimiser, device)
    nows, losses = now["runs"], []
    started, saved_at = time.perf_counter() - now["seconds"], time.perf_counter()
    tick(sum(one["step"] for one in nows))

    def loss(weights, x, asked, y, W):
        return loss_of(task, functional_call(base, weights, (x, asked, W)), y)

    def backward(x, asked, y, W):
        with plain():
            return vmap(grad_and_value(loss), (0, 0, 0, 0, None if W is None else 0))(weights, x, asked, y, W)

    def forward(x, asked, W):
        with plain():
            return vmap(lambda p: functional_call(base, p, (x, asked, W)))(weights)

    backward, forward = Replayed(backward, device), Replayed(forward, device)

    for step in range(now["step"], settings.steps):
        alive = [one for one in nows if not one["stopped"]]
        if not alive:
            break
        grads, values = backward(*stacked_batch(settings, data, [seed for _, seed in runs], step, device))
        clip(grads, settings.clip)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate_at(settings, rate, step)
            for name, part, p in zip(group["names"], group["parts"], group["params"], strict=True):
                p.grad = grads[name][part].contiguous()
        optimiser.step()
        losses.append(values.detach().clone())
        for one in alive:
            one["step"] = step + 1
        tick(len(alive))
        if (step + 1) % settings.every and step + 1 < settings.steps:
            continue
        means = torch.stack(losses).mean(0).tolist()
        scores = evaluate_together(forward, task, data.validation, settings.batch, device, len(runs))
        losses.clear()
        for i, one in enumerate(nows):
            if not one["stopped"] and look(settings, one, means[i], scores[i]):
                keep(best, weights, i)
        if checkpoint is not None and time.perf_counter() - saved_at >= pause:
            now |= dict(step=step + 1, seconds=time.perf_counter() - started)
            save_checkpoint(checkpoint, key, now, weights, best, optimiser)
            saved_at = time.perf_counter()
    tick(settings.steps * len(runs) - sum(one["step"] for one in nows))
    seconds, found = (time.perf_counter() - started) / len(runs), []
    for i, ((rate, seed), ended, model) in enumerate(zip(runs, nows, built, strict=True)):
        begun = time.perf_counter()
        model.load_state_dict({name: x[i] for name, x in best.items()})
        names = data.tests if ended["best"] is not None else {}
        tests = {name: evaluate(model, task, batch, settings.batch, device) for name, batch in names.items()}
        one = dict(label=label, rate=rate, seed=seed, validation=ended["best"], tests=tests, together=len(runs))
        one |= {name: ended[name] for name in ("best_step", "step", "stopped", "history")}
        if models is not None:
            models[rate, seed] = model
        found.append(one | dict(seconds=seconds + time.perf_counter() - begun))
    return found


# ---- stacks -----------------------------------------------------------------------------------------------------


@contextmanager
def plain():
    """What vmap wants: no look at numbers, as there is no single one, and softmax attention in plain operations."""
    with unchecked(), sdpa_kernel(SDPBackend.MATH):
        yield


def chunked(model):
    """The model with the chunk form in its VLA layers: vmap knows PyTorch's operations, not Triton's kernels."""
    for block in model.backbone.blocks:
        if hasattr(block.layer, "backend"):
            block.layer.backend = "chunk"
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = InParts
    return model


class InParts(nn.Linear):
    """The same in so many products: the gradient of the weights, a sum over all tokens, then keeps a GPU busy."""

    parts = 16

    def forward(self, x):
        if x[..., 0].numel() % self.parts:
            return super().forward(x)
        weights = self.weight.t().expand(self.parts, -1, -1)
        y = torch.bmm(x.reshape(self.parts, -1, x.shape[-1]), weights).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Replayed:
    """compute(*tensors) as it is, on a GPU recorded as a CUDA graph and played again for tensors of the same shapes.

    What it returns is overwritten by the next call. compute must do the same whatever the numbers are.
    """

    def __init__(self, compute, device):
        self.compute, self.graph, self.given = compute, None, None
        self.device = torch.device(device)

    def __call__(self, *given):
        if self.device.type != "cuda" or (self.graph and shapes(given) != shapes(self.given)):
            return self.compute(*given)
        with torch.cuda.device(self.device):  # whose streams are recorded and played
            if self.graph is None:
                self.record(given)
            for old, new in zip(self.given, given, strict=True):
                if new is not None:
                    old.copy_(new)
            self.graph.replay()
        return self.found

    def record(self, given):
        self.given = [x if x is None else x.clone() for x in given]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # PyTorch wants a few calls first, on another stream
            for _ in range(3):
                self.compute(*self.given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.found = self.compute(*self.given)
        self.graph = graph


def shapes(tensors):
    return [None if x is None else x.shape for x in tensors]


def stacked_batch(settings, data, seeds, step, device):
    """The batches of these seeds at this step, along a new first axis."""
    drawn = {seed: on_device(training_batch(settings, data, seed, step), device) for seed in dict.fromkeys(seeds)}
    parts = list(zip(*(drawn[seed] for seed in seeds), strict=True))
    if any(x.shape != part[0].shape for part in parts[:3] for x in part):
        raise ValueError("together wants batches of one shape; this task's differ from seed to seed: use --together 1")
    return [None if part[0] is None else torch.stack(part) for part in parts]


def stacked_optimiser(weights, runs, settings):
    """AdamW on slices of the stacked weights, and the rate of each of its groups.

    It works on every number by itself, so that runs of one rate, which lie side by side, can share a slice.
    """
    rates = [rate for rate, _ in runs]
    groups, of = [], []
    for rate in dict.fromkeys(rates):
        part = slice(rates.index(rate), len(rates) - rates[::-1].index(rate))
        if rates[part] != [rate] * (part.stop - part.start):
            raise ValueError(f"runs mix their rates, {rates}; expected runs of one rate side by side")
        for decayed in (False, True):
            names = [name for name, x in weights.items() if undecayed(name, x.ndim - 1) != decayed]
            group = dict(params=[weights[name][part] for name in names], names=names, parts=[part] * len(names))
            groups.append(group | dict(weight_decay=settings.weight_decay if decayed else 0.0))
            of.append(rate)
    return torch.optim.AdamW(groups, lr=0.0, fused=next(iter(weights.values())).is_cuda or None), of


def clip(grads, limit):
    """Scales the gradients of every run down to a norm of `limit`, as clip_grad_norm_ does for one."""
    norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for g in grads.values():
        g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))


def put(weights, saved):
    """The saved weights in the place of these: the optimiser works on slices of them."""
    for name, x in weights.items():
        x.copy_(saved[name])


def keep(best, weights, i):
    for name, x in weights.items():
        best[name][i] = x[i]


@torch.no_grad()
def evaluate_together(forward, task, batch, size, device, n):
    """`evaluate` for every run: a list of n scores, None where a model gives NaN or infinity."""
    total, fine, asked = torch.zeros(n, dtype=torch.float64, device=device), True, 0
    for start in range(0, len(batch.x), size):
        x, where, y, W = on_device(rows(batch, slice(start, start + size)), device)
        out = forward(x, where, W)
        fine = out.isfinite().flatten(1).all(1) & fine
        right = (out - y).square() if task.kind == "regress" else (out.argmax(-1) == y)
        total, asked = total + right.double().flatten(1).sum(1), asked + right[0].numel()
    return [score if ok else None for score, ok in zip((total / asked).tolist(), fine.tolist(), strict=True)]
