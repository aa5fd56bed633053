"""Which files of a folder are the checkpoint: no older save, adapter or copy gets into the weights."""

import json
import os
import shutil

import numpy as np
import pytest
from support import checkpoints
from test_convert import files_of

from localoss import cli
from quant.convert import convert
from quant.errors import QuantError
from quant.format.safetensors import INDEX_FILE

CONFIG = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.make_tensors(CONFIG, 0)


@pytest.fixture(scope="module")
def expected(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return weights_of(checkpoints.write_tensors(folder / "source", CONFIG, tensors), folder / "out")


def weights_of(source, out):
    convert(source, out)
    return {name: content for name, content in files_of(out).items() if name.endswith(".safetensors")}


def single(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    checkpoints.write_safetensors(folder / name, tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def older(tensors):
    return {name: np.zeros_like(tensors[name]) for name in ("model.norm.weight", "lm_head.weight")}


@pytest.mark.parametrize(
    "name", ["old-backup", "a-backup", "zz", "model-00001-of-00002", "consolidated", "adapter_model"]
)
def test_the_single_file_alone_is_the_checkpoint(name, tensors, expected, tmp_path):
    source = single(tmp_path / "source", tensors)
    single(source, older(tensors), f"{name}.safetensors")
    assert weights_of(source, tmp_path / "out") == expected


def test_an_index_says_which_files_are_meant(tensors, expected, tmp_path):
    source = checkpoints.write_tensors(tmp_path / "source", CONFIG, tensors)
    single(source, older(tensors), "zz.safetensors")
    assert weights_of(source, tmp_path / "out") == expected


def test_an_index_beside_a_newer_single_file(tensors, expected, tmp_path, capsys):
    """The index is taken, and that is said."""
    source = checkpoints.write_tensors(tmp_path / "source", CONFIG, tensors)
    single(source, older(tensors))
    os.utime(source / INDEX_FILE, (1, 1))
    assert weights_of(source, tmp_path / "out") == expected
    assert cli.main(["quantize", str(source), str(tmp_path / "cli")]) == 0
    note = capsys.readouterr().out.splitlines()[0]
    assert note.startswith("note: model.safetensors is newer than") and "index names were taken" in note
    os.utime(source / "model.safetensors", (0, 0))
    assert cli.main(["quantize", str(source), str(tmp_path / "cli")]) == 0
    assert "note:" not in capsys.readouterr().out


def test_shards_without_an_index(tensors, expected, tmp_path):
    source = checkpoints.write_tensors(tmp_path / "source", CONFIG, tensors)
    (source / INDEX_FILE).unlink()
    single(source, older(tensors), "adapter_model.safetensors")
    assert weights_of(source, tmp_path / "out") == expected


def test_a_tensor_in_two_files_is_an_error_that_names_both(tensors, tmp_path):
    source = checkpoints.write_tensors(tmp_path / "source", CONFIG, tensors)
    (source / INDEX_FILE).unlink()
    single(source, {"model.norm.weight": tensors["model.norm.weight"]}, "old-backup.safetensors")
    with pytest.raises(
        QuantError, match=r"model.norm.weight is in model-0000.*safetensors and in old-backup"
    ):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.move(source / "old-backup.safetensors", tmp_path)
    convert(source, tmp_path / "out")


def test_a_pointer_of_git_lfs(tmp_path):
    source = single(tmp_path / "source", {})
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(QuantError, match=r"Git LFS's pointer.*`git lfs pull`"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_weights_in_pytorchs_own_files(name, tmp_path):
    source = single(tmp_path / "source", {})
    (source / "model.safetensors").rename(source / name)
    with pytest.raises(QuantError, match=r"safe_serialization=True"):
        convert(source, tmp_path / "out")


def lay(*names):
    """What makes a folder of files with such names, of which config.json is CONFIG."""

    def make(folder):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(CONFIG) if path.name == "config.json" else "")

    return make


# What training and other programs leave -> how it is laid, and what is said to do.
FOLDERS = {
    "a trainer's": (
        lay("trainer_state.json", "checkpoint-500/config.json"),
        "give one of them, .*checkpoint-500",
    ),
    "the hub's cache": (lay("refs/main", "snapshots/0a1b/config.json"), "give one of them, such as .*0a1b"),
    "FSDP's": (lay("config.json", ".metadata", "__0_0.distcp"), "FSDP's pieces; .*accelerate merge-weights"),
    "FSDP's beside": (lay("config.json", "pytorch_model_fsdp_0/__0_0.distcp"), "accelerate merge-weights"),
    "DeepSpeed's": (lay("config.json", "zero_to_fp32.py", "global_step5/x"), "zero_to_fp32.py --safe_"),
    "ONNX": (lay("config.json", "model.onnx"), "no [*].safetensors; give a gpt-oss checkpoint: a folder"),
    "OpenAI's": (lay("original/config.json"), "give that folder"),
    "GGUF": (lay("config.json", "m.gguf"), "holds GGUF; give the file itself, m.gguf"),
    "weights alone": (lay("model.safetensors"), "has a config.json: give such a folder, or copy that"),
    "an archive": (lay("model.zip"), "has a config.json: give such a folder, or copy that"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_whose_weights_are_elsewhere(name, tmp_path):
    make, words = FOLDERS[name]
    (tmp_path / "given").mkdir()
    make(tmp_path / "given")
    with pytest.raises(QuantError, match=words) as refused:
        convert(tmp_path / "given", tmp_path / "out")
    assert "download" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_file_of_a_checkpoint(name, tensors, tmp_path):
    source = single(tmp_path / "source", tensors)
    with pytest.raises(QuantError, match=r"one file of a checkpoint; give its folder, .*source$"):
        convert(source / name, tmp_path / "out")
