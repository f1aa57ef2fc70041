"""What the tests of `vla_teach.kernels` share: fresh streams, all results of a call, and the check of mutated kernels.

Import it before Triton: where there is no GPU it makes Triton interpret its kernels, which is settled at that import.
Inputs are new in every run. A failure prints VLA_SEED, which in the environment brings the same inputs back.
"""

import os
from contextlib import contextmanager
from importlib import import_module
from time import time_ns

import pytest
import torch
from oracle import GAINS

from vla_teach.ops import State, vla, vla_step

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", torch.cuda.current_device()) if GPU else torch.device("cpu")
C = 64 if GPU else 16  # tokens a chunk, where a test needs many chunks
SEED = int(os.environ.get("VLA_SEED", time_ns() % 10**6))


@contextmanager
def interpreter():
    """Triton's interpreter, where there is no GPU; other test files are not to notice."""
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            patch.setenv("TRITON_INTERPRET", "1")
        yield


with interpreter():
    pytest.importorskip("triton")
    run, plan, token = (import_module(f"vla_teach.kernels.{name}") for name in ("run", "plan", "token"))


@contextmanager
def small_plan(plan=plan, run=run, **sizes):
    """Chunks, anchors and parts of other sizes than the plan's own: CHUNK=16, ANCHOR=2 and the like."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(plan, name, size)
        if "CHUNK" in sizes:
            patch.setattr(run, "CHUNK", sizes["CHUNK"])
        plan.plan.cache_clear()
        yield
    plan.plan.cache_clear()


# ---- streams ----------------------------------------------------------------------------------------------------


def random(*shape, seed=0):
    """Normal numbers, new in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + seed), dtype=torch.float64).to(DEVICE)


def unit(x):
    """Every row with length 1."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def stream(T, K=32, V=64, gain="unit", R=1, B=1, H=2, dtype=torch.float32, gated=True, lambda_0=0.1):
    """Tensors for `vla`: unit keys and queries, the paper's u of length 1/sqrt(K), lambda_0 [H] from `lambda_0` up.

    Off the unit gain the first direction is the key itself, so that nothing explodes.
    """
    x = dict(q=unit(random(B, T, H, K, seed=1)), k=unit(random(B, T, H, K, seed=2)), v=random(B, T, H, V, seed=3))
    u = unit(random(B, T, H, R, K, seed=4)) / K**0.5
    if gain != "unit":
        u[..., 0, :] = x["k"]
    x["u"] = u[..., 0, :] if R == 1 else u
    if gated:
        x["beta"] = torch.sigmoid(random(B, T, H, seed=5))
    x = {name: a.to(dtype) for name, a in x.items()}
    return x | dict(lambda_0=torch.linspace(lambda_0, 3 * lambda_0, H, device=DEVICE))


def states(N, K, V, H=2):
    """S and A of N sequences in the middle of their streams, in the place of lambda_0."""
    x = random(N, H, K, K, seed=6)
    return dict(S=random(N, H, V, K, seed=7).float(), A=(torch.eye(K, device=DEVICE) + x @ x.mT / K).float())


def cut(x, *bounds):
    """A stream in pieces along its tokens."""
    pieces = zip((0, *bounds), (*bounds, x["k"].shape[1]), strict=True)
    return [{name: a[:, i:j] for name, a in x.items() if name in ("q", "k", "v", "u", "beta")} for i, j in pieces]


# ---- results ----------------------------------------------------------------------------------------------------


def double(x):
    """A stream in float64."""
    return {name: a.double() for name, a in x.items()}


def everything(x, backend="triton", of=("o", "S", "A"), **options):
    """{name: tensor} of a call's results and, for one weighting of those in `of`, of the gradient by every input."""
    x = {name: a.detach().requires_grad_() for name, a in x.items()}
    tokens = dict(x)
    if "S" in x:
        options["initial_state"] = State(tokens.pop("S"), tokens.pop("A"))
    o, state = vla(**tokens, **options, backend=backend, output_final_state=True)
    results = dict(o=o, S=state.S, A=state.A)
    total = sum((results[name] * weights(results[name])).sum() for name in of)
    grads = torch.autograd.grad(total, list(x.values()))
    return results | {f"d{name}": grad for name, grad in zip(x, grads, strict=True)}


