"""A GGUF file of gpt-oss: as llama.cpp and LM Studio keep it, or as Ollama does.

They name some tensors differently, and either keeps gate and up in two tensors or, rows in turns, in one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import QuantError
from quant.format.config import ModelConfig, parse_config
from quant.format.hf_names import (
    EMBEDDING,
    EXPERT_MATRICES,
    FINAL_NORM,
    UNEMBEDDING,
    config_json,
    expert_shapes,
    float_shapes,
    layer_prefix,
)
from quant.format.numbers import F32, Weights
from quant.format.safetensors import DAMAGED
from quant.sources.base import Blocks, Source, as_f32
from quant.sources.gguf_file import (
    FORMATS,
    MXFP4_FORMATS,
    GgufFile,
    dequantize,
    open_gguf,
    published_mxfp4,
    split_prefix,
)

ARCHITECTURES = ("gpt-oss", "gptoss")  # llama.cpp's word, Ollama's
_MATRICES = tuple(name for name, _, _ in FORMATS.values())
_VECTORS = ("F32", "F16", "BF16", "F64")
_OTHER_FILES = {
    "adapter": "a LoRA adapter, not a model; give its base model, and this with --adapter",
    "imatrix": "an importance matrix, which other programs quantize with; give the model's GGUF",
    "mmproj": "a projector for images; give the model's GGUF",
}
# Published name -> the names that it may have.
_VOCABULARY = {
    EMBEDDING: ("token_embd.weight",),
    FINAL_NORM: ("output_norm.weight",),
    UNEMBEDDING: ("output.weight",),
}
LAYER_NAMES = {
    "input_layernorm.weight": ("attn_norm.weight",),
    "post_attention_layernorm.weight": ("post_attention_norm.weight", "ffn_norm.weight"),
    "self_attn.sinks": ("attn_sinks.weight", "attn_sinks"),
    "self_attn.o_proj.weight": ("attn_output.weight", "attn_out.weight"),
    "self_attn.o_proj.bias": ("attn_output.bias", "attn_out.bias"),
    "mlp.router.weight": ("ffn_gate_inp.weight",),
    "mlp.router.bias": ("ffn_gate_inp.bias",),
}


class GgufSource(Source):
    files: GgufFile

    def __init__(self, path: Path):
        files = open_gguf(path)
        content = _config_json(path, files)
        config = parse_config(json.loads(content), str(path))
        super().__init__(files, split_prefix(path) or path.stem, config, {"config.json": content})
        self._places = _places(config, files)

    @property
    def paths(self) -> list[Path]:
        return sorted({self.files.folder, *super().paths})  # the first of several may have metadata only

    @property
    def has_mxfp4_experts(self) -> bool:
        return all(
            self.files.tensors[f"{stored}.weight"][1].dtype in MXFP4_FORMATS
            for layer in range(self.config.layers)
            for name in EXPERT_MATRICES
            for stored in self._expert_tensors(layer, name)
        )

    def require_tensors(self) -> None:
        config = self.config
        for name, shape in float_shapes(config).items():
            if ".experts." in name:
                continue
            stored, _ = self.locate(name)
            if "attn_qkv" in stored:
                shape = (config.qkv_rows, *shape[1:])
            self.files.require(stored, _VECTORS if len(shape) == 1 else _MATRICES, shape)
        for layer in range(config.layers):
            for name, (rows, columns) in expert_shapes(config).items():
                tensors = self._expert_tensors(layer, name)
                shape = (config.experts, rows // len(tensors))
                for stored in tensors:
                    self.files.require(f"{stored}.weight", _MATRICES, (*shape, columns))
                    self.files.require(f"{stored}.bias", _VECTORS, shape)

    def locate(self, name: str) -> tuple[str, int]:
        return self._places[name]

    def read(self, stored: str, start: int, stop: int) -> Weights:
        _, info = self.files.tensors[stored]
        if info.dtype in _VECTORS:
            return super().read(stored, start, stop)
        return dequantize(self.files.read_rows(stored, start, stop), info.dtype, info.shape[-1])

    def expert(self, layer: int, name: str, expert: int) -> Blocks | Weights:
        tensors = [f"{stored}.weight" for stored in self._expert_tensors(layer, name)]
        if all(self.files.tensors[stored][1].dtype in MXFP4_FORMATS for stored in tensors):
            parts = [self._blocks(stored, expert) for stored in tensors]
            return Blocks(
                _in_turns([part.blocks for part in parts]), _in_turns([part.scales for part in parts])
            )
        return _in_turns([self._expert_weights(stored, expert) for stored in tensors])

    def expert_bias(self, layer: int, name: str, expert: int) -> F32:
        tensors = [f"{stored}.bias" for stored in self._expert_tensors(layer, name)]
        return _in_turns([as_f32(self.read(stored, expert, expert + 1)[0]) for stored in tensors])

    def _expert_tensors(self, layer: int, name: str) -> list[str]:
        """The stored tensors of an expert matrix, without .weight or .bias; their rows come in turns."""
        block = f"blk.{layer}."
        if name == "down_proj":
            return [f"{block}ffn_down_exps"]
        if f"{block}ffn_gate_up_exps.weight" in self.files.tensors:
            return [f"{block}ffn_gate_up_exps"]
        return [f"{block}ffn_gate_exps", f"{block}ffn_up_exps"]

    def _blocks(self, stored: str, expert: int) -> Blocks:
        _, info = self.files.tensors[stored]
        packed = self.files.read_rows(stored, expert, expert + 1)
        return Blocks(*published_mxfp4(packed, info.dtype, info.shape[-1]))

    def _expert_weights(self, stored: str, expert: int) -> F32:
        weights = as_f32(self.read(stored, expert, expert + 1))
        return weights.reshape(-1, weights.shape[-1])


def _in_turns(parts: list[Any]) -> Any:
    """One array whose rows are the first rows of all `parts`, then their second rows, and so on."""
    if len(parts) == 1:
        return parts[0]
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _places(config: ModelConfig, files: GgufFile) -> dict[str, tuple[str, int]]:
    """Published name -> (stored tensor, its first row there)."""

    def there(names: tuple[str, ...]) -> str:
        return next((name for name in names if name in files.tensors), names[0])

    places = {name: (there(stored), 0) for name, stored in _VOCABULARY.items()}
    if places[UNEMBEDDING][0] not in files.tensors:  # tied embeddings: ggml's converters leave it out
        places[UNEMBEDDING] = places[EMBEDDING]
    for layer in range(config.layers):
        block, prefix = f"blk.{layer}.", layer_prefix(layer)
        for name, stored in LAYER_NAMES.items():
            places[prefix + name] = there(tuple(block + tensor for tensor in stored)), 0
        fused = f"{block}attn_qkv.weight" in files.tensors
        first = 0
        for letter, rows in (("q", config.q_rows), ("k", config.kv_rows), ("v", config.kv_rows)):
            for kind in ("weight", "bias"):
                place = (f"{block}attn_qkv.{kind}", first) if fused else (f"{block}attn_{letter}.{kind}", 0)
                places[f"{prefix}self_attn.{letter}_proj.{kind}"] = place
            first += rows
    return places


def _config_json(path: Path, files: GgufFile) -> bytes:
    """The config.json that Hugging Face would publish for this file's metadata. Raises: QuantError.

    GGUF does not carry YaRN's betas and truncation, the limit of SwiGLU and which layers slide: these are
    the same in every gpt-oss.
    """
    architecture = _architecture(path, files)

    def entry(*keys: str, default: Any = None) -> Any:
        found = (files.metadata.get(f"{architecture}.{key}") for key in keys)
        value = next((value for value in found if value is not None), default)
        if isinstance(value, list):  # one number a layer
            if len(set(value)) != 1:
                raise QuantError(f"{path}: {keys[0]} differs from layer to layer; localoss runs gpt-oss only")
            value = value[0]
        if value is None:
            raise QuantError(
                f"{path}: {architecture}.{keys[0]} is missing; make the file again from the checkpoint, "
                "or get another"
            )
        return _shortest(value)

    if "token_embd.weight" not in files.tensors:
        raise QuantError(f"{path}: tensor token_embd.weight is missing; {DAMAGED}")
    heads = entry("attention.head_count")
    dimensions = {
        "num_hidden_layers": entry("block_count"),
        "hidden_size": entry("embedding_length"),
        "intermediate_size": entry("expert_feed_forward_length", "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": entry("attention.head_count_kv"),
        "head_dim": entry("attention.key_length", default=_head_dim(files, heads)),
        "num_local_experts": entry("expert_count"),
        "num_experts_per_tok": entry("expert_used_count"),
        "vocab_size": files.tensors["token_embd.weight"][1].shape[0],
        "max_position_embeddings": entry("context_length"),
        "sliding_window": entry("attention.sliding_window"),
        "rms_norm_eps": entry("attention.layer_norm_rms_epsilon", default=1e-5),
        "rope_theta": entry("rope.freq_base"),
    }
    rope = {
        "factor": _rope_factor(path, entry),
        "original_max_position_embeddings": entry(
            "rope.scaling.original_context_length", "rope.scaling.yarn_orig_ctx", default=4096
        ),
        "beta_fast": entry("rope.scaling.yarn_beta_fast", default=32.0),
        "beta_slow": entry("rope.scaling.yarn_beta_slow", default=1.0),
    }
    return config_json(dimensions | _layer_types(path, files, architecture), rope, mxfp4=True)


def _rope_factor(path: Path, entry: Callable[..., Any]) -> Any:
    """YaRN's factor; 1 where positions aren't stretched. Raises: QuantError for other ways to do so."""
    kind = entry("rope.scaling.type", default="yarn")
    others = [entry(f"rope.scaling.{key}", default=1.0) for key in ("attn_factor", "yarn_attn_factor")]
    if kind not in ("yarn", "none") or any(value != 1 for value in others):
        raise QuantError(
            f"{path}: rope.scaling.type is {kind!r}, its attn_factor {max(others)}; gpt-oss has yarn with "
            "1.0: make the file again from the checkpoint, or get another"
        )
    return 1.0 if kind == "none" else entry("rope.scaling.factor")


def _architecture(path: Path, files: GgufFile) -> str:
    """general.architecture. Raises: QuantError for another model's, and for files that are no model."""
    architecture, kind = (files.metadata.get(f"general.{key}") for key in ("architecture", "type"))
    if architecture == "clip":
        kind = "mmproj"
    if architecture == "imatrix" or "imatrix.chunk_count" in files.metadata:
        kind = "imatrix"
    if kind in _OTHER_FILES:
        raise QuantError(f"{path}: {_OTHER_FILES[kind]}")
    if architecture not in ARCHITECTURES:
        raise QuantError(f"{path}: a {architecture!r} model; localoss runs gpt-oss models only")
    return str(architecture)


def _head_dim(files: GgufFile, heads: Any) -> int | None:
    """From the query matrix, for files that don't tell; None where that can't be."""
    query = files.tensors.get("blk.0.attn_q.weight")
    return query[1].shape[0] // heads if query and type(heads) is int and heads > 0 else None


def _layer_types(path: Path, files: GgufFile, architecture: str) -> dict[str, list[str]]:
    """Which layers slide, where the file tells."""
    pattern = files.metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        return {}
    layers = files.metadata.get(f"{architecture}.block_count")
    if len(pattern) != layers:
        raise QuantError(f"{path}: sliding_window_pattern has {len(pattern)} of {layers} layers; {DAMAGED}")
    return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern]}


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
