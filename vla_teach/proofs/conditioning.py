"""Statements of "Ten thousand steps"."""

import numpy as np
import sympy as sp

from vla_teach.proofs.statement import Statement, apart
from vla_teach.proofs.words import matrices, rewrite

M, A, Z = matrices("M A Z")
epsilon = sp.Symbol("epsilon", positive=True)


def nudge(sign=1):
    """(A + epsilon I) M Z - I, with Z the inverse of I + epsilon M."""
    return rewrite((A + sign * epsilon) * M * Z - 1, [(A * M, sp.S.One), (M * Z, (1 - Z) / epsilon)])


def nudge_measured(x, sign=1):
    """The penalty after n nudges, and its eigenvalues."""
    n, size, one = len(x.k), 0.05, np.eye(len(x.M))
    after = np.linalg.inv(x.A + sign * n * size * one)
    m = np.linalg.eigvalsh(x.M)
    return max(
        apart(after, x.M @ np.linalg.inv(one + n * size * x.M)),
        apart(np.sort(np.linalg.eigvals(after).real), m / (1 + n * size * m)),
    )


STATEMENTS = (
    Statement(
        label="lem-nudge",
        title="What the nudge does to the penalty",
        given=r"$M$ positive definite with inverse $A$, $\varepsilon > 0$",
        says=r"(A + \varepsilon I)^{-1} = M (I + \varepsilon M)^{-1} ,",
        symbols=nudge,
        numbers=nudge_measured,
        twins={"minus for plus": dict(sign=-1)},
    ),
)
