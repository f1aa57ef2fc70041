"""One sequence over several GPUs of one host against one GPU: checked, timed, and held against a model of the cost.

    python -m vla_teach.bench.ranks --out ranks.json
    python -m vla_teach.bench.ranks --out smoke.json --smoke       # CPU, gloo, tiny: only to see that it runs

It starts one process a rank (NCCL; gloo with --smoke), watches them, and ends them after --limit seconds at the latest.
Each piece is kept in OUT.partial as soon as it is done; --resume goes on from there. OUT is written in any case, with
`complete` saying whether all was measured.

What stands in it, times in ms, always the slowest rank's, each repetition after a barrier:
    checks   o, the State and all gradients over the ranks: their errors, and those of one GPU in the same dtype, both
             against one GPU in float64 (float32 where T is given: the whole of a long sequence). At most twice as large
    rows     what = "one":   `ops.vla` on one GPU with T tokens
             what = "alone": `ops.vla` with a group of one rank: what a rank does by itself, and no other to wait for
             what = "ranks": `ops.vla` over R ranks, T tokens in all, T / R each
             what = "exchange": the collectives of one pass alone, with its message sizes
    links    one all-gather, by the bytes that reach a rank
The model (`model`): time(T, R) = alone(T / R) + exchanges(R), fitted without a look at the rows of "ranks".
"""

import argparse
import contextlib
import math
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vla_teach import distributed, ops
from vla_teach.bench.__main__ import whole, without_out
from vla_teach.bench.contestants import BOTH, FORWARD, GAIN, LAMBDA_0, PASSES, draw
from vla_teach.bench.measure import (
    check_finite,
    free_memory,
    gradients,
    leaves,
    peak_bytes,
    random_like,
    relative_error,
    repetitions,
    spread,
    total_bytes,
    turns,
)
from vla_teach.bench.report import NO_MEMORY, RAN, expect
from vla_teach.bench.run import first_line, sources, versions
from vla_teach.experiments.results import ROOT, device_name, provenance, read_json, write_json

KIND, FORMAT = "ranks", 1
PARTS = dict(provenance=dict, settings=dict, checks=list, rows=list, links=list, complete=bool)
TAKES = ("q", "k", "v", "u", "beta")
TIMEOUT = 60  # seconds until a rank that waits for another gives up
START = 45  # seconds that processes may take to begin and end, besides --limit
LEAST = 5  # repetitions, where one takes less than a few seconds
TWICE = 2  # as many times the error of one device is allowed to the ranks


