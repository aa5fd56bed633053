#!/usr/bin/env python3
"""The kernels by themselves, on sizes of gpt-oss: how near they come to what memory and cores can do.

    python benchmarks/kernels.py [--simd vnni,avx2] [--seconds 0.3] [--json]

Products of every format at 1, 4, 16 and 64 tokens, on one thread and on all, for each instruction set of this
machine, beside two limits measured in the same process: the bandwidth of a plain read loop over as much
memory, and the multiply-adds of the same kernel over a panel of weights that stays in the caches. Then
attention and the sampler. Weights are random, in copies that take turns and together are larger than the
caches. Values are medians, limits the best of their passes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

ROWS, COLUMNS = 5760, 2880  # an expert's gate and up
TOKENS = (1, 4, 16, 64)
COPIES_BYTES = 512 << 20  # of weights or keys and values that take turns, and that the read loop reads
HEADS, KV_HEADS, HEAD_DIM, POSITION, WINDOW = 64, 8, 64, 4096, 128
PROMPT = 512
VOCAB = 201_088
PART_BYTES = 96 << 10


@dataclass(frozen=True)
class Result:
    """What a kernel reached. share: of the limit that binds it, 0 where none was measured."""

    simd: str
    what: str
    tokens: int
    threads: int
    ms: float
    gb_per_s: float = 0.0
    g_multiply_adds_per_s: float = 0.0
    share: float = 0.0


class Bench:
    """Times kernels in this process, on one instruction set."""

    def __init__(self, seconds: float, most_threads: int):
        from localoss.kernels import isa, use_threads

        self.seconds, self.simd, self._use_threads = seconds, isa.NAME, use_threads
        self.threads = sorted({1, most_threads})
        self.random = np.random.default_rng(0)
        self.results: list[Result] = []
        self._memory = self.random.integers(0, 256, COPIES_BYTES, np.uint8)
        self._memory[self._memory == 128] = 0  # int8 weights keep within ±127

    def time(self, calls: Sequence[Callable[[], Any]], threads: int) -> tuple[float, float]:
        """Seconds per call: `calls` in turns, the median and the best of as many as fit into the time."""
        self._use_threads(threads)
        calls[0]()  # compiles
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 3 or time.perf_counter() < end:
            call = calls[len(times) % len(calls)]
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times), min(times)

    def add(self, what: str, tokens: int, threads: int, seconds: float, **reached: float) -> Result:
        result = Result(self.simd, what, tokens, threads, 1000 * seconds, **reached)
        self.results.append(result)
        return result

    def read_loop(self) -> dict[int, float]:
        """The read bandwidth in bytes per second, by number of threads."""
        from localoss.kernels.bandwidth import SCRATCH_BYTES, read_bytes
        from localoss.model.weights import address

        memory = self._memory
        scratch, counter = np.zeros(64 * SCRATCH_BYTES, np.uint8), np.zeros(1, np.int64)
        starts, rates = np.array([address(memory)], np.int64), {}
        for threads in self.threads:
            places = (address(scratch), threads, address(counter))
            read = partial(read_bytes, starts, len(memory), PART_BYTES, *places)
            _, seconds = self.time([read], threads)
            rates[threads] = len(memory) // PART_BYTES * PART_BYTES / seconds
            self.add("read loop", 0, threads, seconds, gb_per_s=rates[threads] / 1e9, share=1.0)
        return rates

    def products(self, dtype: str, bandwidth: dict[int, float]) -> None:
        """W @ x for a matrix of `dtype`; the limit is memory's for what reads faster than it computes."""
        for threads in self.threads:
            (_, best), _ = self._product(dtype, 64 * threads, TOKENS[-1], threads)
            macs = self._rate(64 * threads, TOKENS[-1], best)
            self.add(f"{dtype} in cache", TOKENS[-1], threads, best, g_multiply_adds_per_s=macs, share=1.0)
            for tokens in TOKENS:
                (seconds, _), nbytes = self._product(dtype, ROWS, tokens, threads)
                reached, here = nbytes / seconds, self._rate(ROWS, tokens, seconds)
                share = max(reached / bandwidth[threads], here / macs)
                speeds = {"gb_per_s": reached / 1e9, "g_multiply_adds_per_s": here, "share": share}
                self.add(dtype, tokens, threads, seconds, **speeds)

    def _rate(self, rows: int, tokens: int, seconds: float) -> float:
        return rows * COLUMNS * tokens / seconds / 1e9

    def _product(self, dtype: str, rows: int, tokens: int, threads: int) -> tuple[tuple[float, float], int]:
        """What `time` gives for a product with `rows` rows, and the bytes of its weights.

        The full matrix comes in copies that take turns, a smaller one stays the same."""
        from localoss.kernels.layer import ROUTINES
        from localoss.kernels.matmul import PANELS, matmul
        from localoss.kernels.products import KINDS
        from localoss.model.weights import address
        from localoss.plan.sizes import SCRATCH_BYTES
        from quant.format.layout import scale_bytes, tile_bytes

        codes_bytes, scales_bytes = tile_bytes(rows * COLUMNS, dtype), scale_bytes(rows * COLUMNS, dtype)
        copies = COPIES_BYTES // codes_bytes if rows == ROWS else 1
        codes, scales = address(self._memory), np.full((copies, scales_bytes), 120, np.uint8)  # finite
        blocks, groups = COLUMNS // 32, rows // 8
        x = self.random.integers(-127, 128, (blocks, tokens, 32)).astype(np.int8)
        x_scales, out = np.full((blocks, tokens), 0.01, np.float32), np.empty((tokens, rows), np.float32)
        scratch, counter = np.empty(threads * SCRATCH_BYTES, np.uint8), np.zeros(1, np.int64)
        inputs = (False, address(x), address(x_scales))
        workers = (threads, address(scratch), address(counter), PANELS.address)
        at = ROUTINES["share"].address, ROUTINES["multiply"].address

        def call(copy: int) -> None:
            place = codes + copy * codes_bytes
            tiles = (KINDS[dtype], place, address(scales[copy]), 0, groups, blocks)
            matmul(address(out), tiles, inputs, tokens, False, workers, at)

        calls = [partial(call, copy) for copy in range(copies)]
        return self.time(calls, threads), codes_bytes + scales_bytes

    def attention(self, bandwidth: dict[int, float]) -> None:
        """A token after 4,096 others, and the 512 tokens before position 4,096, in a full and in a sliding
        layer."""
        for threads in self.threads:
            for name, tokens, window in [
                ("attention, decode", 1, 0),
                ("attention, prefill", PROMPT, 0),
                ("sliding attention, prefill", PROMPT, WINDOW),
            ]:
                self._attention(name, tokens, window, threads, bandwidth)

    def _attention(
        self, name: str, tokens: int, window: int, threads: int, bandwidth: dict[int, float]
    ) -> None:
        from localoss.kernels.attention import attention, routines
        from localoss.model.weights import address
        from localoss.plan.sizes import KEY_LANES, attention_scratch_floats

        nbytes = 2 * KV_HEADS * HEAD_DIM * 2 * POSITION
        copies = -(-COPIES_BYTES // nbytes) if tokens == 1 else 2
        shape = (KV_HEADS, POSITION // KEY_LANES, HEAD_DIM, KEY_LANES)
        cached = self.random.standard_normal((2, *shape)).astype(np.float16).view(np.uint16)
        values = cached[1].reshape(KV_HEADS, POSITION, HEAD_DIM)
        uncoded = [
            np.zeros((KV_HEADS, 0, *rest), np.uint8) for rest in ((1, KEY_LANES), (1, KEY_LANES), (1,))
        ]
        caches = [(cached[0].copy(), values.copy(), *uncoded) for _ in range(copies)]
        half = HEAD_DIM // 2
        shapes = (KV_HEADS, HEAD_DIM), (1, 2, half), (2, half, 64)
        offsets = tuple(np.zeros(shape, np.float32) for shape in shapes)
        width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        qkv = self.random.standard_normal((tokens, width)).astype(np.float32)
        out, sinks = np.empty((HEADS * HEAD_DIM // 32, tokens, 32), np.float32), np.zeros(HEADS, np.float32)
        floats = attention_scratch_floats(HEADS // KV_HEADS, HEAD_DIM)
        scratch, counter = np.empty((threads, floats), np.float32), np.zeros(1, np.int64)
        first, (shared, _, attending, block) = POSITION - tokens, routines("f16")

        def call(copy: int) -> None:
            own = out, 0, qkv, caches[copy], offsets, sinks, first, window, scratch, address(counter)
            attention(*own, (shared, attending, block))

        seconds, _ = self.time([partial(call, copy) for copy in range(copies)], threads)
        seen = sum(min(first + t + 1, window or POSITION) for t in range(tokens))
        macs = 2 * HEADS * HEAD_DIM * seen / seconds / 1e9
        if tokens == 1:
            reached = nbytes / seconds
            speeds = {"gb_per_s": reached / 1e9, "share": reached / bandwidth[threads]}
        else:
            speeds = {}
        self.add(name, tokens, threads, seconds, g_multiply_adds_per_s=macs, **speeds)

    def sampler(self) -> None:
        """One token of the whole vocabulary, on the calling thread."""
        from localoss.engine.sampler import Sampler
        from localoss.options import SamplingParams

        sampler, random = Sampler(VOCAB), np.random.default_rng(0)
        logits = [2 * random.standard_normal(VOCAB).astype(np.float32) for _ in range(8)]
        for name, options in [
            ("greedy", SamplingParams(temperature=0)),
            ("temperature 1", SamplingParams()),
            ("top-p 0.9", SamplingParams(top_p=0.9)),
            ("top-k 50", SamplingParams(top_k=50)),
        ]:
            calls = [partial(sampler.choose, row, options, random) for row in logits]
            self.add(f"sampler, {name}", 1, 1, self.time(calls, 1)[0])


def measure(seconds: float, threads: int | None) -> list[Result]:
    """All results on the instruction set of this process."""

    from localoss.engine.loader import usable_threads

    bench = Bench(seconds, usable_threads(threads))
    bandwidth = bench.read_loop()
    for dtype in ("mxfp4", "int8", "int4"):
        bench.products(dtype, bandwidth)
    bench.attention(bandwidth)
    bench.sampler()
    return bench.results


def print_table(results: list[Result]) -> None:
    print("| simd | what | tokens | threads | ms | GB/s | G multiply-adds/s | of the limit |")
    print("|---|---|---|---|---|---|---|---|")
    for r in results:
        read = f"{r.gb_per_s:.1f}" if r.gb_per_s else ""
        macs = f"{r.g_multiply_adds_per_s:.0f}" if r.g_multiply_adds_per_s else ""
        share, tokens = f"{r.share:.0%}" if r.share else "", r.tokens or ""
        print(f"| {r.simd} | {r.what} | {tokens} | {r.threads} | {r.ms:.3f} | {read} | {macs} | {share} |")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--simd", help="instruction sets, comma-separated (default: all that this machine has)"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="for each measurement")
    parser.add_argument("--threads", type=int, help="the most (default: one per core)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    if args.here:
        print(json.dumps([asdict(result) for result in measure(args.seconds, args.threads)]))
        return 0
    from localoss.kernels import isa

    results: list[Result] = []
    for simd in args.simd.split(",") if args.simd else isa.available():
        command = [sys.executable, __file__, "--here", "--seconds", str(args.seconds)]
        command += ["--threads", str(args.threads)] if args.threads else []
        done = subprocess.run(command, env=os.environ | {"LOCALOSS_SIMD": simd}, stdout=subprocess.PIPE)
        if done.returncode:
            return done.returncode
        results += [Result(**fields) for fields in json.loads(done.stdout)]
    if args.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
