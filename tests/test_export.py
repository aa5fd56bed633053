"""`localoss export`: what was published comes back, and converting it again gives the same model."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoints, layouts
from test_convert import files_of, published_of

from quant.convert import convert
from quant.errors import QuantError
from quant.export import export
from quant.export_gguf import export_gguf
from quant.format import jit_loops as fast
from quant.format.config import read_config
from quant.format.manifest import Dtypes
from quant.format.numbers import f32_to_bf16
from quant.sources.base import as_f32
from quant.sources.gguf import GgufSource
from quant.sources.huggingface import HuggingFaceSource

NAME = "window"
KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")


def test_what_was_published_comes_back_bit_for_bit(checkpoint, model, tmp_path):
    export(model(NAME, **KEPT), tmp_path / "out")
    ours, published = published_of(tmp_path / "out"), published_of(checkpoint(NAME))
    assert set(ours) == set(published)
    for name, array in published.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert (tmp_path / "out" / "config.json").read_bytes() == (checkpoint(NAME) / "config.json").read_bytes()
    convert(tmp_path / "out", tmp_path / "again", Dtypes(**KEPT))
    again, first = files_of(tmp_path / "again"), files_of(model(NAME, **KEPT))
    del again["localoss.json"], first["localoss.json"]  # they name different checkpoints
    assert again == first


@pytest.mark.parametrize("dtypes", [{}, dict(attention="int4", unembedding="int4")])
def test_rounded_weights_come_back_close_and_experts_exact(checkpoint, model, tmp_path, dtypes):
    export(model(NAME, **dtypes), tmp_path / "out")
    ours, published = published_of(tmp_path / "out"), published_of(checkpoint(NAME))
    for name, array in published.items():
        if array.dtype == np.uint8:
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
            continue
        a, b = (bits.astype(np.uint32) << 16 for bits in (ours[name], array))
        a, b = a.view(np.float32), b.view(np.float32)
        assert np.sqrt(np.square(a - b).mean()) <= 0.12 * np.sqrt(np.square(b).mean()), name


@pytest.mark.parametrize("experts", ["mxfp4", "int4", "bf16"])
def test_experts_from_floats_keep_their_kind(tmp_path, experts):
    """MXFP4 made here is published as such; int4 and bf16 go back to bfloat16, columns before rows."""
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    dense, dense_config = layouts.dense(checkpoints.make_tensors(config, 0), config)
    checkpoints.write_tensors(tmp_path / "source", dense_config, dense)
    convert(tmp_path / "source", tmp_path / "model", Dtypes(**KEPT, experts=experts))
    export(tmp_path / "model", tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ("quantization_config" in raw) == (experts == "mxfp4")
    with HuggingFaceSource(tmp_path / "out") as source:
        source.require_tensors()
    if experts == "mxfp4":
        convert(tmp_path / "out", tmp_path / "again", Dtypes(**KEPT))
        first, again = files_of(tmp_path / "model"), files_of(tmp_path / "again")
        assert all(first[name] == again[name] for name in first if name.endswith(".safetensors"))
    else:
        ours, most = published_of(tmp_path / "out"), {"int4": 0.12, "bf16": 0}[experts]
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
        with GgufSource(tmp_path / "model.gguf") as source:
            found = source.expert(1, "gate_up_proj", 2)
        stored = published_of(tmp_path / "out")["model.layers.1.mlp.experts.gate_up_proj"][2].T
        np.testing.assert_array_equal(f32_to_bf16(as_f32(found)), stored)
        for name in [name for name in dense if name.endswith(("gate_up_proj", "down_proj"))]:
            a, b = ((bits.astype(np.uint32) << 16).view(np.float32) for bits in (ours[name], dense[name]))
            assert np.sqrt(np.square(a - b).mean()) <= most * np.sqrt(np.square(b).mean()), name


def test_gguf_experts_come_back_byte_for_byte(checkpoint, model, tmp_path):
    """GGUF -> localoss -> GGUF, and -> localoss: the same tensors, the same model."""
    gguf = pytest.importorskip("gguf")
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS[NAME])
    tensors = checkpoints.make_tensors(config, checkpoints.seed_of(NAME))
    first = layouts.write_gguf(tmp_path / "first.gguf", tensors, config, "BF16")
    convert(first, tmp_path / "model", Dtypes(**KEPT))
    export_gguf(tmp_path / "model", tmp_path / "second.gguf")
    ours, theirs = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for path in (tmp_path / "second.gguf", first)
    )
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type and list(ours[name].shape) == list(tensor.shape)
        np.testing.assert_array_equal(ours[name].data, tensor.data, err_msg=name)
    convert(tmp_path / "second.gguf", tmp_path / "again", Dtypes(**KEPT))
    again, expected = files_of(tmp_path / "again"), files_of(model(NAME, **KEPT))
    assert all(again[name] == expected[name] for name in again if name.endswith(".safetensors"))


@pytest.mark.parametrize(("dtype", "form"), [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_rounded_matrices_are_ggmls_formats(model, tmp_path, dtype, form):
    """gguf's own dequantizer gives the weights that the model's tiles hold."""
    gguf = pytest.importorskip("gguf")
    from quant.sources.model import ModelSource

    folder = model(NAME, attention=dtype, unembedding=dtype)
    export_gguf(folder, tmp_path / "model.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    with ModelSource(folder) as source:
        for name, published in (
            ("output.weight", "lm_head.weight"),
            ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight"),
            ("blk.3.attn_output.weight", "model.layers.3.self_attn.o_proj.weight"),
        ):
            assert stored[name].tensor_type == gguf.GGMLQuantizationType[form]
            weights = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
            rows = source.shape(published)[0]
            np.testing.assert_array_equal(weights, source.rows(published, 0, rows))
            np.testing.assert_array_equal(weights[5:7], source.rows(published, 5, 7))  # not whole tiles
    with GgufSource(tmp_path / "model.gguf") as source:
        source.require_tensors()
        assert source.config == read_config(folder / "config.json")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_tiles_give_the_blocks_back(groups, columns, seed):
    blocks = np.random.RandomState(seed).randint(0, 256, (8 * groups, columns, 16)).astype(np.uint8)
    tiles = np.empty((groups, columns, 128), np.uint8)
    fast.tile_mxfp4(blocks, tiles)
    np.testing.assert_array_equal(fast.untile_mxfp4(tiles), blocks)


def test_nothing_is_written_over(checkpoint, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(QuantError, match="holds something already"):
        export(model(NAME), tmp_path / "out")
    with pytest.raises(QuantError, match="convert it first"):
        export(checkpoint(NAME), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    pytest.importorskip("gguf")
    (tmp_path / "there.gguf").write_bytes(b"mine")
    with pytest.raises(QuantError, match="is there already"):
        export_gguf(model(NAME), tmp_path / "there.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"


def test_an_export_that_was_cut_off_is_begun_again(model, tmp_path):
    out = tmp_path / "out"

    def interrupt(done_bytes, total_bytes):
        if done_bytes > total_bytes / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(model(NAME), out, interrupt)
    assert list(out.glob("*.safetensors")) and not list(out.glob("*.part"))
    assert not (out / "config.json").exists()
    (out / "model-00001-of-00004.safetensors.part").write_bytes(b"a kill leaves it")
    export(model(NAME), out)
    export(model(NAME), tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")
    with pytest.raises(QuantError, match="holds something already"):
        export(model(NAME), out)


def test_an_export_without_room_is_refused_before_the_first_byte(model, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for write, name in ((export, "out"), (export_gguf, "out.gguf")):
        with pytest.raises(QuantError, match=rf"{name}: needs 0\.0 GB, but 0\.0 GB are free; make room"):
            write(model(NAME), tmp_path / name)
    assert not list(tmp_path.iterdir())
