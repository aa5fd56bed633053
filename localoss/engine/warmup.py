"""Compiling before it is needed: a model of a few numbers runs one token, which calls every kernel."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np

from localoss import kernels
from localoss.engine.sampler import Sampler
from localoss.kernels import attention, compiled, isa, layer
from localoss.model.adapters import blank_adapters
from localoss.model.forward import Chunk, Model
from localoss.model.kv_cache import KVCache
from localoss.model.weights import blank_weights
from localoss.options import SamplingParams
from localoss.plan.machine import usual_threads
from quant.format.config import ModelConfig, RopeConfig
from quant.format.manifest import Dtypes

_TINY = ModelConfig(
    layers=1,
    hidden=32,
    intermediate=32,
    heads=4,
    kv_heads=1,
    head_dim=8,
    experts=2,
    active_experts=1,
    vocab=8,
    context=64,
    sliding_window=8,
    is_sliding=(True,),
    rms_norm_eps=1e-5,
    swiglu_limit=7.0,
    rope=RopeConfig(1e4, 1.0, 64, 32.0, 1.0, False, None),
)


@dataclass(frozen=True)
class KernelForm:
    """What kernels are compiled for, beside this CPU."""

    kv_dtype: str
    is_exact: bool = False
    has_adapters: bool = False

    def __str__(self) -> str:
        """As part of a file's name."""
        words = [self.kv_dtype, "f32" if self.is_exact else "int8", "adapters" if self.has_adapters else ""]
        return ".".join(filter(None, (isa.cpu_name(), *words)))


def warm_up(form: KernelForm, threads: int, report: Callable[[str], None] = lambda name: None) -> None:
    """Compile the kernels of `form`, or load them from the disk.

    A first start has a second process compile attention and the sampler meanwhile, where there is a second
    core and a folder to meet in. `report` is called with each function's name.
    """
    folder = compiled.FOLDER
    with kernels.reporting_compiled(report):
        if folder.has_all(str(form)) is False:
            if usual_threads() > 1:
                with _compiled_beside(form, report):
                    _compile(_LONGEST)
                    _run(form, threads, with_attention=False)
            _run(form, threads)
            folder.note_all(str(form))
        else:
            _run(form, threads)


# What each of two processes compiles first, so that neither does what the other one will have done.
_LONGEST, _OTHERS = ("share", "multiply", "gate_up", "down"), ("norm", "quantize", "add_experts")


def _compile(names: tuple[str, ...]) -> None:
    """Some of what layers call."""
    for name in names:
        assert layer.ROUTINES[name].address


_BESIDE = """
import sys
sys.path[:] = {path!r}
from localoss.engine.warmup import compile_attention
compile_attention()
"""


@contextmanager
def _compiled_beside(form: KernelForm, report: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile a process of its own compiles attention and the sampler; waits for it.

    What it couldn't do is done here, then: nothing hangs on it.
    """
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", _BESIDE.format(path=sys.path), form.kv_dtype],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except (OSError, ValueError):  # no interpreter of that name, as in a program that is one file
        yield
        return
    assert child.stdout
    names = child.stdout

    def pass_on() -> None:
        for name in names:
            report(name.strip())

    reading = Thread(target=pass_on, daemon=True)
    reading.start()
    try:
        yield
        child.wait()
    finally:
        child.kill()
        child.wait()
        reading.join()


def compile_attention() -> None:
    """What the second process runs: its argument is the type of caches; names go to stdout."""
    to_parent = kernels.reporting_compiled(lambda name: print(name, flush=True))
    with suppress(BrokenPipeError, KeyboardInterrupt), to_parent:
        _compile(_OTHERS)
        attention.routines(sys.argv[1])
        _draw()


def _run(form: KernelForm, threads: int, with_attention: bool = True) -> None:
    """Run one token, which calls every kernel, or all but attention and the sampler."""
    weights = blank_weights(_TINY, Dtypes())
    if form.has_adapters:
        weights = replace(weights, adapters=blank_adapters(_TINY))
    model = Model(_TINY, weights, threads, form.is_exact, max_tokens=1)
    adapters = [None, weights.adapters.find(None)] if weights.adapters else [None]
    if with_attention:
        adapters.insert(0, None)  # layers run at once from the second time on
    else:
        layers: Any = model.stacks[0]
        layers.kernels = SimpleNamespace(**vars(layers.kernels) | {"attend": lambda *arguments: None})
        layers.attention_of = lambda kv_dtype: (0, 0, 0)
    for adapter in adapters:
        x = model.forward([Chunk([0], 0, KVCache(_TINY, 64, 1, form.kv_dtype), adapter)])
        model.logits(x, adapters=[adapter])
    if with_attention:
        _draw()


def _draw() -> None:
    """Draw a token in every way."""
    greedy, all_cuts = (
        SamplingParams(temperature=0),
        SamplingParams(top_k=1, top_p=0.5, min_p=0.5, presence_penalty=1, logit_bias=((0, 1.0),)),
    )
    sampler, logits = Sampler(_TINY.vocab), np.zeros(_TINY.vocab, np.float32)
    allowed = np.ones(_TINY.vocab, np.uint8)
    for params in (greedy, all_cuts):
        sampler.choose(logits, params, np.random.default_rng(0), allowed, sampler.history([0]))
