"""What can be asked of localoss: how a model is loaded, how tokens are drawn, and who hears of what goes on.

One frozen object each, taken whole by everything between the user and the engine. No NumPy: commands and
plans want these at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from localoss.errors import UsageError

KV_DTYPES = ("f16", "f32", "int8")
ACTIVATIONS = ("int8", "f32")
MOST_SLOTS = 8  # that are taken unasked: more share an expert's bytes hardly better
STOP_IDS = (199_999, 200_002, 200_012)  # the end of a text, and harmony's return and call
FIRST_CONTROL_ID = 199_998  # of gpt-oss: text stands below


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; see localoss.load.

    context_tokens: room of each slot, in tokens; None for the most that is usual and fits.
    threads: on the CPU; None for one per core.
    kv_dtype: numbers of the KV cache, one of KV_DTYPES.
    activations: "int8", fast, or "f32", exact and slower.
    memory_limit: bytes; None for what the machine or its control group can give.
    gpu_layers: how many of the last layers run on a GPU, "all" with the unembedding, or "auto".
    gpu_experts: how many of these layers, the last ones, have their experts there, too, while the CPU runs
        those of the others; "none", or "auto" for as many as fit. None for all. It asks for all layers where
        gpu_layers doesn't say how many.
    gpu_memory: bytes that these may take; None for what the GPU is known to have.
    prompt_tokens: room that a context which is chosen leaves in any case.
    slots: sequences whose memory is taken at once; None for as many as fit, up to MOST_SLOTS.
    must_fit: refuse a model whose weights would come from the disk again and again.
    lookup: draft tokens from what was said before, and run them along with each token.
    chunk_tokens: tokens of a forward pass at most.
    expert_memory: bytes of experts to keep in memory while the others stay on the disk; None for what is
        free if the model is larger, 0 to leave all to the system's page cache.
    adapters: LoRA adapters beside the weights, DIR or DIR:SCALE each: all sequences run with all of these.
        Of NAME=DIR those of one NAME are a set, which a sequence has to ask for.
    gentle: leave the machine to whatever else wants it: the whole process gets a low priority, and on battery
        it rests as long as it worked.
    ray: the address of a Ray cluster, or auto. spread: share the layers out among its machines.
    """

    context_tokens: int | None = 8192
    threads: int | None = None
    kv_dtype: str = "f16"
    activations: str = "int8"
    memory_limit: int | None = None
    gpu_layers: int | str = 0
    gpu_experts: int | str | None = None
    gpu_memory: int | None = None
    prompt_tokens: int = 0
    slots: int | None = 1
    must_fit: bool = False
    lookup: bool = False
    chunk_tokens: int = 512
    expert_memory: int | None = None
    adapters: tuple[str, ...] = ()
    gentle: bool = False
    ray: str | None = None
    spread: bool = False

    def __post_init__(self) -> None:
        """Raises: UsageError for a value out of range; what depends on the model, the loader checks."""
        if self.activations not in ACTIVATIONS:
            raise UsageError(f"activations is {self.activations!r}; use int8 (fast) or f32 (exact, slower)")
        if self.kv_dtype not in KV_DTYPES:
            raise UsageError(f"kv_dtype is {self.kv_dtype!r}; use {', '.join(KV_DTYPES)}")
        if self.chunk_tokens < 1:
            raise UsageError(f"chunk_tokens is {self.chunk_tokens}; use 1 or more")
        if self.slots is not None and self.slots < 1:
            raise UsageError(f"slots is {self.slots}; use 1 or more")

        if isinstance(self.adapters, str):
            raise UsageError(f"adapters is {self.adapters!r}; use a list, [{self.adapters!r}]")
        if self.adapters and self.uses_a_device:
            raise UsageError(
                "adapters run on the CPU alone; leave out --gpu-layers, or `localoss merge` them"
            )
        if self.expert_memory and self.uses_a_device:
            raise UsageError("with --gpu-layers experts are mapped; leave out one of it and --expert-memory")
        if self.spread and not self.ray:
            raise UsageError("--spread shares a model out among machines; --ray ADDRESS says which")
        if self.spread and self.adapters:
            raise UsageError("adapters run on one machine; leave out --spread, or `localoss merge` them")
        if self.spread and (self.gpu_layers or self.expert_memory is not None):
            raise UsageError(
                "--spread decides itself where layers go; leave out --gpu-layers, --expert-memory"
            )

    @property
    def uses_a_device(self) -> bool:
        """Whether something other than the CPU runs layers, if there is such a thing."""
        return bool(self.gpu_layers) or self.gpu_experts is not None

    @property
    def is_exact(self) -> bool:
        return self.activations == "f32"


@dataclass(frozen=True)
class SamplingParams:
    """How a sequence's tokens are drawn, and when it ends; the cuts apply in this order.

    temperature: 0 takes the likeliest token. top_k: draw from so many of the likeliest; 0 for all.
    top_p: draw from the likeliest tokens that make up this share. min_p: leave out tokens less likely than
    this share of the likeliest. seed: None goes on with the sequence's own random state.
    max_tokens: None for no limit. logprobs: how many of the likeliest tokens each token comes with.
    stop_ids: tokens that end the sequence; they are given, too.
    frequency_penalty, presence_penalty: taken from a token's logit for each time that it was drawn, and once
    if it was. repetition_penalty: divides the logits of tokens that were read or drawn, where positive, and
    multiplies negative ones; 1 for none. Control tokens have no penalties. logit_bias: ids, and what is added
    to their logits. min_tokens: until so many are drawn no token of stop_ids is, unless no other may be.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    logprobs: int = 0
    stop_ids: tuple[int, ...] = STOP_IDS
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0

    @property
    def has_penalties(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1)

    def __post_init__(self) -> None:
        """Raises: UsageError for a value out of range."""
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; use 0 (greedy) to 100")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; use 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; use more than 0, at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}; use 0 to 1")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise UsageError(f"max_tokens is {self.max_tokens}; use 0 or more, or none for no limit")
        if not all(-100 <= value <= 100 for value in (self.frequency_penalty, self.presence_penalty)):
            raise UsageError("frequency_penalty and presence_penalty: use -100 to 100")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; use 0.01 to 100, 1 for none")


def _ignore(*news: Any) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Listener:
    """Who hears of what goes on; each is called on the thread that does the work.

    notice: told a line for the user. compiling: the name of each kernel that is compiled, once on a machine.
    uploading: how many layers another device has, of how many. prefill: how many tokens of a prompt are
    done, of how many.
    """

    notice: Callable[[str], None] = _ignore
    compiling: Callable[[str], None] = _ignore
    uploading: Callable[[int, int], None] = _ignore
    prefill: Callable[[int, int], None] = _ignore


_Options = TypeVar("_Options", LoadOptions, SamplingParams, Listener)
# Names that these options had before.
_FORMER_NAMES = {"conversations": "slots", "top_logprobs": "logprobs"}


def changed(options: _Options, changes: dict[str, Any]) -> _Options:
    """`options` with `changes`, by name; former names count. Raises: UsageError for a name that is none."""
    known = [field.name for field in fields(options)]
    renamed = {_FORMER_NAMES.get(name, name): value for name, value in changes.items()}
    for name in renamed:
        if name not in known:
            raise UsageError(f"there is no option {name}; there are {', '.join(known)}")
    for name in ("stop_ids", "adapters"):
        if name in renamed and not isinstance(renamed[name], str):
            renamed[name] = tuple(renamed[name])
    return replace(options, **renamed) if renamed else options
