#!/usr/bin/env python3
"""What a long context costs: decode and prefill after it and without it, in turns in one process.

    python benchmarks/deep.py MODEL --deep 4096

Decodes a group of tokens after --deep others, one after --short, and so on: a shared machine's memory is
faster one minute than the next. Before that the last --prompt tokens of the long prompt are timed beside the
first --prompt of another. Prints one line of JSON: medians, and ratios as the medians of neighbours.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import localoss

_GROUP = 8  # tokens before the other conversation's turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--short", type=int, default=32)
    parser.add_argument("--deep", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.gen < _GROUP:
        parser.error(f"--gen is {args.gen}; use {_GROUP} or more")
    room = args.deep + args.gen + _GROUP
    engine = localoss.load(args.model, context_tokens=room, slots=2, threads=args.threads)
    from localoss.measure.bench import touch

    touch(engine.weights)
    random = np.random.default_rng(0)
    tokens = random.integers(1000, 2000, args.deep).tolist()
    long, short = engine.sequence(), engine.sequence()

    def prefill(sequence: Any, count: int) -> Callable[[], Any]:
        return lambda: engine.prefill(sequence, tokens[:count])

    firsts, before = [seconds(prefill(short, args.prompt))], args.deep - args.prompt
    prefill(long, before)()
    last = seconds(prefill(long, args.deep))
    short.reuse([])
    firsts.append(seconds(prefill(short, args.prompt)))
    firsts = [args.prompt / took for took in firsts]
    both = [decode(engine, sequence, tokens[:n]) for sequence, n in ((long, args.deep), (short, args.short))]
    for made in both:
        next(made)  # its logits are prefill's
    groups: tuple[list[float], list[float]] = [], []
    for _ in range(args.gen // _GROUP):
        for made, times in zip(both, groups, strict=True):
            times.append(seconds(functools.partial(take, made)))
    report = {
        "prefill_tokens_per_s": args.prompt / last,
        "first_prefill_tokens_per_s": statistics.mean(firsts),
        "prefill_ratio": args.prompt / last / statistics.mean(firsts),
        "decode_tokens_per_s": _GROUP / statistics.median(groups[0]),
        "short_decode_tokens_per_s": _GROUP / statistics.median(groups[1]),
        "decode_ratio": statistics.median(near / far for far, near in zip(*groups, strict=True)),
    }
    print(json.dumps(report))


def decode(engine: Any, sequence: Any, tokens: list[int]) -> Iterator[Any]:
    return engine.generate(tokens, temperature=0, sequence=sequence, stop_ids=())


def take(made: Iterator[Any]) -> None:
    for _ in range(_GROUP):
        next(made)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
