"""The audit: every claim of the sources, its evidence, and its verdict, from book/claims.yml.

    python -m vla_teach.claims     how many there are of each verdict, what is wrong with the file

No number of ours stands in the file: it names the place in a results file, and the page and the tests read it there.
"""

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

BOOK = Path(__file__).parents[1] / "book"
VERDICTS = {
    "holds": "it passes its rule as the sources say it",
    "holds under added conditions": "not as they say it; with the conditions named here, yes",
    "partly": "one part of it holds, another does not",
    "not reproduced": "we measured, and it did not come out; in another setting it might",
    "contradicted": "a proof or a count says otherwise, or a measurement in the sources' own setting does",
    "not run": "no measurement that could decide it; the reason is given",
}
KINDS = ("theorem", "explanation", "measurement", "cost", "product", "criticism", "suggestion", "promise")
FIELDS = ("id", "theme", "title", "source", "kind", "models", "said", "published", "restated", "evidence")
FIELDS += ("verdict", "why")
LINK_FIELDS = {"proof"}, {"chapter"}
PLACES = {"path", "cells", "versus"}  # where a reading may be found; it has one of them
READING_FIELDS = {"name", "what", "file", "over", "sd", "n", "p", "test", "until", "form", "as", "pass"}
READING_FIELDS |= PLACES
AS = {"1 / x - 1": lambda beta: 1 / beta - 1}  # lambda_t of a write gate
P_LIMIT = 0.05
NAMED = re.compile(r"\{([a-z][\w-]*)\}(?!`)")  # {name} of a reading, and not a role of MyST


class Reading(NamedTuple):
    """A number of ours, as read from a results file."""

    value: float
    sd: float | None
    n: int | None
    p: float | None
    words: str  # the number as it is printed
    met: bool | None  # does it pass the rule? None where there is none


