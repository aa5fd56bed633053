"""The memory plan: what a model will take, what this machine can give, and what fits.

The parts follow from the architecture, exactly and before anything is downloaded; see sizes.py. Only
PROGRAM_BYTES is measured. Everything is in bytes; texts say GB for 1e9.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from localoss.errors import UsageError
from localoss.options import MOST_SLOTS, LoadOptions
from localoss.plan.gpu_sizes import gpu_buffer_sizes, lane_tokens, offsets_size, stream_bytes, streams
from localoss.plan.sizes import (
    MOST_SNAPSHOTS,
    PASS_TOKENS,
    buffer_sizes,
    embedding_scale_bytes,
    layer_cache_bytes,
    layer_slots,
    logits_bytes,
    lookup_bytes,
    snapshot_bytes,
    waiting_bytes,
)
from quant.format.config import ModelConfig
from quant.format.layout import expert_run, layer_specs
from quant.format.manifest import Dtypes
from quant.format.sizes import class_bytes, expected_sizes
from quant.format.weight_formats import WEIGHT_FORMATS
from quant.format.writer import file_bytes

# Python, its libraries, the vocabulary and the compiled kernels, as benchmarks/memory.py measures them:
# what is resident at the end of `localoss run` with next to no model, on Linux x86-64 with Python 3.11.
PROGRAM_BYTES = 240_000_000
CHUNK_TOKENS = 512  # of a prompt, run at once

FITS, FROM_DISK, TOO_LARGE = "fits", "from disk", "too large"
USUAL_CONTEXTS = (32_768, 16_384, 8_192)  # what is chosen from where none is asked for
SMALL_CONTEXTS = (4_096, 2_048, 1_024)  # where not even the KV cache of the usual ones would fit
SHARED_CONTEXT = 16_384  # that each of several slots has at least, before there are more slots
_STEP_TOKENS = 1_024


@dataclass(frozen=True)
class Plan:
    """What a model takes with `slots` sequences of `context_tokens` each."""

    config: ModelConfig
    dtypes: Dtypes = field(default_factory=Dtypes)
    context_tokens: int = USUAL_CONTEXTS[-1]
    kv_dtype: str = "f16"
    slots: int = 1
    threads: int = 1
    chunk_tokens: int = CHUNK_TOKENS
    exact: bool = False  # activations stay float32
    lookup: bool = False  # draft tokens from what was said
    gpu_layers: int = 0  # the last ones, and the unembedding with all of them
    gpu_experts: int | None = None  # of these, the last so many have their experts there; None for all
    expert_slots: int = 0  # experts in memory while the others stay on the disk; 0: all are mapped
    adapter_bytes: int = 0  # of LoRA adapters beside the weights

    @classmethod
    def of(cls, config: ModelConfig, dtypes: Dtypes, options: LoadOptions) -> "Plan":
        """What a model takes that is loaded with `options`, all of its layers on the CPU.

        Without a context in the options it is the usual one: see choose_context.
        """
        return cls(
            config,
            dtypes,
            context_tokens=options.context_tokens or USUAL_CONTEXTS[-1],
            kv_dtype=options.kv_dtype,
            slots=options.slots or 1,
            threads=options.threads or 1,
            chunk_tokens=options.chunk_tokens,
            exact=options.is_exact,
            lookup=options.lookup,
        )

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of the model's files by class, without what lies on the GPU. They are mapped: the system can
        drop and read them again. With expert_slots only the embedding is, of which next to nothing is used,
        and all else is the process's own.
        """
        parts = class_bytes(self.config, self.dtypes)
        headers = expected_sizes(self.config, self.dtypes).model_bytes - sum(parts.values())
        every = {name: parts[name] // self.config.layers for name in ("experts", "attention")}
        parts["routers and norms"] += headers - self.gpu_layers * (self.layer_bytes - sum(every.values()))
        parts["attention"] -= self.gpu_layers * every["attention"]
        parts["experts"] -= self.gpu_expert_layers * every["experts"]
        if self.unembeds_on_gpu:
            parts["unembedding"] = 0
        if self.expert_slots:
            parts["experts"] = self.expert_slots * expert_run(self.config, self.dtypes.experts).size
            parts["embedding"] = embedding_scale_bytes(self.config, self.dtypes.embedding)
        return parts

    @property
    def pass_tokens(self) -> int:
        """How many tokens go through each layer at once; 0 for a chunk's."""
        return min(PASS_TOKENS, self.context_tokens) if self.expert_slots else 0

    @property
    def gpu_expert_layers(self) -> int:
        """How many layers have their experts on the GPU."""
        return self.gpu_layers if self.gpu_experts is None else min(self.gpu_experts, self.gpu_layers)

    @property
    def unembeds_on_gpu(self) -> bool:
        return self.gpu_layers == self.config.layers

    @cached_property
    def own(self) -> dict[str, int]:
        """Bytes that belong to the process alone: taken before the first token, and none after."""
        config, chunk = self.config, min(self.chunk_tokens, self.context_tokens)
        caches = self._cache_bytes[: config.layers - self.gpu_layers]
        sliding = sum(size for size, ring in zip(caches, config.is_sliding, strict=False) if ring)
        exact_experts = self.exact or not WEIGHT_FORMATS[self.dtypes.experts].has_scales
        buffers = buffer_sizes(config, chunk, self.threads, exact_experts, self.pass_tokens)
        waiting = waiting_bytes(config, self.slots, max(chunk, self.pass_tokens))
        logits = logits_bytes(config, self.slots, self.threads)
        drafts = self.slots * lookup_bytes(config, self.context_tokens) if self.lookup else 0
        bringing = self._stream_bytes
        return {
            "KV cache, full layers": self.slots * (sum(caches) - sliding),
            "KV cache, sliding layers": self.slots * sliding,
            "snapshots": self.slots * MOST_SNAPSHOTS * snapshot_bytes(config, self.kv_dtype),
            "scratch": sum(size.nbytes for size in buffers.values()) + waiting + logits + drafts + bringing,
            **({"adapters": self.adapter_bytes} if self.adapter_bytes else {}),
            "program": PROGRAM_BYTES,
        }

    @cached_property
    def on_gpu(self) -> dict[str, int]:
        """Bytes that the GPU's memory holds; nothing where no layer is on it."""
        if not self.gpu_layers:
            return {}
        config, chunk = self.config, min(self.chunk_tokens, self.context_tokens)
        here, every = self.gpu_expert_layers, class_bytes(config, self.dtypes)
        elsewhere, experts = self.gpu_layers - here, every["experts"] // config.layers
        lanes = [
            gpu_buffer_sizes(config, tokens, self.unembeds_on_gpu, here + streams(config, chunk, elsewhere))
            for tokens in lane_tokens(chunk, elsewhere)
        ]
        scratch = sum(size.nbytes for sizes in lanes for size in sizes.values()) + self._stream_bytes
        return {
            "layers": self.gpu_layers * (self.layer_bytes - experts),
            "experts": here * experts,
            "unembedding": every["unembedding"] if self.unembeds_on_gpu else 0,
            "KV cache": self.slots * sum(self._cache_bytes[config.layers - self.gpu_layers :]),
            "scratch": scratch + offsets_size(config).nbytes,
        }

    @cached_property
    def _stream_bytes(self) -> int:
        """Of experts that are on their way to a GPU that runs prompts with them: there, and here as well."""
        elsewhere = self.gpu_layers - self.gpu_expert_layers
        if not streams(self.config, min(self.chunk_tokens, self.context_tokens), elsewhere):
            return 0
        return stream_bytes(self.config, expert_run(self.config, self.dtypes.experts).size)

    @property
    def gpu_bytes(self) -> int:
        return sum(self.on_gpu.values())

    @cached_property
    def _cache_bytes(self) -> list[int]:
        """Of each layer's KV cache, for one conversation."""
        chunk = min(self.chunk_tokens, self.context_tokens)
        slots = layer_slots(self.config, self.context_tokens, chunk)
        return [layer_cache_bytes(self.config, count, self.kv_dtype) for count in slots]

    @property
    def weights_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def own_bytes(self) -> int:
        return sum(self.own.values())

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.own_bytes

    @property
    def kv_cache_bytes(self) -> int:
        return self.own["KV cache, full layers"] + self.own["KV cache, sliding layers"]

    @cached_property
    def layer_bytes(self) -> int:
        """The file of one layer."""
        return file_bytes(layer_specs(self.config, self.dtypes.attention, self.dtypes.experts))

    @property
    def least_bytes(self) -> int:
        """What it runs with at all, reading the other layers from the disk for every token."""
        return self.own_bytes + self.layer_bytes

    def verdict(self, limit_bytes: int) -> str:
        """FITS, FROM_DISK (it runs, but not all weights stay in memory) or TOO_LARGE."""
        if self.total_bytes <= limit_bytes:
            return FITS
        return FROM_DISK if self.least_bytes <= limit_bytes else TOO_LARGE

    def longest_context(self, limit_bytes: int, verdict: str = FITS) -> int:
        """The most context, in steps of 1,024, with which the verdict is as good; 0 if there is none."""
        good = (FITS,) if verdict == FITS else (FITS, FROM_DISK)

        def fits(tokens: int) -> bool:
            return replace(self, context_tokens=tokens).verdict(limit_bytes) in good

        if fits(self.config.context):
            return self.config.context
        low, high = 0, self.config.context // _STEP_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle * _STEP_TOKENS) else (low, middle - 1)
        return low * _STEP_TOKENS

    def nearest(self, limit_bytes: int, verdict: str = FITS) -> "list[Plan]":
        """The least changes of context and KV cache with which it fits, each enough: a shorter context, which
        costs no accuracy, then an int8 cache, which does; both together only if neither will do.
        """
        good = (FITS,) if verdict == FITS else (FITS, FROM_DISK)
        coarse, found = replace(self, kv_dtype="int8"), []
        if longest := self.longest_context(limit_bytes, verdict):
            found.append(replace(self, context_tokens=longest))
        if coarse.verdict(limit_bytes) in good:
            found.append(coarse)
        if not found and (longest := coarse.longest_context(limit_bytes, verdict)):
            found.append(replace(coarse, context_tokens=longest))
        return found

    def changes(self, limit_bytes: int, idle_limit_bytes: int) -> list[str]:
        """What a user can do to make all of it fit, the mildest first.

        idle_limit_bytes: the limit with all other programs closed.
        """
        if self.verdict(limit_bytes) == FITS:
            return []
        found = []
        for nearest in self.nearest(limit_bytes):
            costs = "" if nearest.kv_dtype == self.kv_dtype else ", which costs some accuracy"
            found.append(nearest.options(self) + costs)
        for dtypes, words, costs in (
            (replace(self.dtypes, unembedding="int4"), "--unembedding int4", ""),
            (
                replace(self.dtypes, attention="int4", unembedding="int4"),
                "--attention int4 --unembedding int4",
                " and costs accuracy",
            ),
        ):
            smaller = replace(self, dtypes=dtypes)
            if smaller.verdict(limit_bytes) == FITS:
                saved = gigabytes(self.total_bytes - smaller.total_bytes)
                found.append(f"quantize with {words}, which saves {saved}{costs}")
                break
        missing = self.total_bytes - limit_bytes
        if missing <= idle_limit_bytes - limit_bytes:
            found.append(f"close programs that hold {gigabytes(missing)} of memory")
        else:
            found.append(f"a machine with {gigabytes(self.total_bytes - idle_limit_bytes)} more memory")
        return found

    def options(self, asked: "Plan") -> str:
        """The options in which this plan differs from `asked`."""
        words = []
        if self.context_tokens != asked.context_tokens:
            words.append(f"--context {self.context_tokens}")
        if self.kv_dtype != asked.kv_dtype:
            words.append(f"--kv-dtype {self.kv_dtype}")
        return " ".join(words)


_DEFAULTS = LoadOptions()


def _worst_allowed(options: LoadOptions) -> str:
    """The worst verdict with which a model is still loaded."""
    return FITS if options.must_fit else FROM_DISK


def chosen(plan: Plan, limit_bytes: int, options: LoadOptions) -> Plan:
    """`plan` with the slots and the context that the options ask for, or those to choose."""
    if options.slots is None:
        plan = choose_slots(plan, limit_bytes, options.context_tokens)
    if options.context_tokens is not None:
        return replace(plan, context_tokens=options.context_tokens)
    return choose_context(plan, limit_bytes, options)


def choose_slots(plan: Plan, limit_bytes: int, context_tokens: int | None = None) -> Plan:
    """`plan` with the most slots, up to MOST_SLOTS, with which all fits; one if the weights don't fit anyhow.

    context_tokens: of each slot; None for one that is long enough for most.
    """
    tokens = context_tokens or min(SHARED_CONTEXT, plan.config.context)
    sized = (replace(plan, slots=slots, context_tokens=tokens) for slots in range(MOST_SLOTS, 1, -1))
    slots = next((each.slots for each in sized if each.verdict(limit_bytes) == FITS), 1)
    return replace(plan, slots=slots)


def choose_context(plan: Plan, limit_bytes: int, options: LoadOptions = _DEFAULTS) -> Plan:
    """`plan` with the context to take when none was asked for: the largest usual one with which everything
    fits, at most the model's, and room for options.prompt_tokens in any case.
    """
    most, at_least = plan.config.context, options.prompt_tokens
    sized = [
        replace(plan, context_tokens=min(max(tokens, at_least), most))
        for tokens in (*USUAL_CONTEXTS, *SMALL_CONTEXTS)
    ]
    usual = sized if _worst_allowed(options) == FITS else sized[: len(USUAL_CONTEXTS)]
    fitting = [chosen for chosen in usual if chosen.verdict(limit_bytes) == FITS]
    # Where the weights don't fit anyhow, 8,192 tokens of cache change little; less only where they must.
    running = [chosen for chosen in sized[2:] if chosen.verdict(limit_bytes) != TOO_LARGE]
    return [*fitting, *running, sized[-1]][0]


def check(plan: Plan, limit_bytes: int, options: LoadOptions = _DEFAULTS) -> str | None:
    """None if `plan` fits; a line to tell if it will run slowly, from the disk.

    Raises: UsageError, naming the nearest plan that does, if it can't run, or must fit and doesn't.
    """
    verdict, allowed = plan.verdict(limit_bytes), _worst_allowed(options)
    if verdict == FITS:
        return None
    needs = f"with a context of {plan.context_tokens:,} tokens this model takes {gigabytes(plan.total_bytes)}"
    there = f"{gigabytes(limit_bytes)} are there for it"
    if verdict == TOO_LARGE or allowed == FITS:
        best = plan.nearest(limit_bytes, allowed)
        words = " or, for some accuracy, ".join(each.options(plan) for each in best)
        hint = f"{words} would do" if best else "free some memory, or take a smaller model"
        if verdict == TOO_LARGE:
            needs += f", {gigabytes(plan.least_bytes)} at the very least"
        raise UsageError(f"{needs}, and {there}; {hint}")
    missing = gigabytes(min(plan.total_bytes - limit_bytes, plan.weights_bytes))
    return f"{needs}, and {there}: {missing} of weights come from the disk again and again, which is slow"


def gpu_layers(plan: Plan, gpu_bytes: int) -> int:
    """How many of `plan`'s layers, with KV cache and scratch, a GPU's memory of so many bytes holds."""
    return most_that_fit(plan, gpu_bytes, "gpu_layers", plan.config.layers)


def with_experts_apart(plan: Plan, gpu_bytes: int) -> Plan:
    """`plan` with what a GPU's memory of so many bytes holds, the best first: a token reads all of a layer's
    attention, its KV cache and the unembedding, and of the experts an eighth or less.
    """
    plan = replace(plan, gpu_experts=0)
    plan = replace(plan, gpu_layers=most_that_fit(plan, gpu_bytes, "gpu_layers", plan.config.layers))
    return replace(plan, gpu_experts=most_that_fit(plan, gpu_bytes, "gpu_experts", plan.gpu_layers))


def most_that_fit(plan: Plan, gpu_bytes: int, name: str, most: int) -> int:
    """The largest value of the plan's field `name`, up to `most`, that so many bytes and a reserve allow."""
    room = gpu_bytes - gpu_reserve_bytes(gpu_bytes)

    def fits(number: int) -> bool:
        changes: dict[str, Any] = {name: number}
        return replace(plan, **changes).gpu_bytes <= room

    return next((number for number in range(most, 0, -1) if fits(number)), 0)


def gpu_reserve_bytes(total_bytes: int) -> int:
    """What is left to the driver and the screen: 5 %, but 256 MB at least and 1 GB at most."""
    return min(max(total_bytes // 20, 256_000_000), 1_000_000_000)


def reserve_bytes(total_bytes: int) -> int:
    """What is left to the rest of the system: 2 %, but from 128 MB to 1 GB."""
    return min(max(total_bytes // 50, 128_000_000), 1_000_000_000)


def gigabytes(size_bytes: int) -> str:
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
