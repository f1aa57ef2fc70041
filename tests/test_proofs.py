"""The machine checks of the book: every labelled statement has one that passes, and every one can fail."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_close

from vla_teach.proofs import CHAPTERS, STATEMENTS, check, inverse, report
from vla_teach.proofs.statement import TOLERANCE, Refuted, Statement, above, apart, draw, left_over, refute, takes
from vla_teach.proofs.words import factors, matrices, rewrite, trace, transpose

BOOK = Path(__file__).resolve().parents[1] / "book"
BLOCK = re.compile(
    r"```\{prf:(definition|lemma|proposition|theorem|corollary)\}([^\n]*)\n:label: (\S+)\n(.*?)\n```", re.DOTALL
)
TWINS = [(label, twin) for label, statement in STATEMENTS.items() for twin in statement.twins]
quick = settings(max_examples=40, deadline=None, derandomize=True)  # the same examples in every run


def blocks():
    """Every labelled statement that the chapters print: (label, title, text, chapter)."""
    found = []
    for path in sorted(BOOK.rglob("*.ipynb")):
        if {"_build", ".ipynb_checkpoints"} & set(path.parts):
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        chapter = path.relative_to(BOOK).with_suffix("").as_posix()
        found += [(label, title.strip(), body, chapter) for _, title, label, body in BLOCK.findall(text)]
        assert len(re.findall(r"\{prf:(?!proof|ref)\w+\}", text)) == len(BLOCK.findall(text)), f"{path.name}: no label"
    return found


# ---- the book and the checks ------------------------------------------------------------------------------------


def test_every_labelled_statement_has_a_check_and_the_other_way_round():
    """Guards the book's promise: no statement unchecked, no check that the book does not print, no label twice."""
    labels = [label for label, *_ in blocks()]
    assert sorted(labels) == sorted(STATEMENTS)
    assert len(STATEMENTS) == sum(len(module.STATEMENTS) for module in CHAPTERS) >= 40


def test_checks_come_in_the_order_of_the_book():
    """Guards the page that lists them all: a reader of the chapters finds the list in the same order."""
    order = {chapter: i for i, chapter in enumerate(CHAPTERS.values())}
    printed = sorted(blocks(), key=lambda block: order[block[3]])
    assert [label for label, *_ in printed] == list(STATEMENTS)


def test_the_book_prints_what_is_checked():
    """Guards against a chapter and its check that drift apart: chapter, title and formula are the same in both."""
    home = {s.label: chapter for module, chapter in CHAPTERS.items() for s in module.STATEMENTS}
    for label, title, body, chapter in blocks():
        statement = STATEMENTS[label]
        assert chapter == home[label], f"{label} stands in {chapter}"
        assert title == statement.title, f"{label} is titled {title!r}"
        assert " ".join(statement.says.split()) in " ".join(body.split()), f"{label}: another formula in the book"
        assert statement.given, f"{label} has no hypotheses"


@pytest.mark.parametrize("label", STATEMENTS)
def test_a_statement_passes_its_check(label):
    """Guards each statement: in symbols, in numbers, its twins refused."""
    found = check(STATEMENTS[label])
    assert found.draws >= 50
    assert found.worst <= TOLERANCE


