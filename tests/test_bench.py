"""The benchmark, on the CPU: what is refused before it is timed, counts, the file and its reader, resuming."""

import argparse
import copy
import json
import math
import re
from functools import partial

import pytest
import torch
from mutations import passes, refuses

from vla_teach import ops
from vla_teach.bench import __main__, contestants, measure, report, run
from vla_teach.bench.contestants import CONTESTANTS, GAIN, LAMBDA_0, PASSES, Contestant, draw
from vla_teach.bench.report import read_bench, table
from vla_teach.bench.run import Settings, bench
from vla_teach.experiments import results
from vla_teach.experiments.results import read_json, write_json
from vla_teach.ops import vla, vla_step

pytestmark = pytest.mark.usefixtures("one_core")
SMALL = Settings({8: (70, 140)}, H=2, contestants=("vla_chunk",), seconds=0.01, decode=(), copy_bytes=2**16, matmul=16)


def right(q, k, v, u, beta):
    return vla(q, k, v, u, beta, LAMBDA_0, GAIN, backend="chunk")[0]


def join(monkeypatch, function, **changes):
    """A contestant named "one" for VLA's rule."""
    fields = contestants.VLA | dict(about="", load=lambda: function, check_T=40) | changes
    monkeypatch.setitem(CONTESTANTS, "one", Contestant(**fields))


def one(**changes):
    return Settings(**dict(vars(SMALL), contestants=("one",)) | changes)


def checked(settings):
    """(functions that passed, those for decoding, checks, what is left out)."""
    return run.check_all(settings, torch.Generator().manual_seed(torch.seed() % 2**32), quiet=True)


# ---- the gate ---------------------------------------------------------------------------------------------------


class BadGradient(torch.autograd.Function):
    """Its gradient is NaN in one place."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g[-1, -1, -1, -1] = torch.nan
        return g


def nan_somewhere(*x):
    o = right(*x).clone()
    o[-1, -1, -1, -1] = torch.nan
    return o


def sign_in_last_head(q, k, v, u, beta):
    """Wrong for long texts only, and there in one head."""
    o = right(q, k, v, u, beta)
    flip = torch.ones(o.shape[2], 1, dtype=o.dtype)
    flip[-1] = -1 if o.shape[1] > 100 else 1
    return o * flip


def without(name):
    """One tensor gets no gradient."""

    def function(**x):
        return right(**x | {name: x[name].detach() + 0 * x[name]})

    return function


BROKEN = dict(
    sign=lambda **x: -right(**x),
    nan=lambda **x: nan_somewhere(*x.values()),
    nan_gradient=lambda **x: right(**x | dict(u=BadGradient.apply(x["u"]))),
    no_lambda=lambda **x: vla(**x, lambda_0=1e-6, gain=GAIN)[0],
    other_lambda=lambda **x: vla(**x, lambda_0=0.11, gain=GAIN)[0],
    other_gain=lambda **x: vla(**x, lambda_0=LAMBDA_0, gain="interpolate")[0],
    no_beta=lambda **x: right(**x | dict(beta=torch.ones_like(x["beta"]) + 0 * x["beta"])),
    last_token=lambda **x: right(**x) * (torch.arange(x["q"].shape[1]) < x["q"].shape[1] - 1)[:, None, None],
    last_head=lambda **x: sign_in_last_head(*x.values()),
    recording_only=lambda **x: right(**x) * (2 if torch.is_grad_enabled() else 1),
    not_recording_only=lambda **x: right(**x) * (1 if torch.is_grad_enabled() else 2),
    shape=lambda **x: right(**x)[:, :, :1],
    nothing=lambda **x: 0 * right(**x),
    crash=lambda **x: right(**x) @ torch.ones(3, 3),
    **{f"no_gradient_{name}": without(name) for name in ("q", "k", "v", "u", "beta")},
)  # fmt: skip


@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float32"))
def test_right_ones_pass(dtype):
    """Guards the gate: VLA's two forms in PyTorch pass in every dtype, FlashAttention where it takes the dtype."""
    settings = Settings(**dict(vars(SMALL), contestants=("flash", "vla_chunk"), dtype=dtype))
    runs, _, checks, skipped = checked(settings)
    names = {"vla_chunk"} | ({"flash"} if dtype != "float32" else set())
    assert {name for name, _ in runs} == names and all(one["passed"] for one in checks)
    assert skipped == ({} if dtype != "float32" else dict(flash="it takes no float32"))
    long = [one["what"] for one in checks if one["contestant"] == "vla_chunk"]
    assert long == ["B = 2, T = 1000", "B = 1, T = 140, last head"]
    assert set(checks[-1]["errors"]) == {"o", "o, recorded", "dq", "dk", "dv", "du", "dbeta"}


def test_the_loop_passes(monkeypatch):
    """Guards the gate: so does the loop."""
    loop = CONTESTANTS["vla_loop"]
    monkeypatch.setitem(CONTESTANTS, "vla_loop", loop._replace(check_T=100))
    runs, _, checks, _ = checked(Settings(**dict(vars(SMALL), contestants=("vla_loop",))))
    assert list(runs) == [("vla_loop", 8)] and len(checks) == 1


