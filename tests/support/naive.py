"""gpt-oss in plain NumPy: slow, short, and checked by eye. Kernels and engine are tested against it.

Everything is float64, but for the rotary angle, which the model defines in float32. Arrays are in the order
that Hugging Face publishes. test_naive.py holds it against stored logits of `transformers`.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

# E2M1: sign, two exponent bits, one mantissa bit. Source: OCP MX spec v1.0, 5.3.3.
FP4 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])

Trace = list[tuple[str, np.ndarray]]  # what a layer computed on its way, for finding a disagreement


# --- number formats ---------------------------------------------------------------------------------


def decode_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """blocks (..., D//32, 16) u8, scales (..., D//32) u8 -> weights (..., D); even columns in low nibbles."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, 32)
    values = FP4[codes] * np.exp2(scales.astype(np.float64) - 127)[..., None]
    return values.reshape(*scales.shape[:-1], -1)


def encode_int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., D) -> codes (..., D) i8 and scales (..., D//32) f16: the largest becomes ±127."""
    return _encode(weights, np.abs(_groups(weights)).max(axis=-1) / 127, -127, 127)


def encode_int4(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in -8..7 and signed f16 scales: the weight of largest magnitude becomes -8."""
    groups = _groups(weights)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return _encode(weights, largest / -8, -8, 7)


def _groups(weights: np.ndarray) -> np.ndarray:
    return weights.reshape(*weights.shape[:-1], -1, 32).astype(np.float64)


def _encode(weights: np.ndarray, scales: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    scales = scales.astype(np.float16)
    steps = np.where(scales == 0, 1, scales.astype(np.float64))  # all zeros: any step gives zeros
    codes = np.clip(np.rint(_groups(weights) / steps[..., None]), low, high)
    return codes.astype(np.int8).reshape(weights.shape), scales


def decode_groups(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes (..., D) i8 and scales (..., D//32) f16 or f32 -> weights (..., D)."""
    return codes.astype(np.float64) * np.repeat(scales.astype(np.float64), 32, axis=-1)


def decode_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (u16) -> values: a float32's upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def matvec_mxfp4(x: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """W (N, D) @ x (D,) -> (N,)."""
    return decode_mxfp4(blocks, scales) @ x


def matvec_groups(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int8 or int4: codes (N, D) i8, scales (N, D//32) f16, x (D,) -> (N,)."""
    return decode_groups(codes, scales) @ x


def matvec_bf16(x: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """bits (N, D) u16, x (D,) -> (N,)."""
    return decode_bf16(bits) @ x


def round_activations(x: np.ndarray) -> np.ndarray:
    """What is left of x (..., D) when each block of 32 becomes int8 with a float32 scale."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return (np.rint(blocks / np.where(scales == 0, 1, scales)) * scales).reshape(x.shape)


# --- the parts of a layer ---------------------------------------------------------------------------


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x (..., D), weight (D,)."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def yarn(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """(inv_freq (head_dim//2,) f32, concentration). Source: https://arxiv.org/abs/2309.00071, 3.2 to 3.4.

    Rounded to float32 at each step, as `transformers` does it: a last bit here is 2e-4 in the logits at
    position 4,300. Only the power is taken in float64, since C libraries differ in its float32 version.
    """
    rope, dim = config.get("rope_parameters") or config["rope_scaling"], config["head_dim"]
    theta = rope.get("rope_theta") or config["rope_theta"]

    def pair_that_turns(times: float) -> float:
        """Which pair of dimensions turns that many `times` within the original context."""
        context = rope["original_max_position_embeddings"]
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(rope["beta_fast"]), pair_that_turns(rope["beta_slow"])
    if rope["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    one, factor = np.float32(1), np.float32(rope["factor"])
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    wavelengths = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    # Pairs before `first` stay as they are, those past `last` are slowed down by `factor`.
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    kept = one - np.clip(ramp, 0, 1)
    inv_freq = one / (factor * wavelengths) * (one - kept) + one / wavelengths * kept
    assert inv_freq.dtype == np.float32
    return inv_freq, 0.1 * math.log(factor) + 1


def rope(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray, concentration: float) -> np.ndarray:
    """Rotate x (T, heads, head_dim) to its positions (T,); dimension i is paired with i + head_dim//2."""
    angle = positions.astype(np.float32)[:, None] * inv_freq  # float32: the model's definition
    cos = np.cos(angle.astype(np.float64))[:, None] * concentration
    sin = np.sin(angle.astype(np.float64))[:, None] * concentration
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, sink: float) -> np.ndarray:
    """One head of one token: q (d,) over the keys and values (n, d) that it may see -> (d,)."""
    scores = keys @ q / math.sqrt(len(q))
    highest = max(scores.max(), sink)
    weights = np.exp(scores - highest)
    return weights @ values / (weights.sum() + np.exp(sink - highest))


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sinks: np.ndarray, window: int | None
) -> np.ndarray:
    """q (T, H, d), k and v (T, K, d), sinks (H,) -> (T, H, d). A `window` counts the token itself."""
    shared_by = q.shape[1] // k.shape[1]
    out = np.empty_like(q)
    for t in range(len(q)):
        first = 0 if window is None else max(0, t + 1 - window)
        for h in range(q.shape[1]):
            seen = k[first : t + 1, h // shared_by], v[first : t + 1, h // shared_by]
            out[t, h] = attend(q[t, h], *seen, sinks[h])
    return out


def route(logits: np.ndarray, active: int) -> tuple[np.ndarray, np.ndarray]:
    """Router logits (E,) -> expert_ids (A,), best first, and expert_weights (A,): softmax after the top-k."""
    expert_ids = np.argsort(-logits, kind="stable")[:active]
    weights = np.exp(logits[expert_ids] - logits[expert_ids[0]])
    return expert_ids, weights / weights.sum()


def swiglu(gate_up: np.ndarray, limit: float = 7.0, alpha: float = 1.702) -> np.ndarray:
    """gate_up (..., 2 I), gate, up, gate, up, … -> (..., I)."""
    gate = np.minimum(gate_up[..., ::2], limit)
    up = np.clip(gate_up[..., 1::2], -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (up + 1)


# --- the model --------------------------------------------------------------------------------------


class Model:
    """A published checkpoint, decoded: `config` as in config.json, `weights` by published name."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        raw: dict[str, np.ndarray] = {}
        for name in sorted(set(index["weight_map"].values())):
            raw |= read_safetensors(folder / name)
        self.weights = {name: decode_bf16(bits) for name, bits in raw.items() if bits.dtype == np.uint16}
        for name in [name for name in self.weights if name.endswith(("gate_up_proj", "down_proj"))]:
            self.weights[name] = self.weights[name].swapaxes(1, 2)  # unquantized: columns before rows
        for name in [name for name in raw if name.endswith("_blocks")]:
            stem = name.removesuffix("_blocks")
            self.weights[stem] = decode_mxfp4(raw[name], raw[f"{stem}_scales"])

    def layer(self, i: int, name: str) -> np.ndarray:
        return self.weights[f"model.layers.{i}.{name}"]


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a published shard: u8, or bfloat16 bits as u16."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, spec in header.items():
        first, end = (8 + size + offset for offset in spec["data_offsets"])
        dtype = {"BF16": "<u2", "U8": "u1"}[spec["dtype"]]
        tensors[name] = np.frombuffer(data[first:end], dtype).reshape(spec["shape"])
    return tensors


def forward(model: Model, tokens: list[int], trace: Trace | None = None) -> np.ndarray:
    """Logits (T, V) after each of `tokens`; `trace` gets every step's (name, array)."""
    c, w = model.config, model.weights
    trace = [] if trace is None else trace
    x = w["model.embed_tokens.weight"][tokens]  # (T, D)
    for i in range(c["num_hidden_layers"]):
        normed = rmsnorm(x, model.layer(i, "input_layernorm.weight"), c["rms_norm_eps"])
        x = x + _attention_layer(model, i, normed, trace)
        normed = rmsnorm(x, model.layer(i, "post_attention_layernorm.weight"), c["rms_norm_eps"])
        x = x + _expert_layer(model, i, normed, trace)
        trace.append((f"{i} residual", x))
    return rmsnorm(x, w["model.norm.weight"], c["rms_norm_eps"]) @ w["lm_head.weight"].T


def _attention_layer(model: Model, i: int, x: np.ndarray, trace: Trace) -> np.ndarray:
    """x (T, D), normed -> (T, D)."""
    c = model.config

    def project(letter: str, x: np.ndarray) -> np.ndarray:
        weight, bias = (model.layer(i, f"self_attn.{letter}_proj.{kind}") for kind in ("weight", "bias"))
        return x @ weight.T + bias

    q, k, v = (project(letter, x).reshape(len(x), -1, c["head_dim"]) for letter in "qkv")
    positions, (inv_freq, concentration) = np.arange(len(x)), yarn(c)
    q = rope(q, positions, inv_freq, concentration)
    k = rope(k, positions, inv_freq, concentration)
    window = c["sliding_window"] if c["layer_types"][i] == "sliding_attention" else None
    mixed = attention(q, k, v, model.layer(i, "self_attn.sinks"), window).reshape(len(x), -1)
    out = project("o", mixed)
    trace += [(f"{i} q", q), (f"{i} k", k), (f"{i} v", v), (f"{i} heads", mixed), (f"{i} attention", out)]
    return out


def _expert_layer(model: Model, i: int, x: np.ndarray, trace: Trace) -> np.ndarray:
    """x (T, D), normed -> (T, D)."""
    c = model.config
    gate_up, gate_up_bias, down, down_bias = (
        model.layer(i, f"mlp.experts.{name}")
        for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    )
    router_logits = x @ model.layer(i, "mlp.router.weight").T + model.layer(i, "mlp.router.bias")
    out = np.zeros_like(x)
    for t, logits in enumerate(router_logits):
        for expert, weight in zip(*route(logits, c["num_experts_per_tok"]), strict=True):
            inner = swiglu(gate_up[expert] @ x[t] + gate_up_bias[expert], c["swiglu_limit"])
            out[t] += weight * (down[expert] @ inner + down_bias[expert])
    trace += [(f"{i} router", router_logits), (f"{i} experts", out)]
    return out
