"""GGUF files of other programs on this machine, found and taken instead of a download."""

import json
import shutil
from hashlib import sha256

import pytest
from support import checkpoints, layouts
from support.hub_fixtures import SMALL, home, hub, published, weights_of

from localoss import cli, settings
from localoss.hub import registry
from localoss.hub.local import discover
from quant.convert import convert
from quant.export_gguf import export_gguf
from quant.format.manifest import Dtypes

__all__ = ["home", "hub", "published"]
NAME = "gpt-oss-20b"
KEYS = dict(
    layers="layers", hidden="hidden", intermediate="intermediate", heads="heads", kv_heads="kv_heads",
    head_dim="head_dim", experts="experts", active_experts="active", vocab="vocab", sliding_window="window",
)  # fmt: skip


@pytest.fixture(scope="session")
def ggufs(tmp_path_factory):
    """The checkpoint `published` as llama.cpp keeps it, as Ollama does, and with experts rounded anew."""
    folder = tmp_path_factory.mktemp("ggufs")
    config = checkpoints.config_for(**SMALL)
    tensors = checkpoints.make_tensors(config, 0)
    layouts.write_gguf(folder / "llama.gguf", tensors, config)
    layouts.write_gguf(folder / "ollama.gguf", tensors, config, ollama=True)
    dense, dense_config = layouts.dense(tensors, config)
    checkpoints.write_tensors(folder / "dense", dense_config, dense)
    convert(folder / "dense", folder / "int4", Dtypes(experts="int4"))
    export_gguf(folder / "int4", folder / "rounded.gguf")
    other = checkpoints.config_for(**SMALL | {"layers": 3})
    layouts.write_gguf(folder / "other.gguf", checkpoints.make_tensors(other, 0), other)
    return folder


@pytest.fixture
def machine(home, tmp_path, monkeypatch):
    """Folders of Ollama, LM Studio and llama.cpp; gpt-oss-20b is known with the checkpoint's dimensions."""
    home.mkdir()
    dimensions = "".join(f"{key} = {SMALL[given]}\n" for key, given in KEYS.items())
    for_20b = f'[{NAME}]\nrepository = "openai/{NAME}"\ncontext_tokens = 131072\n{dimensions}'
    (home / "models.toml").write_text(for_20b)
    registry.known_models.cache_clear()
    for name in ("ollama_models", "lm_studio_models", "llama_cpp_models"):
        monkeypatch.setattr(settings, name, lambda name=name: [tmp_path / name])
    return tmp_path


def put_into_ollama(machine, gguf, family="gpt-oss", tag="20b"):
    content = gguf.read_bytes()
    digest = sha256(content).hexdigest()
    folder = machine / "ollama_models"
    blob = folder / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / family / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    return blob


def put(path, gguf):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(gguf, path)
    return path


def found():
    return [(found.path, found.program) for found in discover(registry.known_models()[NAME])]


@pytest.fixture
def localoss_cli(capsys):
    def run(*arguments):
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_each_programs_files_are_found(machine, hub, ggufs):
    assert found() == []
    blob = put_into_ollama(machine, ggufs / "ollama.gguf")
    studio = "lm_studio_models/lmstudio-community/gpt-oss-20b-GGUF/gpt-oss-20b-MXFP4.gguf"
    studio = put(machine / studio, ggufs / "llama.gguf")
    llama = "llama_cpp_models/ggml-org_gpt-oss-20b-GGUF_gpt-oss-20b-mxfp4.gguf"
    llama = put(machine / llama, ggufs / "llama.gguf")
    snapshot = "hf/hub/models--ggml-org--gpt-oss-20b-GGUF/snapshots/abc/gpt-oss-20b-mxfp4.gguf"
    cached = put(machine / snapshot, ggufs / "llama.gguf")
    assert found() == [
        (blob, "Ollama"), (studio, "LM Studio"), (llama, "llama.cpp"), (cached, "Hugging Face's cache"),
    ]  # fmt: skip


def test_a_split_file_is_found_once_with_the_size_of_all(machine, hub, tmp_path):
    config = checkpoints.config_for(**SMALL)
    folder = machine / "llama_cpp_models"
    folder.mkdir()
    layouts.write_gguf(
        folder / "gpt-oss-20b-mxfp4.gguf", checkpoints.make_tensors(config, 0), config, split_max_tensors=25
    )
    parts = sorted(folder.iterdir())
    (offered,) = discover(registry.known_models()[NAME])
    assert len(parts) > 1 and offered.path == parts[0]
    assert offered.bytes == sum(part.stat().st_size for part in parts)


