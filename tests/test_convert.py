"""The converter: what it writes, against the published tensors; and everything that it must refuse."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from support import checkpoints

from quant import output_folder as target_module
from quant.convert import convert
from quant.errors import QuantError
from quant.export import export
from quant.format import disk
from quant.format.config import read_config
from quant.format.layout import JOURNAL, expert_run, layer_specs, vocabulary_specs
from quant.format.manifest import Dtypes, read_manifest
from quant.format.numbers import (
    bf16_to_f32,
    encode_int4,
    encode_int8,
    pack_blocks,
)
from quant.format.safetensors import Checkpoint, read_header
from quant.format.tiles import from_tiles, scales_from_tiles

NUMPY_DTYPES = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32, "BF16": np.uint16}


def tensors_of(path):
    """Every tensor of a safetensors file by name; bfloat16 as uint16."""
    data = path.read_bytes()
    return {
        name: np.frombuffer(data, NUMPY_DTYPES[info.dtype], offset=info.offset, count=info.size // item)
        .reshape(info.shape)
        .copy()
        for name, info in read_header(path)[0].items()
        for item in [np.dtype(NUMPY_DTYPES[info.dtype]).itemsize]
    }


def published_of(folder):
    return {
        name: array
        for path in sorted(folder.glob("*.safetensors"))
        for name, array in tensors_of(path).items()
    }


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(checkpoint, tmp_path):
    """A checkpoint of one's own, to spoil."""
    return shutil.copytree(checkpoint("window"), tmp_path / "source")


@pytest.fixture(params=[("int8", "int8", "int8"), ("bf16", "bf16", "bf16"), ("int4", "int8", "int4")])
def dtypes(request):
    return Dtypes(*request.param)


# What is written


