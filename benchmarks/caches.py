"""What rounding of keys and values alone costs, in forms of a cache that exist and in forms that don't.

    python benchmarks/caches.py RECIPES --names d:20 dk:20 --forms f16 k10v8 k9v9

RECIPES is a folder with recipes.py, as fidelity.py says. All else is float64: tests/support/naive.py runs the
checkpoint, and keys and values are rounded before attention reads them. A form is f16, or kNvM: codes of N
bits for keys and M for values (f: not rounded), a byte of scale for each 16 numbers, keys without their
turned bias. What may follow: b, values without their bias, too; h, values turned by a Hadamard matrix before
they are rounded; /32, a scale for 32 numbers. k10v8 is localoss's int8.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fidelity import compared
from support import naive

from quant.format.safetensors import read_header

FORM = re.compile(r"k(\d+|f)v(\d+|f)(b?)(h?)(?:/(\d+))?")


def coded(numbers, bits, group):
    """`numbers` (T, K, d) as codes of `bits` and scales of 3 bits of mantissa, rounded up, hold them."""
    if bits == "f":
        return numbers
    steps = 2 ** (int(bits) - 1) - 1
    groups = numbers.reshape(*numbers.shape[:-1], -1, group)
    scales = np.maximum(np.abs(groups).max(axis=-1, keepdims=True) / steps, 2.0**-23)
    mantissa, exponent = np.frexp(scales)
    scales = np.ldexp(np.ceil(16 * mantissa) / 16, exponent)
    return (np.clip(np.rint(groups / scales), -steps, steps) * scales).reshape(numbers.shape)


def hadamard(size):
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def rounded(form, k, v, key_bias, value_bias):
    """Keys and values (T, K, d) as a cache of `form` gives them back; biases as they are in them."""
    if form == "f16":
        return k.astype(np.float16).astype(float), v.astype(np.float16).astype(float)
    key_bits, value_bits, unbiased, turned, group = FORM.fullmatch(form).groups()
    group = int(group or 16)
    k = coded(k - key_bias, key_bits, group) + key_bias
    off = value_bias if unbiased else 0.0
    if turned:
        matrix = hadamard(v.shape[-1])
        return k, coded((v - off) @ matrix, value_bits, group) @ matrix + off
    return k, coded(v - off, value_bits, group) + off


def bytes_of(form):
    """Of f16's, with its scales."""
    if form == "f16":
        return 1.0
    *bits, _, _, group = FORM.fullmatch(form).groups()
    return sum(16 if one == "f" else int(one) + 8 / int(group or 16) for one in bits) / 32


def logits_of(model, ids, form=None):
    """Of all positions; keys and values rounded as `form`."""
    plain, layer = naive.attention, iter(range(model.config["num_hidden_layers"]))

    def attention(q, k, v, sinks, window):
        i, (inv_freq, concentration) = next(layer), naive.yarn(model.config)
        biases = (model.layer(i, f"self_attn.{letter}_proj.bias").reshape(k.shape[1:]) for letter in "kv")
        key_bias, value_bias = (np.broadcast_to(bias, k.shape) for bias in biases)
        key_bias = naive.rope(key_bias, np.arange(len(k)), inv_freq, concentration)
        return plain(q, *rounded(form, k, v, key_bias, value_bias), sinks, window)

    naive.attention = attention if form else plain
    try:
        return naive.forward(model, ids)
    finally:
        naive.attention = plain


def measured(recipes, name, seed, tokens, forms):
    """By form, of one checkpoint: KL divergence and the share of equal likeliest tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        config, tensors, ids = recipes.make(name, seed, tokens)
        folder = Path(scratch) / "checkpoint"
        recipes.write(folder, config, tensors)
        index = {
            "weight_map": dict.fromkeys(read_header(folder / "model.safetensors")[0], "model.safetensors")
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        model = naive.Model(folder)
    want = logits_of(model, list(ids))
    return {form: compared(want, logits_of(model, list(ids), form)) for form in forms}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", type=Path, help="folder with recipes.py")
    parser.add_argument("--names", nargs="+", default=["dk:20", "dk:60", "d:20"], help="recipes, with :ARG")
    parser.add_argument("--forms", nargs="+", default=["f16", "k10v8"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--tokens", type=int, default=300)
    options = parser.parse_args()
    sys.path.insert(0, str(options.recipes))
    import recipes

    for name in options.names:
        each = [measured(recipes, name, seed, options.tokens, options.forms) for seed in options.seeds]
        for form in options.forms:
            kl, same = np.mean([one[form] for one in each], axis=0)
            print(
                f"{name:8} {form:10} {bytes_of(form):6.1%} of f16's bytes  KL {kl:.2g}, same {same:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
