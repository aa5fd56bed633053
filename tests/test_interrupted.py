"""Conversions that end at any step: the disk fails or fills, the process or the power dies. All go on."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import checkpoints
from support.faults import FAIL, FULL, KILL, POWER_CUT, Faults, in_child

from quant.convert import convert
from quant.errors import QuantError
from quant.format import disk
from quant.format.manifest import Dtypes, parse_manifest, read_manifest

SOAK = "LOCALOSS_SOAK" in os.environ
EACH = {one: pytest.param(one, 1, marks=pytest.mark.soak) for one in (FAIL, FULL, KILL, POWER_CUT)}  # step
TINY = dict(
    layers=3 if SOAK else 1, hidden=64, intermediate=32, heads=4, kv_heads=2,
    head_dim=24, experts=3, active=2, vocab=37, window=16,
)  # fmt: skip
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Nobody cuts the real power: faults.py counts the syncs, the disk needn't do them."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return checkpoints.write_checkpoint(tmp_path_factory.mktemp("tiny"), checkpoints.config_for(**TINY))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Every file of an undisturbed conversion."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(tiny, out)
    return files_of(out)


@pytest.fixture(scope="module")
def step_count(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        convert(tiny, tmp_path_factory.mktemp("count") / "out")
    assert {"write", "sync", "replace", "remove", "make_folder", "sync_folder"} == set(faults.steps)
    return len(faults.steps)


def check_what_is_there(out, whole):
    """A file under its own name is complete, and a folder with a manifest is."""
    if not out.exists():
        return
    there = files_of(out)
    for name in there.keys() & whole.keys():
        assert there[name] == whole[name], name
    if "localoss.json" in there:
        assert whole.keys() <= there.keys()


@pytest.mark.parametrize(("fault", "every"), [(FAIL, 3), (FULL, 5), EACH[FAIL], EACH[FULL]])
def test_a_disk_that_fails_at_any_step(fault, every, tiny, whole, step_count, tmp_path):
    for at in range(0, step_count, every):
        out = tmp_path / f"out{at}"
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fault, at)
            try:
                convert(tiny, out)
            except QuantError as error:
                assert "\n" not in str(error) and str(out) in str(error)
                assert fault != FULL or "the disk is full; free some space" in str(error)
            else:  # the model was complete, its journal was left
                assert at > step_count - {FAIL: 2, FULL: 5}[fault], at
        check_what_is_there(out, whole)
        convert(tiny, out)
        assert files_of(out) == whole, at
        shutil.rmtree(out)


@posix
@pytest.mark.parametrize(("fault", "every"), [(KILL, 5), (POWER_CUT, 7), EACH[KILL], EACH[POWER_CUT]])
def test_a_process_that_dies_at_any_step(fault, every, tiny, whole, step_count, tmp_path, monkeypatch):
    for at in range(0, step_count, every):
        out = tmp_path / f"out{at}"

        def die(out=out, at=at):
            Faults(monkeypatch, fault, at)
            convert(tiny, out)

        assert in_child(die) == -signal.SIGKILL
        check_what_is_there(out, whole)
        convert(tiny, out)
        assert files_of(out) == whole, at
        shutil.rmtree(out)


@posix
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_replacement_that_dies_goes_on_with_the_same_command(every, tiny, whole, tmp_path, monkeypatch):
    """--force over another model: killed at any step, no manifest stands beside files that aren't its own."""
    other = Dtypes(attention="bf16")
    convert(tiny, tmp_path / "other", other)
    old = files_of(tmp_path / "other")
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        convert(tiny, shutil.copytree(tmp_path / "other", tmp_path / "count"), force=True)
    kept = 0
    for at in range(0, len(faults.steps), every):
        out = shutil.copytree(tmp_path / "other", tmp_path / f"out{at}")

        def die(out=out, at=at):
            Faults(monkeypatch, POWER_CUT, at)
            convert(tiny, out, force=True)

        assert in_child(die) == -signal.SIGKILL
        there = files_of(out)
        if "localoss.json" in there:
            expected = old if there["localoss.json"] == old["localoss.json"] else whole
            assert expected.items() <= there.items()
        summary = convert(tiny, out, force=True)
        kept += summary.written_bytes < summary.manifest.total_bytes
        assert files_of(out) == whole, at
        shutil.rmtree(out)
    assert kept > 2


