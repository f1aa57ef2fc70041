"""Layers: each against a naive loop, in one piece and in many; gradients, causality, options, manners."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from oracle_layers import RELATED, RIVALS, VLA_OPTIONS, build, check_layer, in_pieces, naive_vla, parts, x_and_relation
from oracle_torch import close
from torch.nn import functional as F

from vla_teach import layers, ops, rivals
from vla_teach.layers import LayerState, VariationalLinearAttention, normalise_relation, nudged, read_penalty

VLA = {f"vla, {name}": (VariationalLinearAttention, options) for name, options in VLA_OPTIONS.items()}
ALL = VLA | {name: (getattr(rivals, kind), options) for name, (kind, options, _) in RIVALS.items()}
every_layer = pytest.mark.parametrize(("kind", "options"), ALL.values(), ids=ALL)


pytestmark = pytest.mark.usefixtures("one_core")


# ---- against naive loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VLA_OPTIONS)
def test_vla(name):
    """Guards VLA: the naive loop, streaming, gradients. The mutation tests use the same checks."""
    options = VLA_OPTIONS[name]
    check_layer(build(VariationalLinearAttention, **options), options, naive_vla(options))


@pytest.mark.parametrize("name", RIVALS)
def test_rival(name):
    """Guards every rival in the same way."""
    kind, options, memory = RIVALS[name]
    check_layer(build(getattr(rivals, kind), **options), options, memory)


def published_v3(layer, x, nudge, z_clamp=1e-6):
    """The paper's recurrence, maths and safeguards as published, a head at a time and a formula a line."""
    B, T, _ = x.shape
    H, d = layer.heads, layer.key_width
    heads = []
    for h in range(H):
        rows = slice(h * d, h * d + d)
        W_q, W_k, W_v = (part[rows] for part in layer.qkv.weight.split(H * d))
        b_q, b_k, b_v = (part[rows] for part in layer.qkv.bias.split(H * d))
        A = torch.eye(d, dtype=x.dtype).repeat(B, 1, 1) / layer.lambda_0
        S, z, outputs = torch.zeros(B, d, d, dtype=x.dtype), torch.zeros(B, d, dtype=x.dtype), []
        for t in range(1, T + 1):
            q_t, k_t, v_t = (x[:, t - 1] @ W.T + b for W, b in ((W_q, b_q), (W_k, b_k), (W_v, b_v)))
            u = k_t @ layer.W_u[h, 0].T
            u = u / u.norm(dim=1, keepdim=True) / d**0.5
            Au = (A * u[:, None]).sum(2)
            A = A - Au[:, :, None] * Au[:, None] / (1 + (u * Au).sum(1)).clamp(min=1e-4)[:, None, None]
            if t % 20 == 0:
                A = A + nudge * torch.eye(d, dtype=x.dtype)
            phi_q, phi_k = F.elu(q_t) + 1, F.elu(k_t) + 1
            k_hat = phi_k / phi_k.norm(dim=1, keepdim=True)
            a_hat = (A * k_hat[:, None]).sum(2)
            a_hat = a_hat / a_hat.norm(dim=1, keepdim=True)
            S = S + (v_t - (S * k_hat[:, None]).sum(2))[:, :, None] * a_hat[:, None]
            z = z + phi_k
            outputs.append((S * phi_q[:, None]).sum(2) / (z * phi_q).sum(1, keepdim=True).clamp(min=z_clamp))
        heads.append(torch.stack(outputs, 1))
    o = torch.cat(heads, 2)
    return layer.out(o if layer.layer_norm is None else layer.layer_norm(o))


@pytest.mark.parametrize("norm", (False, "layer"))
def test_faithful_is_the_published_layer(norm):
    """Guards faithful=True over 70 tokens, three of them nudged, forward and gradient; and that the nudge matters."""
    torch.manual_seed(0)
    layer = VariationalLinearAttention(12, 3, faithful=True, bias=True, output_norm=norm).double()
    x = torch.randn(2, 70, 12, dtype=torch.float64)
    y, wanted = layer(x)[0], published_v3(layer, x, 1e-3)
    close(y, wanted, 1e-10)
    grads = [torch.autograd.grad(a.square().sum(), list(layer.parameters())) for a in (y, wanted)]
    close(*grads, 1e-8)
    assert (y - published_v3(layer, x, 0)).abs().max() > 1e-6
    assert layer.options["conv"] == 0 and layer.conv is None and layer.lambda_0 == 0.1


