"""Statements of "The prefix scan, and what it costs": what a scan may compose, what A composes to, and the price."""

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.chunk import Counted
from vla_teach.proofs.statement import Statement, apart
from vla_teach.proofs.words import matrices, rewrite
from vla_teach.scan import as_maps, compose, prefix, scan_states

S, k, v, gt = matrices("S k v g^T")
A, R, X, N1, N2, u, ut = matrices("A R X N1 N2 u u^T")
s = sp.Symbol("s")


def steps(swapped=False):
    """A write is S P + Q; two maps in a row are one; and three, however they are bracketed."""
    written = S + (v - S * k) * gt - (S * (1 - k * gt) + v * gt)
    maps = [matrices(f"P{i} Q{i}") for i in (1, 2, 3)]

    def pair(first, second):
        (P1, Q1), (P2, Q2) = first, second
        return (P2 * P1, Q2 * P1 + Q1) if swapped else (P1 * P2, Q1 * P2 + Q2)

    P, Q = pair(maps[0], maps[1])
    two = (S * maps[0][0] + maps[0][1]) * maps[1][0] + maps[1][1] - (S * P + Q)
    left, right = pair((P, Q), maps[2]), pair(maps[0], pair(maps[1], maps[2]))
    return [rewrite(x, []) for x in (written, two, left[0] - right[0], left[1] - right[1])]


def steps_measured(x, swapped=False):
    """The scan of the maps against write after write."""
    g = x.rng.normal(size=x.k.shape) / 2
    wanted, state = [], x.S
    for row in zip(x.k, x.v, g, strict=True):
        state = reference.write(state, *row)
        wanted.append(state)
    found = scan_states(x.k, x.v, g, x.S, (lambda a, b: compose(b, a)) if swapped else compose)
    return apart(found, wanted)


def inverse_steps(sign=1, both=1):
    """With R = (I + N1 A)^-1 and X = (I + (N1 + N2) A)^-1: A R (I + N2 A R)^-1 = A X, that is, X (I + N2 A R) = R.
    And Sherman-Morrison's step times I + u u^T A is A."""
    rules = [(X * N2 * A, 1 - X - both * X * N1 * A), (N1 * A * R, 1 - R)]
    two = rewrite(X * (1 + N2 * A * R) - R, rules)
    one = rewrite((A - sign * A * u * ut * A / (1 + s)) * (1 + u * ut * A) - A, [(ut * A * u, s)])
    return [two, one]


def inverse_steps_measured(x, sign=1, both=1):
    """Step after step of Sherman-Morrison, against one step with the sum of all u u^T."""
    start, cut = np.eye(len(x.M)) / x.lambda_0, 0 if both else (len(x.u) + 1) // 2
    A, N = start, sign * x.u[cut:].T @ x.u[cut:]
    for row in x.u:
        A = reference.sherman_morrison(A, row)
    return apart(A * x.lambda_0, np.linalg.solve((np.eye(len(N)) + N @ start).T, start.T).T * x.lambda_0)


def cost(extra=0):
    """Up: a tree over twice as many steps is two trees and one pair more. Down: the same. A pair: two products."""
    T, K, V = sp.symbols("T K V", positive=True)
    up = T - 1
    return [
        sp.expand(2 * up + 1 - up.subs(T, 2 * T)),
        up.subs(T, 1),
        sp.expand(2 * up * (K * K * K + V * K * K) - (2 * (T - 1) * K**2 * (K + V) + extra * T)),
    ]


def cost_measured(x, extra=0):
    """The count of a scan run on numbers that count, and its rounds."""
    (V, K), T = x.S.shape, 2 ** int(x.rng.integers(1, 4))
    counted, rounds = np.vectorize(Counted, otypes=[object]), []
    maps = tuple(counted(y) for y in as_maps(*(x.rng.normal(size=(T, n)) for n in (K, V, K))))
    nothing = counted(np.eye(K)), counted(np.zeros((V, K)))

    def one_round(first, second):
        rounds.append(len(first[0]))
        return compose(first, second)

    Counted.times = 0
    prefix(maps, one_round, nothing)
    wanted = [2 * (T - 1) * K**2 * (K + V) + extra * T, 2 * np.log2(T), 2 * (T - 1)]
    return apart([Counted.times, len(rounds), sum(rounds)], wanted)


STATEMENTS = (
    Statement(
        label="prop-scan-steps",
        title="Writes compose",
        given="any keys, values and gains",
        says=(
            r"S \;\mapsto\; S\, P + Q , \qquad P = I - k\, g^\top , \qquad Q = v\, g^\top . \qquad "
            r"(P_1, Q_1) \text{ and then } (P_2, Q_2) \text{ is } (P_1 P_2,\; Q_1 P_2 + Q_2) ,"
        ),
        symbols=steps,
        numbers=steps_measured,
        twins={"the later step first": dict(swapped=True)},
    ),
    Statement(
        label="prop-scan-inverse",
        title="Steps of the inverse compose to a sum",
        given=r"$A$ positive definite, $N_1$, $N_2$ positive semidefinite, $\varphi_N(A) = A\,(I + N A)^{-1}$",
        says=(
            r"A - \frac{A u\, u^\top A}{1 + u^\top A u} = \varphi_{u u^\top}(A) , \qquad "
            r"\varphi_{N_2}\big(\varphi_{N_1}(A)\big) = \varphi_{N_1 + N_2}(A) ."
        ),
        symbols=inverse_steps,
        numbers=inverse_steps_measured,
        twins={"a sign flipped": dict(sign=-1), "the first steps forgotten": dict(both=0)},
    ),
    Statement(
        label="prop-scan-cost",
        title="What the scan costs",
        given=r"$T$ a power of two",
        says=r"2\,(T - 1)\, K^2\,(K + V)",
        symbols=cost,
        numbers=cost_measured,
        by_hand="symbols count the tree; a run on numbers that count has the rounds too",
        twins={"one more a token": dict(extra=1)},
    ),
)
