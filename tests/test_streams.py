"""The streams behind the pictures, the digits, and what the penalty explorer draws."""

import time

import numpy as np
import pytest
from oracle import GAINS, assert_close

from vla_teach.explorers.memories import MEMORIES, OFF_THE_CHART, penalty_view
from vla_teach.reference import delta_rule, exact_least_squares, linear_attention, vla_recurrent
from vla_teach.streams import DIRECTIONS, correlated_stream, normal, uniform
from vla_teach.tasks.digits import accuracy, digits_stream

N = 100_000  # enough draws for moments to 1 in 100
lanes = pytest.mark.parametrize(("seed", "lane"), [(0, 0), (0, 1), (1, 0), (9, 7)])


# ---- the hash ---------------------------------------------------------------------------------------------------


def hashed(i, seed, lane):
    """The i-th number of `uniform`, in whole numbers of any size, as MurmurHash3 describes its last step."""
    x = (i * 0x9E3779B9 + seed * 0x85EBCA77 + lane * 0xC2B2AE3D) % 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return ((x ^ (x >> 16)) + 0.5) / 2**32


@lanes
def test_uniform_is_the_hash(seed, lane):
    """Guards the numbers themselves, which the page's script must draw too, and their order in two dimensions."""
    wanted = [[hashed(3 * row + column + 1, seed, lane) for column in range(3)] for row in range(50)]
    assert np.array_equal(uniform((50, 3), seed, lane), wanted)


@lanes
def test_moments_of_uniform(seed, lane):
    """Guards mean, variance and range of the uniform draws, and that neighbours are not alike."""
    x = uniform((N,), seed, lane)
    assert 0 < x.min() < 1e-3 and 1 - 1e-3 < x.max() < 1
    assert abs(x.mean() - 1 / 2) < 0.005
    assert abs(x.var() - 1 / 12) < 0.001
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.02


@lanes
def test_moments_of_normal(seed, lane):
    """Guards mean, variance, skewness and kurtosis of the normal draws."""
    x = normal((N,), seed, lane)
    moments = np.mean(x[None] ** np.array([[1], [2], [3], [4]]), axis=1)
    assert np.abs(moments - [0, 1, 0, 3]).max() < 0.1
    assert abs(moments[0]) < 0.02 and abs(moments[1] - 1) < 0.02


def test_lanes_and_seeds_are_apart():
    """Guards the independence of keys, values and projections: no two of the lanes in use share a draw."""
    draws = np.array([uniform((4000,), seed, lane) for seed in range(10) for lane in range(8)])
    assert len(np.unique(draws)) > draws.size - 100  # 2 or 3 repeats are due to chance at 32 bits
    alike = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(alike).max() < 0.08


# ---- correlated keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("correlation", (0.0, 0.25, 0.5, 0.9, 0.99))
def test_correlation_of_the_keys(correlation, seed):
    """Guards the mean cosine between two keys, and length 1 of keys and values."""
    k, v, _ = correlated_stream(400, 64, V=16, correlation=correlation, seed=seed)
    cosines = (k @ k.T)[np.triu_indices(400, 1)]
    assert abs(cosines.mean() - correlation) < 0.01
    assert_close(np.linalg.norm(k, axis=1), np.ones(400), 1e-14)
    assert_close(np.linalg.norm(v, axis=1), np.ones(400), 1e-14)
    assert (k.shape, v.shape) == ((400, 64), (400, 16))


