"""The explorers in Python: the list of controls, and what each view shows against plain loops.

`test_streams.py` has the penalty explorer's view; `test_pages.py` compares the pages' script with these views.
"""

import json

import numpy as np
import pytest

from vla_teach import delta_rule, explorers, linear_attention, vla_recurrent
from vla_teach.explorers import ADVERSARY, ANGLE, CHUNKS, DIGITS, EXPLORERS, NORMS, RECALL, STEP
from vla_teach.explorers.attack import PENALISED
from vla_teach.explorers.kit import Choice, Explorer, Slider
from vla_teach.explorers.memories import penalty_view as whole_view
from vla_teach.streams import correlated_stream

every_explorer = pytest.mark.parametrize("explorer", EXPLORERS.values(), ids=EXPLORERS)


def with_start(explorer: Explorer, **changes):
    """The view at the start parameters and changes to them."""
    return explorer.view(**(explorer.start | changes))


# ---- the kit ------------------------------------------------------------------------------------------------------


@every_explorer
def test_controls_hold_what_they_say(explorer):
    """Guards starts and presets: known names, values that the slider or the list can take, on its steps."""
    controls = {control.name: control for control in explorer.controls}
    for values in (explorer.start, *explorer.presets.values()):
        for name, value in values.items():
            control = controls[name]
            if isinstance(control, Choice):
                assert value in control.options
            else:
                place = np.log10(value) if control.log else value
                assert control.low <= place <= control.high, name
                steps = (place - control.low) / control.step
                assert steps == pytest.approx(round(steps), abs=1e-6), f"{name} = {value} lies between two steps"


@every_explorer
def test_the_page_gets_the_whole_list(explorer):
    """Guards that what the page is told survives JSON, and names every control with its label and its ends."""
    told = explorer.for_the_page()
    assert json.loads(json.dumps(told))["name"] == explorer.name
    for control, entry in zip(explorer.controls, told["controls"], strict=True):
        assert entry["name"] == control.name and entry["label"] and entry["start"] == control.start
        assert not isinstance(control, Slider) or (entry["low"], entry["high"]) == (control.low, control.high)


@every_explorer
def test_the_figure_is_filled_by_draw(explorer):
    """Guards that the stored figure shows the start: every trace has points, and the summary has no gap."""
    fig, words = explorer.figure()
    assert all(len(trace.z if trace.type == "heatmap" else trace.y) for trace in fig.data)
    assert len(words) > 40 and "nan" not in words
    assert len(fig.to_json()) < 60_000


def test_a_slider_ends_at_another():
    """Guards `most`: the time slider stays inside the stream."""
    explorer = EXPLORERS["penalty"]
    assert explorer.fit(explorer.start | dict(t=900, T=100))["t"] == 100
    assert explorer.fit(explorer.start | dict(t=90, T=100))["t"] == 90


@every_explorer
def test_the_widget_follows_its_sliders(explorer, monkeypatch):
    """Guards the sliders in Jupyter, without a browser: every control, preset and Reset redraws figure and words."""
    monkeypatch.delenv("VLA_STATIC", raising=False)
    to_try, panel, presets, words, fig = explorer.show().children
    assert explorer.to_try in to_try.value
    controls = dict(zip(explorer.start, panel.children, strict=True))

    def check(**changes):
        p = explorer.fit(explorer.start | changes)
        assert {name: control.value for name, control in controls.items()} == pytest.approx(p)
        view = explorer.view(**p)
        assert words.value == explorer.summary(view, p)
        traces, layout = explorer.draw(view, p)
        for shown, wanted in zip(fig.data, traces, strict=True):
            for name in set("xyz") & set(wanted):
                np.testing.assert_allclose(
                    np.array(shown[name], float), np.array(wanted[name], float), rtol=1e-6, atol=1e-12
                )
        for path, value in layout.items():
            wanted = value if isinstance(value, str | int | float) else pytest.approx(tuple(value))
            assert fig.layout[path] == wanted, path

    check()
    for control in explorer.controls:
        other = control.options[-1] if isinstance(control, Choice) else control.low
        value = 10.0**other if getattr(control, "log", False) else other
        controls[control.name].value = value
        check(**{control.name: value})
        presets.children[-1].click()
        check()
    for button, (title, changes) in zip(presets.children[:-1], explorer.presets.items(), strict=True):
        assert button.description == title
        button.click()
        check(**changes)


