"""--calibrate: moments as the naive model has them, rounding that heeds them, runs that go on bit for bit."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoints, layouts, naive
from support.faults import FAIL, Faults
from support.golden_files import read_golden
from test_convert import files_of

from localoss import cli
from localoss.errors import UsageError
from localoss.measure.calibration import calibration_of
from quant.calibration import Calibration, Moments, calibration_specs
from quant.convert import convert
from quant.errors import QuantError
from quant.format import jit_loops as fast
from quant.format.layout import CALIBRATION_FILE
from quant.format.manifest import Dtypes, Text, parse_manifest, read_manifest
from quant.format.numbers import decode_int, encode_int4, f32_to_bf16
from quant.format.tiles import scales_to_tiles, to_tiles
from quant.sources import open_source

INT4 = Dtypes("int4", "int8", "int4", "mxfp4")
TOKENS = read_golden("window").tokens
SHA256 = hashlib.sha256(b"a text").hexdigest()


def measured(folder, tokens, names, threads=2):
    with open_source(folder) as source:
        return dict(calibration_of(tokens, SHA256, threads).measure(source, names))


def naive_moments(folder, tokens):
    """The same from tests/support/naive.py's trace: the mean squares of each matrix's inputs."""
    model, trace = naive.Model(folder), []
    naive.forward(model, tokens, trace)
    steps, c = dict(trace), model.config
    x, found = model.weights["model.embed_tokens.weight"][tokens], {}
    for i in range(c["num_hidden_layers"]):
        normed = naive.rmsnorm(x, model.layer(i, "input_layernorm.weight"), c["rms_norm_eps"])
        found[f"layer-{i:03d}.qkv"] = (normed**2).mean(axis=0)
        found[f"layer-{i:03d}.output"] = (steps[f"{i} heads"] ** 2).mean(axis=0)
        x = x + steps[f"{i} attention"]
        normed = naive.rmsnorm(x, model.layer(i, "post_attention_layernorm.weight"), c["rms_norm_eps"])
        inputs = [[] for _ in range(c["num_local_experts"])]
        logits = normed @ model.layer(i, "mlp.router.weight").T + model.layer(i, "mlp.router.bias")
        for row, scores in zip(normed, logits, strict=True):
            for expert in naive.route(scores, c["num_experts_per_tok"])[0]:
                inputs[expert].append(row)
        up, bias = (model.layer(i, f"mlp.experts.gate_up_proj{kind}") for kind in ("", "_bias"))
        for name in ("gate_up_proj", "down_proj"):
            columns = c["hidden_size" if name == "gate_up_proj" else "intermediate_size"]
            found[f"layer-{i:03d}.{name}"] = np.zeros((len(inputs), columns))
        for expert, rows in enumerate(inputs):
            if rows:
                h = naive.swiglu(np.array(rows) @ up[expert].T + bias[expert])
                found[f"layer-{i:03d}.gate_up_proj"][expert] = (np.array(rows) ** 2).mean(axis=0)
                found[f"layer-{i:03d}.down_proj"][expert] = (h**2).mean(axis=0)
        x = steps[f"{i} residual"]
    normed = naive.rmsnorm(x, model.weights["model.norm.weight"], c["rms_norm_eps"])
    return found | {"unembedding": (normed**2).mean(axis=0)}


def test_moments_are_those_of_the_naive_model(checkpoint, monkeypatch):
    monkeypatch.setattr("localoss.measure.calibration.CHUNK_TOKENS", 41)
    expected = naive_moments(checkpoint("window"), TOKENS[:100])
    found = measured(checkpoint("window"), TOKENS[:100], list(expected))
    assert list(found) == list(expected)
    for name, moments in expected.items():
        np.testing.assert_allclose(found[name], moments, rtol=2e-4, atol=1e-9, err_msg=name)


def test_threads_do_not_change_a_bit(checkpoint):
    names = ["layer-000.output", "layer-003.down_proj", "unembedding"]
    one, two = (measured(checkpoint("window"), TOKENS[:150], names, threads) for threads in (1, 2))
    assert all(one[name].tobytes() == two[name].tobytes() for name in names)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weighed_rounding_is_never_worse_and_fast_equals_clear(seed):
    numbers = np.random.RandomState(seed)
    weights = numbers.standard_normal((16, 96)).astype(np.float32)
    moments = np.exp(3 * numbers.standard_normal(96)).astype(np.float32)
    bits = f32_to_bf16(weights)
    weights = (bits.astype(np.uint32) << 16).view(np.float32)
    codes, scales = encode_int4(weights, moments)
    tiles, tiled = fast.tile_int4(bits, moments)
    assert tiles.tobytes() == to_tiles(codes, "int4").tobytes()
    assert tiled.tobytes() == scales_to_tiles(scales).tobytes()

    def errors(decoded):
        return (moments * np.square(np.float64(decoded) - weights)).reshape(16, 3, 32).sum(axis=2)

    assert (errors(decode_int(codes, scales)) <= errors(decode_int(*encode_int4(weights))) * (1 + 1e-4)).all()


def test_the_model_tells_of_its_text(checkpoint, model, tmp_path):
    calibration = calibration_of(TOKENS, SHA256, 2)
    convert(checkpoint("window"), tmp_path / "out", INT4, calibration=calibration)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.calibration == Text(SHA256, len(TOKENS)) and CALIBRATION_FILE in manifest.files
    ours = files_of(tmp_path / "out")
    theirs = files_of(model("window", attention="int4", unembedding="int4"))
    assert ours.keys() == theirs.keys() | {CALIBRATION_FILE}
    assert all(ours[n] != theirs[n] for n in theirs if n.startswith(("layer", "vocab")))
    assert convert(checkpoint("window"), tmp_path / "out", INT4, calibration=calibration).already_there
    for other in (None, calibration_of(TOKENS[:-1], SHA256, 2)):
        with pytest.raises(QuantError, match=r"calibration text.*--force"):
            convert(checkpoint("window"), tmp_path / "out", INT4, calibration=other)


def test_an_interrupted_run_goes_on_with_the_same_numbers(checkpoint, tmp_path):
    """Moments that the journal names are not measured again; others come out the same."""
    runs = []

    def counted(source, names):
        runs.append(1)
        yield from calibration_of(read_golden("short").tokens, SHA256, 1).measure(source, names)

    calibration = Calibration(Text(SHA256, 96), counted)
    convert(checkpoint("short"), tmp_path / "whole", INT4, calibration=calibration)
    whole, out = files_of(tmp_path / "whole"), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        convert(checkpoint("short"), tmp_path / "count", INT4, calibration=calibration)
    for at in range(4, len(faults.steps), 9):
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, FAIL, at)
            with pytest.raises(QuantError):
                convert(checkpoint("short"), out, INT4, calibration=calibration)
        named = CALIBRATION_FILE in parse_manifest(out / "localoss.json.part").files
        runs.clear()
        convert(checkpoint("short"), out, INT4, calibration=calibration)
        assert files_of(out) == whole and len(runs) == (0 if named else 1)
        for path in out.iterdir():
            path.unlink()


def test_experts_are_weighed_each_by_its_own_tokens(tmp_path):
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    dense, dense_config = layouts.dense(checkpoints.make_tensors(config, 0), config)
    source = checkpoints.write_tensors(tmp_path / "source", dense_config, dense)
    tokens = read_golden("short").tokens[:3]  # few: some experts see none
    dtypes = Dtypes(experts="int4")
    convert(source, tmp_path / "plain", dtypes)
    convert(source, tmp_path / "out", dtypes, calibration=calibration_of(tokens, SHA256, 1))
    runs = [np.fromfile(tmp_path / name / "layer-001.safetensors", np.uint8) for name in ("plain", "out")]
    assert (runs[0] != runs[1]).any()
    with Moments(tmp_path / "out") as moments:
        found = [moments.of("layer-001.down_proj", expert) for expert in range(10)]
    assert {weights is None for weights in found} == {True, False}
    for weights in found:
        assert weights is None or (0.5 < weights.mean() < 1.5 and weights.min() >= np.float32(0.01))


def test_what_cannot_be_calibrated(checkpoint, tmp_path, capsys):
    with pytest.raises(QuantError, match="none are: ask for --unembedding int4"):
        convert(checkpoint("short"), tmp_path / "out", calibration=calibration_of([1], SHA256, 1))
    with pytest.raises(UsageError, match="vocabulary of 203"):
        convert(checkpoint("short"), tmp_path / "out", INT4, calibration=calibration_of([203], SHA256, 1))
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 1000)
    for path, words in (("none", "cannot be read"), ("binary", "not UTF-8"), ("short.txt", "256 or more")):
        arguments = ["quantize", checkpoint("harmony"), tmp_path / "new", "--calibrate", tmp_path / path]
        assert cli.main([*map(str, arguments), "--attention", "int4"]) == 2
        err = capsys.readouterr().err
        assert words in err and "note: int4 attention costs much accuracy" in err
    assert not (tmp_path / "new").exists()


def test_moments_that_are_not_finite_are_refused(checkpoint, tmp_path):
    def measure(source, names):
        for name, spec in calibration_specs(source.config, INT4).items():
            yield name, np.full(spec.shape, np.inf, np.float32)

    with pytest.raises(QuantError, match="NaN or infinity; take another"):
        convert(
            checkpoint("short"), tmp_path / "out", INT4, calibration=Calibration(Text(SHA256, 1), measure)
        )


def test_on_the_command_line(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 30)
    command = ["quantize", str(checkpoint("harmony")), str(tmp_path / "out"), "--unembedding", "int4"]
    assert cli.main([*command, "--calibrate", str(text), "--dry-run", "--json"]) == 0
    assert CALIBRATION_FILE in json.loads(capsys.readouterr().out)["files"]
    assert cli.main([*command, "--calibrate", str(text)]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert (
        manifest.calibration and manifest.calibration.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    )
    assert manifest.calibration.tokens > 300
