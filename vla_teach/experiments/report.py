"""What chapters say of an experiment: names, a table, dots by seed, the sweep, the training, paired tests."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import plotly.graph_objects as go

from vla_teach.experiments.results import ROOT, read_results
from vla_teach.experiments.sweep import comparisons, paired
from vla_teach.figures import STYLES, figure

NAMES = {
    "softmax": "softmax attention",
    "softmax_free": "softmax, no positions",
    "softmax_related": "softmax, told",
    "linear": "linear attention",
    "delta": "DeltaNet",
    "delta_related": "DeltaNet, told",
    "gated_delta": "gated DeltaNet",
    "gated_delta_slow": "gated DeltaNet, slow",
    "mamba2": "Mamba-2",
    "mamba2_slow": "Mamba-2, slow",
    "mesa": "MesaNet",
    "vla_off": "VLA, penalty off",
    "vla": "VLA",
    "vla_interpolate": "VLA, interpolating",
    "vla_gated": "VLA, learned λ_t",
    "vla_key": "VLA, u = k",
    "vla_key_gated": "VLA, u = k, learned λ_t",
    "vla_relation": "VLA, relation penalty",
    "vla_related": "VLA, told",
    "vla_rank_2": "VLA, rank 2",
    "vla_rank_4": "VLA, rank 4",
    "vla_loose": "VLA, λ₀ = 0.1 / K",
    "vla_stiff": "VLA, λ₀ = 10",
    "vla_learned": "VLA, λ₀ learned",
    "vla_published": "VLA as published",
    "vla_published_off": "as published, penalty off",
}
FAMILIES = {
    "softmax": "softmax",
    "linear": "linear attention",
    "delta": "DeltaNet",
    "gated": "DeltaNet",
    "mamba2": "linear attention",
    "mesa": "recursive least squares",
    "vla": "VLA",
}
MENU = dict(x=0, xanchor="left", y=1.03, yanchor="bottom", bgcolor="white", font=dict(color="#222222"))


def load(name: str, folder: str | Path | None = None) -> dict:
    """The stored results of an experiment, "small/NAME" for size cpu; from book/results if not said otherwise."""
    return read_results(Path(folder or ROOT / "book" / "results") / f"{name}.json")


def order(results: dict) -> list[str]:
    """The labels of the models, rivals first, in the order of NAMES."""
    return [label for label in NAMES if label in results["models"]]


def color(label: str) -> str:
    """The colour of a model's family in all pictures."""
    return STYLES[FAMILIES[label.split("_")[0]]]["color"]


def said(results: dict, label: str, test: str = "test") -> str:
    """Mean and standard deviation over seeds as text, "diverged" where no seed came to a score."""
    scores = results["models"][label]["tests"][test]
    if scores["mean"] is None:
        return "diverged"
    return f"{scores['mean']:.3f}" + ("" if scores["sd"] is None else f" ± {scores['sd']:.3f}")


def print_about(results: dict) -> None:
    """What was run, where, and the command that does it again."""
    made, settings = results["provenance"], results["settings"]
    print(wrapped(made["command"]))
    print(f"size {results['size']}, on {made['device']}, {made['when'][:10]}, commit {made['commit'][:10]}")
    for more in made.get("added", ()):
        print(wrapped(more["command"]))
        names = "; ".join(NAMES[label] for label in more["models"])
        print(f"added {names}: on {more['device']}, {more['when'][:10]}, commit {more['commit'][:10]}")
    model = settings["model"]
    print(
        f"width {model['width']}, {model['depth']} layer{'s' * (model['depth'] > 1)}, {model['heads']} heads;", end=" "
    )
    print(f"{settings['steps']} steps of {settings['batch']}; {settings['seeds']} seeds")
    if stopped := stops(results):
        print(stopped)


