"""Every layout that weights come in: the same checkpoint in another gives the same model."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from support import checkpoints, layouts, naive
from support.golden_files import read_golden
from test_convert import files_of, published_of, tensors_of

import localoss
from quant.convert import convert
from quant.errors import QuantError
from quant.format import jit_loops as fast
from quant.format.config import read_config
from quant.format.layout import expert_run
from quant.format.manifest import Dtypes, read_manifest
from quant.format.numbers import bf16_to_f32, encode_int4, encode_mxfp4, f32_to_bf16, pack_blocks
from quant.format.tiles import from_tiles, scales_from_tiles
from quant.report import report
from quant.sources.gguf_file import dequantize, ggml_mxfp4, published_mxfp4

NAME = "window"
KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")


@pytest.fixture(scope="module")
def config():
    return checkpoints.config_for(**checkpoints.CHECKPOINTS[NAME])


@pytest.fixture(scope="module")
def tensors(config):
    return checkpoints.make_tensors(config, checkpoints.seed_of(NAME))


@pytest.fixture(scope="module")
def fine_tuned(config, tensors, tmp_path_factory):
    """A checkpoint with bfloat16 experts, in one file without an index."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    dense, dense_config = layouts.dense(tensors, config)
    checkpoints.write_safetensors(folder / "model.safetensors", dense)
    (folder / "config.json").write_text(json.dumps(dense_config))
    return folder


def same_weights(folder, expected):
    """Both model directories hold the same weights, whatever their config.json and manifest say."""
    ours, theirs = files_of(folder), files_of(expected)
    assert set(ours) == set(theirs)
    for name in ours:
        assert name.endswith(".json") or ours[name] == theirs[name], name
    assert read_config(folder / "config.json") == read_config(expected / "config.json")


# OpenAI's original layout


@pytest.mark.parametrize("dtypes", [{}, KEPT, dict(attention="int4")])
def test_the_original_layout_gives_the_same_model(config, tensors, model, tmp_path, dtypes):
    source = layouts.write_original(tmp_path / "gpt-oss-window" / "original", tensors, config)
    summary = convert(source, tmp_path / "out", Dtypes(**dtypes))
    assert summary.manifest.source.name == "gpt-oss-window"
    same_weights(tmp_path / "out", model(NAME, **dtypes))


def test_original_shards_without_an_index(config, tensors, model, tmp_path):
    source = layouts.write_original(tmp_path / "source", tensors, config)
    stored = tensors_of(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    for number, names in enumerate(np.array_split(sorted(stored), 3), start=1):
        part = {name: stored[name] for name in names}
        checkpoints.write_safetensors(source / f"model--{number:05d}-of-00003.safetensors", part)
    convert(source, tmp_path / "out")
    same_weights(tmp_path / "out", model(NAME))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 11}, "block.0.mlp.gate.weight"),
        ({"num_experts": None}, "num_local_experts"),
        ({"rope_scaling_factor": "x"}, "rope_scaling_factor"),
        ({"head_dim": 32}, r"block\.0\.attn"),
    ],
)
def test_an_original_configuration_that_does_not_fit(config, tensors, tmp_path, change, message):
    source = layouts.write_original(tmp_path / "source", tensors, config)
    raw = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(QuantError, match=message):
        convert(source, tmp_path / "out")


# GGUF


@pytest.mark.parametrize("ollama", [False, True])
def test_gguf_with_matrices_kept_gives_the_same_model(config, tensors, model, tmp_path, ollama):
    pytest.importorskip("gguf")
    for form, dtypes in (("F32", {}), ("BF16", KEPT), ("BF16", {})):
        source = layouts.write_gguf(tmp_path / f"{form}.gguf", tensors, config, form, ollama)
        out = tmp_path / f"{form}-{len(dtypes)}"
        convert(source, out, Dtypes(**dtypes))
        same_weights(out, model(NAME, **dtypes))


def test_a_gguf_where_only_some_experts_are_mxfp4(config, tensors, model, tmp_path):
    """They are kept bit for bit beside those that are rounded, and the report tells of both."""
    pytest.importorskip("gguf")
    source, out = tmp_path / "mixed.gguf", tmp_path / "out"
    layouts.write_gguf(source, tensors, config, decoded_layers=(1, 2))
    manifest = convert(source, out).manifest
    expected, found = files_of(model(NAME)), files_of(out)
    assert found["layer-000.safetensors"] == expected["layer-000.safetensors"]
    experts = report(source, out, manifest).classes[0]
    assert experts.name == "experts" and experts.relative_error < 1e-3


