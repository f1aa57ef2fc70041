"""One sequence over many processes ("ranks"): each holds a slice of the tokens, and two exchanges make them one memory.

`vla_teach.ops.vla` comes here when it is given a process group of torch.distributed. The penalty is a sum, so each rank
needs the sum of the slices before its own; a slice of writes is an affine map of the state, S -> S P + Q, so each rank
needs the maps before its own. Both are a few [K, K] or [V, K] matrices a head, whatever the slices' lengths.

    exchange 0  what each rank was called with, a few numbers: ranks that do not fit are named before anyone waits
    exchange 1  U^T U of the slice [N, H, K, K]; the prefix sum gives every rank the M before its slice
    exchange 2  (Q, P) of the slice [N, H, V + K, K]; applied in order to S_0 they give every state between slices
    backwards   the same two, mirrored: what all ranks send back is added up. With the kernels exchange 2 is mirrored
                by an exchange of gradients of states, [N, H, 2 V, K]

A rank that has ended, or that does not come to an exchange, is an error on all others, after the group's timeout at the
latest: init_process_group(..., timeout=datetime.timedelta(seconds=60)). The default is 30 minutes (10 with NCCL).
With gloo it is a RuntimeError; NCCL ends the waiting processes, after the same timeout.

Let go of the results before destroy_process_group(): their graphs refer to the group until they are gone, and a process
that ends with such a group was at times aborted by gloo at its very end. A function `main` that returns is enough.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from vla_teach import ops
from vla_teach.checks import GAINS, check_gain
from vla_teach.tensor_checks import DTYPES, check_sequences, check_state, check_state_numbers, check_tokens

# What must be the same on all ranks; a number stands for each.
NAMES = ("N", "H", "V", "K", "dtype", "gain", "gradients", "the sum of |S| at the start", "the sum of |M| at the start")


def rows_sent(K, V, backend, backward=False):
    """How many rows of K numbers a rank sends to each other in the exchanges of a pass, for a head of a sequence.

    With the kernels the backward pass sends gradients of states, else whatever autograd finds for Q, P and the sums.
    """
    if not backward:
        return K, V + K
    return (2 * V if backend == "triton" else V + K), K


def slice_bounds(cu_seqlens, first, T):
    """cu_seqlens [N + 1] for a rank with T tokens from token `first` of the row, from that of the whole row."""
    return (cu_seqlens - first).clamp(0, T)


def vla_over_ranks(
    q, k, v, u, beta, lambda_0, gain, initial_state, output_final_state, cu_seqlens, backend, group
):  # fmt: skip
    """`vla_teach.ops.vla` with a group; see there for arguments and results."""
    rank, _ = place(group)
    try:
        tokens, dtype, backend, lengths, S, M = prepare(
            q, k, v, u, beta, lambda_0, gain, initial_state, cu_seqlens, backend
        )
    except (TypeError, ValueError):
        agree(None, getattr(k, "device", "cpu"), group)  # the others must not wait
        raise
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (*tokens, S, M))
    numbers = [*S.shape, DTYPES.index(dtype), GAINS.index(gain), recorded]
    agree([*numbers, *(float(x.detach().abs().sum()) for x in (S, M))], k.device, group)

    def gather(x):
        # All ranks or none take part in the backward pass of an exchange, also one whose own x needs no gradient.
        return Gather.apply(x if x.requires_grad or not recorded else x.detach().requires_grad_(), group)

    with torch.autocast(k.device.type, enabled=False):
        M = torch.cat([M[None], gather(own_sum(tokens[3].to(dtype), lengths))]).cumsum(0)  # before each, after all
        if backend == "triton":
            o, last = by_kernels(tokens, lengths, S, M[rank], gain, group)
        else:
            o, through, Q, P = own_map(tokens, lengths, M[rank], gain, backend)
            states = [S]
            for Q_j, P_j in zip(*gather(torch.cat([Q, P], 2)).split([Q.shape[2], P.shape[2]], 3), strict=True):
                states.append(states[-1] @ P_j + Q_j)
            states = torch.stack(states)  # so that the first rank's state hangs on the exchange like all others
            o, last = o + read(states[rank], through, lengths), states[-1]
        o, S, M = Together.apply(o, last, M[-1])
        return o.to(v.dtype), ops.State(S, ops.inverse(M)) if output_final_state else None


def prepare(q, k, v, u, beta, lambda_0, gain, initial_state, cu_seqlens, backend):
    """The checks of `vla`; and S, M at the start."""
    check_gain(gain)
    tokens, dtype = check_tokens(q, k, v, u, beta, ("B", "T", "H"), initial_state)
    backend = ops.choose_backend(backend, tokens, dtype)
    lengths = check_sequences(cu_seqlens, k, least=0)
    shape = len(lengths) if lengths else len(k), k.shape[2], v.shape[3], k.shape[3]
    if initial_state is None:
        S, M = ops.begin(*shape, lambda_0, dtype, k.device, 1)
    else:
        S, A = check_state("initial_state", initial_state, shape, k.new_empty(0, dtype=dtype))
        check_state_numbers("initial_state", initial_state, A)
        M = ops.inverse(A)
    return tokens, dtype, backend, lengths, S, M


# ---- what a rank finds by itself --------------------------------------------------------------------------------


def sequences(x, lengths):
    """x [B, T, ...] as one tensor [its tokens, ...] a sequence."""
    return x[0].split(lengths) if lengths else x.unbind()


def own_sum(u, lengths):
    """U^T U of every sequence's tokens here. u [B, T, H, R, K] -> [N, H, K, K]."""
    return torch.stack([torch.einsum("thrk,thrl->hkl", x, x) for x in sequences(u, lengths)])


