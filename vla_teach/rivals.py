"""The memories that Variational Linear Attention is measured against, in the same shell (`vla_teach.layers`).

Each is exact and works a chunk of tokens at a time. q, k [B, T, H, K], v [B, T, H, V] as there; inside the chunk forms
heads come first and tokens in n chunks of C: [N, H, n, C, ...].
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from vla_teach import ops
from vla_teach.layers import EPS, MemoryLayer, check_above, check_option, inverse_softplus


class LinearAttention(MemoryLayer):
    """S_t = S_{t-1} + v_t phi(k_t)^T, o_t = S_t phi(q_t) with phi = elu + 1 (Katharopoulos et al., 2020).

    z_normaliser divides o by the sum of phi(k) . phi(q), as there. It is one number above 0 a head and token, so that
    the output norm undoes it; without that norm it matters.
    """

    def __init__(self, *shell, z_normaliser=True, **more_shell):
        super().__init__(*shell, **more_shell)
        self.z_normaliser = check_option("z_normaliser", z_normaliser, (True, False))

    def shapes(self):
        H, K, V = self.heads, self.key_width, self.value_width
        return dict(S=(H, V, K)) | (dict(z=(H, K)) if self.z_normaliser else {})

    def memory(self, q, k, v, state):
        q, k = F.elu(q) + 1, F.elu(k) + 1
        o, S = in_chunks(linear_chunk, (q, k, v), state.S)
        if not self.z_normaliser:
            return o, dict(S=S)
        z = state.z[:, None] + k.cumsum(1)
        return o / (z * q).sum(-1, keepdim=True).clamp(min=EPS), dict(S=S, z=z[:, -1])


class DeltaNet(MemoryLayer):
    """S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, o_t = S_t q_t (Schlag et al., 2021; Yang et al., 2024).

    Keys and queries have unit length; beta_t = sigmoid(w.x_t), one a head.
    """

    def __init__(self, *shell, **more_shell):
        super().__init__(*shell, **more_shell)
        self.gate = nn.Linear(self.width, self.heads, bias=False)

    def shapes(self):
        return dict(S=(self.heads, self.value_width, self.key_width))

    def inputs(self, x):
        return dict(beta=torch.sigmoid(self.gate(x)))

    def memory(self, q, k, v, state, beta):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        o, S = in_chunks(ops.chunk_write, (q, k, v, beta[..., None] * k), state.S)
        return o, dict(S=S)


class GatedDeltaNet(DeltaNet):
    """DeltaNet that also forgets (arXiv 2412.06464): S_{t-1} is first multiplied with a decay alpha_t.

    S_t = alpha_t S_{t-1} + beta_t (v_t - alpha_t S_{t-1} k_t) k_t^T, o_t = S_t q_t, with Mamba-2's
    log alpha_t = -rate softplus(w.x_t + step), one a head. The paper's output gate is left out: all share one shell.
    rates, steps: see `add_decay`.
    """

    def __init__(self, *shell, rates=(1.0, 16.0), steps=(1e-3, 0.1), **more_shell):
        super().__init__(*shell, **more_shell)
        add_decay(self, rates, steps)

    def inputs(self, x):
        return super().inputs(x) | dict(log_alpha=step_and_log_alpha(self, x)[1])

    def memory(self, q, k, v, state, beta, log_alpha):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        o, S = in_chunks(gated_chunk_write, (q, k, v, beta[..., None] * k, log_alpha[..., None]), state.S)
        return o, dict(S=S)


class Mamba2(MemoryLayer):
    """The state space layer of Mamba-2 (arXiv 2405.21060): linear attention that forgets, and takes steps of any size.

    S_t = alpha_t S_{t-1} + Delta_t v_t k_t^T, o_t = S_t q_t + skip v_t, with Delta_t = softplus(w.x_t + step) and
    log alpha_t = -rate Delta_t; rate, step and skip one a head. There q, k, v are called C, B, x; they have any length.
    The paper's output gate is left out and each head has its own q and k: all layers share one shell.
    rates, steps: see `add_decay`.
    """

    def __init__(self, *shell, rates=(1.0, 16.0), steps=(1e-3, 0.1), **more_shell):
        super().__init__(*shell, **more_shell)
        add_decay(self, rates, steps)
        self.skip = nn.Parameter(torch.ones(self.heads))

    def shapes(self):
        return dict(S=(self.heads, self.value_width, self.key_width))

    def inputs(self, x):
        return dict(zip(("step", "log_alpha"), step_and_log_alpha(self, x), strict=True))

    def memory(self, q, k, v, state, step, log_alpha):
        o, S = in_chunks(decayed_chunk, (q, step[..., None] * k, v, log_alpha[..., None]), state.S)
        return o + self.skip[:, None] * v, dict(S=S)


def add_decay(layer, rates, steps):
    """Gives a layer Mamba-2's learned decay: `step_and_log_alpha` has the rule.

    rates: the rates start evenly between these two; steps: the softplus starts between these two, evenly in log.
    With Mamba-2's, the usual ones, a head starts with a memory of 1 to 1000 tokens.
    """
    layer.decay = nn.Linear(layer.width, layer.heads, bias=False)
    for name, (low, high) in dict(rates=rates, steps=steps).items():
        check_above(name, low)
        check_above(name, high, low)
    layer.log_rate = nn.Parameter(torch.empty(layer.heads).uniform_(*rates).log())
    step = torch.empty(layer.heads).uniform_(*map(math.log, steps)).exp()
    layer.step = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # before the softplus


def step_and_log_alpha(layer, x):
    """Delta = softplus(w.x + step) and log alpha = -rate Delta, both [B, T, H]."""
    step = F.softplus(layer.decay(x) + layer.step)
    return step, -layer.log_rate.exp() * step


class MesaNet(MemoryLayer):
    """Least squares solved exactly at every token (arXiv 2506.05233): o_t = (sum of beta v k^T) H_t^{-1} q_t.

    H_t = ridge + sum of beta k k^T (state.gram), ridge a learned diagonal, at least `least_ridge`, from `ridge` on.
    Keys and queries have unit length, beta = sigmoid(w.x). The paper solves by conjugate gradients and also forgets;
    this solves exactly by factors (`ops.penalty_solve`) and does not forget.
    """

    def __init__(self, *shell, ridge=1.0, least_ridge=0.25, **more_shell):
        super().__init__(*shell, **more_shell)
        check_above("least_ridge", least_ridge)
        check_above("ridge", ridge, least_ridge)
        self.least_ridge = least_ridge
        self.raw_ridge = nn.Parameter(torch.full((self.heads, self.key_width), inverse_softplus(ridge - least_ridge)))
        self.gate = nn.Linear(self.width, self.heads, bias=False)

    def shapes(self):
        H, K, V = self.heads, self.key_width, self.value_width
        return dict(S=(H, V, K), gram=(H, K, K))

    def start(self, B, dtype=torch.float32, device=None):
        ridge = (self.least_ridge + F.softplus(self.raw_ridge.to(dtype))).diag_embed()
        return super().start(B, dtype, device)._replace(gram=ridge.expand(B, *ridge.shape))

    def inputs(self, x):
        return dict(root=torch.exp(F.logsigmoid(self.gate(x)) / 2))  # the root of beta, whose gradient never overflows

    def memory(self, q, k, v, state, root):
        q, k = F.normalize(q, dim=-1), root[..., None] * F.normalize(k, dim=-1)
        o, S, gram = in_chunks(mesa_chunk, (q, k, root[..., None] * v), state.S, state.gram)
        return o, dict(S=S, gram=gram)


class SoftmaxAttention(MemoryLayer):
    """Causal softmax attention (Vaswani et al., 2017), whose state is every key and value so far.

    rope: rotary positions (arXiv 2104.09864). On by default: the convolution tells a token its neighbours, but no
    distances beyond them, and the models here have no other positions unless asked for.
    """

    precise = False  # torch's attention keeps its own sums in float32

    def __init__(self, *shell, rope=True, **more_shell):
        super().__init__(*shell, **more_shell)
        self.rope = check_option("rope", rope, (True, False))
        if rope and self.key_width % 2:
            raise ValueError(f"key_width is {self.key_width} while rope is on; expected an even number, or rope=False")

    def shapes(self):
        return dict(keys=(None, self.heads, self.key_width), values=(None, self.heads, self.value_width))

    def memory(self, q, k, v, state):
        if self.rope:
            q, k = rotate(q, state.tokens), rotate(k, state.tokens)
        k, v = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
        T, past, heads_first = q.shape[1], state.tokens, [x.transpose(1, 2) for x in (q, k, v)]
        if past and T > 1:
            mask = torch.ones(T, past + T, dtype=torch.bool, device=q.device).tril(past)
            o = F.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        else:
            o = F.scaled_dot_product_attention(*heads_first, is_causal=not past)
        return o.transpose(1, 2), dict(keys=k, values=v)


def rotate(x, start):
    """x [B, T, H, K] with the pair (i, i + K/2) turned by position / 10000^(2 i / K), positions from `start` on."""
    T, K = x.shape[1], x.shape[3]
    speed = 10000.0 ** (-torch.arange(0, K, 2, dtype=torch.float64, device=x.device) / K)
    angle = torch.arange(start, start + T, dtype=torch.float64, device=x.device)[:, None, None] * speed  # [T, 1, K/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, 3)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], 3)


# ---- chunk forms ------------------------------------------------------------------------------------------------


def in_chunks(form, tokens, *state):
    """Runs a chunk form on tensors [B, T, H, ...]: (o [B, T, H, V], the last state)."""
    T = tokens[0].shape[1]
    o, *state = form(*(ops.in_chunks(x.transpose(1, 2), min(ops.CHUNK, T)) for x in tokens), *state)
    return o.flatten(2, 3)[:, :, :T].transpose(1, 2), *state


def linear_chunk(q, k, v, S):
    """S_t = S_{t-1} + v_t k_t^T, o_t = S_t q_t: all chunks at once, as S is a running sum. S [N, H, V, K] -> o, S."""
    S = torch.cat([S.unsqueeze(2), v.mT @ k], 2).cumsum(2)  # before each chunk, after the last
    return q @ S[:, :, :-1].mT + (q @ k.mT).tril() @ v, S[:, :, -1]


def mesa_chunk(q, k, v, S, gram):
    """Linear attention read with gram_t^{-1} q_t. S [N, H, V, K] sum of v k^T, gram [N, H, K, K] -> o, S, gram."""
    solved, gram = ops.penalty_solve(q, k, gram)
    return *linear_chunk(solved, k, v, S), gram


def gated_chunk_write(q, k, v, g, log_alpha, S):
    """`ops.chunk_write` with a decay: S_t = alpha_t S_{t-1} + (v_t - alpha_t S_{t-1} k_t) g_t^T, o_t = S_t q_t.

    log_alpha [N, H, n, C, 1], at most 0 -> o [N, H, n, C, V], S. See `decays`.
    """
    c, reach, left, total = decays(log_alpha)
    W = (reach * (k @ g.mT)).tril(-1)  # the unit diagonal is implied
    E = torch.linalg.solve_triangular(W, torch.cat([v, c.exp() * k], 4), upper=False, unitriangular=True)
    E_v, E_k = E.split([v.shape[4], k.shape[4]], 4)
    S_in, errors = [], []
    for e_v, e_k, g_n, decay in zip(*(x.unbind(2) for x in (E_v, E_k, left * g, total)), strict=True):
        S_in.append(S)
        errors.append(e_v - e_k @ S.mT)
        S = decay * S + errors[-1].mT @ g_n
    inside = reach * (q @ g.mT)
    return (c.exp() * q) @ torch.stack(S_in, 2).mT + inside @ torch.stack(errors, 2), S


def decayed_chunk(q, k, v, log_alpha, S):
    """`linear_chunk` with a decay: S_t = alpha_t S_{t-1} + v_t k_t^T, o_t = S_t q_t. Shapes as `gated_chunk_write`."""
    c, reach, left, total = decays(log_alpha)
    S_in = []
    for written, decay in zip((v.mT @ (left * k)).unbind(2), total.unbind(2), strict=True):
        S_in.append(S)
        S = decay * S + written
    return (c.exp() * q) @ torch.stack(S_in, 2).mT + (reach * (q @ k.mT)) @ v, S


def decays(log_alpha):
    """What fades in chunks [N, H, n, C, 1]: c, the running sum of log alpha, and three powers of it.

    What token s wrote reaches token t as e^(c_t - c_s), 0 if s is later, and the chunk's end as `left`; what was there
    before the chunk reaches its end as `total`. Only differences, at most 0, are raised to a power: to divide by the
    products themselves would overflow.
    """
    c = log_alpha.cumsum(3)
    future = torch.ones(c.shape[3], c.shape[3], dtype=torch.bool, device=c.device).triu(1)
    reach = (c - c.mT).masked_fill(future, -torch.inf).exp()  # [.., t, s]; masked before: inf * 0 would be NaN
    last = c[:, :, :, -1:]
    return c, reach, (last - c).exp(), last.exp()