@posix
def test_one_that_dies_again_and_again(tiny, whole, step_count, tmp_path, monkeypatch):
    numbers = random.Random(5)
    out = tmp_path / "out"
    deaths = 0
    for _ in range(15):

        def die():
            Faults(monkeypatch, POWER_CUT, numbers.randrange(5, 40))
            convert(tiny, out)

        numbers.random()
        if in_child(die) == 0:
            break
        deaths += 1
        check_what_is_there(out, whole)
    convert(tiny, out)
    assert files_of(out) == whole and deaths > 2


def overlap(monkeypatch, out, strike):
    """The first layer's sync lasts until the next file is being written; then `strike()` is called in it."""
    first, later = "layer-000.safetensors", ("layer-001.safetensors", "vocabulary.safetensors")
    writing, (write, sync) = threading.Event(), (disk.write, disk.sync)

    def noting_write(file, chunk):
        write(file, chunk)
        if file.name in [out / f"{name}.part" for name in later]:
            writing.set()

    def long_sync(file):
        if file.name == out / f"{first}.part":
            assert writing.wait(60), "nothing is written while a file is synced"
            assert not (out / first).exists()
            strike()
        sync(file)

    monkeypatch.setattr(disk, "write", noting_write)
    monkeypatch.setattr(disk, "sync", long_sync)


