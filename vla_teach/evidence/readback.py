"""Read-back without training: n pairs are stored, then every key is asked once. Which memory answers right, and when?

A cell of the diagram is a load n / K and a kind of keys; every rule sees the same streams of it. A rule's settings are
compared on streams of their own, `tune` of them a cell; what is reported comes from `streams` others. So one more
setting to choose from is no unearned luck, and every rule is tuned in the same way, cell by cell.
"""

from functools import partial
from itertools import product
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch

from vla_teach import ops, rivals
from vla_teach.experiments.sweep import holm, paired_p
from vla_teach.reference import elu_plus_one, unit_rows
from vla_teach.tasks.incontext import random_keys, random_roots

ABOUT = "Pairs stored once, each key asked once, untrained: which memory reads back right, by load and keys"
MINUTES = 4
KEYS = {f"correlation {c:g}": dict(correlation=c) for c in (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)}
KEYS |= {f"condition {c:g}": dict(condition=c) for c in (10, 100, 1000, 10_000)}
KEYS |= {"elu + 1": dict(positive=True)}
GRIDS = dict(
    betas=(1, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02),
    lambdas=(10, 1, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-6),
    alphas=(1, 0.99, 0.97, 0.9),  # with betas, for the two rules that have two numbers: 32 settings each
    few_betas=(1, 0.5, 0.2, 0.05),
)


def some_keys(*names):
    return {name: KEYS[name] for name in names}


SIZES = dict(
    smoke=dict(
        K=8, V=8, words=16, streams=4, tune=3, grids=GRIDS, keys=some_keys("correlation 0", "elu + 1"),
        loads=(0.5, 1, 2), ranks=(2,),
        wide=dict(K=16, keys=some_keys("correlation 0.9"), loads=(1,)),
        exact=dict(correlations=(0, 0.9), loads=(0.5, 1), lambdas=(0.1, 1e-6)),
        noise=dict(pairs=6, keys=some_keys("correlation 0.6"), repeats=(1, 3), sds=(0, 0.5)),
        rewritten=dict(pairs=6, keys=some_keys("correlation 0.6"), shares=(0, 0.5)),
    ),
    full=dict(
        K=32, V=32, words=128, streams=20, tune=12, grids=GRIDS, keys=KEYS,
        loads=(0.25, 0.5, 1, 1.25, 1.5, 2, 3, 4), ranks=(2, 4),
        wide=dict(K=64, keys=some_keys("correlation 0", "correlation 0.9", "elu + 1"), loads=(0.5, 1, 2, 4)),
        exact=dict(correlations=(0, 0.6, 0.95), loads=(0.25, 0.5, 0.75, 1, 1.25, 1.5, 2), lambdas=(0.1, 1e-3, 1e-6)),
        noise=dict(pairs=24, keys=some_keys("correlation 0", "correlation 0.6"), repeats=(1, 4),
                   sds=(0, 0.25, 0.5, 1, 1.5, 2)),
        rewritten=dict(pairs=24, keys=some_keys("correlation 0", "correlation 0.6"), shares=(0, 0.25, 0.5, 0.75, 1)),
    ),
)  # fmt: skip


# ---- streams ----------------------------------------------------------------------------------------------------


class Streams(NamedTuple):
    """B streams of pairs to store, and what is asked at the end. Values are words of a codebook, of length 1."""

    k: torch.Tensor  # [B, n, K]      keys, of length 1, in the order of writing
    v: torch.Tensor  # [B, n, V]      values, in the order of writing
    asked: torch.Tensor  # [B, m, K]  keys that are asked once all is written
    word: torch.Tensor  # [B, m]      the number of the right word
    book: torch.Tensor  # [B, words, V]
    W_u: torch.Tensor  # [B, K, K]    a random projection for the published u


