"""What the tests of `vla_teach.ops` share: batches of the oracle's streams, and the checks that mutations must fail."""

import numpy as np
import torch
from oracle import GAINS, assert_close, draw, naive_vla

BACKENDS = ("recurrent", "chunk")


def batch(N=2, H=2, seed=0, dtype=torch.float64, **size):
    """Arguments for `vla` with N sequences: one stream of `oracle.draw` a head. lambda_0 aside."""
    heads = [[draw(seed=100 * seed + H * n + h, **size) for h in range(H)] for n in range(N)]
    x = {"gain": heads[0][0]["gain"]}
    for name in ("q", "k", "v", "u", "beta"):
        if heads[0][0][name] is not None:
            array = np.array([[head[name] for head in row] for row in heads])
            x[name] = torch.tensor(np.moveaxis(array, 1, 2)).to(dtype)  # [N, T, H, ...]
    return x


def lambdas(H):
    """A different lambda_0 for every head."""
    return torch.linspace(0.2, 0.7, H, dtype=torch.float64)


def naive(x, lambda_0):
    """(o [N, T, H, V], S, A) of all heads of a batch by the oracle; lambda_0 [H]."""
    arrays = {name: a.numpy() for name, a in x.items() if name != "gain"}
    N, T, H, V = arrays["v"].shape
    o, S, A = np.empty((N, T, H, V)), [], []
    for n in range(N):
        for h in range(H):
            one = naive_vla(
                **{name: a[n, :, h] for name, a in arrays.items()}, gain=x["gain"], lambda_0=float(lambda_0[h])
            )
            o[n, :, h] = one.o
            S.append(one.S[-1])
            A.append(np.linalg.inv(one.M[-1]))
    return o, *(np.array(part).reshape(N, H, *part[0].shape) for part in (S, A))


def cut(x, *bounds, axis=1):
    """A batch in pieces along its tokens (axis 1) or sequences (axis 0), cut at these bounds."""
    pieces = zip((0, *bounds), (*bounds, x["k"].shape[axis]), strict=True)
    return [{name: a if name == "gain" else a.narrow(axis, i, j - i) for name, a in x.items()} for i, j in pieces]


def close(got, wanted, tol=1e-10):
    """`assert_close` for tensors, arrays, and tuples or lists of them."""
    if isinstance(got, (tuple, list)):
        for one, other in zip(got, wanted, strict=True):
            close(one, other, tol)
    else:
        assert_close(*(np.asarray(a.detach() if isinstance(a, torch.Tensor) else a) for a in (got, wanted)), tol)


def leaves(x):
    """The batch with every tensor in it a fresh leaf that asks for its gradient."""
    return {name: a if name == "gain" else a.detach().clone().requires_grad_() for name, a in x.items()}


def total(*results, seed=0):
    """One number to differentiate: every result entry with a weight of its own. States are opened."""
    tensors = [t for result in results for t in (result if isinstance(result, tuple) else (result,))]
    rng = torch.Generator().manual_seed(seed)
    return sum((t * torch.randn(t.shape, generator=rng, dtype=torch.float64)).sum() for t in tensors)