@pytest.mark.parametrize("name", BROKEN)
def test_broken_ones_are_refused(name, monkeypatch):
    """Guards every time in the file: what computes something else is not timed."""
    join(monkeypatch, right)
    assert list(checked(one())[0]) == [("one", 8)]
    join(monkeypatch, BROKEN[name])
    runs, _, checks, skipped = checked(one())
    assert not runs and not skipped
    assert not checks[-1]["passed"] and len(checks) == (2 if name == "last_head" else 1)
    assert bool(checks[-1]["message"]) == (name in ("shape", "crash"))  # the others by a wrong number
    json.dumps(checks, allow_nan=False)
    assert "FAILED: one, D = 8" in report.failure(checks[-1])


def test_forward_only(monkeypatch):
    """Guards the paper's kernel: without gradients it is checked and timed forward alone."""
    join(monkeypatch, lambda **x: right(**{name: a.detach() for name, a in x.items()}), backward=False)
    runs, _, checks, _ = checked(one())
    assert runs and set(checks[0]["errors"]) == {"o"}
    assert {job[-1] for job in one().jobs()} == {"forward"}
    join(monkeypatch, BROKEN["sign"], backward=False)
    assert not checked(one())[0]


def test_what_is_not_there_is_left_out(monkeypatch):
    """Guards the list: a missing package or back end is no failure, but a broken one is."""

    def absent():
        import no_such_package  # noqa: F401

    def bad():
        raise RuntimeError("cannot load")

    join(monkeypatch, None, load=absent)
    runs, _, checks, skipped = checked(one())
    assert (runs, checks, list(skipped)) == ({}, [], ["one"]) and "no_such_package" in skipped["one"]
    join(monkeypatch, None, load=partial(contestants.load_vla, "no_such"))
    runs, _, checks, skipped = checked(one())
    assert (runs, checks) == ({}, []) and "not available" in skipped["one"]
    join(monkeypatch, None, load=bad)
    runs, _, checks, skipped = checked(one())
    assert not runs and not skipped and checks[0]["message"] == "RuntimeError: cannot load"
    for error in (
        TypeError("f() got an unexpected keyword argument 'q'"), RuntimeError("a kernel, which is not available"),
        ValueError("not available"), KeyError("u"),
    ):  # fmt: skip
        assert not contestants.missing(error)


