"""Runs trained at once as one stack: each gives what it gives alone."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_experiments import TINY, timeless

from vla_teach.experiments import sweep, together, train
from vla_teach.experiments.__main__ import main
from vla_teach.experiments.catalogue import CATALOGUE

RUNS = [(1e-3, 0), (1e-3, 1), (1e-2, 0)]


def numbers(run):
    """All scores and losses of a run in a row."""
    looks = [x for one in run["history"] for x in (one["step"], one["loss"], one["validation"])]
    return np.array([run["validation"], run["step"], run["best_step"], *run["tests"].values(), *looks])


def check_together(module, cases, device="cpu"):
    """The stack's runs against those of `train` on the CPU, to rounding."""
    for name, label, more in cases:
        settings = CATALOGUE[name].sizes["smoke"]
        settings = replace(settings, **dict(steps=6, every=3, labels=(label,), weight_decay=1.0) | more)
        data = train.load_data(settings)
        stack = module.train_together(settings, label, RUNS, device, data=data)
        for found, (rate, seed) in zip(stack, RUNS, strict=True):
            alone = train.train(settings, label, rate, seed, data=data)
            assert (found["label"], found["rate"], found["seed"]) == (label, rate, seed)
            np.testing.assert_allclose(numbers(found), numbers(alone), rtol=1e-3, err_msg=f"{name}, {label}")
            assert found["stopped"] == alone["stopped"] and found["together"] == len(RUNS)


CASES = [
    ("regression", label, {})
    for label in (
        "softmax",
        "linear",
        "delta",
        "gated_delta",
        "mamba2",
        "mesa",
        "vla",
        "vla_key_gated",
        "vla_published",
    )
]
CASES += [("regression", "vla_rank_2", dict(clip=0.05)), ("relations", "vla_relation", {})]
CASES += [("relations", "delta_related", {}), ("digits", "delta", dict(every=2, patience=1))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[:2]))
def test_a_stack_gives_what_single_runs_give(case):
    """Guards every kind of model, relations, pooling, clipping, decay and early stops."""
    check_together(together, [case])


BROKEN = [
    ("norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()",
     "norms = sum(g.square().sum() for g in grads.values()).sqrt().expand(3)"),
    ("rate_at(settings, rate, step)", "rate_at(settings, rates[0], step)"),
    ("for seed in dict.fromkeys(seeds)}", "for seed in dict.fromkeys(seeds)}; seeds = [0] * len(seeds)"),
    ("best[name][i] = x[i]", "best[name][i] = x[0]"),
    ("settings.weight_decay if decayed else 0.0", "0.0"),
    ("model.load_state_dict({name: x[i] for", "model.load_state_dict({name: x[0] for"),
]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[:2]))
def test_a_stack_on_a_gpu(case):
    """Guards the steps that a GPU plays from a recording."""
    check_together(together, [case], "cuda")


def broken(right, wrong):
    """The module with one line spoilt."""
    source = Path(together.__file__).read_text(encoding="utf-8")
    assert source.count(right) == 1, right
    module = ModuleType("broken")
    exec(compile(source.replace(right, wrong), "broken", "exec"), vars(module))
    return module


@pytest.mark.parametrize("right, wrong", BROKEN, ids=[wrong for _, wrong in BROKEN])
def test_a_broken_stack_is_noticed(right, wrong):
    """Guards the check itself: a norm over all runs, one rate, one batch, another run's best, no decay."""
    with pytest.raises(AssertionError):
        check_together(broken(right, wrong), [("regression", "delta", dict(clip=0.05))])


def test_a_run_that_diverges_harms_no_other():
    """Guards against NaN that spreads, and that such a run ends as it does alone."""
    runs = [(1e-2, 0), (1e30, 0)]
    found = together.train_together(TINY, "delta", runs)
    alone = train.train(TINY, "delta", 1e-2, 0)
    np.testing.assert_allclose(numbers(found[0]), numbers(alone), rtol=1e-3)
    assert found[1]["stopped"] == "diverged"


