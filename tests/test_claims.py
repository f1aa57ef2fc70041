"""The audit, book/claims.yml: complete, every link alive, every number that of its file, every verdict fit for it."""

import json
import re
import shutil
from copy import deepcopy

import nbformat
import numpy as np
import pytest
from browser import tab

from vla_teach import claims
from vla_teach.claims import BOOK, VERDICTS, cards, chooser, load, passes, problems, read, slug, tally
from vla_teach.experiments.results import read_json

AUDIT = load()
# What the sources print, copied here a second time.
PUBLISHED = {
    "norm-109": ("109 times", "113 times"),
    "capacity-62": ("62%",),
    "speedup-14": ("14 times",),
    "crossing-43000": ("43,000",),
    "proposition-2": ("exactly 1",),
    "learned-lambda": ("91.8%",),
    "rank-2": ("100%",),
    "symbolic": ("73.5%", "53.5%", "+37%"),
    "mqar-100": ("100%",),
    "mqar-512": ("0.982", "15%"),
    "linear-growth": ("O(T)",),
    "linear-time": ("O(T)",),
    "sherman-morrison": ("O(T d²)",),
    "softmax-quadratic": ("4 times",),
    "cache-quadratic": ("quadratic",),
    "lambda-limits": ("0 and infinity",),
    "eigenvalues-near-1": ("near 1",),
    "stable-past-10000": ("10,000",),
    "delayed-recall": ("1000",),
    "contracts": ("200 pages",),
}


def claim_of(audit, name):
    return next(claim for claim in audit["claims"] if claim["id"] == name)


def published_problems(audit):
    """Published figures that are not there as the sources print them."""
    return [f"{name}: {x}" for name, some in PUBLISHED.items() for x in some
            if x not in str(claim_of(audit, name)["published"])]  # fmt: skip


def test_nothing_is_wrong():
    """Guards the audit as it stands: verdicts, links, paths, numbers, places and models; no claim without any."""
    assert problems(AUDIT) == []
    assert published_problems(AUDIT) == []
    assert sum(tally(AUDIT).values()) == len(AUDIT["claims"]) > 70


def test_the_tables_models_are_there():
    """Guards that the list of models is that of the sources' tables, and every document has claims."""
    assert set(AUDIT["models"]) == {"Transformer", "linear attention", "Mamba", "DeltaNet", "VLA"}
    assert {"landing", "abstract", "docs", "experiments", "review"} < set(AUDIT["sources"])
    assert all(sum(tally(AUDIT, source).values()) for source in AUDIT["sources"])


# ---- broken versions ----------------------------------------------------------------------------------------------


def change(name, **fields):
    """Fields of one claim put in the place of others; None takes a field away."""

    def spoil(audit):
        claim = claim_of(audit, name)
        claim.update(fields)
        for field in [field for field, value in fields.items() if value is None]:
            del claim[field]

    return spoil


def item(name, which, **fields):
    """The same for one item of evidence of a claim."""
    return lambda audit: claim_of(audit, name)["evidence"][which].update(fields)


def more(name, entry):
    return lambda audit: claim_of(audit, name)["evidence"].append(entry)


def without_model(audit):
    for claim in audit["claims"]:
        claim["models"] = [model for model in claim["models"] if model != "Mamba"] or ["VLA"]


def twice(audit):
    audit["claims"].append(deepcopy(audit["claims"][0]))


def forgotten(audit):
    audit["claims"].remove(claim_of(audit, "contracts"))


def typed_reason(audit):
    claim_of(audit, "norm-109")["why"] += " Ours is 107.9."


