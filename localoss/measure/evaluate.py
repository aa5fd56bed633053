"""How well a model predicts a text, and how far its predictions are from another model's.

Logits are looked at a few positions at a time and never kept: memory doesn't grow with the text.
"""

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from localoss.engine.engine import Engine
from localoss.errors import Cancelled, UsageError
from localoss.model.stack import F32Array

F64 = NDArray[np.float64]
_EMPTY: F64 = np.empty(0)


@dataclass(frozen=True)
class Scores:
    """One number per scored token. What compares with a reference model is empty without one.

    nll and reference_nll: -ln of the probability that the model, or the reference, gave to the token.
    kl: KL(reference || model) of the predictions before it, in nats. agrees: 1 where both predict the same
    token first, else 0.
    """

    nll: F64 = field(default_factory=lambda: _EMPTY)
    reference_nll: F64 = field(default_factory=lambda: _EMPTY)
    kl: F64 = field(default_factory=lambda: _EMPTY)
    agrees: F64 = field(default_factory=lambda: _EMPTY)

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll.mean()))

    @property
    def perplexity_error(self) -> float:
        """The standard error of the perplexity, were the tokens independent."""
        return float(self.perplexity * float(self.nll.std()) / len(self.nll) ** 0.5)

    @property
    def reference_perplexity(self) -> float:
        return float(np.exp(self.reference_nll.mean()))

    @property
    def mean_kl(self) -> float:
        return float(self.kl.mean())

    @property
    def p99_kl(self) -> float:
        return float(np.percentile(self.kl, 99))

    @property
    def top1_agreement(self) -> float:
        return float(self.agrees.mean())


def joined(parts: Seq[Scores]) -> Scores:
    names = ("nll", "reference_nll", "kl", "agrees")
    return Scores(*(np.concatenate([_EMPTY, *(getattr(part, name) for part in parts)]) for name in names))


def score(
    engine: Engine,
    tokens: Seq[int],
    first: int = 1,
    reference: Engine | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Scores]:
    """Scores of tokens[first:], some at a time, each token predicted from all of `tokens` before it.

    first: 1 or more, since nothing predicts the first token. Raises: as Engine.stream_logits does.
    """
    if not 1 <= first < len(tokens):
        raise UsageError(f"of {len(tokens)} tokens none is predicted from others; give a longer text")
    streams = [
        model.stream_logits(tokens[:-1], first - 1, cancelled=cancelled)
        for model in (engine, reference)
        if model
    ]
    comparer = _Comparer(engine.config.vocab)
    for pieces in zip(*streams, strict=True):
        targets = np.asarray(tokens[first : first + len(pieces[0])])
        first += len(targets)
        yield comparer.scores(targets, *pieces)


def score_text(
    engine: Engine,
    tokens: Seq[int],
    stride: int,
    reference: Engine | None = None,
    *,
    progress: Callable[[Scores], None] = lambda scores: None,
    cancelled: Callable[[], bool] | None = None,
) -> Scores:
    """Scores of all `tokens` but the first, in windows of the engine's context: see windows.

    progress(scores) tells those of the last few tokens. When cancelled, gives what it has.
    """
    parts: list[Scores] = []
    try:
        for start, end, first in windows(len(tokens), engine.context_tokens, stride):
            for part in score(engine, tokens[start:end], first, reference, cancelled):
                parts.append(part)
                progress(part)
    except Cancelled:
        pass
    return joined(parts)


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text for a context that it doesn't fit: (start, end, first token to score) of each window.

    Windows begin `stride` tokens after each other. Each token but the first is scored once, from at least
    `context` - `stride` tokens before it. Raises: UsageError for a stride that leaves none of them.
    """
    if not 1 <= stride < context:
        raise UsageError(f"stride is {stride:,}; use 1 to {context - 1:,}, less than the context")
    start, end = 0, 1
    while end < tokens:
        first, end = end, min(start + context, tokens)
        yield start, end, first - start
        start += stride


class _Comparer:
    """Scores row after row of logits in buffers of one row: fresh ones for all rows take most of the time."""

    def __init__(self, vocab: int):
        self._exps, self._reference_exps = np.empty(vocab, np.float32), np.empty(vocab, np.float32)

    def scores(
        self, targets: NDArray[np.int64], logits: F32Array, reference: F32Array | None = None
    ) -> Scores:
        """Scores of `targets` (n,) from logits (n, V) before each of them, and from the reference's."""
        count = len(targets)
        nll, compared = np.empty(count), 0 if reference is None else count
        reference_nll, kl, agrees = (np.empty(compared) for _ in range(3))
        for i, target in enumerate(targets):
            top, total = _exponentials(logits[i], self._exps)
            nll[i] = total - logits[i, target]
            if reference is not None:
                other_top, other_total = _exponentials(reference[i], self._reference_exps)
                reference_nll[i] = other_total - reference[i, target]
                agrees[i] = top == other_top
                kl[i] = self._divergence(logits[i], total, reference[i], other_total)
        return Scores(nll, reference_nll, kl, agrees)

    def _divergence(self, row: F32Array, total: float, reference: F32Array, reference_total: float) -> float:
        """KL(reference || row), never below 0; the buffers hold their exponentials."""
        weights, differences = self._reference_exps, self._exps
        np.subtract(reference, row, out=differences)
        differences += np.float32(total - reference_total)
        return max(float(weights @ differences) / float(weights.sum()), 0.0)


def _exponentials(row: F32Array, out: F32Array) -> tuple[int, float]:
    """Write exp(row - its largest) to `out`; gives where that is, and ln of the sum of exp(row)."""
    top = int(row.argmax())
    np.subtract(row, row[top], out=out)
    np.exp(out, out=out)
    return top, float(row[top]) + math.log(float(out.sum()))