def stops(results: dict) -> str:
    """How many runs at the chosen rates ended before the last step, and why; empty if none did."""
    runs = [run for label in results["models"] for run in chosen_runs(results, label)]
    why = Counter(run["stopped"] for run in runs)
    looks = f"no better score in {results['settings']['patience']} looks"
    words = {"no better": looks, "perfect": "every answer right", "diverged": "diverged"}
    found = "; ".join(f"{why[reason]} ({words[reason]})" for reason in words if why[reason])
    return f"stopped early, of {len(runs)} runs: {found}" if found else ""


def wrapped(command: str) -> str:
    """A command in lines of at most 84 characters, as a shell takes it."""
    return " \\\n    ".join(wrap(command, 78, break_on_hyphens=False, break_long_words=False))


def print_table(results: dict, tests: Sequence[str] = ("test",)) -> None:
    """A line a model: its rate, and mean ± standard deviation on some test sets."""
    wide = max(17, *(len(test) + 2 for test in tests))
    print(f"{results['metric']:27s} rate  " + "".join(f"{test:>{wide}}" for test in tests))
    for label in order(results):
        model = results["models"][label]
        rate = f"{model['rate']:g}" + ("*" if model["at_edge"] else " ")
        print(f"{NAMES[label]:25s} {rate:>7}" + "".join(f"{said(results, label, test):>{wide}}" for test in tests))
    print("* the smallest or the largest rate tried; a better one may lie outside")


def compared(results: dict, label: str, other: str, test: str = "test", among: Sequence[str] | None = None) -> dict:
    """The paired test of two models on a test set: difference of the means, p, p after Holm's correction, n.

    label: a form of VLA; other: a rival, or "vla_off". The correction is over all such pairs of that test set, or over
    those of the labels `among`. Raises KeyError for a pair that is not compared.
    """
    models = {name: model for name, model in results["models"].items() if among is None or name in among}
    return pair_of(comparisons(models, test), label, other)


def pair_of(found, label, other):
    """The comparison of one pair among all."""
    for one in found:
        if (one["model"], one["against"]) == (label, other):
            return one
    raise KeyError(f"{label} is not compared with {other}")


def print_compared(results: dict, labels: Sequence[str], test: str = "test") -> None:
    """A line for each pair of a form of VLA and a rival: difference, p, p by Holm."""
    print_pairs([one for one in comparisons(results["models"], test) if one["model"] in labels], test)


def print_changes(results: dict, test: str = "test", base: str = "vla") -> None:
    """A line for each other form of VLA less the form `base`: difference, p, p by Holm over these pairs alone."""
    others = [label for label in order(results) if label.startswith("vla") and label != base]
    print_pairs(paired(results["models"], [(label, base) for label in others], test), test)


def print_pairs(found, test):
    """A line for each comparison that has a p."""
    print(f"{test:48s} difference        p   by Holm")
    for one in found:
        if one["p"] is not None:
            pair = f"{NAMES[one['model']]} - {NAMES[one['against']]}"
            print(f"{pair:48s} {one['difference']:+10.3f} {one['p']:8.2g} {one['p_holm']:9.2g}")


def steps_to(results: dict, label: str, score: float) -> list[int | None]:
    """The step of the first look at which validation had the score, a seed each at the chosen rate; None for never."""
    sign = -1 if results["metric"] == "mse" else 1  # a small error is a good one
    steps = []
    for run in chosen_runs(results, label):
        looks = [(one["step"], one["validation"]) for one in run["history"]]
        steps.append(next((step for step, x in looks if x is not None and sign * x >= sign * score), None))
    return steps


def compared_steps(results: dict, label: str, other: str, score: float) -> dict:
    """The paired test of two models in the steps to a score, as `compared`: p by Holm over all such pairs.

    A seed that never has the score counts as the last step of all. Raises KeyError for a pair that is not compared.
    """
    last = results["settings"]["steps"]
    models = {}
    for name in results["models"]:
        scores = [last if step is None else step for step in steps_to(results, name, score)]
        models[name] = dict(tests=dict(steps=dict(scores=scores)))
    return pair_of(comparisons(models, "steps"), label, other)


