"""The tasks: every answer worked out again from the input, by other code; rules counted; broken batches refused.

A checker takes a task and a batch and raises AssertionError if the batch breaks the task's rule. Each is shown to
fail too: see `test_the_checkers_can_fail`.
"""

import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from official_files import png, write

from vla_teach.tasks import (
    MQAR,
    NOT_ASKED,
    TASKS,
    Copy,
    DelayedRecall,
    DigitSequences,
    InContext,
    ListOps,
    Pathfinder,
    Relations,
    StackedMQAR,
)
from vla_teach.tasks.base import balanced, without_replacement
from vla_teach.tasks.digits import digits_stream
from vla_teach.tasks.incontext import random_keys, random_roots
from vla_teach.tasks.listops import SYMBOLS, Draws
from vla_teach.tasks.lra import read_image, read_listops, read_pathfinder, read_retrieval, read_text
from vla_teach.tasks.png import read_grey_png
from vla_teach.tasks.recall import power_law_slots

REGRESSION = InContext(pairs=12, queries=3, K=5, V=4, rule="regression", condition=100.0)


def asked(batch, i):
    """{position: answer} of example i."""
    return {int(t): batch.y[i, t] for t in np.flatnonzero(batch.mask[i])}


# ---- checkers ---------------------------------------------------------------------------------------------------


def check_form(task, batch):
    """What a trainer relies on, whatever the task: shapes, dtypes, tokens and classes in range, mask and y agreeing."""
    x, y, mask, W = batch
    B, T = mask.shape
    assert T == task.length and mask.dtype == bool and mask.any(axis=1).all()
    if task.inputs == "floats":
        assert x.shape[:2] == (B, T) and x.ndim == 3 and x.dtype == float and np.isfinite(x).all()
    else:
        assert x.shape == ((B, T, 2) if task.inputs == "pairs" else (B, T))
        assert x.dtype == np.int64 and 0 <= x.min() and x.max() < task.vocab
    if task.kind == "regress":
        assert y.shape == (B, T, task.classes) and y.dtype == float and np.isfinite(y).all()
        assert not y[~mask].any()
    else:
        assert y.shape == (B, T) and y.dtype == np.int64
        assert np.array_equal(mask, y != NOT_ASKED)
        assert 0 <= y[mask].min() and y[mask].max() < task.classes
    if task.kind == "classify":
        assert (mask.sum(axis=1) == 1).all()
    assert W is None or W.shape == (B, T, T)


def check_copy(task, batch):
    """Symbols up to the separator, then asked for in their order."""
    for i, row in enumerate(batch.x.tolist()):
        n = row.index(1)
        symbols, rest = row[:n], row[n + 1 :]
        assert min(symbols) >= 2 and list(asked(batch, i)) == list(range(n, 2 * n))
        assert list(asked(batch, i).values()) == symbols
        assert rest == (symbols[:-1] if task.shown else [0] * (n - 1))


def check_delayed(task, batch):
    """The value that followed the last token when it came before, and it came once."""
    for i, row in enumerate(batch.x.tolist()):
        *before, key = row
        assert before.count(key) == 1 and before[0] == key < task.keys <= before[1]
        assert asked(batch, i) == {len(row) - 1: before[1]}


def check_mqar(task, batch):
    """A dictionary filled from the pairs in front answers every question; each key is asked for once; halves."""
    for i, row in enumerate(batch.x.tolist()):
        answers = asked(batch, i)
        n = len(answers)
        assert n in task.choices
        known = dict(zip(row[0 : 2 * n : 2], row[1 : 2 * n : 2], strict=True))
        assert len(known) == len(set(known.values())) == n
        assert all(1 <= key < task.vocab // 2 <= value < task.vocab for key, value in known.items())
        assert {row[t]: answer for t, answer in answers.items()} == known
        assert all(t >= 2 * n and t % 2 == 0 for t in answers)
        fillers = [token for t, token in enumerate(row) if t >= 2 * n and t not in answers]
        assert task.fillers == "random" or not any(fillers)


def check_stacked(task, batch):
    """The same with key and value side by side; a blank value asks."""
    for i, row in enumerate(batch.x.tolist()):
        known, answers = {}, {}
        for t, (key, value) in enumerate(row):
            assert 1 <= key < task.vocab // 2
            if value:
                assert key not in known and value >= task.vocab // 2 and not answers
                known[key] = value
            else:
                answers[t] = known.pop(key)
        assert asked(batch, i) == answers and not known


def check_in_context(task, batch):
    """Recall: the value once seen with that key. Regression: what least squares finds from the pairs, without noise."""
    K, V = task.K, task.V
    for x, y, mask in zip(*batch[:3], strict=True):
        if task.layout == "paired":
            shown, questions = x[: task.pairs], x[task.pairs :]
            keys, values = shown[:, :K], shown[:, K : K + V]
            assert not shown[:, -1].any() and (questions[:, -1] == 1).all()
        else:
            keys, values = x[0 : 2 * task.pairs : 2, :K], x[1 : 2 * task.pairs : 2, K:]
            assert not x[0 : 2 * task.pairs : 2, K:].any() and not x[1 : 2 * task.pairs : 2, :K].any()
            questions = x[2 * task.pairs :]
        assert not questions[:, K : K + V].any()
        if task.rule == "recall":
            known = {key.tobytes(): value for key, value in zip(keys, values, strict=True)}
            answers = [known.pop(key.tobytes()) for key in questions[:, :K].copy()]
        else:
            W = np.linalg.lstsq(keys, values, rcond=None)[0]
            answers = list(questions[:, :K] @ W)
        first = task.length - task.queries
        if task.rule == "regression" and task.layout == "interleaved":
            answers, wanted = [*values, *answers], [*range(0, first, 2), *range(first, task.length)]
        else:
            wanted = list(range(first, task.length))
        assert np.flatnonzero(mask).tolist() == wanted
        assert np.abs(np.array(answers) - y[mask]).max() < 1e-9 * np.abs(values).max()


def distances(links, start):
    """{entity: steps from start} along links {entity: set of entities}, breadth first."""
    steps, queue = {start: 0}, [start]
    for entity in queue:
        for other in links.get(entity, ()):
            if other not in steps:
                steps[other] = steps[entity] + 1
                queue.append(other)
    return steps


def facts_of(row):
    """Facts, query, {parent: children} of a row of Relations."""
    *facts, ask, s, t = row
    assert ask == 0 and 0 not in facts
    facts = list(zip(facts[::2], facts[1::2], strict=True))
    links = {}
    for parent, child in facts:
        links.setdefault(parent, set()).add(child)
    return facts, s, t, links


def check_relations(task, batch):
    """A search through the facts answers the query, over enough hops or not at all; W by its formula."""
    for i, row in enumerate(batch.x.tolist()):
        facts, s, t, links = facts_of(row)
        assert len(facts) == task.chains * task.facts and len(set(sum(facts, ()))) == task.chains * (task.facts + 1)
        assert Counter(Counter(sum(facts, ())).values()) == {1: 2 * task.chains, 2: task.chains * (task.facts - 1)}
        assert s in sum(facts, ()) and t in sum(facts, ())
        forth, back = distances(links, s).get(t), distances(links, t).get(s)
        assert asked(batch, i) == {len(row) - 1: int(forth is not None)}
        assert s != t and (forth or back or task.hops) >= task.hops
        A = np.zeros((len(row), len(row)))
        for m, a in enumerate(row):
            for n, b in enumerate(row):
                A[m, n] = a != 0 and b != 0 and (a == b or b in links.get(a, ()) or a in links.get(b, ()))
        D = A.sum(axis=1)
        W = [[a / np.sqrt(D[m] * D[n]) if a else 0 for n, a in enumerate(line)] for m, line in enumerate(A)]
        assert np.abs(W - batch.W[i]).max() < 1e-12
    labels = batch.y[:, -1]
    assert abs(labels.mean() - 0.5) <= 0.5 / len(labels)


def parse(tokens):
    """(value, depth, most arguments, fewest) of a ListOps expression, by recursive descent; eats its tokens."""
    symbol = SYMBOLS[tokens.pop(0)]
    if symbol.isdigit():
        return int(symbol), 1, 2, 2
    parts = []
    while SYMBOLS[tokens[0]] != "]":
        parts.append(parse(tokens))
    tokens.pop(0)
    values, depths, most, fewest = zip(*parts, strict=True)
    total = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(statistics.median(v)), "[SM": lambda v: sum(v) % 10}
    count = len(parts)
    return total[symbol](values), 1 + max(depths), max(count, *most), min(count, *fewest)


