"""What chapters say of experiments: every model named, numbers and pictures as the results have them."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from vla_teach.experiments import report, results
from vla_teach.experiments.catalogue import CATALOGUE
from vla_teach.experiments.results import ROOT

FOLDER = ROOT / "book" / "results"
STORED = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in sorted(FOLDER.rglob("*.json"))]
STORED = [name for name in STORED if name.split("/")[-1] in CATALOGUE]


@pytest.fixture(params=STORED)
def stored(request):
    return report.load(request.param)


def test_every_model_has_a_name_and_a_colour():
    """Guards against a label of the catalogue that a chapter would leave out in silence."""
    labels = {label for one in CATALOGUE.values() for settings in one.sizes.values() for label in settings.labels}
    assert labels <= set(report.NAMES)
    assert len(set(report.NAMES.values())) == len(report.NAMES)
    assert all(report.color(label).startswith("#") for label in report.NAMES)
    assert report.color("vla_off") == report.color("vla") != report.color("delta") == report.color("gated_delta_slow")


def test_order_and_words(stored):
    """Guards that no model is lost, and that means and spreads are those of the seeds."""
    assert sorted(report.order(stored)) == sorted(stored["models"])
    for label in report.order(stored):
        scores = stored["models"][label]["tests"]["test"]["scores"]
        assert report.said(stored, label) == f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}"


def test_paired_tests(stored):
    """Guards that pairs are those of the results, other test sets have their own, and one pair needs no correction."""
    for one in stored["comparisons"]:
        assert report.compared(stored, one["model"], one["against"]) == pytest.approx(one)
        alone = report.compared(stored, one["model"], one["against"], among=(one["model"], one["against"]))
        assert alone == pytest.approx(one | (dict(p_holm=one["p"]) if one["p"] is not None else {}))
    for test in stored["settings"]["tests"]:
        one = report.compared(stored, *next((c["model"], c["against"]) for c in stored["comparisons"]), test)
        a, b = (stored["models"][one[who]]["tests"][test]["mean"] for who in ("model", "against"))
        assert one["difference"] == pytest.approx(a - b)


def test_changes_of_one_form(stored, capsys):
    """Guards that each other form of VLA is set against one, and Holm's method counts these pairs and no others."""
    labels = [label for label in report.order(stored) if label.startswith("vla")]
    base, test = labels[-1], ["test", *stored["settings"]["tests"]][-1]
    report.print_changes(stored, test, base)
    lines = capsys.readouterr().out.splitlines()[1:]
    scores = {label: stored["models"][label]["tests"][test]["scores"] for label in labels}
    expected = {}
    for label in labels[:-1]:
        d = np.subtract(scores[label], scores[base])
        if np.ptp(d):
            expected[f"{report.NAMES[label]} - {report.NAMES[base]}"] = d.mean(), ttest_1samp(d, 0).pvalue
    ps = sorted(p for _, p in expected.values())
    assert len(lines) == len(expected) > 0
    for line in lines:
        mean, p = expected[line[:48].strip()]
        *_, difference, found, corrected = line.split()
        assert float(difference) == pytest.approx(mean, abs=6e-4)
        assert float(found) == pytest.approx(p, rel=0.06)
        holm = max(q * (len(ps) - i) for i, q in enumerate(ps) if q <= p)
        assert float(corrected) == pytest.approx(min(1, holm), rel=0.06)


def test_first_seed(stored):
    """Guards that seed 0 has a run at every rate of its model, and it is the one that is given back."""
    for label in report.order(stored):
        found = report.first_seed(stored, label)
        assert list(found) == sorted({run["rate"] for run in stored["runs"] if run["label"] == label})
        assert all((run["label"], run["seed"], run["rate"]) == (label, 0, rate) for rate, run in found.items())


def test_printed_lines_fit(stored, capsys):
    """Guards the width that a phone and a page can show."""
    tests = ["test", *stored["settings"]["tests"]][:2]
    report.print_about(stored)
    report.print_table(stored, tests)
    report.print_compared(stored, report.order(stored))
    report.print_changes(stored, base=next(label for label in report.order(stored) if label.startswith("vla")))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 90
    assert sum(any(name in line for name in report.NAMES.values()) for line in lines) >= len(stored["models"])


