"""The architecture of a gpt-oss model, read from a Hugging Face config.json."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.errors import QuantError
from quant.format.json_file import read_json

MOST_LAYERS = 512  # so that a damaged number can't ask for more memory than there is
MOST_CONTEXT = 1 << 22  # tokens; tables have a row for each sixteen
DEFAULT_HEAD_DIM = 64  # transformers' own, whatever hidden_size and heads are
OTHER_FORMS = "get the model with MXFP4 experts, in bfloat16, or as GGUF"
SWIGLU_ALPHA = 1.702  # fixed by the architecture; later versions of transformers write it to config.json
# What transformers takes where a configuration has no rotary embedding, or null.
_ROPE_OF_GPT_OSS: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_MEND = "correct it, or get the file anew from where the model came from"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding with YaRN. See https://arxiv.org/abs/2309.00071."""

    theta: float
    factor: float  # 1.0: no YaRN
    original_context: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    concentration: float | None  # None: YaRN's 0.1 ln(factor) + 1


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of a gpt-oss model; the letters are those of docstrings and shape comments."""

    layers: int
    hidden: int  # D
    intermediate: int  # I
    heads: int  # H
    kv_heads: int  # K
    head_dim: int
    experts: int  # E
    active_experts: int  # A
    vocab: int  # V
    context: int  # longest position that the model was made for
    sliding_window: int
    is_sliding: tuple[bool, ...]  # one per layer
    rms_norm_eps: float
    swiglu_limit: float
    rope: RopeConfig

    @property
    def q_rows(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        return self.q_rows + 2 * self.kv_rows


def read_config(path: Path) -> ModelConfig:
    """Read `path`, a config.json. Raises: QuantError for a missing, unreadable or foreign file."""
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise QuantError(
            f"{path}: not found; a gpt-oss model folder has a config.json: give such a folder, or copy "
            "that of the model it is made of"
        ) from None
    except (OSError, ValueError) as error:
        raise QuantError(f"{path}: cannot be read as JSON ({error}); {_MEND}") from None
    return parse_config(raw, str(path))


def parse_config(raw: Any, where: str = "config.json") -> ModelConfig:
    """Check `raw`, the parsed JSON, and give it as a ModelConfig. Raises: QuantError."""
    if not isinstance(raw, dict):
        raise QuantError(f"{where}: expected a JSON object")
    _check_kind(raw, where)
    for key in ("quantization_config", "compression_config"):
        quantization = raw.get(key)
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if method not in (None, "mxfp4"):
            raise QuantError(
                f"{where}: weights quantized by {method!r}, which localoss cannot read; {OTHER_FORMS}. "
                f"If they are bfloat16 or MXFP4 by now, take {key} out of the file"
            )
    try:
        config = _config_from(raw)
    except KeyError as error:
        raise QuantError(f"{where}: {error.args[0]} is missing; {_MEND}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise QuantError(f"{where}: a value of the wrong kind ({error}); {_MEND}") from None
    _check(config, where)
    return config


def _check_kind(raw: dict[str, Any], where: str) -> None:
    """Raises: QuantError for a relative of gpt-oss that computes something else, and for any other model."""
    heads = raw.get("architectures")
    heads = [str(head) for head in heads] if isinstance(heads, list) else []
    kind = raw.get("model_type", "gpt_oss" if "GptOssForCausalLM" in heads else "not given")
    if "privacy_filter" in str(kind) or any("PrivacyFilter" in head for head in heads):
        raise QuantError(f"{where}: privacy-filter labels tokens and writes no text; localoss cannot run it")
    if "gpt_oss_puzzle" in str(kind) or any("GptOssPuzzle" in head for head in heads):
        raise QuantError(
            f"{where}: a gpt_oss_puzzle model: its layers differ in shape; localoss runs gpt_oss models only"
        )
    if kind != "gpt_oss":
        raise QuantError(f"{where}: model_type is {kind!r}; localoss runs gpt_oss models only")
    for head in heads:
        if head.endswith("Classification"):
            raise QuantError(f"{where}: a classifier ({head}), which writes no text; localoss cannot run it")


def _config_from(raw: dict[str, Any]) -> ModelConfig:
    layers = _integer(raw, "num_hidden_layers", most=MOST_LAYERS)
    types = raw.get("layer_types") or [
        "sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)
    ]
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown or len(types) != layers:
        raise ValueError(f"layer_types must name {layers} sliding_attention or full_attention layers")
    if raw.get("swiglu_alpha", SWIGLU_ALPHA) != SWIGLU_ALPHA:
        raise ValueError(f"swiglu_alpha is {raw['swiglu_alpha']!r}; gpt-oss computes with {SWIGLU_ALPHA}")
    heads = _integer(raw, "num_attention_heads")
    return ModelConfig(
        layers=layers,
        hidden=_integer(raw, "hidden_size"),
        intermediate=_integer(raw, "intermediate_size"),
        heads=heads,
        kv_heads=_integer(raw, "num_key_value_heads"),
        head_dim=DEFAULT_HEAD_DIM if raw.get("head_dim") is None else _integer(raw, "head_dim"),
        experts=_integer(raw, "num_local_experts", "num_experts"),
        active_experts=_integer(raw, "num_experts_per_tok", "experts_per_token", "num_experts_per_token"),
        vocab=_integer(raw, "vocab_size"),
        context=_integer(raw, "max_position_embeddings", most=MOST_CONTEXT),
        sliding_window=_integer(raw, "sliding_window") if "sliding_attention" in types else 128,
        is_sliding=tuple(kind == "sliding_attention" for kind in types),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        swiglu_limit=float(raw.get("swiglu_limit", 7.0)),
        rope=_rope_from(raw),
    )


def _rope_from(raw: dict[str, Any]) -> RopeConfig:
    # transformers 5 writes rope_parameters with the theta inside, earlier ones rope_scaling and rope_theta.
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or _ROPE_OF_GPT_OSS
    if not isinstance(rope, dict):
        raise ValueError(f"the rotary embedding is {rope!r}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "yarn" if "factor" in rope else "default"))
    if kind not in ("yarn", "default"):
        raise ValueError(f"rope_type {kind!r}, expected yarn")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"partial_rotary_factor is {rope['partial_rotary_factor']!r}, expected 1")
    factor = float(rope["factor"]) if kind == "yarn" else 1.0
    original = rope.get("original_max_position_embeddings") or raw.get("initial_context_length", 4096)
    return RopeConfig(
        theta=float(rope.get("rope_theta", raw.get("rope_theta", 150_000.0))),
        factor=factor,
        original_context=int(float(original)),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        truncate=bool(rope.get("truncate", True)),
        concentration=_concentration(rope, factor),
    )


def _concentration(rope: dict[str, Any], factor: float) -> float | None:
    """What queries and keys are multiplied with, where it isn't YaRN's own, as transformers reads it."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim") and factor > 1:
        above, below = (0.1 * float(rope[key]) * math.log(factor) + 1 for key in ("mscale", "mscale_all_dim"))
        return above / below
    return None