def own_map(tokens, lengths, M, gain, backend):
    """What the slice does to any state S before it: the answers are o + S through, the state after it is S P + Q.

    A state's rows go through the writes side by side, each with its own value. So V rows that start as 0 with the
    values v end as Q, and K rows that start as I with values 0 end as P; the gains are found once for both.
    Returns o [B, T, H, V], through [B, T, H, K], Q [N, H, V, K], P [N, H, K, K].
    """
    q, k, v, u, beta = tokens
    (N, H, K, _), V = M.shape, v.shape[3]
    start = M.new_zeros(N, H, V + K, K)
    start[:, :, V:] = torch.eye(K, dtype=M.dtype, device=M.device)
    v = torch.cat([v, v.new_zeros(*v.shape[:3], K)], 3)
    some, here = present(N, lengths)
    o, S = run((q, k, v, u, beta), here, start[some], M[some], gain, backend)
    end = start.index_copy(0, torch.tensor(some, device=S.device), S)
    return *o.split([V, K], 3), *end.split([V, K], 2)


def run(tokens, lengths, S, M, gain, backend):
    """(o, S) of the tokens here, from S and M, by one of the back ends of `ops`."""

    def heads_first(tokens, S, A):
        o, S, A = ops.BACKENDS[backend](*(x.transpose(1, 2) for x in tokens), S, A, gain)
        return o.transpose(1, 2), S, A

    tokens, A = [x.to(M.dtype) for x in tokens], ops.inverse(M)
    return (ops.packed(heads_first, tokens, lengths, S, A) if lengths else heads_first(tokens, S, A))[:2]


def present(N, lengths):
    """Which of N sequences have tokens here, and how many, or None where every row is one."""
    some = [n for n in range(N) if not lengths or lengths[n]]  # one without tokens here changes nothing
    return some, [lengths[n] for n in some] if lengths else None


def read(S, through, lengths):
    """S through, token by token. S [N, H, V, K], through [B, T, H, K] -> [B, T, H, V]."""
    parts = [torch.einsum("hvk,thk->thv", *x) for x in zip(S, sequences(through.to(S.dtype), lengths), strict=True)]
    return torch.cat(parts)[None] if lengths else torch.stack(parts)


# ---- the same by the kernels ------------------------------------------------------------------------------------
# They know few widths, so V + K values cannot go through them in one pass. They find Q and P by a walk that keeps
# nothing, and walk a second time from the true state. So the gradient needs no P either: see `kernels.slices`.


def by_kernels(tokens, lengths, S, M, gain, group):
    """o of the tokens here, and the state after all slices, from S before the first slice and M before this one."""
    from vla_teach.kernels.run import vla_tokens

    some, here = present(len(S), lengths)
    some = slice(None) if len(some) == len(S) else some  # a list of indices would keep the GPU waiting
    others = Others(some, group, tokens[2].shape[3], tokens[1].shape[3])
    return vla_tokens(*tokens, S.contiguous(), M[some], gain, here, others)[:2]


