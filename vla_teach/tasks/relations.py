"""Symbolic relations: who is whose ancestor, and does that follow from the facts given?"""

from dataclasses import dataclass

import numpy as np

from vla_teach.checks import check_count
from vla_teach.tasks.base import Task, balanced, check_range, classified, example, without_replacement

ASK = 0  # the token before the query; entities count from 1


@dataclass(frozen=True)
class Relations(Task):
    """Facts "p is a parent of c" in chains of 4, in random order, then a query "is s an ancestor of t?": yes 1, no 0.

    Each of `chains` chains links facts + 1 entities a_0 -> a_1 -> ...; all entities differ and have random names.
    x [B, T]: parent, child of every fact, then ASK, s, t; so T = 2 chains facts + 3, and the answer is asked at t.
    Yes: s = a_i, t = a_j of one chain, j - i >= hops (2, so that no fact is the answer itself).
    No: one in two (a share `reversed_share`) asks for such a pair the wrong way round; the others take s = a_i and
    t = b_j from two chains. Every pair (i, j) is equally likely, in both classes. Classes are balanced.

    A model that looks only at whether s is ever a parent and t ever a child is right in 17 of 24 cases at the default
    settings, as most reversed pairs hold an end of the chain: that, not 1/2, is the score to beat.

    W [B, T, T] in the Batch is D^(-1/2) A D^(-1/2): A_ij = 1 where the entities at positions i and j are the same or
    linked by a fact, D its row sums; the row and column of ASK are 0. It is symmetric; for a causal model keep j <= i.
    It joins facts, not ancestors, so it does not hold the answer; but it tells apart the chains.
    The task is the project's own, after the description of "symbolic reasoning" in arXiv 2605.11196.
    Raises ValueError or TypeError naming the setting that does not fit.
    """

    chains: int = 2
    facts: int = 4
    entities: int = 64
    hops: int = 2
    reversed_share: float = 0.5

    kind = "classify"
    classes = 2

    def __post_init__(self):
        check_count("chains", self.chains, 2)
        check_count("facts", self.facts)
        check_count("entities", self.entities, self.chains * (self.facts + 1))
        check_count("hops", self.hops, 1, self.facts)
        check_range("reversed_share", self.reversed_share, 0, 1)

    vocab = property(lambda self: 1 + self.entities)
    length = property(lambda self: 2 * self.chains * self.facts + 3)

    def draw(self, B, rng):
        """A Batch with x, y [B, T], W [B, T, T]."""
        chains, links = self.chains, self.facts
        names = 1 + without_replacement(rng, B, chains * (links + 1), self.entities).reshape(B, chains, links + 1)
        facts = np.stack([names[:, :, :-1], names[:, :, 1:]], axis=-1).reshape(B, chains * links, 2)
        facts = np.take_along_axis(facts, without_replacement(rng, B, chains * links, chains * links)[:, :, None], 1)
        labels = balanced(rng, B)
        above, below = np.triu_indices(links + 1, self.hops)
        pair = rng.integers(0, len(above), B)
        first = rng.integers(0, chains, B)
        other = (first + rng.integers(1, chains, B)) % chains
        # How each example asks: 1 truly, and of the others a share reversed, the rest across.
        wrong_way = (labels == 0) & (share_of(rng, labels == 0, self.reversed_share))
        second = np.where((labels == 0) & ~wrong_way, other, first)
        i, j = np.where(wrong_way, (below[pair], above[pair]), (above[pair], below[pair]))
        rows = np.arange(B)
        query = np.stack([np.full(B, ASK), names[rows, first, i], names[rows, second, j]], axis=1)
        x = np.concatenate([facts.reshape(B, -1), query], axis=1)
        return classified(x, labels)._replace(W=relation_matrix(x, facts))

    def show(self, batch, i=0):
        """Example i of a batch as text: "3>7 ... 3>9? yes"."""
        x, y = example(batch, i)[:2]
        facts = " ".join(f"{p}>{c}" for p, c in x[:-3].reshape(-1, 2))
        return f"{facts}  {x[-2]}>{x[-1]}? {('no', 'yes')[y[-1]]}"


def share_of(rng, members, share):
    """[B] true for a random share of the members [B], to the nearest whole number."""
    where = rng.permutation(np.flatnonzero(members))
    chosen = np.zeros(len(members), bool)
    chosen[where[: round(share * len(where))]] = True
    return chosen


def relation_matrix(x, facts):
    """W [B, T, T] for tokens x [B, T] and facts [B, n, 2], as in `Relations`."""
    parent, child = (x[:, :, None] == facts[:, None, :, end] for end in (0, 1))  # [B, T, n]
    linked = parent @ child.transpose(0, 2, 1)
    same = (x[:, :, None] == x[:, None, :]) & (x != ASK)[:, :, None]
    A = (linked | linked.transpose(0, 2, 1) | same).astype(float)
    scale = 1 / np.sqrt(np.maximum(A.sum(axis=2), 1))
    return A * scale[:, :, None] * scale[:, None, :]
