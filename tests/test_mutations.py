"""Proof that the checks can fail: broken copies of the package's source, each of which they must refuse."""

import pytest
from mutations import passes, refuses
from oracle import check_chunkwise, check_reference

from vla_teach import chunkwise, reference

CHECKS = {reference: check_reference, chunkwise: check_chunkwise}
MUTATIONS = {
    reference: (
        # the recurrence
        ("return A - np.outer(Au, Au)", "return A + np.outer(Au, Au)"),
        ("/ (1 + u @ Au)", "/ (u @ Au)"),
        ("for row in u[t]:", "for row in u[t][:1]:"),
        ("np.eye(K, dtype=k.dtype) / lambda_0", "np.eye(K, dtype=k.dtype)"),
        ("np.eye(K, dtype=k.dtype) / lambda_0", "np.eye(K, dtype=k.dtype) * lambda_0"),
        ('check_part(initial_state, "S", (V, K), k.dtype), check', "np.zeros((V, K), k.dtype), check"),
        ("check_inverse(initial_state, K, k.dtype)\n", "np.eye(K, dtype=k.dtype) / lambda_0 / 2\n"),
        ("np.outer(v - S @ k, g)", "np.outer(v - S.T @ k, g)"),
        ("np.outer(v - S @ k, g)", "np.outer(g, v - S @ k)"),
        ("np.outer(v - S @ k, g)", "np.outer(v + S @ k, g)"),
        ("return S + np.outer(v", "return S - np.outer(v"),
        ("write(S, k[t], v[t], beta[t] * g)", "write(S, k[t], v[t], g)"),
        ("beta[t] * g)\n        o[t] = S @ q[t]", "beta[t] * g)\n        o[t] = S @ k[t]"),
        (
            "S = write(S, k[t], v[t], beta[t] * g)\n        o[t] = S @ q[t]",
            "o[t] = S @ q[t]\n        S = write(S, k[t], v[t], beta[t] * g)",
        ),
        # the gains
        ("np.linalg.norm(a) if gain", "np.linalg.norm(k) if gain"),
        ("np.linalg.norm(a) if gain", "a @ a if gain"),
        ("else k @ a\n", "else a @ a\n"),
        ("return a / size if size else 0 * a", "return a / size"),
        # the trace
        ("self.M = self.M + u.T @ u", "self.M = self.M + np.outer(u[0], u[0])"),
        ("eigenvalues[-1] / eigenvalues[0]", "eigenvalues[0] / eigenvalues[-1]"),
        ("np.linalg.norm(S), np.linalg.norm(A)", "np.linalg.norm(S, 2), np.linalg.norm(A)"),
        ("np.linalg.norm(S), np.linalg.norm(A)", "np.linalg.norm(S), np.linalg.norm(A, 2)"),
        ("k @ g / length", "k @ g"),
        ("self.gains[t] = g", "self.gains[t] = k"),
        # the rivals
        ("S = S + np.outer(v[t], k[t])", "S = S + np.outer(k[t], v[t])"),
        ("beta[t] * k[t])", "k[t])"),
        ("np.outer(k[t], k[t]) + u[t].T @ u[t]", "np.outer(k[t], k[t])"),
        ("np.outer(k[t], k[t]) + u[t].T @ u[t]", "u[t].T @ u[t]"),
        ("targets = S @ H", "targets = np.zeros_like(S)"),
        ("return o, State(S, np.linalg.inv(H))", "return o, State(S, H)"),
        ("q.shape[1] ** -0.5", "q.shape[1] ** -1"),
        ("len(k) - len(q), dtype=bool", "0, dtype=bool"),
        ("len(k) - len(q), dtype=bool", "len(k) - len(q) - 1, dtype=bool"),
        ("weights.sum(axis=1, keepdims=True)", "weights.sum(axis=0, keepdims=True)"),
        # what a memory attends to, features
        ("return np.tril(q @ k.T)", "return np.tril(q @ k.T, -1)"),
        ("np.tril(k @ G.T, -1)", "np.tril(k @ G.T)"),
        ("np.tril(k @ G.T, -1)", "np.tril(G @ k.T, -1)"),
        ("np.tril(q @ G.T).T", "np.tril(q @ G.T, -1).T"),
        ('cast("g", gains, k.dtype) * check_beta(beta, k)[:, None]', 'cast("g", gains, k.dtype)'),
        ("np.linalg.solve(W.T, ", "np.linalg.solve(W, "),
        ("np.where(x > 0, x + 1, ", "np.where(x > 0, x, "),
        ("np.where(length > 0, length, 1)", "length"),
        ("np.cumsum(phi_k, axis=0)", "np.sum(phi_k, axis=0)"),
    ),
    chunkwise: (
        # the gains
        (
            "M = np.cumsum(np.concatenate([M[None], mT(u) @ u]), axis=0)",
            "M = np.cumsum(np.concatenate([M[None], 0 * M[None], (mT(u) @ u)[:-1]]), axis=0)",
        ),
        ("cholesky(M[:-1])", "cholesky(M[1:])"),
        ("[:T], M[-1]", "[:T], M[0]"),
        ("[:T], M[-1]", "[:T], M[-2]"),
        ("g[some], M = penalty_gains(", "g[some], _ = penalty_gains("),
        ("A = mT(root) @ root", "A = root @ mT(root)"),
        ("np.eye(C * R, dtype=dtype) + uA @ mT(u)", "uA @ mT(u) + 2 * np.eye(C * R, dtype=dtype)"),
        ("[:, None] <= np.arange(C)", "[:, None] < np.arange(C)"),
        ("[:, None] <= np.arange(C)", "[:, None] >= np.arange(C)"),
        ("    Y *= past\n", ""),
        ("np.repeat(np.arange(C), R)", "np.tile(np.arange(C), R)"),
        ("a -= mT(mT(L_inv) @ Y) @ uA", "a += mT(mT(L_inv) @ Y) @ uA"),
        ("mT(mT(L_inv) @ Y)", "mT(L_inv @ Y)"),
        ("np.sqrt(np.sum(a * a, axis=2, keepdims=True))", "np.sum(a * a, axis=2, keepdims=True)"),
        ("np.sqrt(np.sum(a * a, axis=2, keepdims=True))", "np.sqrt(np.sum(k * k, axis=2, keepdims=True))"),
        ("np.sum(k * a, axis=2, keepdims=True)", "np.sum(a * a, axis=2, keepdims=True)"),
        ("return np.where(x == 0, 1, x)", "return x"),
        # the write
        ("beta[some, None] * g[some]", "g[some]"),
        ("np.tril(k @ mT(g), -1)", "np.tril(k @ mT(g))"),
        ("np.tril(k @ mT(g), -1)", "np.tril(g @ mT(k), -1)"),
        ("np.tril(q @ mT(g)) @ E", "np.tril(q @ mT(g), -1) @ E"),
        ("np.tril(q @ mT(g)) @ E", "np.tril(q @ mT(g)) @ v"),
        ("E[n] -= E_k[n] @ S.T", "E[n] += E_k[n] @ S.T"),
        ("E[n] -= E_k[n] @ S.T", "E[n] -= E_k[n] @ S"),
        ("S = S + E[n].T @ g[n]", "S = S - E[n].T @ g[n]"),
        ("S = S + E[n].T @ g[n]", "S = S + g[n].T @ E[n]"),
        ("S_in[n] = S\n", "S_in[n] = S_in[n - 1] if n else S\n"),
        # the norms
        ("E * (2 * S_g + E", "E * (S_g + E"),
        ("np.tril(g @ mT(g), -1)", "np.tril(g @ mT(g))"),
        ("np.sum(S_in * S_in, axis=(1, 2))[:, None] + ", ""),
        # the tools
        ("= -bottom @ ", "= bottom @ "),
        ("np.zeros((-len(x) % C", "np.ones((-len(x) % C"),
    ),
}
CASES = [
    pytest.param(module, original, broken, id=f"{module.__name__.rpartition('.')[2]}-{i:02d}")
    for module, mutations in MUTATIONS.items()
    for i, (original, broken) in enumerate(mutations)
]


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__)
def test_the_source_as_it_is_passes(module):
    """Guards the tests below: a copy without a mutation satisfies the same checks."""
    passes(CHECKS[module], module)


@pytest.mark.parametrize(("module", "original", "broken"), CASES)
def test_a_mutation_is_noticed(module, original, broken):
    """Guards the checks: each of these mistakes makes them fail."""
    refuses(CHECKS[module], module, original, broken)