def check_listops(task, batch):
    """A parser's value; lengths, depths and numbers of arguments within the limits; no expression twice."""
    for i, row in enumerate(batch.x.tolist()):
        length = len(row) - row[::-1].index(SYMBOLS.index("]"))
        tokens = row[:length]
        assert not any(row[length:]) and 0 not in tokens
        assert task.shortest < length < task.longest
        value, depth, most, fewest = parse(tokens)
        assert not tokens and depth <= task.max_depth and 2 <= fewest and most <= task.max_args
        assert asked(batch, i) == {length - 1: value}
    assert len({row.tobytes() for row in batch.x}) == len(batch.x)


def markers_in(picture, scale, task):
    """The centres of the two markers in a picture, the mean place of their white pixels, (row, column)."""
    white = (np.argwhere(picture > (1 + task.contrast) / 2 - 0.03) + 0.5) / scale
    near = np.linalg.norm(white - white[0], axis=1) < 2 * task.marker_radius + 0.5
    return [white[part].mean(axis=0) for part in (near, ~near)]


def flooded(picture, scale, task):
    """Whether a fine picture's markers lie on one curve, found by flooding, from around one of them.

    Lit pixels are neighbours if nearer than the dark between two curves is wide, separation - thickness; the gaps of
    a curve, 2 margin - thickness, are narrower. picture [size scale, size scale], brightness from 0 to 1.
    """
    place = (np.argwhere(picture > task.contrast / 2) + 0.5) / scale
    off = np.array([np.linalg.norm(place - centre, axis=1) for centre in markers_in(picture, scale, task)])
    lit = off.min(axis=0) > task.marker_radius + 0.1
    place, (at_one, at_other) = place[lit], off[:, lit] < task.separation - task.thickness / 2
    reached, queue = at_one.copy(), np.flatnonzero(at_one).tolist()
    assert at_one.any() and at_other.any()
    while queue:
        step = place - place[queue.pop()]
        new = ~reached & (step[:, 0] ** 2 + step[:, 1] ** 2 < (task.separation - task.thickness) ** 2)
        reached |= new
        queue += np.flatnonzero(new).tolist()
    return bool((reached & at_other).any())


def tracked(row, task, width=150, turns=24):
    """Whether the two markers of a row of x [size^2] lie on one curve, found in these pixels alone.

    From each marker the brightest chains of dashes are followed, the best `width` of them at every step. The markers
    are connected if, from one of them, a chain about as bright as the brightest ends at the other.
    """
    picture = row.reshape(task.size, task.size) / 255
    bright = np.minimum(picture / task.contrast, 1)
    angles = np.linspace(-np.pi / 2, np.pi / 2, turns + 2)[1:-1]

    def level(z):
        """Brightness at places z, column + 1j row, between the pixels' centres."""
        r, c = (np.clip(part - 0.5, 0, task.size - 1.001) for part in (z.imag, z.real))
        i, j = r.astype(int), c.astype(int)
        above, below = ((1 - c + j) * bright[n, j] + (c - j) * bright[n, j + 1] for n in (i, i + 1))
        return (1 - r + i) * above + (r - i) * below

    def score(tail, ahead):
        """High where a dash is bright all along, and the turning point after it dark."""
        dash = level(tail[:, None] + ahead[:, None] * np.linspace(0, task.dash, 5))
        return np.log(np.maximum(dash, 0.05)).mean(1) - np.maximum(level(tail + 3 * ahead) - 0.35, 0)

    def follow(start, goal):
        """How much less bright than the best the chain from start to goal is; far below 0 if there is none."""
        ahead = np.exp(2j * np.pi * np.arange(72) / 72)
        tail = np.full(72, start)
        total = score(tail, ahead)
        for _ in range(task.dashes - 1):
            best = np.argsort(-total)[:width]
            pivot = tail[best] + (task.dash + task.margin) * ahead[best]
            ahead = (ahead[best, None] * np.exp(1j * angles)).ravel()
            tail = np.repeat(pivot, turns) + task.margin * ahead
            total = (total[best, None] + 0.2 * np.log(np.cos(angles))).ravel() + score(tail, ahead)
            order = np.argsort(-total)  # of chains that end almost alike, the best
            alike = np.round([2 * tail.real, 2 * tail.imag, 6 * np.angle(ahead)]).T[order]
            best = order[np.unique(alike, axis=0, return_index=True)[1]]
            tail, ahead, total = tail[best], ahead[best], total[best]
        there = np.abs(tail + task.dash * ahead - goal) < 1.2
        return (total[there].max() if there.any() else -np.inf) - total.max()

    one, other = (complex(c, r) for r, c in markers_in(picture, 1, task))
    return max(follow(one, other), follow(other, one)) > -0.05


def check_pathfinder(task, batch, seed=0):
    """Flooding the drawings of that seed, in pixels an eighth as wide, gives the classes; the batch shows them."""
    labels, scenes = batch.y[:, -1], task.scenes(len(batch.x), np.random.default_rng(seed))
    assert abs(labels.mean() - 0.5) <= 0.5 / len(labels)
    assert [flooded(picture, 8, task) for picture in task.picture(scenes, 8)] == labels.tolist()
    picture = naive_picture(task, scenes, 0)
    assert np.abs(picture - batch.x[0].reshape(picture.shape)).max() <= 0.5 + 1e-6


