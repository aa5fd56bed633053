"""Layers on a GPU whose experts lie in this machine's memory: attention there, experts on the cores."""

from dataclasses import replace

import numpy as np
import pytest
from support import checkpoints
from support.device_loss import lose_at
from support.golden_files import read_golden

import localoss
from localoss.errors import Cancelled, UsageError
from localoss.gpu.choice import asked_for, filled
from localoss.gpu.layers import GpuLayers
from localoss.hub.registry import known_models
from localoss.model.forward import Chunk
from localoss.options import LoadOptions
from localoss.plan.gpu_sizes import token_traffic
from localoss.plan.gpu_speed import CARD_BYTES_PER_S, dispatches, gpu_estimate, shares
from localoss.plan.memory import Plan, gpu_reserve_bytes, with_experts_apart
from localoss.plan.speed import decode_bytes
from quant.convert import convert
from quant.format.config import read_config
from quant.format.manifest import Dtypes

KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")
OPTIONS = dict(context_tokens=192, activations="f32", kv_dtype="f32", chunk_tokens=48, slots=3)
CLOSE = 1e-4  # of logits whose standard deviation is 1
LAYERS = {"short": 3, "window": 4, "long": 3}


@pytest.fixture(scope="module")
def load(model, gpu_adapter):
    """Load a checkpoint with `layers` on the GPU, the last `experts` of them with their experts."""

    def loaded(name, layers, experts, **options):
        engine = localoss.load(
            model(name, **KEPT), gpu_layers=layers, gpu_experts=experts, **OPTIONS | options
        )
        figures = engine.device_figures()
        assert (figures["layers"], figures["layers_with_experts"]) == (layers, experts)
        return engine

    return loaded


@pytest.fixture(scope="module")
def on_cpu(model):
    """Logits of a checkpoint on the CPU, of `run_one` and `run_three`: computed once."""
    known = {}

    def of(name):
        if name not in known:
            engine = localoss.load(model(name, **KEPT), **OPTIONS)
            known[name] = run_one(engine, name), run_three(engine, name)
        return known[name]

    return of


def run_one(engine, name):
    """Logits after a prompt in two passes, and after each of three tokens decoded after it."""
    tokens, sequence = read_golden(name).tokens, engine.sequence()
    return np.array([engine.prefill(sequence, tokens[:end]) for end in (60, 75, 76, 77, 78)])


def run_three(engine, name):
    """Logits of three sequences: prompts of several lengths in one pass, then two tokens of each."""
    tokens, sequences, found = read_golden(name).tokens, [engine.sequence() for _ in range(3)], []
    ends = [0, 0, 0]
    for lengths in ((31, 1, 8), (1, 1, 1), (1, 1, 1)):
        chunks = [
            Chunk(tokens[10 * i + end : 10 * i + end + count], end, sequence.cache)
            for i, (end, count, sequence) in enumerate(zip(ends, lengths, sequences, strict=True))
        ]
        ends = [end + count for end, count in zip(ends, lengths, strict=True)]
        x = engine.model.forward(chunks)
        found.append(engine.model.logits(x[np.cumsum(lengths) - 1]).copy())
    return np.array(found)


def splits(name):
    return [(name, n, e) for n in range(1, LAYERS[name] + 1) for e in range(n + 1)]


# One layer and all; experts of none, of some and of all.
SHORT = [("short", *split) for split in ((1, 0), (1, 1), (2, 1), (3, 0), (3, 2), (3, 3))]
ALL = splits("short") + splits("window") + splits("long")


@pytest.mark.parametrize(
    ("name", "layers", "experts"),
    [*SHORT, ("window", 3, 1), ("long", 2, 1)]
    + [pytest.param(*split, marks=pytest.mark.soak) for split in ALL],
)
def test_every_split_gives_the_cpus_logits(name, layers, experts, load, on_cpu):
    engine = load(name, layers, experts)
    one, three = on_cpu(name)
    assert np.abs(run_one(engine, name) - one).max() <= CLOSE
    assert np.abs(run_three(engine, name) - three).max() <= CLOSE
    golden = read_golden(name)
    positions = [p for p in golden.positions if p < 150][-20:] if golden.positions is not None else []
    if positions:
        expected = golden.logits[[list(golden.positions).index(p) for p in positions]]
        assert np.abs(engine.logits(golden.tokens[:150], positions) - expected).max() <= CLOSE


