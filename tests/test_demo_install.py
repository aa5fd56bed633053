"""The demo model's way from its reduced checkpoint to a model directory, on random weights of that layout."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import reduced
from support.faults import FULL, Faults
from test_convert import files_of

import localoss
from localoss import cli
from localoss.errors import ModelError
from localoss.hub import bundled as installing
from localoss.hub.registry import find_model
from quant.convert import convert
from quant.errors import QuantError
from quant.format import disk
from quant.format.manifest import Dtypes, read_manifest

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A reduced checkpoint, to be read only."""
    return reduced.write(tmp_path_factory.mktemp("shipped") / "weights")


@pytest.fixture
def home(shipped, tmp_path, monkeypatch):
    """A data folder of the test's own, and random weights in the place of those that are shipped."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(installing, "WEIGHTS", shipped)
    return tmp_path / "home"


@pytest.fixture
def installed(home, shipped):
    """The model's folder in `home`, as its first use made it: once, and copied."""
    made = shipped.with_name("installed")
    if not made.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(installing, "WEIGHTS", shipped)
            installing.install(made, lambda line: None)
    return Path(shutil.copytree(made, home / "models" / "demo"))


# A reduced checkpoint


@pytest.mark.parametrize("kept", [False, True])
def test_it_becomes_what_the_published_layout_becomes(shipped, tmp_path, kept):
    dtypes = Dtypes("bf16", "bf16", "bf16", "bf16") if kept else Dtypes()
    full = reduced.expand(shipped, tmp_path / "full")
    convert(shipped, tmp_path / "ours", dtypes)
    convert(full, tmp_path / "theirs", dtypes)
    ours, theirs = files_of(tmp_path / "ours"), files_of(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"localoss.json", "config.json"}:
        assert ours[name] == theirs[name], name


def test_tokens_without_a_row_have_the_last_one(shipped, tmp_path):
    convert(shipped, tmp_path / "out", Dtypes("bf16", "bf16", "bf16", "bf16"))
    engine = localoss.load(tmp_path / "out", context_tokens=64)
    known = reduced.token_ids()
    unknown = np.setdiff1d(np.arange(201_088), known)
    logits = engine.logits([known[5], int(unknown[0]), 200_006])
    np.testing.assert_array_equal(logits[:, unknown], logits[:, unknown[:1]].repeat(len(unknown), 1))
    assert len(np.unique(logits[0, known])) > reduced.KNOWN * 0.99
    others = engine.logits([known[5], int(unknown[-1]), 200_006])
    np.testing.assert_array_equal(logits, others)
    assert np.abs(engine.logits([known[6], int(unknown[0]), 200_006]) - logits).max() > 0.01


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2", "not JSON"),
        ("{}", "ascending"),
        ("[3, 2]", "ascending"),
        ("[2, 2]", "ascending"),
        ("[-1, 2]", "ascending"),
        ("[1, 201088]", "below 201,088"),
        ("[true]", "ascending"),
        ('["1"]', "ascending"),
        ("[1, 2]", "embed_tokens"),  # a list of another length than the weights
    ],
)
def test_damaged_token_ids(shipped, tmp_path, content, words):
    for path in shipped.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "token_ids.json").write_text(content)
    with pytest.raises(QuantError, match=words) as raised:
        convert(tmp_path, tmp_path / "out")
    assert str(tmp_path) in str(raised.value) and not (tmp_path / "out").exists()


# Its installation


def test_it_is_shown_with_what_it_is(home, capsys):
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[-1].startswith("`localoss chat demo` needs no pull: a tiny model that shows the machinery")
    assert not any(line.startswith("  demo") for line in listed)
    assert cli.main(["show", "demo"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert shown["what"].startswith("a tiny model that shows the machinery")
    assert shown["state"] == "complete" and shown["folder"] == str(home / "models" / "demo")
    assert cli.main(["list"]) == 0
    assert "needs no pull" not in capsys.readouterr().out


def test_the_first_use_installs_it(home):
    said = []
    folder = find_model("demo", said.append)
    assert folder == home / "models" / "demo"
    assert len(said) == 1 and "once on this machine" in said[0]
    manifest = read_manifest(folder)
    assert (manifest.source.name, manifest.dtypes) == ("demo", Dtypes())
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert find_model("demo", said.append) == folder and len(said) == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    engine = localoss.load("demo", context_tokens=32)
    assert engine.logits([200_006]).shape == (1, 201_088)


def test_new_weights_replace_the_old_ones(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(installing, "WEIGHTS", reduced.write(tmp_path / "newer", seed=1))
    said = []
    convert(tmp_path / "newer", tmp_path / "expected")
    folder = find_model("demo", said.append)
    assert len(said) == 1 and folder == installed
    ours, expected = files_of(folder), files_of(tmp_path / "expected")
    assert all(ours[name] == expected[name] for name in expected if name != "localoss.json")
    assert find_model("demo", said.append) == folder and len(said) == 1


@pytest.mark.parametrize("damage", ["manifest", "layer", "unfinished"])
def test_a_damaged_one_is_made_again(installed, damage):
    folder = find_model("demo")
    sound = files_of(folder)
    if damage == "manifest":
        (folder / "localoss.json").write_text("{")
    elif damage == "layer":
        (folder / "layer-001.safetensors").unlink()
    else:
        (folder / "localoss.json").rename(folder / "localoss.json.part")
    find_model("demo")
    assert files_of(folder) == sound


@pytest.mark.parametrize("manifest", ["localoss.json", "localoss.json.part"])
def test_another_model_of_that_name_stays(home, model, manifest):
    folder = home / "models" / "demo"
    convert_like(model("short"), folder)
    (folder / "localoss.json").rename(folder / manifest)
    before = files_of(folder)
    with pytest.raises(ModelError, match="made from short, but demo is the model that comes with localoss"):
        find_model("demo")
    assert files_of(folder) == before


def convert_like(source, folder):
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def test_a_full_disk_is_told_and_the_next_run_goes_on(home, monkeypatch):
    with monkeypatch.context() as patch:
        Faults(patch, FULL, at=4)
        with pytest.raises(QuantError, match="the disk is full; free some space"):
            find_model("demo")
    assert read_manifest(find_model("demo")).source.name == "demo"


def test_a_data_folder_that_cannot_be_written(home, monkeypatch):
    def refuse(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(disk, "make_folder", refuse)
    with pytest.raises(QuantError, match=r"models: cannot be written \(Read-only file system\)"):
        find_model("demo")


def test_weights_that_are_not_there(home, monkeypatch, tmp_path):
    monkeypatch.setattr(installing, "WEIGHTS", tmp_path / "nothing")
    with pytest.raises(ModelError, match="missing; install localoss again"):
        find_model("demo")


AT_ONCE = """
import json, pathlib, sys
from localoss.hub import bundled as install
from localoss.hub.registry import find_model
from quant.format.manifest import read_manifest
install.WEIGHTS = pathlib.Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
said = []
read_manifest(find_model("demo", said.append))
print(json.dumps(len(said)))
"""


def test_processes_at_once(home, shipped):
    """One writes, the others wait for it; all of them find a whole model."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, str(shipped)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TESTS.parent,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert all(json.loads(output) in (0, 1) for output in outputs)
    assert len(list((home / "models").iterdir())) == 1
