"""`localoss pull` from a hub on loopback: what is fetched, what is kept, and what it becomes."""

import json
import shutil

import pytest
from support.hub_fixtures import (
    NAME,
    QUICK,
    Told,
    files_of,
    fingerprint_of,
    home,
    hub,
    published,
    pulled,
    weights_of,
)
from support.hub_server import COMMIT

from localoss import cli
from localoss.errors import ModelError, UsageError
from localoss.hub import store, transfer
from localoss.hub.errors import DownloadError
from localoss.hub.pull import Order, pull
from localoss.hub.registry import find_model
from localoss.plan.machine import Machine
from quant.convert import convert
from quant.errors import QuantError
from quant.format import disk
from quant.format.manifest import Dtypes
from quant.format.safetensors import INDEX_FILE

__all__ = ["home", "hub", "published", "pulled"]
HEADER_BYTES = 128 << 10


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory):
    """The model that `localoss quantize` makes of the checkpoint."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(published, out)
    return weights_of(out)


def states(folder):
    return {file.state for file in store.verify(folder)}


def shards_of(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_a_pulled_model_is_the_converted_one(hub, home, pulled, converted):
    result, told = pulled("gpt-oss-20b")
    assert result.folder == home / "models" / "gpt-oss-20b" == find_model("gpt-oss-20b")
    assert weights_of(result.folder) == converted and states(result.folder) == {"ok"}
    source = fingerprint_of(result.folder)
    assert (source["name"], source["revision"]) == (NAME, COMMIT)
    assert not (home / "sources" / "gpt-oss-20b").exists()
    assert told.shards == {name: (hub.folder / name).stat().st_size for name in shards_of(hub.folder)}


def test_only_what_the_index_names_is_fetched_and_once(hub, pulled):
    pulled()
    sizes = {path.name: path.stat().st_size for path in hub.folder.iterdir() if path.is_file()}
    del sizes["README.md"]
    assert hub.served.keys() == sizes.keys()
    for name, served in hub.served.items():
        header = min(sizes[name], HEADER_BYTES) if name.endswith(".safetensors") else 0
        assert served <= sizes[name] + header, name


def test_the_disk_never_holds_two_models(hub, home, pulled, monkeypatch):
    """Watched at every write: what is there stays below what was computed before the first byte."""
    from localoss.hub.source import PulledSource

    most, expected = [0], []

    def watch(step):
        def watched(*arguments):
            step(*arguments)
            there = {path.name: path.stat().st_size for path in home.rglob("*") if path.is_file()}
            most[0] = max(most[0], sum(there.values()))

        return watched

    def told_peak(self, outputs, peak=PulledSource.peak_bytes):
        expected.append(peak(self, outputs))
        return expected[-1]

    monkeypatch.setattr(PulledSource, "peak_bytes", told_peak)
    for name in ("sync", "replace", "remove"):
        monkeypatch.setattr(disk, name, watch(getattr(disk, name)))
    result, told = pulled()
    assert most[0] <= expected[0] + 20_000  # headers of rests, and journals
    assert most[0] > 0.9 * expected[0]
    model, published = result.summary.manifest.total_bytes, sum(told.shards.values())
    assert expected[0] < 0.75 * (model + published)


def test_pulling_again_has_nothing_to_do(hub, pulled):
    pulled()
    hub.served.clear()
    result, _ = pulled()
    assert result.summary.already_there
    assert sum(hub.served.values()) < 4 * HEADER_BYTES


def test_keep_source_leaves_a_checkpoint(hub, home, pulled, tmp_path):
    pulled("gpt-oss-20b", keep_source=True)
    kept = home / "sources" / "gpt-oss-20b"
    assert shards_of(kept) == shards_of(hub.folder) and (kept / INDEX_FILE).exists()
    (kept / "pull.json").unlink()
    convert(kept, tmp_path / "again")
    assert weights_of(tmp_path / "again") == weights_of(home / "models" / "gpt-oss-20b")


def test_formats_names_and_revisions(hub, home, pulled, published, tmp_path):
    dtypes = Dtypes(attention="bf16", unembedding="int4")
    result, _ = pulled("openai/gpt-oss-20b", dtypes=dtypes, stored_as="mine", revision=COMMIT)
    convert(published, tmp_path / "out", dtypes)
    assert result.folder == home / "models" / "mine"
    assert weights_of(result.folder) == weights_of(tmp_path / "out")


def test_a_fine_tune_by_its_name_in_one_file(hub, home, pulled, tmp_path):
    """Another repository, experts in floats, a single model.safetensors without an index."""
    from support import checkpoints, layouts

    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    dense, dense_config = layouts.dense(checkpoints.make_tensors(config, 0), config)
    folder = checkpoints.write_tensors(tmp_path / "tune", dense_config, dense, shards=1)
    (folder / INDEX_FILE).unlink()
    (folder / "model-00000-of-00000.safetensors").rename(folder / "model.safetensors")
    hub.repositories["someone/their-finetune"] = folder
    result, _ = pulled("someone/their-finetune")
    assert (
        find_model("someone/their-finetune") == result.folder == home / "models" / "someone--their-finetune"
    )
    convert(folder, tmp_path / "out")
    assert weights_of(result.folder) == weights_of(tmp_path / "out")


def test_a_users_own_entry_names_a_repository(hub, home, pulled):
    home.mkdir()
    (home / "models.toml").write_text('[mine]\nrepository = "openai/gpt-oss-20b"\n')
    assert pulled("mine")[0].folder == home / "models" / "mine"


def test_hugging_faces_cache_is_used(hub, home, pulled, converted, tmp_path):
    first, *others = shards_of(hub.folder)
    snapshot = tmp_path / "hf" / "hub" / "models--openai--gpt-oss-20b" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(hub.folder / first, snapshot / first)
    shutil.copy(hub.folder / others[0], snapshot / others[0])
    content = bytearray((snapshot / others[0]).read_bytes())
    content[-9] ^= 1
    (snapshot / others[0]).write_bytes(content)
    result, told = pulled("gpt-oss-20b")
    assert weights_of(result.folder) == converted
    assert hub.served[first] <= HEADER_BYTES and hub.served[others[0]] > HEADER_BYTES
    assert f"{first}: Hugging Face's cache has it" in told.lines
    assert set(files_of(snapshot)) == {first, others[0]}  # only read


def test_the_token_goes_to_the_hub_alone(hub, pulled, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pulled()
    to_hub = {headers.get("authorization") for _, path, headers in hub.requests if "/resolve/" in path}
    to_files = {headers.get("authorization") for _, path, headers in hub.requests if "signature" in path}
    assert (to_hub, to_files) == ({"Bearer hf_secret"}, {None})


# What must not be


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        "model-00000.bin",
        "a\n.safetensors",
    ],
)
def test_names_in_the_index_stay_in_the_folder(hub, home, pulled, name):
    index = json.loads((hub.folder / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (hub.folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(QuantError, match="does not name a file in the same folder"):
        pulled()
    assert not list(home.rglob("passwd*")) and not any(hub.served[shard] for shard in shards_of(hub.folder))


def test_a_name_with_dots_in_the_listing_is_never_fetched(hub, home, pulled):
    def add(listing):
        evil = {"rfilename": "../../../evil.safetensors", "size": 5, "blobId": "0" * 40}
        return listing | {"siblings": [*listing["siblings"], evil]}

    hub.listing = add
    pulled()
    assert not any("evil" in path for _, path, _ in hub.requests) and not list(home.parent.rglob("evil*"))


def test_a_shard_that_the_index_names_and_nobody_has(hub, pulled):
    (hub.folder / shards_of(hub.folder)[1]).unlink()
    with pytest.raises(DownloadError, match=r"has no model-00001-of-00002\.safetensors; its upload"):
        pulled()
    assert not any(hub.served[shard] for shard in shards_of(hub.folder)[1:])


def test_another_architecture_is_told_before_its_weights_come(hub, pulled):
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(QuantError, match=r"openai/gpt-oss-20b: config\.json: model_type is 'llama'"):
        pulled()
    (hub.folder / "config.json").unlink()
    with pytest.raises(DownloadError, match=r"has no config\.json"):
        pulled()
    assert not any(name.endswith(".safetensors") for name in hub.served)


def test_dimensions_that_do_not_fit_are_told_before_the_weights_come(hub, pulled):
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 4}))
    with pytest.raises(QuantError, match="do not belong together"):
        pulled()
    assert all(served <= HEADER_BYTES for served in hub.served.values())


def test_too_little_disk_is_told_before_the_weights_come(hub, home, pulled, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 << 20))
    with pytest.raises(DownloadError, match=r"needs 0.1 GB of disk, and 0.1 GB are free in .*LOCALOSS_HOME"):
        pulled()
    assert all(served <= HEADER_BYTES for served in hub.served.values())


def test_too_little_memory_is_told_before_the_weights_come(hub, pulled, monkeypatch):
    from localoss.hub import pull as module

    monkeypatch.setattr(module, "this_machine", lambda: Machine(100_000_000, 0))
    with pytest.raises(UsageError, match=r"at the very least, and 0 kB are there for it"):
        pulled()
    assert all(served <= HEADER_BYTES for served in hub.served.values())
    monkeypatch.setattr(module, "check", lambda plan, limit: "it will be slow")
    assert "note: it will be slow" in pulled()[1].lines


def test_names_that_stand_for_nothing(home, hub):
    for name, words in {
        "gpt-oss-21b": "did you mean gpt-oss-20b",
        "nothing-like-it": "there is no model",
        "a/b/c": "there is no model",
    }.items():
        with pytest.raises(ModelError, match=words):
            pull(Order(name), Told(), QUICK)
    with pytest.raises(UsageError, match="comes with localoss: `localoss chat demo`"):
        pull(Order("demo"), Told(), QUICK)
    with pytest.raises(UsageError, match="cannot be a model's name"):
        pull(Order("gpt-oss-20b", stored_as="../x"), Told(), QUICK)


def test_other_models_in_the_store_are_not_replaced_unasked(hub, home, pulled):
    pulled()
    with pytest.raises(QuantError, match="in other number formats"):
        pulled(dtypes=Dtypes(attention="int4"))
    hub.commit = "f" * 40
    assert pulled()[0].summary.already_there  # another commit, the same files
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    with pytest.raises(QuantError, match=r"another checkpoint.*--force"):
        pulled()
    assert pulled(force=True)[0].summary.written_bytes


# The command


@pytest.fixture
def localoss_cli(capsys, hub, home, monkeypatch):
    def run(*arguments):
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command(localoss_cli):
    code, out, err = localoss_cli("pull", "gpt-oss-20b")
    assert code == 0 and out.startswith("gpt-oss-20b: ") and "`localoss chat gpt-oss-20b`" in out
    assert f"{NAME} at {COMMIT[:12]}" in err and "to download: " in err
    code, out, _ = localoss_cli("pull", "gpt-oss-20b", "--json")
    report = json.loads(out)
    assert code == 0 and report["already_there"] and report["commit"] == COMMIT
    assert localoss_cli("verify", "gpt-oss-20b")[0] == 0
    assert json.loads(localoss_cli("show", "gpt-oss-20b", "--json")[1])["source"]["revision"] == COMMIT


def test_the_commands_errors_are_one_line(localoss_cli, hub):
    for arguments, exit_code, words in (
        (["gpt-oss-2b"], 2, "did you mean gpt-oss-20b"),
        (["nobody/nothing"], 2, "has no model nobody/nothing, or keeps it private"),
        (["gpt-oss-20b", "--revision", "v9"], 2, "no such revision"),
        (["gpt-oss-20b", "--attention", "int5"], 2, "int5"),
    ):
        code, out, err = localoss_cli("pull", *arguments)
        assert (code, out) == (exit_code, "") and words in err and err.count("\n") == 1, err


def test_pieces_bound_what_a_kill_can_lose():
    assert transfer.PIECE_BYTES * transfer.IN_FLIGHT <= 16e6