def draw(settings, n, name, K=None, role="report"):
    """n pairs in each stream of one role, "tune" or "report"; name: the kind of keys, one of `KEYS`."""
    K, V = K or settings["K"], settings["V"]
    B = settings["tune" if role == "tune" else "streams"]
    rng = np.random.default_rng([crc32(name.encode()), K, n, role == "tune"])
    kind = dict(correlation=0.0, condition=1.0, positive=False) | KEYS[name]
    root, _ = random_roots(rng, B, K, kind["condition"])
    k = random_keys(rng, n, root, kind["correlation"], unit=not kind["positive"])
    k = torch.from_numpy(unit_rows(elu_plus_one(k)) if kind["positive"] else k)
    book = torch.from_numpy(unit_rows(rng.normal(size=(B, settings["words"], V))))
    word = torch.from_numpy(rng.integers(settings["words"], size=(B, n)))
    W_u = torch.from_numpy(rng.normal(size=(B, K, K)))
    return Streams(k, words_of(book, word), k, word, book, W_u)


def words_of(book, word):
    """book [B, words, V], word [B, n] -> values [B, n, V]."""
    return book.take_along_dim(word[:, :, None], 1)


def repeated(streams, times, sd, seed=0):
    """Every pair written `times` times in a random order, each time with new noise; the clean word is asked for.

    sd: root mean square length of the noise, where a word has length 1.
    """
    (B, n, V), rng = streams.v.shape, np.random.default_rng([seed, times])
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(n * times) % n, (B, 1)), axis=1))[:, :, None]
    noise = torch.from_numpy(rng.normal(size=(B, n * times, V))) * sd / V**0.5
    return streams._replace(k=streams.k.take_along_dim(order, 1), v=streams.v.take_along_dim(order, 1) + noise)


def rewritten(streams, share, seed=0):
    """A share of the keys, the first written, comes once more at the end with a new word, which is the right one."""
    (B, n), rng = streams.word.shape, np.random.default_rng(seed)
    some = round(share * n)
    words = streams.book.shape[1]
    new = torch.from_numpy((streams.word[:, :some].numpy() + rng.integers(1, words, size=(B, some))) % words)
    k, v = torch.cat([streams.k, streams.k[:, :some]], 1), torch.cat([streams.v, words_of(streams.book, new)], 1)
    return streams._replace(k=k, v=v, word=torch.cat([new, streams.word[:, some:]], 1))


def centred(streams):
    """Keys less the mean of the keys so far, brought to length 1; what is asked, less the mean of all keys.

    The mean of t keys is taken as their sum over t + 1, so that the first key does not become zero.
    """
    count = torch.arange(2, streams.k.shape[1] + 2, dtype=streams.k.dtype)[:, None]
    mean = streams.k.cumsum(1) / count
    away = torch.nn.functional.normalize
    return streams._replace(k=away(streams.k - mean, dim=2), asked=away(streams.asked - mean[:, -1:], dim=2))


# ---- rules: the state after all pairs, [B, G, V, K] for G settings ----------------------------------------------


def linear_states(streams, scales):
    """Linear attention times a number: it changes the error, never the nearest word."""
    S = streams.v.mT @ streams.k
    return S[:, None] * torch.tensor(scales, dtype=S.dtype)[:, None, None]


def delta_states(streams, grid):
    """DeltaNet for pairs (beta, alpha): alpha = 1 never forgets, alpha < 1 is gated DeltaNet with constant gates."""
    beta, alpha = torch.tensor(grid, dtype=streams.k.dtype).T[:, :, None, None]
    k, v = (some_heads(x, len(grid)) for x in (streams.k, streams.v))
    log_alpha = alpha.log().expand(*k.shape[:3], 1)
    tokens = (in_chunks(x) for x in (k, k, v, beta * k, log_alpha))
    return rivals.gated_chunk_write(*tokens, nothing(streams, len(grid)))[1]


