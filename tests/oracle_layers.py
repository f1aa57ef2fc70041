"""What the tests of layers and models share: each layer as a naive NumPy loop, and checks that mutations must fail.

The naive layers read a layer's weights and nothing else of it. They go token by token, head by head.
"""

import numpy as np
import torch
from oracle_torch import close, total

from vla_teach import ops
from vla_teach.reference import vla_recurrent

RELATED = dict(penalty="relation", gamma=0.7)
VLA_OPTIONS = {
    "usual": dict(),
    "published": dict(faithful=True, output_norm="layer", bias=True),
    "published, as in the paper": dict(faithful=True),
    "elu, z, beta, along the key": dict(features="elu+1", z_normaliser=True, write_gate="beta", penalty="key"),
    "rank 2, interpolating, lambda gate": dict(rank=2, gain="interpolate", write_gate="lambda", u_scale=1),
    "free, rank 2, learned lambda_0": dict(penalty="free", rank=2, learn_lambda_0=True, lambda_0=0.3),
    "relation": RELATED | dict(features="elu+1", activation=None),
    "least squares, scaled": dict(gain="least_squares", penalty="key", u_scale=0.8, lambda_0=2, learn_lambda_0=True),
    "no penalty, nudged": dict(penalty=None, write_gate="beta", nudge=0.05),
    "rank 2, nudged": dict(rank=2, nudge=0.05, conv=2),
}


