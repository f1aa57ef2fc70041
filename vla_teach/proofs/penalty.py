"""Statements of "State norms and penalty heatmaps": how large the state can get, how uneven the penalty."""

from itertools import product

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, above, apart, zero
from vla_teach.proofs.words import matrices, trace

S, St, v, vt, k, kt, g, gt, u, ut = matrices("S S^T v v^T k k^T g g^T u u^T")
UNIT = [(kt * k, sp.S.One)]


def linear_growth(mixed=1):
    """E|X_1 + ... + X_t|^2: t terms E|X|^2 and t (t - 1) terms |E X|^2, less the formula."""
    t, square, mean = sp.symbols("t E|X|^2 |EX|^2")
    return sp.expand(t * square + t * (t - 1) * mean - (t**2 * mean * mixed + t * (square - mean)))


def outcomes(x, n=3):
    """A finite world to take exact expectations in: n pairs (k, v), all equally likely."""
    rows = np.arange(n) % len(x.k)
    return x.k[rows], x.v[rows] + 0.5


def linear_growth_measured(x, mixed=1):
    """The exact expectation over all 3^4 streams of four pairs."""
    k, v = outcomes(x)
    writes = np.einsum("nv,nd->nvd", v, k)
    streams = [np.sum(np.sum(writes[list(i)], axis=0) ** 2) for i in product(range(3), repeat=4)]
    mean = np.sum(np.mean(writes, axis=0) ** 2)
    square = np.mean(np.sum(writes**2, axis=(1, 2)))
    return apart(np.mean(streams), 16 * mixed * mean + 4 * (square - mean))


def norm_identity(sign=-1):
    """|S + (v - S k) k^T|^2 - (|S|^2 - |S k|^2 + |v|^2) for |k| = 1."""
    new, newt = S + (v - S * k) * kt, St + k * (vt - kt * St)
    return trace(new * newt - (S * St + sign * S * k * kt * St + v * vt), numbers=UNIT)


def norm_identity_measured(x, sign=-1):
    """One step of the package's delta rule from any state."""
    k, v = x.k[0], x.v[0]
    after = reference.write(x.S, k, v, k)
    return apart(np.sum(after**2), np.sum(x.S**2) + sign * np.sum((x.S @ k) ** 2) + np.sum(v**2))


def state_bound(taken=1):
    """The identity at a key with S k = 0 and a value with |v| = 1: the square grows by exactly 1."""
    new, newt = S + (v - taken * S * k) * kt, St + k * (vt - taken * kt * St)
    at_right_angles = [(S * k, sp.S.Zero), (kt * St, sp.S.Zero)] if taken else []
    return trace(new * newt - S * St, numbers=[*UNIT, *at_right_angles, (vt * v, sp.S.One)]) - 1


def state_bound_measured(x, power=sp.S.Half):
    """Any stream stays within sqrt(t); the adversary's, in width d, is on it at every step."""
    v = x.v / np.maximum(1, np.linalg.norm(x.v, axis=1, keepdims=True))
    _, state = reference.delta_rule(x.k, x.k, v)
    worst, S = above(np.linalg.norm(state.S), len(v) ** float(power)), np.zeros((1, x.k.shape[1]))
    for t in range(1, 30):
        key = x.rng.normal(size=S.shape[1])
        key -= S[0] * (S[0] @ key) / max(S[0] @ S[0], 1e-300)
        S = reference.write(S, key / np.linalg.norm(key), np.ones(1), key / np.linalg.norm(key))
        worst = max(worst, apart(np.linalg.norm(S), t ** float(power)))
    return worst


def adversary(cross=2):
    """|S + g^T|^2 - |S|^2 - 2 S g - |g|^2 for a row S with S k = 0 and the value 1, whose error is 1."""
    new, newt = S + gt, St + g
    return trace(new * newt - S * St - cross * S * g - gt * g)


def adversary_measured(x, signed=True):
    """Forty steps of VLA, with each gain, and u the key or a projection of it: the norm is never below sqrt(t). The
    sign of each key is chosen such that its gain points along the state; signed=False leaves that to chance."""
    d, worst = len(x.M), -1.0
    project = x.rng.normal(size=(d, d)) / np.sqrt(d)
    ways = (lambda k: k, lambda k: project @ k, lambda k: project @ k / np.linalg.norm(project @ k) / np.sqrt(d))
    for gain, direction in product(("unit", "interpolate"), ways):
        S, A = np.zeros((1, d)), np.eye(d) / x.lambda_0
        for t in range(1, 41):
            key = x.rng.normal(size=d)
            key -= S[0] * (S[0] @ key) / max(S[0] @ S[0], 1e-300)
            key = key / np.linalg.norm(key)
            A = reference.sherman_morrison(A, direction(key))
            g = reference.write_gain(A, key, gain)
            if signed and S[0] @ g < 0:
                key, g = -key, -g
            S = reference.write(S, key, np.ones(1), g)
            worst = max(worst, above(np.sqrt(t), np.linalg.norm(S)))
    return worst


def settling(sign=1):
    """x_t = W / mu + r^t (x_0 - W / mu), r = 1 - mu, solves x_{t+1} = r x_t + W, and starts at x_0."""
    r, W, x_0, t = sp.symbols("r W x_0 t", positive=True)
    mu = 1 - r

    def solution(t):
        return W / mu + sign * r**t * (x_0 - W / mu)

    return [zero(solution(t + 1) - r * solution(t) - W), zero(solution(0) - x_0)]


