"""The weights of a model directory as they lie, nothing converted: mapped into memory, or, for a model that
is larger than memory, all but the experts read into memory of our own.
"""

import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import ModelError
from localoss.kernels.bus_error import name_faults
from localoss.kernels.products import KINDS
from localoss.model.slab import own_memory
from quant.format.config import ModelConfig
from quant.format.direct import DirectFile
from quant.format.layout import (
    PAGE,
    VOCABULARY_FILE,
    TensorSpec,
    expert_run,
    layer_file,
    layer_specs,
    round_up,
    vocabulary_specs,
)
from quant.format.manifest import Dtypes
from quant.format.safetensors import TensorInfo, read_header
from quant.format.weight_formats import ROUTER

if TYPE_CHECKING:
    from localoss.model.adapters import Adapters

# float16 and bfloat16 as their bits: what reads them knows.
_NUMPY_DTYPES = {
    "U8": np.uint8,
    "I8": np.int8,
    "F16": np.uint16,
    "BF16": np.uint16,
    "F32": np.float32,
}
Tensors = dict[str, NDArray[Any]]
_READERS = 4
_READ_BYTES = 32 << 20  # by one of them at a time
_GAP_BYTES = 1 << 20  # less than that between two tensors is read along


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
    key_bias: NDArray[np.float32]  # (K, head_dim): a part of qkv's
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
    left_bytes: int = 0  # of weights that are in none of `tensors`: experts in their files
    adapters: "Adapters | None" = None  # beside them

    @property
    def nbytes(self) -> int:
        return self.left_bytes + sum(array.nbytes for tensors in self.tensors for array in tensors.values())


def load_weights(folder: Path, config: ModelConfig, dtypes: Dtypes, first: int | None = None) -> Weights:
    """Map the files of model directory `folder`.

    first: where the layers begin that `config` is of, which are a part of the model's; such a part has no
    vocabulary. Raises: ModelError, QuantError for damaged files.
    """
    specs = layer_specs(config, dtypes.attention, dtypes.experts)
    layers = [_map_tensors(folder / layer_file((first or 0) + i), specs) for i in range(config.layers)]
    named = vocabulary_specs(config, dtypes.embedding, dtypes.unembedding)
    vocabulary = _map_tensors(folder / VOCABULARY_FILE, named) if first is None else _zeros(named)
    return _weights(
        layers, vocabulary, config, dtypes, [_addresses(tensors["experts"]) for tensors in layers]
    )


def read_dense_weights(
    folder: Path,
    config: ModelConfig,
    dtypes: Dtypes,
    expert_table: NDArray[np.int64],
    first: int | None = None,
) -> Weights:
    """Read all weights but the experts into memory that the system can't take away again.

    The rows of expert_table (layers, E) stand for the experts' addresses, and whoever has it has to write
    them. The embedding stays mapped: a token reads one row of it. first: as for load_weights.
    Raises: as load_weights; MemoryError.
    """
    specs = layer_specs(config, dtypes.attention, dtypes.experts)
    files = [folder / layer_file((first or 0) + i) for i in range(config.layers)]
    layers = [_read_tensors(path, specs, "experts") for path in files]
    path, specs = folder / VOCABULARY_FILE, vocabulary_specs(config, dtypes.embedding, dtypes.unembedding)
    if first is None:
        vocabulary = _read_tensors(path, specs, "embedding.codes")
        vocabulary["embedding.codes"] = _map_tensors(path, specs)["embedding.codes"]
    else:
        vocabulary = _zeros(specs)
    weights = _weights(layers, vocabulary, config, dtypes, list(expert_table))
    return replace(weights, left_bytes=config.layers * config.experts * weights.expert_bytes)


def blank_weights(config: ModelConfig, dtypes: Dtypes) -> Weights:
    """Weights of zeros, for trying kernels out."""
    layers = [_zeros(layer_specs(config, dtypes.attention, dtypes.experts)) for _ in range(config.layers)]
    vocabulary = _zeros(vocabulary_specs(config, dtypes.embedding, dtypes.unembedding))
    return _weights(
        layers, vocabulary, config, dtypes, [_addresses(tensors["experts"]) for tensors in layers]
    )


def _zeros(specs: dict[str, TensorSpec]) -> Tensors:
    tensors = {name: np.zeros(spec.shape, _NUMPY_DTYPES[spec.dtype]) for name, spec in specs.items()}
    for array in tensors.values():
        array.flags.writeable = False  # as mapped ones are: kernels are compiled for that
    return tensors


