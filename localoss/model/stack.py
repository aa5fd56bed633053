"""What runs some of a model's layers: on this machine's cores, on another device, from another place."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from localoss.model.adapters import AdapterSet
    from localoss.model.kv_cache import KVCache

Array = NDArray[np.generic]
F32Array = NDArray[np.float32]


class Rows(NamedTuple):
    """One sequence in a forward pass: rows `first` to first + tokens - 1 of the residual stream are its own.

    Made once a pass, not in each layer: Python's time is the memory's idle time.
    """

    first: int
    tokens: int
    position: int  # of the first token in its sequence
    cos: F32Array  # (tokens, head_dim / 2): rope.Rope.at's angles
    sin: F32Array
    cache: "KVCache"
    adapter: "AdapterSet | None" = None


class LayerCaching(Protocol):
    """One layer's keys and values of one sequence, wherever they lie."""

    slots: int
    nbytes: int

    def read(self, first: int, end: int) -> list[Array]:
        """Copies of what is kept for positions first to end - 1: see kv_cache.LayerCache."""

    def write(self, first: int, saved: list[Array]) -> None:
        """Put back what `read` gave, from position `first` on."""


class ExpertRunner(Protocol):
    """What runs experts of any layer that others chose: this machine's cores."""

    def run_chosen(self, index: int, ids: NDArray[np.int32], weights: F32Array, x: F32Array) -> None:
        """x (T, D) += Σ weight * expert(norm(x)) over each token's experts of layer `index`.

        ids (T, A), weights (T, A): as they were routed by norm(x).
        """


class LayerStack(Protocol):
    """Layers `first` to first + count - 1 of a model. Raises: DeviceLost from every method but `close`."""

    first: int
    count: int

    @property
    def unembeds(self) -> bool:
        """Whether it has the final norm and the unembedding, too."""

    def lend(self, cores: ExpertRunner) -> None:
        """Told once, before anything runs, what runs experts that the device's memory doesn't hold."""

    def new_caches(self, slots: Sequence[int], kv_dtype: str) -> Sequence[LayerCaching]:
        """An empty cache for each layer, of so many slots; part of a new sequence's KVCache."""

    def try_out(self, caches: Sequence[LayerCaching]) -> None:
        """Run zeros on a new sequence's caches: what a device can't do must show before an answer."""

    def forward(self, x: F32Array, rows: Sequence[Rows], cancelled: Callable[[], bool]) -> None:
        """Bring x (T, D), the residual stream, through the layers, in place, and write the sequences' caches.

        Raises: Cancelled between two layers.
        """

    def next_logits(self, x: F32Array, rows: Rows, cancelled: Callable[[], bool]) -> F32Array:
        """The same for one sequence, but give the logits (1, V) after its last token; where it unembeds."""

    def logits(self, x: F32Array, out: F32Array) -> None:
        """Write final norm and unembedding of x (n, D) to out (n, ≥ V rounded up to 8); where it unembeds."""

    def figures(self) -> dict[str, Any] | None:
        """For reports: the device, its layers and memory; None for the cores that run everything else."""

    def replacement(self) -> "LayerStack | None":
        """What runs these layers once this raised DeviceLost; None for the CPU. Never raises."""

    def close(self) -> None:
        """Give the device's memory back. Never raises."""
