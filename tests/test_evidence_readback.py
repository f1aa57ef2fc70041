"""The read-back measurement against loops of NumPy, its scores and tests against hand calculation."""

import math

import numpy as np
import pytest
import torch

from vla_teach import ops
from vla_teach.evidence import readback
from vla_teach.experiments import sweep
from vla_teach.reference import delta_rule, linear_attention, unit_rows, vla_recurrent

GRIDS = dict(betas=(1, 0.3), lambdas=(1, 0.01), alphas=(1, 0.9), few_betas=(1, 0.2))
SETTINGS = readback.SIZES["smoke"] | dict(K=8, V=8, streams=3, grids=GRIDS, ranks=(3,))
ALL = readback.rules(SETTINGS) | readback.more_rules(SETTINGS)
LOOPS = (
    "linear",
    "delta",
    "gated",
    "vla",
    "vla_published",
    "vla_beta",
    "vla_interpolate",
    "vla_rank_3",
    "exact_forget",
)


@pytest.fixture
def streams():
    """Three streams of 12 pairs with correlated keys of width 8."""
    return readback.draw(SETTINGS, 12, "correlation 0.6")


def by_loop(name, setting, k, v, W_u):
    """The state [V, K] of one rule after one stream, from the book's reference or from loops as plain as can be."""
    zero = np.zeros_like(k)
    if name == "linear":
        return setting * linear_attention(zero, k, v)[1].S
    if name == "exact_forget":
        (ridge, alpha), weight = setting, 1.0
        H, targets = ridge * np.eye(k.shape[1]), np.zeros((v.shape[1], k.shape[1]))
        for key, value in zip(k[::-1], v[::-1], strict=True):
            H, targets, weight = (
                H + weight * np.outer(key, key),
                targets + weight * np.outer(value, key),
                weight * alpha,
            )
        return targets @ np.linalg.inv(H)
    if name in ("delta", "gated"):
        (beta, alpha), S = setting, np.zeros((v.shape[1], k.shape[1]))
        if alpha == 1:
            return delta_rule(zero, k, v, np.full(len(k), beta))[1].S
        for key, value in zip(k, v, strict=True):
            S = alpha * S
            S = S + beta * np.outer(value - S @ key, key)
        return S
    u, (lambda_0, beta) = k, setting
    if name == "vla_published":
        u = unit_rows(k @ W_u.T) / math.sqrt(k.shape[1])
    if name == "vla_rank_3":
        u = np.stack([k, np.vstack([zero[:1], k[:-1]]), np.vstack([zero[:2], k[:-2]])], 1)
    gain = "interpolate" if name == "vla_interpolate" else "unit"
    return vla_recurrent(zero, k, v, u, lambda_0, np.full(len(k), beta), gain)[1].S


def check(name, streams):
    rule = ALL[name]
    states = rule.states(streams, rule.grid)
    for i, setting in enumerate(rule.grid):
        for b in range(len(streams.k)):
            k, v, W_u = (x[b].numpy() for x in (streams.k, streams.v, streams.W_u))
            np.testing.assert_allclose(states[b, i], by_loop(name, setting, k, v, W_u), atol=1e-6)


@pytest.mark.parametrize("name", LOOPS)
def test_states(name, streams):
    """Guards every rule at every setting, against one stream and one pair at a time."""
    check(name, streams)


@pytest.mark.parametrize("name", LOOPS)
def test_broken_rules_are_seen(name, streams, monkeypatch):
    """Guards that the comparison above can fail: a flipped sign, a forgotten lambda_0, beta or decay."""
    rule, broken = ALL[name], {}
    broken["sign"] = lambda streams, grid: -rule.states(streams, grid)
    broken["setting"] = lambda streams, grid: rule.states(streams, grid[::-1])
    broken["order"] = lambda streams, grid: rule.states(
        streams._replace(k=streams.k.flip(1), v=streams.v.flip(1)), grid
    )
    for what, states in broken.items():
        if (name, what) in (("linear", "order"), ("vla_published", "setting")):
            continue  # the order is nothing to a sum; there is one setting only
        monkeypatch.setitem(ALL, name, rule._replace(states=states))
        with pytest.raises(AssertionError):
            check(name, streams)


