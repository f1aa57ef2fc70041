"""The memory as a PyTorch operation: batched, differentiable, with several back ends that agree.

Shapes, as in the field's kernels: q, k [B, T, H, K]; v, o [B, T, H, V]; u [B, T, H, K] or [B, T, H, R, K];
beta [B, T, H]. States: S [N, H, V, K], A [N, H, K, K] with N sequences.
Read `vla_teach.reference` first; this file says the same for many heads at once. It needs PyTorch.
"""

import logging
from functools import cache
from importlib.util import find_spec
from os import environ
from typing import TYPE_CHECKING, Literal, NamedTuple

try:
    import torch
except ImportError as error:
    raise ImportError(
        "vla_teach.ops needs PyTorch, which is not installed; try: make torch, or pip install torch"
    ) from error
from torch import Tensor
from torch.linalg import solve_triangular
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vla_teach.checks import Gain, check_gain
from vla_teach.tensor_checks import (
    check_lambda,
    check_sequences,
    check_state,
    check_state_numbers,
    check_tokens,
    looked_at,
)

if TYPE_CHECKING:  # not every build of PyTorch has it
    from torch.distributed import ProcessGroup

CHUNK = 64  # tokens a chunk
Backend = Literal["auto", "recurrent", "chunk", "triton"]


class State(NamedTuple):
    """What the memories of N sequences and H heads carry on. Hand it back as `initial_state`, or to `vla_step`."""

    # A and not M, although the chunk form sums M and has to invert at both ends of a call. Decoding wants A:
    # Sherman-Morrison takes K^2 steps a token, a solve with M takes K^3. And an M that grows token by token in float32
    # is useless after 10^6 tokens (gains off by half, or not positive definite), when A's gains are off by 1e-3 at
    # most where keys fill the space. Where they keep to a few directions A wears out too: by 5 in 100 after 10^5
    # tokens. For such streams start from a float64 State: all is then computed in float64.
    S: Tensor  # [N, H, V, K]  the memory itself
    A: Tensor  # [N, H, K, K]  inverse penalty, symmetric


# ---- the operation ----------------------------------------------------------------------------------------------


def vla(
    q: Tensor, k: Tensor, v: Tensor, u: Tensor, beta: Tensor | None = None, lambda_0: float | Tensor = 0.1,
    gain: Gain = "unit", initial_state: State | None = None, output_final_state: bool = False,
    cu_seqlens: Tensor | None = None, backend: Backend = "auto", group: "ProcessGroup | None" = None,
) -> tuple[Tensor, State | None]:  # fmt: skip
    """Variational Linear Attention of B sequences and H heads (arXiv 2605.11196, Appendix A; chunk form: this book).

    q, k [B, T, H, K], v [B, T, H, V]: queries, keys (used as given) and values.
    u [B, T, H, K] or [B, T, H, R, K]: penalty directions; M_t = lambda_0 I + sum of u u^T so far.
    beta [B, T, H] in [0, 1] or None: the share of the error that is written, None for all.
    lambda_0: above 0, a number or a tensor [H]; not used with an initial_state, which brings its own A.
    gain: "unit", "interpolate" or "least_squares", as in `vla_teach.reference.write_gain`.
    initial_state: a State with N sequences; None for S = 0, A = I / lambda_0.
    cu_seqlens: whole numbers [N + 1] from 0 to T, where B = 1 row packs N sequences end to end; else N = B.
    backend: "recurrent" (token by token), "chunk" (the same in matrix products), "triton" (GPU kernels: K and V of 16,
        32, 64 or 128, no float64, one derivative), or "auto" for the fastest that can run.
    group: a process group of torch.distributed, whose ranks hold the sequence in slices: each is called with its own
        part of the T tokens, in the order of the ranks, of any length from 1. All else must be the same on all ranks.
        o is that of the slice; the State is that after the whole sequence, on every rank. cu_seqlens then names all N
        sequences on every rank, those without a token here as empty ([.., n, n, ..]): where one crosses a border, each
        of its ranks has its part (see `vla_teach.distributed.slice_bounds`).
        What is differentiated is the sum of the ranks' losses, once: all ranks call backward, or none. Gradients of
        what all ranks share, lambda_0 and initial_state like any weight, are each rank's share: add them up.
        Raises ValueError on every rank where one does not fit, RuntimeError where one is lost; for the time until
        then, and for what travels, see `vla_teach.distributed`.

    Returns (o [B, T, H, V] in the dtype of v, State, or None unless output_final_state). All is differentiable.
    Computed in float64 where q, k, v, u or the state has it, else in float32; "triton" multiplies in bfloat16 where q,
    k, v and u all have it, and keeps M, A and S in float32.
    Raises ValueError or TypeError naming the argument that does not fit. On a GPU only shapes, dtypes and devices are
    checked: to look at the numbers would make every call wait for the device. NaN in then gives NaN out.
    """
    if group is not None:
        from vla_teach.distributed import vla_over_ranks

        return vla_over_ranks(
            q, k, v, u, beta, lambda_0, gain, initial_state, output_final_state, cu_seqlens, backend, group
        )
    gain = check_gain(gain)
    tokens, dtype = check_tokens(q, k, v, u, beta, ("B", "T", "H"), initial_state)
    backend = choose_backend(backend, tokens, dtype)
    lengths = check_sequences(cu_seqlens, k)
    shape = len(lengths) if lengths else len(k), k.shape[2], v.shape[3], k.shape[3]
    if initial_state is None:
        S, start = begin(*shape, lambda_0, dtype, k.device, 1 if backend == "triton" else -1)  # M or A
    else:
        S, start = check_state("initial_state", initial_state, shape, k.new_empty(0, dtype=dtype))
        check_state_numbers("initial_state", initial_state, start)

    def heads_first(tokens, S, A):
        o, S, A = BACKENDS[backend](*(x.transpose(1, 2) for x in tokens), S, A, gain)
        return o.transpose(1, 2), S, A

    with torch.autocast(k.device.type, enabled=False):  # products in bfloat16 would spoil the solves
        if backend == "triton":
            from vla_teach.kernels.run import vla_tokens

            o, S, M = vla_tokens(*tokens, S, start if initial_state is None else inverse(start), gain, lengths)
            A = inverse(M) if output_final_state else None
        else:
            tokens = [x.to(dtype) for x in tokens]
            o, S, A = packed(heads_first, tokens, lengths, S, start) if lengths else heads_first(tokens, S, start)
    return o.to(v.dtype), State(S, A) if output_final_state else None


