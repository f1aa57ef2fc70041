"""Step 5: the gradients in closed form. The write's backward is the same walk in reverse, with key and gain exchanged
(eq-mirror and prop-write-gradients in the book); the solve's is one more solve, with the gradient of a in the place of
k, and two linear attentions in reverse (prop-gradients). Bytes are counted as in `write`.
"""

import triton
import triton.language as tl

from vla_teach.kernels.tiles import (
    dot,
    fine_dot,
    fine_dot_right,
    part_slot,
    rank_tile,
    slot,
    tile,
    token_column,
    token_tile,
)
from vla_teach.kernels.write import gain_scale, span


@triton.jit
def mirror(
    q, a, c, X, do, XG, Z, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """X^T D A and X^T D tril(Q A^T)^T dO: reads q, a, X and do, 4 K + 2 C + 2 V bytes, writes 2 K + 2 V."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    i, begin, tokens = tl.arange(0, C), tl.load(start + chunk), tl.load(size + chunk)
    mask = (i < tokens)[:, None]
    A = tl.load(token_tile(a, begin, h, H, C, K), mask, 0.0)
    Q = tl.load(token_tile(q, begin, h, H, C, K), mask, 0.0).to(A.dtype)
    dO = tl.load(token_tile(do, begin, h, H, C, V), mask, 0.0).to(A.dtype)
    scale = tl.load(token_column(c, begin, h, H, C), i < tokens, 0.0)[:, None]
    XT = tl.trans(tl.load(slot(X, chunk, h, H, C, C)))
    scores = tl.where(i[:, None] <= i[None, :], dot(A, tl.trans(Q), P) * scale, 0.0)
    tl.store(slot(XG, chunk, h, H, C, K), fine_dot_right(XT, A.to(tl.float32) * scale, P))
    tl.store(slot(Z, chunk, h, H, C, V), fine_dot_right(XT, fine_dot(scores, dO, P), P))


@triton.jit
def walk_back(
    q, k, do, XG, Z, dv, dS_end, dS_chunk, start, size, first, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dS after every chunk, from the last to the first; Z becomes the gradient of V - K S^T, which is dV.

    Reads q, k and X^T D A, 6 K bytes a program, and do and Z, 4 V; writes Z and dv, 4 V, and dS after every chunk.
    What comes out at the start stands where dS_end was: it is that of the part before.
    """
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dS = tl.load(part_slot(dS_end, n, h, H, part, K, PART, V))
    i, low, high = tl.arange(0, C), tl.load(first + n), tl.load(first + n + 1)
    token_0, token_1 = span(start, size, low, high)
    for step in range(0, high - low):
        chunk = high - 1 - step
        begin = token_0 + (chunk - low) * C
        mask = (i < token_1 - begin)[:, None]
        rows, at = tl.load(slot(XG, chunk, h, H, C, K)), part_slot(Z, chunk, h, H, part, C, PART, V)
        later = dS.to(rows.dtype)
        tl.store(part_slot(dS_chunk, chunk, h, H, part, K, PART, V), later)
        z = tl.load(at).to(tl.float32) + dot(rows, later, P)
        tl.store(at, z)
        line = begin * H + h.to(tl.int64)
        tl.store(tile(dv + part * PART, line, H, C, PART, V), z, mask)
        dO = tl.load(tile(do + part * PART, line, H, C, PART, V), mask, 0.0).to(rows.dtype)
        Q = tl.load(token_tile(q, begin, h, H, C, K), mask, 0.0).to(rows.dtype)
        keys = tl.load(token_tile(k, begin, h, H, C, K), mask, 0.0).to(rows.dtype)
        dS += dot(tl.trans(Q), dO, P) - fine_dot_right(tl.trans(keys), z, P)
    tl.store(part_slot(dS_end, n, h, H, part, K, PART, V), dS)


@triton.jit
def write_gradients(
    q, k, beta, a, c, do, E, Z, S_chunk, dS_chunk, dq, dk, da, dbeta, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GAIN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients of q, beta and a, and of k as far as the write goes.

    Reads q, k, a, do, E and Z, 6 K + 6 V bytes, and two states a chunk; writes dq, dk and da, 6 K.
    """
    chunk, h = tl.program_id(0), tl.program_id(1)
    i, begin, tokens = tl.arange(0, C), tl.load(start + chunk), tl.load(size + chunk)
    mask = (i < tokens)[:, None]
    A = tl.load(token_tile(a, begin, h, H, C, K), mask, 0.0)
    Q = tl.load(token_tile(q, begin, h, H, C, K), mask, 0.0).to(A.dtype)
    keys = tl.load(token_tile(k, begin, h, H, C, K), mask, 0.0).to(A.dtype)
    dO = tl.load(token_tile(do, begin, h, H, C, V), mask, 0.0).to(A.dtype)
    errors, z = tl.load(slot(E, chunk, h, H, C, V)), tl.load(slot(Z, chunk, h, H, C, V))
    S, dS = tl.load(slot(S_chunk, chunk, h, H, K, V)), tl.load(slot(dS_chunk, chunk, h, H, K, V))
    scale = tl.load(token_column(c, begin, h, H, C), i < tokens, 0.0)[None, :]

    read = tl.where(i[:, None] >= i[None, :], dot(dO, tl.trans(errors), P), 0.0)  # gradient of tril(Q G^T)
    wrote = tl.where(i[:, None] > i[None, :], dot(z, tl.trans(errors), P), 0.0)  # minus that of stril(K G^T)
    dQ = dot(dO, tl.trans(S), P) + fine_dot(read * scale, A, P)
    tl.store(token_tile(dq, begin, h, H, C, K), dQ, mask)
    dK = -dot(z, tl.trans(S), P) - fine_dot(wrote * scale, A, P)
    dG = dot(errors, tl.trans(dS), P)
    dG += fine_dot(tl.trans(read), Q, P) - fine_dot(tl.trans(wrote), keys, P)

    b = tl.load(token_column(beta, begin, h, H, C), i < tokens, 0.0).to(tl.float32)
    x, solved = keys.to(tl.float32), A.to(tl.float32)
    if GAIN == "least_squares":
        s = i * 0.0 + 1.0
    else:
        s = gain_scale(solved, x, GAIN)
    along = tl.sum(solved * dG, 1) * s
    tl.store(token_column(dbeta, begin, h, H, C), along, i < tokens)
    if GAIN == "unit":  # g = beta a / |a|
        dG -= (along * s)[:, None] * solved
    elif GAIN == "interpolate":  # g = beta a / k . a
        dG -= along[:, None] * x
        dK -= (b * along * s)[:, None] * solved
    tl.store(token_tile(da, begin, h, H, C, K), (b * s)[:, None] * dG, mask)
    tl.store(token_tile(dk, begin, h, H, C, K), dK, mask)


@triton.jit
def penalty_gradients(
    u, a, b, N, du, start, size, anchor, H,
    K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """du_s = -(sum over t >= s of b_t a_t^T + a_t b_t^T) u_s; N sums the a_t b_t^T after the anchor.

    A program does C of a chunk's C R rows. Reads u, a and b, 6 K bytes, and N; writes du, 2 K, which
    may be b where a token has one row.
    """
    m, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    total, i = tl.load(slot(N, m, h, H, K, K)), tl.arange(0, C)
    low, high = tl.load(anchor + m), tl.load(anchor + m + 1)
    for step in range(0, high - low):
        chunk = high - 1 - step
        begin, tokens = tl.load(start + chunk), tl.load(size + chunk)
        mask = (i < tokens)[:, None]
        x = tl.load(token_tile(a, begin, h, H, C, K), mask, 0.0)
        y = tl.load(token_tile(b, begin, h, H, C, K), mask, 0.0)
        at, token = rank_tile(u, begin, h, H, part, C, R, K)
        U = tl.load(at, (token < tokens)[:, None], 0.0).to(x.dtype)
        after = i[None, :] >= token[:, None]
        gradient = fine_dot_right(U, total + tl.trans(total), P)
        gradient += fine_dot(tl.where(after, dot(U, tl.trans(x), P), 0.0), y, P)
        gradient += fine_dot(tl.where(after, dot(U, tl.trans(y), P), 0.0), x, P)
        at, token = rank_tile(du, begin, h, H, part, C, R, K)
        tl.store(at, -gradient, (token < tokens)[:, None])
        total += dot(tl.trans(x), y, P)
