"""The weights of a model directory, mapped into memory as they lie: nothing is converted or copied."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import ModelError
from localoss.kernels.products import KINDS
from quant.format.config import ModelConfig
from quant.format.layout import (
    VOCABULARY_FILE,
    TensorSpec,
    expert_run,
    layer_file,
    layer_specs,
    vocabulary_specs,
)
from quant.format.manifest import Dtypes
from quant.format.safetensors import read_header
from quant.format.weight_formats import ROUTER

# float16 and bfloat16 as their bits: what reads them knows.
_NUMPY_DTYPES = {
    "U8": np.uint8,
    "I8": np.int8,
    "F16": np.uint16,
    "BF16": np.uint16,
    "F32": np.float32,
}
Tensors = dict[str, NDArray[Any]]


def address(array: NDArray[Any]) -> int:
    """Where `array`'s first byte lies, for a kernel."""
    return array.ctypes.data


Tiles = tuple[
    int, int, int, int, int, int
]  # kind, codes, scales, bias, groups, blocks: see kernels/matmul.py


@dataclass(frozen=True)
class Matrix:
    """A matrix of 8 * groups rows and 32 * blocks columns, as kernels take it."""

    tiles: Tiles
    nbytes: int

    @property
    def kind(self) -> int:
        return self.tiles[0]

    @property
    def rows(self) -> int:
        return 8 * self.tiles[4]

    @property
    def blocks(self) -> int:
        return self.tiles[5]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. Norms are addresses of (D,) float32; sinks (H,)."""

    attention_norm: int
    qkv: Matrix
    sinks: NDArray[np.float32]
    output: Matrix
    mlp_norm: int
    router: Matrix
    router_bias: NDArray[np.float32]  # (E,), unpadded
    expert_runs: NDArray[np.int64]  # (E,): the address of each expert's run


@dataclass(frozen=True)
class Weights:
    """All weights of a model. `tensors` keeps their memory for as long as addresses are in use."""

    layers: list[Layer]
    embedding: NDArray[Any]  # (V, D) int8, or uint16: bfloat16 bits
    embedding_scales: NDArray[np.uint16] | None  # (V, D/32) float16 bits, for int8
    final_norm: int  # address of (D,) float32
    unembedding: Matrix
    gate_up: Tiles  # of each expert, with byte offsets in its run for addresses
    down: Tiles
    expert_bytes: int
    tensors: list[Tensors]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for tensors in self.tensors for array in tensors.values())


def load_weights(folder: Path, config: ModelConfig, dtypes: Dtypes) -> Weights:
    """Map the files of model directory `folder`. Raises: ModelError, QuantError for damaged files."""
    specs = layer_specs(config, dtypes.attention, dtypes.experts)
    layers = [_map_tensors(folder / layer_file(i), specs) for i in range(config.layers)]
    vocabulary = vocabulary_specs(config, dtypes.embedding, dtypes.unembedding)
    return _weights(layers, _map_tensors(folder / VOCABULARY_FILE, vocabulary), config, dtypes)


def blank_weights(config: ModelConfig, dtypes: Dtypes) -> Weights:
    """Weights of zeros, for trying kernels out."""

    def zeros(specs: dict[str, TensorSpec]) -> Tensors:
        tensors = {name: np.zeros(spec.shape, _NUMPY_DTYPES[spec.dtype]) for name, spec in specs.items()}
        for array in tensors.values():
            array.flags.writeable = False  # as mapped ones are: kernels are compiled for that
        return tensors

    layers = [zeros(layer_specs(config, dtypes.attention, dtypes.experts)) for _ in range(config.layers)]
    return _weights(
        layers, zeros(vocabulary_specs(config, dtypes.embedding, dtypes.unembedding)), config, dtypes
    )


def _map_tensors(path: Path, specs: dict[str, TensorSpec]) -> Tensors:
    """The tensors that `specs` names, as views of the mapped file."""
    found, _ = read_header(path)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, spec in specs.items():
        info = found.get(name)
        if info is None or (info.dtype, tuple(info.shape)) != (spec.dtype, spec.shape):
            what = "missing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise ModelError(
                f"{path}: {name} is {what}, expected {spec.dtype} {list(spec.shape)}; "
                "quantize or pull the model again"
            )
        count = int(np.prod(spec.shape))
        flat = np.frombuffer(mapped, _NUMPY_DTYPES[spec.dtype], count, info.offset)
        tensors[name] = flat.reshape(spec.shape)
    return tensors


def _weights(layers: list[Tensors], vocabulary: Tensors, config: ModelConfig, dtypes: Dtypes) -> Weights:
    run, kind = expert_run(config, dtypes.experts), KINDS[dtypes.experts]
    d, i = config.hidden, config.intermediate
    return Weights(
        layers=[_layer(tensors, dtypes) for tensors in layers],
        embedding=vocabulary["embedding.codes"],
        embedding_scales=vocabulary.get("embedding.scales"),
        final_norm=address(vocabulary["final_norm"]),
        unembedding=_matrix(vocabulary, "unembedding", dtypes.unembedding),
        gate_up=(kind, run.gate_up_codes, run.gate_up_scales, run.gate_up_bias, i // 4, d // 32),
        down=(kind, run.down_codes, run.down_scales, run.down_bias, d // 8, i // 32),
        expert_bytes=run.size,
        tensors=[*layers, vocabulary],
    )


def _matrix(tensors: Tensors, name: str, dtype: str, biased: bool = True) -> Matrix:
    codes, scales = tensors[f"{name}.codes"], tensors.get(f"{name}.scales")
    bias = tensors.get(f"{name}.bias") if biased else None
    addresses = [0 if array is None else address(array) for array in (codes, scales, bias)]
    groups, blocks, _ = codes.shape
    return Matrix(
        tiles=(KINDS[dtype], addresses[0], addresses[1], addresses[2], groups, blocks),
        nbytes=codes.nbytes + (0 if scales is None else scales.nbytes),
    )


def _layer(tensors: Tensors, dtypes: Dtypes) -> Layer:
    experts = tensors["experts"]
    return Layer(
        attention_norm=address(tensors["attention_norm"]),
        qkv=_matrix(tensors, "qkv", dtypes.attention),
        sinks=tensors["sinks"],
        output=_matrix(tensors, "output", dtypes.attention),
        mlp_norm=address(tensors["mlp_norm"]),
        router=_matrix(tensors, "router", ROUTER, biased=False),  # its rows may be padded
        router_bias=tensors["router.bias"],
        expert_runs=address(experts) + experts.shape[1] * np.arange(len(experts), dtype=np.int64),
    )
