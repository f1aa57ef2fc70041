"""Streams of keys and values for the pictures, drawn alike by Python and by the page's own script.

NumPy's generator has no twin in the browser, so these draws come from a short integer hash that has
(`book/_static/memory.js`): the static page at some setting of its sliders shows exactly what Python shows.
For anything but pictures use `numpy.random`.
"""

from typing import NamedTuple

import numpy as np

from vla_teach.checks import check_count, check_number
from vla_teach.reference import unit_rows

DIRECTIONS = ("projected", "along the key")


class Stream(NamedTuple):
    """Keys of length 1, values of length 1, penalty directions u, one row a token."""

    k: np.ndarray  # [T, K]
    v: np.ndarray  # [T, V]
    u: np.ndarray  # [T, K]


def uniform(shape: tuple[int, ...], seed: int, lane: int) -> np.ndarray:
    """Numbers strictly between 0 and 1: a counter, mixed by the last step of MurmurHash3. seed, lane: integers."""
    x = np.arange(1, np.prod(shape) + 1, dtype=np.uint32)
    with np.errstate(over="ignore"):  # 32-bit wrap-around is meant
        x = (
            x * np.uint32(0x9E3779B9)
            + np.uint32(seed) * np.uint32(0x85EBCA77)
            + np.uint32(lane) * np.uint32(0xC2B2AE3D)
        )
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return ((x + 0.5) / 2**32).reshape(shape)


def normal(shape: tuple[int, ...], seed: int, lane: int) -> np.ndarray:
    """Standard normal numbers by Box and Muller, from lanes 2 lane and 2 lane + 1."""
    radius = np.sqrt(-2 * np.log(uniform(shape, seed, 2 * lane)))
    return radius * np.cos(2 * np.pi * uniform(shape, seed, 2 * lane + 1))


def correlated_stream(
    T: int, K: int, V: int = 16, correlation: float = 0.0, direction: str = "projected", seed: int = 0
) -> Stream:
    """T pairs whose keys share a common part: the mean cosine between two keys is near `correlation`, in [0, 1).

    direction: "projected" gives the paper's u = W k / (|W k| sqrt(K)) with one random W (trained in a real model);
    "along the key" gives u = k. Returns a Stream. Raises ValueError naming the argument that does not fit.
    """
    for name, value, least in (("T", T, 1), ("K", K, 1), ("V", V, 1), ("seed", seed, 0)):
        check_count(name, value, least)
    if not 0 <= check_number("correlation", correlation) < 1:
        raise ValueError(f"correlation is {correlation!r}; expected a number in [0, 1)")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; expected one of {', '.join(DIRECTIONS)}")
    shared, own = normal((1, K), seed, 0), normal((T, K), seed, 1)
    shared = unit_rows(shared) * np.sqrt(K)
    k = unit_rows(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    v = unit_rows(normal((T, V), seed, 2))
    if direction == "along the key":
        return Stream(k, v, k)
    return Stream(k, v, unit_rows(k @ normal((K, K), seed, 3).T) / np.sqrt(K))
