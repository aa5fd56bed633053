"""GGUF files as they are uploaded: all number formats that gguf reads, other keys, files of other kinds."""

import json

import numpy as np
import pytest
from support import checkpoints, layouts
from support.wild_gguf import rewrite
from test_convert import files_of

from quant.convert import convert
from quant.errors import QuantError
from quant.export_gguf import export_gguf
from quant.format.config import read_config
from quant.format.manifest import Dtypes

gguf = pytest.importorskip("gguf")

KINDS = gguf.GGMLQuantizationType
KEPT = Dtypes("bf16", "bf16", "bf16")
# 256 columns in the attention's output: what the larger blocks of ggml need.
SHAPE = dict(checkpoints.CHECKPOINTS["window"]) | dict(layers=2, heads=8, kv_heads=2, head_dim=32)
CONFIG = checkpoints.config_for(**SHAPE)
LAYERS = SHAPE["layers"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return layouts.write_gguf(path, checkpoints.make_tensors(CONFIG, 2), CONFIG, "BF16")


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    return model_of(source, tmp_path_factory.mktemp("expected") / "out")


def model_of(path, out):
    """The weights' files, and the configuration."""
    convert(path, out, KEPT)
    weights = {name: content for name, content in files_of(out).items() if name.endswith(".safetensors")}
    return weights, read_config(out / "config.json")


def replaced(ending, content, kind):
    """What `rewrite` does with tensors: those that end in `ending` become `content` of format `kind`."""
    return lambda given: [
        (given.name, content(given), kind)
        if given.name.endswith(ending)
        else (given.name, given.data, given.tensor_type)
    ]


@pytest.mark.parametrize(
    "form",
    [
        *[
            "IQ1_S",
            "IQ1_M",
            "IQ2_XXS",
            "IQ2_XS",
            "IQ2_S",
            "IQ3_XXS",
            "IQ3_S",
            "IQ4_NL",
            "IQ4_XS",
            "TQ1_0",
            "TQ2_0",
        ],
        *["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "NVFP4"],
    ],
)
def test_every_number_format(form, source, tmp_path):
    """The same as the float32 weights that gguf's own dequantizer gives."""
    if form not in KINDS.__members__:
        pytest.skip(f"this gguf package does not know {form}")
    kind = KINDS[form]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    codes = np.random.default_rng(0).integers(0, 60, (SHAPE["hidden"], 256 // weights * size), np.uint8)
    plain = np.asarray(gguf.quants.dequantize(codes, kind), np.float32)
    assert np.isfinite(plain).all() and plain.any()
    coded = rewrite(source, tmp_path / "c.gguf", replaced("attn_output.weight", lambda t: codes, kind))
    floats = rewrite(source, tmp_path / "f.gguf", replaced("attn_output.weight", lambda t: plain, KINDS.F32))
    assert model_of(coded, tmp_path / "coded") == model_of(floats, tmp_path / "floats")


PREFIX = "gpt-oss."
KEYS = {
    "as it is": dict(),
    "no key length": dict(drop=(f"{PREFIX}attention.key_length", f"{PREFIX}attention.value_length")),
    "a width of experts": dict(add={f"{PREFIX}expert_feed_forward_length": SHAPE["intermediate"]}),
    "a type of scaling": dict(add={f"{PREFIX}rope.scaling.type": "yarn"}),
    "other context key": dict(
        drop=(f"{PREFIX}rope.scaling.original_context_length",),
        add={f"{PREFIX}rope.scaling.yarn_orig_ctx": 4096},
    ),
    "heads in an array": dict(
        drop=(f"{PREFIX}attention.head_count_kv",), add={f"{PREFIX}attention.head_count_kv": [2] * LAYERS}
    ),
    "width in an array": dict(
        drop=(f"{PREFIX}feed_forward_length",), add={f"{PREFIX}feed_forward_length": [96] * LAYERS}
    ),
    "betas": dict(
        add={f"{PREFIX}rope.scaling.yarn_beta_fast": 32.0, f"{PREFIX}rope.scaling.yarn_beta_slow": 1.0}
    ),
    "pattern": dict(add={f"{PREFIX}attention.sliding_window_pattern": [True, False]}),
    "a table": dict(add={"tokenizer.ggml.scores": [0.5] * 10_000}),
}


@pytest.mark.parametrize("name", KEYS)
def test_other_keys(name, source, expected, tmp_path):
    assert model_of(rewrite(source, tmp_path / "m.gguf", **KEYS[name]), tmp_path / "out") == expected


def test_the_pattern_of_sliding_layers_is_read(source, tmp_path):
    key = f"{PREFIX}attention.sliding_window_pattern"
    path = rewrite(source, tmp_path / "m.gguf", add={key: [False, True]})
    assert model_of(path, tmp_path / "out")[1].is_sliding == (False, True)
    with pytest.raises(QuantError, match="sliding_window_pattern has 3 of 2 layers"):
        convert(rewrite(source, tmp_path / "n.gguf", add={key: [False, True, True]}), tmp_path / "n")


def test_tied_embeddings(source, tmp_path):
    def tied(given):
        return [] if given.name == "output.weight" else [(given.name, given.data, given.tensor_type)]

    def both(given):
        names = [given.name, "output.weight"] if given.name == "token_embd.weight" else [given.name]
        return [(name, given.data, given.tensor_type) for name in names if given.name != "output.weight"]

    one = model_of(rewrite(source, tmp_path / "1.gguf", tied), tmp_path / "1")
    assert one == model_of(rewrite(source, tmp_path / "2.gguf", both), tmp_path / "2")


OTHERS = {
    "adapter": (dict(add={"general.type": "adapter", "adapter.type": "lora"}), "a LoRA adapter"),
    "imatrix": (dict(add={"general.type": "imatrix"}), "an importance matrix"),
    "imatrix-architecture": (dict(architecture="imatrix"), "an importance matrix"),
    "projector": (dict(architecture="clip"), "a projector for images"),
    "llama": (dict(architecture="llama"), "a 'llama' model"),
    "heads differ": (
        dict(drop=(f"{PREFIX}attention.head_count_kv",), add={f"{PREFIX}attention.head_count_kv": [2, 4]}),
        "head_count_kv differs from layer to layer",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_told_for_what_they_are(name, source, tmp_path):
    change, words = OTHERS[name]
    with pytest.raises(QuantError, match=words) as refused:
        convert(rewrite(source, tmp_path / "m.gguf", **change), tmp_path / "out")
    assert "download it again" not in str(refused.value)


def test_an_exported_file_says_what_other_programs_ask_for(source, expected, tmp_path):
    convert(source, tmp_path / "model", KEPT, name="my fine-tune")
    export_gguf(tmp_path / "model", tmp_path / "out.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["general.name"].contents() == "my fine-tune"
    assert fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    rope = json.loads((tmp_path / "model" / "config.json").read_text())["rope_scaling"]
    for key in ("beta_fast", "beta_slow"):
        assert fields[f"{PREFIX}rope.scaling.yarn_{key}"].contents() == rope[key]
    assert model_of(tmp_path / "out.gguf", tmp_path / "again") == expected


# What people quantize of a model, and what a whole matrix then is: as in float32, dequantized by gguf.


def both_forms(source, folder, form, is_meant):
    """`source` with the tensors that `is_meant` names in number format `form`, and with the same in F32."""
    kind, coded = KINDS[form], {}

    def rewritten(content, its_kind):
        return lambda t: [
            (t.name, content(t), its_kind) if is_meant(t.name) else (t.name, t.data, t.tensor_type)
        ]

    def codes_of(given):
        weights = np.asarray(gguf.quants.dequantize(given.data, given.tensor_type), np.float32)
        try:
            coded[given.name] = gguf.quants.quantize(weights, kind)
        except NotImplementedError:  # gguf reads it and doesn't write it
            count, size = gguf.GGML_QUANT_SIZES[kind]
            shape = (*weights.shape[:-1], weights.shape[-1] // count * size)
            coded[given.name] = np.random.default_rng(0).integers(0, 60, shape, np.uint8)
        return coded[given.name]

    def floats_of(given):
        return np.asarray(gguf.quants.dequantize(coded[given.name], kind), np.float32)

    return (
        rewrite(source, folder / "coded.gguf", rewritten(codes_of, kind)),
        rewrite(source, folder / "floats.gguf", rewritten(floats_of, KINDS.F32)),
    )


def is_dense(name):
    return name.endswith((".attn_q.weight", ".attn_k.weight", "token_embd.weight", "output.weight"))


MEANT = {
    "matrices": is_dense,
    "experts": lambda name: "_exps.weight" in name,
    "up alone": lambda name: "ffn_up_exps.weight" in name,
    "a layer": lambda name: name.startswith("blk.1.") and "_exps.weight" in name,
}
WAYS = [
    *(
        ("matrices", form)
        for form in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32", "IQ4_NL", "MXFP4")
    ),
    *(("experts", form) for form in ("Q4_0", "Q5_1", "Q8_0", "F16", "BF16", "F32", "IQ4_NL")),
    *(("up alone", "Q8_0"), ("a layer", "Q8_0")),
]


@pytest.mark.parametrize(("meant", "form"), WAYS)
def test_whole_matrices(meant, form, source, tmp_path):
    coded, floats = both_forms(source, tmp_path, form, MEANT[meant])
    assert model_of(coded, tmp_path / "coded") == model_of(floats, tmp_path / "floats")


def extra(given):
    own = [(given.name, given.data, given.tensor_type)]
    return own + [("rope_freqs.weight", np.ones(16, np.float32), KINDS.F32)] * (
        given.name == "output_norm.weight"
    )


def norms_in_f16(given):
    is_norm = given.name.endswith("norm.weight")
    return (
        [(given.name, np.float16(given.data), KINDS.F16)]
        if is_norm
        else [(given.name, given.data, given.tensor_type)]
    )


def test_tensors_too_many(source, expected, tmp_path):
    assert model_of(rewrite(source, tmp_path / "m.gguf", extra), tmp_path / "out") == expected


def test_norms_in_float16(source, tmp_path):
    def rounded(given):
        (name, data, kind) = norms_in_f16(given)[0]
        return [
            (
                name,
                data.astype(np.float32) if kind == KINDS.F16 else data,
                KINDS.F32 if kind == KINDS.F16 else kind,
            )
        ]

    halves = model_of(rewrite(source, tmp_path / "h.gguf", norms_in_f16), tmp_path / "h")
    assert halves == model_of(rewrite(source, tmp_path / "f.gguf", rounded), tmp_path / "f")


def test_positions_that_are_not_stretched(source, tmp_path):
    dropped = (f"{PREFIX}rope.scaling.type", f"{PREFIX}rope.scaling.factor")
    path = rewrite(source, tmp_path / "m.gguf", drop=dropped, add={dropped[0]: "none"})
    assert model_of(path, tmp_path / "out")[1].rope.factor == 1


SCALING = f"{PREFIX}rope.scaling"
MISSING = {
    **{
        key: (dict(drop=(PREFIX + key,)), f"{key} is missing; make the file again from the checkpoint")
        for key in ("rope.freq_base", "rope.scaling.factor", "attention.sliding_window", "expert_count")
    },
    "linear": (
        dict(drop=(f"{SCALING}.type",), add={f"{SCALING}.type": "linear"}),
        "is 'linear'.* gpt-oss has yarn",
    ),
    "louder": (dict(add={f"{SCALING}.attn_factor": 1.5}), "its attn_factor 1.5; gpt-oss has yarn with 1.0"),
    "a namesake": (dict(architecture="gptoss2"), "a 'gptoss2' model; localoss runs gpt-oss models only"),
}


@pytest.mark.parametrize("name", MISSING)
def test_keys_that_are_missing_or_others(name, source, tmp_path):
    change, words = MISSING[name]
    with pytest.raises(QuantError, match=words) as refused:
        convert(rewrite(source, tmp_path / "m.gguf", **change), tmp_path / "out")
    assert "download" not in str(refused.value)
