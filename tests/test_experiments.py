"""Experiments: a run against one written out plainly, resuming, sweeps, files, the command line, and broken copies."""

import contextlib
import json
import math
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import passes, refuses
from official_files import make_up
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats

from vla_teach.experiments import __main__ as command
from vla_teach.experiments import catalogue, results, sweep, train
from vla_teach.experiments.__main__ import RESULTS, main
from vla_teach.experiments.catalogue import BASELINES, CATALOGUE, CONTROLS, OFFICIAL, SIZES, Settings
from vla_teach.tasks import Copy, InContext
from vla_teach.tasks.lra import FOLDER, Official

TINY = Settings(
    Copy(n=3, symbols=4, shown=True), labels=("delta", "vla"), model=dict(width=8, depth=1, heads=2), batch=4, steps=12,
    every=3, rates=(1e-3, 1e-2), more_rates={}, seeds=2, held_out=20, tests={"n = 5": Copy(n=5, symbols=4, shown=True)},
)  # fmt: skip
REGRESSION = replace(TINY, task=InContext(pairs=3, queries=2, K=4, V=2, rule="regression"), tests={})
PROVENANCE = {"command", "commit", "dirty", "device", "versions", "seconds", "when"}


pytestmark = pytest.mark.usefixtures("one_core")


def timeless(content):
    """Results without what differs from time to time."""
    if isinstance(content, dict):
        return {name: timeless(x) for name, x in content.items() if name not in ("seconds", "when", "command")}
    return [timeless(x) for x in content] if isinstance(content, list) else content


# ---- one run ----------------------------------------------------------------------------------------------------


def seed_of(*parts):
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def by_hand(settings, model, rate, seed):
    """History, best validation and test scores of one run, written out plainly."""
    small = [p for p in model.parameters() if p.ndim == 1]
    large = [p for p in model.parameters() if p.ndim > 1]
    groups = [dict(params=small, weight_decay=0), dict(params=large, weight_decay=settings.weight_decay)]
    optimiser, history, best = torch.optim.AdamW(groups, lr=rate), [], (-1, None)

    def answers(batch):
        where = torch.from_numpy(batch.mask)
        x = torch.from_numpy(batch.x)
        logits = model.embedding(x if x.dtype == torch.int64 else x.float())
        logits = model.backbone(logits)[0][where]
        logits = logits @ model.embedding.weight.T if model.head is None else model.head(logits)
        return logits, torch.from_numpy(batch.y)[where]

    def score(batch):
        with torch.no_grad():
            logits, y = answers(batch)
        if settings.task.kind == "regress":
            return -(logits - y).square().double().mean().item()
        return (logits.argmax(-1) == y).double().mean().item()

    held = [settings.task.batch(settings.held_out, seed_of(use)) for use in (1, 2)]
    held += [task.batch(settings.held_out, seed_of(2, i + 1)) for i, task in enumerate(settings.tests.values())]
    losses, ramp = [], settings.warm_up * settings.steps
    for step in range(settings.steps):
        part = (step - ramp) / (settings.steps - ramp)
        share = (step + 1) / (ramp + 1) if step < ramp else 0.5 + 0.5 * math.cos(math.pi * part)
        for group in optimiser.param_groups:
            group["lr"] = rate * share
        logits, y = answers(settings.task.batch(settings.batch, seed_of(0, seed, step)))
        regress = settings.task.kind == "regress"
        loss = ((logits - y) ** 2).mean() if regress else torch.nn.functional.cross_entropy(logits, y)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % settings.every == 0:
            found = score(held[0])
            history.append((step + 1, statistics.mean(losses), found))
            losses = []
            if best[1] is None or found > best[0]:
                best = found, [score(batch) for batch in held[1:]]
    return history, best


def check_train(module):
    """One run of `module.train` is what `by_hand` gives; stopping and going on changes nothing."""
    for settings in (replace(TINY, batch=3, clip=0.05), replace(REGRESSION, held_out=7, batch=3)):
        sign = -1 if settings is not TINY and settings.task.kind == "regress" else 1
        found = module.train(settings, "delta", 1e-2, 1)
        history, (best, tests) = by_hand(settings, train.build(settings, "delta", 1), 1e-2, 1)
        got = [(one["step"], one["loss"], sign * one["validation"]) for one in found["history"]]
        np.testing.assert_allclose(got, history, rtol=1e-5)
        np.testing.assert_allclose(
            sign * np.array([found["validation"], *found["tests"].values()]), [best, *tests], rtol=1e-5
        )
    check_resume(module)
    a, b, c = (module.build(TINY, "vla", seed).state_dict() for seed in (0, 0, 1))
    assert all((a[name] == b[name]).all() for name in a)
    assert (a["embedding.weight"] != c["embedding.weight"]).any()
    check_groups(module)
    assert module.better(TINY.task, 0.5, 0.4) and not module.better(TINY.task, 0.4, 0.4)
    assert module.better(REGRESSION.task, 0.3, 0.4) and module.better(TINY.task, 0.0, None)
    assert not module.better(TINY.task, None, 0.0) and not module.better(REGRESSION.task, None, None)
    stopped = module.train(replace(TINY, patience=2), "delta", 0.0, 0)
    assert (stopped["stopped"], stopped["step"], stopped["best_step"]) == ("no better", 9, 3)


