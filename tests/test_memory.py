"""The memory plan: its parts against what an engine allocates, what it advises, and how it is held."""

import ctypes
import json
import os
from dataclasses import replace

import numpy as np
import psutil
import pytest

import localoss
from localoss import cli, kernels
from localoss.cli.options import size_bytes
from localoss.engine import loader
from localoss.errors import UsageError
from localoss.hub.registry import known_models
from localoss.measure.bench import anonymous_bytes
from localoss.model.kv_cache import KVCache
from localoss.options import LoadOptions
from localoss.plan import machine
from localoss.plan.machine import cpu_quota, this_machine
from localoss.plan.memory import (
    FITS,
    FROM_DISK,
    PROGRAM_BYTES,
    TOO_LARGE,
    Plan,
    check,
    choose_context,
    gpu_layers,
    reserve_bytes,
)
from quant.format.manifest import Dtypes

EXACT = dict(activations="f32", kv_dtype="f32")


@pytest.fixture(scope="module")
def load(model):
    """Load the checkpoint "short", with the given options."""

    def load(**options):
        return localoss.load(model("short"), **(dict(context_tokens=256, chunk_tokens=32) | options))

    return load


@pytest.fixture(scope="module")
def small(load):
    """An engine, and its plan."""
    engine = load()
    return engine, Plan(engine.config, engine.dtypes, 256, threads=engine.threads, chunk_tokens=32)


@pytest.fixture(scope="module")
def plan_20b():
    return Plan(known_models()["gpt-oss-20b"].config, threads=2)


# Exact


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ({}, {}),
        (dict(kv_dtype="int8", slots=2), dict(attention="int4")),
        (EXACT | dict(chunk_tokens=300), dict(embedding="bf16", unembedding="bf16")),
    ],
    ids=str,
)
def test_a_plan_is_what_the_engine_takes(options, dtypes, model):
    folder = model("short", **dtypes)
    engine = localoss.load(folder, **(dict(context_tokens=256, chunk_tokens=32, threads=1) | options))
    plan = Plan(
        engine.config,
        Dtypes(**dtypes),
        256,
        kv_dtype=options.get("kv_dtype", "f16"),
        slots=options.get("slots", 1),
        chunk_tokens=options.get("chunk_tokens", 32),
        exact="activations" in options,
    )
    assert plan.weights_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    caches = [engine.sequence() for _ in range(plan.slots)]
    arrays = [array for one in caches for layer in one.cache.layers for array in layer.arrays]
    assert plan.kv_cache_bytes == sum(array.nbytes for array in arrays)
    rows = [engine._rows]
    for sampler in engine._samplers.all:
        rows += [sampler._logits, sampler._weights]
    buffers = [array for array in vars(engine.model.buffers).values() if isinstance(array, np.ndarray)]
    assert plan.own["scratch"] == sum(array.nbytes for array in [*buffers, *rows])
    assert plan.own_bytes == sum(
        (plan.kv_cache_bytes, plan.own["snapshots"], plan.own["scratch"], PROGRAM_BYTES)
    )


def test_the_published_sizes(plan_20b):
    """From models.toml alone: gpt-oss-20b's experts are 10.2 GB, a token of its cache 24 KiB."""
    assert 10.1e9 < plan_20b.weights["experts"] < 10.2e9
    assert 12.0e9 < plan_20b.weights_bytes < 12.2e9
    longer = replace(plan_20b, context_tokens=plan_20b.context_tokens + 1024)
    assert longer.own_bytes - plan_20b.own_bytes == 1024 * 24 * 1024
    longer, halved = replace(longer, kv_dtype="int8"), replace(plan_20b, kv_dtype="int8")
    assert longer.own_bytes - halved.own_bytes == 1024 * 12 * 8 * (80 + 4 + 64 + 4)


# What fits


def test_verdicts(plan_20b):
    total, least = plan_20b.total_bytes, plan_20b.least_bytes
    limits = (total, total - 1, least, least - 1)
    assert [plan_20b.verdict(limit) for limit in limits] == [FITS, FROM_DISK, FROM_DISK, TOO_LARGE]


