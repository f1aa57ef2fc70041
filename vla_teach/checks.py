"""Checks of what a caller hands in: each error names the argument and says what was expected."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray  # of floats, where nothing else is said
Gain = Literal["unit", "interpolate", "least_squares"]
GAINS = ("unit", "interpolate", "least_squares")


def as_floats(**arrays: Any) -> list[Array]:
    """Turn every argument into an array of one float dtype and refuse what is not finite.

    float32 stays float32 if every array has it; all else (integers, mixed widths) becomes float64.
    Raises TypeError for other dtypes, ValueError for ragged lists, NaN or infinity; all name the argument.
    """
    out = {name: as_array(name, x) for name, x in arrays.items()}
    for name, x in out.items():
        if x.dtype.kind not in "iuf" or x.dtype == np.float16:
            raise TypeError(f"{name} has dtype {x.dtype}; expected float32, float64 or integers")
    dtype = np.float32 if all(x.dtype == np.float32 for x in out.values()) else np.float64
    return [cast(name, x, dtype) for name, x in out.items()]


def as_array(name: str, x: Any) -> Array:
    """x as an array, refused where NumPy can make none of it."""
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} is not one array; expected rows of equal length") from None


def cast(name: str, x: Array | np.floating, dtype: DTypeLike) -> Array:
    """x in another float dtype, refused where it is, or becomes, NaN or infinite."""
    with np.errstate(over="ignore"):
        x = x.astype(dtype, copy=False)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity (as {np.dtype(dtype)}); expected finite numbers")
    return x


def check_qkv(q: ArrayLike, k: ArrayLike, v: ArrayLike) -> tuple[Array, Array, Array]:
    """q, k [T, K] and v [T, V]; returns them with one float dtype."""
    q, k, v = as_floats(q=q, k=k, v=v)
    for name, x in (("k", k), ("q", q), ("v", v)):
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}; expected two dimensions, [T, width], none of them 0")
    if q.shape != k.shape:
        raise ValueError(f"q has shape {q.shape}; expected that of k, [T, K] = {k.shape}")
    if len(v) != len(k):
        raise ValueError(f"v has {len(v)} rows; expected one a token, T = {len(k)}")
    check_lengths("k", k)
    return q, k, v


def check_lengths(name: str, rows: Array) -> None:
    """Every row [..., K] has a length that its dtype can hold."""
    with np.errstate(over="ignore"):
        if not np.isfinite(np.sum(rows * rows, axis=-1)).all():
            raise ValueError(f"{name} has a row whose length is beyond {rows.dtype}; expected smaller numbers")


def check_directions(u: ArrayLike, k: Array) -> Array:
    """u [T, K] or [T, R, K]; returns it as [T, R, K] in the dtype of k."""
    (u,) = as_floats(u=u)
    T, K = k.shape
    rows = u[:, None, :] if u.ndim == 2 else u
    if rows.ndim != 3 or rows.shape[0] != T or rows.shape[2] != K or rows.shape[1] == 0:
        raise ValueError(f"u has shape {u.shape}; expected [T, K] = [{T}, {K}] or [T, R, K] = [{T}, R, {K}]")
    rows = cast("u", rows, k.dtype)
    check_lengths("u", rows)
    return rows


def check_number(name: str, value: Any) -> float:
    """One finite number, as a float."""
    array = as_array(name, value)
    if array.ndim or array.dtype.kind not in "iuf":
        raise TypeError(f"{name} is {value!r}; expected one number")
    if not np.isfinite(array):
        raise ValueError(f"{name} is {value}; expected a finite number")
    return float(array)


def check_lambda(lambda_0: float | np.floating, dtype: np.dtype) -> np.floating:
    """A finite number above 0 whose inverse dtype can hold too."""
    number = check_number("lambda_0", lambda_0)
    with np.errstate(all="ignore"):
        value = dtype.type(number)
        inverse = 1 / value
    if not (0 < value < np.inf and 0 < inverse < np.inf):
        raise ValueError(f"lambda_0 is {lambda_0}; expected a number above 0 that, like its inverse, {dtype} can hold")
    return value


def check_beta(beta: ArrayLike | None, k: Array) -> Array:
    """beta [T] with entries in [0, 1], or None for all ones; returns [T] in the dtype of k."""
    T = len(k)
    if beta is None:
        return np.ones(T, k.dtype)
    (beta,) = as_floats(beta=beta)
    if beta.shape != (T,):
        raise ValueError(f"beta has shape {beta.shape}; expected one number a token, [T] = [{T}]")
    if beta.min() < 0 or beta.max() > 1:
        raise ValueError(f"beta runs from {beta.min():.3g} to {beta.max():.3g}; expected numbers in [0, 1]")
    return cast("beta", beta, k.dtype)


def check_gain(gain: Gain) -> Gain:
    """One of GAINS."""
    if not isinstance(gain, str) or gain not in GAINS:
        raise ValueError(f"gain is {gain!r}; expected one of {', '.join(GAINS)}")
    return gain


def check_count(name: str, value: Any, least: int = 1, most: int = 2**32 - 1) -> int:
    """A whole number from least to most."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {least} to {most}")
    return int(value)


def check_part(state: Any, part: str, shape: tuple[int | None, ...], dtype: DTypeLike) -> Array:
    """One part (S or A, say) of an initial state, as a fresh array of dtype; None in shape stands for any length."""
    value = getattr(state, part, None)
    if value is None or callable(value):
        raise ValueError(f"initial_state has no {part}; expected the State that the same memory returned")
    name = f"initial_state.{part}"
    (value,) = as_floats(**{name: value})
    if value.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, value.shape, strict=True)):
        raise ValueError(f"{name} has shape {value.shape}; expected {shape}")
    return cast(name, value, dtype).copy()


def check_inverse(state: Any, K: int, dtype: DTypeLike) -> Array:
    """A [K, K] of an initial state: symmetric (to rounding) and positive definite, as a fresh array."""
    A = check_part(state, "A", (K, K), dtype)
    try:
        np.linalg.cholesky(A)
        symmetric = np.abs(A - A.T).max() <= 1e-3 * np.abs(A).max() and np.isfinite(np.linalg.inv(A)).all()
    except np.linalg.LinAlgError:
        symmetric = False
    if not symmetric:
        raise ValueError("initial_state.A is not symmetric and positive definite; expected the inverse of a penalty")
    return A