FAR = "pieces > reduction 32, 1000 > factors > together"
BROKEN = {
    "no verdict": (change("norm-109", verdict=None), "norm-109: has no verdict"),
    "an empty verdict": (change("norm-109", verdict=""), "norm-109: has no verdict"),
    "no reason": (change("contracts", why=None), "contracts: has no why"),
    "an unknown verdict": (change("norm-109", verdict="mostly"), "its verdict is 'mostly'"),
    "an unknown kind": (change("norm-109", kind="rumour"), "its kind is 'rumour'"),
    "an unknown theme": (change("norm-109", theme="sundry"), "its theme is 'sundry'"),
    "an unknown field": (change("norm-109", verdikt="holds"), "has a field 'verdikt'"),
    "a label that no proof has": (more("norm-109", {"proof": "prop-nothing"}), "no statement prop-nothing"),
    "a chapter that is not there": (more("norm-109", {"chapter": "kernel/nowhere"}), "no chapter kernel/nowhere"),
    "a file that is not there": (item("norm-109", 0, file="nowhere.json"), "norm-109: nowhere.json: "),
    "a key that is not there": (item("norm-109", 0, path=FAR + " > middle"), "nothing at 'middle'"),
    "a row that is not there": (item("speedup-14", 0, path="rows > {contestant: me} > median_ms"), "nothing at"),
    "a spread that is not there": (item("norm-109", 0, sd="... > spread"), "nothing at 'spread'"),
    "evidence of no kind": (more("norm-109", {"picture": "a.png"}), "cannot read the evidence"),
    "a large run that is called small": (more("norm-109", {
        "what": "small run", "file": "mqar.json", "path": "models > vla > tests > test"}), "is no small run"),
    "two places at once": (item("norm-109", 0, cells=["vla", "delta"]), "cannot read the evidence"),
    "a comparison without its test set": (more("norm-109", {
        "what": "x", "file": "mqar.json", "versus": ["vla", "delta"]}), "expected versus and one of test and until"),
    "a comparison on a test set and by steps": (more("norm-109", {
        "what": "x", "file": "mqar.json", "versus": ["vla", "delta"], "test": "test", "until": 0.9}),
        "expected versus and one of test and until"),
    "a speed that is not faster": (change("copy", verdict="holds"), "'holds', but a number does not"),
    "a speed of a pair that is not compared": (item("copy", 3, versus=["delta", "vla"]), "not compared with vla"),
    "a number of ours typed into an item": (item("norm-109", 0, value=112), "cannot read the evidence"),
    "a number of ours typed into the reason": (typed_reason, "its reason has '107.9', which is typed"),
    "a name that nothing reads": (change("norm-109", why="It is {total}."), "its reason names 'total'"),
    "holds, and no evidence": (change("norm-109", evidence=[]), "norm-109: has no evidence"),
    "holds, and a number fails": (item("norm-109", 0, **{"pass": "at least 200"}), "'holds', but a number does not"),
    "holds, where the proof's number fails": (change("cache-quadratic", verdict="holds"), "'holds', but a number"),
    "contradicted, and all numbers pass": (change("norm-109", verdict="contradicted"), "but every number passes"),
    "not reproduced, and nothing measured": (change("nudge", verdict="not reproduced"), "nothing was measured"),
    "a model that nobody speaks of": (without_model, "no claim is about Mamba"),
    "a model that nobody knows": (change("norm-109", models=["RWKV"]), "RWKV is not among the models"),
    "a place without a claim": (forgotten, "landing: no claim is about 'use: contracts'"),
    "a place that no source has": (change("norm-109", source={"abstract": ["page 3"]}), "no 'page 3' in abstract"),
    "two claims of one name": (twice, "there are two of that id"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_audit_is_noticed(name):
    """Guards the guard: each way to spoil the file is named."""
    spoil, words = BROKEN[name]
    audit = deepcopy(AUDIT)
    spoil(audit)
    assert any(words in problem for problem in problems(audit)), problems(audit)


def test_a_wrong_published_figure_is_noticed():
    """Guards the quotations: a figure that is not the sources' is named."""
    audit = deepcopy(AUDIT)
    claim_of(audit, "capacity-62")["published"] = "64%"
    assert published_problems(audit) == ["capacity-62: 62%"]


@pytest.fixture
def book(tmp_path):
    """A copy of the book's folder with results that a test may change."""
    copy = tmp_path / "book"
    shutil.copytree(BOOK, copy, ignore=shutil.ignore_patterns("_static", ".ipynb_checkpoints"))
    return copy


def test_other_results_ask_for_another_verdict(book):
    """Guards that a number is read from its file: when the file changes, the verdict no longer fits."""
    path = book / "results/streams.json"
    content = json.loads(path.read_text())
    content["pieces"]["reduction 32, 1000"]["factors"]["together"]["factor"] = 12.0
    path.write_text(json.dumps(content))
    assert "norm-109: 'holds', but a number does not pass its rule" in problems(AUDIT, book)
    assert "**12 ± 7 (n = 50)**" in cards(AUDIT, "norm", book / "results")


# ---- reading ------------------------------------------------------------------------------------------------------

MADE = {
    "rows": [{"T": 1, "D": 2, "ms": 4.0}, {"T": 8, "D": 2, "ms": 9.0}],
    "seeds": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 2.0}],
    "word": "1 2 3",
    "deep": {
        "a": {"factor": 8.0, "factor_sd": 0.5, "p": 0.2, "p_holm": 0.0004, "p_none": None},
        "times": [1, 2, 5],
        "n": 7,
    },
    "kept": {"mean": 0.5, "sd": 0.1, "scores": [0.4, 0.5, 0.6]},
    "gate": [0.5, 0.25],
}
READ = {
    "a row by its fields": (dict(path="rows > {T: 8, D: 2} > ms"), (9.0, None, None, "9")),
    "one over another": (dict(path="rows > {T: 8} > ms", over="rows > {T: 1} > ms"), (2.25, None, None, "2.25")),
    "all of a list": (dict(path="seeds > * > x", form=".1f"), (2.0, 2**0.5, 2, "2.0 ± 1.4 (n = 2)")),
    "all over all": (dict(path="seeds > * > x", over="... > y"), (1.0, 0.5**0.5, 2, "1 ± 0.71 (n = 2)")),
    "the last of a list": (dict(path="deep > times > -1"), (5.0, None, None, "5")),
    "a string of numbers": (dict(path="word", over="deep > n"), (2 / 7, 1 / 7, 3, "0.286 ± 0.14 (n = 3)")),
    "spread and n elsewhere": (
        dict(path="deep > a > factor", sd="... > factor_sd", n="deep > n", form=".1f"),
        (8.0, 0.5, 7, "8.0 ± 0.5 (n = 7)"),
    ),
    "a p value": (dict(path="deep > a > factor", p="... > p_holm"), (8.0, None, None, "8, p < 0.001")),
    "mean and sd as kept": (dict(path="kept"), (0.5, 0.1, 3, "0.5 ± 0.1 (n = 3)")),
    "lambda of a gate": (dict(path="gate", **{"as": "1 / x - 1"}), (2.0, 2**0.5, 2, "2 ± 1.4 (n = 2)")),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_reading(tmp_path, name):
    """Guards how a number is found and worked out, against values by hand."""
    (tmp_path / "made.json").write_text(json.dumps(MADE))
    item, (value, sd, n, words) = READ[name]
    got = read(dict(what="x", file="made.json") | item, tmp_path)
    assert got.value == pytest.approx(value)
    assert got.sd == (None if sd is None else pytest.approx(sd))
    assert (got.n, got.words, got.met) == (n, words, None)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("2 to 3", (2, 2.5, 3), (1.9, 3.1)),
        ("-2 to 0.5", (-2, 0.5), (-2.1, 0.6)),
        ("at least 2", (2, 3), (1.9,)),
        ("at most 2", (2, 1), (2.1,)),
        ("above -0.02", (0, -0.01), (-0.02, -1)),
        ("below 2", (1.9,), (2, 3)),
    ],
)
def test_rules(rule, good, bad):
    """Guards the words of a pass rule, at the limits too."""
    assert all(passes(x, rule) for x in good) and not any(passes(x, rule) for x in bad)


