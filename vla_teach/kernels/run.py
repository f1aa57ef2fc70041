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


TUNE = {}


def warps(name, dtype, *widths):
    """Warps and stages of a kernel, for these widths of its tiles."""
    wide, single = max(widths) == 128, dtype == torch.float32
    chosen = dict(num_warps=8 if wide else 4, num_stages=1 if wide and single else 2)
    if name == "solve":
        chosen = dict(num_warps=4 if wide else 1)
    if name in ("walk", "walk_back"):
        chosen = dict(num_warps=4, num_stages=1 if wide and single else 3)
    return chosen | TUNE.get(name, {})


def value_part(name, V):
    """How many of the values one program of a walk keeps."""
    return min(V, TUNE.get(name + "_part", 32))


# ---- the penalty ------------------------------------------------------------------------------------------------


def running_sums(x, begin, first, reverse=False):
    """x [m, H, K, K] becomes begin + the sum of the x before it in its sequence, or after it. Returns the full sums."""
    (N, H), KK, end = begin.shape[:2], x.shape[2] * x.shape[3], torch.empty_like(begin)
    penalty.prefix[N, H, KK // 256](x, begin, end, first, H, KK, 256, 16, reverse)
    return end


def penalties(tiles, u, M, P):
    """M at every anchor [m, H, K, K], and M after the last token."""
    _, H, R, K = u.shape
    m = len(tiles.anchor) - 1
    sums = M.new_empty(m, H, K, K)
    penalty.row_sums[m, H](
        u, sums, tiles.start, tiles.size, tiles.anchor, H, K, CHUNK, R, P, **warps("row_sums", u.dtype, K)
    )
    return sums, running_sums(sums, M, tiles.first_anchor)


def solve(tiles, M, u, x, out):
    """out = A_t x_t for every token, from M at every anchor."""
    _, H, R, K = u.shape
    penalty.solve[len(M), H](
        M, u, x, out, tiles.start, tiles.size, tiles.anchor, H, K, R, **warps("solve", u.dtype, K)
    )
    return out


# ---- the write --------------------------------------------------------------------------------------------------


def triangles(tiles, k, v, beta, a, c, gain, P, backward=False):
    """X (for the backward pass), X K and X V as slots; fills c."""
    (H, K), V, n = k.shape[1:], v.shape[2], len(tiles.start)
    XK, XV = a.new_empty(n, H, CHUNK, K), a.new_empty(n, H, CHUNK, V)
    X = a.new_empty(n if backward else 0, H, CHUNK, CHUNK)
    write.triangle[n, H](
        k, v, beta, a, c, X, XK, XV, tiles.start, tiles.size, H, K, V, CHUNK, gain, P, backward,
        **warps("triangle", a.dtype, K, V),
    )  # fmt: skip
    return X, XK, XV


def walk(tiles, a, c, XK, XV, S, P, keep=None, every=1):
    """Turns XV into the errors. Returns the state before every chunk, and that after the last."""
    (n, H, _, K), V, N, end = XK.shape, XV.shape[3], len(S), torch.empty_like(S)
    states, width = a.new_empty(n, H, K, V), value_part("walk", V)
    write.walk[N, H, V // width](
        a, c, XK, XV, S, end, states, keep, tiles.start, tiles.size, tiles.first, every, N, H, K, V, CHUNK, width,
        keep is not None, P, **warps("walk", a.dtype, K, V),
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
        a, c = solve(whole, sums, u, k, torch.empty_like(k, dtype=dtype)), torch.empty_like(beta, dtype=torch.float32)
        del sums
        _, XK, E = triangles(whole, k, v, beta, a, c, gain, P)
        keep = S.new_empty(len(parts), *S.mT.shape)
        states, S_end = walk(whole, a, c, XK, E, S.mT.contiguous(), P, keep, every)
        del XK
        o = torch.empty_like(v)
        write.outputs[len(whole.start), H](
            q, a, c, E, states, o, whole.start, whole.size, H, K, V, CHUNK, P, **warps("outputs", dtype, K, V)
        )
        ctx.save_for_backward(q, k, v, u, beta, M, a, c, keep)
        ctx.gain, ctx.lengths = gain, lengths
        return o, S_end.mT, M_end

    @staticmethod
    def backward(ctx, do, dS, dM):
        q, k, v, u, beta, M, a, c, keep = ctx.saved_tensors
        gain, (dtype, P), (H, K), V, R = ctx.gain, precision(q, k, v, u), k.shape[1:], v.shape[2], u.shape[2]
        do, dS, N = do.contiguous(), dS.mT.contiguous(), -dM.contiguous()
        whole, parts, _ = plan(ctx.lengths, H, k.device)
        dq, dk, dv, dbeta, du = (torch.empty_like(x) for x in (q, k, v, beta, u))
        # The gradient of a, then b = A_t da_t, then du share their memory where they fit: each chunk of one is read
        # before that of the next is written.
        da = du.view_as(a) if R == 1 and u.dtype == dtype else torch.empty_like(a)
        fixed = dict(K=K, V=V, C=CHUNK, P=P)
        for part, S in zip(reversed(parts), reversed(keep), strict=True):
            n, where, end, width = len(part.start), (part.start, part.size), torch.empty_like(dS), value_part("walk_back", V)
            X, XK, E = triangles(part, k, v, beta, a, c, gain, P, True)
            states, _ = walk(part, a, c, XK, E, S, P)
            XG, Z, later = XK, torch.empty_like(E), torch.empty_like(states)  # X K has served
            back.mirror[n, H](q, a, c, X, do, XG, Z, *where, H, **fixed, **warps("mirror", dtype, K, V))
            back.walk_back[len(dS), H, V // width](
                q, k, do, XG, Z, dv, dS, end, later, *where, part.first, H, **fixed, PART=width,
                **warps("walk_back", dtype, K, V),
            )  # fmt: skip
            back.write_gradients[n, H](
                q, k, beta, a, c, do, E, Z, states, later, dq, dk, da, dbeta, *where, H, **fixed, GAIN=gain,
                **warps("write_gradients", dtype, K, V),
            )  # fmt: skip
            dS = end
            del X, XK, E, states, XG, Z, later
        sums, _ = penalties(whole, u, M, P)
        b, m, where = solve(whole, sums, u, da, da), len(whole.anchor) - 1, (whole.start, whole.size, whole.anchor)
        back_sums = sums  # M has served
        penalty.pair_sums[m, H](a, b, back_sums, *where, H, K, CHUNK, P, **warps("pair_sums", dtype, K))
        N = running_sums(back_sums, N, whole.first_anchor, reverse=True)
        back.penalty_gradients[m, H](
            u, a, b, back_sums, du, dk, *where, H, K, CHUNK, R, P, **warps("penalty_gradients", dtype, K)
        )
        return dq, dk, dv, du, dbeta, dS.mT, -(N + N.mT) / 2, None, None
