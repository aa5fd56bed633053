"""The body of /v1/completions, and the tokens of its prompts."""

from typing import Annotated, Any

from pydantic import Field

from localoss.chat import harmony
from localoss.errors import TooManyTokensError
from localoss.server.core.errors import ApiError
from localoss.server.core.schemas import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Items,
    Sampled,
    Seed,
    Stop,
    StreamOptions,
)

_MAX_PROMPTS = 256
TokenId = Annotated[int, Field(ge=0, lt=harmony.VOCABULARY_TOKENS)]
Tokens = Annotated[list[TokenId], Field(max_length=1_000_000, fail_fast=True)]
Prompts = Items[str] | Tokens | Items[Tokens]


class CompletionRequest(Sampled):
    """The body of /v1/completions."""

    prompt: str | Prompts
    max_tokens: Annotated[int | None, Field(ge=-1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    best_of: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    seed: Seed = None
    stop: Stop = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None


def text_chars(prompt: str | list[Any]) -> int:
    """How many characters there are to be tokenized."""
    return len(prompt) if isinstance(prompt, str) else sum(len(x) for x in prompt if isinstance(x, str))


def token_lists(prompt: str | list[Any], most_tokens: int) -> list[list[int]]:
    """The tokens of each prompt. Raises: ApiError for too many prompts, TooManyTokensError for one."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if len(prompt) > _MAX_PROMPTS:
        raise ApiError(f"{len(prompt)} prompts; send at most {_MAX_PROMPTS}", param="prompt")
    tokens = [harmony.encode_raw(one, most_tokens) if isinstance(one, str) else list(one) for one in prompt]
    if (most := max(map(len, tokens), default=0)) > most_tokens:
        raise TooManyTokensError(most)
    return [one or [harmony.END_OF_TEXT] for one in tokens or [[]]]
