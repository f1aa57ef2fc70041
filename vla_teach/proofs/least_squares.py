"""Statements of "The best matrix: least squares".

The rows of X are the keys, those of Y the values, those of U the penalty directions; I_0 stands for lambda_0 I.
"""

import numpy as np
import sympy as sp

from vla_teach.proofs.statement import Statement, above, apart
from vla_teach.proofs.words import matrices, rewrite, trace
from vla_teach.reference import exact_least_squares

S, St, X, Xt, Y, Yt, U, Ut = matrices("S S^T X X^T Y Y^T U U^T")
M, H, Hi, G = matrices("M H H^-1 G")
SYMMETRIC = (M, H, Hi, G)
lambda_0 = sp.Symbol("lambda_0", positive=True)


def fit(S, St):
    """The sum of |v - S k|^2 over all pairs, a trace."""
    return (Y - X * St) * (Yt - S * Xt)


def loss(x, S, M):
    """The objective in numbers, straight from its definition."""
    return sum(np.sum((v - S @ k) ** 2) for k, v in zip(x.k, x.v, strict=True)) + np.trace(S @ M @ S.T)


def price(sign=1):
    """lambda_0 |S|^2 + sum |S u|^2 - tr(S M S^T)."""
    return trace(lambda_0 * S * St + sign * S * Ut * U * St - S * (lambda_0 + Ut * U) * St, SYMMETRIC)


def price_measured(x, sign=1):
    """The same, a direction at a time."""
    paid = x.lambda_0 * np.sum(x.S**2) + sign * sum(np.sum((x.S @ u) ** 2) for u in x.u)
    return apart(paid, np.trace(x.S @ x.M @ x.S.T))


def normal_equations(sign=1, penalty=1):
    """Completing the square: J(S) - tr((S - B H^-1) H (S - B H^-1)^T) depends on the data alone, B = Y^T X.

    So the minimum is where the square, never negative as H is positive definite, is 0.
    """
    gap, gapt = S - sign * Yt * X * Hi, St - sign * Hi * Xt * Y
    rest = fit(S, St) + S * M * St - gap * H * gapt - Yt * Y + Yt * X * Hi * Xt * Y
    rest = rewrite(sp.expand(rest), [(H * Hi, sp.S.One), (Hi * H, sp.S.One), (H, Xt * X + penalty * M)])
    return trace(rest, SYMMETRIC)


def normal_equations_measured(x, sign=1, penalty=1):
    """No matrix near the solution has a smaller objective, and the solution is the package's."""
    H = x.k.T @ x.k + penalty * x.M
    solution = sign * np.linalg.lstsq(H, x.k.T @ x.v, rcond=None)[0].T
    best = loss(x, solution, x.M)
    steps = [size * x.rng.normal(size=solution.shape) for size in (1e-3, 1e-1, 1, 10)]
    lowest = max(above(best, loss(x, solution + step, x.M)) for step in steps)
    package = exact_least_squares(x.k, x.k, x.v, x.u, x.lambda_0)[1].S
    return max(lowest, apart(solution, package))


def trap(share=sp.S.Half):
    """(2 G + lambda_0) (K S^*T) - 2 share G V for u = k, with G = K K^T: S^*T = H^-1 X^T Y, H = 2 X^T X + lambda_0."""
    answers = X * Hi * Xt * Y
    left = (2 * X * Xt + lambda_0) * answers - 2 * share * X * Xt * Y
    return rewrite(left, [(Xt * X * Hi, (1 - lambda_0 * Hi) / 2)])


def trap_measured(x, share=0.5):
    """The answers of the exact memory against the formula."""
    G = x.k @ x.k.T
    answers = x.k @ exact_least_squares(x.k, x.k, x.v, x.k, x.lambda_0)[1].S.T
    return apart(answers, np.linalg.solve(2 * G + x.lambda_0 * np.eye(len(G)), 2 * share * G @ x.v))


STATEMENTS = (
    Statement(
        label="def-objective",
        title="The objective",
        given=r"penalty directions $u_s$ and $\lambda_0 > 0$",
        says=(
            r"S^*_t = \operatorname*{arg\,min}_S \; \sum_{s \le t} \| v_s - S k_s \|^2 + \operatorname{tr}\big(S "
            r"M_t S^\top\big)."
        ),
        symbols=price,
        numbers=price_measured,
        by_hand=r"a definition; what is checked is that the trace is $\lambda_0 \|S\|_F^2 + \sum \|S u_s\|^2$",
        twins={"a bounty for a price": dict(sign=-1)},
    ),
    Statement(
        label="prop-normal-equations",
        title="Normal equations",
        given=r"$\lambda_0 > 0$",
        says=r"S^*_t = \Big( \sum_{s \le t} v_s k_s^\top \Big) H_t^{-1} .",
        symbols=normal_equations,
        numbers=normal_equations_measured,
        by_hand=r"the completed square is never negative, because $H$ is positive definite",
        twins={"minus the solution": dict(sign=-1), "the penalty forgotten in H": dict(penalty=0)},
    ),
    Statement(
        label="prop-trap",
        title="Half of every value",
        given=r"$u_s = k_s$ for every pair",
        says=(
            r"\mathbf{K} S_t^{*\top} = (2 G + \lambda_0 I)^{-1} G\, \mathbf{V} , \qquad G = \mathbf{K} "
            r"\mathbf{K}^\top ."
        ),
        symbols=trap,
        numbers=trap_measured,
        twins={"the whole value": dict(share=1)},
    ),
)
