"""The published layout of gpt-oss: Hugging Face's tensor names and shapes, and its config.json.

Whatever layout a checkpoint has, the converter knows its tensors by these names.
"""

import json
from typing import Any

from quant.format.config import MOST_LAYERS, ModelConfig
from quant.format.weight_formats import TILE_COLUMNS

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
UNEMBEDDING = "lm_head.weight"
EXPERT_MATRICES = ("gate_up_proj", "down_proj")
Shape = tuple[int, ...]


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}."


def experts_prefix(layer: int) -> str:
    return f"model.layers.{layer}.mlp.experts."


def float_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor that is published in bfloat16 with MXFP4 experts: all but these experts' weights."""
    d, i, e = config.hidden, config.intermediate, config.experts
    v = config.vocab
    shapes: dict[str, Shape] = {EMBEDDING: (v, d), FINAL_NORM: (d,), UNEMBEDDING: (v, d)}
    for layer in range(config.layers):
        names: dict[str, Shape] = {
            "input_layernorm.weight": (d,),
            "post_attention_layernorm.weight": (d,),
            "self_attn.sinks": (config.heads,),
            "self_attn.o_proj.weight": (d, config.q_rows),
            "self_attn.o_proj.bias": (d,),
            "mlp.router.weight": (e, d),
            "mlp.router.bias": (e,),
            "mlp.experts.gate_up_proj_bias": (e, 2 * i),
            "mlp.experts.down_proj_bias": (e, d),
        }
        for name, rows in (("q", config.q_rows), ("k", config.kv_rows), ("v", config.kv_rows)):
            names[f"self_attn.{name}_proj.weight"] = (rows, d)
            names[f"self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {layer_prefix(layer) + name: shape for name, shape in names.items()}
    return shapes


def expert_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of one expert's matrices; the rows of gate_up are gate, up, gate, up, …"""
    d, i = config.hidden, config.intermediate
    return {"gate_up_proj": (2 * i, d), "down_proj": (d, i)}


def block_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The MXFP4 blocks and scales of a layer's experts, U8."""
    shapes: dict[str, Shape] = {}
    for name, (rows, columns) in expert_shapes(config).items():
        scales = (config.experts, rows, columns // TILE_COLUMNS)
        shapes[f"{experts_prefix(layer)}{name}_blocks"] = (*scales, 16)
        shapes[f"{experts_prefix(layer)}{name}_scales"] = scales
    return shapes


def dense_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """A layer's experts where they are not quantized: columns before rows, unlike the blocks."""
    return {
        experts_prefix(layer) + name: (config.experts, columns, rows)
        for name, (rows, columns) in expert_shapes(config).items()
    }


MXFP4_CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def config_json(dimensions: dict[str, Any], rope: dict[str, Any], mxfp4: bool) -> bytes:
    """A config.json as published, for a checkpoint that has none.

    `dimensions` are its keys that differ from model to model, `rope` those of rope_scaling.
    """
    vocab = dimensions.get("vocab_size")
    harmony = isinstance(vocab, int) and vocab > 200_012  # parse_config tells of one that is no number
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        **({"eos_token_id": 200002, "pad_token_id": 199999} if harmony else {}),
        **dimensions,
        "rope_scaling": {
            "rope_type": "yarn",
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            **rope,
        },
    }
    layers = dimensions.get("num_hidden_layers")
    if (
        "layer_types" not in dimensions and isinstance(layers, int) and 0 < layers <= MOST_LAYERS
    ):  # else parse_config says what is wrong
        config["layer_types"] = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    if mxfp4:
        config["quantization_config"] = MXFP4_CONFIG
    return json.dumps(config, indent=2).encode() + b"\n"
