"""`--gentle`: other programs go first, and on battery the machine rests as long as it works."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import localoss
from localoss.engine import company

# On two threads, so that kernels have threads of their own.
LOADED = """
import os, psutil, sys
import localoss
engine = localoss.load(sys.argv[1], gentle=sys.argv[2] == "1", threads=2, context_tokens=64)
list(engine.generate([1, 2, 3], 2, temperature=0, stop_ids=()))
print(*sorted({os.getpriority(os.PRIO_PROCESS, thread.id) for thread in psutil.Process().threads()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own there")
@pytest.mark.parametrize(("gentle", "nice"), [("1", {10}), ("0", {0})])
def test_all_threads_have_a_low_priority(gentle, nice, model):
    command = [sys.executable, "-c", LOADED, str(model("short")), gentle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    own = os.getpriority(os.PRIO_PROCESS, 0)  # of whoever runs the tests
    assert {int(one) for one in done.stdout.split()} == {max(one, own) for one in nice}


@pytest.mark.parametrize(("plugged", "rests"), [(False, [0.25, 1.0]), (True, []), (None, [])])
def test_it_rests_on_battery_alone(plugged, rests, monkeypatch):
    battery = None if plugged is None else SimpleNamespace(power_plugged=plugged)
    monkeypatch.setattr(company.psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(company, "lower_priority", lambda: None)
    slept, looked = [], []
    monkeypatch.setattr(company.time, "sleep", slept.append)
    one = company.Company()
    monkeypatch.setattr(company, "on_battery", lambda real=company.on_battery: looked.append(1) or real())
    for worked_s in (0.25, 7.0):
        one.rest(worked_s)
    assert slept == rests
    assert len(looked) == 1, "a battery is looked at every few seconds, not for each token"


def test_a_battery_that_cannot_be_read_is_none(monkeypatch):
    def broken():
        raise FileNotFoundError("/sys/class/power_supply")

    monkeypatch.setattr(company.psutil, "sensors_battery", broken, raising=False)
    assert not company.on_battery()


def test_every_pass_is_followed_by_a_rest(model, monkeypatch):
    monkeypatch.setattr(company, "lower_priority", lambda: None)
    engine = localoss.load(model("short"), context_tokens=64, chunk_tokens=8, gentle=True)
    worked = []
    engine._passes.rest = worked.append
    engine.prefill(engine.sequence(), list(range(20)))
    assert len(worked) == 3 and min(worked) > 0
    worked.clear()
    assert len(list(engine.generate([1, 2], 4, temperature=0, stop_ids=()))) == 4
    assert len(worked) >= 4
