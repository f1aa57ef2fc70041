"""What trained models look at: the map against the layer's own output, and the numbers read off it."""

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vla_teach.evidence import learned
from vla_teach.experiments.catalogue import CATALOGUE
from vla_teach.experiments.train import build
from vla_teach.tasks import DelayedRecall

TASK = DelayedRecall(delay=9, keys=5)


def looked_at(module, label):
    """What `examine` finds in an untrained model, and the values and outputs of its memory."""
    settings = replace(CATALOGUE["delayed_recall"].sizes["smoke"], task=TASK, tests={}, labels=(label,),
                       model=dict(width=16, depth=1, heads=2))  # fmt: skip
    model = build(settings, label, 3)
    layer, kept, batch = model.backbone.blocks[-1].layer, {}, TASK.batch(3, 0)
    memory = layer.memory

    def note(q, k, v, state, **extra):
        o, parts = memory(q, k, v, state, **extra)
        if v.shape[3] == layer.value_width:
            kept.update(v=v, o=o)
        return o, parts

    layer.memory = note
    seen = module.examine(model, batch)
    layer.memory = memory
    return seen, kept, batch, layer


def check_map(module, labels=learned.LABELS):
    """Outputs are the values weighed by the map; nothing comes from later tokens; the pair's numbers by hand."""
    for label in labels:
        seen, kept, batch, _ = looked_at(module, label)
        o = torch.einsum("btsh,bshv->bthv", seen["map"], kept["v"])
        torch.testing.assert_close(o, kept["o"], rtol=1e-4, atol=1e-5, msg=label)
        assert seen["map"].permute(0, 3, 1, 2).triu(1).abs().max() < 1e-6, label
        assert ("M" in seen) == (label in ("vla", "vla_interpolate", "vla_key", "vla_gated", "vla_published")), label
        assert ("beta" in seen) == (label == "vla_gated"), label
        found = module.summary(seen, batch, TASK.keys)
        last = seen["map"][:, -1].abs().numpy()
        share = last / last.sum(1, keepdims=True)
        assert math.isclose(found["on_pair"], share[:, :4].sum(1).mean(), rel_tol=1e-4)
        with np.errstate(all="ignore"):
            bits = -np.nansum(share * np.log2(share), 1) / math.log2(TASK.length)
        assert math.isclose(found["entropy"], bits.mean(), rel_tol=1e-4)
        if "M" in seen:
            k, M = seen["k"].numpy(), seen["M"].numpy()
            assert np.isclose((k**2).sum(-1), 1, atol=1e-4).all()
            grown = np.einsum("bthk,bhkl,bthl->bth", k, M, k) - (0.1 / 8 if label == "vla_key" else 0.1)
            for name, there in by_hand(batch.x).items():
                wanted = np.mean([grown[b, t, h] for b, t in there for h in range(2)])
                assert f"penalty_{name}" not in found or math.isclose(found[f"penalty_{name}"], wanted, rel_tol=1e-3)
                if "beta" in seen:
                    wanted = np.mean([seen["beta"][b, t, h] for b, t in there for h in range(2)])
                    assert math.isclose(found[f"gate_{name}"], wanted, rel_tol=1e-4)
            assert {"penalty_pair", "penalty_noise", "penalty_twin"} <= set(found)


def by_hand(x):
    """{name: [(example, token)]} of what `summary` tells apart, one token after the other."""
    noise = [(b, t) for b in range(len(x)) for t in range(5, TASK.length - 1)]
    value = [(b, t) for b, t in noise if x[b, t] >= TASK.keys]
    return dict(
        pair=[(b, 1) for b in range(len(x))], noise=noise, value=value, key=[one for one in noise if one not in value],
        twin=[(b, t) for b, t in value if x[b, t - 1] < TASK.keys], last=[(b, TASK.length - 1) for b in range(len(x))],
    )  # fmt: skip


def test_the_map():
    """Guards the map of every memory against what the memory gives, and what is read off it."""
    check_map(learned)


BROKEN = [
    ("torch.eye(T, dtype=v.dtype)", "torch.ones(T, T, dtype=v.dtype)"),
    ('seen["map"] = o.transpose(2, 3)', 'seen["map"] = o.transpose(2, 3).transpose(1, 2)'),
    ("return bits /", "return -bits /"),
    ("pair=at == 1", "pair=at == 2"),
    ("is_value & ~is_value.roll(1, 1)", "is_value & is_value.roll(1, 1)"),
    ("is_value & ~is_value.roll(1, 1)", "is_value & ~is_value.roll(-1, 1)"),
    ('- seen["lambda_0"]', ""),
]


@pytest.mark.parametrize(("right", "wrong"), BROKEN, ids=[wrong for _, wrong in BROKEN])
def test_a_broken_map_is_noticed(right, wrong):
    """Guards the check itself."""
    source = Path(learned.__file__).read_text(encoding="utf-8")
    assert source.count(right) == 1
    broken = ModuleType("broken")
    exec(compile(source.replace(right, wrong), "broken", "exec"), vars(broken))
    with pytest.raises(AssertionError):
        check_map(broken, ("vla",))


def test_the_model_before_training():
    """Guards the comparison with the start: what is called before is the untrained model, seed by seed."""
    settings = learned.SIZES["smoke"]
    found = learned.one_model("vla_gated", settings | dict(rates=[0.0]))["seeds"]  # which trains nothing
    for seed in found:
        for name, x in seed["before"].items():
            assert math.isclose(seed[name], x, rel_tol=1e-6), name
    later = learned.one_model("vla_gated", settings)["seeds"]
    assert [seed["before"] for seed in later] == [seed["before"] for seed in found]
    assert all(seed["gate_key"] != seed["before"]["gate_key"] for seed in later)


def test_a_layer_is_left_as_it_was():
    """Guards that looking changes nothing for later calls."""
    _, _, _, layer = looked_at(learned, "vla_gated")
    assert "write_share" not in vars(layer) and layer.memory.__name__ == "memory"
    even = torch.full((4, 8), 0.25)
    assert learned.entropy(even).allclose(torch.ones(4)) and learned.entropy(torch.eye(4)).abs().max() < 1e-6