def dots(results: dict) -> go.Figure:
    """A row of dots, one a seed, and a bar at the mean, for every model; with several test sets, a list to choose."""
    labels, tests = order(results)[::-1], ["test", *results["settings"]["tests"]]
    fig = figure(results["metric"], "", height=110 + 27 * len(labels))
    for label in labels:
        found, name = results["models"][label]["tests"], NAMES[label]
        scores = found["test"]["scores"]
        dot = dict(color=color(label), size=8, opacity=0.7)
        bar = dict(color=color(label), symbol="line-ns-open", size=18, line_width=2)
        fig.add_scatter(x=scores, y=[name] * len(scores), mode="markers", marker=dot, name=name, showlegend=False)
        fig.add_scatter(x=[found["test"]["mean"]], y=[name], mode="markers", marker=bar, name=name, showlegend=False)
    fig.update_yaxes(tickfont_size=11, categoryorder="array", categoryarray=[NAMES[label] for label in labels])
    if len(tests) > 1:
        buttons = []
        for test in tests:
            models = [results["models"][label]["tests"][test] for label in labels]
            x = [part for one in models for part in (one["scores"], [one["mean"]])]
            buttons.append(dict(label=test, method="restyle", args=[dict(x=x), [*range(len(x))]]))
        fig.update_layout(updatemenus=[dict(MENU, name="test set", buttons=buttons)], margin_t=64)
    return fig


def sweep_figure(results: dict) -> go.Figure:
    """The validation score of every rate tried, mean over its seeds, a curve a model; choose a family in the legend."""
    fig = figure("learning rate", f"validation {results['metric']}", log="x")
    dashes, used = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot"), {}
    for label in order(results):
        rates = {}
        for run in results["runs"]:
            if run["label"] == label and run["seed"] < results["settings"]["sweep_seeds"]:
                rates.setdefault(run["rate"], []).append(run["validation"])
        rates = {rate: sum(found) / len(found) for rate, found in sorted(rates.items()) if None not in found}
        used[color(label)] = used.get(color(label), -1) + 1
        style = dict(color=color(label), dash=dashes[used[color(label)] % len(dashes)], width=1.5)
        fig.add_scatter(x=[*rates], y=[*rates.values()], name=NAMES[label], mode="lines+markers", line=style)
    fig.update_xaxes(tickvals=sorted({run["rate"] for run in results["runs"]}))
    legend = dict(orientation="h", y=-0.25, yanchor="top", font_size=11)
    return fig.update_layout(height=420 + 14 * len(order(results)), legend=legend)


def training_figure(results: dict, first: str = "vla") -> go.Figure:
    """Validation score by step at the chosen rate, a curve a seed, of one model at a time; a list to choose it."""
    fig, labels, shown = figure("step", f"validation {results['metric']}"), order(results), []
    for label in labels:
        for run in chosen_runs(results, label):
            x, y = zip(*((one["step"], one["validation"]) for one in run["history"]), strict=True)
            style = dict(color=color(label), width=1.5)
            name = f"{NAMES[label]}, seed {run['seed']}"
            fig.add_scatter(x=x, y=y, name=name, mode="lines", line=style, showlegend=False, visible=label == first)
            shown.append(label)
    buttons = [
        dict(label=NAMES[label], method="update", args=[dict(visible=[label == one for one in shown])])
        for label in labels
    ]
    menu = dict(MENU, name="model", buttons=buttons, active=labels.index(first))
    return fig.update_layout(updatemenus=[menu], margin_t=64)


def chosen(results: dict, label: str) -> float:
    """The learning rate that the sweep chose."""
    return results["models"][label]["rate"]


def first_seed(results: dict, label: str) -> dict[float, dict]:
    """The runs of a model with seed 0, which has every rate: {rate: run}, the smallest rate first."""
    runs = {run["rate"]: run for run in results["runs"] if (run["label"], run["seed"]) == (label, 0)}
    return dict(sorted(runs.items()))


def chosen_runs(results: dict, label: str) -> list[dict]:
    """The runs of a model at its chosen rate, by seed."""
    runs = [run for run in results["runs"] if (run["label"], run["rate"]) == (label, chosen(results, label))]
    return sorted(runs, key=lambda run: run["seed"])
