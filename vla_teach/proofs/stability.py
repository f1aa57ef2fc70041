"""Statements of "What is true of the two propositions": the matrix F = I - k g^T, once and in long products.

k and the unit gain a have length 1 and cosine c. x = k^T A k, r = |A k|, so that c = x / r.
"""

import numpy as np
import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, above, apart, zero
from vla_teach.proofs.words import matrices, rewrite, transpose
from vla_teach.reference import unit_rows

k, kt, g, gt, y, yt, u, ut = matrices("k k^T g g^T y y^T u u^T")
M, A = matrices("M A")
c = sp.Symbol("c", real=True)
x, r, m, big, a, s = sp.symbols("x r m m' a s", positive=True)
ONE = sp.S.One
INVERSE = [(M * A, ONE), (A * M, ONE)]


def two_unit_vectors(case):
    """k and a [d] of length 1 at any angle, and the cosine between them."""
    k, a = unit_rows(case.rng.normal(size=(2, case.k.shape[1])))
    return k, a, k @ a


def jacobian(slope=4, printed=False):
    """F F^T solves (Z - I) (Z^2 - (3 - 2c) Z + (1 - c)^2 I) = 0, whose largest root is the square of the formula.

    printed=True: the formula that the paper prints, 1 for every unit direction.
    """
    F = 1 - k * gt
    Z = F * transpose(F)
    rules = [(kt * k, ONE), (gt * g, ONE), (kt * g, c), (gt * k, c)]
    polynomial = (Z - 1) * (Z * Z - (3 - 2 * c) * Z + (1 - c) ** 2)
    largest = ONE if printed else (1 + sp.sqrt(5 - slope * c)) / 2
    root = zero(largest**4 - (3 - 2 * c) * largest**2 + (1 - c) ** 2)
    other = zero(largest * (largest - 1) - (1 - c))  # the other singular value is one less
    return [rewrite(polynomial, rules), root, other]


def jacobian_measured(case, slope=4, printed=False):
    """All singular values of F, from NumPy."""
    k, a, cosine = two_unit_vectors(case)
    sigma = 1.0 if printed else (1 + np.sqrt(max(0, 5 - slope * cosine))) / 2
    wanted = np.sort([*np.ones(len(k) - 2), sigma, abs(sigma - 1)])
    return apart(np.sort(np.linalg.svd(np.eye(len(k)) - np.outer(k, a), compute_uv=False)), wanted)


def radius(sign=-1):
    """(F - I) (F - (1 - k^T g) I) for any gain g."""
    F = 1 - k * gt
    return rewrite((F - 1) * (F - (1 + sign * s)), [(gt * k, s)])


def radius_measured(case, sign=-1):
    """The eigenvalues of F for VLA's own gain: 1 and 1 - c, and the largest in size is 1."""
    k, g = case.k[0], reference.write_gain(case.A, case.k[0], "unit")
    F = np.eye(len(k)) - np.outer(k, g)
    wanted = np.sort([*np.ones(len(k) - 1), 1 + sign * k @ g])
    # a double eigenvalue with one eigenvector moves by the root of the rounding: compare the polynomial, then sizes
    one = np.eye(len(k))
    return max(
        apart((F - one) @ (F - wanted[0] * one), 0 * F), apart(np.trace(F), wanted.sum()), above(abs(wanted).max(), 1)
    )


def raw_gain(one=1):
    """k^T A_t k for u_t = k_t, after the Sherman-Morrison step: a / (1 + a) with a = k^T A_{t-1} k."""
    after = A - A * k * kt * A / (one + a)
    return sp.simplify(rewrite(kt * after * k, [(kt * A * k, a)]) - a / (1 + a))


def raw_gain_measured(case, one=1):
    """The same number from the package's step, and below 1."""
    k = case.k[0]
    before, after = k @ case.A @ k, k @ reference.sherman_morrison(case.A, k) @ k
    return max(apart(after, before / (one + before)), above(after, 1))


def full_write(power=2):
    """Z (Z - I) (Z - I / c^2) for Z = F F^T, where g^T k = 1 and |g| = 1 / c."""
    F = 1 - k * gt
    Z = F * transpose(F)
    rules = [(kt * k, ONE), (gt * g, 1 / c**2), (kt * g, ONE), (gt * k, ONE)]
    return rewrite(Z * (Z - 1) * (Z - 1 / c**power), rules)


