"""Step 2: a_t = A_t k_t for all tokens, many at once.

M is a running sum, so it is known at any token without a walk. At every anchor M is inverted afresh, and from there one
program walks its few hundred tokens by Sherman-Morrison (lem-sherman-morrison in the book): all anchors of all heads
walk at the same time. In float32. Bytes are counted a token and a head, for inputs of 2 bytes a number and R = 1.
"""

import triton
import triton.language as tl

from vla_teach.kernels.tiles import dot, inverse, rank_tile, slot, times, token_tile


@triton.jit
def row_sums(
    u, out, start, size, anchor, H,
    K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Sum of u u^T over an anchor: reads u, 2 K bytes, and writes [K, K] an anchor."""
    m, h = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([K, K], tl.float32)
    for chunk in range(tl.load(anchor + m), tl.load(anchor + m + 1)):
        for part in tl.static_range(R):
            at, token = rank_tile(u, tl.load(start + chunk), h, H, part, C, R, K)
            rows = tl.load(at, (token < tl.load(size + chunk))[:, None], 0.0)
            if rows.dtype == tl.float16:
                rows = rows.to(tl.float32)
            total += dot(tl.trans(rows), rows, P)
    tl.store(slot(out, m, h, H, K, K), total)


@triton.jit
def pair_sums(
    a, b, out, start, size, anchor, H,
    K: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Sum of a b^T over an anchor: reads both, 4 K bytes, and writes [K, K] an anchor."""
    m, h = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([K, K], tl.float32)
    for chunk in range(tl.load(anchor + m), tl.load(anchor + m + 1)):
        begin, mask = tl.load(start + chunk), (tl.arange(0, C) < tl.load(size + chunk))[:, None]
        x = tl.load(token_tile(a, begin, h, H, C, K), mask, 0.0)
        total += dot(tl.trans(x), tl.load(token_tile(b, begin, h, H, C, K), mask, 0.0), P)
    tl.store(slot(out, m, h, H, K, K), total)


@triton.jit
def prefix(x, begin, end, first, H, KK: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr, REVERSE: tl.constexpr):
    """x [m, H, KK] becomes begin + the sum of the x before it in its sequence (or after it); end is the full sum."""
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = part * BLOCK + tl.arange(0, BLOCK)
    state = (n * H + h.to(tl.int64)) * KK + column
    total = tl.load(begin + state)
    low, high = tl.load(first + n), tl.load(first + n + 1)
    for step in range(0, high - low, N):
        i = low + step + tl.arange(0, N)
        if REVERSE:
            i = high - 1 - step - tl.arange(0, N)
        at = x + (i * H + h.to(tl.int64))[:, None] * KK + column[None, :]
        mask = ((i >= low) & (i < high))[:, None]
        new = tl.load(at, mask, 0.0)
        tl.store(at, total[None, :] + tl.cumsum(new, 0) - new, mask)
        total += tl.sum(new, 0)
    tl.store(end + state, total)


@triton.jit
def solve(
    M, u, x, out, also, start, size, anchor, H,
    K: tl.constexpr, R: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """A_t x_t for the tokens of an anchor, A_t the inverse penalty after each: reads u and x, 4 K bytes, writes 2 K.

    With ADD the result is added to `also`, which holds dk so far, before it is rounded. While a token is worked on, the
    rows of u and x of the next are on their way. out may be x.
    """
    m, h = tl.program_id(0), tl.program_id(1)
    i, last = tl.arange(0, K), tl.load(anchor + m + 1) - 1
    begin, end = tl.load(start + tl.load(anchor + m)), tl.load(start + last) + tl.load(size + last)
    A = inverse(tl.load(slot(M, m, h, H, K, K)), K)
    line = begin * H + h.to(tl.int64)
    next_u, next_x = tl.load(u + line * R * K + i), tl.load(x + line * K + i)
    for t in range(begin, end):
        row, column = next_u.to(tl.float32), next_x.to(tl.float32)
        ahead = line + H
        next_x = tl.load(x + ahead * K + i, t + 1 < end, 0.0)
        for r in tl.static_range(1, R + 1):
            if r < R:
                next_u = tl.load(u + (line * R + r) * K + i)
            else:
                next_u = tl.load(u + ahead * R * K + i, t + 1 < end, 0.0)
            w = times(A, row)
            w = w / tl.sqrt(1.0 + tl.sum(w * row, 0))
            A -= w[:, None] * w[None, :]
            row = next_u.to(tl.float32)
        solved = times(A, column)
        tl.store(out + line * K + i, solved)
        if ADD:
            tl.store(also + line * K + i, tl.load(also + line * K + i).to(tl.float32) + solved)
        line = ahead
