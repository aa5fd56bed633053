"""Checkpoints and model directories that must be refused, each with one line that says what to do."""

import json
import shutil
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.convert import convert
from quant.errors import QuantError
from quant.format.manifest import Dtypes, read_manifest
from quant.format.safetensors import read_header


@pytest.fixture
def source(checkpoint, tmp_path):
    """A checkpoint of one's own, to spoil."""
    return shutil.copytree(checkpoint("window"), tmp_path / "source")


# Sources that cannot be converted


def spoil_header(path, change):
    """Rewrite the JSON header of a safetensors file; `change` mends it in place."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def shard_of(source, tensor):
    index = json.loads((source / "model.safetensors.index.json").read_text())
    return source / index["weight_map"][tensor]


def refused(source, tmp_path, *words):
    """The conversion fails with one line that holds all `words`, and leaves nothing behind."""
    with pytest.raises(QuantError) as raised:
        convert(source, tmp_path / "out")
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert not (tmp_path / "out").exists()


def test_a_truncated_shard(source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    refused(source, tmp_path, shard.name, "truncated", "download it again")
    shard.write_bytes(shard.read_bytes()[:100])
    refused(source, tmp_path, shard.name, "cut off in its header")
    shard.write_bytes(b"")
    refused(source, tmp_path, shard.name, "download it again")


def test_a_missing_shard(source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[2]
    shard.unlink()
    refused(source, tmp_path, shard.name, "missing", "download it again")


def test_a_tensor_of_the_wrong_shape(source, tmp_path):
    name = "model.layers.2.self_attn.k_proj.weight"
    shard = shard_of(source, name)
    spoil_header(shard, lambda header: header[name]["shape"].reverse())
    refused(source, tmp_path, shard.name, name, "[128, 80]", "[80, 128]")


def test_a_missing_tensor(source, tmp_path):
    index = source / "model.safetensors.index.json"
    name = "model.layers.3.self_attn.sinks"
    raw = json.loads(index.read_text())
    shard = raw["weight_map"].pop(name)
    index.write_text(json.dumps(raw))
    refused(source, tmp_path, name, "missing")
    raw["weight_map"][name] = next(file for file in raw["weight_map"].values() if file != shard)
    index.write_text(json.dumps(raw))
    refused(source, tmp_path, name, "is not in it")


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "a/b.safetensors", "C:\\x.safetensors", "passwd", 7]
)
def test_an_index_that_leads_out_of_the_folder(source, tmp_path, file):
    index = source / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"]["lm_head.weight"] = file
    index.write_text(json.dumps(raw))
    refused(source, tmp_path, "model.safetensors.index.json", "does not name a file")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"weight_map": {}}', b"[" * 100_000])
def test_a_damaged_index(source, tmp_path, content):
    (source / "model.safetensors.index.json").write_bytes(content)
    refused(source, tmp_path, "model.safetensors.index.json", "download it again")


def test_a_scale_that_is_nan(source, tmp_path):
    name = "model.layers.1.mlp.experts.down_proj_scales"
    shard = shard_of(source, name)
    info = read_header(shard)[0][name]
    data = bytearray(shard.read_bytes())
    data[info.offset + 777] = 255
    shard.write_bytes(data)
    with pytest.raises(QuantError, match=r"layers\.1\.mlp\.experts\.down_proj.*255"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out" / "layer-001.safetensors.part").exists()


def test_weights_that_are_nan_name_the_tensor(source, tmp_path):
    name = "model.layers.0.self_attn.v_proj.weight"
    shard = shard_of(source, name)
    info = read_header(shard)[0][name]
    data = bytearray(shard.read_bytes())
    data[info.offset + 30 : info.offset + 32] = b"\xc0\x7f"
    shard.write_bytes(data)
    for attention in ("int8", "bf16"):
        with pytest.raises(QuantError, match=rf"{name}\[0, 15\] is NaN"):
            convert(source, tmp_path / attention, Dtypes(attention=attention))


def test_folders_of_another_kind(source, model, tmp_path):
    refused(tmp_path / "nowhere", tmp_path, "not found")
    refused(model("short"), tmp_path, "converted already")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    refused(gguf, tmp_path, "GGUF", "model.gguf")
    refused(gguf / "model.gguf", tmp_path, "model.gguf", "damaged")
    above = tmp_path / "above"
    (above / "original").mkdir(parents=True)
    refused(above, tmp_path, "original/")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refused(source, tmp_path, "llama", "gpt_oss")
    (source / "config.json").unlink()
    refused(source, tmp_path, "config.json")


# Headers


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, begin, end, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        (b"not json", b"", "not JSON"),
        (b"\xff\xff", b"", "not JSON"),
        (b"[1]", b"", "JSON object"),
        ({"a": 5}, b"", "no dtype"),
        ({"a": entry([4], 0, 4, "Q9")}, bytes(4), "Q9"),
        ({"a": entry([4], 0, 5)}, bytes(5), "5 bytes"),
        ({"a": entry([-2, -2], 0, 4)}, bytes(4), "natural numbers"),
        ({"a": entry([True, 4], 0, 4)}, bytes(4), "natural numbers"),
        ({"a": entry([4.0], 0, 4)}, bytes(4), "natural numbers"),
        ({"a": entry([4], -4, 0)}, bytes(4), "natural numbers"),
        ({"a": entry([2**62, 2**62], 0, 4)}, bytes(4), "4 bytes"),
        ({"a": entry([4], 0, 4), "b": entry([4], 2, 6)}, bytes(6), "overlaps"),
        ({"a": entry([4], 0, 4), "b": entry([4], 5, 9)}, bytes(9), "gap"),
        ({"a": entry([4], 0, 4)}, bytes(3), "truncated"),
        ({"a": entry([4], 0, 4)}, bytes(5), "1 bytes more"),
    ],
)
def test_headers_that_lie(tmp_path, header, data, word):
    path = write_header(tmp_path / "x.safetensors", header, data)
    with pytest.raises(QuantError, match=r"x\.safetensors") as raised:
        read_header(path)
    assert word in str(raised.value)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(QuantError, match="cut off in its header"):
        read_header(path)


def test_a_sound_header(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry([], 12, 14, "BF16"),
        "a": entry([3, 1], 0, 12, "F32"),
        "none": entry([0, 5], 14, 14),
    }
    path = write_header(tmp_path / "x.safetensors", header, bytes(14))
    tensors, data_start = read_header(path)
    assert data_start == path.stat().st_size - 14
    assert (tensors["a"].offset, tensors["a"].size, tensors["a"].shape) == (data_start, 12, (3, 1))
    assert (tensors["b"].offset, tensors["b"].dtype) == (data_start + 12, "BF16")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200)
    | st.builds(lambda n, rest: struct.pack("<Q", n) + rest, st.integers(0, 99), st.binary())
)
def test_any_bytes_give_a_header_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except QuantError as error:
        assert "\n" not in str(error)


# localoss.json


@pytest.fixture
def spoiled(model, tmp_path):
    return shutil.copytree(model("short"), tmp_path / "model")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"format_version": "1"}',
        b'{"format_version": 1}',
        b'{"format_version": 1, "files": 3}',
        b"null",
    ],
)
def test_a_corrupt_manifest(spoiled, content):
    (spoiled / "localoss.json").write_bytes(content)
    with pytest.raises(QuantError, match=r"localoss\.json: damaged"):
        read_manifest(spoiled)


def test_a_newer_format(spoiled):
    raw = json.loads((spoiled / "localoss.json").read_text())
    (spoiled / "localoss.json").write_text(json.dumps({"format_version": 2, "new": raw}))
    with pytest.raises(QuantError, match=r"format version 2.*upgrade localoss"):
        read_manifest(spoiled)


def test_a_model_with_a_file_missing_or_cut(spoiled):
    with open(spoiled / "layer-001.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(QuantError, match=r"layer-001\.safetensors: 5,000 bytes"):
        read_manifest(spoiled)
    (spoiled / "layer-001.safetensors").unlink()
    with pytest.raises(QuantError, match=r"layer-001\.safetensors: missing"):
        read_manifest(spoiled)


def test_a_manifest_that_names_files_elsewhere(spoiled):
    raw = json.loads((spoiled / "localoss.json").read_text())
    raw["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    (spoiled / "localoss.json").write_text(json.dumps(raw))
    with pytest.raises(QuantError, match="damaged"):
        read_manifest(spoiled)


def test_folders_that_are_no_model(checkpoint, tmp_path):
    with pytest.raises(QuantError, match=r"convert it first: localoss quantize \S+ short-localoss"):
        read_manifest(checkpoint("short"))
    with pytest.raises(QuantError, match="not found"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(QuantError, match=r"no localoss\.json"):
        read_manifest(tmp_path)


def test_dtypes_that_do_not_exist():
    with pytest.raises(QuantError, match="embedding cannot be 'int4'; choose int8 or bf16"):
        Dtypes(embedding="int4")
