"""Statements of "Backwards, in closed form": the gradients of the penalty solve.

a_t = M_t^-1 k_t, the gradient g_t arrives for a_t, b_t = M_t^-1 g_t. d before a name: an infinitesimal change.
"""

import numpy as np
import sympy as sp

from vla_teach.proofs.statement import Statement, apart
from vla_teach.proofs.words import matrices, rewrite, trace

M, A, D = matrices("M A dM")
k, kt, g, gt, u, ut, du, dut, dk, dkt = matrices("k k^T g g^T u u^T du du^T dk dk^T")
SYMMETRIC = (M, A, D)
epsilon, dlambda = sp.symbols("epsilon dlambda_0")


def solve_gradients(sign=-1, both=1):
    """First the inverse: (M + eps dM) (A - eps A dM A) - I has no term in eps. Then g^T da for da = A dk - A dM a, with
    dM = dlambda_0 I + du u^T + u du^T, less its parts b^T dk, -(du^T)(b a^T + a b^T) u and -dlambda_0 a^T b."""
    inverse = rewrite((M + epsilon * D) * (A + sign * epsilon * A * D * A) - 1, [(M * A, sp.S.One), (A * M, sp.S.One)])
    a, at, b, bt = A * k, kt * A, A * g, gt * A
    change = gt * A * dk + sign * gt * A * (dlambda + du * ut + u * dut) * a
    parts = bt * dk - dut * (b * at + both * a * bt) * u - dlambda * at * b
    return [sp.expand(inverse).coeff(epsilon, 1), trace(change - parts, SYMMETRIC)]


def loss(k, u, lambda_0, g):
    """sum g_t . a_t, for complex numbers too."""
    M, total = lambda_0 * np.eye(k.shape[1], dtype=k.dtype), 0
    for t in range(len(k)):
        M = M + np.outer(u[t], u[t])
        total = total + g[t] @ np.linalg.solve(M, k[t])
    return total


def solve_gradients_measured(x, sign=-1, both=1):
    """Every partial derivative by a complex step (exact to rounding) against the closed form, over a whole stream."""
    g, d = x.rng.normal(size=x.k.shape), x.k.shape[1]
    M = x.lambda_0 * np.eye(d) + np.cumsum(x.u[:, :, None] * x.u[:, None], axis=0)
    a, b = (np.linalg.solve(M, rows[:, :, None])[:, :, 0] for rows in (x.k, g))
    pairs = b[:, :, None] * a[:, None] + both * a[:, :, None] * b[:, None]
    later = np.cumsum(pairs[::-1], axis=0)[::-1]
    closed = dict(k=b, u=sign * np.einsum("tij,tj->ti", later, x.u), lambda_0=np.array(sign * np.sum(a * b)))
    inputs = dict(k=x.k, u=x.u, lambda_0=np.array(x.lambda_0))
    worst, step = 0.0, 1e-30
    for name, value in inputs.items():
        wanted = np.empty_like(value)
        for i in np.ndindex(value.shape):
            moved = {other: array.astype(complex) for other, array in inputs.items()}
            moved[name][i] += 1j * step
            wanted[i] = loss(moved["k"], moved["u"], moved["lambda_0"], g).imag / step
        scale = max(1.0, np.abs(wanted).max())
        worst = max(worst, apart(closed[name] / scale, wanted / scale))
    return worst


STATEMENTS = (
    Statement(
        label="prop-gradients",
        title="Gradients of the penalty solve",
        given="M_t positive definite; the gradient g_t arrives for a_t",
        says=(
            r"\bar k_t = b_t , \qquad \bar u_s = - \sum_{t \ge s} \big( b_t a_t^\top + a_t b_t^\top \big) u_s , "
            r"\qquad \bar \lambda_0 = - \sum_t a_t^\top b_t ."
        ),
        symbols=solve_gradients,
        numbers=solve_gradients_measured,
        by_hand="the sum over t: u_s is part of every M_t with t >= s",
        twins={"plus for minus": dict(sign=1), "half of the symmetric pair": dict(both=0)},
    ),
)
