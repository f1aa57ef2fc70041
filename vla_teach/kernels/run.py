"""The kernels put together: one forward and one backward pass, as an autograd.Function."""

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from vla_teach.kernels import backward as back
from vla_teach.kernels import slices, write
from vla_teach.kernels import solve as penalty
from vla_teach.kernels.plan import CHUNK, plan


def precision(*tensors):
    """The dtype that products of these are taken in, and how float32 factors are multiplied."""
    return (torch.bfloat16, "tf32") if {x.dtype for x in tensors} == {torch.bfloat16} else (torch.float32, "tf32x3")


VALUES = 16  # of the values, how many one program of a walk keeps: the fewer, the more programs


def launch(name, dtype, *widths):
    """num_warps and num_stages of a kernel for tiles of these widths: the fastest of those that are right on an H100.

    Not 8 warps for a walk: Triton 3.6 then makes matrix instructions that read past their tile.
    """
    wide, single = max(widths) == 128, dtype == torch.float32
    walks = name in ("walk", "walk_back", "ends", "starts")
    if name == "solve":  # A fills the registers of this many warps
        return dict(num_warps=4 if wide else 1)
    many = (single and not walks) or (wide and name in ("write_gradients", "penalty_gradients"))
    return dict(num_warps=8 if many else 4, num_stages=1 if single else 4 if walks else 2)


# ---- the penalty ------------------------------------------------------------------------------------------------


def running_sums(x, begin, first, reverse=False):
    """x [m, H, K, K] becomes begin + the sum of the x before it in its sequence, or after it. Returns the full sums."""
    (N, H), KK, end = begin.shape[:2], x.shape[2] * x.shape[3], torch.empty_like(begin)
    penalty.prefix[N, H, KK // 256](x, begin, end, first, H, KK, 256, 16, reverse)
    return end


def penalties(tiles, u, M, dtype, P):
    """M at every anchor [m, H, K, K], and M after the last token."""
    _, H, R, K = u.shape
    m = len(tiles.anchor) - 1
    sums = M.new_empty(m, H, K, K)
    penalty.row_sums[m, H](
        u, sums, tiles.start, tiles.size, tiles.anchor, H, K, CHUNK, R, P, **launch("row_sums", dtype, K)
    )
    return sums, running_sums(sums, M, tiles.first_anchor)


def solve(tiles, M, u, x, out, also=None):
    """out = A_t x_t for every token, from M at every anchor; added to `also`, too, if given."""
    _, H, R, K = u.shape
    penalty.solve[len(M), H](
        M,
        u,
        x,
        out,
        also,
        tiles.start,
        tiles.size,
        tiles.anchor,
        H,
        K,
        R,
        also is not None,
        **launch("solve", u.dtype, K),
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
        **launch("triangle", a.dtype, K, V),
    )  # fmt: skip
    return X, XK, XV


def walk(tiles, a, c, XK, XV, states, rows, P, keep=None):
    """Turns XV into the errors. Returns the state before every chunk, and that after the last if `keep` is given.

    states: kept ones, of which the walk of a sequence begins with that in its row; keep: see `plan`, to fill the rest.
    """
    (n, H, _, K), V, N = XK.shape, XV.shape[3], len(rows)
    S, end = a.new_empty(n, H, K, V), states.new_empty(N if keep is not None else 0, H, K, V)
    write.walk[N, H, V // VALUES](
        a, c, XK, XV, states, rows, end, S, keep, tiles.start, tiles.size, tiles.first, H, K, V, CHUNK, VALUES,
        keep is not None, P, **launch("walk", a.dtype, K, V),
    )  # fmt: skip
    return S, end


def slice_map(tiles, a, c, XK, XV, P):
    """(Q, P) of every sequence's tokens, [N, H, V, K] and [N, H, K, K]: a state S before them becomes S P + Q."""
    (_, H, _, K), V, N = XK.shape, XV.shape[3], len(tiles.first) - 1
    out = c.new_empty(N, H, K, V + K)
    slices.ends[N, H, (V + K) // VALUES](
        a, c, XK, XV, out, tiles.start, tiles.size, tiles.first, H, K, V, CHUNK, VALUES, P,
        **launch("ends", a.dtype, K, V),
    )  # fmt: skip
    return out.mT.split([V, K], 2)


def slice_gradient(parts, q, k, v, beta, a, c, do, gain, P):
    """D [N, H, V, K], what the answers to these tokens add to the gradient of the state before them."""
    (H, K), V, N = k.shape[1:], v.shape[2], len(parts[0].first) - 1
    D = c.new_zeros(N, H, K, V)
    for part in reversed(parts):
        where = part.start, part.size
        X, XG, Z = triangles(part, k, v, beta, a, c, gain, P, True)  # X K and X V are not needed: their room is
        back.mirror[len(part.start), H](
            q, a, c, X, do, XG, Z, *where, H, K, V, CHUNK, P, **launch("mirror", a.dtype, K, V)
        )
        slices.starts[N, H, V // VALUES](
            q, k, do, XG, Z, D, *where, part.first, H, K, V, CHUNK, VALUES, P, **launch("starts", a.dtype, K, V)
        )
    return D.mT


class VLA(torch.autograd.Function):
    """q, k [tokens, H, K], v [tokens, H, V], u [tokens, H, R, K], beta [tokens, H], S, M -> o, S, M after the last.

    S [N, H, V, K] and M [N, H, K, K] in float32; lengths: a tuple with those of the N sequences.
    others: None, or where the tokens are slices of longer sequences what knows the other slices (see
    `vla_teach.distributed.Others`). S is then the state before the first slice, and that after the last comes back.
    """

    @staticmethod
    def forward(ctx, q, k, v, u, beta, S, M, gain, lengths, others=None):
        q, k, v, u, beta, M = (x.contiguous() for x in (q, k, v, u, beta, M))
        dtype, P = precision(q, k, v, u)
        H, K, V = *k.shape[1:], v.shape[2]
        whole, _, keep, rows, kept = plan(lengths, H, k.device)
        sums, M_end = penalties(whole, u, M, dtype, P)
        a, c = solve(whole, sums, u, k, torch.empty_like(k, dtype=dtype)), torch.empty_like(beta, dtype=torch.float32)
        del sums
        _, XK, E = triangles(whole, k, v, beta, a, c, gain, P)
        if others is not None:
            S = others.before(S, *slice_map(whole, a, c, XK, E, P))
        begins = S.new_empty(kept, H, K, V)
        begins[rows[0]] = S.mT
        states, S_end = walk(whole, a, c, XK, E, begins, rows[0], P, keep)
        del XK
        o = torch.empty_like(v)
        write.outputs[len(whole.start), H](
            q, a, c, E, states, o, whole.start, whole.size, H, K, V, CHUNK, P, **launch("outputs", dtype, K, V)
        )
        ctx.save_for_backward(q, k, v, u, beta, M, a, c, begins)
        ctx.gain, ctx.lengths, ctx.others = gain, lengths, others
        return o, S_end.mT if others is None else others.last, M_end

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS, dM):
        q, k, v, u, beta, M, a, c, begins = ctx.saved_tensors
        gain, (dtype, P), (H, K), V, R = ctx.gain, precision(q, k, v, u), k.shape[1:], v.shape[2], u.shape[2]
        do, N = do.contiguous(), -dM.contiguous()
        whole, parts, _, rows, _ = plan(ctx.lengths, H, k.device)
        if ctx.others is not None:
            dS, dS_first = ctx.others.after(dS, slice_gradient(parts, q, k, v, beta, a, c, do, gain, P))
        dS = dS.mT.clone(memory_format=torch.contiguous_format)
        dq, dk, dv, dbeta, du = (torch.empty_like(x) for x in (q, k, v, beta, u))
        # The gradient of a, then b = A_t da_t, then du share their memory where they fit: each chunk of one is read
        # before that of the next is written.
        da = du.view_as(a) if R == 1 and u.dtype == dtype else torch.empty_like(a)
        fixed = dict(K=K, V=V, C=CHUNK, P=P)
        for part, begin in zip(reversed(parts), reversed(rows), strict=True):
            n, where = len(part.start), (part.start, part.size)
            X, XK, E = triangles(part, k, v, beta, a, c, gain, P, True)
            states, _ = walk(part, a, c, XK, E, begins, begin, P)
            XG, Z, later = XK, torch.empty_like(E), torch.empty_like(states)  # X K has served
            back.mirror[n, H](q, a, c, X, do, XG, Z, *where, H, **fixed, **launch("mirror", dtype, K, V))
            back.walk_back[len(dS), H, V // VALUES](
                q, k, do, XG, Z, dv, dS, later, *where, part.first, H, **fixed, PART=VALUES,
                **launch("walk_back", dtype, K, V),
            )  # fmt: skip
            back.write_gradients[n, H](
                q, k, beta, a, c, do, E, Z, states, later, dq, dk, da, dbeta, *where, H, **fixed, GAIN=gain,
                **launch("write_gradients", dtype, K, V),
            )  # fmt: skip
            del X, XK, E, states, XG, Z, later
        sums, _ = penalties(whole, u, M, dtype, P)
        b, m, where = solve(whole, sums, u, da, da, dk), len(sums), (whole.start, whole.size, whole.anchor)
        penalty.pair_sums[m, H](a, b, sums, *where, H, K, CHUNK, P, **launch("pair_sums", dtype, K))  # M has served
        N = running_sums(sums, N, whole.first_anchor, reverse=True)
        back.penalty_gradients[m, H, R](
            u, a, b, sums, du, *where, H, K, CHUNK, R, P, **launch("penalty_gradients", dtype, K)
        )
        dS = dS.mT if ctx.others is None else dS_first
        return dq, dk, dv, du, dbeta, dS, -(N + N.mT) / 2, None, None, None


