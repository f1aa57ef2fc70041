"""The memory in NumPy, one head, token by token. Read this file first.

Shapes: q, k, u [T, K]; v, o [T, V]; S [V, K]; M, A [K, K], with A the inverse of M.
Names follow the paper (arXiv 2605.11196); `book/notation.md` has the table.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vla_teach.checks import (
    Array,
    Gain,
    as_array,
    as_floats,
    cast,
    check_beta,
    check_directions,
    check_gain,
    check_inverse,
    check_lambda,
    check_number,
    check_part,
    check_qkv,
)


class Trace(NamedTuple):
    """What the pictures need, one entry a token (n snapshots, evenly spaced, the last token among them)."""

    norm_S: Array  # [T]        Frobenius norm of the state
    norm_A: Array  # [T]        Frobenius norm of the inverse penalty
    cond_M: Array  # [T]        condition number of the penalty, largest over smallest eigenvalue
    angle: Array  # [T]         between the key and its gain, in radians
    gains: Array  # [T, K]      write directions g_t, before beta
    times: Array  # [n]         tokens at which M and A were kept
    M: Array  # [n, K, K]
    A: Array  # [n, K, K]


class State(NamedTuple):
    """What a memory carries from token to token. Hand it back as `initial_state` to go on."""

    S: Array | None = None  # [V, K]     the memory itself: S k is what it recalls for k
    A: Array | None = None  # [K, K]     inverse penalty (VLA), inverse of H (exact least squares)
    keys: Array | None = None  # [T, K]  softmax attention only: its cache, which grows with T
    values: Array | None = None  # [T, V]
    trace: Any = None  # a Trace; of `vla_chunk` its Norms


# ---- the three lines of the recurrence -------------------------------------------------------------------------


def sherman_morrison(A: Array, u: Array) -> Array:
    """The inverse of M + u u^T from A, the inverse of M, in O(K^2) steps.

    A [K, K], u [K] -> [K, K].
    """
    Au = A @ u
    return A - np.outer(Au, Au) / (1 + u @ Au)


def write_gain(A: Array, k: Array, gain: Gain) -> Array:
    """The direction g in which an error is written. A zero key writes nothing.

    "unit": A k / |A k|, the paper's.
    "interpolate": A k / (k^T A k), so that S k = v after the write.
    "least_squares": A k, which with u = k is recursive least squares.
    A [K, K], k [K] -> [K].
    """
    a = A @ k
    if gain == "least_squares":
        return a
    size = np.linalg.norm(a) if gain == "unit" else k @ a
    return a / size if size else 0 * a


def write(S: Array, k: Array, v: Array, g: Array) -> Array:
    """The state after it has taken the pair (k, v): the error, placed along the gain.

    S [V, K], k [K], v [V], g [K] -> [V, K].
    """
    return S + np.outer(v - S @ k, g)


# ---- Variational Linear Attention -------------------------------------------------------------------------------


def vla_recurrent(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, u: ArrayLike, lambda_0: float = 0.1, beta: ArrayLike | None = None,
    gain: Gain = "unit", initial_state: State | None = None, trace: bool = False,
) -> tuple[Array, State]:  # fmt: skip
    """Variational Linear Attention, one token at a time (arXiv 2605.11196, Appendix A).

    q, k [T, K], v [T, V]: queries, keys (used as given) and values.
    u [T, K] or [T, R, K]: penalty directions; M_t = lambda_0 I + sum of u u^T so far.
    lambda_0: above 0; not used with an initial_state, which brings its own A.
    beta [T] in [0, 1] or None: the share of the error that is written, None for all.
    gain: "unit", "interpolate" or "least_squares"; see `write_gain`.
    initial_state: a State with S [V, K], A [K, K]; None for S = 0, A = I / lambda_0.
    trace: also record what the pictures need, in `state.trace` (slow).

    Returns (o [T, V], State), in O(T K (R K + V)) steps.
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    q, k, v = check_qkv(q, k, v)
    u, beta, gain = check_directions(u, k), check_beta(beta, k), check_gain(gain)
    S, A = start(k, v, lambda_0, initial_state)
    T, o = len(k), np.empty_like(v)
    record = Recorder(T, A) if trace else None
    for t in range(T):
        for row in u[t]:
            A = sherman_morrison(A, row)
        g = write_gain(A, k[t], gain)
        S = write(S, k[t], v[t], beta[t] * g)
        o[t] = S @ q[t]
        if record:
            record.add(t, S, A, u[t], k[t], g)
    return o, State(S, A, trace=record.done() if record else None)


