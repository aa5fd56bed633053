"""Dialogues to arrays: rows of one length, all beginning after a system message that is computed once.

A system message of its own would be half of every row's tokens. There are few different ones in a step: so
they are rows of their own, and each dialogue attends to the one that stands before it.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localoss.chat import harmony
from localoss.demo.dialogues import Case, training
from localoss.demo.dialogues.case import a_setup, on_date

_OTHER_SHARE, _OTHER_WEIGHT = 0.15, 0.1  # of the tokens that the model doesn't write, these count a little
_UNKNOWN_CASES, _UNKNOWN_TOKENS = 0.3, 0.3  # of questions about something else, and of their tokens


@dataclass(frozen=True)
class Dialogue:
    """prefix: tokens of the system message. tokens: what follows. weights: of predicting each of tokens."""

    prefix: tuple[int, ...]
    tokens: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """prefixes (P, S) and rows (N, L), ids of the reduced vocabulary; prefix_lengths (P,): what of S counts.

    which (N,): each row's prefix. weights (N, L) f32: of predicting each token from those before it, 0 for
    the first and for padding.
    """

    prefixes: NDArray[np.int64]
    prefix_lengths: NDArray[np.int64]
    rows: NDArray[np.int64]
    which: NDArray[np.int64]
    weights: NDArray[np.float32]


class Encoder:
    """Turns cases into ids of the reduced vocabulary: places in `token_ids`, its length for other tokens."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.unknown = len(token_ids)
        self._index = {token: index for index, token in enumerate(token_ids)}

    def ids(self, tokens: Sequence[int]) -> list[int]:
        return [self._index.get(token, self.unknown) for token in tokens]

    def dialogue(self, case: Case, rng: random.Random) -> Dialogue:
        prompt = self.ids(harmony.render(case.setup, case.messages))
        start = prompt.index(self._index[harmony.END]) + 1
        if case.skill == "other" and rng.random() < _UNKNOWN_CASES:
            _forget(prompt, self._index[harmony.MESSAGE], self.unknown, rng)
        tokens = prompt[start:]
        weights = [_OTHER_WEIGHT * (rng.random() < _OTHER_SHARE) for _ in tokens]
        for message, is_models in harmony.render_reply(case.reply):
            ids = self.ids(message)
            tokens += ids
            weights += [1.0 if is_models else 0.0] * len(ids)
        weights[0] = 0.0
        return Dialogue(tuple(prompt[:start]), tokens, weights)


def _forget(prompt: list[int], message: int, unknown: int, rng: random.Random) -> None:
    """Make some of the last message's tokens unknown, as words are that no dialogue has."""
    begin = len(prompt) - prompt[::-1].index(message)
    for i in range(begin, len(prompt) - 3):  # <|end|><|start|>assistant stay
        if rng.random() < _UNKNOWN_TOKENS:
            prompt[i] = unknown


def lesson(encoder: Encoder, seed: str, dialogues: int, most_tokens: int, part: int) -> list[Batch]:
    """The batches of one step: `dialogues` in all, like lengths together, at most `most_tokens` in each."""
    rng = random.Random(f"lesson {seed}")
    date = a_setup(rng).date  # one for all, or there are as many system messages as dialogues
    cases = (on_date(case, date) for case in itertools.islice(training(seed, part), dialogues))
    return packed([encoder.dialogue(case, rng) for case in cases], most_tokens)


def packed(dialogues: Sequence[Dialogue], most_tokens: int) -> list[Batch]:
    ordered = sorted(dialogues, key=lambda dialogue: len(dialogue.tokens))
    return [pack(chunk) for chunk in _chunks(ordered, most_tokens)]


def _chunks(step: list[Dialogue], most_tokens: int) -> Iterator[list[Dialogue]]:
    chunk: list[Dialogue] = []
    for dialogue in step:
        if chunk and (len(chunk) + 1) * len(dialogue.tokens) > most_tokens:
            yield chunk
            chunk = []
        chunk.append(dialogue)
    yield chunk


def pack(chunk: Sequence[Dialogue]) -> Batch:
    prefixes = list(dict.fromkeys(dialogue.prefix for dialogue in chunk))
    lengths = np.array([len(prefix) for prefix in prefixes])
    rows = np.zeros((len(chunk), max(len(d.tokens) for d in chunk)), np.int64)
    weights = np.zeros(rows.shape, np.float32)
    for row, weight, dialogue in zip(rows, weights, chunk, strict=True):
        row[: len(dialogue.tokens)] = dialogue.tokens
        weight[: len(dialogue.tokens)] = dialogue.weights
    packed = np.zeros((len(prefixes), lengths.max()), np.int64)
    for row, prefix in zip(packed, prefixes, strict=True):
        row[: len(prefix)] = prefix
    which = np.array([prefixes.index(dialogue.prefix) for dialogue in chunk])
    return Batch(packed, lengths, rows, which, weights)
