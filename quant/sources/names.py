"""The names that other programs give the tensors of Hugging Face's layout, as the published ones.

What wraps a model leaves its own words in the names (PEFT, torch.compile, data parallel); Unsloth and MLX
split the experts' tensors. Experts come out as P, P_bias, P_blocks, P_scales, P_biases where a tensor holds
all of them, and as N.P.weight, N.P.bias where each expert has its own; P is gate_up_proj, gate_proj, up_proj
or down_proj.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from quant.errors import QuantError
from quant.format.config import OTHER_FORMS

_WRAPPERS = {
    "base_model",
    "base_layer",  # PEFT's, of a layer whose adapter was taken off
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
_EMBEDDING = re.compile(r"(.*?)embed_tokens\.\w+")
_LM_HEAD = re.compile(r"(?:.*\.)?lm_head\.(\w+)")
_SPLIT = re.compile(r"((?:gate_up|gate|up|down)_proj)s\.(\d+)\.(weight|bias)")
_STACKED = re.compile(r"((?:gate_up|gate|up|down)_proj)\.(weight|bias|blocks|scales|biases)")
# The end of a tensor's name -> the number format that has such tensors.
_FOREIGN = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_2": "NVFP4",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or another form with weight_scale tensors",
}
T = TypeVar("T")


def with_hf_names(tensors: Mapping[str, T], where: object) -> dict[str, T]:
    """`tensors` under their published names. Raises: as hf_names."""
    names = hf_names(tensors, where)
    return {names[name]: value for name, value in tensors.items()}


def hf_names(tensors: Iterable[str], where: object) -> dict[str, str]:
    """The published name of each of all `tensors` of a checkpoint.

    Raises: QuantError if two get the same name, and as refuse_foreign.
    """
    stripped = {name: _without_wrappers(name) for name in tensors}
    refuse_foreign(stripped, where)
    roots = {match[1] for name in stripped.values() if (match := _EMBEDDING.fullmatch(name))}
    root = min(roots, key=len) if roots else "model."
    renamed = {name: _hf_name(short, root) for name, short in stripped.items()}
    taken: dict[str, str] = {}
    for name, new in renamed.items():
        if new in taken:
            raise QuantError(f"{where}: {taken[new]} and {name} are the same tensor; which one is meant?")
        taken[new] = name
    return renamed


def refuse_foreign(names: Iterable[str], where: object) -> None:
    """Raises: QuantError for tensors of an adapter, or of a number format that localoss can't read."""
    names = list(names)
    if lora := [name for name in names if ".lora_" in name or ".modules_to_save." in name]:
        if len(lora) == len(names):
            raise QuantError(
                f"{where}: a LoRA adapter, not a model; give its base model, and this with --adapter"
            )
        raise QuantError(
            f"{where}: holds LoRA weights beside the model's ({lora[0]}); merge them first, with PEFT's "
            "merge_and_unload"
        )
    for name in names:
        for ending, form in _FOREIGN.items():
            if name.endswith(ending):
                raise QuantError(
                    f"{where}: weights quantized as {form} ({name}), which localoss cannot read; "
                    f"{OTHER_FORMS}"
                )


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _hf_name(name: str, root: str) -> str:
    if match := _LM_HEAD.fullmatch(name):
        return f"lm_head.{match[1]}"
    if name.startswith(root):
        name = "model." + name.removeprefix(root)
    name = name.replace(".mlp.router.linear.", ".mlp.router.")
    prefix, experts, rest = name.partition(".mlp.experts.")
    if match := _SPLIT.fullmatch(rest):
        rest = f"{match[2]}.{match[1]}.{match[3]}"
    elif match := _STACKED.fullmatch(rest):
        rest = match[1] if match[2] == "weight" else f"{match[1]}_{match[2]}"
    return prefix + experts + rest
