"""What the kernels share: where a tile lies in memory, products in a given precision, two small inverses.

A program works on one chunk of C tokens of one head. Its inputs are rows of [tokens, H, D], H D apart. What one kernel
leaves for the next lies in slots, [chunks, H, rows, D]: each is one contiguous tile.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# ---- where a tile lies ------------------------------------------------------------------------------------------
# The place of a tile is a scalar added to the pointer; the offsets inside it are small and the same for every tile, so
# that a loop over tiles computes them once.


@triton.jit
def tile(x, line, step, rows: tl.constexpr, width: tl.constexpr, D: tl.constexpr):
    """Pointers [rows, width]: row i is line + i step of x, a matrix whose lines have D numbers."""
    return x + line * D + (tl.arange(0, rows) * step)[:, None] * D + tl.arange(0, width)[None, :]


@triton.jit
def token_tile(x, start, h, H, C: tl.constexpr, D: tl.constexpr):
    """Pointers [C, D] to the rows of tokens start to start + C in x [tokens, H, D]."""
    return tile(x, start * H + h.to(tl.int64), H, C, D, D)


@triton.jit
def token_column(x, start, h, H, C: tl.constexpr):
    """Pointers [C] to the numbers that tokens start to start + C have in x [tokens, H]."""
    return x + (start * H + h.to(tl.int64)) + tl.arange(0, C) * H


@triton.jit
def rank_tile(x, start, h, H, part, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Pointers [C, K] to rows part * C to part * C + C of a chunk in u [tokens, H, R, K], and their tokens [C]."""
    row = part * C + tl.arange(0, C)
    lines = (row // R) * (H * R) + row % R
    return x + (start * H + h.to(tl.int64)) * R * K + lines[:, None] * K + tl.arange(0, K)[None, :], row // R


@triton.jit
def slot(x, i, h, H, rows: tl.constexpr, D: tl.constexpr):
    """Pointers [rows, D] to the tile of (i, head) in x [n, H, rows, D]."""
    return tile(x, (i * H + h.to(tl.int64)) * rows, 1, rows, D, D)


@triton.jit
def part_slot(x, i, h, H, part, rows: tl.constexpr, width: tl.constexpr, D: tl.constexpr):
    """Pointers [rows, width] to columns part * width to part * width + width of that tile."""
    return tile(x + part * width, (i * H + h.to(tl.int64)) * rows, 1, rows, width, D)


# ---- arithmetic -------------------------------------------------------------------------------------------------


@triton.jit
def dot(x, y, P: tl.constexpr):
    """x y, summed in float32; P is how float32 factors are multiplied: "tf32", "tf32x3" or "ieee"."""
    if INTERPRETED:  # Triton's interpreter multiplies the bits of bfloat16 as whole numbers
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision=P)


@triton.jit
def fine_dot(x, y, P: tl.constexpr):
    """x y for a float32 tile x and a tile y of the inputs' kind: in bfloat16, x goes in as the sum of two tiles."""
    if y.dtype == tl.bfloat16:
        rough = x.to(tl.bfloat16)
        product = dot(rough, y, P) + dot((x - rough.to(tl.float32)).to(tl.bfloat16), y, P)
    else:
        product = dot(x, y, P)
    return product


@triton.jit
def fine_dot_right(x, y, P: tl.constexpr):
    """The same where y is the float32 tile."""
    if x.dtype == tl.bfloat16:
        rough = y.to(tl.bfloat16)
        product = dot(x, rough, P) + dot(x, (y - rough.to(tl.float32)).to(tl.bfloat16), P)
    else:
        product = dot(x, y, P)
    return product


@triton.jit
def times(A, x):
    """A x for a symmetric tile A [K, K]: sums over its first axis, which lie in one thread, not over its second."""
    return tl.sum(A * x[:, None], 0)


@triton.jit
def inverse(M, K: tl.constexpr):
    """The inverse of a symmetric positive definite tile [K, K], by K steps of the sweep operator.

    Step j exchanges the roles of x_j and y_j in y = M x; after all steps, x = -swept y. The tile stays symmetric,
    so that its row j serves as its column j, and no pivoting is needed.
    """
    i = tl.arange(0, K)
    for j in range(K):
        here = i == j
        row = times(M, here.to(tl.float32))
        p = tl.sum(tl.where(here, row, 0.0), 0)
        row = tl.where(here, -1.0, row)
        M = tl.where(here[:, None] | here[None, :], 0.0, M) - row[:, None] * (row[None, :] / p)
    return -M


@triton.jit
def unit_lower_inverse(N, C: tl.constexpr, P: tl.constexpr):
    """(I + N)^{-1} for a strictly lower triangular tile N [C, C].

    Blocks of 16 on the diagonal are inverted by substitution, all at once, one row a step. With D the inverse of the
    block diagonal, the rest is Q = (N below the blocks) D, and Q^4 = 0 for C = 64, so (I + Q)^{-1} = (I - Q)(I + Q^2).
    """
    B: tl.constexpr = 16
    n: tl.constexpr = C // B
    i = tl.arange(0, C)
    same = (i // B)[:, None] == (i // B)[None, :]
    eye = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    # the diagonal blocks, as [n, B, B]: entry [b, r, c] is N[b B + r, b B + c]
    D = tl.sum(tl.reshape(tl.where(same, N, 0.0), [n, B, n, B]), 2)
    r = tl.arange(0, B)
    for j in range(1, B):  # row j of the inverse is -N[j, :] (rows above), and 1 on the diagonal
        row = tl.sum(tl.where((r == j)[None, :, None], D, 0.0), 1)  # [n, B]
        above = tl.where((r[:, None] == r[None, :])[None, :, :], 1.0, D)
        above = tl.where((r < j)[None, :, None], above, 0.0)
        new = -tl.sum(tl.expand_dims(row, 2) * above, 1)
        D = tl.where((r == j)[None, :, None], tl.expand_dims(new, 1), D)
    D = tl.reshape(tl.broadcast_to(tl.expand_dims(D, 2), [n, B, n, B]), [C, C])
    D = tl.where(same, D, 0.0) + eye
    Q = dot(tl.where(same, 0.0, N), D, P)
    X = dot(D, eye - Q, P)
    return X + dot(X, dot(Q, Q, P), P)
