"""While the GPU computes half of a pass, the cores run experts of the other half: a clock plays the bus."""

from types import SimpleNamespace

import numpy as np
import pytest
from support import checkpoints

import localoss
from localoss.gpu import layers as gpu_layers
from localoss.gpu.device import Device
from localoss.plan import gpu_sizes
from quant.convert import convert
from quant.format.manifest import Dtypes

LAYERS = 8
SUBMIT_S, BYTE_S, GPU_S = 1e-4, 1e-9, 1e-3  # of a stage on the GPU; what the cores take is each test's own
TOKENS = list(range(5, 53))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bus")
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"] | {"layers": LAYERS})
    checkpoints.write_tensors(root / "source", config, checkpoints.make_tensors(config, seed=4))
    convert(root / "source", root / "model", Dtypes())
    return root / "model"


def load(folder, **options):
    return localoss.load(
        folder, context_tokens=64, chunk_tokens=48, activations="f32", kv_dtype="f32", **options
    )


def played(engine, cpu_s, patch):
    """A clock that moves as such a bus, GPU and cores would; `gpu` and `cpu` add up what each was busy."""
    clock = SimpleNamespace(now=0.0, gpu=0.0, cpu=0.0, written=0)
    submit, write = Device.submit, Device.write
    cores = engine.model.stacks[-1]._cores
    run_chosen = cores.run_chosen

    def play_submit(self, recording, meanwhile=lambda: None):
        its = SUBMIT_S + GPU_S + BYTE_S * (sum(recording.sizes) + clock.written)
        end, clock.written = clock.now + its, 0
        clock.gpu += its
        data = submit(self, recording, meanwhile)  # the cores move the clock in it
        clock.now = max(clock.now, end)
        return data

    def play_write(self, buffer, array, offset=0):
        clock.written += array.nbytes
        write(self, buffer, array, offset)

    def play_experts(*arguments):
        clock.now += cpu_s
        clock.cpu += cpu_s
        run_chosen(*arguments)

    patch.setattr(Device, "submit", play_submit)
    patch.setattr(Device, "write", play_write)
    patch.setattr(cores, "run_chosen", play_experts)
    return clock


@pytest.mark.parametrize("cpu_s", [0.2e-3, 1e-3, 1.2e-3, 3e-3])
def test_cores_and_gpu_work_at_the_same_time(cpu_s, folder, gpu_adapter, monkeypatch):
    engine = load(folder, gpu_experts="none")
    clock = played(engine, cpu_s, monkeypatch)
    logits = engine.logits(TOKENS, [40])
    assert clock.cpu == pytest.approx(2 * LAYERS * cpu_s)
    assert clock.now <= 1.15 * max(clock.cpu, clock.gpu)
    assert np.abs(logits - load(folder).logits(TOKENS, [40])).max() <= 1e-4


def test_in_one_piece_they_wait_for_each_other(folder, gpu_adapter, monkeypatch):
    """So that the test above can fail."""
    monkeypatch.setattr(gpu_sizes, "TWO_LANES", 1000)
    monkeypatch.setattr(gpu_layers, "TWO_LANES", 1000)
    engine = load(folder, gpu_experts="none")
    clock = played(engine, 1.2e-3, monkeypatch)
    engine.logits(TOKENS, [40])
    assert clock.now == pytest.approx(clock.cpu + clock.gpu - SUBMIT_S - GPU_S, rel=0.1)
    assert clock.now > 1.5 * max(clock.cpu, clock.gpu)
