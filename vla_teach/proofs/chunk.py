"""Statements of "A chunk at a time": the exact parallel form, how slices compose, and what it all costs.

Rows of K, G, U, V, E are the tokens of a chunk; S is the memory before it.
"""

import numpy as np
import sympy as sp

from vla_teach import chunkwise, reference
from vla_teach.proofs.statement import Statement, apart
from vla_teach.proofs.words import matrices, rewrite, transpose

S, St, v, k, kt, g, gt, W, Wi, Wit = matrices("S S^T v k k^T g g^T W W^-1 W^-1^T")
K, Kt, G, Gt, V, Vt, U, Ut = matrices("K K^T G G^T V V^T U U^T")
M, A, L, Lt, Li, Lit = matrices("M A L L^T L^-1 L^-1^T")
ONE = sp.S.One


def chunk_write(stril=1):
    """One token more. With S_C = S + E^T G after a chunk, the error of the next token is v - S_C k; the last row of the
    larger triangular system is e^T = v^T - k^T S^T - (k^T G^T) E. The two agree, and so do the states."""
    (Et,) = matrices("E^T,")
    state = S + Et * G
    row = v - S * k - stril * Et * G * k  # the last row, as a column
    error = v - state * k
    return [rewrite(error - row, []), rewrite(state + error * gt - (S + Et * G + row * gt), [])]


def draw_chunk(x):
    """Queries, keys, values, directions and any gains of a chunk."""
    return x.rng.normal(size=x.k.shape), x.k, x.v, x.u, x.rng.normal(size=x.k.shape) / 2


def chunk_write_measured(x, stril=1):
    """The closed form, for any gains, against token after token."""
    q, k, v, _, g = draw_chunk(x)
    S, o = x.S, []
    for t in range(len(k)):
        S = reference.write(S, k[t], v[t], g[t])
        o.append(S @ q[t])
    E = np.linalg.solve(np.eye(len(k)) + stril * np.tril(k @ g.T, -1), v - k @ x.S.T)
    answers = q @ x.S.T + np.tril(q @ g.T) @ E
    from_nothing = answers - (q - reference.attention_map(q, k, g) @ k) @ x.S.T  # S = 0: o = P v, linear in v - S k
    return max(apart(answers, o), apart(x.S + E.T @ g, S), apart(reference.attention_map(q, k, g) @ v, from_nothing))


def chunk_solve(transposed=1):
    """(M + U^T U) (A - A U^T L^-T L^-1 U A) - I, where L L^T = I + U A U^T; for the chunk's last token."""
    middle = Lit * Li if transposed else Li * Lit
    rules = [(M * A, ONE), (A * M, ONE), (U * A * Ut, L * Lt - 1)]
    rules += [(L * Li, ONE), (Li * L, ONE), (Lt * Lit, ONE), (Lit * Lt, ONE)]
    return rewrite((M + Ut * U) * (A - A * Ut * middle * U * A) - 1, rules)


def chunk_solve_measured(x, keep=0):
    """A_t k_t of every token at once, one factor for all, against each M_t inverted afresh. keep: the diagonal kept."""
    k, u, d = x.k, x.u, len(x.M)
    A = np.linalg.inv(x.lambda_0 * np.eye(d))
    L = np.linalg.cholesky(np.eye(len(u)) + u @ A @ u.T)
    Y = np.triu(np.linalg.solve(L, u @ A @ k.T), keep)
    solved = k @ A - np.linalg.solve(L.T, Y).T @ u @ A
    M, wanted = x.lambda_0 * np.eye(d), []
    for t in range(len(k)):
        M = M + np.outer(u[t], u[t])
        wanted.append(np.linalg.solve(M, k[t]))
    wanted = np.array(wanted)
    scale = np.abs(wanted).max()
    gains, _ = chunkwise.penalty_gains(k, u[:, None], x.lambda_0 * np.eye(d), "least_squares", len(k))
    return max(apart(solved / scale, wanted / scale), apart(gains / scale, wanted / scale))


def composition(sign=-1):
    """S + E^T G with E = W^-1 (V - K S^T), against S (I - E_k^T G) + E_v^T G; and two slices in a row."""
    E = Wi * (V - K * St)
    one = S + transpose(E) * G - (S * (1 + sign * Kt * Wit * G) + Vt * Wit * G)
    P1, Q1, P2, Q2 = matrices("P1 Q1 P2 Q2")
    two = (S * P1 + Q1) * P2 + Q2 - (S * (P1 * P2) + (Q1 * P2 + Q2))
    return [rewrite(one, []), rewrite(two, [])]


