"""A tiny oracle that shares no code with vla_teach, and what the test files have in common.

The memories are written in the most naive way: M_t x = k_t is solved anew at every token, least squares by a
stacked `lstsq`, softmax by two loops. `check_reference` and `check_chunkwise` compare a module with them;
`test_mutations.py` hands them broken modules.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

GAINS = ("unit", "interpolate", "least_squares")
FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"
VECTORS = sorted(path.stem for path in FOLDER.glob("*.npz")) or ["absent"]


class Naive(NamedTuple):
    """What the naive recurrence gives: o [T, V], g [T, K], every S_t [T, V, K], every M_t [T, K, K]."""

    o: np.ndarray
    g: np.ndarray
    S: np.ndarray
    M: np.ndarray


def vector(name):
    """One file of oracle vectors as (arguments, results), two dicts. Skips the test where the file is absent."""
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        pytest.skip("no oracle vectors beside the repository (shared/vectors)")
    with np.load(path) as file:
        arrays = dict(file)
    results = {part: arrays.pop(part) for part in ("o", "S", "M", "gains")}
    return arrays | dict(lambda_0=float(arrays["lambda_0"]), gain=str(arrays["gain"])), results


def assert_close(got, wanted, tol=1e-10):
    """Same shape, and no entry further off than tol times the largest wanted entry. NaN fails."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"shape {got.shape}, wanted {wanted.shape}"
    error, scale = np.abs(got - wanted).max(), np.abs(wanted).max() or 1.0
    assert error <= tol * scale, f"off by {error:.3g}, allowed {tol:g} x {scale:.3g}"


