"""Keys and values of a trained transformer on real text, and of handwritten digits, through every memory.

Shapes: k [W, G, T, K], v [W, G, T, V] of W windows and G heads (all heads of all layers, layer by layer).

Per window and head three errors are measured, each relative to the values' power, so that 1 is what "always 0" gets:

    next     sum_t |v_t - S_{t-1} k_t|^2 / sum_t |v_t|^2: the memory is asked for the value it is about to be told
    all      sum_{i<=T} |v_i - S_T k_i|^2 / sum |v_i|^2: it is asked again for all that it was told
    recent   the same for the last 16 pairs

Settings (a step, a decay, a ridge) are chosen for every head, and for each error, on windows that are not tested.
"""

import math
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from vla_teach import ops
from vla_teach.evidence import minilm
from vla_teach.experiments.sweep import paired_p
from vla_teach.tasks.digits import digits_stream
from vla_teach.tasks.incontext import random_keys

ABOUT = "Keys and values of a trained transformer and of digits: how correlated, and through every memory."
MINUTES = 8
SIZES = dict(
    smoke=dict(source="stand-in", windows=5, heads=2, layers=2, T=48, K=8, tune_every=5, digits=48, stream=96),
    full=dict(source=minilm.PACKAGE, T=256, tune_every=5, digits=256, stream=1000),
)
ERRORS = ("next", "all", "recent")
RECENT = 16
PARTS = 8  # how often in a window the state is looked at
BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ALPHAS = (0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
LAMBDAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROOM = 25_000_000  # numbers in the largest tensor; heads are taken a few at a time


class Rule(NamedTuple):
    """A memory and the settings to choose from; where there is one, nothing is tuned."""

    kind: str  # "mean", "linear", "average", "delta", or a gain of VLA
    u: str = "key"  # VLA: "key" for u = k, "random" for u = W_u k / (|W_u k| sqrt(K)) with a random W_u
    settings: tuple = ({},)


def rules(K):
    """{name: Rule}; K decides lambda_0 = 0.1 / K."""

    def grid(**lists):
        return tuple(dict(zip(lists, some, strict=True)) for some in product(*lists.values()))

    tuned = grid(lambda_0=LAMBDAS, beta=BETAS)
    tenth, small = grid(lambda_0=(0.1,)), grid(lambda_0=(0.1 / K,))
    return {
        "mean of the values": Rule("mean"),
        "linear attention": Rule("linear"),
        "linear attention, averaged": Rule("average", settings=grid(scale=SCALES)),
        "DeltaNet, beta = 1": Rule("delta"),
        "DeltaNet": Rule("delta", settings=grid(beta=BETAS)),
        "gated DeltaNet": Rule("delta", settings=grid(alpha=ALPHAS, beta=BETAS)),
        "VLA, random u": Rule("unit", "random", tenth),
        "VLA, 0.1": Rule("unit", settings=tenth),
        "VLA, 0.1/K": Rule("unit", settings=small),
        "VLA": Rule("unit", settings=tuned),
        "VLA, interpolating, 0.1/K": Rule("interpolate", settings=small),
        "VLA, interpolating": Rule("interpolate", settings=tuned),
        "exact least squares, 0.1": Rule("least_squares", settings=tenth),
        "exact least squares": Rule("least_squares", settings=grid(lambda_0=LAMBDAS)),
    }


# A = I, the penalty off, is "DeltaNet, beta = 1" to the last digit: unit keys are their own gains.
PENALISED = ("VLA, random u", "VLA, 0.1", "VLA, 0.1/K", "VLA", "VLA, interpolating")
RIVALS = (
    "mean of the values", "linear attention, averaged", "DeltaNet, beta = 1", "DeltaNet", "gated DeltaNet",
    "exact least squares",
)  # fmt: skip


# ---- where keys come from ---------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Keys as their model made them, and values; tuned on some windows, tested on the others."""

    k: torch.Tensor  # [W, G, T, K]
    v: torch.Tensor  # [W, G, T, V]
    tune: tuple  # windows
    test: tuple
    about: dict


@cache
def transformer(T, tune_every):
    """MiniLM's keys and values for the text, window by window."""
    names, raw = minilm.read_text()
    vocabulary, weights = minilm.read_vocabulary(), minilm.read_weights()
    numbers = minilm.tokenize(minilm.prose(raw.decode()), vocabulary)
    tokens = minilm.windows(numbers, T, vocabulary)
    with torch.no_grad():
        k, v, _ = minilm.keys_and_values(tokens, weights)
    about = dict(
        model=minilm.PACKAGE, weights_sha256=minilm.sha256((minilm.folder() / "model.safetensors").read_bytes()),
        files=names, text_sha256=minilm.sha256(raw), tokens=len(numbers), layers=minilm.LAYERS, heads=minilm.HEADS,
    )  # fmt: skip
    return split(k.flatten(1, 2), v.flatten(1, 2), tune_every, about)


@cache
def stand_in(windows, heads, layers, T, K, tune_every):
    """Random keys with a common part and values that a random map makes of them, for tests without the package."""
    rng, shape = np.random.default_rng(0), (windows, layers * heads, T, K)
    k = np.stack([random_keys(rng, T, np.eye(K)[None].repeat(shape[1], 0), 0.8) for _ in range(windows)])
    v = k @ rng.standard_normal((shape[1], K, K)) / math.sqrt(K) + 0.3 * rng.standard_normal(shape)
    about = dict(model="random stand-in", layers=layers, heads=heads)
    return split(torch.tensor(k), torch.tensor(v), tune_every, about)


@cache
def digits(T):
    """Handwritten digits as keys, what they show as values: windows that share no picture."""
    train, rest = digits_stream(1300, seed=0)
    k, v = (np.concatenate(parts) for parts in ((train.images, rest.images), (train.v, rest.v)))
    W = min(7, len(k) // T)
    k, v = (torch.tensor(x[: W * T].reshape(W, 1, T, -1)) for x in (k / 16, v))
    return split(k, v, W, dict(layers=1, heads=1))


def split(k, v, tune_every, about):
    """A Source whose window 0, and every tune_every-th after it, is for tuning."""
    tune = tuple(range(0, len(k), tune_every))
    return Source(k, v, tune, tuple(i for i in range(len(k)) if i not in tune), about)


def load(settings):
    """The Source that settings name."""
    if settings["source"] == "stand-in":
        return stand_in(*(settings[x] for x in ("windows", "heads", "layers", "T", "K", "tune_every")))
    return transformer(settings["T"], settings["tune_every"])


def gaussian(W, G, T, K):
    """Standard normal keys and values: what the published state norm was measured on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, W, G, T, K, generator=generator, dtype=torch.float64)


# ---- features ---------------------------------------------------------------------------------------------------

FEATURES = {
    "unit": "k / |k|",
    "centred": "k less this head's mean key over the tuning windows, then length 1",
    "elu+1": "elu(k) + 1, then length 1, as published",
}


def unit(x):
    """Rows of length 1; a zero row stays zero."""
    return torch.nn.functional.normalize(x, dim=-1, eps=1e-12)


def featured(source, name):
    """(features [W, G, T, K] of all windows, raw keys alike), float64. See FEATURES."""
    k = source.k.double()
    if name == "centred":  # a bias that a layer could learn; it comes from other windows, so nothing leaks
        return unit(k - k[list(source.tune)].mean((0, 2), keepdim=True)), k
    return unit(torch.nn.functional.elu(k) + 1 if name == "elu+1" else k), k


def describe(k):
    """What keys [..., T, K] are like, every entry [...].

    norm_spread: standard deviation of their lengths over the mean length. cosine: the mean over all pairs of tokens.
    condition: of sum k k^T, largest eigenvalue over smallest; infinite where keys leave out a direction.
    rank: the exponential of the entropy of its eigenvalues, divided by their sum (Roy and Vetterli, 2007); 1 to K.
    """
    length, T = k.norm(dim=-1), k.shape[-2]
    total = unit(k).sum(-2).square().sum(-1)
    values = torch.linalg.eigvalsh(k.mT @ k).clamp(min=0)
    share = values / values.sum(-1, keepdim=True)
    smallest = torch.where(share[..., 0] > 1e-12, share[..., 0], 0)
    return dict(
        norm_spread=length.std(-1) / length.mean(-1),
        cosine=(total - (length > 0).sum(-1)) / (T * (T - 1)),
        condition=share[..., -1] / smallest,
        rank=torch.exp(torch.special.entr(share).sum(-1)),
    )


# ---- memories ---------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A memory that has read its windows: S_t = scale_t sum_{s<=t} alpha^(t-s) written_s g_s^T."""

    missed: torch.Tensor  # [W, G, T, V]   v_t less what the memory says of k_t before it is told
    written: torch.Tensor  # [W, G, T, V]
    g: torch.Tensor  # [W, G, T, K]
    alpha: torch.Tensor  # [G]
    scale: torch.Tensor  # [G, T]
    u: torch.Tensor | None  # [W, G, T, K]; with it M_t = lambda_0 I + sum u u^T
    lambda_0: torch.Tensor  # [G]


def penalty_directions(rule, k, raw, first):
    """u [W, G, T, K]. A random W_u stays the same for a head; first: which head the first of these G is."""
    if rule.u == "key":
        return k
    K = k.shape[-1]
    draws = [torch.randn(K, K, generator=torch.Generator().manual_seed(first + g)) for g in range(k.shape[1])]
    return unit(raw @ torch.stack(draws).to(k.dtype).mT) / math.sqrt(K)


def read_window(rule, k, v, raw, first=0, beta=1.0, alpha=1.0, lambda_0=1.0, scale=1.0):
    """A Run of every window and head from S = 0; each setting is one number or one a head, [G].

    All tokens at once: what a rule misses solves (I + stril(alpha^(t-s) k_t . g_s)) missed = v.
    """
    G, T = k.shape[1:3]
    beta, alpha, lambda_0, scale = (
        torch.as_tensor(x, dtype=k.dtype).expand(G).contiguous() for x in (beta, alpha, lambda_0, scale)
    )
    t, ones, u = torch.arange(1, T + 1, dtype=k.dtype), torch.ones(G, T, dtype=k.dtype), None
    if rule.kind in ("mean", "linear", "average"):
        g = torch.full_like(k[..., :1], 1.0) if rule.kind == "mean" else k
        scale = ones if rule.kind == "linear" else scale[:, None] / t
        before = torch.cat([ones[:, :1], scale[:, :-1]], 1)  # of S_{t-1}
        missed = v - before[..., None] * ((g @ g.mT).tril(-1) @ v)
        return Run(missed, v, g, ones[:, 0], scale, None, lambda_0)
    g = k
    if rule.kind != "delta":
        u = penalty_directions(rule, k, raw, first)
        C = min(ops.CHUNK, T)
        M = lambda_0[:, None, None] * torch.eye(k.shape[-1], dtype=k.dtype)
        a, _ = ops.penalty_solve(ops.in_chunks(k, C), ops.in_chunks(u, C), M.expand(len(k), *M.shape))
        g = ops.write_gain(a.flatten(2, 3)[:, :, :T], k, rule.kind)
    g = beta[:, None, None] * g
    age = (t[:, None] - t).clamp(min=0)
    W = (alpha[:, None, None] ** age * (k @ g.mT)).tril(-1)  # the unit diagonal is implied
    missed = torch.linalg.solve_triangular(W, v, upper=False, unitriangular=True)
    return Run(missed, missed, g, alpha, ones, u, lambda_0)


def state_at(run, t):
    """S_t [W, G, V, K] after t tokens."""
    age = torch.arange(t - 1, -1, -1, dtype=run.g.dtype)
    weight = run.scale[:, t - 1 : t] * run.alpha[:, None] ** age  # [G, t]
    return (weight[..., None] * run.written[:, :, :t]).mT @ run.g[:, :, :t]


def relative(errors, v):
    """Sum of squares over that of v, over tokens: errors, v [W, G, t, V] -> [W, G]."""
    return errors.square().sum((2, 3)) / v.square().sum((2, 3))


def scores(run, k, v, times, conditions=False):
    """What a Run is worth: every entry [W, G], the curves [W, G, n] at times.

    norm is |S_t|_F over the root mean square of |v|, so that heads can be compared.
    """
    if run.g.shape[-1] == 1:  # the mean of the values has no key
        k = torch.ones_like(k[..., :1])
    size, curves = v.square().sum(3).mean(2).sqrt(), dict(norm=[], read=[], asked=[], condition=[])
    for before, t in zip((0, *times), times, strict=False):
        S, past = state_at(run, t), slice(None, t)
        curves["norm"].append(S.norm(dim=(2, 3)) / size)
        curves["read"].append(relative(v[:, :, past] - k[:, :, past] @ S.mT, v[:, :, past]))
        part = slice(before, t)
        curves["asked"].append(relative(run.missed[:, :, part], v[:, :, part]))
        if conditions and run.u is not None:
            u = run.u[:, :, past]
            M = run.lambda_0[:, None, None] * torch.eye(u.shape[-1], dtype=u.dtype) + u.mT @ u
            values = torch.linalg.eigvalsh(M)
            curves["condition"].append(values[..., -1] / values[..., 0])
    last = slice(-RECENT, None)
    found = dict(
        next=relative(run.missed, v),
        all=curves["read"][-1],
        recent=relative(v[:, :, last] - k[:, :, last] @ S.mT, v[:, :, last]),
    )
    return found | {name: torch.stack(some, 2) for name, some in curves.items() if some}


def by_heads(rule, k, v, raw, settings, times, conditions=False):
    """`scores` of all heads, a few at a time. settings: {name: a number or [G]}."""
    W, G, T, _ = k.shape
    step, parts = max(1, ROOM // (W * T * T)), []
    for first in range(0, G, step):
        heads = slice(first, first + step)
        some = {name: x[heads] if torch.is_tensor(x) else x for name, x in settings.items()}
        run = read_window(rule, k[:, heads], v[:, heads], raw[:, heads], first, **some)
        parts.append(scores(run, k[:, heads], v[:, heads], times, conditions))
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def chosen(rule, k, v, raw):
    """{error: {setting: [G]}}: for every head what gives the least error on these windows; {} where nothing is free."""
    if len(rule.settings) == 1:
        return {error: rule.settings[0] for error in ERRORS}
    tried = [by_heads(rule, k, v, raw, one, (k.shape[2],)) for one in rule.settings]
    picks = {}
    for error in ERRORS:
        best = torch.stack([one[error].mean(0) for one in tried]).nan_to_num(math.inf).argmin(0)  # [G]
        picks[error] = {
            name: torch.tensor([rule.settings[i][name] for i in best.tolist()], dtype=k.dtype)
            for name in rule.settings[0]
        }
    return picks


def tested(rule, source, k, raw, times):
    """`scores` on the test windows, each error with the settings chosen for it, the curves with those for "next"."""
    tune, test, v = list(source.tune), list(source.test), source.v.double()
    picks = chosen(rule, k[tune], v[tune], raw[tune])
    found = by_heads(rule, k[test], v[test], raw[test], picks["next"], times, conditions=True)
    if len(rule.settings) > 1:
        for error in ERRORS[1:]:
            found[error] = by_heads(rule, k[test], v[test], raw[test], picks[error], times[-1:])[error]
    return found, picks


# ---- sums -------------------------------------------------------------------------------------------------------


def rounded(x):
    """Plain numbers with four digits that count; None for what is not finite."""
    if isinstance(x, torch.Tensor):
        x = x.tolist()
    if isinstance(x, list):
        return [rounded(one) for one in x]
    return float(f"{x:.4g}") if math.isfinite(x) else None


def spread(x):
    """{mean, sd} over the first axis, [W, ...]; no sd of a single window."""
    return dict(mean=rounded(x.mean(0)), sd=rounded(x.std(0)) if len(x) > 1 else None)


def summary(found, picks, rule):
    """A memory's scores as plain data: a number a window (the mean over heads), and a number a head."""
    errors = {}
    for error in ERRORS:
        windows = found[error].mean(1)
        errors[error] = dict(spread(windows), windows=rounded(windows), heads=rounded(found[error].mean(0)))
    curves = {name: spread(found[name].mean(1)) for name in ("norm", "read", "asked")}
    if "condition" in found:  # spans orders of magnitude: the middle one
        curves["condition"] = spread(found["condition"].median(1).values)
    settings = {name: float(torch.as_tensor(x).double().median()) for name, x in picks["next"].items()}
    return dict(errors=errors, curves=curves, settings=settings, tried=len(rule.settings))


def holm(ps):
    """Holm's correction of p values; None stays None."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    out, least = [None] * len(ps), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, ps[i] * (len(order) - rank)))
        out[i] = least
    return out


def compare(found, layers, error):
    """Every VLA against every rival, window by window, Holm-corrected; by layer too. Below 0: VLA errs less."""
    rows = []
    for model, against in product(PENALISED, RIVALS):
        difference = found[model][error] - found[against][error]  # [W, G]
        windows = difference.mean(1).tolist()
        by_layer = difference.unflatten(1, (layers, -1)).mean(2)  # [W, L]
        rows.append(
            dict(
                model=model, against=against, n=len(windows), difference=rounded(difference.mean().item()),
                p=paired_p(windows), layers=rounded(by_layer.mean(0)),
            )
        )  # fmt: skip
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


# ---- pieces -----------------------------------------------------------------------------------------------------


def look_times(T):
    """When the state is looked at: PARTS times, evenly."""
    return tuple(T * (i + 1) // PARTS for i in range(PARTS))


def memories(source, feature):
    """Every memory on one source with one feature map."""
    k, raw = featured(source, feature)
    times, all_rules = look_times(k.shape[2]), rules(k.shape[3])
    found, out = {}, {}
    for name, rule in all_rules.items():
        found[name], picks = tested(rule, source, k, raw, times)
        out[name] = summary(found[name], picks, rule)
    comparisons = {error: compare(found, source.about["layers"], error) for error in ERRORS}
    return dict(times=times, n=len(source.test), memories=out, comparisons=comparisons)


def keys(source):
    """What raw keys and each of their features are like, mean and spread over the test windows, [G]."""
    test = list(source.test)
    kinds = {"raw": source.k.double()[test]} | {name: featured(source, name)[0][test] for name in FEATURES}
    return {kind: {name: spread(x) for name, x in describe(k).items()} for kind, k in kinds.items()}


def state_norms(k, v, T):
    """|S_T| of the published memory and of steps on the way to it, k, v [W, G, T, K]: {name: [W, G, n]}.

    Linear attention with elu + 1 as it is; with unit length; with the delta rule; with the penalty: VLA as published.
    """
    k, v = k[:, :, :T].double(), v[:, :, :T].double()
    phi, every = torch.nn.functional.elu(k) + 1, rules(k.shape[3])
    steps = {
        "linear attention": (every["linear attention"], phi),
        "unit length": (every["linear attention"], unit(phi)),
        "delta rule": (every["DeltaNet, beta = 1"], unit(phi)),
        "VLA as published": (every["VLA, random u"], unit(phi)),
    }
    return {name: by_heads(rule, x, v, k, rule.settings[0], look_times(T))["norm"] for name, (rule, x) in steps.items()}


def stream(settings):
    """The published state norm ratio, on windows laid end to end and on random keys, by the same code."""
    source, T = load(settings), settings["stream"]
    W, G, window, K = source.k.shape
    many = -(-T // window)
    k, v = (x[: W // many * many].unflatten(0, (-1, many)).transpose(1, 2).flatten(2, 3) for x in (source.k, source.v))
    out = {}
    for name, pair in (("transformer", (k, v)), ("random", gaussian(len(k), min(G, 12), T, K))):
        norms = state_norms(*pair, T)
        ratio = {step: norms["linear attention"][..., -1] / norm[..., -1] for step, norm in norms.items()}
        out[name] = dict(
            n=len(pair[0]), heads=pair[0].shape[1],
            ratio={step: spread(x.mean(1)) for step, x in ratio.items()},
            by_head=rounded(ratio["VLA as published"].mean(0)),
            norm={step: spread(x.mean(1)) for step, x in norms.items()},
        )  # fmt: skip
    return dict(T=T, times=look_times(T), **out)


def pieces(settings):
    """{name: function}; see the pieces' own words. Only their running needs the package, not their names."""

    def about():
        source = load(settings)
        return dict(source.about, T=source.k.shape[2], K=source.k.shape[3], tune=source.tune, test=source.test)

    def random_like():
        W, G, T, K = load(settings).k.shape
        k, v = gaussian(W, min(G, 12), T, K)
        return keys(split(k, v, settings["tune_every"], {}))

    found = {"source": about, "keys": lambda: keys(load(settings)), "keys, random": random_like}
    for feature in FEATURES:
        found[f"memories, {feature}"] = lambda feature=feature: memories(load(settings), feature)
    found["stream"] = lambda: stream(settings)
    found["digits, keys"] = lambda: keys(digits(settings["digits"]))
    for feature in FEATURES:
        found[f"digits, {feature}"] = lambda feature=feature: memories(digits(settings["digits"]), feature)
    return found
