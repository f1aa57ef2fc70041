"""What trained models look at: attention maps of every memory, their entropy, the penalty's eye, lambda_t."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F

from vla_teach.experiments.catalogue import CATALOGUE
from vla_teach.experiments.sweep import best_rates
from vla_teach.experiments.together import train_together
from vla_teach.experiments.train import build, load_data, metric, number, on_device
from vla_teach.layers import read_penalty
from vla_teach.tasks import DelayedRecall

ABOUT = "What models trained on delayed recall look at: maps, entropy, the penalty, lambda_t."
MINUTES = 6
LABELS = (
    "softmax", "linear", "delta", "gated_delta", "mesa", "vla", "vla_interpolate", "vla_off", "vla_key", "vla_gated",
    "vla_published",
)  # fmt: skip
FULL = dict(labels=LABELS, delay=30, keys=8, width=32, heads=2, depth=1, batch=32, steps=1000, every=50, patience=12,
            rates=[5e-3], seeds=5, held_out=300, looked_at=100)  # fmt: skip
SMOKE = dict(labels=("softmax", "vla_gated"), delay=6, keys=4, width=16, steps=4, every=2, seeds=2, held_out=8,
             looked_at=4)  # fmt: skip
SIZES = dict(full=FULL, smoke=FULL | SMOKE)
TEST = 2  # the use of random numbers that `train` keeps for tests


def pieces(settings):
    """A model a piece: {label: function}."""
    return {label: partial(one_model, label, settings) for label in settings["labels"]}


def one_model(label, settings):
    """Trains every rate and seed; for every seed at the best rate: accuracy, and what its last layer does.

    Returns plain data: rate, seeds (a list of what `summary` gives, and before: the same of the model as it started),
    and example, the maps of the first seed.
    """
    task = DelayedRecall(settings["delay"], settings["keys"])
    names = ("batch", "steps", "every", "patience", "seeds", "held_out")
    experiment = replace(
        CATALOGUE["delayed_recall"].sizes["cpu"], task=task, tests={}, labels=(label,), rates=tuple(settings["rates"]),
        model=dict(width=settings["width"], depth=settings["depth"], heads=settings["heads"]),
        **{name: settings[name] for name in names},
    )  # fmt: skip
    runs = [(rate, seed) for rate in settings["rates"] for seed in range(settings["seeds"])]
    models = {}
    found = train_together(experiment, label, runs, data=load_data(experiment), models=models)
    rate = best_rates(task, found)[label]
    chosen = [run for run in found if run["rate"] == rate]
    batch = task.batch(settings["looked_at"], number(TEST, 1))
    seeds, example = [], None
    for run in chosen:
        seen = examine(models[rate, run["seed"]], batch)
        example = example or first_example(seen, batch)
        start = summary(examine(build(experiment, label, run["seed"]), batch), batch, settings["keys"])
        found = summary(seen, batch, settings["keys"])
        seeds.append(dict(seed=run["seed"], score=run["tests"]["test"], step=run["step"], before=start, **found))
    return dict(metric=metric(task), rate=rate, seeds=seeds, example=example)


# ---- looking ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def examine(model, batch):
    """What the last layer does with a Batch, as tensors, by name.

    map [B, T, T, H]: how much of token s's value is in output t, which for every memory here is a weighted sum of
    values: found by giving each token a value of its own. k [B, T, H, K]: keys as the memory uses them. For VLA with
    a penalty M [B, H, K, K] after the last token, and lambda_0; for a write gate beta [B, T, H].
    """
    layer, seen = model.backbone.blocks[-1].layer, {}
    x, asked, _, W = on_device(batch, "cpu")
    with spied(layer, seen):
        model(x, asked, W)
    return seen


@contextmanager
def spied(layer, seen):
    """Inside, a call of the layer leaves in `seen` what `examine` describes."""
    memory, gate = layer.memory, getattr(layer, "write_share", None)

    def spy(q, k, v, state, **extra):
        B, T, H, K = k.shape
        own = torch.eye(T, dtype=v.dtype)[None, :, None].expand(B, T, H, T)  # value s is the s-th unit vector
        parts = dict(S=state.S.new_zeros(B, H, T, K)) if state.S is not None else {}
        parts |= dict(values=state.values.new_zeros(B, 0, H, T)) if state.values is not None else {}
        o, _ = memory(q, k, own, state._replace(**parts), **extra)
        seen["map"] = o.transpose(2, 3)
        seen["k"] = F.normalize(F.elu(k) + 1 if getattr(layer, "features", "") == "elu+1" else k, dim=-1)
        result = memory(q, k, v, state, **extra)
        if "A" in result[1] and getattr(layer, "penalty", None):
            seen["M"] = read_penalty(state._replace(S=result[1]["S"], A=result[1]["A"])).M.to(k.dtype)
            seen["lambda_0"] = float(layer.lambda_0)
        return result

    def gated(x):
        seen["beta"] = gate(x)
        return seen["beta"]

    layer.memory = spy
    if getattr(layer, "gate", None) is not None and gate is not None:
        layer.write_share = gated
    try:
        yield
    finally:
        del layer.memory
        layer.__dict__.pop("write_share", None)


def entropy(weights):
    """In bits, of the absolute weights [..., T] scaled to sum 1, over log2 T: 0 for one token, 1 for all alike."""
    p = weights.abs()
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-30)
    bits = -(p * p.clamp(min=1e-30).log2()).sum(-1)
    return bits / torch.log2(torch.tensor(float(weights.shape[-1])))


def summary(seen, batch, keys):
    """Numbers of one model, means over examples and heads. keys: how many words are keys; the others are values.

    entropy of the weights of the last token, where the answer is asked for; on_pair: their share on the first four
    tokens, as far as the convolution carries the pair. penalty_*: k^T M k / |k|^2 - lambda_0, what the penalty has
    grown along a key; gate_*: the write share beta. Where: pair, the token of the pair's value, with whose key the
    convolution has mixed the pair's; noise, all noise that the convolution has kept apart from the pair; of that twin,
    a value after a key, like the pair; value; key. last: the question.
    """
    weights = seen["map"][:, -1].abs()  # [B, T, H]
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-30)
    found = dict(entropy=entropy(weights.transpose(1, 2)).mean(), on_pair=weights[:, :4].sum(1).mean())
    where = places(torch.as_tensor(batch.x), keys)
    if "M" in seen:
        along = torch.einsum("bthk,bhkl,bthl->bth", seen["k"], seen["M"], seen["k"]) - seen["lambda_0"]
        found |= {f"penalty_{name}": along[where[name]].mean() for name in ("pair", "noise", "twin")}
    if "beta" in seen:
        found |= {f"gate_{name}": seen["beta"][there].mean() for name, there in where.items()}
    return {name: float(x) for name, x in found.items()}


def places(x, keys):
    """{name: mask [B, T]} of the tokens x [B, T] that `summary` names."""
    at, is_value = torch.arange(x.shape[1]).expand_as(x), x >= keys
    noise = (at > 4) & (at < x.shape[1] - 1)
    twin = noise & is_value & ~is_value.roll(1, 1)
    return dict(pair=at == 1, noise=noise, twin=twin, value=noise & is_value, key=noise & ~is_value,
                last=at == x.shape[1] - 1)  # fmt: skip


def first_example(seen, batch):
    """Of the first example and head, to look at: the map, M, and beta of every head, rounded."""

    def plain(x):
        return [[round(float(y), 4) for y in row] for row in x]

    full = seen["map"][0, :, :, 0]
    found = dict(tokens=[int(t) for t in batch.x[0]], map=plain(full), heads=seen["map"].shape[3])
    if "M" in seen:
        found["M"] = plain(seen["M"][0, 0])
    if "beta" in seen:
        found["beta"] = plain(seen["beta"][0].T)
    return found
