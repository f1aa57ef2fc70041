"""Layers for networks: what all memories share, and Variational Linear Attention. `vla_teach.rivals` has the others.

`layer(x [B, T, D], state=None) -> (y [B, T, D], state)`: a sequence fed in pieces, each with the state that the last
one returned, gives what one pass gives. All layers have one shell, so that they differ in the memory rule alone:
projections to q, k, v, a short causal convolution on each, the memory, a norm, a projection back.
Letters as in `vla_teach.ops`: H heads, K and V the widths of a key and a value in each. It needs PyTorch.
"""

import math
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_teach import ops
from vla_teach.checks import check_count, check_gain
from vla_teach.tensor_checks import FINITE, check_lambda, check_numbers, check_shape, check_tensor

EPS = 1e-6  # added to mean squares in norms, and the least divisor of z; small, as o / z shrinks with the tokens


class LayerState(NamedTuple):
    """What a layer carries on from piece to piece; None where its memory has no such part. All is differentiable."""

    tokens: int = 0  # seen so far
    conv: Tensor | None = None  # [B, conv - 1, H (2 K + V)]  the convolution's last inputs
    S: Tensor | None = None  # [B, H, V, K]  the memory itself
    A: Tensor | None = None  # [B, H, K, K]  inverse penalty (VLA)
    gram: Tensor | None = None  # [B, H, K, K]  ridge + sum of beta k k^T (MesaNet)
    z: Tensor | None = None  # [B, H, K]  sum of features, for the normaliser
    keys: Tensor | None = None  # [B, tokens, H, K]  grows: softmax attention's cache, relations of VLA
    values: Tensor | None = None  # [B, tokens, H, V]


# ---- the shell --------------------------------------------------------------------------------------------------