def weights(x):
    """Weights that bfloat16 can hold, so that all dtypes get the same."""
    return random(*x.shape, seed=8).bfloat16().to(x.dtype)


def right(x, **options):
    """What `everything` should be: by the chunk form in float64, from the same rounded inputs."""
    x = double(x)
    results = everything(x, backend="chunk", **options)
    if "lambda_0" in x:
        A = torch.diag_embed((1 / x["lambda_0"])[:, None].expand(-1, x["k"].shape[3]))
        start = dict(S=torch.zeros_like(results["S"]), A=A.expand(len(results["S"]), -1, -1, -1))
        tokens = {name: a for name, a in x.items() if name != "lambda_0"}
        results["terms"] = everything(tokens | start, backend="chunk", **options)["dA"] @ A @ A
    return results


def off(got, wanted, size=None):
    """The error of a tensor relative to `wanted`, or to another size, in the root of mean squares."""
    wanted = wanted.detach().double()
    size = wanted if size is None else size
    return ((got.detach().double() - wanted).norm() / (size.norm() or 1)).item()


def near(got, wanted, tol, tol_o=None):
    """No tensor of a dict further off than tol; o and the states no further than tol_o, if given. NaN fails.

    The gradient by lambda_0 is a sum over A's diagonal that may nearly cancel: its error is held against the terms,
    and as one number has no mean of squares to smooth it, it may be 4 tol.
    """
    assert got.keys() == wanted.keys() - {"terms"}
    for name, a in got.items():
        limit = tol if tol_o is None or name.startswith("d") else tol_o
        assert a.shape == wanted[name].shape
        size = None
        if name == "dlambda_0":
            size, limit = wanted["terms"].diagonal(dim1=-2, dim2=-1), 4 * limit
        error = off(a, wanted[name], size)
        assert error <= limit, f"{name} is off by {error:.2g}, allowed {limit:g}; VLA_SEED={SEED}"


def same(got, wanted):
    """All tensors of two dicts or sequences are equal, bit for bit."""
    pairs = zip(*(x.values() if isinstance(x, dict) else x for x in (got, wanted)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), f"not the same bits; VLA_SEED={SEED}"


# ---- what good kernels pass and every mutated one must fail ------------------------------------------------------


def check_kernels(plan=plan, run=run):
    """Results and gradients: a short call first; then several chunks, anchors, parts and sequences, all gains."""
    with small_plan(plan, run, CHUNK=2 * C if C < 64 else C):
        x = stream(40, H=1)
        near(everything(x), right(x), 1e-5)
    with small_plan(plan, run, CHUNK=C, ANCHOR=2, PROGRAMS=1, PART=2 * 2 * C):
        for gain, R in zip(GAINS, (2, 1, 1), strict=True):
            x = stream(2 * C + 8, gain=gain, R=R, H=1)
            del x["lambda_0"]
            x, options = x | states(2, 32, 64, H=1), dict(gain=gain, cu_seqlens=torch.tensor([0, 3, 2 * C + 8]))
            near(everything(x, **options), right(x, **options), 1e-5)


def check_steps(token=token):
    """The token kernel from an empty memory, and decoding from a state, for all gains."""
    for gain in GAINS:
        x = stream(3, gain=gain, R=2)
        (_, T, H, K), V, lambda_0 = x["k"].shape, x["v"].shape[3], x.pop("lambda_0")
        options = dict(gain=gain, output_final_state=True, backend="recurrent")
        o, last = vla(**double(x), lambda_0=lambda_0.double(), **options)
        near(dict(o=token.vla_token(**x, lambda_0=lambda_0, gain=gain)), dict(o=o), 1e-5)
        A = torch.eye(K, device=DEVICE) / lambda_0[:, None, None]
        state, outputs = State(A.new_zeros(1, H, V, K), A[None]), []
        for t in range(T):
            o_t, state = vla_step(**{name: a[:, t] for name, a in x.items()}, state=state, gain=gain, backend="triton")
            outputs.append(o_t)
        near(dict(o=torch.stack(outputs, 1), S=state.S, A=state.A), dict(o=o, S=last.S, A=last.A), 1e-5)
