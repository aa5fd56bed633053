"""A mapped model file that loses its end while it is used: one line that says which, and no bare SIGBUS."""

import shutil
import signal
import subprocess
import sys

import pytest
from support import checkpoints

import localoss
from quant.convert import convert

LOADED = """
import faulthandler, mmap, os, sys, tempfile
import localoss
if "handler" in sys.argv:
    faulthandler.enable()
engine = localoss.load(sys.argv[1], context_tokens=64, threads=1)
if "elsewhere" in sys.argv:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192))
        file.flush()
        other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(file.fileno(), 0)
    other[4096]
else:
    os.truncate(sys.argv[2], 4096)
list(engine.generate([1, 2, 3], max_tokens=2))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux's signals are known here")


def use(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", LOADED, str(folder), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def folder(model, tmp_path):
    return shutil.copytree(model("short"), tmp_path / "model")


def test_the_file_is_named(folder):
    for name in ("layer-001.safetensors", "vocabulary.safetensors"):
        file = folder / name
        content = file.read_bytes()
        done = use(folder, file)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: {file} can't be read any more") and "verify" in done.stderr
        file.write_bytes(content)


def test_other_faults_are_as_they_were(folder):
    assert use(folder, "elsewhere").returncode == -signal.SIGBUS
    done = use(folder, folder / "layer-001.safetensors", "handler")
    assert done.returncode == -signal.SIGBUS and "can't be read any more" not in done.stderr


def test_our_own_commands_cut_nothing_short(tmp_path):
    """They put new files in the place of old ones, or take names away: what is mapped stays as it is."""
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    checkpoints.write_tensors(first, config, checkpoints.make_tensors(config, 0))
    checkpoints.write_tensors(second, config, checkpoints.make_tensors(config, 1))
    convert(first, out)
    engine = localoss.load(out, context_tokens=64, threads=1)

    def tokens():
        return [token.id for token in engine.generate([1, 2, 3, 4], max_tokens=8, temperature=0)]

    before = tokens()
    convert(second, out, force=True)
    assert tokens() == before
    shutil.rmtree(out)
    assert tokens() == before
