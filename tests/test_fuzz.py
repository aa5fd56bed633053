"""Damaged headers, indexes, configs and manifests by the thousand: one line each, at once, nothing else."""

import gc
import json
import os
import random
import shutil
import struct
import time
import tracemalloc

import pytest
from support import checkpoints, layouts
from support.gguf_mutations import mutate_gguf
from support.mutations import mutate_json, mutate_safetensors
from test_interrupted import files_of, no_waiting  # noqa: F401

from quant.convert import convert
from quant.errors import QuantError
from quant.format.config import read_config
from quant.format.manifest import read_manifest

MOST_SECONDS = 1.0
MOST_BYTES = 100_000_000
INDEX = "model.safetensors.index.json"
TINY = dict(
    layers=2, hidden=64, intermediate=32, heads=4, kv_heads=2, head_dim=24,
    experts=3, active=2, vocab=37, window=16,
)  # fmt: skip
SOAK = bool(os.environ.get("LOCALOSS_SOAK"))
WORST = dict(cases=0, accepted=0, slowest_refusal_s=0.0, most_bytes=0)


def rounds(count):
    """A seed of a quarter of `count` mutations; ten times `count`, in chunks, for the soak."""
    soaked = [pytest.param(seed, count, marks=pytest.mark.soak) for seed in range(10)]
    return [(0, count // 4), *soaked]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return checkpoints.write_checkpoint(
        tmp_path_factory.mktemp("tiny") / "source", checkpoints.config_for(**TINY)
    )


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    convert(tiny, out)  # Numba's code is compiled before anything is measured
    return out


@pytest.fixture(scope="module", autouse=True)
def telling_the_worst(request):
    yield
    if SOAK:
        request.config.get_terminal_writer().line(f"\n{WORST}")


@pytest.fixture(autouse=True)
def measuring():
    gc.collect()
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


def names_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def survives(action):
    """Whether `action()` works; if not, it has refused as it should. It is quick and small either way."""
    tracemalloc.reset_peak()
    before_bytes = tracemalloc.get_traced_memory()[0]
    started_s = time.process_time()
    try:
        action()
        refusal = None
    except QuantError as error:
        refusal = str(error)
    taken_s = time.process_time() - started_s
    most_bytes = tracemalloc.get_traced_memory()[1] - before_bytes
    WORST["cases"] += 1
    WORST["accepted"] += refusal is None
    WORST["most_bytes"] = max(WORST["most_bytes"], most_bytes)
    if refusal is not None:  # what is accepted is converted, which compiles first
        if taken_s >= MOST_SECONDS:  # counting allocations makes a refusal several times as slow
            taken_s = untraced_seconds(action)
        WORST["slowest_refusal_s"] = max(WORST["slowest_refusal_s"], taken_s)
        assert taken_s < MOST_SECONDS
    assert most_bytes < MOST_BYTES
    if refusal is not None:
        assert refusal.isprintable() and 20 < len(refusal) < 700
    return refusal is None


def untraced_seconds(action):
    tracemalloc.stop()
    started_s = time.process_time()
    with pytest.raises(QuantError):
        action()
    taken_s = time.process_time() - started_s
    tracemalloc.start(1)
    return taken_s


def check(path, mutate, action, out, count, numbers):
    """Damage `path` `count` times and do `action`; gives how often that worked. Only `out` may change."""
    original = path.read_bytes()
    root = out.parent
    around = names_below(root)
    worked = 0
    for number in range(count):
        content = mutate(numbers, original)
        if content == original:
            continue
        path.write_bytes(content)
        try:
            worked += survives(action)
        except BaseException:
            print(f"{path.name}, mutation {number}: {content[:2000]!r}")
            raise
        assert {name for name in names_below(root) if name.parts[0] != out.name} == around
        assert path.read_bytes() == content
        shutil.rmtree(out, ignore_errors=True)
    path.write_bytes(original)
    return worked


@pytest.mark.parametrize(("seed", "count"), rounds(400))
def test_damaged_headers(seed, count, tiny, made, tmp_path):
    source, out = shutil.copytree(tiny, tmp_path / "source"), tmp_path / "out"
    shard = sorted(source.glob("*.safetensors"))[seed % 3]
    worked = check(shard, mutate_safetensors, lambda: convert(source, out), out, count, random.Random(seed))
    assert worked < count / 10  # what is left: metadata, tensors of one shape that changed places


@pytest.mark.parametrize(("seed", "count"), rounds(200))
def test_damaged_indexes(seed, count, tiny, made, tmp_path):
    source, out = shutil.copytree(tiny, tmp_path / "source"), tmp_path / "out"
    worked = check(source / INDEX, mutate_json, lambda: convert(source, out), out, count, random.Random(seed))
    assert worked < count / 5  # metadata, and what names no tensor


@pytest.mark.parametrize(("seed", "count"), rounds(200))
def test_damaged_configs(seed, count, tiny, made, tmp_path):
    source, out = shutil.copytree(tiny, tmp_path / "source"), tmp_path / "out"
    path = source / "config.json"
    worked = check(path, mutate_json, lambda: convert(source, out), out, count, random.Random(seed))
    assert worked < count / 1.5  # many of its keys don't concern us


@pytest.mark.parametrize(("seed", "count"), rounds(100))
def test_damaged_configs_of_the_original_layout(seed, count, made, tmp_path):
    config = checkpoints.config_for(**TINY)
    source = layouts.write_original(tmp_path / "source", checkpoints.make_tensors(config, 0), config)
    path, out = source / "config.json", tmp_path / "out"
    worked = check(path, mutate_json, lambda: convert(source, out), out, count, random.Random(seed))
    assert worked < count / 1.5


@pytest.mark.parametrize("key", ["rope_scaling_factor", "initial_context_length"])
def test_a_config_whose_product_would_be_a_long_text(key, made, tmp_path):
    config = checkpoints.config_for(**TINY)
    source = layouts.write_original(tmp_path / "source", checkpoints.make_tensors(config, 0), config)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {key: "1" * 900_000}))
    assert not survives(lambda: convert(source, tmp_path / "out"))


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    pytest.importorskip("gguf")
    config = checkpoints.config_for(**TINY)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    layouts.write_gguf(path, checkpoints.make_tensors(config, 0), config)
    convert(path, path.parent / "out")
    return path


