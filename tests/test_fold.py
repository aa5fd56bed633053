"""Gains that are partly moved into the columns after them: exact in floats, better once these are rounded."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from support import checkpoints
from test_server_adapters import write_adapter

import localoss
from quant import encode_tensors
from quant.convert import convert, convert_source
from quant.export import export
from quant.export_gguf import export_gguf
from quant.format.config import read_config
from quant.format.fold import MOST, factor_of, shift_of
from quant.format.manifest import Dtypes
from quant.format.numbers import f32_to_bf16
from quant.report import report
from quant.sources import open_source
from quant.sources.base import as_f32
from quant.sources.model import ModelSource

KEPT = Dtypes("bf16", "bf16", "bf16", "mxfp4")
TOKENS = np.random.RandomState(3).randint(0, 203, 200).tolist()
Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose gains differ as trained ones do, and more; some are zero or negative."""
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors = checkpoints.make_tensors(config, 1)
    random = np.random.RandomState(5)
    for name, bits in tensors.items():
        if name.endswith("input_layernorm.weight") or name == "model.norm.weight":
            gain = np.exp(random.standard_normal(len(bits))).astype(np.float32)
            gain[:3] = 0, -5, 40
            tensors[name] = f32_to_bf16(gain)
    return checkpoints.write_tensors(tmp_path_factory.mktemp("wide") / "checkpoint", config, tensors)


@pytest.fixture(scope="module")
def made(wide, tmp_path_factory):
    """Models of it by number formats, folded as they are now, and as earlier versions made them."""
    root = tmp_path_factory.mktemp("made")
    folders = {}
    for name, dtypes in (("kept", KEPT), ("int8", Dtypes())):
        folders[name] = root / name
        convert(wide, folders[name], dtypes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode_tensors, "shift_of", lambda gain: np.zeros(len(gain), np.int8))
            folders[f"{name} before"] = root / f"{name}-before"
            convert(wide, folders[f"{name} before"], dtypes)
        forget_shifts(folders[f"{name} before"])
    return folders


def forget_shifts(folder):
    manifest = json.loads((folder / "localoss.json").read_text())
    for name, entry in manifest["files"].items():
        if name.endswith(".safetensors"):
            forget_shift(folder / name)
            entry["bytes"] = (folder / name).stat().st_size
    (folder / "localoss.json").write_text(json.dumps(manifest))