def x_and_relation(options, B=2, T=25, width=6, seed=0):
    """x [B, T, D] and, for a relational layer, {"relation": [B, T, T]}, else {}."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, width, generator=rng, dtype=torch.float64)
    relation = torch.rand(B, T, T, generator=rng, dtype=torch.float64)
    return x, {"relation": relation} if options.get("penalty") == "relation" else {}


def build(kind, seed=0, **options):
    """A layer in float64 with every parameter moved from its start, two heads, K = 4, V = 3."""
    torch.manual_seed(seed)
    layer = kind(6, 2, key_width=4, value_width=3, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.1 * torch.randn_like(p)
    return layer


# ---- naive layers -----------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def naive_layer(layer, x, memory, activation=True, relation=None):
    """y [B, T, D] of a layer with H = 2, K = 4, V = 3. memory(h, q, k, v, x, weights, relation) -> o [T, V]."""
    w = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    y = []
    for b, x_b in enumerate(x.numpy()):
        wide = x_b @ w["qkv.weight"].T + w.get("qkv.bias", 0)
        if "conv" in w:
            taps, narrow = len(w["conv"]), np.zeros_like(wide)
            for t in range(len(wide)):
                for back in range(min(taps, t + 1)):
                    narrow[t] += wide[t - back] * w["conv"][taps - 1 - back]
            wide = narrow * sigmoid(narrow) if activation else narrow
        heads = []
        for h in range(2):
            q, k, v = wide[:, 4 * h : 4 * h + 4], wide[:, 8 + 4 * h : 12 + 4 * h], wide[:, 16 + 3 * h : 19 + 3 * h]
            o = memory(h, q, k, v, x_b, w, None if relation is None else relation[b].numpy())
            if "norm.weight" in w:
                o = w["norm.weight"] * o / np.sqrt((o**2).mean(1, keepdims=True) + 1e-6)
            heads.append(o)
        o = np.concatenate(heads, 1)
        if "layer_norm.weight" in w:
            o = (o - o.mean(1, keepdims=True)) / np.sqrt(o.var(1, keepdims=True) + 1e-5)
            o = o * w["layer_norm.weight"] + w["layer_norm.bias"]
        y.append(o @ w["out.weight"].T + w.get("out.bias", 0))
    return np.array(y)


def naive_delta(h, q, k, v, x, w, _):
    q, k, beta, S, o = unit(q), unit(k), sigmoid(x @ w["gate.weight"][h]), np.zeros((3, 4)), np.zeros_like(v)
    for t in range(len(k)):
        S = S @ (np.eye(4) - beta[t] * np.outer(k[t], k[t])) + beta[t] * np.outer(v[t], k[t])
        o[t] = S @ q[t]
    return o


def naive_gated(h, q, k, v, x, w, _):
    """S_t = S_{t-1} alpha_t (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, as arXiv 2412.06464 prints it."""
    q, k, beta, S, o = unit(q), unit(k), sigmoid(x @ w["gate.weight"][h]), np.zeros((3, 4)), np.zeros_like(v)
    alpha = np.exp(-np.exp(w["log_rate"][h]) * softplus(x @ w["decay.weight"][h] + w["step"][h]))
    for t in range(len(k)):
        S = S @ (alpha[t] * (np.eye(4) - beta[t] * np.outer(k[t], k[t]))) + beta[t] * np.outer(v[t], k[t])
        o[t] = S @ q[t]
    return o


def naive_mamba(h, q, k, v, x, w, _):
    """h_t = alpha_t h_{t-1} + Delta_t B_t x_t^T, y_t = C_t^T h_t + D x_t, as arXiv 2405.21060 prints it."""
    memory, o = np.zeros((4, 3)), np.zeros_like(v)
    for t in range(len(k)):
        delta = softplus(w["decay.weight"][h] @ x[t] + w["step"][h])
        memory = np.exp(-np.exp(w["log_rate"][h]) * delta) * memory + delta * np.outer(k[t], v[t])
        o[t] = q[t] @ memory + w["skip"][h] * v[t]
    return o


def naive_linear(h, q, k, v, x, w, _):
    q, k, o = phi(q), phi(k), np.zeros_like(v)
    for t in range(len(k)):
        shares = np.array([k[s] @ q[t] for s in range(t + 1)])
        o[t] = shares @ v[: t + 1] / shares.sum()
    return o


def naive_plain_linear(h, q, k, v, x, w, _):
    return np.tril(phi(q) @ phi(k).T) @ v


def naive_mesa(h, q, k, v, x, w, _):
    q, k, beta, o = unit(q), unit(k), sigmoid(x @ w["gate.weight"][h]), np.zeros_like(v)
    for t in range(len(k)):
        seen = slice(0, t + 1)
        gram = np.diag(0.25 + softplus(w["raw_ridge"][h])) + k[seen].T @ np.diag(beta[seen]) @ k[seen]
        o[t] = v[seen].T @ np.diag(beta[seen]) @ k[seen] @ np.linalg.inv(gram) @ q[t]
    return o


def naive_softmax(h, q, k, v, x, w, _, rope=True):
    if rope:  # pairs of coordinates as complex numbers, turned by the position
        turn = np.exp(1j * np.arange(len(q))[:, None] / 10000.0 ** (np.arange(2) / 2))
        q, k = ((a[:, :2] + 1j * a[:, 2:]) * turn for a in (q, k))
    scores = (q @ k.conj().T).real / 2
    weights = np.exp(np.where(np.tri(len(q)) > 0, scores, -np.inf))
    return weights / weights.sum(1, keepdims=True) @ v


def naive_softmax_without_rope(*arguments):
    return naive_softmax(*arguments, rope=False)


def naive_vla(options):
    """The memory of a VLA layer with these options; the recurrence is vla_teach.reference's or, nudged, below."""
    faithful = options.get("faithful", False)
    elu = options.get("features", "elu+1" if faithful else "l2") == "elu+1"
    nudge = options.get("nudge", 1e-3 if faithful else 0)
    gain, rank, penalty = options.get("gain", "unit"), options.get("rank", 1), options.get("penalty", "projected")

    def memory(h, q, k, v, x, w, relation):
        key = unit(phi(k) if elu else k)
        if penalty == "projected":
            u = np.stack([unit(k @ W.T) for W in w["W_u"][h]], 1) * options.get("u_scale", 0.5)
        elif penalty == "free":
            wide = phi(x @ w["W_u.weight"].T).reshape(len(x), 2, rank, 4)
            u = wide[:, h] * options.get("u_scale", 0.5)
        elif penalty == "relation":
            u = [np.sqrt(options["gamma"]) * sum(relation[t, j] * key[j] for j in range(t + 1)) for t in range(len(k))]
            u = np.array(u)
        else:
            u = key * options.get("u_scale", 0.5) if penalty else np.zeros_like(key)
        beta = None
        if options.get("write_gate") == "beta":
            beta = sigmoid(x @ w["gate.weight"][h])
        elif options.get("write_gate") == "lambda":
            beta = 1 / (1 + np.exp(-x @ w["gate.weight"][h]))
        lambda_0 = softplus(w["raw_lambda_0"][h]) if "raw_lambda_0" in w else options.get("lambda_0", 0.1)
        q = phi(q) if elu else unit(q)
        if nudge:
            o = naive_nudged(q, key, v, u.reshape(len(k), -1, 4), lambda_0, beta, nudge)
        else:
            o = vla_recurrent(q, key, v, u, lambda_0, beta, gain)[0]
        if options.get("z_normaliser", faithful):
            o = o / (np.cumsum(phi(k), 0) * q).sum(1, keepdims=True)
        return o

    return memory


def naive_nudged(q, k, v, u, lambda_0, beta, nudge):
    """The unit gain with nudge I added to A after every 20th penalty, as the published code does."""
    A, S, o = np.eye(4) / lambda_0, np.zeros((3, 4)), np.zeros_like(v)
    for t in range(len(k)):
        A = np.linalg.inv(np.linalg.inv(A) + u[t].T @ u[t])
        if t % 20 == 19:
            A = A + nudge * np.eye(4)
        g = A @ k[t] / np.linalg.norm(A @ k[t])
        S = S + (1 if beta is None else beta[t]) * np.outer(v[t] - S @ k[t], g)
        o[t] = S @ q[t]
    return o


RIVALS = {
    "delta": ("DeltaNet", dict(), naive_delta),
    "gated delta": ("GatedDeltaNet", dict(), naive_gated),
    "mamba2": ("Mamba2", dict(output_norm=False), naive_mamba),
    "linear": ("LinearAttention", dict(output_norm=False), naive_linear),
    "linear, no z": ("LinearAttention", dict(z_normaliser=False), naive_plain_linear),
    "mesa": ("MesaNet", dict(), naive_mesa),
    "softmax": ("SoftmaxAttention", dict(), naive_softmax),
    "softmax, no rope": ("SoftmaxAttention", dict(rope=False, conv=0), naive_softmax_without_rope),
}


# ---- what good modules pass and every mutated one must fail ------------------------------------------------------


def in_pieces(layer, x, lengths, relation=None, state=None):
    """y [B, T, D] and the last state of a sequence fed in pieces of these lengths."""
    outputs, start = [], 0
    for length in lengths:
        given = {} if relation is None else dict(relation=relation[:, start : start + length, : start + length])
        y, state = layer(x[:, start : start + length], state, **given)
        outputs.append(y)
        start += length
    return torch.cat(outputs, 1), state


def parts(state):
    return [part for part in state if isinstance(part, torch.Tensor)]


def check_layer(layer, options, memory):
    """One layer against its naive form and against itself fed in pieces; states; gradients by differences."""
    ops.CHUNK = 4
    x, given = x_and_relation(options)
    y, state = layer(x, **given)
    close(y, naive_layer(layer, x, memory, options.get("activation", "silu"), given.get("relation")), 1e-9)
    for lengths in ([7, 1, 1, 10, 6], [1] * 25):
        pieces, last = in_pieces(layer, x, lengths, **given)
        close(pieces, y, 1e-9)
        assert last.tokens == state.tokens == 25
        close(parts(last), parts(state), 1e-9)
    check_gradients(layer, x[:, :22], {name: r[:, :22, :22] for name, r in given.items()})


def check_gradients(layer, x, given):
    """By x and every parameter, along one random direction, against a central difference; through two pieces."""
    lengths, rng = [x.shape[1] - 4, 4], torch.Generator().manual_seed(1)

    def run(x):
        y, state = in_pieces(layer, x, lengths, **given)
        return total(y, *parts(state))

    at = x.clone().requires_grad_()
    layer.zero_grad()
    run(at).backward()
    for name, p in [("x", at), *layer.named_parameters()]:
        direction = torch.randn(p.shape, generator=rng, dtype=torch.float64)
        assert p.grad is not None, f"no gradient for {name}"
        with torch.no_grad():
            value = p.clone()
            up, down = (run(at) for step in (1e-5, -1e-5) if p.copy_(value + step * direction) is not None)
            p.copy_(value)
        wanted, got = (up - down) / 2e-5, (p.grad * direction).sum()
        assert abs(got - wanted) <= 1e-5 * (1 + abs(wanted)), f"{name}: {got} but by differences {wanted}"


def check_layers(module):
    """Everything above for VLA, each option in at least one layer."""
    for options in VLA_OPTIONS.values():
        check_layer(build(module.VariationalLinearAttention, **options), options, naive_vla(options))


def check_rivals(module):
    """Everything above for the rivals."""
    for name, options, memory in RIVALS.values():
        check_layer(build(getattr(module, name), **options), options, memory)


def check_models(module):
    """Blocks written out, streaming, pooling, and matched counts."""
    torch.manual_seed(0)
    for tie in (True, False):
        model = module.LanguageModel(11, 8, 2, tie=tie, layer="delta", heads=2, positions=9, mlp_width=5).double()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
        tokens = torch.randint(11, (2, 9))
        logits, states = model(tokens)
        w = {name: p.detach() for name, p in model.named_parameters()}
        x = w["embedding.weight"][tokens] + w["backbone.positions.weight"]
        for i in range(2):
            at = f"backbone.blocks.{i}."
            x = x + model.backbone.blocks[i].layer(rms(x) * w[at + "norms.0.weight"])[0]
            a, b = (rms(x) * w[at + "norms.1.weight"] @ w[at + "mlp.into.weight"].T).split(5, 2)
            x = x + (a * torch.sigmoid(a) * b) @ w[at + "mlp.out.weight"].T
        head = w["embedding.weight"] if tie else w["head.weight"]
        close(logits, rms(x) * w["backbone.norm.weight"] @ head.T, 1e-9)
        some, states = model(tokens[:, :4])
        rest = []
        for t in range(4, 9):
            one, states = model(tokens[:, t : t + 1], states)
            rest.append(one)
        close(torch.cat([some, *rest], 1), logits, 1e-9)
        assert torch.equal(module.generate(model, tokens[:, :4], 2)[:, 0], some[:, -1].argmax(-1))
        twice = torch.cat([tokens[:, :4], module.generate(model, tokens[:, :4], 1)], 1)
        assert torch.equal(module.generate(model, tokens[:, :4], 2)[:, 1], model(twice)[0][:, -1].argmax(-1))
    lengths = torch.tensor([9, 4])
    for pooling in ("mean", "last"):
        model = module.SequenceClassifier(3, 8, 1, vocab=11, pooling=pooling, layer="delta", heads=2).double()
        whole = model(tokens)
        for i, n in enumerate(lengths):
            y = model.backbone(model.embedding(tokens[i : i + 1, :n]))[0][0]
            pooled = y.mean(0) if pooling == "mean" else y[-1]
            close(model(tokens, lengths)[i], model.head(pooled), 1e-9)
            close(model(tokens[i : i + 1, :n])[0], model.head(pooled), 1e-9)
        close(whole[0], model(tokens, lengths)[0], 1e-9)
    shared = dict(vocab=9, width=16, depth=1, heads=2, mlp_width=50, layer_options=dict(key_width=9), tolerance=1)
    models = module.matched(module.LanguageModel, {"d": dict(layer="delta"), "v": dict(layer="vla")}, **shared)
    sizes = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    assert max(sizes) <= 1.02 * min(sizes)


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
