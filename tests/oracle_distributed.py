"""What the tests of `vla_teach.distributed` share: processes that wait for work, and what each of them must find right.

Every rank makes the whole sequence from a seed, runs its slice with the others, and compares what it gets with the same
call on one device. So nothing but a verdict travels back to the test.
"""

import importlib
import multiprocessing
import os
import tempfile
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from mutations import compiled
from oracle_torch import batch, close, lambdas, leaves, symmetric_positive

from vla_teach import ops

PATIENCE = 60  # seconds until a test gives up on the processes
LATE = 2  # seconds until a group gives up on a rank, where a test wants it to


# ---- processes --------------------------------------------------------------------------------------------------


class Ranks:
    """Processes with a gloo group each of which runs what it is handed: `ranks(function, *args)`."""

    def __init__(self, n, timeout):
        context = multiprocessing.get_context("forkserver")  # like spawn, but PyTorch is imported once
        context.set_forkserver_preload(["vla_teach.distributed"])
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.processes = [], []
        for rank in range(n):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, rank, n, self.folder.name, timeout), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def start(self, function, *args):
        for pipe in self.pipes:
            pipe.send((function, args))

    def answers(self):
        """What each rank returned: the exception that its function raised, or its result, or None if it is gone."""
        return [self.answer(rank) for rank in range(len(self.pipes))]

    def answer(self, rank):
        try:
            assert self.pipes[rank].poll(PATIENCE), f"rank {rank} hangs"
            return self.pipes[rank].recv()
        except (EOFError, ConnectionResetError):
            return None

    def __call__(self, function, *args):
        self.start(function, *args)
        return self.answers()

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def serve(pipe, rank, n, folder, timeout):
    """The life of a rank: join the group, do what comes, answer."""
    os.environ.update(TRITON_INTERPRET="1")
    torch.set_num_threads(1)
    # A file, as another process may take a port that was free. And on a busy machine some ranks start seconds after
    # others: they wait for each other here, and the group's timeout begins when all are there.
    store = dist.FileStore(f"{folder}/store", n)
    store.set_timeout(timedelta(seconds=PATIENCE))
    store.set(f"rank {rank} is here", "")
    store.wait([f"rank {i} is here" for i in range(n)])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n, timeout=timedelta(seconds=timeout))
    pairs = {n: dist.group.WORLD, **({2: dist.new_group([0, 1])} if n > 2 else {})}
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = function(pairs, *args)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = type(error)(f"{error}\n{traceback.format_exc()}") if len(error.args) == 1 else error
        pipe.send(answer)


def module(name, original=None, broken=None):
    """`vla_teach.distributed`, or a copy of it with one piece replaced."""
    found = importlib.import_module(name)
    if original is None:
        return found
    with open(found.__file__) as file:
        source = file.read()
    assert source.count(original) == 1, f"{original!r} is in the source {source.count(original)} times, not once"
    return compiled(found, source.replace(original, broken))


# ---- what is right ----------------------------------------------------------------------------------------------