def naive_picture(task, scenes, i):
    """Grey levels of drawing i, a pixel at a time, from the geometry in rows and columns."""
    dashes = [[(z.imag, z.real) for z in dash] for dash in scenes.dashes[i] if dash[0].real > 0]
    levels = np.zeros((task.size, task.size))
    for r in range(task.size):
        for c in range(task.size):
            p = np.array([r + 0.5, c + 0.5])
            gap = min(to_segment(p, np.array(a), np.array(b)) for a, b in dashes)
            line = task.contrast * min(max((0.5 + task.thickness / 2 - gap) / (0.5 + task.thickness / 2), 0), 1)
            off = min(np.hypot(p[0] - z.imag, p[1] - z.real) for z in scenes.markers[i])
            levels[r, c] = 255 * max(line, min(max(0.5 + task.marker_radius - off, 0), 1))
    return levels


def to_segment(p, a, b):
    """The distance of a point from a segment, two numbers each."""
    along = b - a
    share = min(max((p - a) @ along / (along @ along), 0), 1)
    return np.hypot(*(p - a - share * along))


def check_digits(task, batch):
    """Every row is an image of scikit-learn's with its class, and none comes twice."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    known = {row.astype(int).tobytes(): label for row, label in zip(data.data, data.target, strict=True)}
    for i, row in enumerate(batch.x):
        assert asked(batch, i) == {63: known[row.tobytes()]}
    assert len({row.tobytes() for row in batch.x}) == len(batch.x)


SMALL = {  # one or more of each task, small, with its checker
    "copy": (Copy(n=7, symbols=5), check_copy),
    "copy, shown": (Copy(n=7, symbols=5, shown=True), check_copy),
    "copy, one": (Copy(n=1, symbols=5), check_copy),
    "delayed recall": (DelayedRecall(delay=40, keys=8), check_delayed),
    "delayed recall, at once": (DelayedRecall(delay=0, keys=8), check_delayed),
    "delayed recall, far": (DelayedRecall(delay=10_000), check_delayed),
    "mqar": (MQAR(length=64, pairs=8, vocab=128), check_mqar),
    "mqar, zeros": (MQAR(length=64, pairs=8, vocab=128, fillers="zeros"), check_mqar),
    "mqar, mixed": (MQAR(length=64, pairs=(1, 4, 16), vocab=65), check_mqar),
    "mqar, full": (MQAR(length=64, pairs=16, vocab=65), check_mqar),
    "mqar stacked": (StackedMQAR(pairs=12, vocab=40), check_stacked),
    "recall, paired": (InContext(pairs=12, queries=5, K=6, V=4, correlation=0.9), check_in_context),
    "recall, interleaved": (InContext(pairs=12, queries=12, K=6, V=4, layout="interleaved"), check_in_context),
    "regression, paired": (REGRESSION, check_in_context),
    "regression, interleaved": (replace(REGRESSION, layout="interleaved", condition=1e4), check_in_context),
    "regression, plain": (replace(REGRESSION, white=False, unit=False, correlation=0.5), check_in_context),
    "relations": (Relations(), check_relations),
    "relations, longer": (Relations(chains=3, facts=6, entities=21, hops=1), check_relations),
    "listops": (ListOps(shortest=10, longest=80), check_listops),
    "listops, shallow": (ListOps(shortest=3, longest=40, max_depth=3, max_args=4), check_listops),
    "pathfinder": (Pathfinder(), check_pathfinder),
    "digits": (DigitSequences(), check_digits),
    "digits, test": (DigitSequences("test", shuffle=3), check_digits),
}
small = pytest.mark.parametrize("name", SMALL)


def small_batch(name, B=12, seed=0):
    """A task and a batch of it."""
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    task = SMALL[name][0]
    return task, task.batch(B, seed)


@small
def test_the_answers_follow_from_the_input(name):
    """Guards every task: form, rule and answers, worked out again by code of its own."""
    task, batch = small_batch(name)
    check_form(task, batch)
    SMALL[name][1](task, batch)


@pytest.mark.parametrize("name", TASKS)
def test_the_registry(name):
    """Guards the settings that a trainer gets by name, with odd and single batches."""
    if name == "digits":
        pytest.importorskip("sklearn")
    for B in (1, 3):
        check_form(TASKS[name], TASKS[name].batch(B, seed=1))


@small
def test_the_seed_decides(name):
    """Guards determinism, and that seeds differ."""
    task, first = small_batch(name, B=4)
    again, other = task.batch(4, np.int64(0)), task.batch(4, 1)
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one, two) if one is not None else two is None
    assert not np.array_equal(first.x, other.x)


# ---- the checkers can fail --------------------------------------------------------------------------------------


def wrong_answer(task, batch):
    """One answer changed."""
    y = batch.y.copy()
    place = tuple(np.argwhere(batch.mask)[-1])
    y[place] = y[place] + 0.1 if task.kind == "regress" else (y[place] + 1) % task.classes
    return batch._replace(y=y)


def answers_of_another(task, batch):
    """Answers shuffled between the examples."""
    return batch._replace(y=np.roll(batch.y, 1, axis=0), mask=np.roll(batch.mask, 1, axis=0))


def asked_elsewhere(task, batch):
    """Every question a position too early."""
    return batch._replace(y=np.roll(batch.y, -1, axis=1), mask=np.roll(batch.mask, -1, axis=1))


BREAKERS = (wrong_answer, answers_of_another, asked_elsewhere)


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda f: f.__name__)
@small
def test_the_checkers_can_fail(name, breaker):
    """Guards the checkers: a batch with wrong answers, or answers in the wrong place, is refused by every one."""
    task, batch = small_batch(name)
    with pytest.raises((AssertionError, KeyError)):
        SMALL[name][1](task, breaker(task, batch))


def change(batch, i, t, token):
    """A batch with one token of x replaced."""
    x = batch.x.copy()
    x[i, t] = token
    return batch._replace(x=x)


RULES_BROKEN = {  # name of a task, what breaks a rule although the answers as given stay right
    "copy": lambda b: change(b, 0, 9, 2),  # a symbol where there should be a blank
    "delayed recall": lambda b: change(b, 0, 5, b.x[0, 0]),  # the key within the noise
    "mqar": lambda b: change(b, 0, 0, b.x[0, 2]),  # the same key twice
    "mqar, zeros": lambda b: change(b, 0, 63, 5),  # a filler
    "mqar stacked": lambda b: change(b, 0, 0, b.x[0, 1]),  # the same key twice
    "recall, paired": lambda b: b._replace(x=b.x + 1e-3),  # blanks and flags spoilt
    "regression, paired": lambda b: b._replace(x=b.x[:, ::-1]),  # the queries first
    "relations": lambda b: b._replace(W=np.tril(b.W)),  # half of the matrix
    "listops": lambda b: b._replace(x=np.repeat(b.x[:1], 12, 0), y=np.repeat(b.y[:1], 12, 0)),  # twelve times the same
    "pathfinder": lambda b: b._replace(x=255 - b.x),  # black on white
    "digits": lambda b: b._replace(x=b.x[:, ::-1].copy()),  # upside down
}


@pytest.mark.parametrize("name", RULES_BROKEN)
def test_the_checkers_look_at_the_rule_too(name):
    """Guards the checkers against passing whatever has the right answers."""
    task, batch = small_batch(name)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        SMALL[name][1](task, RULES_BROKEN[name](batch))


# ---- building blocks --------------------------------------------------------------------------------------------


def test_without_replacement_is_uniform():
    """Guards every ordered choice of 2 out of 4: 12 of them, equally often."""
    counts = Counter(map(tuple, without_replacement(np.random.default_rng(0), 24_000, 2, 4).tolist()))
    assert len(counts) == 12 and all(a != b for a, b in counts)
    assert max(abs(n - 2000) for n in counts.values()) < 200  # 4.7 standard deviations
    assert sorted(without_replacement(np.random.default_rng(0), 1, 9, 9)[0].tolist()) == list(range(9))
    many = without_replacement(np.random.default_rng(0), 20_000, 10, 200)
    assert np.abs(many.mean(axis=0) - 99.5).max() < 2  # no column prefers small numbers


@pytest.mark.parametrize(("B", "classes"), [(1, 2), (7, 2), (8, 2), (25, 10)])
def test_balanced(B, classes):
    """Guards that no class comes more than once more often than another, in no fixed order."""
    draws = [balanced(np.random.default_rng(seed), B, classes) for seed in range(40)]
    for labels in draws:
        counts = np.bincount(labels, minlength=classes)
        assert len(labels) == B and counts.max() - counts.min() <= 1
    assert len({labels.tobytes() for labels in draws}) > 1


# ---- rules, counted ---------------------------------------------------------------------------------------------


def test_power_law_slots():
    """Guards the law of the gaps: slots drawn one after another, i then j with probability p_i p_j / (1 - p_i)."""
    got = power_law_slots(np.random.default_rng(0), 40_000, 2, 4, 0.3)
    p = np.arange(1, 5) ** (0.3 - 1)
    p /= p.sum()
    counts = Counter(map(tuple, got.tolist()))
    for i in range(4):
        for j in set(range(4)) - {i}:
            assert abs(counts[i, j] / 40_000 - p[i] * p[j] / (1 - p[i])) < 0.01


def test_gaps_of_mqar():
    """Guards power_a = 0.01 as it shows in batches: one key's slot has probability proportional to slot^-0.99."""
    batch = MQAR(length=66, pairs=1, vocab=128).batch(20_000, 0)
    slots = (batch.mask.argmax(axis=1) - 2) // 2
    p = np.arange(1, 33) ** -0.99
    assert np.abs(np.bincount(slots, minlength=32) / 20_000 - p / p.sum()).max() < 0.012
    even = MQAR(length=66, pairs=1, vocab=128, power_a=1.0).batch(20_000, 0)
    slots = (even.mask.argmax(axis=1) - 2) // 2
    assert np.abs(np.bincount(slots, minlength=32) / 20_000 - 1 / 32).max() < 0.006


