"""Damaged, foreign and misplaced files, as a user meets them: one line that helps, and nothing lost."""

import io
import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from support import checkpoints

from localoss import cli
from quant.format.layout import FORMAT_VERSION

SECOND_SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A data folder of the test's own, and nothing piped in."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOCALOSS_DEBUG", raising=False)


@pytest.fixture
def source(checkpoint, tmp_path):
    """A checkpoint of the test's own, to damage."""
    return shutil.copytree(checkpoint("short"), tmp_path / "source")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def runnable(model, tmp_path):
    """A model directory of the test's own, with harmony's vocabulary."""
    return shutil.copytree(model("harmony"), tmp_path / "model")


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run the command line, which has to refuse with one line that has all of `words`; gives that line.

    Progress is told every few seconds, which the first conversion takes on a machine that must compile it.
    """
    monkeypatch.setattr("localoss.cli.progress.PLAIN_INTERVAL_S", 1e9)

    def run(*arguments, words=()):
        code = cli.main([str(argument) for argument in arguments])
        stdout, stderr = capsys.readouterr()
        assert code != 0
        assert stdout == ""
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
        assert "a bug" not in stderr, stderr
        for word in words:
            assert str(word) in stderr
        return stderr

    return run


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def snapshot(folder):
    """Every file below `folder`, with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_left(out):
    return not out.exists() or not any(out.iterdir())


# quantize: the source ------------------------------------------------------------------------------------


def test_truncated_shard(source, out, refused):
    shard = source / SECOND_SHARD
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused("quantize", source, out, words=[SECOND_SHARD])
    assert nothing_left(out)


@pytest.mark.parametrize("size", [0, 5, 100])
def test_shard_that_ends_in_its_header(size, source, out, refused):
    shard = source / SECOND_SHARD
    shard.write_bytes(shard.read_bytes()[:size])
    refused("quantize", source, out, words=[SECOND_SHARD])
    assert nothing_left(out)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"a": 1}', b'{"a": {"dtype": "BF16"}}', b"\xff\xfe\x00"])
def test_shard_whose_header_is_no_header(text, source, out, refused):
    (source / SECOND_SHARD).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4096)
    refused("quantize", source, out, words=[SECOND_SHARD])
    assert nothing_left(out)


def test_header_size_beyond_the_file(source, out, refused):
    (source / SECOND_SHARD).write_bytes(struct.pack("<Q", 2**62) + b"\0" * 4096)
    refused("quantize", source, out, words=[SECOND_SHARD])
    assert nothing_left(out)


def test_a_download_that_brought_a_pointer(source, out, refused):
    """What Git LFS leaves when the content was not fetched."""
    (source / SECOND_SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused("quantize", source, out, words=[SECOND_SHARD])
    assert nothing_left(out)


def test_missing_shard(source, out, refused):
    (source / SECOND_SHARD).unlink()
    refused("quantize", source, out, words=[SECOND_SHARD])
    assert nothing_left(out)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.2.mlp.experts.down_proj_blocks",
        "model.layers.0.mlp.experts.gate_up_proj_scales",
        "lm_head.weight",
    ],
)
def test_tensor_of_the_wrong_shape(name, tmp_path, out, refused):
    """The last dimension lacks a part: a file that is whole, but not this model's."""
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors = checkpoints.make_tensors(config, seed=0)
    tensors[name] = np.ascontiguousarray(tensors[name][..., :-1])
    checkpoints.write_tensors(tmp_path / "source", config, tensors)
    refused("quantize", tmp_path / "source", out, words=[name])
    assert nothing_left(out)


def test_tensor_of_the_wrong_dtype(tmp_path, out, refused):
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors = checkpoints.make_tensors(config, seed=0)
    name = "model.layers.1.mlp.router.weight"
    tensors[name] = tensors[name].astype(np.uint8)
    checkpoints.write_tensors(tmp_path / "source", config, tensors)
    refused("quantize", tmp_path / "source", out, words=[name, "BF16"])
    assert nothing_left(out)


def test_missing_tensor(tmp_path, out, refused):
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors = checkpoints.make_tensors(config, seed=0)
    del tensors["model.layers.2.self_attn.sinks"]
    checkpoints.write_tensors(tmp_path / "source", config, tensors)
    refused("quantize", tmp_path / "source", out, words=["model.layers.2.self_attn.sinks"])
    assert nothing_left(out)