@pytest.fixture
def split(config, tensors, tmp_path):
    """The files of a split GGUF; the first has metadata only, as large models are uploaded."""
    pytest.importorskip("gguf")
    (tmp_path / "split").mkdir()
    layouts.write_gguf(
        tmp_path / "split" / "m.gguf", tensors, config, split_max_tensors=30, small_first_shard=True
    )
    return sorted((tmp_path / "split").iterdir())


def test_a_split_gguf_is_one_model(split, model, tmp_path):
    assert len(split) == 4 and split[0].name == "m-00001-of-00004.gguf"
    for given in (split[0], split[2]):
        convert(given, tmp_path / given.stem)
        same_weights(tmp_path / given.stem, model(NAME))
    assert read_manifest(tmp_path / split[0].stem).source.name == "m"
    assert convert(split[1], tmp_path / split[0].stem).already_there
    os.utime(split[0], ns=(0, time.time_ns() + 10**9))
    with pytest.raises(QuantError, match=rf"older than {split[0].name} of the checkpoint"):
        convert(split[1], tmp_path / split[0].stem)


def test_a_split_gguf_that_is_not_all_there(split, tmp_path):
    out, name = tmp_path / "out", split[0].name
    with pytest.raises(QuantError, match=rf"holds GGUF; give the file itself, {name}$"):
        convert(split[0].parent, out)
    renamed = shutil.copy(split[1], tmp_path / "renamed.gguf")
    with pytest.raises(
        QuantError, match=r"one of 4 files of a model; give them their names back, NAME-00001"
    ):
        convert(renamed, out)
    content = split[3].read_bytes()
    shutil.copy(split[2], split[3])
    with pytest.raises(QuantError, match=r"00004-of-00004.gguf: not file 4 of 4 of a model"):
        convert(split[0], out)
    number = content.index(b"split.no") + len("split.no") + 4  # after its type
    assert content[number : number + 2] == b"\3\0"
    split[3].write_bytes(split[2].read_bytes().replace(b"split.no\2\0\0\0\2", b"split.no\2\0\0\0\3"))
    with pytest.raises(QuantError, match=r"00004-of-00004.gguf: .* is in another file too"):
        convert(split[0], out)
    split[3].unlink()
    with pytest.raises(
        QuantError, match=r"m-00004-of-00004.gguf: missing, one of 4 files.*; download it too"
    ):
        convert(split[0], out)


def test_ollamas_first_files_keep_the_published_order(config, tensors, model, tmp_path):
    gguf = pytest.importorskip("gguf")
    source = layouts.write_gguf(tmp_path / "model.gguf", tensors, config, "F32", ollama=True)
    data = bytearray(source.read_bytes())
    for name in ("ffn_gate_up_exps", "ffn_down_exps"):
        for layer in range(config["num_hidden_layers"]):
            tensor = next(
                tensor
                for tensor in gguf.GGUFReader(source).tensors
                if tensor.name == f"blk.{layer}.{name}.weight"
            )
            published = f"model.layers.{layer}.mlp.experts.{name.removeprefix('ffn_')[:-5]}_proj"
            blocks, scales = tensors[f"{published}_blocks"], tensors[f"{published}_scales"]
            packed = np.concatenate([scales[..., None], blocks], axis=-1).tobytes()
            data[tensor.data_offset : tensor.data_offset + len(packed)] = packed
            kind_at = int(tensor.field.offset) + sum(part.nbytes for part in tensor.field.parts[:4])
            assert data[kind_at] == 39
            data[kind_at] = 4
    source.write_bytes(data)
    convert(source, tmp_path / "out")
    same_weights(tmp_path / "out", model(NAME))


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0", "Q5_1"])
def test_gguf_with_quantized_matrices(config, tensors, tmp_path, form):
    """Attention and embedding are what gguf's own dequantizer gives; Q8_0 becomes int8 code for code."""
    gguf = pytest.importorskip("gguf")
    source = layouts.write_gguf(tmp_path / "model.gguf", tensors, config, form)
    convert(source, tmp_path / "out", Dtypes(**KEPT))
    convert(source, tmp_path / "int8")
    kind = gguf.GGMLQuantizationType[form]
    weights = bf16_to_f32(tensors["lm_head.weight"])
    packed = gguf.quants.quantize(weights, kind)
    expected = gguf.quants.dequantize(packed, kind)
    codes = from_tiles(tensors_of(tmp_path / "out" / "vocabulary.safetensors")["unembedding.codes"], "bf16")
    np.testing.assert_array_equal(codes[: len(expected)], f32_to_bf16(expected))
    if form == "Q8_0":
        tiles = tensors_of(tmp_path / "int8" / "vocabulary.safetensors")["unembedding.codes"]
        blocks = packed.reshape(len(packed), -1, 34)
        stored = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(len(packed), -1)
        np.testing.assert_array_equal(from_tiles(tiles, "int8")[: len(stored)], stored)


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_dequantizing_is_what_gguf_does(form):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[form]
    weights = np.random.RandomState(3).standard_normal((5, 96)).astype(np.float32)
    packed = gguf.quants.quantize(weights, kind)
    expected = gguf.quants.dequantize(packed, kind)
    np.testing.assert_array_equal(dequantize(packed, form, 96), expected)