# ---- the views ----------------------------------------------------------------------------------------------------


def test_norms_are_those_of_the_penalty_explorer():
    """Guards the norms explorer against the view that `test_streams.py` checks token by token."""
    p = dict(lambda_0=0.1, K=8, T=90, correlation=0.3, gain="interpolate", direction="projected", seed=2)
    got, wanted = NORMS.view(**p), whole_view(**p, t=5)
    assert np.array_equal(got["times"], wanted["times"])
    for memory, norms in wanted["norms"].items():
        assert np.array_equal(got["norms"][memory], norms, equal_nan=True)


def test_recall_asks_every_memory_for_every_pair():
    """Guards both pictures of the recall explorer against memories run from the start, and both measures."""
    n, K, lambda_0, c, seed = 12, 8, 0.1, 0.35, 3
    k, v, _ = correlated_stream(n, K, correlation=c, seed=seed)
    states = {"linear attention": linear_attention(k, k, v)[1], "DeltaNet": delta_rule(k, k, v)[1]}
    gains = {"VLA": "unit", "VLA, interpolating": "interpolate", "recursive least squares": "least_squares"}
    for memory, gain in gains.items():
        states[memory] = vla_recurrent(k, k, v, k, lambda_0, gain=gain)[1]
    for measure in ("read-back error", "share recalled"):
        view = RECALL.view(n=n, correlation=c, K=K, lambda_0=lambda_0, measure=measure, seed=seed)
        assert view["pairs"][2] == n and view["correlations"][7] == pytest.approx(c)
        for memory, state in states.items():
            answers = [state.S @ key for key in k]
            if measure == "read-back error":
                wanted = sum(np.sum((a - b) ** 2) for a, b in zip(answers, v, strict=True)) / np.sum(v**2)
            else:
                wanted = np.mean([max(range(n), key=lambda s, a=a: a @ v[s]) == t for t, a in enumerate(answers)])
            for got in (view["by_pairs"][memory][2], view["by_correlation"][memory][7], view["here"][memory]):
                assert got == pytest.approx(wanted, rel=1e-8)
    ridge = np.linalg.solve(lambda_0 * np.eye(K) + k.T @ k, k.T @ v).T
    np.testing.assert_allclose(states["recursive least squares"].S, ridge, atol=1e-9)


@pytest.mark.parametrize("penalised", PENALISED)
def test_the_adversary_runs_the_memory(penalised):
    """Guards that her choices, put through `vla_recurrent`, give her gains, product, bound and ellipse."""
    t, lambda_0 = 25, 0.05
    view = ADVERSARY.view(t=t, lambda_0=lambda_0, choices=60, penalised=penalised, seed=1)
    k, u = view["keys"], view["u"]
    assert np.array_equal(k, u) == (penalised == "along the key")
    trace = vla_recurrent(k, k, np.ones((60, 1)), u, lambda_0, trace=True)[1].trace
    np.testing.assert_allclose(view["gains"], trace.gains, atol=1e-9)
    product = np.eye(2)
    for i in range(60):
        product = product @ (np.eye(2) - np.outer(k[i], view["gains"][i]))
        assert view["product"][i] == pytest.approx(np.linalg.norm(product, 2), abs=1e-9)
        M = lambda_0 * np.eye(2) + u[: i + 1].T @ u[: i + 1]
        assert view["bound"][i] == pytest.approx(np.sqrt(np.linalg.det(M)) / lambda_0, rel=1e-9)
        if i + 1 == t:
            reach = np.linalg.norm(view["ellipse"], axis=0)
            assert reach.max() == pytest.approx(np.linalg.norm(product, 2), rel=2e-3)
    assert np.all(view["product"] <= view["bound"] * (1 + 1e-9))


