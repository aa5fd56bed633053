"""A hub and a disk that fail while a model is pulled: it is tried again, told in one line, gone on with."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.faults import FULL, Faults
from support.hub_fixtures import NAME, QUICK, SMALL, Told, home, hub, published, pulled, weights_of
from support.hub_server import CLOSE, EXPIRED, RESIZED, SILENT, STALL, WRONG

from localoss.hub import store, transfer
from localoss.hub.errors import DownloadError, GoneError, WrongFileError
from localoss.hub.pull import Order, pull
from quant.convert import convert
from quant.errors import QuantError

__all__ = ["home", "hub", "published", "pulled"]
ROOT = Path(__file__).parent.parent
PIECE_BYTES = 40_000
HEADER = None  # the first request of a shard is for its header: no fault there
FIRST = "model-00000-of-00002.safetensors"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A file of the test's is many pieces, as a real one is."""
    monkeypatch.setattr(transfer, "PIECE_BYTES", PIECE_BYTES)


@pytest.fixture(scope="module")
def whole(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(published, out)
    return weights_of(out)


def size_of(hub, name=FIRST):
    return (hub.folder / name).stat().st_size


def refetched(hub, name=FIRST, headers=1):
    """Bytes of `name` that were served more than once, its headers not counted."""
    return hub.served[name] - size_of(hub, name) - headers * min(size_of(hub, name), 128 << 10)


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([CLOSE], "closed the connection too early; trying again in 0 s"),
        ([CLOSE, CLOSE, 500, CLOSE, 503], "trying again"),
        ([STALL], "nothing comes from"),
        ([429], r"asks to wait \(429\); trying again in 0 s"),
        # Two connections meet them at once, and the first to hear of its own tells for both.
        ([500, 502], r"fails \(50[02]\); trying again"),
        ([EXPIRED], None),  # the hub is asked for another address, without a word
        ([RESIZED], None),
    ],
)
def test_what_passes_is_tried_again(faults, told, hub, pulled, whole):
    hub.faults[FIRST] = [HEADER, *faults]
    result, progress = pulled()
    assert weights_of(result.folder) == whole
    lines = " ".join(progress.lines)
    assert re.search(told, lines) if told else "trying" not in lines
    assert hub.faults[FIRST] == []
    assert refetched(hub) <= (PIECE_BYTES if faults == [RESIZED] else 0)  # refused at sight of its headers


@pytest.mark.parametrize("fault", [CLOSE, WRONG, STALL, 429, 500, RESIZED, EXPIRED])
@pytest.mark.parametrize("name", ["config.json", FIRST])
def test_small_requests_are_tried_again_too(fault, name, hub, pulled, whole):
    """The configuration, and a shard's header."""
    hub.faults[name] = [fault]
    assert weights_of(pulled()[0].folder) == whole
    assert hub.faults[name] == []


def test_the_listing_is_tried_again(hub, pulled, whole):
    hub.faults["listing"] = [503, 429]
    result, progress = pulled()
    assert weights_of(result.folder) == whole and "fails (503); trying again" in progress.lines[0]


def test_a_damaged_file_is_fetched_again_alone(hub, pulled, whole):
    hub.faults[FIRST] = [HEADER, None, WRONG]
    result, progress = pulled()
    assert weights_of(result.folder) == whole
    assert f"{FIRST} came damaged; fetching it again" in progress.lines
    assert refetched(hub) == size_of(hub)
    others = [
        name for name in hub.served if name not in (FIRST, "config.json", "model.safetensors.index.json")
    ]
    assert len(others) == 2 and all(refetched(hub, name) <= 0 for name in others)


def test_a_file_that_always_comes_damaged(hub, pulled):
    hub.faults[FIRST] = [HEADER, *[WRONG] * 1000]
    with pytest.raises(WrongFileError, match=r"came damaged 3 times; try again later") as error:
        pulled()
    assert one_line(error)


