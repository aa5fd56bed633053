"""How fast a model runs here, beside how fast its weights can be read."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from localoss import kernels
from localoss import model as model_module
from localoss.engine import Engine
from localoss.kernels import activations, experts, isa
from localoss.kernels.bandwidth import SCRATCH_BYTES, read_bytes
from localoss.weights import Weights, address

_BANDWIDTH_BYTES = 4 << 30  # at most so much of the weights is read to measure it
_PART_BYTES = 96 << 10  # as much as a thread takes at once when decoding


@dataclass(frozen=True)
class Benchmark:
    """Medians of one run. prefill: the prompt. decode: each of the tokens after it."""

    prompt_tokens: int
    gen_tokens: int
    threads: int
    simd: str
    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_bytes_per_token: int
    read_bandwidth_bytes_per_s: float
    bandwidth_share: float  # decode's bytes per second over the read bandwidth
    peak_rss_bytes: int
    dtypes: dict[str, str]


def run_benchmark(
    engine: Engine, load_s: float, prompt_tokens: int, gen_tokens: int, depth: int
) -> Benchmark:
    """Time a prompt of random tokens and `gen_tokens` greedy tokens after `depth` more tokens of context."""
    random = np.random.default_rng(0)
    low, high = min(1000, engine.config.vocab // 2), min(2000, engine.config.vocab)
    prompt = random.integers(low, high, depth + prompt_tokens).tolist()
    sequence = engine.sequence()
    if depth:
        engine.prefill(sequence, prompt[:depth])
    else:
        engine.prefill(sequence, prompt[:1])  # touches each page of what every token reads
        sequence = engine.sequence()
    start = time.perf_counter()
    engine.prefill(sequence, prompt)
    prefill_s = time.perf_counter() - start
    before = read_bandwidth(engine.weights, engine.threads)
    decode_s = _decode_times(engine, sequence, prompt, gen_tokens)
    bandwidth = statistics.median([before, read_bandwidth(engine.weights, engine.threads)])
    read = decode_bytes(engine)
    per_token_s = statistics.median(decode_s)
    return Benchmark(
        prompt_tokens=prompt_tokens,
        gen_tokens=gen_tokens,
        threads=engine.threads,
        simd=isa.NAME,
        load_s=load_s,
        prefill_tokens_per_s=prompt_tokens / prefill_s,
        decode_tokens_per_s=1 / per_token_s,
        decode_bytes_per_token=read,
        read_bandwidth_bytes_per_s=bandwidth,
        bandwidth_share=read / per_token_s / bandwidth,
        peak_rss_bytes=peak_rss_bytes(),
        dtypes=vars(engine.dtypes),
    )


def _decode_times(engine: Engine, sequence: Any, prompt: list[int], tokens: int) -> list[float]:
    """Seconds for each of `tokens` tokens, not counting the one whose logits come from prefill."""
    times, last = [], 0.0
    for _ in engine.generate(prompt, tokens + 1, temperature=0, sequence=sequence, stop_ids=()):
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return times[1:]


def decode_bytes(engine: Engine) -> int:
    """Bytes of weights that one decoded token reads."""
    weights, active = engine.weights, engine.config.active_experts
    per_layer = sum(m.nbytes for layer in weights.layers for m in (layer.qkv, layer.output, layer.router))
    experts_bytes = len(weights.layers) * active * weights.expert_bytes
    return per_layer + experts_bytes + weights.unembedding.nbytes


def read_bandwidth(weights: Weights, threads: int, passes: int = 3) -> float:
    """Bytes per second at which `threads` threads read the experts' weights: the median of some passes."""
    size = weights.expert_bytes
    addresses = np.concatenate([layer.expert_runs for layer in weights.layers])
    addresses = addresses[: max(1, _BANDWIDTH_BYTES // size)]
    part = min(_PART_BYTES, size // 128 * 128)
    counter, scratch = np.zeros(1, np.int64), np.zeros(threads * SCRATCH_BYTES, np.uint8)
    kernels.use_threads(threads)
    rates = []
    for _ in range(passes + 1):  # the first brings the pages in
        start = time.perf_counter()
        read_bytes(addresses, size, part, address(scratch), threads, address(counter))
        rates.append(size // part * part * len(addresses) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def peak_rss_bytes() -> int:
    """The most memory that this process has occupied, pages of the model's files included."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def profiled(seconds: dict[str, float]) -> Iterator[None]:
    """Meanwhile, add the time that each kernel takes to `seconds`, by its name."""
    homes = [
        (model_module, ("matmul", "attention", "rotate_and_store")),
        (activations, ("rms_norm", "quantize", "gather", "route", "sort_by_expert", "add_experts")),
        (experts, ("list_active", "gate_up", "down")),
    ]
    kept = [(home, name, getattr(home, name)) for home, names in homes for name in names]

    def timed(name: str, kernel: Any) -> Any:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = kernel(*arguments)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        return call

    try:
        for home, name, kernel in kept:
            setattr(home, name, timed(name, kernel))
        yield
    finally:
        for home, name, kernel in kept:
            setattr(home, name, kernel)


def profile_decode(engine: Engine, tokens: int) -> dict[str, float]:
    """Seconds per decoded token by kernel, and "python" for all else, the sampler included."""
    sequence = engine.sequence()
    prompt = [1] * 32
    engine.prefill(sequence, prompt)
    seconds: dict[str, float] = {}
    with profiled(seconds):
        start = time.perf_counter()
        list(engine.generate(prompt, tokens, temperature=0, sequence=sequence, stop_ids=()))
        total = time.perf_counter() - start
    seconds["python"] = total - sum(seconds.values())
    return {name: value / tokens for name, value in sorted(seconds.items(), key=lambda item: -item[1])}
