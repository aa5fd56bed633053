#!/usr/bin/env python3
"""A busy server: requests that come at random, with short and long prompts, and how long each takes.

    python benchmarks/load.py URL MODEL [--per-s 0.5] [--seconds 60] [--long 0.2] [--tokens 64]

Arrivals are a Poisson process of --per-s requests a second, from --clients clients in turn; a share --long of
them has a prompt of about --long-tokens tokens. Gives tokens per second in all, and p50, p95 and p99 of the
time to the first token (of short and of long prompts) and of the time between tokens. URL is a server's that
speaks OpenAI's chat completions, ours or another's.
"""

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx2
import numpy as np

WORDS = [
    "river",
    "stone",
    "light",
    "winter",
    "bread",
    "seven",
    "honest",
    "window",
    "slowly",
    "garden",
    "number",
    "under",
    "paper",
    "blue",
    "morning",
]


@dataclass
class Seen:
    """What one request met. gaps_s: between its tokens."""

    is_long: bool
    first_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    fault: str | None = None


async def ask(
    client: httpx2.AsyncClient, args: argparse.Namespace, chance: random.Random, number: int
) -> Seen:
    seen = Seen(chance.random() < args.long)
    words = args.long_tokens if seen.is_long else chance.randrange(8, 40)
    content = " ".join(chance.choice(WORDS) for _ in range(words))
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": args.tokens,
        "stream": True,
        "user": f"client {number % args.clients}",
        "seed": number,
    }
    began = before = time.perf_counter()
    try:
        async with client.stream("POST", f"{args.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                seen.fault = f"status {answer.status_code}"
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                choices = json.loads(line[6:]).get("choices") or [{}]
                delta = choices[0].get("delta", {})
                if not any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls")):
                    continue
                now = time.perf_counter()
                if seen.first_s is None:
                    seen.first_s = now - began
                else:
                    seen.gaps_s.append(now - before)
                seen.tokens, before = seen.tokens + 1, now
    except httpx2.HTTPError as error:
        seen.fault = f"{type(error).__name__}: {error}"
    return seen


async def load(args: argparse.Namespace) -> tuple[list[Seen], float]:
    chance, tasks, began = random.Random(args.seed), [], time.perf_counter()
    async with httpx2.AsyncClient(timeout=None, limits=httpx2.Limits(max_connections=None)) as client:
        while time.perf_counter() - began < args.seconds:
            tasks.append(asyncio.create_task(ask(client, args, random.Random(len(tasks)), len(tasks))))
            await asyncio.sleep(chance.expovariate(args.per_s))
        found = await asyncio.gather(*tasks)
    return found, time.perf_counter() - began


def told(name: str, values: list[float]) -> str:
    if not values:
        return f"{name:<28}none"
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return f"{name:<28}p50 {p50:8.3f}   p95 {p95:8.3f}   p99 {p99:8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--per-s", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--long", type=float, default=0.2)
    parser.add_argument("--long-tokens", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.url = args.url.rstrip("/").removesuffix("/v1")
    found, seconds = asyncio.run(load(args))
    tokens = sum(one.tokens for one in found)
    faults = [one.fault for one in found if one.fault]
    print(
        f"{len(found)} requests in {seconds:.1f} s, {len(faults)} failed; "
        f"{tokens / seconds:.2f} tokens/s in all"
    )
    for is_long, name in ((False, "first token, short prompts"), (True, "first token, long prompts")):
        print(
            told(name, [one.first_s for one in found if one.is_long == is_long and one.first_s is not None])
        )
    print(told("between tokens", [gap for one in found for gap in one.gaps_s]), "seconds")
    for fault in sorted(set(faults)):
        print(fault)


if __name__ == "__main__":
    main()
