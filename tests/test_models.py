"""Models: written out once more, streaming, matched sizes, bad input, and a toy that they must learn."""

import pytest
import torch
from oracle_layers import check_models, in_pieces
from oracle_torch import close

from vla_teach import models
from vla_teach.layers import LayerState
from vla_teach.models import LAYERS, LanguageModel, SequenceClassifier, count, generate, matched

every_layer = pytest.mark.parametrize("layer", LAYERS)


pytestmark = pytest.mark.usefixtures("one_core")


def test_core():
    """Guards blocks, head, positions, pooling, greedy decoding; the mutation tests use the same checks."""
    check_models(models)


@every_layer
@pytest.mark.parametrize("positions", (0, 80))
def test_streaming(layer, positions):
    """Guards pieces, down to token by token, against one pass, in float64 and float32."""
    torch.manual_seed(0)
    model = LanguageModel(13, 8, 2, layer=layer, heads=2, positions=positions).double()
    tokens = torch.randint(13, (2, 80))
    logits, states = model(tokens)
    assert logits.shape == (2, 80, 13) and len(states) == 2 and isinstance(states[0], LayerState)
    for lengths in ([1] * 80, [70, 1, 9], [3, 77]):
        close(in_pieces(model, tokens, lengths)[0], logits, 1e-9)
    model, (low, _) = model.float(), model.float()(tokens)
    assert low.dtype == torch.float32
    close(low, logits, 1e-3)
    close(in_pieces(model, tokens, [30, 1, 1, 48])[0], low, 2e-3)


@every_layer
def test_the_past_does_not_see_the_future(layer):
    """Guards causality of the whole model."""
    torch.manual_seed(0)
    model, tokens = LanguageModel(13, 8, 2, layer=layer, heads=2).double(), torch.randint(13, (2, 30))
    logits, _ = model(tokens)
    other = tokens.clone()
    other[:, 12:] = (tokens[:, 12:] + 1) % 13
    changed, _ = model(other)
    close(changed[:, :12], logits[:, :12], 1e-10)
    assert (changed[:, 12] != logits[:, 12]).all()


@every_layer
def test_gradients_reach_every_parameter(layer):
    """Guards against dead parameters in the models, and that the classifier takes ids and numbers."""
    torch.manual_seed(0)
    tokens, numbers = torch.randint(13, (3, 20)), torch.randn(3, 20, 5)
    for model, x in (
        (LanguageModel(13, 8, 2, layer=layer, heads=2, tie=False, positions=20), tokens),
        (SequenceClassifier(4, 8, 2, vocab=13, layer=layer, heads=2), tokens),
        (SequenceClassifier(4, 8, 2, features=5, layer=layer, heads=2, pooling="last"), numbers),
    ):
        y = model(x)
        y = y[0] if isinstance(model, LanguageModel) else y
        assert y.shape[-1] == (13 if isinstance(model, LanguageModel) else 4)
        y.square().sum().backward()
        for name, p in model.named_parameters():
            assert torch.isfinite(p.grad).all() and (p.grad != 0).any(), name


def test_relations_reach_every_layer():
    """Guards `relation` through a model, in pieces too."""
    torch.manual_seed(0)
    options = dict(layer="vla", heads=2, layer_options=dict(penalty="relation"))
    model, tokens = LanguageModel(13, 8, 2, **options).double(), torch.randint(13, (2, 12))
    relation = torch.rand(2, 12, 12, dtype=torch.float64)
    logits, _ = model(tokens, relation=relation)
    close(in_pieces(model, tokens, [5, 1, 6], relation)[0], logits, 1e-9)
    assert (model(tokens, relation=0 * relation)[0] - logits).abs().max() > 1e-6
    classifier = SequenceClassifier(3, 8, 1, vocab=13, **options).double()
    assert (classifier(tokens, relation=relation) != classifier(tokens, relation=0 * relation)).any()


