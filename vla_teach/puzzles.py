"""Puzzles for a first week with Triton: `check` runs a reader's kernel and says in one line what is wrong with it.

Outputs are filled with a marked NaN beforehand, so an entry that was never written is known as such. All arrays lie in
larger buffers: reading outside one gives NaN, writing outside one is noticed. Matrices have gaps between their rows, so
a kernel needs the stride that it is given. Some puzzles allow only so many numbers to be read. Needs PyTorch and
Triton; without a GPU set TRITON_INTERPRET=1 before Triton is imported, and its interpreter runs the kernel on the CPU.
"""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np

OUTSIDE = np.float32(np.nan)  # around inputs
UNWRITTEN = np.uint32(0x7FC0BEEF).view(np.float32)  # in and around outputs: a NaN that no arithmetic makes
ZONE = 8192  # numbers before and after each array
GAP = 3  # numbers between two rows of a matrix


class Puzzle(NamedTuple):
    """What a kernel has to compute, and how `check` launches it."""

    says: str  # the task in a sentence
    signature: str  # the kernel's arguments, in order
    sizes: tuple  # runs: each a dict of the sizes in the signature
    blocks: dict  # the tile sizes, tl.constexpr
    programs: object  # sizes -> the grid
    inputs: object  # (rng, sizes) -> {name: array}, in the order of the signature
    reference: object  # inputs -> {name: array}, the outputs, in the order of the signature
    most: object = None  # sizes -> the most numbers that may be read; the interpreter counts them, a GPU does not

    def __str__(self):
        return f"{self.says}\n{self.signature}\ntiles: {', '.join(f'{b} = {n}' for b, n in self.blocks.items())}"