@pytest.mark.parametrize("gain", ("unit", "interpolate"))
@pytest.mark.parametrize("R", (1, 2))
def test_without_a_nudge_the_loop_is_the_operation(gain, R):
    """Guards `nudged`: with a nudge of 0 it equals ops.vla; with one, A is no longer the inverse of M."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 45, 3, n, generator=rng, dtype=torch.float64) for n in (4, 4, 5))
    u = torch.randn(2, 45, 3, R, 4, generator=rng, dtype=torch.float64)
    start = ops.start_state(2, 3, 5, 4, 0.3, torch.float64)
    o, state = ops.vla(q, k, v, u, gain=gain, initial_state=start, output_final_state=True)
    close(nudged(q, k, v, u, None, start, gain, 0.0), (o, *state), 1e-9)
    A = nudged(q, k, v, u, None, start, gain, 0.01)[2]
    assert (A - state.A).norm() > 0.1 * state.A.norm()


def test_the_lambda_gate_is_the_beta_gate():
    """Guards the claim that lambda_t = exp(-w.x) with beta = 1 / (1 + lambda_t) is the sigmoid gate: one function."""
    beta, lambda_ = (build(VariationalLinearAttention, write_gate=name) for name in ("beta", "lambda"))
    lambda_.load_state_dict(beta.state_dict())
    x, _ = x_and_relation({})
    close(beta(x)[0], lambda_(x)[0], 1e-14)
    penalty_of_token = torch.exp(-x @ beta.gate.weight.T)
    close(beta.write_share(x), 1 / (1 + penalty_of_token), 1e-14)
    close(1 / lambda_.write_share(x) - 1, penalty_of_token, 1e-12)


def test_a_shut_gate_writes_nothing():
    """Guards the gate's direction: lambda_t to infinity ignores the token, lambda_t to 0 is no gate."""
    gated, free = build(VariationalLinearAttention, write_gate="lambda"), build(VariationalLinearAttention)
    x = x_and_relation({})[0].abs()
    with torch.no_grad():
        gated.gate.weight.fill_(-1000)
        assert gated(x)[1].S.abs().max() == 0
        gated.gate.weight.fill_(1000)
        free.load_state_dict({n: p for n, p in gated.state_dict().items() if n != "gate.weight"})
    close(gated(x)[0], free(x)[0], 1e-12)


def test_no_penalty_is_the_delta_rule():
    """Guards penalty=None, the control A = I: with a write gate it is DeltaNet, for any lambda_0."""
    delta = build(rivals.DeltaNet)
    for lambda_0 in (0.1, 3):
        control = build(VariationalLinearAttention, penalty=None, write_gate="beta", lambda_0=lambda_0)
        control.load_state_dict(delta.state_dict())
        x, _ = x_and_relation({})
        close(control(x)[0], delta(x)[0], 1e-10)


def test_no_decay_is_the_delta_rule():
    """Guards the decay: a rate of 0 leaves DeltaNet, a rate beyond any leaves the last token alone; gradients stay."""
    gated, delta = build(rivals.GatedDeltaNet), build(rivals.DeltaNet)
    delta.load_state_dict({n: p for n, p in gated.state_dict().items() if n in delta.state_dict()})
    x, _ = x_and_relation({}, T=70)
    with torch.no_grad():
        gated.log_rate.fill_(-1e6)
    close(gated(x)[0], delta(x)[0], 1e-10)
    with torch.no_grad():
        gated.log_rate.fill_(8)
        gated.step.fill_(8)
    y, state = gated(x)
    y.sum().backward()
    assert torch.linalg.matrix_rank(state.S, rtol=1e-6).max() == 1
    assert all(torch.isfinite(p.grad).all() for p in gated.parameters())


