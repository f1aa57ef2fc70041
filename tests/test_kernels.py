"""The Triton back end and the token kernel against the chunk form in float64, from the same rounded inputs.

On a GPU where there is one, else at small sizes in Triton's interpreter. See `oracle_kernels` for what all share.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import GAINS
from oracle_kernels import (
    DEVICE,
    GPU,
    SEED,
    C,
    check_steps,
    cut,
    double,
    everything,
    interpreter,
    near,
    off,
    plan,
    random,
    right,
    same,
    small_plan,
    states,
    stream,
    unit,
    weights,
)

from vla_teach import ops
from vla_teach.kernels.token import vla_token
from vla_teach.ops import State, vla, vla_step

gains = pytest.mark.parametrize("gain", GAINS)
on_a_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")
WIDTHS = (16, 32, 64, 128)
LENGTHS = (1, 63, 64, 65, 130, 1000, 4099)


@pytest.fixture(autouse=True, scope="module")
def kernels_can_run():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with interpreter():
        yield
    torch.set_num_threads(threads)


# ---- one call ---------------------------------------------------------------------------------------------------


def sizes():
    """(T, K, V, R, gain, gated, heads): a few in the interpreter, all widths and longer streams on a GPU."""
    yield 1, 16, 16, 1, "unit", True, 2
    yield 63, 32, 16, 2, "interpolate", False, 1
    yield 64, 16, 64, 1, "least_squares", True, 1
    yield 65, 64, 32, 1, "unit", False, 1
    yield 130, 32, 128, 2, "unit", True, 1
    yield 130, 128, 16, 1, "interpolate", True, 1
    if GPU:
        yield from ((130, K, V, 1, "unit", True, 2) for K in WIDTHS for V in WIDTHS)
        yield from ((T, 64, 64, 1 + i % 2, gain, i < 4, 2) for gain in GAINS for i, T in enumerate(LENGTHS))


def case(T, K, V, R, gain, gated, H, **options):
    return stream(T, K, V, R=R, gain=gain, gated=gated, H=H, **options)


@pytest.mark.parametrize("size", list(sizes()), ids=str)
def test_float32(size):
    """Guards outputs, last states and gradients, for odd lengths, widths, gains and ranks."""
    x, gain = case(*size), size[4]
    near(everything(x, gain=gain), right(x, gain=gain), 1e-5)


# The interpreter cuts bits off where a GPU rounds to bfloat16, which costs up to three times the error.
HALF = {torch.bfloat16: (5e-3, 1e-2) if GPU else (1.5e-2, 3e-2), torch.float16: (1e-3, 1e-3)}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "size",
    [
        (130, 32, 64, 1, "unit", True, 1),
        (70, 16, 32, 2, "interpolate", True, 1),
        *([(1000, K, V, 1, "unit", True, 2) for K in (64, 128) for V in (64, 128)] if GPU else []),
        *([(4099, 64, 64, 1 + (gain == "unit"), gain, True, 2) for gain in GAINS] if GPU else []),
    ],
    ids=str,
)
def test_half_precision(size, dtype):
    """Guards bfloat16, in which products are taken, and float16, which is only stored; states stay in float32."""
    x, gain = case(*size, dtype=dtype), size[4]
    got, (tol_o, tol) = everything(x, gain=gain, of=("o",)), HALF[dtype]
    assert got["o"].dtype == got["dk"].dtype == dtype and got["S"].dtype == got["A"].dtype == torch.float32
    near(got, right(x, gain=gain, of=("o",)), tol, tol_o)


def test_mixed_dtypes():
    """Guards the rule: all is multiplied in float32 unless q, k, v and u are all bfloat16."""
    x = stream(20, 32, 32, R=2, H=1)
    for name in "qvu":
        mixed = x | {name: x[name].to(torch.bfloat16 if name == "u" else torch.float16)}
        near(everything(mixed), right(mixed), 5e-3, 1e-3)  # du is rounded to bfloat16


def test_lambda_of_each_head():
    """Guards lambda_0 [H] against calls for one head with a number."""
    x = stream(5, H=3, B=2)
    o, state = vla(**x, backend="triton", output_final_state=True)
    for h in range(3):
        one = {name: a[:, :, h : h + 1] for name, a in x.items() if name != "lambda_0"}
        alone, last = vla(**one, lambda_0=float(x["lambda_0"][h]), backend="triton", output_final_state=True)
        same((o[:, :, h], state.S[:, h], state.A[:, h]), (alone[:, :, 0], last.S[:, 0], last.A[:, 0]))


# ---- two references -----------------------------------------------------------------------------------------------


class Rounded(torch.autograd.Function):
    """Stored as bfloat16, and so is the gradient. Triton's interpreter does not round: it cuts bits off."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float() if GPU else (x.view(torch.int32) & -(2**16)).view(torch.float32)

    backward = staticmethod(lambda ctx, gradient: Rounded.forward(ctx, gradient.contiguous()))