def test_mixed_pairs_come_equally_often():
    """Guards the option of several numbers of pairs, and that they stand in random order."""
    n = MQAR(length=64, pairs=(1, 4, 16), vocab=128).batch(100, 0).mask.sum(axis=1)
    assert Counter(n.tolist()) == {1: 34, 4: 33, 16: 33}
    assert np.abs(np.diff(n)).astype(bool).sum() > 40


def test_random_fillers_are_any_token():
    """Guards Zoology's fillers: the whole vocabulary, the lower and the upper half alike."""
    task = MQAR(length=64, pairs=2, vocab=100)
    batch = task.batch(400, 0)
    fillers = batch.x[:, 4:][~batch.mask[:, 4:]]
    assert set(fillers.tolist()) == set(range(100)) and abs(fillers.mean() - 49.5) < 1


@pytest.mark.parametrize("pairs", (64, (4, 8, 16, 32, 64)), ids=str)
def test_mqar_is_quick(pairs):
    """Guards speed: 256 sequences of 256 tokens under 100 ms, the median of 7 runs, with no slack added."""
    task, taken = MQAR(length=256, pairs=pairs), []
    for seed in range(7):
        start = time.perf_counter()
        task.batch(256, seed)
        taken.append(time.perf_counter() - start)
    assert statistics.median(taken) < 0.1, f"{1000 * statistics.median(taken):.0f} ms"


def test_noise_of_delayed_recall():
    """Guards the noise: every token but the key, about equally often."""
    x = DelayedRecall(delay=4000, keys=4).batch(5, 0).x
    for row in x:
        counts = np.bincount(row[2:-1], minlength=8)
        assert counts[row[0]] == 0 and np.abs(np.delete(counts, row[0]) - 4000 / 7).max() < 120


@pytest.mark.parametrize("condition", (1.0, 100.0, 10_000.0))
def test_condition_of_the_keys(condition):
    """Guards the covariance: its condition, its scale, and that every sequence has its own."""
    rng = np.random.default_rng(0)
    root, inverse = random_roots(rng, 3, 4, condition)
    assert np.abs(root @ inverse - np.eye(4)).max() < 1e-10
    keys = random_keys(rng, 60_000, root, unit=False)
    C = keys.transpose(0, 2, 1) @ keys / 60_000
    assert np.abs(np.linalg.cond(C) / condition - 1).max() < 0.06
    assert np.abs(np.trace(C, axis1=1, axis2=2) / 4 - 1).max() < 0.03
    assert condition == 1 or np.abs(C[0] - C[1]).max() > 0.1


@pytest.mark.parametrize("correlation", (0.0, 0.5, 0.9))
def test_correlation_of_the_keys(correlation):
    """Guards the mean cosine of two keys of a sequence, length 1, and that sequences share no direction."""
    x = InContext(pairs=200, queries=1, K=64, V=1, correlation=correlation).batch(8, 0).x[:, :200, :64]
    assert np.abs(np.linalg.norm(x, axis=2) - 1).max() < 1e-12
    cosines = (x @ x.transpose(0, 2, 1))[:, *np.triu_indices(200, 1)]
    assert abs(cosines.mean() - correlation) < 0.01
    means = x.mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs((means @ means.T)[np.triu_indices(8, 1)]).max() < 0.5


@pytest.mark.parametrize("rule", ("recall", "regression"))
@pytest.mark.parametrize("condition", (1.0, 10_000.0))
def test_noise_and_scale_of_the_values(rule, condition):
    """Guards noise, which is in x alone, with its standard deviation; and values of mean square near 1."""
    task = InContext(pairs=300, queries=0 if rule == "regression" else 300, K=8, V=4, rule=rule, layout="interleaved")
    task = replace(task, condition=condition)
    clean, noisy = task.batch(20, 0), replace(task, noise=0.5).batch(20, 0)
    assert np.array_equal(clean.y, noisy.y)
    off = (noisy.x - clean.x)[:, 1:600:2, 8:]
    assert abs(off.std() - 0.5) < 0.01 and not (noisy.x - clean.x)[:, 0::2].any()
    most = 4 if rule == "regression" and condition > 1 else 1.2
    assert 0.8 < np.mean(clean.x[:, 1:600:2, 8:] ** 2) < most