def test_a_longer_row_beside_it_changes_nothing():
    """Guards `lengths`: what stands after a sequence's end is not looked at."""
    torch.manual_seed(0)
    model, tokens = SequenceClassifier(3, 8, 1, vocab=13, heads=2), torch.randint(13, (2, 9))
    lengths, other = torch.tensor([9, 4]), tokens.clone()
    other[1, 4:] = (tokens[1, 4:] + 1) % 13
    close(model(other, lengths), model(tokens, lengths))


def test_without_pooling_every_token_has_logits():
    """Guards pooling=None against "last" on every prefix."""
    torch.manual_seed(0)
    last, every = (SequenceClassifier(3, 8, 1, features=4, heads=2, pooling=p).double() for p in ("last", None))
    every.load_state_dict(last.state_dict())
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    close(every(x), torch.stack([last(x[:, : t + 1]) for t in range(9)], 1), 1e-10)
    with pytest.raises(ValueError, match=r"^lengths is given while pooling is None; expected None"):
        every(x, torch.tensor([9, 9]))


# ---- sizes ------------------------------------------------------------------------------------------------------

RANKS = {f"vla, rank {R}": dict(layer="vla", layer_options=dict(rank=R)) for R in (1, 4)}
VARIANTS = {name: dict(layer=name) for name in LAYERS} | RANKS


@pytest.mark.parametrize("size", (dict(width=64, depth=2), dict(width=128, depth=4)), ids=("64 x 2", "128 x 4"))
@pytest.mark.parametrize("kind", (LanguageModel, SequenceClassifier))
def test_matched(kind, size):
    """Guards the protocol's rule: parameters within 2% over all layers, by the width of the MLP alone."""
    options = dict(vocab=100) if kind is LanguageModel else dict(vocab=100, classes=10)
    built = matched(kind, VARIANTS, **options, **size)
    sizes = {label: sum(p.numel() for p in model.parameters()) for label, model in built.items()}
    assert sizes.keys() == VARIANTS.keys() and max(sizes.values()) <= 1.02 * min(sizes.values()), sizes
    assert all(count(model) == sizes[label] for label, model in built.items())
    for label, model in built.items():
        plain = kind(**options, **size, **VARIANTS[label])
        own = {n: p.shape for n, p in plain.named_parameters() if "mlp" not in n}
        assert own == {n: p.shape for n, p in model.named_parameters() if "mlp" not in n}


def test_matched_refuses_what_it_cannot_match():
    """Guards the tolerance, where one unit of MLP width is already too much, and the arguments."""
    with pytest.raises(ValueError, match=r"^tolerance is 1e-06; expected"):
        matched(LanguageModel, VARIANTS, tolerance=1e-6, vocab=5, width=16, depth=1)
    with pytest.raises(ValueError, match=r"^variants is .*expected"):
        matched(LanguageModel, [], vocab=5, width=16, depth=1)
    with pytest.raises(ValueError, match=r"^width is None; expected"):
        matched(LanguageModel, VARIANTS, vocab=5, depth=1)


# ---- bad input --------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "vocab": (dict(vocab=0), "vocab", ValueError),
    "width": (dict(width=2.5), "width", ValueError),
    "depth": (dict(depth=0), "depth", ValueError),
    "layer": (dict(layer="mamba"), "layer", ValueError),
    "heads": (dict(heads=3), "heads", ValueError),
    "mlp_width": (dict(mlp_width=0), "mlp_width", ValueError),
    "positions": (dict(positions=-1), "positions", ValueError),
    "tie": (dict(tie="yes"), "tie", ValueError),
    "layer_options": (dict(layer_options=dict(ranks=2)), "ranks", TypeError),
}


