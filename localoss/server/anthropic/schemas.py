"""The bodies of /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, Any, Literal

from pydantic import Field

from localoss.server.core.schemas import Effort, Items, Known, Sampled, Schema, Tolerant

_MAX_BLOCKS, _MAX_MESSAGES, _MAX_TOOLS = 32_768, 32_768, 1024


class Block(Tolerant):
    """A part of a message's content; what `type` says decides which fields count."""

    type: Annotated[str, Field(max_length=128)]
    text: str | None = None
    thinking: str | None = None
    id: Annotated[str | None, Field(max_length=256)] = None
    name: Annotated[str | None, Field(max_length=256)] = None
    input: str | dict[str, Any] | Items[Any] | None = None
    source: Any = None
    title: str | None = None
    tool_use_id: Annotated[str | None, Field(max_length=256)] = None
    content: Any = None
    is_error: bool | None = None
    refusal: str | None = None


Content = str | Annotated[list[Block], Field(max_length=_MAX_BLOCKS, fail_fast=True)]


class SentMessage(Tolerant):
    role: Literal["user", "assistant", "system"]
    content: Content


class ToolChoice(Tolerant):
    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str | None, Field(max_length=256)] = None


class Thinking(Tolerant):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int | None, Field(ge=0)] = None


class OutputFormat(Tolerant):
    type: Literal["json_schema"]
    schema_: Annotated[Schema, Field(alias="schema")]


class OutputConfig(Known):
    effort: Effort = None
    format: OutputFormat | None = None


class CountRequest(Sampled):
    messages: Annotated[list[SentMessage], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)]
    system: Content | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=_MAX_TOOLS, fail_fast=True)] = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # its name before it was output_config.format
    # Without effect here: nothing is billed, and what is cached is found by itself.
    metadata: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    service_tier: str | None = None
    container: Any = None


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[str] | None, Field(max_length=64, fail_fast=True)] = None
