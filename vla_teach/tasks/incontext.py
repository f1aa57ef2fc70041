"""Recall and regression in context, with keys as correlated, or as ill-conditioned, as wanted."""

from dataclasses import dataclass

import numpy as np

from vla_teach.checks import check_count
from vla_teach.reference import unit_rows
from vla_teach.tasks.base import Batch, Task, check_choice, check_range, check_switch, example

RULES = ("recall", "regression")
LAYOUTS = ("paired", "interleaved")


def random_roots(rng, B, K, condition):
    """C^(1/2) and C^(-1/2), two [B, K, K]: C = R diag(c) R^T, a covariance drawn anew for every sequence.

    R is a random rotation; c runs geometrically from 1 to 1 / condition, scaled to mean 1.
    """
    spread = np.geomspace(1, 1 / condition, K)
    scale = np.sqrt(spread / spread.mean())
    R = np.linalg.qr(rng.normal(size=(B, K, K)))[0]
    return (R * scale) @ R.transpose(0, 2, 1), (R / scale) @ R.transpose(0, 2, 1)


def random_keys(rng, n, root, correlation=0.0, unit=True):
    """n keys for each of B sequences: [B, n, K], from root [B, K, K], the C^(1/2) of `random_roots`.

    key = sqrt(correlation) m + sqrt(1 - correlation) C^(1/2) z, z normal, m a random direction of length sqrt(K) for
    each sequence; then, if unit, brought to length 1. For C = I the mean cosine of two keys is near `correlation`.
    """
    B, K = root.shape[:2]
    own = rng.normal(size=(B, n, K)) @ root
    shared = np.sqrt(K) * unit_rows(rng.normal(size=(B, 1, K)))
    keys = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    return unit_rows(keys) if unit else keys


@dataclass(frozen=True)
class InContext(Task):
    """Pairs (key, value) of floats, then queries: keys whose value is asked for (Garg et al., 2022, linear case).

    rule: "recall" gives every key a random value and asks for keys seen, each at most once. "regression" makes values
    linear in the keys and asks for new keys of the same distribution: W C^(-1/2) k, or with white=False W k, where
    W [V, K] is normal and drawn anew for every sequence and C is the keys' covariance, `random_roots`.
    white: the directions in which keys are short then matter as much as the others. It is what makes a large condition
    hard: with white=False those directions hardly show in the values, and any memory may neglect them.
    layout: "paired", x [B, pairs + queries, K + V + 1] with rows (k, v, 0), then (k, 0, 1);
    "interleaved", x [B, 2 pairs + queries, K + V] with rows (k, 0), (0, v), (k, 0), (0, v), ..., then (k, 0), and
    under "regression" the value is asked for at every key, before it is shown (the next-token error).
    noise: its standard deviation, added to the values in x; y stays clean. correlation, condition, unit: of the keys,
    see `random_keys`. With unit keys the entries of values have mean square 1, a few at large conditions if white.
    Raises ValueError or TypeError naming the setting that does not fit.
    """

    pairs: int = 64
    queries: int = 16
    K: int = 32
    V: int = 16
    rule: str = "recall"
    layout: str = "paired"
    correlation: float = 0.0
    condition: float = 1.0
    noise: float = 0.0
    unit: bool = True
    white: bool = True

    kind = "regress"
    inputs = "floats"
    vocab = None

    def __post_init__(self):
        check_choice("rule", self.rule, RULES)
        check_choice("layout", self.layout, LAYOUTS)
        check_switch("unit", self.unit)
        check_switch("white", self.white)
        for name in ("pairs", "K", "V"):
            check_count(name, getattr(self, name))
        check_count("queries", self.queries, 0 if self.asks_every_key else 1)
        if self.rule == "recall":
            check_count("queries", self.queries, 1, self.pairs)
        check_range("correlation", self.correlation, 0, 1, below=True)
        check_range("condition", self.condition, 1, np.inf)
        check_range("noise", self.noise, 0, np.inf)

    classes = property(lambda self: self.V)
    length = property(lambda self: self.pairs * (1 if self.layout == "paired" else 2) + self.queries)
    asks_every_key = property(lambda self: self.rule == "regression" and self.layout == "interleaved")

    def draw(self, B, rng):
        """A Batch with x [B, T, D] (see above), y [B, T, V]."""
        n, m, K, V = self.pairs, self.queries, self.K, self.V
        root, inverse = random_roots(rng, B, K, self.condition)
        keys = random_keys(rng, n + (m if self.rule == "regression" else 0), root, self.correlation, self.unit)
        if self.rule == "regression":
            W = rng.normal(size=(B, K, V))
            values = keys @ (inverse @ W if self.white else W)
        else:
            chosen = rng.permuted(np.tile(np.arange(n), (B, 1)), axis=1)[:, :m]
            rows = np.concatenate([np.tile(np.arange(n), (B, 1)), chosen], axis=1)[:, :, None]
            values = np.take_along_axis(rng.normal(size=(B, n, V)), rows, axis=1)
            keys = np.take_along_axis(keys, rows, axis=1)
        shown = values[:, :n] + self.noise * rng.normal(size=(B, n, V))
        x, y = np.zeros((B, self.length, K + V + (self.layout == "paired"))), np.zeros((B, self.length, V))
        mask = np.zeros((B, self.length), bool)
        at_key, at_value = (slice(n), slice(n)) if self.layout == "paired" else (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
        x[:, at_key, :K], x[:, self.length - m :, :K] = keys[:, :n], keys[:, n:]
        x[:, at_value, K : K + V] = shown
        x[:, self.length - m :, K + V :] = 1  # the flag of the paired layout; elsewhere there is no such column
        y[:, self.length - m :], mask[:, self.length - m :] = values[:, n:], True
        if self.asks_every_key:
            y[:, at_key], mask[:, at_key] = values[:, :n], True
        return Batch(x, y, mask)

    def show(self, batch, i=0):
        """Example i of a batch as text, a line a position: key | value, first entries only, and the answer if asked."""
        row, K = example(batch, i), self.K
        lines = []
        for x, y, asked in zip(*row[:3], strict=True):
            parts = [f"{some(x[:K])} | {some(x[K : K + self.V])}", f" -> {some(y)}" if asked else ""]
            lines.append("".join(parts))
        return "\n".join(lines)


def some(numbers, most=3):
    """The first few numbers as text."""
    return " ".join(f"{x:5.2f}" for x in numbers[:most]) + (" ..." if len(numbers) > most else "")
