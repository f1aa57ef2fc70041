"""Arrays that count the multiplications of their matrix products: what a formula costs, by running it."""

import numpy as np


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


def multiplications(work, *arrays):
    """How many multiplications the matrix products in work(*arrays) take; other operations are not counted."""
    Counting.times = 0
    work(*(np.asarray(x).view(Counting) for x in arrays))
    return Counting.times
