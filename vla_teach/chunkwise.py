"""The same memory, a chunk of tokens at a time: exact, and the form that the GPU kernel computes.

Two steps. `penalty_gains` solves M_t a_t = k_t for every token of every chunk at once. `chunk_write` then walks over
the chunks with the state S; inside a chunk all is matrix products. N chunks of C tokens, N C >= T.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vla_teach.checks import Array, Gain, check_beta, check_count, check_directions, check_gain, check_qkv
from vla_teach.reference import State, start

SLAB = 8  # chunks worked on at once: enough to keep the batched products busy, few enough to stay in cache


class Norms(NamedTuple):
    """The part of a trace that the chunkwise form gives at no great cost."""

    norm_S: Array  # [T]     Frobenius norm of the state after each token
    gains: Array  # [T, K]   write directions, before beta


def vla_chunk(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, u: ArrayLike, lambda_0: float = 0.1, beta: ArrayLike | None = None,
    gain: Gain = "unit", initial_state: State | None = None, chunk_size: int = 64, trace: bool = False,
) -> tuple[Array, State]:  # fmt: skip
    """`vla_recurrent`, computed chunk by chunk: the same arguments, results and errors, to rounding.

    chunk_size: tokens a chunk, any number from 1. trace: `state.trace` holds norm_S [T] and gains [T, K].
    """
    q, k, v = check_qkv(q, k, v)
    u, beta, gain = check_directions(u, k), check_beta(beta, k), check_gain(gain)
    S, A = start(k, v, lambda_0, initial_state)
    C = min(check_count("chunk_size", chunk_size), len(k))
    M, g, o, norm_S = np.linalg.inv(A), np.empty_like(k), np.empty_like(v), np.empty(len(k), k.dtype)
    for first in range(0, len(k), SLAB * C):
        some = slice(first, first + SLAB * C)
        g[some], M = penalty_gains(k[some], u[some], M, gain, C)
        o[some], S, norm_S[some] = chunk_write(q[some], k[some], v[some], beta[some, None] * g[some], S, C, trace)
    return o, State(S, np.linalg.inv(M), trace=Norms(norm_S, g) if trace else None)


def penalty_gains(k: Array, u: Array, M: Array, gain: Gain, C: int) -> tuple[Array, Array]:
    """Every token's write direction, all chunks at once. k [T, K], u [T, R, K], M [K, K] -> g [T, K], last M [K, K].

    M is a running sum, so each chunk's start is known in advance. Inside a chunk, I + U A U^T = L L^T, and because
    the leading blocks of L are the factors of its leading blocks, one factorisation serves every token.
    """
    (T, R, K), dtype = u.shape, k.dtype
    k, u = in_chunks(k, C), in_chunks(u.reshape(T * R, K), C * R)  # [N, C, K], [N, C R, K]
    M = np.cumsum(np.concatenate([M[None], mT(u) @ u]), axis=0)  # [N + 1, K, K]: before each chunk, after the last
    root = lower_inverse(cholesky(M[:-1]))
    A = mT(root) @ root  # [N, K, K]
    uA = u @ A  # [N, C R, K]
    L_inv = lower_inverse(cholesky(np.eye(C * R, dtype=dtype) + uA @ mT(u)))
    past = np.repeat(np.arange(C), R)[:, None] <= np.arange(C)  # [C R, C]: row of token s, column of token t, s <= t
    Y = L_inv @ (uA @ mT(k))  # [N, C R, C]
    Y *= past
    a = k @ A  # [N, C, K]
    a -= mT(mT(L_inv) @ Y) @ uA  # A_t k_t
    if gain == "unit":
        a /= nonzero(np.sqrt(np.sum(a * a, axis=2, keepdims=True)))
    elif gain == "interpolate":
        a /= nonzero(np.sum(k * a, axis=2, keepdims=True))
    return a.reshape(-1, K)[:T], M[-1]


def chunk_write(
    q: Array, k: Array, v: Array, g: Array, S: Array, C: int, norms: bool = False
) -> tuple[Array, Array, Array | float]:
    """S_t = S_{t-1} + (v_t - S_{t-1} k_t) g_t^T and o_t = S_t q_t for any gains g [T, K], a chunk at a time.

    q, k, g [T, K], v [T, V], S [V, K] -> o [T, V], S [V, K], and |S_t|_F [T] (NaN unless norms is set).
    The errors of a chunk solve (I + stril(K G^T)) E = V - K S^T.
    """
    T, V = v.shape
    q, k, v, g = (in_chunks(x, C) for x in (q, k, v, g))  # [N, C, ...]
    W_inv = lower_inverse(np.eye(C, dtype=k.dtype) + np.tril(k @ mT(g), -1))
    E, E_k = W_inv @ v, W_inv @ k  # E less its second term, which needs S
    S_in = np.empty((len(v), *S.shape), S.dtype)
    for n in range(len(v)):  # the only sequential part
        S_in[n] = S
        E[n] -= E_k[n] @ S.T
        S = S + E[n].T @ g[n]
    o = q @ mT(S_in) + np.tril(q @ mT(g)) @ E  # [N, C, V]
    norm_S = state_norms(S_in, E, g).reshape(-1)[:T] if norms else np.nan
    return o.reshape(-1, V)[:T], S, norm_S


def state_norms(S_in: Array, E: Array, g: Array) -> Array:
    """|S_t|_F [N, C] from each chunk's first state [N, V, K], errors [N, C, V] and gains [N, C, K]."""
    S_g = g @ mT(S_in) + np.tril(g @ mT(g), -1) @ E  # [N, C, V], S_{t-1} g_t
    growth = np.sum(E * (2 * S_g + E * np.sum(g * g, axis=2, keepdims=True)), axis=2)
    squared = np.sum(S_in * S_in, axis=(1, 2))[:, None] + np.cumsum(growth, axis=1)
    return np.sqrt(np.maximum(squared, 0))