def plain(q, k, v, u, beta, lambda_0, gain):
    """The formula of `vla_teach.kernels.write` in float32, every tile that is stored or multiplied in bfloat16."""
    rounded = Rounded.apply
    q, k, v, u, beta = (a.transpose(1, 2) for a in (q, k, v, u.unflatten(-1, (-1, u.shape[-1])), beta))
    M = lambda_0[:, None, None, None] * torch.eye(k.shape[3], device=DEVICE) + (u.mT @ u).cumsum(2)
    a = rounded(torch.linalg.solve(M, k))
    scale = ((a if gain == "unit" else k) * a).sum(-1)
    c = beta / {"unit": scale.sqrt(), "interpolate": scale, "least_squares": 1}[gain]
    S, outputs = torch.zeros_like(v.mT @ k), []
    chunks = [x.split(64, 2) for x in (q, k, v, a, c.unsqueeze(-1))]
    for q, k, v, a, c in zip(*chunks, strict=True):
        D = c.mT
        X = rounded(torch.linalg.inv(torch.eye(k.shape[2], device=DEVICE) + (k @ a.mT * D).tril(-1)))
        state = rounded(S)
        errors = rounded(rounded(X @ v) - rounded(X @ k) @ state.mT)
        outputs.append(rounded(q @ state.mT + rounded((q @ a.mT * D).tril()) @ errors))
        S = S + rounded(errors * c).mT @ a
    return torch.cat(outputs, 2).transpose(1, 2)


@gains
def test_two_references(gain):
    """Guards bfloat16 for all inputs: no more than twice the error of a plain evaluation that rounds what is stored."""
    x = stream(1000 if GPU else 130, 64 if GPU else 32, 32, gain=gain, H=2 if GPU else 1, dtype=torch.bfloat16)
    wanted, got = right(x, gain=gain, of=("o",)), everything(x, gain=gain, of=("o",))
    leaves = {name: a.float().requires_grad_() for name, a in x.items()}
    o = plain(**leaves, gain=gain)
    grads = torch.autograd.grad((o * weights(o)).sum(), list(leaves.values()))
    for name, a in (("o", o), *zip((f"d{name}" for name in x), grads, strict=True)):
        if name != "dlambda_0":  # a sum that may nearly cancel
            ours, other = off(got[name], wanted[name]), off(a, wanted[name])
            assert 1e-4 < other < 0.1, f"the plain {name} is off by {other}"
            assert ours <= 2 * other, f"{name} is off by {ours:.2g}, plainly by {other:.2g}; VLA_SEED={SEED}"


# ---- hard numbers -----------------------------------------------------------------------------------------------


