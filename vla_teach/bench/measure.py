"""Checks, times and counts: whether a contestant is right, how long it takes, and how long it must take."""

import gc
import math
import statistics
import time
from itertools import pairwise

import torch

from vla_teach.bench.contestants import BOTH, FORWARD, GAIN, LAMBDA_0, draw
from vla_teach.ops import State, start_state, vla

CHUNK = 64  # tokens a chunk, for the floor
STATE_LIMIT = 1e-4  # the largest relative error of a state in float32 after some steps of decoding

# ---- right ------------------------------------------------------------------------------------------------------


def relative_error(x, wanted):
    """The root mean square of the error over that of what is wanted. Raises ValueError where shapes differ."""
    if x.shape != wanted.shape:
        raise ValueError(f"a result has shape {list(x.shape)}; expected {list(wanted.shape)}")
    x, wanted = x.detach().double(), wanted.detach().double()
    return ((x - wanted).norm() / wanted.norm()).item()


def passed(errors, limits):
    """Whether every error is within its limit, a number for all or one for each. NaN never is."""
    limits = limits if isinstance(limits, dict) else dict.fromkeys(errors, limits)
    return bool(errors) and all(error <= limits[name] for name, error in errors.items())


def check(contestant, run, tensors, generator, part=lambda x: x):
    """{name: relative error} of o, and of the gradient of every tensor, against the reference in float64.

    part: the piece of every tensor that is compared, where that piece can be computed by itself; all of it by default.
    """
    poison(next(iter(tensors.values())).device)
    with torch.no_grad():
        found = dict(o=part(run(**tensors)))
    if not contestant.backward:
        return {"o": relative_error(found["o"], contestant.reference(**in_float64(tensors, part)))}
    given = leaves(tensors)
    o = run(**given)
    do = random_like(o, generator)
    found |= {"o, recorded": part(o.detach())} | {f"d{name}": part(x) for name, x in gradients(o, given, do).items()}
    del o, given
    given = leaves(in_float64(tensors, part))
    o = contestant.reference(**given)
    wanted = {"o": o, "o, recorded": o}
    wanted |= {f"d{name}": x for name, x in gradients(o, given, part(do).double()).items()}
    return {name: relative_error(x, wanted[name]) for name, x in found.items()}


def last_head(x):
    """The last head of the last sequence of x [B, T, H, ...]: the one that a wrong offset misses first."""
    return x[-1:, :, -1:]


def check_step(step, B, H, D, dtype, generator, tokens=8):
    """{name: relative error} of o, S and A after some steps from a state in use, against the loop in float64."""

    def some(T):
        x = draw(B, T, H, D, dtype, generator.device, generator)
        return {name: x[name] for name in ("q", "k", "v", "u", "beta")}

    _, state = vla(**in_float64(some(100)), lambda_0=LAMBDA_0, gain=GAIN, output_final_state=True, backend="chunk")
    S, A = (x.float() for x in state)
    x, state, outputs = some(tokens), State(S, A), []
    for t in range(tokens):
        o, state = step(**{name: a[:, t] for name, a in x.items()}, state=state)
        outputs.append(o)
    start = State(S.double(), A.double())
    wanted_o, wanted = vla(
        **in_float64(x), gain=GAIN, initial_state=start, output_final_state=True, backend="recurrent"
    )
    pairs = dict(o=(torch.stack(outputs, 1), wanted_o), S=(state.S, wanted.S), A=(state.A, wanted.A))
    return {name: relative_error(*pair) for name, pair in pairs.items()}


def in_float64(tensors, part=lambda x: x):
    return {name: part(x).double() for name, x in tensors.items()}


def leaves(tensors):
    return {name: x.detach().requires_grad_() for name, x in tensors.items()}


def gradients(o, given, do):
    """{name: gradient} of the tensors given."""
    return dict(zip(given, torch.autograd.grad(o, tuple(given.values()), do), strict=True))


def random_like(x, generator):
    return torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype)


def poison(device):
    """Leaves NaN in the memory that is handed out next, so that an output that nobody wrote shows."""
    free_memory(device)
    torch.full((2**28 if device.type == "cuda" else 2**16,), torch.nan, device=device)


