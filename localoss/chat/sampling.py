"""How an answer's tokens are drawn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and how many at most; the engine says what each takes.

    think_budget: after so many tokens of thinking the final answer must begin.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    top_logprobs: int = 0  # how many of the likeliest tokens each token comes with
    think_budget: int | None = None
