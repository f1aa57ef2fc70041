"""Proof that the checks of layers and models can fail: broken copies of their source, as in `test_mutations.py`."""

import pytest
from mutations import passes, refuses
from oracle_layers import check_layers, check_models, check_rivals

from vla_teach import layers, models, rivals

CHECKS = {layers: check_layers, rivals: check_rivals, models: check_models}
MUTATIONS = {
    layers: (
        # the shell
        ("padded = torch.cat([past.to(qkv.dtype), qkv], 1)", "padded = torch.cat([0 * past.to(qkv.dtype), qkv], 1)"),
        ("past = padded[:, T:].clone()", "past = padded[:, :-T].clone()"),
        ("past = padded[:, T:].clone()", "past = padded[:, T:].detach()"),
        ("* weight[i] for", "* weight[-1 - i] for"),
        ("F.silu(qkv) if self.activation else qkv", "F.silu(qkv)"),
        ("tokens=state.tokens + tokens", "tokens=tokens"),
        # features and normaliser
        ("q, k = F.elu(q) + 1, F.elu(k) + 1", "q, k = F.elu(q), F.elu(k) + 1"),
        ("z = state.z[:, None] + k.cumsum(1)", "z = k.cumsum(1)"),
        ('parts["z"] = z[:, -1]', 'parts["z"] = z[:, 0]'),
        ("size = (z * q)", "size = (z * q.detach())"),
        ("            q = F.normalize(q, dim=-1)\n", "            pass\n"),
        ("        k = F.normalize(k, dim=-1)\n", ""),
        # the penalty
        ("bthk,hrjk->bthrj", "bthj,hrjk->bthrk"),
        ("dim=-1) * self.u_scale", "dim=-1)"),
        ("self.W_u.to(raw.dtype)), dim=-1)", "self.W_u.to(raw.dtype).detach()), dim=-1)"),
        ("self.directions(raw, k,", "self.directions(k, k,"),
        ("free.unflatten(2, (self.heads, self.rank, -1))", "free.unflatten(2, (self.heads, -1, self.rank)).mT"),
        ("F.elu(self.W_u(x)) + 1", "F.elu(self.W_u(x))"),
        ("math.sqrt(self.gamma)", "self.gamma"),
        ("return relation.tril(P)", "return relation.tril(P - 1)"),
        ('torch.cat([state.keys, k], 1)', 'torch.cat([state.keys.detach(), k], 1)'),
        ("k * self.u_scale if", "k if"),
        ("self.lambda_0, dtype, device)", "0.1, dtype, device)"),
        ("return self.first_lambda_0 if self.raw_lambda_0 is None else F.softplus(self.raw_lambda_0)",
         "return self.first_lambda_0 if self.raw_lambda_0 is None else F.softplus(self.raw_lambda_0).detach()"),
        # the write
        ("torch.sigmoid(self.gate(x))", "torch.sigmoid(-self.gate(x))"),
        ("None if beta is None else beta[:, 0]", "None"),
        ("ops.State(state.S, state.A)", "ops.State(state.S, state.A.detach())"),
        ("ops.vla(q, k, v, u, beta,", "ops.vla(q, k, v, u, None,"),
        # the nudge
        ("        if (tokens + t + 1) % NUDGE_EVERY == 0:", "        if False:"),
        ("(tokens + t + 1) % NUDGE_EVERY", "(t + 1) % NUDGE_EVERY"),
        ("(tokens + t + 1) % NUDGE_EVERY", "(tokens + t) % NUDGE_EVERY"),
        ("for row in u_t.unbind(2):", "for row in u_t.unbind(2)[:1]:"),
        ("g = beta_t[..., None] * ops", "g = ops"),
        ("z_normaliser=True, nudge=1e-3", "z_normaliser=True, nudge=0.0"),
        ("z_normaliser=True, nudge=1e-3", "z_normaliser=False, nudge=1e-3"),
        ('PUBLISHED = USUAL | dict(features="elu+1"', 'PUBLISHED = USUAL | dict(gain="interpolate", features="elu+1"'),
    ),
    rivals: (
        ("q, k = F.elu(q) + 1, F.elu(k) + 1", "q, k = F.elu(q) + 1, F.relu(k)"),
        ("z = state.z[:, None] + k.cumsum(1)", "z = k.cumsum(1)"),
        ("(ops.chunk_write, (q, k, v, beta[..., None] * k)", "(ops.chunk_write, (q, k, v, k)"),
        ("return step, -layer.log", "return step, -2 * layer.log"),
        ("layer.log_rate.exp()", "layer.log_rate.exp().detach()"),
        ("layer.decay(x) + layer.step", "layer.decay(x)"),
        ("(q, step[..., None] * k, v,", "(q, k, v,"),
        ("self.skip[:, None] * v, dict", "v, dict"),
        ("S = decay * S + written", "S = S + written"),
        ("(v.mT @ (left * k))", "(v.mT @ k)"),
        ("(reach * (q @ k.mT)) @ v", "(q @ k.mT).tril() @ v"),
        ("c = log_alpha.cumsum(3)", "c = -log_alpha.cumsum(3)"),
        ("reach = (c - c.mT)", "reach = (c.mT - c)"),
        ("reach = (c - c.mT)", "reach = (c.detach() - c.mT)"),
        ("W = (reach * (k @ g.mT))", "W = ((k @ g.mT))"),
        ("v, c.exp() * k]", "v, k]"),
        ("left * g, total", "g, total"),
        ("(last - c).exp(), last.exp()", "(last - c).exp(), c[:, :, :, :1].exp()"),
        ("S = decay * S + errors[-1].mT @ g_n", "S = S + errors[-1].mT @ g_n"),
        ("(c.exp() * q) @ torch.stack(S_in, 2).mT + inside", "q @ torch.stack(S_in, 2).mT + inside"),
        ("(c.exp() * q) @ torch.stack(S_in, 2).mT + (reach", "q @ torch.stack(S_in, 2).mT + (reach"),
        ("S_in.append(S)\n        errors", "S_in.append(S.detach())\n        errors"),
        ("S_in.append(S)\n        S =", "S_in.append(S.detach())\n        S ="),
        ("self.least_ridge + F.softplus", "F.softplus"),
        ("_replace(gram=ridge.expand", "_replace(gram=ridge.detach().expand"),
        ("root[..., None] * F.normalize(k, dim=-1)", "F.normalize(k, dim=-1)"),
        ("root[..., None] * v)", "v)"),
        ("logsigmoid(self.gate(x)) / 2)", "logsigmoid(self.gate(x)))"),
        ("return *linear_chunk(solved, k, v, S), gram", "return *linear_chunk(q, k, v, S), gram"),
        ("S[:, :, :-1].mT + (q @ k.mT).tril() @ v", "S[:, :, :-1].mT + (q @ k.mT).tril(-1) @ v"),
        ("q @ S[:, :, :-1].mT + ", "q @ S[:, :, 1:].mT + "),
        ("rotate(q, state.tokens), rotate(k, state.tokens)", "rotate(q, 0), rotate(k, 0)"),
        ("-torch.arange(0, K, 2,", "torch.arange(0, K, 2,"),
        ("a * sin + b * cos", "b * cos - a * sin"),
        (".tril(past)", ".tril(past + 1)"),
        (".tril(past)", ".tril(past - 1)"),
        ("is_causal=not past", "is_causal=False"),
    ),
    models: (
        ("x = x + y\n", "x = y\n"),
        ("return x + self.mlp(self.norms[1](x))", "return x + self.mlp(x)"),
        ("self.norms[0](x), state", "self.norms[1](x), state"),
        ("F.silu(gate) * value", "F.silu(value) * gate"),
        ("weight[start : start + T]", "weight[:T]"),
        ("return self.norm(x), tuple(after)", "return x, tuple(after)"),
        ("after.append(state)", "after.append(after[0] if after else state)"),
        ("self.head.weight = self.embedding.weight", "pass"),
        ("lengths - 1]", "lengths - 2]"),
        ("< lengths[:, None]\n", "<= lengths[:, None]\n"),
        ("/ lengths[:, None]", "/ T"),
        ("logits[:, -1:].argmax(-1)", "logits[:, :1].argmax(-1)"),
        ("logits, states = model(tokens, states)", "logits, states = model(tokens)"),
        ("mlp_width = usual + round((target - at) / slope)", "mlp_width = usual"),
        ("mlp_width = usual + round((target - at) / slope)", "mlp_width = usual + round((at - target) / slope)"),
    ),
}  # fmt: skip
CASES = [(module, *pair) for module, pairs in MUTATIONS.items() for pair in pairs]


pytestmark = pytest.mark.usefixtures("one_core")


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__)
def test_the_source_as_it_is_passes(module):
    """Guards the tests below: a copy without a mutation satisfies the same checks."""
    passes(CHECKS[module], module)


@pytest.mark.parametrize(("module", "original", "broken"), CASES, ids=range(len(CASES)))
def test_a_mutation_is_noticed(module, original, broken):
    """Guards the checks: each of these mistakes makes them fail."""
    refuses(CHECKS[module], module, original, broken)
