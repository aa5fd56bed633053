"""Compiling before it is needed: a model of a few numbers runs one token, which calls every kernel."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Thread
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from localoss import kernels
from localoss.engine.sampler import Sampler
from localoss.kernels import compiled, isa
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
                with _compiled_beside(form, threads, report):
                    _run(form, threads, replace_calls=_ATTENTION)
            _run(form, threads)
            folder.note_all(str(form))
        else:
            _run(form, threads)


# Calls that a process leaves out, each with what it gives: these two halves take about as long.
_ATTENTION: dict[str, Any] = {"attend": None}
_ALL_ELSE: dict[str, Any] = {
    "norm_and_multiply": None, "multiply": None, "route": 0, "score_experts": None, "run_experts": None
}  # fmt: skip


_BESIDE = """
import sys
sys.path[:] = {path!r}
from localoss.engine.warmup import compile_half
compile_half()
"""


@contextmanager
def _compiled_beside(form: KernelForm, threads: int, report: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile a process of its own compiles attention and the sampler; waits for it at the end.

    What it couldn't do is done here, then: nothing hangs on it.
    """
    words = [form.kv_dtype, str(int(form.is_exact)), str(int(form.has_adapters)), str(threads)]
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", _BESIDE.format(path=sys.path), *words],
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


def compile_half() -> None:
    """What the second process runs: its arguments are a form and the threads; names go to stdout."""
    kv_dtype, is_exact, has_adapters, threads = sys.argv[1:]
    form = KernelForm(kv_dtype, is_exact == "1", has_adapters == "1")
    to_parent = kernels.reporting_compiled(lambda name: print(name, flush=True))
    with suppress(BrokenPipeError, KeyboardInterrupt), to_parent:
        _run(form, int(threads), replace_calls=_ALL_ELSE)


def _run(form: KernelForm, threads: int, replace_calls: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Run one token, which calls every kernel but those to replace; these give what stands there."""
    has_sampler = not replace_calls or replace_calls is _ALL_ELSE
    weights = blank_weights(_TINY, Dtypes())
    if form.has_adapters:
        weights = replace(weights, adapters=blank_adapters(_TINY))
    model = Model(_TINY, weights, threads, form.is_exact, max_tokens=1)
    stubs = {name: lambda *arguments, given=given: given for name, given in replace_calls.items()}
    for caller in model.kernel_callers if stubs else []:
        caller.kernels = SimpleNamespace(**(vars(caller.kernels) | stubs))
    adapters = [None, weights.adapters.find(None)] if weights.adapters else [None]
    for adapter in adapters if stubs else [None, *adapters]:  # twice: layers run at once from then on
        x = model.forward([Chunk([0], 0, KVCache(_TINY, 64, 1, form.kv_dtype), adapter)])
        logits = model.logits(x, adapters=[adapter])
    if not has_sampler:
        return
    logits[:] = 0  # without products they are whatever was in memory
    greedy, all_cuts = (
        SamplingParams(temperature=0),
        SamplingParams(top_k=1, top_p=0.5, min_p=0.5, presence_penalty=1, logit_bias=((0, 1.0),)),
    )
    sampler = Sampler(_TINY.vocab)
    for params in (greedy, all_cuts):
        sampler.choose(logits[0].copy(), params, np.random.default_rng(0), history=sampler.history([0]))
