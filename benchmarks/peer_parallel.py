#!/usr/bin/env python3
"""llama.cpp's server with several sequences at once, for `localoss bench --parallel` to be held beside.

    python benchmarks/peer_parallel.py MODEL.gguf [--parallel 1,2,4,8] [--tokens 48] [--threads N]

Needs xllamacpp, which is llama-server in a library (`-np` there is n_parallel here). Each number of sequences
has a server of its own and as many requests at once, whose tokens are all drawn (no end counts). Gives tokens
per second in all while they are decoded, the sum of what each request's timings say, and the ratio to one.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor


def decoded_per_s(args, count):
    """Tokens per second of `count` requests at once, in all."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_parallel, params.cont_batching, params.warmup = count, True, True
    params.n_ctx = count * (args.prompt_tokens + args.tokens + 64)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def ask(number):
        body = {
            "prompt": [100 + 7 * number + place for place in range(args.prompt_tokens)],
            "n_predict": args.tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
        }
        answer = server.handle_completions(body)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        answer = answer[0] if isinstance(answer, list) else answer
        assert answer["timings"]["predicted_n"] == args.tokens, answer["timings"]
        return answer["timings"]["predicted_per_second"]

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(ask, range(count)))  # pages of the model come in
        return sum(pool.map(ask, range(count, 2 * count)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--parallel", default="1,2,4,8")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    first = None
    for count in map(int, args.parallel.split(",")):
        rate = decoded_per_s(args, count)
        first = first or rate
        print(
            f"{count:>3} sequences: {rate:7.1f} tokens/s in all, {rate / first:.2f} of the first", flush=True
        )


if __name__ == "__main__":
    main()
