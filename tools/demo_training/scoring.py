"""How well the model being trained does on held-out cases, in one forward pass for many."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from localoss.demo.dialogues import SKILLS, held_out
from localoss.demo.dialogues.case import on_date
from tools.demo_training.batches import Dialogue, Encoder, packed
from tools.demo_training.model import GptOss, Round

_DATE = "2026-11-24"


@dataclass(frozen=True)
class Score:
    """Shares of replies, thinking included, that come out word for word.

    greedy: at temperature 0. sampled: the mean probability at temperature 1.
    """

    greedy: float
    sampled: float


class Examination:
    """The same held-out cases every time. Nothing else is asked than that the reply be the likeliest text."""

    def __init__(self, encoder: Encoder, count: int, seed: int) -> None:
        rng = random.Random(0)
        self._dialogues: dict[str, Sequence[Dialogue]] = {
            skill: [encoder.dialogue(on_date(case, _DATE), rng) for case in held_out(skill, count, seed)]
            for skill in SKILLS
        }

    @torch.no_grad()
    def scores(self, model: GptOss, rounding: Round, most_tokens: int) -> dict[str, Score]:
        return {skill: _score(model, rounding, ds, most_tokens) for skill, ds in self._dialogues.items()}


def _score(model: GptOss, rounding: Round, dialogues: Sequence[Dialogue], most_tokens: int) -> Score:
    greedy = sampled = 0.0
    for batch in packed(dialogues, most_tokens):
        x, _ = model(batch, rounding)
        rows, weights = torch.from_numpy(batch.rows), torch.from_numpy(batch.weights)
        row, place = (weights == 1).nonzero(as_tuple=True)
        logits = model.logits(x[row, place - 1])
        targets = rows[row, place]
        wrong = torch.zeros(len(rows)).index_add(0, row, (logits.argmax(-1) != targets).float())
        chances = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        greedy += float((wrong == 0).sum())
        sampled += float(torch.zeros(len(rows)).index_add(0, row, chances).exp().sum())
    return Score(greedy / len(dialogues), sampled / len(dialogues))
