#!/usr/bin/env python3
"""llama.cpp on a GGUF file larger than memory, mapped as it is: what stands beside experts from the disk.

    sudo python benchmarks/limited.py 4.6e9 --cold -- python benchmarks/peer_mapped.py MODEL.gguf

Needs PyPI's xllamacpp. Weights aren't repacked, which would put all of them into its own memory, nor is the
model warmed up. Prints one line of JSON: load_s, prefill_tokens_per_s, decode_tokens_per_s.
"""

import argparse
import json
import random
import time

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--gen-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_ctx, params.n_parallel = args.prompt_tokens + args.gen_tokens + 64, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.no_extra_bufts, params.warmup, params.cache_ram_mib = True, False, 0
    began = time.perf_counter()
    server = xllamacpp.Server(params)
    load_s = time.perf_counter() - began
    prompt = random.Random(0).choices(range(1000, 2000), k=args.prompt_tokens)
    request = {"prompt": prompt, "n_predict": args.gen_tokens, "ignore_eos": True, "temperature": 0.0}
    answer = server.handle_completions(request | {"cache_prompt": False})
    timings = (answer if isinstance(answer, dict) else json.loads(answer))["timings"]
    speeds = {
        "prefill_tokens_per_s": timings["prompt_per_second"],
        "decode_tokens_per_s": timings["predicted_per_second"],
    }
    print(json.dumps({"load_s": load_s} | speeds))


if __name__ == "__main__":
    main()