def test_white_targets():
    """Guards white: the map from keys to values is W C^(-1/2), large where keys are short; or W alone."""
    for white in (True, False):
        task = InContext(pairs=40, queries=1, K=8, V=64, rule="regression", unit=False, white=white, condition=100.0)
        x = task.batch(20, 0).x[:, :40]
        maps = [np.linalg.lstsq(row[:, :8], row[:, 8:72], rcond=None)[0] for row in x]
        spread = np.geomspace(1, 1 / 100, 8)
        wanted = np.mean(spread.mean() / spread) if white else 1
        assert abs(np.mean(np.square(maps)) / wanted - 1) < 0.1


def test_facts_come_in_random_order():
    """Guards against chains that stand in order: only 0.75 facts of an example are followed by their successor."""
    x = Relations().batch(2000, 0).x
    assert abs(np.mean(np.sum(x[:, 1:14:2] == x[:, 2:15:2], axis=1)) - 6 * 7 / 56) < 0.08


def test_negatives_of_relations():
    """Guards what a no is made of, half reversed, half across; the least hops; and the score of the known shortcut."""
    batch, kinds, right = Relations().batch(2400, 0), Counter(), 0
    for row, label in zip(batch.x.tolist(), batch.y[:, -1], strict=True):
        facts, s, t, links = facts_of(row)
        parents, children = zip(*facts, strict=True)
        forth, back = distances(links, s).get(t), distances(links, t).get(s)
        kinds["yes" if forth else "reversed" if back else "across"] += 1
        kinds["hops", forth or back] += 1
        right += label == (s in parents and t in children)
    assert (kinds["yes"], kinds["reversed"], kinds["across"]) == (1200, 600, 600)
    near = {h: kinds["hops", h] / 1800 for h in (2, 3, 4)}
    assert all(abs(near[h] - share) < 0.05 for h, share in {2: 3 / 6, 3: 2 / 6, 4: 1 / 6}.items())
    assert abs(right / 2400 - 17 / 24) < 0.025
    for share, kind in ((1.0, "across"), (0.0, "reversed")):
        only = Relations(reversed_share=share).batch(60, 0)
        some = Counter(
            "reversed" if distances(links, t).get(s) else "across"
            for (_, s, t, links), label in zip(map(facts_of, only.x.tolist()), only.y[:, -1], strict=True)
            if not label
        )
        assert some[kind] == 0 and sum(some.values()) == 30


def test_listops_at_full_length():
    """Guards LRA's lengths, depth and arguments at its own settings, and the speed: 1000 expressions in under 20 s."""
    start = time.perf_counter()
    batch = ListOps().batch(1000, 0)
    assert time.perf_counter() - start < 20
    few = batch._replace(**{part: getattr(batch, part)[:200] for part in ("x", "y", "mask")})
    check_listops(ListOps(), few)
    lengths = batch.mask.argmax(axis=1) + 1
    assert 500 < lengths.min() and lengths.max() < 2000 and lengths.max() > 1800
    labels = np.bincount(batch.y[batch.mask], minlength=10)
    assert labels.min() > 30 and labels.sum() == 1000


def test_shape_of_the_trees():
    """Guards leaf 0.75, 2 to 10 arguments and 4 operators equally often, before lengths are judged."""
    task = ListOps(shortest=3, longest=10**6)
    draws, operators, arguments, leaves = Draws(np.random.default_rng(0), task), Counter(), Counter(), []
    for _ in range(12_000):
        tree = task.tree(draws)
        if tree is None:  # the root was a digit
            continue
        level, args = 0, []
        for token in tree[0]:
            symbol = SYMBOLS[token]
            if level == 1 and symbol != "]":
                args.append(symbol.isdigit())
            level += symbol.startswith("[") - (symbol == "]")
        operators[SYMBOLS[tree[0][0]]] += 1
        arguments[len(args)] += 1
        leaves += args
    n = sum(operators.values())
    assert abs(n / 12_000 - 0.25) < 0.02
    assert abs(np.mean(leaves) - 0.75) < 0.02
    assert len(operators) == 4 and max(abs(m / n - 1 / 4) for m in operators.values()) < 0.04
    assert sorted(arguments) == list(range(2, 11)) and max(abs(m / n - 1 / 9) for m in arguments.values()) < 0.03


def test_listops_has_no_depth_beyond_the_limit():
    """Guards that the deepest level holds digits alone and is reached."""
    task = ListOps(shortest=3, longest=300, max_depth=3)
    depths = [parse([t for t in row if t])[1] for row in task.batch(200, 0).x.tolist()]
    assert max(depths) == 3


# ---- Pathfinder -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    """Drawings at the published settings."""
    return Pathfinder().scenes(60, np.random.default_rng(1))


def curves_of(dashes, task):
    """The curves of one drawing: {first slot: slots}, from the order in which the generator keeps them."""
    L, D = task.dashes, task.distractor_dashes
    curves = [list(range(s, 2 * L, 2)) for s in (0, 1)]
    curves += [list(range(2 * L + D * d, 2 * L + D * (d + 1))) for d in range(task.distractors)]
    return [curve for curve in curves if dashes[curve[0], 0].real > 0]


def test_geometry_of_pathfinder(scenes):
    """Guards lengths of dashes, gaps, turns, room on all sides, and the distance of the first ends."""
    task = Pathfinder()
    there = scenes.dashes[..., 0].real > 0
    assert there[:, : 2 * task.dashes].all()
    assert np.abs(np.abs(np.diff(scenes.dashes, axis=2))[there] - task.dash).max() < 1e-9
    assert np.abs(np.abs(scenes.dashes[:, 0, 0] - scenes.dashes[:, 1, 0]) - task.seed_distance).max() < 1e-9
    edge = task.padding + task.margin
    for part in (scenes.dashes[there].real, scenes.dashes[there].imag):
        assert edge <= part.min() and part.max() <= task.size - edge
    for dashes in scenes.dashes[:10]:
        curves = curves_of(dashes, task)
        neighbours = {pair for curve in curves for pair in pairwise(curve)}
        for one, two in neighbours:
            (tail, head), (next_tail, next_head) = dashes[one], dashes[two]
            ahead, then = (head - tail) / task.dash, (next_head - next_tail) / task.dash
            assert abs(head + task.margin * ahead - (next_tail - task.margin * then)) < 1e-9  # one turning point
            assert (then * ahead.conjugate()).real > 0  # no turn beyond a right angle
            assert abs(next_tail - head) <= 2 * task.margin + 1e-9
        slots = list(chain(*curves))
        ends = [[np.array([z.imag, z.real]) for z in dash] for dash in dashes]
        for one in slots:
            for two in slots:
                if one != two and (one, two) not in neighbours and (two, one) not in neighbours:
                    assert min(to_segment(end, *ends[two]) for end in ends[one]) >= task.separation - 1e-9


