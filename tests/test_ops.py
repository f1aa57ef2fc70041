"""The PyTorch operation: every back end against NumPy, the oracle and each other; gradients; manners."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import GAINS, VECTORS, vector
from oracle_torch import (
    BACKENDS,
    batch,
    check_ops,
    check_zero_key,
    close,
    cut,
    lambdas,
    leaves,
    naive,
    symmetric_positive,
    total,
)

from vla_teach import ops
from vla_teach.ops import State, start_state, vla, vla_step
from vla_teach.reference import vla_recurrent
from vla_teach.streams import correlated_stream

quick = settings(max_examples=30, deadline=None, derandomize=True)  # the same examples in every run
backends = pytest.mark.parametrize("backend", BACKENDS)
gains = pytest.mark.parametrize("gain", GAINS)
ranks = pytest.mark.parametrize("R", (1, 2))


pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 3 tokens, so that short streams have several and a last one that is not full."""
    monkeypatch.setattr(ops, "CHUNK", 3)


def run(x, **options):
    """(o, S, A) of a batch."""
    o, state = vla(**x, output_final_state=True, **options)
    return o, *state


def in_dtype(x, dtype):
    """The batch with every tensor in dtype."""
    return {name: a if name == "gain" else a.to(dtype) for name, a in x.items()}


def gradients(x, **options):
    """The gradient of every tensor of a batch, for one fixed weighting of all results."""
    x = leaves(x)
    total(*vla(**x, output_final_state=True, **options)).backward()
    return [a.grad for name, a in x.items() if name != "gain"]


# ---- against the oracle -----------------------------------------------------------------------------------------


def test_core(monkeypatch):
    """Guards results, states, streaming, packing, decoding and gradients; the mutation tests use the same checks."""
    monkeypatch.setattr(ops, "CHUNK", ops.CHUNK)  # put back what the checks change
    check_ops(ops)


@backends
@pytest.mark.parametrize("name", VECTORS)
def test_oracle_vectors(name, backend):
    """Guards the results against vectors that an independent program made, in float64 and float32."""
    x, wanted = vector(name)
    gain, lambda_0 = x.pop("gain"), x.pop("lambda_0")
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        if dtype == torch.float32 and np.linalg.cond(wanted["M"]) > 1e3:
            continue
        heads = {name: torch.tensor(a)[None, :, None].to(dtype) for name, a in x.items()}
        o, S, A = run(heads, gain=gain, lambda_0=lambda_0, backend=backend)
        assert o.dtype == S.dtype == A.dtype == dtype
        close(o[0, :, 0], wanted["o"], tol)
        close(S[0, 0], wanted["S"], tol)
        close(A[0, 0].double().numpy() @ wanted["M"], np.eye(len(wanted["M"])), tol)


@backends
@gains
@ranks
@pytest.mark.parametrize("T", (1, 64, 130))
def test_equals_numpy(backend, gain, R, T):
    """Guards every head against `vla_recurrent`, at the default chunk size: in float64, and float32 to 1e-4."""
    x = batch(T=T, K=6, V=5, R=R, gain=gain, gated=R == 2)
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        o, S, A = run(in_dtype(x, dtype), lambda_0=0.3, backend=backend)
        for n in range(2):
            for h in range(2):
                arrays = {name: a if name == "gain" else a[n, :, h].numpy() for name, a in x.items()}
                wanted, state = vla_recurrent(**arrays, lambda_0=0.3)
                close([o[n, :, h], S[n, h], A[n, h]], [wanted, state.S, state.A], tol)


@quick
@given(
    seed=st.integers(0, 10**6),
    N=st.integers(1, 2),
    H=st.integers(1, 3),
    T=st.integers(1, 80),
    K=st.integers(1, 6),
    V=st.integers(1, 5),
    R=st.integers(1, 3),
    gain=st.sampled_from(GAINS),
    gated=st.booleans(),
)
def test_any_size_equals_the_naive_oracle(**size):
    """Guards both back ends for any size, against solves of M_t x = k_t."""
    x = batch(**size)
    wanted = naive(x, lambdas(size["H"]))
    for backend in BACKENDS:
        close(run(x, lambda_0=lambdas(size["H"]), backend=backend), wanted)


