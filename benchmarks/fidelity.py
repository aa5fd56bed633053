"""What each number format costs on weights that are not Gaussian.

    python benchmarks/fidelity.py RECIPES --json now.json
    python benchmarks/fidelity.py RECIPES --table before.json now.json

RECIPES is a folder with a recipes.py, whose make(recipe, seed, tokens) gives a small checkpoint with one
pathology of trained weights, (config, tensors, tokens), and whose write(folder, config, tensors) writes it.
The reference is localoss itself with nothing rounded but what the checkpoint rounds: bf16 weights, float32
activations and KV cache, which tests/golden holds to transformers within 2e-5. Run it from a tree of another
commit for its figures; --table puts two side by side. --peer TOOLS PYTHON measures llama.cpp (Q8_0, MXFP4 bit
for bit) instead, and the defaults at the same positions: TOOLS has hf_to_gguf.py and peer_llamacpp.py, PYTHON
is that of a venv with xllamacpp and gguf.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import localoss
from quant.convert import convert
from quant.format.manifest import Dtypes

PEER_POSITIONS = 24
NAMES = ("a", "b:1e4", "c", "cn", "d:20", "dk:20", "e", "f", "g", "j", "all")
KEPT = Dtypes("bf16", "bf16", "bf16", "mxfp4")
# What is measured, with the formats of weights and how they are run.
WAYS = {
    "defaults": (Dtypes(), dict(kv_dtype="f16")),
    "unembedding int4": (Dtypes(unembedding="int4"), dict(kv_dtype="f16")),
    "attention int4": (Dtypes(attention="int4"), dict(kv_dtype="f16")),
    "KV cache int8": (Dtypes(), dict(kv_dtype="int8")),
}
# The cache alone (--caches); benchmarks/caches.py has forms of it that localoss has not.
CACHES = {form: (KEPT, dict(kv_dtype=form, activations="f32")) for form in ("f16", "int8")}


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


def measured(recipes, name, seed, tokens, ways):
    """By way, of one checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        config, tensors, ids = recipes.make(name, seed, tokens)
        folder = Path(scratch) / "checkpoint"
        recipes.write(folder, config, tensors)
        want = logits_of(folder, KEPT, ids, activations="f32", kv_dtype="f32")
        return {
            way: compared(want, logits_of(folder, dtypes, ids, **run)) for way, (dtypes, run) in ways.items()
        }


def beside_peer(recipes, name, seed, tokens, tools, python):
    """The defaults and llama.cpp, of one checkpoint, at positions as far from each other as can be."""
    places = np.linspace(0, tokens - 1, PEER_POSITIONS).astype(int)
    with tempfile.TemporaryDirectory() as scratch:
        config, tensors, ids = recipes.make(name, seed, tokens)
        folder, gguf, out = (Path(scratch) / part for part in ("checkpoint", "m.gguf", "out.npz"))
        recipes.write(folder, config, tensors)
        want = logits_of(folder, KEPT, ids, activations="f32", kv_dtype="f32")[places]
        ours = logits_of(folder, Dtypes(), ids, kv_dtype="f16")[places]
        subprocess.run([python, tools / "hf_to_gguf.py", folder, gguf], check=True, stdout=subprocess.DEVNULL)
        (Path(scratch) / "ids.json").write_text(json.dumps([int(one) for one in ids]))
        asked = [
            "--positions",
            ",".join(map(str, places)),
            "--vocabulary",
            str(want.shape[1]),
            "--threads",
            "1",
        ]
        command = [python, tools / "peer_llamacpp.py", gguf, "--tokens", f"{scratch}/ids.json", *asked]
        subprocess.run([*command, "--distribution", out], check=True, capture_output=True)
        theirs = np.load(out)["log_probabilities"]
    return {"defaults": compared(want, ours), "llama.cpp": compared(want, theirs)}


def table(before, now):
    """Means over the seeds: KL and the share of equal likeliest tokens, of two runs."""
    ways = list(next(iter(next(iter(now.values())).values())))
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
    parser.add_argument("--caches", action="store_true", help="round nothing but the KV cache")
    parser.add_argument("--peer", type=Path, nargs=2, metavar=("TOOLS", "PYTHON"), help="llama.cpp beside it")
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
            case = recipes, name, seed, options.tokens
            if options.peer:
                one = beside_peer(*case, *options.peer)
            else:
                one = measured(*case, CACHES if options.caches else WAYS)
            found.setdefault(name, {})[str(seed)] = one
            print(name, seed, {way: [round(x, 5) for x in pair] for way, pair in one.items()}, flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