def test_broken_solves_are_seen(streams, monkeypatch):
    """Guards that the comparison fails where the penalty forgets lambda_0, is off, or the gain has the other sign."""
    solve, gain = ops.penalty_solve, ops.write_gain
    for name, broken in (
        ("penalty_solve", lambda k, u, M: solve(k, u, torch.eye(8, dtype=M.dtype).expand_as(M))),
        ("penalty_solve", lambda k, u, M: solve(k, 0 * u, M)),
        ("write_gain", lambda a, k, kind: -gain(a, k, kind)),
    ):
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr(ops, name, broken)
            check("vla", streams)
    check("vla", streams)


def test_more_than_a_chunk():
    """Guards streams longer than a chunk, three directions a token among them."""
    streams = readback.draw(SETTINGS, ops.CHUNK + 11, "condition 100")
    for name in ("gated", "vla_beta", "vla_rank_3"):
        check(name, streams)


def test_controls(streams):
    """Guards what the chapter says of the controls: without a penalty VLA is DeltaNet with beta = 1; recursive least
    squares is least squares; only the product of K and lambda_0 counts where u = k / sqrt(K)."""
    k, v = streams.k[0].numpy(), streams.v[0].numpy()
    same = dict(atol=1e-7)
    off = readback.vla_states(streams, [(1e9, 1)])
    np.testing.assert_allclose(off, readback.delta_states(streams, [(1, 1)]), **same)
    recursive = readback.vla_states(streams, [(0.1, 1)], gain="least_squares")
    np.testing.assert_allclose(recursive, readback.exact_states(streams, [(0.1, 1)]), **same)
    assert (recursive - readback.exact_states(streams, [(0.2, 1)])).abs().max() > 1e-3
    short = vla_recurrent(k, k, v, k / np.sqrt(8), 0.1)[1].S
    np.testing.assert_allclose(readback.vla_states(streams, ALL["vla_key_short"].grid)[0, 0], short, **same)


def test_rank_two_is_half_of_lambda_0(streams):
    """Guards a claim of the chapter: with the key before as second direction, lambda_0 / 2 with one does the same."""
    two, one = (readback.vla_states(streams, [(x, 1)], rank=r) for x, r in ((0.3, 2), (0.15, 1)))
    np.testing.assert_allclose(two, one, atol=1e-9)
    assert (readback.vla_states(streams, [(0.3, 1)]) - one).abs().max() > 1e-2


def test_interpolation_is_exact_up_to_K():
    """Guards the claim on exact recall, in its range and not beyond."""
    rule = ALL["vla_interpolate"]
    for n, exact in ((8, True), (9, False)):
        streams = readback.draw(SETTINGS, n, "correlation 0.6")
        assert (readback.read(rule, streams, [(1e-9, 1)])[1].max() < 1e-6) == exact


def test_scores():
    """Guards both scores on two pairs worked out by hand, and that decoding looks for the nearest word."""
    book = torch.eye(2, dtype=torch.float64)[None]
    k = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]], dtype=torch.float64)
    streams = readback.Streams(k, book, k, torch.tensor([[0, 1]]), book, k)
    right, error = readback.read(ALL["linear"], streams, [1, 2])
    # S = [[1, 0], [0.6, 0.8]]: reads (1, 0.6), right, and (0.6, 1), right; errors (0, .36) and (.36, 0) of 2
    assert right.tolist() == [[2], [2]]
    np.testing.assert_allclose(error, [[0.36], [((2 - 1) ** 2 + 1.2**2) * 2 / 2]])
    S = readback.linear_states(streams, [1])[0, 0]
    wrong = streams._replace(word=torch.tensor([[1, 1]]))
    assert readback.read(ALL["linear"], wrong, [1])[0].tolist() == [[1]] and S.shape == (2, 2)


def test_words_are_the_nearest(streams):
    """Guards that the largest product finds the nearest word, by distances."""
    S = readback.delta_states(streams, [(1, 1)])[:, 0]
    o = (streams.asked @ S.mT).numpy()
    distance = ((o[:, :, None] - streams.book.numpy()[:, None]) ** 2).sum(3)
    nearest = (distance.argmin(2) == streams.word.numpy()).sum(1)
    assert readback.read(ALL["delta_1"], streams)[0].tolist() == [nearest.tolist()]


