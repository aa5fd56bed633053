#!/usr/bin/env python3
"""What --lookup gains where an answer copies, and loses where it doesn't: with it and without, in turns.

    python benchmarks/lookup.py MODEL [--edit OLD NEW] [--tokens 400] [--pairs 3]

The answer is forced, so any weights will do, random ones too: the prompt is the text of OLD and the answer
that of NEW, a later version of the same file, by default of a file in this repository's history. A second
answer has nothing to do with the prompt. How often guesses come true is decided by the texts, what a pass
over several tokens costs by the model. With random weights the tokens of a pass choose experts as unlike as
can be; a real model's may share more. Prints a table: medians and their ratio.
"""

import argparse
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

import localoss
from localoss.chat.harmony import encode_text

ROOT = Path(__file__).resolve().parent.parent
EDITED, OLD, NEW = "localoss/kernels/attention.py", "5f230dd", "a96648c"
OTHER = "README.md"


class Forced:
    """A mask for Engine.generate that allows one token at a time: those of `answer`."""

    def __init__(self, vocab: int, answer: list[int]):
        self._mask, self._left, self._allowed = np.zeros(vocab, np.uint8), iter(answer), 0

    def __call__(self) -> Any:
        self._mask[self._allowed] = 0
        self._allowed = next(self._left)
        self._mask[self._allowed] = 1
        return self._mask


class Passes:
    """Counts the passes of a model, and the tokens in them."""

    def __init__(self, model: Any):
        self._forward, self.count, self.tokens = model.forward, 0, 0
        model.forward = self

    def __call__(self, chunks: Any, *more: Any) -> Any:
        self.count += 1
        self.tokens += sum(len(chunk.tokens) for chunk in chunks)
        return self._forward(chunks, *more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--edit", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    old, new = [path.read_text("utf-8") for path in args.edit] if args.edit else map(version, (OLD, NEW))
    prompt = encode_text(old)
    engine = localoss.load(args.model, context_tokens=len(prompt) + args.tokens + 1, threads=args.threads)
    passes = Passes(engine.model)
    print("| answer | tokens | passes | guessed | right | without, s | with, s | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for name, text in (("an edit", new), ("another text", (ROOT / OTHER).read_text("utf-8"))):
        answer = encode_text(text)[: args.tokens]
        times: dict[bool, list[float]] = {False: [], True: []}
        sequence = engine.sequence()
        for engine.lookup in [False, True] * args.pairs:
            made = engine.generate(prompt, mask=Forced(engine.config.vocab, answer), sequence=sequence)
            next(made)
            before, start = (passes.count, passes.tokens), time.perf_counter()
            for _ in range(len(answer) - 1):
                next(made)
            times[engine.lookup].append(time.perf_counter() - start)
        count, run = passes.count - before[0], passes.tokens - before[1]
        without, with_it = (statistics.median(times[lookup]) for lookup in (False, True))
        gain = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
        right = len(answer) - 1 - count
        print(f"| {name} | {len(answer) - 1} | {count} | {run - count} | {right} ", end="")
        print(f"| {without:.1f} | {with_it:.1f} | {gain:.2f} |", flush=True)


def version(commit: str) -> str:
    """The edited file's text at a commit."""
    command = ["git", "-C", str(ROOT), "show", f"{commit}:{EDITED}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no {commit} in a git history here; give two files with --edit")
    return done.stdout


if __name__ == "__main__":
    main()