def draw(seed=0, T=12, K=4, V=3, R=1, gain="unit", gated=True, zero_key=False):
    """Arguments for `vla_recurrent`, lambda_0 aside: unit keys, u of length near 1/sqrt(K).

    Off the unit gain the first direction is the key itself, so that nothing explodes. u is [T, K] for R = 1.
    """
    rng = np.random.default_rng(seed)
    q, k, v, u = (rng.normal(size=shape) for shape in ((T, K), (T, K), (T, V), (T, R, K)))
    k, u = k / np.linalg.norm(k, axis=1, keepdims=True), u / K
    if gain != "unit":
        u[:, 0] = k
    if zero_key:
        k[T // 2] = 0
    beta = rng.uniform(size=T) if gated else None
    return dict(q=q, k=k, v=v, u=u[:, 0] if R == 1 else u, beta=beta, gain=gain)


def split(x, t):
    """The arguments x of tokens before t, and of those from t on."""
    parts = slice(None, t), slice(t, None)
    return [{name: a[part] if isinstance(a, np.ndarray) else a for name, a in x.items()} for part in parts]


# ---- the naive memories -----------------------------------------------------------------------------------------


def naive_vla(q, k, v, u, lambda_0=0.1, beta=None, gain="unit"):
    """Variational Linear Attention with an ordinary solve a token. Returns a Naive."""
    (T, K), V = k.shape, v.shape[1]
    S, M, tokens = np.zeros((V, K)), lambda_0 * np.eye(K), []
    for t in range(T):
        for row in u[t].reshape(-1, K):
            M = M + row[:, None] * row[None, :]
        a = np.linalg.solve(M, k[t])
        size = {"unit": np.sqrt(np.sum(a * a)), "interpolate": np.sum(k[t] * a), "least_squares": 1.0}[gain]
        g = a / size if k[t].any() else np.zeros(K)
        share = 1.0 if beta is None else beta[t]
        S = S + share * (v[t] - S.dot(k[t]))[:, None] * g[None, :]
        tokens.append((S.dot(q[t]), g, S, M))
    return Naive(*(np.array(part) for part in zip(*tokens, strict=True)))


def naive_linear(q, k, v):
    """o_t = sum over s <= t of (k_s . q_t) v_s."""
    return np.array([sum((k[s] @ q[t]) * v[s] for s in range(t + 1)) for t in range(len(k))])


def naive_delta(q, k, v, beta=None):
    """Every state of the delta rule [T, V, K] by S (I - beta k k^T) + beta v k^T, and o [T, V]."""
    S, states = np.zeros((v.shape[1], k.shape[1])), []
    for t in range(len(k)):
        share = 1.0 if beta is None else beta[t]
        kk = k[t][:, None] * k[t][None, :]
        S = S @ (np.eye(len(kk)) - share * kk) + share * v[t][:, None] * k[t][None, :]
        states.append(S)
    return np.array([S @ x for S, x in zip(states, q, strict=True)]), np.array(states)


def naive_exact(q, k, v, u, lambda_0=0.1):
    """The objective as one stacked problem a token: rows k ask for v, rows u and sqrt(lambda_0) I for 0."""
    K, o = k.shape[1], []
    for t in range(1, len(k) + 1):
        rows = np.vstack([k[:t], u[:t].reshape(-1, K), np.sqrt(lambda_0) * np.eye(K)])
        wanted = np.vstack([v[:t], np.zeros((len(rows) - t, v.shape[1]))])
        o.append(q[t - 1] @ np.linalg.lstsq(rows, wanted)[0])
    return np.array(o)


def naive_softmax(q, k, v, scale=None):
    """Causal softmax attention by two loops."""
    scale, o = 1 / np.sqrt(k.shape[1]) if scale is None else scale, []
    for t in range(len(k)):
        weights = [np.exp(scale * np.sum(q[t] * k[s])) for s in range(t + 1)]
        o.append(sum(w * v[s] for s, w in enumerate(weights)) / sum(weights))
    return np.array(o)


# ---- what every good module passes and every mutated one must fail -------------------------------------------------


def check_reference(module):
    """Each memory of a reference module against the oracle: small, all gains, rank 2, beta, a zero key, streaming."""
    for gain in GAINS:
        for size in (dict(K=4, V=4), dict(K=5, V=2)):  # a square state first, so that a transposed one still multiplies
            x = draw(seed=1, R=2, gain=gain, zero_key=True, **size)
            check_vla(module.vla_recurrent, x, trace=check_trace)
            g = naive_vla(**x, lambda_0=0.3).g
            o = naive_vla(**x, lambda_0=0.3).o
            assert_close(module.attention_map(x["q"], x["k"], g, x["beta"]) @ x["v"], o)
    q, k, v, u, beta, _ = draw(seed=2, K=4, V=4, R=2).values()
    memories = (
        (module.linear_attention, dict(), naive_linear(q, k, v)),
        (module.delta_rule, dict(beta=beta), naive_delta(q, k, v, beta)[0]),
        (module.exact_least_squares, dict(u=u, lambda_0=0.3), naive_exact(q, k, v, u, 0.3)),
        (module.softmax_attention, dict(), naive_softmax(q, k, v)),
    )
    for memory, options, wanted in memories:
        x = dict(q=q, k=k, v=v) | options
        assert_close(memory(**x)[0], wanted)
        assert_close(in_two_pieces(memory, x), wanted)
    assert_close(module.attention_map(q, k) @ v, naive_linear(q, k, v))
    x = np.array([[-800.0, -1.0, 0.0], [0.5, 2.0, 0.0]])
    assert_close(module.elu_plus_one(x), [[0, np.exp(-1), 1], [1.5, 3, 1]])
    assert_close(module.unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    assert_close(module.z_normaliser(k, q)[:, 0], [k[t] @ sum(q[: t + 1]) for t in range(len(k))])


def check_chunkwise(module):
    """A chunkwise module against the oracle: all gains, rank 2, several slabs, a last chunk that is not full."""
    for gain in GAINS:
        x = draw(seed=3, T=41, K=4, V=4, R=2, gain=gain, zero_key=True)
        for chunk_size in (2, 16):
            check_vla(module.vla_chunk, x, trace=check_norms, chunk_size=chunk_size)


def check_vla(vla, x, trace, **options):
    """One implementation of VLA on the arguments x: outputs, last state, trace, and the same in two pieces."""
    wanted = naive_vla(**x, lambda_0=0.3)
    o, state = vla(**x, lambda_0=0.3, trace=True, **options)
    assert_close(o, wanted.o)
    assert_close(state.S, wanted.S[-1])
    assert_close(state.A, np.linalg.inv(wanted.M[-1]))
    assert_close(state.trace.gains, wanted.g)
    trace(state.trace, x["k"], wanted)
    assert_close(in_two_pieces(vla, x | dict(lambda_0=0.3) | options), wanted.o)


def check_norms(trace, k, wanted):
    """The part of a trace that both forms give."""
    assert_close(trace.norm_S, np.sqrt(np.sum(wanted.S**2, axis=(1, 2))))


def check_trace(trace, k, wanted):
    """Every entry of a Trace of at most 64 tokens. The angle at a zero key is NaN."""
    A = np.linalg.inv(wanted.M)
    check_norms(trace, k, wanted)
    assert_close(trace.norm_A, np.sqrt(np.sum(A**2, axis=(1, 2))))
    assert_close(trace.cond_M, np.linalg.cond(wanted.M))
    assert trace.times.tolist() == list(range(len(k)))
    assert_close(trace.M, wanted.M)
    assert_close(trace.A, A)
    some = k.any(axis=1)
    cosines = np.sum(k * wanted.g, axis=1)[some] / np.linalg.norm(wanted.g[some], axis=1)  # keys have length 1
    assert_close(np.cos(trace.angle[some]), cosines)
    assert np.isnan(trace.angle[~some]).all()


def in_two_pieces(memory, x):
    """o of the whole stream when the memory is stopped after 5 tokens and goes on from its state."""
    before, after = split(x, 5)
    o, state = memory(**before)
    return np.vstack([o, memory(**after, initial_state=state)[0]])
