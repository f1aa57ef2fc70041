"""Ten thousand tokens, a million tokens: eigenvalues, state norms, rounding, outliers and drift.

Pieces: `stream` follows every memory along a stream; `bounded` and `adversary` try to make the state grow; `reduction`
takes the published 109 apart; `rounding` is float32 against float64 (see `vla_teach.evidence.million`); `influence`,
`frozen` and `tracking` ask how long a memory remembers, and what it does when the world changes.
"""

from functools import partial
from itertools import pairwise, product

import numpy as np
import torch

from vla_teach.chunkwise import chunk_write, vla_chunk
from vla_teach.evidence import million
from vla_teach.evidence.bank import DELTA, GATED, LAMBDA_0, MEMORIES, Bank, column, unit
from vla_teach.experiments.sweep import holm, paired_p
from vla_teach.reference import elu_plus_one, unit_rows
from vla_teach.tasks.incontext import random_roots

ABOUT = "10,000 and a million tokens: eigenvalues, state norms, rounding, outliers, drift."
MINUTES = 8
SIZES = dict(
    smoke=dict(
        T=120, widths=[6, 4], seeds=2, many=3, models=3, reductions=[[8, 60]], greedy=dict(T=60, K=4, choices=8),
        million=400, side=300, width=8, rounding_seeds=2, influence=dict(T=150, at=[10, 50]),
        frozen=dict(T=150, loud=[1, 4], change=40), tracking=dict(T=80, speeds=[0, 0.1], tune=2, test=3, width=6),
    ),
    full=dict(
        T=10_000, widths=[64, 32], seeds=5, many=40, models=50, reductions=[[32, 1000], [64, 1000], [32, 10_000]],
        greedy=dict(T=2000, K=8, choices=24), million=1_000_000, side=100_000, width=32, rounding_seeds=3,
        influence=dict(T=10_000, at=[100, 1000]), frozen=dict(T=20_000, loud=[1, 3, 6, 12], change=200),
        tracking=dict(T=4000, speeds=[0, 0.001, 0.01, 0.03, 0.1], tune=2, test=6, width=32),
    ),
)  # fmt: skip
STREAMS = ("random", "positive", "aligned", "outliers", "drift")
CONFIGS = ("random, u = key", "random, published", "four directions, u = key")


def pieces(settings):
    """See the module's docstring; one function a piece."""
    s = settings
    wide, K = s["widths"]
    out = {f"stream {name}, {wide}": partial(stream, name, wide, s["T"], s["seeds"]) for name in STREAMS}
    out |= {f"stream {name}, {K}": partial(stream, name, K, s["T"], s["seeds"], [s["T"]]) for name in STREAMS}
    for where in ("sphere", "plane"):
        out[f"adversary {where}"] = partial(adversary, where, K, s["T"], s["seeds"])
    out["adversary positive"] = partial(greedy, seeds=s["seeds"], **s["greedy"])
    out |= {f"bounded {name}": partial(bounded, name, K, s["T"], s["many"]) for name in ("random", "positive")}
    out |= {f"reduction {d}, {T}": partial(reduction, d, T, s["models"]) for d, T in s["reductions"]}
    rounding_of = partial(rounding, K=s["width"], seeds=s["rounding_seeds"])
    out["million"] = partial(rounding_of, ("A", "A in float64", "sum"), s["million"])
    out["side"] = partial(rounding_of, ("A", "sum", "calls", "token sum", "divided", "two-sided", "mean"), s["side"])
    out["bfloat16"] = partial(rounding_of, ("A", "sum"), s["side"], bf16=True)
    out["influence"] = partial(influence, K=K, seeds=s["seeds"], **s["influence"])
    out["frozen"] = partial(frozen, K=K, seeds=s["seeds"], **s["frozen"])
    out["tracking"] = partial(tracking, **s["tracking"])
    return {name: partial(without_gradients, piece) for name, piece in out.items()}


def without_gradients(piece):
    with torch.inference_mode():
        return piece()


# ---- streams ----------------------------------------------------------------------------------------------------


