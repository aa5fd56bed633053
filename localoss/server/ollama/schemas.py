"""The bodies of Ollama's endpoints."""

from typing import Annotated, Any, Literal

from pydantic import Field

from localoss.server.chat.schemas import CalledFunction
from localoss.server.core.schemas import Effort, Known, Seed, Stop, Tolerant, Tools

Think = bool | Effort
ModelName = Annotated[str, Field(max_length=512)]


class Options(Known):
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, le=1_000_000)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Seed = None
    num_predict: Annotated[int | None, Field(ge=-2)] = None
    stop: Stop = None
    repeat_penalty: Annotated[float | None, Field(ge=0.01, le=10)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    # Without effect here: the server's own --context, --threads and --gpu-layers hold.
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_keep: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    main_gpu: int | None = None
    low_vram: bool | None = None
    numa: bool | None = None
    vocab_only: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None


class Call(Tolerant):
    id: Annotated[str, Field(max_length=256)] = ""
    function: CalledFunction


class OllamaMessage(Tolerant):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[Any] | None, Field(max_length=64, fail_fast=True)] = None
    tool_calls: Annotated[list[Call] | None, Field(max_length=1024, fail_fast=True)] = None
    tool_name: Annotated[str | None, Field(max_length=256)] = None
    tool_call_id: Annotated[str | None, Field(max_length=256)] = None


class Asked(Known):
    """What /api/chat and /api/generate have in common."""

    model: ModelName
    stream: bool | None = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    options: Options | None = None
    think: Think | None = None
    keep_alive: Any = None


class ChatRequest(Asked):
    messages: Annotated[list[OllamaMessage] | None, Field(max_length=32_768, fail_fast=True)] = None
    tools: Tools = None


class GenerateRequest(Asked):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Annotated[list[Any] | None, Field(max_length=64, fail_fast=True)] = None


class NamedModel(Known):
    """The body of /api/show, /api/pull and /api/delete; older clients say `name`."""

    model: ModelName | None = None
    name: ModelName | None = None
    stream: bool | None = None
    verbose: bool | None = None
    insecure: bool | None = None