def test_memory_in_checks(monkeypatch):
    """Guards the long check: where memory does not do, the next length is taken; the short check must succeed."""

    def small_memory(most, **x):
        if x["q"].shape[1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(**x)

    join(monkeypatch, partial(small_memory, 100))
    runs, _, checks, _ = checked(one())
    assert runs and [x["what"] for x in checks] == ["B = 2, T = 40", "B = 1, T = 70, last head"]
    join(monkeypatch, partial(small_memory, 10))
    runs, _, checks, _ = checked(one())
    assert not runs and checks[0]["message"] == "out of memory"


def right_step(q, k, v, u, state, beta):
    return vla_step(q, k, v, u, state, beta, GAIN)


def changed(S=lambda x: x, A=lambda x: x, o=lambda x: x):
    def step(**x):
        found, state = right_step(**x)
        return o(found), ops.State(S(state.S), A(state.A))

    return step


@pytest.mark.parametrize("name", ("S", "A", "o"))
def test_steps(name, monkeypatch):
    """Guards decoding: a state that is off by what tf32 does, or an output of the wrong sign, is refused."""
    settings = Settings(**dict(vars(SMALL), decode=(1,), contestants=()))
    monkeypatch.setattr(run, "STEPS", {"mine": lambda: changed()})
    _, steps, checks, _ = checked(settings)
    assert list(steps) == [("mine", 8)] and checks[0]["passed"]
    for bad in (torch.neg, lambda x: x * torch.nan, lambda x: x * (1 + (3e-4 if name != "o" else 1e-2))):
        monkeypatch.setattr(run, "STEPS", {"mine": lambda bad=bad: changed(**{name: bad})})
        _, steps, checks, _ = checked(settings)
        assert not steps and not checks[0]["passed"]


@pytest.mark.parametrize("name", ("deltanet", "mesanet"))
def test_references(name):
    """Guards the peers' references: against the same rules written in another way."""
    g = torch.Generator().manual_seed(torch.seed() % 2**32)
    x = {key: a.double() for key, a in draw(2, 20, 3, 5, torch.float32, "cpu", g).items()}
    x["g"] -= 0.3
    contestant = CONTESTANTS[name]
    o = contestant.reference(**{key: x[key] for key in contestant.takes})
    q, k, v, beta, g, lamb = (x[key] for key in ("q", "k", "v", "beta", "g", "lamb"))
    for t in (0, 1, 19):
        if name == "mesanet":
            weight = beta[:, : t + 1] * (g[:, : t + 1].cumsum(1)[:, -1:] - g[:, : t + 1].cumsum(1)).exp()
            X = torch.einsum("bsh,bshi,bshj->bhij", weight, k[:, : t + 1], k[:, : t + 1]) + torch.diag_embed(lamb)
            Y = torch.einsum("bsh,bshi,bshj->bhij", weight, v[:, : t + 1], k[:, : t + 1])
            wanted = torch.einsum("bhij,bhjk,bhk->bhi", Y, X.inverse(), q[:, t])
            torch.testing.assert_close(o[:, t], wanted)
    if name == "deltanet":
        heads = [a.transpose(1, 2)[:, :, None] for a in (q, k, v, beta[..., None] * k)]
        wanted, _ = ops.chunk_write(*heads, torch.zeros(2, 3, 5, 5, dtype=torch.float64))
        torch.testing.assert_close(o, wanted[:, :, 0].transpose(1, 2) / 5**0.5)


def test_inputs():
    """Guards what all are measured on: the paper's u, unit keys, the dtype asked for, fresh numbers every time."""
    g = torch.Generator().manual_seed(0)
    x, again = (draw(2, 7, 3, 16, torch.bfloat16, "cpu", g) for _ in range(2))
    assert all((x[name] != again[name]).any() for name in x)
    others = {name: a.dtype for name, a in x.items() if a.dtype != torch.bfloat16}
    assert others == dict(g=torch.float32, lamb=torch.float32)
    for name, size in (("k", 1.0), ("u", 0.25)):
        torch.testing.assert_close(x[name].float().norm(dim=-1), torch.full((2, 7, 3), size), atol=1e-2, rtol=0)
    assert (x["g"] < 0).all() and (x["lamb"] > 0.25).all() and ((0 < x["beta"]) & (x["beta"] < 1)).all()


# ---- counts and numbers -----------------------------------------------------------------------------------------


def check_measure(module):
    """Counts by hand, errors, repetitions and percentiles."""
    counts = module.floor(1, 128, 2, 4, 8, 2, "forward")  # 256 tokens and heads, 4 chunks
    assert counts["bytes"] == 256 * 29 * 2 == 14848  # q, k, u 4 each, v, o 8 each, beta 1
    solve = 3 * 64 * 16 + 32 + 3 * 64 * 64 * 2 + 64 * 64 * 32
    assert counts["solve"] == 4 * solve and counts["write"] == 4 * (3 * 64 * 32 + 64 * 64 * 4 + 64 * 64 * 8)
    both = module.floor(1, 128, 2, 4, 8, 2, "forward+backward")
    assert both["bytes"] == 256 * (29 + 29 + 21) * 2 and both["write"] == 3 * counts["write"]
    assert math.isclose(both["solve"], 4 * (solve + 3 * 64 * 16 + 3 * 64 * 64 * 4 + 64**3 / 3), rel_tol=1e-12)
    long = module.floor(1, 65536, 16, 64, 64, 2, "forward")
    assert 0.672e9 < long["bytes"] < 0.674e9
    assert math.isclose(long["solve"], 16 * 1024 * 5.5 * 64**3) and math.isclose(long["write"], 16 * 1024 * 5 * 64**3)
    odd, even = (module.floor(3, T, 1, 64, 64, 2, "forward") for T in (65, 128))
    assert odd["solve"] == even["solve"] and odd["bytes"] == even["bytes"] * 65 / 128
    try:
        module.floor(1, 1, 1, 1, 1, 1, "backward")
    except ValueError as error:
        assert "passes" in str(error)
    else:
        raise AssertionError("a wrong pass was not refused")

    reach = dict(copy_gb_s=1000, tf32_tflop_s=100, bf16_tflop_s=400)
    counts = dict(bytes=2e9, solve=1e11, write=4e11)
    for size, arithmetic in ((2, 2 + 2), (4, 2 + 8)):
        least = module.floor_times(counts, reach, size)
        assert math.isclose(least["floor_bytes_ms"], 2) and math.isclose(least["floor_arithmetic_ms"], arithmetic)

    x = torch.tensor([3.0, 4.0])
    assert math.isclose(module.relative_error(x * 1.01, x), 0.01, rel_tol=1e-4)
    assert math.isnan(module.relative_error(torch.tensor([3.0, torch.nan]), x))
    try:
        module.relative_error(x[:, None], x)
    except ValueError as error:
        assert "shape" in str(error)
    else:
        raise AssertionError("a wrong shape was not refused")
    assert module.passed(dict(a=1.0, b=0.5), 1) and module.passed(dict(a=1.0, b=0.5), dict(a=1, b=2))
    assert not module.passed(dict(a=0.0, b=1.5), 1) and not module.passed(dict(a=math.nan), 1)
    assert not module.passed({}, 1) and not module.passed(dict(a=1.0), dict(a=0.5))

    counts = [module.repetitions(once, 1.0) for once in (1e-3, 0.02, 0.1, 0.3, 3.0)]
    assert counts == [200, 20, 10, 3, 1] and module.repetitions(0.0, 1.0) > 20
    found = module.spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0, 8.0, 7.0, 9.0, 11.0, 10.0])
    assert found == dict(median_ms=6, p10=2, p90=10, min=1, repetitions=11)
    assert module.spread([2.0]) == dict(median_ms=2, p10=2, p90=2, min=2, repetitions=1)
    calls = []
    times = module.timed(calls.append, 3, torch.device("cpu"))
    assert calls == [0, 1, 2] and len(times) == 3 and min(times) > 0
    x = torch.arange(24).reshape(2, 3, 4)
    assert module.last_head(x).tolist() == [[[15], [19], [23]]]


