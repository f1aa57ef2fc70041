"""A real stream: the handwritten digits that scikit-learn ships, one at a time."""

from typing import NamedTuple

import numpy as np

from vla_teach.checks import as_floats, check_count
from vla_teach.reference import unit_rows


class Digits(NamedTuple):
    """Keys of length 1 from the pixels; values one-hot, a column a digit."""

    images: np.ndarray  # [T, 8, 8], grey levels 0 to 16
    labels: np.ndarray  # [T]
    k: np.ndarray  # [T, 64]
    v: np.ndarray  # [T, 10]


def digits_stream(n_train=1300, seed=0):
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


def accuracy(S, test):
    """The share of test images whose largest recalled value S k [10] is that of their digit. S [10, 64]."""
    (S,) = as_floats(S=S)
    if S.shape != (10, 64):
        raise ValueError(f"S has shape {S.shape}; expected [V, K] = (10, 64)")
    return float(np.mean(np.argmax(test.k @ S.T, axis=1) == test.labels))