def test_ggml_blocks_are_the_published_ones_permuted():
    rng = np.random.RandomState(4)
    blocks = rng.randint(0, 256, (1, 7, 5, 16)).astype(np.uint8)
    scales = rng.randint(0, 255, (1, 7, 5)).astype(np.uint8)
    packed = layouts.to_ggml_mxfp4(blocks, scales)
    ours = published_mxfp4(packed, "MXFP4", 160)
    np.testing.assert_array_equal(ours[0], blocks[0])
    np.testing.assert_array_equal(ours[1], scales[0])
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(7, -1)
    np.testing.assert_array_equal(ggml_mxfp4(codes, scales[0]), packed[0])


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        (b"GGUF\x03", b"GGUF\x09", "version 9"),
        (b"GGUF", b"GGML", "not a GGUF file"),
        (b"gpt-oss", b"qwen-25", "a 'qwen-25' model"),
        (b"blk.1.attn_k.weight", b"blk.0.attn_k.weight", "overlaps|missing"),
        (b"gpt-oss.block_count", b"gpt-oss.block_c\xffunt", "malformed"),
        (b"gpt-oss.block_count", b"gpt-oss.block_cOunt", "block_count is missing"),
    ],
)
def test_a_damaged_gguf_header(config, tensors, tmp_path, find, replace, message):
    pytest.importorskip("gguf")
    source = layouts.write_gguf(tmp_path / "model.gguf", tensors, config)
    data = source.read_bytes()
    assert find in data
    source.write_bytes(data.replace(find, replace, 1))
    with pytest.raises(QuantError, match=message):
        convert(source, tmp_path / "out")


