"""The puzzles' checker: right kernels pass, each broken one is refused with the words that help."""

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import nbformat
import pytest

from vla_teach import puzzles
from vla_teach.puzzles import PUZZLES
from vla_teach.site import notebooks

# What spoils a kernel: (puzzle, the mistake, lines replaced, words of the complaint).
BROKEN = [
    ("unit_rows", "no mask on the store", "/ length[:, None], mask=m", "/ length[:, None]", "outside out"),
    ("unit_rows", "no mask on the load", "o, mask=m, other=0.0", "o", "out[0, 0] is NaN"),
    ("unit_rows", "the width for the stride", "* stride", "* K", "outside out"),
    ("unit_rows", "no root", "tl.sqrt(tl.sum(b_k * b_k, axis=1))", "tl.sum(b_k * b_k, axis=1)", "expected"),
    ("unit_rows", "only the first program", "tl.program_id(0) * BT + ", "", "out[8, 0] is never written"),
    ("unit_rows", "in place", "tl.store(p_out", "tl.store(p_k", "outside out|changes k|never written"),
    ("unit_rows", "another name", "tl.sqrt(tl.sum", "tl.sqrt(lt.sum", "raises NameError"),
    ("write", "no mask on the store", "b_g, mask=m", "b_g", "outside out"),
    ("write", "a sign flipped", "b_S + b_e", "b_S - b_e", "expected"),
    ("write", "the write forgotten", "    tl.store(p_out + o, b_S + b_e[:, None] * b_g, mask=m)", "    pass", "never"),
    ("write", "rows and columns swapped", "b_e[:, None] * b_g", "b_g[:, None] * b_e", "raises|expected"),
    ("write", "one mask for all", "(o_v[:, None] < V) & (o_k < K)", "o_v[:, None] < V", "outside out"),
    ("write", "one column of tiles", "tl.program_id(1) * BK + ", "", "never written"),
    ("running_sum", "no carry", "        before += tl.sum(b_x, axis=0)", "        pass", "out[16, 0] is"),
    ("running_sum", "one tile only", "range(0, T, BT)", "range(0, BT, BT)", "out[16, 0] is never written"),
    ("running_sum", "the other axis", "tl.cumsum(b_x, axis=0)", "tl.cumsum(b_x, axis=1)", "expected"),
    ("running_sum", "itself left out", "tl.cumsum(b_x, axis=0)", "tl.cumsum(b_x, axis=0) - b_x", "expected"),
    ("running_sum", "no mask on the store", "axis=0), mask=m)", "axis=0))", "outside out"),
    ("decayed_sum", "the later step first", "f_1 * f_2, x_1 * f_2 + x_2", "f_1 * f_2, x_2 * f_1 + x_1", "expected"),
    ("decayed_sum", "no decay", "x_1 * f_2 + x_2", "x_1 + x_2", "expected"),
    ("decayed_sum", "no mask on the store", "b_s, mask=o_t < T", "b_s", "outside s"),
    ("decayed_sum", "a plain sum", "_, b_s = tl.associative_scan((b_f, b_x), 0, compose)", "b_s = tl.cumsum(b_x, 0)",
     "expected"),
    ("inverse_step", "no root", "tl.sqrt(1.0 + tl.sum(b_w * b_u, axis=0))", "(1.0 + tl.sum(b_w * b_u, axis=0))",
     "expected"),
    ("inverse_step", "the 1 forgotten", "1.0 + tl.sum", "tl.sum", "expected"),
    ("inverse_step", "a sign flipped", "b_A - b_w", "b_A + b_w", "expected"),
    ("inverse_step", "no mask on the load of u", "o_k, mask=o_k < K, other=0.0", "o_k", "is NaN"),
    ("inverse_step", "the width for the stride", "* stride", "* K", "outside out"),
    ("walk_values", "all read the first values", "o_v, mask=o_v < K, other=0.0", "o_k, mask=o_k < K, other=0.0",
     "raises|expected"),
    ("walk_values", "the question before the write", "        b_S += b_e[:, None] * b_g", "        pass", "expected"),
    ("walk_values", "only the first program", "tl.program_id(0) * BV + ", "", "o[0, 4] is never written"),
    ("walk_values", "the gain for the key", "b_S * b_k", "b_S * b_g", "expected"),
    ("walk_values", "no mask on the store", "axis=1), mask=o_v < K)", "axis=1))", "outside o"),
    ("chunk_sums", "only the first chunk", "o_t = m * BT + tl", "o_t = tl", "expected"),
    ("chunk_sums", "one place for all", "(m * K + o_k)[:, None]", "o_k[:, None]", "expected|never written"),
    ("chunk_sums", "no mask on the tokens", "(o_t[:, None] < T) & (o_k < K), other", "o_k < K, other", "is NaN"),
    ("chunk_sums", "places by the tile's width", "(m * K + o_k)", "(m * BK + o_k)", "outside out|never written"),
    ("chunk_sums", "the tokens' products", "tl.dot(tl.trans(b_u), b_u,", "tl.dot(b_u, tl.trans(b_u),", "expected"),
    ("states", "after the chunk", "        tl.store(p_out + o, b_S, mask=there)\n", "", "never written"),
    ("states", "no map", "tl.dot(b_S, b_P, input_precision=\"ieee\")", "b_S", "expected"),
    ("states", "nothing new", " + tl.load(p_L + o, mask=there, other=0.0)", "", "expected"),
    ("states", "the map from the left", "tl.dot(b_S, b_P,", "tl.dot(b_S, tl.trans(b_P),", "expected"),
    ("states", "only the first rows", "tl.program_id(0) * BV + ", "", "never written"),
    ("states", "no mask on P", "mask=(o_k[:, None] < K) & (o_k < K), other=0.0)", "mask=o_k < BK)", "is NaN"),
    ("sweep", "a step too few", "range(K)", "range(K - 1)", "expected|is NaN"),
    ("sweep", "the sign of the end", "-b_M, mask", "b_M, mask", "expected"),
    ("sweep", "the crossing left as it was", "tl.where(cross, 0.0, b_M)", "b_M", "expected"),
    ("sweep", "steps of the tile, not of M", "range(K)", "range(BK)", "is NaN"),
    ("sweep", "no -1 in the row", "tl.where(here, -1.0, row)", "tl.where(here, 0.0, row)", "expected"),
    ("from_anchors", "solved before the step", "b_A -= b_w[:, None] * b_w", "b_A += 0.0 * b_w[:, None]", "expected"),
    ("from_anchors", "the first anchor for all", "(m * K + o_k)", "o_k", "a[8, 0] is"),
    ("from_anchors", "beyond the last token", "tl.minimum(m * BT + BT, T)", "m * BT + BT", "outside a"),
    ("from_anchors", "every program from token 0", "range(m * BT, ", "range(", "expected|never written"),
    ("from_anchors", "no mask on k", "tl.load(p_k + t * stride + o_k, mask=o_k < K, other=0.0)",
     "tl.load(p_k + t * stride + o_k)", "is NaN"),
    ("unit_gradient", "nothing taken away", "b_dg - along * b_g", "b_dg", "expected"),
    ("unit_gradient", "not divided", "(b_dg - along * b_g) / size", "b_dg - along * b_g", "expected"),
    ("unit_gradient", "no mask on the store", "/ size, mask=m", "/ size", "outside da"),
    ("later", "first chunk first", "(tl.cdiv(T, BT) - 1 - step) * BT", "step * BT", "expected"),
    ("later", "the other triangle", "i[:, None] <= i[None, :]", "i[:, None] >= i[None, :]", "expected"),
    ("later", "itself left out", "i[:, None] <= i[None, :]", "i[:, None] < i[None, :]", "expected"),
    ("later", "the sum on its side", "tl.dot(b_u, b_N,", "tl.dot(b_u, tl.trans(b_N),", "expected"),
    ("triangle", "the diagonal taken too", "o_c[:, None] > o_c", "o_c[:, None] >= o_c", "expected"),
    ("triangle", "the part above", "o_c[:, None] > o_c", "o_c[:, None] < o_c", "expected"),
    ("triangle", "a sign flipped", "b_X -= tl", "b_X += tl", "expected"),
    ("triangle", "one product", "row[:, None] * b_X", "row[:, None] * tl.where(o_c[:, None] == o_c, 1.0, 0.0)",
     "expected"),
    ("triangle", "no mask on the store", "b_X, mask=m)", "b_X)", "outside X"),
    ("inside", "the future seen", "o_t[:, None] >= o_t", "o_t[:, None] <= o_t", "expected"),
    ("inside", "itself left out", "o_t[:, None] >= o_t", "o_t[:, None] > o_t", "expected"),
    ("inside", "not transposed", "tl.trans(b_a)", "b_a", "expected"),
    ("inside", "only the first chunk", "tl.program_id(0) * BT + ", "", "never written"),
    ("inside", "no mask on the errors", "tl.load(p_e + o, mask=m, other=0.0)", "tl.load(p_e + o)", "is NaN"),
    ("split", "cut off, not rounded", "bits + 4096", "bits", "expected"),
    ("split", "a digit too many", "(bits + 4096) & -8192", "(bits + 2048) & -4096", "expected"),
    ("split", "x for the rest", "b_x - b_hi, mask", "b_x, mask", "expected"),
    ("refine", "not refined", "b_x + tl.sum(b_X * b_r[None, :], axis=1)", "b_x", "expected"),
    ("refine", "the residual's sign", "b_b - tl.sum", "b_b + tl.sum", "expected"),
    ("refine", "no mask on the load", "tl.load(p_M + o, mask=m, other=0.0)", "tl.load(p_M + o)", "NaN"),
    ("packed_sums", "into the next sequence", "o_t[:, None] < end", "o_t[:, None] < T", "expected"),
    ("packed_sums", "one tile only", "range(begin, end, BT)", "range(begin, begin + BT, BT)", "expected"),
    ("packed_sums", "no mask on the store", "total, mask=o_k < K", "total", "outside out"),
    ("cached", "the old sums not scaled", "total * old", "total", "expected"),
    ("cached", "no largest", "tl.exp(largest - new), tl.exp(score - new)", "1.0, tl.exp(score)", "NaN|expected"),
    ("cached", "zeros beyond the end", "axis=1), -1e30)", "axis=1), 0.0)", "expected"),
    ("cached", "not divided", "b_o / total", "b_o", "expected"),
    ("moments", "squares of the numbers themselves",
     "square += tl.sum(off * off, axis=1) + gap * gap * first * n / (first + n)",
     "square += tl.sum(b_x * b_x, axis=1) - n * new * new", "var["),
    ("moments", "the gap between tiles forgotten", " + gap * gap * first * n / (first + n)", "", "var["),
    ("moments", "the tile's width for its numbers", "n = tl.minimum(BK, K - first)", "n = BK", "expected"),
    ("moments", "no mask on the differences", "tl.where(m, b_x - new[:, None], 0.0)", "b_x - new[:, None]", "var["),
    ("moments", "not divided", "square / K", "square", "var["),
    ("moments", "read twice",
     "        new = ", "        b_x = tl.load(p_x + o_t[:, None] * stride + o_k, mask=m, other=0.0)\n        new = ",
     "it is right, but reads 256 numbers; expected at most 136"),
    ("product", "x read for each part of w", "        b_out += tl.dot(b_x, b_w, input_precision=\"ieee\")",
     "        for part in range(0, BN, BK):\n"
     "            b_x = tl.load(p_x + o_t[:, None] * stride + o_k, mask=m_x, other=0.0)\n"
     "            here = (o_n >= part) & (o_n < part + BK)\n"
     "            b_out += tl.dot(b_x, tl.where(here, b_w, 0.0), input_precision=\"ieee\")", "it is right, but reads"),
    ("product", "w on its side", "p_w + o_k[:, None] * stride + o_n", "p_w + o_k[:, None] + o_n * stride", "expected"),
    ("product", "one step only", "range(0, K, BK)", "range(0, BK, BK)", "expected"),
    ("product", "the last step for the sum", "b_out += tl", "b_out = tl", "expected"),
    ("product", "no mask on w", "mask=m_w, other=0.0", "mask=o_n < K, other=0.0", "is NaN"),
    ("product", "no mask on the store", ", mask=(o_t[:, None] < T) & (o_n < K))", ")", "outside out"),
]  # fmt: skip

