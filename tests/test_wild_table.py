"""A table of checkpoints as people have them: each gives the published model, or a line with a way out.

What has a test of its own is not here: test_wild_checkpoints.py, test_checkpoint_folders.py, test_sources.py.
"""

import json
import math

import numpy as np
import pytest
from support import checkpoints, layouts, wild
from test_convert import files_of

from quant.convert import convert
from quant.errors import QuantError
from quant.format.config import read_config

SHAPE = dict(checkpoints.CHECKPOINTS["window"]) | dict(
    layers=2, experts=3, active=2, vocab=67, rope="rope_scaling"
)
CONFIG = checkpoints.config_for(**SHAPE)
DENSE = {key: value for key, value in CONFIG.items() if key != "quantization_config"}
YARN = CONFIG["rope_scaling"]
LAYER = "model.layers.1."
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.make_tensors(CONFIG, 3)


@pytest.fixture(scope="module")
def dense(tensors):
    return layouts.dense(tensors, CONFIG)[0]


def written(folder, tensors, config):
    """config: what json.dumps takes, or a file's bytes."""
    folder.mkdir()
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(content)
    return folder


def model_of(source, out):
    """The weights' files, and the configuration as it is run."""
    convert(source, out)
    weights = {name: content for name, content in files_of(out).items() if name.endswith(".safetensors")}
    return weights, read_config(out / "config.json")


