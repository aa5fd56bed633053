"""`localoss gpu`, and which split of the layers it calls best."""

import json
from dataclasses import replace

import pytest

from localoss import cli
from localoss.errors import GpuError
from localoss.gpu import adapters, memory
from localoss.gpu.adapters import Adapter
from localoss.gpu.device import Device
from localoss.hub.registry import known_models
from localoss.measure import gpu_rates
from localoss.measure.gpu_split import Split
from localoss.plan.gpu_speed import gpu_estimate
from localoss.plan.machine import usual_threads
from localoss.plan.memory import Plan

PLAN_20B = Plan(known_models()["gpt-oss-20b"].config, context_tokens=8192, threads=usual_threads())
LIMITS = {name: 1 << 31 for name in adapters._NEEDED}
CARDS = [
    Adapter("A card", "discrete", "Vulkan", "1.0", LIMITS),
    Adapter("llvmpipe", "software", "Vulkan", "Mesa", LIMITS | {"max-buffer-size": 4}),
]


@pytest.fixture
def listed(monkeypatch):
    """Have these adapters, and 8 GB on the first."""
    known = {"A card": 8_000_000_000}
    monkeypatch.setattr(adapters, "all_adapters", lambda: CARDS)
    monkeypatch.setattr(memory, "memory_bytes", lambda adapter: known.get(adapter.name))


def test_the_list(listed, capsys):
    assert cli.main(["gpu"]) == 0
    out = " ".join(capsys.readouterr().out.split())  # cells may be wrapped
    assert "A card discrete Vulkan 1.0 8.0 GB 2.15 GB" in out
    assert "llvmpipe" in out and "not used" in out and "unknown" in out