def draw_keys(name, rng, T, K):
    """T keys of length 1, [T, K].

    "random": from all directions. "outliers": the same (its values differ). "positive": elu + 1 of normal numbers,
    brought to length 1, as the published layer's keys are. "aligned": 8 random keys, then each an earlier one, drawn
    evenly, plus noise of length 0.1. "drift": cosine near 0.9 with a direction that walks on the sphere, and has
    forgotten where it was after some thousand tokens.
    """
    z = rng.standard_normal((T, K))
    if name == "positive":
        return unit_rows(elu_plus_one(z))
    if name == "aligned":
        k, noise = unit_rows(z), 0.1 * unit_rows(rng.standard_normal((T, K)))
        for t in range(8, T):
            k[t] = k[rng.integers(t)] + noise[t]
            k[t] /= np.linalg.norm(k[t])
        return k
    if name == "drift":
        steps, middle = rng.standard_normal((T, K)) / np.sqrt(1000 * K), unit_rows(rng.standard_normal(K))
        for t in range(T):
            middle = middle + steps[t]
            middle = middle / np.linalg.norm(middle)
            z[t] = 0.9 * np.sqrt(K) * middle + np.sqrt(1 - 0.9**2) * z[t]
    return unit_rows(z)


def draw(name, rng, T, K, V):
    """Keys, and random values of length 1; under "outliers" 1 in 100 values is 100 times as long."""
    k, v = draw_keys(name, rng, T, K), unit_rows(rng.standard_normal((T, V)))
    if name == "outliers":
        v[rng.random(T) < 0.01] *= 100
    return k, v


def several(name, seeds, T, K, V):
    """k, v, W for many seeds, as tensors [N, T, K], [N, T, V], [N, K, K]."""
    rngs = [np.random.default_rng([seed, STREAMS.index(name)]) for seed in range(seeds)]
    drawn = [(*draw(name, rng, T, K, V), rng.standard_normal((K, K))) for rng in rngs]
    return [torch.tensor(np.array(x)) for x in zip(*drawn, strict=True)]


def log_times(T, per_decade=3):
    """Whole numbers from 1 to T, evenly in log."""
    return sorted({round(t) for t in np.geomspace(1, T, round(per_decade * np.log10(T)) + 1)})


# ---- eigenvalues and norms along a stream -----------------------------------------------------------------------


def stream(name, K, T, seeds, times=None):
    """Every memory along one stream: eigenvalues of M, singular values and sizes of eigenvalues of S; V = K.

    At some times, or at two for each power of ten. In the results, eigenvalues are smallest, quartiles and largest;
    singular values and sizes of eigenvalues of S are smallest, median and largest.
    """
    k, v, W = several(name, seeds, T, K, K)
    times = times or log_times(T, 2)
    bank, found = Bank(MEMORIES.values(), seeds, K, K, W), []
    for t in range(T):
        bank.step(k[:, t], v[:, t])
        if t + 1 in times:
            found.append(spectra(bank))
    M, S = ({name: [one[i][name] for one in found] for name in found[0][i]} for i in (0, 1))
    return dict(times=times, M={x: columns(rows) for x, rows in M.items()}, S={x: columns(y) for x, y in S.items()})


