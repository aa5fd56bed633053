"""The body of /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from localoss.server.core.content import json_unless_parts
from localoss.server.core.schemas import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Effort,
    Items,
    JsonSchemaFormat,
    Known,
    Name,
    Pairs,
    Sampled,
    Schema,
    Seed,
    Stop,
    StreamOptions,
    ThinkBudget,
    Tolerant,
    ToolChoice,
    Tools,
)


class ContentPart(Tolerant):
    type: Name = "text"
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Tolerant):
    name: Name
    arguments: str | dict[str, Any] | Items[Any] | None = None


class CustomCall(Tolerant):
    name: Name
    input: str


class SentCall(Tolerant):
    id: Name | None = None
    type: Name | None = None
    function: CalledFunction | None = None
    custom: CustomCall | None = None


class ChatMessage(Tolerant):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Items[ContentPart] | None = None
    tool_calls: Items[SentCall] | None = None
    tool_call_id: Name | None = None
    name: Name | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None

    @field_validator("content", mode="before")
    @classmethod
    def _as_text(cls, content: Any, known: ValidationInfo) -> Any:
        """What a tool gave may be any JSON."""
        return json_unless_parts(content) if known.data.get("role") in ("tool", "function") else content


class Reasoning(Known):
    """Of OpenRouter's form: enabled, max_tokens and exclude are its own."""

    effort: Effort = None
    enabled: bool | None = None
    max_tokens: ThinkBudget = None
    exclude: bool | None = None


class Thinking(Known):
    """Anthropic's form, which other servers take on this path, too."""

    type: Name | None = None
    budget_tokens: ThinkBudget = None


class TemplateOptions(Known):
    reasoning_effort: Effort = None
    enable_thinking: bool | None = None


class ResponseFormat(Known):
    """schema beside json_object is llama.cpp's and others' way to give one."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None


class ChatRequest(Sampled):
    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    reasoning_effort: Effort = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
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
    return_progress: Annotated[
        bool | None, Field(description="Chunks of a stream tell how far the prompt is read, as llama.cpp's.")
    ] = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    functions: Tools = None
    function_call: ToolChoice = None
    response_format: ResponseFormat | None = None
    # Without effect here: one call a turn is what harmony has, and nothing is billed, stored or moderated.
    parallel_tool_calls: bool | None = None
    metadata: Pairs[Any] | None = None
    store: bool | None = None
    service_tier: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    verbosity: Name | None = None
    # Not supported: refused unless they ask for nothing.
    modalities: Items[Name] | None = None
    audio: dict[str, Any] | None = None


NEUTRAL: dict[str, Items[Any]] = {
    "modalities": [["text"], []],
    "audio": [],
}
