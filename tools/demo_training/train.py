"""The training loop: seeded, saved as it goes, resumed by the same command."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quant.format.config import parse_config
from tools.demo_training.batches import Batch, Encoder, lesson
from tools.demo_training.beginning import begin
from tools.demo_training.export import CONFIG, TOKEN_IDS, read_weights, write_weights
from tools.demo_training.model import GptOss
from tools.demo_training.muon import Muon
from tools.demo_training.rounding import round_mxfp4
from tools.demo_training.scoring import Examination
from tools.demo_training.vocabulary import collect


@dataclass(frozen=True)
class Settings:
    """What decides the result. A saved state goes on only under the settings that it began with."""

    sitting: int = 1
    steps: int = 1530
    dialogues: int = 48  # in a step
    seed: int = 1
    matrix_rate: float = 0.02
    row_rate: float = 2e-3  # of embedding and unembedding
    other_rate: float = 4e-3
    # Lines between points (share of the steps, share of the rates). The second rise came with the last
    # part's lessons.
    course: tuple[tuple[float, float], ...] = (
        (0, 0), (20 / 1530, 1), (585 / 1530, 1), (1200 / 1530, 0.14), (1201 / 1530, 0.45),
        (1450 / 1530, 0.17), (1, 0),
    )  # fmt: skip
    first_part: int = 0  # of the lessons
    parts: tuple[float, ...] = (910 / 1530, 1200 / 1530)  # shares of the steps where the next part begins
    rounded_from: float = 1040 / 1530  # the share of the steps after which experts are rounded to MXFP4
    unevenness_weight: float = 0.01
    from_mean: bool = False  # of what the two sittings before left, instead of the last one's
    layers: int = 4
    sampled: int = 10_000  # dialogues whose tokens become the vocabulary


# Each goes on from the weights of the one before, with optimizers that start anew. From the second on,
# experts are rounded all the way.
SITTINGS = (
    Settings(),
    Settings(
        sitting=2, steps=2200, dialogues=40, course=((0, 0), (0.01, 0.6), (0.15, 0.6), (1, 0)),
        first_part=3, parts=(1200 / 2200,), rounded_from=0,
    ),
    Settings(
        sitting=3, steps=300, dialogues=40, course=((0, 0), (0.03, 0.25), (1, 0)), first_part=5, parts=(),
        rounded_from=0,
    ),
    Settings(
        sitting=4, steps=600, dialogues=40, course=((0, 0), (0.02, 0.3), (1, 0)), first_part=5, parts=(),
        rounded_from=0, from_mean=True,
    ),
)  # fmt: skip


_MOST_TOKENS = 1792  # at once: dialogues of like length, and enough batches to share among threads
_SAVED_EVERY, _SCORED_EVERY, _LOGGED_EVERY = 50, 200, 10


class Training:
    """A model, its optimizers and how far it is; `folder` keeps all of it.

    It begins with the weights in folder `earlier`, if given, else with drawn ones.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        say: Callable[[str], None],
        threads: int | None = None,
        earlier: Path | None = None,
    ) -> None:
        self.settings, self.folder, self.say, self.earlier = settings, folder, say, earlier
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        # Whole batches side by side: within an operation, threads of a busy machine wait for each other.
        torch.set_num_threads(1)
        workers = threads or os.cpu_count()
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        kinds = CONFIG["layer_types"][: settings.layers]
        self.config = CONFIG | {"num_hidden_layers": settings.layers, "layer_types": kinds}
        self.token_ids = self._known_tokens()
        self.encoder = Encoder(self.token_ids)
        self.model = GptOss(parse_config(self.config), len(self.token_ids))
        if earlier:
            self.model.load_state_dict(read_weights(earlier))
        else:
            begin(self.model, self.token_ids)
        matrices, rows, others = _split(self.model)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, settings.matrix_rate, self._pool),
            torch.optim.Adam(rows, settings.row_rate, betas=(0.9, 0.98)),
            torch.optim.Adam(others, settings.other_rate, betas=(0.9, 0.98)),
        ]
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._load()
        self._lesson = self._prepare(self.step)

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
            write_weights(weights_folder, self.model, self.config, self.token_ids)

    def _learn(self) -> float:
        """One step; gives the mean loss of a token that the model writes."""
        batches = self._lesson.result()
        self._lesson = self._prepare(self.step + 1)
        total = sum(float(batch.weights.sum()) for batch in batches)
        longest_first = sorted(batches, key=lambda batch: -batch.rows.size)
        done = list(self._pool.map(lambda batch: self._gradients(batch, total), longest_first))
        self.tokens += sum(batch.prefixes.size + batch.rows.size for batch in batches)
        for parameter, *gradients in zip(self.model.parameters(), *(g for _, g in done), strict=True):
            parameter.grad = torch.stack(gradients).sum(0)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = _rate(self.step, self.settings)
        for optimizer, full in zip(self.optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * full
            optimizer.step()
        return sum(loss for loss, _ in done)

    def _prepare(self, step: int) -> Future[list[Batch]]:
        s = self.settings
        part = s.first_part + sum(step >= round(s.steps * share) for share in s.parts)
        seed = f"{s.seed} {step}" if s.sitting == 1 else f"{s.seed} {s.sitting} {step}"
        return self._pool.submit(lesson, self.encoder, seed, s.dialogues, _MOST_TOKENS, part)

    def _gradients(self, batch: Batch, total: float) -> tuple[float, tuple[Tensor, ...]]:
        """This batch's part of a step's loss, whose weights sum up to `total`, and its gradients."""
        x, unevenness = self.model(batch, self._rounding())
        weights = torch.from_numpy(batch.weights)
        row, place = weights.nonzero(as_tuple=True)
        logits = self.model.logits(x[row, place - 1])
        losses = F.cross_entropy(logits, torch.from_numpy(batch.rows)[row, place], reduction="none")
        loss = (losses * weights[row, place]).sum() / total
        extra = self.settings.unevenness_weight * unevenness * float(weights.sum()) / total
        return float(loss.detach()), torch.autograd.grad(loss + extra, list(self.model.parameters()))

    def _rounding(self) -> Callable[[Tensor], Tensor]:
        rounded = self.step >= round(self.settings.steps * self.settings.rounded_from)
        return round_mxfp4 if rounded else lambda weights: weights

    def _examine(self, examination: Examination) -> None:
        scores = examination.scores(self.model, self._rounding(), _MOST_TOKENS)
        shown = "  ".join(f"{name} {score.greedy:.3f}/{score.sampled:.3f}" for name, score in scores.items())
        self.say(f"step {self.step} held out, greedy/sampled: {shown}")

    def _known_tokens(self) -> list[int]:
        path = (self.earlier or self.folder) / TOKEN_IDS
        if not path.exists():
            self.say("collecting the vocabulary")
            path.write_text(json.dumps(collect(self.settings.seed, self.settings.sampled)))
        known: list[int] = json.loads(path.read_text())
        return known

    def _save(self) -> None:
        state = {
            "settings": json.loads(json.dumps(dataclasses.asdict(self.settings))),
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
        if state["settings"] != json.loads(json.dumps(dataclasses.asdict(self.settings))):
            raise SystemExit(f"{path}: begun with other settings; give another folder, or delete this one")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["progress"]


def _split(model: GptOss) -> tuple[list[Any], list[Any], list[Any]]:
    """The matrices within layers, embedding and unembedding, and all other parameters."""
    parts: tuple[list[Any], list[Any], list[Any]] = [], [], []
    for name, parameter in model.named_parameters():
        inner = "proj" in name and not name.endswith("bias")
        parts[0 if inner else 1 if "embed" in name or "lm_head" in name else 2].append(parameter)
    return parts


def _rate(step: int, settings: Settings) -> float:
    """The share of the full rates at `step`, the first of which is 0."""
    done = (step + 1) / settings.steps
    for (begin_at, first), (end_at, last) in itertools.pairwise(settings.course):
        if done <= end_at:
            return first + (last - first) * (done - begin_at) / (end_at - begin_at)
    return 0.0