def test_a_gguf_cut_off_anywhere_is_refused(config, tensors, tmp_path):
    pytest.importorskip("gguf")
    data = layouts.write_gguf(tmp_path / "model.gguf", tensors, config).read_bytes()
    for length in [0, 3, 11, 20, 100, 2000, 8000, 20_000, len(data) // 2, len(data) - 40]:
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(QuantError, match=r"cut\.gguf"):
            convert(tmp_path / "cut.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Experts in floats


@pytest.mark.parametrize("experts", ["mxfp4", "int4"])
def test_bfloat16_experts_are_quantized_as_the_reference_does(fine_tuned, tmp_path, experts):
    convert(fine_tuned, tmp_path / "out", Dtypes(experts=experts))
    config, published = read_config(fine_tuned / "config.json"), published_of(fine_tuned)
    run = expert_run(config, experts)
    for layer in range(config.layers):
        runs = tensors_of(tmp_path / "out" / f"layer-{layer:03d}.safetensors")["experts"]
        for name, rows, columns, codes_at, scales_at in (
            ("gate_up_proj", 2 * config.intermediate, config.hidden, run.gate_up_codes, run.gate_up_scales),
            ("down_proj", config.hidden, config.intermediate, run.down_codes, run.down_scales),
        ):
            dense = published[f"model.layers.{layer}.mlp.experts.{name}"]
            for expert in range(config.experts):
                weights = bf16_to_f32(dense[expert]).T
                codes, scales = (encode_mxfp4 if experts == "mxfp4" else encode_int4)(weights)
                tiles = runs[expert][codes_at:][: codes.size // 2].reshape(rows // 8, columns // 32, 128)
                np.testing.assert_array_equal(from_tiles(tiles, experts), codes)
                stored = runs[expert][scales_at:][: scales.nbytes].view(scales.dtype)
                stored = stored.reshape(rows // 8, columns // 32, 8)
                np.testing.assert_array_equal(scales_from_tiles(stored), scales)


@pytest.mark.parametrize("experts", ["mxfp4", "int4", "bf16"])
def test_the_engine_runs_experts_of_a_fine_tuned_checkpoint(checkpoint, fine_tuned, tmp_path, experts):
    """Against the naive model on the weights that the converter rounded, or kept."""
    out = tmp_path / "out"
    convert(fine_tuned, out, Dtypes(**KEPT, experts=experts))
    tokens = read_golden(NAME).tokens[:40]
    engine = localoss.load(out, context_tokens=64, activations="f32", kv_dtype="f32")
    reference = naive.Model(checkpoint(NAME))
    for name, bits in published_of(fine_tuned).items():
        if name.endswith(EXPERT_NAMES):
            reference.weights[name] = rounded(bf16_to_f32(bits).swapaxes(1, 2), experts)
    expected = naive.forward(reference, tokens)
    assert np.abs(engine.logits(tokens) - expected).max() <= 2e-4
    sequence = engine.sequence()
    decoded = [engine.prefill(sequence, tokens[: end + 1]) for end in range(len(tokens))]
    assert np.abs(np.array(decoded) - expected).max() <= 2e-4
    if experts == "bf16":  # with nothing to multiply in integers, int8 activations change nothing
        usual = localoss.load(out, context_tokens=64, kv_dtype="f32")
        np.testing.assert_array_equal(usual.logits(tokens), engine.logits(tokens))


EXPERT_NAMES = ("experts.gate_up_proj", "experts.down_proj")


def rounded(weights, experts):
    rows = weights.reshape(-1, weights.shape[-1])
    if experts == "bf16":
        return weights
    if experts == "int4":
        codes, scales = encode_int4(rows)
        return naive.decode_groups(codes, scales).reshape(weights.shape)
    codes, scales = encode_mxfp4(rows)
    return naive.decode_mxfp4(pack_blocks(codes), scales).reshape(weights.shape)


def test_float_experts_from_float32_are_the_same(fine_tuned, tmp_path):
    """Weights in float32 that bfloat16 holds exactly give the same tiles."""
    bits = f32_to_bf16(np.random.RandomState(8).standard_normal((16, 96)).astype(np.float32))
    for encode in (fast.tile_int8, fast.tile_int4, fast.encode_int8_rows, fast.encode_mxfp4_blocks):
        for ours, theirs in zip(encode(bits), encode(bf16_to_f32(bits)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(fast.tile_bf16(bits), fast.tile_bf16(bf16_to_f32(bits)))


@pytest.mark.parametrize("experts", ["int4", "bf16"])
def test_mxfp4_experts_stay_mxfp4(checkpoint, tmp_path, experts):
    with pytest.raises(QuantError, match="leave out --experts"):
        convert(checkpoint(NAME), tmp_path / "out", Dtypes(experts=experts))
    assert not (tmp_path / "out").exists()


def test_float_experts_that_hold_nan_are_named(fine_tuned, tmp_path):
    tensors = tensors_of(fine_tuned / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    tensors[name][3, 5, 7] = 0x7FC0
    checkpoints.write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_bytes((fine_tuned / "config.json").read_bytes())
    with pytest.raises(QuantError, match=rf"{name}, expert 3\[7, 5\] is NaN"):
        convert(tmp_path, tmp_path / "out")


def test_config_of_an_original_checkpoint_has_the_published_dimensions(config, tensors, tmp_path):
    layouts.write_original(tmp_path / "original", tensors, config)
    checkpoints.write_tensors(tmp_path / "published", config, tensors)
    convert(tmp_path / "original", tmp_path / "out")
    ours = read_config(tmp_path / "out" / "config.json")
    assert ours == read_config(tmp_path / "published" / "config.json")
