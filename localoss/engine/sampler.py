"""From logits to a token: greedy, or drawn with temperature, top-k, top-p and min-p."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localoss.errors import LocalossError
from localoss.kernels import sampling as kernels
from localoss.options import SamplingParams


@dataclass(frozen=True)
class Token:
    """A sampled token. logprob: ln of its probability under the model, before sampling options and mask.

    top: ids and logprobs of the likeliest tokens, the likeliest first, where they were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


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
        params: SamplingParams,
        random: np.random.Generator,
        mask: NDArray[np.uint8] | None = None,
    ) -> Token:
        """Choose one of `logits` (V,) f32; `mask` (V,) is nonzero where a token is allowed.

        Raises: LocalossError if the mask allows nothing or the logits hold NaN.
        """
        work = self._logits
        log_total = self._load(logits)
        if mask is not None:
            work[: self._vocab][np.asarray(mask) == 0] = -np.inf
        chosen = self._choose(work, params, random)
        if work[chosen] == -np.inf:
            raise LocalossError("the constraint allows no token; this is a bug in the mask")
        return _token(chosen, logits, log_total, params.logprobs)

    def score(self, logits: NDArray[np.float32], token: int, logprobs: int = 0) -> Token:
        """Give `token` with its logprob under `logits` (V,) f32. Raises: LocalossError for NaN."""
        return _token(token, logits, self._load(logits), logprobs)

    def _load(self, logits: NDArray[np.float32]) -> float:
        """Copy `logits` into the working buffer, and give ln of the sum of their exponentials."""
        self._logits[: self._vocab] = logits
        log_total = float(kernels.log_sum_exp(self._logits))
        if not np.isfinite(log_total):
            raise LocalossError("the model's output is not finite; check its files with `localoss verify`")
        return log_total

    def _choose(
        self, logits: NDArray[np.float32], params: SamplingParams, random: np.random.Generator
    ) -> int:
        if params.temperature == 0:
            return int(kernels.best(logits))
        weights = self._weights
        kernels.to_weights(weights, logits, np.float32(max(params.temperature, 1e-4)))
        if params.top_k:
            kernels.keep_prefix(weights, params.top_k, np.inf)
        if params.top_p < 1:
            kernels.keep_prefix(weights, len(weights), params.top_p * kernels.drop_below(weights, 0.0))
        if params.min_p:
            kernels.drop_below(weights, np.float32(params.min_p))
        return int(kernels.draw(weights, random.random()))


def _token(token: int, logits: NDArray[np.float32], log_total: float, top: int) -> Token:
    likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.intp)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    ranked = tuple((int(i), float(logits[i] - log_total)) for i in likeliest)
    return Token(token, float(logits[token] - log_total), ranked)
