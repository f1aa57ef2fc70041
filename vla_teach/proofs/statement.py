"""What a checked statement is, and how it is checked: in symbols, in numbers, and against wrong twins of itself."""

import time
from typing import Any, NamedTuple

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike

from vla_teach.reference import unit_rows

TOLERANCE = 1e-9
DRAWS = 50
KINDS = (
    "symbols, any size",
    "symbols, any size, steps by hand",
    "symbols, small sizes",
    "by hand, tested in numbers",
)


class Refuted(AssertionError):
    """A check that failed; the message names the statement and what was left over or which draw broke it."""


class Statement(NamedTuple):
    """A labelled statement of the book, with its checks.

    symbols() returns what is left of (left side) - (right side), one expression or a list; proved if all are 0.
    numbers(x) returns how far the statement is from holding for the Case x, relative to its size; at most TOLERANCE if
    it holds. Both take keyword arguments that spoil the statement; `twins` lists them, and each must be refused.
    """

    label: str  # its label in the book
    title: str  # its title there, "" for none
    given: str  # the hypotheses, in words
    says: str  # the formula, in LaTeX, as the book prints it
    twins: dict  # words -> the keyword arguments that make a check wrong
    numbers: object
    symbols: object = None
    sizes: str = "any"  # of the matrices that `symbols` speaks of
    by_hand: str = ""  # the steps that no symbols carry
    least_width: int = 1
    links: tuple = ()  # the same statement proved elsewhere: (name, address)

    @property
    def kind(self) -> str:
        """One of KINDS: the strongest thing that a machine has done for it."""
        if self.symbols is None:
            return KINDS[3]
        return KINDS[2] if self.sizes != "any" else KINDS[1 if self.by_hand else 0]


class Case(NamedTuple):
    """One draw of everything a statement may speak of. n pairs of width d; keys of length 1."""

    k: np.ndarray  # [n, d]
    v: np.ndarray  # [n, V]
    u: np.ndarray  # [n, d]   lengths around 1
    lambda_0: float  # from 1e-3 to 1e2
    S: np.ndarray  # [V, d]   any matrix
    M: np.ndarray  # [d, d]   lambda_0 I + sum of u u^T
    A: np.ndarray  # [d, d]   its inverse
    rng: np.random.Generator  # for whatever else a check needs


def draw(seed: int, d: int | None = None, n: int | None = None, least_width: int = 1) -> Case:
    """A Case for this seed; width d (up to 6) and n pairs (up to 8) are drawn too where they are not given."""
    rng = np.random.default_rng(seed)
    d, n = d or int(rng.integers(least_width, 7)), n or int(rng.integers(1, 9))
    V, lambda_0 = int(rng.integers(1, 4)), float(10 ** rng.uniform(-3, 2))
    k, u = unit_rows(rng.normal(size=(n, d))), rng.normal(size=(n, d)) / np.sqrt(d)
    M = lambda_0 * np.eye(d) + u.T @ u
    return Case(k, rng.normal(size=(n, V)), u, lambda_0, rng.normal(size=(V, d)), M, np.linalg.inv(M), rng)


class Report(NamedTuple):
    """What a check found. Times in seconds, which differ from run to run."""

    statement: Statement
    draws: int
    worst: float  # of all draws
    refused: int  # wrong twins
    seconds_symbols: float
    seconds_numbers: float

    def __str__(self):
        twins = f"{self.refused} twin{'s' if self.refused > 1 else ''} refused"
        return f"{self.statement.label:21s} {self.statement.kind:33s} {self.draws} draws hold  {twins}"


def check(statement: Statement, draws: int = DRAWS) -> Report:
    """Prove a statement in symbols, try it on draws, and refuse its twins. Returns a Report; raises Refuted."""
    start = time.perf_counter()
    left = left_over(statement)
    if left:
        raise Refuted(f"{statement.label}: {left} is left over; expected nothing")
    middle = time.perf_counter()
    worst, seed = worst_draw(statement, draws)
    if not worst <= TOLERANCE:
        raise Refuted(f"{statement.label}: off by {worst:.3g} in draw {seed}; expected at most {TOLERANCE:g}")
    end = time.perf_counter()
    for twin, wrong in statement.twins.items():
        refute(statement, twin, wrong)
    if not statement.twins:
        raise Refuted(f"{statement.label} has no wrong twin; expected one, to show that its checks can fail")
    return Report(statement, draws, worst, len(statement.twins), middle - start, end - middle)


def left_over(statement: Statement, **wrong: Any) -> list:
    """The expressions that the symbolic proof leaves, without those that are 0."""
    if statement.symbols is None:
        return []
    left = statement.symbols(**wrong)
    return [x for x in (left if isinstance(left, (list, tuple)) else [left]) if x != 0]


def worst_draw(statement: Statement, draws: int, **wrong: Any) -> tuple[float, int]:
    """The largest distance from the statement over draws, and its seed. NaN counts as the largest."""
    found = [(statement.numbers(draw(seed, least_width=statement.least_width), **wrong), seed) for seed in range(draws)]
    return max(found, key=lambda x: (np.isnan(x[0]), x[0]))


def refute(statement, twin, wrong, draws=DRAWS):
    """Show that every check which can express the wrong twin refuses it. Raises Refuted where one lets it pass."""
    tried = 0
    if statement.symbols and takes(statement.symbols, wrong):
        tried += 1
        if not left_over(statement, **wrong):
            raise Refuted(f"{statement.label}: the twin {twin!r} leaves nothing over; the proof cannot fail")
    if takes(statement.numbers, wrong):
        tried += 1
        worst, _ = worst_draw(statement, draws, **wrong)
        if worst <= 1e3 * TOLERANCE:
            raise Refuted(f"{statement.label}: the twin {twin!r} passes {draws} draws; the test cannot fail")
    if not tried:
        raise Refuted(f"{statement.label}: no check takes the twin {twin!r}; expected arguments of one of them")


def takes(function, wrong):
    """Whether a check has all these keyword arguments."""
    return set(wrong) <= set(function.__code__.co_varnames[: function.__code__.co_argcount])


def apart(left: ArrayLike, right: ArrayLike) -> float:
    """How far two arrays are apart, relative to the larger of 1 and their largest entry."""
    left, right = np.asarray(left), np.asarray(right)
    return float(np.max(np.abs(left - right)) / max(1.0, np.abs(right).max(), np.abs(left).max()))


def above(left, right):
    """How far `left <= right` is from holding, relative as in `apart`; below 0 where it holds with room."""
    left, right = np.asarray(left), np.asarray(right)
    return float(np.max((left - right) / np.maximum(1.0, np.maximum(np.abs(left), np.abs(right)))))


def zero(expression):
    """sympy's simplest form of an expression in numbers: 0 if it can tell."""
    return sp.simplify(sp.expand(expression))
