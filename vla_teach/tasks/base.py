"""What every task has in common: one shape of batch, and one way to ask for it."""

from typing import NamedTuple

import numpy as np

from vla_teach.checks import check_count, check_number

NOT_ASKED = -100  # the class that torch's cross entropy leaves out
SHADES = " .:-=+*#%@"  # from dark to bright, for pictures shown as text


class Batch(NamedTuple):
    """B examples of T positions. A causal model reads x from the left; its answers count where mask is true."""

    x: np.ndarray  # [B, T] tokens, [B, T, 2] tokens in two streams, or [B, T, D] floats
    y: np.ndarray  # [B, T] right classes, NOT_ASKED elsewhere; or [B, T, V] floats, 0 elsewhere
    mask: np.ndarray  # [B, T] where an answer is asked
    W: np.ndarray | None = None  # [B, T, T] which positions are related (relations only)


class Task:
    """A rule that draws batches. Subclasses are frozen dataclasses whose fields are their settings.

    kind: "tokens" (a token at some positions), "classify" (one class, at the last token), "regress" (floats).
    inputs: "tokens", "pairs" (two streams of tokens) or "floats".
    vocab: the number of tokens in x, or None; classes: of different answers, or the width V of y for "regress".
    length: the positions T of an example, padding included.
    """

    kind = "tokens"
    inputs = "tokens"

    def batch(self, B: int, seed: int) -> Batch:
        """B examples, decided by the settings and the seed alone, as a Batch.

        Integers are int64, floats float64. Raises ValueError if B or seed is no whole number that fits.
        """
        check_count("B", B)
        check_count("seed", seed, 0)
        return self.draw(B, np.random.default_rng(seed))

    def show(self, batch: Batch, i: int = 0) -> str:
        """Example i of a batch as text: a line of inputs, and under it the answers, a dot where none is asked."""
        row = example(batch, i)
        cells = [["/".join(str(t) for t in np.atleast_1d(x)) for x in row.x], [answer(y) for y in row.y]]
        widths = [max(map(len, pair)) for pair in zip(*cells, strict=True)]
        lines = (" ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)
        return "\n".join(f"{name}  {line}" for name, line in zip("xy", lines, strict=True))


def answer(y):
    """A class as text."""
    return "." if y == NOT_ASKED else str(y)


def example(batch, i):
    """Example i of a batch, as a Batch without its first axis."""
    check_count("i", i, 0, len(batch.x) - 1)
    return Batch(*(None if part is None else part[i] for part in batch))


# ---- building blocks --------------------------------------------------------------------------------------------


def check_choice(name, value, choices):
    """One of some strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def check_switch(name, value):
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; expected True or False")


def check_range(name, value, least, most, below=False):
    """A finite number from least to most, or with below=True smaller than most."""
    number = check_number(name, value)
    if not least <= number <= most or (below and number == most):
        raise ValueError(f"{name} is {value}; expected a number from {least:g} to {'below ' if below else ''}{most:g}")


def check_positive(name, value, most=np.inf):
    """A finite number above 0, at most `most`."""
    if not 0 < check_number(name, value) <= most:
        raise ValueError(
            f"{name} is {value}; expected a number above 0" + (f", at most {most:g}" if most < np.inf else "")
        )


def without_replacement(rng, B, n, among):
    """[B, n] whole numbers below `among`, different within a row, every ordered choice equally likely."""
    chosen = np.argpartition(rng.random((B, among), dtype=np.float32), n - 1, axis=1)[:, :n]
    return rng.permuted(chosen, axis=1)  # argpartition promises no order


def balanced(rng, B, classes=2):
    """[B] classes, each as often as any other, or once more, in random order."""
    return rng.permutation(np.resize(rng.permutation(classes), B))


def labelled(x, positions, values):
    """A Batch whose answers at positions [B, n] are values [B, n]. x [B, T, ...]."""
    y = np.full(x.shape[:2], NOT_ASKED)
    np.put_along_axis(y, positions, values, axis=1)
    return Batch(x, y, y != NOT_ASKED)


def classified(x, labels, lengths=None):
    """A Batch with one class an example, asked at its last token: x [B, T], labels [B], lengths [B] or None for T."""
    B, T = x.shape[:2]
    last = np.full(B, T) if lengths is None else np.asarray(lengths)
    return labelled(x, last[:, None] - 1, np.asarray(labels)[:, None])