def main(words=None):
    """Returns the exit code: 0, 1 where a check failed or pieces are missing, 2 for a wrong command, 130 if stopped."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m vla_teach.bench.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the file to write; book/results/ranks.json")
    parser.add_argument("--world", type=whole, nargs="+", default=[1, 2], help="numbers of ranks; 1 2")
    parser.add_argument("--D", type=whole, nargs="+", help="widths of a head, K = V; 64 128")
    parser.add_argument("--T", type=whole, nargs="+", help="tokens in all; 4096, 16384, ... 1048576")
    parser.add_argument("--H", type=whole, help="heads; 16")
    parser.add_argument("--seconds", type=float, default=0.3, help="for the repetitions of one measurement")
    parser.add_argument(
        "--limit", type=float, default=115, help="seconds from when all have begun; what is not done by then is left"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the OUT.partial that a stopped run left")
    parser.add_argument("--smoke", action="store_true", help="on the CPU with gloo, tiny; the numbers mean nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # one of the ranks
    args = parser.parse_args(words)
    out = args.out or ROOT / "book/results/ranks.json"
    try:
        settings = settings_of(args)
        if args.inside:
            return rank_main(settings, out, args.limit)
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder; expected a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(out)
        if not args.resume:
            partial.unlink(missing_ok=True)
        elif not partial.exists():
            raise ValueError(f"--resume: there is no {partial}; run without it")
        command = " ".join([parser.prog, *without_out([word for word in words if word != "--resume"])])
        run = [sys.executable, "-m", "vla_teach.bench.ranks", *words, "--inside"]
        problems = start(run, max(settings["world"]), args.limit + START, dict(VLA_COMMAND=command))
        if not partial.exists():
            raise ValueError(f"nothing was measured: {'; '.join(problems)}")
        content = read_json(partial)
        write_json(out, content | dict(problems=problems, complete=content["complete"] and not problems))
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    content = read_ranks(out)
    print(table(content))
    print(f"written to {out}")
    if content["complete"]:
        partial.unlink()
    return 0 if content["complete"] and all(one["passed"] for one in content["checks"]) else 1


def settings_of(args):
    """What is measured, as plain data."""
    if not 0 < args.seconds < math.inf or not 0 < args.limit < math.inf:
        raise ValueError("--seconds and --limit; expected numbers above 0")
    if args.smoke:
        usual = dict(D=[16], T=[64, 256], H=2, check_T=[37, 22, 5, 9], long_T=512, device="cpu", backend="gloo")
    else:
        usual = dict(D=[64, 128], T=[4**i for i in range(6, 11)], H=16, check_T=[700, 331, 129, 64], long_T=2**18)
        usual |= dict(device="cuda", backend="nccl")
        if not torch.cuda.is_available() or torch.cuda.device_count() < max(args.world):
            raise ValueError(f"there are {torch.cuda.device_count()} GPUs here, expected {max(args.world)}; or --smoke")
    given = {name: getattr(args, name) for name in ("D", "T", "H") if getattr(args, name)}
    most = max(args.world)
    if max(args.world) > len(usual["check_T"]):
        usual["check_T"] = usual["check_T"] * most
    usual["check_T"] = usual["check_T"][: max(2, most)]
    told = dict(world=sorted(set(args.world)), seconds=args.seconds, smoke=args.smoke)
    rule = dict(B=1, dtype="bfloat16", gain=GAIN, lambda_0=LAMBDA_0, nvls=os.environ.get("NCCL_NVLS_ENABLE"))
    settings = usual | given | told | rule
    if any(T % R for T in settings["T"] for R in settings["world"]):
        raise ValueError(f"--T is {settings['T']}; expected multiples of the numbers of ranks")
    return settings


def kernels_of(settings):
    """The back end that runs."""
    return "triton" if settings["device"] == "cuda" else "chunk"


def partial_of(out):
    return out.with_name(out.name + ".partial")


# ---- the processes ----------------------------------------------------------------------------------------------


def start(run, n, seconds, environment):
    """Runs a command n times, as the ranks of a group; what went wrong, in words.

    Where one rank fails, or time is up, all are ended. Nothing that was started is left behind.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(n), OMP_NUM_THREADS="1")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # they are all on this machine
        place[name] = os.environ.get(name, "lo")
    place |= environment
    ranks = [subprocess.Popen(run, env=os.environ | place | dict(RANK=str(i), LOCAL_RANK=str(i))) for i in range(n)]
    ends, problems = time.monotonic() + seconds, []
    try:
        while any(rank.poll() is None for rank in ranks):
            if lost := [i for i, rank in enumerate(ranks) if rank.poll()]:
                problems.append(f"rank {lost[0]} ended with {ranks[lost[0]].returncode}")
                break
            if time.monotonic() > ends:
                problems.append("out of time")
                break
            time.sleep(0.1)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()
    return problems


def rank_main(settings, out, limit):
    """The life of one rank."""
    rank, wait = int(os.environ["RANK"]), timedelta(seconds=TIMEOUT)
    device = torch.device(settings["device"], rank) if settings["device"] == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(settings["backend"], timeout=wait)
    work = Work(settings, device, out, limit)
    for piece in pieces(settings):
        if not work.go_on(piece):
            continue
        work.note(piece, work.tried(piece))
    work.finish()
    dist.barrier(group=work.control)
    sys.stdout.flush()
    os._exit(0)  # all is written; nothing is to go wrong in taking the groups down