def full_write_measured(case, power=2):
    """All singular values of F for the interpolating gain: 1 / c, 1 (K - 2 times), 0."""
    k = case.k[0]
    g, cosine = reference.write_gain(case.A, k, "interpolate"), k @ reference.write_gain(case.A, k, "unit")
    found = np.linalg.svd(np.eye(len(k)) - np.outer(k, g), compute_uv=False)
    return apart(np.sort(found), np.sort([0, *np.ones(len(k) - 2), cosine ** (-power / 2)]))


def kantorovich(half=2):
    """k^T (A - m) (m' - A) k >= 0 bounds |A k|^2; with it x^2 (m + m')^2 - 4 m m' |A k|^2 is at least a square."""
    size = sp.Symbol("|A k|^2")
    rules = [(kt * A * A * k, size), (kt * A * k, x), (kt * k, ONE)]
    product = rewrite(kt * (A - m) * (big - A) * k, rules)  # not negative, as m and m' are the ends of the spectrum
    ceiling = sp.solve(product, size)[0]
    gap = x**2 * (m + big) ** 2 - half**2 * m * big * ceiling
    kappa = big / m
    ratio = 4 * m * big / (m + big) ** 2 - (2 * sp.sqrt(kappa) / (1 + kappa)) ** 2
    return [zero(gap - ((m + big) * x - 2 * m * big) ** 2), zero(ratio)]


def kantorovich_measured(case, half=2):
    """No key is turned further; a mixture of the two extreme eigenvectors is turned as far."""
    values, vectors = np.linalg.eigh(case.A)
    limit = half * np.sqrt(values[0] * values[-1]) / (values[0] + values[-1])
    worst = vectors[:, 0] * np.sqrt(values[-1]) + vectors[:, -1] * np.sqrt(values[0])
    worst = worst / np.linalg.norm(worst)
    found = [k @ reference.write_gain(case.A, k, "unit") for k in [*case.k, worst]]
    return max(above(limit, min(found)), apart(limit, found[-1]))


def contraction(unit=2):
    """F M F^T - (M - (2 - c) / r k k^T) for the unit gain, and F M F^T - (M - k k^T / x) for the interpolating one."""
    rules = [*INVERSE, (kt * A * k, x)]
    out = []
    for length, shrunk in ((r, (unit - x / r) / r), (x, 1 / x)):
        F = 1 - k * kt * A / length
        out.append(rewrite(F * M * transpose(F, (M, A)) - (M - shrunk * k * kt), rules))
    return out


def contraction_measured(case, unit=2):
    """No state grows in the norm of M; for a state with S k = 0 the norm stays as it is."""
    k, worst = case.k[0], -1.0
    size = np.linalg.norm(case.A @ k)
    for gain, shrunk in (("unit", (unit - k @ case.A @ k / size) / size), ("interpolate", 1 / (k @ case.A @ k))):
        F = np.eye(len(k)) - np.outer(k, reference.write_gain(case.A, k, gain))
        worst = max(worst, apart(F @ case.M @ F.T, case.M - shrunk * np.outer(k, k)))
        worst = max(worst, above(np.trace(case.S @ F @ case.M @ F.T @ case.S.T), np.trace(case.S @ case.M @ case.S.T)))
        still = case.S - np.outer(case.S @ k, k)
        worst = max(worst, apart(still @ F, still))
    return worst


def determinant(one=1):
    """det(M + u u^T) - (1 + u^T M^-1 u) det M with free symbols, widths 1 to 3."""
    out = []
    for d in (1, 2, 3):
        M = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"m{min(i, j)}{max(i, j)}"))
        u = sp.Matrix(d, 1, lambda i, _: sp.Symbol(f"u{i}"))
        out.append(sp.expand((M + u * u.T).det() - one * M.det() - (u.T * M.adjugate() * u)[0]))
    return out


def determinant_measured(case, one=1):
    """Every step of a stream, multiplied."""
    A, product = np.eye(len(case.M)) / case.lambda_0, 1.0
    for row in case.u:
        product *= one + row @ A @ row
        A = reference.sherman_morrison(A, row)
    return apart(np.log(product), np.linalg.slogdet(case.M)[1] - len(case.M) * np.log(case.lambda_0))


def growth(sign=1):
    """a (y^T M y) - (u^T y)^2 is a times the square of y - A u (u^T y) / a in the norm of M, where a = u^T A u."""
    rest, restt = y - A * u * s / a, yt - s * ut * A / a
    rules = [*INVERSE, (ut * A * u, a), (ut * y, s), (yt * u, s)]
    return rewrite(a * yt * M * y - s**2 - sign * a * restt * M * rest, rules)


