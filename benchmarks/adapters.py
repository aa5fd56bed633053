"""What a LoRA adapter costs a decoded token: a model with one and without, token by token in turns.

    python benchmarks/adapters.py MODEL --rank 16 --pairs 5

The adapter is made here, of random numbers, on the attention's four projections of every layer. One engine
has both conversations, so that both read the same weights; each token of one follows one of the other, and a
pair compares the medians of its tokens. What else the machine does strikes both alike.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import localoss
from localoss.options import SamplingParams
from quant.format.config import read_config


def make_adapter(folder, config, rank):
    rng, tensors = np.random.default_rng(0), {}
    shapes = {"q": (config.q_rows, config.hidden), "k": (config.kv_rows, config.hidden)}
    shapes |= {"v": shapes["k"], "o": (config.hidden, config.q_rows)}
    for layer in range(config.layers):
        for letter, (rows, columns) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{letter}_proj.lora_"
            tensors[f"{name}A.weight"] = rng.standard_normal((rank, columns), np.float32) / columns**0.5
            tensors[f"{name}B.weight"] = rng.standard_normal((rows, rank), np.float32) / rank**0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = [f"{letter}_proj" for letter in shapes]
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(said))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="of each conversation in a pair")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_adapter(Path(folder), read_config(options.model / "config.json"), options.rank)
        engine = localoss.load(
            options.model, context_tokens=2048, slots=2, threads=options.threads, adapters=[f"made={folder}"]
        )
    asked = SamplingParams(max_tokens=1900, temperature=0, stop_ids=())
    prompt = list(range(1000, 1064))
    answers = [
        engine.generate(prompt, asked, sequence=engine.sequence(adapter=name)) for name in (None, "made")
    ]
    for answer in answers:
        next(answer)
    for pair in range(options.pairs):
        times = ([], [])
        for _ in range(options.tokens):
            for answer, taken in zip(answers, times, strict=True):
                began = time.perf_counter()
                next(answer)
                taken.append(time.perf_counter() - began)
        without, beside = (1000 * statistics.median(taken) for taken in times)
        ratio = beside / without
        print(f"pair {pair + 1}: {without:.2f} ms a token, with the adapter {beside:.2f}: {ratio:.3f}")


if __name__ == "__main__":
    main()
