"""OpenAI's own layout, published under original/: block.N.…, q, k and v in one matrix.

Source: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py and weights.py.
"""

import json
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.format.config import ModelConfig, parse_config
from quant.format.hf_names import (
    EMBEDDING,
    FINAL_NORM,
    UNEMBEDDING,
    block_shapes,
    config_json,
    experts_prefix,
    float_shapes,
    layer_prefix,
)
from quant.format.json_file import read_json
from quant.format.safetensors import INDEX_FILE, Checkpoint, read_header, weight_files
from quant.sources.base import FLOATS, Blocks, Source

# config.json: published key -> original key
_KEYS = {
    "num_hidden_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window",
    "swiglu_limit": "swiglu_limit",
    "rope_theta": "rope_theta",
    "initial_context_length": "initial_context_length",
}
_LAYER = {
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.sinks": "attn.sinks",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
}
_VOCABULARY = {EMBEDDING: "embedding.weight", FINAL_NORM: "norm.scale", UNEMBEDDING: "unembedding.weight"}


def is_original(folder: Path) -> bool:
    """Whether `folder` holds this layout; False too if that cannot be read."""
    try:
        if (folder / INDEX_FILE).exists():
            return "embedding.weight" in read_json(folder / INDEX_FILE)["weight_map"]
        return any("embedding.weight" in read_header(path)[0] for path in weight_files(folder))
    except (OSError, ValueError, TypeError, KeyError, QuantError):
        return False


class OriginalSource(Source):
    def __init__(self, folder: Path):
        content = config_from_original(folder / "config.json")
        config = parse_config(json.loads(content), str(folder / "config.json"))
        super().__init__(Checkpoint(folder), _name(folder), config, {"config.json": content})
        self._names = {**_VOCABULARY}
        for layer in range(config.layers):
            self._names |= {
                layer_prefix(layer) + name: f"block.{layer}.{stored}" for name, stored in _LAYER.items()
            }
        self._first_row = _rows_in_qkv(config)

    @property
    def paths(self) -> list[Path]:
        return [self.files.folder / "config.json", *super().paths]

    @property
    def has_mxfp4_experts(self) -> bool:
        return True

    def require_tensors(self) -> None:
        config = self.config
        for name, shape in float_shapes(config).items():
            if "_proj." not in name or "o_proj" in name:
                self.files.require(self._names[name], FLOATS, shape)
        for layer in range(config.layers):
            self.files.require(f"block.{layer}.attn.qkv.weight", FLOATS, (config.qkv_rows, config.hidden))
            self.files.require(f"block.{layer}.attn.qkv.bias", FLOATS, (config.qkv_rows,))
            for name, shape in block_shapes(config, layer).items():
                self.files.require(self._names[name], ("U8",), shape)

    def locate(self, name: str) -> tuple[str, int]:
        if name in self._names:
            return self._names[name], 0
        _, _, layer, _, projection, kind = name.split(".")  # model.layers.N.self_attn.q_proj.weight
        return f"block.{layer}.attn.qkv.{kind}", self._first_row[projection]

    def expert(self, layer: int, name: str, expert: int) -> Blocks:
        stored = experts_prefix(layer) + name
        blocks, scales = (
            self.files.read_rows(self._names[f"{stored}_{kind}"], expert, expert + 1)[0]
            for kind in ("blocks", "scales")
        )
        return Blocks(blocks, scales)


def _rows_in_qkv(config: ModelConfig) -> dict[str, int]:
    return {"q_proj": 0, "k_proj": config.q_rows, "v_proj": config.q_rows + config.kv_rows}


def _name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "original" else folder.name


def config_from_original(path: Path) -> bytes:
    """The config.json that Hugging Face would publish for OpenAI's in `path`. Raises: QuantError."""
    try:
        raw: Any = read_json(path)
    except FileNotFoundError:
        raise QuantError(f"{path}: not found; download the original checkpoint's config.json too") from None
    except (OSError, ValueError) as error:
        raise QuantError(
            f"{path}: cannot be read as JSON ({error}); correct it, or download it again"
        ) from None
    if not isinstance(raw, dict):
        raise QuantError(f"{path}: expected a JSON object; correct it, or download it again")
    dimensions = {key: raw[original] for key, original in _KEYS.items() if original in raw}
    original_context, factor = raw.get("initial_context_length", 4096), raw.get("rope_scaling_factor", 32.0)
    try:
        dimensions["max_position_embeddings"] = int(float(original_context) * float(factor))
    except (TypeError, ValueError, OverflowError):
        raise QuantError(f"{path}: initial_context_length or rope_scaling_factor is no number") from None
    rope = {
        "factor": factor,
        "original_max_position_embeddings": original_context,
        "beta_fast": raw.get("rope_ntk_beta", 32.0),
        "beta_slow": raw.get("rope_ntk_alpha", 1.0),
    }
    return config_json(dimensions, rope, mxfp4=True)