def test_the_adversary_profits_from_choice():
    """Guards the claims of the chapter: choice helps her, and along the key, at 0.1, it does not help above 1."""
    largest = [with_start(ADVERSARY, choices=n)["product"].max() for n in (1, 20, 200)]
    assert largest[0] < largest[1] < largest[2]
    assert with_start(ADVERSARY, penalised=PENALISED[1], lambda_0=0.1)["product"].max() < 1 + 1e-9


@pytest.mark.parametrize("direction", ("projected", "along the key"))
def test_angles_are_those_of_the_memory(direction):
    """Guards both pictures of the angle explorer: each write's angle, and those of later keys with M at token t."""
    t, K, lambda_0 = 20, 8, 10**-0.6
    view = ANGLE.view(lambda_0=lambda_0, t=t, K=K, correlation=0.4, direction=direction, seed=4)
    k, v, u = correlated_stream(t + 32, K, correlation=0.4, direction=direction, seed=4)
    trace = vla_recurrent(k, k, v, u, lambda_0, trace=True)[1].trace
    np.testing.assert_allclose(view["actual"], np.rad2deg(trace.angle), rtol=1e-5, atol=1e-5)
    a = np.linalg.solve(lambda_0 * np.eye(K) + u[:t].T @ u[:t], k[t:].T).T
    angles = np.rad2deg(np.arccos(np.sum(k[t:] * a, axis=1) / np.linalg.norm(a, axis=1)))
    cond = trace.cond_M[t - 1]
    limit = np.rad2deg(np.arccos(2 * np.sqrt(cond) / (1 + cond)))
    assert view["here"] == pytest.approx((angles.mean(), angles.max(), limit), rel=1e-7)
    assert view["lambdas"][8] == pytest.approx(lambda_0)
    assert (view["mean"][8], view["largest"][8], view["limit"][8]) == pytest.approx(view["here"], rel=1e-9)
    assert np.all(view["largest"] <= view["limit"])


def test_a_step_is_its_matrix():
    """Guards the step explorer against matrices multiplied out: image, longest radius, norm, the other eigenvalue."""
    for angle, beta, n in ((60, 1.0, 1), (90, 1.0, 3), (130, 0.35, 4), (0, 1.0, 2), (180, 1.0, 1)):
        view = STEP.view(angle=angle, beta=beta, n=n)
        a = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
        F = np.linalg.matrix_power(np.eye(2) - beta * np.outer([1, 0], a), n)
        circle = np.stack([np.cos(2 * np.pi * np.arange(73) / 72), np.sin(2 * np.pi * np.arange(73) / 72)], axis=1)
        np.testing.assert_allclose(view["ellipse"].T, circle @ F, atol=1e-12)
        assert view["here"][0] == pytest.approx(np.linalg.norm(F, 2)) == pytest.approx(np.linalg.norm(view["longest"]))
        np.testing.assert_allclose(a @ F, view["here"][1] * a, atol=1e-12)  # a is an eigenvector of F, from the left
        i = list(view["angles"]).index(angle)
        assert (view["stretch"][i], view["second"][i]) == pytest.approx(view["here"])
    assert STEP.view(angle=90, beta=1.0, n=1)["here"][0] == pytest.approx((1 + np.sqrt(5)) / 2)