def vla_states(streams, grid, gain="unit", u="key", rank=1):
    """VLA for pairs (lambda_0, beta); u: "key", "projected", or "published", which has length 1 / sqrt(K)."""
    lambdas, betas = (list(dict.fromkeys(x)) for x in zip(*grid, strict=True))
    K = streams.k.shape[2]
    rows = directions(streams, u, rank).flatten(1, 2)
    u = ops.in_chunks(some_heads(rows, len(lambdas)), rank * chunk_size(streams.k))
    k, v = (in_chunks(some_heads(x, len(lambdas))) for x in (streams.k, streams.v))
    M = torch.tensor(lambdas, dtype=k.dtype)[:, None, None] * torch.eye(K, dtype=k.dtype)
    a, _ = ops.penalty_solve(k, u, M.expand(len(k), -1, -1, -1))
    g, S = ops.write_gain(a, k, gain), nothing(streams, len(lambdas))
    found = {beta: ops.chunk_write(k, k, v, beta * g, S)[1] for beta in betas}
    return torch.stack([found[beta][:, lambdas.index(lambda_0)] for lambda_0, beta in grid], 1)


def directions(streams, u, rank):
    """Penalty directions [B, n, rank, K]: of this token, then of the tokens before it."""
    k = streams.k
    if u != "key":
        k = torch.nn.functional.normalize(k @ streams.W_u.mT, dim=2)
        k = k / k.shape[2] ** 0.5 if u == "published" else k
    return torch.stack([torch.nn.functional.pad(k, (0, 0, r, 0))[:, : k.shape[1]] for r in range(rank)], 2)


def exact_states(streams, grid):
    """Least squares for pairs (ridge, alpha), solved at the end; alpha < 1: old pairs weigh less, as MesaNet can."""
    (n, K), found = streams.k.shape[1:], {}
    for alpha in dict.fromkeys(alpha for _, alpha in grid):
        weight = alpha ** torch.arange(n - 1, -1, -1, dtype=streams.k.dtype)[:, None]
        found[alpha] = streams.k.mT @ (weight * streams.k), streams.k.mT @ (weight * streams.v)
    eye = torch.eye(K, dtype=streams.k.dtype)
    return torch.stack([torch.linalg.solve(found[alpha][0] + r * eye, found[alpha][1]).mT for r, alpha in grid], 1)


def some_heads(x, G):
    """[B, n, ...] -> [B, G, n, ...], one head a setting."""
    return x[:, None].expand(-1, G, *x.shape[1:])


def nothing(streams, G):
    """The state before the first pair, [B, G, V, K]."""
    return streams.k.new_zeros(len(streams.k), G, streams.v.shape[2], streams.k.shape[2])


def chunk_size(k):
    return min(ops.CHUNK, k.shape[1])


def in_chunks(x):
    """[B, G, n, ...] -> [B, G, N, C, ...]."""
    return ops.in_chunks(x, min(ops.CHUNK, x.shape[2]))


class Rule(NamedTuple):
    """A memory with every setting that it is tried with."""

    states: object  # states(streams, grid) -> [B, G, V, K]
    grid: list
    before: object = None  # what is done to the streams first


def rules(settings):
    """{name: Rule}. Two of the tuned rules have two numbers, the others one."""
    betas, lambdas, alphas, few = (settings["grids"][x] for x in ("betas", "lambdas", "alphas", "few_betas"))
    penalties, K = [(x, 1) for x in lambdas], settings["K"]
    steps = [(x, 1) for x in betas]
    return dict(
        linear=Rule(linear_states, list(betas)),
        delta_1=Rule(delta_states, [(1, 1)]),
        delta=Rule(delta_states, steps),
        gated=Rule(delta_states, list(product(betas, alphas))),
        delta_centred=Rule(delta_states, steps, centred),
        vla_published=Rule(partial(vla_states, u="published"), [(0.1, 1)]),
        vla_projected=Rule(partial(vla_states, u="projected"), penalties),
        vla_key_short=Rule(vla_states, [(0.1 * K, 1)]),  # the same gains as u = k / sqrt(K), lambda_0 = 0.1
        vla_key=Rule(vla_states, [(0.1, 1)]),
        vla_key_d=Rule(vla_states, [(0.1 / K, 1)]),
        vla=Rule(vla_states, penalties),
        vla_beta=Rule(vla_states, list(product(lambdas, few))),
        vla_interpolate=Rule(partial(vla_states, gain="interpolate"), penalties),
        exact=Rule(exact_states, penalties),
    )


