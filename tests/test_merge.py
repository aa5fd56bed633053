"""LoRA adapters that PEFT wrote (tests/golden/make_adapter_golden.py), added to a model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints
from typer.testing import CliRunner

import localoss
from localoss.cli import app
from quant.convert import convert_source
from quant.errors import QuantError
from quant.format.manifest import Dtypes
from quant.format.numbers import bf16_to_f32
from quant.sources import Blocks, open_source
from quant.sources.adapter import Adapter
from quant.sources.base import as_f32
from quant.sources.merged import MergedSource
from quant.sources.model import ModelSource

FOLDER = Path(__file__).parent / "golden" / "adapters"
NAMES = ["attention", "router", "experts"]
Q, ROUTER = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.router.weight"


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "logits.npz") as stored:
        return dict(stored)


@pytest.fixture
def base(checkpoint):
    with open_source(checkpoint("short")) as source:
        yield source


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_peft(name, base, golden, tmp_path):
    """Merged weights are rounded to bfloat16 here, which costs a little; the adapter changes a lot."""
    merged = MergedSource(base, [Adapter(FOLDER / name, base.config)])
    experts = "bf16" if name == "experts" else "mxfp4"
    convert_source(merged, tmp_path / "model", Dtypes("bf16", "bf16", "bf16", experts))
    engine = localoss.load(tmp_path / "model", context_tokens=64, activations="f32", kv_dtype="f32")
    error = np.abs(engine.logits(golden["tokens"].tolist()) - golden[name])
    assert error.mean() < 0.03 * np.abs(golden[name] - golden["none"]).mean()


def test_two_at_once_and_scales(base):
    adapters = [
        Adapter(FOLDER / "attention", base.config, 0.5),
        Adapter(FOLDER / "attention", base.config, 0.25),
    ]
    tensors = load_file(FOLDER / "attention" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    change = 0.75 * (8 / 4) * tensors[prefix + "B.weight"] @ tensors[prefix + "A.weight"]
    rows = MergedSource(base, adapters).rows(Q, 8, 40)
    np.testing.assert_allclose(rows, bf16_to_f32(base.rows(Q, 8, 40)) + change[8:40], atol=1e-6)


def test_what_no_adapter_changes_stays(base):
    merged = MergedSource(base, [Adapter(FOLDER / "router", base.config)])
    np.testing.assert_array_equal(merged.rows(Q, 0, 8), base.rows(Q, 0, 8))
    assert merged.rows(ROUTER, 0, 8).dtype == np.float32
    assert isinstance(merged.expert(0, "down_proj", 3), Blocks) and merged.has_mxfp4_experts
    assert merged.fingerprint() != base.fingerprint()


def test_swapped_and_single_experts(base, tmp_path):
    """Adapters of a program that has an expert's rows for columns, and of one with a module an expert."""
    plain = Adapter(FOLDER / "experts", base.config)
    tensors = load_file(FOLDER / "experts" / "adapter_model.safetensors")
    swapped, single = {}, {}
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            e, r = 10, len(a) // 10
            per_a, per_b = a.reshape(e, r, -1), b.reshape(len(b), r, e)
            swapped[name] = np.ascontiguousarray(per_b.transpose(2, 1, 0).reshape(e * r, -1))
            swapped[name.replace("lora_A", "lora_B")] = np.ascontiguousarray(
                per_a.transpose(2, 1, 0).reshape(-1, r * e)
            )
            kind = "gate_up_projs" if len(b) == 256 else "down_projs"
            for x in range(e):
                module = name.split("experts.")[0] + f"experts.{kind}.{x}.lora_"
                single[module + "A.weight"] = np.ascontiguousarray(per_a[x])
                single[module + "B.weight"] = np.ascontiguousarray(per_b[:, :, x])
    for kind, changed in (("swapped", swapped), ("single", single)):
        shutil.copytree(FOLDER / "experts", tmp_path / kind)
        save_file(changed, tmp_path / kind / "adapter_model.safetensors")
        adapter = Adapter(tmp_path / kind, base.config)
        assert sorted(adapter.names) == sorted(plain.names)
        for name in plain.names:
            (one,), (other,) = plain.pairs(name), adapter.pairs(name)
            np.testing.assert_allclose(other.b @ other.a, one.b @ one.a, atol=1e-6)


def test_the_command(model, checkpoint, tmp_path):
    """Onto a model, in its formats, and onto a checkpoint; what rounding cost is said."""
    runner, router = CliRunner(), str(FOLDER / "router")
    for source, out in ((model("short"), tmp_path / "one"), (checkpoint("short"), tmp_path / "two")):
        result = runner.invoke(
            app, ["merge", str(source), f"{FOLDER / 'attention'}:0.5", router, str(out), "--json"]
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout[result.stdout.index("{") :])["report"]
        assert "attention" in json.dumps(report)
        with ModelSource(out) as merged, open_source(checkpoint("short")) as base:
            wanted = MergedSource(base, [Adapter(FOLDER / "attention", base.config, 0.5)]).rows(Q, 0, 32)
            error = np.linalg.norm(as_f32(merged.rows(Q, 0, 32)) - wanted) / np.linalg.norm(wanted)
            assert 0 < error < 0.02
    refused = runner.invoke(app, ["merge", str(model("short")), f"{router}:much", str(tmp_path / "x")])
    assert refused.exit_code != 0


def test_of_another_model(tmp_path):
    config = checkpoints.write_named("window", tmp_path / "window")
    with open_source(config) as other, pytest.raises(QuantError, match=r"_proj has lora_A.* another model"):
        Adapter(FOLDER / "attention", other.config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(peft_type="IA3"), "'IA3'; localoss knows LORA"),
        (dict(use_dora=True), "use_dora is set"),
        (dict(bias="all"), "trains biases"),
        (dict(lora_alpha="8"), "lora_alpha is '8'"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save is set"),
    ],
    ids=str,
)
def test_other_kinds_are_refused(change, said, base, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(FOLDER / "router", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(QuantError, match=said):
        Adapter(folder, base.config)


def test_damaged_weights(base, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(FOLDER / "router", folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    for changed, said in (
        (tensors | {name: np.full_like(tensors[name], np.nan)}, "NaN"),
        ({key: array for key, array in tensors.items() if key != name}, "without its other half"),
        ({"model.layers.0.mlp.gate.lora_A.weight": tensors[name]}, "without its other half"),
        (tensors | {"lm_head.weight": tensors[name]}, "no part of a LoRA"),
    ):
        save_file(changed, path)
        with pytest.raises(QuantError, match=said):
            Adapter(folder, base.config)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(QuantError, match="not a LoRA's configuration"):
        Adapter(folder, base.config)