def _addresses(experts: NDArray[Any]) -> NDArray[np.int64]:
    """(E,): where each record of `experts` (E, bytes of a record) lies."""
    found: NDArray[np.int64] = address(experts) + experts.shape[1] * np.arange(len(experts), dtype=np.int64)
    return found


def _map_tensors(path: Path, specs: dict[str, TensorSpec]) -> Tensors:
    """The tensors that `specs` names, as views of the mapped file."""
    found = _checked_header(path, specs)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    name_faults(
        mapped,
        f"{path} can't be read any more: it was cut short while it is in use, or its disk fails; "
        "`localoss verify` finds damaged files, quantize or pull the model again",
    )
    return {name: _array(mapped, 0, found[name]) for name in specs if name in found}


def _read_tensors(path: Path, specs: dict[str, TensorSpec], without: str) -> Tensors:
    """The tensors that `specs` names but one, in memory of our own."""
    found = _checked_header(path, specs)
    wanted = sorted((found[name].offset, name) for name in specs if name != without and name in found)
    ranges: list[tuple[int, int, list[str]]] = []  # begin, end, what lies there
    for offset, name in wanted:
        end = offset + found[name].size
        if ranges and offset - ranges[-1][1] < _GAP_BYTES:
            ranges[-1] = (ranges[-1][0], end, [*ranges[-1][2], name])
        else:
            ranges.append((offset // PAGE * PAGE, end, [name]))
    file, tensors = DirectFile(path), {}
    try:
        for begin, end, names in ranges:
            memory = _read_range(file, begin, end)
            for name in names:
                tensors[name] = _array(memory, begin, found[name])
                tensors[name].flags.writeable = False  # as mapped ones are: kernels are compiled for that
    finally:
        file.close()
    return tensors


def _read_range(file: DirectFile, begin: int, end: int) -> memoryview:
    """What stands from `begin`, a multiple of a page, to `end`."""
    memory = own_memory(round_up(end - begin, PAGE))

    def read(first: int) -> None:
        last = min(first + _READ_BYTES, len(memory))
        file.read_into(memory[first:last], begin + first, min(last, end - begin) - first)

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(read, range(0, len(memory), _READ_BYTES)))
    return memory


def _array(memory: Any, begin: int, info: TensorInfo) -> NDArray[Any]:
    """A tensor in `memory`, which has the file from `begin` on."""
    count = int(np.prod(info.shape))
    return np.frombuffer(memory, _NUMPY_DTYPES[info.dtype], count, info.offset - begin).reshape(info.shape)


def _checked_header(path: Path, specs: dict[str, TensorSpec]) -> dict[str, TensorInfo]:
    """Where the file's tensors are. Raises: ModelError unless they are as `specs` has them; QuantError."""
    found, _ = read_header(path)
    for name, spec in specs.items():
        info = found.get(name)
        if info is None and spec.is_newer:
            continue
        if info is None or (info.dtype, tuple(info.shape)) != (spec.dtype, spec.shape):
            what = "missing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise ModelError(
                f"{path}: {name} is {what}, expected {spec.dtype} {list(spec.shape)}; "
                "quantize or pull the model again"
            )
    return found


def _weights(
    layers: list[Tensors],
    vocabulary: Tensors,
    config: ModelConfig,
    dtypes: Dtypes,
    expert_runs: list[NDArray[np.int64]],
) -> Weights:
    run, kind = expert_run(config, dtypes.experts), KINDS[dtypes.experts]
    d, i = config.hidden, config.intermediate
    return Weights(
        layers=[
            _layer(tensors, config, dtypes, runs) for tensors, runs in zip(layers, expert_runs, strict=True)
        ],
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


def _layer(tensors: Tensors, config: ModelConfig, dtypes: Dtypes, expert_runs: NDArray[np.int64]) -> Layer:
    key_bias = tensors["qkv.bias"][config.q_rows :][: config.kv_heads * config.head_dim]
    return Layer(
        attention_norm=address(tensors["attention_norm"]),
        qkv=_matrix(tensors, "qkv", dtypes.attention),
        key_bias=key_bias.reshape(config.kv_heads, config.head_dim),
        sinks=tensors["sinks"],
        output=_matrix(tensors, "output", dtypes.attention),
        mlp_norm=address(tensors["mlp_norm"]),
        router=_matrix(tensors, "router", ROUTER, biased=False),  # its rows may be padded
        router_bias=tensors["router.bias"],
        expert_runs=expert_runs,
    )
