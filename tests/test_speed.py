"""What plan says of speed, against what bench measures; curves, shades."""

import json
import sys

import pytest
from support.scripted import ScriptedEngine

import localoss
from localoss import cli
from localoss.plan import speed
from localoss.plan.memory import Plan
from quant.format.manifest import Dtypes


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def plan_20b():
    from localoss.hub.registry import known_models

    return Plan(known_models()["gpt-oss-20b"].config, Dtypes(), context_tokens=4096)


def test_bytes_of_a_token_are_those_that_bench_counts(home, model):
    from localoss.measure.bench import decode_bytes

    engine = localoss.load(model("window"), context_tokens=64)
    planned = Plan(engine.config, engine.dtypes, context_tokens=64)
    assert speed.decode_bytes(planned) == pytest.approx(decode_bytes(engine), rel=0.02)


def test_an_estimate_rests_on_the_nearest_bench(home, plan_20b):
    size = speed.decode_bytes(plan_20b)
    typical = speed.estimate(plan_20b, 1 << 40)
    assert typical.source == "typical laptop" and 5 < typical.tokens_per_s < 40
    assert typical.full_tokens_per_s < typical.tokens_per_s
    speed.keep(speed.Measured(size // 100, 0.004, 20e9))  # calls of kernels take most of its time
    other = speed.estimate(plan_20b, 1 << 40)
    assert other.source == "bench" and other.tokens_per_s == pytest.approx(typical.tokens_per_s / 2, rel=0.1)
    speed.keep(speed.Measured(size, 0.2, 20e9))
    assert speed.estimate(plan_20b, 1 << 40).tokens_per_s == pytest.approx(5)
    assert speed.estimate(plan_20b, 1 << 40).source == "bench of this model"
    assert speed.estimate(plan_20b, int(5e9)) is None, "the disk decides"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"bytes_per_token": 0}]', "[[]]", "\xff"])
def test_a_damaged_file_counts_as_none(home, plan_20b, content):
    (home / speed.FILE).write_bytes(content.encode("latin-1"))
    assert speed.estimate(plan_20b, 1 << 40).source == "typical laptop"
    speed.keep(speed.Measured(10, 0.1, 1e9))
    assert json.loads((home / speed.FILE).read_bytes())[0]["bytes_per_token"] == 10


def test_bench_is_remembered_and_drawn(home, model, capsys):
    folder = str(model("window"))
    sizes = ["--prompt-tokens", "4", "--gen-tokens", "4"]
    assert cli.main(["bench", folder, *sizes, "--depths", "0,16,8"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.split("decode tokens/s")[1].splitlines() if "█" in line]
    assert [row[0] for row in rows] == ["0", "8", "16"]
    fastest = max(rows, key=lambda row: float(row[2]))
    assert len(fastest[3]) == max(len(row[3]) for row in rows)
    assert cli.main(["plan", folder, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["speed"]
    assert report["source"] == "bench of this model" and report["is_estimate"]
    measured = json.loads((home / speed.FILE).read_bytes())[0]["s_per_token"]
    assert report["tokens_per_s"] == pytest.approx(1 / measured, rel=0.25)
    assert cli.main(["bench", folder, *sizes, "--depths", "a"]) == 2
    assert "--depths is 'a'" in capsys.readouterr().err


@pytest.mark.parametrize(("logprob", "shown"), [(-0.01, "Hello!\n"), (-0.5, "Hello[61%]![61%]\n")])
def test_probabilities_without_colours(home, monkeypatch, capsys, logprob, shown):
    class Engine(ScriptedEngine):
        def generate(self, *arguments, **options):
            for token in super().generate(*arguments, **options):
                token.logprob = logprob
                yield token

    (home / "models" / "tiny").mkdir(parents=True)
    (home / "models" / "tiny" / "localoss.json").touch()
    monkeypatch.setattr(localoss, "load", lambda folder, options, listener: Engine())
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    assert cli.main(["run", "tiny", "Hi", "--show-probabilities"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["run", "tiny", "Hi", "--show-probabilities", "--json"]) == 2


@pytest.mark.parametrize(
    ("memory", "says"),
    [("16GB", "comes from the disk, slowly"), ("24GB", "it fits still"), ("4.5GB", "it does not run")],
)
def test_a_machine_that_is_named_is_no_empty_one(home, capsys, memory, says):
    assert cli.main(["plan", "gpt-oss-20b", "--memory", memory]) == 0
    out = capsys.readouterr().out
    assert "A system with a browser holds some 4.0 GB" in out and says in out


def test_advice_can_be_followed(home, capsys, monkeypatch):
    """Closing programs frees no more than they hold."""
    from localoss.plan import machine

    busy = machine.Machine(int(32e9), int(9e9))
    for name, says in (("gpt-oss-20b", "close programs that hold"), ("gpt-oss-120b", "a machine with")):
        monkeypatch.setattr(machine, "this_machine", lambda: busy)
        assert cli.main(["plan", name]) == 0
        assert f"To make it fit: {says}" in capsys.readouterr().out