def cdiv(n, block):
    """How many blocks cover n."""
    return -(-n // block)


def decayed_sums(f, x):
    """s_t = f_t s_{t-1} + x_t from s = 0, one after the other. f, x [T] -> s [T]."""
    s, out = 0, np.empty_like(x)
    for t in range(len(x)):
        s = out[t] = f[t] * s + x[t]
    return out


def unit_rows(rng, n, m):
    """A random matrix [n, m] with rows of length 1."""
    x = rng.normal(size=(n, m))
    return x / np.sqrt(np.sum(x * x, axis=1, keepdims=True))


def positive(rng, n):
    """A random positive definite matrix [n, n], far from singular."""
    x = rng.normal(size=(n, n))
    return x @ x.T / n + np.eye(n) / 2


def walked(q, k, v, g):
    """o_t = S_t q_t with S_t = S_{t-1} + (v_t - S_{t-1} k_t) g_t^T from S = 0. All [T, K] -> [T, K]."""
    S, out = np.zeros((v.shape[1], k.shape[1])), np.empty_like(v)
    for t in range(len(k)):
        S = S + np.outer(v[t] - S @ k[t], g[t])
        out[t] = S @ q[t]
    return out


def chunk_sums(u, BT):
    """Rows m K to m K + K: the sum of u_t u_t^T over the m-th BT tokens. u [T, K] -> [n K, K]."""
    return np.concatenate([u[t : t + BT].T @ u[t : t + BT] for t in range(0, len(u), BT)])


def states_before(P, L):
    """S before each chunk, from S = 0: a chunk makes S P + L of it. P, L [N K, K] -> [N K, K]."""
    K = P.shape[1]
    S, out = np.zeros((K, K)), np.empty_like(L)
    for m in range(0, len(P), K):
        out[m : m + K] = S
        S = S @ P[m : m + K] + L[m : m + K]
    return out


def solved_from(A, u, k, BT):
    """A_t k_t for every token; A [n K, K] has the inverse before every BT-th token."""
    K, out = k.shape[1], np.empty_like(k)
    for t in range(len(k)):
        if t % BT == 0:
            M = np.linalg.inv(A[t // BT * K :][:K])
        M = M + np.outer(u[t], u[t])
        out[t] = np.linalg.solve(M, k[t])
    return out


def unit_gradient(a, dg):
    """The gradient of a, where dg arrives at g = a / |a|. a, dg [T, K] -> [T, K]."""
    size = np.linalg.norm(a, axis=1, keepdims=True)
    g = a / size
    return (dg - g * np.sum(g * dg, axis=1, keepdims=True)) / size


def inside(q, a, e, BT):
    """The sum of (q_t . a_s) e_s over s <= t in the chunk of BT tokens that t is in."""
    t = np.arange(len(q))
    near = (t[:, None] >= t) & (t[:, None] // BT == t // BT)
    return np.where(near, q @ a.T, 0) @ e


def rounded(x, digits):
    """x with so many binary digits of fraction, rounded to the nearest."""
    step = 2.0 ** (np.floor(np.log2(np.abs(x))) - digits)
    return np.round(x / step) * step


def near_inverse(rng, K):
    """M [K, K], symmetric positive definite, X that is its inverse to about a per cent, and b [K]."""
    M = positive(rng, K)
    X = np.linalg.inv(M)
    return dict(M=M, X=X * (1 + 0.03 * rng.normal(size=X.shape)), b=rng.normal(size=K))


def cuts(rng, T, N):
    """Where N sequences begin that fill T rows, and T: whole numbers [N + 1]; some may be empty."""
    return np.array([0, *np.sort(rng.integers(0, T + 1, size=N - 1)), T])


def cache(rng, T, K):
    """q [K], k and v [T, K]; k q grows slowly from 100, or from -100 for odd T: no number for a bare exponential."""
    q, k, v = rng.normal(size=K), rng.normal(size=(T, K)) / 2, rng.normal(size=(T, K))
    return dict(q=q, k=k + np.outer(100 * (-1) ** T + np.arange(T) / 8, q / (q @ q)), v=v)


def far_from_zero(rng, T, K):
    """Random numbers [T, K] of spread 1 around 300 or -300: their squares have no digits left for the spread."""
    return rng.normal(size=(T, K)) + 300 * rng.choice([-1, 1], size=(T, 1))


def softmax(x):
    """exp(x) over its sum. [T] -> [T]."""
    p = np.exp(x - x.max())
    return p / p.sum()


PUZZLES = {
    "unit_rows": Puzzle(
        "Divide each row of k [T, K] by its length. One program takes BT rows, whole.",
        "unit_rows(p_k, p_out, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=8, K=16), dict(T=13, K=11), dict(T=3, K=15)),
        dict(BT=8, BK=16),
        lambda n: (cdiv(n["T"], 8),),
        lambda rng, n: dict(k=rng.normal(size=(n["T"], n["K"]))),
        lambda k: dict(out=k / np.sqrt(np.sum(k * k, axis=1, keepdims=True))),
    ),
    "write": Puzzle(
        "Add e g^T to the memory S [V, K]. One program makes one tile of BV x BK entries.",
        "write(p_S, p_e, p_g, p_out, V, K, stride, BV, BK)",
        (dict(V=1, K=1), dict(V=8, K=16), dict(V=13, K=37), dict(V=21, K=5)),
        dict(BV=8, BK=16),
        lambda n: (cdiv(n["V"], 8), cdiv(n["K"], 16)),
        lambda rng, n: dict(S=rng.normal(size=(n["V"], n["K"])), e=rng.normal(size=n["V"]), g=rng.normal(size=n["K"])),
        lambda S, e, g: dict(out=S + np.outer(e, g)),
    ),
    "running_sum": Puzzle(
        "Row t of the output is the sum of rows 0 to t of x [T, K]. One program takes BK columns.",
        "running_sum(p_x, p_out, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=16, K=8), dict(T=45, K=19), dict(T=33, K=3)),
        dict(BT=16, BK=8),
        lambda n: (cdiv(n["K"], 8),),
        lambda rng, n: dict(x=rng.normal(size=(n["T"], n["K"]))),
        lambda x: dict(out=np.cumsum(x, axis=0)),
    ),
    "decayed_sum": Puzzle(
        "s_t = f_t s_{t-1} + x_t for t < T, from s = 0. One program takes all of it, with one scan.",
        "decayed_sum(p_f, p_x, p_s, T, BT)",
        (dict(T=1), dict(T=64), dict(T=13), dict(T=57)),
        dict(BT=64),
        lambda n: (1,),
        lambda rng, n: dict(f=rng.uniform(0.5, 1, size=n["T"]), x=rng.normal(size=n["T"])),
        lambda f, x: dict(s=decayed_sums(f, x)),
    ),
    "inverse_step": Puzzle(
        "One step of Sherman-Morrison: A - A u u^T A / (1 + u^T A u), A [K, K] symmetric. One program takes all of it.",
        "inverse_step(p_A, p_u, p_out, K, stride, BK)",
        (dict(K=1), dict(K=16), dict(K=13), dict(K=5)),
        dict(BK=16),
        lambda n: (1,),
        lambda rng, n: dict(A=positive(rng, n["K"]), u=rng.normal(size=n["K"])),
        lambda A, u: dict(out=A - np.outer(A @ u, A @ u) / (1 + u @ A @ u)),
    ),
    "walk_values": Puzzle(
        "o_t = S_t q_t with S_t = S_{t-1} + (v_t - S_{t-1} k_t) g_t^T, from S = 0; all matrices are [T, K].\n"
        "One program keeps BV rows of S, for BV of the K values, and walks all T tokens.",
        "walk_values(p_q, p_k, p_v, p_g, p_o, T, K, stride, BV, BK)",
        (dict(T=1, K=1), dict(T=20, K=16), dict(T=13, K=11), dict(T=7, K=3)),
        dict(BV=4, BK=16),
        lambda n: (cdiv(n["K"], 4),),
        lambda rng, n: {name: unit_rows(rng, n["T"], n["K"]) for name in "qkvg"},
        lambda q, k, v, g: dict(o=walked(q, k, v, g)),
    ),
    "chunk_sums": Puzzle(
        "Rows m K to m K + K of the output are the sum of u_t u_t^T over chunk m, tokens m BT to m BT + BT or to the\n"
        "last; u [T, K]. One program takes a chunk, with one product of tiles.",
        "chunk_sums(p_u, p_out, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=32, K=16), dict(T=45, K=11), dict(T=19, K=5)),
        dict(BT=16, BK=16),
        lambda n: (cdiv(n["T"], 16),),
        lambda rng, n: dict(u=rng.normal(size=(n["T"], n["K"]))),
        lambda u: dict(out=chunk_sums(u, 16)),
    ),
    "states": Puzzle(
        "Chunk m makes S P + L of the memory S [K, K], with rows m K to m K + K of P and of L; S = 0 before chunk 0.\n"
        "The same rows of the output are S before chunk m. A program takes BV rows of S through all N chunks.",
        "states(p_P, p_L, p_out, N, K, stride, BV, BK)",
        (dict(N=1, K=1), dict(N=3, K=32), dict(N=5, K=21), dict(N=2, K=18)),
        dict(BV=16, BK=32),
        lambda n: (cdiv(n["K"], 16),),
        lambda rng, n: {x: rng.normal(size=(n["N"] * n["K"], n["K"])) / np.sqrt(n["K"]) for x in ("P", "L")},
        lambda P, L: dict(out=states_before(P, L)),
    ),
    "sweep": Puzzle(
        "The inverse of the symmetric M [K, K], in K steps. Step j, with r row j and p = M[j, j]: subtract r r^T / p;\n"
        "row j and column j become r / p, and their crossing -1 / p. The last M is minus the inverse. One program.",
        "sweep(p_M, p_out, K, stride, BK)",
        (dict(K=1), dict(K=16), dict(K=13), dict(K=4)),
        dict(BK=16),
        lambda n: (1,),
        lambda rng, n: dict(M=positive(rng, n["K"])),
        lambda M: dict(out=np.linalg.inv(M)),
    ),
    "from_anchors": Puzzle(
        "a_t = A_t k_t, with A_t by Sherman-Morrison; u, k [T, K]. Rows m K to m K + K of A are the inverse before\n"
        "token m BT. Program m walks the BT tokens from there on, or as many as there are.",
        "from_anchors(p_A, p_u, p_k, p_a, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=24, K=16), dict(T=13, K=11), dict(T=9, K=3)),
        dict(BT=8, BK=16),
        lambda n: (cdiv(n["T"], 8),),
        lambda rng, n: dict(
            A=np.concatenate([positive(rng, n["K"]) for _ in range(cdiv(n["T"], 8))]),
            u=rng.normal(size=(n["T"], n["K"])),
            k=rng.normal(size=(n["T"], n["K"])),
        ),
        lambda A, u, k: dict(a=solved_from(A, u, k, 8)),
    ),
    "unit_gradient": Puzzle(
        "g = a / |a|, row by row. From a and the gradient dg of g make the gradient da of a. A program takes BT rows.",
        "unit_gradient(p_a, p_dg, p_da, T, K, stride, BT, BK)",
        (dict(T=1, K=16), dict(T=8, K=16), dict(T=13, K=11), dict(T=3, K=15)),
        dict(BT=8, BK=16),
        lambda n: (cdiv(n["T"], 8),),
        lambda rng, n: dict(a=rng.normal(size=(n["T"], n["K"])), dg=rng.normal(size=(n["T"], n["K"]))),
        lambda a, dg: dict(da=unit_gradient(a, dg)),
    ),
    "later": Puzzle(
        "Row s of the output is the sum over t >= s of (u_s . a_t) b_t. One program does all, last chunk first.",
        "later(p_u, p_a, p_b, p_out, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=16, K=16), dict(T=45, K=11), dict(T=33, K=16)),
        dict(BT=16, BK=16),
        lambda n: (1,),
        lambda rng, n: {x: rng.normal(size=(n["T"], n["K"])) / 4 for x in ("u", "a", "b")},
        lambda u, a, b: dict(out=np.triu(u @ a.T) @ b),
    ),
    "triangle": Puzzle(
        "X = (I + N)^{-1}, N the part of W [C, C] strictly below its diagonal; the rest of W means nothing.\n"
        "One program takes all of it, one row of X after the other.",
        "triangle(p_W, p_X, C, stride, BC)",
        (dict(C=1), dict(C=16), dict(C=13), dict(C=4)),
        dict(BC=16),
        lambda n: (1,),
        lambda rng, n: dict(W=rng.uniform(-1, 1, size=(n["C"], n["C"]))),
        lambda W: dict(X=np.linalg.inv(np.eye(len(W)) + np.tril(W, -1))),
    ),
    "inside": Puzzle(
        "o_t = sum over s <= t in the same chunk of (q_t . a_s) e_s; all matrices are [T, K].\n"
        "One program takes a chunk of BT tokens, with two products of tiles.",
        "inside(p_q, p_a, p_e, p_o, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=32, K=16), dict(T=45, K=13), dict(T=19, K=5)),
        dict(BT=16, BK=16),
        lambda n: (cdiv(n["T"], 16),),
        lambda rng, n: {name: rng.normal(size=(n["T"], n["K"])) for name in "qae"},
        lambda q, a, e: dict(o=inside(q, a, e, 16)),
    ),
    "split": Puzzle(
        "hi is x rounded to 10 binary digits of fraction, to the nearest; lo is the rest. A program takes BT numbers.",
        "split(p_x, p_hi, p_lo, T, BT)",
        (dict(T=1), dict(T=64), dict(T=150), dict(T=100)),
        dict(BT=64),
        lambda n: (cdiv(n["T"], 64),),
        lambda rng, n: dict(x=rng.normal(size=n["T"]) * 2.0 ** rng.integers(-4, 5, size=n["T"])),
        lambda x: dict(hi=rounded(x, 10), lo=x - rounded(x, 10)),
    ),
    "refine": Puzzle(
        "X is nearly the inverse of M [K, K]. Solve M x = b: x = X b, then add X (b - M x) to it. One program does it.",
        "refine(p_M, p_X, p_b, p_out, K, stride, BK)",
        (dict(K=1), dict(K=16), dict(K=11), dict(K=7)),
        dict(BK=16),
        lambda n: (1,),
        lambda rng, n: near_inverse(rng, n["K"]),
        lambda M, X, b: dict(out=X @ b + X @ (b - M @ X @ b)),
    ),
    "packed_sums": Puzzle(
        "Row n of the output is the sum of rows begin[n] to begin[n + 1] - 1 of x [T, K]: one sequence, one program.",
        "packed_sums(p_x, p_begin, p_out, T, N, K, stride, BT, BK)",
        (dict(T=1, N=1, K=1), dict(T=32, N=2, K=16), dict(T=45, N=4, K=11), dict(T=40, N=7, K=5)),
        dict(BT=8, BK=16),
        lambda n: (n["N"],),
        lambda rng, n: dict(x=rng.normal(size=(n["T"], n["K"])), begin=cuts(rng, n["T"], n["N"])),
        lambda x, begin: dict(out=np.stack([x[int(i) : int(j)].sum(0) for i, j in pairwise(begin)])),
    ),
    "cached": Puzzle(
        "One token of softmax attention: p = softmax(k q) over the rows of k [T, K], o = sum of p_t v_t. One program.",
        "cached(p_q, p_k, p_v, p_o, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=16, K=16), dict(T=45, K=11), dict(T=33, K=16)),
        dict(BT=16, BK=16),
        lambda n: (1,),
        lambda rng, n: cache(rng, n["T"], n["K"]),
        lambda q, k, v: dict(o=softmax(k @ q) @ v),
    ),
    "moments": Puzzle(
        "Mean and variance of each row of x [T, K]: the sum over K, divided by K, of x, and of (x - mean)^2.\n"
        "One program takes BT rows, BK columns at a time, and reads x once (and once more a number of each row).",
        "moments(p_x, p_mean, p_var, T, K, stride, BT, BK)",
        (dict(T=1, K=1), dict(T=8, K=16), dict(T=13, K=45), dict(T=3, K=100)),
        dict(BT=8, BK=16),
        lambda n: (cdiv(n["T"], 8),),
        lambda rng, n: dict(x=far_from_zero(rng, n["T"], n["K"])),
        lambda x: dict(mean=x.mean(axis=1), var=x.var(axis=1)),
        lambda n: n["T"] * n["K"] + n["T"],
    ),
    "product": Puzzle(
        "out = x w, with x [T, K] and w [K, K]; K is at most BN. One program makes BT rows of out, in steps of BK\n"
        "columns of x and rows of w. It reads its rows of x once, and w once.",
        "product(p_x, p_w, p_out, T, K, stride, BT, BK, BN)",
        (dict(T=1, K=1), dict(T=32, K=64), dict(T=45, K=37), dict(T=19, K=50)),
        dict(BT=16, BK=16, BN=64),
        lambda n: (cdiv(n["T"], 16),),
        lambda rng, n: dict(x=rng.normal(size=(n["T"], n["K"])) / 4, w=rng.normal(size=(n["K"], n["K"])) / 4),
        lambda x, w: dict(out=x @ w),
        lambda n: n["T"] * n["K"] + cdiv(n["T"], 16) * n["K"] ** 2,
    ),
}


def check(name: str, kernel: Callable, seed: int | None = None) -> bool:
    """Run a kernel on fresh inputs of several sizes, print what was found in a line, return whether all is right.

    kernel: made by @triton.jit, launched on the puzzle's grid; or a plain function of the same arguments that launches
    what it likes, or computes with the tensors itself. seed: for the same inputs each time.
    Raises ValueError for an unknown puzzle, ImportError without PyTorch or Triton, RuntimeError with nothing to run on.
    """
    if name not in PUZZLES:
        raise ValueError(f"there is no puzzle {name!r}; expected one of {', '.join(PUZZLES)}")
    puzzle, rng, device = PUZZLES[name], np.random.default_rng(seed), find_device()
    for sizes in puzzle.sizes:
        fault = run(puzzle, kernel, sizes, rng, device)
        if fault:
            print(f"{name}: not yet. {', '.join(f'{s} = {n}' for s, n in sizes.items())}: {fault}")
            return False
    print(f"{name}: right, at {len(puzzle.sizes)} sizes")
    return True


def find_device():
    """Where kernels run: "cpu" under the interpreter, else "cuda"."""
    try:
        import torch
        import triton
    except ImportError as error:
        words = "vla_teach.puzzles needs PyTorch and Triton, and one of them is not installed; try: make torch"
        raise ImportError(f"{words} (Triton is made for Linux)") from error
    if triton.knobs.runtime.interpret:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    raise RuntimeError(
        'no GPU here, and no interpreter; restart Python, set os.environ["TRITON_INTERPRET"] = "1", then import triton'
    )


def run(puzzle, kernel, sizes, rng, device):
    """What is wrong with one run, in words; None if nothing is."""
    given = {name: x.astype(np.float32) for name, x in puzzle.inputs(rng, sizes).items()}
    wanted = puzzle.reference(**{name: x.astype(np.float64) for name, x in given.items()})
    inputs = [Guarded(name, x, device, OUTSIDE) for name, x in given.items()]
    outputs = [Guarded(name, np.full(x.shape, UNWRITTEN), device, UNWRITTEN) for name, x in wanted.items()]
    tensors = [x.window for x in (*inputs, *outputs)]
    strides = [x.stride(0) for x in tensors if x.ndim == 2][:1]  # one for all matrices: they have the same width
    launch = kernel[puzzle.programs(sizes)] if hasattr(kernel, "__getitem__") else kernel
    try:
        # 0 / 0 in an entry that is masked off afterwards does no harm.
        with np.errstate(all="ignore"), counting(puzzle, device) as launches:
            launch(*tensors, *sizes.values(), *strides, **puzzle.blocks)
        faults = [x.outside() for x in (*outputs, *inputs)] + [x.changed() for x in inputs]
        faults += [*(x.wrong(wanted[x.name]) for x in outputs), wasteful(puzzle, sizes, launches)]
    except Exception as error:  # a reader's kernel can raise anything
        cause = error.__cause__ or error
        return f"it raises {type(cause).__name__}, {cause}"
    return next(filter(None, faults), None)


def counting(puzzle, device):
    """A context with a list of what is launched in it, if the puzzle limits what is read and it can be counted."""
    if puzzle.most is None or device != "cpu":
        return nullcontext([])
    from vla_teach.watch import watch

    return watch()


def wasteful(puzzle, sizes, launches):
    """The complaint about more numbers read than the puzzle allows."""
    read = sum(sum(one.read.values()) for one in launches) // 4
    if not read or read <= puzzle.most(sizes):
        return None
    return f"it is right, but reads {read} numbers; expected at most {puzzle.most(sizes)}"


class Guarded:
    """The numbers x [n] or [n, m] inside a larger buffer full of `fill`. `window` is the tensor that kernels get."""

    def __init__(self, name, x, device, fill):
        import torch

        self.name = name
        width = x.shape[1] + GAP if x.ndim == 2 else 1
        self.index = ZONE + sum(np.ix_(*(np.arange(n) * s for n, s in zip(x.shape, (width, 1), strict=False))))
        self.before = np.full(2 * ZONE + x.shape[0] * width, fill)
        self.before[self.index] = x
        self.buffer = torch.tensor(self.before.view(np.int32), device=device)
        self.window = self.buffer.view(torch.float32).as_strided(x.shape, (width, 1)[: x.ndim], ZONE)

    def after(self):
        return self.buffer.cpu().numpy().view(np.float32)

    def outside(self):
        """The complaint about writes outside the array, if there were any."""
        touched = bits(self.after()) != bits(self.before)
        touched[self.index] = False
        n = np.count_nonzero(touched)
        return f"it writes outside {self.name} ({n} numbers); mask or stride?" if n else None

    def changed(self):
        """The complaint about an input that is no longer what it was."""
        same = bits(self.after()) == bits(self.before)
        return None if same.all() else f"it changes {self.name}, which is an input"

    def wrong(self, wanted):
        """The complaint about the first entry that is not as wanted."""
        got = self.after()[self.index]
        bad = np.argwhere(~np.isclose(got, wanted, rtol=1e-4, atol=1e-5))
        if not len(bad):
            return None
        at = tuple(bad[0])
        entry = f"{self.name}[{', '.join(map(str, at))}]"
        if bits(got)[at] == bits(UNWRITTEN):
            return f"{entry} is never written"
        if np.isnan(got[at]):
            return f"{entry} is NaN; read outside an array?"
        return f"{entry} is {got[at]:.4g}, expected {wanted[at]:.4g}"


def bits(x):
    """float32 numbers as integers, so that every NaN equals itself alone."""
    return np.asarray(x).view(np.int32)