def free_memory(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- fast -------------------------------------------------------------------------------------------------------


def measure(contestant, run, sizes, passes, generator, seconds):
    """Times in ms and bytes of one contestant at one size.

    sizes: B, T, H, D, dtype for `draw`. passes: "forward", without recording, or "forward+backward", with the
    gradients of all its tensors for one fixed random gradient of o. seconds: the most that all repetitions may take.
    peak_bytes: inputs, outputs, gradients and all in between at once; None on a CPU. input_sets: how many inputs take
    turns, so that none is found in the cache. Raises ValueError where a result is not finite.
    """
    device = generator.device
    free_memory(device)

    def inputs():
        x = draw(*sizes, device, generator)
        x = contestant.arrange({name: x[name] for name in contestant.takes})
        return (x, None) if passes == FORWARD else (leaves(x), random_like(x["v"], generator))

    def call(i=0):
        given, do = sets[i % len(sets)]
        with torch.set_grad_enabled(passes == BOTH):
            o = run(**given)
        return [o] if passes == FORWARD else [o, *gradients(o, given, do).values()]

    sets = [inputs()]
    check_finite(call())  # compiles, tunes and takes workspaces
    own = total_bytes(sets[0][0].values())
    turn = own if sets[0][1] is None else own + total_bytes([sets[0][1]])
    peak, samples = peak_bytes(lambda: timed(call, 1, device), turn, device)
    if samples[0] / 1e3 < seconds:  # otherwise the one sample is all there is time for
        sets += [inputs() for _ in range(turns(turn, device) - 1)]
        warm = timed(call, repetitions(samples[0] / 1e3, seconds / 10, least=10), device)
        n = repetitions(statistics.median(warm) / 1e3, seconds)
        samples = timed(call, n, device)
        check_finite(call(n))
    return spread(samples) | dict(peak_bytes=peak, inputs_bytes=own, input_sets=len(sets))


def check_finite(results):
    """Refuses NaN and infinity."""
    if not all(x.isfinite().all() for x in results):
        raise ValueError("a result is not finite")


def repetitions(once, seconds, least=20, enough=0.2):
    """How many repetitions of `once` s: at least 20, more until they take 0.2 s, but at most as many s as given."""
    once = max(once, 1e-6)
    return max(1, min(max(least, math.ceil(enough / once)), int(seconds / once)))


def spread(samples):
    """Of times in ms: median, 10 and 90 percentiles, least, and how many there are."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) / 10
    ends = dict(p10=ordered[math.floor(place)], p90=ordered[math.ceil(9 * place)])
    return dict(median_ms=statistics.median(ordered), **ends, min=ordered[0], repetitions=len(ordered))


def timed(call, n, device):
    """The times in ms of call(0), ... call(n - 1): by events on a GPU."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for i in range(n):
            call(i)
            marks.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in pairwise(marks)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(n)] for _ in range(2)]
    torch.cuda.synchronize(device)
    for i, (start, end) in enumerate(zip(*events, strict=True)):
        start.record()
        call(i)
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in zip(*events, strict=True)]


def peak_bytes(call, inputs, device):
    """(the most bytes in use during call, counting `inputs` bytes that are there already, or None; what call gives)."""
    if device.type != "cuda":
        return None, call()
    others = torch.cuda.memory_allocated(device) - inputs  # workspaces and the like
    torch.cuda.reset_peak_memory_stats(device)
    found = call()
    return torch.cuda.max_memory_allocated(device) - others, found


def turns(inputs, device):
    """How many sets of so many bytes are twice the GPU's cache."""
    if device.type != "cuda":
        return 2
    return min(64, math.ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / inputs))


def total_bytes(tensors):
    return sum(x.numel() * x.element_size() for x in tensors)


def measure_step(step, B, H, D, dtype, generator, seconds):
    """Times in ms of one token for B sequences, the state carried on; graph_ms: as a CUDA graph, no launch gaps."""
    device = generator.device
    x = draw(B, 64, H, D, dtype, device, generator)
    tokens = [{name: x[name][:, t].contiguous() for name in ("q", "k", "v", "u", "beta")} for t in range(64)]
    state = start_state(B, H, D, D, LAMBDA_0, device=device)

    @torch.no_grad()
    def call(i):
        nonlocal state
        o, state = step(**tokens[i % 64], state=state)
        return o

    timed(call, 10, device)
    n = repetitions(statistics.median(timed(call, 10, device)) / 1e3, seconds)
    times = spread(timed(call, n, device))
    check_finite([call(0), *state])
    with torch.no_grad():
        return times | dict(graph_ms=graph_ms(lambda: step(**tokens[0], state=state), n, device))