def test_the_output_norm_undoes_the_z_normaliser():
    """Guards the docstring: z . phi(q) is one positive number a head and token, which an RMSNorm divides out again."""
    for kind, options in ((rivals.LinearAttention, {}), (VariationalLinearAttention, dict(features="elu+1"))):
        on, off = (build(kind, z_normaliser=z, **options) for z in (True, False))
        off.load_state_dict(on.state_dict())
        x = 3 * x_and_relation({}, T=6)[0]
        close(on(x)[0], off(x)[0], 0.05)


@pytest.mark.parametrize("options", (dict(), dict(rank=2), dict(gain="interpolate", penalty="key")))
def test_back_ends_agree(options):
    """Guards `backend`: token by token and in chunks, with decoding steps in between."""
    x, _ = x_and_relation({})
    results = []
    for backend in ("auto", "recurrent", "chunk"):
        layer = build(VariationalLinearAttention, backend=backend, **options)
        y, state = in_pieces(layer, x, [9, 1, 1, 14])
        results.append([y, *parts(state)])
    close(results[1], results[0], 1e-9)
    close(results[2], results[0], 1e-9)


# ---- streaming, causality, gradients ----------------------------------------------------------------------------


@every_layer
def test_streaming_in_float32(kind, options):
    """Guards pieces at the default chunk size, several chunks long, in float32."""
    layer = build(kind, **options).float()
    x, given = x_and_relation(options, T=150)
    x, given = x.float(), {name: a.float() / 150 for name, a in given.items()}
    y = layer(x, **given)[0]
    assert y.dtype == torch.float32 and y.shape == x.shape
    for lengths in ([64, 86], [1, 2, 147], [130] + 20 * [1]):
        close(in_pieces(layer, x, lengths, **given)[0], y, 2e-3)


@every_layer
def test_the_past_does_not_see_the_future(kind, options):
    """Guards causality: a token, and a relation to a later one, changes no output before it, and its own it does."""
    layer = build(kind, **options)
    x, given = x_and_relation(options, T=70)
    y = layer(x, **given)[0]
    for t in (1, 40, 69):
        other = x.clone()
        other[:, t] += 1
        later = layer(other, **{name: r + r.new_ones(70, 70).triu(1) for name, r in given.items()})[0]
        close(later[:, :t], y[:, :t], 1e-10)
        assert ((later - y)[:, t].abs().amax(1) > 1e-6).all()


@every_layer
def test_sequences_are_independent(kind, options):
    """Guards against mixing of the rows of a batch."""
    layer = build(kind, **options)
    x, given = x_and_relation(options, B=3, T=12)
    y = layer(x, **given)[0]
    for b in range(3):
        close(layer(x[b : b + 1], **{n: r[b : b + 1] for n, r in given.items()})[0], y[b : b + 1], 1e-11)


@every_layer
def test_gradients_reach_every_parameter(kind, options):
    """Guards against dead parameters, as built, in float32: finite gradients, none of them all zeros."""
    torch.manual_seed(0)
    layer = kind(8, 2, **options)
    x, given = x_and_relation(options, T=30, width=8)
    y, _ = layer(x.float(), **{name: r.float() for name, r in given.items()})
    y.square().sum().backward()
    for name, p in layer.named_parameters():
        assert torch.isfinite(p.grad).all(), name
        assert (p.grad != 0).any(), name


@every_layer
def test_zero_tokens_have_finite_gradients(kind, options):
    """Guards divisions: padding of zeros, all of a stretch, gives finite outputs and gradients."""
    layer = build(kind, **(options | (dict(bias=False) if "bias" in options else {})))
    x, given = x_and_relation(options)
    x[:, :8] = x[:, 15:] = 0
    x.requires_grad_()
    y, _ = layer(x, **given)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@every_layer