def cholesky(M: Array) -> Array:
    """The lower triangular L [..., n, n] with M = L L^T. Raises ValueError where M is not positive definite."""
    try:
        return np.linalg.cholesky(M)
    except np.linalg.LinAlgError:
        words = (
            f"lambda_0 is too small for {M.dtype} and these u: the penalty is no longer positive definite to rounding"
        )
        raise ValueError(f"{words}; expected a larger lambda_0 or float64 input") from None


def lower_inverse(L: Array) -> Array:
    """Inverse of lower triangular matrices [..., n, n]: both halves first, then the block below them.

    Small ones row by row, without pivoting: huge entries (a gain that explodes) then do no harm to the rows above them.
    """
    n, out = L.shape[-1], np.zeros_like(L)
    if n <= 2 or n % 2:
        for i in range(n):
            out[..., i, :] = -(L[..., i, None, :i] @ out[..., :i, :])[..., 0, :]
            out[..., i, i] += 1
            out[..., i, :] /= L[..., i, i, None]
        return out
    h = n // 2
    top, bottom = lower_inverse(np.stack([L[..., :h, :h], L[..., h:, h:]]))
    out[..., :h, :h], out[..., h:, h:] = top, bottom
    out[..., h:, :h] = -bottom @ (L[..., h:, :h] @ top)
    return out


def in_chunks(x: Array, C: int) -> Array:
    """x [T, ...] -> [N, C, ...], zeros after the end: a zero token changes neither M nor S."""
    if len(x) % C:
        x = np.concatenate([x, np.zeros((-len(x) % C, *x.shape[1:]), x.dtype)])
    return x.reshape(-1, C, *x.shape[1:])


def nonzero(x: Array) -> Array:
    """x with 1 in place of 0, to divide by: a zero key writes nothing."""
    return np.where(x == 0, 1, x)


def mT(x: Array) -> Array:
    """The transpose of the last two axes."""
    return np.swapaxes(x, -1, -2)
