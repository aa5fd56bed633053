"""LoRA adapters in memory, as kernels/low_rank.py takes them: several sets of them beside a model's weights.

A set is what a sequence runs with: one adapter, or more at once, whose ranks then stand one after the other.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from localoss.errors import UsageError
from quant.format.config import ModelConfig, read_config
from quant.format.hf_names import (
    EXPERT_MATRICES,
    UNEMBEDDING,
    expert_shapes,
    experts_prefix,
    float_shapes,
    layer_prefix,
)
from quant.format.layout import round_up
from quant.sources.adapter import Pair, open_adapter, split_name
from quant.sources.model import ModelSource

F32Array = NDArray[np.float32]
_PANEL = 8  # rows
UNNAMED = ""  # the set of what was given without a name: every sequence's that asks for no other


class Factors(NamedTuple):
    """What is added to one matrix, or to several whose rows follow each other: see add_low_rank."""

    a: int
    ranks: int
    columns: int
    panels: NDArray[np.int64]


@dataclass(frozen=True)
class LayerFactors:
    """What is added to a layer's matrices but its experts; as tuples, which kernels are compiled for."""

    qkv: tuple[Any, ...] | None
    output: tuple[Any, ...] | None
    router: tuple[Any, ...] | None


@dataclass(eq=False)
class AdapterSet:
    """One adapter, or several at once. number: its place among the model's sets. digest: of all files."""

    name: str
    number: int
    digest: str
    layers: list[LayerFactors] = field(default_factory=list)
    unembedding: tuple[Any, ...] | None = None


class ExpertTables(NamedTuple):
    """Of one layer's experts: addresses (S, 4, E) and ranks (S, 2) i64, see low_rank.py."""

    addresses: NDArray[np.int64]
    ranks: NDArray[np.int64]


class Adapting(Protocol):
    """What a set is made of: an Adapter."""

    def pairs(self, name: str) -> list[Pair]: ...

    def sha256(self) -> str: ...


def open_adapters(given: Sequence[str], folder: Path, tokens: int) -> "Adapters":
    """Those of the model in `folder`. Raises: QuantError.

    given: DIR, DIR:SCALE or NAME=DIR; those of one name are one set, and so are those without. tokens: as for
    Adapters.
    """
    config = read_config(folder / "config.json")
    with ModelSource(folder) as model:
        return Adapters(_by_name(given, config), config, tokens, model.column_factor)


def bytes_of(given: Sequence[str], config: ModelConfig, tokens: int) -> int:
    """What they would take of memory beside a model that needn't be there. Raises: QuantError."""
    return Adapters(_by_name(given, config), config, tokens).nbytes


def _by_name(given: Sequence[str], config: ModelConfig) -> dict[str, list[Adapting]]:
    found: dict[str, list[Adapting]] = {}
    for text in given:
        name, rest = split_name(text)
        found.setdefault(name, []).append(open_adapter(rest, config))
    return found


class _Blank:
    def __init__(self, config: ModelConfig) -> None:
        experts = {f"{name}/": shape for name, shape in expert_shapes(config).items()}
        self._shapes = float_shapes(config) | experts

    def pairs(self, name: str) -> list[Pair]:
        rows, columns = next(shape for part, shape in self._shapes.items() if part in name)
        return [Pair(np.zeros((1, columns), np.float32), np.zeros((rows, 1), np.float32))]

    def sha256(self) -> str:
        return ""


def blank_adapters(config: ModelConfig) -> "Adapters":
    """One of zeros that changes every matrix, for trying kernels out."""
    return Adapters({UNNAMED: [_Blank(config)]}, config, 1)


