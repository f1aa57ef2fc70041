"""The memory in NumPy against the oracle, and the identities that the book states about it."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    GAINS,
    VECTORS,
    assert_close,
    check_reference,
    draw,
    naive_delta,
    naive_softmax,
    naive_vla,
    split,
    vector,
)

from vla_teach import reference
from vla_teach.reference import (
    attention_map,
    delta_rule,
    elu_plus_one,
    exact_least_squares,
    linear_attention,
    softmax_attention,
    softmax_map,
    unit_rows,
    vla_recurrent,
    z_normaliser,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)  # the same examples in every run
SEEDS = st.integers(0, 2**32 - 1)
LAMBDAS = st.floats(-2, 3).map(lambda x: 10**x)
SIZES = dict(
    seed=SEEDS,
    T=st.integers(1, 24),
    K=st.integers(1, 6),
    V=st.integers(1, 5),
    R=st.integers(1, 3),
    gain=st.sampled_from(GAINS),
    gated=st.booleans(),
)
MEMORIES = {  # each memory and the arguments of `draw` that it takes
    linear_attention: "qkv",
    delta_rule: ("q", "k", "v", "beta"),
    exact_least_squares: "qkvu",
    softmax_attention: "qkv",
    vla_recurrent: ("q", "k", "v", "u", "beta", "gain"),
}
memories = pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.__name__)
gains = pytest.mark.parametrize("gain", GAINS)


def arguments(memory, **size):
    """Random arguments that this memory takes."""
    x = draw(**size)
    return {name: x[name] for name in MEMORIES[memory]}


def assert_same_state(got, wanted):
    """Two states agree in every part that they carry."""
    for part in ("S", "A", "keys", "values"):
        if getattr(wanted, part) is not None:
            assert_close(getattr(got, part), getattr(wanted, part))


# ---- against the oracle -----------------------------------------------------------------------------------------


def test_core():
    """Guards every memory, map, trace and feature at one small size; the mutation tests use the same checks."""
    check_reference(reference)


@pytest.mark.parametrize("name", VECTORS)
def test_oracle_vectors(name):
    """Guards the results against vectors that an independent program made."""
    x, wanted = vector(name)
    o, state = vla_recurrent(**x, trace=True)
    assert_close(o, wanted["o"])
    assert_close(state.S, wanted["S"])
    assert_close(np.linalg.inv(state.A), wanted["M"])
    assert_close(state.trace.M[-1], wanted["M"])
    assert_close(state.trace.gains, wanted["gains"])


@quick
@given(**SIZES, lambda_0=LAMBDAS)
def test_vla_equals_the_naive_oracle(lambda_0, **size):
    """Guards the recurrence for any size, rank, gain, beta and lambda_0."""
    x = draw(**size)
    wanted = naive_vla(**x, lambda_0=lambda_0)
    o, state = vla_recurrent(**x, lambda_0=lambda_0)
    assert_close(o, wanted.o)
    assert_close(state.S, wanted.S[-1])
    assert_close(state.A @ wanted.M[-1], np.eye(size["K"]))


def test_a_direction_may_be_given_as_rank_one():
    """Guards u [T, K] and u [T, 1, K] as two spellings of one thing."""
    x = draw(R=1)
    assert np.array_equal(vla_recurrent(**x)[0], vla_recurrent(**x | dict(u=x["u"][:, None]))[0])


def test_softmax_takes_a_scale():
    """Guards `scale`, which replaces 1/sqrt(K)."""
    q, k, v = (draw()[name] for name in "qkv")
    assert_close(softmax_attention(q, k, v, scale=3.0)[0], naive_softmax(q, k, v, scale=3.0))


def test_softmax_of_large_scores():
    """Guards against exp of a large number: the best key so far takes all, and nothing warns."""
    q, k, v = (draw()[name] for name in "qkv")
    best = [np.argmax(k[: t + 1] @ q[t]) for t in range(len(k))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(softmax_attention(q, k, v, scale=1e6)[0], v[best])


# ---- streaming --------------------------------------------------------------------------------------------------


@memories
@quick
@given(seed=SEEDS, T=st.integers(2, 16), cut=st.integers(1, 15), R=st.integers(1, 2), gain=st.sampled_from(GAINS))
def test_two_pieces_equal_one_pass(memory, seed, T, cut, R, gain):
    """Guards `initial_state`: a stream may be cut anywhere, lambda_0 belongs to its start, states stay as they were."""
    x = arguments(memory, seed=seed, T=T, R=R, gain=gain)
    start, restart = {}, {}
    if "u" in x:
        start, restart = dict(lambda_0=0.5), dict(lambda_0=77.0)
    before, after = split(x, min(cut, T - 1))
    wanted, wanted_state = memory(**x, **start)
    o, state = memory(**before, **start)
    for _ in range(2):  # the second time shows that the first left the state as it was
        more, last = memory(**after, **restart, initial_state=state)
        assert_close(np.vstack([o, more]), wanted)
        assert_same_state(last, wanted_state)


# ---- the identities of the book ---------------------------------------------------------------------------------


@gains
def test_trace_keeps_a_matrix_and_its_inverse(gain):
    """Guards A M = I at every snapshot, over more tokens than there are snapshots."""
    _, state = vla_recurrent(**draw(T=150, K=5, R=2, gain=gain), trace=True)
    for M, A in zip(state.trace.M, state.trace.A, strict=True):
        assert_close(A @ M, np.eye(5))


@quick
@given(seed=SEEDS, T=st.integers(1, 20), R=st.integers(1, 2), lambda_0=LAMBDAS)
def test_exact_least_squares_minimises_its_objective(seed, T, R, lambda_0):
    """Guards "nothing dropped": the gradient is zero and any step away from the solution is worse."""
    x = arguments(exact_least_squares, seed=seed, T=T, R=R)
    k, v = x["k"], x["v"]
    M = naive_vla(**x, lambda_0=lambda_0).M[-1]
    S = exact_least_squares(**x, lambda_0=lambda_0)[1].S

    def objective(S):
        return np.sum((v - k @ S.T) ** 2) + np.trace(S @ M @ S.T)

    assert_close((S @ k.T - v.T) @ k + S @ M + v.T @ k, v.T @ k)  # half the gradient, on top of a term to measure it by
    step = np.random.default_rng(seed).normal(size=S.shape)
    step *= 1e-3 * np.linalg.norm(S) / np.linalg.norm(step)
    assert objective(S + step) > objective(S) < objective(S - step)


def test_exact_least_squares_returns_the_inverse_it_used():
    """Guards state.A = H^{-1}, which streaming needs."""
    x = arguments(exact_least_squares, R=2)
    H = naive_vla(**x, lambda_0=0.3).M[-1] + x["k"].T @ x["k"]
    assert_close(exact_least_squares(**x, lambda_0=0.3)[1].A @ H, np.eye(len(H)))


@quick
@given(seed=SEEDS, T=st.integers(1, 20), lambda_0=LAMBDAS)
def test_recursive_least_squares_is_ridge_regression(seed, T, lambda_0):
    """Guards the raw gain with u = k: its state is the ridge solution."""
    q, k, v = (draw(seed=seed, T=T)[name] for name in "qkv")
    S = vla_recurrent(q, k, v, k, lambda_0, gain="least_squares")[1].S
    assert_close(S, v.T @ k @ np.linalg.inv(lambda_0 * np.eye(k.shape[1]) + k.T @ k))


def test_interpolating_gain_writes_the_whole_error():
    """Guards S_t k_t = v_t right after the write."""
    x = draw(T=40, gain="interpolate", gated=False)
    assert_close(vla_recurrent(**x | dict(q=x["k"]))[0], x["v"])


def test_unit_gain_writes_the_fraction_c():
    """Guards S_t k_t = c v_t + (1 - c) S_{t-1} k_t, c the cosine between key and gain, one token a call."""
    x = draw(T=30, gated=False)
    state, fractions = None, []
    for t in range(30):
        token = {name: x[name][t : t + 1] for name in "qkvu"}
        k, v = token["k"][0], token["v"][0]
        recalled = 0 if state is None else state.S @ k
        _, state = vla_recurrent(**token, initial_state=state, trace=True)
        c = np.cos(state.trace.angle[0])
        assert_close(state.S @ k, c * v + (1 - c) * recalled)
        fractions.append(c)
    assert 0 < min(fractions) < 0.98, "the keys of this test should not all be eigenvectors of A"


def test_a_large_lambda_gives_the_delta_rule():
    """Guards the limit lambda_0 -> infinity, gated and not."""
    for gated in (True, False):
        x = draw(T=40, gated=gated)
        o, state = vla_recurrent(**x, lambda_0=1e12)
        wanted, wanted_state = delta_rule(x["q"], x["k"], x["v"], x["beta"])
        assert_close(o, wanted)
        assert_close(state.S, wanted_state.S)


def test_state_norm_identity_of_the_delta_rule():
    """Guards |S_t|^2 = |S_{t-1}|^2 - |S_{t-1} k_t|^2 + |v_t|^2 for unit keys, on the delta rule's own states."""
    q, k, v = (draw(T=40)[name] for name in "qkv")
    states = [delta_rule(q[:t], k[:t], v[:t])[1].S for t in range(1, 41)]
    assert_close(states, naive_delta(q, k, v)[1])
    squared = np.sum(np.square(states), axis=(1, 2))
    recalled = np.einsum("tvk,tk->tv", states[:-1], k[1:])
    assert_close(squared[1:], squared[:-1] - np.sum(recalled**2, axis=1) + np.sum(v[1:] ** 2, axis=1))


