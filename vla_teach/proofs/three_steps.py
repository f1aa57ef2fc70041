"""Statements of "From the objective to the recurrence".

P is the memory before the token (S_{t-1}), e the error v_t - P k_t. H, M are the sums after the token.
"""

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, above, apart
from vla_teach.proofs.words import matrices, rewrite, trace

P, Pt, S, St, v, vt, k, kt, u, ut, e, et = matrices("P P^T S S^T v v^T k k^T u u^T e e^T")
M, A, H, Hi, N, X = matrices("M A H H^-1 N X")
SYMMETRIC = (M, A, H, Hi, N, X)
x, lambda_0 = sp.symbols("x lambda_0", positive=True)  # x stands for k^T A k
ONE = sp.S.One


def exact_recurrence(shrink=1):
    """((P (H - k k^T - u u^T) + v k^T) - (P + e (H^-1 k)^T - (P u) (H^-1 u)^T) H) H^-1, all of it."""
    solved = (P * (H - k * kt - u * ut) + v * kt) * Hi
    step = P + (v - P * k) * kt * Hi - shrink * P * u * ut * Hi
    return rewrite(solved - step, [(H * Hi, ONE)])


def solved_and_before(data):
    """The exact memory after all tokens but the last, after all, and H after all; from the definition."""
    H, targets, seen = data.lambda_0 * np.eye(data.k.shape[1]), np.zeros_like(data.S), []
    for k, v, u in zip(data.k, data.v, data.u, strict=True):
        seen.append(np.linalg.solve(H, targets.T).T)
        H, targets = H + np.outer(k, k) + np.outer(u, u), targets + np.outer(v, k)
    return seen[-1], np.linalg.solve(H, targets.T).T, H


def exact_recurrence_measured(data, shrink=1):
    """The last step of a stream, both ends solved afresh, and the package's solution."""
    P, S, H = solved_and_before(data)
    k, v, u = data.k[-1], data.v[-1], data.u[-1]
    step = P + np.outer(v - P @ k, np.linalg.solve(H, k)) - shrink * np.outer(P @ u, np.linalg.solve(H, u))
    package = reference.exact_least_squares(data.k, data.k, data.v, data.u, data.lambda_0)[1].S
    return max(apart(S, step), apart(S, package))


def approximations(shrink=1, seen=1):
    """What steps (a) and (b) change: the exact step less e (A k)^T, with N = H - M the sum of k k^T."""
    exact = e * kt * Hi - P * u * ut * Hi
    change = -shrink * P * u * ut * Hi - seen * e * kt * A * N * Hi
    return rewrite(exact - e * kt * A - change, [(N * Hi, 1 - M * Hi), (A * M, ONE)])


def approximations_measured(data, shrink=1, seen=1):
    """The same from numbers, from one and the same memory P."""
    P, S, H = solved_and_before(data)
    k, v, u, N = data.k[-1], data.v[-1], data.u[-1], data.k.T @ data.k
    e, a, Hi = v - P @ k, data.A @ k, np.linalg.inv(H)
    change = -shrink * np.outer(P @ u, Hi @ u) - seen * np.outer(e, Hi @ N @ a)
    return apart(S - (P + np.outer(e, a)), change)


def recurrence_measured(data, lost=0, denominator=1):
    """The package's recurrence against its definition: each M_t inverted afresh, each write by the formula.

    lost: the share of lambda_0 left out of M; denominator=0: the gain A k, not brought to length 1.
    """
    S, M = np.zeros_like(data.S), (1 - lost) * data.lambda_0 * np.eye(data.k.shape[1])
    for k, v, u in zip(data.k, data.v, data.u, strict=True):
        M = M + np.outer(u, u)
        a = np.linalg.solve(M, k)
        S = S + np.outer(v - S @ k, a / np.linalg.norm(a) if denominator else a)
    _, state = reference.vla_recurrent(data.k, data.k, data.v, data.u, data.lambda_0)
    return max(apart(S, state.S), apart(data.A, state.A))


def rls(counted=1):
    """With u = k and M = M' + k k^T: (P M' + v k^T) A - (P + e (A k)^T). `counted` times k k^T in M."""
    solved = (P * (M - counted * k * kt) + v * kt) * A
    return rewrite(solved - P - (v - P * k) * kt * A, [(M * A, ONE)])


def rls_measured(data, counted=1):
    """The recurrence with the gain A k against ridge regression."""
    _, state = reference.vla_recurrent(data.k, data.k, data.v, data.k, data.lambda_0, gain="least_squares")
    H = data.lambda_0 * np.eye(data.k.shape[1]) + counted * data.k.T @ data.k
    return apart(state.S, np.linalg.solve(H, data.k.T @ data.v).T)


def projection(along_key=0):
    """For S with S k = v: |S - P|_M^2 - |S - S+|_M^2 - |S+ - P|_M^2 in the norm |X|_M^2 = tr(X M X^T), and S+ k - v.

    along_key=1: the write goes along k instead of A k, with the step that still answers v.
    """
    g, gt = (k, kt) if along_key else (A * k / x, kt * A / x)
    plus, plust = P + e * gt, Pt + g * et  # e = v - P k
    rules = [(M * A, ONE), (A * M, ONE), (kt * A * k, x), (kt * k, ONE)]

    def square(left, right):
        return left * M * right

    gap = square(S - P, St - Pt) - square(S - plus, St - plust) - square(plus - P, plust - Pt)
    # S k = v = P k + e
    left = trace(rewrite(gap, [*rules, (S * k, P * k + e), (kt * St, kt * Pt + et)]), SYMMETRIC)
    return [left, rewrite(plus * k - P * k - e, rules)]


