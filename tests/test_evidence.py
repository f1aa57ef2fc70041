"""The runner of measurements, on one made up here, and every real one at its smallest size."""

import sys
from types import ModuleType

import pytest

from vla_teach import evidence
from vla_teach.evidence import __main__ as command
from vla_teach.evidence import run
from vla_teach.experiments.results import ROOT


@pytest.fixture
def counted(monkeypatch):
    """A measurement of two pieces, and the list of those that ran."""
    ran, fake = [], ModuleType("vla_teach.evidence.counted")

    def piece(name, value):
        def function():
            if value is None:
                raise KeyboardInterrupt
            ran.append(name)
            return value

        return function

    fake.ABOUT, fake.MINUTES, fake.SIZES = "Counts.", 1, dict(smoke=dict(n=1), full=dict(n=2))
    fake.values = dict(first=1.5, second=[1, 2])
    fake.pieces = lambda settings: {name: piece(name, value) for name, value in fake.values.items()}
    monkeypatch.setitem(sys.modules, "vla_teach.evidence.counted", fake)
    for module in (evidence, run, command):
        monkeypatch.setattr(module, "MEASUREMENTS", ("counted",))
    return fake, ran


def test_a_run(counted, tmp_path, capsys):
    """Guards a run from start to end, and that nothing is left beside the file."""
    out = tmp_path / "new" / "counted.json"
    assert command.main(["run", "counted", "--size", "smoke", "--out", str(out), "--quiet"]) == 0
    content = run.read_measurement(out)
    assert content["pieces"] == dict(first=1.5, second=[1, 2]) and content["settings"] == dict(n=1)
    assert content["provenance"]["command"] == "python -m vla_teach.evidence run counted --size smoke"
    assert [path.name for path in out.parent.iterdir()] == ["counted.json"]
    assert command.main(["list"]) == 0 and "Counts. (1 minutes)" in capsys.readouterr().out


def test_stopped_and_resumed(counted, tmp_path, capsys):
    """Guards that a stopped run goes on where it was, and refuses the rest of another."""
    (fake, ran), out = counted, tmp_path / "counted.json"
    words = ["run", "counted", "--out", str(out), "--quiet"]
    fake.values["second"] = None
    assert command.main(words) == 130 and not out.exists() and ran == ["first"]
    assert "the same command goes on" in capsys.readouterr().err
    fake.values["second"] = 2
    assert command.main([*words, "--size", "smoke"]) == 2 and "of another run" in capsys.readouterr().err
    assert command.main(words) == 0 and ran == ["first", "second"]
    assert not out.with_name("counted.json.partial").exists()
    fake.values["second"] = None
    assert command.main(words) == 130
    fake.values["second"] = 3
    assert command.main([*words, "--fresh"]) == 0 and ran[2:] == ["first", "first", "second"]


def test_what_is_refused(counted, tmp_path, capsys):
    """Guards the messages for what cannot be run or read."""
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="broken"):
        run.read_measurement(tmp_path / "x.json")
    run.write_json(tmp_path / "x.json", dict(kind="benchmark", format=1))
    with pytest.raises(ValueError, match="no measurement of format 1"):
        run.read_measurement(tmp_path / "x.json")
    with pytest.raises(ValueError, match="expected one of counted"):
        run.module("other")
    assert command.main(["run", "counted", "--out", str(tmp_path)]) == 2
    assert "is a folder; expected a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", evidence.MEASUREMENTS)
def test_every_measurement(name, tmp_path):
    """Guards that each runs, and gives the pieces that the stored file has if settings are as there."""
    smoke = run.measure(name, "smoke", tmp_path / "smoke.json", quiet=True)
    assert smoke["pieces"]
    stored = run.read_measurement(ROOT / f"book/results/{name}.json")
    assert stored["size"] == "full" and stored["settings"] == run.json.loads(
        run.json.dumps(run.module(name).SIZES["full"])
    )
    assert set(stored["pieces"]) == set(run.module(name).pieces(stored["settings"]))