WITHOUT = """
import sys
for name in {missing}:
    sys.modules[name] = None
import vla_teach
from vla_teach.puzzles import PUZZLES, check
print(PUZZLES["write"])
try:
    check("write", print)
except ImportError as error:
    print(error)
"""
UNINTERPRETED = """
import torch
torch.cuda.is_available = lambda: False
from vla_teach.puzzles import check
try:
    check("write", print)
except RuntimeError as error:
    print(error)
"""


def python(*arguments, **environment):
    """What a Python of its own prints; in this one Triton may be there already, made for another device."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{kernel: (verdict, line)} for every kernel of `puzzle_kernels`, right and broken."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "broken.json").write_text(json.dumps(BROKEN))
    done = python(notebooks.ROOT / "tests/puzzle_kernels.py", folder)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PUZZLES)
def test_a_right_kernel_passes(said, name):
    """Guards against a checker that refuses what is right."""
    assert said[name] == [True, f"{name}: right, at 4 sizes\n"]


def test_a_plain_function_passes(said):
    """Guards the other way in: a function of the same arguments, with no grid."""
    assert said["plain function"][0]


@pytest.mark.parametrize(("name", "mistake", "words"), [(b[0], b[1], b[4]) for b in BROKEN])
def test_a_broken_kernel_is_refused(said, name, mistake, words):
    """Guards the checker: each mistake is refused, in one line that says what kind it is."""
    verdict, line = said[f"{name}: {mistake}"]
    assert verdict is False
    assert line.startswith(f"{name}: not yet. ") and line.count("\n") == 1
    assert any(word in line for word in words.split("|")), line


def test_every_puzzle_has_at_least_two_broken_kernels():
    """Guards the list above against a puzzle that came later."""
    assert all(sum(name == broken[0] for broken in BROKEN) >= 2 for name in PUZZLES)


def test_reading_is_counted_where_it_can_be():
    """Guards a reader with a GPU, where nothing is counted, and the puzzles that have no limit."""
    for name, device in (("moments", "cuda"), ("write", "cuda"), ("write", "cpu")):
        assert isinstance(puzzles.counting(PUZZLES[name], device), nullcontext)
    puzzle, sizes = PUZZLES["moments"], dict(T=4, K=12)
    launch = argparse.Namespace(read=dict(p_x=4 * 30, p_w=4 * 22), written={})
    assert puzzles.wasteful(puzzle, sizes, []) is puzzles.wasteful(puzzle, sizes, [launch]) is None
    assert "reads 104 numbers; expected at most 52" in puzzles.wasteful(puzzle, sizes, [launch] * 2)
    assert puzzles.wasteful(PUZZLES["write"], sizes, []) is None


def test_every_puzzle_stands_in_a_chapter():
    """Guards the reader: each puzzle is printed, has a stub to fill, and a folded solution that is checked."""
    code = [
        cell.source
        for path in notebooks.chapters()
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]
    for name in PUZZLES:
        assert sum(f'print(PUZZLES["{name}"])' in cell for cell in code) == 1, name
        assert sum(f'assert check("{name}"' in cell for cell in code) == 1, name
        assert sum(f'check("{name}"' in cell for cell in code) == 2, name


def test_inputs_are_fresh_unless_a_seed_is_given(monkeypatch):
    """Guards against a kernel that has learned the inputs by heart."""
    seen = []
    monkeypatch.setattr(puzzles, "find_device", lambda: "cpu")
    monkeypatch.setattr(puzzles, "run", lambda puzzle, kernel, sizes, rng, device: seen.append(rng.random()))
    for seed in (None, None, 0, 0):
        assert puzzles.check("write", print, seed)
    assert seen[0] != seen[4] and seen[8] == seen[12]


def test_an_unknown_puzzle_is_named():
    """Guards the spelling: the message lists what there is."""
    with pytest.raises(ValueError, match="'wirte'; expected one of unit_rows, write"):
        puzzles.check("wirte", print)


@pytest.mark.parametrize("missing", [["torch"], ["triton"], ["torch", "triton"]])
def test_without_torch_or_triton(missing):
    """Guards the import: the puzzles can be read, and a check says how to get what it needs."""
    assert "make torch" in python("-c", WITHOUT.format(missing=missing)).stdout


def test_with_nothing_to_run_on():
    """Guards the first thing that goes wrong on a laptop: the interpreter was not asked for."""
    assert 'os.environ["TRITON_INTERPRET"] = "1"' in python("-c", UNINTERPRETED).stdout
