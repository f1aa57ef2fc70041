"""The kernels put together: one forward and one backward pass, as an autograd.Function."""

import torch

from vla_teach.kernels import backward as back
from vla_teach.kernels import solve as penalty
from vla_teach.kernels import write
from vla_teach.kernels.plan import CHUNK, plan


def precision(*tensors):
    """The dtype that products of these are taken in, and how float32 factors are multiplied."""
    dtypes = {x.dtype for x in tensors}
    if dtypes == {torch.bfloat16}:
        return torch.bfloat16, "tf32"
    return torch.float32, "tf32x3" if torch.float32 in dtypes else "tf32"  # tf32 has all digits of float16


def warps(*widths):
    return dict(num_warps=4 if max(widths) < 128 else 8)


# ---- the penalty ------------------------------------------------------------------------------------------------


def running_sums(x, begin, first, reverse=False):
    """x [n, H, K, K] becomes begin + the sum of the x before it in its sequence, or after it. Returns the full sums."""
    (N, H), KK, end = begin.shape[:2], x.shape[2] * x.shape[3], torch.empty_like(begin)
    penalty.prefix[N, H, KK // 256](x, begin, end, first, H, KK, 256, 16, reverse)
    return end


def penalties(tiles, u, M, P):
    """M at every anchor [m, H, K, K], and M after the last token."""
    _, H, R, K = u.shape
    m = len(tiles.anchor) - 1
    sums = u.new_empty(m, H, K, K, dtype=torch.float32)
    penalty.row_sums[m, H](u, sums, tiles.start, tiles.size, tiles.anchor, H, K, CHUNK, R, P, **warps(K))
    return sums, running_sums(sums, M, tiles.first_anchor)


def solve(tiles, M, u, x, out):
    """out = A_t x_t for every token, from M at every anchor."""
    _, H, R, K = u.shape
    few = dict(num_warps=1 if K < 128 else 4)
    penalty.solve[len(M), H](M, u, x, out, tiles.start, tiles.size, tiles.anchor, H, K, R, **few)
    return out


# ---- the write --------------------------------------------------------------------------------------------------


def triangles(tiles, k, v, beta, a, gain, P, backward=False):
    """g, X (for the backward pass), X K and X V as slots."""
    (H, K), V, n = k.shape[1:], v.shape[2], len(tiles.start)
    g, XK, XV = (a.new_empty(n, H, CHUNK, width) for width in (K, K, V))
    X = a.new_empty(n if backward else 0, H, CHUNK, CHUNK)
    write.triangle[n, H](
        k, v, beta, a, g, X, XK, XV, tiles.start, tiles.size, H, K, V, CHUNK, gain, P, backward, **warps(K, V)
    )
    return g, X, XK, XV


def walk(tiles, g, XK, XV, S, P, keep=None, every=1):
    """Turns XV into the errors. Returns the state before every chunk, and that after the last."""
    (n, H, _, K), V, N, end = XK.shape, XV.shape[3], len(S), torch.empty_like(S)
    states, width = g.new_empty(n, H, K, V), min(V, 32)
    write.walk[N, H, V // width](
        XK, XV, g, S, end, states, keep, tiles.first, every, N, H, K, V, CHUNK, width, keep is not None, P,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return states, end


class VLA(torch.autograd.Function):
    """q, k [tokens, H, K], v [tokens, H, V], u [tokens, H, R, K], beta [tokens, H], S, M -> o, S, M after the last.

    S [N, H, V, K] and M [N, H, K, K] in float32; lengths: a tuple with those of the N sequences.
    """

    @staticmethod
    def forward(ctx, q, k, v, u, beta, S, M, gain, lengths):
        q, k, v, u, beta, M = (x.contiguous() for x in (q, k, v, u, beta, M))
        dtype, P = precision(q, k, v, u)
        H, K, V = *k.shape[1:], v.shape[2]
        whole, parts, every = plan(lengths, H, k.device)
        sums, M_end = penalties(whole, u, M, P)
        a = solve(whole, sums, u, k, torch.empty_like(k, dtype=dtype))
        del sums
        g, _, XK, E = triangles(whole, k, v, beta, a, gain, P)
        keep = S.new_empty(len(parts), *S.mT.shape)
        states, S_end = walk(whole, g, XK, E, S.mT.contiguous(), P, keep, every)
        del XK
        o = torch.empty_like(v)
        write.outputs[len(whole.start), H](
            q, g, E, states, o, whole.start, whole.size, H, K, V, CHUNK, P, **warps(K, V)
        )
        ctx.save_for_backward(q, k, v, u, beta, M, a, keep)
        ctx.gain, ctx.lengths = gain, lengths
        return o, S_end.mT, M_end

    @staticmethod
    def backward(ctx, do, dS, dM):
        q, k, v, u, beta, M, a, keep = ctx.saved_tensors
        gain, (dtype, P), (H, K), V, R = ctx.gain, precision(q, k, v, u), k.shape[1:], v.shape[2], u.shape[2]
        do, dS = do.contiguous(), dS.mT.contiguous()
        whole, parts, _ = plan(ctx.lengths, H, k.device)
        dq, dk, dv, dbeta, da = (torch.empty_like(x) for x in (q, k, v, beta, a))
        fixed = dict(K=K, V=V, C=CHUNK, P=P)
        for part, S in zip(reversed(parts), reversed(keep), strict=True):
            where, n = (part.start, part.size), len(part.start)
            g, X, XK, E = triangles(part, k, v, beta, a, gain, P, True)
            states, _ = walk(part, g, XK, E, S, P)
            XG, Z, later = XK, torch.empty_like(E), torch.empty_like(states)  # X K has served
            back.mirror[n, H](q, g, X, do, XG, Z, *where, H, **fixed, **warps(K, V))
            end, width = torch.empty_like(dS), min(V, 32)
            back.walk_back[len(dS), H, V // width](
                q, k, do, XG, Z, dv, dS, end, later, *where, part.first, H, **fixed, PART=width, num_warps=4,
                num_stages=3,
            )  # fmt: skip
            dS = end
            back.write_gradients[n, H](
                q, k, beta, a, g, do, E, Z, states, later, dq, dk, da, dbeta, *where, H, **fixed, GAIN=gain,
                **warps(K, V),
            )  # fmt: skip
            del g, X, XK, E, states, XG, Z, later
        sums, _ = penalties(whole, u, M, P)
        b = solve(whole, sums, u, da, da)
        du = b if R == 1 and u.dtype == dtype else torch.empty_like(u)  # b of a chunk is read before its du is written
        N = -dM.contiguous()
        for part in reversed(parts):
            n, where = len(part.start), (part.start, part.size)
            sums = S.new_empty(n, H, K, K)
            back.pair_sums[n, H](a, b, dk, sums, *where, H, K, CHUNK, P, **warps(K))
            N = running_sums(sums, N, part.first, reverse=True)
            back.penalty_gradients[n, H](u, a, b, sums, du, *where, H, K, CHUNK, R, P, **warps(K))
        return dq, dk, dv, du.view_as(u), dbeta, dS.mT, -(N + N.mT) / 2, None, None