def test_gradients_flow_through_the_state(kind, options):
    """Guards the state: the second piece's output depends on the first piece's input."""
    layer = build(kind, **options)
    x, given = x_and_relation(options, T=20)
    first = x[:, :10].clone().requires_grad_()
    y, _ = in_pieces(layer, torch.cat([first, x[:, 10:]], 1), [10, 10], **given)
    (early,) = torch.autograd.grad(y[:, -1].square().sum(), first)
    assert (early.abs().amax((0, 2)) > 0).all()


# ---- dtypes -----------------------------------------------------------------------------------------------------


@every_layer
def test_half_precision(kind, options):
    """Guards bfloat16, of the layer and by autocast: near the float32 result, states of solves kept in float32."""
    layer = build(kind, **options).float()
    x, given = x_and_relation(options, T=24)
    x, given = x.float(), {name: r.float() / 24 for name, r in given.items()}
    y, _ = layer(x, **given)
    with torch.autocast("cpu", torch.bfloat16):
        cast, state = in_pieces(layer, x, [10, 14], **given)
        assert cast.dtype == torch.bfloat16
        assert all(getattr(state, n).dtype == torch.float32 for n in "SA" if getattr(state, n) is not None)
        cast.float().square().sum().backward()
    half = layer.bfloat16()(x.bfloat16(), **{name: r.bfloat16() for name, r in given.items()})[0]
    for low in (cast, half):
        assert (low.float() - y).norm() < 0.1 * y.norm()


def test_a_float64_state_makes_the_memory_float64():
    """Guards the way out for very long streams (see ops.State): the state stays in float64, outputs in float32."""
    layer = build(VariationalLinearAttention).float()
    x, _ = x_and_relation({})
    y, state = layer(x.float(), layer.start(2, torch.float64))
    assert y.dtype == torch.float32 and state.S.dtype == state.A.dtype == torch.float64
    close(y, layer(x.float())[0], 1e-4)


# ---- devices ----------------------------------------------------------------------------------------------------


@every_layer
def test_nothing_waits_for_another_device(kind, options, monkeypatch):
    """Guards against a look at the numbers where that costs a wait: tensors without numbers pass through."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    layer = build(kind, **options).to("meta")
    x, given = x_and_relation(options, T=70)
    x, given = x.to("meta"), {name: r.to("meta") for name, r in given.items()}
    y, state = in_pieces(layer, x, [66, 1, 3], **given)
    assert y.shape == x.shape and {part.device.type for part in parts(state)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_layer
def test_on_a_gpu(kind, options):
    """Guards the same results there, in one piece and in several, and under autocast."""
    layer = build(kind, **options)
    x, given = x_and_relation(options, T=70)
    wanted = layer(x, **given)[0]
    layer, x, given = layer.cuda(), x.cuda(), {name: r.cuda() for name, r in given.items()}
    close(layer(x, **given)[0].cpu(), wanted, 1e-9)
    close(in_pieces(layer, x, [64, 1, 5], **given)[0].cpu(), wanted, 1e-9)
    layer, x, given = layer.float(), x.float(), {name: r.float() / 70 for name, r in given.items()}
    full = layer(x, **given)[0]
    with torch.autocast("cuda", torch.bfloat16):
        low = layer(x, **given)[0]
    assert low.dtype == torch.bfloat16 and (low.float() - full).norm() < 0.1 * full.norm()


# ---- options ----------------------------------------------------------------------------------------------------


def combinations():
    """Every combination of the memory rule's options that fits together."""
    table = dict(
        features=("elu+1", "l2"), gain=("unit", "interpolate", "least_squares"),
        penalty=("projected", "key", "free", "relation", None), rank=(1, 3), write_gate=(None, "beta", "lambda"),
        z_normaliser=(False, True), nudge=(0.0, 1e-3), learn_lambda_0=(False, True),
    )  # fmt: skip
    for values in itertools.product(*table.values()):
        options = dict(zip(table, values, strict=True))
        yield (
            options,
            (
                (options["rank"] == 1 or options["penalty"] in ("projected", "free"))
                and not (options["z_normaliser"] and options["features"] == "l2")
                and not (
                    options["learn_lambda_0"] and options["penalty"] is None and options["gain"] != "least_squares"
                )
            ),
        )