def forget_shift(path):
    """Have a file lack the tensor, as those of earlier versions do."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name.endswith(".shift"))
    first, end = header.pop(name)["data_offsets"]
    for entry in header.values():
        if entry.get("data_offsets", [0])[0] >= end:
            entry["data_offsets"] = [offset - end + first for offset in entry["data_offsets"]]
    text = json.dumps(header).encode()
    start = 8 + length
    kept = data[start : start + first] + data[start + end :]
    path.write_bytes(data[:8] + text + b" " * (length - len(text)) + kept)


def logits(folder, exact=True, **options):
    kinds = dict(activations="f32", kv_dtype="f32") if exact else {}
    return localoss.load(folder, context_tokens=256, **kinds, **options).logits(TOKENS)


def test_shifts():
    gain = np.array([1, 1, 1, 0, 4, -16, 0.25, 1e-30, 1e30, 2, 0.5], np.float32)
    assert shift_of(gain).tolist() == [0, 0, 0, 0, 1, 2, -1, -MOST, MOST, 1, 0]
    random = np.exp(2 * np.random.RandomState(1).standard_normal(999)).astype(np.float32)
    factor = factor_of(shift_of(random))
    assert np.median(factor) == 1
    assert np.ptp(np.log2(random / factor)) < 0.6 * np.ptp(np.log2(random))
    np.testing.assert_array_equal(shift_of(3 * np.ones(5, np.float32)), 0)
    assert factor_of(shift_of(np.zeros(5, np.float32))) is None


def test_floats_are_the_same_model(made):
    with safe_open(made["kept"] / "layer-001.safetensors", "np") as file:
        assert np.ptp(file.get_tensor("attention_norm.shift")) > 2
    np.testing.assert_allclose(logits(made["kept"]), logits(made["kept before"]), atol=1e-4)


def test_rounding_costs_less(made):
    """Of the product with q, whose inputs are rounded in blocks of 32, as the engine rounds them.

    Logits of a checkpoint this small don't show it: where the router's choice changes they change a lot, by
    chance, and the experts' inputs, whose norm the router shares, round as before.
    """
    normed = np.random.RandomState(8).standard_normal((300, 96)).astype(np.float32)
    errors = {}
    for name in ("int8", "int8 before"):
        with ModelSource(made["kept"]) as exact, ModelSource(made[name], as_stored=True) as stored:
            want = (normed * exact.vector(NORM)) @ as_f32(exact.rows(Q, 0, 192)).T
            got = rounded(normed * stored.vector(NORM)) @ stored.rows(Q, 0, 192).T
            errors[name] = np.square(got - want).mean()
    assert errors["int8"] < 0.5 * errors["int8 before"]


def rounded(x):
    """x (T, D) as int8 with a scale for each block of 32."""
    blocks = x.reshape(len(x), -1, 32)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / 127
    return (np.rint(blocks / scales) * scales).reshape(x.shape)


def test_the_published_weights_come_back(made, wide, tmp_path):
    with open_source(wide) as source, ModelSource(made["kept"]) as model:
        for name in (Q, NORM, "lm_head.weight", "model.norm.weight"):
            count = source.shape(name)[0]
            np.testing.assert_array_equal(
                as_f32(model.rows(name, 0, count)), as_f32(source.rows(name, 0, count))
            )
        np.testing.assert_array_equal(as_f32(model.rows(Q, 9, 21)), as_f32(source.rows(Q, 9, 21)))
    export(made["kept"], tmp_path / "out")
    with open_source(tmp_path / "out") as again, open_source(wide) as source:
        for name in (Q, NORM, "lm_head.weight"):
            count = source.shape(name)[0]
            np.testing.assert_array_equal(again.rows(name, 0, count), source.rows(name, 0, count))


def test_gguf_is_the_same_model(made, tmp_path):
    """Its int8 codes are the folder's, and its gains are those that belong to them."""
    pytest.importorskip("gguf")
    from localoss.chat.harmony import VOCABULARY_FOLDER

    path = tmp_path / "model.gguf"
    export_gguf(made["int8"], path, lambda *_: None, VOCABULARY_FOLDER / "o200k_base.tiktoken")
    with open_source(path) as exported, ModelSource(made["int8"], as_stored=True) as stored:
        assert np.ptp(np.log2(np.abs(exported.vector(NORM)[3:]))) < 6
        for name in (NORM, Q):
            count = stored.shape(name)[0]
            np.testing.assert_array_equal(as_f32(exported.rows(name, 0, count)), stored.rows(name, 0, count))


def test_the_report_compares_with_the_published(made, wide):
    from quant.format.manifest import read_manifest

    errors = []
    for name in ("int8", "int8 before"):
        found = report(wide, made[name], read_manifest(made[name]))
        errors.append({entry.name: entry.relative_error for entry in found.classes})
    assert all(0 < errors[0][name] < 0.03 for name in ("attention", "unembedding"))
    kept = report(wide, made["kept"], read_manifest(made["kept"]))
    assert all(entry.relative_error == 0 for entry in kept.classes if entry.name != "embedding")


def test_adapters_stand_beside_either(made, tmp_path):
    config = read_config(made["kept"] / "config.json")
    adapter = str(write_adapter(tmp_path / "adapter", config, 3))
    now, before = (logits(made[name], adapters=[adapter]) for name in ("kept", "kept before"))
    assert np.abs(now - logits(made["kept"])).max() > 0.5
    np.testing.assert_allclose(now, before, atol=2e-4)


def test_a_merge_keeps_what_it_does_not_change(made, tmp_path):
    """Unfolded and folded once more, gains and shifts are the same, and weights but for int8's search."""
    with ModelSource(made["int8"]) as source:
        convert_source(source, tmp_path / "again", source.manifest.dtypes)
    for path in sorted(made["int8"].glob("*.safetensors")):
        with safe_open(path, "np") as one, safe_open(tmp_path / "again" / path.name, "np") as other:
            for name in one.keys():  # noqa: SIM118 - it is no dictionary
                if "norm" in name:
                    np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name), err_msg=name)
    with ModelSource(made["int8"]) as one, ModelSource(tmp_path / "again") as other:
        np.testing.assert_allclose(other.rows(Q, 0, 40), one.rows(Q, 0, 40), atol=0.02)