def sick_after(calls):
    """Right at first, NaN in one place after some calls."""
    left = [calls]

    def function(**x):
        left[0] -= 1
        return right(**x) if left[0] >= 0 else nan_somewhere(*x.values())

    return function


def check_measured(module):
    """One measurement of a contestant that counts how it is called, and one that turns NaN."""
    calls = []

    def count(**x):
        calls.append((torch.is_grad_enabled(), x["q"].data_ptr()))
        return right(**x)

    chunk, g = CONTESTANTS["vla_chunk"], torch.Generator().manual_seed(0)
    for which in PASSES:
        calls.clear()
        found = module.measure(chunk, count, (1, 70, 2, 8, torch.float32), which, g, 0.05)
        assert {grad for grad, _ in calls} == {which != "forward"}
        assert len({address for _, address in calls}) == found["input_sets"] == 2
        assert len(calls) > found["repetitions"] and found["peak_bytes"] is None
        assert found["inputs_bytes"] == 70 * 2 * (4 * 8 + 1) * 4
        for bad, seconds in ((BROKEN["nan"], 1e-9), (sick_after(5), 0.05)):
            try:
                module.measure(chunk, bad, (1, 70, 2, 8, torch.float32), which, g, seconds)
            except ValueError as error:
                assert "not finite" in str(error)
            else:
                raise AssertionError("NaN was timed")
    slow = module.measure(chunk, right, (1, 70, 2, 8, torch.float32), "forward", g, 1e-9)
    assert slow["repetitions"] == 1 and slow["input_sets"] == 1
    for step, fine in ((right_step, True), (changed(o=lambda x: x * torch.nan), False)):
        try:
            found = module.measure_step(step, 2, 2, 8, torch.float32, g, 0.01)
        except ValueError as error:
            assert "not finite" in str(error) and not fine
        else:
            assert fine and found["median_ms"] > 0 and found["graph_ms"] is None


def test_calls_of_a_gpu(monkeypatch):
    """Guards, without a GPU, in which order events are recorded and which bytes are counted."""
    log, gpu, cuda = [], torch.device("cuda"), torch.cuda

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")
            self.at = len(log)

        def elapsed_time(self, end):
            return float(end.at - self.at)

    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "synchronize", lambda device: log.append("wait"))
    assert measure.timed(log.append, 2, gpu) == [2.0, 2.0]
    assert log == ["wait", "event", 0, "event", "event", 1, "event", "wait"]
    monkeypatch.setattr(cuda, "memory_allocated", lambda device: 150)  # 100 of them inputs
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: 450)
    assert measure.peak_bytes(lambda: log.append("call"), 100, gpu) == (400, None) and log[-2:] == ["reset", "call"]
    monkeypatch.setattr(cuda, "get_device_properties", lambda device: argparse.Namespace(L2_cache_size=50))
    assert [measure.turns(n, gpu) for n in (1, 30, 99, 100, 500)] == [64, 4, 2, 1, 1]


def test_ceilings():
    """Guards the ceilings: all there, above 0, and PyTorch's precision is as it was."""
    before = torch.get_float32_matmul_precision()
    found = measure.ceilings(torch.device("cpu"), 2**20, 64)
    assert set(found) == {"copy_gb_s", "tf32_tflop_s", "bf16_tflop_s", "copy_bytes", "matmul"}
    assert min(found.values()) > 0 and torch.get_float32_matmul_precision() == before


# ---- the file ---------------------------------------------------------------------------------------------------


def row(name, T, ms, passes="forward", **more):
    found = dict(contestant=name, B=1, H=16, D=64, T=T, dtype="bfloat16", passes=passes, status="ok")
    return found | dict(median_ms=ms, p10=0.9 * ms, p90=1.1 * ms, min=0.8 * ms, repetitions=20) | more