def vla_step(
    q: Tensor, k: Tensor, v: Tensor, u: Tensor, state: State, beta: Tensor | None = None,
    gain: Gain = "unit", backend: Literal["auto", "recurrent", "triton"] = "auto",
) -> tuple[Tensor, State]:  # fmt: skip
    """One token of `vla`, for decoding, in O(K (R K + V)) steps a head.

    q, k [B, H, K], v [B, H, V], u [B, H, K] or [B, H, R, K], beta [B, H] or None; state: a State with N = B, as `vla`
    or this function returned, or `start_state` for none yet. backend: "recurrent", "triton" (one GPU kernel, without
    gradients), or "auto" for the fastest that can run. Returns (o [B, H, V] in the dtype of v, State).
    Arithmetic and errors as for `vla`, but the state's numbers are taken on trust: to check them takes a step's time.
    """
    gain = check_gain(gain)
    tokens, dtype = check_tokens(q, k, v, u, beta, ("B", "H"), state)
    S, A = check_state("state", state, (*k.shape[:2], v.shape[2], k.shape[2]), k.new_empty(0, dtype=dtype))
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (*tokens, S, A))
    backend = choose_step(backend, tokens, dtype, recorded)
    with torch.autocast(k.device.type, enabled=False):
        if backend == "triton":
            from vla_teach.kernels.token import token_by_token

            o, S, A = token_by_token(*(x.unsqueeze(1) for x in tokens), S, A, gain)
            o = o.squeeze(1)
        else:
            o, S, A = recurrent(*(x.unsqueeze(2).to(dtype) for x in tokens), S, A, gain)
            o = o.squeeze(2)
    return o.to(v.dtype), State(S, A)