@pytest.mark.parametrize("rule", ["about 2", "2", "at least two", "exactly 3"])
def test_rules_that_mean_nothing(rule):
    """Guards that a rule in other words is refused, and not taken for passed."""
    with pytest.raises((KeyError, ValueError)):
        passes(2.0, rule)


def test_a_rule_with_a_p_value_needs_both(tmp_path):
    """Guards that a lead which may be chance does not pass."""
    (tmp_path / "made.json").write_text(json.dumps(MADE))
    lead = {"what": "x", "file": "made.json", "path": "deep > a > factor", "pass": "above 0"}
    assert read(lead | dict(p="... > p_holm"), tmp_path).met
    assert read(lead | dict(p="... > p"), tmp_path).met is False
    assert read(lead | dict(p="... > p_none"), tmp_path)[-2:] == ("8, no test", False)
    del lead["pass"]
    assert read(lead | dict(p="... > p"), tmp_path).met is None


def made_models():
    """Two tests of three models, with scores by seed."""
    scores = {"vla": ([0.9, 0.8, 0.7], [0.5] * 3), "vla_off": ([0.8, 0.7, 0.6], [0.5] * 3)}
    scores["delta"] = [0.6, 0.9, 0.3], [0.1, 0.2, 0.1]
    names = ("test", "far")
    return {label: dict(tests={name: dict(scores=one) for name, one in zip(names, two, strict=True)})
            for label, two in scores.items()}  # fmt: skip