def growth_measured(case, spare=1):
    """The spectral norm of F_1 ... F_t, its bound by the determinants, and theirs by a power of t."""
    d, worst = len(case.M), -1.0
    for gain in ("unit", "interpolate"):
        product, M = np.eye(d), case.lambda_0 * np.eye(d)
        for k, u in zip(np.tile(case.k, (6, 1)), np.tile(case.u, (6, 1)), strict=True):
            M = M + np.outer(u, u)
            product = product @ (np.eye(d) - np.outer(k, reference.write_gain(np.linalg.inv(M), k, gain)))
            ratio = np.linalg.slogdet(M)[1] - d * np.log(case.lambda_0)
            power = d * np.log(np.trace(M) / (d * case.lambda_0))
            worst = max(worst, above(np.linalg.norm(product, 2), np.exp(spare * ratio / 2)), above(ratio, power))
    return worst


GOLDEN = (5 * sp.sqrt(5) - 11) / 2  # the inverse fifth power of the golden ratio, 0.0902


def along_key(spared=1, least=GOLDEN):
    """With u = k and M = M' + k k^T: F M F^T - (M' - what the gain takes away k k^T), for the three gains. And for the
    unit gain, lambda_0 (2 - c) - c (1 - c)^2 at the least lambda_0 is a square times sqrt(5) - 1 - c, which is above 0.
    """
    rules = [*INVERSE, (kt * A * k, x)]
    out = []
    for length, taken in ((x, 1 / x - spared), (1, 2 - x - spared), (r, (2 - x / r) / r - spared)):
        F = 1 - k * kt * A / length
        out.append(rewrite(F * M * transpose(F, (M, A)) - (M - k * kt - taken * k * kt), rules))
    square = (c - (3 - sp.sqrt(5)) / 2) ** 2 * (sp.sqrt(5) - 1 - c)
    return [*out, zero(sp.nsimplify(least) * (2 - c) - c * (1 - c) ** 2 - square)]


TURNING = np.array([[-0.313, 0.518, 0.796], [0.495, -0.473, -0.729], [0.945, 0.035, 0.326]])  # found by a random search


def along_key_measured(case, free=False, least=GOLDEN):
    """The spectral norm of F_1 ... F_t never exceeds 1. free: u is not the key. least: the smallest lambda_0 for the
    unit gain, which also meets a stream that turns the write hard."""
    worst = -1.0
    for gain in ("interpolate", "least_squares", "unit"):
        keys, directions, lambda_0 = np.tile(case.k, (4, 1)), np.tile(case.u, (4, 1)), case.lambda_0
        if gain == "unit":
            lambda_0 = max(lambda_0, float(least))
        if gain == "unit" and case.rng.random() < 0.5:
            keys, lambda_0 = np.pad(unit_rows(TURNING), ((0, 0), (0, len(case.M) - 3))), float(least)
        A, product = np.eye(len(case.M)) / lambda_0, np.eye(len(case.M))
        for k, u in zip(keys, directions if free else keys, strict=False):
            A = reference.sherman_morrison(A, u)
            product = product - np.outer(product @ k, reference.write_gain(A, k, gain))
            worst = max(worst, above(np.linalg.norm(product, 2), 1))
    return worst