def test_markers_of_pathfinder(scenes):
    """Guards where markers sit, found by joining dashes whose ends are near: ends of one long curve, or of two."""
    task = Pathfinder()
    for dashes, markers, label in zip(*scenes, strict=True):
        dashes = dashes[dashes[:, 0].real > 0]
        root = list(range(len(dashes)))

        def find(n, root=root):
            return n if root[n] == n else find(root[n])

        for m in range(len(dashes)):
            for n in range(len(dashes)):
                if m != n and abs(dashes[m, 1] - dashes[n, 0]) <= 2 * task.margin + 1e-9:
                    root[find(m)] = find(n)
        sizes = Counter(find(n) for n in range(len(dashes)))
        assert sorted(sizes.values())[-2:] == [task.dashes, task.dashes]
        assert set(sizes.values()) <= {task.dashes, task.distractor_dashes}
        at = [np.argwhere(dashes == marker)[0] for marker in markers]
        assert [end for _, end in at] == [0, 1]
        assert (find(at[0][0]) == find(at[1][0])) == label
        assert sizes[find(at[0][0])] == sizes[find(at[1][0])] == task.dashes
        assert abs(markers[0] - markers[1]) > 2 * task.marker_radius + 1


def test_tracking_finds_the_curves():
    """Guards that the 32 x 32 pixels of x hold the answer: the tracker, no perfect reader, is right 9 times in 10.

    With the classes of other drawings it is right half the time.
    """
    task = Pathfinder()
    batch = task.batch(60, 2)
    found = np.array([tracked(row, task) for row in batch.x])
    assert np.mean(found == batch.y[:, -1]) >= 0.9
    assert np.mean(found == np.roll(batch.y[:, -1], 1)) < 0.7


def test_picture_is_what_the_geometry_says():
    """Guards brightness, pixel by pixel, and that a batch shows the scenes of its seed."""
    task = Pathfinder()
    scenes, batch = task.scenes(2, np.random.default_rng(7)), task.batch(2, 7)
    assert np.array_equal(batch.y[:, -1], scenes.labels)
    for i in range(2):
        assert np.abs(naive_picture(task, scenes, i) - batch.x[i].reshape(32, 32)).max() <= 0.5 + 1e-6


def test_distractors_of_pathfinder(scenes):
    """Guards that there are distractors, five at most; not all find room."""
    counts = [len(curves_of(dashes, Pathfinder())) - 2 for dashes in scenes.dashes]
    assert min(counts) >= 0 and max(counts) <= 5 and 2 < np.mean(counts) < 4
    assert Pathfinder(distractors=0).scenes(2, np.random.default_rng(0)).dashes.shape == (2, 28, 2)


def test_turns_have_their_density():
    """Guards the law of the turns where there is room: cos^2, so variance pi^2/12 - 1/2, less with continuity 2."""
    for continuity in (1.0, 2.0):
        task, rng = Pathfinder(continuity=continuity), np.random.default_rng(0)
        dash = np.array([[10, 12 + 0j]] * 4000)
        turns = np.angle(np.diff(task.after(dash, rng), axis=2)).ravel()
        assert abs(turns.mean()) < 0.01 and abs(turns.var() * continuity**2 - (np.pi**2 / 12 - 0.5)) < 0.01


def test_pathfinder_without_room(monkeypatch):
    """Guards the error where curves cannot fit."""
    monkeypatch.setattr("vla_teach.tasks.pathfinder.ROUNDS", 30)
    with pytest.raises(RuntimeError, match="no room for both curves"):
        Pathfinder(dashes=60).batch(2, 0)


# ---- digits -----------------------------------------------------------------------------------------------------


