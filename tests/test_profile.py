"""The profile by Nsight Compute's counters, without Nsight Compute: its table, its file, its command line."""

import math
import re
import subprocess

import pytest
import torch
from mutations import passes, refuses

from vla_teach.bench import profile
from vla_teach.bench.profile import COUNTERS, STALL, STALLS, TIME, kernels, read_profile
from vla_teach.experiments.results import ROOT, write_json

STORED = ROOT / "book/results/profile.json"
WANTED = COUNTERS | {f"stall_{name}": STALL.format(name) for name in STALLS}
PREFACE = "==PROF== Connected to process 1\n==WARNING== clocks are not locked\n"


COLUMNS = (TIME, *WANTED.values())


def table(unit, *rows, columns=COLUMNS):
    """ncu's table: rows of a kernel's name, its time, and one number for all counters."""

    def line(*words):
        return ",".join(f'"{word}"' for word in words)

    lines = [line("ID", "Kernel Name", *columns), line("", "", *(unit if x == TIME else "%" for x in columns))]
    for i, (name, time, counter) in enumerate(rows):
        lines.append(line(i, name, *(time if x == TIME else counter for x in columns)))
    return PREFACE + "\n".join(lines) + "\n"


def close(x, wanted):
    return math.isclose(x, wanted, rel_tol=1e-12)


def refused(call, word):
    """The call raises ValueError with this word in its message; an AssertionError if it does not."""
    try:
        call()
    except ValueError as error:
        assert word in str(error), error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} and no ValueError") from error
    else:
        raise AssertionError(f"nothing was refused; expected {word!r}")


def check_table(module):
    """Two launches of one kernel and one of another, in several units, and tables that are broken."""
    rows = ("solve", "1,500", "20"), ("walk<a, (b)>(int, T2)", "1,000", "1,234"), ("solve", "500", "60.0")
    for unit, ms in dict(ns=1e-6, nsecond=1e-6, us=1e-3, usecond=1e-3, ms=1, msecond=1).items():
        solve, walk = module.kernels(table(unit, *rows))
        assert (solve["name"], walk["name"]) == ("solve", "walk<a, ")
        assert (solve["launches"], walk["launches"]) == (2, 1)
        assert close(solve["ms"], 2000 * ms) and close(walk["ms"], 1000 * ms)
        assert close(solve["share"], 2000 / 3000) and close(walk["share"], 1000 / 3000)
        assert set(solve) == {"name", "launches", "ms", "share", *WANTED}
        assert all(close(solve[name], (1500 * 20 + 500 * 60) / 2000) for name in WANTED)  # weighed by time
        assert all(close(walk[name], 1234) for name in WANTED)
    names = [one["name"] for one in module.kernels(table("us", *rows[::-1]))]
    assert names == ["solve", "walk<a, "]  # the longest first
    wrong = {
        "Kernel Name": PREFACE,
        "no kernels": table("us"),
        "no column": table("us", *rows, columns=COLUMNS[:-1]),
        "'minute'": table("minute", *rows),
        "'n/a'": table("us", ("solve", "n/a", "20")),
        "''": table("us", ("solve", "2", "")),
        "'nan'": table("us", ("solve", "2", "nan")),
        "'0'": table("us", ("solve", "0", "20")),
    }
    for word, text in wrong.items():
        refused(lambda text=text: module.kernels(text), word)
    own = "==PROF== x\n==ERROR== no permission\n"
    assert module.complaint(own, "", "Traceback\n\nKeyError: 1\n\n") == "==ERROR== no permission KeyError: 1"
    assert module.complaint("", "==ERROR== a\nb\n==ERROR== c", "") == "==ERROR== a ==ERROR== c"
    assert module.complaint("", "", "\n") == "it says nothing"


def one_counter(compute, issue, memory):
    return dict(compute=compute, issue=issue, memory=memory, occupancy=99.0)


def check_bound(module):
    """What is busy half the time or more, or neither."""
    found = [module.bound(one_counter(*x)) for x in ((49, 49, 49), (50, 0, 49), (0, 50, 49), (49, 0, 50), (80, 0, 90))]
    assert found == ["waiting", "instructions", "instructions", "memory", "memory"]
    assert module.bound(one_counter(90, 0, 80)) == module.bound(one_counter(0, 90, 80)) == "instructions"


def test_the_table_of_counters():
    """Guards what the file holds: units, thousands, the mean of several launches; broken tables are refused."""
    check_table(profile)


def test_what_bounds_a_kernel():
    """Guards the words and the colours of the chapter's picture."""
    check_bound(profile)


