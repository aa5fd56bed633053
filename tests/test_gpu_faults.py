"""No GPU, a bad one, one that gets lost: a line says so, and the CPU gives the answer."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.gpu_fixtures import gpu_of

import localoss
from localoss.errors import UsageError
from localoss.gpu import adapters
from localoss.gpu.device import Device

PROMPT = [5, 17, 101, 3, 42, 9]


@pytest.fixture
def load(model):
    """Load "short"; gives the engine, and the lines that it tells."""

    def loaded(layers, **options):
        told = []
        options = {"context_tokens": 256, "chunk_tokens": 16, "activations": "f32", **options}
        return localoss.load(model("short"), gpu_layers=layers, notice=told.append, **options), told

    return loaded


def answer(engine, tokens=12, sequence=None, between=lambda made: None):
    made = []
    for token in engine.generate(PROMPT, tokens, temperature=0, sequence=sequence, stop_ids=()):
        made.append(token.id)
        between(made)
    return made


def is_on_cpu(engine, told, reason):
    assert gpu_of(engine) is None
    assert len(told) == 1 and reason in told[0] and "\n" not in told[0] and "CPU" in told[0]
    return True


@pytest.fixture
def fake_wgpu(monkeypatch):
    """Put `request` in the place of wgpu's own search for an adapter."""

    def fake(request):
        monkeypatch.setattr(
            adapters, "_wgpu", lambda: SimpleNamespace(gpu=SimpleNamespace(request_adapter_sync=request))
        )

    return fake


def an_adapter(kind="DiscreteGPU", **limits):
    info = {"device": "A card", "vendor": "", "adapter_type": kind, "backend_type": "Vulkan"}
    enough = {name: 1 << 30 for name in adapters._NEEDED}
    return SimpleNamespace(info={**info, "description": "1.0"}, limits=enough | limits)


def test_no_gpu(load, fake_wgpu):
    def nothing(power_preference):
        raise RuntimeError("Request adapter failed (2): No suitable graphics adapter found")

    fake_wgpu(nothing)
    engine, told = load(2)
    assert is_on_cpu(engine, told, "no layers on a GPU: none was found (Request adapter failed")
    assert answer(engine) == answer(load(0)[0])


def test_a_gpu_that_can_do_too_little(load, fake_wgpu):
    small = an_adapter(**{"max-buffer-size": 1 << 20})
    fake_wgpu(lambda power_preference: small)
    assert is_on_cpu(*load("all"), "A card lacks what localoss needs: max-buffer-size")


def test_a_program_that_plays_a_gpu_is_refused(load, fake_wgpu, monkeypatch):
    monkeypatch.delenv("LOCALOSS_SOFTWARE_GPU", raising=False)
    fake_wgpu(lambda power_preference: an_adapter("CPU"))
    assert is_on_cpu(*load("auto"), "none was found, only A card, which runs on the CPU")


def test_memory_that_nobody_knows(load, fake_wgpu, monkeypatch):
    fake_wgpu(lambda power_preference: an_adapter("Unknown"))
    monkeypatch.setattr("localoss.gpu.choice.Device", lambda adapter: SimpleNamespace(adapter=adapter))
    with pytest.raises(UsageError, match="how much memory A card has isn't known; give --gpu-memory SIZE"):
        load("auto")
    assert is_on_cpu(*load("auto", gpu_memory=1_000_000), "1 MB of its memory hold no layer")
    with pytest.raises(UsageError, match=r"2 layers take .* MB on the GPU, too much for 1 MB"):
        load(2, gpu_memory=1_000_000)


def test_without_wgpu(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "wgpu", None)
    with pytest.raises(UsageError, match=r"need wgpu: pip install 'localoss\[gpu\]'"):
        load(1)


def test_a_driver_that_refuses_memory(load, gpu_adapter, monkeypatch):
    import wgpu

    def refuse(self, **options):
        raise wgpu.GPUOutOfMemoryError("Not enough memory left.")

    monkeypatch.setattr(wgpu.GPUDevice, "create_buffer", refuse)
    monkeypatch.setattr(type(gpu_adapter.handle.request_device_sync()), "create_buffer", refuse)
    assert is_on_cpu(*load(2), "bytes could not be had (Not enough memory left.)")


def test_a_driver_that_cannot_compile(load, gpu_adapter, monkeypatch):
    monkeypatch.setattr("localoss.gpu.kernels.source", lambda *files, **constants: "this is no shader")
    engine, told = load(1)
    assert is_on_cpu(engine, told, "no layers on a GPU: a shader could not be compiled (")


@pytest.mark.parametrize("layers", [1, "all"])
def test_lost_in_the_middle_of_an_answer(load, gpu_adapter, layers):
    engine, told = load(layers)
    expected = answer(load(0)[0])

    def lose(made):
        if len(made) == 4:
            gpu_of(engine).device._device.destroy()

    assert answer(engine, between=lose) == expected
    assert is_on_cpu(engine, told, "the GPU is left: writing to it failed (Parent device is lost)")
    assert answer(engine) == expected and len(told) == 1


def test_lost_between_turns_and_conversations(load, gpu_adapter):
    """Whatever touches the cache next: another prefill, a snapshot that is written back, a mark."""
    engine, told = load("all", slots=2)
    plain = load(0)[0]
    random = np.random.RandomState(1)
    first, other = (random.randint(0, 200, 90).tolist() for _ in range(2))
    sequences = [engine.sequence(), engine.sequence()]
    for sequence, tokens in zip(sequences, (first, other), strict=True):
        engine.prefill(sequence, tokens, checkpoints=[40])
    gpu_of(engine).device._device.destroy()
    again = [*first[:44], *other[:20]]  # beyond what the rings hold: goes back to the mark
    for sequence, tokens in zip(sequences, (again, [*other, 7]), strict=True):
        logits = engine.prefill(sequence, tokens, checkpoints=[len(tokens)])
        assert np.abs(logits - plain.logits(tokens, [len(tokens) - 1])[0]).max() <= 1e-3
    assert is_on_cpu(engine, told, "Parent device is lost")


def test_lost_while_logits_are_computed(load, gpu_adapter, monkeypatch):
    engine, told = load("all")
    run, calls = Device.run, []

    def fail_late(self, work, reading=()):
        calls.append(work)
        if len(calls) == 3:
            self._device.destroy()
        return run(self, work, reading)

    monkeypatch.setattr(Device, "run", fail_late)
    logits = engine.logits(PROMPT * 5)
    assert np.abs(logits - load(0)[0].logits(PROMPT * 5)).max() <= 1e-3
    assert is_on_cpu(engine, told, "the GPU is left: ")