def more_rules(settings):
    """Rules for the slices only: more penalty directions a token, and least squares that forgets."""
    lambdas, alphas = settings["grids"]["lambdas"], settings["grids"]["alphas"]
    ranks = {f"vla_rank_{r}": Rule(partial(vla_states, rank=r), [(x, 1) for x in lambdas]) for r in settings["ranks"]}
    return ranks | dict(exact_forget=Rule(exact_states, list(product(lambdas, alphas))))


# ---- scores -----------------------------------------------------------------------------------------------------


def read(rule, streams, grid=None):
    """(number of right words, relative squared error), both [G, B], of a rule with every setting of its grid."""
    streams = rule.before(streams) if rule.before else streams
    wanted = words_of(streams.book, streams.word)
    right, error = [], []
    for S in rule.states(streams, grid or rule.grid).unbind(1):
        o = streams.asked @ S.to(streams.asked.dtype).mT
        right.append(((o @ streams.book.mT).argmax(2) == streams.word).sum(1))  # words have one length: nearest
        error.append(((o - wanted) ** 2).sum((1, 2)) / (wanted**2).sum((1, 2)))
    return torch.stack(right).numpy(), torch.stack(error).numpy()


def choose(right, error):
    """The best setting: most right words, then the smallest error. right, error [G, B] of the tuning streams."""
    return max(range(len(right)), key=lambda i: (right[i].sum(), -error[i].mean()))


def measured(rule, tune, report):
    """One rule in one cell. right: right words in each stream, as text, which keeps files short; curve: the share of
    right words at every setting, of the streams that are reported."""
    best = choose(*read(rule, tune)) if len(rule.grid) > 1 else 0
    right, error = read(rule, report)
    row = dict(right=" ".join(map(str, right[best])), error=rounded(error[best].mean()), chosen=best)
    if 1 < len(rule.grid) <= 8 and rule.states is not linear_states:
        row["curve"] = " ".join(f"{x:.3f}" for x in right.mean(1) / report.word.shape[1])
    return row


def cell(settings, load, name, K=None, some=None):
    """{rule: what `measured` gives} for n = load * K pairs and one kind of keys."""
    K = K or settings["K"]
    n = round(load * K)
    tune, report = (draw(settings, n, name, K, role) for role in ("tune", "report"))
    return dict(n=n, rules={key: measured(rule, tune, report) for key, rule in (some or rules(settings)).items()})


def shares(n, row):
    """The share of right words in each stream [streams], from a row of `measured`; n: how many keys were asked."""
    return np.array([int(x) for x in row["right"].split()]) / n


def rounded(x, digits=4):
    """A float with so many significant digits: more would only make the file longer."""
    return float(f"{x:.{digits}g}")


# ---- tests ------------------------------------------------------------------------------------------------------


def compare(cells, model, rival):
    """Paired tests of one rule against another in every cell: rows of (difference, p, p by Holm over the cells).

    cells: [(n, rules)]. Differences that are the same in all streams leave nothing to a t test; such a cell gets the p
    of a sign test, 2 / 2^streams, or 1 where the difference is 0.
    """
    differences = [shares(n, found[model]) - shares(n, found[rival]) for n, found in cells]
    p = [p_value(d) for d in differences]
    return [(float(d.mean()), *both) for d, *both in zip(differences, p, holm(p), strict=True)]


def p_value(differences):
    """Two-sided p of paired differences [streams]."""
    p = paired_p([float(x) for x in differences])
    if p is not None:
        return p
    return 2 * 0.5 ** len(differences) if np.any(differences) else 1.0


# ---- pieces -----------------------------------------------------------------------------------------------------