@pytest.mark.parametrize("label", STATEMENTS)
@quick
@given(d=st.integers(1, 7), n=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_a_statement_holds_for_other_sizes_and_draws(label, d, n, seed):
    """Guards against draws chosen to please: hypothesis looks for a size and a seed that break the statement."""
    statement = STATEMENTS[label]
    d = max(d, statement.least_width)
    assert statement.numbers(draw(seed, d, n)) <= 10 * TOLERANCE


@pytest.mark.parametrize(("label", "twin"), TWINS)
def test_a_wrong_twin_is_refused(label, twin):
    """Guards the checks: each one fails on a broken version of what it checks."""
    statement = STATEMENTS[label]
    wrong = statement.twins[twin]
    refute(statement, twin, wrong)
    in_symbols = statement.symbols and takes(statement.symbols, wrong)
    spoiled = statement._replace(
        symbols=(lambda: left_over(statement, **wrong)) if in_symbols else None,
        numbers=(lambda x: statement.numbers(x, **wrong)) if takes(statement.numbers, wrong) else statement.numbers,
        twins={},
    )
    with np.errstate(all="ignore"), pytest.raises(Refuted, match=label):
        check(spoiled)


def test_most_proofs_are_for_every_size():
    """Guards against a slide from proofs to trials: what is tried in numbers only is a definition."""
    assert {s.label for s in STATEMENTS.values() if s.symbols is None} == {"def-vla"}
    assert {s.label for s in STATEMENTS.values() if s.sizes != "any"} == {"lem-determinant"}


def test_the_paper_s_proposition_is_refuted():
    """Guards the book's finding: a write direction of length 1 does not make the spectral norm 1."""
    statement = STATEMENTS["prop-jacobian"]
    c = sp.Symbol("c", real=True)
    left = left_over(statement, printed=True)
    assert any(sp.expand(x - (c - 1)) == 0 for x in left)
    F = np.eye(2) - np.outer([1, 0], [0, 1])
    assert_close(np.linalg.norm(F, 2), (1 + 5**0.5) / 2)


def test_the_suite_is_quick():
    """Guards the reader's patience: all checks in under three minutes, here with room."""
    start = time.perf_counter()
    for statement in STATEMENTS.values():
        check(statement)
    assert time.perf_counter() - start < 90


def test_report(capsys):
    """Guards the line that chapters print: short, the same in every run."""
    report("lem-sherman-morrison", "def-vla")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["lem-sherman-morrison", "def-vla"]
    assert max(map(len, lines)) <= 88


# ---- the checker ------------------------------------------------------------------------------------------------

x_, y_ = matrices("x y")
GOOD = Statement(
    label="toy",
    title="",
    given="nothing",
    says="0 = 0",
    symbols=lambda wrong=0: wrong * x_ * y_,
    numbers=lambda x, wrong=0: float(wrong),
    twins={"one": dict(wrong=1)},
)
BAD = {
    "left over": GOOD._replace(symbols=lambda wrong=1: wrong * x_ * y_),
    "is left over": GOOD._replace(symbols=lambda wrong=1: [sp.S.Zero, wrong * x_]),
    "off by 1": GOOD._replace(numbers=lambda x, wrong=1: float(wrong)),
    "off by nan": GOOD._replace(numbers=lambda x, wrong=0: np.nan),
    "has no wrong twin": GOOD._replace(twins={}),
    "leaves nothing over": GOOD._replace(symbols=lambda wrong=0: sp.S.Zero),
    "passes 50 draws": GOOD._replace(numbers=lambda x, wrong=0: 0.0),
    "no check takes the twin": GOOD._replace(twins={"other": dict(other=1)}),
}


def test_a_good_statement_passes():
    """Guards the cases below: what they spoil is sound."""
    assert check(GOOD).refused == 1


@pytest.mark.parametrize(("words", "statement"), BAD.items(), ids=BAD.keys())
def test_the_checker_refuses(words, statement):
    """Guards the checker: each way to cheat it is named."""
    with pytest.raises(Refuted, match=words):
        check(statement)


def test_apart_and_above():
    """Guards the measures: relative, and blind to nothing."""
    assert apart([1e6, 1], [1e6 + 1, 1]) == pytest.approx(1e-6)
    assert apart(0.0, 1e-3) == pytest.approx(1e-3)
    assert above(1.0, 2.0) == pytest.approx(-0.5)
    assert above([1.0, 3.0], [2.0, 2.0]) == pytest.approx(1 / 3)
    assert np.isnan(apart(np.nan, 1.0)) and np.isnan(above(np.nan, 1.0))


def test_draws():
    """Guards the inputs of the numerical checks: what is said of them is so, and seeds repeat."""
    sizes = set()
    for seed in range(100):
        x = draw(seed)
        assert_close(np.linalg.norm(x.k, axis=1), np.ones(len(x.k)))
        assert_close(x.M, x.lambda_0 * np.eye(len(x.M)) + x.u.T @ x.u)
        assert_close(x.M @ x.A, np.eye(len(x.M)), 1e-9)
        sizes.add(x.k.shape)
        assert np.array_equal(draw(seed).v, x.v)
    assert {n for n, _ in sizes} == set(range(1, 9))
    assert {d for _, d in sizes} == set(range(1, 7))


# ---- the rules and the entries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("d", (1, 2, 3))
def test_sherman_morrison_entry_by_entry(d):
    """Guards the lemma once more, without words: a symmetric matrix of free symbols."""
    assert inverse.sherman_morrison_entries(d) == sp.zeros(d, d)


def numbers(d, r, seed):
    """Numbers for every symbol of `inverse`: a positive definite M [d, d], columns u, w [d, 1], U [d, r]."""
    rng = np.random.default_rng(seed)
    B, u, w, U = (rng.normal(size=(d, n)) for n in (d, 1, 1, r))
    M = B @ B.T + np.eye(d)
    A = np.linalg.inv(M)
    return {
        inverse.M: M,
        inverse.A: A,
        **{inverse.u: u, inverse.ut: u.T, inverse.w: w, inverse.wt: w.T, inverse.U: U, inverse.Ut: U.T},
        inverse.Y: np.linalg.inv(np.eye(r) + U.T @ A @ U),
        **{inverse.a: (u.T @ A @ u).item(), inverse.b: (u.T @ A @ w).item(), inverse.c: (w.T @ A @ w).item()},
    }


def value(expression, x, size):
    """A sum of words as a matrix [size, size], with the numbers x for its symbols."""
    total = np.zeros((size, size))
    for term in sp.Add.make_args(sp.expand(expression)):
        scalars, _ = term.args_cnc()
        number = sp.Mul(*scalars)
        product = np.eye(size)
        for factor in factors(term):
            product = product @ x[factor]
        total = total + float(number.subs({symbol: x[symbol] for symbol in number.free_symbols})) * product
    return total


RULES = [*inverse.INVERSE, *inverse.SCALARS, *inverse.CAPACITANCE]


@pytest.mark.parametrize(("pattern", "replacement"), RULES, ids=[str(pattern) for pattern, _ in RULES])
@quick
@given(d=st.integers(1, 6), r=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_the_rules_hold(pattern, replacement, d, r, seed):
    """Guards what the proofs take for granted, which is true of every positive definite M."""
    x = numbers(d, r, seed)
    size = x[factors(pattern)[0]].shape[0]
    assert_close(value(pattern, x, size), value(replacement, x, size))


# ---- transposes and traces --------------------------------------------------------------------------------------


def test_transpose():
    """Guards (X Y)^T = Y^T X^T, the symmetric symbols, and twice is nothing."""
    X, Xt, Y, Yt, M = matrices("X X^T Y Y^T M")
    a = sp.Symbol("a")
    assert transpose(a * X * Y + 1) == a * Yt * Xt + 1
    assert transpose(X * M * Yt, (M,)) == Y * M * Xt
    assert transpose(transpose(X * M * Yt + 2 * Xt * Y)) == X * M * Yt + 2 * Xt * Y


def test_trace_turns_and_mirrors():
    """Guards the trace: cyclic, blind to transposition, linear; and not blind to more."""
    X, Xt, Y, Yt, Z, M = matrices("X X^T Y Y^T Z M")
    a = sp.Symbol("a")
    assert trace(X * Y * Z - Z * X * Y) == 0
    assert trace(X * Y - Yt * Xt) == 0
    assert trace(X * M * Yt - Y * M * Xt, (M,)) == 0
    assert trace(a * X * Y + a * Y * X - 2 * a * X * Y) == 0
    assert trace(X * Y * Z - Y * X * Z) != 0
    assert trace(X * M * Yt - Y * M * Xt) != 0  # M not said to be symmetric
    assert trace(X * Y) != trace(X) * trace(Y)


def test_trace_with_numbers():
    """Guards the rules for numbers inside a trace, wherever the word is cut open."""
    S, k, kt, v, vt = matrices("S k k^T v v^T")
    unit = [(kt * k, sp.S.One)]
    assert trace(k * kt, numbers=unit) == 1
    assert trace(S * k * kt * k * kt - S * k * kt, numbers=unit) == 0
    assert trace(k * vt * v * kt - vt * v, numbers=unit) == 0
    assert trace(5 - vt * v + v * vt) == 5


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_trace_agrees_with_numbers(seed):
    """Guards the trace by NumPy: what symbols call equal has one value."""
    rng = np.random.default_rng(seed)
    names = "X Y Z".split()
    word = rng.choice(names, size=rng.integers(1, 6))
    x = {name: rng.normal(size=(3, 3)) for name in names}
    turned = np.roll(word, rng.integers(0, 6))

    def product(word):
        return np.linalg.multi_dot([np.eye(3), *(x[name] for name in word)])

    def symbols(word):
        return sp.Mul(*(matrices(str(name)) for name in word))

    assert trace(symbols(word)) == trace(symbols(turned))
    assert np.isclose(np.trace(product(word)), np.trace(product(turned)))


# ---- rewriting words --------------------------------------------------------------------------------------------


x, y, z = matrices("x y z")
a, b = sp.symbols("a b")
EXAMPLES = {
    "no rules": (x * y + 2 * y * x, [], x * y + 2 * y * x),
    "no words": (a + 5 - a, [(x * y, 1)], 5),
    "nothing": (x - x, [(x, 1)], 0),
    "order matters": (y * x, [(x * y, 1)], y * x),
    "a gap is no match": (x * z * y, [(x * y, 1)], x * z * y),
    "in the middle": (z * x * y * z, [(x * y, 1)], z**2),
    "a power is written out": (x**3 * y, [(x * y, 1)], x**2),
    "a power as the pattern": (x**5, [(x**2, 1)], x),
    "a power of a product": ((x * y) ** 3 * x, [(y * x, 1)], x),
    "a power of a sum": ((x + y) ** 2, [(y * x, x * y)], x**2 + 2 * x * y + y**2),
    "nested": (x**2 * y**2, [(x * y, 1)], 1),
    "a rule makes way for the other": (x * x * y, [(x * y, z), (x * z, 1)], 1),
    "one symbol is a pattern": (x * y * x, [(y, z)], x * z * x),
    "to a number": (3 * x * y * z / 2, [(x * y, a)], 3 * a * z / 2),
    "to a number, twice": (x * y * z * x * y, [(x * y, a)], a**2 * z),
    "to a number times a word": (x * y, [(x * y, a * z)], a * z),
    "to zero": (x * y * z + z, [(x * y, 0)], z),
    "to a sum": (x * x * y * x, [(x * y, 1 - z)], x**2 - x * z * x),
    "to a sum, twice": ((x * y) ** 2, [(x * y, 1 - z)], 1 - 2 * z + z**2),
    "numbers are simplified": (a * x / (1 + a) + x / (1 + a), [], x),
    "several terms": (a * x * y + b * x * y - z, [(x * y, z)], (a + b - 1) * z),
    "terms that cancel": (x * y - y * x, [(x * y, y * x)], 0),
    "terms that cancel after two rules": (x * y * z - z * y * x, [(x * y, z), (y * x, z)], 0),
    "terms that stay": ((x + y) * (x - y), [], x**2 - x * y + y * x - y**2),
}


@pytest.mark.parametrize(("expression", "rules", "wanted"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_rewrite(expression, rules, wanted):
    """Guards the algebra of words on examples done by hand."""
    assert sp.expand(rewrite(expression, rules) - wanted) == 0


UNSOUND = {
    "an inverse": (x**-1 * y, []),
    "a root": (sp.sqrt(x) * y, []),
    "a number in the pattern": (x * y, [(2 * x * y, sp.S.One)]),
    "an inverse as the pattern": (x * y, [(x**-1, sp.S.One)]),
    "an empty pattern": (x * y, [(sp.S.One, sp.S.Zero)]),
}


@pytest.mark.parametrize(("expression", "rules"), UNSOUND.values(), ids=UNSOUND.keys())
def test_what_rewrite_cannot_read(expression, rules):
    """Guards against a false proof: what is no word is refused, not dropped."""
    with pytest.raises(ValueError, match="is no word; expected"):
        rewrite(expression, rules)


def test_factors():
    """Guards the order of a word's factors, powers written out, numbers left out."""
    assert factors(3 * a * x**2 * y * x) == (x, x, y, x)
    assert factors(sp.S.One) == ()
