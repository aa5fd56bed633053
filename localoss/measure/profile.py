"""Where a token's time goes: every kernel's share, and what Python takes between kernels.

To be timed they are called one by one here, so that this share is larger than where nobody looks on, and a
token is one call: see kernels/layers.py.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from localoss.engine.engine import Engine
from localoss.engine.sampler import Sampler
from localoss.model.forward import Chunk, Model
from localoss.model.kv_cache import KVCache
from localoss.model.weights import Matrix, Weights, blank_weights
from localoss.options import SamplingParams

PYTHON = "python"  # a profile's name for what is left over
_GREEDY = SamplingParams(temperature=0)


def profile_decode(engine: Engine, tokens: int, depth: int) -> dict[str, float]:
    """Seconds by kernel, PYTHON for all else, of the token that took the median time of `tokens` tokens,
    after `depth` others."""
    prompt = [1] * depth
    sequence = engine.sequence()
    engine.prefill(sequence, prompt)
    profiles: list[tuple[float, dict[str, float]]] = []
    with profiled(engine) as clock:
        for _ in engine.generate(prompt, tokens + 1, temperature=0, sequence=sequence, stop_ids=()):
            profile = clock.lap()
            profiles.append((sum(profile.values()), profile))
    measured = sorted(profiles[1:], key=lambda profile: profile[0])  # the first one's logits are prefill's
    return measured[len(measured) // 2][1]


def profile_prefill(engine: Engine, tokens: int, depth: int) -> dict[str, float]:
    """Seconds by kernel, PYTHON for all else, of a prompt of `tokens` tokens after `depth` others."""
    random, sequence = np.random.default_rng(1), engine.sequence()
    prompt = random.integers(0, engine.config.vocab, depth + tokens).tolist()
    if depth:
        engine.prefill(sequence, prompt[:depth])
    with profiled(engine) as clock:
        engine.prefill(sequence, prompt)
        return clock.lap()


def calling_s(engine: Engine, tokens: int = 100) -> float:
    """Seconds that a decoded token takes when its kernels have next to nothing to do: an upper bound for
    Python's share, with the cost of calling into compiled code in it.

    The median over `tokens` steps of a model of as many layers, of one or two tiles per matrix.
    """
    config = replace(
        engine.config,
        hidden=32,
        intermediate=32,
        heads=4,
        kv_heads=1,
        head_dim=8,
        vocab=8,
        experts=engine.config.active_experts,
    )
    tiny = Model(config, blank_weights(config, engine.dtypes), 1, engine.model.exact, max_tokens=1)
    cache = KVCache(config, tokens, 1, engine.kv_dtype)
    sampler, random = Sampler(config.vocab), np.random.default_rng(0)
    times = []
    for position in range(tokens):
        start = time.perf_counter()
        logits = tiny.logits(tiny.forward([Chunk([0], position, cache)]))
        sampler.choose(logits[0], _GREEDY, random)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


class Clock:
    """Adds up seconds by kernel. What the measuring itself takes is left out."""

    def __init__(self, matrices: dict[tuple[int, ...], str]):
        self._matrices = matrices
        self._seconds: dict[str, float] = {}
        self._own_s = 0.0
        self._started = time.perf_counter()

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap by kernel, PYTHON for all else, the longest first."""
        rest = time.perf_counter() - self._started - self._own_s - sum(self._seconds.values())
        laps = sorted({**self._seconds, PYTHON: rest}.items(), key=lambda item: -item[1])
        self._seconds.clear()
        self._own_s, self._started = 0.0, time.perf_counter()
        return dict(laps)

    def timed(self, name: str, kernel: Any) -> Callable[..., Any]:
        """`kernel`, its time added under its name and that of the matrix among its arguments."""

        def call(*arguments: Any) -> Any:
            entered = time.perf_counter()
            matrix = next((self._matrices[a] for a in arguments if _is_tiles(a) and a in self._matrices), "")
            label = f"{name} {matrix}".strip()
            start = time.perf_counter()
            result = kernel(*arguments)
            end = time.perf_counter()
            self._seconds[label] = self._seconds.get(label, 0.0) + end - start
            self._own_s += start - entered + time.perf_counter() - end
            return result

        return call


@contextmanager
def profiled(engine: Engine) -> Iterator[Clock]:
    """Meanwhile, time each kernel that `engine` calls. Every one must have been compiled before."""
    clock = Clock(_matrix_names(engine.weights))
    kept = [(caller, caller.kernels) for caller in engine.kernel_callers]
    try:
        for caller, kernels in kept:
            caller.kernels = _timed(kernels, clock)
        yield clock
    finally:
        for caller, kernels in kept:
            caller.kernels = kernels


def _timed(kernels: ModuleType, clock: Clock) -> SimpleNamespace:
    """The functions of `kernels`, each timed by `clock`."""
    return SimpleNamespace(
        **{name: clock.timed(name, kernel) for name, kernel in vars(kernels).items() if callable(kernel)}
    )


def _is_tiles(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, int) for part in value)


def _matrix_names(weights: Weights) -> dict[tuple[int, ...], str]:
    """What each matrix is called, by its tiles, which its products are given."""
    owners = [*weights.layers, weights]
    return {
        value.tiles: name
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, Matrix)
    }