def test_the_list_in_json(listed, capsys):
    assert cli.main(["gpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [a["memory_bytes"] for a in report["adapters"]] == [8_000_000_000, None]
    assert report["adapters"][1]["missing_limits"] == ["max-buffer-size"]


def test_a_driver_that_fails_is_one_line(monkeypatch, capsys):
    def fail():
        raise GpuError("its driver failed (no such device)")

    monkeypatch.setattr(adapters, "all_adapters", fail)
    assert cli.main(["gpu"]) == 1
    assert capsys.readouterr().err == "error: its driver failed (no such device)\n"


def test_the_best_split():
    fast = Split(layers=24, read_bytes=80_000_000, cpu_layer_s=4e-3, gpu_layer_s=1e-3, gpu_call_s=1e-3)
    assert fast.best_layers(24) == 24 and fast.best_layers(9) == 9 and fast.best_layers(0) == 0
    assert fast.token_s(9) == pytest.approx(15 * 4e-3 + 9e-3 + 1e-3)
    assert fast.gpu_bytes_per_s == pytest.approx(80e9)
    slow = Split(layers=24, read_bytes=80_000_000, cpu_layer_s=4e-3, gpu_layer_s=5e-3, gpu_call_s=1e-3)
    assert slow.best_layers(24) == 0
    dear = Split(layers=24, read_bytes=80_000_000, cpu_layer_s=4e-3, gpu_layer_s=3.9e-3, gpu_call_s=1e-3)
    assert dear.best_layers(5) == 0 and dear.best_layers(24) == 24


def test_measuring(model, gpu_adapter, capsys):
    code = cli.main(["gpu", str(model("short")), "--gpu-memory", "8GB", "--json"])
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert code == 0, err
    assert any(adapter["name"] == gpu_adapter.name for adapter in report["adapters"])
    split = report["split"]
    assert (split["layers"], split["fitting_layers"]) == (3, 3)
    assert split["best_layers"] in (0, 3)
    assert all(split[name] > 0 for name in ("cpu_layer_s", "gpu_layer_s", "gpu_call_s", "gpu_bytes_per_s"))


def test_rates_of_every_format(gpu_adapter, capsys, monkeypatch):
    """Small ones, since nobody is to wait for lavapipe; what is shown is what was measured."""
    monkeypatch.setattr(gpu_rates, "_SOFTWARE_BYTES", 1 << 19)
    monkeypatch.setattr(gpu_rates, "_RUNS", 1)
    assert cli.main(["gpu", "--measure", "--json"]) == 0
    rates = json.loads(capsys.readouterr().out)["rates"]
    names = [rate["name"] for rate in rates["formats"]]
    assert names == ["mxfp4 by halves", "mxfp4 by integers", "int8", "int4", "bf16"]
    assert sum(rate["is_used"] for rate in rates["formats"][:2]) == 1
    assert all(rate["gb_per_s"] > 0 and rate["many_gmacs"] > 0 for rate in rates["formats"])
    assert rates["read_gb_per_s"] > 0 and rates["bus_gb_per_s"] > 0
    monkeypatch.setattr("localoss.cli.gpu._rates", lambda: rates)
    assert cli.main(["gpu", "--measure"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    shown = next(rate for rate in rates["formats"] if rate["name"] == "int8")
    assert f"int8 {shown['gb_per_s']:.1f}" in out and "not used" in out


def test_the_bytes_of_a_rate_are_codes_and_scales(gpu_adapter):
    """A row of 2,880 weights: int8 has 90 scales of 2 bytes, MXFP4 90 of one byte."""
    device = Device(gpu_adapter)
    codes, scales = device.buffer(1 << 19), device.buffer(1 << 17)
    for name, row in (("int8", 2880 + 180), ("mxfp4", 1440 + 90), ("bf16", 5760)):
        matrix = gpu_rates._matrix(device, PLAN_20B.config, name, codes, scales)
        assert gpu_rates._matrix_bytes(matrix) == 8 * matrix.groups * row
        assert matrix.groups == (1 << 19) // (8 * (row if name == "bf16" else row * 16 // 17))
    device.destroy()


def test_free_memory_of_amd_cards(tmp_path):
    for card, total, used in ((0, 2_000, 500), (1, 9_000, 1_000)):
        folder = tmp_path / f"card{card}" / "device"
        folder.mkdir(parents=True)
        (folder / "mem_info_vram_total").write_text(f"{total}\n")
        (folder / "mem_info_vram_used").write_text(f"{used}\n")
    card = Adapter("AMD Radeon", "discrete", "Vulkan", "RADV", LIMITS)
    assert memory.memory_bytes(card, tmp_path) == 8_000
    assert memory.memory_bytes(card, tmp_path / "none") is None


def test_free_memory_of_nvidia_cards(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA T1, 7000'\necho 'NVIDIA T2, 100'\necho 'NVIDIA T1, 6000'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    card = Adapter("NVIDIA T1", "discrete", "Vulkan", "", LIMITS)
    assert memory.memory_bytes(card) == 6000 << 20
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert memory.memory_bytes(card) is None


def test_a_share_of_the_machines_memory():
    card = Adapter("Apple M4", "integrated", "Metal", "", LIMITS)
    assert 1e8 < memory.memory_bytes(card) < 1e14


def run_plan(capsys, *arguments):
    assert cli.main(["plan", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("memory", "layers", "experts", "words"),
    [
        ("300MB", 0, None, ""),
        ("1500MB", 2, (23, 0), "--gpu-layers 23 --gpu-experts 0"),
        ("80GB", 24, None, ""),
    ],
)
def test_plan_of_cards(memory, layers, experts, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    arguments = ["gpt-oss-20b", "--memory", "64GB", "--context", "8192", "--gpu-memory", memory]
    told, report = (run_plan(capsys, *arguments, *more) for more in ((), ("--json",)))
    report = json.loads(report)["gpu"]
    assert report["layers"] == layers == report["layers_with_experts"]
    assert ("speed" in report) == (layers > 0) and ("holds no layer" in told) == (layers == 0)
    apart = report.get("experts_apart")
    assert (apart and (apart["layers"], apart["layers_with_experts"])) == experts
    assert words in told
    if apart:
        assert apart["speed"]["tokens_per_s"] > report["speed"]["tokens_per_s"] > 0


SPLIT = ["gpt-oss-20b", "--memory", "64GB", "--context", "8192"]


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        (["--gpu-experts", "none"], (24, 0), "the experts of 0, the others' in RAM (--gpu-experts 0)"),
        (["--gpu-experts", "9"], (24, 9), "(--gpu-experts 9)"),
        (["--gpu-experts", "3", "--gpu-layers", "7"], (7, 3), "(--gpu-layers 7 --gpu-experts 3)"),
        (["--gpu-experts", "auto", "--gpu-memory", "8GB"], (24, 14), "A GPU of 8.0 GB holds 24 of 24 layers"),
        (["--gpu-layers", "auto", "--gpu-memory", "8GB"], (16, 16), "(--gpu-layers 16)"),
        (["--gpu-layers", "all"], (24, 24), "holds 24 of 24 layers, the unembedding too (--gpu-layers 24)"),
    ],
)
def test_plan_of_a_split(asked, found, words, capsys, tmp_path, monkeypatch):
    """It takes the options of the other commands, and tells what that split takes and how fast it is."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    told, report = (run_plan(capsys, *SPLIT, *asked, *more) for more in ((), ("--json",)))
    split = replace(PLAN_20B, gpu_layers=found[0], gpu_experts=found[1] if "experts" in asked[0] else None)
    report = json.loads(report)["gpu"]
    assert (report["layers"], report["layers_with_experts"]) == found
    assert report["on_gpu_bytes"] == split.on_gpu
    speed = gpu_estimate(split).tokens_per_s
    assert report["speed"]["tokens_per_s"] == pytest.approx(speed, rel=1e-3)
    assert words in told and f"bandwidths give {speed:.3g} tokens/s" in told
    assert "experts_apart" not in report and told.count("A GPU") == 1


def test_a_split_leaves_memory_for_context(capsys, tmp_path, monkeypatch):
    """As when the model is loaded: the context is chosen with what the GPU holds out of the way."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    asked = ["gpt-oss-20b", "--memory", "8GB", "--gpu-experts", "auto", "--gpu-memory", "12GB"]
    told, report = (run_plan(capsys, *asked, *more) for more in ((), ("--json",)))
    report = json.loads(report)
    assert report["context_tokens"] < report["gpu"]["context_tokens"] == 32_768
    split = replace(PLAN_20B, context_tokens=32_768, gpu_layers=24)
    split = replace(split, gpu_experts=report["gpu"]["layers_with_experts"])
    assert report["gpu"]["on_gpu_bytes"] == split.on_gpu and "speed" in report["gpu"]
    assert "It leaves room for a context of 32,768 tokens." in told


def test_plans_of_splits_that_cannot_be(listed, capsys, monkeypatch):
    assert cli.main(["plan", *SPLIT, "--gpu-experts", "20", "--gpu-memory", "8GB"]) == 2
    assert "too much for 8.0 GB and a reserve; --gpu-experts auto takes what" in capsys.readouterr().err
    monkeypatch.setattr(adapters, "choose_adapter", lambda: CARDS[0])
    monkeypatch.setattr("localoss.gpu.choice.memory_bytes", lambda adapter: None)
    assert cli.main(["plan", *SPLIT, "--gpu-experts", "auto"]) == 2
    assert "how much memory the GPU has isn't known; give --gpu-memory SIZE" in capsys.readouterr().err
    monkeypatch.setattr("localoss.gpu.choice.memory_bytes", lambda adapter: 8_000_000_000)
    assert "A GPU of 8.0 GB holds 24" in run_plan(capsys, *SPLIT, "--gpu-experts", "auto")

    def none_there():
        raise GpuError("none was found")

    monkeypatch.setattr(adapters, "choose_adapter", none_there)
    assert "No layers on a GPU: none was found." in run_plan(capsys, *SPLIT, "--gpu-experts", "auto")