def vla_tokens(q, k, v, u, beta, S, M, gain, lengths=None, others=None):
    """o [B, T, H, V], S [N, H, V, K] and M [N, H, K, K] after the last token; all is differentiable once.

    q, k [B, T, H, K], v [B, T, H, V], u [B, T, H, R, K], beta [B, T, H] in any of float32, bfloat16 and float16, S and
    M in float32; lengths: of the N sequences that B = 1 row packs, else every row is one. others: see VLA.
    """
    B, T, _, K = k.shape
    V = v.shape[3]
    # Triton 3.6 makes wrong matrix instructions for tiles 16 wide, and for values narrower than 64 beside wide keys.
    # So narrow heads are filled up: zeros change no result.
    wide = max(K, 32)
    high = max(V, min(wide, 64))
    if wide > K:
        q, k, u = (pad(x, (0, wide - K)) for x in (q, k, u))
        S, M = pad(S, (0, wide - K)), pad(M, (0, wide - K, 0, wide - K))
        M = M + torch.diag((torch.arange(wide, device=M.device) >= K).to(M.dtype))
    if high > V:
        v, S = pad(v, (0, high - V)), pad(S, (0, 0, 0, high - V))
    flat = (x.flatten(0, 1) for x in (q, k, v, u, beta))
    o, S, M = VLA.apply(*flat, S, M, gain, tuple(lengths) if lengths else (T,) * B, others)
    return o[..., :V].unflatten(0, (B, T)), S[..., :V, :K], M[..., :K, :K]