def test_a_comparison_is_that_of_its_test_set(tmp_path):
    """Guards comparisons away from a file's first test set: difference, seeds, p by Holm on that set, and the rule."""
    (tmp_path / "made.json").write_text(json.dumps(dict(models=made_models())))
    entry = {"what": "x", "file": "made.json", "versus": ["vla", "delta"]}
    far = read(entry | {"test": "far", "pass": "above 0.3"}, tmp_path)
    # Differences 0.4, 0.3, 0.4: t = 11 with 2 degrees of freedom. Two pairs are tested, and this is one of equal p.
    assert far.value == pytest.approx(1.1 / 3) and far.n == 3
    assert far.p == pytest.approx(2 * (1 - 11 / (11**2 + 2) ** 0.5))
    assert far.met and far.words == "+0.367 (n = 3), p = 0.016"
    assert read(entry | {"test": "far", "pass": "above 0.4"}, tmp_path).met is False
    near = read(entry | {"test": "test", "pass": "above 0"}, tmp_path)  # ahead, and it may be chance
    assert near.value == pytest.approx(0.2) and near.met is False
    same = read(entry | {"versus": ["vla", "vla_off"], "test": "far", "pass": "above -1"}, tmp_path)
    assert (same.words, same.met) == ("+0.000 (n = 3), no test", False)
    assert read(entry | {"test": "far"}, tmp_path).met is None


def test_a_speed_is_a_count_of_steps(tmp_path, made_speeds):
    """Guards the comparison of speeds: seed by seed at the chosen rate, the last step for one that never came there."""
    made = made_speeds
    (tmp_path / "made.json").write_text(json.dumps(made))
    entry = {"what": "x", "file": "made.json", "versus": ["vla", "delta"], "until": 0.9, "pass": "below 0"}
    # Differences -20, -10, -30: t = -20 / (10 / sqrt 3) = -sqrt 12, with 2 degrees of freedom.
    found = read(entry, tmp_path)
    assert (found.value, found.words) == (-20, "-20 steps (n = 3), p = 0.074") and found.met is False
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5)
    made["settings"]["steps"] = 30  # now -20, -10, -20: t = -5
    (tmp_path / "made.json").write_text(json.dumps(made))
    assert read(entry, tmp_path).met and not read(entry | {"pass": "above 0"}, tmp_path).met


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": "near"}, "nothing at 'near'"),
        ({"versus": ["vla", "mesa"]}, "nothing at 'mesa'"),
        ({"versus": ["delta", "vla"]}, "delta is not compared with vla"),
    ],
)
def test_a_comparison_that_is_not_there(tmp_path, change, words):
    """Guards that a test set, a model or a pair which a file does not have is named."""
    (tmp_path / "made.json").write_text(json.dumps(dict(models=made_models())))
    entry = {"what": "x", "file": "made.json", "versus": ["vla", "delta"], "test": "test"}
    with pytest.raises(KeyError, match=words):
        read(entry | change, tmp_path)


def test_cells_are_those_of_the_diagram():
    """Guards the counts of the read-back diagram against a count made here."""
    from vla_teach.evidence import readback

    content = read_json(BOOK / "results/readback.json")
    rows = [(row["n"], row["rules"]) for kind in content["settings"]["keys"] for row in content["pieces"][kind]]
    tested = readback.compare(rows, "vla", "delta")
    ahead, behind = (sum(p < 0.01 and sign * d > 0 for d, _, p in tested) for sign in (1, -1))
    got = read(dict(what="x", file="readback.json", cells=["vla", "delta"]))
    assert (got.value, got.words) == (ahead, f"ahead in {ahead} of 96 cells, behind in {behind}")