def check_resume(module):
    """Broken off at any step, a run goes on from its checkpoint to the same numbers."""
    folder = Path(tempfile.mkdtemp())
    once = module.train(TINY, "vla", 0.1, 0)
    assert once["best_step"] == 6  # so that at the last checkpoint the best model is not the latest

    def break_off(n):
        nonlocal left
        left -= n
        if left <= 0:
            raise KeyboardInterrupt

    for at in (2, 5, 8, 11):
        path, left = folder / f"{at}.safetensors", at
        with pytest.raises(KeyboardInterrupt):
            module.train(TINY, "vla", 0.1, 0, checkpoint=path, key="a", tick=break_off)
        assert path.exists() == (at > 3)
        ticks = []
        again = module.train(TINY, "vla", 0.1, 0, checkpoint=path, key="a", tick=ticks.append)
        assert ticks[0] == (at - 1) // 3 * 3 and sum(ticks) == TINY.steps
        assert timeless(again) == timeless(once)
    shutil.rmtree(folder)


def check_groups(module):
    """Matrices are pulled to 0; vectors, scales and ridges are not."""
    options = dict(vla=dict(layer="vla", layer_options=dict(learn_lambda_0=True)))
    settings = replace(TINY, labels=("gated_delta", "mamba2", "mesa", "vla"))
    for label in settings.labels:
        model = module.build(settings, label, 0) if label != "vla" else module.TaskModel(
            TINY.task, 8, 1, heads=2, **options["vla"])  # fmt: skip
        free, decayed = module.make_optimiser(model, settings).param_groups
        assert free["weight_decay"] == 0 and decayed["weight_decay"] == settings.weight_decay
        names = {id(p): name for name, p in model.named_parameters()}
        decayed = {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]}
        free = {names[id(p)].rsplit(".", 1)[-1] for p in free["params"]}
        assert decayed <= {"weight", "conv", "W_u"} and "weight" in decayed
        assert (
            free
            >= dict(
                gated_delta={"log_rate", "step"},
                mamba2={"log_rate", "step", "skip"},
                mesa={"raw_ridge"},
                vla={"raw_lambda_0"},
            )[label]
        )


def test_one_run():
    """Guards the numbers of a run, its stops, its seeds, and going on; the mutation tests use the same checks."""
    check_train(train)


def test_seeds_and_batches():
    """Guards that a seed decides a run, that seeds differ, and that all models and rates see the same batches."""
    first, again, other = (train.train(TINY, "delta", 1e-2, seed) for seed in (0, 0, 1))
    assert timeless(first) == timeless(again) and first["history"] != other["history"]
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        draw = train.training_batch
        for label, rate in (("delta", 1e-2), ("vla", 1e-3)):
            key = label, rate
            patch.setattr(
                train, "training_batch", lambda *a, k=key: seen.setdefault(k, []).append(draw(*a)) or draw(*a)
            )
            train.train(TINY, label, rate, 0)
    one, two = ([batch.x.tolist() for batch in batches] for batches in seen.values())
    assert one == two and len({str(x) for x in one}) == TINY.steps


def test_training_and_held_out_examples_are_different():
    """Guards that a pool, ListOps' duplicates removed, shares nothing with validation and test; nor do digits."""
    for name in ("listops", "digits"):
        settings = replace(CATALOGUE[name].sizes["smoke"], held_out=300, pool=300)
        data = train.load_data(settings)
        pool = data.pool if name == "listops" else data.pool.pick(range(len(data.pool)))
        parts = [{row.tobytes() for row in batch.x} for batch in (pool, data.validation, data.tests["test"])]
        assert len(parts[1]) > 190 and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_a_pool_is_kept(tmp_path):
    """Guards the file of a pool: the same examples as drawn, with the relation where there is one."""
    for name in ("listops", "relations"):
        settings = replace(CATALOGUE[name].sizes["smoke"], pool=10)
        drawn, stored, read = (train.load_data(settings, folder) for folder in (None, tmp_path, tmp_path))
        for a, b, c in zip(drawn.pool, stored.pool, read.pool, strict=True):
            assert (a is b is c is None) or ((a == b).all() and (a == c).all())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz", ".npz"]


def test_a_run_that_meets_nan_stops():
    """Guards that neither training nor a sweep breaks where a model diverges."""
    found = train.train(TINY, "vla", 1e30, 0)
    assert (found["stopped"], found["validation"], found["tests"]) == ("diverged", None, {})
    assert sweep.best_rates(TINY.task, [found, found | dict(rate=1.0, validation=0.1)]) == {"vla": 1.0}
    models = sweep.summary(TINY, [found, found | dict(label="delta")], dict(vla=1e30, delta=1e30))
    assert models["vla"]["tests"]["test"] == dict(scores=[None], mean=None, sd=None)
    json.dumps([found, models, sweep.comparisons(models)], allow_nan=False)