def load(path=BOOK / "claims.yml"):
    """The file as a dict: sources, models, themes, claims."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


# ---- reading numbers ------------------------------------------------------------------------------------------------


def keys_of(path):
    """A path "a > {T: 1, D: 2} > -1 > *" as a list: keys, fields of a row of a list, places in it, * for all of it."""
    parts = [part.strip() for part in path.split(">")]
    return [yaml.safe_load(part) if part.startswith("{") else part for part in parts]


def tail(path, at):
    """The path `at`; where it begins with "...", it stands in for as many of the last keys of `path`."""
    if not at.startswith("..."):
        return at
    parts, new = path.split(">"), at.split(">")[1:]
    return ">".join([*parts[: len(parts) - len(new)], *new])


def follow(content, path):
    """What stands at a path. Raises KeyError, naming the step that leads nowhere."""
    keys = keys_of(path) if isinstance(path, str) else path
    for i, key in enumerate(keys):
        if key == "*":
            return [follow(one, keys[i + 1 :]) for one in content]
        try:
            if isinstance(key, dict):
                content = next(row for row in content if all(row.get(name) == key[name] for name in key))
            else:
                content = content[int(key) if isinstance(content, list) else key]
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, StopIteration):
            raise KeyError(f"nothing at {key!r} in {path!r}") from None
    return content


@lru_cache(maxsize=32)
def parsed(path, changed):
    """The content of a JSON file; `changed` is when it was last, so that a new one is read afresh."""
    return json.loads(path.read_text(encoding="utf-8"))


def contents(item, folder):
    """The results file of an item."""
    path = Path(folder) / item["file"]
    return parsed(path, path.stat().st_mtime_ns)


def numbers(x):
    """A number, a list of them, or a string of them, as an array; with the mean and spread that some places keep."""
    kept = None
    if isinstance(x, dict) and {"mean", "sd"} <= x.keys():
        kept, x = (x["mean"], x["sd"]), x.get("scores", x.get("windows", x["mean"]))
    if isinstance(x, str):
        x = [float(word) for word in x.split()]
    return np.array(x, float), kept


def read(item, folder=BOOK / "results"):
    """The Reading that an item of evidence asks for. Raises KeyError, OSError, ValueError."""
    content = contents(item, folder)
    if "cells" in item:
        return count_cells(item, content)
    if "versus" in item:
        return compare_models(item, content)
    x, kept = numbers(follow(content, item["path"]))
    if "over" in item:
        x, kept = x / numbers(follow(content, tail(item["path"], item["over"])))[0], None
    if "as" in item:
        x = AS[item["as"]](x)
    value, sd, n = float(x.mean()), None, None
    if x.size > 1:
        sd, n = float(x.std(ddof=1)), x.size
    if kept:
        value, sd = kept
    sd = float(follow(content, tail(item["path"], item["sd"]))) if "sd" in item else sd
    n = follow(content, tail(item["path"], item["n"])) if "n" in item else n
    p = follow(content, tail(item["path"], item["p"])) if "p" in item else None
    form = item.get("form", ".3g")
    words = f"{value:{form}}"
    words += "" if sd is None else f" ± {sd:{form.replace('.3g', '.2g').lstrip('+')}}"
    words += "" if n is None else f" (n = {n})"
    words += p_words(p) if "p" in item else ""
    sure = "p" not in item or (p is not None and p < P_LIMIT)  # what may be chance does not pass
    met = passes(value, item["pass"]) and sure if "pass" in item else None
    return Reading(value, sd, n, p, words, met)


def p_words(p):
    """A p value as it is printed behind its number."""
    return ", no test" if p is None else f", p = {p:.2g}" if p >= 0.001 else ", p < 0.001"


def compare_models(item, content):
    """One model less another, seed by seed: on a test set of our choice (a file's own comparisons are on the first),
    or in the steps until validation has a score.

    p by Holm's method, among all pairs compared so. What may be chance does not pass.
    """
    from vla_teach.experiments import report  # needs PyTorch

    pair, form, unit = item["versus"], item.get("form", "+.3f"), ""
    for label in pair:
        follow(content, ["models", label])  # says what is missing
    if "until" in item:
        one, form, unit = report.compared_steps(content, *pair, item["until"]), "+.0f", " steps"
    else:
        follow(content, ["models", pair[0], "tests", item["test"]])
        one = report.compared(content, *pair, item["test"])
    value, p = one["difference"], one.get("p_holm")
    if value is None:
        raise KeyError(f"{pair[0]} and {pair[1]} have no seed in common")
    met = passes(value, item["pass"]) and p is not None and p < P_LIMIT if "pass" in item else None
    return Reading(value, None, one["n"], p, f"{value:{form}}{unit} (n = {one['n']}){p_words(p)}", met)


def count_cells(item, content):
    """In how many cells of the read-back diagram one rule is ahead of another beyond doubt, and in how many behind."""
    from vla_teach.evidence import readback  # needs PyTorch

    kinds = content["settings"]["keys"]
    rows = [(row["n"], row["rules"]) for kind in kinds for row in content["pieces"][kind]]
    found = [difference for difference, _, p in readback.compare(rows, *item["cells"]) if p < 0.01]
    ahead, behind = sum(d > 0 for d in found), sum(d < 0 for d in found)
    words = f"ahead in {ahead} of {len(rows)} cells, behind in {behind}"
    return Reading(ahead, None, len(rows), None, words, passes(ahead, item["pass"]) if "pass" in item else None)


def passes(value, rule):
    """Does a number obey a rule: "2 to 3", "at least 2", "at most 3", "above 2", "below 3"?"""
    if found := re.fullmatch(r"(-?[\d.]+) to (-?[\d.]+)", rule):
        return float(found[1]) <= value <= float(found[2])
    word, limit = rule.rsplit(" ", 1)
    limit = float(limit)
    return {"at least": value >= limit, "at most": value <= limit, "above": value > limit, "below": value < limit}[word]


# ---- what can be wrong ----------------------------------------------------------------------------------------------


def problems(audit, book=BOOK):
    """What is wrong with an audit, one sentence each; an empty list if nothing is."""
    found, seen, cited = [], set(), {name: set() for name in audit["sources"]}
    for claim in audit["claims"]:
        name = claim.get("id", "a claim without an id")
        found += [f"{name}: {words}" for words in problems_of(claim, audit, book)]
        found += [f"{name}: there are two of that id"] if name in seen else []
        seen.add(name)
        for source, places in (claim.get("source") or {}).items():
            cited.get(source, set()).update(places)
    for source, about in audit["sources"].items():
        missing = [place for place in about["places"] if place not in cited[source]]
        found += [f"{source}: no claim is about {place!r}" for place in missing]
    spoken = {model for claim in audit["claims"] for model in claim.get("models") or ()}
    found += [f"models: no claim is about {model}" for model in audit["models"] if model not in spoken]
    return found


def problems_of(claim, audit, book):
    """What is wrong with one claim."""
    if missing := [field for field in FIELDS if claim.get(field) in (None, "", [], {})]:
        missing = [field for field in missing if not (field == "evidence" and claim.get("verdict") == "not run")]
        if missing:
            return [f"has no {', no '.join(missing)}"]
    found = [f"has a field {field!r}, which means nothing" for field in claim.keys() - {*FIELDS}]
    for field, known in (("verdict", VERDICTS), ("kind", KINDS), ("theme", audit["themes"])):
        if claim[field] not in known:
            found.append(f"its {field} is {claim[field]!r}; expected one of {', '.join(known)}")
    for source, places in claim["source"].items():
        known = audit["sources"].get(source, {}).get("places", ())
        found += [f"there is no {place!r} in {source}" for place in places if place not in known]
    found += [f"{model} is not among the models" for model in claim["models"] if model not in audit["models"]]
    readings = {}
    for item in claim["evidence"] or ():
        found += problems_of_item(item, book, readings)
    return found or [*problems_of_verdict(claim, readings), *problems_of_words(claim, readings)]


def problems_of_item(item, book, readings):
    """What is wrong with one piece of evidence; what it reads is put into `readings`."""
    from vla_teach.proofs import STATEMENTS

    if item.keys() in LINK_FIELDS:
        if "proof" in item:
            return [] if item["proof"] in STATEMENTS else [f"there is no statement {item['proof']}"]
        there = any((book / f"{item['chapter']}{end}").exists() for end in (".ipynb", ".md"))
        return [] if there else [f"there is no chapter {item['chapter']}"]
    places = PLACES & item.keys()
    if item.keys() - READING_FIELDS or not {"what", "file"} <= item.keys() or len(places) != 1:
        known = ", ".join(sorted(READING_FIELDS))
        return [f"cannot read the evidence {sorted(item)}; expected proof, chapter, or some of {known}"]
    if len({"test", "until"} & item.keys()) != ("versus" in item):
        return [f"cannot read the evidence {sorted(item)}; expected versus and one of test and until"]
    try:
        reading = read(item, book / "results")
    except (KeyError, OSError, ValueError) as error:
        return [f"{item['file']}: {error}"]
    if "small run" in item["what"] and contents(item, book / "results").get("size") != "cpu":
        return [f"{item['file']} is not of size cpu, so {item['what']!r} is no small run"]
    readings[item.get("name", item["what"])] = reading
    return []


def problems_of_verdict(claim, readings):
    """Does the verdict fit what was read?"""
    verdict = claim["verdict"]
    met = [reading.met for reading in readings.values() if reading.met is not None]
    if verdict == "holds" and not all(met):
        return ["'holds', but a number does not pass its rule"]
    if verdict in ("not reproduced", "contradicted") and met and all(met):
        return [f"{verdict!r}, but every number passes its rule"]
    if verdict == "not reproduced" and not met:
        return ["'not reproduced', but nothing was measured against a rule"]
    return []


def problems_of_words(claim, readings):
    """Numbers of ours are not typed: a reason has those of its claim, rule and formulas, and {names} of readings."""
    why = re.sub(r"\$[^$]*\$|`[^`]*`", "", claim["why"])
    names = set(NAMED.findall(why))
    found = [f"its reason names {name!r}, which is not read" for name in names if not readings.get(name)]
    own = " ".join(str(claim[field]) for field in ("title", "said", "published", "restated"))
    own += " ".join(item.get("what", "") for item in claim["evidence"] or ())
    known = set(re.findall(r"\d[\d.,]*\d|\d", own))
    typed = re.findall(r"(?<![\w{.-])(?:\d[\d.,]*\d|\d)", why)
    return found + [f"its reason has {word!r}, which is typed" for word in typed if word not in known | {"0", "1", "2"}]


# ---- the page -------------------------------------------------------------------------------------------------------


def slug(verdict):
    """A verdict as the name of a class."""
    return "vla-" + verdict.replace(" ", "-")


def tally(audit, source=None):
    """{verdict: how many claims}, of one source or of all."""
    count = Counter(claim["verdict"] for claim in audit["claims"] if source is None or source in claim["source"])
    return {verdict: count[verdict] for verdict in VERDICTS}


def card(claim, audit, folder=BOOK / "results"):
    """One claim as MyST Markdown, with an anchor to link to: {ref}`words <claim-ID>`."""
    places = "; ".join(f"{audit['sources'][name]['short']} ({', '.join(at)})" for name, at in claim["source"].items())
    files = sorted({item["file"] for item in claim["evidence"] or () if "file" in item})
    figure = "" if claim["published"] == "none" else f" *Published:* {claim['published']}."
    lines = [f"(claim-{claim['id']})=", f"::::{{admonition}} {claim['title']}"]
    lines += [f":class: vla-claim {slug(claim['verdict'])}", ""]
    lines += [f"**{claim['verdict'].capitalize()}** ({claim['kind']})", ""]
    lines += [f"*Said:* {claim['said']}{figure} *Where:* {places}.", "", f"*Asked:* {claim['restated']}", ""]
    links, readings = [], {}
    for item in claim["evidence"] or ():
        if "proof" in item:
            links.append(f"{{prf:ref}}`{item['proof']}`")
        elif "chapter" in item:
            links.append(f"{{doc}}`{item['chapter']}`")
        else:
            reading = readings[item.get("name", item["what"])] = read(item, folder)
            where = f" (`{item['file']}`)" if len(files) > 1 else ""
            lines.append(f"- {item['what']}: {line(item, reading)}{where}")
    links += [f"`{file}`" for file in files]
    why = NAMED.sub(lambda name: re.sub(r" \(n = \d+\)", "", readings[name[1]].words), claim["why"])
    lines += ["", f"*Why:* {why}", ""]
    lines += [f"*See:* {', '.join(links)}", ""] if links else []
    return "\n".join([*lines, "::::"])


def line(item, reading):
    """A reading in words: the number, the rule, and whether it passes."""
    rule = "" if reading.met is None else f"; asked: {item['pass']}, {'passes' if reading.met else 'fails'}"
    return f"**{reading.words}**{rule}"


def documents(audit):
    """The sources: how many claims are from each, and what became of them, as a list in Markdown."""
    lines = []
    for source, about in audit["sources"].items():
        count = tally(audit, source)
        words = ", ".join(f"{verdict} {n}" for verdict, n in count.items() if n)
        lines.append(f"- **{about['title']}**: {sum(count.values())} claims ({words})")
    return "\n".join(lines)


def models(audit):
    """The models that the sources name, and what stands for them here, as a list in Markdown."""
    lines = []
    for model, words in audit["models"].items():
        lines.append(f"- **{model}**, in {sum(model in claim['models'] for claim in audit['claims'])} claims: {words}")
    return "\n".join(lines)


def cards(audit, theme, folder=BOOK / "results"):
    """All claims of a theme as MyST Markdown."""
    return "\n\n".join(card(claim, audit, folder) for claim in audit["claims"] if claim["theme"] == theme)


def chooser(audit):
    """Buttons that leave one verdict on the page, as HTML. They need no script: the style does it (vla.css)."""
    count = tally(audit)
    choices = {"all": f"all ({sum(count.values())})"} | {v: f"{v} ({n})" for v, n in count.items()}
    buttons = [
        f'<label><input type="radio" name="vla-verdict" autocomplete="off" id="show-{slug(verdict)}"'
        f"{' checked' if verdict == 'all' else ''}> {words}</label>"
        for verdict, words in choices.items()
    ]
    hidden = ' style="display: none"'  # where vla.css is missing, and the buttons would do nothing
    return f'<fieldset class="vla-chooser"{hidden}><legend>Show</legend>' + "".join(buttons) + "</fieldset>"


def main():
    audit = load()
    for verdict, n in tally(audit).items():
        print(f"{n:3d}  {verdict}")
    print("\n".join(problems(audit)) or "nothing wrong")


if __name__ == "__main__":
    main()