def projection_measured(data, along_key=0):
    """No other memory that answers v is nearer to P in the norm of M; and S+ answers v."""
    k, v, P = data.k[0], data.v[0], data.S
    g = k if along_key else data.A @ k / (k @ data.A @ k)
    plus = P + np.outer(v - P @ k, g)
    others = []
    for size in (1e-3, 1e-2, 0.1, 1):
        D = size * data.rng.normal(size=P.shape)
        others.append(plus + D - np.outer(D @ k, k))

    def distance(S):
        return np.trace((S - P) @ data.M @ (S - P).T)

    nearest = max(above(distance(plus), distance(S)) for S in others)
    return max(nearest, apart(plus @ k, v), max(apart(S @ k, v) for S in others))


def delta_limit(sign=-1):
    """lambda_0 A - I + A X, with X = M - lambda_0 I the sum of u u^T: how far lambda_0 A is from the identity."""
    return rewrite(lambda_0 * A - 1 - sign * A * X, [(A * X, 1 - lambda_0 * A)])


def delta_limit_measured(data, power=1):
    """The bound on |g - k|, for every key."""
    weight = np.sum(data.u**2)
    gains = np.array([reference.write_gain(data.A, k, "unit") for k in data.k])
    return above(np.linalg.norm(gains - data.k, axis=1).max(), 2 * weight / (data.lambda_0**power + weight))


STATEMENTS = (
    Statement(
        label="thm-exact-recurrence",
        title="The exact recurrence",
        given=r"$\lambda_0 > 0$",
        says=r"S^*_t = S^*_{t-1} + (v_t - S^*_{t-1} k_t)(H_t^{-1} k_t)^\top - (S^*_{t-1} u_t)(H_t^{-1} u_t)^\top .",
        symbols=exact_recurrence,
        numbers=exact_recurrence_measured,
        twins={"the shrinking term left out": dict(shrink=0), "its sign flipped": dict(shrink=-1)},
    ),
    Statement(
        label="def-vla",
        title="Variational Linear Attention",
        given=r"$\lambda_0 > 0$",
        says=(
            r"S_t = S_{t-1} + (v_t - S_{t-1} k_t)\, g_t^\top , \qquad g_t = \frac{A_t k_t}{\| A_t k_t \|} , \qquad "
            r"A_t = M_t^{-1} ."
        ),
        numbers=recurrence_measured,
        by_hand="a definition; what is checked is that the package computes it",
        twins={"lambda_0 left out by a tenth": dict(lost=0.1), "the gain not normalised": dict(denominator=0)},
    ),
    Statement(
        label="prop-approximations",
        title="What (a) and (b) change",
        given=r"both steps from one memory $S^*_{t-1}$",
        says=(
            r"S^*_t - \big(S^*_{t-1} + e_t (A_t k_t)^\top\big) = - (S^*_{t-1} u_t)(H_t^{-1} u_t)^\top - e_t "
            r"\,(H_t^{-1} N_t A_t k_t)^\top ."
        ),
        symbols=approximations,
        numbers=approximations_measured,
        twins={"step (a) for free": dict(shrink=0), "step (b) for free": dict(seen=0)},
    ),
    Statement(
        label="prop-rls",
        title="Counted once, it is ridge regression",
        given=r"$u_s = k_s$ and the gain $A_t k_t$",
        says=(
            r"S_t = \Big( \sum_{s \le t} v_s k_s^\top \Big) \Big( \lambda_0 I + \sum_{s \le t} k_s k_s^\top "
            r"\Big)^{-1} ."
        ),
        symbols=rls,
        numbers=rls_measured,
        twins={"every key counted twice": dict(counted=2)},
    ),
    Statement(
        label="prop-projection",
        title="The smallest change",
        given=r"$M$ positive definite, $k \ne 0$",
        says=(
            r"\operatorname*{arg\,min}_{S_+ : \; S_+ k = v} \; \operatorname{tr}\big( (S_+ - S)\, M\, (S_+ - "
            r"S)^\top \big) = S + \frac{(v - S k)(A k)^\top}{k^\top A k} ."
        ),
        symbols=projection,
        numbers=projection_measured,
        by_hand="two squares add up, so the nearest point is where the first is 0",
        least_width=2,
        twins={"the write along k": dict(along_key=1)},
    ),
    Statement(
        label="prop-delta-limit",
        title="A flat price list gives DeltaNet",
        given=r"$\lambda_0 > 0$, unit gain, keys of length 1",
        says=r"\| g_t - k_t \| \le \frac{2 w_t}{\lambda_0 + w_t} , \qquad w_t = \sum_{s \le t} \| u_s \|^2 .",
        symbols=delta_limit,
        numbers=delta_limit_measured,
        by_hand=r"the norm of $A_t X$ is its largest eigenvalue, at most $w_t / (\lambda_0 + w_t)$",
        least_width=2,
        twins={"plus for minus": dict(sign=1), "the square of lambda_0": dict(power=2)},
    ),
)
