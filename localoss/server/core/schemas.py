"""What the requests of all endpoints have in common. OpenAI's names; its own reference describes them.

Every list has a bound (tests/test_server_bounds.py finds one that has none) and ends at its first error, for
pydantic would make an error of every element: so use Items, Pairs and Name.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from localoss.server.core.errors import ApiError


def _effort_word(value: Any) -> Any:
    """Efforts in any case; what asks for the usual one is as if it weren't there."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    return None if word in ("", "auto", "default") else word


Effort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None, BeforeValidator(_effort_word)
]
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}  # the model knows three
Schema = dict[str, Any]
MAX_STOPS, MAX_CHOICES, MAX_TOP_LOGPROBS, MAX_TOOLS = 16, 16, 20, 1024
MAX_ITEMS = 32_768  # messages: harmony takes four tokens for the shortest one
MAX_PAIRS = 1024

T = TypeVar("T")


def _few_pairs(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_PAIRS:
        raise PydanticCustomError("too_long", "at most 1,024 keys are taken")
    return value


Items = Annotated[list[T], Field(max_length=MAX_ITEMS, fail_fast=True)]
Pairs = Annotated[dict[str, T], BeforeValidator(_few_pairs), Field(max_length=MAX_PAIRS)]
Name = Annotated[str, Field(max_length=512)]
# OpenAI's own bounds.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    BeforeValidator(_few_pairs),
    Field(max_length=16),
]


class Known(BaseModel):
    """An object all of whose fields are known: any other is named (fields.py), never dropped silently."""

    model_config = ConfigDict(extra="allow")


class Tolerant(BaseModel):
    """An object that clients send back with more fields than we need."""

    model_config = ConfigDict(extra="ignore")


class Sampled(Known):
    """How tokens are drawn. top_k, min_p and, where there is thinking, think_budget are ours."""

    model: Annotated[str, Field(max_length=512, description="A name that /v1/models lists.")]
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, le=1_000_000)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=10)] = None
    repeat_penalty: Annotated[float | None, Field(ge=0.01, le=10)] = None
    logit_bias: Pairs[float] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int | None, Field(ge=0)] = None
    stream: bool | None = None
    user: Annotated[Name | None, Field(description="Without effect.")] = None


class Error(BaseModel):
    """What is wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal's body."""

    error: Error


STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}  # what an endpoint documents that can stream
LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
}  # and one of Ollama's


class StreamOptions(Known):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(Tolerant):
    name: Annotated[str, Field(max_length=64)] = "response"
    description: str | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


Tools = Annotated[
    list[dict[str, Any]] | None,
    Field(
        max_length=MAX_TOOLS, fail_fast=True, description="Functions: name, description, parameters, strict."
    ),
]
ToolChoice = Annotated[
    str | dict[str, Any] | None, Field(description="none, auto, required, a tool or allowed_tools.")
]
Stop = Annotated[
    str | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None,
    Field(description="Text that ends the answer, and isn't part of it."),
]
ThinkBudget = Annotated[
    int | None, Field(ge=0, description="After so many tokens of thinking the answer begins.")
]
Seed = Annotated[int | None, Field(ge=-(2**63), lt=2**63)]


def effort_of(asked: str | None) -> str:
    """The model's effort for a request's."""
    return _EFFORTS.get(asked or "medium", asked or "medium")


def bias_of(given: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    """What is added to tokens' logits, by their ids. Raises: ApiError for what is no token or bias."""
    pairs = []
    for token, bias in (given or {}).items():
        if not token.isdecimal() or len(token) > 6 or not -100 <= bias <= 100:
            raise ApiError("logit_bias: use ids of tokens, and -100 to 100", param="logit_bias")
        pairs.append((int(token), bias))
    return tuple(pairs)


def asks_no_thinking(*said: Any) -> bool:
    """Whether one of the ways to switch thinking off that other servers have was used."""
    return any(one is False or one == "disabled" for one in said)


def limit_of(*asked: int | None) -> int | None:
    """The most tokens of an answer, of the first field that says it; -1 asks for no limit."""
    limit = next((one for one in asked if one is not None), None)
    return None if limit == -1 else limit


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop or []) if text)


def refuse_unless(request: BaseModel, neutral: Mapping[str, Sequence[Any]]) -> None:
    """Raises: ApiError for a field of `request` that isn't supported; `neutral` values ask for nothing."""
    for name, values in neutral.items():
        value = getattr(request, name)
        if value is not None and value not in values:
            raise ApiError(
                f"{name} isn't supported by localoss; leave it out", code="unsupported_parameter", param=name
            )
