"""Proof that the checks of `vla_teach.ops` can fail: broken copies of its source, as in `test_mutations.py`."""

import pytest
from mutations import passes, refuses
from oracle_torch import check_ops

from vla_teach import ops

MUTATIONS = (
    # the operation
    ("if initial_state is None:\n", "if True:\n"),
    ("initial_state, start)\n", "initial_state, start)\n        S = S.detach()\n"),
    ("initial_state, start)\n", "initial_state, start)\n        start = start.detach()\n"),
    ("return o.transpose(1, 2), S, A", "return o.detach().transpose(1, 2), S, A"),
    ("for x in tokens), S, A, gain)\n        return", "for x in tokens), S, A / 2, gain)\n        return"),
    ("if lengths else heads_first(tokens, S, start)", "if False else heads_first(tokens, S, start)"),
    ("check_lambda(lambda_0, H, dtype)", "check_lambda(0.1, H, dtype)"),
    ("V, K), diagonal.expand", "V, K), diagonal.detach().expand"),
    ("H, dtype) ** power", "H, dtype) ** -power"),
    ("lambda_0: float | Tensor = 0.1,\n    gain", "lambda_0: float | Tensor = 0.2,\n    gain"),
    # decoding
    ("to(dtype) for x in tokens), S, A, gain)", 'to(dtype) for x in tokens), S, A, "unit")'),
    ("o.to(v.dtype), State(S, A)\n", "o.to(v.dtype), State(S, state.A)\n"),
    ("o.to(v.dtype), State(S, A)\n", "o.to(v.dtype), State(state.S, A)\n"),
    ('beta, ("B", "H"), state)', 'None, ("B", "H"), state)'),
    # packing
    ("run(some, S[group], A[group])", "run(some, 0 * S[group], A[group])"),
    ("run(some, S[group], A[group])", "run(some, S[group], A[group].flip(0))"),
    ("for i in range(len(lengths))), strict=True)", "for i in done), strict=True)"),
    ("for i, o, *state in zip(group,", "for i, o, *state in zip(group[::-1],"),
    # the loop
    ("A = A - outer(Au, Au) / (1", "A = A + outer(Au, Au) / (1"),
    ("/ (1 + (row * Au)", "/ ((row * Au)"),
    ("in u_t.unbind(2):", "in u_t[:, :, :1].unbind(2):"),
    ("A = A - outer(Au, Au)", "A = A - outer(Au, Au).detach()"),
    ("g = beta_t[..., None] * write_gain(matvec(A", "g = write_gain(matvec(A"),
    ("matvec(S, k_t), g)", "matvec(S.mT, k_t), g) if S.shape[2] == S.shape[3] else S"),
    ("S = S + outer(v_t - matvec(S, k_t), g)", "S = S + outer(v_t + matvec(S, k_t), g)"),
    ("S = S + outer(v_t - matvec(S, k_t), g)", "S = S - outer(v_t - matvec(S, k_t), g)"),
    ("S = S + outer(v_t", "S = S.detach() + outer(v_t"),
    ("outputs.append(matvec(S, q_t))", "outputs.append(matvec(S, k_t))"),
    # the chunk
    ("inverse(A))\n", "A)\n"),
    ("inverse(A))\n", "inverse(A.detach()))\n"),
    ("k, v, beta[..., None] * write_gain", "k, v, write_gain"),
    ("k, v, beta[..., None] * write_gain(a", "k, v, beta[..., None].detach() * write_gain(a"),
    ("[:, :, :T], S, inverse(M)", "[:, :, :T], S, M"),
    ("[:, :, :T], S, inverse(M)", "[:, :, :T], S, inverse(M.detach())"),
    ("[:, :, :T], S, inverse(M)", "[:, :, :T], S, A"),
    # the penalty
    ("u.mT @ u], 2).cumsum(2)", "u.mT @ u], 2)"),
    ("M, last = M[:, :, :-1], M[:, :, -1]", "M, last = M[:, :, 1:], M[:, :, -1]"),
    ("M, last = M[:, :, :-1], M[:, :, -1]", "M, last = M[:, :, :-1], M[:, :, -2]"),
    ("token[:, None] >= token", "token[:, None] > token"),
    ("token[:, None] >= token", "token[:, None] <= token"),
    ("token.repeat_interleave(rows // len(token))", "token.repeat(rows // len(token))"),
    ("rows_over(L, z @ w.mT) * past", "rows_over(L, z @ w.mT)"),
    ("rows_over(L, z @ w.mT) * past", "rows_over(L, z @ w.mT) * past * 1.01"),
    ("return a + solve(k - a @ M", "return a + solve(a @ M"),
    ("(a @ u.mT * past) @ u), last", "(a @ u.mT) @ u), last"),
    # the write
    ("(k @ g.mT).tril(-1)", "(g @ k.mT).tril(-1)"),
    ("unitriangular=True", "unitriangular=False"),
    ("errors.append(e_v - e_k @ S.mT)", "errors.append(e_v + e_k @ S.mT)"),
    ("errors.append(e_v - e_k @ S.mT)", "errors.append(e_v - e_k @ (S if S.shape[2] == S.shape[3] else S.mT))"),
    ("errors.append(e_v - e_k @ S.mT)", "errors.append(e_v - e_k @ S.mT.detach())"),
    ("S_in.append(S)", "S_in.append(S.detach())"),
    ("S_in.append(S)", "S_in.append(S_in[-1] if S_in else S)"),
    ("S = S + errors[-1].mT @ g_n", "S = S - errors[-1].mT @ g_n"),
    ("S = S + errors[-1].mT @ g_n", "S = S + errors[-1].detach().mT @ g_n"),
    ("(q @ g.mT).tril() @", "(q @ g.mT).tril(-1) @"),
    ("(q @ g.mT).tril() @", "(q @ g.mT) @"),
    ("return q @ torch.stack(S_in, 2).mT + ", "return "),
    # the gains
    ('if gain == "least_squares":', 'if gain == "none":'),
    ('(a if gain == "unit" else k) * a', '(k if gain == "unit" else a) * a'),
    ('(a if gain == "unit" else k) * a', 'a * a'),
    ('size.sqrt() if gain == "unit" else size)', 'size)'),
    ("    size = torch.where(some, size, 1)\n", ""),
    ("torch.where(some, a, 0) / (", "torch.where(some, a, 0).detach() / ("),
    ("size = torch.where(some, size, 1)", "size = torch.where(some, size, 1).detach()"),
    # the tools
    ("return L.mT @ L", "return L @ L.mT"),
    ("(0, -x.shape[2] % C))", "(-x.shape[2] % C, 0))"),
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_core")


def test_the_source_as_it_is_passes():
    """Guards the tests below: a copy without a mutation satisfies the same checks."""
    passes(check_ops, ops)


@pytest.mark.parametrize(("original", "broken"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_a_mutation_is_noticed(original, broken):
    """Guards the checks: each of these mistakes makes them fail."""
    refuses(check_ops, ops, original, broken)