def test_every_weight_is_the_published_one(checkpoint, tmp_path, dtypes):
    """All tensors of a model directory against the published ones, through the clear reference alone."""
    folder, out = checkpoint("window"), tmp_path / "out"
    convert(folder, out, dtypes)
    config, published = read_config(folder / "config.json"), published_of(folder)
    for layer in range(config.layers):
        tensors = tensors_of(out / f"layer-{layer:03d}.safetensors")
        source = {
            name.removeprefix(f"model.layers.{layer}."): array
            for name, array in published.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        qkv = [f"self_attn.{name}_proj" for name in "qkv"]
        check_matrix(tensors, "qkv", dtypes.attention, np.concatenate([source[f"{n}.weight"] for n in qkv]))
        check_matrix(tensors, "output", dtypes.attention, source["self_attn.o_proj.weight"])
        check_matrix(tensors, "router", "bf16", source["mlp.router.weight"])
        for name, expected in {
            "qkv.bias": np.concatenate([source[f"{n}.bias"] for n in qkv]),
            "output.bias": source["self_attn.o_proj.bias"],
            "router.bias": source["mlp.router.bias"],
            "sinks": source["self_attn.sinks"],
            "attention_norm": source["input_layernorm.weight"],
            "mlp_norm": source["post_attention_layernorm.weight"],
        }.items():
            np.testing.assert_array_equal(tensors[name], bf16_to_f32(expected), err_msg=name)
        check_experts(tensors["experts"], config, source)
    tensors = tensors_of(out / "vocabulary.safetensors")
    check_matrix(tensors, "unembedding", dtypes.unembedding, published["lm_head.weight"])
    np.testing.assert_array_equal(tensors["final_norm"], bf16_to_f32(published["model.norm.weight"]))
    embedding = published["model.embed_tokens.weight"]
    if dtypes.embedding == "bf16":
        np.testing.assert_array_equal(tensors["embedding.codes"], embedding)
    else:
        codes, scales = encode_int8(bf16_to_f32(embedding))
        np.testing.assert_array_equal(tensors["embedding.codes"], codes)
        np.testing.assert_array_equal(tensors["embedding.scales"], scales)


def check_matrix(tensors, name, dtype, bits):
    """Matrix `name` holds `bits` (R, C) bfloat16 in `dtype`, and zeros below them up to a whole tile."""
    kind = "int8" if dtype == "int8" else dtype
    codes = from_tiles(tensors[f"{name}.codes"], kind)
    rows = len(bits)
    assert len(codes) == -(-rows // 8) * 8 and not codes[rows:].any()
    if dtype == "bf16":
        np.testing.assert_array_equal(codes[:rows], bits, err_msg=name)
        assert f"{name}.scales" not in tensors
        return
    expected, scales = (encode_int8 if dtype == "int8" else encode_int4)(bf16_to_f32(bits))
    np.testing.assert_array_equal(codes[:rows], expected, err_msg=name)
    np.testing.assert_array_equal(scales_from_tiles(tensors[f"{name}.scales"])[:rows], scales, err_msg=name)


def check_experts(runs, config, source):
    run = expert_run(config, "mxfp4")
    assert run.size % 4096 == 0
    d, i = config.hidden, config.intermediate
    for name, rows, columns, codes_at, scales_at, bias_at in (
        ("gate_up_proj", 2 * i, d, run.gate_up_codes, run.gate_up_scales, run.gate_up_bias),
        ("down_proj", d, i, run.down_codes, run.down_scales, run.down_bias),
    ):
        for expert in range(config.experts):
            bytes_of = runs[expert]
            tiles = bytes_of[codes_at:][: rows * columns // 2].reshape(rows // 8, columns // 32, 128)
            published = source[f"mlp.experts.{name}_blocks"][expert]
            np.testing.assert_array_equal(pack_blocks(from_tiles(tiles, "mxfp4")), published)
            scales = bytes_of[scales_at:][: rows * columns // 32].reshape(rows // 8, columns // 32, 8)
            published = source[f"mlp.experts.{name}_scales"][expert]
            np.testing.assert_array_equal(scales_from_tiles(scales), published)
            bias = bytes_of[bias_at:][: 4 * rows].view(np.float32)
            published = source[f"mlp.experts.{name}_bias"][expert]
            np.testing.assert_array_equal(bias, bf16_to_f32(published))


def test_the_files_are_safetensors_with_data_on_a_page(checkpoint, model):
    folder, config = model("window"), read_config(checkpoint("window") / "config.json")
    expected = {
        f"layer-{i:03d}.safetensors": layer_specs(config, "int8", "mxfp4") for i in range(config.layers)
    }
    expected["vocabulary.safetensors"] = vocabulary_specs(config, "int8", "int8")
    assert {path.name for path in folder.glob("*.safetensors")} == set(expected)
    for name, specs in expected.items():
        tensors, data_start = read_header(folder / name)
        assert data_start % 4096 == 0
        with safe_open(folder / name, "np") as file:  # the official reader agrees
            assert set(file.keys()) == set(specs)
            for tensor, spec in specs.items():
                assert tuple(file.get_slice(tensor).get_shape()) == spec.shape
                if spec.dtype != "BF16":
                    assert file.get_tensor(tensor).tobytes() == tensors_of(folder / name)[tensor].tobytes()
        in_order = sorted(tensors, key=lambda tensor: tensors[tensor].offset)
        assert in_order == list(specs)


def test_the_manifest_tells_the_truth(checkpoint, model):
    source, folder = checkpoint("window"), model("window", attention="bf16", unembedding="int4")
    manifest = read_manifest(folder)
    assert manifest.dtypes == Dtypes("bf16", "int8", "int4")
    assert manifest.source.name == "window"
    config = (source / "config.json").read_bytes()
    assert manifest.source.config_sha256 == hashlib.sha256(config).hexdigest()
    assert (folder / "config.json").read_bytes() == config
    assert {*manifest.files, "localoss.json"} == set(files_of(folder))
    for name, entry in manifest.files.items():
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
    raw = json.loads((folder / "localoss.json").read_text())
    assert raw["format_version"] == 1 and raw["dtypes"]["experts"] == "mxfp4"


def test_one_file_without_an_index_converts_to_the_same(checkpoint, source, tmp_path):
    tensors = published_of(source)
    for path in [*source.glob("*.safetensors"), source / "model.safetensors.index.json"]:
        path.unlink()
    checkpoints.write_safetensors(source / "model.safetensors", tensors)
    (source / "generation_config.json").write_text("{}")
    convert(source, tmp_path / "single")
    convert(checkpoint("window"), tmp_path / "shards")
    single, shards = files_of(tmp_path / "single"), files_of(tmp_path / "shards")
    assert single.pop("generation_config.json") == b"{}"
    del single["localoss.json"], shards["localoss.json"]
    assert single == shards


def test_progress_runs_from_nothing_to_everything(checkpoint, tmp_path):
    seen = []
    summary = convert(checkpoint("short"), tmp_path / "out", progress=lambda *counts: seen.append(counts))
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {summary.manifest.total_bytes} == {summary.written_bytes}
    assert list(done) == sorted(done) and done[0] == 0 and done[-1] == totals[0]


def test_slices_do_not_show(checkpoint, tmp_path, monkeypatch):
    """Slices of one row of tiles give the same files as tensors read whole."""
    convert(checkpoint("window"), tmp_path / "whole")
    monkeypatch.setattr("quant.encode_tensors.SLICE_BYTES", 1)
    convert(checkpoint("window"), tmp_path / "sliced")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "sliced")


def test_rows_are_read_where_they_lie(checkpoint):
    published = published_of(checkpoint("short"))
    with Checkpoint(checkpoint("short")) as source:
        for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.experts.down_proj_blocks"):
            np.testing.assert_array_equal(source.read_rows(name, 3, 7), published[name][3:7])


# The output folder


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no such advice on this system")
def test_a_source_does_not_stay_in_the_page_cache(checkpoint, model, tmp_path, monkeypatch):
    """All that is read once is let go; export, which reads some of it again, lets go of nothing."""
    let_go = {}  # inode -> bytes

    def advise(file, offset, size, advice):
        if advice == os.POSIX_FADV_DONTNEED:
            inode = os.fstat(file).st_ino
            let_go[inode] = let_go.get(inode, 0) + size

    source, made = checkpoint("window"), model("window")
    monkeypatch.setattr(os, "posix_fadvise", advise)
    convert(source, tmp_path / "out")
    for path in source.glob("*.safetensors"):
        data_bytes = sum(info.size for info in read_header(path)[0].values())
        assert let_go[path.stat().st_ino] == data_bytes
    export(made, tmp_path / "exported")
    assert not {path.stat().st_ino for path in made.iterdir()} & let_go.keys()


def test_the_same_conversion_again_leaves_the_model_alone(checkpoint, tmp_path):
    convert(checkpoint("short"), tmp_path / "out")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    summary = convert(checkpoint("short"), tmp_path / "out")
    assert summary.already_there and summary.written_bytes == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps


def test_another_conversion_needs_force(checkpoint, tmp_path):
    out = tmp_path / "out"
    convert(checkpoint("short"), out)
    with pytest.raises(QuantError, match=r"other number formats.*--force"):
        convert(checkpoint("short"), out, Dtypes(attention="bf16"))
    with pytest.raises(QuantError, match=r"another checkpoint \(short\).*--force"):
        convert(checkpoint("window"), out)
    convert(checkpoint("window"), out, force=True)
    convert(checkpoint("window"), tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_something_else_is_never_touched(checkpoint, tmp_path, force):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(QuantError, match=r"something else \(thesis.tex\)"):
        convert(checkpoint("short"), out, force=force)
    assert files_of(out) == {"thesis.tex": b"years of work"}
    (out / "thesis.tex").unlink()
    convert(checkpoint("short"), out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(QuantError, match=r"notes.txt beside a model"):
        convert(checkpoint("window"), out, force=force)
    with pytest.raises(QuantError, match=r"something else"):
        convert(checkpoint("short"), checkpoint("short"), force=force)
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantError, match=r"a file; name a new folder"):
        convert(checkpoint("short"), tmp_path / "file", force=force)


@pytest.mark.parametrize("stop_at", [0.02, 0.4, 1])
def test_an_interrupted_conversion_goes_on(checkpoint, tmp_path, stop_at):
    out = tmp_path / "out"

    def interrupt(done_bytes, total_bytes):
        if done_bytes >= stop_at * total_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint("window"), out, progress=interrupt)
    left = set(files_of(out))
    assert JOURNAL in left and "localoss.json" not in left
    assert not {name for name in left if name.endswith(".safetensors.part")}
    with pytest.raises(QuantError, match="did not finish"):
        read_manifest(out)
    with pytest.raises(QuantError, match="other number formats"):
        convert(checkpoint("window"), out, Dtypes(embedding="bf16"))
    summary = convert(checkpoint("window"), out)
    finished = sum(name.endswith(".safetensors") for name in left)
    assert (summary.written_bytes < summary.manifest.total_bytes) == bool(left - {JOURNAL})
    assert finished == {0.02: 0, 0.4: 1, 1: 5}[stop_at]  # the last one was complete, too
    convert(checkpoint("window"), tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_finished_file_that_was_cut_is_written_again(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    convert(checkpoint("short"), tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    monkeypatch.setattr(target_module.Target, "finish", lambda self: None)
    convert(checkpoint("short"), out)
    monkeypatch.undo()
    (out / "layer-001.safetensors").write_bytes(whole["layer-001.safetensors"][:-1])
    (out / "layer-002.safetensors.part").write_bytes(b"left by a kill")
    summary = convert(checkpoint("short"), out)
    assert summary.written_bytes == len(whole["layer-001.safetensors"])
    assert files_of(out) == whole


def test_a_complete_model_that_was_damaged_is_said_to_be(checkpoint, tmp_path):
    out = tmp_path / "out"
    convert(checkpoint("short"), out)
    whole = files_of(out)
    for name, content in (("layer-000.safetensors", b"short"), ("localoss.json", b"{")):
        (out / name).write_bytes(content)
        with pytest.raises(QuantError, match=rf"{name}.*--force"):
            convert(checkpoint("short"), out)
    convert(checkpoint("short"), out, force=True)
    assert files_of(out) == whole


def test_a_disk_without_room_is_refused_before_the_first_byte(checkpoint, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(QuantError, match=r"needs .* GB, but 0.0 GB are free"):
        convert(checkpoint("short"), tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_is_one_line_and_can_go_on(checkpoint, tmp_path, monkeypatch):
    out, written = tmp_path / "out", []
    write = disk.write

    def fill_up(file, chunk):
        written.append(len(chunk))
        if sum(written) > 400_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, chunk)

    monkeypatch.setattr(disk, "write", fill_up)
    with pytest.raises(QuantError, match="the disk is full; free some space and run the same command again"):
        convert(checkpoint("window"), out)
    monkeypatch.undo()
    assert not [path for path in out.iterdir() if path.name.endswith(".safetensors.part")]
    convert(checkpoint("window"), out)
    assert read_manifest(out)