def made_up():
    """A benchmark's file whose numbers are made up."""
    flash, ours, loop = {1024: 1.0, 2048: 4.0, 4096: 16.0}, {1024: 2.0, 2048: 4.5, 4096: 8.0}, {1024: 400.0}
    rows = [row("flash", T, x) for T, x in flash.items()] + [row("vla_loop", T, x) for T, x in loop.items()]
    rows += [row("vla_triton", T, x, share=0.25, peak_over_inputs=2.0) for T, x in ours.items()]
    rows.append(row("flash", 1024, 1.0, "forward+backward") | dict(status="out of memory", median_ms=None))
    names = ("flash", "vla_loop", "vla_triton", "recurrent")
    checks = [dict(contestant=name, D=64, what="x", errors=dict(o=1e-3), passed=True) for name in names]
    checks.append(dict(contestant="mesanet", D=64, what="x", errors=dict(o=None), passed=False))
    step = row("recurrent", 1, 0.5, graph_ms=0.25)
    about = dict(command="", commit=None, dirty=None, device="a GPU", versions=dict(torch="2"), seconds=1.0, when="now")
    return dict(
        kind="benchmark", format=1, provenance=about, settings={}, seeds=[1],
        ceilings=dict(copy_gb_s=3000.0, bf16_tflop_s=700.0, tf32_tflop_s=400.0), checks=checks, rows=rows,
        skipped=dict(deltanet="no fla"), decode=dict(rows=[step], state_bytes={}, cache_bytes={}),
    )  # fmt: skip


BAD = {
    "kind": lambda x: x.update(kind="experiment"),
    "format": lambda x: x.update(format=2),
    **{f"no {name}": lambda x, name=name: x.pop(name) for name in report.PARTS},
    "rows of another type": lambda x: x.update(rows={}),
    "no commit": lambda x: x["provenance"].pop("commit"),
    "no copy": lambda x: x["ceilings"].pop("copy_gb_s"),
    "copy 0": lambda x: x["ceilings"].update(copy_gb_s=0.0),
    "copy true": lambda x: x["ceilings"].update(copy_gb_s=True),
    "a check without a verdict": lambda x: x["checks"][0].pop("passed"),
    "no T": lambda x: x["rows"][0].pop("T"),
    "T true": lambda x: x["rows"][0].update(T=True),
    "a row that is a number": lambda x: x["rows"].append(3),
    "no status": lambda x: x["rows"][0].pop("status"),
    "another status": lambda x: x["rows"][0].update(status="fine", median_ms=None),
    "a time without memory": lambda x: x["rows"][-1].update(median_ms=1.0),
    "no time": lambda x: x["rows"][0].update(median_ms=None),
    "a time below 0": lambda x: x["rows"][0].update(min=-1.0),
    "times in disorder": lambda x: x["rows"][0].update(p10=5.0),
    "no repetitions": lambda x: x["rows"][0].pop("repetitions"),
    "a failed check": lambda x: x["checks"][0].update(passed=False),
    "no check": lambda x: x["checks"].pop(0),
    "a check at another D": lambda x: x["checks"][0].update(D=128),
    "no state bytes": lambda x: x["decode"].pop("state_bytes"),
    "decoding without a time": lambda x: x["decode"]["rows"][0].pop("median_ms"),
    "decoding unchecked": lambda x: x["checks"].pop(3),
}


class Stored:
    """Stands in for a path, so that a broken copy of the reader finds what it is to read."""

    name = "bench.json"

    def __init__(self, content):
        self.text = json.dumps(content | dict(checksum=results.checksum(content)))

    def read_text(self, encoding):
        return self.text


def check_reader(module):
    """A good file is read; every bad one is refused; table, crossover and speedups of the good one."""
    content = made_up()
    assert module.read_bench(Stored(content)) == content
    for name, spoil in BAD.items():
        bad = copy.deepcopy(content)
        spoil(bad)
        try:
            module.read_bench(Stored(bad))
        except ValueError as error:
            assert "bench.json" in str(error), name
        except (KeyError, TypeError, AttributeError) as error:
            raise AssertionError(f"{name}: {error!r}") from None
        else:
            raise AssertionError(f"{name} was not refused")
    flash, ours = (module.times(content, name, 64, "forward") for name in ("flash", "vla_triton"))
    assert flash == {1024: 1, 2048: 4, 4096: 16} and module.times(content, "flash", 64, "forward+backward") == {}
    assert module.times(content, "flash", 128, "forward") == {}
    expected = 2048 * 2 ** (math.log(4.5 / 4) / (math.log(4.5 / 4) + math.log(16 / 8)))
    assert math.isclose(module.crossover(ours, flash), expected)
    assert module.crossover(flash, ours) is None and module.crossover({}, flash) is None
    assert module.crossover({2: 1.0, 4: 1.0}, {2: 2.0, 4: 2.0, 8: 0.1}) == 2
    assert module.crossover({1: 1.0, 2: 3.0, 4: 1.0}, {1: 2.0, 2: 2.0, 4: 2.0}) > 2  # the last time that it crosses
    assert module.crossover({1: 2.0, 2: 2.0}, {1: 2.0, 2: 4.0}) == 1
    assert module.crossover({1: 1.0, 2: 2.0}, {1: 2.0, 2: 2.0}) is None
    assert module.speedups(content, "vla_triton", 64, "forward") == {1024: 200}
    assert module.rows_of(content, "flash", 64, "forward+backward") == {}  # out of memory
    back = content | dict(rows=content["rows"][::-1])
    assert [*module.rows_of(back, "vla_triton", 64, "forward").items()] == [
        (T, row("vla_triton", T, ms, share=0.25, peak_over_inputs=2.0)) for T, ms in ours.items()
    ]
    text = module.table(content)
    lines = [line.split() for line in text.splitlines()]
    assert ["T", "flash", "vla_triton", "vla_loop"] in lines
    assert ["1024", "1", "2", "(2.0)", "400"] in lines and ["4096", "16", "8", "(2.0)"] in lines
    assert f"below softmax from T = {expected:.0f}, 200 times the loop at T = 1024, 25 % of the floor" in text
    assert "one token, D = 64, B = 1: recurrent 500.0 µs, as a graph 250.0" in text
    assert "out of memory" in text and "left out: deltanet: no fla" in text
    assert "FAILED: mesanet, D = 64, x: o None" in text