def test_ticks_and_ends():
    """Guards the count of steps, whether runs end early or not."""
    for settings in (TINY, replace(TINY, patience=1)):
        ticks = []
        together.train_together(settings, "delta", [(0.0, 0), (0.0, 1)], tick=ticks.append)
        assert sum(ticks) == 2 * settings.steps


def check_resumed(module, folder):
    """A stack that is killed after a look and begun again, against one in one go."""
    settings = replace(TINY, steps=8, every=2, patience=100)
    runs, kept = [(1e-2, 0), (1e-2, 1), (3e-2, 0)], folder / "stack.safetensors"
    whole = module.train_together(settings, "vla", runs)

    class Killed(Exception):
        pass

    def kill(n):
        kill.steps += n
        if kill.steps == 5 * len(runs):  # after the second look, in the middle of the third stretch
            raise Killed

    kill.steps, ticks = 0, []
    with pytest.raises(Killed):
        module.train_together(settings, "vla", runs, checkpoint=kept, key="k", tick=kill, pause=0)
    again = module.train_together(settings, "vla", runs, checkpoint=kept, key="k", tick=ticks.append, pause=0)
    assert ticks[0] == 4 * len(runs) and sum(ticks) == 8 * len(runs)
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-6)


def test_a_stack_goes_on_after_a_kill(tmp_path):
    """Guards the checkpoint of a stack, and that another run's is refused."""
    check_resumed(together, tmp_path)
    with pytest.raises(ValueError, match="another run"):
        together.train_together(TINY, "vla", [(1e-2, 0)] * 2, checkpoint=tmp_path / "stack.safetensors", key="other")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("x.copy_(saved[name])", "weights[name] = saved[name]"),
        ("now |= dict(step=step + 1", "now |= dict(step=step"),
        ("tick(sum(one", "tick(0 * sum(one"),
    ],
)
def test_a_broken_checkpoint_is_noticed(right, wrong, tmp_path):
    """Guards the check itself: weights that the optimiser does not see, a step made twice, steps not counted."""
    with pytest.raises(AssertionError):
        check_resumed(broken(right, wrong), tmp_path)


def test_what_cannot_be_stacked(monkeypatch):
    """Guards the messages for batches of several shapes, and for rates in disorder."""
    draw = train.training_batch
    monkeypatch.setattr(
        together, "training_batch", lambda s, d, seed, step: train.rows(draw(s, d, seed, step), slice(0, 1 + seed))
    )
    with pytest.raises(ValueError, match=r"batches of one shape.*--together 1"):
        together.train_together(TINY, "delta", [(1e-2, 0), (1e-2, 1)])
    with pytest.raises(ValueError, match="side by side"):
        together.train_together(TINY, "delta", [(1e-2, 0), (1e-3, 0), (1e-2, 1)])


def test_an_experiment_together(tmp_path, capsys):
    """Guards a whole experiment in stacks: the same runs in the same order, kept one by one and gone on with."""
    single = sweep.run_experiment(TINY, tmp_path / "a", quiet=True)
    stacks = sweep.run_experiment(TINY, tmp_path / "b", quiet=True, together=2)
    assert [(run["label"], run["rate"], run["seed"]) for run in stacks[0]] == [
        (run["label"], run["rate"], run["seed"]) for run in single[0]
    ]
    for one, other in zip(single[0], stacks[0], strict=True):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=2e-4)
    kept = sorted((tmp_path / "b").glob("*.json"))
    assert len(kept) == len(single[0])
    kept[0].unlink()
    again = sweep.run_experiment(TINY, tmp_path / "b", quiet=True, together=2)
    assert [numbers(run).round(3).tolist() for run in again[0]] == [numbers(r).round(3).tolist() for r in stacks[0]]
    words = ["run", "copy", "--together", "2", "--models", "vla", "delta", "--quiet", "--out", str(tmp_path)]
    assert main([*words, "--cache", str(tmp_path / "cache")]) == 0
    content = json.loads((tmp_path / "copy.json").read_text())
    assert "--jobs 1 --together 2" in content["provenance"]["command"] and timeless(content["runs"])
    assert "vla" in capsys.readouterr().out
