"""The chunkwise form against the recurrence: the same numbers whatever the chunk, and faster."""

import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import GAINS, VECTORS, assert_close, check_chunkwise, draw, naive_vla, split, vector

from vla_teach import chunkwise
from vla_teach.chunkwise import SLAB, lower_inverse, vla_chunk
from vla_teach.reference import vla_recurrent
from vla_teach.streams import correlated_stream

quick = settings(max_examples=60, deadline=None, derandomize=True)  # the same examples in every run
CHUNKS = (1, 2, 7, 16, 64)
gains = pytest.mark.parametrize("gain", GAINS)


def assert_same(got, wanted, tol=1e-10):
    """Two (o, State) agree in outputs and in what they carry on."""
    assert_close(got[0], wanted[0], tol)
    assert_close(got[1].S, wanted[1].S, tol)
    assert_close(got[1].A, wanted[1].A, tol)


def test_core():
    """Guards the chunkwise form at one small size; the mutation tests use the same checks."""
    check_chunkwise(chunkwise)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("chunk_size", (5, 64))
def test_oracle_vectors(name, chunk_size):
    """Guards the results against vectors that an independent program made."""
    x, wanted = vector(name)
    o, state = vla_chunk(**x, chunk_size=chunk_size, trace=True)
    assert_close(o, wanted["o"])
    assert_close(state.S, wanted["S"])
    assert_close(np.linalg.inv(state.A), wanted["M"])
    assert_close(state.trace.gains, wanted["gains"])


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 60),
    K=st.integers(1, 6),
    V=st.integers(1, 5),
    R=st.integers(1, 3),
    gain=st.sampled_from(GAINS),
    gated=st.booleans(),
    chunk_size=st.integers(1, 70),
    lambda_0=st.floats(-2, 3).map(lambda x: 10**x),
)
def test_any_size_equals_the_naive_oracle(chunk_size, lambda_0, **size):
    """Guards every size, rank, gain, beta, lambda_0 and chunk size against solves of M_t x = k_t."""
    x = draw(**size)
    wanted = naive_vla(**x, lambda_0=lambda_0)
    o, state = vla_chunk(**x, lambda_0=lambda_0, chunk_size=chunk_size)
    assert_close(o, wanted.o)
    assert_close(state.S, wanted.S[-1])
    assert_close(state.A @ wanted.M[-1], np.eye(size["K"]))


@gains
@pytest.mark.parametrize("R", (1, 2, 3))
@pytest.mark.parametrize("gated", (True, False))
def test_equals_the_recurrence_for_every_chunk_size(gain, R, gated):
    """Guards chunks of one token, odd and even ones, one of just T, longer than T, and several slabs of chunks."""
    T = 150
    x = draw(seed=R, T=T, K=8, V=5, R=R, gain=gain, gated=gated)
    wanted = vla_recurrent(**x)
    assert min(CHUNKS) * SLAB < T, "some chunk size must need several slabs"
    for chunk_size in (*CHUNKS, T, T + 1, 300):
        assert_same(vla_chunk(**x, chunk_size=chunk_size), wanted)


@pytest.mark.parametrize("T", (1, 63, 64, 65, 511, 512, 513, 600))
def test_lengths_around_a_chunk_and_a_slab(T):
    """Guards the default chunk size at the edges of a chunk (64 tokens) and of a slab (512)."""
    x = draw(seed=T, T=T, K=6, V=4)
    assert_same(vla_chunk(**x), vla_recurrent(**x))


@gains
def test_trace(gain):
    """Guards norm_S and the gains against the recurrence's trace; no trace unless asked for."""
    x = draw(T=150, K=8, V=5, R=2, gain=gain)
    wanted = vla_recurrent(**x, trace=True)[1].trace
    for chunk_size in CHUNKS:
        trace = vla_chunk(**x, chunk_size=chunk_size, trace=True)[1].trace
        assert_close(trace.norm_S, wanted.norm_S)
        assert_close(trace.gains, wanted.gains)
    assert vla_chunk(**x)[1].trace is None


@gains
def test_streaming_in_mixed_chunks(gain):
    """Guards initial_state across chunk sizes and between the two forms; lambda_0 belongs to the start only."""
    x = draw(T=90, K=6, V=4, R=2, gain=gain)
    wanted = vla_recurrent(**x, lambda_0=0.5)
    outputs, state, rest = [], None, x
    for tokens, form, options in (
        (10, vla_chunk, dict(chunk_size=3)),
        (25, vla_recurrent, {}),
        (30, vla_chunk, dict(chunk_size=64)),
        (24, vla_recurrent, {}),
        (1, vla_chunk, dict(chunk_size=1)),
    ):
        piece, rest = split(rest, tokens)
        o, state = form(**piece, **options, lambda_0=0.5 if state is None else 77.0, initial_state=state)
        outputs.append(o)
    assert_same((np.vstack(outputs), state), wanted)


@gains
def test_a_zero_key_writes_nothing(gain):
    """Guards the division in the gain: a zero key gives a zero gain, and nothing warns."""
    x = draw(T=20, gain=gain)
    x["k"][7] = x["k"][19] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = vla_chunk(**x, chunk_size=8, trace=True)
    assert not got[1].trace.gains[[7, 19]].any()
    assert_same(got, vla_recurrent(**x))