def test_damaged_weights(tmp_path, out, refused):
    """An E8M0 scale of 255 is NaN, a bfloat16 of 0x7F80 is infinity: found while converting."""
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    for name, value in [
        ("model.layers.2.mlp.experts.gate_up_proj_scales", 255),
        ("lm_head.weight", 0x7F80),
    ]:
        tensors = checkpoints.make_tensors(config, seed=0)
        tensors[name].reshape(-1)[77] = value
        folder = checkpoints.write_tensors(tmp_path / name, config, tensors)
        refused("quantize", folder, out, words=[name.removesuffix("_scales")])  # a scale of the matrix
        assert not (out / "localoss.json").exists()
        refused("run", out, "Hi", words=["localoss quantize"])
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ["llama", "gpt_oss"]),
        ({"num_hidden_layers": 4}, ["layer_types"]),
        ({"num_hidden_layers": "three"}, ["num_hidden_layers"]),
        ({"hidden_size": 100}, ["100", "32"]),
        ({"head_dim": 12, "num_attention_heads": 16}, ["head_dim", "12"]),
        ({"num_key_value_heads": 4}, ["4"]),
        ({"num_experts_per_tok": 11}, ["11", "10"]),
        ({"num_local_experts": -8}, ["num_local_experts"]),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, ["longrope"]),
        ({"rope_scaling": "yarn"}, ["config.json"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": None}}, ["config.json"]),
        ({"rope_scaling": {"original_max_position_embeddings": float("inf")}}, ["config.json"]),
        ({"layer_types": 3}, ["config.json"]),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["bitsandbytes", "MXFP4"]),
        ({"rope_theta": 0}, ["theta"]),
        ({"rope_theta": 1e300}, ["rope_theta"]),
        ({"max_position_embeddings": 2**31 - 1}, ["max_position_embeddings"]),
        ({"intermediate_size": 160}, ["model.layers.0"]),
    ],
)
def test_config_of_another_model(changes, words, source, out, refused):
    change_json(source / "config.json", **changes)
    refused("quantize", source, out, words=words)
    assert nothing_left(out)


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", '{"model_type": "gpt_oss"}', "[" * 100_000])
def test_damaged_config(content, source, out, refused):
    (source / "config.json").write_text(content)
    refused("quantize", source, out, words=["config.json"])
    assert nothing_left(out)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"lm_head.weight": 3}}'],
)
def test_damaged_index(content, source, out, refused):
    (source / INDEX).write_text(content)
    refused("quantize", source, out, words=[INDEX])
    assert nothing_left(out)


def test_index_that_points_out_of_the_folder(source, tmp_path, out, refused):
    shutil.move(source / SECOND_SHARD, tmp_path / "elsewhere.safetensors")
    index = json.loads((source / INDEX).read_text())
    index["weight_map"] = {
        name: "../elsewhere.safetensors" if file == SECOND_SHARD else file
        for name, file in index["weight_map"].items()
    }
    (source / INDEX).write_text(json.dumps(index))
    refused("quantize", source, out, words=["elsewhere.safetensors"])
    assert nothing_left(out)