# ---- what a memory attends to -----------------------------------------------------------------------------------


@gains
@pytest.mark.parametrize("gated", (True, False))
def test_attention_map_of_vla(gain, gated):
    """Guards o = P v with P lower triangular, for VLA's gains."""
    x = draw(T=30, R=2, gain=gain, gated=gated)
    o, state = vla_recurrent(**x, trace=True)
    P = attention_map(x["q"], x["k"], state.trace.gains, x["beta"])
    assert_close(P @ x["v"], o)
    assert_close(P, np.tril(P))


@pytest.mark.parametrize("gated", (True, False))
def test_attention_map_of_linear_attention_and_the_delta_rule(gated):
    """Guards o = P v for the two memories whose gain is known in advance."""
    q, k, v, _, beta, _ = draw(T=30, gated=gated).values()
    assert_close(attention_map(q, k) @ v, linear_attention(q, k, v)[0])
    assert_close(attention_map(q, k, k, beta) @ v, delta_rule(q, k, v, beta)[0])


@pytest.mark.parametrize("past", (0, 5))
def test_softmax_map_is_causal_and_sums_to_one(past):
    """Guards the rows of softmax's matrix, with and without tokens from before."""
    x = draw(T=12)
    P = softmax_map(x["q"][past:], x["k"])
    assert P.shape == (12 - past, 12)
    assert_close(P.sum(axis=1), np.ones(12 - past))
    seen = np.arange(12)[None, :] <= np.arange(past, 12)[:, None]
    assert (P[seen] > 0).all() and (P[~seen] == 0).all()
    assert_close(P @ x["v"], naive_softmax(x["q"], x["k"], x["v"])[past:])


