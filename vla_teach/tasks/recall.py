"""Multi-query associative recall (MQAR): as one stream of tokens, and with key and value side by side."""

from dataclasses import dataclass

import numpy as np

from vla_teach.checks import check_count
from vla_teach.tasks.base import Batch, Task, check_choice, check_positive, labelled, without_replacement

FILLERS = ("random", "zeros")


@dataclass(frozen=True)
class MQAR(Task):
    """Keys and values k v k v ..., then every key once more: which value? (Arora et al., 2023, "Zoology".)

    Zoology's rule (multiquery_ar): keys are tokens 1 ... vocab/2 - 1, values the upper half; within a sequence the
    keys differ, and so do the values. After the pairs come (length - 2 pairs) / 2 slots of two positions; key j is
    asked for at the start of slot g_j, slots drawn one after another without replacement with weights
    (g + 1)^(power_a - 1), so that most keys come back soon. All other positions are filled: "random" with any token
    of the vocabulary, now and then a key, as Zoology does; "zeros" with 0. T = length.

    pairs: a number, or a tuple of numbers, which examples take in turn, in random order.
    Zoology wants length even, vocab above length and 4 pairs <= length; ValueError names the setting that does not fit.
    """

    length: int = 256
    pairs: int | tuple = 16
    vocab: int = 8192
    power_a: float = 0.01
    fillers: str = "random"

    def __post_init__(self):
        check_count("length", self.length, 4)
        if self.length % 2:
            raise ValueError(f"length is {self.length}; expected an even number")
        check_count("vocab", self.vocab, self.length + 1)
        if isinstance(self.pairs, tuple) and not self.pairs:
            raise ValueError("pairs is (); expected at least one number")
        # Keys without replacement: there are vocab // 2 - 1 of them, above length / 4.
        for n in self.choices:
            check_count("pairs", n, 1, self.length // 4)
        check_positive("power_a", self.power_a, 1)
        check_choice("fillers", self.fillers, FILLERS)

    classes = property(lambda self: self.vocab)
    choices = property(lambda self: self.pairs if isinstance(self.pairs, tuple) else (self.pairs,))

    def draw(self, B, rng):
        """A Batch with x, y [B, length]."""
        sizes = [len(range(i, B, len(self.choices))) for i in range(len(self.choices))]
        parts = [self.same_size(size, n, rng) for size, n in zip(sizes, self.choices, strict=True) if size]
        if len(parts) == 1:
            return parts[0]
        order = rng.permutation(B)
        x, y, mask = (np.concatenate(part)[order] for part in list(zip(*parts, strict=True))[:3])
        return Batch(x, y, mask)

    def same_size(self, B, n, rng):
        """B examples with n pairs each."""
        keys = 1 + without_replacement(rng, B, n, self.vocab // 2 - 1)
        values = self.vocab // 2 + without_replacement(rng, B, n, self.vocab - self.vocab // 2)
        queries = 2 * n + 2 * power_law_slots(rng, B, n, self.length // 2 - n, self.power_a)
        shape = (B, self.length)
        x = np.zeros(shape, int) if self.fillers == "zeros" else rng.integers(0, self.vocab, shape)
        x[:, 0 : 2 * n : 2], x[:, 1 : 2 * n : 2] = keys, values
        np.put_along_axis(x, queries, keys, axis=1)
        return labelled(x, queries, values)


def power_law_slots(rng, B, n, slots, power_a):
    """[B, n] different slots, drawn one after another with weights (slot + 1)^(power_a - 1).

    Exponential waiting times divided by the weights end in just that order (Efraimidis and Spirakis, 2006).
    """
    waiting = rng.standard_exponential((B, slots)) / np.arange(1, slots + 1) ** (power_a - 1.0)
    return np.argsort(waiting, axis=1)[:, :n]


@dataclass(frozen=True)
class StackedMQAR(Task):
    """MQAR with key and value at one position, so that one layer without any shift can do it.

    x [B, T, 2] holds (key, value): `pairs` pairs, then the same keys in a new random order with a blank value, 0;
    the value is asked for there. T = 2 pairs. Tokens as in MQAR: keys 1 ... vocab/2 - 1, values the upper half, each
    at most once. The layout of Zoology's stacked_mqar, with tokens in the place of its embeddings.
    Raises ValueError naming the setting that does not fit.
    """

    pairs: int = 32
    vocab: int = 8192

    inputs = "pairs"

    def __post_init__(self):
        check_count("vocab", self.vocab, 4)
        check_count("pairs", self.pairs, 1, self.vocab // 2 - 1)

    classes = property(lambda self: self.vocab)
    length = property(lambda self: 2 * self.pairs)

    def draw(self, B, rng):
        """A Batch with x [B, 2 pairs, 2], y [B, 2 pairs]."""
        n = self.pairs
        keys = 1 + without_replacement(rng, B, n, self.vocab // 2 - 1)
        values = self.vocab // 2 + without_replacement(rng, B, n, self.vocab - self.vocab // 2)
        order = rng.permuted(np.tile(np.arange(n), (B, 1)), axis=1)
        x = np.zeros((B, 2 * n, 2), int)
        x[:, :n, 0], x[:, :n, 1] = keys, values
        x[:, n:, 0] = np.take_along_axis(keys, order, axis=1)
        return labelled(x, np.tile(np.arange(n, 2 * n), (B, 1)), np.take_along_axis(values, order, axis=1))
