"""From logits to a token: greedy, or drawn with temperature, top-k, top-p and min-p."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from localoss.errors import LocalossError
from localoss.kernels import sampling as kernels
from localoss.model.weights import address
from localoss.options import FIRST_CONTROL_ID, SamplingParams

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """A sampled token. logprob: ln of its probability under the model, before sampling options and mask.

    top: ids and logprobs of the likeliest tokens, the likeliest first, where they were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class History:
    """Which tokens a sequence has read and drawn, for the penalties. Control tokens don't count."""

    def __init__(self, vocab: int, prompt: Sequence[int]) -> None:
        self._text = min(vocab, FIRST_CONTROL_ID)
        self.drawn = np.zeros(self._text, np.int32)
        self.read = np.zeros(self._text, np.uint8)
        ids = np.asarray(prompt, np.int64)
        self.read[ids[ids < self._text]] = 1

    def note(self, token: int) -> None:
        if token < self._text:
            self.drawn[token] += 1


class Sampler:
    """Chooses among `vocab` tokens; its buffers are reused from token to token."""

    def __init__(self, vocab: int):
        padded = -(-vocab // 8) * 8
        self.kernels: Any = kernels  # profiling puts a timed namespace here
        self._vocab = vocab
        self._logits = np.full(padded, -np.inf, np.float32)
        self._weights = np.zeros(padded, np.float32)

    def history(self, prompt: Sequence[int]) -> History:
        """The history of a sequence that begins with `prompt`."""
        return History(self._vocab, prompt)

    def choose(
        self,
        logits: NDArray[np.float32],
        params: SamplingParams,
        random: np.random.Generator,
        mask: NDArray[np.uint8] | None = None,
        history: History | None = None,
        may_stop: bool = True,
    ) -> Token:
        """Choose one of `logits` (V,) f32; `mask` (V,) is nonzero where a token is allowed.

        history: what penalties are for. may_stop: else none of params.stop_ids, unless no other is allowed.

        Raises: LocalossError if the mask allows nothing or the logits hold NaN.
        """
        work = self._logits
        log_total = self._load(logits)
        if history is not None and params.has_penalties:
            penalties = params.frequency_penalty, params.presence_penalty, params.repetition_penalty
            self.kernels.penalize(work, history.drawn, history.read, *map(np.float32, penalties))
        if params.logit_bias:
            ids, bias = zip(*params.logit_bias, strict=True)
            self.kernels.add_bias(work[: self._vocab], np.array(ids, np.int64), np.array(bias, np.float32))
        if mask is not None:
            allowed = _bytes_of(mask)[: self._vocab]
            self.kernels.rule_out(work, address(allowed), len(allowed))
        if not may_stop:
            self._hold_back([token for token in params.stop_ids if token < self._vocab])
        chosen = self._choose(work, params, random)
        if work[chosen] == -np.inf:
            raise LocalossError("the constraint allows no token; this is a bug in the mask")
        return _token(chosen, logits, log_total, params.logprobs)

    def _hold_back(self, tokens: list[int]) -> None:
        """Rule `tokens` out, unless nothing else is left."""
        work = self._logits
        held = work[tokens]
        work[tokens] = -np.inf
        if work[self.kernels.best(work)] == -np.inf:
            work[tokens] = held

    def score(self, logits: NDArray[np.float32], token: int, logprobs: int = 0) -> Token:
        """Give `token` with its logprob under `logits` (V,) f32. Raises: LocalossError for NaN."""
        return _token(token, logits, self._load(logits), logprobs)

    def _load(self, logits: NDArray[np.float32]) -> float:
        """Copy `logits` into the working buffer, and give ln of the sum of their exponentials."""
        row = np.ascontiguousarray(logits, np.float32)
        log_total = float(self.kernels.load(self._logits, row))
        if not np.isfinite(log_total):
            raise LocalossError(
                "the model's output is not finite: `localoss verify` tells whether its files are damaged; "
                "if they are not, the checkpoint is, and `localoss quantize` names the tensor"
            )
        return log_total

    def _choose(
        self, logits: NDArray[np.float32], params: SamplingParams, random: np.random.Generator
    ) -> int:
        if params.temperature == 0:
            return int(self.kernels.best(logits))
        weights = self._weights
        self.kernels.to_weights(weights, logits, np.float32(max(params.temperature, 1e-4)))
        if params.top_k:
            self.kernels.keep_prefix(weights, params.top_k, np.inf)
        if params.top_p < 1:
            self.kernels.keep_prefix(
                weights, len(weights), params.top_p * self.kernels.drop_below(weights, 0.0)
            )
        if params.min_p:
            self.kernels.drop_below(weights, np.float32(params.min_p))
        return int(self.kernels.draw(weights, random.random()))


class Samplers:
    """Draws for several sequences at once, each thread with a sampler of its own: their kernels let go of
    Python's lock, and eight sequences with top-p took a tenth of a step one after the other.
    """

    def __init__(self, vocab: int, count: int) -> None:
        self.all = [Sampler(vocab) for _ in range(count)]

    @property
    def first(self) -> Sampler:
        """For whoever draws alone."""
        return self.all[0]

    def each(self, draw: Callable[[S, Sampler], T], sequences: Sequence[S]) -> list[T]:
        """What `draw` gives for each of `sequences`, in their order. It must raise nothing."""
        shares = [sequences[n :: len(self.all)] for n in range(min(len(self.all), len(sequences)))]
        if len(shares) < 2:
            return [draw(one, self.first) for one in sequences]
        drawn = list(self._pool.map(self._draw_share, repeat(draw), shares, self.all))
        return [drawn[n % len(shares)][n // len(shares)] for n in range(len(sequences))]

    def _draw_share(self, draw: Callable[[S, Sampler], T], share: Sequence[S], sampler: Sampler) -> list[T]:
        return [draw(one, sampler) for one in share]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self.all), "sampler")


def _bytes_of(mask: Any) -> NDArray[np.uint8]:
    """A mask as kernels take it, whatever numbers a caller made it of."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.uint8:
        return np.ascontiguousarray(mask)
    allowed: NDArray[np.uint8] = (np.asarray(mask) != 0).view(np.uint8)
    return allowed


def _token(token: int, logits: NDArray[np.float32], log_total: float, top: int) -> Token:
    likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.intp)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    ranked = tuple((int(i), float(logits[i]) - log_total) for i in likeliest)
    return Token(token, float(logits[token]) - log_total, ranked)