# ---- the trace --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "n"), [(1, 1), (5, 5), (64, 64), (100, 64)])
def test_shapes_of_the_trace(T, n):
    """Guards one entry a token and n snapshots, evenly spaced, the last token among them."""
    trace = vla_recurrent(**draw(T=T, K=4), trace=True)[1].trace
    for name in ("norm_S", "norm_A", "cond_M", "angle"):
        assert getattr(trace, name).shape == (T,), name
    assert trace.gains.shape == (T, 4)
    assert trace.M.shape == trace.A.shape == (n, 4, 4)
    assert trace.times.shape == (n,) and trace.times[-1] == T - 1
    steps = np.diff(trace.times)
    assert n == 1 or steps.max() - steps.min() <= 1


def test_no_trace_unless_asked_for():
    """Guards the default: tracing is slow, so it is off."""
    assert vla_recurrent(**draw())[1].trace is None


def test_condition_number_of_a_stiff_penalty():
    """Guards cond_M against np.linalg.cond where it is large."""
    x = draw(T=30, gain="least_squares")
    trace = vla_recurrent(**x, lambda_0=1e-3, trace=True)[1].trace
    assert_close(trace.cond_M, np.linalg.cond(naive_vla(**x, lambda_0=1e-3).M), 1e-9)
    assert trace.cond_M.max() > 1e3


@gains
def test_angle_is_zero_while_A_is_a_multiple_of_I(gain):
    """Guards the angle (arccos near 1 is good to 1e-7 only)."""
    x = draw(T=10, gain=gain)
    x["u"] = np.zeros_like(x["k"])
    assert vla_recurrent(**x, trace=True, lambda_0=2.0)[1].trace.angle.max() < 1e-7
    assert vla_recurrent(**draw(T=10, gain=gain), trace=True)[1].trace.angle.max() > 0.1