def settling_measured(x, looks=False):
    """Exact expectations over all streams of five tokens drawn from three pairs, whatever the past, against the bound.

    looks=True: the same pairs with the keys of an adversary, who excites two directions equally often over time.
    """
    k, v = outcomes(x)
    v = v / np.linalg.norm(v, axis=1).max()
    if looks:
        k, S = np.zeros((40, 2)), np.zeros((1, 2))
        for t in range(40):
            k[t] = np.array([-S[0, 1], S[0, 0]]) / np.linalg.norm(S) if t else (1, 0)
            S = reference.write(S, k[t], np.ones(1), k[t])
        return above(np.sum(S**2), 1 / np.linalg.eigvalsh(k.T @ k / 40)[0])
    mu = np.linalg.eigvalsh(k.T @ k / 3)[0]
    if mu < 1e-6:
        return -1.0  # these three keys leave a direction out: nothing is claimed
    worst = -1.0
    for t in range(1, 6):
        squares = [
            np.sum(reference.delta_rule(k[[*i]], k[[*i]], v[[*i]])[1].S ** 2) for i in product(range(3), repeat=t)
        ]
        worst = max(worst, above(np.mean(squares), (1 - (1 - mu) ** t) / mu))
    return worst


def cond_bound(weight=1):
    """The trace of u u^T is |u|^2."""
    return trace(u * ut - weight * ut * u)


def cond_bound_measured(x, one=1, weight=1):
    """Random directions stay within the bound, parallel ones are on it."""
    size = np.sum(x.u**2) * weight / x.lambda_0
    worst = above(np.linalg.cond(x.M), one + size)
    parallel = np.linalg.norm(x.u, axis=1)[:, None] * x.k[0]
    M = x.lambda_0 * np.eye(x.u.shape[1]) + parallel.T @ parallel
    return max(worst, apart(np.linalg.cond(M), one + size))


STATEMENTS = (
    Statement(
        label="prop-linear-growth",
        title="How linear attention grows",
        given="pairs drawn independently from one distribution with finite second moments",
        says=(
            r"\mathbb{E}\,\|S_t\|_F^2 = t^2 \, \big\| \mathbb{E}[v k^\top] \big\|_F^2 + t \, \Big( \mathbb{E}\,\|v "
            r"k^\top\|_F^2 - \big\| \mathbb{E}[v k^\top] \big\|_F^2 \Big) ."
        ),
        symbols=linear_growth,
        numbers=linear_growth_measured,
        by_hand="the expectation of a product of independent terms is the product of their expectations",
        twins={"the mean counted twice": dict(mixed=2)},
    ),
    Statement(
        label="lem-norm-identity",
        title="What a write does to the norm",
        given=r"a key of length 1, $\beta = 1$",
        says=r"\|S_t\|_F^2 = \|S_{t-1}\|_F^2 - \|S_{t-1} k_t\|^2 + \|v_t\|^2 .",
        symbols=norm_identity,
        numbers=norm_identity_measured,
        twins={"plus for minus": dict(sign=1)},
    ),
    Statement(
        label="prop-state-bound",
        title="What bounds the state",
        given=r"$S_0 = 0$, keys of length 1, values of length at most 1, $\beta = 1$",
        says=r"\|S_t\|_F \le \sqrt{t}",
        symbols=state_bound,
        numbers=state_bound_measured,
        by_hand=r"a sum of $t$ terms, each at most 1, is at most $t$",
        least_width=2,
        twins={"nothing taken away, nothing avoided": dict(taken=0), "the cube root": dict(power=sp.Rational(1, 3))},
    ),
    Statement(
        label="prop-settling",
        title="Where the state settles",
        given=(
            r"$0 < \mu \le 1$, $\mathbb{E}[\|S_{t-1} k_t\|^2 \mid \text{past}] \ge \mu \|S_{t-1}\|_F^2$, keys of "
            r"length 1, values of length at most $\mathcal{V}$"
        ),
        says=(
            r"\mathbb{E}\,\|S_t\|_F^2 \;\le\; \frac{\mathcal{V}^2}{\mu} + (1 - \mu)^t \Big( \|S_0\|_F^2 - "
            r"\frac{\mathcal{V}^2}{\mu} \Big) ."
        ),
        symbols=settling,
        numbers=settling_measured,
        by_hand="the expectation given the past, then over the past",
        twins={"the sign of the transient": dict(sign=-1), "keys that look at the state": dict(looks=True)},
    ),
    Statement(
        label="prop-adversary",
        title="An adversary for VLA",
        given=(
            r"keys of length 1, $K \ge 2$, $V = 1$, $u_t = W k_t$ for any fixed $W$, or that made a fixed length, "
            r"any $\lambda_0 > 0$, the unit or the interpolating gain"
        ),
        says=r"\|S_t\|_F \ge \sqrt{t}",
        symbols=adversary,
        numbers=adversary_measured,
        by_hand=r"$S g \ge 0$ after the choice of the sign, and $\|g\| \ge 1$; a sum of $t$ terms, each at least 1",
        least_width=2,
        twins={"the mixed term counted once": dict(cross=1), "the sign of the key left to chance": dict(signed=False)},
    ),
    Statement(
        label="prop-cond",
        title="How uneven the penalty can get",
        given=r"$\lambda_0 > 0$",
        says=r"\operatorname{cond}(M_t) \;\le\; 1 + \frac{1}{\lambda_0} \sum_{s \le t} \|u_s\|^2 ,",
        symbols=cond_bound,
        numbers=cond_bound_measured,
        by_hand="the largest eigenvalue of a sum of squares is at most its trace",
        least_width=2,
        twins={"without the 1": dict(one=0), "half the sum": dict(weight=0.5)},
    ),
)
