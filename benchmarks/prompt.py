#!/usr/bin/env python3
"""From `localoss chat` to a prompt that takes typing, and to the first token of an answer, at a terminal.

    python benchmarks/prompt.py MODEL --runs 5

Each run starts two processes on a pseudo-terminal. In one a character is typed into the terminal at once; the
prompt counts when it shows that character. In the other a message is sent at once; its first token counts.
Kernels should be cached and the model's files in memory: a run before the first that counts sees to both.
Prints one line of JSON: seconds, medians and all runs. Other options go to `localoss chat`.
"""

import argparse
import json
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import time

_MOST_S = 300
_TYPED = b"Q"  # no other output has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    args, options = parser.parse_known_args()
    command = [sys.executable, "-m", "localoss", "chat", args.model, *options]
    one_token = [*command, "--max-tokens", "1"]
    until(one_token, b"Hi\r", b"ended by --max-tokens 1")
    prompts, tokens = [], []
    for _ in range(args.runs):
        prompts.append(until(command, _TYPED, _TYPED))
        tokens.append(until(one_token, b"Hi\r", b"ended by --max-tokens 1"))
    report = {"prompt_s": prompts, "first_token_s": tokens}
    medians = {f"median_{name}": statistics.median(times) for name, times in report.items()}
    print(json.dumps(medians | report))


def until(command: list[str], typed: bytes, text: bytes) -> float:
    """Seconds until `command`, at a terminal where `typed` is typed, writes `text`."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    started = time.perf_counter()
    child = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    seen, waiting = b"", typed
    try:
        while text not in seen:
            if time.perf_counter() - started > _MOST_S:
                sys.exit(f"nothing after {_MOST_S} s: {seen.decode(errors='replace')}")
            if select.select([master], [], [], 0.01)[0]:
                seen += os.read(master, 1 << 16)
            if waiting and b"\x1b[?2004h" in seen:  # the prompt reads the keyboard by itself from here on
                os.write(master, waiting)
                waiting = b""
        return time.perf_counter() - started
    except OSError:
        sys.exit(f"ended early: {seen.decode(errors='replace')}")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.close(master)


if __name__ == "__main__":
    main()
