"""A right kernel for each puzzle. Run as a script it prints, as JSON, what `check` says of them and of broken copies.

A process of its own, because Triton decides when it is imported whether it interprets. See `test_puzzles.py`.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl

from vla_teach.puzzles import PUZZLES, check


@triton.jit
def unit_rows(p_k, p_out, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    o_t, o_k = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, BK)
    o, m = o_t[:, None] * stride + o_k, (o_t[:, None] < T) & (o_k < K)
    b_k = tl.load(p_k + o, mask=m, other=0.0)
    length = tl.sqrt(tl.sum(b_k * b_k, axis=1))
    tl.store(p_out + o, b_k / length[:, None], mask=m)


@triton.jit
def write(p_S, p_e, p_g, p_out, V, K, stride, BV: tl.constexpr, BK: tl.constexpr):
    o_v, o_k = tl.program_id(0) * BV + tl.arange(0, BV), tl.program_id(1) * BK + tl.arange(0, BK)
    o, m = o_v[:, None] * stride + o_k, (o_v[:, None] < V) & (o_k < K)
    b_e = tl.load(p_e + o_v, mask=o_v < V, other=0.0)
    b_g = tl.load(p_g + o_k, mask=o_k < K, other=0.0)
    b_S = tl.load(p_S + o, mask=m, other=0.0)
    tl.store(p_out + o, b_S + b_e[:, None] * b_g, mask=m)


@triton.jit
def running_sum(p_x, p_out, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    o_k = tl.program_id(0) * BK + tl.arange(0, BK)
    before = tl.zeros([BK], tl.float32)
    for first in range(0, T, BT):
        o_t = first + tl.arange(0, BT)
        o, m = o_t[:, None] * stride + o_k, (o_t[:, None] < T) & (o_k < K)
        b_x = tl.load(p_x + o, mask=m, other=0.0)
        tl.store(p_out + o, before + tl.cumsum(b_x, axis=0), mask=m)
        before += tl.sum(b_x, axis=0)


@triton.jit
def compose(f_1, x_1, f_2, x_2):
    return f_1 * f_2, x_1 * f_2 + x_2


@triton.jit
def decayed_sum(p_f, p_x, p_s, T, BT: tl.constexpr):
    o_t = tl.arange(0, BT)
    b_f = tl.load(p_f + o_t, mask=o_t < T, other=1.0)
    b_x = tl.load(p_x + o_t, mask=o_t < T, other=0.0)
    _, b_s = tl.associative_scan((b_f, b_x), 0, compose)
    tl.store(p_s + o_t, b_s, mask=o_t < T)


@triton.jit
def inverse_step(p_A, p_u, p_out, K, stride, BK: tl.constexpr):
    o_k = tl.arange(0, BK)
    o, m = o_k[:, None] * stride + o_k, (o_k[:, None] < K) & (o_k < K)
    b_A = tl.load(p_A + o, mask=m, other=0.0)
    b_u = tl.load(p_u + o_k, mask=o_k < K, other=0.0)
    b_w = tl.sum(b_A * b_u, axis=1)
    b_w = b_w / tl.sqrt(1.0 + tl.sum(b_w * b_u, axis=0))
    tl.store(p_out + o, b_A - b_w[:, None] * b_w, mask=m)


@triton.jit
def walk_values(p_q, p_k, p_v, p_g, p_o, T, K, stride, BV: tl.constexpr, BK: tl.constexpr):
    o_v, o_k = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BK)
    b_S = tl.zeros([BV, BK], tl.float32)
    for t in range(T):
        b_q = tl.load(p_q + t * stride + o_k, mask=o_k < K, other=0.0)
        b_k = tl.load(p_k + t * stride + o_k, mask=o_k < K, other=0.0)
        b_g = tl.load(p_g + t * stride + o_k, mask=o_k < K, other=0.0)
        b_v = tl.load(p_v + t * stride + o_v, mask=o_v < K, other=0.0)
        b_e = b_v - tl.sum(b_S * b_k, axis=1)
        b_S += b_e[:, None] * b_g
        tl.store(p_o + t * stride + o_v, tl.sum(b_S * b_q, axis=1), mask=o_v < K)


@triton.jit
def chunk_sums(p_u, p_out, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    m, o_k = tl.program_id(0), tl.arange(0, BK)
    o_t = m * BT + tl.arange(0, BT)
    b_u = tl.load(p_u + o_t[:, None] * stride + o_k, mask=(o_t[:, None] < T) & (o_k < K), other=0.0)
    b_out = tl.dot(tl.trans(b_u), b_u, input_precision="ieee")
    tl.store(p_out + (m * K + o_k)[:, None] * stride + o_k, b_out, mask=(o_k[:, None] < K) & (o_k < K))


@triton.jit
def states(p_P, p_L, p_out, N, K, stride, BV: tl.constexpr, BK: tl.constexpr):
    o_v, o_k = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BK)
    b_S = tl.zeros([BV, BK], tl.float32)
    for m in range(N):
        o, there = (m * K + o_v)[:, None] * stride + o_k, (o_v[:, None] < K) & (o_k < K)
        tl.store(p_out + o, b_S, mask=there)
        o_P = (m * K + o_k)[:, None] * stride + o_k
        b_P = tl.load(p_P + o_P, mask=(o_k[:, None] < K) & (o_k < K), other=0.0)
        b_S = tl.dot(b_S, b_P, input_precision="ieee") + tl.load(p_L + o, mask=there, other=0.0)


@triton.jit
def sweep(p_M, p_out, K, stride, BK: tl.constexpr):
    o_k = tl.arange(0, BK)
    o, m = o_k[:, None] * stride + o_k, (o_k[:, None] < K) & (o_k < K)
    b_M = tl.load(p_M + o, mask=m, other=0.0)
    for j in range(K):
        here = o_k == j
        row = tl.sum(tl.where(here[:, None], b_M, 0.0), axis=0)
        p = tl.sum(tl.where(here, row, 0.0), axis=0)
        row = tl.where(here, -1.0, row)
        cross = here[:, None] | here
        b_M = tl.where(cross, 0.0, b_M) - row[:, None] * row / p
    tl.store(p_out + o, -b_M, mask=m)


@triton.jit
def from_anchors(p_A, p_u, p_k, p_a, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    m, o_k = tl.program_id(0), tl.arange(0, BK)
    o, here = (m * K + o_k)[:, None] * stride + o_k, (o_k[:, None] < K) & (o_k < K)
    b_A = tl.load(p_A + o, mask=here, other=0.0)
    for t in range(m * BT, tl.minimum(m * BT + BT, T)):
        b_u = tl.load(p_u + t * stride + o_k, mask=o_k < K, other=0.0)
        b_k = tl.load(p_k + t * stride + o_k, mask=o_k < K, other=0.0)
        b_w = tl.sum(b_A * b_u[:, None], axis=0)
        b_w = b_w / tl.sqrt(1.0 + tl.sum(b_w * b_u, axis=0))
        b_A -= b_w[:, None] * b_w
        tl.store(p_a + t * stride + o_k, tl.sum(b_A * b_k[:, None], axis=0), mask=o_k < K)


@triton.jit
def unit_gradient(p_a, p_dg, p_da, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    o_t, o_k = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, BK)
    o, m = o_t[:, None] * stride + o_k, (o_t[:, None] < T) & (o_k < K)
    b_a = tl.load(p_a + o, mask=m, other=0.0)
    b_dg = tl.load(p_dg + o, mask=m, other=0.0)
    size = tl.sqrt(tl.sum(b_a * b_a, axis=1))[:, None]
    b_g = b_a / size
    along = tl.sum(b_g * b_dg, axis=1)[:, None]
    tl.store(p_da + o, (b_dg - along * b_g) / size, mask=m)


@triton.jit
def later(p_u, p_a, p_b, p_out, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    i, o_k = tl.arange(0, BT), tl.arange(0, BK)
    b_N = tl.zeros([BK, BK], tl.float32)
    for step in range(tl.cdiv(T, BT)):
        o_t = (tl.cdiv(T, BT) - 1 - step) * BT + i
        o, m = o_t[:, None] * stride + o_k, (o_t[:, None] < T) & (o_k < K)
        b_u = tl.load(p_u + o, mask=m, other=0.0)
        b_a = tl.load(p_a + o, mask=m, other=0.0)
        b_b = tl.load(p_b + o, mask=m, other=0.0)
        scores = tl.where(i[:, None] <= i[None, :], tl.dot(b_u, tl.trans(b_a), input_precision="ieee"), 0.0)
        b_out = tl.dot(scores, b_b, input_precision="ieee") + tl.dot(b_u, b_N, input_precision="ieee")
        tl.store(p_out + o, b_out, mask=m)
        b_N += tl.dot(tl.trans(b_a), b_b, input_precision="ieee")


@triton.jit
def triangle(p_W, p_X, C, stride, BC: tl.constexpr):
    o_c = tl.arange(0, BC)
    o, m = o_c[:, None] * stride + o_c, (o_c[:, None] < C) & (o_c < C)
    b_X = tl.where(o_c[:, None] == o_c, 1.0, 0.0)
    b_N = tl.load(p_W + o, mask=m & (o_c[:, None] > o_c), other=0.0)
    for j in range(1, C):
        here = o_c[:, None] == j
        row = tl.sum(tl.where(here, b_N, 0.0), axis=0)
        new = tl.sum(row[:, None] * b_X, axis=0)
        b_X -= tl.where(here, new, 0.0)
    tl.store(p_X + o, b_X, mask=m)


@triton.jit
def inside(p_q, p_a, p_e, p_o, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    o_t, o_k = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, BK)
    o, m = o_t[:, None] * stride + o_k, (o_t[:, None] < T) & (o_k < K)
    b_q = tl.load(p_q + o, mask=m, other=0.0)
    b_a = tl.load(p_a + o, mask=m, other=0.0)
    b_e = tl.load(p_e + o, mask=m, other=0.0)
    scores = tl.dot(b_q, tl.trans(b_a), input_precision="ieee")
    scores = tl.where(o_t[:, None] >= o_t, scores, 0.0)
    tl.store(p_o + o, tl.dot(scores, b_e, input_precision="ieee"), mask=m)


@triton.jit
def split(p_x, p_hi, p_lo, T, BT: tl.constexpr):
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    b_x = tl.load(p_x + o_t, mask=o_t < T, other=0.0)
    bits = b_x.to(tl.int32, bitcast=True)
    bits = (bits + 4096) & -8192
    b_hi = bits.to(tl.float32, bitcast=True)
    tl.store(p_hi + o_t, b_hi, mask=o_t < T)
    tl.store(p_lo + o_t, b_x - b_hi, mask=o_t < T)


@triton.jit
def refine(p_M, p_X, p_b, p_out, K, stride, BK: tl.constexpr):
    i = tl.arange(0, BK)
    o, m = i[:, None] * stride + i, (i[:, None] < K) & (i < K)
    b_M, b_X = tl.load(p_M + o, mask=m, other=0.0), tl.load(p_X + o, mask=m, other=0.0)
    b_b = tl.load(p_b + i, mask=i < K, other=0.0)
    b_x = tl.sum(b_X * b_b[None, :], axis=1)
    b_r = b_b - tl.sum(b_M * b_x[None, :], axis=1)
    tl.store(p_out + i, b_x + tl.sum(b_X * b_r[None, :], axis=1), mask=i < K)


@triton.jit
def packed_sums(p_x, p_begin, p_out, T, N, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    n, o_k = tl.program_id(0), tl.arange(0, BK)
    begin, end = tl.load(p_begin + n).to(tl.int32), tl.load(p_begin + n + 1).to(tl.int32)
    total = tl.zeros([BK], tl.float32)
    for first in range(begin, end, BT):
        o_t = first + tl.arange(0, BT)
        m = (o_t[:, None] < end) & (o_k < K)
        total += tl.sum(tl.load(p_x + o_t[:, None] * stride + o_k, mask=m, other=0.0), axis=0)
    tl.store(p_out + n * stride + o_k, total, mask=o_k < K)


@triton.jit
def cached(p_q, p_k, p_v, p_o, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    o_k = tl.arange(0, BK)
    b_q = tl.load(p_q + o_k, mask=o_k < K, other=0.0)
    largest, total, b_o = -1e30, 0.0, tl.zeros([BK], tl.float32)
    for first in range(0, T, BT):
        o_t = first + tl.arange(0, BT)
        o, m = o_t[:, None] * stride + o_k, (o_t[:, None] < T) & (o_k < K)
        b_k = tl.load(p_k + o, mask=m, other=0.0)
        b_v = tl.load(p_v + o, mask=m, other=0.0)
        score = tl.where(o_t < T, tl.sum(b_k * b_q[None, :], axis=1), -1e30)
        new = tl.maximum(largest, tl.max(score, axis=0))
        old, p = tl.exp(largest - new), tl.exp(score - new)
        total = total * old + tl.sum(p, axis=0)
        b_o = b_o * old + tl.sum(p[:, None] * b_v, axis=0)
        largest = new
    tl.store(p_o + o_k, b_o / total, mask=o_k < K)


@triton.jit
def moments(p_x, p_mean, p_var, T, K, stride, BT: tl.constexpr, BK: tl.constexpr):
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    mean, square = tl.zeros([BT], tl.float32), tl.zeros([BT], tl.float32)
    for first in range(0, K, BK):
        o_k = first + tl.arange(0, BK)
        m = (o_t[:, None] < T) & (o_k < K)
        b_x = tl.load(p_x + o_t[:, None] * stride + o_k, mask=m, other=0.0)
        n = tl.minimum(BK, K - first)
        new = tl.sum(b_x, axis=1) / n
        off = tl.where(m, b_x - new[:, None], 0.0)
        gap = new - mean
        square += tl.sum(off * off, axis=1) + gap * gap * first * n / (first + n)
        mean += gap * n / (first + n)
    tl.store(p_mean + o_t, mean, mask=o_t < T)
    tl.store(p_var + o_t, square / K, mask=o_t < T)


@triton.jit
def product(p_x, p_w, p_out, T, K, stride, BT: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):
    o_t, o_n = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, BN)
    b_out = tl.zeros([BT, BN], tl.float32)
    for first in range(0, K, BK):
        o_k = first + tl.arange(0, BK)
        m_x, m_w = (o_t[:, None] < T) & (o_k < K), (o_k[:, None] < K) & (o_n < K)
        b_x = tl.load(p_x + o_t[:, None] * stride + o_k, mask=m_x, other=0.0)
        b_w = tl.load(p_w + o_k[:, None] * stride + o_n, mask=m_w, other=0.0)
        b_out += tl.dot(b_x, b_w, input_precision="ieee")
    tl.store(p_out + o_t[:, None] * stride + o_n, b_out, mask=(o_t[:, None] < T) & (o_n < K))


# ---- end of the kernels


def said(name, kernel):
    """The verdict of `check`, and the line that it prints."""
    line = io.StringIO()
    with contextlib.redirect_stdout(line):
        verdict = check(name, kernel, seed=0)
    return verdict, line.getvalue()


def main(folder):
    """The broken copies are in folder/broken.json. Each becomes a file, since Triton reads a kernel's source."""
    source = Path(__file__).read_text().split("# ---- end of the kernels")[0]
    out = {name: said(name, globals()[name]) for name in PUZZLES}
    out["plain function"] = said("write", lambda S, e, g, out, *sizes, **blocks: out.copy_(S + e.outer(g)))
    for i, (name, mistake, old, new, _) in enumerate(json.loads((folder / "broken.json").read_text())):
        start = source.index("def compose" if name == "decayed_sum" else f"def {name}(")
        end = source.find("\n\n\n@", source.index(f"def {name}("))
        text = source[start : end if end > 0 else None]
        assert text.count(old) == 1, (name, mistake, text.count(old))
        path = folder / f"broken_{i}.py"
        path.write_text(source[:start] + text.replace(old, new) + (source[end:] if end > 0 else ""))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        out[f"{name}: {mistake}"] = said(name, getattr(module, name))
    print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
