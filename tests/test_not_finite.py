"""A NaN or an infinity in any tensor, in any layout, stops the converter with the tensor's name and index."""

import json

import numpy as np
import pytest
from support import checkpoints, layouts

from quant.convert import convert
from quant.errors import QuantError
from quant.format.finite import require_finite, require_finite_blocks
from quant.format.manifest import Dtypes

SHAPE = dict(checkpoints.CHECKPOINTS["short"])
CONFIG = checkpoints.config_for(**SHAPE)
NAN, INFINITY = 0x7FC1, 0xFF80
KEPT = Dtypes("bf16", "bf16", "bf16")
LAYER = "model.layers.1."
TENSORS = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    LAYER + "input_layernorm.weight",
    LAYER + "post_attention_layernorm.weight",
    LAYER + "self_attn.sinks",
    LAYER + "self_attn.q_proj.weight",
    LAYER + "self_attn.k_proj.bias",
    LAYER + "self_attn.v_proj.weight",
    LAYER + "self_attn.o_proj.weight",
    LAYER + "self_attn.o_proj.bias",
    LAYER + "mlp.router.weight",
    LAYER + "mlp.router.bias",
    LAYER + "mlp.experts.gate_up_proj_bias",
    LAYER + "mlp.experts.down_proj_bias",
]


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.make_tensors(CONFIG, 0)


def damaged(tensors, name, value, at=-1):
    array = tensors[name].copy()
    array.reshape(-1)[at] = value
    return tensors | {name: array}


def index_of(array, at=-1):
    return ", ".join(str(int(i)) for i in np.unravel_index(at % array.size, array.shape))


@pytest.mark.parametrize("dtypes", [None, KEPT], ids=["int8", "bf16"])
@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_is_checked(name, dtypes, tensors, tmp_path):
    value, what = ((NAN, "NaN"), (INFINITY, "infinite"))[TENSORS.index(name) % 2]
    source = checkpoints.write_tensors(tmp_path / "source", CONFIG, damaged(tensors, name, value))
    with pytest.raises(QuantError) as refused:
        convert(source, tmp_path / "out", dtypes)
    text = str(refused.value)
    assert what in text and "download" in text
    if ".experts." in name:
        assert name.removesuffix("_bias") in text and f"expert {SHAPE['experts'] - 1}, bias" in text
    else:
        assert text.startswith(f"{name}[{index_of(tensors[name])}]")


@pytest.mark.parametrize("layout", ["original", "gguf-F32", "gguf-BF16", "gguf-F16"])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", LAYER + "mlp.router.weight", LAYER + "self_attn.k_proj.weight"]
)
def test_other_layouts_are_checked_too(name, layout, tensors, tmp_path):
    broken = damaged(tensors, name, NAN, at=40)
    if layout == "original":
        source = layouts.write_original(tmp_path / "source", broken, CONFIG)
    else:
        pytest.importorskip("gguf")
        source = layouts.write_gguf(tmp_path / "m.gguf", broken, CONFIG, layout.removeprefix("gguf-"))
    with pytest.raises(QuantError) as refused:
        convert(source, tmp_path / "out", KEPT)
    assert str(refused.value).startswith(f"{name}[{index_of(tensors[name], 40)}] is NaN")


@pytest.mark.parametrize("experts", ["mxfp4", "int4", "bf16"])
def test_experts_in_floats(experts, tensors, tmp_path):
    dense, config = layouts.dense(tensors, CONFIG)
    name = LAYER + "mlp.experts.down_proj"
    source = checkpoints.write_tensors(tmp_path / "source", config, damaged(dense, name, NAN))
    with pytest.raises(QuantError, match=rf"{name}, expert {SHAPE['experts'] - 1}\[.*NaN"):
        convert(source, tmp_path / "out", Dtypes(experts=experts))


@pytest.mark.parametrize(
    ("scale", "code", "infinite"),
    [
        (255, 0, True),
        (254, 7, True),
        (254, 4, True),
        (254, 3, False),
        (253, 14, True),
        (253, 5, False),
        (252, 15, False),
    ],
)
def test_mxfp4_values_beyond_float32(scale, code, infinite, tensors, tmp_path):
    """A scale of 255 is NaN; 254 times 2 and 253 times 4 are infinite, whatever the sign."""
    scales, blocks = (LAYER + f"mlp.experts.gate_up_proj_{kind}" for kind in ("scales", "blocks"))
    broken = damaged(tensors, scales, scale)
    broken[blocks] = tensors[blocks].copy()
    broken[blocks].reshape(-1, 16)[-1] = 0
    broken[blocks].reshape(-1)[-1] = code << 4
    source = checkpoints.write_tensors(tmp_path / "source", CONFIG, broken)
    if not infinite:
        convert(source, tmp_path / "out")
        return
    with pytest.raises(QuantError, match=rf"gate_up_proj, expert 9\[.*scale.*{scale}"):
        convert(source, tmp_path / "out")


def test_the_first_one_is_told_with_its_row_in_the_whole_tensor():
    weights = np.zeros((4, 32), np.float32)
    weights[2, 5], weights[3, 1] = np.inf, np.nan
    with pytest.raises(QuantError, match=r"^w\[102, 5\] is infinite"):
        require_finite("w", weights, start=100)
    weights[2, 5], weights[3, 1] = 3.4e38, 0
    with pytest.raises(QuantError, match=r"\[2, 5\] is 3.4e\+38, beyond bfloat16"):
        require_finite("w", weights)
    weights[2, 5] = -3.38e38
    require_finite("w", weights)
    require_finite("empty", weights[:0])
    require_finite_blocks("b", np.full((1, 1, 16), 0x77, np.uint8), np.full((1, 1), 252, np.uint8))


def test_any_position_is_seen():
    """No loop in vectors leaves a rest out."""
    for size in (1, 7, 31, 64, 1001):
        for dtype, value in ((np.uint16, NAN), (np.float32, np.nan)):
            for at in {0, size // 2, size - 1}:
                weights = np.zeros(size, dtype)
                weights[at] = value
                with pytest.raises(QuantError, match=rf"w\[{at}\] is NaN"):
                    require_finite("w", weights)


def test_a_damaged_folder_leaves_no_model(tensors, tmp_path):
    source = checkpoints.write_tensors(
        tmp_path / "source", CONFIG, damaged(tensors, "model.norm.weight", NAN)
    )
    with pytest.raises(QuantError):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out" / "localoss.json").exists()
    assert json.loads((source / "config.json").read_text())["model_type"] == "gpt_oss"
