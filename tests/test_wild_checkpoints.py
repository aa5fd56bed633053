"""Fine-tunes, pruned models and other programs' layouts: the same weights give the same model."""

import io
import json

import numpy as np
import pytest
from support import checkpoints, layouts, naive, wild
from test_convert import files_of

import localoss
from localoss import cli
from quant.convert import convert
from quant.errors import QuantError
from quant.format.manifest import Dtypes

SHAPE = dict(checkpoints.CHECKPOINTS["window"])
CONFIG = checkpoints.config_for(**SHAPE)
DENSE_CONFIG = {key: value for key, value in CONFIG.items() if key != "quantization_config"}
KEPT = Dtypes("bf16", "bf16", "bf16", "bf16")
MLX = {"group_size": 32, "bits": 4, "mode": "mxfp4"}


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.make_tensors(CONFIG, 1)


@pytest.fixture(scope="module")
def dense(tensors):
    return layouts.dense(tensors, CONFIG)[0]


def write(folder, tensors, config=None, **changes):
    folder.mkdir()
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps((config or CONFIG) | changes))
    return folder


def weights_of(source, out, dtypes=None):
    convert(source, out, dtypes)
    return {name: content for name, content in files_of(out).items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def expected(tensors, dense, tmp_path_factory):
    """What the published form gives, by the kind of experts."""
    folder = tmp_path_factory.mktemp("expected")
    return {
        "mxfp4": weights_of(write(folder / "m", tensors), folder / "mo"),
        "dense": weights_of(write(folder / "d", dense, DENSE_CONFIG), folder / "do"),
    }


NAMES = {
    "base_model.model.": wild.prefixed("base_model.model."),
    "_orig_mod.": wild.prefixed("_orig_mod."),
    "module.": wild.prefixed("module."),
    "module._orig_mod.": wild.prefixed("module._orig_mod."),
    "_fsdp_wrapped_module.": wild.prefixed("_fsdp_wrapped_module."),
    "language_model.": wild.prefixed("language_model."),
    "model.language_model.": wild.language_model,
    "no-model-prefix": wild.no_model_prefix,
    "compiled-inside": wild.compiled_inside,
    "router-linear": wild.router_linear,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mxfp4", "dense"])
def test_other_names(name, kind, tensors, dense, expected, tmp_path):
    given = NAMES[name](dense if kind == "dense" else tensors)
    source = write(tmp_path / "source", given, DENSE_CONFIG if kind == "dense" else CONFIG)
    assert weights_of(source, tmp_path / "out") == expected[kind]


FORMS = {
    "weight-suffix": wild.weight_suffix,
    "unsloth": wild.unsloth,
    "mixtral": wild.mixtral_split,
    "mlx": wild.mlx_dense,
    "unsloth-peft": lambda tensors: wild.prefixed("base_model.model.")(wild.unsloth(tensors)),
    "rows-first": lambda tensors: {
        name: np.ascontiguousarray(array.swapaxes(1, 2)) if array.ndim == 3 else array
        for name, array in tensors.items()
    },
    **{
        form: lambda tensors, dtype=dtype: {
            name: (array.astype(np.uint32) << 16).view(np.float32).astype(dtype)
            for name, array in tensors.items()
        }
        for form, dtype in (("f32", np.float32), ("f64", np.float64))
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_dense_experts(form, dense, expected, tmp_path):
    source = write(tmp_path / "source", FORMS[form](dense), DENSE_CONFIG)
    assert weights_of(source, tmp_path / "out") == expected["dense"]


@pytest.mark.parametrize("config", [{}, {"quantization": MLX, "quantization_config": MLX}])
def test_mlx_mxfp4_is_kept_bit_for_bit(config, tensors, expected, tmp_path):
    source = write(tmp_path / "source", wild.mlx_mxfp4(tensors), **config)
    assert weights_of(source, tmp_path / "out") == expected["mxfp4"]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32])
def test_mlx_affine(bits, group, dense, tmp_path):
    mlx = {"group_size": group, "bits": bits}
    packed = write(tmp_path / "packed", wild.mlx_affine(bits, group)(dense), DENSE_CONFIG, quantization=mlx)
    plain = {
        name: array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)
        for name, array in wild.unpacked_affine(dense, bits, group).items()
    }
    source = write(tmp_path / "plain", plain, DENSE_CONFIG)
    assert weights_of(packed, tmp_path / "o1", KEPT) == weights_of(source, tmp_path / "o2", KEPT)


def test_experts_partly_in_floats(tensors, dense, tmp_path):
    """A layer that was trained lies in bfloat16 beside MXFP4; what is MXFP4 is kept bit for bit."""
    layer = "model.layers.1.mlp.experts."
    mixed = {name: array for name, array in tensors.items() if not name.startswith(layer)}
    mixed |= {name: array for name, array in dense.items() if name.startswith(layer)}
    weights = weights_of(write(tmp_path / "source", mixed), tmp_path / "out")
    published = weights_of(write(tmp_path / "p", tensors), tmp_path / "po")
    trained = weights_of(write(tmp_path / "d", dense, DENSE_CONFIG), tmp_path / "do")
    assert weights == published | {"layer-001.safetensors": trained["layer-001.safetensors"]}


def test_attention_without_bias(tensors, tmp_path):
    """As with biases of zero; one that is there against the configuration's word is no guess of ours."""
    zero = {name: 0 * bits if is_attention_bias(name) else bits for name, bits in tensors.items()}
    bare = {name: bits for name, bits in tensors.items() if not is_attention_bias(name)}
    want = weights_of(write(tmp_path / "zero", zero), tmp_path / "zero-out")
    for name, kept in (("bare", bare), ("told", zero)):
        source = write(tmp_path / name, kept, attention_bias=False)
        assert weights_of(source, tmp_path / f"{name}-out") == want
    with pytest.raises(QuantError, match=r"says that attention has no bias, and .*proj.bias is there"):
        convert(write(tmp_path / "both", tensors, attention_bias=False), tmp_path / "out")
    with pytest.raises(QuantError, match=r"proj.bias is missing"):
        convert(write(tmp_path / "silent", bare), tmp_path / "out")


def is_attention_bias(name):
    return ".self_attn." in name and name.endswith("_proj.bias")


def test_tied_embeddings(tensors, tmp_path):
    tied = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    both = tied | {"lm_head.weight": tied["model.embed_tokens.weight"]}
    source = write(tmp_path / "source", tied, tie_word_embeddings=True)
    assert weights_of(source, tmp_path / "o1") == weights_of(write(tmp_path / "both", both), tmp_path / "o2")
    with pytest.raises(QuantError, match=r"lm_head.weight is missing.*tie_word_embeddings"):
        convert(write(tmp_path / "untied", tied), tmp_path / "o3")


CONFIGS = {
    "experts_per_token": ({"num_experts_per_tok": None, "experts_per_token": 3}, {}),
    "num_experts_per_token": ({"num_experts_per_tok": None, "num_experts_per_token": 3}, {}),
    "num_experts": ({"num_local_experts": None, "num_experts": 12}, {}),
    "floats": ({"max_position_embeddings": 131072.0, "vocab_size": 331.0, "sliding_window": 20.0}, {}),
    "no-quantization-config": ({"quantization_config": None}, {}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_other_words_in_config_json(name, tensors, expected, tmp_path):
    changes, _ = CONFIGS[name]
    changed = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    out = tmp_path / "out"
    assert weights_of(write(tmp_path / "source", tensors, changed), out) == expected["mxfp4"]
    engine = localoss.load(out, context_tokens=64)
    assert engine.config.active_experts == 3 and engine.config.context == 131072


def test_a_missing_head_dim_is_64(tmp_path):
    shape = SHAPE | dict(heads=2, kv_heads=1, head_dim=64, layers=1)
    config = checkpoints.config_for(**shape)
    del config["head_dim"]
    tensors = checkpoints.make_tensors(config | {"head_dim": 64}, 0)
    convert(write(tmp_path / "source", tensors, config), tmp_path / "out")


@pytest.mark.parametrize("experts", [3, 5, 24, 48, 96])
def test_pruned_experts(experts, tmp_path):
    """Any number runs and agrees with the oracle; no lane of the router is left over."""
    config = checkpoints.config_for(**SHAPE | dict(experts=experts, layers=2))
    source = checkpoints.write_checkpoint(tmp_path / "source", config)
    convert(source, tmp_path / "out", Dtypes("bf16", "bf16", "bf16"))
    engine = localoss.load(tmp_path / "out", context_tokens=64, activations="f32", kv_dtype="f32")
    tokens = list(range(30))
    expected = naive.forward(naive.Model(source), tokens)
    assert np.abs(engine.logits(tokens) - expected).max() <= 2e-4


@pytest.mark.parametrize("vocab", [200_019, 200_013, 201_216])
def test_a_vocabulary_cut_to_the_tokenizer_or_padded_chats(vocab, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["harmony"] | dict(vocab=vocab))
    convert(checkpoints.write_checkpoint(tmp_path / "source", config), tmp_path / "out")
    options = ["--max-tokens", "8", "--context", "256", "--seed", "1"]
    for kind in ([], ["--raw"]):
        assert cli.main(["run", str(tmp_path / "out"), "Hi", *kind, *options]) == 0
    assert "error" not in capsys.readouterr().err


REFUSED = {
    "privacy-filter": ({"model_type": "openai_privacy_filter"}, "privacy-filter"),
    "privacy-head": ({"architectures": ["OpenAIPrivacyFilterForTokenClassification"]}, "privacy-filter"),
    "puzzle": ({"model_type": "gpt_oss_puzzle"}, "layers differ in shape"),
    "classifier": ({"architectures": ["GptOssForSequenceClassification"]}, "classifier"),
    "experts-float": ({"num_local_experts": 12.5}, "12.5"),
    **{
        method: ({"quantization_config": {"quant_method": method}}, f"'{method}'.*bfloat16, or as GGUF")
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "quark", "modelopt")
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused_by_name(name, tensors, tmp_path):
    changes, words = REFUSED[name]
    with pytest.raises(QuantError, match=words) as refused:
        convert(write(tmp_path / "source", tensors, **changes), tmp_path / "out")
    assert "download" not in str(refused.value)


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight.absmax", "bitsandbytes"),
        ("weight_scale_inv", "FP8"),
        ("weight_scale_2", "NVFP4"),
        ("lora_A.default.weight", "merge_and_unload"),
    ],
)
def test_forms_that_the_configuration_keeps_quiet_about(ending, form, tensors, tmp_path):
    name = f"model.layers.0.self_attn.q_proj.{ending}"
    source = write(tmp_path / "source", tensors | {name: np.zeros((4, 4), np.uint8)})
    with pytest.raises(QuantError, match=form) as refused:
        convert(source, tmp_path / "out")
    assert "download" not in str(refused.value)


def test_an_adapter_is_no_model(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    checkpoints.write_safetensors(folder / "adapter_model.safetensors", {name: np.zeros((8, 96), np.uint16)})
    with pytest.raises(QuantError, match="a LoRA adapter, not a model"):
        convert(folder, tmp_path / "out")


def test_two_names_of_one_tensor(tensors, tmp_path):
    twice = tensors | {"module.model.norm.weight": tensors["model.norm.weight"]}
    with pytest.raises(QuantError, match="are the same tensor; which one is meant"):
        convert(write(tmp_path / "source", twice), tmp_path / "out")
