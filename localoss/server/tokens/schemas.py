"""The body of /localoss/tokens."""

from typing import Annotated, Literal

from pydantic import Field

from localoss.chat import harmony
from localoss.server.core.schemas import MAX_TOOLS, MAX_TOP_LOGPROBS, Known, Name, Pairs, Schema, Seed

TokenId = Annotated[int, Field(ge=0, lt=harmony.VOCABULARY_TOKENS)]


class Arguments(Known):
    """What the arguments of a function are held to; strict: to every keyword."""

    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool


class Rules(Known):
    """What a chat's answer may be: see AnswerRules and ChatSetup."""

    functions: Annotated[tuple[Name, ...], Field(max_length=MAX_TOOLS)] = ()
    builtin_tools: Annotated[tuple[Literal["python", "browser"], ...], Field(max_length=2)] = ()
    must_call: bool = False
    preambles: bool = True
    arguments: Pairs[Arguments] | None = None
    think_budget: Annotated[int | None, Field(ge=0)] = None


class TokensRequest(Known):
    """rules: of a chat's answer; None for raw text that goes on. The others are those of SamplingParams."""

    model: Name
    prompt: Annotated[list[TokenId], Field(max_length=1_000_000, fail_fast=True)]
    rules: Rules | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: Seed = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