class Adapters:
    """All sets of a model by name, and what their products write on their way. Immutable once made."""

    def __init__(
        self,
        by_name: Mapping[str, Sequence[Adapting]],
        config: ModelConfig,
        tokens: int,
        column_factor: Callable[[str], F32Array | None] = lambda name: None,
    ) -> None:
        """tokens: of a chunk at most. column_factor: of a matrix in the model: see ModelSource."""
        self._config, self._column_factor = config, column_factor
        self._kept: list[NDArray[Any]] = []  # what addresses point into
        self.sets: dict[str, AdapterSet] = {}
        experts = [ExpertTables(*_tables(len(by_name), config)) for _ in range(config.layers)]
        for number, (name, adapters) in enumerate(by_name.items()):
            self.sets[name] = self._set(name, number, adapters)
            for layer, tables in enumerate(experts):
                self._add_experts(tables, number, layer, adapters)
        self.experts = [tables if tables.ranks.any() else None for tables in experts]
        self._width = max((int(tables.ranks.max()) for tables in experts), default=0)
        sets = self.sets.values()
        own = [each for one in sets for layer in one.layers for each in vars(layer).values() if each]
        own += [one.unembedding for one in sets if one.unembedding]
        floats = tokens * max([each[1] for each in own], default=0)
        floats = max(floats, tokens * config.active_experts * self._width)
        self.between = np.full(floats, 0, np.float32)
        self.at_between = _address(self.between)
        self.nbytes = self.between.nbytes + sum(array.nbytes for array in self._kept)

    def find(self, name: str | None) -> AdapterSet | None:
        """The set of that name; None for the one without, if there is one. Raises: UsageError."""
        if name is None:
            return self.sets.get(UNNAMED)
        if name not in self.sets:
            there = ", ".join(one for one in self.sets if one) or "none with a name"
            raise UsageError(f"there is no adapter {name}; there are {there}")
        return self.sets[name]

    def for_experts(self, layer: int, sets: NDArray[np.int32]) -> tuple[Any, ...] | None:
        """What run_experts takes of a layer; sets (T,): each token's, -1 for none."""
        tables = self.experts[layer]
        return None if tables is None else (sets, *tables, self.at_between, self._width)

    def _set(self, name: str, number: int, adapters: Sequence[Adapting]) -> AdapterSet:
        config = self._config
        digest = hashlib.sha256("".join(adapter.sha256() for adapter in adapters).encode()).hexdigest()
        made = AdapterSet(name, number, digest)
        for layer in range(config.layers):
            attention = f"{layer_prefix(layer)}self_attn."
            rows = {"q": config.q_rows, "k": config.kv_rows, "v": config.kv_rows}
            qkv = [(f"{attention}{letter}_proj.weight", count) for letter, count in rows.items()]
            made.layers.append(
                LayerFactors(
                    self._factors(adapters, qkv, config.hidden),
                    self._factors(adapters, [(f"{attention}o_proj.weight", config.hidden)], config.q_rows),
                    self._factors(
                        adapters,
                        [(f"{layer_prefix(layer)}mlp.router.weight", config.experts)],
                        config.hidden,
                    ),
                )
            )
        made.unembedding = self._factors(adapters, [(UNEMBEDDING, config.vocab)], config.hidden)
        return made

    def _factors(
        self, adapters: Sequence[Adapting], matrices: list[tuple[str, int]], columns: int
    ) -> tuple[Any, ...] | None:
        """What is added to `matrices`, names and rows, which have `columns` columns and one input."""
        all_a: list[F32Array] = []
        panels: list[NDArray[np.int64]] = []
        ranks = first_row = 0
        for name, rows in matrices:
            pairs = [pair for adapter in adapters for pair in adapter.pairs(name)]
            if pairs:
                a, b = _stacked(pairs)
                factor = self._column_factor(name)
                a = a if factor is None else a * factor
                count = len(b) // _PANEL  # of panels
                lines = np.zeros((count, 4), np.int64)
                lines[:, 0] = first_row // _PANEL + np.arange(count)
                lines[:, 1] = self._keep(_panels(b)) + 4 * _PANEL * b.shape[1] * np.arange(count)
                lines[:, 2:] = ranks, b.shape[1]
                panels.append(lines)
                all_a.append(a)
                ranks += len(a)
            first_row += rows
        if not panels:
            return None
        lines = np.concatenate(panels)
        self._kept.append(lines)
        return tuple(Factors(self._keep(_panels(np.concatenate(all_a))), ranks, columns, lines))

    def _add_experts(
        self, tables: ExpertTables, number: int, layer: int, adapters: Sequence[Adapting]
    ) -> None:
        """Fill a set's lines of a layer's tables. All experts get the ranks of the one with most."""
        for kind, name in enumerate(EXPERT_MATRICES):
            found = {}
            for expert in range(self._config.experts):
                where = f"{experts_prefix(layer)}{name}/{expert}"
                if pairs := [pair for adapter in adapters for pair in adapter.pairs(where)]:
                    found[expert] = _stacked(pairs)
            most = max((len(a) for a, _ in found.values()), default=0)
            tables.ranks[number, kind] = most
            for expert, (a, b) in found.items():
                a = np.pad(a, ((0, most - len(a)), (0, 0)))
                b = np.pad(b, ((0, 0), (0, most - b.shape[1])))
                tables.addresses[number, 2 * kind, expert] = self._keep(_panels(a))
                tables.addresses[number, 2 * kind + 1, expert] = self._keep(_panels(b))

    def _keep(self, array: NDArray[Any]) -> int:
        self._kept.append(array)
        return _address(array)


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data


def _tables(sets: int, config: ModelConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.zeros((sets, 4, config.experts), np.int64), np.zeros((sets, 2), np.int64)


def _stacked(pairs: Sequence[Pair]) -> tuple[F32Array, F32Array]:
    """A (ranks, columns) and B (rows, ranks) of all `pairs` together, ranks and rows multiples of 8."""
    a = np.concatenate([pair.a for pair in pairs])
    b = np.concatenate([pair.b for pair in pairs], axis=1)
    missing = round_up(len(a), _PANEL) - len(a)
    rows = round_up(len(b), _PANEL) - len(b)
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, rows), (0, missing)))


def _panels(matrix: F32Array) -> F32Array:
    """(rows / 8, columns, 8) of a matrix (rows, columns)."""
    rows, columns = matrix.shape
    return np.ascontiguousarray(matrix.reshape(rows // _PANEL, _PANEL, columns).transpose(0, 2, 1))