STATEMENTS = (
    Statement(
        label="prop-jacobian",
        title="The spectral norm of one step",
        given=r"$k$ and $a$ of length 1 with cosine $c$, $K \ge 2$",
        says=r"\sigma_{\max}(I - k a^\top) = \frac{1 + \sqrt{5 - 4 c}}{2} ,",
        symbols=jacobian,
        numbers=jacobian_measured,
        by_hand=r"the factor 1 belongs to the $K - 2$ directions at right angles to $k$ and $a$",
        least_width=2,
        twins={"as printed: 1 for every unit direction": dict(printed=True), "2 c for 4 c": dict(slope=2)},
    ),
    Statement(
        label="prop-radius",
        title="The spectral radius is 1",
        given=r"$A$ positive definite, $k$ of length 1, the unit gain, $K \ge 2$",
        says=r"(F - I)\big(F - (1 - c) I\big) = 0",
        symbols=radius,
        numbers=radius_measured,
        by_hand=r"$c$ lies between 0 and 1",
        least_width=2,
        twins={"1 + c for 1 - c": dict(sign=1)},
    ),
    Statement(
        label="prop-kantorovich",
        title="How far a write can be turned",
        given=r"$A$ positive definite, $k \ne 0$, $\kappa$ the largest eigenvalue of $A$ over its smallest",
        says=r"c \;\ge\; \frac{2 \sqrt{\kappa}}{1 + \kappa} .",
        symbols=kantorovich,
        numbers=kantorovich_measured,
        by_hand=r"$(A - m I)(m' I - A)$ has no negative eigenvalue, as both factors have none and commute",
        least_width=2,
        twins={"twice as steep": dict(half=4)},
    ),
    Statement(
        label="prop-full-write",
        title="What a full write costs",
        given=(
            r"$A$ positive definite, $k$ of length 1, $K \ge 2$, $g = A k / (k^\top A k)$ and $c$ the cosine of "
            r"$k$ and $A k$"
        ),
        says=r"\sigma_{\max}(I - k g^\top) = \frac{1}{c} .",
        symbols=full_write,
        numbers=full_write_measured,
        by_hand=(
            "how often each value occurs: the rank of $F$ is $K - 1$, and the trace of $F F^\\top$ settles the rest"
        ),
        least_width=2,
        twins={"1 for 1 / c": dict(power=0)},
    ),
    Statement(
        label="prop-raw-gain",
        title="The raw gain",
        given=r"$A$ positive definite, $u_t = k_t$",
        says=r"k_t^\top A_t k_t = \frac{k_t^\top A_{t-1} k_t}{1 + k_t^\top A_{t-1} k_t} < 1 .",
        symbols=raw_gain,
        numbers=raw_gain_measured,
        twins={"without the 1": dict(one=0)},
    ),
    Statement(
        label="prop-contraction",
        title="No write stretches",
        given=r"$M$ positive definite, $k$ of length 1, the unit or the interpolating gain",
        says=r"\operatorname{tr}\big(S F M F^\top S^\top\big) \;\le\; \operatorname{tr}\big(S M S^\top\big) .",
        symbols=contraction,
        numbers=contraction_measured,
        by_hand=r"$c \le 1 < 2$, so what is subtracted is not negative",
        least_width=2,
        twins={"a step too far": dict(unit=3)},
    ),
    Statement(
        label="lem-determinant",
        title="The determinant",
        given=r"$M$ symmetric and invertible",
        says=r"\det(M + u u^\top) = (1 + u^\top A u) \det M .",
        symbols=determinant,
        sizes="1 to 3",
        numbers=determinant_measured,
        by_hand=r"for any width: the eigenvalues of $I + A u u^\top$ are 1 and $1 + u^\top A u$",
        twins={"without the 1": dict(one=0)},
        links=(
            (
                "Mathlib",
                "https://leanprover-community.github.io/mathlib4_docs/Mathlib/LinearAlgebra/Matrix/SchurComplement.html#Matrix.det_add_replicateCol_mul_replicateRow",
            ),
        ),
    ),
    Statement(
        label="prop-growth",
        title="Products of steps grow at most polynomially",
        given=r"$\lambda_0 > 0$, keys of length 1, the unit or the interpolating gain",
        says=(
            r"\| F_1 F_2 \cdots F_t \|_2 \;\le\; \sqrt{\frac{\det M_t}{\det M_0}} \;\le\; \Big( 1 + \frac{\sum_{s "
            r"\le t} \|u_s\|^2}{K \lambda_0} \Big)^{K/2} ."
        ),
        symbols=growth,
        numbers=growth_measured,
        by_hand="induction over tokens; the mean of the eigenvalues is at least their geometric mean",
        least_width=2,
        twins={"plus for minus": dict(sign=-1), "a tenth of the exponent": dict(spare=0.1)},
    ),
    Statement(
        label="prop-along-key",
        title="Along the key, the product of all steps never grows",
        given=(
            r"$u_t = k_t$, keys of length 1; the interpolating gain, the raw gain, or the unit gain with "
            r"$\lambda_0 \ge (5\sqrt5 - 11)/2$"
        ),
        says=r"\| F_1 F_2 \cdots F_t \|_2 \le 1",
        symbols=along_key,
        numbers=along_key_measured,
        by_hand=r"$k_t^\top A_t k_t < 1$, so what the gain takes away is not negative; induction over tokens",
        least_width=3,
        twins={
            "u that is not the key": dict(free=True),
            "the unit gain with any lambda_0": dict(least=1e-3),
            "the new direction not spared": dict(spared=0),
        },
    ),
)
