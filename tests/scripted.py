"""An engine that says what it is told to, with the real one's contract; as a program, the CLI on top of it.

python scripted.py SCRIPT.json chat FOLDER
"""

import json
import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from localoss.chat import harmony
from localoss.errors import Cancelled, ContextFullError

HELLO = "<|channel|>analysis<|message|>A greeting.<|end|>"
HELLO += "<|start|>assistant<|channel|>final<|message|>Hello!<|return|>"


@dataclass
class ScriptedEngine:
    """Gives the tokens of `answers`, one answer a call; the last one again and again.

    prompts: what it was asked. sequences: which sequence each call named. token_s: how long a token takes.
    prefill_s: how long a prompt takes, in ten steps. log: a file that gets every prompt as a line of JSON.
    """

    answers: list[str] = field(default_factory=lambda: [HELLO])
    vocab: int = harmony.VOCABULARY_TOKENS
    context_tokens: int = 8192
    token_s: float = 0.0
    top: tuple = ((0, -0.5), (1, -1.0))  # the likeliest tokens, at every place
    prefill_s: float = 0.0
    log: str | None = None
    prompts: list[list[int]] = field(default_factory=list)
    sequences: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self):
        return SimpleNamespace(vocab=self.vocab)

    def sequence(self, seed=None):
        return SimpleNamespace(seed=seed, tokens=[])

    def generate(self, tokens, max_tokens=None, *, stop_ids, mask, progress, cancelled, sequence, **options):
        answer = harmony.encode_raw(self.answers[min(len(self.prompts), len(self.answers) - 1)])
        self.prompts.append(list(tokens))
        self.sequences.append(sequence)
        self.options = options
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(harmony.encoding().decode(tokens)) + "\n")
        progress(0, len(tokens))
        for step in range(10):
            time.sleep(self.prefill_s / 10)
            if cancelled and cancelled():
                raise Cancelled("stopped")
            progress(len(tokens) * (step + 1) // 10, len(tokens))
        for position, token in enumerate(answer[:max_tokens], len(tokens)):
            time.sleep(self.token_s)
            if cancelled and cancelled():
                raise Cancelled("stopped")
            if position >= self.context_tokens:
                raise ContextFullError(f"{position} of {self.context_tokens} tokens")
            allowed = mask() if mask else None
            assert allowed is None or allowed[token], f"token {token} is masked"
            yield SimpleNamespace(id=token, logprob=-0.5, top=self.top[: options["top_logprobs"]])
            if token in stop_ids:
                return


def main():
    """Run the command line with `localoss.load` giving a scripted engine."""
    import localoss
    from localoss import cli

    with open(sys.argv[1], encoding="utf-8") as file:
        script = json.load(file)
    localoss.load = lambda folder, **options: ScriptedEngine(**script)
    sys.exit(cli.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
