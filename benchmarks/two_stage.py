#!/usr/bin/env python3
"""Could a greedy token read half of the unembedding? How many rows its upper 4 bits would leave to read.

    python benchmarks/two_stage.py MODEL [--text FILE] [--tokens 64]

An int8 weight is 16 * u + l, u and l of 4 bits each. Reading only u of all rows gives their logits but for
l's part, which in each block is at most |l| |x| (Cauchy and Schwarz) times the scales. A row may win if its
logit plus its bound reaches the best logit minus that one's bound: its l must be read, too. Prints medians
over the last half of the text: the share of rows left, and how large the bounds are beside the logits.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

import localoss
from localoss.chat.harmony import encode_text
from quant.format.tiles import from_tiles, scales_from_tiles

ROOT = Path(__file__).resolve().parent.parent
GROUPS_AT_ONCE = 2048  # of 8 rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=ROOT / "README.md")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    tokens = encode_text(args.text.read_text("utf-8"))[: args.tokens]
    engine = localoss.load(args.model, context_tokens=len(tokens))
    if engine.dtypes.unembedding != "int8":
        raise SystemExit(f"its unembedding is {engine.dtypes.unembedding}; give a model with an int8 one")
    vocabulary = engine.weights.tensors[-1]
    codes, scales = vocabulary["unembedding.codes"], vocabulary["unembedding.scales"]
    x = np.array(engine._run(engine.sequence(), tokens), np.float32)[len(tokens) // 2 :]
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True) + engine.config.rms_norm_eps)
    x = (x * vocabulary["final_norm"]).reshape(len(x), -1, 32)
    logits, bounds = [], []
    for first in range(0, len(codes), GROUPS_AT_ONCE):
        w = from_tiles(codes[first : first + GROUPS_AT_ONCE], "int8").astype(np.float32)
        s = scales_from_tiles(scales[first : first + GROUPS_AT_ONCE]).view(np.float16).astype(np.float32)
        w = w.reshape(len(w), -1, 32)
        upper = np.clip(np.round(w / 16), -8, 7)
        logits.append(np.einsum("tbi,rbi,rb->tr", x, 16 * upper, s, optimize=True))
        lower = np.linalg.norm(w - 16 * upper, axis=2) * s
        bounds.append(np.linalg.norm(x, axis=2) @ lower.T)
    upper_logits, bound = np.concatenate(logits, axis=1), np.concatenate(bounds, axis=1)
    best = (upper_logits - bound).max(axis=1, keepdims=True)
    left = ((upper_logits + bound) >= best).mean(axis=1)
    spread = upper_logits.std(axis=1)
    above = (upper_logits.max(axis=1) - upper_logits.mean(axis=1)) / spread
    print(f"rows left: {statistics.median(left):.1%}")
    print(f"bound over the logits' spread: {statistics.median(bound.mean(axis=1) / spread):.2f}")
    print(f"best logit over the mean one, in spreads: {statistics.median(above):.1f}")


if __name__ == "__main__":
    main()
