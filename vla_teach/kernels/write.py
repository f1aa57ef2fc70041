"""Step 3: the errors and the outputs, for gains G that are known.

In a chunk with state S before it, (I + stril(K G^T)) E = V - K S^T, O = Q S^T + tril(Q G^T) E and S becomes
S + E^T G. With X the inverse of the triangle, E = X V - (X K) S^T: all but the S are there before the walk begins.
The state is kept transposed, [K, V].
"""

import triton
import triton.language as tl

from vla_teach.kernels.solve import gain_scale
from vla_teach.kernels.tiles import dot, slot, token_numbers, token_rows, unit_lower_inverse


@triton.jit
def load_tokens(x, start, size, chunk, h, H, D: tl.constexpr, C: tl.constexpr, like):
    """The tile [C, D] of a chunk's tokens, in the dtype of the tile `like`."""
    at, mask = token_rows(tl.load(start + chunk), tl.load(size + chunk), h, H, D, C, 1, 0)
    return tl.load(x + at, mask, 0.0).to(like.dtype)


@triton.jit
def triangle(
    k, v, beta, a, g, X_out, XK, XV, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GAIN: tl.constexpr, P: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """The gains G, X = (I + stril(K G^T))^{-1}, X K and X V: reads k, v, beta and a, writes the four as slots."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    begin, tokens = tl.load(start + chunk), tl.load(size + chunk)
    at, mask = token_rows(begin, tokens, h, H, K, C, 1, 0)
    A, keys = tl.load(a + at, mask, 0.0), tl.load(k + at, mask, 0.0)
    where, mask = token_numbers(begin, tokens, h, H, C)
    b, solved = tl.load(beta + where, mask, 0.0).to(tl.float32), A.to(tl.float32)
    G = (solved * gain_scale(solved, keys.to(tl.float32), b, GAIN)[:, None]).to(A.dtype)
    tl.store(g + slot(chunk, h, H, C, K), G)
    keys = keys.to(G.dtype)
    i = tl.arange(0, C)
    N = tl.where(i[:, None] > i[None, :], dot(keys, tl.trans(G), P), 0.0)
    X = unit_lower_inverse(N, C, P).to(G.dtype)
    if KEEP:  # only the backward pass needs it
        tl.store(X_out + slot(chunk, h, H, C, C), X)
    tl.store(XK + slot(chunk, h, H, C, K), dot(X, keys, P))
    values = load_tokens(v, start, size, chunk, h, H, V, C, G)
    tl.store(XV + slot(chunk, h, H, C, V), dot(X, values, P))


@triton.jit
def part_slot(chunk, h, H, rows: tl.constexpr, D: tl.constexpr, part, PART: tl.constexpr):
    """Offsets of columns part * PART to part * PART + PART of the tile [rows, D] of (chunk, head)."""
    line = (chunk * H + h.to(tl.int64)) * rows + tl.arange(0, rows)
    return line[:, None] * D + part * PART + tl.arange(0, PART)[None, :]


@triton.jit
def walk(
    XK, E, g, S_begin, S_end, S_chunk, S_keep, first, every, N, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, KEEP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The only sequential part: chunk by chunk, for PART of the values of one head.

    Reads X K and g, turns X V in E into the errors, writes the state before every chunk, and KEEPs that before
    every `every`-th chunk in float32, in S_keep [parts, N, H, K, V].
    """
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    S = tl.load(S_begin + part_slot(n, h, H, K, V, part, PART))
    low, high = tl.load(first + n), tl.load(first + n + 1)
    for chunk in range(low, high):
        if KEEP and (chunk - low) % every == 0:
            tl.store(S_keep + part_slot((chunk - low) // every * N + n, h, H, K, V, part, PART), S)
        at = part_slot(chunk, h, H, C, V, part, PART)
        error, rows = tl.load(E + at), tl.load(XK + slot(chunk, h, H, C, K))
        state = S.to(rows.dtype)
        tl.store(S_chunk + part_slot(chunk, h, H, K, V, part, PART), state)
        error = (error.to(tl.float32) - dot(rows, state, P)).to(rows.dtype)
        tl.store(E + at, error)
        S += dot(tl.trans(tl.load(g + slot(chunk, h, H, C, K))), error, P)
    tl.store(S_end + part_slot(n, h, H, K, V, part, PART), S)


@triton.jit
def outputs(
    q, g, E, S_chunk, o, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """O = Q S^T + tril(Q G^T) E: reads q, g, E and the states, writes o."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    G = tl.load(g + slot(chunk, h, H, C, K))
    Q = load_tokens(q, start, size, chunk, h, H, K, C, G)
    i = tl.arange(0, C)
    scores = tl.where(i[:, None] >= i[None, :], dot(Q, tl.trans(G), P), 0.0).to(G.dtype)
    O = dot(Q, tl.load(S_chunk + slot(chunk, h, H, K, V)), P)
    O += dot(scores, tl.load(E + slot(chunk, h, H, C, V)), P)
    at, mask = token_rows(tl.load(start + chunk), tl.load(size + chunk), h, H, V, C, 1, 0)
    tl.store(o + at, O, mask)