def composition_measured(x, swapped=False):
    """A stream cut in two: each half's (P, Q) on its own, composed, against the whole."""
    _, k, v, _, g = draw_chunk(x)
    cut, S = len(k) // 2, x.S

    def affine(k, v, g):
        W = np.eye(len(k)) + np.tril(k @ g.T, -1)
        return np.eye(x.k.shape[1]) - np.linalg.solve(W, k).T @ g, np.linalg.solve(W, v).T @ g

    (P1, Q1), (P2, Q2) = affine(k[:cut], v[:cut], g[:cut]), affine(k[cut:], v[cut:], g[cut:])
    for row in zip(k, v, g, strict=True):
        S = reference.write(S, *row)
    P = P2 @ P1 if swapped else P1 @ P2
    return apart(x.S @ P + Q1 @ P2 + Q2, S)


class Counted:
    """A number that counts how often numbers of its kind were multiplied or divided."""

    times = 0

    def __init__(self, value):
        self.value = value

    def __add__(self, other):
        return Counted(self.value + getattr(other, "value", other))

    def __sub__(self, other):
        return Counted(self.value - getattr(other, "value", other))

    def __mul__(self, other):
        Counted.times += 1
        return Counted(self.value * getattr(other, "value", other))

    def __truediv__(self, other):
        Counted.times += 1
        return Counted(self.value / getattr(other, "value", other))

    __radd__, __rmul__ = __add__, __mul__

    def __bool__(self):
        return bool(self.value)


def count(K, V):
    """Multiplications and divisions of one token: the three lines of the recurrence, run on counted numbers."""
    rng = np.random.default_rng(0)
    counted = np.vectorize(Counted, otypes=[object])
    A, u, k, q = counted(np.eye(K)), *(counted(rng.normal(size=K)) for _ in range(3))
    S, v = counted(rng.normal(size=(V, K))), counted(rng.normal(size=V))
    Counted.times = 0
    A = reference.sherman_morrison(A, u)
    S = reference.write(S, k, v, reference.write_gain(A, k, "interpolate"))
    S @ q
    return Counted.times


def cost(extra=0):
    """The sum of the lines: A u, u.(A u), outer, divided; A k, k.(A k), divided; S k, outer; S q."""
    K, V = sp.symbols("K V", positive=True)
    lines = (K**2 + K + K**2 + K**2) + (K**2 + K + K) + (V * K + V * K) + V * K
    return sp.expand(lines - (4 * K**2 + 3 * K * V + 3 * K) - extra * K**3)


def cost_measured(x, extra=0):
    """The count, for a width and a number of values of the draw."""
    (V, K) = x.S.shape
    return apart(count(K, V), 4 * K**2 + 3 * K * V + 3 * K + extra * K**3)


STATEMENTS = (
    Statement(
        label="prop-cost",
        title="What a token costs",
        given="rank 1, the interpolating gain",
        says=r"4 K^2 + 3 K V + 3 K",
        symbols=cost,
        numbers=cost_measured,
        by_hand="symbols add the lines up; the count runs the package's own lines on numbers that count",
        twins={r"one $K^3$ more": dict(extra=1)},
    ),
    Statement(
        label="prop-chunk-write",
        title="A chunk of writes at once",
        given=r"any keys, values and gains of $C$ tokens, any $S$ before them",
        says=(
            r"\begin{aligned} "
            r"\mathbf{E} &= \big( I + \operatorname{stril}(\mathbf{K} \mathbf{G}^\top) \big)^{-1} (\mathbf{V} - "
            r"\mathbf{K} S^\top) , \\ "
            r"\mathbf{O} &= \mathbf{Q} S^\top + \operatorname{tril}(\mathbf{Q} \mathbf{G}^\top)\, \mathbf{E} , \\ "
            r"S_C &= S + \mathbf{E}^\top \mathbf{G} . "
            r"\end{aligned}"
        ),
        symbols=chunk_write,
        numbers=chunk_write_measured,
        by_hand=r"induction: symbols carry the step from $C$ to $C + 1$ tokens",
        twins={"tokens of a chunk that do not see each other": dict(stril=0)},
    ),
    Statement(
        label="prop-chunk-solve",
        title="A chunk of solves at once",
        given=r"$M$ positive definite before the chunk, $A$ its inverse",
        says=(
            r"\big[ A_1 k_1 \;\cdots\; A_C k_C \big]^\top = \mathbf{K} A - (L^{-\top} Y)^\top \mathbf{U} A , "
            r"\qquad Y = \operatorname{triu}\big( L^{-1} \mathbf{U} A \mathbf{K}^\top \big) ."
        ),
        symbols=chunk_solve,
        numbers=chunk_solve_measured,
        by_hand=r"the leading blocks of $L$ are the factors of the leading blocks; symbols carry one such block",
        twins={"the two factors swapped": dict(transposed=0), "a token that does not see itself": dict(keep=1)},
    ),
    Statement(
        label="prop-composition",
        title="Slices compose",
        given="any gains",
        says=(
            r"S_C = S\, P + Q , \qquad P = I - \mathbf{E}_k^\top \mathbf{G} , \qquad Q = \mathbf{E}_v^\top "
            r"\mathbf{G} ,"
        ),
        symbols=composition,
        numbers=composition_measured,
        twins={"plus for minus": dict(sign=1), "the two slices swapped": dict(swapped=True)},
    ),
)
