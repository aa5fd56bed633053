"""The training loop: seeded, saved as it goes, resumed by the same command."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from localoss.demo.training.batches import Batch, Encoder, lesson
from localoss.demo.training.export import CONFIG, write_weights
from localoss.demo.training.model import GptOss
from localoss.demo.training.muon import Muon
from localoss.demo.training.rounding import round_mxfp4
from localoss.demo.training.scoring import Examination
from localoss.demo.training.vocabulary import collect
from quant.config import parse_config


@dataclass(frozen=True)
class Settings:
    """What decides the result. A saved state goes on only under the settings that it began with."""

    steps: int = 1800
    dialogues: int = 48  # in a step
    seed: int = 1
    matrix_rate: float = 0.02
    embedding_rate: float = 0.03  # a token's row learns only from the dialogues that it is in
    other_rate: float = 4e-3
    warmup_share: float = 0.02
    falling_share: float = 0.55  # of the steps, the last ones, with rates going down to nothing
    rounded_share: float = 0.2  # of the steps, the last ones, with experts rounded to MXFP4
    unevenness_weight: float = 0.01


_MOST_TOKENS = 3072  # at once: few enough that dialogues of like length are together
_SAVED_EVERY, _SCORED_EVERY, _LOGGED_EVERY = 50, 100, 10


class Training:
    """A model, its optimizers and how far it is; `folder` keeps all of it."""

    def __init__(self, settings: Settings, folder: Path, say: Callable[[str], None]) -> None:
        self.settings, self.folder, self.say = settings, folder, say
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.token_ids = self._known_tokens()
        self.encoder = Encoder(self.token_ids)
        self.model = GptOss(parse_config(CONFIG), len(self.token_ids))
        matrices, embedding, others = _split(self.model)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, settings.matrix_rate),
            torch.optim.Adam(embedding, settings.embedding_rate, betas=(0.9, 0.98)),
            torch.optim.Adam(others, settings.other_rate, betas=(0.9, 0.98)),
        ]
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._load()

    def run(self, weights_folder: Path | None = None) -> None:
        """Train up to the last step, then write the weights. Ctrl-C keeps what was saved."""
        examination = Examination(self.encoder, 64, seed=self.settings.seed)
        count = sum(p.numel() for p in self.model.parameters())
        known = len(self.token_ids)
        self.say(f"{count:,} parameters, {known:,} known tokens, step {self.step} of {self.settings.steps}")
        started, losses = time.perf_counter() - self.seconds, []
        while self.step < self.settings.steps:
            losses.append(self._learn())
            self.step += 1
            self.seconds = time.perf_counter() - started
            last = self.step == self.settings.steps
            if self.step % _LOGGED_EVERY == 0:
                speed = self.tokens / self.seconds
                mean = sum(losses[-_LOGGED_EVERY:]) / _LOGGED_EVERY
                done = f"{self.tokens:,} tokens, {speed:,.0f}/s, {self.seconds / 60:.1f} min"
                self.say(f"step {self.step} loss {mean:.4f} {done}")
            if self.step % _SCORED_EVERY == 0 or last:
                self._examine(examination)
            if self.step % _SAVED_EVERY == 0 or last:
                self._save()
        if weights_folder:
            write_weights(weights_folder, self.model, self.token_ids)

    def _learn(self) -> float:
        """One step; gives the mean loss of a token that the model writes."""
        s = self.settings
        batches = lesson(self.encoder, f"{s.seed} {self.step}", s.dialogues, _MOST_TOKENS)
        total = sum(float(batch.weights.sum()) for batch in batches)
        rate = _rate(self.step, s)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss_sum = 0.0
        for batch in batches:
            loss, unevenness = self._loss(batch)
            share = float(batch.weights.sum()) / total
            (loss / total + s.unevenness_weight * unevenness * share).backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.detach()) / total
            self.tokens += batch.prefixes.size + batch.rows.size
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, full in zip(self.optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * full
            optimizer.step()
        return loss_sum

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, unevenness = self.model(batch, self._rounding())
        weights = torch.from_numpy(batch.weights)
        row, place = weights.nonzero(as_tuple=True)
        logits = self.model.logits(x[row, place - 1])
        losses = F.cross_entropy(logits, torch.from_numpy(batch.rows)[row, place], reduction="none")
        return (losses * weights[row, place]).sum(), unevenness

    def _rounding(self) -> Callable[[Tensor], Tensor]:
        rounded = self.step >= self.settings.steps * (1 - self.settings.rounded_share)
        return round_mxfp4 if rounded else lambda weights: weights

    def _examine(self, examination: Examination) -> None:
        scores = examination.scores(self.model, self._rounding(), _MOST_TOKENS)
        shown = "  ".join(f"{name} {score.greedy:.3f}/{score.sampled:.3f}" for name, score in scores.items())
        self.say(f"step {self.step} held out, greedy/sampled: {shown}")

    def _known_tokens(self) -> list[int]:
        path = self.folder / "token_ids.json"
        if not path.exists():
            self.say("collecting the vocabulary")
            path.write_text(json.dumps(collect(self.settings.seed)))
        known: list[int] = json.loads(path.read_text())
        return known

    def _save(self) -> None:
        state = {
            "settings": dataclasses.asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.step, self.tokens, self.seconds),
        }
        partial = self.folder / "state.pt.part"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")

    def _load(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["settings"] != dataclasses.asdict(self.settings):
            raise SystemExit(f"{path}: begun with other settings; give another folder, or delete this one")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["progress"]


def _split(model: GptOss) -> tuple[list[Any], list[Any], list[Any]]:
    """The matrices within layers, the embedding, and all other parameters."""
    matrices: list[Any] = []
    embedding: list[Any] = []
    others: list[Any] = []
    for name, parameter in model.named_parameters():
        if "embed" in name:
            embedding.append(parameter)
        else:
            inner = "proj" in name and not name.endswith("bias")
            (matrices if inner else others).append(parameter)
    return matrices, embedding, others


def _rate(step: int, settings: Settings) -> float:
    """The share of the full rates at `step`: up in the warm-up, level, then down in a line."""
    rising = (step + 1) / max(1, settings.steps * settings.warmup_share)
    falling = (settings.steps - step) / max(1, settings.steps * settings.falling_share)
    return min(1.0, rising, falling)
