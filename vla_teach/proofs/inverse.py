"""Sherman-Morrison and Woodbury, proved for every dimension, each beside a wrong twin that the same check refuses.

A check returns what is left of (left side) - (right side): 0 proves the identity.
"""

import sympy as sp

from vla_teach.proofs.words import matrices, rewrite

M, A, u, ut, w, wt, U, Ut, Y = matrices("M A u u^T w w^T U U^T Y")
a, b, c = sp.symbols("a b c", positive=True)  # u^T A u, u^T A w = w^T A u (A is symmetric), w^T A w

INVERSE = [(M * A, sp.S.One), (A * M, sp.S.One)]
SCALARS = [(ut * A * u, a), (ut * A * w, b), (wt * A * u, b), (wt * A * w, c)]
CAPACITANCE = [(Ut * A * U * Y, 1 - Y), (Y * Ut * A * U, 1 - Y)]  # Y is the inverse of I + U^T A U


def updated(A, u, ut, a):
    """Sherman-Morrison's right side, for an inverse A and a direction u with u^T A u = a."""
    return A - A * u * ut * A / (1 + a)


def sherman_morrison():
    """(M + u u^T) (A - A u u^T A / (1 + u^T A u)) - I."""
    return rewrite((M + u * ut) * updated(A, u, ut, a) - 1, INVERSE + SCALARS)


def sherman_morrison_without_one():
    """Wrong twin: the denominator u^T A u instead of 1 + u^T A u."""
    return rewrite((M + u * ut) * (A - A * u * ut * A / a) - 1, INVERSE + SCALARS)


def sherman_morrison_sign():
    """Wrong twin: plus instead of minus."""
    return rewrite((M + u * ut) * (A + A * u * ut * A / (1 + a)) - 1, INVERSE + SCALARS)


def woodbury():
    """(M + U U^T) (A - A U Y U^T A) - I, with Y the inverse of I + U^T A U."""
    return rewrite((M + U * Ut) * (A - A * U * Y * Ut * A) - 1, INVERSE + CAPACITANCE)


def woodbury_without_capacitance():
    """Wrong twin: Y left out, as if the columns of U were A-orthonormal."""
    return rewrite((M + U * Ut) * (A - A * U * Ut * A) - 1, INVERSE + CAPACITANCE)


def at_once():
    """Woodbury's right side for U = [u w], its 2 x 2 inverse written out."""
    small = sp.Matrix([[1 + a, b], [b, 1 + c]]).inv()
    return A - sum(small[i, j] * A * x * yt * A for i, x in enumerate((u, w)) for j, yt in enumerate((ut, wt)))


def two_steps():
    """Two Sherman-Morrison steps, along u and then w, minus one Woodbury step with U = [u w]."""
    first = updated(A, u, ut, a)
    second = rewrite(first - first * w * wt * first / (1 + c - b**2 / (1 + a)), SCALARS)
    return rewrite(second - at_once(), SCALARS)


def two_steps_apart():
    """Wrong twin: the second step made from A itself, as if the first had not happened."""
    apart = A - A * u * ut * A / (1 + a) - A * w * wt * A / (1 + c)
    return rewrite(apart - at_once(), SCALARS)


def sherman_morrison_entries(d):
    """The same identity entry by entry for width d, with a symmetric matrix of free symbols: the zero matrix [d, d]."""
    m = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"m{min(i, j)}{max(i, j)}"))
    x = sp.Matrix(d, 1, lambda i, _: sp.Symbol(f"u{i}"))
    inverse = m.inv()
    new = inverse - inverse * x * x.T * inverse / (1 + (x.T * inverse * x)[0])
    return ((m + x * x.T) * new - sp.eye(d)).applyfunc(sp.simplify)


PROOFS = {
    "lem-sherman-morrison": (sherman_morrison, [sherman_morrison_without_one, sherman_morrison_sign]),
    "lem-woodbury": (woodbury, [woodbury_without_capacitance]),
    "prop-rank-r": (two_steps, [two_steps_apart]),
}
