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
        found = module.summary(seen, batch)
        last = seen["map"][:, -1].abs().numpy()
        share = last / last.sum(1, keepdims=True)
        assert math.isclose(found["on_pair"], share[:, :4].sum(1).mean(), rel_tol=1e-4)
        with np.errstate(all="ignore"):
            bits = -np.nansum(share * np.log2(share), 1) / math.log2(TASK.length)
        assert math.isclose(found["entropy"], bits.mean(), rel_tol=1e-4)
        if "M" in seen:
            k, M = seen["k"].numpy(), seen["M"].numpy()
            assert np.isclose((k**2).sum(-1), 1, atol=1e-4).all()
            pair = np.mean([k[b, 1, h] @ M[b, h] @ k[b, 1, h] for b in range(3) for h in range(2)])
            assert math.isclose(found["penalty_pair"], pair, rel_tol=1e-4)


def test_the_map():
    """Guards the map of every memory against what the memory gives, and what is read off it."""
    check_map(learned)


BROKEN = [
    ("torch.eye(T, dtype=v.dtype)", "torch.ones(T, T, dtype=v.dtype)"),
    ('seen["map"] = o.transpose(2, 3)', 'seen["map"] = o.transpose(2, 3).transpose(1, 2)'),
    ("return bits /", "return -bits /"),
    ("pair, noise = slice(1, 2)", "pair, noise = slice(2, 3)"),
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


def test_a_layer_is_left_as_it_was():
    """Guards that looking changes nothing for later calls."""
    _, _, _, layer = looked_at(learned, "vla_gated")
    assert "write_share" not in vars(layer) and layer.memory.__name__ == "memory"
    even = torch.full((4, 8), 0.25)
    assert learned.entropy(even).allclose(torch.ones(4)) and learned.entropy(torch.eye(4)).abs().max() < 1e-6