def test_a_state_that_explodes_is_still_right():
    """Guards against pivoting: huge entries late in a chunk must not spoil the tokens before them."""
    k, v, u = (torch.tensor(a)[None, :, None] for a in correlated_stream(40, 64, correlation=0.95))
    slow, fast = (vla(k, k, v, u, lambda_0=1e-3, gain="least_squares", backend=b)[0] for b in BACKENDS)
    size = torch.linalg.vector_norm(slow, dim=3)
    assert size.max() > 1e30
    assert (torch.linalg.vector_norm(fast - slow, dim=3) <= 1e-9 * size.cummax(1).values).all()


# ---- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_chunks")
@backends
@gains
@ranks
@pytest.mark.parametrize("start", ("lambda_0", "state"))
def test_gradcheck(backend, gain, R, start):
    """Guards the gradient of every result by every input; T is no multiple of the chunk."""
    x = batch(N=1, T=4, K=3, V=2, R=R, gain=gain)
    x["beta"] = 0.1 + 0.8 * x["beta"]  # differences must not leave [0, 1]
    inputs = leaves({name: a for name, a in x.items() if name != "gain"})
    if start == "lambda_0":
        inputs["lambda_0"] = lambdas(2).requires_grad_()
    else:
        inputs["S"] = torch.randn(1, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        inputs["A"] = symmetric_positive(1, 2, 3)
        inputs = leaves(inputs)

    def f(*tensors):
        given = dict(zip(inputs, tensors, strict=True))
        if start == "state":
            S, A = given.pop("S"), given.pop("A")
            given["initial_state"] = State(S, (A + A.mT) / 2)  # differences must not make it asymmetric
        return run(given, gain=gain, backend=backend)

    assert torch.autograd.gradcheck(f, tuple(inputs.values()))


@gains
@ranks
def test_back_ends_have_one_gradient(gain, R):
    """Guards the chunk's gradient at its default size, where there are several chunks, against the loop's."""
    x = batch(N=1, T=150, K=6, V=5, R=R, gain=gain)
    wanted, got = (gradients(x | dict(lambda_0=lambdas(2)), backend=backend) for backend in BACKENDS)
    close(got, wanted, 1e-9)


@backends
def test_gradient_by_an_asymmetric_looking_state(backend):
    """Guards the gradient by A, which must be symmetric, so that back ends agree on it."""
    x, starts = batch(T=5), []
    for name in BACKENDS:
        S, A = torch.zeros(2, 2, 3, 4, dtype=torch.float64), symmetric_positive(2, 2, 4).requires_grad_()
        total(*vla(**x, initial_state=State(S, A), output_final_state=True, backend=name)).backward()
        starts.append(A.grad)
        close(A.grad, A.grad.mT)
    close(*starts)


@backends
@gains
def test_zero_keys_have_finite_gradients(backend, gain):
    """Guards the division in the gain where every key of a stretch is zero, and so is every direction."""
    x = batch(T=70, gain=gain)
    for name in "ku":
        x[name][:, 10:] = 0
    check_zero_key(ops, backend, x)
    o, S, _ = run(x, backend=backend)
    before = run(cut(x, 10)[0], backend=backend)
    close([o[:, :10], S], before[:2])


@backends
@pytest.mark.parametrize("gain", ("unit", "interpolate"))
@pytest.mark.parametrize("size", (1e-38, 1e-30, 1e-20, 1e-17, 1e-11, 1e-6))
def test_tiny_keys(backend, gain, size):
    """Guards the division in the gain in float32: a tiny key writes nothing, or all, and spoils no gradient.

    The interpolating gain grows like 1 / |k|, its gradient like 1 / |k|^2, beyond float32 near |k| = 1e-13.
    """
    x = in_dtype(batch(T=6, gain=gain), torch.float32)
    x["k"][:, -1] *= size
    S, after = run(cut(x, 5)[0], backend=backend)[1], run(x, backend=backend)[1]
    if size < 1e-19:
        close(after, S, 1e-6)
    else:
        close(after, run(in_dtype(x, torch.float64), backend=backend)[1], 1e-4)
    if gain == "unit" or not 1e-19 < size < 1e-13:
        assert all(torch.isfinite(a).all() for a in gradients(x, backend=backend))


# ---- packed sequences, streaming, decoding ----------------------------------------------------------------------


@backends
@gains
def test_packed_sequences_equal_single_ones(backend, gain):
    """Guards cu_seqlens: forward, last states and gradients, from given states, whatever order the lengths are in."""
    bounds = [0, 3, 73, 74, 77, 141, 142]
    x = batch(N=1, T=142, R=2, gain=gain)
    N = len(bounds) - 1
    S = torch.randn(N, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    A = symmetric_positive(N, 2, 4).requires_grad_()
    x = leaves(x)
    inputs = [S, A, *(a for name, a in x.items() if name != "gain")]
    for dtype in (torch.int32, torch.int64):
        packed = run(x, initial_state=State(S, A), cu_seqlens=torch.tensor(bounds, dtype=dtype), backend=backend)
        starts = [State(S[i : i + 1], A[i : i + 1]) for i in range(N)]
        singles = [run(p, initial_state=s, backend=backend) for p, s in zip(cut(x, *bounds[1:-1]), starts, strict=True)]
        o, *state = zip(*singles, strict=True)
        singles = torch.cat(o, 1), *map(torch.cat, state)
        close(packed, singles)
        close(*(torch.autograd.grad(total(*results), inputs) for results in (packed, singles)))


@gains
@ranks
def test_decoding_equals_the_full_pass(gain, R):
    """Guards vla_step after a prefill in chunks, for each gain and rank, with and without beta."""
    x = batch(T=80, R=R, gain=gain, gated=R == 2)
    first, second = cut(x, 70)
    wanted = run(x, lambda_0=0.2)
    outputs, state = [], vla(**first, lambda_0=0.2, output_final_state=True)[1]
    for t in range(10):
        o, state = vla_step(**{name: a if name == "gain" else a[:, t] for name, a in second.items()}, state=state)
        outputs.append(o)
    close((torch.stack(outputs, 1), *state), (wanted[0][:, 70:], *wanted[1:]))


def test_decoding_does_not_drift():
    """Guards A over 4000 Sherman-Morrison steps in float32, symmetric to the last bit: S and A to 1e-4 of float64's."""
    x = batch(N=1, H=1, T=4000, K=8, V=4)
    low, high = (run(in_dtype(x, dtype), backend="recurrent") for dtype in (torch.float32, torch.float64))
    assert torch.equal(low[2], low[2].mT)
    close(low, high, 1e-4)


def test_gradients_flow_through_decoding():
    """Guards vla_step's gradient by its state, which chains tokens."""
    x, grads = batch(T=4), []
    start = leaves(dict(S=torch.zeros(2, 2, 3, 4, dtype=torch.float64), A=symmetric_positive(2, 2, 4)))
    state, outputs = State(**start), []
    for t in range(4):
        o, state = vla_step(**{name: a if name == "gain" else a[:, t] for name, a in x.items()}, state=state)
        outputs.append(o)
    for o, last in ((torch.stack(outputs, 1), state), vla(**x, initial_state=State(**start), output_final_state=True)):
        grads.append(torch.autograd.grad(total(o, last), list(start.values())))
    close(*grads)


def test_the_state_is_none_unless_asked_for():
    """Guards `output_final_state`, off as in the field's kernels."""
    assert vla(**batch())[1] is None


@quick
@given(seed=st.integers(0, 10**6), T=st.integers(2, 70), cut_at=st.integers(1, 69), backend=st.sampled_from(BACKENDS))
def test_the_past_does_not_see_the_future(seed, T, cut_at, backend):
    """Guards causality: outputs before a token stay as they are whatever comes from it on."""
    t = min(cut_at, T - 1)
    one, other = batch(T=T, seed=seed, N=1), batch(T=T, seed=seed + 1, N=1)
    mixed = {name: a if name == "gain" else torch.cat([a[:, :t], other[name][:, t:]], 1) for name, a in one.items()}
    close(vla(**mixed, backend=backend)[0][:, :t], vla(**one, backend=backend)[0][:, :t])


# ---- heads, dtypes, memory layout -------------------------------------------------------------------------------


@backends
def test_lambda_per_head(backend):
    """Guards lambda_0 [H], a number, and a tensor of one number."""
    x = batch(T=9, H=3)
    whole = run(x, lambda_0=lambdas(3), backend=backend)
    for h, value in enumerate(lambdas(3)):
        one = {name: a if name == "gain" else a[:, :, h : h + 1] for name, a in x.items()}
        for lambda_0 in (float(value), np.float64(value), value, value[None], value.float().double()):
            o, S, A = run(one, lambda_0=lambda_0, backend=backend)
            close([o[:, :, 0], S[:, 0], A[:, 0]], [whole[0][:, :, h], whole[1][:, h], whole[2][:, h]], 1e-7)
    close(run(x, lambda_0=2, backend=backend), run(x, lambda_0=torch.full((3,), 2.0), backend=backend))


@backends
def test_heads_and_sequences_are_independent(backend):
    """Guards against mixing: permuted heads and sequences give permuted results."""
    x, heads, sequences = batch(N=3, H=3, T=20), [2, 0, 1], [1, 2, 0]
    o, S, A = run(x, lambda_0=lambdas(3), backend=backend)
    mixed = {name: a if name == "gain" else a[sequences][:, :, heads] for name, a in x.items()}
    wanted = o[sequences][:, :, heads], S[sequences][:, heads], A[sequences][:, heads]
    close(run(mixed, lambda_0=lambdas(3)[heads], backend=backend), wanted, 1e-13)


@backends
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_is_computed_in_float32(backend, dtype):
    """Guards the arithmetic: the float32 result of the rounded inputs, o rounded once, states left in float32."""
    x = in_dtype(batch(T=40, K=8, R=2), dtype)
    o, S, A = run(x, backend=backend)
    wanted, wanted_S, wanted_A = run(in_dtype(x, torch.float32), backend=backend)
    assert o.dtype == dtype and S.dtype == A.dtype == torch.float32
    assert torch.equal(o, wanted.to(dtype)) and torch.equal(S, wanted_S) and torch.equal(A, wanted_A)
    close(wanted, naive(in_dtype(x, torch.float64), [0.1, 0.1])[0], 1e-4)
    token = {name: a if name == "gain" else a[:, 0] for name, a in x.items()}
    step, state = vla_step(**token, state=start_state(2, 2, 3, 8))
    assert step.dtype == dtype and state.S.dtype == torch.float32
    close(step.float(), o[:, 0].float())
    assert all(g.dtype == dtype and torch.isfinite(g).all() for g in half_gradients(x, backend))


def half_gradients(x, backend):
    x = leaves(x)
    vla(**x, backend=backend)[0].float().sum().backward()
    return [a.grad for name, a in x.items() if name != "gain"]


@backends
def test_mixed_dtypes(backend):
    """Guards the rule: o has the dtype of v; one float64 among q, k, v, u or the state makes all float64."""
    x = batch(T=9)
    low = in_dtype(x, torch.float32)
    o, S, A = run(low | dict(v=x["v"]), backend=backend)
    assert o.dtype == S.dtype == A.dtype == torch.float64
    o, S, A = run(low | dict(k=x["k"]), backend=backend)
    assert o.dtype == torch.float32 and S.dtype == A.dtype == torch.float64
    o, S, A = run(low, initial_state=start_state(2, 2, 3, 4, dtype=torch.float64), backend=backend)
    assert o.dtype == torch.float32 and S.dtype == A.dtype == torch.float64
    half = State(*(part.bfloat16() for part in start_state(2, 2, 3, 4, lambda_0=0.5)))  # 2 is a bfloat16
    close(run(low, initial_state=half, backend=backend), run(low, lambda_0=0.5, backend=backend), 1e-5)
    assert run(low | dict(beta=x["beta"]), lambda_0=lambdas(2), backend=backend)[1].dtype == torch.float32


@backends
def test_autocast_leaves_the_solves_alone(backend):
    """Guards float32 arithmetic inside a region that would turn matrix products into bfloat16."""
    x = in_dtype(batch(T=40), torch.float32)
    wanted = run(x, backend=backend)
    token = {name: a if name == "gain" else a[:, 0] for name, a in x.items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, run(x, backend=backend), wanted))
        step = vla_step(**token, state=start_state(2, 2, 3, 4))[0]
    assert torch.equal(step, vla_step(**token, state=start_state(2, 2, 3, 4))[0])


@backends
def test_memory_layout_does_not_matter(backend):
    """Guards tensors that are not contiguous, and those of the caller, which stay as they are."""
    x = batch(T=9, R=2)
    wanted = run(x, backend=backend)
    strided = {n: a if n == "gain" else a.movedim(0, -1).contiguous().movedim(-1, 0) for n, a in x.items()}
    assert not strided["k"].is_contiguous()
    copies = {name: a if name == "gain" else a.clone() for name, a in strided.items()}
    state = State(*(part.mT.contiguous().mT for part in start_state(2, 2, 3, 4, dtype=torch.float64)))
    before = [part.clone() for part in state]
    close(run(strided, initial_state=state, backend=backend), wanted)
    assert all(torch.equal(strided[name], copies[name]) for name in x if name != "gain")
    assert all(map(torch.equal, state, before))


def test_one_direction_may_have_a_rank_axis():
    """Guards u [B, T, H, K] and u [B, T, H, 1, K] as two spellings of one thing."""
    x = batch(R=1)
    assert torch.equal(vla(**x)[0], vla(**x | dict(u=x["u"].unsqueeze(3)))[0])


# ---- back ends and imports --------------------------------------------------------------------------------------


def test_a_back_end_can_be_added(monkeypatch):
    """Guards the registry, through which a kernel joins from another file."""
    monkeypatch.setitem(ops.BACKENDS, "mine", lambda q, k, v, u, beta, S, A, gain: (v + u.shape[3], S, A))
    x = batch(R=2)
    close(vla(**x, backend="mine")[0], x["v"] + 2)
    with pytest.raises(ValueError, match="mine"):
        vla(**x, backend="other")


def test_auto_is_a_back_end_that_is_there():
    """Guards the default."""
    x = batch()
    assert torch.equal(vla(**x)[0], vla(**x, backend="chunk")[0])


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import vla_teach
try:
    import vla_teach.ops
except ImportError as error:
    print(error)
"""


def test_import_without_torch_says_what_to_install():
    """Guards a reader with NumPy alone."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert "pip install torch" in done.stdout and "vla_teach.ops" in done.stdout, done.stdout + done.stderr


@backends
def test_nothing_waits_for_another_device(backend, monkeypatch):
    """Guards against a look at the numbers where that costs a wait: tensors without numbers pass through."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # knows no such device
    x = {name: a if name == "gain" else a.to("meta") for name, a in batch(T=70, R=2).items()}
    o, state = vla(**x, lambda_0=lambdas(2).to("meta"), backend=backend, output_final_state=True)
    o, state = vla(**x, initial_state=state, backend=backend, output_final_state=True)
    assert o.shape == x["v"].shape
    _, state = vla_step(**{name: a if name == "gain" else a[:, 0] for name, a in x.items()}, state=state)
    assert state.S.shape == (2, 2, 3, 4) and state.A.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@backends
@gains
def test_on_a_gpu(backend, gain):
    """Guards the same results, packed ones, decoded ones and gradients there; a lost penalty gives NaN, not garbage."""
    x, cu_seqlens = batch(N=1, T=150, R=2, gain=gain), torch.tensor([0, 3, 150])
    there = {name: a if name == "gain" else a.cuda() for name, a in x.items()}
    for options in ({}, dict(cu_seqlens=cu_seqlens)):
        wanted = run(x, lambda_0=lambdas(2), backend=backend, **options)
        close([a.cpu() for a in run(there, lambda_0=lambdas(2).cuda(), backend=backend, **options)], wanted)
    at = leaves(there)
    vla(**at, backend=backend)[0].square().sum().backward()
    here = leaves(x)
    vla(**here, backend=backend)[0].square().sum().backward()
    close([at[name].grad.cpu() for name in "qkvu"], [here[name].grad for name in "qkvu"], 1e-9)
    token, state = (
        {n: a if n == "gain" else a[:, 0] for n, a in there.items()},
        start_state(1, 2, 3, 4, device="cuda"),
    )
    close(vla_step(**token, state=state)[0].cpu(), vla(**x)[0][:, 0])
    broken = ops.cholesky(torch.stack([torch.eye(3), -torch.eye(3)]).cuda())
    assert torch.isfinite(broken[0]).all() and broken[1].isnan().all()


# ---- bad input --------------------------------------------------------------------------------------------------

N, T, H, K, V = 2, 6, 3, 4, 5
GOOD = batch(N=N, H=H, T=T, K=K, V=V, R=2)
EYE = torch.eye(K, dtype=torch.float64).expand(N, H, K, K)
ZERO = torch.zeros(N, H, V, K, dtype=torch.float64)


def with_entry(x, value):
    """A copy of x with one entry replaced."""
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[-1] = value
    return x


def faults():
    """(argument, what is wrong, arguments, exception) for `vla`."""
    for name in ("q", "k", "v", "u", "beta"):
        x = GOOD[name]
        for what, value, error in (
            ("NaN", with_entry(x, torch.nan), ValueError),
            ("infinity", with_entry(x, -torch.inf), ValueError),
            ("integers", x.long(), TypeError),
            ("booleans", x > 0, TypeError),
            ("complex", x + 0j, TypeError),
            ("float8", x.to(torch.float8_e4m3fn), TypeError),
            ("array", x.numpy(), TypeError),
            ("list", x.tolist(), TypeError),
            ("one number", 0.5, TypeError),
            ("no axis", torch.tensor(0.5), ValueError),
            ("one axis", torch.ones(3), ValueError),
            ("another device", x.to("meta"), ValueError),
            ("an axis too few", x[0], ValueError),
            ("an axis too many", x.unsqueeze(0), ValueError),
            ("no tokens", x[:, :0], ValueError),
            ("no heads", x[:, :, :0], ValueError),
            ("no sequences", x[:0], ValueError),
        ):
            yield (name if what != "another device" or name != "k" else "q"), what, {name: value}, error
        if name != "beta":
            yield name, "None", {name: None}, TypeError
            yield name, "no columns", {name: x[..., :0]}, ValueError
        if name != "k":  # the others are measured by k
            yield name, "a token too few", {name: x[:, :-1]}, ValueError
            yield name, "a head too few", {name: x[:, :, :-1]}, ValueError
            yield name, "a sequence too few", {name: x[:-1]}, ValueError
            yield name, "axes swapped", {name: x.transpose(1, 2)}, ValueError
        if name in "qu":
            yield name, "a column too few", {name: x[..., :-1]}, ValueError
    yield "u", "rank 0", dict(u=GOOD["u"][..., :0, :]), ValueError
    for name in "ku":
        yield name, "too long a row", {name: with_entry(GOOD[name], 1e160)}, ValueError
        low = in_dtype(GOOD, torch.float32)
        yield name, "too long for float32", low | {name: with_entry(low[name], 1e20)}, ValueError
    for value in (-1e-9, 1 + 1e-9):
        yield "beta", f"{value}", dict(beta=with_entry(GOOD["beta"], value)), ValueError
    for value in (0, 0.0, -0.1, np.nan, np.inf, 1e-320, torch.tensor(0.0), torch.tensor([0.1, -0.1, 0.1])):
        yield "lambda_0", f"{value}", dict(lambda_0=value), ValueError
    for value in (torch.full((2,), 0.1), torch.full((1,), 0.1), torch.full((N, H), 0.1), torch.full((0,), 0.1)):
        yield "lambda_0", f"{list(value.shape)}", dict(lambda_0=value), ValueError
    for value in ("0.1", None, True, [0.1] * H, np.full(H, 0.1), 1j, torch.tensor(1)):
        yield "lambda_0", f"{value!r}", dict(lambda_0=value), TypeError
    yield "lambda_0", "too small for float32", in_dtype(GOOD, torch.float32) | dict(lambda_0=1e-39), ValueError
    for value in ("Unit", "rls", "", None, ["unit"], 1):
        yield "gain", f"{value!r}", dict(gain=value), ValueError
    for value in ("triton", "cuda", "", None, 1, ["chunk"]):
        yield "backend", f"{value!r}", dict(backend=value), ValueError
    for what, S, A, part, error in (
        ("no S", None, EYE, "has no S", ValueError),
        ("no A", ZERO, None, "has no A", ValueError),
        ("S array", ZERO.numpy(), EYE, ".S", TypeError),
        ("S transposed", ZERO.mT, EYE, ".S", ValueError),
        ("S too few", ZERO[:1], EYE, ".S", ValueError),
        ("S NaN", ZERO + torch.nan, EYE, ".S", ValueError),
        ("S integers", ZERO.long(), EYE, ".S", TypeError),
        ("A one head", ZERO, EYE[:, :1], ".A", ValueError),
        ("A infinite", ZERO, with_entry(EYE, torch.inf), ".A", ValueError),
        ("A zero", ZERO, 0 * EYE, ".A", ValueError),
        ("A indefinite", ZERO, with_entry(EYE, -1e-3), ".A", ValueError),
        ("A asymmetric", ZERO, EYE + 0.01 * EYE.roll(1, -1), ".A", ValueError),
        ("A elsewhere", ZERO, EYE.to("meta"), ".A", ValueError),
    ):
        yield f"initial_state.*{part}", what, dict(initial_state=State(S, A)), error
    for value in (3, ZERO, "abc", (ZERO,), (ZERO, EYE)):
        yield "initial_state", type(value).__name__, dict(initial_state=value), ValueError
    row = {name: a if name == "gain" else a[:1] for name, a in GOOD.items()}
    for bounds in ([0], [], [0, T - 1], [0, T + 1], [1, T], [0, 4, 2, T], [0, 3, 3, T], [[0, T]], [-1, T], [0, 0, T]):
        yield "cu_seqlens", f"{bounds}", row | dict(cu_seqlens=torch.tensor(bounds, dtype=torch.int64)), ValueError
    for value in ([0, T], np.array([0, T]), torch.tensor([0.0, T]), torch.tensor([False, True]), T):
        yield "cu_seqlens", f"{value!r}", row | dict(cu_seqlens=value), TypeError
    yield "cu_seqlens", "B = 2", dict(cu_seqlens=torch.tensor([0, T])), ValueError
    yield (
        "initial_state",
        "fewer than sequences",
        row | dict(cu_seqlens=torch.tensor([0, 2, 4, T]), initial_state=State(ZERO, EYE)),
        ValueError,
    )


CASES = [pytest.param(name, given, error, id=f"{name}-{what}") for name, what, given, error in faults()]


@pytest.mark.parametrize(("name", "arguments", "error"), CASES)
def test_bad_input(name, arguments, error):
    """Guards every argument: the error names it and says what was expected."""
    with pytest.raises(error, match=rf"^{name}.*expected"):
        vla(**GOOD | arguments)


TOKEN = {name: a if name == "gain" else a[:, 0] for name, a in GOOD.items()} | dict(state=State(ZERO, EYE))
BAD_STEPS = {
    "q, an axis too many": (dict(q=GOOD["q"]), "q", ValueError),
    "k, an axis too many": (dict(k=GOOD["k"]), "k", ValueError),
    "v, NaN": (dict(v=TOKEN["v"] * torch.nan), "v", ValueError),
    "u, an axis too few": (dict(u=TOKEN["u"][0, 0]), "u", ValueError),
    "beta, above 1": (dict(beta=TOKEN["beta"] + 1), "beta", ValueError),
    "gain": (dict(gain="rls"), "gain", ValueError),
    "state, None": (dict(state=None), "state", ValueError),
    "state, one sequence": (dict(state=State(ZERO[:1], EYE[:1])), "state.S", ValueError),
    "state, A on another device": (dict(state=State(ZERO, EYE.to("meta"))), "state.A", ValueError),
}


@pytest.mark.parametrize(("arguments", "name", "error"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_bad_step(arguments, name, error):
    """Guards vla_step in the same way."""
    with pytest.raises(error, match=rf"^{name}.*expected"):
        vla_step(**TOKEN | arguments)


def test_good_input_is_accepted():
    """Guards the table above: what it changes was fine before."""
    assert torch.isfinite(vla(**GOOD)[0]).all() and torch.isfinite(vla_step(**TOKEN)[0]).all()
    close(vla(**GOOD, initial_state=State(ZERO, EYE + 1e-7 * EYE.roll(1, -1)))[0], vla(**GOOD, lambda_0=1.0)[0], 1e-5)


def test_a_penalty_that_float32_cannot_factor():
    """Guards against a bare LinAlgError: the message says what to change."""
    k, v, u = correlated_stream(2000, 32, correlation=0.95, direction="along the key")
    few = [torch.tensor(a, dtype=torch.float32)[None, :, None] for a in (k, k, v, u)]
    with pytest.raises(ValueError, match=r"^lambda_0 is too small for torch.float32 .*expected a larger lambda_0"):
        vla(*few, lambda_0=1e-8)