def start(k: Array, v: Array, lambda_0: float | np.floating, initial_state: State | None) -> tuple[Array, Array]:
    """S [V, K] and A [K, K] before the first token."""
    K, V, lambda_0 = k.shape[1], v.shape[1], check_lambda(lambda_0, k.dtype)
    if initial_state is None:
        return np.zeros((V, K), k.dtype), np.eye(K, dtype=k.dtype) / lambda_0
    return check_part(initial_state, "S", (V, K), k.dtype), check_inverse(initial_state, K, k.dtype)


class Recorder:
    """Collects a Trace. It keeps M as a sum, apart from A, so that the two can be compared."""

    def __init__(self, T, A, snapshots=64):
        K = len(A)
        self.M = np.linalg.inv(A)
        self.times = np.unique(np.linspace(0, T - 1, min(T, snapshots)).round().astype(int))
        self.rows, self.kept = np.zeros((4, T)), []
        self.gains = np.zeros((T, K), A.dtype)

    def add(self, t, S, A, u, k, g):
        self.M = self.M + u.T @ u
        eigenvalues = np.linalg.eigvalsh(self.M)
        length = np.linalg.norm(k) * np.linalg.norm(g)
        angle = np.arccos(np.clip(k @ g / length, -1, 1)) if length else np.nan
        self.rows[:, t] = np.linalg.norm(S), np.linalg.norm(A), eigenvalues[-1] / eigenvalues[0], angle
        self.gains[t] = g
        if t in self.times:
            self.kept.append((self.M, A))

    def done(self):
        M, A = (np.array(x) for x in zip(*self.kept, strict=True))
        return Trace(*self.rows, self.gains, self.times, M, A)


# ---- its rivals, with the same manners --------------------------------------------------------------------------


def linear_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, initial_state: State | None = None
) -> tuple[Array, State]:
    """Linear attention without a normaliser: S_t = S_{t-1} + v_t k_t^T, o_t = S_t q_t (Katharopoulos et al., 2020).

    q, k [T, K], v [T, V]; initial_state a State with S [V, K]. Returns (o [T, V], State with S).
    Raises ValueError or TypeError naming the argument that does not fit.
    """
    q, k, v = check_qkv(q, k, v)
    S, o = start_S(k, v, initial_state), np.empty_like(v)
    for t in range(len(k)):
        S = S + np.outer(v[t], k[t])
        o[t] = S @ q[t]
    return o, State(S)


def delta_rule(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, beta: ArrayLike | None = None, initial_state: State | None = None
) -> tuple[Array, State]:
    """DeltaNet: S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t (Schlag et al., 2021).

    q, k [T, K], v [T, V], beta [T] in [0, 1] or None for 1; initial_state a State with S [V, K].
    Returns (o [T, V], State with S). Raises ValueError or TypeError naming the argument that does not fit.
    """
    q, k, v = check_qkv(q, k, v)
    beta = check_beta(beta, k)
    S, o = start_S(k, v, initial_state), np.empty_like(v)
    for t in range(len(k)):
        S = write(S, k[t], v[t], beta[t] * k[t])
        o[t] = S @ q[t]
    return o, State(S)


def exact_least_squares(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, u: ArrayLike, lambda_0: float = 0.1, initial_state: State | None = None
) -> tuple[Array, State]:
    """The objective that VLA starts from, solved afresh at every token with nothing dropped, in O(T K^2 (K + V)).

    S_t = argmin_S of sum_s |v_s - S k_s|^2 + tr(S M_t S^T) = (sum_s v_s k_s^T) H_t^{-1}, H_t = sum_s k_s k_s^T + M_t.
    Arguments, shapes and errors as for `vla_recurrent`. Returns (o [T, V], State with S and A = H^{-1}).
    """
    q, k, v = check_qkv(q, k, v)
    u = check_directions(u, k)
    S, A = start(k, v, lambda_0, initial_state)
    H, o = np.linalg.inv(A), np.empty_like(v)
    targets = S @ H  # sum of v k^T so far
    for t in range(len(k)):
        H = H + np.outer(k[t], k[t]) + u[t].T @ u[t]
        targets = targets + np.outer(v[t], k[t])
        S = np.linalg.solve(H, targets.T).T
        o[t] = S @ q[t]
    return o, State(S, np.linalg.inv(H))


