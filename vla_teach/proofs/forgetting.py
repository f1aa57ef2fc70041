"""Statements of "Why a linear memory forgets"."""

import numpy as np
import sympy as sp

from vla_teach.proofs.statement import Statement
from vla_teach.reference import unit_rows


def crosstalk(power=1):
    """E[c^2] - 1/K for the cosine c of two random directions, whose density is (1 - c^2)^((K - 3)/2) up to a factor.

    With x = c^2 both integrals are Beta functions.
    """
    K = sp.Symbol("K", positive=True)

    def beta(a, b):
        return sp.gamma(a) * sp.gamma(b) / sp.gamma(a + b)

    half, rest = sp.Rational(1, 2), (K - 1) / 2
    return sp.gammasimp(beta(half + 1, rest) / beta(half, rest) - 1 / K**power)


def crosstalk_measured(x, power=1, fewer=1):
    """The mean squared error over 2000 draws of all keys, in units of six standard errors, less 1."""
    n, d = x.k.shape
    keys = unit_rows(x.rng.normal(size=(2000, n, d)))
    v = unit_rows(x.v)
    S = np.einsum("nv,snd->svd", v, keys)
    errors = np.sum((np.einsum("svd,sd->sv", S, keys[:, 0]) - v[0]) ** 2, axis=1)
    spread = 6 * np.std(errors) / np.sqrt(len(errors)) + 1e-12
    return abs(np.mean(errors) - (n - fewer) / d**power) / spread - 1


STATEMENTS = (
    Statement(
        label="prop-crosstalk",
        title="Crosstalk of random keys",
        given="keys independent and uniform on the unit sphere, values of length 1",
        says=r"\mathbb{E}\,\| S k_j - v_j \|^2 = \frac{n - 1}{K} .",
        symbols=crosstalk,
        numbers=crosstalk_measured,
        by_hand="the mixed terms vanish because the keys are independent; symbols give the mean square of one cosine",
        twins={"the square root of K": dict(power=0.5), "n for n - 1": dict(fewer=0)},
    ),
)
