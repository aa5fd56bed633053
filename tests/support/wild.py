"""Checkpoints as other programs leave them: tensors of checkpoints.py under other names and in other forms.

Each function takes tensors (name -> u8, or bfloat16 bits as u16) and gives some that mean the same.
"""

import numpy as np

from support import layouts

Tensors = dict[str, np.ndarray]
EXPERTS = ".mlp.experts."


def prefixed(prefix: str):
    return lambda tensors: {prefix + name: array for name, array in tensors.items()}


def no_model_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): array for name, array in tensors.items()}


def language_model(tensors: Tensors) -> Tensors:
    """As multimodal wrappers nest it."""
    named = {f"model.language_model.{name.removeprefix('model.')}": a for name, a in tensors.items()}
    named["lm_head.weight"] = named.pop("model.language_model.lm_head.weight")
    return named


def compiled_inside(tensors: Tensors) -> Tensors:
    return {name.replace(".self_attn.", "._orig_mod.self_attn."): array for name, array in tensors.items()}


def router_linear(tensors: Tensors) -> Tensors:
    return {name.replace(".router.", ".router.linear."): array for name, array in tensors.items()}


def weight_suffix(tensors: Tensors) -> Tensors:
    ends = ("experts.gate_up_proj", "experts.down_proj")
    return {name + ".weight" * name.endswith(ends): array for name, array in tensors.items()}


def unsloth(tensors: Tensors) -> Tensors:
    """Every expert's matrices as linear layers of their own, (rows, columns). Takes dense experts."""
    split = {}
    for name, array in router_linear(tensors).items():
        prefix, inside, kind = name.partition(EXPERTS)
        if not inside:
            split[name] = array
            continue
        for expert, matrix in enumerate(array):
            part = f"{prefix}{EXPERTS}{kind.removesuffix('_bias')}s.{expert}."
            if kind.endswith("_bias"):
                split[part + "bias"] = matrix
            else:
                split[part + "weight"] = np.ascontiguousarray(matrix.T)
    return split


def mixtral_split(tensors: Tensors) -> Tensors:
    """experts.N.gate_proj.weight and so on. Takes dense experts."""
    split = {}
    for name, array in tensors.items():
        prefix, inside, kind = name.partition(EXPERTS)
        if not inside:
            split[name] = array
            continue
        ending = "bias" if kind.endswith("_bias") else "weight"
        for expert, matrix in enumerate(array):
            rows = matrix if ending == "bias" else np.ascontiguousarray(matrix.T)
            for part, chosen in _halves(kind.split("_proj")[0], rows).items():
                split[f"{prefix}{EXPERTS}{expert}.{part}_proj.{ending}"] = chosen
    return split


def mlx_dense(tensors: Tensors) -> Tensors:
    """gate and up in two tensors (E, rows, columns). Takes dense experts."""
    return _mlx(tensors, lambda rows: {"weight": rows})


def mlx_mxfp4(tensors: Tensors) -> Tensors:
    """The published blocks as MLX has them: gate and up apart, codes as 32-bit words."""
    packed = {}
    for name, array in tensors.items():
        prefix, inside, kind = name.partition(EXPERTS)
        if not inside:
            packed[name] = array
            continue
        matrix, _, form = kind.partition("_proj_")
        if form == "blocks":
            array = array.reshape(*array.shape[:-2], -1).view(np.uint32)
        ending = {"blocks": "weight", "scales": "scales", "bias": "bias"}[form]
        for part, chosen in _halves(matrix, array, axis=1).items():
            packed[f"{prefix}{EXPERTS}{part}_proj.{ending}"] = chosen
    return packed


def mlx_affine(bits: int, group: int):
    """Experts, attention, router and vocabulary affine at `bits`. Takes dense experts."""

    def pack(rows: np.ndarray) -> Tensors:
        codes, scales, biases = affine(rows, bits, group)
        return {"weight": pack_bits(codes, bits), "scales": scales, "biases": biases}

    def change(tensors: Tensors) -> Tensors:
        packed = {}
        for name, array in _mlx(tensors, pack).items():
            module = name.removesuffix("weight")
            if array.ndim == 2 and name.endswith("weight") and array.dtype == np.uint16:
                packed |= {module + key: part for key, part in pack(array).items()}
            else:
                packed[name] = array
        return packed

    return change


def unpacked_affine(tensors: Tensors, bits: int, group: int) -> Tensors:
    """What mlx_affine's weights are, as float32 under the published names."""
    plain = {}
    for name, array in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            array = _plain(np.ascontiguousarray(array.swapaxes(1, 2)), bits, group).swapaxes(1, 2)
            plain[name] = np.ascontiguousarray(array)
        elif array.ndim == 2 and name.endswith("weight"):
            plain[name] = _plain(array, bits, group)
        else:
            plain[name] = array
    return plain


def affine(rows: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, and scales and biases in bfloat16, of bfloat16 `rows` (…, C) in groups of `group`."""
    weights = _floats(rows).reshape(*rows.shape[:-1], -1, group)
    low, high = weights.min(axis=-1), weights.max(axis=-1)
    scales = layouts.to_bf16(np.maximum((high - low) / (2**bits - 1), 1e-6))
    biases = layouts.to_bf16(low)
    steps = (weights - _floats(biases)[..., None]) / _floats(scales)[..., None]
    codes = np.clip(np.rint(steps), 0, 2**bits - 1).astype(np.uint8)
    return codes.reshape(rows.shape), scales, biases


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """`codes` (…, C) as words (…, C * bits / 32): lowest bit first, without gaps."""
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    stream = stream.reshape(*codes.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little").view(np.uint32)


def _plain(rows: np.ndarray, bits: int, group: int) -> np.ndarray:
    codes, scales, biases = affine(rows, bits, group)
    parts = codes.reshape(*scales.shape, group).astype(np.float32)
    weights = _floats(scales)[..., None] * parts + _floats(biases)[..., None]
    return weights.reshape(rows.shape)


def _mlx(tensors: Tensors, form) -> Tensors:
    renamed = {}
    for name, array in tensors.items():
        prefix, inside, kind = name.partition(EXPERTS)
        if not inside:
            renamed[name] = array
            continue
        matrix = kind.split("_proj")[0]
        if kind.endswith("_bias"):
            for part, chosen in _halves(matrix, array, axis=1).items():
                renamed[f"{prefix}{EXPERTS}{part}_proj.bias"] = chosen
            continue
        rows = np.ascontiguousarray(array.swapaxes(1, 2))
        for part, chosen in _halves(matrix, rows, axis=1).items():
            for ending, content in form(chosen).items():
                renamed[f"{prefix}{EXPERTS}{part}_proj.{ending}"] = content
    return renamed


def _halves(matrix: str, array: np.ndarray, axis: int = 0) -> Tensors:
    if matrix == "down":
        return {"down": array}
    take = (slice(None),) * axis
    return {
        part: np.ascontiguousarray(array[(*take, slice(i, None, 2))]) for i, part in enumerate(("gate", "up"))
    }


def _floats(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
