"""Checks of what a caller hands in: each error names the argument and says what was expected."""

import numpy as np

GAINS = ("unit", "interpolate", "least_squares")


def as_floats(**arrays):
    """Turn every argument into an array of one float dtype and refuse what is not finite.

    float32 stays float32 if every array has it; all else (integers, mixed widths) becomes float64.
    Raises TypeError for other dtypes, ValueError for NaN or infinity; both name the argument.
    """
    out = {name: np.asarray(x) for name, x in arrays.items()}
    for name, x in out.items():
        if x.dtype.kind not in "iubf" or x.dtype == np.float16:
            raise TypeError(f"{name} has dtype {x.dtype}; expected float32, float64 or integers")
    dtype = np.float32 if all(x.dtype == np.float32 for x in out.values()) else np.float64
    for name, x in out.items():
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
        out[name] = x.astype(dtype, copy=False)
    return out.values()


def check_qkv(q, k, v):
    """q, k [T, K] and v [T, V]; returns them with one float dtype."""
    q, k, v = as_floats(q=q, k=k, v=v)
    for name, x in (("k", k), ("q", q), ("v", v)):
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}; expected two dimensions, [T, width], none of them 0")
    if q.shape != k.shape:
        raise ValueError(f"q has shape {q.shape}; expected that of k, [T, K] = {k.shape}")
    if len(v) != len(k):
        raise ValueError(f"v has {len(v)} rows; expected one a token, T = {len(k)}")
    return q, k, v


def check_directions(u, k):
    """u [T, K] or [T, R, K]; returns it as [T, R, K] in the dtype of k."""
    (u,) = as_floats(u=u)
    T, K = k.shape
    rows = u[:, None, :] if u.ndim == 2 else u
    if rows.ndim != 3 or rows.shape[0] != T or rows.shape[2] != K or rows.shape[1] == 0:
        raise ValueError(f"u has shape {u.shape}; expected [T, K] = [{T}, {K}] or [T, R, K] = [{T}, R, {K}]")
    return rows.astype(k.dtype, copy=False)


def check_lambda(lambda_0):
    """A finite number above 0."""
    try:
        value = float(lambda_0)
    except (TypeError, ValueError):
        raise TypeError(f"lambda_0 is {lambda_0!r}; expected one number above 0") from None
    if not (0 < value < np.inf):
        raise ValueError(f"lambda_0 is {value}; expected a finite number above 0")
    return value


def check_beta(beta, k):
    """beta [T] with entries in [0, 1], or None for all ones; returns [T] in the dtype of k."""
    T = len(k)
    if beta is None:
        return np.ones(T, k.dtype)
    (beta,) = as_floats(beta=beta)
    if beta.shape != (T,):
        raise ValueError(f"beta has shape {beta.shape}; expected one number a token, [T] = [{T}]")
    if beta.min() < 0 or beta.max() > 1:
        raise ValueError(f"beta runs from {beta.min():.3g} to {beta.max():.3g}; expected numbers in [0, 1]")
    return beta.astype(k.dtype, copy=False)


def check_gain(gain):
    """One of GAINS."""
    if not isinstance(gain, str) or gain not in GAINS:
        raise ValueError(f"gain is {gain!r}; expected one of {', '.join(GAINS)}")
    return gain


def check_chunk_size(chunk_size):
    """A whole number above 0."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, (int, np.integer)) or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}; expected a whole number above 0")
    return int(chunk_size)


def check_part(state, part, shape, dtype):
    """One part (S or A, say) of an initial state, as a fresh array [shape] of dtype."""
    value = getattr(state, part, None)
    if value is None:
        raise ValueError(f"initial_state has no {part}; expected the state that the same memory returned")
    (value,) = as_floats(**{f"initial_state.{part}": value})
    if value.shape != shape:
        raise ValueError(f"initial_state.{part} has shape {value.shape}; expected {shape}")
    return value.astype(dtype, copy=True)