@pytest.mark.parametrize(("layers", "experts"), [(3, 0), (3, 1), (2, 1), (3, 3)])
def test_what_a_token_takes_of_the_bus(layers, experts, load):
    engine = load("short", layers, experts)
    assert len(list(engine.generate([1, 2, 3], 6, temperature=0, stop_ids=()))) == 6
    figures, elsewhere = engine.device_figures(), layers - experts
    expected = token_traffic(engine.config, elsewhere, layers == 3)
    assert expected.submits == elsewhere + 1
    assert figures["decoded_tokens"] == 5
    found = [figures[f"{name}_per_token"] for name in ("submits", "written_bytes", "read_bytes")]
    assert found == list(expected)
    assert figures["read_backs_per_token"] == expected.submits
    end = 2 if layers == 3 else 0  # final norm and unembedding
    assert figures["dispatches_per_token"] == 5 * layers + experts + end  # at most 6 for each layer
    plan = Plan(engine.config, gpu_layers=layers, gpu_experts=experts)
    assert dispatches(plan) == figures["dispatches_per_token"]


@pytest.fixture(scope="module")
def answered(model):
    """The answer of the CPU alone."""
    return answer(localoss.load(model("short", **KEPT), **OPTIONS))


@pytest.mark.parametrize("where", ["record", "write", "_read"])
@pytest.mark.parametrize(
    "call", [1, pytest.param(2, marks=pytest.mark.soak), 5, pytest.param(9, marks=pytest.mark.soak)]
)
def test_lost_at_each_stage(where, call, answered, load, monkeypatch):
    """Before attention, between it and the experts on the cores, when their sum is written, at the end."""
    told = []
    engine = load("short", 3, 1, notice=told.append)
    lose_at(monkeypatch, where, call)
    assert answer(engine) == answered
    assert len(told) == 1 and "the GPU is left" in told[0] and "\n" not in told[0]
    assert engine.device_figures() is None


def answer(engine):
    return [token.id for token in engine.generate([5, 17, 101, 3, 42, 9] * 4, 6, temperature=0, stop_ids=())]


def test_cancelled_between_two_layers(load):
    engine, asked = load("short", 3, 0), []
    sequence, tokens = engine.sequence(), read_golden("short").tokens[:40]

    def cancelled():
        asked.append(1)
        return len(asked) == 4

    with pytest.raises(Cancelled):
        engine.prefill(sequence, tokens, cancelled=cancelled)
    golden = read_golden("short").logits[39]
    assert np.abs(engine.prefill(sequence, tokens) - golden).max() <= CLOSE


@pytest.mark.parametrize(
    ("layers", "experts", "found"),
    [
        (0, 2, (24, 2)),
        (0, "none", (24, 0)),
        ("all", None, (24, 24)),
        (5, "none", (5, 0)),
        (5, 5, (5, 5)),
        (0, "auto", (24, 0)),  # what is auto waits for the GPU's memory
    ],
)
def test_what_is_asked_for(layers, experts, found):
    plan = asked_for(PLAN_20B, LoadOptions(gpu_layers=layers, gpu_experts=experts))
    assert (plan.gpu_layers, plan.gpu_expert_layers) == found


@pytest.mark.parametrize(
    ("layers", "experts", "error"),
    [
        (0, 99, "gpu_experts is 99; use 0 to 24, none or auto"),
        (0, "some", "gpu_experts is some; use 0 to 24, none or auto"),
        (3, 4, "gpu_experts is 4, and 3 layers are on the GPU; use 0 to 3"),
    ],
)
def test_what_cannot_be_asked_for(layers, experts, error):
    with pytest.raises(UsageError, match=error):
        asked_for(PLAN_20B, LoadOptions(gpu_layers=layers, gpu_experts=experts))


PLAN_20B, PLAN_120B = (Plan(known_models()[f"gpt-oss-{size}"].config) for size in ("20b", "120b"))


@pytest.mark.parametrize("plan", [PLAN_20B, PLAN_120B], ids=["20b", "120b"])
@pytest.mark.parametrize("memory", [3, 6, 8, 12, 24, 80])
def test_auto_fills_the_card(plan, memory):
    """All that fits of attention first, then of experts; no more of either would fit."""
    room = memory * 10**9
    filled_plan = filled(plan, LoadOptions(gpu_experts="auto"), room)
    layers, experts = filled_plan.gpu_layers, filled_plan.gpu_experts
    limit = room - gpu_reserve_bytes(room)
    assert filled_plan.gpu_bytes <= limit
    if layers < plan.config.layers:
        assert experts == 0 and replace(filled_plan, gpu_layers=layers + 1).gpu_bytes > limit
    elif experts < layers:
        assert replace(filled_plan, gpu_experts=experts + 1).gpu_bytes > limit
    if memory == 8:
        assert layers == plan.config.layers and experts > 0
    assert filled_plan == with_experts_apart(plan, room)