def test_the_longest_context_that_fits(plan_20b):
    for limit in (int(12.6e9), int(13e9), int(14.4e9)):
        longest = plan_20b.longest_context(limit)
        assert replace(plan_20b, context_tokens=longest).total_bytes <= limit
        assert replace(plan_20b, context_tokens=longest + 1024).total_bytes > limit
    assert plan_20b.longest_context(int(20e9)) == 131_072
    assert plan_20b.longest_context(int(12e9)) == 0
    assert plan_20b.longest_context(int(12e9), FROM_DISK) == 131_072


def test_the_context_that_is_chosen(plan_20b):
    def chosen(limit, at_least=0, must_fit=False):
        return choose_context(
            plan_20b, int(limit), LoadOptions(prompt_tokens=at_least, must_fit=must_fit)
        ).context_tokens

    assert chosen(20e9) == 32_768
    assert chosen(20e9, at_least=50_000) == 50_000
    assert chosen(20e9, at_least=1_000_000) == 131_072
    assert chosen(12.9e9) == 16_384
    assert chosen(12e9) == 8_192, "it reads from the disk anyhow"
    assert chosen(0.87e9) == 2_048
    assert chosen(12.56e9, must_fit=True) == 4_096
    assert chosen(0.1e9) == 1_024, "check refuses it"


def test_what_is_said_of_a_plan(plan_20b):
    large = replace(plan_20b, context_tokens=131_072)
    assert check(large, int(17e9)) is None
    told = check(large, int(12e9))
    assert "131,072 tokens this model takes 15.7 GB, and 12.0 GB are there" in told and "slow" in told
    with pytest.raises(UsageError, match=r"; --context \d+ or, for some accuracy, --kv-dtype int8 would do$"):
        check(large, int(14.5e9), LoadOptions(must_fit=True))
    with pytest.raises(UsageError, match=r"--context 37888 would do$"):
        check(large, int(13.4e9), LoadOptions(must_fit=True))
    with pytest.raises(UsageError, match=r"4\.\d GB at the very least, and 3\.0 GB are .* int8 would do$"):
        check(large, int(3e9))
    with pytest.raises(UsageError, match=r"take a smaller model$"):
        check(large, int(12e9), LoadOptions(must_fit=True))
    assert large.changes(int(17e9), int(17e9)) == []
    changes = large.changes(int(14.5e9), int(17e9))
    assert changes[0].startswith("--context ") and changes[1].startswith("--kv-dtype int8, which costs")
    assert changes[-1] == "close programs that hold 1.2 GB of memory"
    assert "quantize with --unembedding int4, which saves" in large.changes(int(15.5e9), int(17e9))[2]
    assert large.changes(int(3e9), int(4e9))[-1] == "a machine with 11.7 GB more memory"
    (nearest,) = large.nearest(int(13.4e9))
    assert nearest.kv_dtype == "f16" and nearest.verdict(int(13.4e9)) == FITS


def test_layers_on_a_gpu(plan_20b):
    assert gpu_layers(plan_20b, int(24e9)) == 24
    assert 0 < gpu_layers(plan_20b, int(8e9)) < 24
    assert gpu_layers(plan_20b, int(0.3e9)) == 0


def test_what_is_on_the_gpu_is_not_in_memory(plan_20b):
    """All of it but scratch, which both have: a part each of weights and KV cache."""
    for layers in (1, 7, 24):
        shared = replace(plan_20b, gpu_layers=layers)
        kept = sum(size for name, size in shared.on_gpu.items() if name != "scratch")
        assert shared.total_bytes == plan_20b.total_bytes - kept
        assert min(shared.weights.values()) >= 0
    assert shared.weights["unembedding"] == 0 == shared.weights["experts"] == shared.kv_cache_bytes
    assert shared.weights["embedding"] == plan_20b.weights["embedding"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16e9),
        ("16 GiB", 16 * 2**30),
        ("13e9", 13e9),
        ("1.5g", 1.5e9),
        ("512mb", 512e6),
        ("7000", 7000),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "16XB", "-1GB", "0", "0.5", "nan", "1e9e9"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="is no size; write 16GB"):
        size_bytes(text)


