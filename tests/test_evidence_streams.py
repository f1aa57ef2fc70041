"""The pieces of the measurement `streams`, against slower or other ways to the same numbers."""

import numpy as np
import pytest
import torch

from vla_teach import delta_rule, linear_attention, ops, vla_recurrent
from vla_teach.evidence import million, streams
from vla_teach.evidence.bank import DELTA, MEMORIES, Bank, Memory
from vla_teach.experiments.sweep import paired_p
from vla_teach.reference import elu_plus_one, unit_rows

K, V, T, N = 6, 5, 40, 2


@pytest.fixture
def drawn():
    """Keys [N, T, K], values [N, T, V] and projections [N, K, K]."""
    return streams.several("positive", N, T, K, V)


def by_reference(memory, k, v, W):
    """The last state of one memory on one stream, by the functions that the book starts with."""
    if memory.gain == "sum":
        return linear_attention(k, k, v)[1].S
    if memory.penalty == "none":
        return delta_rule(k, k, v, beta=np.full(T, memory.beta))[1].S
    u = unit_rows(k @ W.T) / np.sqrt(K) if memory.penalty == "published" else k
    lambda_0 = 0.1 / K if memory.penalty == "key / K" else 0.1
    return vla_recurrent(k, k, v, u, lambda_0, np.full(T, memory.beta), memory.gain)[1].S


@pytest.mark.parametrize("own_keys", [False, True])
def test_the_bank(drawn, own_keys):
    """Guards every memory of the bank against the reference, all steps at once and apart."""
    k, v, W = drawn
    memories = [m for m in MEMORIES.values() if m.decay == 1] + [MEMORIES["key, unit"]._replace(beta=0.3)]
    bank = Bank(memories, N, K, V, W, own_keys)
    for t in range(T):
        bank.step(k[:, t, None].expand(-1, len(memories), -1) if own_keys else k[:, t], v[:, t])
    for i, memory in enumerate(memories):
        for n in range(N):
            S = by_reference(memory, k[n].numpy(), v[n].numpy(), W[n].numpy())
            np.testing.assert_allclose(bank.S[n, i], S, rtol=1e-8, atol=1e-8 * abs(S).max())


def test_forgetting(drawn):
    """Guards decay against its own loop, and a forgetting penalty against least squares with weights."""
    k, v, _ = drawn
    bank = Bank([DELTA._replace(decay=0.9), Memory("least_squares", "key", forget=0.9)], N, K, V)
    S = torch.zeros(N, V, K).double()
    for t in range(T):
        recalled = bank.step(k[:, t], v[:, t])
        torch.testing.assert_close(recalled[:, 0], (S @ k[:, t, :, None])[..., 0])
        S = 0.9 * S
        S = S + (v[:, t] - (S @ k[:, t, :, None])[..., 0])[..., None] * k[:, t, None]
    torch.testing.assert_close(bank.S[:, 0], S)
    weights = 0.9 ** torch.arange(T - 1, -1, -1).double()
    H = 0.1 * 0.9**T * torch.eye(K).double() + (weights[:, None] * k[0]).mT @ k[0]
    torch.testing.assert_close(bank.S[0, 1], (weights[:, None] * v[0]).mT @ k[0] @ torch.linalg.inv(H))
    for off in (weights.flip(0), torch.ones(T).double()):  # the wrong end forgotten, or none
        wrong = (off[:, None] * v[0]).mT @ k[0] @ torch.linalg.inv(H)
        assert (bank.S[0, 1] - wrong).abs().max() > 0.1


def test_the_adversary_keeps_her_promise():
    """Guards that her states grow at least as the root of t (prop-adversary), and that a sign turned breaks it."""
    found = streams.adversary("sphere", K, 60, N)
    promised = [x for x in found["memories"] if x not in ("gated DeltaNet", *(m for m in MEMORIES if "least" in m))]
    for name in promised:
        assert np.all(np.array(found["memories"][name]["norm"]) >= np.sqrt(found["times"]) * (1 - 1e-3)), name
    bank, rng = Bank([MEMORIES["key, unit"]], 1, K, 1, own_keys=True), np.random.default_rng(0)
    for _ in range(60):  # the same keys, with no sign chosen
        z, s = torch.tensor(rng.standard_normal((1, 1, K))), bank.S[:, :, 0]
        z = z - s * (z * s).sum(-1, keepdim=True) / (s * s).sum(-1, keepdim=True).clamp(min=1e-300)
        bank.step(z / z.norm(), torch.ones(1, 1).double())
    assert bank.S.norm() < found["memories"]["key, unit"]["norm"][-1] / 2


