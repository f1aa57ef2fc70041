"""The machine proofs of the book: what is true leaves 0, what is not does not, in symbols and in numbers."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_close

from vla_teach.proofs import inverse
from vla_teach.proofs.words import factors, matrices, rewrite

BOOK = Path(__file__).resolve().parents[1] / "book"
quick = settings(max_examples=40, deadline=None, derandomize=True)  # the same examples in every run
sizes = given(d=st.integers(1, 6), r=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
PROVED = [proof for proof, _ in inverse.PROOFS.values()]
TWINS = [twin for _, twins in inverse.PROOFS.values() for twin in twins]


# ---- what the proofs leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("proof", PROVED, ids=lambda f: f.__name__)
def test_a_proof_leaves_nothing(proof):
    """Guards each identity that the book states."""
    assert proof() == 0


@pytest.mark.parametrize("twin", TWINS, ids=lambda f: f.__name__)
def test_a_wrong_twin_leaves_something(twin):
    """Guards the proofs themselves, which a wrong formula must not pass."""
    assert twin() != 0


def test_every_proof_has_a_twin():
    """Guards against a proof that nothing shows to be able to fail."""
    assert all(twins for _, twins in inverse.PROOFS.values())


@pytest.mark.parametrize("d", (1, 2, 3))
def test_sherman_morrison_entry_by_entry(d):
    """Guards the lemma once more, without words: a symmetric matrix of free symbols."""
    assert inverse.sherman_morrison_entries(d) == sp.zeros(d, d)


@pytest.mark.parametrize("label", inverse.PROOFS)
def test_the_book_states_what_is_proved(label):
    """Guards the link between a proof and its statement: one label, in one markdown cell of one notebook."""
    labels = Counter()
    for path in BOOK.rglob("*.ipynb"):
        if "_build" not in path.parts:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            labels.update(re.findall(r"^:label: (\S+)\s*$", text, re.MULTILINE))
    assert labels[label] == 1


# ---- the same in numbers ----------------------------------------------------------------------------------------


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
        scalars, word = term.args_cnc()
        number = sp.Mul(*scalars)
        product = np.eye(size)
        for factor in word:
            base, power = factor.as_base_exp()
            product = product @ (x[base] if power == 1 else np.linalg.matrix_power(x[base], int(power)))
        total = total + float(number.subs({symbol: x[symbol] for symbol in number.free_symbols})) * product
    return total


def residuals(x):
    """Left side minus right side of every proof and twin, from matrices alone."""
    M, A, u, w, U = (x[symbol] for symbol in (inverse.M, inverse.A, inverse.u, inverse.w, inverse.U))
    one = np.eye(len(M))

    def updated(A, u, denominator=None):
        return A - A @ u @ u.T @ A / (1 + u.T @ A @ u if denominator is None else denominator)

    def at_once(U, inner=None):
        inner = np.linalg.inv(np.eye(U.shape[1]) + U.T @ A @ U) if inner is None else inner
        return A - A @ U @ inner @ U.T @ A

    both, uAu, wAw = np.hstack([u, w]), u.T @ A @ u, w.T @ A @ w
    return {
        inverse.sherman_morrison: (M + u @ u.T) @ updated(A, u) - one,
        inverse.sherman_morrison_without_one: (M + u @ u.T) @ updated(A, u, uAu) - one,
        inverse.sherman_morrison_sign: (M + u @ u.T) @ updated(A, u, -1 - uAu) - one,
        inverse.woodbury: (M + U @ U.T) @ at_once(U) - one,
        inverse.woodbury_without_capacitance: (M + U @ U.T) @ at_once(U, np.eye(U.shape[1])) - one,
        inverse.two_steps: updated(updated(A, u), w) - at_once(both),
        inverse.two_steps_apart: updated(A, u) + updated(A, w, 1 + wAw) - A - at_once(both),
    }


@cache
def left_over(check):
    """What a proof or twin leaves, computed once."""
    return check()


@pytest.mark.parametrize("check", PROVED + TWINS, ids=lambda f: f.__name__)
@quick
@sizes
def test_symbols_and_numbers_agree(check, d, r, seed):
    """Guards what is left over: put in numbers, it is the difference of the two sides, 0 or not."""
    x = numbers(d, r, seed)
    wanted = residuals(x)[check]
    assert np.allclose(value(left_over(check), x, d), wanted, rtol=1e-9, atol=1e-9)
    if check in PROVED:
        assert np.abs(wanted).max() < 1e-9
    else:
        assert np.abs(wanted).max() > 1e-9


RULES = [*inverse.INVERSE, *inverse.SCALARS, *inverse.CAPACITANCE]


@pytest.mark.parametrize(("pattern", "replacement"), RULES, ids=[str(pattern) for pattern, _ in RULES])
@quick
@sizes
def test_the_rules_hold(pattern, replacement, d, r, seed):
    """Guards what the proofs take for granted, which is true of every positive definite M."""
    x = numbers(d, r, seed)
    size = x[factors(pattern)[0]].shape[0]
    assert_close(value(pattern, x, size), value(replacement, x, size))


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
