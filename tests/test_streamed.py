"""Experts from the disk: the same bits as with all weights mapped, whatever fits and whatever goes wrong."""

import gc
import itertools
from dataclasses import replace

import numpy as np
import pytest
from support import checkpoints
from support.layouts import dense

import localoss
from localoss.engine.slot import Slot
from localoss.errors import Cancelled, UsageError
from localoss.options import SamplingParams
from localoss.plan.memory import Plan
from localoss.plan.sizes import READERS
from quant.convert import convert
from quant.errors import QuantError
from quant.format import direct
from quant.format.config import read_config
from quant.format.layout import expert_run
from quant.format.manifest import Dtypes

VOCAB, ACTIVE = 203, 4
OPTIONS = dict(context_tokens=512, chunk_tokens=32)
LEAST, FEW, ALL = ACTIVE + READERS, 17, 30


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


@pytest.fixture(scope="module")
def record(model):
    engine = localoss.load(model("short"), **OPTIONS)
    return expert_run(engine.config, "mxfp4").size


def load(model, record, slots, **options):
    return localoss.load(model("short"), expert_memory=slots * record, **(OPTIONS | options))


def run(engine, sequence, prompt, count=12):
    """Logits after the prompt, and after each of some tokens that follow it."""
    rows = [engine.prefill(sequence, prompt)]
    for token in random_tokens(count, 7):
        prompt = [*prompt, token]
        rows.append(engine.prefill(sequence, prompt))
    return np.array(rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slots", [LEAST, FEW, ALL])
def test_bits_are_those_of_the_mapped_model(model, record, slots, threads):
    """A prompt of several chunks in one pass, more than the least slots can hold of a layer."""
    prompt = random_tokens(150)
    mapped = localoss.load(model("short"), threads=threads, **OPTIONS)
    streamed = load(model, record, slots, threads=threads)
    assert streamed.model.experts.slots == slots
    expected = run(mapped, mapped.sequence(), prompt)
    np.testing.assert_array_equal(run(streamed, streamed.sequence(), prompt), expected)


@pytest.mark.parametrize("is_direct", [True, False])
def test_reads_past_the_page_cache_and_through_it(model, record, is_direct, monkeypatch):
    monkeypatch.setattr(direct, "_supports_direct", lambda path: is_direct)
    prompt, mapped = random_tokens(40), localoss.load(model("short"), **OPTIONS)
    streamed = load(model, record, FEW)
    figures = streamed.expert_figures()
    assert figures["is_direct"] == is_direct and figures["slots"] == FEW
    expected = run(mapped, mapped.sequence(), prompt, 3)
    np.testing.assert_array_equal(run(streamed, streamed.sequence(), prompt, 3), expected)


@pytest.mark.parametrize("experts", ["int4", "bf16"])
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_other_number_formats(tmp_path, experts, activations):
    """Of experts that are no MXFP4 the records are larger, and their inputs other ones."""
    folder, config = tmp_path / "dense", checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    tensors, config = dense(checkpoints.make_tensors(config, 1), config)
    checkpoints.write_tensors(folder, config, tensors)
    convert(folder, tmp_path / "model", Dtypes(experts=experts))
    options = OPTIONS | dict(activations=activations)
    mapped = localoss.load(tmp_path / "model", **options)
    size = expert_run(mapped.config, experts).size
    streamed = localoss.load(tmp_path / "model", expert_memory=FEW * size, **options)
    prompt = random_tokens(70)
    expected = run(mapped, mapped.sequence(), prompt, 3)
    np.testing.assert_array_equal(run(streamed, streamed.sequence(), prompt, 3), expected)


def test_a_cancelled_prompt_is_gone_on_with(model, record):
    """Wherever it is stopped, in whatever layer and chunk, nothing of the bits changes."""
    prompt, mapped = random_tokens(100), localoss.load(model("short"), **OPTIONS)
    expected = mapped.prefill(mapped.sequence(), prompt)
    streamed = load(model, record, LEAST)
    sequence = streamed.sequence()
    for stop in range(1, 12, 2):
        asked = itertools.count()
        with pytest.raises(Cancelled):
            streamed.prefill(sequence, prompt, cancelled=lambda stop=stop, asked=asked: next(asked) >= stop)
        assert sequence.tokens == []
    np.testing.assert_array_equal(streamed.prefill(sequence, prompt), expected)


def test_a_long_pass_tells_how_far_it_is(model, record):
    """It goes through thousands of tokens layer by layer: without a word for minutes, else."""
    streamed, told = load(model, record, FEW), []
    prompt = random_tokens(100)
    streamed.prefill(streamed.sequence(), prompt, progress=lambda done, total: told.append((done, total)))
    layers = streamed.config.layers
    assert told == [(0, 100), *((100 * done // layers, 100) for done in range(1, layers)), (100, 100)]
    told.clear()
    streamed.prefill(streamed.sequence(), prompt[:30], progress=lambda done, total: told.append(done))
    assert told == [0, 30], "one chunk"


def test_an_unreadable_expert_is_one_error_and_the_conversation_goes_on(model, record, monkeypatch):
    mapped, streamed = localoss.load(model("short"), **OPTIONS), load(model, record, LEAST)
    prompt, sequence = random_tokens(40), streamed.sequence()
    streamed.prefill(sequence, prompt)
    whole, fails = direct._read, [True]

    def read(file, view, offset):
        if fails:
            raise OSError(5, "Input/output error")
        return whole(file, view, offset)

    monkeypatch.setattr(direct, "_read", read)
    longer = [*prompt, *random_tokens(9, 3)]
    with pytest.raises(QuantError, match=r"layer-.*cannot be read \(Input/output error\)"):
        streamed.prefill(sequence, longer)
    assert sequence.tokens == prompt
    fails.clear()
    expected = mapped.sequence()
    mapped.prefill(expected, prompt)
    np.testing.assert_array_equal(streamed.prefill(sequence, longer), mapped.prefill(expected, longer))


def test_a_later_prompt_may_part_within_a_long_pass(model, record):
    """The windows of sliding layers where it may are kept while the pass goes on beyond them."""
    streamed, mapped = load(model, record, FEW), localoss.load(model("short"), **OPTIONS)
    prompt, sequence = random_tokens(300), streamed.sequence()
    streamed.prefill(sequence, prompt, checkpoints=[45, 130])
    assert [snapshot.position for snapshot in sequence.snapshots] == [45, 130]
    other, done = [*prompt[:130], *random_tokens(20, 5)], []
    got = streamed.prefill(sequence, other, progress=lambda tokens, _: done.append(tokens))
    assert done[0] == 130, "so much of it was not run again"
    sequence = mapped.sequence()
    mapped.prefill(sequence, prompt[:130])
    np.testing.assert_array_equal(got, mapped.prefill(sequence, other))


def test_a_long_prompt_reads_each_expert_about_once(model, record):
    streamed = load(model, record, 22)  # two layers' experts and two more
    streamed.prefill(streamed.sequence(), random_tokens(300))
    read = streamed.expert_figures()["prompts"]["read_bytes"]
    assert read <= 1.1 * ALL * record
    assert streamed.expert_figures()["prompts"]["tokens"] == 300


def test_sequences_side_by_side_read_an_expert_once(model, record):
    """Each gives what it gives alone, and a step reads no more than all experts."""
    streamed = localoss.load(
        model("short"), expert_memory=LEAST * record, slots=3, activations="f32", **OPTIONS
    )
    greedy = SamplingParams(temperature=0, max_tokens=6, stop_ids=())
    prompts = [random_tokens(count, count) for count in (3, 40, 90)]
    alone = [[token.id for token in streamed.generate(prompt, greedy)] for prompt in prompts]
    batch, made = streamed.batch(), {}
    slots = [batch.add(Slot(streamed.sequence(), prompt, greedy)) for prompt in prompts]
    while batch.slots:
        before = streamed.model.experts.prompts.misses + streamed.model.experts.decoding.misses
        for slot, token in batch.step():
            made.setdefault(slot, []).append(token.id)
        after = streamed.model.experts.prompts.misses + streamed.model.experts.decoding.misses
        assert after - before <= ALL * 2
    assert [made[slot] for slot in slots] == alone


def test_memory_is_given_back_with_the_engine(model, record):
    streamed = load(model, record, FEW)
    threads = streamed.model.experts._threads
    del streamed
    gc.collect()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_what_is_asked_for(model, record):
    folder, told = model("short"), []
    mapped = localoss.load(folder, expert_memory=0, **OPTIONS)
    assert mapped.expert_figures() is None
    plan = Plan(mapped.config, mapped.dtypes, 512, threads=mapped.threads, chunk_tokens=32)
    limit = replace(plan, expert_slots=FEW).total_bytes - 1
    with pytest.raises(UsageError, match=r"needs .* at least"):
        localoss.load(folder, expert_memory=record, **OPTIONS)
    with pytest.raises(UsageError, match="beside all else there is room for"):
        localoss.load(folder, expert_memory=FEW * record, memory_limit=limit, **OPTIONS)
    with pytest.raises(UsageError, match="gpu-layers"):
        localoss.load(folder, expert_memory=10**9, gpu_layers=1, **OPTIONS)
    streamed = load(model, record, FEW, lookup=True, notice=told.append)
    assert not streamed.lookup and any("--lookup is off" in line for line in told)
    assert any(f"{FEW} of {ALL} experts stay in memory" in line for line in told)


def test_a_model_larger_than_memory_gets_a_cache_by_itself(model):
    """As much as its limit leaves; with --must-fit it is refused as before."""
    folder = model("short")
    mapped = localoss.load(folder, **OPTIONS)
    plan = Plan(mapped.config, mapped.dtypes, 512, threads=mapped.threads, chunk_tokens=32)
    limit = plan.total_bytes - 12 * expert_run(mapped.config, "mxfp4").size
    streamed = localoss.load(folder, memory_limit=limit, **OPTIONS)
    figures = streamed.expert_figures()
    assert LEAST <= figures["slots"] < ALL
    made = replace(plan, expert_slots=figures["slots"])
    assert made.total_bytes <= limit < replace(plan, expert_slots=figures["slots"] + 1).total_bytes
    with pytest.raises(UsageError):
        localoss.load(folder, memory_limit=limit, must_fit=True, **OPTIONS)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """As many layers and experts as make slots scarce in each way: 12 * 32 = 384 experts, 48 a token."""
    folder = tmp_path_factory.mktemp("deep")
    shape = dict(hidden=32, intermediate=32, heads=4, kv_heads=2, head_dim=16, vocab=VOCAB, window=24)
    config = checkpoints.config_for(layers=12, experts=32, active=ACTIVE, rope="rope_scaling", **shape)
    checkpoints.write_checkpoint(folder / "checkpoint", config)
    convert(folder / "checkpoint", folder / "model", Dtypes())
    prompt = random_tokens(1300)
    mapped = localoss.load(folder / "model", context_tokens=2048)
    return folder / "model", prompt, run(mapped, mapped.sequence(), prompt, 6)


@pytest.mark.parametrize("slots", [LEAST, 40, 150, 288, 384])
def test_a_prompt_of_1300_tokens_in_chunks_of_512(deep, slots):
    """Bits with the fewest slots, fewer than a token's, some for each layer, two tokens' and all."""
    folder, prompt, expected = deep
    size = expert_run(read_config(folder / "config.json"), "mxfp4").size
    streamed = localoss.load(folder, context_tokens=2048, expert_memory=slots * size)
    assert streamed.model.experts.slots == slots and streamed.pass_tokens == 2048
    np.testing.assert_array_equal(run(streamed, streamed.sequence(), prompt, 6), expected)
    read = streamed.expert_figures()["prompts"]["read_bytes"]
    assert slots < 64 or read <= 1.1 * 384 * size, "with room for two layers each is read about once"