def test_what_is_another_model_is_not_offered(machine, hub, ggufs):
    """Fine-tunes and other sizes by their name or header, experts rounded before, damaged files."""
    folder = machine / "llama_cpp_models"
    put(folder / "gpt-oss-safeguard-20b-mxfp4.gguf", ggufs / "llama.gguf")
    put(folder / "gpt-oss-20b-abliterated-mxfp4.gguf", ggufs / "llama.gguf")
    put(folder / "gpt-oss-20b-other.gguf", ggufs / "llama.gguf")
    put(folder / "gpt-oss-20b-f32.gguf", ggufs / "rounded.gguf")
    put(folder / "gpt-oss-20b-mxfp4.gguf", ggufs / "other.gguf")
    (folder / "gpt-oss-20b.gguf").write_bytes(b"GGUF" + bytes(100))
    put_into_ollama(machine, ggufs / "ollama.gguf", family="llama3")
    put_into_ollama(machine, ggufs / "ollama.gguf", tag="120b")
    manifest = machine / "ollama_models" / "manifests" / "registry.ollama.ai" / "library" / "gpt-oss" / "20b"
    for content in (
        "{",
        "[]",
        '{"layers": [{"mediaType": "x"}]}',
        '{"layers": [{"digest": "sha256:../../x"}]}',
    ):
        manifest.write_text(content)
        assert found() == []


@pytest.mark.parametrize("kind", ["llama", "ollama"])
def test_auto_takes_it_without_a_request(kind, machine, hub, ggufs, published, tmp_path, localoss_cli):
    if kind == "ollama":
        path = put_into_ollama(machine, ggufs / "ollama.gguf")
    else:
        path = put(machine / "llama_cpp_models" / "gpt-oss-20b-mxfp4.gguf", ggufs / "llama.gguf")
    code, out, err = localoss_cli("pull", NAME, "--from", "auto", "--json")
    report = json.loads(out)
    assert code == 0 and report["origin"] == str(path) and report["commit"] is None
    assert str(path) in err and hub.requests == []
    convert(published, tmp_path / "out")
    expected = weights_of(tmp_path / "out")
    there = weights_of(registry.find_model(NAME))
    assert all(there[name] == expected[name] for name in expected if name.endswith(".safetensors"))
    assert path.exists()
    assert localoss_cli("verify", NAME)[0] == 0


def test_a_file_by_its_path(machine, hub, ggufs, localoss_cli):
    code, out, _ = localoss_cli("pull", NAME, "--from", str(ggufs / "llama.gguf"))
    assert code == 0 and str(ggufs / "llama.gguf") in out and hub.requests == []
    assert "there already" in localoss_cli("pull", NAME, "--from", str(ggufs / "llama.gguf"))[1]


def test_without_a_terminal_it_is_mentioned_and_downloaded(machine, hub, ggufs, localoss_cli):
    put(machine / "llama_cpp_models" / "gpt-oss-20b-mxfp4.gguf", ggufs / "llama.gguf")
    code, _, err = localoss_cli("pull", NAME)
    assert code == 0 and "note: llama.cpp has it" in err and "`--from auto`" in err
    assert hub.served


def test_errors_are_one_line(machine, hub, ggufs, localoss_cli):
    blob = put_into_ollama(machine, ggufs / "ollama.gguf")
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    (machine / "text.txt").write_text("no model")
    for source, code, words in (
        ("auto", 1, "its sha256 is another than its name"),
        (str(ggufs / "other.gguf"), 2, "layers 3 where gpt-oss-20b has 5; give it another name with --as"),
        (str(machine / "text.txt"), 2, "a file of another kind"),
        (str(machine / "absent.gguf"), 2, "not found"),
        (["auto", "--repair"], 2, "leave out --revision, --keep-source, --repair"),
    ):
        arguments = source if isinstance(source, list) else [source]
        result = localoss_cli("pull", NAME, "--from", *arguments)
        err = result[2].splitlines()[-1]
        assert result[0] == code and words in err and err.startswith("error: "), result
    blob.unlink()
    code, _, err = localoss_cli("pull", NAME, "--from", "auto")
    assert code == 2 and "no GGUF file of gpt-oss-20b" in err and err.count("\n") == 1
    code, _, _ = localoss_cli("pull", NAME, "--from", str(ggufs / "other.gguf"), "--as", "mine")
    assert code == 0 and registry.installed_models() == ["mine"]