@pytest.fixture(scope="module")
def expected(tensors, dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return {
        "mxfp4": model_of(written(folder / "m", tensors, CONFIG), folder / "mo"),
        "dense": model_of(written(folder / "d", dense, DENSE), folder / "do"),
    }


def without(*keys, **more):
    return {key: value for key, value in CONFIG.items() if key not in keys} | more


def yarn(*keys, **more):
    return without(rope_scaling={key: value for key, value in YARN.items() if key not in keys} | more)


MLX = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
SAME_CONFIGS = {
    "no layer_types": without("layer_types"),
    "layer_types null": without(layer_types=None),
    "no rope": without("rope_scaling"),
    "rope null": without(rope_scaling=None),
    "rope empty": without(rope_scaling={}),
    "rope_parameters": without("rope_scaling", "rope_theta", rope_parameters=YARN | {"rope_theta": 150000.0}),
    "both ropes": without(rope_parameters=YARN | {"rope_theta": 150000.0}),
    "rope type": yarn("rope_type", type="yarn"),
    "rope without a type": yarn("rope_type"),
    "rope betas null": yarn(beta_fast=None, beta_slow=None),
    "rope's mscales alike": yarn(attention_factor=0.1 * math.log(32) + 1),
    "whole rotation": yarn(partial_rotary_factor=1.0),
    "several ends": without(eos_token_id=[200002, 199999, 200012]),
    "torch_dtype": without(torch_dtype="bfloat16", transformers_version="5.1.0", use_cache=False),
    "quantization null": without(quantization_config=None),
    "no quantization": DENSE,
    "more on quantization": without(quantization_config={"quant_method": "mxfp4", "dequantize": False}),
    "MLX's word for MXFP4": without(quantization=MLX, quantization_config=MLX),
    "no model_type": without("model_type"),
    "unsloth's keys": without(unsloth_fixed=True, unsloth_version="2025.9", pad_token_id=200017),
    "alpha as it is": without(swiglu_alpha=1.702),
    "a coefficient that is no number": json.dumps(without(router_aux_loss_coef=math.nan)).encode(),
    "a mark": b"\xef\xbb\xbf" + json.dumps(CONFIG).encode(),
    "a key twice": json.dumps(CONFIG).encode()[:-1] + b',"hidden_size":128}',
    "strings of floats": without(rms_norm_eps="1e-05", rope_theta="150000"),
}


@pytest.mark.parametrize("name", SAME_CONFIGS)
def test_a_configuration_that_means_the_published_one(name, tensors, expected, tmp_path):
    got = model_of(written(tmp_path / "s", tensors, SAME_CONFIGS[name]), tmp_path / "out")
    weights, config = expected["mxfp4"]
    assert got[0] == weights
    rope = {"concentration": pytest.approx(0.1 * math.log(32) + 1)} if "mscales" in name else {}
    for field in config.rope.__dataclass_fields__:
        assert getattr(got[1].rope, field) == rope.get(field, getattr(config.rope, field)), field
    assert got[1].is_sliding == config.is_sliding and got[1].sliding_window == config.sliding_window


OTHER_ROPES = {
    "plain": (dict(rope_type="default"), (1.0, None)),
    "mscales": (YARN | dict(mscale=2.0, mscale_all_dim=1.0), (32.0, (0.2 * math.log(32) + 1))),
}


@pytest.mark.parametrize("name", OTHER_ROPES)
def test_other_rotations(name, tensors, tmp_path):
    rope, (factor, above) = OTHER_ROPES[name]
    source = written(tmp_path / "s", tensors, without(rope_scaling=rope))
    got = read_config(source / "config.json").rope
    assert got.factor == factor
    assert got.concentration == (above and pytest.approx(above / (0.1 * math.log(32) + 1)))


def test_without_sliding_layers_there_need_be_no_window(tensors, tmp_path):
    config = without(layer_types=["full_attention"] * 2, sliding_window=None)
    assert model_of(written(tmp_path / "s", tensors, config), tmp_path / "out")[1].is_sliding == (
        False,
        False,
    )


def f32(array):
    return (array.astype(np.uint32) << 16).view(np.float32)


def vectors_in_f32(tensors):
    return {
        name: f32(array) if array.dtype == np.uint16 and array.ndim == 1 else array
        for name, array in tensors.items()
    }


def base_layer(tensors):
    return {
        name.replace("q_proj.", "q_proj.base_layer.").replace("experts.", "experts.base_layer."): array
        for name, array in tensors.items()
    }


def tied_twice(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}


SAME_TENSORS = {
    "inv_freq": lambda given: given | {"model.rotary_emb.inv_freq": np.zeros(8, np.float32)},
    "value head": lambda given: given | {"v_head.summary.weight": np.zeros((1, 128), np.uint16)},
    "a layer too many": lambda given: given | {"model.layers.2.mlp.router.bias": np.zeros(3, np.uint16)},
    "TRL's value model": wild.prefixed("pretrained_model."),
    "an actor": wild.prefixed("actor.module."),
    "a student": wild.prefixed("student_model."),
    "DeepSpeed": wild.prefixed("module._forward_module."),
    "base_layer": base_layer,
    "PEFT's base_layer": lambda given: wild.prefixed("base_model.model.")(base_layer(given)),
    "vectors in float32": vectors_in_f32,
}


@pytest.mark.parametrize("kind", ["mxfp4", "dense"])
@pytest.mark.parametrize("name", SAME_TENSORS)
def test_tensors_that_mean_the_published_ones(name, kind, tensors, dense, expected, tmp_path):
    given, config = (tensors, CONFIG) if kind == "mxfp4" else (dense, DENSE)
    assert (
        model_of(written(tmp_path / "s", SAME_TENSORS[name](given), config), tmp_path / "o") == expected[kind]
    )


def test_scales_that_say_what_they_are(tensors, expected, tmp_path, monkeypatch):
    source = written(tmp_path / "s", tensors, CONFIG)
    path = source / "model.safetensors"
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for name, entry in header.items():
        if name.endswith("_scales"):
            entry["dtype"] = "F8_E8M0"
    text = json.dumps(header).encode()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert model_of(source, tmp_path / "out") == expected["mxfp4"]


def test_float16_is_what_float16_holds(dense, tmp_path):
    """The same as the rounded numbers in float32: below 6e-5, float16 has fewer bits than bfloat16."""
    halves = {name: f32(array).astype(np.float16) for name, array in dense.items()}
    floats = {name: array.astype(np.float32) for name, array in halves.items()}
    got = model_of(written(tmp_path / "h", halves, DENSE), tmp_path / "ho")
    assert got == model_of(written(tmp_path / "f", floats, DENSE), tmp_path / "fo")


def test_an_index_whose_files_were_merged_to_one(tensors, expected, tmp_path):
    source = written(tmp_path / "s", tensors, CONFIG)
    names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    (source / INDEX).write_text(json.dumps({"weight_map": names}))
    assert model_of(source, tmp_path / "out") == expected["mxfp4"]
    (source / "model-00001-of-00002.safetensors").write_bytes(b"")  # one is there: then the index counts
    with pytest.raises(QuantError, match="not safetensors, or cut off"):
        convert(source, tmp_path / "again")


def test_both_vocabularies_of_a_tied_model(tensors, tmp_path):
    config = without(tie_word_embeddings=True)
    one = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    tied = model_of(written(tmp_path / "one", one, config), tmp_path / "o1")
    assert model_of(written(tmp_path / "same", tied_twice(tensors), config), tmp_path / "o2") == tied
    with pytest.raises(QuantError, match=r"lm_head.weight is not .*false if the model was trained with both"):
        convert(written(tmp_path / "differ", tensors, config), tmp_path / "o3")


MEND = "correct it, or get the file anew"
REFUSED_CONFIGS = {
    "chunked": (without(layer_types=["chunked_attention"] * 2), f"layer_types must name 2 .*{MEND}"),
    "layer_types short": (without(layer_types=["full_attention"]), f"layer_types must name 2 .*{MEND}"),
    "layer_types of lists": (without(layer_types=[[]]), MEND),
    "no head_dim": (without("head_dim"), r"\[128, 640\]; the two do not belong together"),
    "no sliding_window": (without(sliding_window=None), f"sliding_window is None, expected .*{MEND}"),
    "wrapped": ({"text_config": CONFIG, "model_type": "gpt_oss_vl"}, "'gpt_oss_vl'; localoss runs gpt_oss"),
    "no kind at all": (without("model_type", "architectures"), "model_type is 'not given'"),
    "dynamic": (
        without(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        f"'dynamic', expected .*{MEND}",
    ),
    "yarn without a factor": (yarn("factor"), f"factor is missing; {MEND}"),
    "half a rotation": (yarn(partial_rotary_factor=0.5), f"partial_rotary_factor is 0.5, .*{MEND}"),
    "another alpha": (without(swiglu_alpha=1.0), "swiglu_alpha is 1.0; gpt-oss computes with 1.702"),
    "endless limit": (without(swiglu_limit=math.inf), f"swiglu_limit is out of range, above 1e.30.*{MEND}"),
    "text for a number": (without(num_hidden_layers="two"), f"num_hidden_layers is 'two', .*{MEND}"),
    "a list": ([CONFIG], "expected a JSON object"),
    "a comment": (b"// x\n" + json.dumps(CONFIG).encode(), f"cannot be read as JSON .*{MEND}"),
    "UTF-16": (json.dumps(CONFIG).encode("utf-16"), f"it is UTF-16; save it as UTF-8.*{MEND}"),
    "a page instead": (b"<!DOCTYPE html><html>", f"cannot be read as JSON .*{MEND}"),
    "compression": (without(compression_config={"quant_method": "sparse"}), "take compression_config out"),
    **{
        method: (without(quantization_config={"quant_method": method}), f"'{method}'.*take quantization_con")
        for method in ("torchao", "bitsandbytes", "hqq", "fbgemm_fp8", "bitnet", "auto-round", "nvfp4")
    },
}


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_a_configuration_that_is_refused(name, tensors, tmp_path):
    refused(written(tmp_path / "s", tensors, REFUSED_CONFIGS[name][0]), REFUSED_CONFIGS[name][1], tmp_path)


def refused(source, words, tmp_path):
    with pytest.raises(QuantError, match=words) as error:
        convert(source, tmp_path / "out")
    assert "download" not in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def lacking(*endings):
    return lambda given: {name: array for name, array in given.items() if not name.endswith(endings)}


QUERY = f"{LAYER}self_attn.q_proj.weight"
REFUSED_TENSORS = {
    "no router bias": (lacking("router.bias"), "mlp.router.bias is missing; .*as Hugging Face publishes it"),
    "no expert bias": (lacking("gate_up_proj_bias"), "gate_up_proj_bias is missing; .*or as GGUF"),
    "no sinks": (lacking("sinks"), "self_attn.sinks is missing"),
    "no scales": (lacking("down_proj_scales"), "down_proj_scales is missing"),
    "no last layer": (
        lambda given: {name: array for name, array in given.items() if not name.startswith(LAYER)},
        "model.layers.1.input_layernorm.weight is missing; the checkpoint is incomplete",
    ),
    "bytes": (
        lambda given: given | {QUERY: np.zeros(given[QUERY].shape, np.uint8)},
        "q_proj.weight is stored as U8, which localoss cannot read there; .*save the model in bfloat16",
    ),
    "a matrix turned": (
        lambda given: given | {QUERY: np.ascontiguousarray(given[QUERY].T)},
        r"q_proj.weight is BF16 \[128, 160\] where the configuration makes it BF16 \[160, 128\]",
    ),
    "an older router": (
        lambda given: given | {f"{LAYER}mlp.router.weight": given[f"{LAYER}mlp.router.weight"][:2]},
        "the two do not belong together",
    ),
    "an adapter within": (
        lambda given: (
            given | {f"{LAYER}self_attn.q_proj.lora_A.default.weight": np.zeros((4, 128), np.uint16)}
        ),
        "merge them first",
    ),
    "scales of FP8": (
        lambda given: given | {f"{LAYER}self_attn.q_proj.weight_scale": np.zeros(1, np.float32)},
        "FP8 .*in bfloat16, or as GGUF",
    ),
}


@pytest.mark.parametrize("name", REFUSED_TENSORS)
def test_tensors_that_are_refused(name, tensors, tmp_path):
    change, words = REFUSED_TENSORS[name]
    refused(written(tmp_path / "s", change(tensors), CONFIG), words, tmp_path)