def test_dots(stored):
    """Guards that every seed of every model is a dot, the bar is the mean, and a choice shows another test set."""
    fig, labels = report.dots(stored), report.order(stored)[::-1]
    assert len(fig.data) == 2 * len(labels)

    def agrees(x, test):
        for label, dots, bar in zip(labels, x[::2], x[1::2], strict=True):
            scores = stored["models"][label]["tests"][test]["scores"]
            assert list(dots) == scores and bar[0] == pytest.approx(np.mean(scores))

    agrees([trace.x for trace in fig.data], "test")
    menu = fig.layout.updatemenus[0] if stored["settings"]["tests"] else None
    for button in menu.buttons if menu else ():
        agrees(button.args[0]["x"], button.label)


def test_sweep_and_training(stored):
    """Guards the curves: every rate tried, every seed at the chosen rate, one model visible at a time."""
    sweep, labels = report.sweep_figure(stored), report.order(stored)
    for label, trace in zip(labels, sweep.data, strict=True):
        tried = {run["rate"] for run in stored["runs"] if run["label"] == label}
        assert set(trace.x) == tried and trace.name == report.NAMES[label]
        assert max(trace.y) <= 1 or stored["metric"] == "mse"
    first = labels[-1]
    fig, seeds = report.training_figure(stored, first), stored["settings"]["seeds"]
    assert len(fig.data) == seeds * len(labels)
    assert [trace.name for trace in fig.data if trace.visible] == [
        f"{report.NAMES[first]}, seed {i}" for i in range(seeds)
    ]
    for button in fig.layout.updatemenus[0].buttons:
        seen = [trace.name for trace, on in zip(fig.data, button.args[0]["visible"], strict=True) if on]
        assert seen == [f"{button.label}, seed {i}" for i in range(seeds)]


def test_steps_to():
    """Guards the step at which a score is there: first look, chosen rate, order of seeds, an error from above."""
    looks = [(50, 0.2), (100, 0.9), (150, None), (200, 0.8)]
    run = dict(label="vla", rate=0.1, seed=1, history=[dict(step=step, validation=x) for step, x in looks])
    other = dict(run, seed=0, history=run["history"][:1])
    made = dict(metric="accuracy", models=dict(vla=dict(rate=0.1)), runs=[run, other, dict(run, rate=1.0, seed=2)])
    assert report.steps_to(made, "vla", 0.8) == [None, 100]
    assert report.steps_to(made | dict(metric="mse"), "vla", 0.8) == [50, 50]
    assert report.steps_to(made | dict(metric="mse"), "vla", 0.1) == [None, None]


def test_runs_that_stopped_early(stored, capsys):
    """Guards that no run is taken for longer than it was: how many ended early, counted here once more."""
    runs = [run for run in stored["runs"] if run["rate"] == stored["models"][run["label"]]["rate"]]
    early = [run for run in runs if run["step"] < stored["settings"]["steps"]]
    report.print_about(stored)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped early")]
    if not any(run["stopped"] for run in runs):
        assert not early and not lines
        return
    (line,) = lines
    counts = [int(part.split()[0]) for part in line.split(": ")[1].split("; ")]
    assert f"of {len(runs)} runs" in line and len(early) <= sum(counts) == sum(
        run["stopped"] is not None for run in runs
    )


def test_steps_are_compared_seed_by_seed(made_speeds):
    """Guards the comparison of speeds by hand: one pair alone, then p twice as large with a second pair of larger p."""
    made = made_speeds
    one = report.compared_steps(made, "vla", "delta", 0.9)  # -20, -10, -30: t = -sqrt 12, 2 degrees of freedom
    assert (one["difference"], one["n"]) == (-20, 3) and one["p_holm"] == pytest.approx(1 - (12 / 14) ** 0.5)
    made["models"]["linear"] = dict(rate=0.1)  # comes there at 20 on every seed: -10, 0, -10
    steady = [dict(step=20, validation=1.0)]
    made["runs"] += [dict(label="linear", rate=0.1, seed=seed, history=steady) for seed in range(3)]
    two = report.compared_steps(made, "vla", "delta", 0.9)
    assert two["p"] == one["p"] and two["p_holm"] == pytest.approx(2 * one["p"])


def test_diverged():
    """Guards the word for a model of which no seed came to a score."""
    none = dict(mean=None, sd=None, scores=[None])
    assert report.said(dict(models=dict(vla=dict(tests=dict(test=none)))), "vla") == "diverged"
    assert results.read_results is report.read_results
