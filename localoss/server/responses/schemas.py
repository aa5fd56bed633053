"""The body of /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from localoss.server.core.content import json_unless_parts
from localoss.server.core.schemas import (
    MAX_TOP_LOGPROBS,
    Effort,
    Items,
    JsonSchemaFormat,
    Known,
    Metadata,
    Name,
    Sampled,
    Seed,
    StreamOptions,
    ThinkBudget,
    Tolerant,
    ToolChoice,
    Tools,
)


class InputPart(Tolerant):
    type: Name
    text: str | None = None
    refusal: str | None = None


class InputItem(Tolerant):
    """A message, a call, its result, or thinking; what `type` says decides which fields count."""

    type: Name | None = None
    role: Literal["system", "developer", "user", "assistant", "tool", "function"] | None = None
    id: Name | None = None
    content: str | Items[InputPart] | None = None
    phase: Name | None = None
    call_id: Name | None = None
    name: Name | None = None
    namespace: Name | None = None
    arguments: str | dict[str, Any] | Items[Any] | None = None
    input: str | None = None
    action: dict[str, Any] | None = None
    summary: Items[InputPart] | None = None
    output: str | Items[InputPart] | None = None
    server_label: Name | None = None
    error: str | dict[str, Any] | None = None
    approval_request_id: Name | None = None
    approve: bool | None = None
    reason: str | None = None

    @field_validator("output", mode="before")
    @classmethod
    def _as_text(cls, output: Any) -> Any:
        """What a tool gave may be any JSON."""
        return json_unless_parts(output)


class Reasoning(Known):
    effort: Effort = None
    summary: Name | None = None
    generate_summary: Name | None = None  # the former name of `summary`


class TextFormat(JsonSchemaFormat):
    type: Literal["text", "json_object", "json_schema"]


class TextOptions(Known):
    format: TextFormat | None = None
    verbosity: Name | None = None


class ResponseRequest(Sampled):
    input: str | Annotated[Items[InputItem], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: Annotated[str | None, Field(max_length=128)] = None
    store: bool | None = None
    reasoning: Reasoning | None = None
    think_budget: ThinkBudget = None
    max_output_tokens: Annotated[int | None, Field(ge=-1)] = None
    text: TextOptions | None = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    metadata: Metadata | None = None
    include: Items[Name] | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    seed: Seed = None
    stream_options: StreamOptions | None = None
    # Without effect here.
    parallel_tool_calls: bool | None = None
    truncation: Name | None = None
    service_tier: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    # Not supported: refused unless they ask for nothing.
    conversation: Any = None
    prompt: Any = None


NEUTRAL: dict[str, Items[Any]] = {
    "conversation": [],
    "prompt": [],
}
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content", "code_interpreter_call.outputs")