# ---- features ---------------------------------------------------------------------------------------------------


def test_elu_plus_one():
    """Guards the feature map: right on both sides, positive, and silent where exp would overflow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(
            elu_plus_one(np.array([-2.0, -1e-9, 0.0, 1e-9, 3.0])), [np.exp(-2), 1 - 1e-9, 1, 1 + 1e-9, 4], 1e-15
        )
        assert elu_plus_one(np.array([[[1e4]]])) == 10001
    assert elu_plus_one(np.linspace(-700, 5, 99)).min() > 0


def test_unit_rows():
    """Guards length 1 for every row of any shape, and the zero row, without a warning."""
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    x[1, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit = unit_rows(x)
    length = np.linalg.norm(x, axis=-1)
    assert_close(np.linalg.norm(unit, axis=-1), length > 0, 1e-15)
    assert_close(unit * length[..., None], x, 1e-15)


def test_z_normaliser():
    """Guards z_t . phi(q_t) against a loop, and the shape that divides o."""
    q, k = (elu_plus_one(draw(T=9)[name]) for name in "qk")
    wanted = [sum(k[s] @ q[t] for s in range(t + 1)) for t in range(9)]
    assert_close(z_normaliser(q, k), np.array(wanted)[:, None], 1e-14)


# ---- odd tokens, dtypes, manners --------------------------------------------------------------------------------


@gains
def test_a_zero_key_writes_nothing(gain):
    """Guards the division in the gain: the state stays bit for bit, and nothing warns."""
    before, after = split(draw(T=8, gain=gain), 7)
    _, state = vla_recurrent(**before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        o, last = vla_recurrent(**after | dict(k=np.zeros((1, 4))), initial_state=state)
    assert np.array_equal(last.S, state.S)
    assert_close(o[0], state.S @ after["q"][0])
    assert not np.array_equal(last.A, state.A), "the penalty still takes its direction"


@memories
def test_float32_stays_float32(memory):
    """Guards the dtype of results, and their precision: 1e-3 of the float64 ones."""
    for gain in GAINS:
        x = arguments(memory, T=60, K=8, V=5, R=2, gain=gain)
        o, state = memory(**x)
        low = {name: a.astype(np.float32) if isinstance(a, np.ndarray) else a for name, a in x.items()}
        low_o, low_state = memory(**low)
        assert low_o.dtype == np.float32
        assert_close(low_o, o, 1e-3)
        for part in ("S", "A", "keys", "values"):
            if getattr(state, part) is not None:
                assert getattr(low_state, part).dtype == np.float32
                assert_close(getattr(low_state, part), getattr(state, part), 1e-3)


@memories
def test_integers_become_float64(memory):
    """Guards integer and list input: computed as float64, not truncated."""
    x = arguments(memory, T=6)
    for name in "qkvu":
        if name in x:
            x[name] = np.rint(3 * x[name]).astype(int)
    as_lists = {name: a.tolist() if isinstance(a, np.ndarray) else a for name, a in x.items()}
    as_floats = {name: a.astype(float) if isinstance(a, np.ndarray) else a for name, a in x.items()}
    wanted = memory(**as_floats)[0]
    for given_as in (x, as_lists):
        o = memory(**given_as)[0]
        assert o.dtype == np.float64
        assert np.array_equal(o, wanted)


@memories
def test_inputs_are_not_modified(memory):
    """Guards the caller's arrays, and those of a state that is handed back."""
    x = arguments(memory, T=8)
    _, state = memory(**x)
    arrays = [a for a in (*x.values(), *state) if isinstance(a, np.ndarray)]
    copies = [a.copy() for a in arrays]
    memory(**x)
    memory(**x, initial_state=state)
    for a, copy in zip(arrays, copies, strict=True):
        assert np.array_equal(a, copy)


def test_the_state_of_softmax_shares_no_memory():
    """Guards the cache: the caller may write into his arrays, or into an older state, and no later state changes."""
    before, after = split({name: draw(T=8)[name] for name in "qkv"}, 5)
    _, first = softmax_attention(**before)
    _, second = softmax_attention(**after, initial_state=first)
    arrays = [before["k"], before["v"], after["k"], after["v"], first.keys, first.values, second.keys, second.values]
    for i, a in enumerate(arrays):
        for b in arrays[max(i + 1, 4) :]:
            assert not np.shares_memory(a, b)
