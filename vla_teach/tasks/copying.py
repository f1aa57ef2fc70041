"""Two tasks of holding on: copy a sequence, and recall one pair after a long delay."""

from dataclasses import dataclass

import numpy as np

from vla_teach.checks import check_count
from vla_teach.tasks.base import Task, check_switch, labelled

BLANK, SEPARATOR = 0, 1


@dataclass(frozen=True)
class Copy(Task):
    """n symbols, a separator, then the n symbols again (Graves, Wayne and Danihelka, 2014, section 4.1).

    T = 2n: the separator asks for the first symbol, each position after it for the next one. There the input is
    blank, or with shown=True the symbol just asked for, as when a language model copies (Jelassi et al., 2024).
    Tokens: 0 blank, 1 separator, from 2 the symbols. Raises ValueError naming the setting that does not fit.
    """

    n: int = 32
    symbols: int = 64
    shown: bool = False

    def __post_init__(self):
        check_count("n", self.n)
        check_count("symbols", self.symbols, 2)
        check_switch("shown", self.shown)

    vocab = classes = property(lambda self: 2 + self.symbols)
    length = property(lambda self: 2 * self.n)

    def draw(self, B, rng):
        """A Batch with x, y [B, 2n]."""
        n, symbols = self.n, rng.integers(2, self.vocab, (B, self.n))
        x = np.full((B, 2 * n), BLANK)
        x[:, :n], x[:, n] = symbols, SEPARATOR
        if self.shown:
            x[:, n + 1 :] = symbols[:, :-1]
        return labelled(x, np.tile(np.arange(n, 2 * n), (B, 1)), symbols)


@dataclass(frozen=True)
class DelayedRecall(Task):
    """A key, its value, `delay` tokens of noise, the key again: which value? (After Hochreiter and Schmidhuber, 1997.)

    T = delay + 3; the answer is asked at the last position. Tokens: from 0 the keys, then as many values.
    Noise is any key but the one asked for, and any value. Raises ValueError naming the setting that does not fit.
    """

    delay: int = 100
    keys: int = 32

    def __post_init__(self):
        check_count("delay", self.delay, 0)
        check_count("keys", self.keys, 2)

    vocab = classes = property(lambda self: 2 * self.keys)
    length = property(lambda self: self.delay + 3)

    def draw(self, B, rng):
        """A Batch with x, y [B, delay + 3]."""
        key = rng.integers(0, self.keys, (B, 1))
        value = rng.integers(self.keys, self.vocab, (B, 1))
        noise = rng.integers(0, self.vocab - 1, (B, self.delay))
        noise += noise >= key  # one token fewer to draw from, and the key stepped over
        x = np.concatenate([key, value, noise, key], axis=1)
        return labelled(x, np.full((B, 1), self.length - 1), value)