def symmetric_positive(N, H, K, seed=0):
    """Some A [N, H, K, K]."""
    x = torch.randn(N, H, K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.mT / K + 0.5 * torch.eye(K, dtype=torch.float64)


# ---- what a good module passes and every mutated one must fail ---------------------------------------------------


def check_ops(module):
    """Both back ends of an ops module against the oracle and against finite differences, in chunks of 3 tokens."""
    module.CHUNK = 3
    for gain in GAINS:
        for size in (dict(K=4, V=4), dict(K=5, V=2)):  # a square state first, so that a transposed one still multiplies
            x = batch(T=8, R=2, gain=gain, zero_key=True, seed=1, **size)
            wanted = naive(x, lambdas(2))
            check_steps(module, x, wanted)
            for backend in BACKENDS:
                check_forward(module, backend, x, wanted)
        x = batch(T=7, R=2, gain=gain, seed=2)
        for backend in BACKENDS:
            check_gradient(module, backend, x)
            check_zero_key(module, backend, batch(T=7, R=2, gain=gain, zero_key=True, seed=2))


def check_forward(module, backend, x, wanted):
    """Outputs and states, in one piece, in two pieces, and packed into one row."""
    options = dict(backend=backend, output_final_state=True)
    o, state = module.vla(**x, lambda_0=lambdas(2), **options)
    close((o, *state), wanted)
    close(
        module.vla(**x, backend=backend)[0],
        module.vla(**x, lambda_0=torch.full((2,), 0.1, dtype=torch.float64), backend=backend)[0],
    )
    o, state = zip(*(module.vla(**piece, lambda_0=lambdas(2), **options) for piece in cut(x, 1, axis=0)), strict=True)
    close((torch.cat(o), *map(torch.cat, zip(*state, strict=True))), wanted)
    first, second = cut(x, 5)
    o, state = module.vla(**first, lambda_0=lambdas(2), **options)
    more, state = module.vla(**second, lambda_0=99.0, initial_state=state, **options)
    close((torch.cat([o, more], 1), *state), wanted)
    (a, b), (c, d) = cut(first, 1, axis=0), cut(second, 1, axis=0)
    pieces = [a, c, d, b]  # 5, 3, 3, 5 tokens
    row = {name: x[name] if name == "gain" else torch.cat([p[name] for p in pieces], 1) for name in x}
    bounds = torch.tensor([0, 5, 8, 11, 16])
    starts = [module.vla(**p, lambda_0=lambdas(2), **options) for p in pieces]
    o, state = module.vla(**row, lambda_0=lambdas(2), cu_seqlens=bounds, **options)
    close(o, torch.cat([o for o, _ in starts], 1))
    close(tuple(state), [torch.cat(part) for part in zip(*(state for _, state in starts), strict=True)])
    again = [module.vla(**p, initial_state=state, **options)[0] for p, (_, state) in zip(pieces, starts, strict=True)]
    close(module.vla(**row, initial_state=state, cu_seqlens=bounds, **options)[0], torch.cat(again, 1))


def check_steps(module, x, wanted):
    """Decoding token by token from nothing."""
    (N, T, H, K), V = x["k"].shape, x["v"].shape[3]
    state, outputs = module.start_state(N, H, V, K, lambdas(H), torch.float64), []
    for t in range(T):
        token = {name: a if name == "gain" else a[:, t] for name, a in x.items()}
        o, state = module.vla_step(**token, state=state)
        outputs.append(o)
    close((torch.stack(outputs, 1), *state), wanted)


def check_gradient(module, backend, x):
    """The derivative along one random direction of every input against a central difference."""
    (N, _, H, K), V = x["k"].shape, x["v"].shape[3]
    rng = torch.Generator().manual_seed(0)
    gain, inputs = x["gain"], {name: a for name, a in x.items() if name != "gain"}
    inputs["beta"] = 0.1 + 0.8 * inputs["beta"]
    starts = dict(S=torch.randn(N, H, V, K, generator=rng, dtype=torch.float64), A=symmetric_positive(N, H, K))

    def run(inputs):
        inputs = dict(inputs)
        if "S" in inputs:
            inputs["initial_state"] = module.State(inputs.pop("S"), inputs.pop("A"))
        return total(*module.vla(**inputs, gain=gain, output_final_state=True, backend=backend))

    for start in (dict(lambda_0=lambdas(H)), starts):
        at = leaves(inputs | start)
        run(at).backward()
        for name, a in at.items():
            direction = torch.randn(a.shape, generator=rng, dtype=torch.float64)
            direction = direction + direction.mT if name == "A" else direction
            with torch.no_grad():
                up, down = (run(at | {name: a + step * direction}) for step in (1e-5, -1e-5))
            wanted = (up - down) / 2e-5
            assert a.grad is not None, f"no gradient for {name}"
            got = (a.grad * direction).sum()
            assert abs(got - wanted) <= 1e-6 * (1 + abs(wanted)), f"{name}: {got} but by differences {wanted}"


def check_zero_key(module, backend, x):
    """A zero key leaves every gradient finite."""
    x = leaves(x)
    total(*module.vla(**x, output_final_state=True, backend=backend)).backward()
    for name, a in x.items():
        assert name == "gain" or torch.isfinite(a.grad).all(), f"the gradient of {name} is not finite"