def start_state(
    N: int, H: int, V: int, K: int, lambda_0: float | Tensor = 0.1, dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> State:  # fmt: skip
    """The State before any token: S = 0 [N, H, V, K], A = I / lambda_0 [N, H, K, K]; lambda_0 a number or [H]."""
    return State(*begin(N, H, V, K, lambda_0, dtype, device, -1))


def begin(N, H, V, K, lambda_0, dtype, device, power):
    """S = 0 [N, H, V, K] and lambda_0^power I [N, H, K, K]: M for a power of 1, A for -1."""
    diagonal = torch.eye(K, dtype=dtype, device=device) * check_lambda(lambda_0, H, dtype) ** power
    return diagonal.new_zeros(N, H, V, K), diagonal.expand(N, H, K, K)


def packed(run, tokens, lengths, S, A):
    """Every sequence of one packed row by itself: o [1, T, H, V], S and A of all.

    Sequences of about one length run together, filled up with zero tokens, which change nothing; a group's lengths
    have as many binary digits, so that fewer than half of its tokens are filling.
    """
    pieces, groups, done = [x[0].split(lengths) for x in tokens], {}, {}
    for i, length in enumerate(lengths):
        groups.setdefault(length.bit_length(), []).append(i)
    for group in groups.values():
        some = [pad_sequence([piece[i] for i in group], batch_first=True) for piece in pieces]
        results = run(some, S[group], A[group])
        done.update({i: (o[: lengths[i]], *state) for i, o, *state in zip(group, *results, strict=True)})
    o, S, A = zip(*(done[i] for i in range(len(lengths))), strict=True)
    return torch.cat(o)[None], torch.stack(S), torch.stack(A)


# ---- back ends --------------------------------------------------------------------------------------------------
# Each takes q, k [N, H, T, K], v [N, H, T, V], u [N, H, T, R, K], beta [N, H, T], S, A and the gain's name, all
# tensors in one dtype and not necessarily contiguous, and returns (o [N, H, T, V], S, A). Listed in BACKENDS.


def recurrent(q, k, v, u, beta, S, A, gain):
    """Token by token, as `vla_teach.reference.vla_recurrent`: the form that the others must equal."""
    outputs = []
    for q_t, k_t, v_t, u_t, beta_t in zip(*(x.unbind(2) for x in (q, k, v, u, beta)), strict=True):
        for row in u_t.unbind(2):
            Au = matvec(A, row)
            A = A - outer(Au, Au) / (1 + (row * Au).sum(-1))[..., None, None]
        g = beta_t[..., None] * write_gain(matvec(A, k_t), k_t, gain)
        S = S + outer(v_t - matvec(S, k_t), g)
        outputs.append(matvec(S, q_t))
    return torch.stack(outputs, 2), S, A


def chunk(q, k, v, u, beta, S, A, gain):
    """A chunk of tokens at a time, as `vla_teach.chunkwise.vla_chunk`: exact, and all but one line in parallel."""
    T = k.shape[2]
    q, k, v, u, beta = (in_chunks(x, min(CHUNK, T)) for x in (q, k, v, u, beta))  # [N, H, n, C, ...]
    a, M = penalty_solve(k, u.flatten(3, 4), inverse(A))
    o, S = chunk_write(q, k, v, beta[..., None] * write_gain(a, k, gain), S)
    return o.flatten(2, 3)[:, :, :T], S, inverse(M)


BACKENDS = {"recurrent": recurrent, "chunk": chunk}  # and "triton", whose kernels take tokens first


def check_backend(name):
    """The name, if it is that of a back end."""
    known = ("auto", *BACKENDS, "triton")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"backend is {name!r}, which is not available; expected one of {', '.join(known)}")
    return name


def choose_backend(name, tokens, dtype):
    """The name of the back end to run: "auto" is the kernels on a GPU where they can run, else "chunk", said once."""
    if check_backend(name) in BACKENDS:
        return name
    if name == "triton":
        check_backend_fits(tokens, dtype)
    elif missing := missing_for_triton(tokens, dtype, name):
        say_once(f'backend "auto" is "chunk" here, the same and slower: "triton" needs {missing}')
        return "chunk"
    return "triton"


def check_backend_fits(tokens, dtype, others=("auto", *BACKENDS)):
    """Refuses what the Triton kernels cannot take."""
    if missing := missing_for_triton(tokens, dtype, "triton"):
        raise ValueError(f"backend is 'triton', which needs {missing}; expected one of {', '.join(others)} here")


def choose_step(name, tokens, dtype, recorded):
    """The same for a step: "auto" is the kernel where it can run and no gradient is asked for, else "recurrent"."""
    if not isinstance(name, str) or name not in ("auto", "recurrent", "triton"):
        raise ValueError(f"backend is {name!r}, which is not available; expected one of auto, recurrent, triton")
    if name == "recurrent":
        return name
    if name == "triton":
        check_backend_fits(tokens, dtype, ("auto", "recurrent"))
        if recorded:
            raise ValueError(
                "backend is 'triton', which has no gradient for a step; expected one of auto, recurrent here"
            )
        return name
    return "recurrent" if recorded or missing_for_triton(tokens, dtype, name) else "triton"


def missing_for_triton(tokens, dtype, name):
    """What the Triton kernels need and this call lacks, in words, or None. Their interpreter is never automatic."""
    q, _, v, *_ = tokens
    if not find_spec("triton"):
        return "the package triton"
    if not q.is_cuda and (name == "auto" or environ.get("TRITON_INTERPRET") != "1"):
        return "a CUDA GPU"
    if dtype == torch.float64:
        return "tensors and a state that are not float64"
    if not {q.shape[-1], v.shape[-1]} <= {16, 32, 64, 128}:
        return "K and V of 16, 32, 64 or 128"
    return None


