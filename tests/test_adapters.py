"""LoRA adapters beside a model's weights, against PEFT's logits (tests/golden/make_adapter_golden.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import localoss
from localoss.chat.session import Session
from localoss.cli import app
from localoss.engine.loader import load_engine
from localoss.engine.slot import Slot
from localoss.errors import LocalossError, UsageError
from localoss.model.adapters import open_adapters
from localoss.options import Listener, LoadOptions, SamplingParams
from localoss.plan.memory import Plan
from quant.convert import convert_source
from quant.errors import QuantError
from quant.format.config import read_config
from quant.format.layout import expert_run
from quant.format.manifest import Dtypes
from quant.sources import open_source
from quant.sources.adapter import open_adapter

FOLDER = Path(__file__).parent / "golden" / "adapters"
NAMES = ["attention", "router", "experts", "unembedding"]


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "logits.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory):
    """The model with nothing rounded but what the checkpoint rounds."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    with open_source(checkpoint("short")) as source:
        convert_source(source, folder, Dtypes("bf16", "bf16", "bf16", "mxfp4"))
    return folder


@pytest.fixture(scope="module")
def exact(plain):
    """Gives the model on the float32 path with adapters."""

    def load(*adapters, **options):
        defaults = dict(context_tokens=64, activations="f32", kv_dtype="f32")
        return localoss.load(plain, adapters=[*adapters], **(defaults | options))

    return load


def last_logits(engine, prompts):
    """Of sequences that are run in one batch, by their adapters' names."""
    batch = engine.batch()
    slots = {
        name: batch.add(Slot(engine.sequence(adapter=name), prompt, SamplingParams(temperature=0)))
        for name, prompt in prompts.items()
    }
    found = {}
    while len(found) < len(slots):
        batch.advance()
        for name, slot in slots.items():  # at once: the next pass overwrites them
            if slot.rows is not None and name not in found:
                found[name] = slot.rows[0].copy()
    return found


@pytest.mark.parametrize("names", [*NAMES, "attention+unembedding", "attention+experts"])
def test_logits_are_those_of_peft(names, exact, golden):
    engine = exact(*(str(FOLDER / name) for name in names.split("+")))
    logits = engine.logits(golden["tokens"].tolist())
    assert np.abs(golden[names] - golden["none"]).max() > 0.5
    np.testing.assert_allclose(logits, golden[names], atol=1e-4)


def test_scales(exact, golden):
    """Half an adapter and half of it again are the whole one; at scale 0 it is none."""
    tokens = golden["tokens"].tolist()
    halves = exact(f"{FOLDER / 'attention'}:0.5", f"{FOLDER / 'attention'}:0.5")
    np.testing.assert_allclose(halves.logits(tokens), golden["attention"], atol=1e-4)
    np.testing.assert_allclose(exact(f"{FOLDER / 'experts'}:0").logits(tokens), golden["none"], atol=1e-4)


def test_one_batch_runs_a_different_adapter_for_each_sequence(exact, golden):
    engine = exact(*(f"{name}={FOLDER / name}" for name in NAMES), slots=5)
    assert engine.adapters == tuple(NAMES)
    found = last_logits(engine, dict.fromkeys([None, *NAMES], golden["tokens"].tolist()))
    for name, logits in found.items():
        np.testing.assert_allclose(logits, golden[name or "none"][-1], atol=1e-4)


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_no_bit_depends_on_the_company(activations, model, golden):
    """Of the default path, too: alone, or beside others with other adapters, a prompt gives the same."""
    adapters = [f"{name}={FOLDER / name}" for name in NAMES]
    options = dict(context_tokens=64, slots=5, activations=activations, chunk_tokens=23)
    engine = localoss.load(model("short"), adapters=adapters, **options)
    tokens = golden["tokens"].tolist()
    together = last_logits(
        engine, {None: tokens[:7], **{n: tokens[: 9 + 4 * i] for i, n in enumerate(NAMES)}}
    )
    for index, name in enumerate(NAMES):
        alone = last_logits(engine, {name: tokens[: 9 + 4 * index]})[name]
        np.testing.assert_array_equal(together[name], alone)


def test_int8_activations_are_near(model, golden):
    """What rounding costs with an adapter is what it costs without one."""
    tokens = golden["tokens"].tolist()
    engine = localoss.load(model("short"), context_tokens=64, adapters=[str(FOLDER / "attention")])
    error = np.abs(engine.logits(tokens) - golden["attention"]).mean()
    assert error < 0.1 * np.abs(golden["attention"] - golden["none"]).mean()


