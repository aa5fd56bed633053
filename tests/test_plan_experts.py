"""What a plan says of experts from the disk: slots, expected hits, speed, and the disk's own figure."""

import json

import pytest

from localoss import cli
from localoss.hub.registry import known_models
from localoss.plan import disk
from localoss.plan.disk import DiskSpeed
from localoss.plan.experts import Streaming, record_bytes, with_cache
from localoss.plan.machine import Machine
from localoss.plan.memory import Plan
from quant.errors import QuantError
from quant.format.direct import DirectFile

LARGE = Plan(known_models()["gpt-oss-120b"].config)
SMALL = Plan(known_models()["gpt-oss-20b"].config)
BY_3_5 = DiskSpeed(3.5e9)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def cached(plan, memory_bytes):
    return with_cache(plan, Machine(int(memory_bytes), int(memory_bytes)).cache_limit_bytes)


def test_slots_are_what_is_left():
    made = cached(LARGE, 16e9)
    assert record_bytes(LARGE) == 13_254_656
    assert 700 < made.expert_slots < 1000
    left = 0.85 * 16e9 - made.total_bytes
    assert 0 <= left < record_bytes(LARGE)
    assert cached(LARGE, 100e9).expert_slots == 36 * 128, "never more than there are"
    assert cached(LARGE, 3.5e9) is None, "too few to run a layer"


def test_more_memory_and_a_faster_disk_are_faster():
    speeds = [Streaming(cached(LARGE, size), BY_3_5) for size in (16e9, 24e9, 32e9, 48e9, 64e9)]
    assert [s.hit_rate for s in speeds] == sorted(s.hit_rate for s in speeds)
    assert [s.tokens_per_s for s in speeds] == sorted(s.tokens_per_s for s in speeds)
    assert 3 < speeds[0].tokens_per_s < 8 and 0.5 < speeds[0].hit_rate < 0.8
    assert Streaming(speeds[0].plan, DiskSpeed(1e9)).tokens_per_s < 0.5 * speeds[0].tokens_per_s
    assert speeds[0].prompt_s(512) <= speeds[0].prompt_s(4096) <= 1.01 * 61.1e9 / 3.5e9
    small = Streaming(cached(SMALL, 8e9), BY_3_5)
    assert small.plan.expert_slots > 300 and small.tokens_per_s > 4 * 0.48


def test_what_is_printed(capsys):
    assert cli.main(["plan", "gpt-oss-120b", "--memory", "16GB"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "of 4,608 stay in memory",
        "of a token's experts are there",
        "tokens/s",
        "3.50 GB/s assumed",
    ):
        assert words in text
    assert "s for 512 and" in text and "4,096 tokens of a prompt" in text
    assert cli.main(["plan", "gpt-oss-120b", "--memory", "16GB", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "from disk" and report["experts"]["slots"] > 700
    assert report["experts"]["disk"]["is_assumed"]
    assert cli.main(["plan", "gpt-oss-120b", "--memory", "16GB", "--expert-memory", "4GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"]["slots"] == 4_000_000_000 // 13_254_656
    assert cli.main(["plan", "gpt-oss-120b", "--memory", "16GB", "--expert-memory", "15GB"]) == 2
    assert "there is room for" in capsys.readouterr().err
    assert cli.main(["plan", "gpt-oss-20b", "--memory", "64GB", "--json"]) == 0
    assert "experts" not in json.loads(capsys.readouterr().out), "nothing comes from the disk"


def test_the_disk_is_measured_once_and_kept(capsys, monkeypatch, home):
    monkeypatch.setattr(disk, "_TRIAL_BYTES", 1 << 16)
    assert cli.main(["plan", "gpt-oss-120b", "--memory", "16GB", "--measure"]) == 0
    first = capsys.readouterr().out
    assert "GB/s, measured 20" in " ".join(first.split())
    assert not list(home.glob(".disk-trial*"))
    kept = disk.known(home)
    assert kept.bytes_per_s > 0 and kept.date
    assert cli.main(["plan", "gpt-oss-120b", "--memory", "16GB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["experts"]["disk"]
    assert told["bytes_per_s"] == kept.bytes_per_s and not told["is_assumed"]


def test_a_models_own_files_are_read(model, monkeypatch, home):
    monkeypatch.setattr(disk, "_TRIAL_BYTES", 1 << 15)
    opened = []

    class Noted(DirectFile):
        def __init__(self, path, direct=True):
            opened.append(path.name)
            super().__init__(path, direct)

    monkeypatch.setattr(disk, "DirectFile", Noted)
    assert disk.measure(model("short")).bytes_per_s > 0
    assert set(opened) == {f"layer-00{i}.safetensors" for i in range(3)}


def test_a_disk_that_fails_leaves_nothing(home, monkeypatch):
    def fail(self, view, offset, least=None):
        raise QuantError("cannot be read")

    monkeypatch.setattr(disk, "_TRIAL_BYTES", 1 << 15)
    monkeypatch.setattr(DirectFile, "read_into", fail)
    with pytest.raises(QuantError):
        disk.measure(home)
    assert not list(home.iterdir())
    (home / disk.FILE).write_text("[1, {")
    assert disk.known(home) == DiskSpeed(disk.ASSUMED_BYTES_PER_S), "a damaged file is none"