def test_some_numbers_by_hand():
    """Guards paths against their meaning: a few numbers of the page, looked up here by plain indexing."""
    bench = read_json(BOOK / "results/bench.json")
    ms = {(row["contestant"], row["T"]): row["median_ms"] for row in bench["rows"]
          if row["D"] == 64 and row["passes"] == "forward"}  # fmt: skip
    items = {item.get("name"): item for item in claim_of(AUDIT, "speedup-14")["evidence"]}
    assert read(items["short"]).value == pytest.approx(ms["vla_loop", 1024] / ms["vla_token", 1024])
    items = {item.get("name"): item for item in claim_of(AUDIT, "crossing-43000")["evidence"]}
    assert read(items["ratio"]).value == pytest.approx(ms["vla_token", 65536] / ms["cudnn", 65536])
    learned = read_json(BOOK / "results/learned.json")["pieces"]["vla_gated"]["seeds"]
    items = {item.get("name"): item for item in claim_of(AUDIT, "lambda-limits")["evidence"]}
    assert read(items["pair"]).value == pytest.approx(np.mean([1 / seed["gate_pair"] - 1 for seed in learned]))


def test_the_files_that_are_read_are_whole():
    """Guards the results files: each that a claim reads has the checksum of what it holds."""
    files = {item["file"] for claim in AUDIT["claims"] for item in claim["evidence"] or () if "file" in item}
    for path in (BOOK / "results" / file for file in files):
        if path.exists():
            read_json(path)


# ---- the page -----------------------------------------------------------------------------------------------------


def stored():
    """What the page's notebook stored: all its Markdown and HTML."""
    cells = nbformat.read(BOOK / "claims.ipynb", as_version=4).cells
    data = [output.data for cell in cells for output in cell.get("outputs", ()) if "data" in output]
    return "\n\n".join(one[kind] for one in data for kind in ("text/markdown", "text/html") if kind in one)


def stale(text, audit):
    """Parts of the page that are not what the file and the results give now."""
    parts = {theme: cards(audit, theme) for theme in audit["themes"]} | {"buttons": chooser(audit)}
    parts |= {"documents": claims.documents(audit), "models": claims.models(audit)}
    return [name for name, part in parts.items() if part not in text]


def test_the_page_is_the_file():
    """Guards the stored page: every card, every number and every count on it is what the file gives now."""
    assert stale(stored(), AUDIT) == []


def test_a_stale_page_is_noticed():
    """Guards the guard: a number changed on the page, or a verdict changed in the file, is seen."""
    changed = re.sub(r"\*\*108 ± 7 ", "**109 ± 7 ", stored())
    assert stale(changed, AUDIT) == ["norm"]
    audit = deepcopy(AUDIT)
    claim_of(audit, "contracts")["verdict"] = "holds"
    assert {"long", "buttons", "documents"} <= set(stale(stored(), audit))


def test_the_style_knows_every_verdict():
    """Guards the buttons: the style has a rule for each verdict, and a colour for each but the last, which is grey."""
    style = (BOOK / "_static/vla.css").read_text()
    for verdict in VERDICTS:
        assert f"body:has(#show-{slug(verdict)}:checked) .vla-claim:not(.{slug(verdict)})" in style
        assert f".vla-claim.{slug(verdict)} {{" in style or verdict == "not run"


SEEN = "() => [...document.querySelectorAll('.vla-claim')].filter(card => card.checkVisibility()).map(card => card.id)"


def test_choosing_a_verdict(browser, site):
    """Guards the buttons: by keyboard, each leaves the cards of its verdict, and a link still finds its own."""
    names = {verdict: [f"claim-{c['id']}" for theme in AUDIT["themes"] for c in AUDIT["claims"]
                       if c["theme"] == theme and c["verdict"] == verdict] for verdict in VERDICTS}  # fmt: skip
    with tab(browser) as page:
        page.goto(f"{site}/book/claims.html")
        assert len(page.evaluate(SEEN)) == len(AUDIT["claims"])
        page.locator("#show-vla-all").focus()
        for verdict in VERDICTS:
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.id") == f"show-{slug(verdict)}"
            assert page.evaluate(SEEN) == names[verdict]
        page.evaluate("location.hash = 'claim-norm-109'")
        assert "claim-norm-109" in page.evaluate(SEEN)


def test_the_page_without_a_script(browser, site):
    """Guards readers whose browser runs no script: all cards are there, and the buttons work."""
    with tab(browser, java_script_enabled=False) as page:
        page.goto(f"{site}/book/claims.html")
        shown = page.locator(".vla-claim").locator("visible=true")
        assert shown.count() == len(AUDIT["claims"])
        page.locator("#show-vla-contradicted").check()
        assert shown.count() == tally(AUDIT)["contradicted"]