class Others:
    """What the kernels ask for between their walks. The exchanges are in here, forward and backward.

    some: which sequences have tokens here; V and K: the widths that travel, where kernels fill up narrow heads.
    """

    def __init__(self, some, group, V, K):
        self.some, self.group, self.V, self.K = some, group, V, K
        self.last = self.maps = None

    def before(self, S, Q, P):
        """Exchange 2: the state before the tokens here, of `some`, from S before all slices. Sets `last`, after all."""
        N, V, K = len(S), self.V, self.K
        mine = S.new_zeros(N, S.shape[1], V + K, K)
        mine[:, :, V:] = torch.eye(K, dtype=S.dtype, device=S.device)
        mine[self.some] = torch.cat([Q[..., :V, :K], P[..., :K, :K]], 2)
        maps, states = everyones(mine, self.group), [S[..., :V, :K]]
        for both in maps:
            states.append(states[-1] @ both[:, :, V:] + both[:, :, :V])
        self.maps, self.last = maps[:, :, :, V:], self.filled(states[-1], S)
        return self.filled(states[place(self.group)[0]], S)[self.some]

    def after(self, dS, D):
        """The gradients of the state after the tokens here, of `some`, and (a rank's share) of that before all slices.

        dS: a rank's share of the gradient of the state after all slices. Exchanges these and the D of all slices.
        """
        V, K = self.V, self.K
        mine = dS.new_zeros(2, len(dS), dS.shape[1], V, K)
        mine[0], mine[1, self.some] = dS[..., :V, :K], D[..., :V, :K]
        all_, rank = everyones(mine, self.group), place(self.group)[0]
        gradients = [all_[:, 0].sum(0)]  # of the states after the last slice, before it, ...
        for P_j, D_j in zip(reversed(self.maps), reversed(all_[:, 1]), strict=True):
            gradients.insert(0, gradients[0] @ P_j.mT + D_j)
        first = gradients[0] if rank == 0 else torch.zeros_like(gradients[0])
        return self.filled(gradients[rank + 1], dS)[self.some], self.filled(first, dS)

    @staticmethod
    def filled(x, like):
        """x with zeros around it, as wide as the kernels have it."""
        return pad(x, (0, like.shape[3] - x.shape[3], 0, like.shape[2] - x.shape[2]))


# ---- the exchanges ----------------------------------------------------------------------------------------------


def place(group):
    """(rank, number of ranks) of this process in the group."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group is given, but there are no process groups; call init_process_group first (see torchrun)"
        )
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise ValueError(f"group is {group!r}; expected a process group that this process belongs to")
    return dist.get_rank(group), dist.get_world_size(group)


def exchange(collective, out, given, group):
    """One collective: all ranks of the group must come to it. Raises RuntimeError where one does not."""
    try:
        collective(out, given, group=group)
    except RuntimeError as error:
        rank, ranks = place(group)
        words = f"rank {rank} of {ranks} lost the others: one has ended, failed, or not come within the group's timeout"
        raise RuntimeError(words) from error


def everyones(x, group):
    """x of every rank -> [ranks, ...] on every rank."""
    out = x.new_empty(place(group)[1], *x.shape)
    exchange(dist.all_gather, list(out), x.contiguous(), group)
    return out


def agree(numbers, device, group):
    """Exchange 0. numbers: one for each of NAMES, or None on a rank whose arguments were refused.

    Raises ValueError on every rank if they differ, naming the first rank that is not as rank 0. Waits for the device.
    """
    mine = torch.tensor([0.0] * (1 + len(NAMES)) if numbers is None else [1.0, *numbers], dtype=torch.float64)
    rows = everyones(mine.to(device), group).tolist()
    if numbers is None:
        return  # it has an error of its own to raise
    refused = [rank for rank, (fine, *_) in enumerate(rows) if not fine]
    if refused:
        raise ValueError(f"rank {refused[0]} was called with arguments that do not fit; its own error says which")
    for rank, row in enumerate(rows):
        for name, wanted, got in zip(NAMES, rows[0][1:], row[1:], strict=True):
            if abs(got - wanted) > (1e-3 * abs(wanted) if name.startswith("the sum") else 0):
                raise ValueError(
                    f"rank {rank} has {name} = {in_words(name, got)}; expected {in_words(name, wanted)}, as rank 0 has"
                )


def in_words(name, number):
    """What a number of exchange 0 stands for."""
    words = dict(dtype=DTYPES, gain=GAINS, gradients=("not recorded", "recorded"))
    return f"{words[name][int(number)]}" if name in words else f"{number:g}"


class Gather(torch.autograd.Function):
    """x of every rank -> [ranks, ...] on every rank. Backwards a rank gets the sum of what all send back for its x."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return everyones(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, dx):
        mine = torch.empty_like(dx[0])
        exchange(dist.reduce_scatter, mine, list(dx.contiguous()), ctx.group)
        return mine, None


class Together(torch.autograd.Function):
    """The tensors as they are. A rank that differentiates only one of them still comes to both exchanges."""

    @staticmethod
    def forward(ctx, *tensors):
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return grads