def test_tuning_is_apart(monkeypatch):
    """Guards that settings are chosen on streams that are not reported, by right words, then by error."""
    tune, report = (readback.draw(SETTINGS, 12, "elu + 1", role=role) for role in ("tune", "report"))
    assert len(tune.k) == SETTINGS["tune"] and len(report.k) == SETTINGS["streams"]
    assert not set(tune.k[:, 0, 0].tolist()) & set(report.k[:, 0, 0].tolist())
    again = readback.draw(SETTINGS, 12, "elu + 1")
    assert torch.equal(report.k, again.k) and torch.equal(report.W_u, again.W_u)
    right = np.array([[3, 4], [5, 4], [5, 4]])
    assert readback.choose(right, np.array([[0.1, 0.1], [0.3, 0.3], [0.2, 0.3]])) == 2
    row = readback.measured(ALL["vla"], tune, report)
    assert row["chosen"] == readback.choose(*readback.read(ALL["vla"], tune))
    best = readback.read(ALL["vla"], report)[0][row["chosen"]]
    assert readback.shares(12, row).tolist() == (best / 12).tolist()


def test_keys():
    """Guards the kinds of keys: length 1, the mean cosine asked for, the condition, the sign of features."""
    settings = SETTINGS | dict(K=32, streams=20)
    for name, mean in (("correlation 0", 0.0), ("correlation 0.6", 0.6), ("condition 100", 0.0)):
        k = readback.draw(settings, 64, name).k
        assert torch.allclose(k.norm(dim=2), torch.ones(()).double())
        assert abs((k @ k.mT).mean() - mean) < 0.03
    assert readback.draw(settings, 64, "elu + 1").k.min() > 0
    spread = [torch.linalg.cond(readback.draw(settings, 640, f"condition {c}").k).median() for c in (10, 100)]
    assert 2.5 < spread[0] < 4 and 8 < spread[1] < 12  # square roots of the condition, less what unit length takes


def test_what_is_written(streams):
    """Guards the slices' streams: each pair so many times, noise of the size asked for, new words where keys return."""
    noisy, clean = (readback.repeated(streams, 5, sd) for sd in (0.5, 0))
    for b in range(3):
        for i in range(12):
            here = (noisy.k[b] == streams.k[b, i]).all(1)
            assert here.sum() == 5
            assert torch.equal(clean.v[b, here], streams.v[b, i].expand(5, -1))
    noise = readback.repeated(streams, 200, sd=0.5).v - readback.repeated(streams, 200, sd=0).v
    assert abs((noise**2).sum(2).mean() - 0.25) < 0.01 and torch.equal(noisy.word, streams.word)
    new = readback.rewritten(streams, 0.5)
    assert new.k.shape[1] == 18 and torch.equal(new.k[:, 12:], streams.k[:, :6])
    assert (new.word[:, :6] != streams.word[:, :6]).all() and torch.equal(new.word[:, 6:], streams.word[:, 6:])
    assert torch.equal(new.v[:, 12:], readback.words_of(streams.book, new.word)[:, :6])


def test_centred(streams):
    """Guards that the running mean is causal, and that what is asked is moved by the last mean."""
    c = readback.centred(streams)
    k, b = streams.k[1].numpy(), c.k[1].numpy()
    for t in range(12):
        np.testing.assert_allclose(b[t], unit_rows(k[t] - k[: t + 1].sum(0) / (t + 2)))
    np.testing.assert_allclose(c.asked[1], unit_rows(k - k.sum(0) / 13))


def test_holm_and_signs():
    """Guards p values against the correction that training runs use, and where a t test has nothing to go on."""
    models = {"linear": [0.0] * 4, "vla": [0.1, 0.2, 0.1, 0.3], "vla_key": [0.3, -0.1, 0.2, 0.1]}
    models["vla_off"] = [0.1, 0.1, 0.1, 0.3]
    models = {name: dict(tests=dict(test=dict(scores=scores))) for name, scores in models.items()}
    found = [one for one in sweep.comparisons(models) if one["p"] is not None]
    np.testing.assert_allclose(readback.holm([one["p"] for one in found]), [one["p_holm"] for one in found])
    assert readback.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert readback.p_value(np.zeros(5)) == 1 and readback.p_value(np.full(5, 0.5)) == 2 / 2**5
    cells = [
        (4, dict(a=dict(right="4 3 4"), b=dict(right="2 2 1"))),
        (4, dict(a=dict(right="1 1"), b=dict(right="1 1"))),
    ]
    (first, p, corrected), second = readback.compare(cells, "a", "b")
    assert first == pytest.approx(0.5) and second == (0, 1, 1) and corrected == pytest.approx(2 * p)
    assert p == pytest.approx(sweep.paired_p([0.5, 0.25, 0.75]))
