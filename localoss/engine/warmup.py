"""Compiling before it is needed: a model of a few numbers runs one token, which calls every kernel."""

from dataclasses import replace

import numpy as np

from localoss.engine.sampler import Sampler
from localoss.model.adapters import blank_adapters
from localoss.model.forward import Chunk, Model
from localoss.model.kv_cache import KVCache
from localoss.model.weights import Weights, blank_weights
from localoss.options import SamplingParams
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


def warm_up(kv_dtype: str, exact: bool, threads: int, has_adapters: bool = False) -> None:
    """Compile the kernels for these options, or load them from Numba's cache."""
    weights = blank_weights(_TINY, Dtypes())
    model = Model(_TINY, weights, threads, exact, max_tokens=1)
    x = model.forward([Chunk([0], 0, KVCache(_TINY, 64, 1, kv_dtype))])
    if has_adapters:
        _warm_up_adapters(replace(weights, adapters=blank_adapters(_TINY)), kv_dtype, exact, threads)
    greedy, all_cuts = (
        SamplingParams(temperature=0),
        SamplingParams(top_k=1, top_p=0.5, min_p=0.5, presence_penalty=1, logit_bias=((0, 1.0),)),
    )
    sampler = Sampler(_TINY.vocab)
    for params in (greedy, all_cuts):
        sampler.choose(model.logits(x)[0], params, np.random.default_rng(0), history=sampler.history([0]))


def _warm_up_adapters(weights: Weights, kv_dtype: str, exact: bool, threads: int) -> None:
    assert weights.adapters
    model, adapter = Model(_TINY, weights, threads, exact, max_tokens=1), weights.adapters.find(None)
    x = model.forward([Chunk([0], 0, KVCache(_TINY, 64, 1, kv_dtype), adapter)])
    model.logits(x, adapters=[adapter])
