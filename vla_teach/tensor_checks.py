"""Checks of the tensors that a caller hands to `vla_teach.ops`: what `vla_teach.checks` is for arrays.

On a GPU shapes, dtypes and devices are checked, but not the numbers: to look at one, the CPU would have to wait for all
work that the device still has to do, in every call of every layer. NaN in then gives NaN out.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from numbers import Real

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LOOKING = ContextVar("LOOKING", default=True)  # whether numbers on the CPU are looked at
FINITE = "holds NaN or infinity; expected finite numbers"


@contextmanager
def unchecked():
    """Inside, numbers are trusted on the CPU, too: for `torch.func.vmap`, where no single number can be looked at."""
    before = LOOKING.set(False)
    try:
        yield
    finally:
        LOOKING.reset(before)


def looked_at(x):
    """Whether the numbers of this tensor are checked."""
    return x.device.type == "cpu" and LOOKING.get()


def check_tensor(name, x, device):
    """A tensor of floats on this device."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; expected float64, float32, bfloat16 or float16")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}; expected {device}, where the other tensors are")


def check_shape(name, x, fits, expected):
    """Refuses x for its shape."""
    if not fits:
        raise ValueError(f"{name} has shape {list(x.shape)}; expected {expected}")


def check_numbers(name, x, fine, message):
    """Refuses x unless `fine` holds for all of it; on the CPU only."""
    if looked_at(x) and not fine(x.detach()).all():
        raise ValueError(f"{name} {message}")


def check_tokens(q, k, v, u, beta, axes, state):
    """[q, k, v, u [..., R, K], beta [...]] and the dtype to compute in: float64 if one of q, k, v, u or the state has
    it, else float32. axes: the names of all axes of k but the last.
    """
    given = dict(k=k, q=q, v=v, u=u) | ({} if beta is None else dict(beta=beta))
    for name, x in given.items():
        check_tensor(name, x, getattr(k, "device", None))
        check_numbers(name, x, torch.isfinite, FINITE)
    names, lead, like_k = ", ".join(axes), k.shape[:-1], f"K] = {list(k.shape)}"
    check_shape("k", k, k.ndim == len(axes) + 1 and k.numel(), f"[{names}, K], none of them 0")
    check_shape("q", q, q.shape == k.shape, f"that of k, [{names}, {like_k}")
    check_shape(
        "v", v, v.ndim and v.shape[:-1] == lead and v.numel(), f"[{names}, V], otherwise as k, [{names}, {like_k}"
    )
    per_rank = u.ndim == k.ndim + 1 and (*u.shape[:-2], u.shape[-1]) == k.shape and u.numel()
    check_shape(
        "u", u, u.shape == k.shape or per_rank, f"[{names}, K] or [{names}, R, K], otherwise as k, [{names}, {like_k}"
    )
    beta = k.new_ones(lead) if beta is None else beta
    check_shape("beta", beta, beta.shape == lead, f"one number a token, [{names}] = {list(lead)}")
    check_numbers(
        "beta", beta, lambda x: (x >= 0) & (x <= 1), "has numbers outside [0, 1]; expected shares of the error"
    )
    deciding = (q, k, v, u, getattr(state, "S", None), getattr(state, "A", None))
    dtype = torch.float64 if any(getattr(x, "dtype", None) == torch.float64 for x in deciding) else torch.float32
    u = u if per_rank else u.unsqueeze(-2)
    for name, x in (("k", k), ("u", u)):
        message = f"has a row whose length is beyond {dtype}; expected smaller numbers"
        check_numbers(name, x, lambda x: (x.to(dtype) ** 2).sum(-1).isfinite(), message)
    return [q, k, v, u, beta], dtype


def check_sequences(cu_seqlens, k, least=1):
    """The lengths of packed sequences as a list, or None. An empty one is refused: it is nearly always a mistake.

    With least = 0 it is not: of one row over several ranks, a rank may hold no token of a sequence.
    """
    if cu_seqlens is None:
        return None
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens is {cu_seqlens!r}; expected a tensor of whole numbers, int32 or int64")
    check_shape("cu_seqlens", cu_seqlens, cu_seqlens.ndim == 1 and len(cu_seqlens) > 1, "[N + 1], N at least 1")
    if len(k) != 1:
        raise ValueError(f"cu_seqlens is given while B = {len(k)}; expected B = 1, one row that packs all sequences")
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != k.shape[1] or min(lengths) < least:
        order = "each above the last" if least else "none below the last"
        raise ValueError(f"cu_seqlens is {bounds}; expected numbers from 0 to T = {k.shape[1]}, {order}")
    return lengths


def check_lambda(lambda_0, H, dtype):
    """A number or a tensor [H], above 0, whose inverse dtype can hold too -> one that multiplies a [K, K] a head."""
    expected = f"expected numbers above 0 that, like their inverses, {dtype} can hold"
    if not isinstance(lambda_0, torch.Tensor):
        if isinstance(lambda_0, bool) or not isinstance(lambda_0, Real):
            raise TypeError(f"lambda_0 is {lambda_0!r}; expected a number or a tensor [H]")
        if not 1 / torch.finfo(dtype).max < lambda_0 < torch.finfo(dtype).max:  # without a tensor, which takes longer
            raise ValueError(f"lambda_0 is {lambda_0}; {expected}")
        return float(lambda_0)
    check_tensor("lambda_0", lambda_0, lambda_0.device)
    check_shape("lambda_0", lambda_0, lambda_0.shape in ((), (H,)), f"one number, or one a head, [H] = [{H}]")
    value = lambda_0.to(dtype)
    if looked_at(value):  # only then may the message show numbers
        fine = (value > 0) & value.isfinite() & (1 / value).isfinite()
        check_numbers("lambda_0", value, lambda _: fine, f"is {lambda_0}; {expected}")
    return value[:, None, None] if value.ndim else value


def check_state(name, state, shape, like):
    """S and A of a State for shape = N, H, V, K, in the dtype and on the device of the tensor `like`.

    A is made symmetric, so that its gradient is, too, whatever a back end does with it.
    """
    N, H, V, K = shape
    for part, wanted in (("S", (N, H, V, K)), ("A", (N, H, K, K))):
        x = getattr(state, part, None)
        if x is None or callable(x):
            raise ValueError(f"{name} has no {part}; expected the State that vla or start_state returned")
        check_tensor(f"{name}.{part}", x, like.device)
        check_shape(f"{name}.{part}", x, x.shape == wanted, f"{list(wanted)} for N, H, V, K = {N}, {H}, {V}, {K}")
    A = state.A.to(like.dtype)
    return state.S.to(like.dtype), (A + A.mT) / 2


def check_state_numbers(name, state, A):
    """S and A of a State are finite, A is symmetric to rounding and, as `check_state` made it, positive definite."""
    check_numbers(f"{name}.S", state.S, torch.isfinite, FINITE)
    check_numbers(f"{name}.A", state.A, torch.isfinite, FINITE)
    message = "is not symmetric and positive definite; expected the inverse of a penalty"
    check_numbers(f"{name}.A", state.A, symmetric, message)
    check_numbers(f"{name}.A", A, lambda A: torch.linalg.cholesky_ex(A).info == 0, message)


def symmetric(A):
    """Which entries of A [..., K, K] are those of its transpose, to rounding."""
    return (A - A.mT).abs() <= 1e-3 * A.abs().amax((-2, -1), keepdim=True)