@pytest.mark.parametrize(("seed", "count"), rounds(200))
def test_damaged_gguf_headers(seed, count, tiny_gguf, tmp_path):
    path, out = shutil.copyfile(tiny_gguf, tmp_path / "source.gguf"), tmp_path / "out"
    worked = check(path, mutate_gguf, lambda: convert(path, out), out, count, random.Random(seed))
    assert worked < count / 4  # metadata that we don't read, and tensors of one shape that changed places


@pytest.mark.parametrize(("seed", "count"), rounds(150))
def test_damaged_manifests(seed, count, made, tmp_path):
    model = shutil.copytree(made, tmp_path / "model")

    def read():
        read_manifest(model)
        read_config(model / "config.json")

    out = tmp_path / "out"
    worked = check(model / "localoss.json", mutate_json, read, out, count, random.Random(seed))
    assert worked < count / 2  # names, hashes and versions of the program are any text


@pytest.mark.parametrize(("seed", "count"), rounds(50))
def test_damaged_journals(seed, count, tiny, made, tmp_path):
    """Whatever the journal says, the model becomes the right one, or one line says what to do."""
    source, out = tiny, tmp_path / "out"
    whole, numbers = files_of(made), random.Random(seed)
    stamps = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in (source / "config.json", *source.glob("*.safetensors"))
    }
    journal = json.loads(whole["localoss.json"])
    del journal["files"]["layer-001.safetensors"]
    text = json.dumps(journal | {"source_files": stamps}).encode()
    for _ in range(count):
        shutil.copytree(made, out)
        (out / "localoss.json").unlink()
        (out / "localoss.json.part").write_bytes(mutate_json(numbers, text))
        if survives(lambda: convert(source, out)):
            there = files_of(out)
            assert there.keys() == whole.keys()
            del there["localoss.json"]  # a journal's hashes are believed
            assert there.items() < whole.items()
        shutil.rmtree(out)


def test_a_header_as_large_as_the_format_allows(tiny, tmp_path):
    """A sparse file: 99 MB that a reader would have to take in to find that it is nothing."""
    source = shutil.copytree(tiny, tmp_path / "source")
    shard = min(source.glob("*.safetensors"))
    with open(shard, "wb") as file:
        file.write((99_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    assert not survives(lambda: convert(source, tmp_path / "out"))
    for name in (INDEX, "config.json", "generation_config.json"):
        source = shutil.copytree(tiny, tmp_path / name)
        with open(source / name, "wb") as file:
            file.truncate(200_000_000)
        assert not survives(lambda source=source: convert(source, tmp_path / "out"))


def gguf_header(tensors=0, pairs=b"", pair_count=1):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pair_count) + pairs


def gguf_pair(kind, value, key=b"key"):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "header",
    [
        gguf_header(pairs=gguf_pair(8, struct.pack("<Q", 39_000_000))),  # a text of 39 MB
        gguf_header(pairs=gguf_pair(8, struct.pack("<Q", 2**63))),
        gguf_header(pairs=gguf_pair(9, struct.pack("<IQ", 8, 4_999_999))),  # 40 MB of empty texts
        gguf_header(pairs=gguf_pair(9, struct.pack("<IQ", 8, 2**62))),
        gguf_header(pairs=gguf_pair(9, struct.pack("<IQ", 10, 2**62))),
        gguf_header(pairs=gguf_pair(9, struct.pack("<IQ", 9, 1)) * 3, pair_count=3),
        gguf_header(pairs=b"", pair_count=2**61),
        gguf_header(pairs=gguf_pair(0, b"\0") * 4096, pair_count=4096),
        gguf_header(tensors=2**61, pair_count=0),
        gguf_header(tensors=16_384, pair_count=0, pairs=b"".join(
            struct.pack("<Q", 5) + b"%05d" % i + struct.pack("<IQIQ", 1, 32, 0, 0) for i in range(16_384)
        )),
        gguf_header(pairs=gguf_pair(4, b"\1\0\0\0", key=b"k" * 1_000_000) * 39, pair_count=39),
    ],
)  # fmt: skip
def test_a_gguf_header_as_large_as_can_be(header, tiny_gguf, tmp_path):
    """A sparse file of 200 MB behind each."""
    path = tmp_path / "source.gguf"
    path.write_bytes(header)
    os.truncate(path, 200_000_000)
    assert not survives(lambda: convert(path, tmp_path / "out"))
