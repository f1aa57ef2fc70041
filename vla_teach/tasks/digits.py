"""Real data: the handwritten digits that scikit-learn ships, as a stream of pairs and as sequences of pixels."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vla_teach.checks import as_floats, check_count
from vla_teach.reference import unit_rows
from vla_teach.tasks.base import SHADES, Task, check_choice, example
from vla_teach.tasks.stored import Examples

SPLITS = dict(train=slice(1100), val=slice(1100, 1300), test=slice(1300, None))


class Digits(NamedTuple):
    """Keys of length 1 from the pixels; values one-hot, a column a digit."""

    images: np.ndarray  # [T, 8, 8], grey levels 0 to 16
    labels: np.ndarray  # [T]
    k: np.ndarray  # [T, 64]
    v: np.ndarray  # [T, 10]


def digits_stream(n_train: int = 1300, seed: int = 0) -> tuple[Digits, Digits]:
    """1797 images of 8 x 8 pixels (Alpaydin and Kaynak, 1998), shuffled by seed: n_train to learn, the rest to test.

    Returns (train, test), both Digits. Needs scikit-learn. Raises ValueError if n_train leaves nothing on one side.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    total = len(data.target)
    check_count("n_train", n_train, 1, total - 1)
    check_count("seed", seed, 0)
    order = np.random.default_rng(seed).permutation(total)
    images, labels = data.images[order], data.target[order]
    k, v = unit_rows(images.reshape(total, 64)), np.eye(10)[labels]
    train, test = ((images[s], labels[s], k[s], v[s]) for s in (slice(n_train), slice(n_train, None)))
    return Digits(*train), Digits(*test)


def accuracy(S: ArrayLike, test: Digits) -> float:
    """The share of test images whose largest recalled value S k [10] is that of their digit. S [10, 64].

    Raises ValueError or TypeError where S is another thing.
    """
    (S,) = as_floats(S=S)
    if S.shape != (10, 64):
        raise ValueError(f"S has shape {S.shape}; expected [V, K] = (10, 64)")
    return float(np.mean(np.argmax(test.k @ S.T, axis=1) == test.labels))


@dataclass(frozen=True)
class DigitSequences(Task):
    """Every digit as 64 pixels, row by row, grey levels 0 to 16: which digit is it? Asked at the last pixel.

    A small stand-in for sequential image classification (Le, Jaitly and Hinton, 2015), and not one of LRA's tasks.
    split: "train" (1100 images), "val" (200) or "test" (497, those of `digits_stream(1300, shuffle)`).
    shuffle: the seed of the split. Needs scikit-learn. Raises ValueError naming the setting that does not fit.
    """

    split: str = "train"
    shuffle: int = 0

    kind = "classify"
    vocab = 17
    classes = 10
    length = 64

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_count("shuffle", self.shuffle, 0)

    examples = property(lambda self: digit_examples(self.split, self.shuffle))

    def draw(self, B, rng):
        """A Batch of B different images, x, y [B, 64]. `examples.pick(range(...))` gives them in order."""
        return self.examples.draw(B, rng)

    def show(self, batch, i=0):
        """Example i of a batch as text, a character a pixel, and its class."""
        row = example(batch, i)
        lines = ["".join(SHADES[level * 9 // 16] for level in line) for line in row.x.reshape(8, 8)]
        return "\n".join([*lines, f"digit: {row.y[-1]}"])


@cache
def digit_examples(split, shuffle):
    """The images of one split as Examples."""
    train, test = digits_stream(1300, shuffle)
    images, labels = (np.concatenate([train[part], test[part]])[SPLITS[split]] for part in (0, 1))
    return Examples(list(images.reshape(-1, 64).astype(np.uint8)), labels, part_length=64, vocab=17, classes=10)
