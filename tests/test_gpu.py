"""Layers on a GPU give what they give on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
from support import checkpoints, layouts
from support.demo import put
from support.golden_files import read_golden
from support.gpu_fixtures import gpu_of

import localoss
from localoss.chat import harmony
from localoss.gpu import weights as gpu_weights
from quant.convert import convert
from quant.format.manifest import Dtypes

pytestmark = pytest.mark.usefixtures("gpu_adapter")

KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")
EXACT = dict(activations="f32", kv_dtype="f32")
CLOSE = 1e-4  # of logits whose standard deviation is 1, from the CPU's


@pytest.fixture(scope="module")
def load(model):
    """Load a checkpoint with `layers` on the GPU, none if it is 0."""

    def loaded(name, layers, dtypes=KEPT, **options):
        engine = localoss.load(
            model(name, **dtypes), gpu_layers=layers, **{"context_tokens": 512, **EXACT, **options}
        )
        on_gpu = gpu_of(engine).count if gpu_of(engine) else 0
        assert on_gpu == (engine.config.layers if layers == "all" else layers)
        return engine

    return loaded


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return put(tmp_path_factory.mktemp("demo") / "model")


@pytest.mark.parametrize("layers", [0, 1, 2, "all"])
def test_stored_logits(layers, load):
    """The vocabulary and the number of experts don't fill tiles here."""
    golden = read_golden("short")
    logits = load("short", layers).logits(golden.tokens, golden.positions)
    assert np.abs(logits - golden.logits).max() <= CLOSE


@pytest.mark.parametrize("layers", [2, "all"])
def test_decoding_past_the_window(layers, load):
    """A ring of 64 positions is written round and round, a token at a time."""
    golden = read_golden("window")
    engine = load("window", layers, chunk_tokens=40)
    sequence = engine.sequence()
    engine.prefill(sequence, golden.tokens[:60])
    for end in range(61, 82):
        logits = engine.prefill(sequence, golden.tokens[:end])
        assert np.abs(logits - golden.logits[end - 1]).max() <= CLOSE, f"position {end - 1}"


def test_chunks_of_several_sizes(load):
    golden = read_golden("window")
    engine = load("window", "all", chunk_tokens=64)
    sequence = engine.sequence()
    for start, end in pairwise([0, 1, 2, 10, 20, 84, 117]):
        assert len(sequence.tokens) == start
        logits = engine.prefill(sequence, golden.tokens[:end])
        assert np.abs(logits - golden.logits[end - 1]).max() <= CLOSE, f"position {end - 1}"


def test_a_token_is_one_submit_and_one_read_back(load):
    for layers in (1, "all"):
        engine = load("short", layers)
        made = list(engine.generate([1, 2, 3], 9, temperature=0, stop_ids=()))
        decoded = gpu_of(engine).decoded
        assert len(made) == 9
        assert (decoded.tokens, decoded.traffic.submits, decoded.traffic.read_backs) == (8, 8, 8)


@pytest.mark.parametrize("dtypes", [dict(), dict(attention="int4", unembedding="int4")], ids=str)
def test_number_formats(dtypes, load):
    tokens = read_golden("window").tokens[:45]
    logits = load("window", "all", dtypes, kv_dtype="f16").logits(tokens)
    expected = load("window", 0, dtypes, kv_dtype="f16").logits(tokens)
    assert np.abs(logits - expected).max() <= 3e-3  # a last bit before rounding to f16 is 3e-4 of a logit


@pytest.mark.parametrize("name", ["window", "long"])  # heads of 16 and 40: a last group of 8
def test_an_int8_cache(name, load):
    """It holds the CPU's codes, but for some that a last bit rounds the other way, and is read as there."""
    tokens = read_golden(name).tokens[:75]
    engines = [load(name, layers, kv_dtype="int8") for layers in ("all", 0)]
    on_gpu, on_cpu = sequences = [engine.sequence() for engine in engines]
    for engine, sequence in zip(engines, sequences, strict=True):
        engine.prefill(sequence, tokens[:-1])
    first = [sequence.cache.layers[0].read(0, 74) for sequence in sequences]
    for mine, its in zip(*first, strict=True):
        assert mine.shape == its.shape and its.any()
        assert (mine != its).mean() < 0.002
    for mine, its in zip(on_gpu.cache.layers, on_cpu.cache.layers, strict=True):
        mine.write(max(74 - its.slots, 0), its.read(max(74 - its.slots, 0), 74))
    logits, expected = (e.prefill(s, tokens) for e, s in zip(engines, sequences, strict=True))
    assert np.abs(logits - expected).max() <= 3e-3


@pytest.mark.parametrize("experts", ["int4", "bf16"])
def test_experts_that_are_not_mxfp4(experts, tmp_path):
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors, config = layouts.dense(checkpoints.make_tensors(config, seed=3), config)
    checkpoints.write_tensors(tmp_path / "source", config, tensors)
    convert(tmp_path / "source", tmp_path / "model", Dtypes(experts=experts))
    on_cpu, on_gpu = (
        localoss.load(tmp_path / "model", context_tokens=64, gpu_layers=layers, **EXACT) for layers in (0, 2)
    )
    tokens = read_golden("short").tokens[:30]
    assert np.abs(on_gpu.logits(tokens) - on_cpu.logits(tokens)).max() <= CLOSE


