"""What a formula costs, counted by running it; and what one GPU can do, to set against the count."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Gpu(NamedTuple):
    """What a GPU can do at most. An operation is one addition or multiplication, of dense matrices."""

    multiprocessors: int
    registers: int  # of 32 bits, in each multiprocessor
    clock: float  # ticks a second
    bandwidth: float  # bytes a second, from and to the large memory
    bfloat16: float  # operations a second on the tensor cores
    tf32: float  # the same, of float32 numbers rounded to 10 bits behind the point
    float32: float  # operations a second without tensor cores


# NVIDIA H100 Tensor Core GPU data sheet, H100 SXM: bandwidth and rates. It gives the tensor cores' rates with
# sparsity, which are twice these. Multiprocessors, registers and clock: NVIDIA H100 Tensor Core GPU Architecture.
H100 = Gpu(
    multiprocessors=132,
    registers=65536,
    clock=1.98e9,
    bandwidth=3.35e12,
    bfloat16=989e12,
    tf32=494e12,
    float32=67e12,
)


class Counting(np.ndarray):
    """An array whose matrix products add to `Counting.times`; results are such arrays too."""

    times, __array_priority__ = 0, 1

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(x) for x in inputs]
        if out:
            options["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counting.times += np.size(result) * plain[0].shape[-1]
        return out[0] if out else np.asarray(result).view(Counting)


def multiplications(work: Callable[..., Any], *arrays: ArrayLike) -> int:
    """How many multiplications the matrix products in work(*arrays) take; other operations are not counted."""
    Counting.times = 0
    work(*(np.asarray(x).view(Counting) for x in arrays))
    return Counting.times
