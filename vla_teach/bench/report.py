"""The file of a benchmark: reading it, and what follows from its rows."""

import math
from pathlib import Path
from typing import Any

from vla_teach.bench.contestants import CONTESTANTS, PASSES, SOFTMAX
from vla_teach.experiments.results import read_json

FORMAT = 1
KIND = "benchmark"
PARTS = dict(
    provenance=dict, settings=dict, ceilings=dict, checks=list, rows=list, skipped=dict, decode=dict, seeds=list
)
PROVENANCE = ("command", "commit", "dirty", "device", "versions", "seconds", "when")
SIZE = dict(contestant=str, B=int, T=int, H=int, D=int, dtype=str, passes=str)
TIMES = dict(median_ms=float, p10=float, p90=float, min=float, repetitions=int)
CHECK = dict(contestant=str, D=int, what=str, errors=dict, passed=bool)
DECODE = dict(rows=list, state_bytes=dict, cache_bytes=dict)
RAN, NO_MEMORY = "ok", "out of memory"


def read_bench(path: Path) -> dict[str, Any]:
    """What `python -m vla_teach.bench` wrote, as a dict. Raises FileNotFoundError, or ValueError where it is broken."""
    content = read_json(path)
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (KIND, FORMAT):
        raise ValueError(f"{path.name} is no {KIND} of format {FORMAT}; expected what vla_teach.bench writes")
    expect(path, "it", content, PARTS)
    for name in PROVENANCE:
        if name not in content["provenance"]:
            raise ValueError(f"{path.name} has no provenance.{name}")
    for name in ("copy_gb_s", "bf16_tflop_s", "tf32_tflop_s"):
        if not above_0(content["ceilings"].get(name)):
            raise ValueError(f"{path.name} has no ceilings.{name}")
    for i, found in enumerate(content["checks"]):
        expect(path, f"checks[{i}]", found, CHECK)
    expect(path, "decode", content["decode"], DECODE)
    for i, row in enumerate(content["rows"]):
        check_row(path, f"rows[{i}]", row, SIZE, content["checks"])
    for i, row in enumerate(content["decode"]["rows"]):
        check_row(path, f"decode.rows[{i}]", row, dict(contestant=str, B=int, H=int, D=int), content["checks"])
    return content


def expect(path, where, part, fields):
    """Every field there, and of its type."""
    for name, kind in fields.items():
        value = part.get(name) if isinstance(part, dict) else None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{path.name}: {where} has no {name} ({kind.__name__})")


def check_row(path, where, row, size, checks):
    """A row says what it measured; where it has times, they are in order and its contestant passed its checks."""
    expect(path, where, row, size | dict(status=str))
    if row["status"] != RAN:
        if row["status"] != NO_MEMORY or row.get("median_ms") is not None:
            raise ValueError(f"{path.name}: {where} has status {row['status']!r}; expected {RAN}, or {NO_MEMORY}")
        return
    expect(path, where, row, TIMES)
    times = [row[name] for name in ("min", "p10", "median_ms", "p90")]
    if not all(above_0(x) for x in times) or sorted(times) != times:
        raise ValueError(f"{path.name}: {where} has times {times}; expected least, 10 %, median and 90 %, above 0")
    own = [one["passed"] for one in checks if (one["contestant"], one["D"]) == (row["contestant"], row["D"])]
    if not own or not all(own):
        raise ValueError(f"{path.name}: {where} has a time, but {row['contestant']} did not pass its checks")


def above_0(x):
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


# ---- what follows -----------------------------------------------------------------------------------------------


def rows_of(content: dict, contestant: str, D: int, passes: str) -> dict[int, dict]:
    """{T: row} of one contestant, where it has a time, T rising."""
    chosen = [row for row in content["rows"] if row["status"] == RAN]
    chosen = [row for row in chosen if (row["contestant"], row["D"], row["passes"]) == (contestant, D, passes)]
    return {row["T"]: row for row in sorted(chosen, key=lambda row: row["T"])}


def times(content: dict, contestant: str, D: int, passes: str) -> dict[int, float]:
    """{T: median in ms} of one contestant."""
    return {T: row["median_ms"] for T, row in rows_of(content, contestant, D, passes).items()}


def softmax_times(content: dict, D: int, passes: str) -> dict[int, float]:
    """{T: median in ms} of softmax attention, by the faster of its kernels."""
    kernels = [times(content, name, D, passes) for name in SOFTMAX]
    return {T: min(one[T] for one in kernels if T in one) for T in sorted({T for one in kernels for T in one})}


