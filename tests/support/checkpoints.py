"""Small gpt-oss checkpoints with random weights, in the layout that Hugging Face publishes.

Every byte comes from integers of np.random.RandomState, whose stream is frozen, and from exactly rounded
arithmetic: the same checkpoint on every machine, so that stored logits stay true (tests/golden/).
All dimensions of one checkpoint differ from each other, so that no swapped axis can go unseen.
"""

import hashlib
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# Name -> config_for's arguments; seeds in the order of this table.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "short": dict(
        layers=3, hidden=96, intermediate=128, heads=6, kv_heads=2, head_dim=32,
        experts=10, active=4, vocab=203, window=16, rope="rope_scaling",
    ),
    "window": dict(
        layers=4, hidden=128, intermediate=96, heads=10, kv_heads=5, head_dim=16,
        experts=12, active=3, vocab=331, window=20, rope="rope_parameters",
    ),
    "long": dict(
        layers=3, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=40,
        experts=9, active=5, vocab=270, window=24, rope="rope_scaling",
    ),
    # Larger, so that rounding averages out a little as it does in the real thing.
    "wide": dict(
        layers=5, hidden=320, intermediate=288, heads=14, kv_heads=7, head_dim=32,
        experts=20, active=4, vocab=509, window=33, rope="rope_parameters",
    ),
    # Harmony's whole vocabulary on a model of a few MB: what the command line and the chat need.
    "harmony": dict(
        layers=2, hidden=32, intermediate=160, heads=6, kv_heads=3, head_dim=16,
        experts=8, active=4, vocab=201_088, window=128, rope="rope_scaling",
    ),
    # As cheap as can be, for the whole context of 131,072.
    "far": dict(
        layers=3, hidden=64, intermediate=96, heads=4, kv_heads=1, head_dim=16,
        experts=5, active=2, vocab=131, window=40, rope="rope_scaling",
    ),
}  # fmt: skip

SAFETENSORS_DTYPES = {
    **{"uint8": "U8", "uint16": "BF16", "uint32": "U32"},
    **{"float16": "F16", "float32": "F32", "float64": "F64"},
}


def config_for(
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    experts: int,
    active: int,
    vocab: int,
    window: int,
    rope: str = "rope_scaling",
) -> dict[str, Any]:
    """A published config.json; `rope` is "rope_scaling", or "rope_parameters" as transformers 5 writes it."""
    yarn = {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initial_context_length": 4096,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_local_experts": experts,
        "num_experts_per_tok": active,
        "vocab_size": vocab,
        "sliding_window": window,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(layers)],
        "eos_token_id": 200002 if vocab > 200002 else 2,
        "pad_token_id": 199999 if vocab > 199999 else 1,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    }
    if rope == "rope_parameters":
        return config | {"rope_parameters": yarn | {"rope_theta": 150000.0}}
    return config | {"rope_scaling": yarn, "rope_theta": 150000}


def write_named(name: str, folder: Path) -> Path:
    """Write the checkpoint `name` of CHECKPOINTS into `folder`, and give the folder back."""
    return write_checkpoint(folder, config_for(**CHECKPOINTS[name]), seed=seed_of(name))


def seed_of(name: str) -> int:
    return list(CHECKPOINTS).index(name)


def write_checkpoint(folder: Path, config: dict[str, Any], seed: int = 0, shards: int = 3) -> Path:
    """Write the checkpoint of `config` into `folder`, and give the folder back."""
    return write_tensors(folder, config, make_tensors(config, seed), shards)


