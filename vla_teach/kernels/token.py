"""Step 1: the paper's kernel. One program a head walks its tokens one by one, A and S in its registers.

Right, and slow: a GPU runs hundreds of programs at a time, and this has one for each head. For one token it is all that
is wanted: `vla_step` uses it to decode.
"""

import torch
import triton
import triton.language as tl

from vla_teach.checks import check_gain
from vla_teach.kernels.tiles import slot, times
from vla_teach.kernels.write import TINY


@triton.jit
def walk_tokens(
    q, k, v, u, beta, S_begin, A_begin, o, S_end, A_end, T, H,
    K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """Reads q, k, u and v of every token, 6 K + 2 V bytes in bfloat16, and writes its o, 2 V; S and A once a call."""
    n, h = tl.program_id(0), tl.program_id(1)
    i, j = tl.arange(0, K), tl.arange(0, V)
    S, A = tl.load(slot(S_begin, n, h, H, V, K)), tl.load(slot(A_begin, n, h, H, K, K))
    line = n.to(tl.int64) * T * H + h
    for _ in range(T):
        for r in tl.static_range(R):  # A_t from A_{t-1}: lem-sherman-morrison
            row = tl.load(u + (line * R + r) * K + i).to(tl.float32)
            w = times(A, row)
            w = w / tl.sqrt(1.0 + tl.sum(w * row, 0))
            A -= w[:, None] * w[None, :]
        key, value = tl.load(k + line * K + i).to(tl.float32), tl.load(v + line * V + j).to(tl.float32)
        g = times(A, key)
        if GAIN != "least_squares":
            size = tl.sum((g if GAIN == "unit" else key) * g, 0)
            some = tl.abs(size) > TINY
            size = tl.where(some, size, 1.0)
            if GAIN == "unit":
                size = tl.sqrt(size)
            g = tl.where(some, g / size, 0.0)
        g *= tl.load(beta + line).to(tl.float32)
        S += (value - tl.sum(S * key[None, :], 1))[:, None] * g[None, :]
        tl.store(o + line * V + j, tl.sum(S * tl.load(q + line * K + i).to(tl.float32)[None, :], 1))
        line += H
    tl.store(slot(S_end, n, h, H, V, K), S)
    tl.store(slot(A_end, n, h, H, K, K), A)


def token_by_token(q, k, v, u, beta, S, A, gain):
    """o [B, T, H, V] in the dtype of v, S and A after the last token; no gradients.

    q, k [B, T, H, K], v [B, T, H, V], u [B, T, H, R, K], beta [B, T, H]; S [B, H, V, K], A [B, H, K, K] in float32.
    """
    q, k, v, u, beta, S, A = (x.contiguous() for x in (q, k, v, u, beta, S, A))
    (B, T, H, K), V, R = k.shape, v.shape[3], u.shape[3]
    o, S_end, A_end = torch.empty_like(v), torch.empty_like(S), torch.empty_like(A)
    warps = 16 if K * V > 128 * 64 else 8 if K * max(K, V) > 64 * 64 else 4
    walk_tokens[B, H](q, k, v, u, beta, S, A, o, S_end, A_end, T, H, K, V, R, gain, num_warps=warps)
    return o, S_end, A_end


def vla_token(q, k, v, u, beta=None, lambda_0=0.1, gain="unit"):
    """The paper's kernel: o [B, T, H, V] from an empty memory. Arguments and errors as for `vla_teach.ops.vla`."""
    from vla_teach.ops import check_backend_fits, start_state
    from vla_teach.tensor_checks import check_tokens

    tokens, dtype = check_tokens(q, k, v, u, beta, ("B", "T", "H"), None)
    check_backend_fits(tokens, dtype)
    S, A = start_state(len(k), k.shape[2], v.shape[3], k.shape[3], lambda_0, dtype, k.device)
    with torch.no_grad():
        return token_by_token(*tokens, S, A, check_gain(gain))[0]