# The machine


def control_group(root, path, **files):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content) + "\n")


def test_a_control_group_of_version_2(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    control_group(proc, "self", cgroup="0::/user/app")
    control_group(groups, "user", memory__max=3_000_000, memory__current=0, memory__stat="active_file 0")
    stat = "anon 500\nactive_file 400000\ninactive_file 300000"
    control_group(groups, "user/app", memory__max="max", memory__current=9, memory__stat=stat)
    machine = this_machine(groups, proc)
    assert machine.in_cgroup and machine.total_bytes == 3_000_000
    control_group(groups, "user/app", memory__max=2_000_000, memory__current=1_000_000, memory__stat=stat)
    limited, free = this_machine(groups, proc), 2_000_000 - 300_000
    assert limited.total_bytes == 2_000_000
    own = psutil.Process().memory_info().rss
    assert 0 <= limited.available_bytes - free < 1.1 * own, "and this process's own"


def test_a_control_group_of_version_1(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    control_group(proc, "self", cgroup="12:cpu,cpuacct:/x\n4:memory:/job/one\n0::/x")
    none = dict(memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
    control_group(groups, "memory", **none)
    machine = this_machine(groups, proc)
    assert not machine.in_cgroup
    files = dict(memory__stat="inactive_file 1\ntotal_inactive_file 600\ntotal_active_file 0")
    control_group(groups, "memory/job/one", memory__limit_in_bytes=5000, memory__usage_in_bytes=1000, **files)
    limited = this_machine(groups, proc)
    assert limited.in_cgroup and limited.total_bytes == 5000
    assert limited.limit_bytes >= 0


def test_no_control_group(tmp_path):
    machine = this_machine(tmp_path, tmp_path)
    assert not machine.in_cgroup and 0 < machine.limit_bytes < machine.total_bytes
    assert machine.available_bytes - machine.limit_bytes == reserve_bytes(machine.total_bytes)


@pytest.mark.parametrize(
    ("outer", "inner", "threads"),
    [
        ("max 100000", "max 100000", None),
        ("max 100000", "250000 100000", 2),
        ("150000 100000", "400000 100000", 1),
        ("max 100000", "50000 100000", 1),
        ("300000 100000", "max 100000", 3),
        ("broken", "", None),
    ],
)
def test_processors_that_a_control_group_leaves(outer, inner, threads, tmp_path):
    """Rounded down, of the tightest level, the same from both versions' files."""
    proc, groups = tmp_path / "proc", tmp_path / "2"
    control_group(proc, "self", cgroup="0::/user/app")
    control_group(groups, "user", cpu__max=outer)
    control_group(groups, "user/app", cpu__max=inner)
    assert cpu_quota(groups, proc) == threads
    control_group(proc, "self", cgroup="4:memory:/x\n12:cpu,cpuacct:/user/app\n0::/x")
    for name in ("cpu", "cpu,cpuacct"):
        groups = tmp_path / name
        for path, limits in (("user", outer), ("user/app", inner)):
            quota, _, period = limits.replace("max", "-1").partition(" ")
            files = dict(cpu__cfs_quota_us=quota, cpu__cfs_period_us=period)
            control_group(groups, f"{name}/{path}", **files)
        assert cpu_quota(groups, proc) == threads


def test_a_container_with_a_quota_runs_as_many_threads(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1)
    assert loader.usable_threads(None) == 1
    most = min(os.cpu_count() or 1, kernels.most_threads())
    assert loader.usable_threads(most) == most, "what was asked for stands"


# Held


def test_where_the_weights_do_not_fit_it_says_so_or_refuses(load, small):
    _, plan = small
    told = []
    load(memory_limit=plan.total_bytes, must_fit=True, notice=told.append)
    assert not told
    load(memory_limit=plan.least_bytes, notice=told.append)
    assert len(told) == 1 and "from the disk" in told[0] and "\n" not in told[0]
    with pytest.raises(UsageError, match=r"^with a context of 256 tokens .* int8 would do$"):
        load(memory_limit=plan.total_bytes - 1, must_fit=True)
    with pytest.raises(UsageError, match="at the very least"):
        load(memory_limit=plan.own_bytes - plan.kv_cache_bytes)


@pytest.mark.skipif(anonymous_bytes() is None, reason="the system does not tell anonymous memory")
def test_a_cache_is_taken_when_it_is_made(small):
    config = small[0].config
    # What earlier tests freed is given back first: taken again, it would not count as new.
    ctypes.CDLL(None).malloc_trim(0)
    before = anonymous_bytes()
    cache = KVCache(config, 131_072, 32, "f16")
    made = anonymous_bytes()
    size = sum(layer.nbytes for layer in cache.layers)
    assert size > 30_000_000 and made - before > 0.98 * size
    for layer in cache.layers:
        for array in layer.arrays:
            array[:] = 1
    assert anonymous_bytes() - made < 1_000_000


def test_the_context_is_chosen_where_none_is_given(load):
    assert load(context_tokens=None).context_tokens == 32_768
    assert load(context_tokens=None, prompt_tokens=40_000).context_tokens == 40_000


def test_a_conversation_takes_the_cache_of_one_that_is_gone(load):
    engine = load(slots=2)
    first, second = engine.sequence(), engine.sequence()
    taken = [id(sequence.cache) for sequence in (first, second)]
    assert taken[0] != taken[1] and id(engine.sequence().cache) not in taken
    tokens = np.random.RandomState(0).randint(0, 203, 200).tolist()
    engine.prefill(first, tokens)
    del first
    again = engine.sequence()  # what the last one left must not be seen
    assert id(again.cache) == taken[0]
    assert np.array_equal(engine.prefill(again, tokens[100:140]), load().logits(tokens[100:140])[-1])


# The command


def run(capsys, *arguments):
    code = cli.main(["plan", *arguments])
    return code, *capsys.readouterr()


def test_plan_before_anything_is_downloaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    code, out, err = run(capsys, "gpt-oss-20b", "--memory", "16GB", "--gpu-memory", "8GB")
    assert (code, err) == (0, "")
    assert "gpt-oss-20b (not installed) · context 32,768 tokens" in out
    assert "It fits, with 2.4 GB to spare." in out and "The longest context that fits: 131,072 tokens." in out
    assert "A GPU of 8.0 GB holds 15 of 24 layers (--gpu-layers 15): 7." in out
    assert "The machine's memory takes 5." in out
    assert "the experts of 12, the others' in RAM (--gpu-experts 12): 7." in out
    assert out.count("; bandwidths give ") == 2 and "(a card of 272 GB/s, memory of 40 GB/s)" in out


def test_plan_in_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    arguments = ["gpt-oss-20b", "--memory", "13e9", "--context", "131072", "--kv-dtype", "int8", "--json"]
    code, out, _ = run(capsys, *arguments)
    report = json.loads(out)
    parts = sum(report["weights_bytes"].values()) + sum(report["own_bytes"].values())
    assert code == 0 and parts == report["total_bytes"]
    assert report["limit_bytes"] == 13_000_000_000 - 260_000_000
    assert report["verdict"] == FROM_DISK and report["changes"][0].startswith("--context")
    assert report["longest_context_tokens"] > 20_000


def test_plan_of_a_folder(capsys, model, checkpoint):
    code, out, _ = run(capsys, str(model("short")), "--memory", "1GB", "--json")
    assert code == 0 and json.loads(out)["verdict"] == FITS
    code, out, _ = run(capsys, str(checkpoint("short")), "--memory", "1GB")
    assert code == 0 and "as `localoss quantize` would make it" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-oss-20b", "--context", "131073"], "--context is 131,073; this model takes 1 to 131,072"),
        (["gpt-oss-20b", "--memory", "lots"], "'lots' is no size"),
        (["gpt-os-20b"], "did you mean gpt-oss-20b"),
    ],
)
def test_bad_requests(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and message in err and err.count("\n") == 1
