"""Step 2: a_t = A_t k_t for all tokens, many at once.

M is a running sum, so it is known at any token without a walk. At every anchor M is inverted afresh, and from there one
program walks its few hundred tokens by Sherman-Morrison: all anchors of all heads walk at the same time. In float32.
"""

import triton
import triton.language as tl

from vla_teach.kernels.tiles import dot, inverse, slot, times, token_rows

TINY = tl.constexpr(1.1754944e-38)  # below it a key is taken for zero, as in `vla_teach.ops.write_gain`


@triton.jit
def row_sums(
    x, out, start, size, anchor, H, K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Sum of u u^T over an anchor: reads its u once, writes [K, K]."""
    a, h = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([K, K], tl.float32)
    for chunk in range(tl.load(anchor + a), tl.load(anchor + a + 1)):
        for part in range(R):
            at, mask = token_rows(tl.load(start + chunk), tl.load(size + chunk), h, H, K, C, R, part)
            rows = tl.load(x + at, mask, 0.0)
            if rows.dtype == tl.float16:
                rows = rows.to(tl.float32)
            total += dot(tl.trans(rows), rows, P)
    tl.store(out + slot(a, h, H, K, K), total)


@triton.jit
def prefix(x, begin, end, first, H, KK: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr, REVERSE: tl.constexpr):
    """x [n, H, KK] becomes begin + the sum of the x before it in its sequence (or after it); end is the full sum."""
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = part * BLOCK + tl.arange(0, BLOCK)
    state = (n * H + h.to(tl.int64)) * KK + column
    total = tl.load(begin + state)
    low, high = tl.load(first + n), tl.load(first + n + 1)
    for step in range(0, high - low, N):
        i = low + step + tl.arange(0, N)
        if REVERSE:
            i = high - 1 - step - tl.arange(0, N)
        mask = (i >= low) & (i < high)
        at = (i * H + h.to(tl.int64))[:, None] * KK + column[None, :]
        new = tl.load(x + at, mask[:, None], 0.0)
        upto = tl.cumsum(new, 0)
        tl.store(x + at, total[None, :] + upto - new, mask[:, None])
        total += tl.sum(new, 0)
    tl.store(end + state, total)


@triton.jit
def solve(M, u, x, out, start, size, anchor, H, K: tl.constexpr, R: tl.constexpr):
    """A_t x_t for every token of an anchor, A_t the inverse penalty after it: reads M, u and x once, writes out.

    Each token reads one row of u (or R) and of x; the next token's are on their way meanwhile. out may be x.
    """
    a, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, K)
    last = tl.load(anchor + a + 1) - 1
    begin, end = tl.load(start + tl.load(anchor + a)), tl.load(start + last) + tl.load(size + last)
    A = inverse(tl.load(M + slot(a, h, H, K, K)), K)
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
            Au = times(A, row)
            Au = Au / tl.sqrt(1.0 + tl.sum(Au * row, 0))
            A -= Au[:, None] * Au[None, :]
            row = next_u.to(tl.float32)
        tl.store(out + line * K + i, times(A, column))
        line = ahead


@triton.jit
def gain_scale(a, k, b, GAIN: tl.constexpr):
    """g = scale a for the gains; scale [C] is beta b over |a|, k . a or 1, and 0 for a key taken for zero."""
    if GAIN == "least_squares":
        scale = b
    else:
        s = tl.sum((a if GAIN == "unit" else k) * a, 1)
        some = tl.abs(s) > TINY
        s = tl.where(some, s, 1.0)
        scale = tl.where(some, b / (tl.sqrt(s) if GAIN == "unit" else s), 0.0)
    return scale