@pytest.mark.parametrize("label", ("vla", "delta"))
def test_it_learns(label):
    """Guards the whole: copying 4 symbols, 9 in 10 right after a few seconds, where guessing gives 1 in 8."""
    settings = replace(
        TINY, task=Copy(n=4, symbols=8, shown=True), model=dict(width=32, depth=1, heads=1), batch=32, steps=250,
        every=50, held_out=200, tests={},
    )  # fmt: skip
    found = train.train(settings, label, 1e-2, 0)
    assert found["tests"]["test"] > 0.9 and found["history"][-1]["loss"] < 0.5 * found["history"][0]["loss"]


def test_relations_reach_the_model():
    """Guards W as a penalty and as an input, and that later tokens stay unseen."""
    settings = CATALOGUE["relations"].sizes["smoke"]
    x, asked, _, W = train.on_device(settings.task.batch(3, 0), "cpu")
    for label in ("vla_relation", "vla_related", "delta_related", "vla"):
        model = train.build(settings, label, 0)
        changed = (model(x, asked, 0 * W) != model(x, asked, W)).any()
        assert changed == ("_" in label)
        assert (model(x, asked, W + torch.ones_like(W).triu(1)) == model(x, asked, W)).all()


def test_the_mean_stops_where_it_is_asked():
    """Guards pooling over rows of different lengths."""
    settings = CATALOGUE["listops"].sizes["smoke"]
    x, asked, _, _ = train.on_device(settings.task.batch(5, 0), "cpu")
    model, T = train.build(settings, "vla", 0), x.shape[1]
    y = model.backbone(model.embedding(x))[0]
    means = torch.stack([row[: at % T + 1].mean(0) for row, at in zip(y, asked.tolist(), strict=True)])
    torch.testing.assert_close(model(x, asked), model.head(means))
    assert len(set((asked % T).tolist())) > 1


# ---- checkpoints ------------------------------------------------------------------------------------------------


def checkpoint_at(path, steps=6):
    """A checkpoint of a run with the key "a", broken off after some steps."""
    made = []

    def tick(n):
        made.append(n)
        if sum(made) > steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(TINY, "delta", 1e-2, 0, checkpoint=path, key="a", tick=tick)


