"""Statements of "Backwards, in closed form": the gradients of the penalty solve and of the write.

A bar, in code a_bar, is the gradient of the loss with respect to a. a_t = M_t^-1 k_t, b_t = M_t^-1 a_bar_t.
d before a name: an infinitesimal change.
"""

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, apart
from vla_teach.proofs.words import matrices, rewrite, trace, transpose

M, A, D = matrices("M A dM")
k, kt, a_bar, a_bart, u, ut, du, dut, dk, dkt = matrices("k k^T a_bar a_bar^T u u^T du du^T dk dk^T")
SYMMETRIC = (M, A, D)
epsilon, dlambda = sp.symbols("epsilon dlambda_0")


def solve_gradients(sign=-1, both=1):
    """First the inverse: (M + eps dM) (A - eps A dM A) - I has no term in eps. Then a_bar^T da for da = A dk - A dM a,
    with dM = dlambda_0 I + du u^T + u du^T, less its parts b^T dk, -(du^T)(b a^T + a b^T) u and -dlambda_0 a^T b."""
    inverse = rewrite((M + epsilon * D) * (A + sign * epsilon * A * D * A) - 1, [(M * A, sp.S.One), (A * M, sp.S.One)])
    a, at, b, bt = A * k, kt * A, A * a_bar, a_bart * A
    change = a_bart * A * dk + sign * a_bart * A * (dlambda + du * ut + u * dut) * a
    parts = bt * dk - dut * (b * at + both * a * bt) * u - dlambda * at * b
    return [sp.expand(inverse).coeff(epsilon, 1), trace(change - parts, SYMMETRIC)]


def loss(k, u, lambda_0, a_bar):
    """sum a_bar_t . a_t, for complex numbers too."""
    M, total = lambda_0 * np.eye(k.shape[1], dtype=k.dtype), 0
    for t in range(len(k)):
        M = M + np.outer(u[t], u[t])
        total = total + a_bar[t] @ np.linalg.solve(M, k[t])
    return total


def solve_gradients_measured(x, sign=-1, both=1):
    """Every partial derivative by a complex step (exact to rounding) against the closed form, over a whole stream."""
    a_bar, d = x.rng.normal(size=x.k.shape), x.k.shape[1]
    M = x.lambda_0 * np.eye(d) + np.cumsum(x.u[:, :, None] * x.u[:, None], axis=0)
    a, b = (np.linalg.solve(M, rows[:, :, None])[:, :, 0] for rows in (x.k, a_bar))
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
            wanted[i] = loss(moved["k"], moved["u"], moved["lambda_0"], a_bar).imag / step
        scale = max(1.0, np.abs(wanted).max())
        worst = max(worst, apart(closed[name] / scale, wanted / scale))
    return worst


# The write. N = tril(Q G^T), W = I + stril(K G^T), Z_o = tril(O_bar E^T), Z_e = stril(V_bar E^T).
Q, Qt, K, Kt, G, Gt, E, Et, S, St = matrices("Q Q^T K K^T G G^T E E^T S S^T")
O_bar, O_bart, S_bar, S_bart, N, Nt, Wi, Wit = matrices("O_bar O_bar^T S_bar S_bar^T N N^T W^-1 W^-1^T")
Z_o, Z_ot, Z_e, Z_et = matrices("Z_o Z_o^T Z_e Z_e^T")
dQ, dK, dV, dG, dGt, dS, dSt = matrices("dQ dK dV dG dG^T dS dS^T")


def write_gradients(sign=-1):
    """<O_bar, dO> + <S_bar, dS_C>, where <X, Y> = tr(X^T Y), with every dE written out, less its parts.

    By hand: a triangle goes over to the other factor, <X, tril(Y)> = <tril(X), Y>; that makes Z_o and Z_e.
    """
    dE = Wi * (dV - dK * St - K * dSt)  # and -W^-1 dW E, whose part is the one with Z_e
    V_bart = (O_bart * N + S_bar * Gt) * Wi
    change = O_bart * (dQ * St + Q * dSt + N * dE) + S_bart * dS + Gt * dE * S_bar + S_bart * Et * dG
    change += Z_ot * (dQ * Gt + Q * dGt) - Z_et * (dK * Gt + K * dGt)
    parts = V_bart * dV + (St * O_bart + Gt * Z_ot) * dQ + (sign * St * V_bart - Gt * Z_et) * dK
    parts += (Qt * Z_o - Kt * Z_e + S_bart * Et) * dG + (S_bart + Qt * O_bar + sign * Kt * transpose(V_bart)) * dS
    return trace(change - parts)