class MemoryLayer(nn.Module):
    """What all layers share. One that inherits it gives `shapes`, `memory` and, where it needs them, `inputs`.

    width D of the input; heads H; key_width K and value_width V of one head, D / H where None.
    conv: width of the causal depthwise convolution on q, k and v, 0 for none; activation after it, "silu" or None.
    output_norm: True for an RMSNorm over each head's output, "layer" for a LayerNorm over all of them, False for none.
    bias: whether the projections have one.
    Raises ValueError or TypeError naming the argument that does not fit, when built and when called.
    """

    precise = True  # computed in float32 at least, even under autocast

    def __init__(
        self, width: int, heads: int, key_width: int | None = None, value_width: int | None = None, conv: int = 4,
        output_norm: bool | Literal["layer"] = True, activation: Literal["silu"] | None = "silu", bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.heads = check_count("width", width), check_count("heads", heads)
        if None in (key_width, value_width) and width % heads:
            raise ValueError(f"heads is {heads}; expected a divisor of width {width}, or key_width and value_width")
        self.key_width = check_count("key_width", width // heads if key_width is None else key_width)
        self.value_width = check_count("value_width", width // heads if value_width is None else value_width)
        self.conv_width = check_count("conv", conv, least=0)
        self.activation = check_option("activation", activation, ("silu", None))
        check_option("output_norm", output_norm, (True, False, "layer"))
        self.splits = (heads * self.key_width, heads * self.key_width, heads * self.value_width)
        self.qkv = nn.Linear(width, sum(self.splits), bias=check_option("bias", bias, (True, False)))
        self.conv = self.norm = self.layer_norm = None
        if conv:
            self.conv = nn.Parameter(torch.empty(conv, sum(self.splits)).uniform_(-1, 1) / math.sqrt(conv))
        if output_norm == "layer":
            self.layer_norm = nn.LayerNorm(self.splits[2])
        elif output_norm:
            self.norm = nn.RMSNorm(self.value_width, eps=EPS)
        self.out = nn.Linear(self.splits[2], width, bias=bias)

    def forward(
        self, x: Tensor, state: LayerState | None = None, relation: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """x [B, T, D], LayerState or None -> (y [B, T, D], LayerState). relation: see VariationalLinearAttention."""
        check_tensor("x", x, self.out.weight.device)
        check_shape("x", x, x.ndim == 3 and x.numel() and x.shape[2] == self.width, f"[B, T, {self.width}], none 0")
        check_numbers("x", x, torch.isfinite, FINITE)
        qkv, tokens = self.qkv(x), x.shape[1]
        dtype = self.dtype(qkv, state)
        state = self.start(len(x), dtype, x.device) if state is None else self.check_state(state, len(x), dtype, x)
        q, k, v, past = self.shift(qkv, state.conv)
        extra = {name: value.to(dtype) for name, value in self.inputs(x).items()}
        if relation is not None:
            extra["relation"] = self.check_relation(relation, x, state).to(dtype)
        enabled = torch.is_autocast_enabled(x.device.type) and not self.precise
        with torch.autocast(x.device.type, enabled=enabled):  # products in bfloat16 would spoil the solves
            o, parts = self.memory(*(a.to(dtype) for a in (q, k, v)), state, **extra)
        return self.read(o, qkv.dtype), state._replace(tokens=state.tokens + tokens, conv=past, **parts)

    def shift(self, qkv: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k [B, T, H, K], v [B, T, H, V] after the convolution, and the inputs that the next piece needs."""
        if self.conv is not None:
            padded = torch.cat([past.to(qkv.dtype), qkv], 1)
            T, weight = qkv.shape[1], self.conv.to(qkv.dtype)
            qkv = sum(padded[:, i : i + T] * weight[i] for i in range(self.conv_width))
            qkv = F.silu(qkv) if self.activation else qkv
            past = padded[:, T:].clone()  # a view would keep the whole piece in memory
        return *(a.unflatten(2, (self.heads, -1)) for a in qkv.split(self.splits, 2)), past

    def read(self, o: Tensor, dtype: torch.dtype) -> Tensor:
        """Norm and projection of o [B, T, H, V], rounded to dtype after the norm."""
        if self.norm is not None:
            o = self.norm(o.to(self.norm.weight.dtype))
        o = o.flatten(2)
        if self.layer_norm is not None:
            o = self.layer_norm(o.to(self.layer_norm.weight.dtype))
        return self.out(o.to(dtype))

    # what a memory says of itself

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of every part of its state for one sequence, None for the axis that grows with the tokens."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        """What the memory takes from x [B, T, D] besides q, k and v, by name; `memory` gets it under these names."""
        return {}

    def memory(self, q: Tensor, k: Tensor, v: Tensor, state: LayerState, **inputs: Tensor) -> tuple[Tensor, dict]:
        """q, k [B, T, H, K], v [B, T, H, V], LayerState -> (o [B, T, H, V], the new parts of the state by name)."""
        raise NotImplementedError

    # states

    def dtype(self, x, state):
        """The dtype to compute in: float64 if x or the state has it, else float32, if it matters to this memory."""
        if not self.precise:
            return x.dtype
        parts = (x, *state) if isinstance(state, LayerState) else (x,)
        double = any(getattr(part, "dtype", None) == torch.float64 for part in parts)
        return torch.float64 if double else torch.float32

    def all_shapes(self):
        """`shapes` with the shell's own part."""
        conv = {"conv": (self.conv_width - 1, sum(self.splits))} if self.conv_width else {}
        return conv | self.shapes()

    def start(self, B: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> LayerState:
        """The LayerState of B sequences before any token."""
        shapes = self.all_shapes().items()
        zeros = {name: torch.zeros(B, *(n or 0 for n in shape), dtype=dtype, device=device) for name, shape in shapes}
        return LayerState(**zeros)

    def check_state(self, state, B, dtype, x):
        """A state that the caller handed back, its parts in dtype."""
        if not isinstance(state, LayerState):
            raise TypeError(f"state is a {type(state).__name__}; expected the LayerState that this layer returned")
        shapes, parts = self.all_shapes(), {}
        for name, part in state._asdict().items():
            if name != "tokens" and (part is None) != (name not in shapes):
                raise ValueError(f"state.{name} is {'missing' if part is None else 'not of this memory'}; "
                                 "expected the LayerState that this layer returned")  # fmt: skip
            if name in shapes:
                check_tensor(f"state.{name}", part, x.device)
                wanted = [B, *(state.tokens if n is None else n for n in shapes[name])]
                check_shape(f"state.{name}", part, list(part.shape) == wanted, f"{wanted}")
                parts[name] = part.to(dtype)
        return state._replace(**parts)

    def check_relation(self, relation, x, state):
        raise ValueError(f"relation is given to {type(self).__name__}; expected None, as only VLA can use it")


# ---- Variational Linear Attention -------------------------------------------------------------------------------


# Every option of the memory rule, as usual and as published. Only lambda_0 / u_scale^2 matters to a normalised gain.
USUAL = dict(
    features="l2",  # "elu+1", made unit length for keys, or "l2": keys and queries of unit length and any sign
    gain="unit",  # "unit", "interpolate" or "least_squares", as in ops.vla
    penalty="projected",  # the direction u: "projected" W_u k, unit length; "key": u = k; "free": elu+1 of W_u x, any
    #                       length; "relation": given with the input; None: no penalty, which leaves the delta rule
    rank=1,  # directions a token, for "projected" and "free"
    u_scale=None,  # what u is multiplied with, 1/sqrt(K) where None; not for "relation", which has
    gamma=1.0,  # u = sqrt(gamma) sum of W_tj k_j, j <= t
    write_gate=None,  # "beta" writes sigmoid(w.x) of the error (DeltaNet). "lambda" divides by 1 + lambda_t with
    #                   lambda_t = exp(-w.x) (the paper's learned penalty of a token): the same number by another name
    z_normaliser=False,  # divides o by the sum of phi(k) . phi(q); an output norm undoes it
    nudge=0.0,  # added to the diagonal of A every 20 tokens; then in a slow loop
    conv=4,
    output_norm=True,
    activation="silu",
    bias=False,
)
PUBLISHED = USUAL | dict(features="elu+1", z_normaliser=True, nudge=1e-3, conv=0, output_norm=False)
NUDGE_EVERY = 20


class VariationalLinearAttention(MemoryLayer):
    """Variational Linear Attention (arXiv 2605.11196): the error is written along A k, A the inverse penalty.

    lambda_0: above 0; learn_lambda_0: one a head, learned from there (as a softplus, so it stays above 0).
    faithful: take the options that are not given from PUBLISHED, the paper's third version to the letter, and not from
    USUAL. The published code moreover has output_norm="layer" and bias=True; give them to have its layer.
    backend: for `ops.vla`; "auto" also decodes single tokens in their own step.
    options: see USUAL for their names and meaning. Errors as for `MemoryLayer`.

    With penalty="relation" a call also takes relation [B, T, tokens so far, T among them]: row t holds W_tj, as
    `normalise_relation` makes it, for every token j seen; entries for later tokens are not looked at.
    """

    def __init__(
        self, width: int, heads: int, key_width: int | None = None, value_width: int | None = None,
        lambda_0: float = 0.1, learn_lambda_0: bool = False, backend: ops.Backend = "auto", faithful: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        if unknown := sorted(options.keys() - USUAL.keys()):
            raise TypeError(f"{unknown[0]} is no option of this layer; expected some of {', '.join(USUAL)}")
        check_option("faithful", faithful, (True, False))
        options = (PUBLISHED if faithful else USUAL) | options
        shell = {name: options[name] for name in ("conv", "output_norm", "activation", "bias")}
        super().__init__(width, heads, key_width, value_width, **shell)
        check_options(options, lambda_0, learn_lambda_0, backend)
        self.options, self.backend, H, K = options, backend, heads, self.key_width
        for name in ("features", "gain", "penalty", "rank", "gamma", "z_normaliser", "nudge"):
            setattr(self, name, options[name])
        self.u_scale = 1 / math.sqrt(K) if options["u_scale"] is None else options["u_scale"]
        self.gate = nn.Linear(width, H, bias=False) if options["write_gate"] else None
        if self.penalty == "projected":
            self.W_u = nn.Parameter(torch.empty(H, self.rank, K, K).uniform_(-1, 1) / math.sqrt(K))
        elif self.penalty == "free":
            self.W_u = nn.Linear(width, H * self.rank * K, bias=False)
        self.first_lambda_0, self.raw_lambda_0 = float(lambda_0), None
        if learn_lambda_0:
            self.raw_lambda_0 = nn.Parameter(torch.full((H,), inverse_softplus(self.first_lambda_0)))

    @property
    def lambda_0(self) -> float | Tensor:
        """A number, or where it is learned a tensor [H]."""
        return self.first_lambda_0 if self.raw_lambda_0 is None else F.softplus(self.raw_lambda_0)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        H, K, V = self.heads, self.key_width, self.value_width
        shapes = dict(S=(H, V, K), A=(H, K, K))
        shapes |= dict(z=(H, K)) if self.z_normaliser else {}
        return shapes | (dict(keys=(None, H, K)) if self.penalty == "relation" else {})

    def start(self, B: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> LayerState:
        A = ops.start_state(B, self.heads, self.value_width, self.key_width, self.lambda_0, dtype, device).A
        return super().start(B, dtype, device)._replace(A=A)

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        inputs = {} if self.gate is None else dict(beta=self.write_share(x))
        return inputs | (dict(free=F.elu(self.W_u(x)) + 1) if self.penalty == "free" else {})

    def write_share(self, x: Tensor) -> Tensor:
        """beta [B, T, H], the share of each token's error that is written; lambda_t = 1 / beta - 1."""
        return torch.sigmoid(self.gate(x))

    def memory(self, q, k, v, state, beta=None, free=None, relation=None):
        raw, parts = k, {}
        if self.features == "elu+1":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            if self.z_normaliser:
                z = state.z[:, None] + k.cumsum(1)
                size = (z * q).sum(-1, keepdim=True).clamp(min=EPS)
                parts["z"] = z[:, -1]
        else:
            q = F.normalize(q, dim=-1)
        k = F.normalize(k, dim=-1)
        if self.penalty == "relation":
            if relation is None:
                raise ValueError('relation is missing; expected [B, T, T], as penalty is "relation"')
            parts["keys"] = torch.cat([state.keys, k], 1)
        u = self.directions(raw, k, free, relation, parts.get("keys"))
        o, parts["S"], parts["A"] = self.write(q, k, v, u, beta, state)
        return o / size if self.z_normaliser else o, parts

    def directions(self, raw, k, free, relation, keys):
        """u [B, T, H, K] or [B, T, H, R, K] from the keys before and after the feature map, or what else it needs."""
        if self.penalty == "projected":
            return F.normalize(torch.einsum("bthk,hrjk->bthrj", raw, self.W_u.to(raw.dtype)), dim=-1) * self.u_scale
        if self.penalty == "free":
            return free.unflatten(2, (self.heads, self.rank, -1)) * self.u_scale
        if self.penalty == "relation":
            return math.sqrt(self.gamma) * torch.einsum("btj,bjhk->bthk", relation, keys)
        return k * self.u_scale if self.penalty == "key" else torch.zeros_like(k)

    def write(self, q, k, v, u, beta, state):
        """o, S, A by the operation, or by the loop with the nudge."""
        start = ops.State(state.S, state.A)
        if self.nudge:
            return nudged(q, k, v, u, beta, start, self.gain, self.nudge, state.tokens)
        if self.backend == "auto" and k.shape[1] == 1:  # decoding
            token = (x if x is None else x[:, 0] for x in (q, k, v, u))
            o, last = ops.vla_step(*token, start, None if beta is None else beta[:, 0], self.gain)
            return o[:, None], *last
        options = dict(gain=self.gain, initial_state=start, output_final_state=True, backend=self.backend)
        o, last = ops.vla(q, k, v, u, beta, **options)
        return o, *last

    def check_relation(self, relation, x, state):
        if self.penalty != "relation":
            raise ValueError(f'relation is given while penalty is {self.penalty!r}; expected penalty="relation"')
        check_tensor("relation", relation, x.device)
        (B, T, _), P = x.shape, state.tokens
        wanted = f"[B, T, tokens so far] = [{B}, {T}, {P + T}]"
        check_shape("relation", relation, relation.shape == (B, T, P + T), wanted)
        check_numbers("relation", relation, torch.isfinite, FINITE)
        return relation.tril(P)  # to tokens that have come

    def extra_repr(self):
        changed = {name: value for name, value in self.options.items() if value != USUAL[name]}
        return ", ".join(f"{name}={value!r}" for name, value in (dict(lambda_0=self.first_lambda_0) | changed).items())


def nudged(q, k, v, u, beta, state, gain, nudge, tokens=0):
    """`ops.recurrent` with what the published code adds: a clamp on the denominator, and a nudge of A.

    A + nudge I every 20 tokens is no longer the inverse of M: where M has grown large, the nudge makes A forget it.
    Shapes as for `ops.vla`; tokens: how many came before. Returns (o, S, A).
    """
    (S, A), outputs = state, []
    u = u if u.ndim == 5 else u.unsqueeze(3)
    beta = k.new_ones(k.shape[:3]) if beta is None else beta
    for t, (q_t, k_t, v_t, u_t, beta_t) in enumerate(zip(*(x.unbind(1) for x in (q, k, v, u, beta)), strict=True)):
        for row in u_t.unbind(2):
            Au = ops.matvec(A, row)
            A = A - ops.outer(Au, Au) / (1 + (row * Au).sum(-1)).clamp(min=1e-4)[..., None, None]
        if (tokens + t + 1) % NUDGE_EVERY == 0:
            A = A + nudge * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        g = beta_t[..., None] * ops.write_gain(ops.matvec(A, k_t), k_t, gain)
        S = S + ops.outer(v_t - ops.matvec(S, k_t), g)
        outputs.append(ops.matvec(S, q_t))
    return torch.stack(outputs, 1), S, A


def normalise_relation(adjacency: Tensor) -> Tensor:
    """D^-1/2 A_rel D^-1/2 for A_rel [..., T, T], no entry below 0, D the sums of its rows; rows of zeros stay zero.

    D counts relations to later tokens, too: where those must stay unknown, cut them off first (`adjacency.tril()`).
    Raises ValueError or TypeError where adjacency is no tensor of such matrices.
    """
    check_tensor("adjacency", adjacency, getattr(adjacency, "device", None))
    square = adjacency.ndim >= 2 and adjacency.shape[-1] == adjacency.shape[-2]
    check_shape("adjacency", adjacency, square, "[..., T, T]")
    check_numbers("adjacency", adjacency, lambda x: (x >= 0) & x.isfinite(), "has entries below 0; expected weights")
    degree = adjacency.sum(-1)
    root = torch.where(degree > 0, degree, 1).rsqrt()
    return adjacency * root[..., None] * root[..., None, :]


# ---- diagnostics ------------------------------------------------------------------------------------------------


class Penalty(NamedTuple):
    """What can be read off a VLA layer's state, a head each."""

    M: Tensor  # [B, H, K, K]  the penalty, the inverse of A
    A: Tensor  # [B, H, K, K]
    S: Tensor  # [B, H, V, K]
    norm_S: Tensor  # [B, H]  Frobenius
    norm_A: Tensor  # [B, H]
    cond_M: Tensor  # [B, H]  largest over smallest eigenvalue


def read_penalty(state: LayerState) -> Penalty:
    """The Penalty of a LayerState that VariationalLinearAttention returned; without gradient, in float64.

    Raises ValueError for the state of another layer.
    """
    if getattr(state, "A", None) is None or getattr(state, "S", None) is None:
        raise ValueError("state has no A; expected the LayerState that a VariationalLinearAttention returned")
    S, A = state.S.detach().double(), state.A.detach().double()
    eigenvalues = torch.linalg.eigvalsh(A)
    norms = (torch.linalg.matrix_norm(x) for x in (S, A))
    return Penalty(torch.linalg.inv(A), A, S, *norms, eigenvalues[..., -1] / eigenvalues[..., 0])


# ---- checks and tools -------------------------------------------------------------------------------------------


def check_option(name, value, allowed):
    """One of a few values; 1 is not taken for True."""
    if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return value


def check_above(name, value, least=0.0):
    """A finite number above `least`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected a number")
    if not least < value < math.inf:
        raise ValueError(f"{name} is {value}; expected a finite number above {least}")


def check_options(options, lambda_0, learn_lambda_0, backend):
    """The options of VariationalLinearAttention, each by itself and together."""
    check_option("features", options["features"], ("elu+1", "l2"))
    check_gain(options["gain"])
    check_option("penalty", options["penalty"], ("projected", "key", "free", "relation", None))
    check_option("write_gate", options["write_gate"], (None, "beta", "lambda"))
    check_option("z_normaliser", options["z_normaliser"], (True, False))
    check_option("learn_lambda_0", learn_lambda_0, (True, False))
    check_count("rank", options["rank"])
    check_above("gamma", options["gamma"])
    check_above("lambda_0", lambda_0)
    check_lambda(lambda_0, 1, torch.float32)
    ops.check_backend(backend)
    if options["u_scale"] is not None:
        check_above("u_scale", options["u_scale"])
    if options["nudge"] != 0:
        check_above("nudge", options["nudge"])
        if backend != "auto":
            raise ValueError(f'backend is {backend!r} while there is a nudge, which has its own loop; expected "auto"')
    if options["rank"] > 1 and options["penalty"] not in ("projected", "free"):
        raise ValueError(f"rank is {options['rank']} while penalty is {options['penalty']!r}; expected 1")
    if options["z_normaliser"] and options["features"] != "elu+1":
        raise ValueError('z_normaliser is on while features are "l2", whose sums may be 0; expected features="elu+1"')
    if learn_lambda_0 and options["penalty"] is None and options["gain"] != "least_squares":
        raise ValueError("learn_lambda_0 is on while there is no penalty, where it changes nothing; expected False")


def inverse_softplus(y):
    """x with log(1 + e^x) = y, for a number above 0."""
    return y + math.log(-math.expm1(-y))