def check_case(
    module, group, lengths, packed=None, start="lambda_0", backend="chunk", only=None, apart=False,
    dtype=torch.float64, tol=1e-10, **size,
):  # fmt: skip
    """Results and gradients of a slice against the same on one device.

    lengths: of the ranks' slices; packed: bounds of the sequences; only: the one tensor that each rank differentiates
    by; apart: the first rank's loss has the last A and nothing else.
    """
    rank, first, T = dist.get_rank(group), sum(lengths[: max(dist.get_rank(group), 0)]), sum(lengths)
    if rank < 0:
        return
    mine, rng = slice(first, first + lengths[rank]), torch.Generator().manual_seed(1)
    x = {name: a if name == "gain" else a.to(dtype) for name, a in batch(T=T, N=1 if packed else 2, **size).items()}
    gain = x.pop("gain")
    (B, _, H, K), V = x["k"].shape, x["v"].shape[3]
    N = len(packed) - 1 if packed else B
    shared = dict(S=torch.randn(N, H, V, K, generator=rng).to(dtype), A=symmetric_positive(N, H, K).to(dtype))
    shared = dict(lambda_0=lambdas(H).to(dtype)) if start == "lambda_0" else shared
    weights = [torch.randn(shape, generator=rng).to(dtype) for shape in ((B, T, H, V), (N, H, V, K), (N, H, K, K))]
    if apart:
        weights[0][:, : lengths[0]] = 0

    def options(shared, bounds):
        state = dict(initial_state=ops.State(**shared)) if "S" in shared else shared
        return state | dict(gain=gain, cu_seqlens=bounds, backend=backend, output_final_state=True)

    # on one device
    bounds, whole, whole_shared = torch.tensor(packed) if packed else None, leaves(x), leaves(shared)
    o, (S, A) = ops.vla(**whole, **options(whole_shared, bounds))
    sum((w * y).sum() for w, y in zip(weights, (o, S, A), strict=True)).backward()
    wanted = dict(o=o[:, mine], S=S, A=A) | {f"d{name}": a.grad[:, mine] for name, a in whole.items()}
    wanted |= {f"d{name}": a.grad for name, a in whole_shared.items()}

    # on this rank and the others: their losses add up to that of the whole
    slices, mine_shared = leaves({name: a[:, mine] for name, a in x.items()}), leaves(shared)
    for name, a in (slices | mine_shared).items():
        a.requires_grad_(only is None or name == only[rank])
    bounds = module.slice_bounds(bounds, first, lengths[rank]) if packed else None
    given = dict(beta=None, lambda_0=0.1, initial_state=None, group=group)
    o, (S, A) = module.vla_over_ranks(**(given | slices | options(mine_shared, bounds)))
    parts = [] if apart and rank == 0 else [(weights[0][:, mine] * o).sum()]
    parts += [(weights[1] * S).sum()] if rank == len(lengths) - 1 else []
    parts += [(weights[2] * A).sum()] if rank == 0 else []
    sum(parts).backward()
    got = dict(o=o, S=S, A=A) | {f"d{name}": a.grad for name, a in slices.items() if a.requires_grad}
    if only is None:
        for name, a in mine_shared.items():
            dist.all_reduce(a.grad, group=group)
            got[f"d{name}"] = a.grad
    for name, y in got.items():
        try:
            close(y, wanted[name], tol)
        except AssertionError as error:
            raise AssertionError(f"rank {rank} of {len(lengths)}, {name}: {error}") from None


def check_all(groups, cases, original=None, broken=None):
    """All these cases, whatever goes wrong in one: a rank that stopped at the first would keep the others waiting."""
    copy, wrong = module("vla_teach.distributed", original, broken), []
    for case in cases:
        try:
            check_case(copy, groups[len(case["lengths"])], **case)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    if wrong:
        raise AssertionError("; ".join(wrong))


def check_small(groups, cases, sizes):
    """The same with the kernels' chunks and parts of other sizes."""
    from oracle_kernels import small_plan

    with small_plan(**sizes):
        check_all(groups, cases)


def call(groups, changes):
    """The words of the error of a call in which `changes[rank]` are this rank's own arguments."""
    x = batch(T=3)
    change = changes.get(dist.get_rank(), {})
    x = {name: a.to(change.get("dtype", torch.float32)) if name != "gain" else a for name, a in x.items()}
    if "width" in change:
        x["k"], x["q"], x["u"] = (x[name][..., : change["width"]] for name in "kqu")
    x |= {name: value for name, value in change.items() if name not in ("dtype", "width", "grad")}
    x["q"].requires_grad_("grad" in change)
    try:
        ops.vla(**x, group=dist.group.WORLD)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def lose(groups, how):
    """The last rank ends or comes too late; the others return their error's words and the seconds until it came."""
    n = dist.get_world_size()
    if dist.get_rank() == n - 1:
        if how == "ends":
            os._exit(1)
        time.sleep(3 * LATE)
        return "late"
    start = time.monotonic()
    try:
        ops.vla(**batch(T=3), group=dist.group.WORLD)
    except RuntimeError as error:
        return str(error), time.monotonic() - start
    return "no error", time.monotonic() - start