def test_one_more_byte_than_listed_for_good(hub, pulled):
    hub.faults[FIRST] = [HEADER, *[RESIZED] * 100]
    with pytest.raises(WrongFileError, match=rf"{FIRST} has [\d,]+ bytes where its listing says") as error:
        pulled()
    assert one_line(error)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(500, r"fails \(500\): try again later; the same command goes on"), (429, r"429.*hf auth login"),
     (SILENT, "nothing comes from .*: check the network; the same command goes on")],
)  # fmt: skip
def test_what_does_not_pass_is_one_line_and_nothing_is_lost(fault, words, hub, pulled, whole):
    hub.bytes_per_s = 2e6
    hub.faults[FIRST] = [HEADER, None, None, None, None, None, *[fault] * 60]
    with pytest.raises(DownloadError, match=words) as error:
        pulled()
    assert one_line(error)
    hub.faults.clear()
    hub.bytes_per_s = None
    assert weights_of(pulled()[0].folder) == whole
    assert refetched(hub, headers=2) <= transfer.IN_FLIGHT * PIECE_BYTES


def test_no_network(hub, pulled):
    hub.close()
    with pytest.raises(
        DownloadError, match=r"cannot be reached .*check the network; the same command"
    ) as error:
        pulled()
    assert one_line(error)


def test_a_file_that_vanishes_meanwhile(hub, home):
    class Removing(Told):
        def fetched(self, name, done_bytes, total_bytes):
            (hub.folder / "model-00002-of-00002.safetensors").unlink(missing_ok=True)

    with pytest.raises(GoneError, match="a file that its listing names is gone") as error:
        pull(Order(NAME), Removing(), QUICK)
    assert one_line(error)


# Refusals


def test_a_gated_repository(hub, pulled, monkeypatch):
    hub.gated, hub.token = {NAME}, "hf_good"
    for token in (None, "hf_other"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DownloadError, match=rf"{NAME} is gated: accept its terms at .*hf auth login"):
            pulled()
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    pulled()


