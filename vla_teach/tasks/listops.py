"""ListOps by the rules of the Long Range Arena: nested lists of digits under MIN, MAX, MED and SM."""

from dataclasses import dataclass

import numpy as np

from vla_teach.checks import check_count
from vla_teach.tasks.base import Task, check_range, classified, example

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SYMBOLS = ("<pad>", *map(str, range(10)), *OPERATORS, "]")
TOKENS = {symbol: token for token, symbol in enumerate(SYMBOLS)}
CLOSE = TOKENS["]"]


@dataclass(frozen=True)
class ListOps(Task):
    """What does [MAX 2 9 [MIN 4 7 ] 0 ] come to? (Nangia and Bowman, 2018; lengths of Tay et al., 2020, LRA.)

    LRA's rule (lra_benchmarks/data/listops.py): a node is a digit with probability `leaf`, or at depth `max_depth`,
    the root's depth being 1; else one of 4 operators with 2 to `max_args` nodes under it. MED is the median, rounded
    down; SM the sum modulo 10. A tree is kept if shortest < length < longest, where a digit counts 1 and an operator
    2, itself and its bracket: the number of tokens, as LRA drops its parentheses on loading. No tree comes twice
    within a batch. x [B, longest - 1] ends in padding 0; the answer, 0 to 9, is asked at the last bracket.

    For short trees lower `shortest` and `longest`. Draw a training set as one batch, so that duplicates are removed
    from all of it.
    Raises ValueError or TypeError naming the setting that does not fit, RuntimeError if hardly any tree fits.
    """

    shortest: int = 500
    longest: int = 2000
    max_depth: int = 10
    max_args: int = 10
    leaf: float = 0.75

    kind = "classify"
    vocab = len(SYMBOLS)
    classes = 10

    def __post_init__(self):
        check_count("shortest", self.shortest, 3)  # an operator and 2 digits have 4 tokens
        check_count("longest", self.longest, self.shortest + 2)
        check_count("max_depth", self.max_depth, 2)
        check_count("max_args", self.max_args, 2)
        check_range("leaf", self.leaf, 0, 1, below=True)

    length = property(lambda self: self.longest - 1)

    def draw(self, B, rng):
        """A Batch with x, y [B, longest - 1]."""
        found, failed, draws = {}, 0, Draws(rng, self)
        while len(found) < B:
            tree = self.tree(draws)
            if tree is not None and tree[0] not in found:
                found[tree[0]], failed = tree[1], 0
            else:
                failed += 1
                if failed > 20_000:
                    raise RuntimeError("20000 trees in a row were too short, too long or known; expected looser limits")
        x = np.zeros((B, self.length), int)
        for row, text in zip(x, found, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
        return classified(x, list(found.values()), [len(text) for text in found])

    def tree(self, draws):
        """(tokens as bytes, value) of one tree, or None if its length does not fit."""
        tokens = bytearray()
        value = self.grow(1, tokens, draws)
        return (bytes(tokens), value) if self.shortest < len(tokens) < self.longest else None

    def grow(self, depth, tokens, draws):
        """Appends the tokens of a random node, and returns its value. Gives up, with any value, once it is too long."""
        if depth == self.max_depth or draws.is_leaf() or len(tokens) >= self.longest:
            digit = draws.digit()
            tokens.append(1 + digit)
            return digit
        operator = draws.operator()
        tokens.append(11 + operator)
        values = [self.grow(depth + 1, tokens, draws) for _ in range(draws.args())]
        tokens.append(CLOSE)
        return apply(operator, values)

    def show(self, batch, i=0):
        """Example i of a batch as text: the expression and its value."""
        row = example(batch, i)
        text = " ".join(SYMBOLS[token] for token in row.x if token)
        return f"{text} = {row.y[row.mask][0]}"


def apply(operator, values):
    """The value of OPERATORS[operator] on a list of digits."""
    if operator == 0:
        return min(values)
    if operator == 1:
        return max(values)
    if operator == 3:
        return sum(values) % 10
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


class Draws:
    """Single random numbers, drawn in blocks, which is much faster than one by one."""

    def __init__(self, rng, task, size=2**14):
        def stream(block):
            return (value for _ in iter(int, 1) for value in block().tolist())  # iter(int, 1) never ends

        self.is_leaf = stream(lambda: rng.random(size) < task.leaf).__next__
        self.digit = stream(lambda: rng.integers(0, 10, size)).__next__
        self.operator = stream(lambda: rng.integers(0, len(OPERATORS), size)).__next__
        self.args = stream(lambda: rng.integers(2, task.max_args + 1, size)).__next__
