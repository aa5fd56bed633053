"""The checkpoints of checkpoints.py in the other layouts that localoss reads; nothing of quant/ writes them.

Tensors are those of checkpoints.make_tensors: name -> u8, or bfloat16 bits as u16.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from support import checkpoints, naive

Tensors = dict[str, np.ndarray]
EXPERTS = ("gate_up_proj", "down_proj")


def dense(tensors: Tensors, config: dict[str, Any], seed: int = 0) -> tuple[Tensors, dict[str, Any]]:
    """The same with experts in bfloat16 as fine-tuning leaves them: (E, columns, rows), off MXFP4's grid."""
    tensors, config = dict(tensors), dict(config)
    del config["quantization_config"]
    rng = np.random.RandomState(seed)
    for name in [name for name in tensors if name.endswith("_blocks")]:
        weights = naive.decode_mxfp4(tensors.pop(name), tensors.pop(name.replace("_blocks", "_scales")))
        weights *= 1 + 0.2 * (rng.randint(0, 2001, weights.shape) / 1000 - 1)
        tensors[name.removesuffix("_blocks")] = np.ascontiguousarray(to_bf16(weights).swapaxes(1, 2))
    return tensors, config


def to_bf16(weights: np.ndarray) -> np.ndarray:
    return (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_original(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    """OpenAI's layout: q, k and v in one matrix, other names, another config.json."""
    folder.mkdir(parents=True)
    stored = {
        "embedding.weight": tensors["model.embed_tokens.weight"],
        "norm.scale": tensors["model.norm.weight"],
        "unembedding.weight": tensors["lm_head.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        p, b = f"model.layers.{layer}.", f"block.{layer}."
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{p}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            stored[f"{b}attn.qkv.{kind}"] = np.concatenate(qkv)
            stored[f"{b}attn.out.{kind}"] = tensors[f"{p}self_attn.o_proj.{kind}"]
            stored[f"{b}mlp.gate.{kind}"] = tensors[f"{p}mlp.router.{kind}"]
        stored[f"{b}attn.norm.scale"] = tensors[f"{p}input_layernorm.weight"]
        stored[f"{b}mlp.norm.scale"] = tensors[f"{p}post_attention_layernorm.weight"]
        stored[f"{b}attn.sinks"] = tensors[f"{p}self_attn.sinks"]
        for number, name in enumerate(EXPERTS, start=1):
            stored[f"{b}mlp.mlp{number}_bias"] = tensors[f"{p}mlp.experts.{name}_bias"]
            for kind in ("blocks", "scales"):
                stored[f"{b}mlp.mlp{number}_weight.{kind}"] = tensors[f"{p}mlp.experts.{name}_{kind}"]
    checkpoints.write_safetensors(folder / "model.safetensors", stored)
    keys = (
        "num_hidden_layers hidden_size intermediate_size head_dim num_attention_heads num_key_value_heads "
        "vocab_size sliding_window swiglu_limit initial_context_length"
    )
    raw = {key: config[key] for key in keys.split()} | {
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def to_ggml_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks (E, R, B, 16), scales (E, R, B) -> (E, R, B * 17) u8: column i beside column i + 16."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, 32)
    packed = np.concatenate([scales[..., None], codes[..., :16] | (codes[..., 16:] << 4)], axis=-1)
    return np.ascontiguousarray(packed.reshape(*packed.shape[:2], -1))


def write_gguf(
    path: Path,
    tensors: Tensors,
    config: dict[str, Any],
    matrices: str = "F32",
    ollama: bool = False,
    decoded_layers: tuple[int, ...] = (),
    **split: Any,
) -> Path:
    """A GGUF file by the gguf package: `matrices` in that format, vectors in F32, MXFP4 experts kept.

    `ollama`: Ollama's names, gate and up in one tensor, q, k and v in one, biases in bfloat16.
    `decoded_layers`: their experts are in F16. `split`: how gguf splits the file into several.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "gptoss" if ollama else "gpt-oss", **split)
    _write_metadata(writer, config)
    kinds = gguf.GGMLQuantizationType

    def add(name: str, bits: np.ndarray, kind: str = "F32") -> None:
        if kind == "BF16":
            writer.add_tensor(name, bits.view(np.uint8), raw_dtype=kinds.BF16)
            return
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        if kind in ("F32", "F16"):
            writer.add_tensor(name, values.astype(np.float32 if kind == "F32" else np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kinds[kind]), raw_dtype=kinds[kind])

    def add_expert(name: str, published: str, rows: slice = slice(None)) -> None:
        blocks, scales = tensors[f"{published}_blocks"][:, rows], tensors[f"{published}_scales"][:, rows]
        if int(published.split(".")[2]) in decoded_layers:
            writer.add_tensor(f"{name}.weight", naive.decode_mxfp4(blocks, scales).astype(np.float16))
        else:
            writer.add_tensor(f"{name}.weight", to_ggml_mxfp4(blocks, scales), raw_dtype=kinds.MXFP4)
        bias = np.ascontiguousarray(tensors[f"{published}_bias"][:, rows])
        add(f"{name}.bias", bias, "BF16" if ollama else "F32")

    add("token_embd.weight", tensors["model.embed_tokens.weight"], matrices)
    add("output.weight", tensors["lm_head.weight"], matrices)
    add("output_norm.weight", tensors["model.norm.weight"])
    for layer in range(config["num_hidden_layers"]):
        p, b = f"model.layers.{layer}.", f"blk.{layer}."
        add(b + "attn_norm.weight", tensors[p + "input_layernorm.weight"])
        norm = "ffn_norm" if ollama else "post_attention_norm"
        add(f"{b}{norm}.weight", tensors[p + "post_attention_layernorm.weight"])
        add(b + ("attn_sinks" if ollama else "attn_sinks.weight"), tensors[p + "self_attn.sinks"])
        for kind, form in (("weight", matrices), ("bias", "F32")):
            qkv = [tensors[f"{p}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            if ollama:
                add(f"{b}attn_qkv.{kind}", np.concatenate(qkv), form)
            else:
                for letter, bits in zip("qkv", qkv, strict=True):
                    add(f"{b}attn_{letter}.{kind}", bits, form)
            output = "attn_out" if ollama else "attn_output"
            add(f"{b}{output}.{kind}", tensors[f"{p}self_attn.o_proj.{kind}"], form)
            add(f"{b}ffn_gate_inp.{kind}", tensors[f"{p}mlp.router.{kind}"])
        if ollama:
            add_expert(b + "ffn_gate_up_exps", p + "mlp.experts.gate_up_proj")
        else:
            add_expert(b + "ffn_gate_exps", p + "mlp.experts.gate_up_proj", slice(0, None, 2))
            add_expert(b + "ffn_up_exps", p + "mlp.experts.gate_up_proj", slice(1, None, 2))
        add_expert(b + "ffn_down_exps", p + "mlp.experts.down_proj")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(150000.0)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])  # passed over, one by one
