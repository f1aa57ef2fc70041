"""Many memories over one stream, token by token in float64: N streams times R memories in one pass.

The simple and slow way, for streams that look at the memory before they draw the next key, for norms after every
token, and for memories that forget. `vla_teach.ops` says the same in a faster form; the tests compare the two.
"""

from typing import NamedTuple

import torch

from vla_teach.checks import check_gain

LAMBDA_0 = 0.1  # the published one


class Memory(NamedTuple):
    """S_t = decay S_{t-1} + beta (v_t - decay S_{t-1} k_t) g_t^T. With gain "sum" v_t k_t^T is added: no error.

    penalty: "none" for A = I; "published" for u = W k / (|W k| sqrt(K)); "key" for u = k; "key / K" for u = k and
    lambda_0 / K in place of lambda_0. forget: M_t = forget M_{t-1} + u u^T, which VLA lacks; 1 for VLA.
    """

    gain: str  # "sum", or as in `vla_teach.reference.write_gain`; with penalty "none", "least_squares" is the key
    penalty: str = "none"
    decay: float = 1.0
    forget: float = 1.0
    beta: float = 1.0


LINEAR, DELTA = Memory("sum"), Memory("least_squares")
GATED = Memory("least_squares", decay=0.99)
MEMORIES = {"linear attention": LINEAR, "DeltaNet": DELTA, "gated DeltaNet": GATED} | {
    f"{penalty}, {gain}": Memory(gain, penalty)
    for penalty in ("published", "key", "key / K")
    for gain in ("unit", "interpolate", "least_squares")
}


class Bank:
    """R memories on each of N streams. S [N, R, V, K]; A [N, P, K, K], one for every penalty in use.

    W [N, K, K]: the projection of the published u. own_keys: every memory is shown keys of its own, k [N, R, K].
    """

    def __init__(self, memories, N, K, V, W=None, own_keys=False):
        memories = list(memories)
        kinds = [(m.penalty, m.forget) for m in memories]
        self.penalties = kinds if own_keys else list(dict.fromkeys(kinds))
        self.of = list(range(len(kinds))) if own_keys else [self.penalties.index(kind) for kind in kinds]
        self.W, self.own_keys = W, own_keys
        scale = dict(none=1.0, published=LAMBDA_0, key=LAMBDA_0) | {"key / K": LAMBDA_0 / K}
        start = column([1 / scale[name] for name, _ in self.penalties], 3)
        self.A = (start * torch.eye(K, dtype=torch.float64)).repeat(N, 1, 1, 1)
        self.S = torch.zeros(N, len(memories), V, K, dtype=torch.float64)
        self.published = column([name == "published" for name, _ in self.penalties], 2)
        self.along = column([name.startswith("key") for name, _ in self.penalties], 2)
        self.forget = column([forget for _, forget in self.penalties], 3)
        self.forgets = bool((self.forget != 1).any())
        gains = [check_gain("least_squares" if m.gain == "sum" else m.gain) for m in memories]
        self.unit, self.full = (column([gain == name for gain in gains], 2) for name in ("unit", "interpolate"))
        self.reads = column([m.gain != "sum" for m in memories], 2)
        self.decay, self.beta = column([m.decay for m in memories], 2), column([m.beta for m in memories], 2)

    def step(self, k, v, loud=None, against=False):
        """One token: k [N, K], or [N, R, K] with own keys; v [N, V] or [N, R, V]. Returns S k as it was before.

        loud [N]: a factor on the length of u. against: every memory may have its key's sign turned, such that the
        write goes along the state as it is (for V = 1).
        """
        k = k if self.own_keys else k[:, None]
        self.penalise(k, loud)
        g = self.gains(k)
        if against:
            sign = torch.where((self.S[:, :, 0] * g).sum(-1, keepdim=True) < 0, -1.0, 1.0)
            k, g = k * sign, g * sign
        N, R, V, K = self.S.shape
        if self.own_keys:
            recalled = (self.S @ k.unsqueeze(-1)).squeeze(-1)
        else:
            recalled = (self.S.view(N, R * V, K) @ k.mT).view(N, R, V)
        error = (v if v.ndim == 3 else v[:, None]) - self.reads * self.decay * recalled
        self.S *= self.decay[..., None]
        self.S.view(N * R, V, K).baddbmm_(error.view(N * R, V, 1), (self.beta * g).view(N * R, 1, K))
        return recalled

    def penalise(self, k, loud=None):
        """A after the token: Sherman-Morrison, for penalties that forget on A / forget."""
        N, P, K, _ = self.A.shape
        u = self.along * k
        if self.W is not None:
            projected = (self.W[:, None] @ k.unsqueeze(-1)).squeeze(-1)
            u = u + self.published * unit(projected) / K**0.5
        u = u.expand(N, P, K) if loud is None else u * loud[:, None, None]
        if self.forgets:
            self.A /= self.forget
        Au = (self.A @ u.unsqueeze(-1)).squeeze(-1)
        scaled = Au / (1 + (u * Au).sum(-1, keepdim=True))
        self.A.view(N * P, K, K).baddbmm_(Au.reshape(N * P, K, 1), scaled.reshape(N * P, 1, K), alpha=-1)

    def gains(self, k):
        """g [N, R, K] before beta."""
        a = (self.A @ k.unsqueeze(-1)).squeeze(-1)[:, self.of]
        size = torch.where(self.unit > 0, a.norm(dim=-1, keepdim=True), 1.0)
        return a / torch.where(self.full > 0, (k * a).sum(-1, keepdim=True), size)


def column(values, places):
    """One number for each memory or penalty, to be multiplied with [N, R, ...] that has `places` more axes after N."""
    return torch.tensor(values, dtype=torch.float64).view(-1, *[1] * (places - 1))


def unit(x):
    """Every row of x [..., K] brought to length 1."""
    return x / x.norm(dim=-1, keepdim=True)