def pieces(settings):
    """A row of the diagram for each kind of keys, and the slices."""
    K = settings["wide"]["K"]
    found = {name: partial(row, settings, name) for name in settings["keys"]}
    found |= {f"K = {K}, {name}": partial(wide, settings, name) for name in settings["wide"]["keys"]}
    found |= {f"ranks, {name}": partial(ranks, settings, name) for name in settings["noise"]["keys"]}
    found |= {f"noise, {name}": partial(noise, settings, name) for name in settings["noise"]["keys"]}
    found |= {f"rewritten, {name}": partial(rewriting, settings, name) for name in settings["rewritten"]["keys"]}
    found["exact recall"] = partial(exact_recall, settings)
    return {name: partial(on_one_core, piece) for name, piece in found.items()}


def on_one_core(piece):
    """The matrices are too small to share between cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return piece()
    finally:
        torch.set_num_threads(threads)


def row(settings, name):
    """All loads of one kind of keys."""
    return [dict(load=load) | cell(settings, load, name) for load in settings["loads"]]


def wide(settings, name):
    """The same for wider keys, a few loads."""
    return row(settings | dict(K=settings["wide"]["K"], loads=settings["wide"]["loads"]), name)


def ranks(settings, name):
    """More penalty directions a token."""
    some = {key: rule for key, rule in more_rules(settings).items() if key.startswith("vla_rank")}
    return [dict(load=load) | cell(settings, load, name, some=some) for load in settings["loads"]]


def noise(settings, name):
    """Noise in the values, with every pair written once or several times."""
    wanted, found = settings["noise"], []
    some = named(settings, "linear", "delta", "gated", "vla", "vla_beta", "vla_interpolate", "exact")
    for times, sd in product(wanted["repeats"], wanted["sds"]):
        change = partial(repeated, times=times, sd=sd)
        found.append(dict(repeats=times, sd=sd) | changed(settings, wanted["pairs"], name, change, some))
    return found


def rewriting(settings, name):
    """Some keys get a new value: old answers must be forgotten."""
    wanted = settings["rewritten"]
    some = named(settings, "linear", "delta", "gated", "vla", "vla_beta", "vla_interpolate", "exact", "exact_forget")
    return [
        dict(share=share) | changed(settings, wanted["pairs"], name, partial(rewritten, share=share), some)
        for share in wanted["shares"]
    ]


def named(settings, *names):
    known = rules(settings) | more_rules(settings)
    return {name: known[name] for name in names}


def changed(settings, n, name, change, some):
    """What `cell` gives, for n pairs whose streams were changed first."""
    tune, report = (change(draw(settings, n, name, role=role), seed=i) for i, role in enumerate(("tune", "report")))
    return dict(n=n, rules={key: measured(rule, tune, report) for key, rule in some.items()})


def exact_recall(settings):
    """How exact each gain is at the loads of settings, in double and in single precision (sums and solves alike).

    share: right words, error: median over streams of the relative squared error, as text, one number a load; "-" where
    the penalty can no longer be inverted to rounding.
    """
    wanted, found = settings["exact"], []
    gains = ("unit", "interpolate", "least_squares")
    for correlation, gain, lambda_0, dtype in product(wanted["correlations"], gains, wanted["lambdas"], DTYPES):
        rule, share, error = Rule(partial(vla_states, gain=gain), [(lambda_0, 1)]), [], []
        for load in wanted["loads"]:
            n = round(load * settings["K"])
            streams = draw(settings, n, f"correlation {correlation:g}")
            try:
                right, errors = read(
                    rule, streams._replace(k=streams.k.to(DTYPES[dtype]), v=streams.v.to(DTYPES[dtype]))
                )
            except ValueError:
                share, error = [*share, "-"], [*error, "-"]
                continue
            share.append(f"{right.mean() / n:.3f}")
            error.append(f"{np.median(errors):.2g}")
        what = dict(correlation=correlation, gain=gain, lambda_0=lambda_0, dtype=dtype)
        found.append(what | dict(share=" ".join(share), error=" ".join(error)))
    return found


DTYPES = dict(float64=torch.float64, float32=torch.float32)