@gains
@pytest.mark.parametrize("lambda_0", (1e-3, 1e3))
def test_small_and_large_lambda(lambda_0, gain):
    """Guards the solve: with the paper's u, and off the unit gain with u = k, where cond(M) is near 10^4."""
    x = stream(70, 16, 16, gain=gain, H=1, lambda_0=lambda_0)
    near(everything(x, gain=gain), right(x, gain=gain), 1e-3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_correlated_keys(dtype):
    """Guards u = k for keys that share a part, with cond(M) near 10^5."""
    x = stream(130, 32, 32, H=1, lambda_0=1e-3)
    x["u"] = x["k"] = unit((x["k"].double() + unit(random(32, seed=9))) @ random(32, 32, seed=10))
    x = {name: a.float() if name == "lambda_0" else a.to(dtype) for name, a in x.items()}
    u = x["u"][0, :, 0].double()
    assert 3e3 < torch.linalg.cond(u.mT @ u + 1e-3 * torch.eye(32, device=DEVICE)) < 1e6
    tol_o, tol = HALF.get(dtype, (1e-3, 1e-3))
    near(everything(x, of=("o",)), right(x, of=("o",)), tol, tol_o)


@gains
def test_zero_keys(gain):
    """Guards the division in the gain: a zero key writes nothing, spoils no gradient, not even at the stream's ends."""
    x = stream(40, gain=gain, H=1)
    for t in (0, 20, 21, 39):
        x["k"][:, t] = 0
    got = everything(x, gain=gain)
    assert all(torch.isfinite(a).all() for a in got.values())
    near(got, right(x, gain=gain), 1e-5)
    x["k"], x["u"] = 0 * x["k"], 0 * x["u"]
    got = everything(x, gain=gain)
    assert not got["o"].any() and all(torch.isfinite(a).all() for a in got.values())


# ---- several calls, several sequences -----------------------------------------------------------------------------


def test_packed_sequences_equal_single_ones():
    """Guards cu_seqlens: each sequence as if it were alone, from its own state, whatever the lengths."""
    lengths = (1, C, C + 6, 2, *((1000, 63, 4099) if GPU else ()))
    bounds = [0, *(sum(lengths[: i + 1]) for i in range(len(lengths)))]
    x = stream(bounds[-1], 32, 16, H=1)
    del x["lambda_0"]
    x |= states(len(lengths), 32, 16, H=1)
    with small_plan(CHUNK=C):
        packed = everything(x, cu_seqlens=torch.tensor(bounds))
    leaves = {name: a.requires_grad_() for name, a in x.items()}
    starts = [State(leaves["S"][i : i + 1], leaves["A"][i : i + 1]) for i in range(len(lengths))]
    singles = [
        vla(**piece, initial_state=start, output_final_state=True, backend="triton")
        for piece, start in zip(cut(leaves, *bounds[1:-1]), starts, strict=True)
    ]
    results = dict(o=torch.cat([o for o, _ in singles], 1))
    results |= {part: torch.cat([getattr(state, part) for _, state in singles]) for part in "SA"}
    total = sum((a * weights(a)).sum() for a in results.values())
    grads = torch.autograd.grad(total, list(leaves.values()))
    near(packed, results | {f"d{name}": grad for name, grad in zip(x, grads, strict=True)}, 1e-5)


@gains
def test_two_halves_equal_one_call(gain):
    """Guards the State: the second half goes on where the first ended, and its gradients reach the first."""
    x = stream(40, 32, 32, gain=gain, H=1, R=2)
    wanted = right(x, gain=gain)
    leaves = {name: a.detach().requires_grad_() for name, a in x.items()}
    first, second = cut(leaves, 17)
    o, state = vla(**first, lambda_0=leaves["lambda_0"], gain=gain, backend="triton", output_final_state=True)
    more, state = vla(**second, initial_state=state, gain=gain, backend="triton", output_final_state=True)
    got = dict(o=torch.cat([o, more], 1), S=state.S, A=state.A)
    total = sum((a * weights(a)).sum() for a in got.values())
    grads = torch.autograd.grad(total, list(leaves.values()))
    near(got | {f"d{name}": grad for name, grad in zip(x, grads, strict=True)}, wanted, 2e-5)


@pytest.mark.parametrize("R", (1, 2) if GPU else (2,))
def test_parts_change_nothing(R):
    """Guards the backward pass in several parts and anchors of several chunks, sequences of unlike lengths included."""
    lengths = (3, 3 * C + 1, 2 * C - 3)
    x, bounds = stream(sum(lengths), 16, 32, H=1, R=R), torch.tensor([0, 3, 3 * C + 4, 5 * C + 1])
    wanted = right(x, cu_seqlens=bounds)
    for parts, chunks, anchor in ((3, 3, 1), (2, 6, 2)):
        with small_plan(CHUNK=C, PART=chunks * C, ANCHOR=anchor, PROGRAMS=1):
            assert len(plan.plan(lengths, 1, DEVICE).parts) == parts
            near(everything(x, cu_seqlens=bounds), wanted, 1e-5)


# ---- manners ----------------------------------------------------------------------------------------------------


def full_of_nan(allocate):
    """An allocator as it is, but for the numbers it leaves."""

    def allocate_full(*arguments, **options):
        memory = allocate(*arguments, **options)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    return allocate_full


def test_everything_is_written(monkeypatch):
    """Guards against memory that a kernel was to fill and did not: all of it holds NaN beforehand."""
    x, bounds = stream(2 * C + 8, 16, 32, H=1, R=2), torch.tensor([0, 3, 2 * C + 8])
    for place, name in ((torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(place, name, full_of_nan(getattr(place, name)))
    with small_plan(CHUNK=C, PART=2 * C):
        assert all(torch.isfinite(a).all() for a in everything(x, cu_seqlens=bounds).values())
    token = {name: a[:, 0] for name, a in x.items() if name != "lambda_0"}
    o, state = vla_step(**token, state=State(**states(1, 16, 32, H=1)), backend="triton")
    assert all(torch.isfinite(a).all() for a in (o, *state))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_runs_are_alike_and_leave_their_inputs_alone(dtype):
    """Guards against results that depend on the order of programs, and against kernels that write into inputs."""
    x = stream(1000 if GPU else 40, 32, 32, H=2 if GPU else 1, dtype=dtype)
    before = {name: a.clone() for name, a in x.items()}
    same(everything(x), everything(x))
    same(x, before)


def test_backward_twice():
    """Guards what is saved for the backward pass, which may run again; a second derivative is refused."""
    x = {name: a.requires_grad_() for name, a in stream(70, 32, 32, H=1).items()}
    loss = vla(**x, backend="triton")[0].square().sum()
    first = torch.autograd.grad(loss, list(x.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(x.values()), create_graph=True)
    same(first, second)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        second[1].sum().backward()


def test_memory_layout_and_autocast_do_not_matter():
    """Guards tensors that are not contiguous, and a region that would turn matrix products into bfloat16."""
    x = stream(20, 16, 32, R=2, H=1, B=2)
    wanted = everything(x)
    strided = {n: a if n == "lambda_0" else a.movedim(0, -1).contiguous().movedim(-1, 0) for n, a in x.items()}
    assert not strided["k"].is_contiguous()
    same(everything(strided), wanted)
    leaves = {name: a.detach().requires_grad_() for name, a in x.items()}
    with torch.autocast(DEVICE.type, torch.bfloat16):
        o, state = vla(**leaves, backend="triton", output_final_state=True)
    total = sum((a * weights(a)).sum() for a in (o, *state))
    same((o, *state, *torch.autograd.grad(total, list(leaves.values()))), wanted.values())


def test_a_gradient_for_one_input_alone():
    """Guards a call where most inputs ask for none."""
    x = stream(3, 32, 32, H=1)
    wanted = right(x, of=("o",))
    for name in x:
        leaf = x[name].detach().requires_grad_()
        o, _ = vla(**x | {name: leaf}, backend="triton")
        got = {f"d{name}": torch.autograd.grad((o * weights(o)).sum(), leaf)[0]}
        near(got, {key: wanted[key] for key in (f"d{name}", "terms")}, 1e-5)


@on_a_gpu
def test_long_streams_do_not_drift():
    """Guards float32 sums over 65536 tokens: the last outputs are as right as the first."""
    x = stream(2**16, 64, 64)
    got, wanted = vla(**x, backend="triton")[0], vla(**double(x), backend="chunk")[0]
    first, last = (off(got[:, part], wanted[:, part]) for part in (slice(0, 4096), slice(-4096, None)))
    assert last <= max(1e-5, 4 * first), f"{last:.2g} after {first:.2g}; VLA_SEED={SEED}"


# ---- token by token -----------------------------------------------------------------------------------------------


def test_steps():
    """Guards decoding; the mutation tests use the same check."""
    check_steps()


@gains
@pytest.mark.parametrize("R", (1, 2))
def test_the_token_kernel(gain, R):
    """Guards the paper's kernel against the loop, for odd lengths and several sequences."""
    for size in (dict(T=20, K=16, V=32, B=2), *([dict(T=T, K=K, V=64) for T in (1, 1000) for K in WIDTHS] * GPU)):
        x = stream(gain=gain, R=R, **size)
        lambda_0 = x.pop("lambda_0")
        got = vla_token(**x, lambda_0=lambda_0, gain=gain)
        wanted = vla(**double(x), lambda_0=lambda_0.double(), gain=gain, backend="recurrent")[0]
        near(dict(o=got), dict(o=wanted), 1e-5)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_a_step_in_half_precision(dtype):
    """Guards the token kernel's arithmetic, which is float32 for all dtypes; only o is rounded."""
    x = stream(1, 32, 16, dtype=dtype, R=2)
    token, start = {name: a[:, 0] for name, a in x.items() if name != "lambda_0"}, State(**states(1, 32, 16))
    o, state = vla_step(**token, state=start, backend="triton")
    assert o.dtype == dtype and state.S.dtype == state.A.dtype == torch.float32
    wanted, last = vla_step(**double(token), state=start, backend="recurrent")
    near(dict(o=o), dict(o=wanted), 1e-2 if dtype == torch.bfloat16 else 1e-3)
    near(dict(S=state.S, A=state.A), dict(S=last.S, A=last.A), 1e-5)


def test_a_step_has_no_gradient():
    """Guards against a gradient lost in silence: the kernel refuses, "auto" takes the loop, no_grad needs neither."""
    token = {name: a[:, 0] for name, a in stream(1, 32, 16).items() if name != "lambda_0"}
    start = states(1, 32, 16)
    for name in ("k", "beta", "A"):
        a = (token | start)[name].clone().requires_grad_()
        tokens, state = (dict(x, **{name: a} if name in x else {}) for x in (token, start))
        with pytest.raises(ValueError, match=r"^backend .*no gradient.*expected"):
            vla_step(**tokens, state=State(**state), backend="triton")
        assert vla_step(**tokens, state=State(**state))[0].requires_grad
        with torch.no_grad():
            vla_step(**tokens, state=State(**state), backend="triton")


# ---- which back end runs, and what it refuses -----------------------------------------------------------------------


def test_auto(caplog):
    """Guards the default: the kernels on a GPU; elsewhere the chunk form, which one line of the log says, once."""
    x = stream(10, 32, 32)
    ops.say_once.cache_clear()
    chosen = [vla(**x)[0] for _ in range(2)]
    assert torch.equal(chosen[0], vla(**x, backend="triton" if GPU else "chunk")[0])
    assert [record.getMessage().count('"triton" needs a CUDA GPU') for record in caplog.records] == [1] * (not GPU)
    odd = stream(10, 48, 32)
    caplog.clear()
    vla(**odd), vla(**odd)
    assert len(caplog.records) == int(GPU)
    assert torch.equal(vla(**odd)[0], vla(**odd, backend="chunk")[0])


def test_no_gpu(monkeypatch):
    """Guards a reader without one who asks for the kernels: the error says what is missing."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = {name: a.cpu() for name, a in stream(4, 32, 32).items()}
    lambda_0 = x.pop("lambda_0")
    start = ops.start_state(1, 2, 32, 32)
    for call in (
        lambda: vla(**x, lambda_0=lambda_0, backend="triton"),
        lambda: vla_step(**{name: a[:, 0] for name, a in x.items()}, state=start, backend="triton"),
        lambda: vla_token(**x, lambda_0=lambda_0),
    ):
        with pytest.raises(ValueError, match=r"^backend .*CUDA GPU.*expected"):
            call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: double(x), "not float64"),
        (lambda x: x | dict(v=x["v"].double()), "not float64"),
        (lambda x: x | {name: x[name].repeat(1, 1, 1, 3)[..., :48] for name in "qku"}, "K and V of 16"),
        (lambda x: x | dict(v=x["v"][..., :8]), "K and V of 16"),
    ],
)
def test_what_the_kernels_do_not_take(change, words):
    """Guards the door: dtypes and widths that no kernel is made for."""
    x = change(stream(4, 32, 32))
    token = {name: a[:, 0] for name, a in x.items() if name != "lambda_0"}
    start = ops.start_state(1, 2, x["v"].shape[3], x["k"].shape[3], device=DEVICE)
    with pytest.raises(ValueError, match=f"^backend .*{words}.*expected"):
        vla(**x, backend="triton")
    with pytest.raises(ValueError, match=f"^backend .*{words}.*expected"):
        vla_step(**token, state=start, backend="triton")


def test_a_float64_state_is_refused():
    """Guards a State that asks for more than the kernels have."""
    x = {name: a for name, a in stream(4, 32, 32).items() if name != "lambda_0"}
    start = State(*(part.double() for part in states(1, 32, 32).values()))
    with pytest.raises(ValueError, match=r"^backend .*not float64.*expected"):
        vla(**x, initial_state=start, backend="triton")


# ---- the plan -----------------------------------------------------------------------------------------------------


def tokens_of(tiles, sequence):
    """The tokens of a sequence in the order of its chunks."""
    low, high = tiles.first[sequence : sequence + 2].tolist()
    spans = zip(tiles.start[low:high].tolist(), tiles.size[low:high].tolist(), strict=True)
    return [t for start, size in spans for t in range(start, start + size)]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=5).map(tuple),
    H=st.integers(1, 20),
    anchor=st.integers(1, 8),
    programs=st.sampled_from((1, 20, 1024)),
    part=st.sampled_from((1, 500, 5000, 2**17)),
)
def test_plan(lengths, H, anchor, programs, part):
    """Guards the cuts: every token in one chunk of the call and in one of the parts, in order; anchors likewise."""
    with small_plan(ANCHOR=anchor, PROGRAMS=programs, PART=part):
        whole, parts, keep, rows, kept = plan.plan(lengths, H, torch.device("cpu"))
    chunks = [-(-length // plan.CHUNK) for length in lengths]
    limit = max(1, part // (plan.CHUNK * H))
    assert len(parts) <= 1 + 2 * sum(chunks) // limit
    begin, used = 0, []
    for n, length in enumerate(lengths):
        wanted = list(range(begin, begin + length))
        assert tokens_of(whole, n) == wanted
        assert [t for one in parts for t in tokens_of(one, n)] == wanted
        begin += length
        low, alive = whole.first[n], [p for p, one in enumerate(parts) if one.first[n + 1] > one.first[n]]
        starts = [parts[p].first[n] for p in alive]  # the state at a part's start is kept, and no other
        at = [whole.start.tolist().index(parts[p].start[i]) for p, i in zip(alive, starts, strict=True)]
        assert [keep[i] for i in at] == [rows[p][n] for p in alive] and at[0] == low
        assert (keep[low : whole.first[n + 1]] >= 0).sum() == len(alive)
        used += [int(keep[i]) for i in at]
    assert used == list(range(kept)) and len(rows) == len(parts)
    step = min(anchor, max(1, sum(lengths) * H // (plan.CHUNK * programs)))
    for tiles in (whole, *parts):
        assert tiles.size.max() <= plan.CHUNK
        assert tiles is whole or len(tiles.start) <= limit or tiles.first.diff().max() == 1
        edges = tiles.first.tolist(), tiles.anchor.tolist(), tiles.first_anchor.tolist()
        assert all(x == sorted(x) and x[0] == 0 for x in edges)
        assert (
            tiles.first[-1] == tiles.anchor[-1] == len(tiles.start) and tiles.first_anchor[-1] == len(tiles.anchor) - 1
        )
        assert tiles.anchor[tiles.first_anchor].tolist() == tiles.first.tolist()  # no anchor lies in two sequences
        assert tiles.anchor.diff().max() <= step and tiles.anchor.diff().min() >= 1
    assert whole.first.diff().tolist() == chunks
    assert whole.first_anchor.diff().tolist() == [-(-n // step) for n in chunks]
