"""The trained weights as files: a published checkpoint's tensors over the reduced vocabulary."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.demo_training.model import GptOss

CONFIG_FILE, TOKEN_IDS, TENSORS = "config.json", "token_ids.json", "model.safetensors"

# A few million parameters, and otherwise what config.json of gpt-oss-20b says.
CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "initial_context_length": 4096,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "eos_token_id": 200002,
    "pad_token_id": 199999,
    "torch_dtype": "bfloat16",
}


def write_weights(folder: Path, model: GptOss, config: dict[str, Any], token_ids: list[int]) -> None:
    """Write config.json, token_ids.json and model.safetensors (bfloat16) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.detach().bfloat16().contiguous() for name, weight in model.state_dict().items()}
    partial = folder / f"{TENSORS}.part"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / TENSORS)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    (folder / TOKEN_IDS).write_text(json.dumps(token_ids, separators=(",", ":")) + "\n")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """What `write_weights` wrote, as float32: a state of GptOss."""
    return {name: weight.float() for name, weight in load_file(folder / TENSORS).items()}


def write_mean(folder: Path, one: Path, other: Path) -> None:
    """Write the mean of the weights in two folders, which does better than either: their errors differ."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = read_weights(one), read_weights(other)
    mean = {name: ((first[name] + second[name]) / 2).bfloat16().contiguous() for name in first}
    save_file(mean, folder / TENSORS, metadata={"format": "pt"})
    for name in (CONFIG_FILE, TOKEN_IDS):
        shutil.copyfile(other / name, folder / name)
