#!/usr/bin/env python3
"""ik_llama.cpp by PyPI's ik-llama-cpp-python, which is built for AVX2: a peer of compare.py.

    pip install ik-llama-cpp-python
    python benchmarks/peer_ik.py MODEL.gguf --prompt-tokens 512 --gen-tokens 64 --threads 2 [--repack]

Prints one line of JSON: load_s, prefill_tokens_per_s, decode_tokens_per_s. --repack has it lay its weights
out in rows by fours (its -rtr), which helps it in prompts on some machines.
"""

import argparse
import json
import random
import time

import numpy as np
from ik_llama_cpp import _ctypes_api as api


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repack", action="store_true")
    args = parser.parse_args()

    began = time.perf_counter()
    api.llama_backend_init()
    context, vocabulary = load(args)
    load_s = time.perf_counter() - began

    prompt = random.Random(0).choices(range(1000, 2000), k=args.prompt_tokens)
    run(context, prompt, 0)  # the pages of the model come in, as ours do before they are timed
    api.llama_kv_cache_clear(context)
    prefill_s = run(context, prompt, 0)
    began = time.perf_counter()
    for place in range(args.gen_tokens):
        run(context, [most_likely(context, vocabulary)], args.prompt_tokens + place)
    decode_s = time.perf_counter() - began
    print(
        json.dumps(
            {
                "load_s": load_s,
                "prefill_tokens_per_s": args.prompt_tokens / prefill_s,
                "decode_tokens_per_s": args.gen_tokens / decode_s,
            }
        )
    )


def load(args):
    """The context, and how many tokens the vocabulary has."""
    model_params = api.llama_model_default_params()
    model_params.repack_tensors = args.repack
    model_params.use_mmap = not args.repack
    model = api.llama_model_load_from_file(args.model.encode(), model_params)
    assert model, "the model could not be loaded"
    params = api.llama_context_default_params()
    params.n_ctx = args.prompt_tokens + args.gen_tokens + 64
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn = True
    context = api.llama_init_from_model(model, params)
    assert context, "no context could be made"
    return context, api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))


def run(context, tokens, start):
    """Seconds that a pass over tokens takes, 512 at a time; the last one's logits are kept."""
    began = time.perf_counter()
    for at in range(0, len(tokens), 512):
        piece = tokens[at : at + 512]
        batch = api.llama_batch_init(len(piece), 0, 1)
        batch.n_tokens = len(piece)
        for i, token in enumerate(piece):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + at + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = at + i == len(tokens) - 1
        assert api.llama_decode(context, batch) == 0
        api.llama_batch_free(batch)
    return time.perf_counter() - began


def most_likely(context, vocabulary):
    return int(np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (vocabulary,)).argmax())


if __name__ == "__main__":
    main()
