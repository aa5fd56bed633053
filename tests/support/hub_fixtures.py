"""Fixtures for tests that pull: a hub on loopback, a store of the test's own, and a short patience."""

import json
import shutil

import pytest

from localoss import settings
from localoss.hub import registry
from localoss.hub.progress import Progress
from localoss.hub.pull import Order, pull
from localoss.hub.retry import Patience
from support import checkpoints
from support.hub_server import HubServer

SMALL = dict(
    layers=5, hidden=128, intermediate=96, heads=4, kv_heads=2, head_dim=24, experts=5, active=2, vocab=400,
    window=16,
)  # fmt: skip
QUICK = Patience(connect_s=2, read_s=1, first_wait_s=0.01, longest_wait_s=0.05, failures=4)
NAME = "openai/gpt-oss-20b"


class Told(Progress):
    """Keeps everything that it is told."""

    def __init__(self):
        self.lines, self.fetched_bytes, self.shards = [], {}, None

    def say(self, text):
        self.lines.append(text)

    def begin(self, files, here):
        self.shards, self.here = {file.name: file.size for file in files}, here

    def fetched(self, name, done_bytes, total_bytes):
        self.fetched_bytes[name] = done_bytes


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A checkpoint as published: three shards that cut through layers, and what nobody should fetch."""
    folder = tmp_path_factory.mktemp("hub") / "published"
    checkpoints.write_checkpoint(folder, checkpoints.config_for(**SMALL))
    for other in ("original", "metal"):
        (folder / other).mkdir()
        (folder / other / "model.bin").write_bytes(bytes(10_000))
    (folder / "README.md").write_text("read me")
    return folder


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A hub with `published` as openai/gpt-oss-20b, in a folder that the test may change."""
    from huggingface_hub import constants

    folder = shutil.copytree(published, tmp_path / "repository")
    with HubServer({NAME: folder}) as server:
        server.folder = folder
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The data folder; no other program's models are on this machine."""
    for program in ("ollama_models", "lm_studio_models", "llama_cpp_models"):
        monkeypatch.setattr(settings, program, lambda: [])
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    registry.known_models.cache_clear()
    yield tmp_path / "home"
    registry.known_models.cache_clear()


@pytest.fixture
def pulled(hub, home):
    """Pull, with Order's arguments; gives what `pull` gives and what was told."""

    def run(name=NAME, **options):
        told = Told()
        return pull(Order(name, **options), told, QUICK), told

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_of(folder):
    """The content of the model's files, without what tells where they came from."""
    return {name: content for name, content in files_of(folder).items() if name != "localoss.json"}


def fingerprint_of(folder):
    return json.loads((folder / "localoss.json").read_text())["source"]