def test_streams_are_drawn_again_alike():
    """Guards determinism: the seed, and nothing else, decides."""
    first, again, other = (correlated_stream(20, 8, correlation=0.5, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(first, other, strict=True))


def test_penalty_directions():
    """Guards u: the key itself, or W k / (|W k| sqrt(K)) with one W for all tokens."""
    along = correlated_stream(30, 8, direction="along the key", seed=5)
    assert np.array_equal(along.u, along.k)
    k, _, u = correlated_stream(30, 8, direction="projected", seed=5)
    W = normal((8, 8), 5, 3)
    wanted = [W @ key / (np.linalg.norm(W @ key) * np.sqrt(8)) for key in k]
    assert_close(u, wanted, 1e-14)
    assert_close(np.linalg.norm(u, axis=1), np.full(30, 1 / np.sqrt(8)), 1e-14)


# ---- digits -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    """scikit-learn's digits."""
    return pytest.importorskip("sklearn.datasets").load_digits()


@pytest.mark.parametrize("n_train", (1, 1300, 1796))
def test_the_split_covers_every_image_once(data, n_train):
    """Guards sizes, shapes, and that train and test together are all 1797 images with their labels."""
    train, test = digits_stream(n_train, seed=1)
    assert len(train.k) == n_train and len(test.k) == 1797 - n_train
    for part in (train, test):
        n = len(part.k)
        assert [x.shape for x in part] == [(n, 8, 8), (n,), (n, 64), (n, 10)]
    images = np.concatenate([train.images, test.images]).reshape(1797, 64)
    labels = np.concatenate([train.labels, test.labels])
    got, wanted = (np.column_stack(x) for x in ((images, labels), (data.data, data.target)))
    assert sorted(got.tolist()) == sorted(wanted.tolist())


def test_keys_and_values_of_the_digits(data):
    """Guards keys of length 1 along the pixels, and one-hot values of the labels."""
    for part in digits_stream(1000):
        pixels = part.images.reshape(len(part.k), 64)
        assert_close(part.k * np.linalg.norm(pixels, axis=1, keepdims=True), pixels, 1e-14)
        assert_close(np.linalg.norm(part.k, axis=1), np.ones(len(part.k)), 1e-14)
        assert np.array_equal(part.v.argmax(axis=1), part.labels)
        assert np.array_equal(np.sort(part.v, axis=1), np.repeat([[0.0] * 9 + [1.0]], len(part.v), axis=0))


def test_the_seed_decides_the_order(data):
    """Guards determinism, and that the order is shuffled."""
    first, again, other = (digits_stream(100, seed=seed)[0].images for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, data.images[:100])


def test_mean_cosine_between_two_digits(data):
    """Guards the number that the book gives for how alike real keys are: 0.69."""
    train, test = digits_stream()
    k = np.vstack([train.k, test.k])
    assert round((k @ k.T)[np.triu_indices(1797, 1)].mean(), 2) == 0.69


def test_accuracy_against_a_loop(data):
    """Guards the share of right answers, for a random memory and for a good one."""
    train, test = digits_stream(1500)
    good = linear_attention(train.k, train.k, train.v)[1].S
    random = np.random.default_rng(0).normal(size=(10, 64))
    scores = []
    for S in (good, random):
        right = [max(range(10), key=lambda c, r=S @ key: r[c]) == y for key, y in zip(test.k, test.labels, strict=True)]
        scores.append(accuracy(S, test))
        assert scores[-1] == sum(right) / len(right)
    assert scores[0] > 0.5 > scores[1]


# ---- the penalty explorer ---------------------------------------------------------------------------------------


def assert_norms(got, wanted):
    """The curve equals the norms, and has a gap wherever they are off the chart."""
    on = wanted < OFF_THE_CHART
    assert_close(got[on], wanted[on], 1e-7)
    assert np.isnan(got[~on]).all()


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_penalty_view_shows_what_the_memories_do(gain, direction):
    """Guards every curve and both heatmaps of the explorer against the memories, token by token."""
    T, K, lambda_0, t = 90, 8, 0.1, 37
    view = penalty_view(lambda_0, K, T, 0.5, gain, direction, 2, t)
    k, v, u = correlated_stream(T, K, correlation=0.5, direction=direction, seed=2)
    assert view["times"].tolist() == list(range(1, T + 1))
    assert tuple(view["norms"]) == MEMORIES

    def norms_of(memory, *more):
        return np.array(
            [np.linalg.norm(memory(k[:n], k[:n], v[:n], *(x[:n] for x in more))[1].S) for n in view["times"]]
        )

    vla = vla_recurrent(k, k, v, u, lambda_0, gain=gain, trace=True)[1].trace
    rls = vla_recurrent(k, k, v, k, lambda_0, gain="least_squares", trace=True)[1].trace
    assert_norms(view["norms"]["linear attention"], norms_of(linear_attention))
    assert_norms(view["norms"]["DeltaNet"], norms_of(delta_rule))
    assert_norms(view["norms"]["VLA"], vla.norm_S)
    assert_norms(view["norms"]["recursive least squares"], rls.norm_S)
    assert_norms(view["norms"]["exact least squares"], norms_of(exact_least_squares, u))
    M = lambda_0 * np.eye(K) + u[:t].T @ u[:t]
    assert_close(view["M"] + lambda_0 * np.eye(K), M)
    assert_close(view["A"] + np.eye(K), lambda_0 * np.linalg.inv(M))
    assert_close(view["cond"], np.linalg.cond(M))
    assert_close(view["cond"], vla.cond_M[t - 1])


def test_penalty_view_leaves_out_what_has_exploded():
    """Guards the gap in the curve of the raw gain, which explodes with the paper's directions."""
    norm = penalty_view(0.1, 32, 200, 0.5, "least_squares", "projected", 0, 100)["norms"]["VLA"]
    assert np.isnan(norm).any() and np.nanmax(norm) < OFF_THE_CHART


def test_penalty_view_picks_at_most_200_tokens():
    """Guards the thinning of long streams: first and last token shown, norms at the tokens named."""
    view = penalty_view(0.1, 8, 1000, 0.5, "unit", "projected", 0, 1000)
    k, v, u = correlated_stream(1000, 8, correlation=0.5)
    assert len(view["times"]) == 200 and view["times"][0] == 1 and view["times"][-1] == 1000
    norm_S = vla_recurrent(k, k, v, u, trace=True)[1].trace.norm_S
    assert_norms(view["norms"]["VLA"], norm_S[view["times"] - 1])


@pytest.mark.parametrize("t", (0, -1, 41, 1.5, 20.0, True, None, "a"))
def test_penalty_view_refuses_a_token_that_is_not_there(t):
    """Guards t, which counts from 1 to T."""
    with pytest.raises(ValueError, match=r"^t is .*expected"):
        penalty_view(0.1, 4, 40, 0.5, "unit", "projected", 0, t)


@pytest.mark.parametrize("t", (1, 40))
def test_penalty_view_takes_the_first_and_the_last_token(t):
    """Guards both ends of t."""
    assert len(penalty_view(0.1, 4, 40, 0.5, "unit", "projected", 0, t)["M"]) == 4


def test_penalty_view_is_quick():
    """Guards the sliders: the largest view they ask for takes under 200 ms."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        penalty_view(0.1, 64, 1000, 0.5, "unit", "projected", 0, 500)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.2, f"penalty_view takes {1000 * min(taken):.0f} ms"
