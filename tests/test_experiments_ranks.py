"""One training run over several processes: the numbers of one process, a run that is killed and goes on, torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from oracle_distributed import LATE, Ranks
from oracle_ranks import RATE, SEED, SETTINGS, alone, double, key, plain, train_some
from safetensors.torch import load_file

import vla_teach
from vla_teach.experiments import ranks as over
from vla_teach.experiments.catalogue import Settings
from vla_teach.experiments.results import read_json
from vla_teach.experiments.train import build, train
from vla_teach.tasks import Copy, DelayedRecall

pytestmark = pytest.mark.usefixtures("one_core")
TAIL, ADD = "qkv[:, qkv.shape[1] - n :]", "add_up([loss, *(p.grad for p in weights)], place.all)"
MUTATIONS = (
    ("[rank - 1] * (rank > 0)", "[rank - 1] * 0"),  # the convolution does not look over the border
    ("[rank - 1] * (rank > 0)", "[rank - 1] * 1"),  # the first rank looks at the last
    ("[rank - 1] * (rank > 0)", "[rank] * (rank > 0)"),
    (TAIL, "qkv[:, :n]"),
    (TAIL, "qkv[:, -n:].detach().requires_grad_()"),
    ("q, k, v, u, beta, group=self.group", "q, k, v, u, beta"),  # each slice a sequence of its own
    ("count = int(batch.mask.sum())", "count = int(piece(batch, place).mask.sum().clip(1))"),
    (ADD, ADD.replace("place.all", "place.group")),
    (ADD, "add_up([loss], place.all)"),
    ("part(len(batch.x), place.row, place.rows)", "part(len(batch.x), 0, place.rows)"),
)


@pytest.fixture(scope="module")
def pools():
    """{n: n processes}, started when they are asked for."""
    started = {}

    def get(n):
        started[n] = started.get(n) or Ranks(n, timeout=30)
        return started[n]

    yield get
    for pool in started.values():
        pool.stop()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """{name: what one process finds, and the tensors of its checkpoint}."""
    torch.set_num_threads(1)
    return {name: alone(name, tmp_path_factory.mktemp("alone") / f"{name}.safetensors") for name in SETTINGS}


def check_same(found, path, wanted, exact=False):
    """Scores, losses, weights and the optimiser's state as in one process, to rounding in float64."""
    close = dict(rtol=0, atol=0) if exact else dict(rtol=1e-9, atol=1e-12)
    result, tensors = wanted
    assert found.keys() == result.keys()
    for name, value in result.items():
        if name == "history":
            assert [(one["step"], one["validation"]) for one in found[name]] == [
                (one["step"], one["validation"]) for one in value
            ]
            losses = ([one["loss"] for one in history] for history in (found[name], value))
            torch.testing.assert_close(*(torch.tensor(x, dtype=torch.float64) for x in losses), **close)
        else:
            assert found[name] == value, name
    saved = load_file(path)
    assert saved.keys() == tensors.keys()
    for name, x in tensors.items():
        torch.testing.assert_close(saved[name], x, **close, msg=lambda words, name=name: f"{name}: {words}")


@pytest.mark.parametrize(("n", "sequence"), ((2, 2), (2, 1), (4, 2), (4, 4)))
def test_ranks_train_as_one_process_does(pools, wanted, tmp_path, n, sequence):
    """Guards slices of the sequences, parts of the batch, and both: each gives one process's numbers, on every rank."""
    for name in SETTINGS:
        path = tmp_path / f"{name}.safetensors"
        answers = pools(n)(train_some, name, sequence, str(path))
        assert answers == [answers[0]] * n
        assert isinstance(answers[0], dict), answers[0]
        check_same(answers[0], path, wanted[name])