def test_every_combination_of_options():
    """Guards the options together: each combination builds and runs a step, or is refused by the name of one of it."""
    x, relation = torch.randn(1, 2, 4), torch.rand(1, 2, 2)
    for options, fits in combinations():
        if not fits:
            with pytest.raises(ValueError, match=r"^(rank|z_normaliser|learn_lambda_0) is .*expected"):
                VariationalLinearAttention(4, 2, **options)
            continue
        layer = VariationalLinearAttention(4, 2, lambda_0=3, **options)
        y, state = layer(x, relation=relation if options["penalty"] == "relation" else None)
        assert y.shape == x.shape and torch.isfinite(y).all() and state.tokens == 2, options


@pytest.mark.parametrize("kind", (VariationalLinearAttention, rivals.DeltaNet, rivals.MesaNet, rivals.SoftmaxAttention))
@pytest.mark.parametrize(
    "options",
    (dict(conv=0), dict(conv=1), dict(output_norm=False), dict(output_norm="layer"), dict(bias=True),
     dict(activation=None), dict(key_width=6), dict(value_width=5, key_width=2)),
)  # fmt: skip
def test_the_shell(kind, options):
    """Guards the shell's options: pieces equal one pass, shapes are right."""
    torch.manual_seed(0)
    layer, x = kind(8, 2, **options).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    y, state = layer(x)
    close(in_pieces(layer, x, [4, 1, 4])[0], y, 1e-10)
    if state.S is not None:
        assert state.S.shape == (2, 2, options.get("value_width", 4), options.get("key_width", 4))
    assert (state.conv is None) == (options.get("conv") == 0)


def test_lambda_0():
    """Guards lambda_0: fixed or learned it starts where told, over ten powers of ten, and decides the first A."""
    for lambda_0 in (1e-6, 0.1, 1, 1e4):
        for learn in (False, True):
            layer = VariationalLinearAttention(8, 2, lambda_0=lambda_0, learn_lambda_0=learn).double()
            close(torch.as_tensor(layer.lambda_0).double(), np.full(2 if learn else (), lambda_0), 1e-4)
            close(layer.start(3, torch.float64).A, np.broadcast_to(np.eye(4) / lambda_0, (3, 2, 4, 4)), 1e-4)


def test_only_the_ratio_of_lambda_0_and_scale_matters():
    """Guards the comment on u_scale: for normalised gains lambda_0 c^2 with u_scale c is lambda_0 with u_scale 1."""
    x, _ = x_and_relation({})
    for gain in ("unit", "interpolate"):
        one, other = (
            build(VariationalLinearAttention, penalty="key", gain=gain, lambda_0=0.2 * c * c, u_scale=c) for c in (1, 3)
        )
        close(one(x)[0], other(x)[0], 1e-10)


def test_relation():
    """Guards the helper, and that related keys are what is penalised: no relation leaves the delta rule."""
    adjacency = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).double()
    wanted = np.zeros((4, 4))
    wanted[0, 1:3] = wanted[1:3, 0] = 1 / np.sqrt(2)
    close(normalise_relation(adjacency), wanted)
    layer = build(VariationalLinearAttention, **RELATED)
    x, _ = x_and_relation({}, T=4)
    state = layer(x, relation=torch.zeros(2, 4, 4).double())[1]
    close(read_penalty(state).M, np.broadcast_to(0.1 * np.eye(4), (2, 2, 4, 4)))
    state = layer(x, relation=normalise_relation(adjacency).expand(2, 4, 4))[1]
    M = read_penalty(state).M
    u = np.sqrt(0.7 / 2) * state.keys[0, 0, 0].numpy(force=True)  # of tokens 1 and 2; token 0's are still to come
    close(M[0, 0], 0.1 * np.eye(4) + 2 * np.outer(u, u))