def softmax_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, scale: float | None = None, initial_state: State | None = None
) -> tuple[Array, State]:
    """Causal softmax attention (Vaswani et al., 2017), whose memory is every key and value seen so far.

    q, k [T, K], v [T, V]; scale multiplies q . k, 1/sqrt(K) where None; initial_state a State with keys and values.
    Returns (o [T, V], State with keys and values). Raises ValueError or TypeError naming the argument.
    """
    q, k, v = check_qkv(q, k, v)
    keys, values = k.copy(), v.copy()
    if initial_state is not None:
        keys = np.vstack([check_part(initial_state, "keys", (None, k.shape[1]), k.dtype), k])
        values = np.vstack([check_part(initial_state, "values", (len(keys) - len(k), v.shape[1]), k.dtype), v])
    return softmax_map(q, keys, scale) @ values, State(keys=keys, values=values)


def start_S(k: Array, v: Array, initial_state: State | None) -> Array:
    """S [V, K] before the first token, for the memories that carry nothing else."""
    shape = (v.shape[1], k.shape[1])
    return np.zeros(shape, k.dtype) if initial_state is None else check_part(initial_state, "S", shape, k.dtype)


# ---- what a memory attends to -----------------------------------------------------------------------------------


def attention_map(q: ArrayLike, k: ArrayLike, g: ArrayLike | None = None, beta: ArrayLike | None = None) -> Array:
    """The matrix P with o = P v that a recurrent memory hides, when it starts from S = 0.

    q, k [T, K]; g [T, K] the gains: k for the delta rule, `state.trace.gains` for VLA; None for linear attention,
    which has no error term and no beta. beta [T] as given to the memory. Returns P [T, T], lower triangular:
    P = tril(Q G^T) (I + stril(K G^T))^{-1}. Raises ValueError or TypeError naming the argument that does not fit.
    """
    q, k, _ = check_qkv(q, k, k)
    if g is None and beta is None:
        return np.tril(q @ k.T)
    if (shape := as_array("g", g).shape) != k.shape:
        raise ValueError(f"g has shape {shape}; expected that of k, [T, K] = {k.shape}")
    (gains,) = as_floats(g=g)
    G = cast("g", gains, k.dtype) * check_beta(beta, k)[:, None]
    W = np.eye(len(k), dtype=k.dtype) + np.tril(k @ G.T, -1)
    return np.linalg.solve(W.T, np.tril(q @ G.T).T).T


def softmax_map(q: ArrayLike, k: ArrayLike, scale: float | None = None) -> Array:
    """Softmax attention's own matrix, rows summing to 1. q [T, K], k [past + T, K] -> [T, past + T], causal.

    scale multiplies q . k, 1/sqrt(K) where None. Raises ValueError or TypeError naming the argument that does not fit.
    """
    q, k = as_floats(q=q, k=k)
    if q.ndim != 2 or k.ndim != 2 or q.shape[1] != k.shape[1] or not 0 < len(q) <= len(k) or not q.size:
        raise ValueError(f"q has shape {q.shape}, k {k.shape}; expected [T, K] and [past + T, K]")
    scale = q.shape[1] ** -0.5 if scale is None else check_number("scale", scale)
    scores = q @ k.T * cast("scale", np.float64(scale), q.dtype)
    scores[~np.tri(len(q), len(k), len(k) - len(q), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


# ---- features ---------------------------------------------------------------------------------------------------


def elu_plus_one(x: ArrayLike) -> Array:
    """The positive feature map phi(x) = elu(x) + 1 of linear attention: x + 1 above 0, exp(x) below. Any shape.

    Raises ValueError or TypeError where x is no array of finite numbers.
    """
    (x,) = as_floats(x=x)
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def unit_rows(x: ArrayLike) -> Array:
    """Every row of x [..., K] brought to length 1; a zero row stays zero.

    Raises ValueError or TypeError where x is no array of finite numbers.
    """
    (x,) = as_floats(x=x)
    if not x.ndim:
        raise ValueError(f"x has shape {x.shape}; expected at least one dimension, [..., K]")
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def z_normaliser(phi_q: ArrayLike, phi_k: ArrayLike) -> Array:
    """The divisor of o [T, V]: z_t . phi(q_t) with z_t = sum of phi(k_s), s <= t. phi_q, phi_k [T, K] -> [T, 1].

    Raises ValueError or TypeError naming the argument that does not fit.
    """
    phi_q, phi_k = as_floats(phi_q=phi_q, phi_k=phi_k)
    if phi_q.ndim != 2 or phi_q.shape != phi_k.shape:
        raise ValueError(f"phi_q has shape {phi_q.shape}; expected that of phi_k, [T, K], which has {phi_k.shape}")
    return np.sum(np.cumsum(phi_k, axis=0) * phi_q, axis=1, keepdims=True)