def test_reading_needs_a_whole_file(tmp_path):
    """Guards the reader: what is not there, cut short or changed by hand is refused."""
    path = tmp_path / "bench.json"
    with pytest.raises(FileNotFoundError):
        read_bench(path)
    write_json(path, made_up())
    assert read_bench(path) == made_up()
    text = path.read_text()
    for broken in (text[:-20], text.replace('"median_ms": 1.0', '"median_ms": 0.95', 1), "", "[]"):
        path.write_text(broken)
        with pytest.raises(ValueError, match="is broken"):
            read_bench(path)


@pytest.mark.skipif(not (results.ROOT / "book/results/bench.json").exists(), reason="no benchmark is stored")
def test_the_stored_benchmark():
    """Guards the file that the book shows."""
    content = read_bench(results.ROOT / "book/results/bench.json")
    assert table(content) and content["rows"]


# ---- a whole run ------------------------------------------------------------------------------------------------


def test_a_run(tmp_path, monkeypatch, capsys):
    """Guards the whole: checks, then times, then a file that the reader takes, and nothing beside it."""
    monkeypatch.setattr(run, "STEPS", {"mine": lambda: changed()})
    settings = Settings(**dict(vars(SMALL), contestants=("flash", "vla_chunk"), decode=(1, 2)))
    out = tmp_path / "new" / "bench.json"
    content = bench(settings, out, "cpu", command="a command", quiet=True)
    assert content == read_bench(out) and [path.name for path in out.parent.iterdir()] == ["bench.json"]
    sizes = {(x["contestant"], x["T"], x["passes"]) for x in content["rows"]}
    assert sizes == {(name, T, p) for name in ("flash", "vla_chunk") for T in (70, 140) for p in PASSES}
    assert len(content["rows"]) == 8 and content["settings"]["lambda_0"] == LAMBDA_0
    assert all(("share" in x) == (x["contestant"] == "vla_chunk") for x in content["rows"])
    for x in content["rows"]:
        if "share" in x:
            assert math.isclose(x["share"], max(x["floor_bytes_ms"], x["floor_arithmetic_ms"]) / x["median_ms"])
    assert set(content["provenance"]) == {*report.PROVENANCE, "sources"}
    assert set(content["provenance"]["versions"]) == {"python", "torch", "numpy", "triton", "fla", "cuda", "driver"}
    decode = content["decode"]
    assert [x["B"] for x in decode["rows"]] == [1, 2] and decode["state_bytes"] == {"8": 2 * 2 * 8 * 8 * 4}
    assert decode["cache_bytes"] == {"8": {"70": 2 * 2 * 8 * 70 * 2, "140": 2 * 2 * 8 * 140 * 2}}
    assert f"seed {content['seeds'][0]}" in capsys.readouterr().out
    again = bench(settings, out, "cpu", quiet=True)
    assert again["seeds"] != content["seeds"]


def test_breaking_while_timed(tmp_path, monkeypatch, capsys):
    """Guards the gate's second half: what breaks while it is timed loses its times; out of memory is no failure."""

    def late(most, error, **x):
        if x["q"].shape[1] > most:
            raise error
        return right(**x)

    join(monkeypatch, partial(late, 100, RuntimeError("illegal")), long=False)
    settings = one(contestants=("vla_chunk", "one"))
    content = bench(settings, tmp_path / "a.json", "cpu", quiet=True)
    assert {x["contestant"] for x in content["rows"]} == {"vla_chunk"} and len(content["rows"]) == 4
    bad = [x for x in content["checks"] if not x["passed"]]
    assert [(x["what"], x["message"]) for x in bad] == [("timing, forward, T = 140", "RuntimeError: illegal")]
    assert "FAILED: one, D = 8, timing" in capsys.readouterr().err
    read_bench(tmp_path / "a.json")
    join(monkeypatch, partial(late, 100, torch.OutOfMemoryError("CUDA out of memory")))
    content = bench(settings, tmp_path / "b.json", "cpu", quiet=True)
    states = [(x["T"], x["status"]) for x in content["rows"] if x["contestant"] == "one"]
    assert states == [(70, "ok")] * 2 + [(140, "out of memory")] * 2
    assert all(x["passed"] for x in read_bench(tmp_path / "b.json")["checks"])
    monkeypatch.setattr(run, "STEPS", {"mine": lambda: changed(o=lambda x: x if x.shape[0] == 2 else x * torch.nan)})
    content = bench(one(contestants=(), decode=(2, 3)), tmp_path / "c.json", "cpu", quiet=True)
    assert content["decode"]["rows"] == [] and not content["checks"][-1]["passed"]