def make_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Name -> u8 (MXFP4's blocks and scales) or bfloat16 bits as u16."""
    return {name: _values(name, spec, seed) for name, spec in _tensors(config).items()}


def write_tensors(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 3
) -> Path:
    """Write config.json, the index and `shards` shards, which cut through layers, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(array.nbytes for array in tensors.values())
    groups: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, array in sorted(tensors.items()):  # layers 0, 1, 10, 2: nobody may rely on an order
        if filled >= total * len(groups) / shards:
            groups.append({})
        groups[-1][name] = array
        filled += array.nbytes
    weight_map = {}
    for i, group in enumerate(groups):
        file = f"model-{i:05d}-of-{len(groups) - 1:05d}.safetensors"
        write_safetensors(folder / file, group)
        weight_map.update(dict.fromkeys(group, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write `tensors`; uint16 arrays are bfloat16 bits, others what their dtype says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        dtype = SAFETENSORS_DTYPES[array.dtype.name]
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())


def checkpoint_sha256(folder: Path) -> str:
    """One sha256 over the names and bytes of config.json and the shards."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _tensors(c: dict[str, Any]) -> dict[str, tuple]:
    """Name -> (shape, standard deviation, mean); for MXFP4: (shape, "blocks" or "scales", weights' rms)."""
    d, inter, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    unit = 1 / math.sqrt(d)  # a normed input gives outputs of standard deviation 1
    specs: dict[str, tuple] = {
        "model.embed_tokens.weight": ((c["vocab_size"], d), 1.0, 0.0),
        "model.norm.weight": ((d,), 0.1, 1.0),
        "lm_head.weight": ((c["vocab_size"], d), unit, 0.0),
    }
    for i in range(c["num_hidden_layers"]):
        layer: dict[str, tuple] = {
            "input_layernorm.weight": ((d,), 0.1, 1.0),
            "post_attention_layernorm.weight": ((d,), 0.1, 1.0),
            "self_attn.sinks": ((c["num_attention_heads"],), 2.0, 3.0),
            "self_attn.q_proj.weight": ((q, d), 1.5 * unit, 0.0),
            "self_attn.q_proj.bias": ((q,), 0.2, 0.0),
            "self_attn.k_proj.weight": ((kv, d), unit, 0.0),
            "self_attn.k_proj.bias": ((kv,), 0.2, 0.0),
            "self_attn.v_proj.weight": ((kv, d), unit, 0.0),
            "self_attn.v_proj.bias": ((kv,), 0.2, 0.0),
            "self_attn.o_proj.weight": ((d, q), 2 / math.sqrt(q), 0.0),
            "self_attn.o_proj.bias": ((d,), 0.1, 0.0),
            "mlp.router.weight": ((experts, d), 2.5 * unit, 0.0),
            "mlp.router.bias": ((experts,), 0.5, 0.0),
            "mlp.experts.gate_up_proj_bias": ((experts, 2 * inter), 2.0, 0.0),
            "mlp.experts.down_proj_bias": ((experts, d), 0.1, 0.0),
        }
        # With these biases gate and up meet the clamp at 7 now and then. Larger weights would do so more
        # often, but then the layers amplify any rounding, and a comparison of roundings drowns in it.
        for name, rows, columns, rms in (
            ("gate_up_proj", 2 * inter, d, unit),
            ("down_proj", d, inter, 0.2 / math.sqrt(inter)),
        ):
            layer[f"mlp.experts.{name}_blocks"] = ((experts, rows, columns // 32, 16), "blocks", rms)
            layer[f"mlp.experts.{name}_scales"] = ((experts, rows, columns // 32), "scales", rms)
        specs |= {f"model.layers.{i}.{name}": spec for name, spec in layer.items()}
    return specs


def _values(name: str, spec: tuple, seed: int) -> np.ndarray:
    rng = np.random.RandomState([seed, zlib.crc32(name.encode())])
    shape, kind, size = spec
    if kind == "blocks":
        return rng.randint(0, 256, shape).astype(np.uint8)
    if kind == "scales":
        middle = 127 + round(math.log2(size / 2.93))  # 2.93: the rms of the sixteen FP4 values
        return (middle + rng.randint(-1, 2, shape)).astype(np.uint8)
    # Eight bytes' sum is close to normal, and needs no logarithm that differs between C libraries.
    noise = rng.randint(0, 256, (8, *shape), dtype=np.uint8).sum(axis=0, dtype=np.int32) - 1020
    return _bf16(noise * (kind / 209.02) + size)


def _bf16(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits, cut off below: which way random weights are rounded doesn't matter."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