def test_splits_of_the_digits():
    """Guards that the three splits hold every image once, and that "test" is the test set of the stream."""
    pytest.importorskip("sklearn")
    parts = {split: DigitSequences(split, shuffle=2).examples for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == dict(train=1100, val=200, test=497)
    images = np.concatenate([part.pick(range(len(part))).x for part in parts.values()])
    train, test = digits_stream(1300, seed=2)
    wanted = np.concatenate([train.images, test.images]).reshape(-1, 64)
    assert np.array_equal(images, wanted)
    assert np.array_equal(parts["test"].labels, test.labels)
    with pytest.raises(ValueError, match=r"^B is 201; expected"):
        DigitSequences("val").batch(201, 0)


# ---- readers for LRA's files ------------------------------------------------------------------------------------


LISTOPS = "Source\tTarget\n( ( ( [MAX 3 ) ( ( ( [SM 9 ) 4 ) ] ) ) ] )\t3\n( ( ( [MED 7 ) 2 ) ] )\t4\n"


def test_read_listops(tmp_path):
    """Guards LRA's .tsv files: parentheses dropped, brackets kept, the value as it stands."""
    write(tmp_path / "basic_val.tsv", LISTOPS)
    read = read_listops(tmp_path, "val", length=12)
    batch = read.pick([0, 1])
    check_form(read, batch)
    words = [[SYMBOLS[t] for t in row if t] for row in batch.x]
    assert words == ["[MAX 3 [SM 9 4 ] ]".split(), "[MED 7 2 ] ".split()]
    assert batch.y[batch.mask].tolist() == [3, 4] and batch.mask.argmax(axis=1).tolist() == [6, 3]
    assert [parse([t for t in row if t])[0] for row in batch.x.tolist()] == [3, 4]
    assert read.show(batch, 1) == "[MED 7 2 ]  = 4"
    cut = read_listops(tmp_path, "val", length=5).pick([0])
    assert np.array_equal(cut.x, batch.x[:1, :5]) and cut.mask.argmax() == 4
    for seed in (0, 1):
        assert sorted(read.batch(2, seed).y[:, :].max(axis=1)) == [3, 4]


def test_read_text(tmp_path):
    """Guards the reviews: bytes, 0 kept apart from padding, cut and padded, neg before pos, in the order of names."""
    folder = tmp_path / "aclImdb" / "train"
    for name, content in (
        ("neg/1_2.txt", b"bad\x00"),
        ("pos/0_9.txt", "très bon".encode()),
        ("pos/2_8.txt", b"x" * 50),
    ):
        write(folder / name, content)
    read = read_text(tmp_path, length=20)
    batch = read.pick([0, 1, 2])
    check_form(read, batch)
    assert bytes((batch.x[0, :4] - 1).tolist()) == b"bad\x00" and not batch.x[0, 4:].any()
    assert bytes(t - 1 for t in batch.x[1].tolist() if t).decode() == "très bon"
    assert (batch.x[2] == 1 + ord("x")).all()
    assert batch.y[batch.mask].tolist() == [0, 1, 1] and batch.mask.argmax(axis=1).tolist() == [3, 8, 19]
    assert read.show(batch, 2) == "x" * 20 + " = 1"


def test_read_retrieval(tmp_path):
    """Guards pairs of texts: each in its half, bytes as written, quotes without meaning, labels 0 or 1."""
    write(tmp_path / "new_aan_pairs.eval.tsv", "1.0\tA1\tB2\tb'say \"hi'\tsecond\n0.0\tA1\tC3\tlonger than ten\t\n")
    read = read_retrieval(tmp_path, "eval", length=10)
    batch = read.pick([0, 1])
    check_form(read, batch)
    halves = [["".join(chr(t - 1) for t in half if t) for half in row] for row in batch.x.reshape(2, 2, 10).tolist()]
    assert halves == [["b'say \"hi'", "second"], ["longer tha", ""]]
    assert batch.y[batch.mask].tolist() == [1, 0] and batch.mask.argmax(axis=1).tolist() == [15, 9]


def test_read_image(tmp_path):
    """Guards CIFAR-10's binary files: grey by its weights, row by row, the last tenth for validation."""
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(20) % 10
    for n in range(5):
        write(tmp_path / "cifar-10-batches-bin" / f"data_batch_{n + 1}.bin", records[4 * n : 4 * n + 4].tobytes())
    write(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", records[:3].tobytes())
    parts = {split: read_image(tmp_path, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == dict(train=18, val=2, test=3)
    batch = parts["val"].pick([0, 1])
    check_form(parts["val"], batch)
    for row, label, record in zip(batch.x, batch.y[:, -1], records[18:].astype(float), strict=True):
        red, green, blue = record[1:1025], record[1025:2049], record[2049:]
        assert np.abs(row - (0.2989 * red + 0.587 * green + 0.114 * blue)).max() <= 0.5 and label == record[0]


def test_read_grey_png(tmp_path):
    """Guards all five line filters, each after each, and pixels in several pieces; other kinds are refused."""
    picture = np.random.default_rng(0).integers(0, 256, (25, 7), dtype=np.uint8)
    filters = [f for pair in ((a, b) for a in range(5) for b in range(5)) for f in pair][:25]
    for pieces in (1, 3):
        write(tmp_path / "a.png", png(picture, filters, pieces=pieces))
        assert np.array_equal(read_grey_png(tmp_path / "a.png"), picture)
    good = png(picture, filters)
    bad = {"is no PNG": b"GIF89a", "8-bit grey": png(picture, filters, kind=2), "is broken": good[:-60]}
    for message, content in bad.items():
        write(tmp_path / "b.png", content)
        with pytest.raises(ValueError, match=message):
            read_grey_png(tmp_path / "b.png")


def test_read_pathfinder(tmp_path):
    """Guards metadata that are lines of text named .npy, in the order of their numbers, and the pictures they name."""
    base = tmp_path / "curv_contour_length_14"
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for n, (picture, batch) in enumerate(zip(pictures, (2, 2, 10), strict=True)):
        write(base / "imgs" / str(batch) / f"sample_{n}.png", png(picture, [4] * 8))
    line = "imgs/{} sample_{}.png {} {} 1.0 14 4 2 0.5 1 1\n"
    write(base / "metadata" / "2.npy", line.format(2, 0, 0, 1) + line.format(2, 1, 1, 0))
    write(base / "metadata" / "10.npy", line.format(10, 2, 0, 1))
    read = read_pathfinder(tmp_path)
    batch = read.pick([0, 1, 2])
    check_form(read, batch)
    assert np.array_equal(batch.x.reshape(3, 8, 8), pictures) and batch.y[:, -1].tolist() == [1, 0, 1]
    assert len(read_pathfinder(tmp_path, most=2)) == 2


MISSING = {
    "listops": (read_listops, "basic_train.tsv", "lra_release"),
    "text": (read_text, "aclImdb.train.neg", "aclImdb_v1"),
    "retrieval": (read_retrieval, "new_aan_pairs.train.tsv", "lra_release"),
    "image": (read_image, "data_batch_1.bin", "cifar-10-binary"),
    "pathfinder": (read_pathfinder, "curv_contour_length_14.metadata", "lra_release"),
}


@pytest.mark.parametrize(("read", "file", "origin"), MISSING.values(), ids=MISSING)
def test_missing_files(tmp_path, read, file, origin):
    """Guards the error that says which file is expected and where it comes from; and the name of the split."""
    with pytest.raises(FileNotFoundError, match=f"{file} is not there; expected it from {origin}"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"^(split|difficulty) is 'no'; expected one of"):
        read(tmp_path, "no")


def test_folders_without_files(tmp_path):
    """Guards folders that are there but empty."""
    for folder in ("aclImdb/train/neg", "curv_baseline/metadata"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no \.txt files; expected aclImdb"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.npy files; expected"):
        read_pathfinder(tmp_path, "curv_baseline")


BROKEN = {
    "no header": (read_listops, "basic_train.tsv", "( 1 )\t1\n", "line 1"),
    "a column too many": (read_listops, "basic_train.tsv", LISTOPS + "a\tb\tc\n", "line 4: 3 columns; expected 2"),
    "no expression": (read_listops, "basic_train.tsv", LISTOPS + "[FIRST 1 ]\t1\n", "line 4: .*no.* ListOps"),
    "label 10": (read_listops, "basic_train.tsv", LISTOPS + "3\t10\n", "line 4: label '10'; expected 0 to 9"),
    "label in words": (read_retrieval, "new_aan_pairs.train.tsv", "x\t1\t2\ta\tb\n", "line 1: label 'x'"),
    "label 0.5": (read_retrieval, "new_aan_pairs.train.tsv", "0.5\t1\t2\ta\tb\n", "line 1: label '0.5'"),
    "half an image": (read_image, "cifar-10-batches-bin/data_batch_1.bin", b"\0" * 3000, "3000 bytes; expected"),
    "few words": (read_pathfinder, "curv_contour_length_14/metadata/0.npy", "imgs/0 a.png 0\n", "line 1: .*3 words"),
}


@pytest.mark.parametrize(("read", "file", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files(tmp_path, read, file, content, message):
    """Guards the error that says where a file is broken."""
    write(tmp_path / file, content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_split_of_examples(tmp_path):
    """Guards a random split: every example on one side, decided by the seed; both sides hold some."""
    write(tmp_path / "basic_train.tsv", "Source\tTarget\n" + "".join(f"{n % 10}\t{n % 10}\n" for n in range(20)))
    read = read_listops(tmp_path)
    one, two = read.split(0.7, seed=1)
    assert (len(one), len(two)) == (14, 6)
    assert sorted(one.labels.tolist() + two.labels.tolist()) == sorted(read.labels.tolist())
    assert all(
        bytes([1 + label]) == row for part in (one, two) for row, label in zip(part.rows, part.labels, strict=True)
    )
    assert np.array_equal(one.labels, read.split(0.7, seed=1)[0].labels)
    assert not np.array_equal(one.labels, read.split(0.7, seed=2)[0].labels)
    for share in (0, 1, -1, 0.001, 2.0):
        with pytest.raises(ValueError, match=r"^share is .*expected"):
            read.split(share)


# ---- examples as text -------------------------------------------------------------------------------------------


@small
def test_show(name):
    """Guards the printed example: text, of the example asked for, and no other index."""
    task, batch = small_batch(name, B=3)
    assert isinstance(task.show(batch), str) and task.show(batch, 0) != task.show(batch, 2)
    for i in (-1, 3, 1.0, None):
        with pytest.raises(ValueError, match=r"^i is .*expected"):
            task.show(batch, i)


def test_what_is_shown():
    """Guards the printed examples against what they stand for."""
    x = np.array([[5, 9, 6, 8, 6, 0, 5, 0]])
    y = np.array([[-100, -100, -100, -100, 8, -100, 9, -100]])
    batch = MQAR(length=8, pairs=2, vocab=10).batch(1, 0)._replace(x=x, y=y, mask=y != NOT_ASKED)
    assert MQAR().show(batch) == "x  5 9 6 8 6 0 5 0\ny  . . . . 8 . 9 ."
    task = Relations(chains=2, facts=1, entities=4, hops=1)
    text = task.show(task.batch(1, 0))
    assert re.fullmatch(r"\d>\d \d>\d  \d>\d\? (yes|no)", text)
    task = ListOps(shortest=3, longest=20)
    batch = task.batch(5, 0)
    for i in range(5):
        text, value = task.show(batch, i).split(" = ")
        assert parse([SYMBOLS.index(word) for word in text.split()])[0] == int(value)
    lines = Pathfinder().show(Pathfinder().batch(1, 0)).splitlines()
    assert len(lines) == 33 and {len(line) for line in lines[:32]} == {32} and lines[32].startswith("connected: ")


# ---- bad input --------------------------------------------------------------------------------------------------

NO_COUNT = (0, -1, 2.5, 4.0, True, None, "4")
FAULTS = [
    *((Copy, name, value) for name in ("n", "symbols") for value in NO_COUNT),
    *((Copy, "shown", value) for value in (1, None, "yes")),
    *((DelayedRecall, "delay", value) for value in (-1, 2.5, True, None)),
    *((DelayedRecall, "keys", value) for value in (*NO_COUNT, 1)),
    *((MQAR, "length", value) for value in (*NO_COUNT, 2, 255)),
    *((MQAR, "pairs", value) for value in (*NO_COUNT, 65, (), (4, 65), (0,), [4], ("4",))),
    *((MQAR, "vocab", value) for value in (*NO_COUNT, 256, 255)),
    *((MQAR, "power_a", value) for value in (0, -0.1, 1.1, np.nan, np.inf, "a", None)),
    *((MQAR, "fillers", value) for value in ("none", None, 0)),
    *((StackedMQAR, "pairs", value) for value in (*NO_COUNT, 4096)),
    *((StackedMQAR, "vocab", value) for value in (*NO_COUNT, 3)),
    *((InContext, name, value) for name in ("pairs", "queries", "K", "V") for value in NO_COUNT),
    (InContext, "queries", 65),
    *((InContext, name, value) for name in ("rule", "layout") for value in ("no", None, 1)),
    *((InContext, "correlation", value) for value in (-0.1, 1, 1.5, np.nan, "a", None, True)),
    *((InContext, "condition", value) for value in (0, 0.5, -1, np.nan, np.inf, "a", None)),
    *((InContext, "noise", value) for value in (-0.1, np.nan, np.inf, "a", None)),
    *((InContext, name, value) for name in ("unit", "white") for value in (1, None)),
    *((Relations, "chains", value) for value in (*NO_COUNT, 1)),
    *((Relations, "facts", value) for value in NO_COUNT),
    *((Relations, "entities", value) for value in (*NO_COUNT, 9)),
    *((Relations, "hops", value) for value in (*NO_COUNT, 5)),
    *((Relations, "reversed_share", value) for value in (-0.1, 1.1, np.nan, "a", None)),
    *((ListOps, name, value) for name in ("shortest", "longest", "max_depth", "max_args") for value in NO_COUNT),
    *((ListOps, *fault) for fault in (("shortest", 2), ("longest", 501), ("max_depth", 1), ("max_args", 1))),
    *((ListOps, "leaf", value) for value in (-0.1, 1, 1.5, np.nan, "a", None)),
    *((Pathfinder, name, value) for name in ("size", "dashes", "distractor_dashes") for value in NO_COUNT),
    *((Pathfinder, "distractors", value) for value in (-1, 2.5, None)),
    *((Pathfinder, n, v) for n in ("dash", "margin", "thickness", "marker_radius") for v in (0, -1, np.nan, "a", None)),
    *((Pathfinder, "separation", value) for value in (1.9, np.nan, "a", None)),
    *((Pathfinder, "seed_distance", value) for value in (0, 8.1, np.nan, None)),
    *((Pathfinder, "continuity", value) for value in (0.9, np.nan, np.inf, None)),
    *((Pathfinder, "padding", value) for value in (-1, 9, np.nan, None)),
    *((Pathfinder, "contrast", value) for value in (0, 1.1, np.nan, None)),
    *((DigitSequences, "split", value) for value in ("eval", None, 0)),
    *((DigitSequences, "shuffle", value) for value in (-1, 1.5, None)),
]


@pytest.mark.parametrize(("task", "name", "value"), FAULTS)
def test_bad_setting(task, name, value):
    """Guards every setting of every task, when the task is made."""
    with pytest.raises((ValueError, TypeError), match=f"^{name} (is|has) .*expected"):
        task(**{name: value})


@pytest.mark.parametrize("name", TASKS)
def test_bad_batch(name):
    """Guards the number of examples and the seed."""
    for B in (0, -1, 2.0, True, None, "4"):
        with pytest.raises(ValueError, match=r"^B is .*expected"):
            TASKS[name].batch(B, 0)
    for seed in (-1, 1.5, None, "a", True):
        with pytest.raises(ValueError, match=r"^seed is .*expected"):
            TASKS[name].batch(1, seed)


def test_listops_without_a_tree_that_fits():
    """Guards the error where the limits leave no, or no new, expression."""
    few = ListOps(shortest=3, longest=5)  # an operator and two digits: there are 400
    check_listops(few, few.batch(300, 0))
    for task, B in ((few, 401), (ListOps(max_depth=2), 1)):
        with pytest.raises(RuntimeError, match="20000 trees in a row"):
            task.batch(B, 0)


def test_tasks_need_numpy_alone():
    """Guards a page or a trainer that has nothing else: only the digits ask for more."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "sklearn", "scipy", "PIL", "cv2", "pandas"}:
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
from vla_teach.tasks import TASKS
for name, task in TASKS.items():
    if name != "digits":
        task.batch(1, 0)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
