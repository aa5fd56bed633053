"""How long a layer takes on the CPU and on the GPU, and so which of them should run how many."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from localoss.engine.engine import Engine
from localoss.errors import GpuError
from localoss.gpu.layers import GpuLayers
from localoss.measure.bench import touch
from localoss.model.forward import Chunk
from localoss.model.stack import Rows

_RUNS = 5  # of each; medians count
_LEAST_S = 1e-7  # of what is a difference of two times: on a busy machine it may come out as nothing or less
_LAYERS_IN_A_ROW = 9  # on the GPU, so that what a submit takes can be told from what a layer takes


@dataclass(frozen=True)
class Split:
    """Times of one decoded token, at the beginning of a conversation.

    read_bytes: of weights in one layer. gpu_call_s: what handing a token to the GPU and back takes, once.
    """

    layers: int
    read_bytes: int
    cpu_layer_s: float
    gpu_layer_s: float
    gpu_call_s: float

    @property
    def cpu_bytes_per_s(self) -> float:
        return self.read_bytes / self.cpu_layer_s

    @property
    def gpu_bytes_per_s(self) -> float:
        return self.read_bytes / self.gpu_layer_s

    def token_s(self, gpu_layers: int) -> float:
        """All layers of one token, with so many of them on the GPU; without the unembedding."""
        on_gpu = self.gpu_call_s + gpu_layers * self.gpu_layer_s if gpu_layers else 0.0
        return (self.layers - gpu_layers) * self.cpu_layer_s + on_gpu

    def best_layers(self, most: int) -> int:
        """How many layers on the GPU are fastest, of up to `most` that fit: none, or all of these."""
        return min((0, most), key=self.token_s)


def measure_split(engine: Engine) -> Split:
    """Time both on the weights of `engine`, which has one layer on the GPU and others on the CPU.

    Raises: GpuError if none is there, or it fails.
    """
    model, config, gpu = engine.model, engine.config, engine.model.stacks[-1]
    if not isinstance(gpu, GpuLayers) or not gpu.first:
        raise GpuError("there is no layer on a GPU and one on the CPU to compare")
    touch(engine.weights)
    cache = engine.sequence().cache
    rows = Rows(0, 1, 0, *model.rope.at(0, 1), cache)
    its_caches = cache.layers[gpu.first :]
    x = np.full((1, config.hidden), 0.1, np.float32)

    def on_gpu() -> None:
        gpu.forward(x, [rows], lambda: False)

    one = _median_s(on_gpu)
    several = _median_s(lambda: gpu.repeat(its_caches, _LAYERS_IN_A_ROW))
    once = _median_s(lambda: gpu.repeat(its_caches, 1))
    layer_s = max((several - once) / (_LAYERS_IN_A_ROW - 1), _LEAST_S)
    both = _median_s(lambda: model.forward([Chunk([0], 0, cache)]))
    layer, weights = engine.weights.layers[0], engine.weights
    matrices = layer.qkv.nbytes + layer.output.nbytes + layer.router.nbytes
    return Split(
        layers=config.layers,
        read_bytes=matrices + config.active_experts * weights.expert_bytes,
        cpu_layer_s=max((both - one) / gpu.first, _LEAST_S),
        gpu_layer_s=layer_s,
        gpu_call_s=max(one - layer_s, _LEAST_S),
    )


def _median_s(run: Callable[[], object]) -> float:
    """Seconds of a run; the first one, which may have to compile, doesn't count."""
    times = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