def test_memory_and_card_share_the_weights():
    """Nothing is counted twice, and nothing is left out."""
    for layers, experts in ((24, 0), (24, 7), (10, 3), (24, 24)):
        plan = replace(PLAN_20B, gpu_layers=layers, gpu_experts=experts)
        kept = sum(size for name, size in plan.on_gpu.items() if name not in ("scratch", "KV cache"))
        assert plan.weights_bytes + kept == PLAN_20B.weights_bytes


@pytest.mark.parametrize("plan", [PLAN_20B, PLAN_120B], ids=["20b", "120b"])
def test_speed_follows_from_bandwidths(plan, monkeypatch, tmp_path):
    """A token's bytes are read once, on one side or the other; more of them on the card is faster."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    last = 0.0
    for experts in range(0, plan.config.layers + 1, 6):
        split = replace(plan, gpu_layers=plan.config.layers, gpu_experts=experts)
        read = shares(split)
        assert abs(sum(read) - decode_bytes(plan)) < 200_000 * plan.config.layers  # files' headers
        assert gpu_estimate(split).tokens_per_s > last
        last = gpu_estimate(split).tokens_per_s
    assert read.in_memory < 0.01 * read.on_gpu
    faster = gpu_estimate(split, 2 * CARD_BYTES_PER_S)
    assert faster.tokens_per_s > 1.3 * last


@pytest.mark.parametrize("experts", ["none", None])
def test_keys_and_values_beyond_float16(experts, tmp_path, gpu_adapter):
    """They become the largest number of an f16 cache, as on the CPU, and nothing becomes infinite or NaN."""
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors = checkpoints.make_tensors(config, seed=5)
    for name in ("k", "v"):
        bias = tensors[f"model.layers.1.self_attn.{name}_proj.bias"]
        large = np.where(np.arange(len(bias)) % 3, 1.5e5, -1.5e5).astype(np.float32)
        bias[:] = (large.view(np.uint32) >> 16).astype(np.uint16)
    checkpoints.write_tensors(tmp_path / "source", config, tensors)
    convert(tmp_path / "source", tmp_path / "model", Dtypes(**KEPT))
    tokens, found = read_golden("short").tokens[:30], []
    for layers in (0, "all"):
        options = dict(gpu_layers=layers, gpu_experts=experts if layers else None)
        engine = localoss.load(tmp_path / "model", **OPTIONS | options | dict(kv_dtype="f16"))
        sequence = engine.sequence()
        found.append([engine.prefill(sequence, tokens[:end]) for end in (28, 29, 30)])
        values = sequence.cache.layers[1].read(0, 30)[1].view(np.float16)
        assert np.abs(values).max() == 65504
    assert np.isfinite(found).all() and np.abs(found[1][0]).max() > 0.1
    assert np.abs(np.subtract(*found)).max() <= 3e-3


def test_three_sequences_are_one_pass(load):
    """Whatever their number, a step hands over once for each layer with experts in memory, and once more."""
    engine = load("short", 3, 1)
    caches = [engine.sequence().cache for _ in range(3)]
    device = engine.model.stacks[-1].device
    for step in range(2):
        before = replace(device.traffic)
        engine.model.forward([Chunk([7 + i], step, cache) for i, cache in enumerate(caches)])
        taken = device.traffic.since(before)
        assert (taken.submits, taken.read_backs) == (3, 3)
        assert taken.read_bytes == 3 * (2 * (4 * 96 + 8 * 4) + 4 * 96)


def test_kernels_of_the_cores_are_there_before_layers_are_tried(model, gpu_adapter, monkeypatch):
    """On a first start they compile for a minute: a notice says so, as without a GPU."""
    order, try_out = [], GpuLayers.try_out
    monkeypatch.setattr("localoss.engine.warmup.warm_up", lambda *form: order.append("compiled"))
    monkeypatch.setattr(GpuLayers, "try_out", lambda *its: (order.append("tried"), try_out(*its)))
    localoss.load(model("short", **KEPT), gpu_experts="none", **OPTIONS)
    assert order == ["compiled", "tried"]


def test_what_the_gpu_holds_leaves_memory_for_context(model, gpu_adapter):
    """The limit is too small for a long context with the experts, but they are to be on the GPU."""
    whole = Plan.of(read_config(model("short", **KEPT) / "config.json"), Dtypes(**KEPT), LoadOptions())
    here = replace(whole, gpu_layers=3, context_tokens=32_768)
    limit = (here.total_bytes + replace(here, gpu_experts=0).total_bytes) // 2
    engine = localoss.load(
        model("short", **KEPT), context_tokens=None, memory_limit=limit, gpu_experts="auto", gpu_memory=10**9
    )
    assert engine.context_tokens == 32_768
    assert engine.device_figures()["layers_with_experts"] == 3
