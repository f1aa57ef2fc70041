"""Statements of "The recurrence, line by line"."""

import sympy as sp

from vla_teach import reference
from vla_teach.proofs.statement import Statement, above, apart
from vla_teach.proofs.words import matrices, rewrite

S, v, k, g = matrices("S v k g^T")
c = sp.Symbol("c", positive=True)


def partial_write(power=1):
    """(S + (v - S k) g^T) k - (c v + (1 - c) S k) where g^T k = c; and with c = 1, S_t k - v."""
    after = (S + (v - S * k) * g) * k
    return [
        rewrite(after - c**power * v - (1 - c**power) * S * k, [(g * k, c)]),
        rewrite(after - v, [(g * k, sp.S.One)]),
    ]


def partial_write_measured(x, power=1):
    """The answer for the key just written, with both gains, and the range of c."""
    k, v = x.k[0], x.v[0]
    unit, full = (reference.write_gain(x.A, k, gain) for gain in ("unit", "interpolate"))
    share = unit @ k
    wanted = share**power * v + (1 - share**power) * x.S @ k
    ends = max(above(share, 1), 0.0 if share > 0 else 1.0)
    return max(
        ends,
        apart(reference.write(x.S, k, v, unit) @ k, wanted),
        apart(reference.write(x.S, k, v, full) @ k, v),
    )


STATEMENTS = (
    Statement(
        label="prop-write",
        title="Partial and full write",
        given=r"keys of length 1, $\beta = 1$",
        says=r"S_t k_t = c_t\, v_t + (1 - c_t)\, S_{t-1} k_t , \qquad 0 < c_t \le 1 .",
        symbols=partial_write,
        numbers=partial_write_measured,
        by_hand=r"$c > 0$ as $A$ is positive definite; $c \le 1$ by Cauchy and Schwarz",
        least_width=2,
        twins={"the square of the cosine": dict(power=2)},
    ),
)