def test_weights_beyond_the_binding_limit(load, monkeypatch):
    """Here an expert is 24,576 bytes: each is a part of its own, and the unembedding is cut in two."""
    # Weights alone meet the limit: the table of rotations has 270 kB for the smallest model, too.
    cuts = gpu_weights._cuts
    monkeypatch.setattr(gpu_weights, "_cuts", lambda count, size, most: cuts(count, size, min(most, 32_768)))
    engine = load("short", "all", chunk_tokens=16, context_tokens=64)
    if not gpu_of(engine).device.adapter.is_software:
        pytest.skip("a real GPU is asked for all that it has")
    gpu = gpu_of(engine)
    assert [len(layer.experts) for layer in gpu._weights] == [10, 10, 10]
    assert len(gpu._unembedding.parts) == 2
    golden = read_golden("short")
    assert np.abs(engine.logits(golden.tokens[:40]) - golden.logits[:40]).max() <= CLOSE
    logits = engine.prefill(engine.sequence(), golden.tokens[:1])
    assert np.abs(logits - golden.logits[0]).max() <= CLOSE


def test_positions_past_4096(load):
    """After 4,280 tokens whose keys and values are random, so that nobody need compute them."""
    golden, random = read_golden("long"), np.random.RandomState(5)
    engines = [load("long", layers, context_tokens=4310, chunk_tokens=14) for layers in (0, 2)]
    sequences = [engine.sequence() for engine in engines]
    for layers in zip(*map(layers_of, sequences), strict=True):
        first = max(0, 4280 - layers[0].slots)
        saved = [random.standard_normal(a.shape).astype(a.dtype) for a in layers[0].read(first, 4280)]
        for layer in layers:
            layer.write(first, saved)
    for sequence in sequences:
        sequence.tokens = golden.tokens[:4280]
        sequence.begin(0)  # the rings hold the last of them
    for end in (4294, 4295, 4296, 4310):
        expected, found = (
            engine.prefill(sequence, golden.tokens[:end])
            for engine, sequence in zip(engines, sequences, strict=True)
        )
        assert np.abs(found - expected).max() <= CLOSE, f"position {end - 1}"


@pytest.mark.soak
@pytest.mark.parametrize("name", ["long", "wide"])
def test_all_stored_logits(name, load):
    golden = read_golden(name)
    engine = load(name, "all", context_tokens=len(golden.tokens))
    assert np.abs(engine.logits(golden.tokens, golden.positions) - golden.logits).max() <= CLOSE


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
def test_the_cache_is_the_cpus(load, kv_dtype):
    """So that a saved conversation can go on with any number of layers on the GPU."""
    tokens = read_golden("window").tokens[:75]  # the rings have 64 slots, and are written round
    sequences = []
    for layers in (0, 3):
        engine = load("window", layers, chunk_tokens=25, kv_dtype=kv_dtype)
        sequences.append(engine.sequence())
        for end in (70, 74, 75):  # the last one alone, whose key another shader writes
            engine.prefill(sequences[-1], tokens[:end])
    compared = 4 if kv_dtype == "f32" else 2  # layers: what one rounds differently, the next computes with
    for on_cpu, on_gpu in list(zip(*map(layers_of, sequences), strict=True))[:compared]:
        first = max(0, 75 - on_cpu.slots)
        for expected, found in zip(on_cpu.read(first, 75), on_gpu.read(first, 75), strict=True):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            if kv_dtype != "f32" and found.size:  # f16 has no scales
                assert np.mean(found != expected) <= 0.02  # rounded alike, but for what lay between
            if kv_dtype == "f16" and found.dtype == np.uint16:
                found, expected = found.view(np.float16), expected.view(np.float16)
            few = dict(f32=(1e-4, 1e-5), f16=(1.1e-3, 1e-5), int8=(1e-4, 1))[kv_dtype]
            assert np.allclose(found.astype(np.float32), expected.astype(np.float32), *few)


def test_going_back_to_a_snapshot(load):
    golden = read_golden("window")
    engine = load("window", 3, chunk_tokens=32)
    sequence = engine.sequence()
    engine.prefill(sequence, golden.tokens[:150], checkpoints=[40])
    ran = gpu_of(engine).device.traffic.submits
    logits = engine.prefill(sequence, golden.tokens[:44])
    assert gpu_of(engine).device.traffic.submits == ran + 1  # 4 tokens, not 44
    assert np.abs(logits - golden.logits[43]).max() <= CLOSE


def layers_of(sequence):
    return sequence.cache.layers


@pytest.mark.parametrize(
    ("layers", "question", "tokens"),
    [
        pytest.param(2, "What is 37 + 48?", 40, marks=pytest.mark.soak),
        pytest.param(2, "How do I get gpt-oss-20b?", 40, marks=pytest.mark.soak),
        ("all", "What is 37 + 48?", 4),
    ],
)
def test_the_demo_answers_alike(layers, question, tokens, demo):
    """In the number formats and with the activations that it is shipped with. 201,088 logits take lavapipe
    half a second: so with the unembedding only a few tokens."""
    on_cpu, on_gpu = (localoss.load(demo, context_tokens=512, gpu_layers=n) for n in (0, layers))
    assert gpu_of(on_gpu).count == (4 if layers == "all" else 2)
    prompt = harmony.render(harmony.ChatSetup("low"), [harmony.Message("user", question)])
    answers = [
        [token.id for token in engine.generate(prompt, tokens, temperature=0)] for engine in (on_cpu, on_gpu)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == tokens or answers[0][-1] == 200_002
