"""An engine that says what it is told to, with the real one's contract; as a program, the CLI on top of it.

python scripted.py SCRIPT.json chat FOLDER
"""

import json
import sys
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from localoss.chat import harmony
from localoss.engine.accounts import Accounts
from localoss.engine.sequence import Sequence
from localoss.errors import Cancelled, ContextFullError, ModelError
from localoss.model.kv_cache import KVCache
from quant.format.config import ModelConfig, RopeConfig

HELLO = "<|channel|>analysis<|message|>A greeting.<|end|>"
HELLO += "<|start|>assistant<|channel|>final<|message|>Hello!<|return|>"


CONFIG = ModelConfig(
    layers=2,
    hidden=32,
    intermediate=32,
    heads=4,
    kv_heads=1,
    head_dim=8,
    experts=2,
    active_experts=1,
    vocab=harmony.VOCABULARY_TOKENS,
    context=131_072,
    sliding_window=16,
    is_sliding=(True, False),
    rms_norm_eps=1e-5,
    swiglu_limit=7.0,
    rope=RopeConfig(1e4, 1.0, 64, 32.0, 1.0, False, None),
)
CHUNK = 32


@dataclass
class ScriptedEngine:
    """Gives the tokens of `answers`, one answer a call; the last one again and again.

    prompts: what it was asked. sequences: which sequence each call named. token_s: how long a token takes.
    prefill_s: how long a prompt takes, in ten steps. log: a file that gets every prompt as a line of JSON.
    Its sequences' caches hold what was said, and it looks whether they still do.
    """

    kv_dtype = "f16"

    answers: list[str] = field(default_factory=lambda: [HELLO])
    vocab: int = harmony.VOCABULARY_TOKENS
    context_tokens: int = 8192
    lookup: bool = False
    slots: int = 1
    token_s: float = 0.0
    top: tuple = ((0, -0.5), (1, -1.0))  # the likeliest tokens, at every place
    prefill_s: float = 0.0
    log: str | None = None
    chunk_tokens: int = CHUNK
    prompts: list[list[int]] = field(default_factory=list)
    sequences: list[Any] = field(default_factory=list)
    params: Any = None

    @property
    def config(self):
        return replace(CONFIG, vocab=self.vocab)

    @property
    def pass_tokens(self):
        return self.chunk_tokens

    def device_figures(self):
        return None

    def count_experts(self):
        return np.ones((CONFIG.layers, CONFIG.experts), np.int64)

    def expert_figures(self):
        return None

    def sequence(self, seed=None):
        return Sequence(KVCache(CONFIG, self.context_tokens, CHUNK, self.kv_dtype), seed)

    def batch(self, accounts=None):
        return GeneratorBatch(self, accounts)

    def generate(self, tokens, params, *, mask, progress, cancelled, sequence, checkpoints):
        answer = harmony.encode_raw(self.answers[min(len(self.prompts), len(self.answers) - 1)])
        self.prompts.append(list(tokens))
        self.sequences.append(sequence)
        self.params = params
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(harmony.encoding().decode(tokens)) + "\n")
        sequence = sequence or self.sequence()
        start = sequence.reuse(tokens)
        check(sequence)
        progress(start, len(tokens))
        for step in range(10):
            time.sleep(self.prefill_s / 10)
            if cancelled and cancelled():
                raise Cancelled("stopped")
            progress(start + (len(tokens) - start) * (step + 1) // 10, len(tokens))
        for first in range(start, len(tokens), CHUNK):
            run(sequence, tokens[first : first + CHUNK])
            for position in checkpoints:
                if first < position <= first + CHUNK:
                    sequence.checkpoint(position)
        for position, token in enumerate(answer[: params.max_tokens], len(tokens)):
            time.sleep(self.token_s)
            if cancelled and cancelled():
                raise Cancelled("stopped")
            if position >= self.context_tokens:
                raise ContextFullError(f"{position} of {self.context_tokens} tokens")
            allowed = mask() if mask else None
            assert allowed is None or allowed[token], f"token {token} is masked"
            yield SimpleNamespace(id=token, logprob=-0.5, top=self.top[: params.logprobs])
            if token in params.stop_ids:
                return
            run(sequence, [token])


class GeneratorBatch:
    """A batch on what has `generate`: each slot gets a token a step from a generator of its own."""

    def __init__(self, engine, accounts=None):
        self._engine, self._tokens, self.slots = engine, {}, []
        self.accounts = accounts or Accounts()

    def add(self, slot):
        self.slots.append(slot)
        self._tokens[slot] = self._engine.generate(
            slot.prompt,
            slot.params,
            mask=slot.mask,
            progress=slot.progress or (lambda *_: None),
            cancelled=slot.cancelled,
            sequence=slot.sequence,
            checkpoints=slot.checkpoints,
        )
        return slot

    def again_s(self, slot):
        return None  # a generator can't go on with another sequence

    def step(self, most_tokens=None, within_s=None):
        drawn = []
        for slot in [slot for slot in self.slots if not slot.is_done]:
            try:
                if slot.scored and not slot.is_decoding:
                    for token in self._engine.score(
                        slot.prompt, slot.params.logprobs, sequence=slot.sequence
                    ):
                        slot.scored(token)
                slot._drawn = 0  # it is no prompt any more
                drawn.append((slot, next(self._tokens[slot])))
                self.accounts.charge(slot.owner, 0.01)
            except StopIteration:
                slot.end()
            except Exception as error:
                slot.end(error)
        self.slots = [slot for slot in self.slots if not slot.is_done]
        self._tokens = {slot: self._tokens[slot] for slot in self.slots}
        return drawn


def run(sequence, tokens):
    """What a forward pass does to a cache: here keys are the tokens, and values their positions."""
    first = len(sequence.tokens)
    sequence.begin(len(tokens))
    for layer in sequence.cache.layers:
        keys, values, *scales = layer.read(first, first + len(tokens))
        keys[:] = (np.array(tokens) % 65_521)[:, None, None]
        values[:] = np.arange(first, first + len(tokens))[:, None, None]
        layer.write(first, [keys, values, *scales])
    sequence.tokens += tokens


def check(sequence):
    """Whether the cache holds the sequence's tokens: all in the full layer, a window of them in the ring."""
    cache, end = sequence.cache, len(sequence.tokens)
    for layer, first in ((cache.full[0], 0), (cache.rings[0], max(end - cache.window + 1, 0))):
        keys, values, *_ = layer.read(first, end)
        assert (keys[:, 0, 0] == np.array(sequence.tokens[first:]) % 65_521).all(), "other tokens"
        assert (values[:, 0, 7] == np.arange(first, end)).all(), "other positions"


def main():
    """Run the command line with `localoss.load` giving a scripted engine.

    In the script load_s is how long that takes, and load_error what comes of it then. Answers by the first
    word of the question make it a StagedEngine.
    """
    import localoss
    from localoss import cli

    with open(sys.argv[1], encoding="utf-8") as file:
        script = json.load(file)
    load_s, load_error = script.pop("load_s", 0.0), script.pop("load_error", None)

    def load(folder, options, listener):
        ends = time.monotonic() + load_s
        while time.monotonic() < ends:
            listener.compiling("a_kernel")
            time.sleep(0.05)
        if load_error:
            raise ModelError(load_error)
        if load_s:
            listener.notice("a notice")
        if isinstance(script.get("answers"), dict):
            from support.staged import StagedEngine

            return StagedEngine(**script)
        return ScriptedEngine(**script)

    localoss.load = load
    sys.exit(cli.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