def graph_ms(call, n, device):
    """The median time in ms of a call recorded as a CUDA graph; None on a CPU and where that does not work."""
    if device.type != "cuda":
        return None
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return None
    graph.replay()
    return statistics.median(timed(lambda _: graph.replay(), n, device))


# ---- how fast it could be ---------------------------------------------------------------------------------------


def ceilings(device, copy_bytes=2**31, n=8192):
    """What the device reaches: copy_gb_s, bytes read and written by a copy; TFLOP/s of an n x n x n product."""
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(copy_bytes // 4, generator=generator, device=device)
    b = torch.empty_like(a)
    found = dict(copy_gb_s=2 * total_bytes([a]) / 1e6 / typical(lambda _: b.copy_(a), device))
    del a, b
    a, b = (torch.randn(n, n, generator=generator, device=device) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # tf32
    try:
        found["tf32_tflop_s"] = 2e-9 * n**3 / typical(lambda _: a @ b, device)
    finally:
        torch.set_float32_matmul_precision(before)
    a, b = a.bfloat16(), b.bfloat16()
    found["bf16_tflop_s"] = 2e-9 * n**3 / typical(lambda _: a @ b, device)
    return found | dict(copy_bytes=copy_bytes, matmul=n)


def typical(call, device, n=20):
    """The median time in ms, after some for warming up."""
    timed(call, 5, device)
    return statistics.median(timed(call, n, device))


def floor(
    B: int, T: int, H: int, K: int, V: int, dtype_bytes: int, passes: str, chunk: int = CHUNK
) -> dict[str, float]:
    """What VLA's chunk form cannot do without: dict(bytes, solve, write), the last two multiply-adds.

    Bytes, a token and a head: forward reads q, k, u (K each), v (V), beta (1) and writes o (V). Backward reads these
    five and do (V) and writes dq, dk, du (K each), dv (V), dbeta (1). Nothing in between is counted.

    Multiply-adds, a chunk of C tokens, one penalty direction a token; where only a triangle is wanted, or one factor
    is triangular, only that part is counted. A = M^{-1} at the chunk's start; leading terms only.
    solve, forward:  U^T U, U A, K A: C K^2 each; M^{-1}: K^3 / 2; (U A) U^T, (U A) K^T, Y^T (U A): C^2 K / 2 each;
                     Cholesky of the C x C matrix and two solves with it: C^3 / 6 each.
    solve, backward: b_t = A_t g_t with the factors of before: C K^2 + C^2 K + C^3 / 3; then du from sums of b a^T:
                     B^T A, U (...): C K^2 each; (U B^T) A and (U A^T) B in the chunk: C^2 K / 2 for each of 4 products.
    write, forward:  K S^T, Q S^T, E^T G: C K V each; K G^T, Q G^T: C^2 K / 2 each; the triangular solve for E, and
                     tril(Q G^T) E: C^2 V / 2 each.
    write, backward: two products of the same size for each one: twice the forward.
    That is a bound for this form, not for every form; solving twice for precision is not counted.
    Raises ValueError for other passes.
    """
    if passes not in (FORWARD, BOTH):
        raise ValueError(f"passes is {passes!r}; expected {FORWARD} or {BOTH}")
    C, chunks, read = chunk, B * H * math.ceil(T / chunk), 3 * K + V + 1
    numbers = read + V
    solve = 3 * C * K**2 + K**3 / 2 + 3 / 2 * C**2 * K + C**3 / 2
    write = 3 * C * K * V + C**2 * K + C**2 * V
    if passes == BOTH:
        numbers += read + V + read
        solve += 3 * C * K**2 + 3 * C**2 * K + C**3 / 3
        write *= 3
    return dict(bytes=B * H * T * numbers * dtype_bytes, solve=chunks * solve, write=chunks * write)


def floor_times(counts, limits, dtype_bytes):
    """What `floor` counts in ms: the bytes at the speed of a copy; solve as tf32, write in the dtype of the inputs."""
    rate = limits["bf16_tflop_s" if dtype_bytes == 2 else "tf32_tflop_s"]
    arithmetic = 2e-9 * (counts["solve"] / limits["tf32_tflop_s"] + counts["write"] / rate)
    return dict(floor_bytes_ms=counts["bytes"] / 1e6 / limits["copy_gb_s"], floor_arithmetic_ms=arithmetic)