def test_read_penalty():
    """Guards the diagnostics against the definition: M is lambda_0 I + sum of u u^T, and its numbers are NumPy's."""
    layer = build(VariationalLinearAttention, penalty="key", u_scale=2, conv=0, lambda_0=0.3)
    x, _ = x_and_relation({}, T=9)
    read = read_penalty(layer(x)[1])
    k = F.normalize(layer.qkv(x)[:, :, 8:16].unflatten(2, (2, 4)), dim=3)
    M = 0.3 * torch.eye(4, dtype=k.dtype) + 4 * torch.einsum("bthi,bthj->bhij", k, k)
    close([read.M, read.A], [M, torch.linalg.inv(M)], 1e-9)
    close(read.cond_M, np.linalg.cond(M.detach().numpy()), 1e-9)
    close(read.norm_A, np.linalg.norm(np.linalg.inv(M.detach().numpy()), axis=(2, 3)), 1e-9)
    close(read.norm_S, np.linalg.norm(read.S.numpy(), axis=(2, 3)), 1e-9)
    assert not read.M.requires_grad
    with pytest.raises(ValueError, match=r"^state has no A; expected"):
        read_penalty(LayerState())


# ---- bad input --------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "width": (dict(width=0), "width", ValueError),
    "heads": (dict(heads=3), "heads", ValueError),
    "heads, 0": (dict(heads=0), "heads", ValueError),
    "key_width": (dict(key_width=1.5), "key_width", ValueError),
    "value_width": (dict(value_width=0), "value_width", ValueError),
    "conv": (dict(conv=-1), "conv", ValueError),
    "activation": (dict(activation="relu"), "activation", ValueError),
    "output_norm": (dict(output_norm="rms"), "output_norm", ValueError),
    "bias": (dict(bias="yes"), "bias", ValueError),
    "features": (dict(features="relu"), "features", ValueError),
    "gain": (dict(gain="rls"), "gain", ValueError),
    "penalty": (dict(penalty="none"), "penalty", ValueError),
    "rank": (dict(rank=0), "rank", ValueError),
    "rank of key": (dict(rank=2, penalty="key"), "rank", ValueError),
    "u_scale": (dict(u_scale=0), "u_scale", ValueError),
    "u_scale, text": (dict(u_scale="paper"), "u_scale", TypeError),
    "gamma": (dict(gamma=-1.0), "gamma", ValueError),
    "write_gate": (dict(write_gate="sigmoid"), "write_gate", ValueError),
    "z_normaliser": (dict(z_normaliser=True), "z_normaliser", ValueError),
    "nudge": (dict(nudge=-1e-3), "nudge", ValueError),
    "nudge with a back end": (dict(nudge=1e-3, backend="chunk"), "backend", ValueError),
    "backend": (dict(backend="cuda"), "backend", ValueError),
    "lambda_0": (dict(lambda_0=0), "lambda_0", ValueError),
    "lambda_0, tiny": (dict(lambda_0=1e-50), "lambda_0", ValueError),
    "lambda_0, text": (dict(lambda_0="0.1"), "lambda_0", TypeError),
    "learn_lambda_0": (dict(learn_lambda_0=1), "learn_lambda_0", ValueError),
    "learn_lambda_0 of nothing": (dict(learn_lambda_0=True, penalty=None), "learn_lambda_0", ValueError),
    "faithful": (dict(faithful="code"), "faithful", ValueError),
    "unknown": (dict(lamda_0=0.1), "lamda_0", TypeError),
}


