"""Who is measured: VLA's back ends and kernels of others, each beside a slow and certain form of its own rule."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_teach.ops import vla, vla_step

LAMBDA_0, GAIN = 0.1, "unit"
CG_STEPS = 30
SOFTMAX = ("flash", "cudnn")  # the kernels of the one rule that all others are to beat
FORWARD, BOTH = PASSES = "forward", "forward+backward"


class Contestant(NamedTuple):
    """A function of some of the tensors that `draw` gives."""

    about: str
    takes: tuple  # the names of its tensors
    load: Callable  # () -> a function of these tensors -> o; an ImportError where it is not installed
    reference: Callable  # the same rule, written out, on the same tensors in float64
    limits: dict  # the largest relative error allowed, by dtype; it takes no other dtypes
    check_T: int  # tokens of its check
    long: bool = False  # checked at the largest T too, where heads are independent and the reference is fast
    backward: bool = True
    arrange: Callable = dict  # its tensors as it wants them: another layout or dtype
    fits: Callable = lambda T, passes: True  # which sizes are worth their time


def draw(B, T, H, D, dtype, device, generator):
    """Random tensors for one measurement.

    q, v [B, T, H, D] normal, k of length 1, u of length 1 / sqrt(D) as in the paper, beta [B, T, H] in (0, 1), all in
    dtype. For MesaNet, in float32: g [B, T, H] below 0, the logarithm of a weak decay, and lamb [H, D] above 0.25.
    """

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device)

    q, k, v, u = (normal(B, T, H, D) for _ in range(4))
    x = dict(q=q, k=F.normalize(k, dim=-1), v=v, u=F.normalize(u, dim=-1) / D**0.5, beta=normal(B, T, H).sigmoid())
    x = {name: tensor.to(dtype) for name, tensor in x.items()}
    return x | dict(g=F.logsigmoid(normal(B, T, H) + 6), lamb=F.softplus(normal(H, D)) + 0.25)


def missing(error):
    """Whether an error says that something is not there, rather than that it is broken."""
    words = str(error)
    absent = isinstance(error, ValueError) and "which is not available" in words
    return isinstance(error, ImportError) or absent or words.endswith("unexpected keyword argument 'backend'")


# ---- VLA --------------------------------------------------------------------------------------------------------


def load_vla(backend):
    return partial(vla_output, backend=backend)


def load_token():
    from vla_teach.kernels.token import vla_token

    return partial(vla_token, lambda_0=LAMBDA_0, gain=GAIN)


def load_step(backend):
    return partial(vla_step, gain=GAIN, backend=backend)


def vla_output(q, k, v, u, beta, backend="chunk"):
    return vla(q, k, v, u, beta, LAMBDA_0, GAIN, backend=backend)[0]


def loop_fits(T, passes):
    """The loop takes a time in proportion to T, seconds for long texts: one short size and the one of the paper."""
    return T <= 1024 or (T == 16384 and passes == FORWARD)


# ---- kernels of others ------------------------------------------------------------------------------------------


def load_softmax(backend):
    def attention(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attention


def load_deltanet():
    from fla.ops.delta_rule import chunk_delta_rule

    return lambda q, k, v, beta: chunk_delta_rule(q, k, v, beta)[0]


def load_mesanet():
    from fla.ops.mesa_net import chunk_mesa_net

    return lambda q, k, v, beta, g, lamb: chunk_mesa_net(q, k, v, g, beta, lamb, max_CG_iteration=CG_STEPS)[0]


def heads_first(tensors):
    """[B, T, H, D] -> [B, H, T, D], which PyTorch's attention wants."""
    return {name: x.transpose(1, 2).contiguous() for name, x in tensors.items()}


def float_beta(tensors):
    """MesaNet wants beta in float32."""
    return tensors | dict(beta=tensors["beta"].float())


