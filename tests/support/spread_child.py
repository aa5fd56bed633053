"""On a host of support/hosts.py: a model over all of them beside the same on this one alone.

python spread_child.py MODEL TOKENS TURNS: writes what came to spread.json, and each token's number to
spread.progress, so that a host can be killed in the middle of an answer.
"""

import contextlib
import json
import socket
import sys
import time
from pathlib import Path

import numpy as np

import localoss
from localoss.cluster.remote_layers import PartRows
from localoss.cluster.spread import load_spread
from localoss.options import Listener, LoadOptions, SamplingParams

_TURNS = 60


def main(model: str, tokens: int, turns: int) -> None:
    notices: list[str] = []
    options = LoadOptions(context_tokens=1024, threads=1, slots=1)
    began = time.perf_counter()
    folder, engine = load_spread(model, LoadOptions(**vars(options) | {"ray": "auto", "spread": True}),
                                 Listener(notice=notices.append))  # fmt: skip
    load_s = time.perf_counter() - began
    (stack,) = engine.model.stacks
    whole = localoss.load(folder, options)
    random = np.random.default_rng(7)
    prompt = random.integers(1000, engine.config.vocab // 2, 300).tolist()
    found: dict = {"load_s": load_s, "layers": stack.figures()["machines"], "hop_s": {}}
    found["hop_s"] = _hops(engine, whole, prompt)
    found["same_logits"] = bool(np.array_equal(engine.logits(prompt), whole.logits(prompt)))
    text: list[list[int]] = [[], []]
    times: list[list[float]] = [[], []]
    for number, one in enumerate((engine, whole)):
        conversation, sequence = prompt[:40], one.sequence()
        for turn in range(turns):
            conversation = [*conversation, *prompt[50 * (turn + 1) : 50 * (turn + 1) + 20]]
            params = SamplingParams(temperature=0, stop_ids=(), max_tokens=tokens)
            last = time.perf_counter()
            for token in one.generate(conversation, params, sequence=sequence):
                text[number].append(token.id)
                times[number].append(time.perf_counter() - last)
                last = time.perf_counter()
                conversation = [*conversation, token.id]
                if not number:
                    Path("spread.progress").write_text(str(len(text[0])))
    found |= {"same_text": text[0] == text[1], "tokens": len(text[0]), "notices": notices}
    first = len(text[0]) // turns  # the first turn's, all machines were there
    found["token_s"], found["alone_s"] = (float(np.quantile(one[1:first], 0.1)) for one in times)
    found["longest_s"] = max(times[0])
    found["machines_after"] = list((engine.device_figures() or {"machines": {}})["machines"])
    Path("spread.json").write_text(json.dumps(found))


def _hops(engine, whole, prompt) -> dict:
    """What calls cost that compute nothing, by machine: with a token's residual stream of gpt-oss and with a
    chunk's, which also goes through all machines; and the network alone. And tokens over all machines and on
    one, in turns with these: what else runs here slows down all.
    """
    stack = engine.model.stacks[0]
    params = SamplingParams(temperature=0, stop_ids=(), max_tokens=_TURNS + 1)
    answers = {name: one.generate(prompt[:40], params) for name, one in (("all", engine), ("one", whole))}
    times: dict[str, list[float]] = {}

    def timed(name: str, work) -> None:
        began = time.perf_counter()
        work()
        times.setdefault(name, []).append(time.perf_counter() - began)

    def echo(tokens: int, *parts) -> None:
        x, angles = np.zeros((tokens, 2880), np.float32), np.zeros((tokens, 32), np.float32)
        for part in parts:
            x = part.link.call("echo", x, [PartRows(0, tokens, 0, angles, angles)])
        parts[-1].link.result(x)

    def refused(name: str) -> None:
        """A connection that is refused takes the network's latency twice."""
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((name, 9), 5).close()

    for answer in answers.values():
        next(answer)
    for _ in range(_TURNS):
        for name, answer in answers.items():
            timed(name, lambda answer=answer: next(answer))
        for part in stack.parts:
            for tokens in (1, 128):
                timed(f"{part.link.name} {tokens}", lambda part=part, n=tokens: echo(n, part))
            timed(f"{part.link.name} network", lambda part=part: refused(part.link.name))
        timed("chunk", lambda: echo(128, *stack.parts))
    return {name: float(np.median(each)) for name, each in times.items()}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