@pytest.mark.parametrize(("original", "broken"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_a_mutation_is_noticed(pools, wanted, tmp_path, original, broken):
    """Guards the test above: with each of these mistakes the numbers are others."""
    path = tmp_path / "copy.safetensors"
    answer = pools(4)(train_some, "copy", 2, str(path), original, broken)[0]
    with pytest.raises(AssertionError):
        assert isinstance(answer, dict), answer
        check_same(answer, path, wanted["copy"])


@pytest.mark.parametrize("how", ("ends", "is late"))
@pytest.mark.parametrize("sequence", (1, 2))
def test_a_lost_rank_is_an_error_in_time_and_the_run_goes_on(pools, wanted, tmp_path, sequence, how):
    """Guards a kill in the middle: the other rank ends with an error, and the same command gives the same numbers."""
    path = tmp_path / "recall.safetensors"
    lost = Ranks(2, LATE)
    try:
        lost.start(train_some, "recall", sequence, str(path), None, None, 5, how, LATE)
        words, seconds = lost.answer(0)
    finally:
        lost.stop()
    assert words.startswith("RuntimeError") and ("lost the others" in words or "another rank" in words)
    assert seconds < 3 * LATE  # before the late one comes
    saved = load_file(path)
    assert saved["optimiser/0/step"] == 4  # the last look before
    if how == "is late":  # once on one process: a checkpoint does not depend on the number of ranks
        settings = SETTINGS["recall"]
        with double():
            found = plain(train(settings, settings.labels[0], RATE, SEED, checkpoint=path, key=key(settings)))
        check_same(found, path, wanted["recall"])
    else:
        again = pools(2)(train_some, "recall", sequence, str(path))[0]
        check_same(again, path, wanted["recall"])
        other = tmp_path / "whole.safetensors"
        whole = pools(2)(train_some, "recall", sequence, str(other))[0]
        check_same(again, path, (whole, load_file(other)), exact=True)


def test_a_checkpoint_of_another_run_is_refused(pools, wanted, tmp_path):
    """Guards the key: no run goes on from the weights of another."""
    path = tmp_path / "run.safetensors"
    pools(2)(train_some, "copy", 2, str(path))
    for words, _ in pools(2)(train_some, "recall", 2, str(path)):
        assert words.startswith("ValueError") and "another run" in words


def test_what_cannot_be_cut_into_slices_is_refused():
    """Guards models and sizes whose numbers would be wrong: each is refused by name, before any rank waits."""
    small = dict(width=8, depth=1, heads=2)
    for label, more, words in (
        ("softmax", {}, "other than VLA"),
        ("vla", dict(positions=20), "positions"),
        ("vla", dict(pooling="mean"), "pooling"),
        ("vla_relation", {}, "relation"),
        ("vla_related", {}, "relation"),
    ):
        settings = Settings(Copy(n=4, symbols=3), (label,), small | more)
        with pytest.raises(ValueError, match=words):
            over.over_slices(build(settings, label, 0), None)
    published = Settings(Copy(n=4, symbols=3), ("vla",), small, shell=dict(nudge=1e-3))
    with pytest.raises(ValueError, match="nudge"):
        over.over_slices(build(published, "vla", 0), None)
    few = Settings(DelayedRecall(1, keys=2), ("vla",), small, batch=2)
    place = over.Place(0, 3, 0, 1, None, None)
    with pytest.raises(ValueError, match="batch is 2"):
        over.check_fits(few, None, place)
    with pytest.raises(ValueError, match="4 tokens"):
        over.check_fits(few, None, place._replace(rows=1, slices=5))


def test_slices_that_are_too_short_are_refused_on_all_ranks(pools):
    """Guards the convolution: a slice shorter than what it looks back would need more than one neighbour."""
    answers = pools(4)(short_slices)
    assert all("expected 3 at least" in answer for answer in answers), answers


def short_slices(groups):
    """Four slices of two tokens."""
    settings = Settings(Copy(n=4, symbols=3), ("vla",), dict(width=8, depth=1, heads=2), batch=2, steps=1, held_out=2)
    try:
        over.train_over(settings, "vla", RATE, SEED, over.place_of(4, 30))
    except ValueError as error:
        return str(error)
    return "no error"


def test_torchrun_starts_a_killed_run_again(tmp_path):
    """Guards the command: of two ranks by torchrun one is killed; both are started again, and the numbers are right."""
    path, out = tmp_path / "run.safetensors", tmp_path / "run.json"
    words = "--sequence 2 --length 16 --width 8 --depth 1 --batch 8 --steps 60 --every 4 --held-out 8 --timeout 20"
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    run += ["-m", "vla_teach.experiments.ranks", *words.split(), "--checkpoint", str(path), "--out", str(out)]
    place = dict(OMP_NUM_THREADS="1", PYTHONPATH=str(Path(vla_teach.__file__).parents[1]))
    with subprocess.Popen(
        run, env=os.environ | place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        try:
            until = time.monotonic() + 60
            while not path.exists() and time.monotonic() < until and job.poll() is None:
                time.sleep(0.02)
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            said = job.communicate(timeout=120)[0]
        finally:
            job.kill()
    assert job.returncode == 0, said
    found = read_json(out)
    # What the other rank says is tested above: on a busy machine torchrun ends it here before it has noticed.
    assert found["ranks"] == 2 and "exitcode: -9" in said, said
    args = over.settings_of(type("Args", (), dict(task="recall", length=16, width=8, depth=1, heads=2, label="vla",
                                                  batch=8, steps=60, every=4, held_out=8)))  # fmt: skip
    one = json.loads(json.dumps(train(args, "vla", 3e-3, 0)))
    assert [x["step"] for x in found["run"]["history"]] == [x["step"] for x in one["history"]]
    pairs = ([x["loss"] for x in history] for history in (found["run"]["history"], one["history"]))
    torch.testing.assert_close(*map(torch.tensor, pairs), rtol=1e-3, atol=0)
