"""Experts that lie in this machine's memory come to the GPU for long prompts, where that is faster."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.device_loss import lose_at
from support.golden_files import read_golden
from support.gpu_fixtures import gpu_of
from test_gpu_experts import run_three

import localoss
from localoss.errors import Cancelled
from localoss.gpu import streaming
from localoss.gpu.device import Device
from localoss.gpu.streaming import Times
from localoss.options import LoadOptions
from localoss.plan import gpu_sizes
from localoss.plan.memory import Plan
from quant.format.config import read_config
from quant.format.layout import expert_run

KEPT = dict(attention="bf16", embedding="bf16", unembedding="bf16")
OPTIONS = dict(context_tokens=192, activations="f32", kv_dtype="f32", chunk_tokens=48, slots=3)
CLOSE = 1e-4  # of logits whose standard deviation is 1


@pytest.fixture
def load(model, gpu_adapter):
    """Load a checkpoint with all layers on the GPU and the experts of `experts`; others come to it for passes
    of 16 tokens and more."""

    def loaded(name, experts, **options):
        folder = model(name, **KEPT)
        engine = localoss.load(folder, gpu_layers="all", gpu_experts=experts, **OPTIONS | options)
        gpu_of(engine)._stream.from_tokens = 16
        return engine

    return loaded


def run(engine, name):
    """Logits after prompts that end in a full pass, in a short one, and after a token."""
    tokens, sequence = read_golden(name).tokens, engine.sequence()
    return np.array([engine.prefill(sequence, tokens[:end]) for end in (47, 100, 104, 105, 140)])


@pytest.mark.parametrize("name", ["short", "window"])
@pytest.mark.parametrize(("experts", "at_once"), [("none", 5), ("none", 3), (2, 1)])
def test_the_cpus_logits(name, experts, at_once, load, model, monkeypatch):
    """With an even number of parts and an odd one; the last one may be smaller."""
    run_bytes = expert_run(config_of(model, name), "mxfp4").size
    monkeypatch.setattr(gpu_sizes, "_STREAMED_BYTES", at_once * run_bytes)
    engine = load(name, experts)
    assert gpu_of(engine)._stream.at_once == at_once
    on_cpu = localoss.load(model(name, **KEPT), **OPTIONS)
    for passes in (run, run_three):
        assert np.abs(passes(engine, name) - passes(on_cpu, name)).max() <= CLOSE


def config_of(model, name):
    return read_config(model(name, **KEPT) / "config.json")


def test_the_cores_have_none_of_it_and_the_bus_all(load, monkeypatch):
    engine = load("short", 1)
    gpu, cores = gpu_of(engine), []
    monkeypatch.setattr(gpu._cores, "run_chosen", lambda *arguments: cores.append(arguments))
    tokens, config = read_golden("short").tokens[:48], engine.config
    engine.prefill(engine.sequence(), tokens)  # a part is there already from measuring: not the next time
    before = gpu.device.traffic.written_bytes
    engine.prefill(engine.sequence(), tokens)
    written = gpu.device.traffic.written_bytes - before
    experts = 2 * config.experts * expert_run(config, "mxfp4").size
    pass_bytes = 48 * 4 * (config.hidden + config.head_dim) + 4 * 16  # two halves, each with two uniforms
    assert written == experts + pass_bytes and not cores
    engine.prefill(engine.sequence(), tokens[:15])
    assert len(cores) == 2


def test_cancelled_among_parts(load):
    engine = load("short", "none")
    sequence, tokens = engine.sequence(), read_golden("short").tokens[:40]
    for when in range(1, 8):
        asked = []

        def cancelled(asked=asked, when=when):
            asked.append(1)
            return len(asked) == when

        with pytest.raises(Cancelled):
            engine.prefill(sequence, tokens, cancelled=cancelled)
    golden = read_golden("short").logits[39]
    assert np.abs(engine.prefill(sequence, tokens) - golden).max() <= CLOSE


@pytest.mark.parametrize("where", ["record", "write", "_read"])
@pytest.mark.parametrize("call", [1, 3, 6, 9])
def test_lost_while_experts_come(where, call, load, monkeypatch):
    told = []
    engine = load("short", 1, notice=told.append)
    lose_at(monkeypatch, where, call)
    golden, tokens = read_golden("short"), read_golden("short").tokens[:90]
    assert np.abs(engine.prefill(engine.sequence(), tokens) - golden.logits[89]).max() <= CLOSE
    assert len(told) == 1 and "the GPU is left" in told[0]


@pytest.mark.parametrize("experts", ["none", 1, 3])
def test_its_memory_is_in_the_plan(experts, load, model):
    folder = model("short", **KEPT)
    options = OPTIONS | dict(gpu_layers="all", gpu_experts=experts)
    engine = localoss.load(folder, **options)
    plan = Plan.of(engine.config, engine.dtypes, LoadOptions(**OPTIONS))
    plan = Plan(**vars(plan) | dict(gpu_layers=3, gpu_experts=0 if experts == "none" else experts))
    held = gpu_of(engine).device.allocated_bytes
    assert (
        0.9 * plan.gpu_bytes <= held <= plan.gpu_bytes + 4096
    )  # the files have headers; buffers whole words
    assert (gpu_of(engine)._stream is None) == (experts == 3)


def test_from_how_many_tokens():
    assert Times(copy_s=0.04, gpu_token_s=1e-4, cores_token_s=5e-4).from_tokens == 100
    assert Times(copy_s=0.0001, gpu_token_s=1e-4, cores_token_s=5e-4).from_tokens == 16  # two lanes at least
    assert Times(copy_s=0.04, gpu_token_s=5e-4, cores_token_s=4e-4).from_tokens is None


SUBMIT_S, GROUP_S = 1e-4, 1e-6  # of a submit, and of each workgroup


def played(engine, byte_s, token_s, patch):
    """A clock that moves as a bus, a GPU and cores would on which a byte and a token's experts take so long.

    What is written is copied twice: by a core, at half of that, and over the bus once something is submitted.
    """
    clock = SimpleNamespace(now=0.0, written=0, groups={})
    record, submit, write = Device.record, Device.submit, Device.write
    cores = gpu_of(engine)._cores
    run_chosen = cores.run_chosen

    def play_record(self, work, reading=()):
        made = record(self, work, reading)
        clock.groups[id(made)] = sum(dispatch.x * dispatch.y for dispatch in work)
        return made

    def play_submit(self, recording, meanwhile=lambda: None):
        took_s = SUBMIT_S + GROUP_S * clock.groups.get(id(recording), 0)
        end = clock.now + took_s + byte_s * (sum(recording.sizes) + clock.written)
        clock.written = 0
        data = submit(self, recording, meanwhile)  # the cores move the clock in it
        clock.now = max(clock.now, end)
        return data

    def play_write(self, buffer, array, offset=0):
        clock.written += array.nbytes
        clock.now += byte_s / 2 * array.nbytes
        write(self, buffer, array, offset)

    def play_experts(index, ids, weights, x):
        clock.now += token_s * len(x)
        run_chosen(index, ids, weights, x)

    patch.setattr(Device, "record", play_record)
    patch.setattr(Device, "submit", play_submit)
    patch.setattr(Device, "write", play_write)
    patch.setattr(cores, "run_chosen", play_experts)
    patch.setattr(streaming, "clock", lambda: clock.now)
    return clock


def seconds(engine, clock, tokens, from_tokens):
    """Of a prompt on that clock, with experts brought from so many tokens on."""
    gpu_of(engine)._stream.from_tokens = from_tokens
    before = clock.now
    engine.prefill(engine.sequence(), read_golden("short").tokens[:tokens])
    return clock.now - before


@pytest.mark.parametrize(
    ("byte_s", "token_s", "brings"),
    [(1e-8, 2e-3, "all"), (2e-7, 2e-3, "long"), (1e-6, 2e-3, "none"), (1e-8, 1e-5, "none")],
    ids=["slow cores", "both", "slow bus", "fast cores"],
)
def test_the_faster_way_is_taken(byte_s, token_s, brings, load, monkeypatch):
    engine = load("short", "none")
    gpu, clock = gpu_of(engine), played(engine, byte_s, token_s, monkeypatch)
    gpu.try_out(engine.sequence().cache.layers)
    chosen = gpu._stream.from_tokens
    assert brings == ("none" if chosen is None or chosen > 48 else "all" if chosen == 16 else "long")
    for tokens in (16, 24, 32, 40, 48):
        its, bringing, never = (seconds(engine, clock, tokens, n) for n in (chosen, 16, None))
        assert its in (pytest.approx(bringing, rel=0.2), pytest.approx(never))  # a part may be there already
        assert its <= 1.15 * min(bringing, never)
    if brings == "all":
        assert its < 0.3 * never
    if brings == "none":
        assert its < 0.5 * bringing
