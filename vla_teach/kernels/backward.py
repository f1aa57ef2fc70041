"""Step 5: the gradients in closed form. The write's backward is the same walk in reverse, with key and gain exchanged;
the solve's is one more solve, with the gradient of a in the place of k, and two linear attentions in reverse.
"""

import triton
import triton.language as tl

from vla_teach.kernels.solve import gain_scale
from vla_teach.kernels.tiles import dot, slot, token_numbers, token_rows
from vla_teach.kernels.write import load_tokens, part_slot


@triton.jit
def mirror(
    q, g, X, do, XG, Z, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """X^T G and X^T tril(Q G^T)^T dO: reads q, g, X and do, writes the two."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    G, XT = tl.load(g + slot(chunk, h, H, C, K)), tl.trans(tl.load(X + slot(chunk, h, H, C, C)))
    Q = load_tokens(q, start, size, chunk, h, H, K, C, G)
    dO = load_tokens(do, start, size, chunk, h, H, V, C, G)
    i = tl.arange(0, C)
    scores = tl.where(i[:, None] <= i[None, :], dot(G, tl.trans(Q), P), 0.0).to(G.dtype)
    tl.store(XG + slot(chunk, h, H, C, K), dot(XT, G, P))
    tl.store(Z + slot(chunk, h, H, C, V), dot(XT, dot(scores, dO, P).to(G.dtype), P))


@triton.jit
def walk_back(
    q, k, do, XG, Z, dv, dS_end, dS_begin, dS_chunk, start, size, first, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dS after every chunk, from the last to the first; Z becomes the gradient of the errors' right side, which is dV.

    Reads q, k, do, X^T G and Z, writes Z, dv and dS.
    """
    n, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dS = tl.load(dS_end + part_slot(n, h, H, K, V, part, PART))
    low, high = tl.load(first + n), tl.load(first + n + 1)
    token_0 = tl.load(start + low, high > low, 0)
    token_1 = tl.load(start + high - 1, high > low, 0) + tl.load(size + high - 1, high > low, 0)
    for step in range(0, high - low):
        chunk = high - 1 - step
        rows = tl.load(XG + slot(chunk, h, H, C, K))
        begin = token_0 + (chunk - low) * C
        at, mask = token_rows(begin, token_1 - begin, h, H, K, C, 1, 0)
        Q, keys = tl.load(q + at, mask, 0.0).to(rows.dtype), tl.load(k + at, mask, 0.0).to(rows.dtype)
        line = (begin + tl.arange(0, C)) * H + h.to(tl.int64)
        token = line[:, None] * V + part * PART + tl.arange(0, PART)[None, :]
        dO = tl.load(do + token, mask, 0.0).to(rows.dtype)
        at = part_slot(chunk, h, H, C, V, part, PART)
        later = dS.to(rows.dtype)
        tl.store(dS_chunk + part_slot(chunk, h, H, K, V, part, PART), later)
        z = (tl.load(Z + at).to(tl.float32) + dot(rows, later, P)).to(rows.dtype)
        tl.store(Z + at, z)
        tl.store(dv + token, z, mask)
        dS += dot(tl.trans(Q), dO, P) - dot(tl.trans(keys), z, P)
    tl.store(dS_begin + part_slot(n, h, H, K, V, part, PART), dS)


@triton.jit
def write_gradients(
    q, k, beta, a, g, do, E, Z, S_chunk, dS_chunk, dq, dk, da, dbeta, start, size, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GAIN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients of q, beta and a, and of k as far as the write goes: reads all that comes before them here."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    at_k, at_v = slot(chunk, h, H, C, K), slot(chunk, h, H, C, V)
    begin, tokens = tl.load(start + chunk), tl.load(size + chunk)
    i = tl.arange(0, C)
    at, mask = token_rows(begin, tokens, h, H, K, C, 1, 0)
    G, errors, z = tl.load(g + at_k), tl.load(E + at_v), tl.load(Z + at_v)
    Q = load_tokens(q, start, size, chunk, h, H, K, C, G)
    keys = load_tokens(k, start, size, chunk, h, H, K, C, G)
    dO = load_tokens(do, start, size, chunk, h, H, V, C, G)
    S = tl.trans(tl.load(S_chunk + slot(chunk, h, H, K, V)))  # [V, K]
    dS = tl.trans(tl.load(dS_chunk + slot(chunk, h, H, K, V)))
    read = tl.where(i[:, None] >= i[None, :], dot(dO, tl.trans(errors), P), 0.0).to(G.dtype)  # gradient of tril(Q G^T)
    wrote = tl.where(i[:, None] > i[None, :], dot(z, tl.trans(errors), P), 0.0).to(G.dtype)  # minus that of stril(K G^T)
    tl.store(dq + at, dot(dO, S, P) + dot(read, G, P), mask)
    dK = -dot(z, S, P) - dot(wrote, G, P)
    dG = dot(errors, dS, P) + dot(tl.trans(read), Q, P) - dot(tl.trans(wrote), keys, P)

    number, some = token_numbers(begin, tokens, h, H, C)
    b = tl.load(beta + number, some, 0.0).to(tl.float32)
    x, solved = keys.to(tl.float32), tl.load(a + at, mask, 0.0).to(tl.float32)
    scale = gain_scale(solved, x, b * 0 + 1, GAIN)  # g = b scale a
    along = tl.sum(solved * dG, 1)
    tl.store(dbeta + number, scale * along, some)
    dA = (b * scale)[:, None] * dG
    if GAIN == "unit":
        dA -= (b * scale * scale * scale * along)[:, None] * solved
    elif GAIN == "interpolate":
        less = (b * scale * scale * along)[:, None]
        dA -= less * x
        dK -= less * solved
    tl.store(da + at, dA, mask)
    tl.store(dk + at, dK, mask)


@triton.jit
def pair_sums(a, b, k_gradient, out, start, size, H, K: tl.constexpr, C: tl.constexpr, P: tl.constexpr):
    """Sum of a b^T over the tokens of a chunk: reads both once, writes [K, K]. dk, which lacks b still, gets it."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    at, mask = token_rows(tl.load(start + chunk), tl.load(size + chunk), h, H, K, C, 1, 0)
    x, y = tl.load(a + at, mask, 0.0), tl.load(b + at, mask, 0.0)
    tl.store(out + slot(chunk, h, H, K, K), dot(tl.trans(x), y, P))
    tl.store(k_gradient + at, tl.load(k_gradient + at, mask).to(tl.float32) + y, mask)


@triton.jit
def penalty_gradients(
    u, a, b, N, du, start, size, H,
    K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """du_s = -(sum over t >= s of b_t a_t^T + a_t b_t^T) u_s, N the sum of a_t b_t^T over later chunks.

    Reads u, a, b and N, writes du, which may be b where a token has one row.
    """
    chunk, h = tl.program_id(0), tl.program_id(1)
    begin, tokens = tl.load(start + chunk), tl.load(size + chunk)
    at, mask = token_rows(begin, tokens, h, H, K, C, 1, 0)
    x, y = tl.load(a + at, mask, 0.0), tl.load(b + at, mask, 0.0)
    later = tl.load(N + slot(chunk, h, H, K, K))
    later = (later + tl.trans(later)).to(x.dtype)
    token = tl.arange(0, C)
    for part in range(R):
        line, mask = token_rows(begin, tokens, h, H, K, C, R, part)
        U = tl.load(u + line, mask, 0.0).to(x.dtype)
        after = token[None, :] >= ((part * C + token) // R)[:, None]
        gradient = dot(U, later, P)
        gradient += dot(tl.where(after, dot(U, tl.trans(x), P), 0.0).to(x.dtype), y, P)
        gradient += dot(tl.where(after, dot(U, tl.trans(y), P), 0.0).to(x.dtype), x, P)
        tl.store(du + line, -gradient, mask)