def test_a_token_that_the_hub_refuses(hub, pulled, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(DownloadError, match="refuses your token"):
        pulled()


def test_a_mirror_that_is_none(hub, pulled, monkeypatch):
    from huggingface_hub import constants

    hub.listing = lambda listing: ["not", "a", "listing"]
    with pytest.raises(
        DownloadError, match=r"does not answer as the hub does \(no object with siblings\); check HF_ENDPOINT"
    ):
        pulled()
    hub.listing = lambda listing: listing | {"sha": None}
    with pytest.raises(DownloadError, match=r"\(no commit\)"):
        pulled()
    monkeypatch.setattr(constants, "ENDPOINT", "huggingface.co")
    with pytest.raises(DownloadError, match=r"HF_ENDPOINT is 'huggingface\.co'; give one like https"):
        pulled()


def test_a_mirror_that_lists_no_checksums(hub, pulled, whole):
    """Then each file's own answer tells size and sha256."""

    def bare(listing):
        names = [{"rfilename": sibling["rfilename"]} for sibling in listing["siblings"]]
        return listing | {"siblings": names}

    hub.listing = bare
    hub.faults[FIRST] = [HEADER, WRONG]
    result, progress = pulled()
    assert weights_of(result.folder) == whole and "came damaged" in " ".join(progress.lines)


def test_offline_mode_is_told(hub, pulled, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        pulled()


# This side


@pytest.mark.parametrize("moments", [8, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_full_disk_and_then_room(hub, pulled, whole, home, moments):
    """From some writes on; in the soak from each of them on."""
    with pytest.MonkeyPatch.context() as patch:
        steps = Faults(patch).steps
        pulled(stored_as="count")
    for at in range(1, len(steps), max(1, len(steps) // moments)):
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, FULL, at)
            try:
                pulled("gpt-oss-20b")
            except QuantError as error:
                assert "the disk is full; free some space" in str(error) and "\n" not in str(error)
    assert weights_of(pulled("gpt-oss-20b")[0].folder) == whole


def test_ctrl_c_and_on_again(hub, home, pulled, whole):
    class Stopping(Told):
        def fetched(self, name, done_bytes, total_bytes):
            if done_bytes > total_bytes / 2:
                raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pull(Order(NAME), Stopping(), QUICK)
    assert weights_of(pulled()[0].folder) == whole
    assert refetched(hub, headers=4) <= 3 * transfer.IN_FLIGHT * PIECE_BYTES


def test_a_second_pull_of_the_same_model_is_told(hub, home, whole):
    class Meanwhile(Told):
        second = None

        def fetched(self, name, done_bytes, total_bytes):
            if self.second is None:
                command = [sys.executable, "-m", "localoss", "pull", "gpt-oss-20b"]
                environment = {**os.environ, "LOCALOSS_HOME": str(home)}
                self.second = subprocess.run(
                    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
                )

    progress = Meanwhile()
    result = pull(Order("gpt-oss-20b"), progress, QUICK)
    assert progress.second.returncode == 2 and progress.second.stderr.count("\n") == 1
    assert "another `localoss pull` of this model is running" in progress.second.stderr
    assert weights_of(result.folder) == whole


def test_what_another_commit_left_is_not_mixed_in(hub, home, pulled):
    """A part of a file of another content, under the same name, at another commit."""
    hub.faults[FIRST] = [HEADER, None, None, None, *[500] * 60]
    with pytest.raises(DownloadError):
        pulled()
    (part,) = home.rglob(f"{FIRST}.part")
    part.write_bytes(bytes(len(part.read_bytes())))
    hub.faults.clear()
    hub.commit = "e" * 40
    result, progress = pulled()
    assert result.commit == "e" * 40 and not any("damaged" in line for line in progress.lines)
    assert {file.state for file in store.verify(result.folder)} == {"ok"}


def test_a_part_longer_than_its_file_begins_anew(hub, home, pulled, whole):
    hub.faults[FIRST] = [HEADER, None, None, None, *[500] * 60]
    with pytest.raises(DownloadError):
        pulled()
    (part,) = home.rglob(f"{FIRST}.part")
    part.write_bytes(bytes(size_of(hub) + 1))
    hub.faults.clear()
    assert weights_of(pulled()[0].folder) == whole


# Mending a model


def a_layer_in_one_shard(hub):
    """The file of a layer all of whose tensors lie in one shard, and that shard."""
    weight_map = json.loads((hub.folder / "model.safetensors.index.json").read_text())["weight_map"]
    for layer in range(SMALL["layers"]):
        shards = {weight_map[name] for name in weight_map if name.startswith(f"model.layers.{layer}.")}
        if len(shards) == 1:
            return f"layer-{layer:03d}.safetensors", shards.pop()
    raise AssertionError("every layer is cut")


def damage(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def test_repair_fetches_what_the_bad_file_is_made_from(hub, home, pulled, whole):
    folder = pulled("gpt-oss-20b")[0].folder
    layer, shard = a_layer_in_one_shard(hub)
    damage(folder / layer)
    assert pulled("gpt-oss-20b")[0].summary.already_there  # sizes alone don't tell
    hub.served.clear()
    result, progress = pulled("gpt-oss-20b", repair=True)
    assert f"to be made again: {layer}" in progress.lines
    assert weights_of(folder) == whole and {file.state for file in store.verify(folder)} == {"ok"}
    assert list(progress.shards) == [shard] and refetched(hub, shard) <= 0
    assert result.summary.written_bytes == (folder / layer).stat().st_size


def test_a_missing_file_is_made_again_unasked(hub, pulled, whole):
    folder = pulled("gpt-oss-20b")[0].folder
    (folder / "vocabulary.safetensors").unlink()
    os.truncate(folder / "layer-003.safetensors", 100)
    result, progress = pulled("gpt-oss-20b")
    assert "to be made again: layer-003.safetensors, vocabulary.safetensors" in progress.lines
    assert weights_of(result.folder) == whole
