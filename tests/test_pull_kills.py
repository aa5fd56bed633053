"""Pulls that are killed at random moments, and at random steps of the disk: all end in a whole model.

Counted on the server's side: what it sent again after a kill, at most the pieces in flight.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support import checkpoints
from support.hub_fixtures import home, hub, published, weights_of

from localoss import cli
from localoss.hub import transfer
from quant.convert import convert

__all__ = ["home", "hub", "published"]
TESTS = Path(__file__).parent
HEADER_BYTES = 128 << 10
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
LARGER = dict(
    layers=6, hidden=512, intermediate=768, heads=4, kv_heads=2, head_dim=24, experts=3, active=2, vocab=9999,
    window=16,
)  # fmt: skip


class Victim:
    """Pulls `NAME` from `hub` into `home` again and again, and dies as asked."""

    def __init__(self, hub, home, piece_bytes):
        self.hub, self.piece_bytes = hub, piece_bytes
        self.model, self.sources = home / "models" / "gpt-oss-20b", home / "sources" / "gpt-oss-20b"
        self.sizes = {path.name: path.stat().st_size for path in hub.folder.glob("*.safetensors")}
        self.most_refetched = 0  # bytes, by one kill
        self.all_refetched = 0
        self.phases = Counter()
        started_s = time.monotonic()
        done, begun_s = self.run()
        assert done.returncode == 0, done.stderr
        self.seconds = time.monotonic() - started_s - begun_s
        self.steps = int(done.stdout.split()[-2])
        self.forget()

    def forget(self):
        shutil.rmtree(self.model)
        self.hub.served.clear()

    def run(self, step=None, after_s=None):
        """One pull, killed at `step`, or `after_s` seconds after it began; gives it, and when it began."""
        command = [
            sys.executable,
            str(TESTS / "support" / "pull_child.py"),
            "gpt-oss-20b",
            str(self.piece_bytes),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
        started_s = time.monotonic()
        with subprocess.Popen(
            [*command, *([str(step)] if step else [])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        ) as process:  # fmt: skip
            first = process.stdout.readline()
            begun_s = time.monotonic() - started_s
            if after_s is not None:
                time.sleep(after_s)
                process.kill()
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(command, process.returncode, first + out, err), begun_s

    def die(self, numbers):
        """Killed once, at a random step or moment; whether it was, for it may have been done before."""
        before, served = self.on_disk(), self.served_bytes()
        at_step = numbers.random() < 0.5
        if at_step:
            done, _ = self.run(step=numbers.randrange(1, self.steps))
        else:
            done, _ = self.run(after_s=numbers.uniform(0, self.seconds))
        if done.returncode != -9:
            assert done.returncode == 0, done.stderr
            return False
        self.phases[done.stdout.split()[-1] if at_step else self.phase()] += 1
        time.sleep(0.05)  # the server notices
        came = self.on_disk() - before
        headers = sum(min(size, HEADER_BYTES) for size in self.sizes.values())
        refetched = max(0, self.served_bytes() - served - headers - came)
        self.most_refetched = max(self.most_refetched, refetched)
        self.all_refetched += refetched
        return True

    def served_bytes(self):
        return sum(self.hub.served[name] for name in self.sizes)

    def on_disk(self):
        """How much of all shards has come: those that are gone again were there in full."""
        came = 0
        for name, size in self.sizes.items():
            part = self.sources / f"{name}.part"
            if part.exists():
                came += part.stat().st_size
            elif (self.sources / name).exists() or self.hub.served[name] >= size + HEADER_BYTES:
                came += size
        return came

    def phase(self):
        """What was going on, told by the file that isn't finished."""
        for path in (*self.sources.glob("*.part"), *self.model.glob("*.safetensors.part")):
            if path.parent == self.model:
                return "converting"
            return "keeping a rest" if ".rest." in path.name else "downloading"
        return "between files"

    def finish(self, expected):
        done, _ = self.run()
        assert done.returncode == 0, done.stderr
        assert cli.main(["verify", "gpt-oss-20b"]) == 0
        assert weights_of(self.model) == expected
        assert not self.sources.exists()
        self.forget()


def kill_again_and_again(victim, kills, seed, expected, again=0.5):
    """Some models die once, some more often, by chance `again`, before they may be completed."""
    numbers = random.Random(seed)
    models = 0
    while sum(victim.phases.values()) < kills:
        while victim.die(numbers) and numbers.random() < again and sum(victim.phases.values()) < kills:
            pass
        victim.finish(expected)
        models += 1
    return models


def expected_model(folder, tmp_path):
    convert(folder, tmp_path / "expected")
    return weights_of(tmp_path / "expected")


def test_five_kills(hub, home, tmp_path, capsys):
    hub.bytes_per_s = 1e6
    victim = Victim(hub, home, piece_bytes=32 << 10)
    kill_again_and_again(victim, 5, 7, expected_model(hub.folder, tmp_path), again=0.8)
    assert victim.most_refetched <= transfer.IN_FLIGHT * victim.piece_bytes


@pytest.mark.soak
def test_a_hundred_kills(hub, home, tmp_path, capsys):
    """On 34 MB, with pieces of the real size."""
    shutil.rmtree(hub.folder)
    checkpoints.write_checkpoint(hub.folder, checkpoints.config_for(**LARGER))
    hub.bytes_per_s = 4e6
    victim = Victim(hub, home, piece_bytes=transfer.PIECE_BYTES)
    models = kill_again_and_again(victim, 100, 8, expected_model(hub.folder, tmp_path))
    kills = sum(victim.phases.values())
    report = {
        "kills": kills,
        "models": models,
        "checkpoint_bytes": sum(victim.sizes.values()),
        "phases": dict(victim.phases),
        "refetched_bytes_most": victim.most_refetched,
        "refetched_bytes_mean": round(victim.all_refetched / kills),
    }
    with capsys.disabled():
        print(f"\n{json.dumps(report, indent=2)}")
    assert victim.most_refetched <= 16e6
    assert {"downloading", "converting", "replace", "write"} <= victim.phases.keys()