def test_the_next_file_is_written_while_the_last_is_synced(tiny, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    overlap(monkeypatch, out, lambda: None)
    convert(tiny, out)
    assert files_of(out) == whole


def test_a_sync_that_fails_while_the_next_file_is_written(tiny, whole, tmp_path):
    def fail():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        overlap(patch, out, fail)
        with pytest.raises(QuantError, match=r"layer-000\.safetensors: cannot be written"):
            convert(tiny, out)
    assert files_of(out).keys() == {"config.json", "localoss.json.part"}
    convert(tiny, out)
    assert files_of(out) == whole


@posix
def test_a_kill_while_one_file_is_synced_and_the_next_is_written(tiny, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def die():
        overlap(monkeypatch, out, lambda: os.kill(os.getpid(), signal.SIGKILL))
        convert(tiny, out)

    assert in_child(die) == -signal.SIGKILL
    there = files_of(out).keys()
    assert len([name for name in there if name.endswith(".safetensors.part")]) >= 2
    assert not [name for name in there if name.endswith(".safetensors")]
    check_what_is_there(out, whole)
    convert(tiny, out)
    assert files_of(out) == whole


def test_files_in_the_journal_are_trusted_and_not_written_again(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupt(done_bytes, total_bytes):
        if done_bytes == total_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny, out, progress=interrupt)
    done = parse_manifest(out / "localoss.json.part").files
    assert {"config.json", "layer-000.safetensors"} <= done.keys()
    stamps = {name: (out / name).stat().st_mtime_ns for name in done}
    convert(tiny, out)
    assert stamps == {name: (out / name).stat().st_mtime_ns for name in done}


def test_another_version_begins_afresh(tiny, whole, tmp_path, monkeypatch):
    """It may round differently: files of two versions must not stand in one model."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("quant.convert._localoss_version", lambda: "0.0.1")
        Faults(patch, FAIL, 36)
        with pytest.raises(QuantError):
            convert(tiny, out)
    assert parse_manifest(out / "localoss.json.part").files
    summary = convert(tiny, out)
    assert summary.written_bytes == summary.manifest.total_bytes
    assert files_of(out) == whole


# Two at once


def test_a_second_converter_is_refused(tiny, whole, tmp_path):
    out, refused = tmp_path / "out", []

    def try_second(done_bytes, total_bytes):
        code = (
            "import sys; from pathlib import Path; from quant.convert import convert; "
            "convert(Path(sys.argv[1]), Path(sys.argv[2]), force=len(sys.argv) > 3)"
        )
        if not refused:
            for force in ((), ("force",)):
                command = [sys.executable, "-c", code, str(tiny), str(out), *force]
                refused.append(subprocess.run(command, capture_output=True, text=True, timeout=600))

    convert(tiny, out, progress=try_second)
    for done in refused:
        assert done.returncode == 1
        assert "BusyError" in done.stderr and "another localoss quantize is writing there" in done.stderr
    assert files_of(out) == whole


@posix
def test_the_lock_dies_with_its_process(tiny, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    held, hold = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with disk.locked(out):
            os.write(held[1], b"x")
            os.read(hold[0], 1)  # for ever
    os.read(held[0], 1)
    with pytest.raises(QuantError, match="another localoss quantize"):
        convert(tiny, out)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    convert(tiny, out)
    assert files_of(out) == whole


def test_a_folder_without_locks_is_used_all_the_same(tiny, whole, tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError("no locks here")

    monkeypatch.setattr(disk, "_open_lock", unsupported)
    convert(tiny, tmp_path / "out")
    assert files_of(tmp_path / "out") == whole


# The source


@pytest.fixture
def source(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "source")


def change_the_middle(folder):
    """One bit, far from where any tensor starts."""
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    return path.name


def test_a_source_that_changes_between_two_runs(source, tmp_path):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, FAIL, 36)
        with pytest.raises(QuantError):
            convert(source, out)
    name = change_the_middle(source)
    with pytest.raises(QuantError, match=rf"{name} of the checkpoint changed .*--force"):
        convert(source, out)
    convert(source, out, force=True)
    convert(source, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_source_that_changes_after_the_model_was_made(source, tmp_path):
    convert(source, tmp_path / "out")
    name = change_the_middle(source)
    os.utime(source / name, ns=(0, time.time_ns() + 10**9))  # clocks of file systems are coarse
    with pytest.raises(QuantError, match=rf"older than {name} of the checkpoint.*--force"):
        convert(source, tmp_path / "out")


def test_a_source_that_changes_while_it_is_read(source, tmp_path):
    changed = []

    def change(done_bytes, total_bytes):
        if done_bytes > total_bytes / 2 and not changed:
            name = change_the_middle(source)
            os.utime(source / name, ns=(0, 1))
            changed.append(name)

    with pytest.raises(QuantError, match=r"changed while it was converted.*--force"):
        convert(source, tmp_path / "out", progress=change)
    assert not (tmp_path / "out" / "localoss.json").exists()


def test_sources_are_only_read(tiny, tmp_path):
    source = shutil.copytree(tiny, tmp_path / "source")
    before = files_of(source)
    for path in (*source.iterdir(), source):
        path.chmod(0o500 if path.is_dir() else 0o400)
    convert(source, tmp_path / "out")
    assert files_of(source) == before


# At full width


def sha256s(folder):
    return {name: entry.sha256 for name, entry in read_manifest(folder).files.items()}


@pytest.mark.soak
@posix
def test_twenty_random_kills_at_full_width(tmp_path):
    """LOCALOSS_SOAK_CHECKPOINT names a checkpoint of full width, four layers do; without it a small one."""
    given = os.environ.get("LOCALOSS_SOAK_CHECKPOINT")
    config = checkpoints.config_for(**TINY | dict(layers=6, hidden=512, intermediate=768, vocab=9999))
    source = Path(given) if given else checkpoints.write_checkpoint(tmp_path / "source", config)
    numbers = random.Random(20)
    command = [sys.executable, "-m", "localoss", "quantize", str(source), str(tmp_path / "out")]
    started_s = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    full_s = time.monotonic() - started_s
    expected = sha256s(tmp_path / "out")
    kills = 0
    while kills < 20:
        if (tmp_path / "out" / "localoss.json").exists():  # finished, or the first round: begin again
            shutil.rmtree(tmp_path / "out")
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                _, stderr = process.communicate(timeout=numbers.uniform(0.3 * full_s, full_s))
                assert process.returncode == 0, stderr
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
        if kills % 2 and not (tmp_path / "out" / "localoss.json").exists():
            continue  # this one is killed once more
        subprocess.run(command, check=True, capture_output=True)
        assert sha256s(tmp_path / "out") == expected
