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
from vla_teach.experiments.sweep import holm, paired_p
from vla_teach.tasks.digits import digits_stream
from vla_teach.tasks.incontext import random_keys

ABOUT = "Keys and values of a trained transformer and of digits: how correlated, and through every memory."
MINUTES = 7
SIZES = dict(
    smoke=dict(source="stand-in", windows=5, heads=2, layers=2, T=48, K=8, tune_every=5, digits=48, stream=96),
    full=dict(source=minilm.PACKAGE, T=256, tune_every=8, digits=256, stream=1000),
)
ERRORS = ("next", "all", "recent")
RECENT = 16
PARTS = 8  # how often in a window the state is looked at
GAINS = ("unit", "interpolate", "least_squares")  # the kinds that have a penalty
BETAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ALPHAS = (0.95, 0.98, 0.99, 0.995, 1.0)
LAMBDAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
SCALES = (0.2, 0.5, 1.0, 2.0, 5.0)
ROOM = 1_000_000  # numbers in the largest tensor, so that it stays in cache; heads are taken a few at a time


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
        "least squares, forgetting": Rule("least_squares", settings=grid(lambda_0=LAMBDAS, alpha=ALPHAS)),
    }


# A = I, the penalty off, is "DeltaNet, beta = 1" to the last digit: unit keys are their own gains.
PENALISED = ("VLA, random u", "VLA, 0.1", "VLA, 0.1/K", "VLA", "VLA, interpolating")
RIVALS = (
    "mean of the values", "linear attention, averaged", "DeltaNet, beta = 1", "DeltaNet", "gated DeltaNet",
    "exact least squares", "least squares, forgetting",
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


def vocabulary(W, G, T, K, tokens=128):
    """The same for streams in which a few random pairs come again and again, as in the published measurement."""
    pairs = gaussian(W, G, tokens, K)
    order = torch.randint(tokens, (W, T), generator=torch.Generator().manual_seed(1))
    return torch.stack([torch.stack([x[i][:, order[i]] for i in range(W)]) for x in pairs])


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


def look_times(T):
    """When the state is looked at: PARTS times, evenly."""
    return tuple(T * (i + 1) // PARTS for i in range(PARTS))


class Run(NamedTuple):
    """A memory that has read its windows."""

    missed: torch.Tensor  # [W, G, T, V]   v_t less what the memory says of k_t before it is told
    S: torch.Tensor  # [W, G, n, V, K]     after each of n parts of the window


def penalty_directions(rule, k, raw, first):
    """u [W, G, T, K]. A random W_u stays the same for a head; first: which head the first of these G is."""
    if rule.u == "key":
        return k
    K = k.shape[-1]
    draws = [torch.randn(K, K, generator=torch.Generator().manual_seed(first + g)) for g in range(k.shape[1])]
    return unit(raw @ torch.stack(draws).to(k.dtype).mT) / math.sqrt(K)


def penalty(u, lambda_0):
    """lambda_0 I + the sum of u u^T over all tokens: u [W, G, T, K], lambda_0 [G] -> [W, G, K, K]."""
    return lambda_0[:, None, None] * torch.eye(u.shape[-1], dtype=u.dtype) + u.mT @ u


def gains(rule, k, u, lambda_0, alpha):
    """g [W, G, T, K], before beta; lambda_0, alpha [G]. Least squares may forget: its H_t is alpha H_{t-1} + k k^T.

    With k and u at time t multiplied by alpha^(-t/2), a sum that forgets is one that does not, times alpha^t.
    """
    if rule.kind not in GAINS:
        return k
    T, C = k.shape[2], min(ops.CHUNK, k.shape[2])
    grow = torch.ones_like(k[0, :, :, :1])
    if rule.kind == "least_squares":
        grow = (alpha[:, None] ** (-torch.arange(1, T + 1, dtype=k.dtype) / 2))[..., None]
    M = penalty(u[:, :, :0], lambda_0)
    a, _ = ops.penalty_solve(ops.in_chunks(grow * k, C), ops.in_chunks(grow * u, C), M)
    return ops.write_gain(grow * a.flatten(2, 3)[:, :, :T], k, rule.kind)


def read_window(rule, k, v, g, beta=1.0, alpha=1.0, scale=1.0):
    """A Run of every window and head from S = 0. g from `gains`; each setting is one number or one a head, [G].

    A part at a time, all its tokens at once. What a memory with an error term misses solves
    (I + stril(alpha^(t-s) k_t . g_s)) missed = v_t - alpha^t S k_t, t counted from the part's start.
    A least squares that forgets does so in its gains; its S is not multiplied with alpha.
    """
    T, missed, states = k.shape[2], [], []
    beta, alpha, scale = (per_head(x, k) for x in (beta, alpha, scale))
    if rule.kind == "least_squares":
        alpha = torch.ones_like(alpha)
    S = v.new_zeros(*v.shape[:2], v.shape[3], k.shape[3])
    for start, end in zip((0, *look_times(T)), look_times(T), strict=False):
        k_p, v_p, g_p = (x[:, :, start:end] for x in (k, v, g))
        i = torch.arange(end - start, dtype=k.dtype)
        if rule.kind in ("mean", "linear", "average"):
            says = k_p @ S.mT + (k_p @ g_p.mT).tril(-1) @ v_p
            if rule.kind != "linear":
                says = says * scale[:, None, None] / (start + i).clamp(min=1)[:, None]
            written, S = v_p, S + v_p.mT @ g_p
            missed.append(v_p - says)
            states.append(S if rule.kind == "linear" else S * scale[:, None, None] / end)
            continue
        g_p = beta[:, None, None] * g_p
        age = (i[:, None] - i).clamp(min=0)
        W = (alpha[:, None, None] ** age * (k_p @ g_p.mT)).tril(-1)  # the unit diagonal is implied
        old = alpha[:, None, None] ** (i[:, None] + 1) * (k_p @ S.mT)
        written = torch.linalg.solve_triangular(W, v_p - old, upper=False, unitriangular=True)
        left = alpha[:, None, None] ** i.flip(0)[:, None]
        S = alpha[:, None, None] ** len(i) * S + (left * written).mT @ g_p
        missed.append(written)
        states.append(S)
    return Run(torch.cat(missed, 2), torch.stack(states, 2))


def per_head(x, k):
    """A number or one a head as [G], in the dtype of k [W, G, T, K]."""
    return torch.as_tensor(x, dtype=k.dtype).expand(k.shape[1])


def relative(errors, v):
    """Sum of squares over that of v, over tokens: errors, v [W, G, t, V] -> [W, G]."""
    return errors.square().sum((2, 3)) / v.square().sum((2, 3))


def errors(run, k, v):
    """The three ERRORS of a Run, each [W, G]."""
    wrong = v - k @ run.S[:, :, -1].mT
    last = slice(-RECENT, None)
    return dict(next=relative(run.missed, v), all=relative(wrong, v), recent=relative(wrong[:, :, last], v[:, :, last]))


def over_time(run, k, v, u, lambda_0):
    """The memory part by part, every entry [W, G, n]; u None where there is no penalty.

    norm: |S_t|_F over the root mean square of |v|, so that heads can be compared. read: error over all pairs so far.
    asked: error on the part's values before they are told. condition: of M_t.
    """
    size, found = v.square().sum(3).mean(2).sqrt(), dict(norm=[], read=[], asked=[], condition=[])
    times = look_times(v.shape[2])
    for i, (start, t) in enumerate(zip((0, *times), times, strict=False)):
        S, past, part = run.S[:, :, i], slice(t), slice(start, t)
        found["norm"].append(S.norm(dim=(2, 3)) / size)
        found["read"].append(relative(v[:, :, past] - k[:, :, past] @ S.mT, v[:, :, past]))
        found["asked"].append(relative(run.missed[:, :, part], v[:, :, part]))
        if u is not None:
            values = torch.linalg.eigvalsh(penalty(u[:, :, past], lambda_0))
            found["condition"].append(values[..., -1] / values[..., 0])
    return {name: torch.stack(some, 2) for name, some in found.items() if some}


def inputs(rule, k, raw, first):
    """(keys as the rule uses them, u): the mean of the values has no key."""
    k = torch.ones_like(k[..., :1]) if rule.kind == "mean" else k
    return k, penalty_directions(rule, k, raw, first) if rule.kind in GAINS else None


def by_heads(rule, k, v, raw, settings, curves=False):
    """The errors of every window and head with settings {name: a number or [G]}; with `over_time` too if asked."""
    parts = []
    for heads in a_few_heads(k):
        x, u = inputs(rule, k[:, heads], raw[:, heads], heads.start)
        some = {name: per_head(value, k)[heads] for name, value in settings.items()}
        lambda_0 = some.pop("lambda_0", per_head(1, x))
        g = gains(rule, x, u, lambda_0, some.get("alpha", per_head(1, x)))
        run = read_window(rule, x, v[:, heads], g, **some)
        found = errors(run, x, v[:, heads])
        parts.append(found | (over_time(run, x, v[:, heads], u, lambda_0) if curves else {}))
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def a_few_heads(k):
    """Slices of heads small enough to work on at once."""
    W, G, T, K = k.shape
    step = max(1, ROOM // (W * T * max(K, ops.CHUNK)))
    return [slice(first, min(first + step, G)) for first in range(0, G, step)]


def chosen(rule, k, v, raw):
    """{error: {setting: [G]}}: for every head what gives the least error on these windows."""
    if len(rule.settings) == 1:
        return {error: rule.settings[0] for error in ERRORS}
    best = {error: [] for error in ERRORS}
    for heads in a_few_heads(k):
        x, u = inputs(rule, k[:, heads], raw[:, heads], heads.start)
        known, tried = {}, []
        for one in rule.settings:
            of_gains = tuple(float(one.get(name, 1)) for name in ("lambda_0", "alpha"))
            if of_gains not in known:
                known = {of_gains: gains(rule, x, u, *(per_head(value, x) for value in of_gains))}
            rest = {name: value for name, value in one.items() if name != "lambda_0"}
            tried.append(errors(read_window(rule, x, v[:, heads], known[of_gains], **rest), x, v[:, heads]))
        for error in ERRORS:
            scores = torch.stack([one[error].mean(0) for one in tried])  # [settings, heads]
            best[error].append(scores.nan_to_num(math.inf).argmin(0))
    return {
        error: {
            name: torch.tensor([rule.settings[i][name] for i in torch.cat(picks).tolist()], dtype=k.dtype)
            for name in rule.settings[0]
        }
        for error, picks in best.items()
    }


def tested(rule, source, k, raw):
    """What `by_heads` gives on the test windows, each error with settings chosen for it, the curves with "next"'s."""
    tune, test, v = list(source.tune), list(source.test), source.v.double()
    picks = chosen(rule, k[tune], v[tune], raw[tune])
    found = by_heads(rule, k[test], v[test], raw[test], picks["next"], curves=True)
    if len(rule.settings) > 1:
        for error in ERRORS[1:]:
            found[error] = by_heads(rule, k[test], v[test], raw[test], picks[error])[error]
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


def summary(found, picks, rule, heads):
    """A memory's scores as plain data: a number a window (the mean over heads), and of two errors one a head."""
    by_error = {}
    for error in ERRORS:
        windows = found[error].mean(1)
        by_error[error] = dict(spread(windows), windows=rounded(windows))
        if heads and error != "recent":
            by_error[error]["heads"] = rounded(found[error].mean(0))
    curves = {name: spread(found[name].mean(1)) for name in ("norm", "read", "asked")}
    if "condition" in found:  # spans orders of magnitude: the middle one
        curves["condition"] = spread(found["condition"].median(1).values)
    settings = {name: spread_of_choice(x, rule, name) for name, x in picks["next"].items()}
    return dict(errors=by_error, curves=curves, settings=settings, tried=len(rule.settings))


def spread_of_choice(x, rule, name):
    """The middle of what heads chose, the least, the most, and the share of heads that chose an end of the list."""
    x, ends = torch.as_tensor(x, dtype=torch.float64).reshape(-1), [one[name] for one in rule.settings]
    at_end = (x == min(ends)) | (x == max(ends))
    return dict(
        median=x.median().item(), least=x.min().item(), most=x.max().item(), at_end=at_end.double().mean().item()
    )


def compare(found, layers, error):
    """Every VLA against every rival, by windows, Holm-corrected; by layer if layers > 1. Below 0: VLA errs less."""
    rows = []
    for model, against in product(PENALISED, RIVALS):
        difference = found[model][error] - found[against][error]  # [W, G]
        windows = difference.mean(1).tolist()
        row = dict(model=model, against=against, n=len(windows), difference=rounded(difference.mean().item()))
        rows.append(row | dict(p=paired_p(windows)))
        if layers > 1:
            rows[-1]["layers"] = rounded(difference.unflatten(1, (layers, -1)).mean((0, 2)))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


# ---- pieces -----------------------------------------------------------------------------------------------------


def memories(source, feature):
    """Every memory on one source with one feature map; head by head and layer by layer for the first of FEATURES."""
    k, raw = featured(source, feature)
    found, out, layers = {}, {}, source.about["layers"] if feature == "unit" else 1
    for name, rule in rules(k.shape[3]).items():
        found[name], picks = tested(rule, source, k, raw)
        out[name] = summary(found[name], picks, rule, heads=layers > 1)
    comparisons = {error: compare(found, layers, error) for error in ERRORS}
    return dict(times=look_times(k.shape[2]), n=len(source.test), memories=out, comparisons=comparisons)


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
    return {name: by_heads(rule, x, v, k, rule.settings[0], curves=True)["norm"] for name, (rule, x) in steps.items()}


def stream(settings):
    """The published state norm ratio, on windows laid end to end and on random keys, by the same code."""
    source, T = load(settings), settings["stream"]
    W, G, window, K = source.k.shape
    many = -(-T // window)
    k, v = (x[: W // many * many].unflatten(0, (-1, many)).transpose(1, 2).flatten(2, 3) for x in (source.k, source.v))
    shape = len(k), min(G, 12), T, K
    out, random = {}, {"random": gaussian(*shape), "random, 128 tokens": vocabulary(*shape)}
    for name, pair in ({"transformer": (k, v)} | random).items():
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
    found["digits, unit"] = lambda: memories(digits(settings["digits"]), "unit")
    return found
