"""The statement of "One sequence over many GPUs": what a slice of the tokens needs from the slices before it."""

import numpy as np

from vla_teach import reference
from vla_teach.proofs.statement import Statement, apart
from vla_teach.proofs.words import matrices, rewrite

S, P, Q, v, k, gt, q = matrices("S P Q v k g^T q")


def slices(empty=1):
    """One token more. S P + Q is the state, P the rows that begin as I with values 0, Q those that begin
    as 0: each is written by itself, and read by itself. empty = 0: the rows of I are given the values, too."""

    def write(X, value):
        return X + (value - X * k) * gt

    after = write(S * P + Q, v) - S * write(P, (1 - empty) * v) - write(Q, v)
    return [rewrite(after, []), rewrite((S * P + Q) * q - Q * q - S * (P * q), [])]


def run(q, k, v, u, M, S):
    """Answers of a slice, and its last state, from M and S before it; unit gains."""
    o = []
    for q_t, k_t, v_t, u_t in zip(q, k, v, u, strict=True):
        M = M + np.outer(u_t, u_t)
        S = reference.write(S, k_t, v_t, reference.write_gain(np.linalg.inv(M), k_t, "unit"))
        o.append(S @ q_t)
    return np.array(o).reshape(len(q), len(S)), S


def slices_measured(x, empty=1, own=0, through=1):
    """Two cuts anywhere; every slice by itself, from [0; I]; put together, and compared with the whole in one go.

    own = 1: a slice's penalty begins with its own sum in it; through = 0: the maps P are forgotten.
    """
    q, (V, K) = x.rng.normal(size=x.k.shape), x.S.shape
    M_0, cuts = x.lambda_0 * np.eye(K), np.sort(x.rng.integers(0, len(x.k) + 1, 2))
    rows = np.concatenate([np.zeros((V, K)), np.eye(K)])
    values = np.concatenate([x.v, np.zeros((len(x.v), K))], axis=1) + (1 - empty)
    parts = list(zip(*(np.split(y, cuts) for y in (q, x.k, values, x.u)), strict=True))
    sums = [part[3].T @ part[3] for part in parts]
    state, answers = x.S, []
    for j, part in enumerate(parts):
        o, end = run(*part, M_0 + sum(sums[: j + own]), rows)
        answers.append(o[:, :V] + through * o[:, V:] @ state.T)
        state = through * state @ end[V:] + end[:V]
    wanted, last = run(q, x.k, x.v + (1 - empty), x.u, M_0, x.S)
    return max(apart(np.concatenate(answers), wanted), apart(state, last))


STATEMENTS = (
    Statement(
        label="prop-slices",
        title="A slice without its past",
        given="a sequence cut anywhere into slices",
        says=(
            r"M^{(j)} = M_0 + \sum_{i < j} \mathbf{U}_i^\top \mathbf{U}_i , \qquad "
            r"S^{(j + 1)} = S^{(j)} P_j + Q_j , \qquad "
            r"o_t = o^0_t + S^{(j)} p_t ,"
        ),
        symbols=slices,
        numbers=slices_measured,
        by_hand="symbols carry the step from one token to the next, and sums have no order",
        twins={
            "values for the rows of the identity": dict(empty=0),
            "a slice's own sum in its past": dict(own=1),
            "the maps forgotten": dict(through=0),
        },
    ),
)
