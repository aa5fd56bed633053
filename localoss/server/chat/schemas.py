"""The body of /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field

from localoss.server.core.schemas import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Effort,
    JsonSchemaFormat,
    Known,
    Sampled,
    Seed,
    Stop,
    StreamOptions,
    ThinkBudget,
    Tolerant,
    ToolChoice,
    Tools,
)


class ContentPart(Tolerant):
    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Tolerant):
    name: str
    arguments: str | dict[str, Any] | None = None


class CustomCall(Tolerant):
    name: str
    input: str


class SentCall(Tolerant):
    id: str = ""
    type: Literal["function", "custom"] | None = None
    function: CalledFunction | None = None
    custom: CustomCall | None = None


class ChatMessage(Tolerant):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[SentCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Reasoning(Tolerant):
    effort: Effort | None = None


class TemplateOptions(Known):
    reasoning_effort: Effort | None = None


class ResponseFormat(Known):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(Sampled):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: TemplateOptions | None = None
    think_budget: ThinkBudget = None
    max_tokens: Annotated[int | None, Field(ge=-1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=-1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    seed: Seed = None
    stop: Stop = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    stream_options: StreamOptions | None = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    functions: Tools = None
    function_call: ToolChoice = None
    response_format: ResponseFormat | None = None
    # Without effect here: one call a turn is what harmony has, and nothing is billed, stored or moderated.
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    # Not supported: refused unless they ask for nothing.
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None


NEUTRAL: dict[str, list[Any]] = {
    "modalities": [["text"]],
    "audio": [],
}
