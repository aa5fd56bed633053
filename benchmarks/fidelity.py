"""What each number format costs on weights that are not Gaussian.

    python benchmarks/fidelity.py RECIPES --json now.json
    python benchmarks/fidelity.py RECIPES --table before.json now.json

RECIPES is a folder with a recipes.py, whose make(recipe, seed, tokens) gives a small checkpoint with one
pathology of trained weights, (config, tensors, tokens), and whose write(folder, config, tensors) writes it.
The reference is localoss itself with nothing rounded but what the checkpoint rounds: bf16 weights, float32
activations and KV cache, which tests/golden holds to transformers within 2e-5. Run it from a tree of another
commit for its figures; --table puts two side by side.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import localoss
from quant.convert import convert
from quant.format.manifest import Dtypes

NAMES = ("a", "b:1e4", "c", "cn", "d:20", "dk:20", "e", "f", "g", "j", "all")
KEPT = Dtypes("bf16", "bf16", "bf16", "mxfp4")
# What is measured, with the formats of weights and the KV cache.
WAYS = {
    "defaults": (Dtypes(), "f16"),
    "unembedding int4": (Dtypes(unembedding="int4"), "f16"),
    "attention int4": (Dtypes(attention="int4"), "f16"),
    "KV cache int8": (Dtypes(), "int8"),
}


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def compared(want, got):
    """Mean KL divergence in nats, and how often the likeliest token is the same."""
    one, other = log_softmax(want), log_softmax(got)
    kl = (np.exp(one) * (one - other)).sum(axis=-1).mean()
    return [float(kl), float((want.argmax(axis=-1) == got.argmax(axis=-1)).mean())]


def logits_of(checkpoint, dtypes, tokens, **options):
    out = checkpoint.parent / "model"
    convert(checkpoint, out, dtypes)
    logits = localoss.load(out, context_tokens=len(tokens), threads=1, **options).logits(tokens)
    shutil.rmtree(out)
    return logits


def measured(recipes, name, seed, tokens):
    """By way, of one checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        config, tensors, ids = recipes.make(name, seed, tokens)
        folder = Path(scratch) / "checkpoint"
        recipes.write(folder, config, tensors)
        want = logits_of(folder, KEPT, ids, activations="f32", kv_dtype="f32")
        return {
            way: compared(want, logits_of(folder, dtypes, ids, kv_dtype=cache))
            for way, (dtypes, cache) in WAYS.items()
        }


def table(before, now):
    """Means over the seeds: KL and the share of equal likeliest tokens, of two runs."""
    ways = list(WAYS)
    lines = [f"| | {' | '.join(ways)} |", f"|---|{'---|' * len(ways)}"]
    for name in now:
        cells = []
        for way in ways:
            each = [np.mean([seed[way] for seed in run[name].values()], axis=0) for run in (before, now)]
            kl = " → ".join(dict.fromkeys(f"{one[0]:.2g}" for one in each))
            cells.append(f"{kl}, {each[1][1]:.0%}".replace("%", " %"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", type=Path, help="folder with recipes.py")
    parser.add_argument("--names", nargs="+", default=NAMES, help="recipes, with :ARG")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--table", type=Path, nargs=2, help="print a table of two runs' figures")
    options = parser.parse_args()
    if options.table:
        print(table(*(json.loads(path.read_text()) for path in options.table)))
        return
    sys.path.insert(0, str(options.recipes))
    import recipes

    found = {}
    for name in options.names:
        for seed in options.seeds:
            one = measured(recipes, name, seed, options.tokens)
            found.setdefault(name, {})[str(seed)] = one
            print(name, seed, {way: [round(x, 5) for x in pair] for way, pair in one.items()}, flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
