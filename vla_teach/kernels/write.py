"""Step 3: the errors and the outputs, for gains g_t = c_t a_t with c_t a number (prop-chunk-write in the book).

In a chunk with state S before it and c on the diagonal of D, (I + stril(K A^T) D) E = V - K S^T,
O = Q S^T + tril(Q A^T) D E, and S becomes S + E^T D A. With X the inverse of the triangle, E = X V - (X K) S^T: all
but S is there before the walk begins. Numbers c multiply in float32. The state is kept transposed, [K, V].
Bytes are counted a token and a head, for chunks of C tokens and 2 bytes a number; states a chunk are 2 K V / C of them.
"""

import triton
import triton.language as tl

from vla_teach.kernels.tiles import (
    dot,
    fine_dot,
    fine_dot_right,
    part_slot,
    slot,
    token_column,
    token_tile,
    unit_lower_inverse,
)

TINY = tl.constexpr(1.1754944e-38)  # below it a key is taken for zero, as in `vla_teach.ops.write_gain`


@triton.jit
def gain_scale(a, k, GAIN: tl.constexpr):
    """s [C] with s a the gain for beta = 1: one over |a|, k . a or 1, and 0 for a key taken for zero."""
    size = tl.sum((a if GAIN == "unit" else k) * a, 1)
    some = tl.abs(size) > TINY
    size = tl.where(some, size, 1.0)
    if GAIN == "unit":
        size = tl.sqrt(size)
    return tl.where(some, 1.0 / size, 0.0)


@triton.jit
def triangle(
    k, v, beta, a, c, X_out, XK, XV, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GAIN: tl.constexpr, P: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """c, X = (I + stril(K A^T) D)^{-1}, X K and X V: reads k, v and a, 4 K + 2 V bytes, writes X K and X V, 2 K + 2 V.

    X itself, 2 C bytes, is written for the backward pass only.
    """
    chunk, h = tl.program_id(0), tl.program_id(1)
    i, begin, tokens = tl.arange(0, C), tl.load(start + chunk), tl.load(size + chunk)
    mask = (i < tokens)[:, None]
    A = tl.load(token_tile(a, begin, h, H, C, K), mask, 0.0)
    keys = tl.load(token_tile(k, begin, h, H, C, K), mask, 0.0).to(A.dtype)
    scale = tl.load(token_column(beta, begin, h, H, C), i < tokens, 0.0).to(tl.float32)
    if GAIN != "least_squares":
        scale *= gain_scale(A.to(tl.float32), keys.to(tl.float32), GAIN)
    tl.store(token_column(c, begin, h, H, C), scale, i < tokens)
    N = tl.where(i[:, None] > i[None, :], dot(keys, tl.trans(A), P) * scale[None, :], 0.0)
    X = unit_lower_inverse(N, C, P)
    if KEEP:  # only the backward pass needs it
        tl.store(slot(X_out, chunk, h, H, C, C), X)
    tl.store(slot(XK, chunk, h, H, C, K), fine_dot(X, keys, P))
    values = tl.load(token_tile(v, begin, h, H, C, V), mask, 0.0).to(A.dtype)
    tl.store(slot(XV, chunk, h, H, C, V), fine_dot(X, values, P))


@triton.jit
def walk(
    a, c, XK, E, S_keep, begin_row, S_end, S_chunk, keep, start, size, first, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, KEEP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The only sequential part: chunk by chunk, for PART of the values of one head.

    Reads a, c and X K, 4 K bytes a program, turns X V in E into the errors, 2 V bytes each way, and writes the state
    before every chunk. It begins with row begin_row[n] of S_keep. KEEP: that before a chunk also goes, in float32, to
    row keep[chunk] of it, unless this is -1, and the last to S_end.
    """
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    S = tl.load(part_slot(S_keep, tl.load(begin_row + n), h, H, part, K, PART, V))
    i, low, high = tl.arange(0, C), tl.load(first + n), tl.load(first + n + 1)
    token_0, token_1 = span(start, size, low, high)
    for chunk in range(low, high):
        if KEEP:
            row = tl.load(keep + chunk)
            if row >= 0:
                tl.store(part_slot(S_keep, row, h, H, part, K, PART, V), S)
        begin = token_0 + (chunk - low) * C
        mask = i < token_1 - begin
        rows, at = tl.load(slot(XK, chunk, h, H, C, K)), part_slot(E, chunk, h, H, part, C, PART, V)
        state = S.to(rows.dtype)
        tl.store(part_slot(S_chunk, chunk, h, H, part, K, PART, V), state)
        error = tl.load(at).to(tl.float32) - dot(rows, state, P)
        tl.store(at, error)
        error = error * tl.load(token_column(c, begin, h, H, C), mask, 0.0)[:, None]
        A = tl.load(token_tile(a, begin, h, H, C, K), mask[:, None], 0.0)
        S += fine_dot_right(tl.trans(A), error, P)
    if KEEP:
        tl.store(part_slot(S_end, n, h, H, part, K, PART, V), S)


@triton.jit
def span(start, size, low, high):
    """First token of chunk low and the token after those of chunk high - 1; nothing if there are no chunks."""
    some = high > low
    return tl.load(start + low, some, 0), tl.load(start + high - 1, some, 0) + tl.load(size + high - 1, some, 0)


@triton.jit
def outputs(
    q, a, c, E, S_chunk, o, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """O = Q S^T + tril(Q A^T) D E: reads q, a and E, 4 K + 2 V bytes, and the states, writes o, 2 V."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    i, begin, tokens = tl.arange(0, C), tl.load(start + chunk), tl.load(size + chunk)
    mask = (i < tokens)[:, None]
    A = tl.load(token_tile(a, begin, h, H, C, K), mask, 0.0)
    Q = tl.load(token_tile(q, begin, h, H, C, K), mask, 0.0).to(A.dtype)
    scale = tl.load(token_column(c, begin, h, H, C), i < tokens, 0.0)
    scores = tl.where(i[:, None] >= i[None, :], dot(Q, tl.trans(A), P) * scale[None, :], 0.0)
    result = dot(Q, tl.load(slot(S_chunk, chunk, h, H, K, V)), P)
    result += fine_dot(scores, tl.load(slot(E, chunk, h, H, C, V)), P)
    tl.store(token_tile(o, begin, h, H, C, V), result, mask)