def test_source_that_is_no_checkpoint(tmp_path, out, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    refused("quantize", tmp_path / "nowhere", out, words=["nowhere"])
    refused("quantize", tmp_path / "empty", out, words=["empty"])
    refused("quantize", tmp_path / "weights.gguf", out, words=["weights.gguf"])
    assert nothing_left(out)


# quantize: the target ------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_output_folder_that_holds_something_else(force, source, out, refused):
    (out / "photos").mkdir(parents=True)
    (out / "photos" / "cat.jpg").write_bytes(b"meow")
    before = snapshot(out)
    refused("quantize", source, out, *force, words=["something else"])
    assert snapshot(out) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_output_folder_that_is_the_source(force, source, refused):
    before = snapshot(source)
    refused("quantize", source, source, *force)
    assert snapshot(source) == before


def test_output_that_is_a_file(source, out, refused):
    out.write_text("notes")
    refused("quantize", source, out, words=["file"])
    assert out.read_text() == "notes"


def test_output_folder_with_another_model(source, model, tmp_path, refused):
    other = shutil.copytree(model("window"), tmp_path / "other")
    before = snapshot(other)
    refused("quantize", source, other, words=["--force"])
    assert snapshot(other) == before


def test_output_under_a_file(source, tmp_path, refused):
    (tmp_path / "file").write_text("notes")
    refused("quantize", source, tmp_path / "file" / "out", words=["file"])
    assert (tmp_path / "file").read_text() == "notes"


@pytest.mark.parametrize(
    "option", [("--attention", "int3"), ("--embedding", "int4"), ("--unembedding", "f64")]
)
def test_unknown_number_format(option, source, out, refused):
    refused("quantize", source, out, *option, words=[option[1]])
    assert nothing_left(out)


# run -----------------------------------------------------------------------------------------------------


def test_unquantized_folder(source, refused):
    refused("run", source, "Hi", words=["localoss quantize", source])


def test_folder_that_is_no_model(tmp_path, refused):
    refused("run", tmp_path, "Hi", words=["localoss.json", tmp_path])
    refused("run", tmp_path / "nowhere", "Hi", words=["nowhere"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 1}', b"[" * 100_000])
def test_corrupt_manifest(content, runnable, refused):
    (runnable / "localoss.json").write_bytes(content)
    refused("run", runnable, "Hi", words=["localoss.json", "damaged"])


@pytest.mark.parametrize(
    "changes",
    [{"files": []}, {"dtypes": {"attention": "int3"}}, {"format_version": "1"}, {"format_version": 0}],
)
def test_manifest_with_a_wrong_value(changes, runnable, refused):
    change_json(runnable / "localoss.json", **changes)
    refused("run", runnable, "Hi", words=["localoss.json"])


def test_newer_format_version(runnable, refused):
    change_json(runnable / "localoss.json", format_version=FORMAT_VERSION + 1)
    refused("run", runnable, "Hi", words=[FORMAT_VERSION + 1, "upgrade"])


@pytest.mark.parametrize("file", ["layer-001.safetensors", "vocabulary.safetensors"])
def test_missing_or_short_file_of_a_model(file, runnable, refused):
    path = runnable / file
    path.write_bytes(path.read_bytes()[:-4096])
    refused("run", runnable, "Hi", words=[file])
    path.unlink()
    refused("run", runnable, "Hi", words=[file])


def test_missing_config_of_a_model(runnable, refused):
    (runnable / "config.json").unlink()
    refused("run", runnable, "Hi", words=["config.json"])


def test_files_that_do_not_fit_the_config(runnable, refused):
    """Another config.json, of the same size, beside the same weights."""
    text = (runnable / "config.json").read_text()
    (runnable / "config.json").write_text(text.replace('"head_dim": 16', '"head_dim": 32'))
    refused("run", runnable, "Hi", words=["layer-000.safetensors"])


@pytest.mark.parametrize("offset", [0, 9, 40])
def test_damaged_header_of_a_model_file(offset, runnable, refused):
    path = runnable / "layer-000.safetensors"
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    refused("run", runnable, "Hi", words=["layer-000.safetensors"])


def test_prompt_beyond_the_context(runnable, refused):
    refused("run", runnable, "word " * 300, "--context", "256", words=["256"])


def test_context_that_fills_up(runnable, capsys):
    """What was said stays; then one line with the count."""
    code = cli.main(["run", str(runnable), "Hi", "--context", "100", "--seed", "1", "--temperature", "1"])
    stderr = capsys.readouterr().err
    assert code == 1
    assert stderr.count("\n") == 1 and stderr.startswith("error: ") and "100" in stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--context", "0"),
        ("--context", "131073"),
        ("--threads", "0"),
        ("--threads", "9999"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "1.5"),
        ("--max-tokens", "-3"),
        ("--effort", "extreme"),
        ("--no-such-option",),
    ],
)
def test_options_out_of_range(options, runnable, refused):
    refused("run", runnable, "Hi", *options)


def test_as_a_program(source):
    """No traceback through the real entry point either."""
    command = [sys.executable, "-m", "localoss", "run", str(source), "Hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "localoss quantize" in done.stderr
