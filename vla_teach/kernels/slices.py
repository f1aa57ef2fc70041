"""What a slice of a sequence does to any state before it, and to any gradient after it: two walks that keep nothing.

A slice maps the state S before it to S P + Q (prop-slices in the book), and the gradient G of the state after it to
G P^T + D. So ranks that hold slices of one sequence can exchange Q, P and D, and then walk with the true states and the
true gradients, as one device does. Both walks are those of `write` and `backward`, with other columns: `ends` walks V
columns that start as 0 beside K that start as the identity and have no values, all at the same time.
"""

import triton
import triton.language as tl

from vla_teach.kernels.tiles import (
    dot,
    fine_dot_right,
    part_slot,
    slot,
    tile,
    token_column,
    token_tile,
)
from vla_teach.kernels.write import span


@triton.jit
def ends(
    a, c, XK, XV, out, start, size, first, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Q and P beside each other, transposed: out [N, H, K, V + K]. Reads a, c and X K, 4 K bytes a program, and X V."""
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = part * PART + tl.arange(0, PART)
    S = tl.where(tl.arange(0, K)[:, None] + V == column[None, :], 1.0, 0.0)
    i, low, high = tl.arange(0, C), tl.load(first + n), tl.load(first + n + 1)
    token_0, token_1 = span(start, size, low, high)
    has_values = part * PART < V
    for chunk in range(low, high):
        begin = token_0 + (chunk - low) * C
        mask = i < token_1 - begin
        rows, at = tl.load(slot(XK, chunk, h, H, C, K)), part_slot(XV, chunk, h, H, part, C, PART, V)
        error = tl.load(at, has_values, 0.0).to(tl.float32) - dot(rows, S.to(rows.dtype), P)
        error = error * tl.load(token_column(c, begin, h, H, C), mask, 0.0)[:, None]
        A = tl.load(token_tile(a, begin, h, H, C, K), mask[:, None], 0.0)
        S += fine_dot_right(tl.trans(A), error, P)
    tl.store(part_slot(out, n, h, H, part, K, PART, V + K), S)


@triton.jit
def starts(
    q, k, do, XG, Z, D, start, size, first, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before some chunks, in the place of that after them in D [N, H, K, V].

    Reads q, k and X^T D A, 6 K bytes a program, and do and Z, 4 V.
    """
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dS = tl.load(part_slot(D, n, h, H, part, K, PART, V))
    i, low, high = tl.arange(0, C), tl.load(first + n), tl.load(first + n + 1)
    token_0, token_1 = span(start, size, low, high)
    for step in range(0, high - low):
        chunk = high - 1 - step
        begin = token_0 + (chunk - low) * C
        mask = (i < token_1 - begin)[:, None]
        rows, at = tl.load(slot(XG, chunk, h, H, C, K)), part_slot(Z, chunk, h, H, part, C, PART, V)
        z = tl.load(at).to(tl.float32) + dot(rows, dS.to(rows.dtype), P)
        line = begin * H + h.to(tl.int64)
        dO = tl.load(tile(do + part * PART, line, H, C, PART, V), mask, 0.0).to(rows.dtype)
        Q = tl.load(token_tile(q, begin, h, H, C, K), mask, 0.0).to(rows.dtype)
        keys = tl.load(token_tile(k, begin, h, H, C, K), mask, 0.0).to(rows.dtype)
        dS += dot(tl.trans(Q), dO, P) - fine_dot_right(tl.trans(keys), z, P)
    tl.store(part_slot(D, n, h, H, part, K, PART, V), dS)
