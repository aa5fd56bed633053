"""models.toml, the user's own one, and which folder a name means."""

from math import prod

import pytest

from localoss.errors import ModelError, UsageError
from localoss.hub import registry
from quant.format.hf_names import block_shapes, float_shapes
from quant.format.sizes import expected_sizes


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    registry.known_models.cache_clear()
    yield tmp_path
    registry.known_models.cache_clear()


def install(home, name, content="{}"):
    folder = home / "models" / name
    folder.mkdir(parents=True)
    (folder / "localoss.json").write_text(content)
    return folder


PUBLISHED = ["gpt-oss-20b", "gpt-oss-120b", "gpt-oss-safeguard-20b", "gpt-oss-safeguard-120b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_follow_from_the_architecture(name):
    known = registry.known_models()[name]
    config = known.config
    count = sum(map(prod, float_shapes(config).values()))
    for layer in range(config.layers):
        shapes = block_shapes(config, layer)
        count += sum(2 * prod(shape) for key, shape in shapes.items() if key.endswith("_blocks"))
    assert known.parameters == count
    assert known.repository == f"openai/{name}"
    assert (known.temperature, known.top_p, config.context) == (1.0, 1.0, 131_072)


def test_sizes_follow_from_the_architecture():
    """13.76 GB is what the published 20b has (its shards' total_size), without their headers."""
    sizes = expected_sizes(registry.known_models()["gpt-oss-20b"].config)
    assert sizes.download_bytes == 13_761_264_768
    assert 12.0e9 < sizes.model_bytes < 12.2e9


def test_the_demo_is_known_and_not_on_the_hub():
    demo = registry.known_models()["demo"]
    assert demo.repository is None and "tiny" in demo.description and demo.config is None


def test_a_users_own_file_adds_and_replaces(home):
    (home / "models.toml").write_text(
        '[mine]\nrepository = "me/mine"\ntemperature = 0.7\n'
        '[gpt-oss-20b]\nrepository = "mirror/gpt-oss-20b"\ndescription = "ours"\n'
    )
    known = registry.known_models()
    assert known["mine"].repository == "me/mine" and known["mine"].temperature == 0.7
    assert known["mine"].config is None
    assert known["gpt-oss-20b"].repository == "mirror/gpt-oss-20b"
    assert "gpt-oss-120b" in known
    assert registry.canonical_name("me/mine") == "mine"


def test_keys_keep_working_under_their_old_spelling(home, capsys):
    (home / "models.toml").write_text('[mine]\nrepository = "me/mine"\nlicence = "MIT"\n')
    assert registry.known_models()["mine"].license == "MIT"
    assert "[mine]: 'licence' is 'license' now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[mine\n", ["not TOML", "models.toml"]),
        ("a = " + "[" * 50_000, ["not TOML", "models.toml"]),
        ('mine = "me/mine"\n', ["[mine]", "table"]),
        ('[mine]\nrepositry = "me/mine"\n', ["'repositry'", "did you mean repository?"]),
        ('[mine]\nrepository = "../secrets"\n', ["'../secrets'", "owner/name"]),
        ('[mine]\nrepository = "me/.."\n', ["'me/..'", "owner/name"]),
        ('[mine]\nrepository = "me/mine"\nlayers = "24"\n', ["layers", "'24'"]),
        ('[mine]\nrepository = "me/mine"\nlayers = true\n', ["layers", "True"]),
        ('["../up"]\nrepository = "me/mine"\n', ["letters"]),
        (b"\xff\xfe", ["not TOML"]),
    ],
)
def test_a_damaged_file_of_the_users_is_told(home, content, words):
    content = content if isinstance(content, bytes) else content.encode()
    (home / "models.toml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        registry.known_models()
    assert all(word in str(caught.value) for word in words), caught.value


def test_names_and_repositories_name_the_same_folder(home):
    folder = install(home, "gpt-oss-20b")
    assert registry.find_model("gpt-oss-20b") == registry.find_model("openai/gpt-oss-20b") == folder
    tune = install(home, "someone--their-finetune")
    assert registry.installed_models() == ["gpt-oss-20b", "someone/their-finetune"]
    assert registry.find_model("someone/their-finetune") == tune
    assert registry.store_folder("someone/their-finetune") == tune


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../b", "a/b/c", "/etc", "a/..", "", ".hidden", "a\\b", "a\0", "a--b", "x\n"]
)
def test_no_name_leads_out_of_the_store(name):
    with pytest.raises(UsageError, match="cannot be a model's name"):
        registry.store_folder(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-oss-20b", ["`localoss pull gpt-oss-20b`"]),
        ("openai/gpt-oss-120b", ["`localoss pull openai/gpt-oss-120b`"]),
        ("gpt-oss-21b", ["did you mean gpt-oss-20b?"]),
        ("someone/else", ["no such folder", "`localoss pull someone/else`"]),
        ("a/b/c", ["no such folder"]),
        (" ", ["no model was named"]),
    ],
)
def test_what_is_not_there_is_told_with_the_remedy(name, words):
    with pytest.raises(ModelError) as caught:
        registry.find_model(name)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_unfinished_pull_is_told(home):
    folder = install(home, "gpt-oss-20b")
    (folder / "localoss.json").rename(folder / "localoss.json.part")
    with pytest.raises(ModelError, match="isn't complete: `localoss pull gpt-oss-20b` goes on"):
        registry.find_model("gpt-oss-20b")


def test_completion_gives_installed_models_first(home):
    install(home, "gpt-tiny")
    assert registry.names_beginning("gpt-")[0] == "gpt-tiny"
    assert registry.names_beginning("gpt-oss-s") == ["gpt-oss-safeguard-20b", "gpt-oss-safeguard-120b"]
    assert registry.names_beginning("x") == []