def pieces(settings):
    """What is to be done, in order, as plain data: {what, ...}."""
    most, ranks = max(settings["world"]), [R for R in settings["world"] if R > 1]
    for D in settings["D"]:
        for dtype in ("bfloat16", "float32") if D == settings["D"][0] else ("bfloat16",):
            for packed in (False, True):
                yield dict(what="check", D=D, dtype=dtype, packed=packed, R=most, T=None)
        if D == settings["D"][0]:
            yield dict(what="check", D=D, dtype="bfloat16", packed=False, R=most, T=settings["long_T"])
            yield from (dict(what="links", R=R) for R in ranks)
        yield from (dict(what="exchange", D=D, R=R, passes=passes) for R in ranks for passes in PASSES)
        for T in settings["T"]:
            for passes in PASSES:
                for t in sorted({T, *(T // R for R in ranks)}):
                    yield dict(what="one", D=D, T=t, passes=passes, R=1)
                yield from (dict(what="alone", D=D, T=T // R, passes=passes, R=1) for R in ranks)
                yield from (dict(what="ranks", D=D, T=T, passes=passes, R=R) for R in ranks)


class Work:
    """What a rank holds while it measures. Rank 0 decides and notes; the others follow."""

    def __init__(self, settings, device, out, limit):
        self.settings, self.device, self.partial, self.limit = settings, device, partial_of(out), limit
        self.rank, self.began = dist.get_rank(), time.monotonic()
        # Orders are sent over gloo: a rank that waits for its turn waits on the CPU.
        self.control = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit + TIMEOUT))
        self.groups = {R: dist.new_group(list(range(R))) for R in range(1, dist.get_world_size() + 1)}
        seed = self.told(secrets.randbits(32))
        self.generator = torch.Generator(device).manual_seed(seed + self.rank)
        self.seed = seed
        key = dict(settings=settings, device=device_name(device), versions=versions(), sources=sources())
        self.kept = dict(
            kind=KIND, format=FORMAT, **key, seeds=[], done=[], checks=[], rows=[], links=[], complete=False
        )
        problem = None
        if self.rank == 0 and self.partial.exists():
            kept = read_json(self.partial)
            wrong = [name for name, value in key.items() if kept.get(name) != value]
            problem = f"--resume: {self.partial} has other {', '.join(wrong)}" if wrong else None
            self.kept = kept
        if problem := self.told(problem):
            raise ValueError(problem)
        self.kept["seeds"].append(seed)
        self.before, self.provenance = self.kept.get("provenance", {}).get("seconds", 0.0), None

    def told(self, what):
        """What rank 0 has, on all ranks."""
        box = [what]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def go_on(self, piece):
        """Whether this piece is done now: it is not there yet, there is time, and memory for it."""
        verdict = None
        if self.rank == 0:
            late = time.monotonic() - self.began > self.limit
            verdict = "done" if piece in self.kept["done"] else "late" if late else self.too_large(piece)
            if verdict == NO_MEMORY:
                self.note(piece, dict(status=NO_MEMORY, why="a smaller one did not fit"))
        return self.told(verdict) is None

    def too_large(self, piece):
        """NO_MEMORY where what a rank has to do did not fit when it was tried by itself."""
        if piece["what"] not in ("one", "alone", "ranks"):
            return None
        for row in self.kept["rows"]:
            if row.get("status") == NO_MEMORY and row["what"] != "ranks":
                same = (row["D"], row["passes"]) == (piece["D"], piece["passes"])
                kind = row["what"] == ("one" if piece["what"] == "one" else "alone")
                if same and kind and piece["T"] // piece["R"] >= row["T"]:
                    return NO_MEMORY
        return None

    def note(self, piece, found):
        """Keeps what rank 0 has found."""
        if self.rank or found is None:
            return
        where = dict(check="checks", links="links").get(piece["what"], "rows")
        self.kept[where] += [piece | one for one in (found if isinstance(found, list) else [found])]
        self.kept["done"].append(piece)
        line = " ".join(f"{value}" for value in piece.values())
        told = found if isinstance(found, dict) else {}
        more = f" {told['median_ms']:.3f} ms" if told.get("median_ms") else f" passed: {told.get('passed', '-')}"
        print(f"{time.monotonic() - self.began:6.1f} s  {line} {more}", flush=True)
        self.keep()

    def about(self):
        """The provenance, but for the seconds."""
        about = provenance(os.environ.get("VLA_COMMAND", ""), self.device, 0.0)
        more = dict(nccl=".".join(map(str, torch.cuda.nccl.version()))) if self.device.type == "cuda" else {}
        versions = about["versions"] | self.kept["versions"] | more
        return about | dict(versions=versions, sources=self.kept["sources"])

    def keep(self):
        """Writes all that is known."""
        self.provenance = self.provenance or self.about()
        seconds = self.before + time.monotonic() - self.began
        write_json(self.partial, self.kept | dict(provenance=self.provenance | dict(seconds=seconds)))

    def finish(self):
        """Says whether nothing is missing."""
        if self.rank == 0:
            self.kept["complete"] = all(piece in self.kept["done"] for piece in pieces(self.settings))
            self.keep()

    # one piece

    def tried(self, piece):
        """What comes of a piece, or what went wrong on the first rank where something did; all go on together."""
        problem, found = None, None
        try:
            found = self.done_by(piece)
        except Exception as error:
            problem = first_line(error)
        said = [None] * dist.get_world_size()
        dist.all_gather_object(said, problem, group=self.control)
        wrong = [f"rank {rank}: {words}" for rank, words in enumerate(said) if words]
        if wrong and piece["what"] == "check":
            return dict(errors={}, one_device={}, limits={}, passed=False, message=wrong[0])
        return dict(status=wrong[0]) if wrong else found

    def done_by(self, piece):
        """What comes of a piece; the ranks that have no part in it return at once."""
        if self.rank >= piece["R"]:
            return None
        do = dict(check=self.check, links=self.links, exchange=self.exchange)
        return do.get(piece["what"], self.measure)(piece)

    def check(self, piece):
        """Errors of o, State and gradients over the ranks, relative to one device in float64; beside one device."""
        group, R, H, D = self.groups[piece["R"]], piece["R"], self.settings["H"], piece["D"]
        lengths = [piece["T"] // R] * R if piece["T"] else self.settings["check_T"][:R]
        T, first = sum(lengths), sum(lengths[: self.rank])
        same = torch.Generator(self.device).manual_seed(self.seed)  # the whole sequence, on every rank
        x = draw(1, T, H, D, getattr(torch, piece["dtype"]), self.device, same)
        x = {name: x[name] for name in TAKES}
        N, cut = 4 if piece["packed"] else 1, lengths[0]  # the third sequence crosses the first border
        bounds = torch.tensor([0, cut // 3, cut // 3 + 1, cut + 3, T]) if piece["packed"] else None
        weights = [random_like(x["v"], same), torch.randn(N, H, D, D, generator=same, device=self.device)]
        lambda_0 = torch.full((H,), LAMBDA_0, device=self.device)

        def results(dtype=None, group=None):
            """o, S, A and the gradients of all tensors and of lambda_0; in dtype, over the group if there is one."""
            mine = slice(first, first + lengths[self.rank]) if group else slice(None)
            given = {name: a[:, mine].to(dtype or a.dtype) for name, a in x.items()}
            given = leaves(given | dict(lambda_0=lambda_0.to(dtype or lambda_0.dtype)))
            cu = bounds
            if group and bounds is not None:
                cu = distributed.slice_bounds(bounds, first, lengths[self.rank])
            cu = cu if cu is None else cu.to(self.device)
            backend = "chunk" if dtype == torch.float64 else "auto"
            o, state = ops.vla(**given, gain=GAIN, cu_seqlens=cu, output_final_state=True, backend=backend, group=group)
            loss = (weights[0][:, mine].to(o.dtype) * o).sum(dtype=dtype or torch.float32)
            if group is None or self.rank == R - 1:
                loss = loss + (weights[1].to(state.S.dtype) * state.S).sum()
            found = dict(o=o.detach(), S=state.S.detach(), A=state.A.detach())
            found |= {f"d{name}": a for name, a in gradients(loss, given, None).items()}
            if group:
                dist.all_reduce(found["dlambda_0"], group=group)
            sliced = ("o", *(f"d{name}" for name in TAKES)) if group else ()
            return {name: whole_of(a) if name in sliced else a for name, a in found.items()}

        def whole_of(a):
            """The slices of all ranks, one after the other."""
            most = max(lengths)
            filled = a.new_zeros(1, most, *a.shape[2:])
            filled[:, : a.shape[1]] = a
            parts = [torch.empty_like(filled) for _ in lengths]
            dist.all_gather(parts, filled.contiguous(), group=group)
            return torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], 1)

        got = results(group=group)
        if self.rank:
            return None
        one, wanted = results(), results(torch.float32 if piece["T"] else torch.float64)
        ours, other = ({name: relative_error(a, wanted[name]) for name, a in some.items()} for some in (got, one))
        least = 1e-5 if piece["dtype"] == "float32" else 1e-4  # below it is luck: sums in another order
        limits = {name: TWICE * max(error, least) for name, error in other.items()}
        limits["dlambda_0"] = max(limits.values())  # a sum over all tokens, whose own error is a matter of luck
        passed = all(math.isfinite(error) and error <= limits[name] for name, error in ours.items())
        safe = {name: error if math.isfinite(error) else None for name, error in ours.items()}
        bounds = None if bounds is None else bounds.tolist()
        return dict(lengths=lengths, bounds=bounds, errors=safe, one_device=other, limits=limits, passed=passed)

    def links(self, piece):
        """One all-gather of float32, by how many bytes reach a rank."""
        group, R, found = self.groups[piece["R"]], piece["R"], []
        for power in (12, 15, 18) if self.settings["smoke"] else (8, 12, 15, 18, 20, 22, 24, 26):
            x = torch.ones(2**power // 4, device=self.device)
            out = [torch.empty_like(x) for _ in range(R)]
            times = self.repeated(lambda _, out=out, x=x: dist.all_gather(out, x, group=group), group)
            found.append(dict(status=RAN, received=(R - 1) * x.nbytes) | times)
        return found

    def exchange(self, piece):
        """The collectives of one pass, and nothing else."""
        group, R, H, D = self.groups[piece["R"]], piece["R"], self.settings["H"], piece["D"]
        kind = kernels_of(self.settings)
        sent = [torch.ones(1, H, rows, D, device=self.device) for rows in distributed.rows_sent(D, D, kind)]
        back = [torch.ones(R, 1, H, rows, D, device=self.device) for rows in distributed.rows_sent(D, D, kind, True)]

        def call(_):
            distributed.agree([1.0] * len(distributed.NAMES), self.device, group)
            for x in sent:
                distributed.everyones(x, group)
            for i, x in enumerate(back if piece["passes"] == BOTH else ()):
                if kind == "triton" and i == 0:
                    distributed.everyones(x[0], group)
                else:
                    distributed.exchange(dist.reduce_scatter, torch.empty_like(x[0]), list(x), group)

        with counted() as bytes_:
            call(0)
        return dict(status=RAN, received=sum(bytes_)) | self.repeated(call, group)

    def measure(self, piece):
        """Times, peak memory of each rank, and the bytes that reached rank 0, of one call."""
        passes, R, T = piece["passes"], piece["R"], piece["T"] // piece["R"]
        group = None if piece["what"] == "one" else self.groups[R]
        free_memory(self.device)
        try:
            return self.measured(passes, group, T, piece["D"])
        except torch.OutOfMemoryError:
            if R > 1:
                raise  # the others wait; there is no way back from here
            free_memory(self.device)
            return dict(status=NO_MEMORY)

    def measured(self, passes, group, T, D):
        dtype, H = getattr(torch, self.settings["dtype"]), self.settings["H"]

        def inputs():
            x = draw(1, T, H, D, dtype, self.device, self.generator)
            x = {name: x[name] for name in TAKES}
            return (x, None) if passes == FORWARD else (leaves(x), random_like(x["v"], self.generator))

        def call(i=0):
            given, do = sets[i % len(sets)]
            with torch.set_grad_enabled(passes == BOTH):
                o, _ = ops.vla(**given, lambda_0=LAMBDA_0, gain=GAIN, group=group)
            return [o] if passes == FORWARD else [o, *gradients(o, given, do).values()]

        sets = [inputs()]
        with counted() as bytes_:
            check_finite(call())  # compiles
        own = total_bytes(sets[0][0].values()) + (0 if sets[0][1] is None else total_bytes([sets[0][1]]))
        peak, _ = peak_bytes(call, own, self.device)
        sets += [inputs() for _ in range(turns(own, self.device) - 1)]
        times = self.repeated(call, group)
        peaks = torch.tensor([peak or 0], device=self.device)
        if group is not None:
            peaks = distributed.everyones(peaks, group).flatten()
        return dict(status=RAN, received=sum(bytes_), exchanges=len(bytes_), inputs_bytes=own,
                    peak_bytes=peaks.tolist(), input_sets=len(sets)) | times  # fmt: skip

    def repeated(self, call, group):
        """The spread of the slowest rank's times of call(0), call(1), ..., in ms."""
        self.timed(call, 2, group)
        once = statistics.median(self.timed(call, 3, group)) / 1e3
        n = max(LEAST, repetitions(once, self.settings["seconds"], least=10))  # the same on all ranks, as `once` is
        return spread(self.timed(call, n, group))

    def timed(self, call, n, group):
        """n times in ms, by events on a GPU: each begins when all ranks have come, and is that of the slowest."""
        times = []
        if self.device.type == "cuda":
            mark, events = torch.zeros(1, device=self.device), []
            torch.cuda.synchronize(self.device)
            for i in range(n):
                if group is not None:
                    dist.all_reduce(mark, group=group)
                pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                pair[0].record()
                call(i)
                pair[1].record()
                events.append(pair)
            torch.cuda.synchronize(self.device)
            times = [start.elapsed_time(end) for start, end in events]
        for i in range(n if self.device.type != "cuda" else 0):
            if group is not None:
                dist.barrier(group=group)
            start = time.perf_counter()
            call(i)
            times.append(1e3 * (time.perf_counter() - start))
        times = torch.tensor(times, dtype=torch.float64, device=self.device)
        if group is not None:
            dist.all_reduce(times, dist.ReduceOp.MAX, group=group)
        return times.tolist()


@contextlib.contextmanager
def counted():
    """A list that gets, for each exchange of `vla_teach.distributed`, how many bytes reach this rank from others."""
    found, exchange = [], distributed.exchange

    def counting(collective, out, given, group):
        many, one = (out, given) if isinstance(out, list) else (given, out)
        found.append(sum(x.nbytes for x in many) - one.nbytes)
        exchange(collective, out, given, group)

    distributed.exchange = counting
    try:
        yield found
    finally:
        distributed.exchange = exchange


# ---- the file ---------------------------------------------------------------------------------------------------


def read_ranks(path: str | Path) -> dict:
    """What this module wrote, as a dict. Raises FileNotFoundError, or ValueError where it is broken."""
    content = read_json(path)
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (KIND, FORMAT):
        raise ValueError(f"{path.name} is no {KIND} of format {FORMAT}; expected what vla_teach.bench.ranks writes")
    expect(path, "it", content, PARTS)
    return content


def times(content: dict, what: str, D: int, passes: str, R: int = 1) -> dict[int, float]:
    """{T: median in ms}, T rising."""
    rows = [row for row in content["rows"] if (row["what"], row["D"], row.get("passes"), row["R"]) ==
            (what, D, passes, R) and row["status"] == RAN]  # fmt: skip
    return {row["T"]: row["median_ms"] for row in sorted(rows, key=lambda row: row["T"])}


def received(R: int, H: int, K: int, V: int, passes: str, backend: str = "triton", size: int = 4) -> int:
    """Bytes that reach a rank from the others, by the formula; with the check of exchange 0."""
    numbers = sum(distributed.rows_sent(K, V, backend))
    if passes == BOTH:
        numbers += sum(distributed.rows_sent(K, V, backend, backward=True))
    return (R - 1) * (H * numbers * K * size + 8 * (1 + len(distributed.NAMES)))


# ---- the model --------------------------------------------------------------------------------------------------


def fit_alone(times: dict[int, float]) -> tuple[float, float]:
    """(least, rate): max(least, rate T) as near as possible to times {T: ms}, in their logarithms."""
    points, best = sorted(times.items()), None
    for i in range(len(points) + 1):
        least = geometric([ms for _, ms in points[:i]]) if i else 0.0
        rate = geometric([ms / T for T, ms in points[i:]]) if i < len(points) else 0.0
        off = sum(math.log(max(least, rate * T) / ms) ** 2 for T, ms in points)
        if best is None or off < best[0]:
            best = off, least, rate
    return best[1:]


def geometric(numbers):
    return math.exp(statistics.fmean(map(math.log, numbers)))


def fit_link(links):
    """(delay in ms, ms a byte): max(delay, rate bytes), fitted like `fit_alone`, from the all-gathers."""
    return fit_alone({one["received"]: one["median_ms"] for one in links if one["status"] == RAN})


def model(content: dict, D: int, passes: str) -> Callable[[int, int], float]:
    """A function (T, R) -> ms, fitted to one rank alone and to exchanges alone; no time of R ranks at work is used.

    time(T, R) = max(least, rate T / R) + what the collectives of a pass take alone on R_0 ranks, the fewest measured,
    + the further bytes that reach a rank of R, at the speed of long all-gathers.
    """
    least, rate = fit_alone(times(content, "alone", D, passes))
    R_0 = min(one["R"] for one in content["links"])
    _, slope = fit_link([one for one in content["links"] if one["R"] == R_0])
    exchanges, H = exchange_time(content, D, passes, R_0), content["settings"]["H"]
    kind = kernels_of(content["settings"])

    def predict(T, R):
        further = received(R, H, D, D, passes, kind) - received(R_0, H, D, D, passes, kind)
        return max(least, rate * T / R) + exchanges + max(0.0, further * slope)

    return predict


def exchange_time(content: dict, D: int, passes: str, R: int) -> float:
    """The median in ms of the collectives of one pass alone. Raises ValueError where it was not measured."""
    for row in content["rows"]:
        if (row["what"], row["D"], row["passes"], row["R"]) == ("exchange", D, passes, R) and row["status"] == RAN:
            return row["median_ms"]
    raise ValueError(f"there is no time of the exchanges alone for D = {D}, {passes}, {R} ranks")


def table(content):
    """What was measured and what follows, as text."""
    about = content["provenance"]
    lines = [f"{about['device']}, {about['when']}, complete: {content['complete']}"]
    for one in content["checks"]:
        lines.append(f"check D {one['D']} {one['dtype']} packed {one['packed']} T {one['T'] or 'short'}: ")
        if one["errors"]:
            errors = {name: math.inf if error is None else error for name, error in one["errors"].items()}
            worst = max(errors, key=lambda name: errors[name] / one["limits"][name])
            lines[-1] += f"{worst} off by {errors[worst]:.1e}, one device by {one['one_device'][worst]:.1e}, "
        lines[-1] += "passed" if one["passed"] else f"FAILED {one.get('message', '')}"
    for D in content["settings"]["D"]:
        for passes in PASSES:
            one = times(content, "one", D, passes)
            for R in content["settings"]["world"]:
                over = times(content, "ranks", D, passes, R)
                for T, ms in over.items():
                    text = f"D {D:3d} {passes:16s} T {T:8d} R {R}: {ms:9.3f} ms"
                    if T in one:
                        text += f", one {one[T]:9.3f} ms, efficiency {one[T] / ms / R:.2f}"
                    with contextlib.suppress(ValueError, StopIteration):
                        text += f", model {model(content, D, passes)(T, R):9.3f} ms"
                    lines.append(text)
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:  # a rank says why before it ends; the others learn it from their timeout
        if "--inside" not in sys.argv:
            raise
        print(f"rank {os.environ.get('RANK')}: {first_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)