# ---- the file ---------------------------------------------------------------------------------------------------


def content():
    """A file's content with numbers made up."""
    found = kernels(table("us", ("solve", "1,500", "20"), ("walk", "500", "60")))
    return dict(kind="profile", format=1, provenance=dict(command="x"), settings=dict(T=1), kernels=found)


def spoilt():
    """{a word of the complaint: what a file must not hold}."""
    first, second = content()["kernels"]
    return {
        "is no profile of format 1": content() | dict(kind="benchmark"),
        "profile of format 1; expected": content() | dict(format=2),
        "no provenance": {name: x for name, x in content().items() if name != "provenance"},
        "no settings": content() | dict(settings=[]),
        "no kernels (list)": content() | dict(kernels={}),
        "has no kernels": content() | dict(kernels=[]),
        "kernels[1] has no issue": content() | dict(kernels=[first, {k: x for k, x in second.items() if k != "issue"}]),
        "kernels[0] has no stall_wait": content() | dict(kernels=[first | dict(stall_wait=None)]),
        "kernels[0] has no launches": content() | dict(kernels=[first | dict(launches=1.5)]),
        "kernels[0] has -1.0 ms": content() | dict(kernels=[first | dict(ms=-1.0)]),
        "share 1.5": content() | dict(kernels=[first | dict(share=1.5)]),
    }


def check_file(module, folder):
    path = folder / "x.json"
    write_json(path, content())
    assert module.read_profile(path) == content()
    for word, broken in spoilt().items():
        write_json(path, broken)
        refused(lambda: module.read_profile(path), word)


def test_the_file(tmp_path):
    """Guards the reader: what is not there, cut short, changed by hand or something else is refused."""
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_profile(path)
    check_file(profile, tmp_path)
    write_json(path, content())
    text = path.read_text()
    for broken in (text[:-20], text.replace('"launches": 1', '"launches": 2', 1), "", "[]"):
        path.write_text(broken)
        with pytest.raises(ValueError, match="is broken"):
            read_profile(path)


def test_the_stored_profile():
    """Guards the file that the book shows: it is read, its shares are those of its times, the longest stand first."""
    found = read_profile(STORED)["kernels"]
    total = sum(one["ms"] for one in found)
    assert [one["ms"] for one in found] == sorted((one["ms"] for one in found), reverse=True)
    assert all(close(one["share"], one["ms"] / total) for one in found) and len({one["name"] for one in found}) > 5
    assert {"solve", "walk", "walk_back", "outputs"} <= {one["name"] for one in found}


# ---- the command line -------------------------------------------------------------------------------------------


def one_line(capsys):
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(r"python -m vla_teach.bench.profile: error: .*\n", said.err), said
    return said.err


def test_without_a_gpu_or_ncu(tmp_path, monkeypatch, capsys):
    """Guards the message on most machines: one line, exit status 2, no file."""
    out = tmp_path / "x.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in ([], ["--inside"]):
        assert profile.main([*words, "--out", str(out)]) == 2 and "no CUDA GPU" in one_line(capsys)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    assert profile.main(["--out", str(out)]) == 2 and "no ncu" in one_line(capsys)
    assert profile.main(["--out", str(tmp_path)]) == 2 and "is a folder" in one_line(capsys)
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    assert profile.main([]) == 2 and "--out FILE" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_wrong_words():
    """Guards the sizes: whole numbers from 1 on."""
    for words in (["--T", "0"], ["--D", "-64"], ["--H", "1.5"], ["--D", "x"], ["--B", "2"]):
        with pytest.raises(SystemExit, match="2"):
            profile.main(words)