def test_spectra():
    """Guards the eigenvalues of M, of S and its singular values against NumPy on a stream of the reference."""
    found = streams.stream("random", K, T, N, [T])
    k, v, W = streams.several("random", N, T, K, K)
    M = [0.1 * np.eye(K) + x.T @ x for x in k.numpy()]
    wanted = np.mean([np.quantile(np.linalg.eigvalsh(m), (0, 0.25, 0.5, 0.75, 1)) for m in M], axis=0)
    np.testing.assert_allclose(found["M"]["key"]["eigenvalues"][0], wanted, rtol=2e-3)
    assert found["M"]["key"]["cond"][0] == pytest.approx(np.mean([np.linalg.cond(m) for m in M]), rel=2e-3)
    S = [by_reference(MEMORIES["published, unit"], *(x[n].numpy() for x in (k, v, W))) for n in range(N)]
    largest = np.mean([np.linalg.norm(x, 2) for x in S])
    assert found["S"]["published, unit"]["singular"][0][2] == pytest.approx(largest, rel=2e-3)
    sizes = np.mean([np.abs(np.linalg.eigvals(x)).max() for x in S])
    assert found["S"]["published, unit"]["eigen"][0][2] == pytest.approx(sizes, rel=2e-3)


def test_influence_is_a_difference():
    """Guards the share that is left of one value against two runs that differ in that value only."""
    found = streams.influence(K, T, [10], N)["random, 10"]
    k, v, _ = streams.several("random", N, T, K, 1)
    other = v.clone()
    other[:, 9] += 3
    for name in ("DeltaNet", "key, unit", "key, least_squares"):
        left = []
        for n in range(N):
            states = [
                [by_reference_until(MEMORIES[name], k[n].numpy(), x[n].numpy(), end) for x in (v, other)]
                for end in (10, T)
            ]
            start, end = (np.linalg.norm(a - b) for a, b in states)
            left.append(end / start)
        assert found["lags"][-1] == T - 10
        assert found["memories"][name]["left"][-1] == pytest.approx(np.mean(left), rel=2e-3)


def by_reference_until(memory, k, v, end):
    """The state after so many tokens."""
    k, v = k[:end], v[:end]
    if memory.penalty == "none":
        return delta_rule(k, k, v)[1].S
    return vla_recurrent(k, k, v, k, 0.1, gain=memory.gain)[1].S


def test_ways_in_double_precision():
    """Guards the five ways, in float64, against `ops.vla`; and that a dropped lambda_0 would show."""
    configs = ("random, u = key", "four directions, published")
    k, v, u, q = million.tokens(configs, K, V, range(2))(192)
    heads = [torch.tensor(x)[None] for x in (q, k, v, u)]
    o, state = ops.vla(*heads, output_final_state=True, backend="recurrent")
    ways = [million.Kept(4, K, V, 0.1, np.float64, update) for update in ("symmetric", "divided first", "two-sided")]
    ways += [million.Kept(4, K, V, 0.1, np.float64, "resymmetrised"), million.Kept(4, K, V, 0.1, np.float64, rebase=64)]
    ways += [million.Summed(4, K, V, 0.1, np.float64), million.Calls(4, K, V, 0.1, np.float64, tokens=128)]
    ways += [million.Apart(lambda: million.Summed(2, K, V, 0.1, np.float64), [slice(0, 2), slice(2, 4)])]
    for way in ways:
        answers = way.run(k, v, u, q)
        if isinstance(way, million.Apart):
            S, A = (way.part(name, like) for name, like in zip("SA", (state.S[0], state.A[0]), strict=True))
        else:
            S, A = way.S, way.A
        for found, wanted in ((answers, o[0, -million.ASKED :]), (S, state.S[0]), (A, state.A[0])):
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7 * abs(wanted).max())
    total = million.TokenSum(4, K, V, 0.1, np.float64)
    total.run(k, v, u, q)
    np.testing.assert_allclose(total.A, state.A[0], rtol=1e-6)
    wrong = million.Kept(4, K, V, 0.2, np.float64)
    assert million.off(wrong.run(k, v, u, q).swapaxes(0, 1), o[0, -million.ASKED :].numpy().swapaxes(0, 1)).max() > 1e-3


def test_symmetry():
    """Guards what the chapter says of it: squared updates stay symmetric to the bit, others do not."""
    k, v, u, q = million.tokens(("random, u = key",), 8, 8, [0])(512)
    A = {}
    for update in ("symmetric", "divided first", "resymmetrised"):
        way = million.Kept(1, 8, 8, 0.1, np.float32, update)
        way.run(k, v, u, q)
        A[update] = way.A[0]
    assert np.array_equal(A["symmetric"], A["symmetric"].T) and np.array_equal(A["resymmetrised"], A["resymmetrised"].T)
    assert not np.array_equal(A["divided first"], A["divided first"].T)


def test_refused_streams():
    """Guards that a penalty that cannot be inverted gives NaN for its own streams and leaves the others alone."""
    k, v, u, q = million.tokens(("random, u = key", "four directions, u = key"), 8, 8, [0])(4096)
    u[:, 1] *= 1e3
    way = million.Apart(lambda: million.Summed(1, 8, 8, 0.1, np.float32), [slice(0, 1), slice(1, 2)])
    answers = way.run(k, v, u, q)
    assert np.isfinite(answers[:, 0]).all() and np.isnan(answers[:, 1]).all()
    A = way.part("A", np.zeros((2, 8, 8)))
    assert np.isfinite(A[0]).all() and np.isnan(A[1]).all()


