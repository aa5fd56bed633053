#!/usr/bin/env python3
"""From nothing to a first token in a fresh process, for compare.py, which notes when the line arrives.

    python benchmarks/first_token.py MODEL --tokens 8 --threads 2

Prints one line of JSON as soon as the token is there. compiled: how many kernels weren't in the cache; late:
those compiled after loading, which should be none.
"""

import argparse
import json
import time

import localoss
from localoss import kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    compiled: list[str] = []
    start = time.perf_counter()
    engine = localoss.load(args.model, threads=args.threads, compiling=compiled.append)
    load_s = time.perf_counter() - start
    late: list[str] = []
    with kernels.reporting_compiled(late.append):
        first = next(engine.generate(list(range(1, args.tokens + 1)), temperature=0))
    report = {"load_s": load_s, "token": first.id, "compiled": len(set(compiled)), "late": sorted(set(late))}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
