"""The measurement of one sequence over several ranks: a tiny run on the CPU, what is counted, cut runs, lost ranks."""

import sys
import time

import pytest

from vla_teach.bench import ranks
from vla_teach.bench.contestants import BOTH, PASSES
from vla_teach.experiments.results import ROOT, read_json, write_json

SMOKE = ("--smoke", "--seconds", "0.01", "--T", "64")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A smoke run that had no time for the most of it, and went on."""
    out = tmp_path_factory.mktemp("ranks") / "ranks.json"
    begun = ranks.main([*SMOKE, "--limit", "0.2", "--out", str(out)])
    cut = read_json(out), ranks.partial_of(out).exists()
    ended = ranks.main([*SMOKE, "--limit", "60", "--resume", "--out", str(out)])
    return out, cut, (begun, ended)


def test_a_run_that_was_cut_goes_on(measured):
    """Guards the time limit and --resume: what is done is kept and not done again; the file says what is missing."""
    out, (cut, kept), codes = measured
    content = ranks.read_ranks(out)
    assert codes == (1, 0) and kept and not ranks.partial_of(out).exists()
    assert not cut["complete"] and content["complete"] and content["problems"] == []
    assert content["done"][: len(cut["done"])] == cut["done"] and len(cut["done"]) < len(content["done"])
    assert content["checks"][: len(cut["checks"])] == cut["checks"]
    assert content["done"] == list(ranks.pieces(content["settings"])) and len(content["seeds"]) == 2
    assert {"command", "commit", "device", "versions", "when", "sources"} <= content["provenance"].keys()


def test_all_is_checked_and_the_bytes_are_those_of_the_formula(measured):
    """Guards the file: every check passed, no time without one, and what was counted is what the formula says."""
    content = ranks.read_ranks(measured[0])
    assert len(content["checks"]) == 5 and all(one["passed"] for one in content["checks"])
    names = {"o", "S", "A", "dlambda_0"} | {f"d{name}" for name in ranks.TAKES}
    assert all(one["errors"].keys() == names for one in content["checks"])
    for what in ("ranks", "exchange"):
        rows = [row for row in content["rows"] if row["what"] == what]
        assert len(rows) == 2
        for row in rows:
            assert row["received"] == ranks.received(2, 2, 16, 16, row["passes"], "chunk") > 0
    assert all(row["received"] == 0 for row in content["rows"] if row["what"] in ("one", "alone"))
    for passes_ in PASSES:
        assert ranks.model(content, 16, passes_)(64, 2) > 0
        assert ranks.times(content, "one", 16, passes_).keys() == {32, 64}
    assert "efficiency" in ranks.table(content)


def test_a_broken_file_is_refused(measured, tmp_path):
    """Guards the reader: no file of another kind, and none that was changed."""
    content = read_json(measured[0])
    write_json(tmp_path / "other.json", content | dict(kind="benchmark"))
    with pytest.raises(ValueError, match=r"other\.json is no ranks of format"):
        ranks.read_ranks(tmp_path / "other.json")
    write_json(tmp_path / "less.json", {name: part for name, part in content.items() if name != "links"})
    with pytest.raises(ValueError, match=r"less\.json: it has no links"):
        ranks.read_ranks(tmp_path / "less.json")


@pytest.mark.parametrize("wrong", ("ends", "hangs"))
def test_a_lost_rank_ends_the_run(wrong):
    """Guards the parent: where a rank fails, or all hang, it ends the others and says why, in its own time."""
    code = f"import os, sys, time; {wrong == 'ends'} and os.environ['RANK'] == '1' and sys.exit(3); time.sleep(60)"
    begun = time.monotonic()
    problems = ranks.start([sys.executable, "-c", code], 2, 1.5, {})
    assert problems == ["rank 1 ended with 3" if wrong == "ends" else "out of time"]
    assert time.monotonic() - begun < 20


def test_what_cannot_be_measured_is_refused(capsys, tmp_path):
    """Guards the command line: no GPUs, lengths that ranks cannot share, nothing to resume."""
    out = ["--out", str(tmp_path / "x.json")]
    for words, said in (
        (["--world", "999"], "GPUs"),
        (["--smoke", "--T", "33"], "multiples"),
        (["--smoke", "--resume"], "there is no"),
        (["--smoke", "--seconds", "-1"], "above 0"),
    ):
        assert ranks.main([*words, *out]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_stored_results_are_whole_and_right():
    """Guards book/results/ranks.json: nothing missing, every check passed, the bytes those of the formula."""
    content = ranks.read_ranks(ROOT / "book/results/ranks.json")
    assert content["complete"] and not content["settings"]["smoke"] and content["provenance"]["dirty"] is False
    assert content["checks"] and all(one["passed"] for one in content["checks"])
    for row in content["rows"]:
        if row["what"] in ("ranks", "exchange"):
            assert row["received"] == ranks.received(2, content["settings"]["H"], row["D"], row["D"], row["passes"])


# ---- the model --------------------------------------------------------------------------------------------------


def invented(rate=1e-3, least=2.0, delay=0.1, speed=1e5, world=(1, 2)):
    """A file with times that follow a rule exactly: max(least, rate T) alone, max(delay, bytes / speed) a gather."""
    row = dict(D=64, status="ok")
    rows = [row | dict(what="alone", T=T, passes=p, R=1, median_ms=max(least, rate * T))
            for p in PASSES for T in (500, 1000, 8000, 64000)]  # fmt: skip
    rows += [row | dict(what="exchange", passes=p, R=2, median_ms=0.5) for p in PASSES]
    links = [dict(R=2, status="ok", received=n, median_ms=max(delay, n / speed)) for n in (10, 1000, 10**5, 10**7)]
    settings = dict(H=16, device="cuda", D=[64], world=list(world))
    return dict(rows=rows, links=links, settings=settings)


def test_the_model_finds_the_rule_that_made_the_times():
    """Guards the fit: a level part and a straight line are found; more ranks cost the further bytes."""
    content = invented()
    predict = ranks.model(content, 64, BOTH)
    assert predict(1000, 2) == pytest.approx(2.0 + 0.5)
    assert predict(64000, 2) == pytest.approx(32.0 + 0.5)
    further = 2 * (16 * (3 + 3) * 64 * 64 * 4 + 80)  # two ranks more: sums, maps and their gradients; the check
    assert predict(64000, 4) == pytest.approx(16.0 + 0.5 + further / 1e5)
    wrong = invented()
    wrong["rows"] += [dict(what="ranks", D=64, status="ok", T=64000, passes=BOTH, R=2, median_ms=1e9)]
    assert ranks.model(wrong, 64, BOTH)(64000, 2) == predict(64000, 2)


def test_the_model_says_what_it_lacks():
    """Guards a cut file: without the exchanges there is no model, and the table does without."""
    content = invented()
    content["rows"] = [row for row in content["rows"] if row["what"] != "exchange"]
    with pytest.raises(ValueError, match="no time of the exchanges"):
        ranks.model(content, 64, BOTH)