@pytest.mark.parametrize(("T", "C"), [(8, 1), (8, 8), (24, 5), (32, 4)])
def test_chunks_by_plain_loops(T, C):
    """Guards the chunk explorer: each token is met once, nothing before what it waits for, and both counts."""
    last = -(-T // C) + 1
    views = [CHUNKS.view(T=T, C=C, step=step) for step in range(1, last + 1)]
    for t in range(T):
        for s in range(T):
            seen = [view["cells"][t, s] for view in views]
            first = 1 if s // C == t // C else 1 + t // C
            wanted = [1 if i < first else 2 if i == first else 3 if s // C == t // C else 4 for i in range(1, last + 1)]
            assert seen == (wanted if s <= t else [0] * last), (t, s)
        assert [view["cells"][t, T + 1] for view in views] == [1] * (last - 1) + [2]
        assert not any(view["cells"][t, T] for view in views)
    inside = sum(s // C == t // C for t in range(T) for s in range(t + 1))
    assert views[0]["pairs"][C - 1] == inside and views[0]["steps"][C - 1] == last


def test_digits_are_learned_in_the_order_asked_for():
    """Guards the digits explorer against memories run through in one go, in both orders, and what the page gets."""
    from vla_teach.tasks.digits import accuracy, digits_stream

    train, test = digits_stream()
    test = type(test)(*(part[:100] for part in test))
    for order, take in (
        ("shuffled", np.arange(240)),
        ("sorted by digit", np.argsort(train.labels[:240], kind="stable")),
    ):
        view = DIGITS.view(t=70, lambda_0=0.3, gain="unit", order=order, asked=9)
        k, v = train.k[take[:70]], train.v[take[:70]]
        S = vla_recurrent(k, k, v, k, 0.3)[1].S
        np.testing.assert_allclose(view["rows"], S, atol=1e-9)
        np.testing.assert_allclose(view["answers"], S @ test.k[8], atol=1e-9)
        states = {"linear attention": linear_attention(k, k, v)[1], "DeltaNet": delta_rule(k, k, v)[1]}
        states["recursive least squares"] = vla_recurrent(k, k, v, k, 0.3, gain="least_squares")[1]
        for memory, state in states.items():
            assert view["right"][memory][6] == pytest.approx(accuracy(state.S, test)), memory
        assert view["right"]["VLA"][6] == pytest.approx(accuracy(S, test))
        assert np.array_equal(view["image"], test.images[8]) and view["label"] == test.labels[8]
    told = DIGITS.for_the_page()["data"]
    assert [int(x, 17) for x in told["images"][-64:]] == test.images[99].ravel().tolist()
    assert len(told["images"]) == 64 * len(told["labels"]) == 64 * 340


# ---- more than the page can: JupyterLab ---------------------------------------------------------------------------


def test_sliders_can_go_further(monkeypatch):
    """Guards `norms(T=5000, K=80)`: the widget's sliders go there, and a wrong name or end is named."""
    monkeypatch.delenv("VLA_STATIC", raising=False)
    _, panel, _, words, fig = explorers.norms(T=5000, K=80).children
    controls = dict(zip(NORMS.start, panel.children, strict=True))
    controls["K"].value, controls["T"].value = 80, 5000
    assert (controls["K"].value, controls["T"].value) == (80, 5000) and "After 5000 tokens" in words.value
    assert fig.data[0].x[-1] == 5000
    for wrong in (dict(V=3), dict(T=50), dict(gain=1)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NORMS.wider(**wrong)


@pytest.mark.parametrize("name", ["norms", "penalty"])
def test_own_keys(monkeypatch, name):
    """Guards `norms(own=(k, v, u))`: any sizes, the widget shows this stream's norms, and a page no dead sliders."""
    rng = np.random.default_rng(3)
    k, v, u = rng.normal(size=(57, 5)) / 3, rng.normal(size=(57, 3)), rng.normal(size=(57, 5)) / 5
    monkeypatch.delenv("VLA_STATIC", raising=False)
    _, panel, _, words, fig = getattr(explorers, name)(own=(k, v, u)).children
    lambda_0, gain = panel.children[0], next(c for c in panel.children if c.description == "gain")
    lambda_0.value, gain.value = 1.0, "interpolate"
    wanted = vla_recurrent(k, k, v, u, 1.0, gain="interpolate", trace=True)[1].trace.norm_S
    np.testing.assert_allclose(fig.data[2].y, wanted, rtol=1e-6)
    if name == "penalty":
        np.testing.assert_allclose(fig.data[6].z, u[:28].T @ u[:28], rtol=1e-6)
        assert "After 28 tokens" in words.value
    shown = []
    monkeypatch.setenv("VLA_STATIC", "1")
    monkeypatch.setattr("vla_teach.figures.display", lambda *a, **_: shown.append(a[0]))
    assert getattr(explorers, name)(own=(k, v)) is None
    assert "explorer" not in shown[0]["application/vnd.plotly.v1+json"]["layout"]["meta"]