def crossover(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """The T from which `ours` is faster than `theirs` at every larger T measured; both {T: ms}. None if it never is.

    Between two sizes the times are taken as powers of T. A number at the least T common to both means from there on,
    perhaps before.
    """
    common = sorted(ours.keys() & theirs.keys())
    lead = {T: math.log(theirs[T] / ours[T]) for T in common}
    slower = [T for T in common if lead[T] <= 0]
    if not common or slower[-1:] == common[-1:]:
        return None
    if not slower:
        return common[0]
    low = slower[-1]
    high = common[common.index(low) + 1]
    return low * (high / low) ** (lead[low] / (lead[low] - lead[high]))


def speedups(content: dict, contestant: str, D: int, passes: str, loop: str = "vla_loop") -> dict[int, float]:
    """{T: how many times faster than the loop}, where both were timed."""
    ours, theirs = times(content, contestant, D, passes), times(content, loop, D, passes)
    return {T: theirs[T] / ours[T] for T in ours if T in theirs}


def table(content: dict) -> str:
    """All medians as text, a table for each D and pass, with what follows from them."""
    about, reach = content["provenance"], content["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    lines = [
        f"{about['device']}, {about['when']}; {versions}",
        f"copy {reach['copy_gb_s']:.0f} GB/s, product {reach['bf16_tflop_s']:.0f} TFLOP/s in bf16, "
        f"{reach['tf32_tflop_s']:.0f} in tf32",
    ]
    for D, passes in dict.fromkeys((row["D"], row["passes"]) for row in by_size(content["rows"])):
        lines += ["", *size_table(content, D, passes)]
    for row in content["decode"]["rows"]:
        graph = "" if row.get("graph_ms") is None else f", as a graph {1e3 * row['graph_ms']:.1f}"
        size = f"one token, D = {row['D']}, B = {row['B']}"
        lines.append(f"{size}: {row['contestant']} {1e3 * row['median_ms']:.1f} µs{graph}")
    lines += [f"left out: {name}: {reason}" for name, reason in content["skipped"].items()]
    bad = [one for one in content["checks"] if not one["passed"]]
    return "\n".join([*lines, *(failure(one) for one in bad)])


def by_size(rows):
    return sorted(rows, key=lambda row: (row["D"], PASSES.index(row["passes"]), row["T"]))


def size_table(content, D, passes):
    """Lines for one D and pass: T down, contestants across; then crossovers, speedups and how near to the floor."""
    rows = [row for row in by_size(content["rows"]) if (row["D"], row["passes"]) == (D, passes)]
    names = sorted({row["contestant"] for row in rows}, key=[*CONTESTANTS].index)
    cells = {(row["T"], row["contestant"]): cell(row) for row in rows}
    first = rows[0]
    head = f"{passes}, D = {D}, B = {first['B']}, H = {first['H']}, {first['dtype']}: median in ms (peak / inputs)"
    lines = [head, f"{'T':>6}" + "".join(f"{name:>17}" for name in names)]
    for T in sorted({row["T"] for row in rows}):
        lines.append(f"{T:>6}" + "".join(f"{cells.get((T, name), ''):>17}" for name in names))
    for name in (name for name in names if name.startswith("vla")):
        ours = times(content, name, D, passes)
        T = crossover(ours, softmax_times(content, D, passes))
        against = "never below softmax" if T is None else f"below softmax from T = {T:.0f}"
        parts = [against] if ours and not set(SOFTMAX).isdisjoint(names) else []
        parts += [f"{x:.0f} times the loop at T = {T}" for T, x in speedups(content, name, D, passes).items()]
        shares = [(row["T"], row["share"]) for row in rows if row["contestant"] == name and "share" in row]
        parts += [f"{100 * share:.0f} % of the floor's speed at T = {T}" for T, share in shares[-1:]]
        lines += [f"  {name}: {', '.join(parts)}"] if parts and name != "vla_loop" else []
    return lines


def cell(row):
    """A median as text, and in brackets the most memory as a multiple of the inputs."""
    if row["status"] != RAN:
        return row["status"]
    peak = row.get("peak_over_inputs")
    return f"{row['median_ms']:.4g}" + ("" if peak is None else f" ({peak:.1f})")


def failure(one):
    """A check that was not passed, as text."""
    errors = ", ".join(f"{name} {value}" for name, value in one["errors"].items())
    return f"FAILED: {one['contestant']}, D = {one['D']}, {one['what']}: {one.get('message') or errors}"