def _integer(raw: dict[str, Any], *keys: str, most: int = 2**31 - 1) -> int:
    """The number under the first of `keys` that is there: 131072.0 too, which some programs write."""
    key = next((key for key in keys if raw.get(key) is not None), keys[0])
    value = raw[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise ValueError(f"{key} is {value!r}, expected an integer from 1 to {most:,}")
    return value


def _check(config: ModelConfig, where: str) -> None:
    for name in ("hidden", "intermediate", "q_rows"):
        size = getattr(config, name)
        if size % 32:
            raise QuantError(f"{where}: {name} is {size}; the tiles need a multiple of 32")
    if config.head_dim % 8:
        raise QuantError(f"{where}: head_dim is {config.head_dim}; the tiles need a multiple of 8")
    if config.heads % config.kv_heads:
        raise QuantError(f"{where}: {config.heads} heads cannot share {config.kv_heads} key/value heads")
    if config.active_experts > config.experts:
        raise QuantError(f"{where}: {config.active_experts} active experts of {config.experts}")
    rope = config.rope
    numbers = {  # with what none is above in any model, and what float32 still takes
        "rope_theta": (rope.theta - 1, 1e12),
        "rope factor": (rope.factor, 1e6),
        "original_max_position_embeddings": (rope.original_context, MOST_CONTEXT),
        "beta_fast": (rope.beta_fast, 1e6),
        "beta_slow": (rope.beta_slow, 1e6),
        "attention_factor": (1.0 if rope.concentration is None else rope.concentration, 1e3),
        "rms_norm_eps": (config.rms_norm_eps, 1.0),
        "swiglu_limit": (config.swiglu_limit, 1e30),
    }
    for name, (value, most) in numbers.items():
        if not 0 < value <= most:  # NaN fails both
            raise QuantError(f"{where}: {name} is out of range, above {most:g} or not above 0; {_MEND}")