def stopped(out, monkeypatch, calls):
    """A run that is stopped while the tensor functions are called for the n-th time after the checks."""
    real, left = run.measure, [calls]

    def measure_some(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "measure", measure_some)
        with pytest.raises(KeyboardInterrupt):
            bench(SMALL, out, "cpu", quiet=True)


def test_resuming(tmp_path, monkeypatch):
    """Guards resuming: finished rows stay as they are, the others come; never with other settings or code."""
    out, partial_file = tmp_path / "bench.json", tmp_path / "bench.json.partial"
    with pytest.raises(ValueError, match="there is no"):
        bench(SMALL, out, "cpu", resume=True, quiet=True)
    stopped(out, monkeypatch, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json.partial"]
    kept = read_json(partial_file)
    assert len(kept["rows"]) == 3
    text = partial_file.read_text()
    for spoil, word in (
        (lambda: bench(Settings(**dict(vars(SMALL), H=3)), out, "cpu", resume=True, quiet=True), "settings"),
        (lambda: patched("sources", "x"), "sources"),
        (lambda: patched("versions", dict(triton="0")), "versions"),
        (lambda: patched("device_name", "another", 1), "device"),
    ):

        def patched(name, value, arguments=0):
            with monkeypatch.context() as patch:
                patch.setattr(run, name, (lambda _: value) if arguments else lambda: value)
                bench(SMALL, out, "cpu", resume=True, quiet=True)

        with pytest.raises(ValueError, match=f"other {word}"):
            spoil()
    assert partial_file.read_text() == text and not out.exists()
    content = bench(SMALL, out, "cpu", resume=True, quiet=True)
    assert content["rows"][:3] == kept["rows"] and len(content["rows"]) == 4
    assert content["seeds"][:1] == kept["seeds"] and len(content["seeds"]) == 2
    assert content["ceilings"] == kept["ceilings"] and content["provenance"]["seconds"] > kept["seconds"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    partial_file.write_text(text[:-9])
    with pytest.raises(ValueError, match="is broken"):
        bench(SMALL, out, "cpu", resume=True, quiet=True)


def test_resuming_checks_again(tmp_path, monkeypatch):
    """Guards resuming: a contestant that no longer passes loses the rows that it had."""
    out = tmp_path / "bench.json"
    stopped(out, monkeypatch, 3)
    monkeypatch.setitem(CONTESTANTS, "vla_chunk", CONTESTANTS["vla_chunk"]._replace(load=lambda: BROKEN["sign"]))
    content = bench(SMALL, out, "cpu", resume=True, quiet=True)
    assert content["rows"] == [] and not content["checks"][0]["passed"]


# ---- the command line -------------------------------------------------------------------------------------------


def test_without_a_gpu(tmp_path, monkeypatch, capsys):
    """Guards the message on most machines: one line, exit status 2, no file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["--out", str(tmp_path / "bench.json")]) == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"python -m vla_teach.bench: error: .*no CUDA GPU.*\n", said.err) and said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, monkeypatch, capsys):
    """Guards what the options mean, and the exit status: 1 for a failed check, 130 if stopped, 2 for bad words."""
    seen = []

    def bench(settings, out, device, resume, command, quiet):
        seen.append((settings, out, device, resume, command))
        return made_up() if len(seen) == 1 else made_up() | dict(checks=made_up()["checks"][:4])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(__main__, "bench", bench)
    out = tmp_path / "x.json"
    assert __main__.main(["--out", str(out), "--quick", "--table"]) == 1
    assert "below softmax" in capsys.readouterr().out
    command = "python -m vla_teach.bench --quick --table"
    assert seen[0] == (Settings({64: (1024, 4096, 16384)}, decode=(1,)), out, "cuda", False, command)
    words = "--D 128 --T 99 7 --B 2 --H 3 --dtype float32 --contestants vla_loop flash --seconds 3 --resume".split()
    assert __main__.main([*words, f"--out={out}"]) == 0
    settings, _, _, resume, command = seen[1]
    assert settings == Settings({128: (7, 99)}, 2, 3, "float32", ("flash", "vla_loop"), 3.0) and resume
    assert str(tmp_path) not in command
    assert __main__.main([]) == 0 and seen[2][:2] == (Settings(), results.ROOT / "book/results/bench.json")
    assert Settings().lengths == {64: tuple(2**i for i in range(10, 17)), 128: (4096, 16384, 65536)}
    loop = [job[2:] for job in Settings().jobs() if job[0] == "vla_loop"]
    assert loop == [(1024, "forward"), (1024, "forward+backward"), (16384, "forward"), (16384, "forward")]
    assert __main__.main(["--seconds", "nan"]) == 2
    for words in (["--T", "0"], ["--D", "x"], ["--contestants", "nobody"], ["--dtype", "float64"]):
        with pytest.raises(SystemExit, match="2"):
            __main__.main(words)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "bench", stop)
    assert __main__.main([]) == 130 and "--resume" in capsys.readouterr().err


# ---- broken copies ----------------------------------------------------------------------------------------------


def check_both(module):
    check_measure(module)
    check_measured(module)


CHECKS = {measure: check_both, report: check_reader}
MUTATIONS = {
    measure: (
        ("error <= limits[name]", "not error > limits[name]"),
        ("error <= limits[name]", "error < limits[name]"),
        ("bool(errors) and all", "all"),
        ("return bool(errors) and all", "return bool(errors) and any"),
        ("if x.shape != wanted.shape:", "if False:"),
        ("/ wanted.norm()", "/ x.norm()"),
        ("x[-1:, :, -1:]", "x[:1, :, -1:]"),
        ("check_finite(call())", "call()"),
        ("check_finite(call(n))", "call(n)"),
        ("check_finite([call(0), *state])", "call(0)"),
        ("if not all(x.isfinite().all() for x in results):", "if not any(x.isfinite().all() for x in results):"),
        ("set_grad_enabled(passes == BOTH)", "set_grad_enabled(True)"),
        ("sets[i % len(sets)]", "sets[0]"),
        ("own = total_bytes", "own = 2 * total_bytes"),
        ("if samples[0] / 1e3 < seconds:", "if True:"),
        ("max(least, math.ceil(enough / once))", "math.ceil(enough / once)"),
        (", int(seconds / once)))", ", 1000))"),
        ("max(1, min(", "max(0, min("),
        ("ordered = sorted(samples)", "ordered = samples"),
        ("math.floor(place)", "math.ceil(place) + 1"),
        ("math.ceil(9 * place)", "math.floor(8 * place)"),
        ("3 * K + V + 1", "2 * K + V + 1"),
        ("math.ceil(T / chunk)", "T // chunk"),
        ("K**3 / 2", "K**3"),
        ("3 / 2 * C**2", "C**2"),
        ("+ C**3 / 2", "+ C**3"),
        ("3 * C * K * V +", "2 * C * K * V +"),
        ("numbers += read + V + read", "numbers += read + V"),
        ("write *= 3", "write *= 2"),
        ("C**3 / 3\n        write", "C**3\n        write"),
        ("if dtype_bytes == 2", "if dtype_bytes == 4"),
        ("arithmetic = 2e-9", "arithmetic = 1e-9"),
        ('counts["bytes"] / 1e6', 'counts["bytes"] / 1e9'),
        ("if passes not in (FORWARD, BOTH):", "if False:"),
    ),
    report: (
        ('(KIND, FORMAT):', '(KIND, content.get("format")):'),
        ('(KIND, FORMAT):', '(content.get("kind"), FORMAT):'),
        ('    expect(path, "it", content, PARTS)\n', ""),
        ('if name not in content["provenance"]:', "if False:"),
        ('if not above_0(content["ceilings"].get(name)):', "if False:"),
        ('        expect(path, f"checks[{i}]", found, CHECK)\n', "        pass\n"),
        ('    expect(path, "decode", content["decode"], DECODE)\n', ""),
        ("size | dict(status=str)", "size"),
        ("expect(path, where, row, size | dict(status=str))", "pass"),
        (" or (kind is int and isinstance(value, bool))", ""),
        ('row["status"] != NO_MEMORY or ', ""),
        (' or row.get("median_ms") is not None', ""),
        ("    expect(path, where, row, TIMES)\n", ""),
        (" or sorted(times) != times", ""),
        ("not all(above_0(x) for x in times) or ", ""),
        ("if not own or not all(own):", "if not own:"),
        ("if not own or not all(own):", "if not all(own):"),
        ('== (row["contestant"], row["D"])]\n    if not own', '== (row["contestant"], one["D"])]\n    if not own'),
        ("and not isinstance(x, bool) and", "and"),
        ('[row for row in content["rows"] if row["status"] == RAN]', 'content["rows"]'),
        ("for row in sorted(chosen, key=lambda row: row[\"T\"])", "for row in chosen"),
        ("lead[T] <= 0", "lead[T] < 0"),
        ("low = slower[-1]", "low = slower[0]"),
        ("theirs[T] / ours[T] for T in ours", "ours[T] / theirs[T] for T in ours"),
        ("math.log(theirs[T] / ours[T])", "theirs[T] - ours[T]"),
    ),
}  # fmt: skip
CASES = [(module, *pair) for module, pairs in MUTATIONS.items() for pair in pairs]


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__)
def test_the_source_as_it_is_passes(module):
    """Guards the tests below: counts, measuring and reading are right as they are."""
    passes(CHECKS[module], module)


@pytest.mark.parametrize(("module", "original", "broken"), CASES, ids=range(len(CASES)))
def test_a_mutation_is_noticed(module, original, broken):
    """Guards the checks: each of these mistakes makes them fail."""
    refuses(CHECKS[module], module, original, broken)
