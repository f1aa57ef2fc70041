"""The parallel prefix scan (Blelloch's two sweeps), and the memory's steps as affine maps for it to compose.

A teaching form: chapters count and draw with it, kernels do not use it. Shapes: k, g [T, K], v [T, V], S [V, K].
"""

from collections.abc import Callable

import numpy as np

from vla_teach.checks import Array

Steps = tuple[Array, ...]  # what each of some steps does, one entry a step
Combine = Callable[[Steps, Steps], Steps]


def prefix(steps: Steps, combine: Combine, nothing: Steps) -> Steps:
    """What all the steps before each one amount to, in 2 log2 T rounds.

    steps: a tuple of arrays [T, ...], whose entries t say what step t does; T a power of two.
    combine(first, second): two such tuples in, one out: each step of the first, and then the
    one of the second. It must be associative. nothing: the step that changes nothing.
    Returns a tuple of arrays like steps. All of a round could be done at the same time.
    Raises ValueError where T is no power of two.
    """
    tree = tuple(x.copy() for x in steps)
    T, far = len(tree[0]), 1
    if T & (T - 1):
        raise ValueError(f"there are {T} steps; expected a power of two")
    while far < T:  # up: every second node takes in the one to its left
        left, right = slice(far - 1, T, 2 * far), slice(2 * far - 1, T, 2 * far)
        put(tree, right, combine(at(tree, left), at(tree, right)))
        far *= 2
    put(tree, -1, nothing)
    while far > 1:  # down: to the left what came before, to the right that and then the left
        far //= 2
        left, right = slice(far - 1, T, 2 * far), slice(2 * far - 1, T, 2 * far)
        before, half = at(tree, right), at(tree, left)
        put(tree, left, before)
        put(tree, right, combine(before, half))
    return tree


def at(tree: Steps, where: slice | int) -> Steps:
    """Copies of the entries `where` of each array."""
    return tuple(x[where].copy() for x in tree)


def put(tree: Steps, where: slice | int, values: Steps) -> None:
    """Write those entries."""
    for x, value in zip(tree, values, strict=True):
        x[where] = value


def compose(first: Steps, second: Steps) -> Steps:
    """S -> S P1 + Q1 and then S -> S P2 + Q2, in one. P [..., K, K], Q [..., V, K]."""
    (P1, Q1), (P2, Q2) = first, second
    return P1 @ P2, Q1 @ P2 + Q2


def as_maps(k: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """Each write S -> S + (v - S k) g^T as a pair P [T, K, K], Q [T, V, K]."""
    k, v, g = k[:, :, None], v[:, :, None], g[:, None, :]  # columns, columns, rows
    return np.eye(k.shape[1]) - k * g, v * g


def scan_states(k: Array, v: Array, g: Array, S: Array, combine: Combine = compose) -> Array:
    """S_t after every token [T, V, K], by a scan of all the maps; any T (steps that do nothing fill it up)."""
    T, nothing = len(k), (np.eye(k.shape[1]), np.zeros(S.shape))
    padded = 2 ** int(np.ceil(np.log2(T)))
    maps = tuple(
        np.concatenate([x, np.broadcast_to(n, (padded - T, *n.shape))])
        for x, n in zip(as_maps(k, v, g), nothing, strict=True)
    )
    P, Q = prefix(maps, combine, nothing)
    S = S @ P[:T] + Q[:T]  # before each token
    return S + (v - (S @ k[:, :, None])[..., 0])[:, :, None] * g[:, None, :]
