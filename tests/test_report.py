"""--report against errors computed here from scratch, and --dry-run against what is then written."""

import json
import os

import numpy as np
import pytest
from support import checkpoints, layouts
from test_convert import files_of, published_of

from localoss import cli
from quant.convert import convert, plan
from quant.format.manifest import Dtypes
from quant.format.numbers import bf16_to_f32, decode_int, encode_int4, encode_int8
from quant.report import report


def relative_error(arrays, encode):
    """Root mean square of what `encode` does to all `arrays` of bfloat16 bits, relative to theirs."""
    weights = [bf16_to_f32(array).astype(np.float64) for array in arrays]
    errors = [decode_int(*encode(w.astype(np.float32))) - w for w in weights]
    return np.sqrt(sum((e**2).sum() for e in errors) / sum((w**2).sum() for w in weights))


def test_errors_are_those_of_the_formats(checkpoint, tmp_path):
    source, out = checkpoint("window"), tmp_path / "out"
    manifest = convert(source, out, Dtypes("int4", "int8", "bf16")).manifest
    measured = report(source, out, manifest)
    classes = {entry.name: entry for entry in measured.classes}
    published = published_of(source)
    attention = {name: bits for name, bits in published.items() if name.endswith("_proj.weight")}
    expected = relative_error(attention.values(), encode_int4)
    assert classes["attention"].relative_error == pytest.approx(expected, rel=1e-5)
    each = {name: relative_error([bits], encode_int4) for name, bits in attention.items()}
    worst = max(each, key=each.get)
    assert classes["attention"].worst_tensor == worst
    assert classes["attention"].worst_error == pytest.approx(each[worst], rel=1e-5)
    embedding = relative_error([published["model.embed_tokens.weight"]], encode_int8)
    assert classes["embedding"].relative_error == pytest.approx(embedding, rel=1e-5)
    for name in ("experts", "unembedding", "router"):
        assert classes[name].relative_error == 0
    rows = sum(len(bits) for bits in attention.values()) + len(published["model.embed_tokens.weight"])
    assert sum(measured.row_errors) == rows
    assert measured.edges[0] < embedding < expected < measured.edges[-1]


@pytest.mark.parametrize(("experts", "least", "most"), [("int4", 0.04, 0.12), ("bf16", 0, 0)])
def test_float_experts(experts, least, most, tmp_path):
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    dense, dense_config = layouts.dense(checkpoints.make_tensors(config, 0), config)
    source, out = checkpoints.write_tensors(tmp_path / "source", dense_config, dense), tmp_path / "out"
    classes = report(source, out, convert(source, out, Dtypes(experts=experts)).manifest).classes
    assert least <= classes[0].relative_error <= most
    assert classes[0].bits_per_weight > {"int4": 4.5, "bf16": 16}[experts]


def test_sizes_add_up(checkpoint, model):
    folder = model("window", attention="int4")
    measured = report(
        checkpoint("window"), folder, convert(checkpoint("window"), folder, Dtypes("int4")).manifest
    )
    bits = {entry.name: entry.bits_per_weight for entry in measured.classes}
    assert bits["attention"] == 4.5 and bits["embedding"] == 8.5 and bits["router"] > 16  # rows of padding
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0 < weights - sum(entry.bytes for entry in measured.classes) < 4097 * 5  # headers


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))

    def run_cli(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run_cli


def test_dry_run_says_what_is_then_written(checkpoint, tmp_path, run):
    source, out = checkpoint("window"), tmp_path / "new" / "out"
    planned = json.loads(run("quantize", source, out, "--dry-run", "--json"))
    text = run("quantize", source, out, "--dry-run", "--attention", "bf16")
    assert not (tmp_path / "new").exists() and os.listdir(tmp_path) == []
    assert "vocabulary.safetensors" in text and "expected time: about" in text and "are free" in text
    convert(source, out)
    written = {name: len(content) for name, content in files_of(out).items()}
    del written["localoss.json"]
    assert planned["files"] == written
    assert planned["to_write_bytes"] == planned["total_bytes"] == sum(written.values())
    assert 0 < planned["expected_s"] < 60
    before = files_of(out)
    again = plan(source, out)
    assert again.to_write_bytes == 0 and again.expected_s == 0
    assert files_of(out) == before


def test_report_on_the_command_line(checkpoint, tmp_path, run):
    source, out = checkpoint("short"), tmp_path / "out"
    text = run("quantize", source, out, "--report")
    assert "worst tensor" in text and "rows by their error" in text and "█" in text
    assert all(name in text for name in ("experts", "attention", "unembedding", "router", "lm_head.weight"))
    result = json.loads(run("quantize", source, out, "--report", "--json"))
    assert result["already_there"]
    attention = next(entry for entry in result["report"]["classes"] if entry["name"] == "attention")
    assert attention["bits_per_weight"] == 8.5 and 0.001 < attention["relative_error"] < 0.02
    assert len(result["report"]["row_errors"]["edges"]) == len(result["report"]["row_errors"]["rows"]) + 1
