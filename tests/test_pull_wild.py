"""Pulls of what other programs upload: shards that cut through renamed and split tensors, tied, damaged."""

import numpy as np
import pytest
from support import checkpoints, layouts, wild
from support.hub_fixtures import home, hub, published, pulled, weights_of  # noqa: F401

from localoss.hub.errors import GoneError
from quant.convert import convert
from quant.errors import QuantError
from quant.format.safetensors import INDEX_FILE

CONFIG = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
TENSORS = checkpoints.make_tensors(CONFIG, 0)
DENSE, DENSE_CONFIG = layouts.dense(TENSORS, CONFIG)
NAME = "someone/their-finetune"
UPLOADS = {
    "peft-prefix": (wild.prefixed("base_model.model.")(TENSORS), CONFIG),
    "unsloth": (wild.unsloth(DENSE), DENSE_CONFIG),
    "mlx-mxfp4": (wild.mlx_mxfp4(TENSORS), CONFIG),
    "mlx-affine": (wild.mlx_affine(4, 32)(DENSE), DENSE_CONFIG),
    "tied": (
        {n: a for n, a in TENSORS.items() if n != "lm_head.weight"},
        CONFIG | {"tie_word_embeddings": True},
    ),
}


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("name", UPLOADS)
def test_a_pull_gives_what_converting_gives(name, with_index, hub, pulled, tmp_path):  # noqa: F811
    tensors, config = UPLOADS[name]
    folder = checkpoints.write_tensors(tmp_path / "upload", config, tensors, shards=4)
    if not with_index:
        (folder / INDEX_FILE).unlink()
    hub.repositories[NAME] = folder
    result, _ = pulled(NAME)
    convert(folder, tmp_path / "out")
    assert weights_of(result.folder) == weights_of(tmp_path / "out")


def test_a_pull_of_nan_names_the_tensor(hub, pulled, tmp_path):  # noqa: F811
    norm = TENSORS["model.norm.weight"].copy()
    norm[5] = 0x7FC0
    broken = TENSORS | {"model.norm.weight": norm}
    hub.repositories[NAME] = checkpoints.write_tensors(tmp_path / "upload", CONFIG, broken)
    with pytest.raises(QuantError, match=r"^model.norm.weight\[5\] is NaN"):
        pulled(NAME)


def test_a_repository_of_an_adapter(hub, pulled, tmp_path):  # noqa: F811
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((8, 96), np.uint16)}
    checkpoints.write_safetensors(folder / "adapter_model.safetensors", lora)
    hub.repositories[NAME] = folder
    with pytest.raises(GoneError, match="a LoRA adapter, not a model"):
        pulled(NAME)
