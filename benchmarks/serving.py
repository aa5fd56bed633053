#!/usr/bin/env python3
"""What serving costs: a JSON schema's share of decoding, and how soon a busy server answers and lets go.

    python benchmarks/serving.py MODEL [--tokens 64] [--pairs 5]

Decodes in turns with and without a JSON schema that the answer is held to, in one process. Then starts
`localoss serve MODEL` and asks for /health while a long prompt is prefilled, and measures from a client's
leaving, in prefill and in decode, to the moment that nothing runs any more. Medians; give a model whose
answers don't end early, such as one with random weights.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import httpx2

import localoss
from localoss.chat import harmony
from localoss.chat.generate import generate
from localoss.chat.grammar import Grammar
from localoss.chat.rules import AnswerRules
from localoss.chat.turn import Turn
from localoss.options import SamplingParams

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "notes": {"type": "array", "items": {"type": "string"}}},
        "required": ["name", "notes"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    args = parser.parse_args()
    free, held = decode_ms(args.model, args.tokens, args.pairs)
    cost = statistics.median(h / f for f, h in zip(free, held, strict=True)) - 1
    print(f"decode, ms a token: free {listed(free)}; held to a JSON schema {listed(held)}: {cost:+.1%}")
    with served(args.model) as url:
        waits = health_s(url, args.prompt_tokens)
        print(f"/health while {args.prompt_tokens:,} tokens are prefilled: {len(waits)} answers, ", end="")
        print(f"median {statistics.median(waits) * 1e3:.0f} ms, slowest {max(waits) * 1e3:.0f} ms")
        for what, prompt_tokens in (("prefill", args.prompt_tokens), ("decode", 10)):
            gone = [let_go_s(url, prompt_tokens, number) for number in range(args.pairs)]
            print(f"a client leaves in {what}: nothing runs after, s: {listed(gone, 2)}")


def listed(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{v:.{digits}f}' for v in values)})"


def decode_ms(model: str, tokens: int, pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds a token, of each run without and with a schema; a first pair isn't counted."""
    engine = localoss.load(model, context_tokens=2048)
    setup = harmony.ChatSetup()
    prompt = harmony.render(setup, [harmony.Message("user", "Name things.")])
    rules = [AnswerRules(), AnswerRules(preambles=False, final=Grammar(SCHEMA))]
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs + 1):
        for its_rules, its_times in zip(rules, times, strict=True):
            params = SamplingParams(seed=pair, max_tokens=tokens)
            turn = Turn(prompt, setup, params, replace(its_rules, think_budget=0))
            for _ in generate(engine, turn, engine.sequence()):
                pass
            if pair:
                its_times.append(1e3 / turn.decode_tokens_per_s)
    return times


@contextmanager
def served(model: str):
    command = [sys.executable, "-m", "localoss", "serve", model, "--port", "0", "--context", "8192"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while "http://" not in (line := process.stderr.readline()):
            if process.poll() is not None:
                sys.exit(line)
        yield line.split(" · ")[1].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()


def ask(url: str, prompt_tokens: int, number: int, timeout: float) -> None:
    """Ask for a long answer, and leave after `timeout` seconds."""
    name = httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
    text = f"{number} " + "and so on " * (prompt_tokens // 3)
    body = {"model": name, "messages": [{"role": "user", "content": text}], "seed": number}
    with suppress(httpx2.TimeoutException):
        httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=timeout)


def runs(url: str) -> bool:
    return "localoss_requests_running 1.0" in httpx2.get(f"{url}/metrics", timeout=60).text


def health_s(url: str, prompt_tokens: int) -> list[float]:
    """How long /health took, each time that it was asked within two seconds of prefill."""
    asking = threading.Thread(target=ask, args=[url, prompt_tokens, 99, 3.0])
    asking.start()
    while not runs(url):
        pass
    waits: list[float] = []
    end = time.monotonic() + 2
    while time.monotonic() < end:
        started = time.monotonic()
        httpx2.get(f"{url}/health", timeout=60)
        waits.append(time.monotonic() - started)
    asking.join()
    return waits


def let_go_s(url: str, prompt_tokens: int, number: int) -> float:
    while runs(url):
        time.sleep(0.01)
    ask(url, prompt_tokens, number, 2.0)
    left = time.monotonic()
    while runs(url):
        pass
    return time.monotonic() - left


if __name__ == "__main__":
    main()
