"""A million tokens in float32: how wrong S, A and the answers become, for five ways to keep the penalty.

All ways see the same tokens, rounded to what they are given; unit gain, N streams at once, arrays [N, ...] in NumPy.
"""

import numpy as np
import torch

from vla_teach import ops
from vla_teach.chunkwise import cholesky, mT
from vla_teach.reference import unit_rows

CHUNK = ops.CHUNK
ASKED = 64  # answers compared at every checkpoint: those to the last tokens before it


class Kept:
    """The recurrence: A kept and updated by Sherman-Morrison, token after token.

    update "symmetric": (A u)(A u)^T / (1 + u^T A u), the same to the bit above and below the diagonal, as in
    `vla_teach.reference` and `vla_teach.ops`; "divided first": (A u) times the row (A u)^T / (1 + u^T A u), which is
    not; "two-sided": (A u) times the row u^T A / (1 + u^T A u); "resymmetrised": as "divided first", and then the mean
    of A and its transpose. rebase: after so many tokens A is computed again from M, a sum kept beside it; or never.
    """

    def __init__(self, N, K, V, lambda_0, dtype, update="symmetric", rebase=None, answers=True):
        self.A = np.repeat(np.eye(K, dtype=dtype)[None] / dtype(lambda_0), N, 0)
        self.S = np.zeros((N, V, K), dtype)
        self.M = np.repeat(np.eye(K, dtype=dtype)[None] * dtype(lambda_0), N, 0)
        self.dtype, self.update, self.rebase, self.answers = dtype, update, rebase, answers

    def run(self, k, v, u, q):
        """Tokens k, u, q [T, N, K], v [T, N, V] -> the last answers [ASKED, N, V]."""
        k, v, u, q = (x.astype(self.dtype)[..., None] for x in (k, v, u, q))
        A, S, change, out = self.A, self.S, np.empty_like(self.A), []
        write = np.empty_like(S)
        for t in range(len(k)):
            Au = A @ u[t]
            uA = mT(u[t]) @ A if self.update == "two-sided" else mT(Au)
            if self.update == "symmetric":
                np.multiply(Au, uA, out=change)
                change /= 1 + uA @ u[t]
            else:
                np.multiply(Au, uA / (1 + uA @ u[t]), out=change)
            A -= change
            if self.update == "resymmetrised":
                A[:] = (A + mT(A)) / 2
            if not self.answers:
                continue
            g = A @ k[t]
            g /= np.sqrt(mT(g) @ g)
            np.multiply(v[t] - S @ k[t], mT(g), out=write)
            S += write
            if t >= len(k) - ASKED:
                out.append((S @ q[t])[..., 0])
            if self.rebase and (t + 1) % self.rebase == 0:
                some = u[t + 1 - self.rebase : t + 1, :, :, 0].transpose(1, 0, 2)
                self.M += mT(some) @ some
                A[:] = np.linalg.inv(self.M)
        return np.array(out) if out else None


class Summed:
    """The chunk form: M kept as a sum over chunks, as one call of `ops.vla` does. A is its inverse."""

    def __init__(self, N, K, V, lambda_0, dtype):
        self.dtype = torch.float32 if dtype == np.float32 else torch.float64
        self.M = (lambda_0 * torch.eye(K, dtype=self.dtype)).repeat(1, N, 1, 1)
        self.state = torch.zeros(1, N, V, K, dtype=self.dtype)

    def run(self, k, v, u, q):
        heads = (torch.as_tensor(x).to(self.dtype).transpose(0, 1)[None] for x in (q, k, v, u))
        q, k, v, u = (ops.in_chunks(x, CHUNK) for x in heads)
        a, self.M = ops.penalty_solve(k, u, self.M)
        o, self.state = ops.chunk_write(q, k, v, ops.write_gain(a, k, "unit"), self.state)
        return o[0].flatten(1, 2)[:, -ASKED:].transpose(0, 1).numpy()

    S = property(lambda self: self.state[0].numpy())
    A = property(lambda self: ops.inverse(self.M)[0].numpy())


class Calls:
    """The chunk form in calls of so many tokens, each started from the last one's State with A, as `ops.vla` is."""

    def __init__(self, N, K, V, lambda_0, dtype, tokens=4096):
        self.dtype, self.tokens = torch.float32 if dtype == np.float32 else torch.float64, tokens
        self.state = ops.start_state(1, N, V, K, lambda_0, self.dtype)

    def run(self, k, v, u, q):
        tokens = [torch.as_tensor(x).to(self.dtype)[None] for x in (q, k, v, u)]
        for some in zip(*(x.split(self.tokens, 1) for x in tokens), strict=True):
            o, self.state = ops.vla(*some, initial_state=self.state, output_final_state=True, backend="chunk")
        return o[0, -ASKED:].numpy()

    S = property(lambda self: self.state.S[0].numpy())
    A = property(lambda self: self.state.A[0].numpy())


class TokenSum:
    """M summed in float32, one token at a time. No answers: only its inverse is looked at."""

    S = None

    def __init__(self, N, K, V, lambda_0, dtype):
        self.M = np.repeat(np.eye(K, dtype=dtype)[None] * dtype(lambda_0), N, 0)

    def run(self, k, v, u, q):
        u = u.astype(self.M.dtype)[..., None]
        for row in u:
            self.M += row * mT(row)

    @property
    def A(self):
        return np.array([inverse_or_nan(M) for M in self.M])


def inverse_or_nan(M):
    """The inverse of M, or NaN where M has no Cholesky factor."""
    try:
        L = cholesky(M)
    except ValueError:
        return np.full_like(M, np.nan)
    half = np.linalg.solve(L, np.eye(len(M), dtype=M.dtype))
    return half.T @ half