def test_a_checkpoint_is_safetensors(tmp_path):
    """Guards what is in a checkpoint, and that nothing lies beside it."""
    checkpoint_at(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        names, about = set(file.keys()), file.metadata()
    assert {
        "weights/embedding.weight",
        "best/embedding.weight",
        "optimiser/0/exp_avg",
        "optimiser/0/step",
        "rng",
    } <= names
    assert json.loads(about["now"])["step"] == 6 and about["key"] == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("fault", ("cut", "text", "empty", "format", "key", "missing", "shape"))
def test_a_broken_checkpoint_is_refused(tmp_path, fault):
    """Guards against going on from what is not this run's checkpoint, with an error that says what to do."""
    path = tmp_path / "c.safetensors"
    checkpoint_at(path)
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    if fault in ("cut", "text", "empty"):
        path.write_bytes(dict(cut=path.read_bytes()[:-100], text=b"hello, I am text", empty=b"")[fault])
    else:
        about |= dict(format=dict(format="0"), key=dict(key="b")).get(fault, {})
        if fault == "missing":
            del tensors["weights/embedding.weight"]
        if fault == "shape":
            tensors["weights/embedding.weight"] = torch.zeros(2, 2)
        save_file(tensors, path, about)
    with pytest.raises(ValueError, match=r"c\.safetensors is no checkpoint to go on from: .*--fresh"):
        train.train(TINY, "delta", 1e-2, 0, checkpoint=path, key="a")


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_experiments import LONG, sweep, results
if __name__ == "__main__":
    found, models, compared = sweep.run_experiment(LONG, Path(sys.argv[2]), jobs=int(sys.argv[3]), quiet=True)
    results.write_json(Path(sys.argv[2]) / "all.json", dict(found=found, models=models, compared=compared))
"""
LONG = replace(TINY, steps=500, patience=500, rates=(1e-2,), seeds=1, tests={})


def start(folder, jobs):
    """Runs LONG in another process."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, script, Path(__file__).parent, folder / "runs", str(jobs)]
    return subprocess.Popen(words, stderr=subprocess.PIPE)


def checkpoints(folder):
    """{path: when it was written} of the checkpoints there now."""
    found = {}
    for path in (folder / "runs").glob("[!.]*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # a run that ends takes its checkpoint away
            found[path] = path.stat().st_mtime_ns
    return found


def killed(folder, jobs, rng):
    """Starts LONG, kills it at a random moment after a checkpoint; returns the processes that it had started."""
    before, process, deadline = checkpoints(folder), start(folder, jobs), time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not checkpoints(folder).items() - before.items():
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert len(children) >= (jobs if Path("/proc/self/task").exists() and jobs > 1 else 0)
    return children


def test_killed_and_resumed(tmp_path):
    """Guards that kills at random moments, with one process or two, change no number, and leave no process behind."""
    rng = random.Random()
    found, models, compared = sweep.run_experiment(LONG, tmp_path / "other", quiet=True)
    for jobs in (1, 2):
        workers = killed(tmp_path, jobs, rng)
        while not checkpoints(tmp_path):  # the kill came between two runs, or before the first checkpoint of one
            workers = killed(tmp_path, jobs, rng)
        deadline = time.monotonic() + 20
        while any(Path("/proc", pid).exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path("/proc", pid).exists() for pid in workers)
    assert not (tmp_path / "runs" / "all.json").exists()
    process = start(tmp_path, 1)
    assert process.wait(60) == 0, process.stderr.read().decode()
    process.stderr.close()
    again = results.read_json(tmp_path / "runs" / "all.json")
    assert timeless(again) == timeless(json.loads(json.dumps(dict(found=found, models=models, compared=compared))))


def test_the_number_of_processes_changes_nothing(tmp_path):
    """Guards results against the number of jobs."""
    one, two = (sweep.run_experiment(TINY, tmp_path / str(jobs), jobs=jobs, quiet=True) for jobs in (1, 2))
    assert timeless(one[0]) == timeless(two[0]) and one[1:] == two[1:]
    assert [run["label"] for run in one[0]] == ["delta", "delta", "vla", "vla", "delta", "vla"]


def test_an_error_in_a_process_comes_out(tmp_path):
    """Guards against a pool that hangs or hides what went wrong."""
    with pytest.raises(ValueError, match="heads"):
        sweep.run_experiment(replace(TINY, model=dict(width=8, depth=1, heads=3)), tmp_path, jobs=1, quiet=True)
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "PACKAGE", tmp_path)
        sweep.run_experiment(replace(TINY, labels=("delta",)), tmp_path, device="nothing", jobs=2, quiet=True)


# ---- sums -------------------------------------------------------------------------------------------------------


def fake(label, rate, seed, validation, test):
    return dict(label=label, rate=rate, seed=seed, validation=validation, tests={"test": test, "n = 5": test / 2})


def check_sweep(module):
    """Rates by validation, means, standard deviations and tests, on numbers made up."""
    assert module.sweep_runs(replace(TINY, more_rates=dict(vla=(5.0,)), sweep_seeds=2)) == [
        *[("delta", rate, seed) for rate in (1e-3, 1e-2) for seed in (0, 1)],
        *[("vla", rate, seed) for rate in (1e-3, 1e-2, 5.0) for seed in (0, 1)],
    ]
    # By validation the small rate is better, by test the large one; and one good seed is not a good mean.
    found = [fake("vla", 1.0, 0, 0.6, 0.1), fake("vla", 2.0, 0, 0.5, 0.9), fake("vla", 3.0, 0, 0.9, 0.9)]
    found += [fake("vla", 1.0, 1, 0.6, 0.1), fake("vla", 2.0, 1, 0.5, 0.9), fake("vla", 3.0, 1, 0.1, 0.9)]
    found += [fake("delta", 2.0, 0, 0.7, 0.4), fake("delta", 1.0, 0, 0.7, 0.5), fake("delta", 1.0, 1, 0.7, 0.7)]
    assert module.best_rates(TINY.task, found) == dict(vla=1.0, delta=1.0)
    assert module.best_rates(REGRESSION.task, found) == dict(vla=2.0, delta=1.0)
    models = module.summary(TINY, found, dict(vla=2.0, delta=1.0))
    assert models["vla"]["tests"]["test"] == dict(scores=[0.9, 0.9], mean=0.9, sd=0.0)
    assert models["delta"]["tests"]["test"]["sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    one_seed = module.summary(TINY, found[:-1], dict(vla=2.0, delta=1.0))["delta"]["tests"]["test"]
    assert one_seed == dict(scores=[0.5], mean=0.5, sd=None)
    assert (models["vla"]["at_edge"], models["delta"]["at_edge"], models["vla"]["rate"]) == (False, True, 2.0)
    assert abs(models["vla"]["parameters"] - models["delta"]["parameters"]) < 0.02 * models["vla"]["parameters"]
    rng = np.random.default_rng(0)
    for n in range(2, 12):
        for shift in (0.0, 0.5, 3.0):
            a, b = rng.normal(shift, 1, n), rng.normal(size=n)
            assert module.paired_p(list(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6, abs=1e-12)
    assert module.paired_p([1.0]) is module.paired_p([]) is module.paired_p([0.5, 0.5, 0.5]) is None
    scores = dict(vla=[0.9, 0.8, 0.95], vla_off=[0.7, 0.9, 0.8], delta=[0.2, 0.1, 0.4], softmax=[None, 0.5, 0.5])
    models = {label: dict(tests=dict(test=dict(scores=some))) for label, some in scores.items()}
    compared = {(one["model"], one["against"]): one for one in module.comparisons(models)}
    pairs = [("vla", other) for other in ("softmax", "delta", "vla_off")]
    pairs += [("vla_off", other) for other in ("softmax", "delta")]
    assert set(compared) == set(pairs)
    assert compared["vla", "softmax"]["n"] == 2 and compared["vla", "delta"]["n"] == 3
    assert compared["vla", "delta"]["difference"] == pytest.approx(0.65)
    assert compared["vla", "delta"]["p"] == pytest.approx(stats.ttest_rel(scores["vla"], scores["delta"]).pvalue)
    p = np.array([compared[pair]["p"] for pair in pairs])
    order = np.argsort(p)
    holm = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    np.testing.assert_allclose([compared[pairs[i]]["p_holm"] for i in order], holm)


def test_sums():
    """Guards the choice of rates, the summary and the tests; the mutation tests use the same checks."""
    check_sweep(sweep)


def test_finished_runs_are_not_made_again(tmp_path):
    """Guards the cache, and that other settings or other code do not use it."""
    once = sweep.run_experiment(TINY, tmp_path, quiet=True)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6 and {path.suffix for path in files} == {".json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train", lambda *a: pytest.fail("trained again"))
        assert sweep.run_experiment(TINY, tmp_path, quiet=True) == tuple(json.loads(json.dumps(once)))
        for what, value in (("source", lambda: "other code"), ("device_name", lambda device: "another device")):
            with pytest.MonkeyPatch.context() as more, pytest.raises(pytest.fail.Exception):
                more.setattr(sweep, what, value)
                sweep.run_experiment(TINY, tmp_path, quiet=True)
        with pytest.raises(pytest.fail.Exception):
            sweep.run_experiment(replace(TINY, clip=2.0), tmp_path, quiet=True)
    files[0].write_text("{")
    with pytest.raises(ValueError, match="broken"):
        sweep.run_experiment(TINY, tmp_path, quiet=True)


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", (None, "old"))
def test_nothing_half_written(tmp_path, old):
    """Guards that an error in writing leaves the folder as it was."""
    path = tmp_path / "a.json"
    if old:
        path.write_text(old)
    with pytest.raises(RuntimeError), results.writing(path) as new:
        Path(new).write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError):
        results.write_json(path, dict(a=math.nan))
    assert [one.name for one in tmp_path.iterdir()] == (["a.json"] if old else [])
    assert not old or path.read_text() == old


def test_an_error_leaves_no_results(tmp_path, monkeypatch):
    """Guards that `run` writes no results before all runs are there, and says what went wrong."""
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise ValueError("no more")
        return train.train(*args)

    monkeypatch.setattr(sweep, "train", failing)
    words = ["run", "copy", "--quiet", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert main(words) == 2
    assert not (tmp_path / "out").exists()
    assert all(path.suffix == ".json" for path in (tmp_path / "cache" / "copy-smoke").iterdir())


def damaged(text, fault):
    """The text of a results file, damaged."""
    content = json.loads(text)
    content.pop("checksum")
    if fault == "number":
        return text.replace('"width": 16', '"width": 61')
    if fault == "cut":
        return text[: len(text) // 2]
    if fault in ("list", "text"):
        return dict(list="[1, 2]", text="no JSON")[fault]
    if fault == "format":
        content["format"] = 0
    elif fault == "missing":
        del content["runs"]
    else:
        content["models"] = []
    return json.dumps(content | dict(checksum=results.checksum(content)))


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The text of a results file, as `run` writes it."""
    folder = tmp_path_factory.mktemp("copied")
    assert main(["run", "copy", "--quiet", "--out", str(folder), "--cache", str(folder / "cache")]) == 0
    return (folder / "copy.json").read_text()


@pytest.mark.parametrize("fault", ("number", "cut", "list", "text", "format", "missing", "kind"))
def test_damaged_results_are_refused(tmp_path, copied, fault, capsys):
    """Guards against results that were edited, cut, or are of something else."""
    path = tmp_path / "copy.json"
    path.write_text(copied)
    assert results.read_results(path)["experiment"] == "copy"
    path.write_text(damaged(copied, fault))
    with pytest.raises(ValueError, match=r"copy\.json (is broken|has)"):
        results.read_results(path)
    assert main(["show", "copy", "--out", str(tmp_path)]) == 2
    assert "copy.json" in capsys.readouterr().err


def test_provenance(copied):
    """Guards what a result says about itself, and what it keeps to itself."""
    content = json.loads(copied)
    about = content["provenance"]
    assert set(about) == PROVENANCE and set(about["versions"]) == {"python", "torch", "numpy"}
    assert about["command"] == "python -m vla_teach.experiments run copy --size smoke --jobs 1"
    assert about["seconds"] > 0 and about["device"] and about["versions"]["torch"] == torch.__version__
    if about["commit"] is not None:
        assert len(about["commit"]) == 40 and about["dirty"] in (True, False)
    assert {run["seed"] for run in content["runs"]} == {0, 1}
    assert all(run["seconds"] > 0 for run in content["runs"])
    for private in (str(Path.home()) + "/", str(results.ROOT), socket.gethostname()):
        assert private not in copied


FOLDER_OF_RESULTS = results.ROOT / "book" / "results"
STORED = [path for path in FOLDER_OF_RESULTS.rglob("*.json") if "experiment" in results.read_json(path)]


@pytest.mark.parametrize("path", sorted(STORED), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_stored_results(path):
    """Guards the results that the book shows: whole, of this catalogue and a clean commit, in their folder."""
    content = results.read_results(path)
    assert path.parent == results.ROOT / RESULTS[content["size"]]
    settings = CATALOGUE[path.stem].sizes[content["size"]]
    assert content["settings"] == json.loads(json.dumps(settings.described()))
    assert content["provenance"]["dirty"] is False and len(content["provenance"]["commit"]) == 40
    assert all(one["dirty"] is False for one in content["provenance"].get("added", ()))
    rates = sweep.best_rates(settings.task, sweep.sweep_of(settings, content["runs"]))
    models = sweep.summary(settings, content["runs"], rates)
    assert json.loads(json.dumps(models)) == content["models"]


# ---- the catalogue and the command line -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE)
def test_smoke(name, tmp_path, capsys):
    """Guards that every experiment runs with all its models, and `show` shows what came out."""
    words = [name, "--out", str(tmp_path)]
    assert main(["run", *words, "--cache", str(tmp_path / "cache"), "--quiet"]) == 0
    content = results.read_results(tmp_path / f"{name}.json")
    assert name not in FAIR or set(content["models"]) >= {*BASELINES, "vla", *CONTROLS}
    sizes = [model["parameters"] for model in content["models"].values()]
    assert min(sizes) >= 0.98 * max(sizes)
    for label, model in content["models"].items():
        tests = model["tests"]
        assert list(tests) == ["test", *content["settings"]["tests"]]
        assert all(math.isfinite(score) for scores in tests.values() for score in scores["scores"]), label
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"{name}.json"]
    assert not any((tmp_path / "cache").iterdir())
    capsys.readouterr()
    assert main(["show", *words]) == 0
    shown = capsys.readouterr().out
    assert all(label in shown for label in content["models"]) and content["provenance"]["when"] in shown


FAIR = [name for name in CATALOGUE if name not in ("mqar_published", "ablations")]
BRIEF = (
    "listops",
    "pathfinder",
)  # on a small budget: three seeds, and of gated DeltaNet and Mamba-2 the one that starts slow


@pytest.mark.parametrize("name", FAIR)
def test_every_size_is_fair(name):
    """Guards settings of all sizes: counts within 2%, rates and controls for all, seeds for a paired test."""
    for size in SIZES:
        settings = CATALOGUE[name].sizes[size]
        counts = [parameters for _, parameters in train.mlp_widths(settings).values()]
        assert min(counts) >= 0.98 * max(counts)
        wanted = {*BASELINES, "vla", *CONTROLS}
        if size == "gpu" and name != "relations":
            wanted.remove("vla_published")  # a loop over tokens, hours at these lengths
        if size == "gpu" and name in BRIEF:
            wanted = wanted - {"gated_delta", "mamba2"} | {"gated_delta_slow", "mamba2_slow"}
        assert wanted <= set(settings.labels)
        assert len(settings.rates) >= 2 and settings.seeds >= (2 if size == "smoke" else 3)
        for label, variant in settings.variants.items():
            options = variant.get("layer_options", {})
            shell = {one: options[one] for one in ("conv", "output_norm") if one in options}
            assert shell == settings.shell, f"{label} has another shell than the others"
    assert len(CATALOGUE[name].sizes["gpu"].rates) >= 3 and CATALOGUE[name].sizes["gpu"].seeds >= (
        3 if name in BRIEF else 5
    )
    assert CATALOGUE[name].sizes["gpu"].more_rates == dict(softmax=(3e-4,))


def test_the_published_comparison():
    """Guards what the paper's own comparison was: no convolution, one rate, and beside it the same with no penalty."""
    settings = CATALOGUE["mqar_published"].sizes["gpu"]
    assert settings.rates == (3e-4,) and settings.seeds >= 5 and not settings.more_rates
    assert all(variant["layer_options"]["conv"] == 0 for variant in settings.variants.values())
    assert settings.variants["vla_published_off"]["layer_options"] == dict(penalty=None, conv=0)
    model = train.build(settings, "vla_published_off", 0).backbone.blocks[0].layer
    assert model.nudge and model.conv is None and not hasattr(model, "W_u")


def test_ablations():
    """Guards that the ablations differ in one thing each from VLA as it comes, and all are there."""
    for size in SIZES:
        settings = CATALOGUE["ablations"].sizes[size]
        for label, variant in settings.variants.items():
            options = variant.get("layer_options", {})
            if variant["layer"] == "vla" and label != "vla_key":
                assert len(set(options) - {"conv"}) == (label != "vla"), label
    assert settings.variants["vla_stiff"]["layer_options"]["lambda_0"] == 10


def test_variants():
    """Guards what the controls are."""
    known = catalogue.variants(16)
    assert known["vla_off"] == dict(layer="vla", layer_options=dict(penalty=None))
    assert known["vla_key"] == dict(layer="vla", layer_options=dict(penalty="key", lambda_0=0.1 / 16))
    assert known["vla_published"] == dict(layer="vla_published")


def test_list(capsys):
    """Guards `list`: every experiment, in one line."""
    assert main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "Minutes" in head and [line.split()[0] for line in lines if "--data" not in line] == [*CATALOGUE, *OFFICIAL]


def test_each_size_has_its_folder(tmp_path, monkeypatch, capsys):
    """Guards that a run on a laptop does not write over what a GPU made, and `show` shows both."""
    assert main(["show", "copy"]) == 0
    shown = capsys.readouterr().out
    assert "copy, gpu: accuracy on NVIDIA" in shown and "copy, cpu: accuracy on" in shown
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "run_experiment", lambda *_: ([], {}, []))
    for size, folder in (("cpu", "book/results/small"), ("gpu", "book/results")):
        assert main(["run", "copy", "--size", size, "--device", "cpu", "--quiet", "--cache", str(tmp_path / "c")]) == 0
        assert results.read_results(tmp_path / folder / "copy.json")["size"] == size
    assert results.read_results(tmp_path / "book/results/small/copy.json")["size"] == "cpu"


def test_some_models_and_seeds(tmp_path):
    """Guards --models, --seeds and --fresh, and that the command says so."""
    words = ["run", "copy", "--models", "vla", "delta", "--seeds", "3", "--fresh", "--quiet"]
    left = tmp_path / "cache" / "copy-smoke" / "left.json"
    left.parent.mkdir(parents=True)
    left.write_text("left")
    assert main([*words, "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 0
    content = results.read_results(tmp_path / "copy.json")
    assert list(content["models"]) == ["vla", "delta"] and len(content["models"]["vla"]["tests"]["test"]["scores"]) == 3
    assert " --seeds 3 --models vla delta --jobs 1" in content["provenance"]["command"] and not left.exists()


def test_models_added_later(tmp_path, capsys):
    """Guards --add: what comes out is what one run of all would have given, and it says that it was two."""
    words = ["run", "copy", "--quiet", "--cache", str(tmp_path / "cache"), "--out"]
    assert main([*words, str(tmp_path / "all"), "--models", "linear", "mesa", "vla"]) == 0
    assert main([*words, str(tmp_path), "--models", "linear", "vla"]) == 0
    first = results.read_results(tmp_path / "copy.json")
    assert main([*words, str(tmp_path), "--models", "mesa", "--add"]) == 0
    both, whole = (results.read_results(folder / "copy.json") for folder in (tmp_path, tmp_path / "all"))
    (added,) = both["provenance"].pop("added")
    assert added["models"] == ["mesa"] and "--models mesa --add" in added["command"]
    assert both["provenance"] == first["provenance"] and list(both["models"]) == ["linear", "mesa", "vla"]
    for part in ("settings", "models", "comparisons"):
        assert both[part] == whole[part]
    assert len(both["runs"]) == len(whole["runs"])
    for more, why in (("mesa", "already"), ("vla_rank_4", "no larger")):
        assert main([*words, str(tmp_path), "--models", more, "--add"]) == 2 and why in capsys.readouterr().err
    assert main([*words, str(tmp_path), "--models", "delta", "--add", "--size", "cpu"]) == 2
    first["settings"]["steps"] += 1
    results.write_results(tmp_path / "copy.json", first)
    capsys.readouterr()
    assert main([*words, str(tmp_path), "--models", "delta", "--add"]) == 2 and "steps" in capsys.readouterr().err


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with a few made-up files in the form of the arena's own."""
    return make_up(tmp_path_factory.mktemp("lra"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files(name, official, tmp_path, monkeypatch):
    """Guards the arena's own files as tasks: models run, splits share nothing, no folder is in what is written."""
    monkeypatch.setenv(FOLDER, "")
    words = ["run", name, "--quiet", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    jobs = "2" if name == "lra_image" else "1"  # other processes must find the folder, too
    assert main([*words, "--data", str(official), "--jobs", jobs, "--models", "delta", "vla"]) == 0
    assert set(OFFICIAL[name].sizes["gpu"].labels) >= {
        "softmax",
        "linear",
        "delta",
        "mesa",
        "vla",
        "vla_off",
        "vla_key",
    }
    assert str(official) not in (tmp_path / f"{name}.json").read_text()
    data = train.load_data(OFFICIAL[name].sizes["smoke"])
    x = data.pool.pick(range(len(data.pool))).x
    parts = [{row.tobytes() for row in one} for one in (x, data.validation.x, data.tests["test"].x)]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    batch = train.training_batch(OFFICIAL[name].sizes["smoke"], data, seed=0, step=0)
    assert {row.tobytes() for row in batch.x} <= parts[0] and len(batch.x) == 4


def test_official_files_are_asked_for(tmp_path, monkeypatch, capsys):
    """Guards the errors without a folder, and with one that lacks the files."""
    monkeypatch.setenv(FOLDER, "")
    words = ["run", "lra_image", "--quiet", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert main(words) == 2 and "--data" in capsys.readouterr().err
    assert main([*words, "--data", str(tmp_path)]) == 2 and "data_batch_1.bin is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for wrong in (dict(which="music"), dict(split="all"), dict(most=0)):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is"):
            Official(**wrong)


BAD = {
    "add to nothing": ["run", "copy", "--models", "vla", "--add", "--out", str(Path(__file__).parent)],
    "add what": ["run", "copy", "--add"],
    "no command": [], "unknown command": ["walk"], "unknown name": ["run", "chess"], "no name": ["run"],
    "size": ["run", "copy", "--size", "huge"], "seeds": ["run", "copy", "--seeds", "0"],
    "seeds text": ["run", "copy", "--seeds", "many"], "jobs": ["run", "copy", "--jobs", "-1"],
    "jobs float": ["run", "copy", "--jobs", "1.5"], "device": ["run", "copy", "--device", "abacus"],
    "no GPU": ["run", "copy", "--device", "cuda:99"], "option": ["run", "copy", "--sizes"],
    "out is a file": ["run", "copy", "--quiet", "--out", __file__],
    "models": ["run", "copy", "--models", "vla", "lstm"], "no models": ["run", "copy", "--models"],
}  # fmt: skip


@pytest.mark.parametrize("words", BAD.values(), ids=BAD)
def test_bad_commands(words, capsys, tmp_path):
    """Guards the command line: exit code 2, one line that says what is wrong, no traceback."""
    words = [*words, "--cache", str(tmp_path)] if words[:1] == ["run"] else words
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and "error: " in error and "Traceback" not in error


def test_as_a_module():
    """Guards `python -m`."""
    done = subprocess.run([sys.executable, "-m", "vla_teach.experiments", "run", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'x'" in done.stderr


# ---- broken copies ----------------------------------------------------------------------------------------------

CHECKS = {train: check_train, sweep: check_sweep}
MUTATIONS = {
    train: (
        ('group["lr"] = rate_at(settings, rate, now["step"])', 'group["lr"] = rate_at(settings, 1e-3, now["step"])'),
        ('group["lr"] = rate_at(settings, rate, now["step"])', 'group["lr"] = rate'),
        ("number(TRAIN, seed, step))\n", "number(TRAIN, 0, step))\n"),
        ("settings.task.batch(settings.batch, number(TRAIN, seed, step))", "settings.task.batch(settings.batch, seed)"),
        ("evaluate(model, task, data.validation,", 'evaluate(model, task, data.tests["test"],'),
        ("number(VALIDATION)), task", "number(TEST)), task"),
        ("number(TEST, i + 1)", "number(TEST)"),
        ("torch.manual_seed(number(INIT, seed))", "torch.manual_seed(0)"),
        ("torch.manual_seed(number(INIT, seed))", "pass"),
        ("    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)\n", ""),
        ("optimiser.zero_grad()", "pass"),
        ("losses.clear()", "pass"),
        ("(0.0, settings.weight_decay)", "(settings.weight_decay, settings.weight_decay)"),
        (" or name.rsplit(\".\", 1)[-1] in NOT_DECAYED", ""),
        ("optimiser.load_state_dict(optimiser.state_dict() | dict(state=state))", "pass"),
        ('put(parts["weights"])', "pass"),
        ('put(parts["weights"])', 'put(parts["best"])'),
        ('return now, parts["best"]', 'return now | dict(history=[]), parts["best"]'),
        ('return now, parts["best"]', 'return now | dict(best=None), parts["best"]'),
        ("    model.load_state_dict(best)\n", ""),
        ("x.clone() for name, x in model.state_dict().items()}\n        if now",
         "x for name, x in model.state_dict().items()}\n        if now"),
        ("score < than if", "score > than if"),
        (">= settings.patience * settings.every", ">= settings.steps"),
        ("tick(now[\"step\"])", "tick(0)"),
        ("total / asked", "total / len(batch.x)"),
    ),
    sweep: (
        ('.append(run["validation"])', '.append(run["tests"]["test"])'),
        ("None if None in some else statistics.mean(some)", "max(some)"),
        ("chosen[label] = min(means)", "chosen[label] = max(means)"),
        ("statistics.stdev(known)", "statistics.pstdev(known)"),
        ("(label, chosen[label])]", "(label, rates[0])]"),
        ("math.sqrt(n))", "math.sqrt(n - 1))"),
        ("f, angle = n - 1,", "f, angle = n,"),
        ("(len(order) - rank)", "len(order)"),
        ("differences = [a - b", "differences = [b - a"),
        ("settings.more_rates.get(label, ())", "()"),
    ),
}  # fmt: skip
CASES = [(module, *pair) for module, pairs in MUTATIONS.items() for pair in pairs]


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__)
def test_the_source_as_it_is_passes(module):
    """Guards the tests below: a copy without a mutation satisfies the same checks."""
    passes(CHECKS[module], module)


@pytest.mark.parametrize(("module", "original", "broken"), CASES, ids=range(len(CASES)))
def test_a_mutation_is_noticed(module, original, broken):
    """Guards the checks: each of these mistakes makes them fail."""
    refuses(CHECKS[module], module, original, broken)