@cache
def say_once(message):
    """A line of the log; the same one is not said again."""
    logging.getLogger("vla_teach").warning(message)


def penalty_solve(k, u, M):
    """a_t = A_t k_t for every token. k [N, H, n, C, K], u [N, H, n, C R, K], M [N, H, K, K] -> a like k, last M.

    M is a running sum, so that every chunk starts at once. With M = P P^T at a chunk's start and every row multiplied
    by P^{-T}, the penalty of a chunk is I + sum of w w^T; one factor L L^T = I + W W^T serves all its tokens, because
    the leading blocks of L are the factors of the leading blocks.
    """
    M = torch.cat([M.unsqueeze(2), u.mT @ u], 2).cumsum(2)  # before each chunk, after the last
    M, last = M[:, :, :-1], M[:, :, -1]
    P, rows, token = cholesky(M), u.shape[3], torch.arange(k.shape[3], device=k.device)
    past = token[:, None] >= token.repeat_interleave(rows // len(token))  # [C, C R]: s <= t, t the row's token
    w = rows_over(P, u)
    L = cholesky(torch.eye(rows, dtype=u.dtype, device=u.device) + w @ w.mT)

    def solve(k):
        z = rows_over(P, k)
        Y = rows_over(L, z @ w.mT) * past
        return solve_triangular(P, z - solve_triangular(L, Y, upper=False, left=False) @ w, upper=False, left=False)

    a = solve(k)
    # What is left over, solved for once more: where z and its correction nearly cancel (small lambda_0, u along k),
    # float32 gains one to two digits by it.
    return a + solve(k - a @ M - (a @ u.mT * past) @ u), last


def chunk_write(q, k, v, g, S):
    """S_t = S_{t-1} + (v_t - S_{t-1} k_t) g_t^T, o_t = S_t q_t for gains g [N, H, n, C, K] -> o [N, H, n, C, V], S.

    The errors of a chunk solve (I + stril(K G^T)) E = V - K S^T, without pivoting: where a gain explodes late in a
    chunk, the tokens before it stay right.
    """
    W = (k @ g.mT).tril(-1)  # the unit diagonal is implied
    E = solve_triangular(W, torch.cat([v, k], 4), upper=False, unitriangular=True)
    E_v, E_k = E.split([v.shape[4], k.shape[4]], 4)
    S_in, errors = [], []
    for e_v, e_k, g_n in zip(E_v.unbind(2), E_k.unbind(2), g.unbind(2), strict=True):  # the only sequential part
        S_in.append(S)
        errors.append(e_v - e_k @ S.mT)
        S = S + errors[-1].mT @ g_n
    return q @ torch.stack(S_in, 2).mT + (q @ g.mT).tril() @ torch.stack(errors, 2), S


# ---- tools ------------------------------------------------------------------------------------------------------


def write_gain(a, k, gain):
    """The gains from a = A k and k [..., K]. A zero key writes nothing, and its length passes no gradient on.

    Divisions by 0 are masked before they happen: masked after, they would still put NaN into the gradient.
    """
    if gain == "least_squares":
        return a
    size = ((a if gain == "unit" else k) * a).sum(-1, keepdim=True)
    some = size.abs() > torch.finfo(a.dtype).tiny
    size = torch.where(some, size, 1)
    return torch.where(some, a, 0) / (size.sqrt() if gain == "unit" else size)


def matvec(A, x):
    """A [..., m, n], x [..., n] -> [..., m]."""
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def outer(x, y):
    """x [..., m], y [..., n] -> [..., m, n]."""
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def rows_over(L, x):
    """Every row of x times L^{-T}. L [..., n, n] lower triangular, x [..., m, n] -> [..., m, n]."""
    return solve_triangular(L.mT, x, upper=True, left=False)


def cholesky(M):
    """The lower triangular L with M = L L^T. Where there is none: ValueError, or NaN on a GPU (see `vla`)."""
    L, info = torch.linalg.cholesky_ex(M)
    if not looked_at(L):
        return L.masked_fill((info > 0)[..., None, None], torch.nan)
    if info.any():
        words = f"lambda_0 is too small for {M.dtype} and these u: the penalty is not positive definite to rounding"
        raise ValueError(f"{words}; expected a larger lambda_0 or float64 input")
    return L


def inverse(M):
    """The inverse of symmetric positive definite matrices, by operations that a CUDA graph can record."""
    L = cholesky(M)
    L = solve_triangular(L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L), upper=False)
    return L.mT @ L


def in_chunks(x, C):
    """x [N, H, T, ...] -> [N, H, n, C, ...], zeros after the end: a zero token changes neither M nor S."""
    return pad(x, (0, 0) * (x.ndim - 3) + (0, -x.shape[2] % C)).unflatten(2, (-1, C))
