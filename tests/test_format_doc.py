"""docs/format.md is enough to read a model: format_reader.py follows it alone, and finds every weight."""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints, format_reader, layouts
from test_convert import published_of

from quant.convert import convert
from quant.format.config import read_config
from quant.format.manifest import Dtypes
from quant.format.numbers import (
    bf16_to_f32,
    decode_int,
    decode_mxfp4,
    encode_int4,
    encode_int8,
    unpack_blocks,
)


def test_the_reader_is_short_and_knows_nothing_else():
    text = Path(format_reader.__file__).read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(lines) <= 60
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"json", "struct", "numpy"}


def test_it_reads_experts_that_were_kept(tmp_path):
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    dense, dense_config = layouts.dense(checkpoints.make_tensors(config, 0), config)
    checkpoints.write_tensors(tmp_path / "source", dense_config, dense)
    convert(tmp_path / "source", tmp_path / "out", Dtypes(experts="bf16"))
    tensors = format_reader.read_file(tmp_path / "out" / "layer-001.safetensors")
    for number, run in enumerate(tensors["experts"]):
        parts = format_reader.expert(run, config["hidden_size"], config["intermediate_size"], "bf16")
        for name, found, bias in zip(("gate_up_proj", "down_proj"), parts, parts[2:], strict=False):
            stored = f"model.layers.1.mlp.experts.{name}"
            np.testing.assert_array_equal(found, bf16_to_f32(dense[stored][number]).T)
            np.testing.assert_array_equal(bias, bf16_to_f32(dense[f"{stored}_bias"][number]))


def rounded(bits, kind):
    weights = bf16_to_f32(bits)
    return (
        weights if kind == "bf16" else decode_int(*{"int8": encode_int8, "int4": encode_int4}[kind](weights))
    )


@pytest.mark.parametrize(
    "kinds", [("int8", "int8", "int8"), ("int4", "bf16", "int4"), ("bf16", "int8", "bf16")]
)
def test_it_reads_every_weight(kinds, checkpoint, model):
    source = checkpoint("window")
    folder = model("window", attention=kinds[0], embedding=kinds[1], unembedding=kinds[2])
    config, published = read_config(source / "config.json"), published_of(source)
    manifest = json.loads((folder / "localoss.json").read_text())
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    dtypes = manifest["dtypes"]
    equal = np.testing.assert_array_equal
    for layer in range(config.layers):
        tensors = format_reader.read_file(folder / f"layer-{layer:03d}.safetensors")
        theirs = {
            name.removeprefix(f"model.layers.{layer}."): array
            for name, array in published.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        qkv = format_reader.matrix(tensors, "qkv", dtypes["attention"], config.qkv_rows)
        weights = np.concatenate([theirs[f"self_attn.{letter}_proj.weight"] for letter in "qkv"])
        equal(qkv, rounded(weights, dtypes["attention"]))
        output = format_reader.matrix(tensors, "output", dtypes["attention"], config.hidden)
        equal(output, rounded(theirs["self_attn.o_proj.weight"], dtypes["attention"]))
        router = format_reader.matrix(tensors, "router", "bf16", config.experts)
        equal(router, bf16_to_f32(theirs["mlp.router.weight"]))
        equal(tensors["sinks"], bf16_to_f32(theirs["self_attn.sinks"]))
        equal(tensors["mlp_norm"], bf16_to_f32(theirs["post_attention_layernorm.weight"]))
        for number, run in enumerate(tensors["experts"]):
            parts = format_reader.expert(run, config.hidden, config.intermediate, dtypes["experts"])
            for name, found, bias in zip(("gate_up_proj", "down_proj"), parts, parts[2:], strict=False):
                codes = unpack_blocks(theirs[f"mlp.experts.{name}_blocks"][number])
                equal(found, decode_mxfp4(codes, theirs[f"mlp.experts.{name}_scales"][number]))
                equal(bias, bf16_to_f32(theirs[f"mlp.experts.{name}_bias"][number]))
    tensors = format_reader.read_file(folder / "vocabulary.safetensors")
    unembedding = format_reader.matrix(tensors, "unembedding", dtypes["unembedding"], config.vocab)
    equal(unembedding, rounded(published["lm_head.weight"], dtypes["unembedding"]))
    embedding = tensors["embedding.codes"]
    if dtypes["embedding"] == "bf16":
        embedding = format_reader.bf16(embedding)
    else:
        scales = tensors["embedding.scales"].astype(np.float32)
        embedding = embedding * np.repeat(scales, 32, axis=1)
    equal(embedding, rounded(published["model.embed_tokens.weight"], dtypes["embedding"]))
    equal(tensors["final_norm"], bf16_to_f32(published["model.norm.weight"]))
