"""How fast a model runs here, beside how fast its weights can be read."""

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from localoss import kernels
from localoss.engine.engine import Engine
from localoss.kernels import isa
from localoss.kernels.bandwidth import SCRATCH_BYTES, read_bytes
from localoss.model.weights import Weights, address
from localoss.plan.sizes import kv_cache_bytes

_BANDWIDTH_BYTES = 1 << 30  # at most so much of the weights is read to measure it
_TOKENS_IN_TURN = 8  # between two readings: a shared machine's bandwidth changes within seconds
_PART_BYTES = 1536 << 10  # long enough to stream, short enough that threads end together
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Benchmark:
    """prefill: `prompt_tokens` tokens after `depth` others. decode: `gen_tokens` tokens after these.

    Speeds are the mean over repetitions, each of which is in *_runs_tokens_per_s.
    """

    prompt_tokens: int
    gen_tokens: int
    depth: int
    repetitions: int
    threads: int
    simd: str
    load_s: float
    touch_s: float  # to map every page of the weights: not in load_s, nor in any speed
    prefill_tokens_per_s: float
    prefill_runs_tokens_per_s: list[float]
    decode_tokens_per_s: float
    decode_runs_tokens_per_s: list[float]
    decode_bytes_per_token: int
    read_bandwidth_bytes_per_s: float  # the median of readings before, between and after groups of tokens
    bandwidth_share: float  # decode's bytes per second over the bandwidth beside it: the groups' median
    peak_rss_bytes: int
    anonymous_bytes: int | None  # not of files: Python, kernels, buffers, what the KV cache holds; at the end
    weights_bytes: int
    kv_dtype: str
    kv_cache_bytes: int
    scratch_bytes: int
    dtypes: dict[str, str]
    gpu: dict[str, Any] | None  # Engine.device_figures
    experts: dict[str, Any] | None  # Engine.expert_figures


def run_benchmark(
    engine: Engine, load_s: float, prompt_tokens: int, gen_tokens: int, depth: int = 0, repetitions: int = 1
) -> Benchmark:
    """Time a prompt of random tokens and `gen_tokens` greedy ones, `repetitions` times, each in a new
    sequence that holds `depth` tokens already. Needs a context of all these and one more."""
    random = np.random.default_rng(0)
    low, high = min(1000, engine.config.vocab // 2), min(2000, engine.config.vocab)
    prompt = random.integers(low, high, depth + prompt_tokens).tolist()
    touch_s = touch(engine.weights)
    read_bandwidth(engine.weights, engine.threads)  # compiles
    timings = [_time(engine, prompt, gen_tokens, depth) for _ in range(repetitions)]
    prefills = [prompt_tokens / timing.prefill_s for timing in timings]
    decodes = [gen_tokens / timing.decode_s for timing in timings]
    bandwidths = [rate for timing in timings for rate in timing.bandwidths]
    return Benchmark(
        prompt_tokens=prompt_tokens,
        gen_tokens=gen_tokens,
        depth=depth,
        repetitions=repetitions,
        threads=engine.threads,
        simd=isa.NAME,
        load_s=load_s,
        touch_s=touch_s,
        prefill_tokens_per_s=statistics.mean(prefills),
        prefill_runs_tokens_per_s=prefills,
        decode_tokens_per_s=statistics.mean(decodes),
        decode_runs_tokens_per_s=decodes,
        decode_bytes_per_token=decode_bytes(engine),
        read_bandwidth_bytes_per_s=statistics.median(bandwidths),
        bandwidth_share=statistics.median(share for timing in timings for share in timing.shares),
        peak_rss_bytes=peak_rss_bytes(),
        anonymous_bytes=anonymous_bytes(),
        weights_bytes=engine.weights.nbytes,
        kv_dtype=engine.kv_dtype,
        kv_cache_bytes=kv_cache_bytes(
            engine.config, engine.context_tokens, engine.chunk_tokens, engine.kv_dtype
        ),
        scratch_bytes=engine.model.buffers.nbytes,
        dtypes=vars(engine.dtypes),
        gpu=engine.device_figures(),
        experts=engine.expert_figures(),
    )


@dataclass(frozen=True)
class _Timing:
    """Of one repetition. shares: see Benchmark.bandwidth_share."""

    prefill_s: float
    decode_s: float
    bandwidths: list[float]
    shares: list[float]


def _time(engine: Engine, prompt: list[int], tokens: int, depth: int) -> _Timing:
    """Run `prompt` after its first `depth` tokens, and then `tokens` tokens: from the first, whose logits are
    prefill's, to one more."""
    sequence = engine.sequence()
    if depth:
        engine.prefill(sequence, prompt[:depth])
    start = time.perf_counter()
    engine.prefill(sequence, prompt)
    prefill_s = time.perf_counter() - start
    # generate runs the prompt's last token once more: before the first token, so in neither time
    made = engine.generate(prompt, tokens + 1, temperature=0, sequence=sequence, stop_ids=())
    next(made)
    decode_s, bandwidths, shares = 0.0, [read_bandwidth(engine.weights, engine.threads)], []
    for first in range(0, tokens, _TOKENS_IN_TURN):
        group = min(_TOKENS_IN_TURN, tokens - first)
        start = time.perf_counter()
        for _ in range(group):
            next(made)
        took_s = time.perf_counter() - start
        bandwidths.append(read_bandwidth(engine.weights, engine.threads))
        shares.append(group * decode_bytes(engine) / took_s / statistics.mean(bandwidths[-2:]))
        decode_s += took_s
    return _Timing(prefill_s, decode_s, bandwidths, shares)


def touch(weights: Weights) -> float:
    """Read a byte of every page of `weights`, so that no later reading waits for the file; the seconds."""
    start = time.perf_counter()
    for tensors in weights.tensors:
        for array in tensors.values():
            array.reshape(-1).view(np.uint8)[::_PAGE_BYTES].max()
    return time.perf_counter() - start


def decode_bytes(engine: Engine) -> int:
    """Bytes of weights that one decoded token reads."""
    weights, active = engine.weights, engine.config.active_experts
    per_layer = sum(m.nbytes for layer in weights.layers for m in (layer.qkv, layer.output, layer.router))
    experts_bytes = len(weights.layers) * active * weights.expert_bytes
    return per_layer + experts_bytes + weights.unembedding.nbytes


def read_bandwidth(weights: Weights, threads: int) -> float:
    """Bytes per second at which `threads` threads read experts' weights."""
    size = weights.expert_bytes
    addresses = np.concatenate([layer.expert_runs for layer in weights.layers])
    if weights.left_bytes:  # not all experts are in memory
        codes = weights.tensors[-1]["unembedding.codes"]
        size = min(size, codes.nbytes)
        addresses = address(codes) + np.arange(0, codes.nbytes - size + 1, size)
    addresses = addresses[: max(1, _BANDWIDTH_BYTES // size)]
    part = min(_PART_BYTES, size // 128 * 128)
    counter, scratch = np.zeros(1, np.int64), np.zeros(threads * SCRATCH_BYTES, np.uint8)
    kernels.use_threads(threads)
    start = time.perf_counter()
    read_bytes(addresses, size, part, address(scratch), threads, address(counter))
    return float(size // part * part * len(addresses) / (time.perf_counter() - start))


def anonymous_bytes() -> int | None:
    """The memory of this process that is not a file's; None where the system does not tell."""
    info = psutil.Process().memory_info()
    return info.rss - info.shared if hasattr(info, "shared") else None


def peak_rss_bytes() -> int:
    """The most memory that this process has occupied, pages of the model's files included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