def traced_with_a_small_key(dtype, size, gain):
    """Both forms on a stream whose key 7 is `size` times a unit key and whose key 19 is `size` along an axis.

    Returns a list of (o, State), and how much of its error each of the two keys writes: |g| or k . g, [2, 2].
    """
    x = {name: a.astype(dtype) if isinstance(a, np.ndarray) else a for name, a in draw(T=20, gain=gain).items()}
    x["k"][7] *= dtype(size)
    x["k"][19] = dtype(size) * np.eye(4, dtype=dtype)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = [vla_recurrent(**x, trace=True), vla_chunk(**x, chunk_size=8, trace=True)]
    for o, state in both:
        assert all(np.isfinite(part).all() for part in (o, state.S, state.A, state.trace.gains, state.trace.norm_S))
    gains = np.array([state.trace.gains[[7, 19]] for _, state in both])
    written = np.linalg.norm(gains, axis=2) if gain == "unit" else np.sum(gains * x["k"][[7, 19]], axis=2)
    return both, written


@pytest.mark.parametrize("gain", ("unit", "interpolate"))
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e-30), (np.float64, 1e-170)])
def test_a_key_whose_square_underflows(dtype, size, gain):
    """Guards the division in the gain: such a key writes nothing or all that it should, alike in both forms."""
    both, written = traced_with_a_small_key(dtype, size, gain)
    assert ((abs(written) < 1e-20) | (abs(written - 1) < 1e-3)).all(), written
    assert_same(*both, 1e-3 if dtype is np.float32 else 1e-10)


@pytest.mark.parametrize("gain", ("unit", "interpolate"))
@pytest.mark.parametrize(
    ("dtype", "size"), [(np.float32, s) for s in (1e-15, 1e-6)] + [(float, s) for s in (1e-150, 1e-9)]
)
def test_a_key_that_is_small_but_does_not_underflow(dtype, size, gain):
    """Guards against a threshold that treats small keys as zero: both forms write all that they should, and agree."""
    both, written = traced_with_a_small_key(dtype, size, gain)
    assert_close(written, np.ones((2, 2)), 1e-3 if dtype is np.float32 else 1e-10)
    assert_same(*both, 1e-3 if dtype is np.float32 else 1e-10)


@gains
def test_float32_stays_float32(gain):
    """Guards the dtype of results, and their precision: 1e-3 of the float64 ones."""
    x = draw(T=300, K=16, V=8, gain=gain)
    low = {name: a.astype(np.float32) if isinstance(a, np.ndarray) else a for name, a in x.items()}
    o, state = vla_chunk(**low, trace=True)
    for part in (o, state.S, state.A, state.trace.norm_S, state.trace.gains):
        assert part.dtype == np.float32
    assert_same((o, state), vla_recurrent(**x), 1e-3)


def test_inputs_are_not_modified():
    """Guards the caller's arrays where whole chunks are views of them, and those of a state handed back."""
    x = draw(T=32, R=2)
    _, state = vla_chunk(**x, chunk_size=8)
    arrays = [a for a in (*x.values(), *state) if isinstance(a, np.ndarray)]
    copies = [a.copy() for a in arrays]
    vla_chunk(**x, chunk_size=8, trace=True)
    vla_chunk(**x, chunk_size=8, initial_state=state)
    for a, copy in zip(arrays, copies, strict=True):
        assert np.array_equal(a, copy)


@pytest.mark.parametrize("chunk_size", (10**6, 10**9, np.int64(10**9)))
def test_a_chunk_size_far_above_the_length(chunk_size):
    """Guards time and memory, which follow the tokens there are and not the chunk that was asked for."""
    x = draw(T=30, K=6, V=4, R=2)
    wanted = vla_recurrent(**x)
    tracemalloc.start()
    start = time.perf_counter()
    got = vla_chunk(**x, chunk_size=chunk_size)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_same(got, wanted)
    assert seconds < 1 and peak < 10**6, f"took {seconds:.2f} s and {peak} bytes"


@pytest.mark.parametrize("n", (1, 2, 7, 8, 9, 10, 16, 17, 18, 20, 36, 64, 192))
def test_lower_inverse(n):
    """Guards the recursive triangular inverse, batched or not, even, odd and small."""
    rng = np.random.default_rng(n)
    L = np.tril(rng.normal(size=(2, 3, n, n)) / n) + 2 * np.eye(n)
    assert_close(lower_inverse(L), np.linalg.inv(L), 1e-13)
    assert_close(lower_inverse(L[1, 2]), np.linalg.inv(L[1, 2]), 1e-13)


def test_faster_than_the_recurrence():
    """Guards the point of it: at T = 2000 and K = V = 64, at least 3 times faster than token by token."""
    x = draw(T=2000, K=64, V=64, gated=False)
    for _ in range(3):  # a busy machine may spoil one attempt
        seconds = {vla_recurrent: [], vla_chunk: []}
        for _ in range(4):
            for form, taken in seconds.items():
                start = time.perf_counter()
                form(**x)
                taken.append(time.perf_counter() - start)
        ratio = min(seconds[vla_recurrent]) / min(seconds[vla_chunk])
        if ratio >= 3:
            break
    assert ratio >= 3, f"vla_chunk is only {ratio:.2f} times faster than vla_recurrent"


def test_a_state_that_explodes_is_still_right():
    """Guards the chunk's triangular inverse: huge entries late in a chunk must not spoil the tokens before them."""
    k, v, u = correlated_stream(40, 64, correlation=0.95)
    _, slow = vla_recurrent(k, k, v, u, 1e-3, gain="least_squares", trace=True)
    _, fast = vla_chunk(k, k, v, u, 1e-3, gain="least_squares", trace=True)
    assert slow.trace.norm_S[-1] > 1e50
    assert np.allclose(fast.trace.norm_S, slow.trace.norm_S, rtol=1e-9, atol=0)
