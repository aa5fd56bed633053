"""A layer of gpt-oss-20b's width and one of gpt-oss-120b's, on a GPU with the limits that every GPU has.

120b's experts are 1.7 GB a layer, and a binding is at most 128 MiB there: 13 parts. Weights are random.
"""

from dataclasses import replace

import numpy as np
import pytest

from localoss.engine.loader import usable_threads
from localoss.gpu.device import Device
from localoss.gpu.layers import GpuLayers
from localoss.hub.registry import known_models
from localoss.model.forward import Chunk, Model
from localoss.model.kv_cache import KVCache
from localoss.model.weights import _NUMPY_DTYPES, _addresses, _weights
from localoss.options import LoadOptions
from quant.format.layout import expert_run, layer_specs, vocabulary_specs
from quant.format.manifest import Dtypes


def random_tensors(specs, random):
    """Numbers of a size that keeps activations near 1: int8 rows, biases, norms, sinks."""
    tensors = {}
    for name, spec in specs.items():
        if name.endswith(".codes") and spec.dtype == "U8":
            value = random.integers(-127, 128, spec.shape, np.int8).view(np.uint8)
            if name == "router.codes":  # bfloat16: small, of both signs
                units = (random.standard_normal((*spec.shape[:2], 256)) * 0.02).astype(np.float32)
                value = (units.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        elif name.endswith(".codes"):
            value = random.integers(-127, 128, spec.shape, np.int8)
        elif spec.dtype == "F16":
            value = (random.random(spec.shape) * 3e-4).astype(np.float16).view(np.uint16)
        else:
            value = random.standard_normal(spec.shape).astype(_NUMPY_DTYPES[spec.dtype])
        tensors[name] = value.reshape(spec.shape)
    return tensors


def random_experts(config, random):
    """(E, run bytes) u8: one expert's, and for each other the same with its codes XORed with its number."""
    run = expert_run(config, "mxfp4")
    first = np.zeros(run.size, np.uint8)
    for begin, end in ((run.gate_up_codes, run.gate_up_scales), (run.down_codes, run.down_scales)):
        first[begin:end] = random.integers(0, 256, end - begin, np.uint8)
    for begin, end in ((run.gate_up_scales, run.down_codes), (run.down_scales, run.gate_up_bias)):
        first[begin:end] = random.integers(116, 122, end - begin, np.uint8)
    biases = random.standard_normal((run.size - run.gate_up_bias) // 4).astype(np.float32)
    first[run.gate_up_bias :] = biases.view(np.uint8)
    experts = np.empty((config.experts, run.size), np.uint8)
    for number, expert in enumerate(experts):
        expert[:] = first
        for begin, end in ((run.gate_up_codes, run.gate_up_scales), (run.down_codes, run.down_scales)):
            expert[begin:end] ^= np.uint8(number)
    return experts


@pytest.mark.parametrize(
    ("name", "experts", "parts", "chunk", "brings"),
    [
        ("gpt-oss-20b", 12, 2, 3, False),  # fewer experts of the same size: a few seconds
        ("gpt-oss-20b", 4, 0, 3, False),  # experts in memory
        pytest.param("gpt-oss-20b", 32, 0, 24, False, marks=pytest.mark.soak),
        pytest.param("gpt-oss-120b", 128, 0, 24, False, marks=pytest.mark.soak),
        pytest.param("gpt-oss-20b", 32, 0, 24, True, marks=pytest.mark.soak),  # brought for the prompt
        pytest.param("gpt-oss-120b", 128, 0, 24, True, marks=pytest.mark.soak),
        pytest.param("gpt-oss-20b", 32, 4, 24, False, marks=pytest.mark.soak),
        pytest.param("gpt-oss-120b", 128, 13, 24, False, marks=pytest.mark.soak),
    ],
)
def test_a_layer(name, experts, parts, chunk, brings, gpu_adapter):
    config = replace(known_models()[name].config, layers=1, is_sliding=(True,), vocab=1000, experts=experts)
    dtypes, random = Dtypes(), np.random.default_rng(11)
    specs = layer_specs(config, dtypes.attention, dtypes.experts)
    layer = random_tensors({n: spec for n, spec in specs.items() if n != "experts"}, random)
    layer["experts"] = random_experts(config, random)
    vocabulary = random_tensors(vocabulary_specs(config, "int8", "int8"), random)
    for array in (*layer.values(), *vocabulary.values()):
        array.flags.writeable = False
    weights = _weights([layer], vocabulary, config, dtypes, [_addresses(layer["experts"])])

    device, options = Device(gpu_adapter), LoadOptions(192, kv_dtype="f32", chunk_tokens=chunk)
    layers = (1, 1 if parts else 0)
    on_gpu = GpuLayers(device, config, dtypes, weights.tensors, layers, options)
    if gpu_adapter.is_software:
        assert len(on_gpu._weights[0].experts) == parts
    if brings:
        assert on_gpu._stream
        on_gpu._stream.from_tokens = chunk
    results = []
    for others in ([], [on_gpu]):
        model = Model(config, weights, usable_threads(None), True, chunk, others)
        cache = KVCache(config, 192, chunk, "f32", model.stacks)
        prompt = model.forward([Chunk(list(range(7, 7 + chunk)), 0, cache)]).copy()
        token = model.next_logits(Chunk([5], chunk, cache)).copy()
        results.append((prompt, token))
    device.destroy()
    (prompt, token), (prompt_there, token_there) = results
    assert 0.5 < prompt.std() < 100 and token.std() > 0.1
    assert np.abs(prompt_there - prompt).max() <= 1e-4 * np.abs(prompt).max()
    assert np.abs(token_there - token).max() <= 1e-4 * np.abs(token).max()