@pytest.mark.parametrize(("options", "name", "error"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(options, name, error):
    """Guards every option of VLA and of the shell: the error names it and says what was expected."""
    with pytest.raises(error, match=rf"^{name} is .*expected"):
        VariationalLinearAttention(**dict(width=8, heads=2) | options)


BAD_RIVALS = {
    "linear, z_normaliser": (rivals.LinearAttention, dict(z_normaliser=2), "z_normaliser"),
    "softmax, odd": (rivals.SoftmaxAttention, dict(key_width=3), "key_width"),
    "softmax, rope": (rivals.SoftmaxAttention, dict(rope=None), "rope"),
    "mesa, ridge": (rivals.MesaNet, dict(ridge=0.25), "ridge"),
    "mesa, least_ridge": (rivals.MesaNet, dict(least_ridge=0), "least_ridge"),
    "gated, steps": (rivals.GatedDeltaNet, dict(steps=(0.1, 0.1)), "steps"),
    "mamba2, rates": (rivals.Mamba2, dict(rates=(0, 1)), "rates"),
    "delta, heads": (rivals.DeltaNet, dict(heads=5), "heads"),
}


@pytest.mark.parametrize(("kind", "options", "name"), BAD_RIVALS.values(), ids=BAD_RIVALS)
def test_bad_rival_options(kind, options, name):
    """Guards the rivals' own options."""
    with pytest.raises(ValueError, match=rf"^{name} is .*expected"):
        kind(**dict(width=8, heads=2) | options)


GOOD = VariationalLinearAttention(8, 2)
X, STATE = torch.randn(2, 5, 8), GOOD(torch.randn(2, 5, 8))[1]
BAD_CALLS = {
    "x, list": (dict(x=[1.0]), "x", TypeError),
    "x, whole numbers": (dict(x=torch.ones(2, 5, 8, dtype=torch.int64)), "x", TypeError),
    "x, no batch": (dict(x=X[0]), "x", ValueError),
    "x, width": (dict(x=X[:, :, :7]), "x", ValueError),
    "x, empty": (dict(x=X[:, :0]), "x", ValueError),
    "x, NaN": (dict(x=X * torch.nan), "x", ValueError),
    "x, device": (dict(x=X.to("meta")), "x", ValueError),
    "state, of the operation": (dict(state=ops.State(STATE.S, STATE.A)), "state", TypeError),
    "state, a tensor": (dict(state=STATE.S), "state", TypeError),
    "state, no A": (dict(state=STATE._replace(A=None)), "state.A", ValueError),
    "state, too much": (dict(state=STATE._replace(z=STATE.S)), "state.z", ValueError),
    "state, batch": (dict(state=STATE._replace(S=STATE.S[:1])), "state.S", ValueError),
    "state, conv": (dict(state=STATE._replace(conv=STATE.conv[:, :2])), "state.conv", ValueError),
    "state, A not symmetric": (dict(state=STATE._replace(A=STATE.A.triu())), "initial_state.A", ValueError),
    "relation": (dict(relation=torch.ones(2, 5, 5)), "relation", ValueError),
}


@pytest.mark.parametrize(("arguments", "name", "error"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_call(arguments, name, error):
    """Guards every argument of a call."""
    with pytest.raises(error, match=rf"^{name} .*expected"):
        GOOD(**dict(x=X, state=STATE) | arguments)


def test_bad_relation():
    """Guards the relation's shape, which grows with the tokens seen, and its being there where it must be."""
    layer, x = VariationalLinearAttention(8, 2, penalty="relation"), X
    _, state = layer(x, relation=torch.rand(2, 5, 5))
    bad = (torch.rand(2, 5, 5), "has shape"), (torch.rand(2, 5, 10) * torch.nan, "holds"), (None, "is")
    for relation, words in bad:
        with pytest.raises(ValueError, match=rf"^relation {words} .*expected"):
            layer(x, state, relation)
    with pytest.raises(ValueError, match=r"^state.keys has shape"):
        layer(x, state._replace(tokens=4), torch.rand(2, 5, 9))
    with pytest.raises(ValueError, match=r"^relation is given to DeltaNet.*expected"):
        rivals.DeltaNet(8, 2)(x, relation=torch.rand(2, 5, 5))
    with pytest.raises(ValueError, match=r"^adjacency has shape"):
        normalise_relation(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"^adjacency has entries below 0"):
        normalise_relation(-torch.ones(3, 3))


def test_an_option_that_differs_is_shown():
    """Guards what print(layer) says: lambda_0, and every option that is not the usual one."""
    words = VariationalLinearAttention(8, 2, lambda_0=0.5, rank=2).extra_repr()
    assert words == "lambda_0=0.5, rank=2"
    assert set(layers.PUBLISHED) == set(layers.USUAL)