class Apart:
    """A way that may refuse a stream (the penalty no longer positive definite), apart for each group of streams."""

    def __init__(self, make, groups):
        self.ways, self.groups = [make() for _ in groups], groups

    def run(self, *tokens):
        out = []
        for i, group in enumerate(self.groups):
            some = [x[:, group] for x in tokens]
            try:
                out.append(self.ways[i].run(*some) if self.ways[i] else np.nan * some[1][-ASKED:])
            except ValueError:
                self.ways[i] = None
                out.append(np.nan * some[1][-ASKED:])
        return np.concatenate(out, 1)

    def part(self, name, like):
        """S or A of all streams, NaN for those refused."""
        out = np.full(like.shape, np.nan)
        for way, group in zip(self.ways, self.groups, strict=True):
            try:
                out[group] = getattr(way, name) if way else np.nan
            except ValueError:  # the last M has no factor
                pass
        return out


def to_bfloat16(x):
    """x rounded to bfloat16, in the dtype of x."""
    return torch.as_tensor(x).to(torch.bfloat16).to(torch.as_tensor(x).dtype).numpy()


def tokens(configs, K, V, seeds):
    """A function of n that draws the next n tokens: k, u, q [n, N, K], v [n, N, V]; float32 numbers held in float64.

    configs: names such as "random, u = key": keys "random", or "four directions" (in a span drawn once); "u = key",
    "published" (its W drawn once) or "no penalty" (u = 0: DeltaNet). N is configs times seeds, seeds last; a seed has
    the same values in all configs. Queries ask for the key of eight tokens ago.
    """
    streams = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 31])
        streams.append((rng, rng.standard_normal((4, K)), rng.standard_normal((K, K))))

    def draw(n):
        columns = {}
        for seed, (rng, span, W) in enumerate(streams):
            x, v = (rng.standard_normal((n, width), dtype=np.float32) for width in (K, V))
            v = unit_rows(v)
            keys = {"random": unit_rows(x), "four directions": unit_rows(x[:, :4].astype(float) @ span)}
            for i, config in enumerate(configs):
                name, direction = config.split(", ")
                k = keys[name]
                u = dict(published=unit_rows(k @ W.T) / np.sqrt(K)).get(direction, k * (direction == "u = key"))
                columns[i, seed] = k, v, u, np.roll(k, 8, axis=0)
        columns = [columns[i, seed] for i in range(len(configs)) for seed in range(len(streams))]
        return [np.stack(x, 1).astype(np.float32).astype(float) for x in zip(*columns, strict=True)]

    return draw


def off(found, exact):
    """Length of the error over the length of what is wanted, for every stream. found, exact [N, ...]."""
    axes = tuple(range(1, exact.ndim))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.sum((found - exact) ** 2, axes) / np.sum(exact**2, axes))


def gain_angle(found, exact, k):
    """Mean angle in degrees between the unit gains of two A [N, K, K] for keys [T, N, K], one number a stream."""
    g, h = (np.einsum("nij,tnj->tni", A.astype(float), k) for A in (found, exact))
    chord = np.linalg.norm(g / length(g) - h / length(h), axis=-1)  # exact for small angles too
    return np.rad2deg(2 * np.arcsin(np.minimum(1, chord / 2))).mean(0)


def length(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)


def checkpoints(T):
    """Times at which all is compared: two for each power of ten, whole numbers of chunks, at least two chunks."""
    times = np.geomspace(100, T, round(2 * np.log10(T / 100)) + 1)
    return sorted({max(2, round(t / CHUNK)) * CHUNK for t in times})


def long_run(configs, ways, T, K, V, seeds, bf16=False, window=8192, lambda_0=0.1):
    """Errors at `checkpoints` of all ways, {name: a function of N that makes one}, against float64.

    The reference keeps A in float64 and computes it again from a float64 sum after every chunk.
    bf16: inputs rounded to bfloat16, for the ways and their reference; then "inputs alone" is that reference against
    the one of the full inputs. Returns (times, {name: {"o", "S", "A", "gain": [checkpoints, N]}}).
    """
    N = len(configs) * len(seeds)
    exact = [Kept(N, K, V, lambda_0, np.float64, rebase=CHUNK) for _ in range(1 + bf16)]
    draw, running, done, times = tokens(configs, K, V, seeds), {n: way(N) for n, way in ways.items()}, 0, checkpoints(T)
    found = {name: dict(o=[], S=[], A=[], gain=[]) for name in [*ways, *["inputs alone"] * bf16]}
    for time in times:
        while done < time:
            n = min(window, time - done)
            full = draw(n)
            given = [to_bfloat16(x) for x in full] if bf16 else full
            truths = [one.run(*x) for one, x in zip(exact, (given, full), strict=False)]
            with np.errstate(all="ignore"):
                answers = {name: way.run(*given) for name, way in running.items()}
            done += n
        for name, way in running.items():
            compare(found[name], way, answers[name], exact[0], truths[0], given[0][-ASKED:])
        if bf16:
            compare(found["inputs alone"], exact[0], truths[0], exact[1], truths[1], full[0][-ASKED:])
    return times, found


def compare(kept, way, answers, truth, true_answers, k):
    """Appends the errors of one way at one checkpoint; NaN where it has nothing to show."""
    S, A = (way.part(x, getattr(truth, x)) if isinstance(way, Apart) else getattr(way, x) for x in "SA")
    nothing = np.full(len(truth.A), np.nan)
    kept["o"].append(nothing if answers is None else off(*(x.swapaxes(0, 1) for x in (answers, true_answers))))
    kept["S"].append(nothing if answers is None else off(S, truth.S))
    kept["A"].append(off(A, truth.A))
    kept["gain"].append(gain_angle(A, truth.A, k))
