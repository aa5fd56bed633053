#!/usr/bin/env python3
"""What a model really takes of memory, beside what `localoss plan` says: a table, and JSON with --json.

    python benchmarks/memory.py MODEL [--contexts 4096 32768 131072] [--kv-dtypes f16 int8]

For each context and number format of the KV cache a new process loads the model, reads a byte of every page
of its weights, runs a prompt and some tokens, and looks at /proc: peak and end of what is resident, anonymous
memory and file pages. "program" is what is resident beyond weights, cache and scratch: Python, libraries,
the vocabulary, compiled kernels. Linux only; needs memory for all of the model.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """Bytes, of one process; `planned_bytes` before it started."""

    context_tokens: int
    kv_dtype: str
    planned_bytes: int
    peak_bytes: int
    anonymous_bytes: int
    file_bytes: int
    after_load_bytes: int  # anonymous, before the prompt: what comes later has grown
    program_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 32768, 131072])
    parser.add_argument("--kv-dtypes", nargs="+", default=["f16", "int8"])
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        row = measure(args.model, args.contexts[0], args.kv_dtypes[0], args.prompt_tokens)
        print(json.dumps(asdict(row)))
        return
    rows = []
    for context in args.contexts:
        for kv_dtype in args.kv_dtypes:
            options = ["--contexts", str(context), "--kv-dtypes", kv_dtype]
            options += ["--prompt-tokens", str(args.prompt_tokens)]
            command = [sys.executable, __file__, args.model, "--one", *options]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(Row(**json.loads(done.stdout)))
            if not args.json:
                show(rows[-1], first=len(rows) == 1)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))


def show(row: Row, first: bool) -> None:
    if first:
        print("| context | KV cache | planned | measured peak | difference | of it anonymous | program |")
        print("|---|---|---|---|---|---|---|")
    difference = row.peak_bytes / row.planned_bytes - 1
    sizes = [f"{size / 1e9:.2f} GB" for size in (row.planned_bytes, row.peak_bytes, row.anonymous_bytes)]
    print(
        f"| {row.context_tokens:,} | {row.kv_dtype} | {sizes[0]} | {sizes[1]} | {difference:+.1%} | "
        f"{sizes[2]} | {row.program_bytes / 1e6:.0f} MB |",
        flush=True,
    )


def measure(model: str, context_tokens: int, kv_dtype: str, prompt_tokens: int) -> Row:
    """Load, touch, run; in this process, which should do nothing else."""
    import localoss
    from localoss.chat import harmony
    from localoss.measure.bench import touch
    from localoss.plan.memory import PROGRAM_BYTES, Plan

    engine = localoss.load(model, context_tokens=context_tokens, kv_dtype=kv_dtype)
    plan = Plan(engine.config, engine.dtypes, context_tokens, kv_dtype=kv_dtype, threads=engine.threads)
    harmony.render(harmony.ChatSetup("low", None), [harmony.Message("user", "Why is the sky blue?")])
    after_load = resident()["RssAnon"]
    touch(engine.weights)
    prompt = [1000 + i % 500 for i in range(prompt_tokens)]
    for _ in engine.generate(prompt, 16, temperature=0, stop_ids=()):
        pass
    now = resident()
    return Row(
        context_tokens=context_tokens,
        kv_dtype=kv_dtype,
        planned_bytes=plan.total_bytes,
        peak_bytes=now["VmHWM"],
        anonymous_bytes=now["RssAnon"],
        file_bytes=now["RssFile"],
        after_load_bytes=after_load,
        program_bytes=now["VmHWM"] - plan.total_bytes + PROGRAM_BYTES,
    )


def resident() -> dict[str, int]:
    """This process's resident memory in bytes, as /proc tells it; VmHWM is the most of all kinds together."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split() for line in lines}
    return {name: 1024 * int(fields[name][1]) for name in ("RssAnon", "RssFile", "VmHWM")}


if __name__ == "__main__":
    main()