def columns(rows):
    """[{name: number}] as {name: [number]}."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def spectra(bank):
    """What is known of M for every penalty and of S for every memory, means over streams (and the spread of some)."""
    M, S = {}, {}
    for i, (penalty, _) in enumerate(bank.penalties):
        if penalty != "none":
            m = 1 / torch.linalg.eigvalsh(bank.A[:, i]).flip(-1).numpy()  # smallest first
            M[penalty] = dict(
                eigenvalues=numbers(np.quantile(m, (0, 0.25, 0.5, 0.75, 1), axis=1).mean(1)),
                near_1=number(np.mean(abs(m - 1) < 0.1)),
                **spread(m[:, -1] / m[:, 0], "cond"),
            )
    for i, name in enumerate(MEMORIES):
        state = bank.S[:, i]
        norm = state.norm(dim=(1, 2)).numpy()
        S[name] = spread(norm, "norm")
        if np.isfinite(norm).all():
            for kind, x in (("singular", torch.linalg.svdvals(state)), ("eigen", torch.linalg.eigvals(state).abs())):
                S[name][kind] = numbers(np.quantile(x.numpy(), (0, 0.5, 1), axis=1).mean(1))
                S[name][f"{kind}_near_1"] = number(np.mean(abs(x.numpy() - 1) < 0.1))
        else:
            S[name] |= dict(singular=None, singular_near_1=None, eigen=None, eigen_near_1=None)
    return M, S


def number(x, digits=4):
    """A float of so many digits, or None where it is not finite."""
    return float(f"{float(x):.{digits}g}") if np.isfinite(x) else None


def numbers(x):
    return [number(y) for y in np.asarray(x)]


def spread(x, name):
    """Mean and standard deviation over streams, under two names."""
    x = np.asarray(x, float)
    with np.errstate(all="ignore"):
        return {name: number(x.mean()), f"{name}_sd": number(x.std(ddof=1))}


# ---- is the state bounded? --------------------------------------------------------------------------------------


def exponent(times, norms, first):
    """The slope of log norm over log time from time `first` on: mean and standard deviation. norms [times, N]."""
    times, norms = np.asarray(times, float), np.asarray(norms)
    late = times >= first
    if not np.isfinite(norms[late]).all():
        return dict(exponent=None, exponent_sd=None)
    return spread(np.polyfit(np.log(times[late]), np.log(norms[late]), 1)[0], "exponent")


def bounded(name, K, T, seeds):
    """Bounded random inputs, unit keys and values, many seeds: the largest norm ever seen, and whether it grows."""
    k, v, W = several(name, seeds, T, K, K)
    names = [x for x in MEMORIES if x != "published, least_squares"]
    bank, times, kept = Bank([MEMORIES[x] for x in names], seeds, K, K, W), log_times(T), []
    largest = [torch.zeros(seeds, len(names)).double() for _ in range(2)]  # in the first half and in the second
    for t in range(T):
        bank.step(k[:, t], v[:, t])
        norm = bank.S.norm(dim=(2, 3))
        half = largest[t >= T // 2]
        torch.maximum(half, norm, out=half)
        if t + 1 in times:
            kept.append(norm.numpy())
    kept, halves, out = np.array(kept), [x.numpy() for x in largest], {}
    for i, memory in enumerate(names):
        first, second = (x[:, i] for x in halves)
        out[memory] = dict(largest=number(max(first.max(), second.max())), mean=numbers(kept[:, :, i].mean(1)))
        out[memory] |= dict(
            second_over_first=number((second / first).mean()), **exponent(times, kept[:, :, i], T / 100)
        )
    return dict(times=times, seeds=seeds, memories=out)


def adversary(where, K, T, seeds):
    """Keys at right angles to the state as it is, of the sign that writes along it; V = 1, every value 1.

    where: "sphere", drawn from all such keys; "plane", from the plane of the first two coordinates, which leaves one.
    """
    rngs = [np.random.default_rng([seed, 41]) for seed in range(seeds)]
    W = torch.tensor(np.array([rng.standard_normal((K, K)) for rng in rngs]))
    bank, one = Bank(MEMORIES.values(), seeds, K, 1, W, own_keys=True), torch.ones(seeds, 1, dtype=torch.float64)
    times, kept = log_times(T), []
    for t in range(T):
        z = torch.tensor(np.array([rng.standard_normal(K) for rng in rngs]))[:, None]
        s = bank.S[:, :, 0]
        if where == "plane":
            z = torch.stack([-s[..., 1], s[..., 0], *[0 * s[..., 0]] * (K - 2)], -1)
            z[..., 0] += s.norm(dim=-1) == 0  # the first key
        square = (s * s).sum(-1, keepdim=True)
        bank.step(unit(z - s * (z * s).sum(-1, keepdim=True) / square.clamp(min=1e-300)), one, against=True)
        if t + 1 in times:
            kept.append(bank.S[:, :, 0].norm(dim=-1).numpy())
    return grown(times, np.array(kept), MEMORIES, T / 100)


def grown(times, kept, memories, first):
    """Norms [times, N, R] of every memory, and the exponent of their growth."""
    out = {}
    for i, name in enumerate(memories):
        norms = kept[:, :, i]
        out[name] = columns([spread(x, "norm") for x in norms]) | exponent(times, norms, first)
    return dict(times=times, memories=out)


def greedy(T, K, choices, seeds):
    """Positive keys only, as the published layer makes them: the adversary turns the value's sign, not the key's.

    V = 1, values 1 or -1. While the state has entries of both signs there are positive keys at right angles to it. Out
    of so many of them, and both values, she takes what makes the state largest and leaves it entries of both signs.
    """
    rng, names = np.random.default_rng(43), [x for x in MEMORIES if x != "published, least_squares"]
    W, R = torch.tensor(rng.standard_normal((seeds, K, K))), len(names)
    bank = Bank([MEMORIES[x] for x in names], seeds, K, 1, W, own_keys=True)
    trial = Bank([MEMORIES[x] for x in names], seeds * choices, K, 1, W.repeat_interleave(choices, 0), own_keys=True)
    times, kept = log_times(T), []
    row, memory = torch.arange(seeds)[:, None], torch.arange(R)
    for t in range(T):
        scale = rng.choice([1, 4], (seeds, choices, 1))
        x = torch.tensor(elu_plus_one(scale * rng.standard_normal((seeds, choices, K))))
        k = positive_keys(x[:, :, None], bank.S[:, None, :, 0])  # [N, choices, R, K]
        score = []
        for value in (1.0, -1.0):
            trial.S.copy_(bank.S.repeat_interleave(choices, 0))
            trial.A.copy_(bank.A.repeat_interleave(choices, 0))
            trial.step(k.flatten(0, 1), torch.full((seeds * choices, 1), value, dtype=torch.float64))
            s = trial.S[:, :, 0]
            both = (s.amin(-1) < 0) & (s.amax(-1) > 0)
            score.append((s.norm(dim=-1) * torch.where(both, 1.0, 1e-9)).view(seeds, choices, R))
        best = torch.cat(score, 1).argmax(1)  # [N, R], the value 1 first
        bank.step(k[row, best % choices, memory], torch.where(best < choices, 1.0, -1.0).double()[..., None])
        if t + 1 in times:
            kept.append(bank.S[:, :, 0].norm(dim=-1).numpy())
    return grown(times, np.array(kept), names, T / 100)


def positive_keys(x, s):
    """Keys of length 1 from positive x [..., K], made smaller where s [..., K] has one sign until s^T k = 0.

    Where s has entries of one sign only there is no such key, and x is only brought to length 1.
    """
    above, below = ((x * side.clamp(min=0)).sum(-1, keepdim=True) for side in (s, -s))
    turned = x * torch.where(s > 0, below, torch.where(s < 0, above, torch.maximum(above, below)))
    return unit(torch.where((above > 0) & (below > 0), turned, x))


# ---- the published 109 ------------------------------------------------------------------------------------------


def reduction(d, T, models, vocabulary=128):
    """Norms of the state in untrained models at T, switching on unit keys, the error, the penalty, one by one.

    Published settings: random token vectors and projections, phi = elu + 1, u from the key before phi. Two controls:
    the penalty before the error, and the penalty along the key.
    """
    rows = np.array([norms_one_by_one(seed, d, T, vocabulary) for seed in range(models)])
    steps = dict(
        zip(("linear", "unit keys", "delta", "vla", "unit keys and penalty", "vla, u = key"), rows.T, strict=True)
    )
    ratios = {
        "unit keys": ("linear", "unit keys"),
        "the error": ("unit keys", "delta"),
        "the penalty": ("delta", "vla"),
        "together": ("linear", "vla"),
        "the penalty, before the error": ("unit keys", "unit keys and penalty"),
        "the error, after the penalty": ("unit keys and penalty", "vla"),
        "the penalty along the key": ("delta", "vla, u = key"),
    }
    out = {}
    for name, (above, below) in ratios.items():
        x = steps[above] / steps[below]
        out[name] = spread(x, "factor") | dict(least=number(x.min()), most=number(x.max()))
        out[name]["p"] = number(paired_p(np.log(x).tolist()))
    return dict(models=models, factors=out, norms={name: spread(x, "norm") for name, x in steps.items()})


def norms_one_by_one(seed, d, T, vocabulary):
    """The six norms that `reduction` compares, for one model."""
    rng = np.random.default_rng(seed)
    seen = rng.standard_normal((vocabulary, d))[rng.integers(0, vocabulary, T)]
    W_k, W_v, W_u = rng.standard_normal((3, d, d)) / np.sqrt(d)
    phi, v, C = elu_plus_one(seen @ W_k.T), seen @ W_v.T, min(64, T)
    k, u = unit_rows(phi), unit_rows(seen @ W_k.T @ W_u.T) / np.sqrt(d)
    delta = chunk_write(k, k, v, k, np.zeros((d, d)), C)[1]
    vla, along = (vla_chunk(k, k, v, x, LAMBDA_0, trace=True)[1] for x in (u, k))
    states = v.T @ phi, v.T @ k, delta, vla.S, v.T @ vla.trace.gains, along.S
    return [np.linalg.norm(S) for S in states]


# ---- rounding ---------------------------------------------------------------------------------------------------


def rounding(ways, T, K, seeds, bf16=False):
    """Errors of some ways in float32 against float64 at V = K: mean and spread of o, S, A and the gain, by config."""
    configs = (*CONFIGS, "four directions, no penalty") if bf16 else CONFIGS
    groups = [slice(i * seeds, (i + 1) * seeds) for i in range(len(configs))]

    def apart(way):
        return lambda N: million.Apart(lambda: way(seeds, K, K, LAMBDA_0, np.float32), groups)

    def kept(dtype=np.float32, **options):
        return lambda N: million.Kept(N, K, K, LAMBDA_0, dtype, **options)

    makers = {
        "A": kept(),
        "A in float64": kept(np.float64),
        "sum": apart(million.Summed),
        "calls": apart(million.Calls),
        "token sum": lambda N: million.TokenSum(N, K, K, LAMBDA_0, np.float32),
        "divided": kept(update="divided first"),
        "two-sided": kept(update="two-sided", answers=False),
        "mean": kept(update="resymmetrised", answers=False),
    }
    times, found = million.long_run(configs, {name: makers[name] for name in ways}, T, K, K, range(seeds), bf16)
    out = {config: {} for config in configs}
    for config, group in zip(configs, groups, strict=True):
        for name, measures in found.items():
            cut = {measure: np.array(x)[:, group] for measure, x in measures.items()}
            out[config][name] = {x: columns([spread(y, "mean") for y in rows]) for x, rows in cut.items()}
    return dict(times=times, seeds=seeds, configs=out)


# ---- how long a memory remembers --------------------------------------------------------------------------------


def influence(K, T, at, seeds):
    """What is left in the state of one value, after so many more tokens: its share of the norm just after the write.

    S is linear in the values. So the part of S that token s wrote is the state for values that are 0 except there.
    """
    names, out = [x for x in MEMORIES if x != "published, least_squares"], {}
    for name, s in product(("random", "positive"), at):
        k, _, W = several(name, seeds, T, K, 1)
        bank, lags, kept = Bank([MEMORIES[x] for x in names], seeds, K, 1, W), [0, *log_times(T - s)], []
        for t in range(T):
            bank.step(k[:, t], torch.full((seeds, 1), float(t == s - 1), dtype=torch.float64))
            if t - s + 1 in lags:
                kept.append(bank.S.norm(dim=(2, 3)).numpy())
        left = np.array(kept) / kept[0]
        out[f"{name}, {s}"] = dict(
            lags=lags, memories={x: columns([spread(y, "left") for y in left[:, :, i]]) for i, x in enumerate(names)}
        )
    return out


def frozen(K, T, loud, change, seeds, V=8):
    """One long u, and then a new world: how long until the memory has learnt the new answer along that u.

    v = W k without noise; the u of token 100 (or half way to the change) is `loud` times as long; at `change` W is
    drawn anew. Measured: the squared error of S w over that of an empty memory, w the direction of the long u; and
    after how many tokens it is below 0.1 for good, one number a seed (None: not by the end).
    """
    names = ("DeltaNet", "key, unit", "key / K, unit", "key, interpolate", "key, least_squares")
    N, at = len(loud) * seeds, min(100, change // 2)
    factors = torch.tensor(loud, dtype=torch.float64).repeat_interleave(seeds)
    k, worlds = (torch.tensor(x).repeat(len(loud), *[1] * (x.ndim - 1)) for x in frozen_draws(K, V, T, seeds))
    bank, times, kept = Bank([MEMORIES[x] for x in names], N, K, V), log_times(T - change, 6), []
    w = k[:, at]
    for t in range(T):
        world = worlds[:, int(t >= change)]
        bank.step(k[:, t], (world @ k[:, t, :, None])[..., 0], loud=factors if t == at else None)
        if t >= change:
            wanted = (world @ w[..., None])[:, None, :, 0]
            error = (bank.S @ w[:, None, :, None])[..., 0] - wanted
            kept.append(((error**2).sum(-1) / (wanted**2).sum(-1)).numpy())
    kept, out = np.array(kept).reshape(T - change, len(loud), seeds, len(names)), {}
    for i, name in enumerate(names):
        out[name] = []
        for j in range(len(loud)):
            mine = kept[:, j, :, i]
            until = [int(np.max(np.flatnonzero(x > 0.1), initial=-1)) + 2 for x in mine.T]
            until = [x if x <= len(mine) else None for x in until]
            out[name].append(columns([spread(x, "error") for x in mine[np.array(times) - 1]]) | dict(until=until))
    return dict(times=times, loud=loud, memories=out)


def frozen_draws(K, V, T, seeds):
    """Keys [seeds, T, K] and the two worlds [seeds, 2, V, K]."""
    rngs = [np.random.default_rng([seed, 47]) for seed in range(seeds)]
    keys = np.array([draw_keys("random", rng, T, K) for rng in rngs])
    return keys, np.array([rng.standard_normal((2, V, K)) for rng in rngs])


# ---- a world that moves -----------------------------------------------------------------------------------------


def rates(memory, decays=(1.0,), forgets=(1.0,)):
    """A memory with each of four step sizes, and what else is tuned."""
    return [
        memory._replace(beta=beta, decay=decay, forget=forget)
        for decay, forget, beta in product(decays, forgets, (0.03, 0.1, 0.3, 1.0))
    ]


FORGETS = (0.98, 0.995, 0.999)
TUNED = {
    "DeltaNet": rates(DELTA),
    "gated DeltaNet": rates(GATED, decays=(0.9, 0.99, 0.999)),
    "VLA, published": rates(MEMORIES["published, unit"]),
    "VLA, u = key": rates(MEMORIES["key / K, unit"]),
    "VLA, interpolating": rates(MEMORIES["key / K, interpolate"]),
    "least squares": rates(MEMORIES["key / K, least_squares"]),
    "VLA that forgets": rates(MEMORIES["key / K, unit"], forgets=FORGETS),
    "least squares that forgets": rates(MEMORIES["key / K, least_squares"], forgets=FORGETS),
}


def worlds(speeds):
    """What is followed: keys of a condition number, noise, and a map that moves; or one that is drawn anew half way."""
    rows = [dict(condition=c, noise=0.3, speed=speed, switch=False) for c in (1, 100) for speed in speeds]
    rows += [dict(condition=100, noise=0.0, speed=speed, switch=False) for speed in speeds[:: len(speeds) - 2 or 1]]
    return rows + [dict(condition=100, noise=noise, speed=0, switch=True) for noise in (0.0, 0.3)]


def tracking(T, speeds, tune, test, width, V=8):
    """Next-token error of a linear map that moves: W_t = sqrt(1 - speed^2) W_{t-1} + speed (a fresh draw).

    Keys of length 1 with a random covariance, values W_t C^(-1/2) k plus noise (see `vla_teach.tasks.incontext`).
    With `switch` the covariance and the map are drawn anew after T / 2 tokens, and the next T / 8 are judged; else the
    last quarter. Every memory is tuned for every world on some seeds, and judged on others. Errors are relative:
    squared error over squared length of the value without noise. p: VLA against DeltaNets, paired over seeds, Holm.
    """
    rows, seeds, K = worlds(speeds), tune + test, width
    N, variants = len(rows) * seeds, [(name, m) for name, some in TUNED.items() for m in some]
    rng, generator = np.random.default_rng(53), torch.Generator().manual_seed(53)
    condition, noise, speed, switch = (np.repeat([row[x] for row in rows], seeds) for x in rows[0])

    def covariances():
        pairs = [random_roots(rng, 1, K, c) for c in condition]
        return [torch.tensor(np.concatenate(x)) for x in zip(*pairs, strict=True)]

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    bank = Bank([m for _, m in variants], N, K, V, normal(N, K, K))
    noise, speed = column(noise, 2), column(speed, 3)
    still, moved = torch.sqrt(1 - speed**2), torch.tensor(switch)[:, None, None]
    root, inverse = covariances()
    world, new_roots, new_world = normal(N, V, K), covariances(), normal(N, V, K)
    edges, sums = [0, *log_times(T // 2, 5), T // 2 + T // 8, 3 * T // 4, T], []
    edges = sorted(set(edges) | {T // 2 + x for x in log_times(T // 8, 3)})
    error = size = 0
    for t in range(T):
        if t == T // 2:
            root, inverse = (torch.where(moved, *x) for x in zip(new_roots, (root, inverse), strict=True))
            world = torch.where(moved, new_world, world)
        k = unit((root @ normal(N, K, 1))[..., 0])
        v = (world @ (inverse @ k[..., None]))[..., 0]
        recalled = bank.step(k, v + noise * normal(N, V))
        error = error + ((recalled - v[:, None]) ** 2).sum(-1)
        size = size + (v**2).sum(-1, keepdim=True)
        world = still * world + speed * normal(N, V, K)
        if t + 1 in edges:
            sums.append((error.numpy().reshape(len(rows), seeds, -1), size.numpy().reshape(len(rows), seeds, 1)))
            error = size = 0
    judged = dict(switch=(T // 2, T // 2 + T // 8), last=(3 * T // 4, T))
    return dict(
        edges=edges, tune=tune, test=test,
        worlds=[judge(row, i, sums, edges, variants, tune, judged["switch" if row["switch"] else "last"])
                for i, row in enumerate(rows)],
    )  # fmt: skip


def judge(row, i, sums, edges, variants, tune, judged):
    """The best variant of every memory in one world by the tuning seeds, and its errors on the others."""
    error, size = (np.array([part[j][i] for part in sums]) for j in (0, 1))  # [windows, seeds, variants or 1]
    inside = [a >= judged[0] and b <= judged[1] for a, b in pairwise(edges)]
    score = error[inside].sum(0) / size[inside].sum(0)  # [seeds, variants]
    out, scores = {}, {}
    for name in TUNED:
        mine = [j for j, (other, _) in enumerate(variants) if other == name]
        tuned = np.nan_to_num(score[:tune, mine].mean(0), nan=np.inf)
        best = mine[int(np.argmin(tuned))]
        scores[name], chosen = score[tune:, best], variants[best][1]
        curve = numbers((error[:, tune:, best] / size[:, tune:, 0]).mean(1))
        picked = {x: getattr(chosen, x) for x in ("beta", "decay", "forget")}
        out[name] = dict(chosen=picked, curve=curve, **spread(scores[name], "error"))
    pairs = [
        (x, y) for x in ("VLA, published", "VLA, u = key", "VLA, interpolating") for y in ("DeltaNet", "gated DeltaNet")
    ]
    ps = corrected([paired_p(np.log(scores[x] / scores[y]).tolist()) for x, y in pairs])
    against = [dict(memory=x, against=y, ratio=number(np.exp(np.log(scores[x] / scores[y]).mean())), p_holm=number(p))
               for (x, y), p in zip(pairs, ps, strict=True)]  # fmt: skip
    return dict(world=row, memories=out, against=against)


def corrected(ps):
    """p values of several tests by Holm's method, in the order given; None counts as 1."""
    return holm([1.0 if p is None else p for p in ps])