def test_a_run(tmp_path, monkeypatch, capsys):
    """Guards a run with an ncu that is made up: what it is asked for, the file, the command in it, and failures."""
    out, asked = tmp_path / "new" / "x.json", []
    answer = dict(code=0, log=table("us", ("solve", "1,500", "20")), stderr="")

    def ncu(words, **options):
        asked.append(words)
        if answer["log"] is not None:
            with open(words[words.index("--log-file") + 1], "w", encoding="utf-8") as log:
                log.write(answer["log"])
        return subprocess.CompletedProcess(words, answer["code"], "", answer["stderr"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(profile.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(profile.subprocess, "run", ncu)
    about = dict(command="", commit=None, dirty=None, device="a GPU", versions={}, seconds=1.0, when="now")
    monkeypatch.setattr(profile, "provenance", lambda command, device, seconds: about | dict(command=command))
    monkeypatch.setattr(profile, "versions", lambda: dict(cuda="13"))
    assert profile.main(["--T", "99", "--H", "3", "--D", "32", "--out", str(out)]) == 0
    assert asked[0][0] == "/bin/ncu" and asked[0][-7:] == ["--inside", "--D", "32", "--T", "99", "--H", "3"]
    found = read_profile(out)
    assert found["settings"] == dict(B=1, T=99, H=3, D=32, dtype="bfloat16", passes="forward+backward")
    assert found["provenance"]["command"] == "python -m vla_teach.bench.profile --T 99 --H 3 --D 32"
    assert found["provenance"]["versions"] == dict(cuda="13") and len(found["provenance"]["sources"]) == 64
    assert [one["name"] for one in found["kernels"]] == ["solve"] and str(tmp_path) not in out.read_text()
    capsys.readouterr()
    before = out.read_text()
    for change, word in (
        (dict(code=1, stderr="Traceback\nRuntimeError: no such width\n"), "RuntimeError: no such width"),
        (dict(log=None), "it says nothing"),
        (dict(log="==ERROR== ERR_NVGPUCTRPERM\n"), "ERR_NVGPUCTRPERM"),
        (dict(log=table("fortnight", ("solve", "1", "20"))), "'fortnight'"),
    ):
        answer.update(dict(code=0, log=table("us", ("solve", "1", "1")), stderr="") | change)
        assert profile.main(["--out", str(out)]) == 2 and word in one_line(capsys)
    assert out.read_text() == before

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(profile.subprocess, "run", stop)
    assert profile.main(["--out", str(out)]) == 130 and "stopped" in capsys.readouterr().err


# ---- broken copies ----------------------------------------------------------------------------------------------

MUTATIONS = {
    "table": (
        ("nsecond=1,", "nsecond=1e3,"),
        ("usecond=1e3", "usecond=1"),
        ("us=1e3", "us=1e6"),
        ("* NS[units[TIME]]", ""),
        ('.replace(",", "")', '.replace(",", ".")'),
        ('["Kernel Name"].split("(")[0]', '["Kernel Name"]'),
        ('one["launches"] += 1', 'one["launches"] = 1'),
        ('one["ns"] += ns', 'one["ns"] = ns'),
        ("one[name] += ns * number(row, counter)", "one[name] += number(row, counter)"),
        ("one[name] += ns * number(row, counter)", "one[name] = ns * number(row, counter)"),
        ('share=one["ns"] / total', "share=1 / len(found)"),
        ('key=lambda one: -one["ms"]', 'key=lambda one: one["ms"]'),
        ("if absent or not rows:", "if absent:"),
        ("if absent or not rows:", "if not rows:"),
        ("if units[TIME] not in NS:", "if False:"),
        ("if not math.isfinite(value) or", "if"),
        (" or (column == TIME and value <= 0)", ""),
        ('line.startswith("==ERROR==")', "True"),
        ("[-1:]", "[:1]"),
    ),
    "bound": (
        ('max(kernel["compute"], kernel["issue"])', 'kernel["compute"]'),
        ('max(kernel["compute"], kernel["issue"])', 'kernel["issue"]'),
        ("BUSY = 50", "BUSY = 49"),
        ("< BUSY", "<= BUSY"),
        ('kernel["memory"] >= instructions', 'kernel["memory"] >= BUSY'),
    ),
    "file": (
        ("!= (KIND, FORMAT):", "!= (content.get(\"kind\"), FORMAT):"),
        ("!= (KIND, FORMAT):", "!= (KIND, content.get(\"format\")):"),
        ('    expect(path, "it", content, PARTS)\n', ""),
        ('if not content["kernels"]:', "if False:"),
        ("KERNEL | dict.fromkeys", "dict.fromkeys"),
        ('(*COUNTERS, *(f"stall_{x}" for x in STALLS))', "COUNTERS"),
        ('(*COUNTERS, *(f"stall_{x}" for x in STALLS))', '[f"stall_{x}" for x in STALLS]'),
        ('not above_0(one["ms"]) or', ""),
        (' or not 0 < one["share"] <= 1', ""),
    ),
}  # fmt: skip
CASES = [(part, *pair) for part, pairs in MUTATIONS.items() for pair in pairs]


@pytest.mark.parametrize(("part", "original", "broken"), CASES, ids=range(len(CASES)))
def test_a_mutation_is_noticed(part, original, broken, tmp_path):
    """Guards the checks: each of these mistakes makes them fail."""
    check = dict(table=check_table, bound=check_bound, file=lambda module: check_file(module, tmp_path))[part]
    passes(check, profile)
    refuses(check, profile, original, broken)