@pytest.mark.parametrize(("options", "name", "error"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(options, name, error):
    """Guards every option of the models: the error names it."""
    with pytest.raises(error, match=rf"^{name} is .*expected"):
        LanguageModel(**dict(vocab=9, width=8, depth=1) | options)


BAD_CLASSIFIERS = {
    "classes": (dict(classes=0), "classes"),
    "pooling": (dict(pooling="max"), "pooling"),
    "vocab and features": (dict(features=3), "vocab"),
    "neither": (dict(vocab=None), "vocab"),
    "features": (dict(vocab=None, features=0), "features"),
}


@pytest.mark.parametrize(("options", "name"), BAD_CLASSIFIERS.values(), ids=BAD_CLASSIFIERS)
def test_bad_classifier_options(options, name):
    """Guards the classifier's own options."""
    with pytest.raises(ValueError, match=rf"^{name} is .*expected"):
        SequenceClassifier(**dict(classes=2, vocab=9, width=8, depth=1) | options)


def test_bad_calls():
    """Guards what a model is called with."""
    model, tokens = LanguageModel(9, 8, 2, positions=6), torch.randint(9, (2, 5))
    states = model(tokens)[1]
    for error, message, arguments in (
        (TypeError, "^tokens is torch.float32; expected", (tokens.float(),)),
        (TypeError, "^tokens is list; expected", ([1, 2],)),
        (ValueError, r"^tokens has shape \[5\]; expected", (tokens[0],)),
        (ValueError, "^tokens has ids outside", (tokens + 9,)),
        (ValueError, "^tokens has ids outside", (tokens - 9,)),
        (ValueError, "^positions is 6; expected 10", (tokens, states)),
        (ValueError, "^states is list; expected", (tokens, list(states))),
        (ValueError, "^states is tuple; expected", (tokens, states[:1])),
        (ValueError, "^state.conv has shape", (tokens[:1, :1], states)),
    ):
        with pytest.raises(error, match=message):
            model(*arguments)
    for pooled, x in (
        (SequenceClassifier(2, 8, 1, vocab=9), tokens),
        (SequenceClassifier(2, 8, 1, features=3), torch.randn(2, 5, 3)),
    ):
        for lengths in (torch.tensor([0, 5]), torch.tensor([6, 5]), torch.tensor([5])):
            with pytest.raises(ValueError, match=r"^lengths has"):
                pooled(x, lengths)
        with pytest.raises(TypeError, match=r"^lengths is .*expected"):
            pooled(x, [5, 5])
        with pytest.raises((TypeError, ValueError), match=r"^x (is|has) .*expected"):
            pooled(x[0])
    with pytest.raises(ValueError, match=r"^x has shape .*expected"):
        SequenceClassifier(2, 8, 1, features=3)(torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match=r"^steps is .*expected"):
        generate(model, tokens, 0)


# ---- learning ---------------------------------------------------------------------------------------------------


def recall_toy(seed=0, examples=32, pairs=4):
    """ids [N, 2 pairs + 1]: keys (0-7) each followed by a value (8-15), then one of the keys; its value [N]."""
    rng = torch.Generator().manual_seed(seed)
    keys = torch.stack([torch.randperm(8, generator=rng)[:pairs] for _ in range(examples)])
    values = torch.randint(8, 16, (examples, pairs), generator=rng)
    asked = torch.randint(pairs, (examples, 1), generator=rng)
    facts = torch.stack([keys, values], 2).flatten(1)
    return torch.cat([facts, keys.gather(1, asked)], 1), values.gather(1, asked)[:, 0]


@pytest.mark.parametrize("layer", ("vla", "delta"))
def test_a_recall_toy_is_learned(layer):
    """Guards that training works: 32 examples of recall are answered without a mistake after 60 steps."""
    torch.manual_seed(0)
    tokens, answers = recall_toy()
    model = LanguageModel(16, 32, 1, layer=layer, heads=2)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(tokens)[0][:, -1], answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (generate(model, tokens, 1)[:, 0] == answers).all(), float(loss)
    assert loss < 0.1