def write_loss(q, k, v, g, S, O_bar, S_bar):
    """<O_bar, O> + <S_bar, S_C>, token after token, for complex numbers too."""
    total = 0
    for t in range(len(k)):
        S = reference.write(S, k[t], v[t], g[t])
        total = total + O_bar[t] @ (S @ q[t])
    return total + np.sum(S_bar * S)


def write_gradients_measured(x, sign=-1, triangle=np.tril):
    """The closed forms against a complex step of each argument in three random directions."""
    q, g, O_bar, S_bar = (x.rng.normal(size=y.shape) / 2 for y in (x.k, x.k, x.v, x.S))
    inputs = dict(q=q, k=x.k, v=x.v, g=g, S=x.S)
    W = np.eye(len(x.k)) + np.tril(x.k @ g.T, -1)
    E = np.linalg.solve(W, x.v - x.k @ x.S.T)
    V_bar = np.linalg.solve(W.T, np.tril(q @ g.T).T @ O_bar + g @ S_bar.T)
    Z_o, Z_e = triangle(O_bar @ E.T), triangle(V_bar @ E.T, -1)
    closed = dict(
        q=O_bar @ x.S + Z_o @ g,
        k=sign * V_bar @ x.S - Z_e @ g,
        v=V_bar,
        g=Z_o.T @ q - Z_e.T @ x.k + E @ S_bar,
        S=S_bar + O_bar.T @ q + sign * V_bar.T @ x.k,
    )
    worst, step = 0.0, 1e-30
    for name in [*inputs] * 3:
        direction = x.rng.normal(size=inputs[name].shape)
        moved = {**inputs, name: inputs[name] + 1j * step * direction}
        wanted = write_loss(**moved, O_bar=O_bar, S_bar=S_bar).imag / step
        found = np.sum(closed[name] * direction)
        scale = max(1.0, np.linalg.norm(closed[name]) * np.linalg.norm(direction))
        worst = max(worst, apart(found / scale, wanted / scale))
    return worst


STATEMENTS = (
    Statement(
        label="prop-gradients",
        title="Gradients of the penalty solve",
        given="M_t positive definite; a gradient arrives for every a_t",
        says=(
            r"\bar k_t = b_t , \qquad \bar u_s = - \sum_{t \ge s} \big( b_t a_t^\top + a_t b_t^\top \big) u_s , "
            r"\qquad \bar \lambda_0 = - \sum_t a_t^\top b_t ."
        ),
        symbols=solve_gradients,
        numbers=solve_gradients_measured,
        by_hand="the sum over t: u_s is part of every M_t with t >= s",
        twins={"plus for minus": dict(sign=1), "half of the symmetric pair": dict(both=0)},
    ),
    Statement(
        label="prop-write-gradients",
        title="Gradients of the write",
        given="any gains; gradients arrive for the answers of a chunk and for the state after it",
        says=(
            r"\begin{aligned} "
            r"\bar{\mathbf{V}} &= \mathbf{W}^{-\top} \big( \operatorname{tril}(\mathbf{Q} \mathbf{G}^\top)^\top "
            r"\bar{\mathbf{O}} + \mathbf{G} \bar S_C^\top \big) , \\ "
            r"\bar{\mathbf{Q}} &= \bar{\mathbf{O}} S + Z_o \mathbf{G} , \\ "
            r"\bar{\mathbf{K}} &= - \bar{\mathbf{V}} S - Z_e \mathbf{G} , \\ "
            r"\bar{\mathbf{G}} &= Z_o^\top \mathbf{Q} - Z_e^\top \mathbf{K} + \mathbf{E} \bar S_C , \\ "
            r"\bar S &= \bar S_C + \bar{\mathbf{O}}^\top \mathbf{Q} - \bar{\mathbf{V}}^\top \mathbf{K} , "
            r"\end{aligned}"
        ),
        symbols=write_gradients,
        numbers=write_gradients_measured,
        by_hand="a triangle goes over to the other factor of an inner product",
        twins={"plus for minus": dict(sign=1), "the triangles left out": dict(triangle=lambda x, _=0: x)},
    ),
)
