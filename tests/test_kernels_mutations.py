"""Proof that the checks of the kernels can fail: each mistake, made in a copy of `vla_teach.kernels`, is noticed."""

from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
import torch
from oracle_kernels import check_kernels, check_steps, interpreter

from vla_teach import kernels

SOURCES = Path(kernels.__file__).parent
NAMES = (f"copied_kernels_{i}" for i in count())
MUTATIONS = (  # file, source, mistake
    # the solve
    ("run", "in (q, k, v, u, beta, M))\n        dtype, P", "in (q, k, v, u, beta, 0.9 * M))\n        dtype, P"),
    ("solve", "total[None, :] + tl.cumsum(new, 0) - new, mask", "total[None, :] + tl.cumsum(new, 0), mask"),
    ("solve", "A -= w[:, None] * w[None, :]", "A = A"),
    ("solve", "for part in tl.static_range(R):", "for part in tl.static_range(1):"),
    ("solve", ".to(tl.float32) + solved)", ".to(tl.float32) - solved)"),
    ("tiles", "Q = dot(tl.where(same, 0.0, N), D, P)", "Q = dot(D, tl.where(same, 0.0, N), P)"),
    # the write
    ("write", "dot(keys, tl.trans(A), P) * scale", "dot(A, tl.trans(keys), P) * scale"),
    ("write", "N = tl.where(i[:, None] > i", "N = tl.where(i[:, None] >= i"),
    ("write", "scale *= gain_scale", "scale = gain_scale"),
    ("write", "tl.load(at).to(tl.float32) - dot(rows", "tl.load(at).to(tl.float32) + dot(rows"),
    ("write", "row = tl.load(keep + chunk)", "row = tl.load(keep + low)"),
    ("write", "scores = tl.where(i[:, None] >= i", "scores = tl.where(i[:, None] > i"),
    # the gradients
    ("backward", "tl.where(i[:, None] <= i[None, :], dot(A", "tl.where(i[:, None] < i[None, :], dot(A"),
    ("backward", "P) - fine_dot_right(tl.trans(keys), z, P)", "P)"),
    ("backward", "        tl.store(at, z)\n", ""),
    ("backward", "wrote = tl.where(i[:, None] > i", "wrote = tl.where(i[:, None] >= i"),
    ("backward", "dK = -dot(z, tl.trans(S), P)", "dK = dot(z, tl.trans(S), P)"),
    ("backward", "dG -= (along * s)[:, None] * solved", "dG -= along[:, None] * solved"),
    ("backward", "dK -= (b * along * s)[:, None]", "dK -= (along * s)[:, None]"),
    ("backward", "after = i[None, :] >= token", "after = i[None, :] > token"),
    ("backward", "        total += dot(tl.trans(x), y, P)\n", ""),
    ("backward", "    tl.store(part_slot(dS_end, n, h, H, part, K, PART, V), dS)\n", ""),
    ("run", "reverse=True)", "reverse=False)"),
    ("run", "dS, -(N + N.mT) / 2", "dS, (N + N.mT) / 2"),
    # token by token
    ("token", "A -= w[:, None] * w[None, :]", "A = A"),
    ("token", "S += (value - tl.sum(S * key", "S += (value + tl.sum(S * key"),
    ("token", "line += H", "line += 1"),
    ("token", "    tl.store(slot(A_end, n, h, H, K, K), A)\n", "    tl.store(slot(A_end, n, h, H, K, K), A * 0)\n"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def kernels_can_run(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with interpreter():
        yield
    torch.set_num_threads(threads)


def copied(folder, file="", original="", broken=""):
    """The modules run, plan and token of a copy of the kernels; in one file `original`, found once, is `broken`."""
    name = next(NAMES)
    (folder / name).mkdir()
    for path in SOURCES.glob("*.py"):
        source = path.read_text()
        if path.stem == file:
            assert source.count(original) == 1, f"{original!r} is in {file} {source.count(original)} times, not once"
            source = source.replace(original, broken)
        (folder / name / path.name).write_text(source.replace("vla_teach.kernels", name))
    return [import_module(f"{name}.{part}") for part in ("run", "plan", "token")]


def check(run, plan, token, of=("run", "token")):
    """What is checked of kernels, with these modules in the place of the package's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla_teach.kernels.run.vla_tokens", run.vla_tokens)
        patch.setattr("vla_teach.kernels.token.token_by_token", token.token_by_token)
        if "run" in of:
            check_kernels(plan, run)
        if "token" in of:
            check_steps(token)


def test_the_sources_as_they_are_pass(tmp_path):
    """Guards the tests below: a copy without a mistake satisfies the same checks."""
    check(*copied(tmp_path))


@pytest.mark.parametrize(("file", "original", "broken"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_a_mutation_is_noticed(tmp_path, file, original, broken):
    """Guards the checks: each of these mistakes gives a wrong number, and no crash."""
    copy = copied(tmp_path, file, original, broken)
    with pytest.raises(AssertionError, match=r"is off by .*VLA_SEED"):
        check(*copy, of="token" if file == "token" else "run")
