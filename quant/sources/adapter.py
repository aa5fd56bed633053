"""LoRA adapters as PEFT saves them, adapter_config.json and adapter_model.safetensors, or as GGUF has them.

An adapter adds scale * B @ A to a weight, with A (r, columns) and B (rows, r). Of PEFT's `target_parameters`,
which fused experts need, A is (E * r, columns) and B (rows, r * E): rank by rank all experts.
Source: PEFT 0.21, tuners/lora/layer.py.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import QuantError
from quant.format.config import ModelConfig
from quant.format.finite import require_finite
from quant.format.hf_names import UNEMBEDDING, expert_shapes, experts_prefix, float_shapes
from quant.format.json_file import read_json
from quant.format.numbers import F32
from quant.format.safetensors import TensorFiles, read_header
from quant.sources.adapter_gguf import gguf_parts
from quant.sources.base import FLOATS, as_f32
from quant.sources.gguf_file import has_magic

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# PEFT saves the weights that an adapter of the unembedding stands beside, as they were.
_BASE = re.compile(r"(?:base_model\.model\.)?lm_head\.base_layer\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_ONE_EXPERT = re.compile(r"mlp\.experts\.(gate_up_proj|down_proj)s\.(\d+)")
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_PUBLISHED = re.compile(r"gpt-oss-(20|120)b", re.IGNORECASE)
_LAYERS = {"20": 24, "120": 36}
_WITHOUT = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save"),
    *("trainable_token_indices", "layer_replication", "alora_invocation_tokens", "arrow_config"),
    *("kasa_config", "velora_config", "monteclora_config"),
)


@dataclass(frozen=True)
class Pair:
    """What is added to a matrix (rows, columns): b (rows, r) @ a (r, columns), float32, the scale in b."""

    a: F32
    b: F32


def split_name(text: str) -> tuple[str, str]:
    """NAME and the rest of NAME=DIR; no name where there is none, or where a file is called so."""
    name, equals, rest = text.partition("=")
    if not equals or Path(text).exists() or not _NAME.fullmatch(name):
        return "", text
    return name, rest


def open_adapter(text: str, config: ModelConfig) -> "Adapter":
    """The adapter that `text` names, a folder or a GGUF file, with or without :SCALE. Raises: QuantError."""
    name, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Adapter(Path(text), config)
    try:
        factor = float(scale)
    except ValueError:
        if not Path(name).exists():
            return Adapter(Path(text), config)  # which says that there is none
        raise QuantError(f"{text}: {scale!r} is no scale; write DIR:0.5, or DIR alone") from None
    if not math.isfinite(factor):
        raise QuantError(f"{text}: a scale is a finite number; write DIR:0.5, or DIR alone")
    return Adapter(Path(name), config, factor)


class Adapter:
    """The adapter in `folder`, or in a GGUF file, for a model of architecture `config`; `scale` multiplies
    all of it.

    Raises: QuantError for another kind of adapter, a module that gpt-oss doesn't have, wrong shapes, or
    numbers that are not finite.
    """

    def __init__(self, folder: Path, config: ModelConfig, scale: float = 1.0):
        self.folder, self._config, self._scale = folder, config, scale
        self._pairs: dict[str, list[Pair]] = {}  # by the matrix's published name, experts' with /E
        if folder.is_file() and has_magic(folder):
            self.paths = [folder]
            for part in gguf_parts(folder, config):
                self._add(part.name, part.stored, part.a, part.b, part.shape, part.scaling)
        else:
            self.paths = [folder / CONFIG, folder / WEIGHTS]
            self._take_all()
        if not self._pairs:
            raise QuantError(f"{self.paths[-1]}: holds no LoRA weights")

    def _take_all(self) -> None:
        """Take what PEFT saved."""
        folder = self.folder
        self._settings = _read_settings(folder)
        _refuse_other_base(folder / CONFIG, self._settings.get("base_model_name_or_path"), self._config)
        found: dict[str, dict[str, F32]] = {}
        for name, tensor in _read_tensors(folder):
            match = _TENSOR.fullmatch(name)
            if _BASE.fullmatch(name) and tensor.shape == (self._config.vocab, self._config.hidden):
                continue
            if not match:
                raise QuantError(f"{folder}: {name} is no part of a LoRA that localoss can add")
            found.setdefault(match["module"], {})[match["side"]] = tensor
        for module, sides in found.items():
            if len(sides) != 2:
                raise QuantError(f"{folder}: {module} has lora_{min(sides)} without its other half")
            self._take(module, sides["A"], sides["B"])

    @property
    def names(self) -> list[str]:
        """The published names of the matrices that it changes; of an expert's with /E, its number."""
        return list(self._pairs)

    def sha256(self) -> str:
        """Of all files and the scale."""
        digest = hashlib.sha256(repr(self._scale).encode())
        for path in self.paths:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def pairs(self, name: str) -> list[Pair]:
        """What is added to matrix `name`: nothing, or one pair of factors, or more."""
        return self._pairs.get(name, [])

    def _take(self, module: str, a: F32, b: F32) -> None:
        layer = _LAYER.match(module)
        local = module[layer.end() :] if layer else module
        shapes, e = float_shapes(self._config), self._config.experts
        name = UNEMBEDDING if module == "lm_head" else f"{module.removesuffix('.linear')}.weight"
        one = _ONE_EXPERT.fullmatch(local)
        if layer and int(layer[1]) >= self._config.layers:
            raise QuantError(f"{self.folder}: {module} is of a layer that the model doesn't have")
        if name in shapes and len(shapes[name]) == 2:
            self._add(name, module, a, b, shapes[name], self._scaling(module, len(a)))
        elif one and int(one[2]) < e and layer:
            shape = expert_shapes(self._config)[one[1]]
            name = f"{experts_prefix(int(layer[1]))}{one[1]}/{int(one[2])}"
            self._add(name, module, a, b, shape, self._scaling(module, len(a)))
        elif layer and local.replace(".base_layer", "") == "mlp.experts":
            self._take_experts(int(layer[1]), module, a, b)
        else:
            raise QuantError(f"{self.folder}: it changes {module}, which localoss can't adapt")

    def _take_experts(self, layer: int, module: str, a: F32, b: F32) -> None:
        """A pair for each expert of a fused matrix, which its shape tells; columns may stand for rows."""
        e, ranks = self._config.experts, a.shape[0]
        for name, (rows, columns) in expert_shapes(self._config).items():
            found = b.shape[0], a.shape[1]
            if ranks % e or b.shape[1] != ranks or found not in ((rows, columns), (columns, rows)):
                continue
            is_plain, scaling = found == (rows, columns), self._scaling(module, ranks // e)
            per_expert = a.reshape(e, ranks // e, -1), b.reshape(len(b), ranks // e, e)
            for expert in range(e):
                its_a, its_b = per_expert[0][expert], np.ascontiguousarray(per_expert[1][:, :, expert])
                if not is_plain:
                    its_a, its_b = np.ascontiguousarray(its_b.T), np.ascontiguousarray(its_a.T)
                where = f"{experts_prefix(layer)}{name}/{expert}"
                self._add(where, module, its_a, its_b, (rows, columns), scaling)
            return
        raise QuantError(
            f"{self.folder}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which fit "
            f"neither of the model's {e} experts' matrices"
        )

    def _add(self, name: str, module: str, a: F32, b: F32, shape: tuple[int, ...], scaling: float) -> None:
        rows, columns = shape
        if a.shape[1] != columns or b.shape != (rows, len(a)):
            raise QuantError(
                f"{self.folder}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)} "
                f"for a matrix of {rows} rows and {columns} columns; it is of another model"
            )
        scale = np.float32(self._scale * scaling)
        self._pairs.setdefault(name, []).append(Pair(np.ascontiguousarray(a), scale * b))

    def _scaling(self, module: str, rank: int) -> float:
        alpha = self._settings["lora_alpha"]
        for pattern, value in (self._settings.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


def _refuse_other_base(path: Path, base: object, config: ModelConfig) -> None:
    """gpt-oss-20b's matrices fit 120b's first layers: their shapes alone don't tell."""
    match = _PUBLISHED.search(base) if isinstance(base, str) else None
    layers = _LAYERS[match[1]] if match else config.layers
    if layers != config.layers and config.layers in _LAYERS.values():
        raise QuantError(
            f"{path}: trained on {base}, which has {layers} layers; this model has {config.layers}"
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        wanted = "give the folder that PEFT's save_pretrained wrote, or a LoRA's GGUF file"
        raise QuantError(f"{path}: not found; {wanted}") from None
    except NotADirectoryError:
        raise QuantError(f"{folder}: neither a LoRA adapter's folder nor its GGUF file") from None
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise QuantError(f"{path}: not a LoRA's configuration ({error})") from None
    if settings.get("peft_type") != "LORA":
        raise QuantError(f"{path}: an adapter of kind {settings.get('peft_type')!r}; localoss knows LORA")
    for key in _WITHOUT:
        if settings.get(key):
            raise QuantError(f"{path}: {key} is set, which localoss can't add; merge it where it was trained")
    if settings.get("bias", "none") != "none":
        raise QuantError(f"{path}: it trains biases, too; merge it where it was trained")
    if not isinstance(settings.get("lora_alpha"), int | float):
        raise QuantError(f"{path}: lora_alpha is {settings.get('lora_alpha')!r}, no number")
    return settings


def _read_tensors(folder: Path) -> Iterator[tuple[str, F32]]:
    path = folder / WEIGHTS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise QuantError(f"{folder}: adapter_model.bin is PyTorch's own format; save it as safetensors")
    if not path.exists():
        raise QuantError(f"{path}: not found; the adapter is incomplete, copy its whole folder")
    files = TensorFiles(folder)
    try:
        for name, info in read_header(path)[0].items():
            files.tensors[name] = (path, info)
            if info.dtype not in FLOATS or len(info.shape) != 2 or not all(info.shape):
                raise QuantError(f"{path}: {name} is {info.dtype} {list(info.shape)}, no part of a LoRA")
            tensor = as_f32(files.read_rows(name, 0, info.shape[0])).astype(np.float32, copy=False)
            require_finite(f"{path}: {name}", tensor)
            yield name, tensor
    finally:
        files.close()
