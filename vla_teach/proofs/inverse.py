"""Statements of "An inverse that keeps up": Sherman-Morrison and Woodbury, for every dimension."""

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, above, apart
from vla_teach.proofs.words import matrices, rewrite

M, A, u, ut, w, wt, U, Ut, Y, x, xt = matrices("M A u u^T w w^T U U^T Y x x^T")
a, b, c = sp.symbols("a b c", positive=True)  # u^T A u, u^T A w = w^T A u (A is symmetric), w^T A w

INVERSE = [(M * A, sp.S.One), (A * M, sp.S.One)]
SCALARS = [(ut * A * u, a), (ut * A * w, b), (wt * A * u, b), (wt * A * w, c)]
CAPACITANCE = [(Ut * A * U * Y, 1 - Y), (Y * Ut * A * U, 1 - Y)]  # Y is the inverse of I + U^T A U
MATHLIB = "https://leanprover-community.github.io/mathlib4_docs/Mathlib/LinearAlgebra/Matrix"


def sherman_morrison(sign=-1, one=1):
    """(M + u u^T) (A - A u u^T A / (1 + u^T A u)) - I."""
    return rewrite((M + u * ut) * (A + sign * A * u * ut * A / (one + a)) - 1, INVERSE + SCALARS)


def sherman_morrison_entries(d):
    """The same identity entry by entry for width d, with a symmetric matrix of free symbols: the zero matrix [d, d]."""
    m = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"m{min(i, j)}{max(i, j)}"))
    direction = sp.Matrix(d, 1, lambda i, _: sp.Symbol(f"u{i}"))
    inverse = m.inv()
    new = inverse - inverse * direction * direction.T * inverse / (1 + (direction.T * inverse * direction)[0])
    return ((m + direction * direction.T) * new - sp.eye(d)).applyfunc(sp.simplify)


def sherman_morrison_measured(x, sign=-1, one=1):
    """Every step of a stream of directions, against the inverse of the sum."""
    A, w = x.A, x.rng.normal(size=x.k.shape[1])
    new = A + sign * np.outer(A @ w, A @ w) / (one + w @ A @ w)
    return max(
        apart(np.linalg.inv(x.M + np.outer(w, w)), new), apart(reference.sherman_morrison(A, w), new) if one else 0
    )


def denominator(sign=1):
    """x^T (M + u u^T) x - x^T M x - (u^T x)^2, and u^T A u - (A u)^T M (A u): both are squares in disguise."""
    s, r = sp.symbols("s r")
    new = rewrite(xt * (M + sign * u * ut) * x - xt * M * x, [(xt * u, s), (ut * x, s)]) - s**2
    square = rewrite(r * ut * A * u - r * ut * A * M * A * u, [(M * A, sp.S.One)])
    return [sp.expand(new), square]


def denominator_measured(x, sign=1):
    """The denominator is at least 1, and the new inverse has no eigenvalue at or below 0."""
    A, w = x.A, 3 * x.rng.normal(size=x.k.shape[1])
    new = A - sign * np.outer(A @ w, A @ w) / (1 + sign * w @ A @ w)
    smallest = np.linalg.eigvalsh((new + new.T) / 2)[0]
    return max(above(1, 1 + sign * w @ A @ w), 0.0 if smallest > 0 else 1.0)


def woodbury(capacitance=True):
    """(M + U U^T) (A - A U Y U^T A) - I, with Y the inverse of I + U^T A U."""
    middle = Y if capacitance else 1
    return rewrite((M + U * Ut) * (A - A * U * middle * Ut * A) - 1, INVERSE + CAPACITANCE)


def woodbury_measured(x, capacitance=True):
    """Up to eight directions at once, against the inverse of the sum."""
    U, A, one = x.k.T, x.A, np.eye(len(x.k))
    inner = np.linalg.inv(one + U.T @ A @ U) if capacitance else one
    return apart(A - A @ U @ inner @ U.T @ A, np.linalg.inv(x.M + U @ U.T))


def updated(A, u, ut, a):
    """Sherman-Morrison's right side, for an inverse A and a direction u with u^T A u = a."""
    return A - A * u * ut * A / (1 + a)


def two_steps(second=1):
    """Two Sherman-Morrison steps, along u and then w, minus one Woodbury step with U = [u w], all written out.

    second=0: the second step is made from A itself, as if the first had not happened.
    """
    small = sp.Matrix([[1 + a, b], [b, 1 + c]]).inv()
    at_once = A - sum(small[i, j] * A * x * yt * A for i, x in enumerate((u, w)) for j, yt in enumerate((ut, wt)))
    first = updated(A, u, ut, a)
    if second:
        after = rewrite(first - first * w * wt * first / (1 + c - b**2 / (1 + a)), SCALARS)
    else:
        after = first - A * w * wt * A / (1 + c)
    return rewrite(after - at_once, SCALARS)


def two_steps_measured(x, second=1):
    """Directions one by one, in order and in reverse, against Woodbury with all of them."""
    U, A = x.k.T, x.A
    wanted = A - A @ U @ np.linalg.inv(np.eye(len(x.k)) + U.T @ A @ U) @ U.T @ A
    found = []
    for rows in (x.k, x.k[::-1]):
        new = A
        for row in rows:
            new = reference.sherman_morrison(new, row) if second else new + reference.sherman_morrison(A, row) - A
        found.append(apart(new, wanted))
    return max(found)


STATEMENTS = (
    Statement(
        label="lem-sherman-morrison",
        title="Sherman-Morrison",
        given=r"$M$ symmetric and invertible, $1 + u^\top A u \ne 0$",
        says=r"(M + u u^\top)^{-1} = A - \frac{(A u)(A u)^\top}{1 + u^\top A u} .",
        symbols=sherman_morrison,
        numbers=sherman_morrison_measured,
        twins={"without the 1": dict(one=0), "plus for minus": dict(sign=1)},
        links=(("Mathlib", f"{MATHLIB}/ShermanMorrison.html#Matrix.inv_add_vecMulVec"),),
    ),
    Statement(
        label="lem-denominator",
        title="The denominator",
        given=r"$A$ positive definite",
        says=r"1 + u^\top A u \ge 1",
        symbols=denominator,
        numbers=denominator_measured,
        by_hand=(
            r"a square is not negative; symbols show that both differences are squares, of $A u$ in the norm of "
            r"$M$ and of $u^\top x$"
        ),
        twins={"u taken away instead of added": dict(sign=-1)},
    ),
    Statement(
        label="lem-woodbury",
        title="Woodbury",
        given=r"$M$ symmetric and invertible, $I_r + U^\top A U$ invertible",
        says=r"(M + U U^\top)^{-1} = A - A U \,(I_r + U^\top A U)^{-1}\, U^\top A .",
        symbols=woodbury,
        numbers=woodbury_measured,
        twins={"the small inverse left out": dict(capacitance=False)},
        links=(("Mathlib", f"{MATHLIB}/NonsingularInverse.html#Matrix.add_mul_mul_inv_eq_sub"),),
    ),
    Statement(
        label="prop-rank-r",
        title="Rank r is r rank-1 steps",
        given=r"$M$ positive definite",
        says=r"A^{(r)} = A - A U \,(I_r + U^\top A U)^{-1}\, U^\top A , \qquad U = [u_1 \cdots u_r] .",
        symbols=two_steps,
        numbers=two_steps_measured,
        by_hand=r"from two directions to $r$: both sides are the inverse of one matrix",
        twins={"the second step made as if the first had not happened": dict(second=0)},
    ),
)
