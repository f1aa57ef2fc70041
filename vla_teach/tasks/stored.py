"""Tasks whose examples are a fixed set: batches are drawn from it, and all of it can be had in order."""

from dataclasses import dataclass

import numpy as np

from vla_teach.checks import check_count, check_number
from vla_teach.tasks.base import Task, classified, example


@dataclass(frozen=True, eq=False, repr=False)
class Examples(Task):
    """Sequences of bytes, each with one class, asked at the last token.

    rows: one bytes object an example, or a tuple of `parts` of them; labels [N].
    part_length: the tokens of a part, cut or padded with 0; T = parts * part_length.
    offset: added to every byte; 1 where a byte 0 is not padding. glyphs: how `show` writes tokens, or None for numbers.
    Made by the readers of `vla_teach.tasks.lra` and by `digit_sequences`.
    """

    rows: list
    labels: np.ndarray
    part_length: int
    vocab: int
    classes: int
    parts: int = 1
    offset: int = 0
    glyphs: tuple | None = None

    kind = "classify"

    length = property(lambda self: self.parts * self.part_length)

    def __len__(self):
        return len(self.rows)

    def draw(self, B, rng):
        """A Batch of B different examples. Raises ValueError if there are fewer."""
        check_count("B", B, 1, len(self))
        return self.pick(rng.choice(len(self), B, replace=False))

    def pick(self, indices):
        """The examples with these indices [B], in this order, as a Batch with x, y [B, T]."""
        x, lengths = np.zeros((len(indices), self.length), int), []
        for row, index in zip(x, indices, strict=True):
            parts = self.rows[index] if self.parts > 1 else (self.rows[index],)
            for start, part in zip(range(0, self.length, self.part_length), parts, strict=True):
                tokens = np.frombuffer(part, np.uint8)[: self.part_length].astype(int) + self.offset
                row[start : start + len(tokens)] = tokens
            lengths.append(start + len(tokens))
        return classified(x, self.labels[np.asarray(indices)], np.maximum(lengths, 1))

    def split(self, share, seed=0):
        """Two Examples that share none: a random `share` of them, in (0, 1), and the rest.

        Raises ValueError or TypeError if share or seed does not fit, or a side would be empty.
        """
        check_count("seed", seed, 0)
        first = round(check_number("share", share) * len(self))
        if not 0 < first < len(self):
            raise ValueError(f"share is {share}; expected a number in (0, 1) that leaves both sides an example")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.only(order[:first]), self.only(order[first:])

    def only(self, indices):
        """The examples with these indices, as Examples."""
        fields = vars(self) | dict(rows=[self.rows[i] for i in indices], labels=self.labels[np.asarray(indices)])
        return Examples(**fields)

    def show(self, batch, i=0):
        """Example i of a batch as text: its tokens as far as the answer is asked, and its class."""
        row = example(batch, i)
        tokens = row.x[: row.mask.argmax() + 1].tolist()
        text = " ".join(map(str, tokens)) if self.glyphs is None else "".join(self.glyphs[t] for t in tokens)
        return f"{text} = {row.y[row.mask][0]}"
