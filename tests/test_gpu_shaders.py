"""Shaders by themselves: what they decode, choose and add up, held against NumPy."""

import numpy as np
import pytest

from localoss.gpu import features
from localoss.gpu.device import Device, Dispatch
from localoss.gpu.features import Features, adds_by_subgroups, features_of, fp4_file, fp4_numbers
from localoss.gpu.kernels import Kernels
from localoss.gpu.sources import source
from localoss.gpu.weights import upload_matrix
from localoss.hub.registry import known_models
from localoss.plan.gpu_sizes import tokens_at_once
from quant.format.manifest import Dtypes
from quant.format.numbers import FP4_VALUES
from quant.format.weight_formats import WEIGHT_FORMATS


@pytest.fixture(scope="module")
def device(gpu_adapter):
    opened = Device(gpu_adapter)
    yield opened
    opened.destroy()


@pytest.mark.parametrize("file", ["fp4_integers", "fp4_halves"])
def test_every_pair_of_fp4_codes(file, device):
    """Both ways to the same bits, but for the sign of a zero; neighbours don't leak into each other."""
    random = np.random.RandomState(3)
    if file == "fp4_halves" and fp4_file(device) != file:
        pytest.skip("this GPU takes subnormal float16 numbers for zero")
    for _ in range(20):
        codes = random.randint(0, 16, (4, 8))
        assert np.array_equal(fp4_numbers(device, file, codes), FP4_VALUES[codes])


def test_a_gpu_that_takes_small_halves_for_zero(device, monkeypatch):
    def flushed(device, file, codes):
        found = fp4_numbers(device, file, codes)
        return np.where(np.abs(found) == 0.5, 0, found)

    assert fp4_file(device) == "fp4_halves" or not device.adapter.is_software
    monkeypatch.setattr(features, "fp4_numbers", flushed)
    assert fp4_file(device) == "fp4_integers"


def test_sums_by_subgroups(device, monkeypatch):
    """Where a GPU adds up wrongly that way, or has no subgroups, shaders go without."""
    assert adds_by_subgroups(device) or not device.adapter.is_software

    def wrong(*files, **constants):
        return source(*files, **constants).replace("subgroupAdd(value)", "value")

    monkeypatch.setattr(features, "source", wrong)
    assert not adds_by_subgroups(device)
    monkeypatch.setattr(features, "source", lambda *files, **constants: "this is no shader")
    assert not adds_by_subgroups(device)
    monkeypatch.setattr(features, "source", source)
    monkeypatch.setattr(device, "has_subgroups", False)
    assert features_of(device) == (fp4_file(device), False)


@pytest.mark.parametrize("fp4", ["fp4_integers", "fp4_halves"])
@pytest.mark.parametrize("subgroups", [False, True])
def test_products_of_every_form(fp4, subgroups, device):
    """MXFP4 times one vector and nine, whatever the GPU can do; both ways to decode give the same bits."""
    if (subgroups and not adds_by_subgroups(device)) or (fp4 == "fp4_halves" and fp4_file(device) != fp4):
        pytest.skip("this GPU hasn't got it")
    random = np.random.default_rng(5)
    weights = random.standard_normal((40, 96)).astype(np.float32)
    codes, scales = WEIGHT_FORMATS["mxfp4"].tile(weights, None)
    dtypes, tensors = Dtypes(), {"w.codes": codes, "w.scales": scales}
    matrix = upload_matrix(device, tensors, "w", "mxfp4", biased=False)
    for tokens in (1, 9):
        x = random.standard_normal((tokens, 96)).astype(np.float32)
        found = [
            multiplied(device, Kernels(device, CONFIG, dtypes, "f32", Features(*its)), matrix, x)
            for its in ((fp4, subgroups), ("fp4_integers", subgroups))
        ]
        assert np.array_equal(*found)
        expected = x @ decoded(weights).T
        assert np.abs(found[0] - expected).max() <= 1e-4


CONFIG = known_models()["gpt-oss-20b"].config


def decoded(weights):
    form = WEIGHT_FORMATS["mxfp4"]
    return form.decode(*form.encode(weights, None))


def multiplied(device, kernels, matrix, x):
    tokens, rows = len(x), 8 * matrix.groups
    kernel = kernels.matmul(matrix, False, tokens_at_once(tokens), False)
    out, part = device.buffer(4 * tokens * rows), matrix.parts[0]
    ends = [device.upload(None), device.upload(x), out, device.uniform(tokens, 0, 0, 0), part.which]
    bound = device.bind(kernel, [part.codes, part.scales, *ends])
    work = Dispatch(kernel, bound, part.groups, -(-tokens // tokens_at_once(tokens)))
    (data,) = device.run([work], [(out, 0, out.size)])
    return np.frombuffer(data, np.float32)[: tokens * rows].reshape(tokens, rows)


@pytest.mark.parametrize("experts", [10, 32, 128])
def test_experts_are_chosen_as_by_a_stable_sort(experts, device):
    """Of equal logits the lower expert comes first; equal ones are many here."""
    random, active, tokens = np.random.RandomState(experts), 4, 50
    row = -(-experts // 8) * 8
    logits = random.randint(-6, 7, (tokens, row)).astype(np.float32) / 2
    bias = random.randint(-2, 3, experts).astype(np.float32) / 2
    kernel = device.kernel(source("chosen", "route", EXPERTS=experts, ACTIVE=active, LOGITS_ROW=row), "rrww")
    ids, weights = (device.buffer(4 * tokens * active) for _ in range(2))
    bound = device.bind(kernel, [device.upload(logits), device.upload(bias), ids, weights])
    read = [(buffer, 0, 4 * tokens * active) for buffer in (ids, weights)]
    found_ids, found = device.run([Dispatch(kernel, bound, tokens)], read)
    values = logits[:, :experts] + bias
    expected = np.argsort(-values, axis=1, kind="stable")[:, :active]
    assert np.array_equal(np.frombuffer(found_ids, np.uint32).reshape(tokens, active), expected)
    powers = np.exp(np.take_along_axis(values, expected, 1) - values.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    assert np.allclose(np.frombuffer(found, np.float32).reshape(tokens, active), shares, 1e-5, 0)
