"""From logits to a token: greedy, or drawn with temperature, top-k, top-p and min-p."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localoss.errors import LocalossError, UsageError
from localoss.kernels import sampling as kernels


@dataclass(frozen=True)
class Token:
    """A sampled token. logprob: ln of its probability under the model, before sampling options and mask.

    top: ids and logprobs of the likeliest tokens, the likeliest first, where they were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token; the cuts apply in this order. Raises: UsageError for a value out of range.

    temperature: 0 takes the likeliest. top_k: 0 for all. top_p: keep the likeliest tokens that make up this
    share. min_p: keep tokens at least this fraction as likely as the likeliest.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; use 0 (greedy) to 100")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; use 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; use more than 0, at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}; use 0 to 1")


class Sampler:
    """Chooses among `vocab` tokens; its buffers are reused from token to token."""

    def __init__(self, vocab: int):
        padded = -(-vocab // 8) * 8
        self._vocab = vocab
        self._logits = np.full(padded, -np.inf, np.float32)
        self._weights = np.zeros(padded, np.float32)

    def choose(
        self,
        logits: NDArray[np.float32],
        options: SamplingOptions,
        random: np.random.Generator,
        mask: NDArray[np.uint8] | None = None,
        top_logprobs: int = 0,
    ) -> Token:
        """Choose one of `logits` (V,) f32; `mask` (V,) is nonzero where a token is allowed.

        top_logprobs: how many of the likeliest tokens to give with it.
        Raises: LocalossError if the mask allows nothing or the logits hold NaN.
        """
        work = self._logits
        log_total = self._load(logits)
        if mask is not None:
            work[: self._vocab][np.asarray(mask) == 0] = -np.inf
        chosen = self._choose(work, options, random)
        if work[chosen] == -np.inf:
            raise LocalossError("the constraint allows no token; this is a bug in the mask")
        return _token(chosen, logits, log_total, top_logprobs)

    def judge(self, logits: NDArray[np.float32], token: int, top_logprobs: int = 0) -> Token:
        """Give `token` with its logprob under `logits` (V,) f32. Raises: LocalossError for NaN."""
        return _token(token, logits, self._load(logits), top_logprobs)

    def _load(self, logits: NDArray[np.float32]) -> float:
        """Copy `logits` into the working buffer, and give ln of the sum of their exponentials."""
        self._logits[: self._vocab] = logits
        log_total = float(kernels.log_sum_exp(self._logits))
        if not np.isfinite(log_total):
            raise LocalossError("the model's output is not finite; check its files with `localoss verify`")
        return log_total

    def _choose(
        self, logits: NDArray[np.float32], options: SamplingOptions, random: np.random.Generator
    ) -> int:
        if options.temperature == 0:
            return int(kernels.best(logits))
        weights = self._weights
        kernels.to_weights(weights, logits, np.float32(max(options.temperature, 1e-4)))
        if options.top_k:
            kernels.keep_prefix(weights, options.top_k, np.inf)
        if options.top_p < 1:
            kernels.keep_prefix(weights, len(weights), options.top_p * kernels.drop_below(weights, 0.0))
        if options.min_p:
            kernels.drop_below(weights, np.float32(options.min_p))
        return int(kernels.draw(weights, random.random()))


def _token(token: int, logits: NDArray[np.float32], log_total: float, top: int) -> Token:
    likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.intp)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    ranked = tuple((int(i), float(logits[i] - log_total)) for i in likeliest)
    return Token(token, float(logits[token] - log_total), ranked)
