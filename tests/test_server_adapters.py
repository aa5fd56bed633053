"""Adapters as models of their own behind one server: on shared weights, side by side."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.live_server import live

import localoss
from localoss.chat import harmony
from localoss.errors import UsageError
from localoss.options import LoadOptions
from localoss.server.core.catalogue import Catalogue, Entry
from localoss.server.core.models import Models
from localoss.server.core.pool import SequencePool
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service
from quant.format.config import read_config

EIGHT = [f"style{number}" for number in range(8)]


def write_adapter(folder, config, seed, rank=4):
    """An adapter of the attention, and of the experts where the seed is odd, that changes a lot."""
    random = np.random.default_rng(seed)
    tensors = {}

    def add(module, rows, columns, times=1):
        shapes = {"A": (rank * times, columns), "B": (rows, rank * times)}
        for side, shape in shapes.items():
            drawn = random.standard_normal(shape, np.float32) * (0.6 / rank**0.5 if side == "B" else 0.3)
            tensors[f"base_model.model.model.layers.{module}.lora_{side}.weight"] = drawn

    for layer in range(config.layers):
        for letter, rows in (("q", config.q_rows), ("k", config.kv_rows), ("v", config.kv_rows)):
            add(f"{layer}.self_attn.{letter}_proj", rows, config.hidden)
        add(f"{layer}.self_attn.o_proj", config.hidden, config.q_rows)
        if seed % 2:
            add(f"{layer}.mlp.experts", config.hidden, config.intermediate, config.experts)
    folder.mkdir()
    settings = {"peft_type": "LORA", "lora_alpha": rank, "base_model_name_or_path": "harmony"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    config = read_config(model("harmony") / "config.json")
    return {name: write_adapter(root / name, config, seed) for seed, name in enumerate(EIGHT)}


@pytest.fixture(scope="module")
def server(model, adapters):
    options = LoadOptions(
        context_tokens=1024,
        threads=1,
        slots=4,
        adapters=tuple(f"{name}={folder}" for name, folder in adapters.items()),
    )
    catalogue = Catalogue(Entry("tiny", model("harmony")), options, localoss.load, ["also"], has_others=False)

    def start(engine, name):
        return Service(engine, name, Scheduler(engine, 64, 3), SequencePool(engine, 4))

    models = Models(start(catalogue.load(catalogue.first), "tiny"), catalogue, start)
    with live(None, models=models) as running:
        yield running


def ask(server, name, text, tokens=12):
    body = {"model": name, "prompt": text, "temperature": 0, "max_tokens": tokens, "logprobs": 1}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["model"] == name
    return told["choices"][0]["logprobs"]["token_logprobs"], told["usage"]["prompt_tokens_details"]


def test_each_is_a_model(server):
    listed = {one["id"]: one for one in server.get("/v1/models").json()["data"]}
    assert set(listed) == {"tiny", "also", *EIGHT}
    assert all(listed[name]["parent"] == "tiny" and listed[name]["context_length"] == 1024 for name in EIGHT)
    assert listed["style3"]["status"] == listed["tiny"]["status"] == {"value": "loaded"}
    assert server.get("/v1/models/style3").json()["id"] == "style3"
    shown = server.post("/api/show", {"model": "style3"}).json()
    assert shown["details"]["parent_model"] == "tiny"
    assert [one["name"] for one in server.get("/api/ps").json()["models"]] == ["tiny"]
    refused = server.post("/v1/completions", {"model": "style9", "prompt": "x"})
    assert refused.status_code == 404 and "`style7`" in refused.text


def test_eight_at_once_answer_as_alone(server, model, adapters):
    """Each to the bit what an engine with this adapter alone gives, whatever runs beside it."""
    prompt = "The weather in the mountains is " * 6
    names = [*EIGHT, "tiny"] * 3
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: ask(server, name, prompt)[0], names))
    by_name = {}
    for name, answer in zip(names, answers, strict=True):
        assert by_name.setdefault(name, answer) == answer
    assert len({tuple(answer) for answer in by_name.values()}) == len(by_name)
    for name in ("style2", "style5"):
        options = dict(context_tokens=1024, threads=1, adapters=[str(adapters[name])])
        alone = localoss.load(model("harmony"), **options)
        params = localoss.SamplingParams(temperature=0, max_tokens=12, logprobs=1)
        drawn = [token.logprob for token in alone.generate(harmony.encode_raw(prompt), params)]
        assert by_name[name] == drawn


def test_caches_are_each_adapters_own(server):
    """The same prompt again is in the cache of that adapter alone, and neither read nor copied by another."""
    prompt = "A long prompt that all of them get, word for word. " * 8
    for name in ("style0", "style1", "tiny"):
        assert ask(server, name, prompt, 1)[1]["cached_tokens"] == 0
    for name in ("style0", "style1", "tiny"):
        assert ask(server, name, prompt, 1)[1]["cached_tokens"] > 50
    assert ask(server, "style2", prompt, 1)[1]["cached_tokens"] == 0


def test_chats_go_to_them(server):
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    said = [server.post("/v1/chat/completions", body | {"model": name}).json() for name in ("tiny", "style4")]
    assert [one["model"] for one in said] == ["tiny", "style4"]


def test_an_adapter_is_no_model_to_delete(server):
    answer = httpx2.request("DELETE", server.url + "/api/delete", json={"model": "style1"})
    assert answer.status_code == 400 and "is an adapter of tiny" in answer.text


def test_names_that_are_taken(model):
    for name in ("tiny", "also"):
        options = LoadOptions(adapters=(f"{name}=folder",))
        with pytest.raises(UsageError, match="is the model's own name"):
            Catalogue(Entry("tiny", model("harmony")), options, localoss.load, ["also"])


def test_a_sequence_changes_hands(model, adapters):
    """With more adapters than slots a sequence goes from one to another, and nothing of the first is left."""
    given = [f"{name}={folder}" for name, folder in adapters.items()]
    engine = localoss.load(model("harmony"), context_tokens=256, threads=1, slots=1, adapters=given)
    pool, tokens = SequencePool(engine, 1), list(range(100, 140))
    found = {}
    for name in ("style0", None, "style1", "style0"):
        sequence = pool.take(tokens, "", name)
        assert not sequence.tokens and sequence.adapter is engine.adapter(name)
        logits = engine.prefill(sequence, tokens)
        np.testing.assert_array_equal(found.setdefault(name, logits), logits)
    assert pool.take(tokens, "", "style0").tokens == tokens