def test_what_an_adapter_read_is_no_others(exact, golden):
    """A sequence that gets another adapter, or is copied from one with another, has nothing in its cache."""
    engine = exact(*(f"{name}={FOLDER / name}" for name in NAMES), slots=3)
    tokens = golden["tokens"].tolist()
    one, other = engine.sequence(adapter="attention"), engine.sequence(adapter="router")
    engine.prefill(one, tokens)
    other.copy(one, 30)
    assert not other.tokens
    one.use(engine.adapter("router"))
    np.testing.assert_allclose(engine.prefill(one, tokens), golden["router"][-1], atol=1e-4)


def test_a_session_is_one_adapters(exact, golden, plain, tmp_path, monkeypatch):
    """A saved cache is set aside where it was written with another adapter, or with none."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    attention, tokens = str(FOLDER / "attention"), golden["tokens"].tolist()

    def reopened(engine):
        session, sequence = Session("one"), engine.sequence()
        problem = session.attach(plain, engine, sequence)
        kept = len(sequence.tokens)
        engine.prefill(sequence, tokens)
        session.save_cache(tokens, sequence)
        session.close()
        return problem, kept

    engine = exact(attention)
    assert reopened(engine) == (None, 0)
    assert reopened(engine) == (None, len(tokens))
    for others in ((), (f"{attention}:0.5",), (str(FOLDER / "router"),)):
        problem, kept = reopened(exact(*others))
        assert "another model" in problem and kept == 0


def test_the_plan_counts_them(plain):
    config = read_config(plain / "config.json")
    given = [str(FOLDER / "experts"), f"x={FOLDER / 'attention'}"]
    adapters = open_adapters(given, plain, 512)
    assert adapters.nbytes > 250_000
    options = LoadOptions(context_tokens=64, adapters=tuple(given))
    plan = Plan.of(config, Dtypes("bf16", "bf16", "bf16", "mxfp4"), options)
    limit = plan.least_bytes + adapters.nbytes // 2
    with pytest.raises(UsageError, match="at the very least"):
        load_engine(plain, localoss.options.changed(options, {"memory_limit": limit}), Listener())


def test_the_command_plan_counts_them(plain):
    arguments = ["plan", str(plain), "--context", "64", "--json"]
    results = [
        json.loads(CliRunner().invoke(app, [*arguments, *more]).stdout)
        for more in ([], ["--adapter", str(FOLDER / "experts")])
    ]
    counted = open_adapters([str(FOLDER / "experts")], plain, 512).nbytes
    assert results[1]["total_bytes"] - results[0]["total_bytes"] == counted


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ("nowhere", {}, "nowhere/adapter_config.json: not found; give the folder that PEFT's"),
        (f"{FOLDER / 'router'}:much", {}, "'much' is no scale; write DIR:0.5"),
        (f"{FOLDER / 'router'}:nan", {}, "a scale is a finite number"),
        (str(FOLDER / "logits.npz"), {}, "neither a LoRA adapter's folder nor its GGUF file"),
        (str(FOLDER / "router"), {"gpu_layers": 1}, "adapters run on the CPU alone"),
    ],
)
def test_errors(given, options, said, exact):
    with pytest.raises((LocalossError, QuantError), match=said):
        exact(given, **options)


def test_a_name_that_was_not_loaded(exact):
    with pytest.raises(UsageError, match="there is no adapter x; load the model with adapters="):
        exact().sequence(adapter="x")
    with pytest.raises(UsageError, match="there is no adapter x; there are y"):
        exact(f"y={FOLDER / 'router'}").sequence(adapter="x")


def test_incomplete_and_of_another_base(plain, tmp_path):
    config = read_config(plain / "config.json")
    shutil.copytree(FOLDER / "router", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(QuantError, match=r"adapter_model.safetensors: not found; the adapter is incomplete"):
        open_adapters([str(tmp_path / "adapter")], plain, 8)
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": "openai/gpt-oss-20b"}
    path.write_text(json.dumps(settings))
    large = localoss.options.replace(config, layers=36, is_sliding=config.is_sliding[:1] * 36)
    with pytest.raises(QuantError, match="which has 24 layers; this model has 36"):
        open_adapter(str(tmp_path / "adapter"), large)


def test_an_unembedding_of_another_vocabulary(plain, tmp_path):
    """PEFT saves the base's unembedding beside its adapter; one of other shape has other tokens."""
    shutil.copytree(FOLDER / "unembedding", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.lm_head.base_layer.weight"
    save_file(tensors | {name: np.zeros((8, 96), np.float32)}, path)
    with pytest.raises(QuantError, match=r"base_layer.weight is no part of a LoRA"):
        open_adapters([str(tmp_path / "adapter")], plain, 8)


def test_commands(tmp_path, monkeypatch):
    """An adapter of another model is refused in a line, and so is a name that nobody could ask for."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    runner = CliRunner()
    for command in (["run", "demo", "hi"], ["chat", "demo"], ["bench", "demo"]):
        result = runner.invoke(app, [*command, "--adapter", str(FOLDER / "attention")])
        assert result.exit_code == 1 and "it is of another model" in str(result.exception)
    result = runner.invoke(app, ["run", "demo", "hi", "--adapter", f"x={FOLDER / 'attention'}"])
    assert isinstance(result.exception, UsageError) and "names are for serve" in str(result.exception)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.router": "ffn_gate_inp",
}


def write_gguf(path, names, architecture="gpt-oss", dtype=np.float32, **metadata):
    """What llama.cpp's convert_lora_to_gguf.py makes of `names`, adapters of the golden files."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(metadata.get("kind", "adapter"))
    writer.add_string("adapter.type", metadata.get("form", "lora"))
    writer.add_float32("adapter.lora.alpha", metadata.get("alpha", 8.0))
    for name in names:
        for key, tensor in load_file(FOLDER / name / "adapter_model.safetensors").items():
            if "base_layer.weight" in key:
                continue
            module, side = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
            for stored, part in gguf_tensors(module, side, tensor).items():
                raw = np.ascontiguousarray(part.astype(dtype))
                writer.add_tensor(f"{stored}.weight.lora_{side.lower()}", raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def gguf_tensors(module, side, tensor):
    if module == "lm_head":
        return {"output": tensor}
    layer, local = module.removeprefix("model.layers.").split(".", 1)
    if local in GGUF_NAMES:
        return {f"blk.{layer}.{GGUF_NAMES[local]}": tensor}
    e = 10
    if side == "A":
        stacked = tensor.reshape(e, len(tensor) // e, -1)
    else:
        stacked = tensor.reshape(len(tensor), -1, e).transpose(2, 0, 1)
    is_gate_up = local.endswith("base_layer")
    if not is_gate_up:
        return {f"blk.{layer}.ffn_down_exps": stacked}
    parts = (stacked, stacked) if side == "A" else (stacked[:, 0::2], stacked[:, 1::2])
    return {f"blk.{layer}.ffn_gate_exps": parts[0], f"blk.{layer}.ffn_up_exps": parts[1]}


@pytest.mark.parametrize(
    ("name", "alpha"), [("attention", 8.0), ("experts", 4.0), ("router", 3 * 2**0.5), ("unembedding", 6.0)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gguf(name, alpha, dtype, exact, golden, tmp_path):
    """The same numbers as PEFT's files, which are bfloat16's: float16 rounds the smallest alone."""
    path = write_gguf(tmp_path / "adapter.gguf", [name], alpha=alpha, dtype=dtype)
    logits = exact(path).logits(golden["tokens"].tolist())
    np.testing.assert_allclose(logits, golden[name], atol=1e-4 if dtype == np.float32 else 1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(architecture="llama"), "an adapter of a 'llama' model"),
        (dict(kind="model"), "of type 'model', not an adapter"),
        (dict(form="alora"), "of type 'alora'; localoss knows lora"),
    ],
)
def test_other_gguf(change, said, plain, tmp_path):
    path = write_gguf(tmp_path / "adapter.gguf", ["router"], **change)
    with pytest.raises(QuantError, match=said):
        open_adapters([path], plain, 8)


def test_gguf_of_another_model(checkpoint, tmp_path):
    config = read_config(checkpoint("window") / "config.json")
    for name in ("attention", "experts"):
        path = write_gguf(tmp_path / f"{name}.gguf", [name])
        with pytest.raises(QuantError, match=r"blk.0.* has lora.* of another"):
            open_adapter(path, config)


@pytest.mark.parametrize("name", ["attention", "experts"])
def test_with_experts_from_the_disk(name, exact, plain, golden):
    """The experts' own adapters stay in memory; which expert comes from where changes no bit."""
    adapter, tokens = str(FOLDER / name), golden["tokens"].tolist()
    config = read_config(plain / "config.json")
    record = expert_run(config, "mxfp4").size
    streamed = exact(adapter, expert_memory=(config.active_experts + 2) * config.layers * record)
    assert streamed.expert_figures() is not None
    np.testing.assert_array_equal(streamed.logits(tokens), exact(adapter, expert_memory=0).logits(tokens))


def test_other_encodings_of_the_configuration(plain, tmp_path):
    shutil.copytree(FOLDER / "router", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(QuantError, match="it is UTF-16; save it as UTF-8"):
        open_adapters([str(tmp_path / "adapter")], plain, 8)