def softmax_attention(q, k, v):
    """Causal attention. q, k, v [B, H, T, D]."""
    T, D = q.shape[2:]
    scores = q @ k.mT / D**0.5
    return scores.masked_fill(torch.ones(T, T, dtype=bool, device=q.device).triu(1), -torch.inf).softmax(-1) @ v


def delta_rule(q, k, v, beta):
    """S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t / sqrt(D), token by token. [B, T, H, D]."""
    S, outputs = 0, []
    for q_t, k_t, v_t, beta_t in zip(*(x.unbind(1) for x in (q, k, v, beta)), strict=True):
        error = v_t - (S * k_t[..., None, :]).sum(-1)
        S = S + (beta_t[..., None] * error)[..., None] * k_t[..., None, :]
        outputs.append((S * q_t[..., None, :]).sum(-1))
    return torch.stack(outputs, 1) / q.shape[-1] ** 0.5


def least_squares(q, k, v, beta, g, lamb):
    """MesaNet's rule, solved exactly: o_t = Y_t (X_t + diag(lamb))^{-1} q_t with the sums over tokens s <= t

    X_t = sum w_ts k_s k_s^T, Y_t = sum w_ts v_s k_s^T, w_ts = beta_s exp(g_{s+1} + ... + g_t). q, k, v [B, T, H, D];
    beta, g [B, T, H]; lamb [H, D]. Source: fla 0.6, naive_mesa_net_exact; arXiv 2506.05233.
    """
    X, Y, both = 0, 0, []
    for k_t, v_t, beta_t, g_t in zip(*(x.unbind(1) for x in (k, v, beta, g)), strict=True):
        decay, row = g_t.exp()[..., None, None], (beta_t[..., None] * k_t)[..., None, :]
        X, Y = decay * X + k_t[..., None] * row, decay * Y + v_t[..., None] * row
        both.append((X, Y))
    X, Y = (torch.stack(sums, 1) for sums in zip(*both, strict=True))
    return (Y @ torch.linalg.solve(X + torch.diag_embed(lamb), q)[..., None]).squeeze(-1)


# ---- all of them ------------------------------------------------------------------------------------------------

VLA = dict(
    takes=("q", "k", "v", "u", "beta"), reference=vla_output, check_T=1000, long=True,
    limits=dict(bfloat16=5e-3, float16=5e-3, float32=1e-5),
)  # fmt: skip
PEER = dict(limits=dict(bfloat16=2e-2, float16=2e-2), check_T=300)
CONTESTANTS = dict(
    flash=Contestant(
        "softmax attention, FlashAttention in PyTorch", ("q", "k", "v"),
        partial(load_softmax, SDPBackend.FLASH_ATTENTION), softmax_attention, arrange=heads_first, **PEER,
    ),
    cudnn=Contestant(
        "softmax attention, cuDNN's kernel in PyTorch", ("q", "k", "v"),
        partial(load_softmax, SDPBackend.CUDNN_ATTENTION), softmax_attention, arrange=heads_first, **PEER,
    ),
    vla_triton=Contestant("VLA in Triton", load=partial(load_vla, "triton"), **VLA),
    vla_chunk=Contestant("VLA, chunked, in PyTorch", load=partial(load_vla, "chunk"), **VLA),
    vla_token=Contestant("VLA, the paper's fused kernel", load=load_token, backward=False, **VLA),
    vla_loop=Contestant(
        "VLA, token by token in PyTorch", load=partial(load_vla, "recurrent"), fits=loop_fits, **VLA | dict(long=False)
    ),
    deltanet=Contestant("DeltaNet, chunked, fla", ("q", "k", "v", "beta"), load_deltanet, delta_rule, **PEER),
    mesanet=Contestant(
        f"MesaNet, chunked, {CG_STEPS} steps of conjugate gradients, fla", ("q", "k", "v", "beta", "g", "lamb"),
        load_mesanet, least_squares, arrange=float_beta, **PEER,
    ),
)  # fmt: skip
STEPS = dict(triton=partial(load_step, "triton"), recurrent=partial(load_step, "recurrent"))