def test_holm():
    """Guards Holm's correction against a case by hand, and the p value it is given against a known one."""
    assert streams.corrected([0.01, 0.04, 0.03, None]) == pytest.approx([0.04, 0.09, 0.09, 1.0])
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-3)


def test_tracking_is_judged_on_other_seeds():
    """Guards the choice of a variant: made on tuning seeds, reported on the rest, with relative errors by hand."""
    variants = [("DeltaNet", DELTA), ("DeltaNet", DELTA._replace(beta=0.5))] + [
        (x, DELTA) for x in streams.TUNED if x != "DeltaNet"
    ]
    error = np.ones((1, 3, len(variants)))
    error[0, :, 0], error[0, :, 1] = [1, 9, 8], [2, 1, 2]  # the first is better on the one tuning seed only
    found = streams.judge({}, 0, [(error[None, 0], 10 * np.ones((1, 3, 1)))], [0, 5], variants, 1, (0, 5))
    assert found["memories"]["DeltaNet"]["error"] == 0.85 and found["memories"]["DeltaNet"]["chosen"]["beta"] == 1.0


def test_norms_of_the_reduction():
    """Guards the six norms against the functions of the reference, token by token."""
    d, tokens, words = 5, 30, 12
    rng = np.random.default_rng(3)
    x = rng.standard_normal((words, d))[rng.integers(0, words, tokens)]
    W_k, W_v, W_u = rng.standard_normal((3, d, d)) / np.sqrt(d)
    phi, v = elu_plus_one(x @ W_k.T), x @ W_v.T
    k, u = unit_rows(phi), unit_rows(x @ W_k.T @ W_u.T) / np.sqrt(d)
    _, state = vla_recurrent(k, k, v, u, 0.1, trace=True)
    states = [linear_attention(y, y, v)[1].S for y in (phi, k)]
    states += [delta_rule(k, k, v)[1].S, state.S, linear_attention(k, state.trace.gains, v)[1].S]
    states += [vla_recurrent(k, k, v, k, 0.1)[1].S]
    wanted = [np.linalg.norm(S) for S in states]
    np.testing.assert_allclose(streams.norms_one_by_one(3, d, tokens, words), wanted, rtol=1e-9)


def test_the_adversary_with_positive_keys():
    """Guards that her keys are positive, of length 1 and at right angles to the state, and that her states grow."""
    rng = np.random.default_rng(0)
    x, s = torch.tensor(np.exp(rng.standard_normal((50, K)))), torch.tensor(rng.standard_normal((50, K)))
    s[0] = s[0].abs()  # no key is at right angles to this one
    s[1, 2] = 0
    k = streams.positive_keys(x, s)
    assert (k > 0).all() and (k.norm(dim=-1) - 1).abs().max() < 1e-12
    assert (k * s).sum(-1)[1:].abs().max() < 1e-12
    torch.testing.assert_close(k[0], x[0] / x[0].norm())
    found = streams.greedy(100, K, 8, N)
    for name in ("DeltaNet", "key, unit", "published, unit", "published, interpolate"):
        norms, roots = np.array(found["memories"][name]["norm"]), np.sqrt(found["times"])
        assert np.all(norms > 0.9 * roots - 0.5), name
    assert found["memories"]["gated DeltaNet"]["norm"][-1] < 1 / np.sqrt(1 - 0.99**2)


def test_frozen_directions():
    """Guards that a long u delays VLA the more the longer it is, and leaves alone a memory that has no u."""
    found = streams.frozen(4, 1500, [1, 8, 16], 40, N)["memories"]
    assert found["DeltaNet"][0] == found["DeltaNet"][2]
    means = [np.mean(row["until"]) for row in found["key, unit"]]
    assert means[0] < means[1] < means[2]


def test_tracking():
    """Guards the worlds: what stands still without noise is learnt, what moves is not learnt by least squares."""
    found = streams.tracking(400, [0, 0.1, 0.2], 1, 2, 4)["worlds"]
    errors = {}
    for one in found:
        w = one["world"]
        errors[w["condition"], w["noise"], w["speed"], w["switch"]] = {
            name: x["error"] for name, x in one["memories"].items()
        }
    assert errors[100, 0.0, 0, False]["least squares"] < 1e-3
    assert errors[1, 0.3, 0.1, False]["least squares"] > 0.3 > 0.1 > errors[1, 0.3, 0, False]["least squares"]
    assert errors[100, 0.3, 0.2, False]["DeltaNet"] > 2 * errors[1, 0.3, 0.2, False]["DeltaNet"]  # whitened values
    assert errors[100, 0.0, 0, True]["DeltaNet"] > 10 * errors[100, 0.0, 0, False]["DeltaNet"]
