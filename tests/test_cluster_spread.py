"""A model spread over several machines, which are objects of this process: cluster/remote_layers.py."""

import gc
from dataclasses import replace

import numpy as np
import pytest

import localoss
from localoss.cluster.models import source_of
from localoss.cluster.part_machine import PartMachine
from localoss.cluster.placement import Room, place
from localoss.cluster.remote_layers import CHUNK_TOKENS, MachineLost, Part, RemoteLayers, units
from localoss.engine.engine import Engine
from localoss.engine.slot import Slot
from localoss.errors import Cancelled
from localoss.model.stack import Rows
from localoss.model.weights import load_weights
from localoss.options import Listener, LoadOptions, SamplingParams
from localoss.plan.memory import Plan

OPTIONS = LoadOptions(context_tokens=400, threads=2, slots=3, chunk_tokens=300)


class Promise:
    def __init__(self, value=None, error=None):
        self.value, self.error = value, error


class HereLink:
    """A PartMachine in this process. dies_at: the call of `run` at which its machine is lost."""

    def __init__(self, name, source, dies_at=None):
        self.name, self.machine, self.dies_at = name, PartMachine(source, None), dies_at
        self.calls, self.closed, self.lost = [], False, False

    def call(self, method, *arguments):
        self.calls.append(method)
        if method == "run" and self.calls.count("run") == self.dies_at:
            self.lost = True
        given = [one.value if isinstance(one, Promise) else one for one in arguments]
        failed = [one.error for one in arguments if isinstance(one, Promise) and one.error]
        if failed or self.lost:
            return Promise(error=failed[0] if failed else MachineLost("power", [self.name]))
        for row in given[1] if method == "run" else ():
            row.cos.flags.writeable = row.sin.flags.writeable = False  # as Ray gives them
        return Promise(getattr(self.machine, method)(*given))

    def is_ready(self, promise, within_s):
        return True

    def result(self, promise):
        if promise.error:
            raise promise.error
        return promise.value

    def is_alive(self):
        return not self.lost

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def folder(model):
    return model("window")


def spread(folder, machines, options=OPTIONS, notice=lambda line: None):
    """An engine over HereLinks, made anew without those that are lost."""
    source, whole = source_of(str(folder)), localoss.load(folder, options)
    plan = Plan.of(whole.config, whole.dtypes, options)
    links = list(machines)

    def layers(lost=()):
        links[:] = [link for link in links if link.name not in lost]
        if not links:
            return None
        parts = []
        for share in place(plan, [Room(link.name, 10**12) for link in links]):
            link = links[share.room]
            assert link.machine.load(share.first, share.plan, 2).fault is None
            parts.append(Part(link, share.first, share.count))
        return RemoteLayers(whole.config, parts, layers)

    weights = load_weights(folder, whole.config, whole.dtypes)
    engine = Engine(whole.config, whole.dtypes, weights, options, [layers()], Listener(notice=notice))
    return engine, whole, source


def links_of(folder, count, **dies):
    source = source_of(str(folder))
    return [HereLink(name, source, dies.get(name)) for name in "abcd"[:count]]


def prompt(count, seed=0):
    return np.random.default_rng(seed).integers(0, 300, count).tolist()


def answer(engine, tokens, count=12, sequence=None):
    given = engine.generate(
        tokens, SamplingParams(temperature=0, stop_ids=()), max_tokens=count, sequence=sequence
    )
    return [token.id for token in given]


@pytest.mark.parametrize(
    "options", [OPTIONS, replace(OPTIONS, kv_dtype="int8"), replace(OPTIONS, activations="f32")]
)
@pytest.mark.parametrize("machines", [1, 2, 3])
def test_logits_are_those_of_one_machine(folder, machines, options):
    engine, whole, _ = spread(folder, links_of(folder, machines), options)
    tokens = prompt(290)
    assert np.array_equal(engine.logits(tokens), whole.logits(tokens))
    assert answer(engine, tokens) == answer(whole, tokens)


def test_kernels_get_arrays_that_they_are_compiled_for(folder, monkeypatch):
    links = links_of(folder, 2)
    engine, _, _ = spread(folder, links)
    seen, stack = [], links[0].machine._stack
    forward = stack.forward

    def looked(x, rows, cancelled):
        seen.extend(array.flags.writeable for row in rows for array in (x, row.cos, row.sin))
        forward(x, rows, cancelled)

    monkeypatch.setattr(stack, "forward", looked)
    engine.logits(prompt(5))
    assert seen == [True] * 3


def test_sequences_side_by_side_and_earlier_ones_that_go_on(folder):
    engine, whole, _ = spread(folder, links_of(folder, 3))
    results = []
    for one in (engine, whole):
        batch, drawn = one.batch(), {}
        params = SamplingParams(temperature=0, stop_ids=(), max_tokens=10)
        slots = [batch.add(Slot(one.sequence(), prompt(60 + 30 * n, n), params)) for n in range(3)]
        while not all(slot.is_done for slot in slots):
            for slot, token in batch.step():
                drawn.setdefault(slots.index(slot), []).append(token.id)
        first = slots[0].sequence
        # Back to a checkpoint, whose windows were read from the machines and are written back.
        again = [*prompt(60, 0)[:50], *prompt(40, 9)]
        one.prefill(first, prompt(60, 0), checkpoints=[50])
        one.prefill(first, [*prompt(60, 0), *prompt(100, 5)])
        logits = one.prefill(first, again)
        copied = one.sequence()
        copied.copy(first, 70)
        assert copied.reuse(again) == 70
        results.append((drawn, logits, one.prefill(copied, again)))
    (drawn, logits, copied), theirs = results
    assert drawn == theirs[0] and np.array_equal(logits, theirs[1]) and np.array_equal(copied, theirs[2])


@pytest.mark.parametrize("at", [1, 2, 4, 9])
@pytest.mark.parametrize("dies", ["a", "b", "c"])
def test_a_lost_machines_layers_are_placed_anew(folder, dies, at):
    notices = []
    links = links_of(folder, 3, **{dies: at})
    engine, whole, _ = spread(folder, links, notice=notices.append)
    tokens = prompt(200)
    assert answer(engine, tokens) == answer(whole, tokens)
    assert notices == [
        f"{dies} is left: power; its layers are placed anew, and the conversation is read again"
    ]
    (stack,) = engine.model.stacks
    assert [part.link.name for part in stack.parts] == [name for name in "abc" if name != dies]


def test_when_all_are_lost_the_cpu_goes_on(folder):
    engine, whole, _ = spread(folder, links_of(folder, 2, a=3, b=6))
    tokens = prompt(150)
    sequence = engine.sequence()
    assert answer(engine, tokens, 20, sequence) == answer(whole, tokens, 20)
    assert not isinstance(engine.model.stacks[0], RemoteLayers)


def test_caches_are_given_back(folder):
    links = links_of(folder, 2)
    engine, _, _ = spread(folder, links)
    before = {link.name: len(link.machine._caches) for link in links}
    more = [engine.sequence() for _ in range(OPTIONS.slots + 2)]
    assert all(len(link.machine._caches) == before[link.name] + 2 for link in links)
    del more
    gc.collect()
    engine.logits(prompt(3))
    assert all(len(link.machine._caches) == before[link.name] for link in links)


def test_it_is_cancelled_while_it_waits(folder):
    engine, whole, _ = spread(folder, links_of(folder, 2))
    (stack,) = engine.model.stacks
    stack.parts[-1].link.is_ready = lambda promise, within_s: False
    sequence = engine.sequence()
    with pytest.raises(Cancelled):
        engine.prefill(sequence, prompt(20), cancelled=lambda: True)
    del stack.parts[-1].link.is_ready
    assert np.array_equal(engine.prefill(sequence, prompt(20)), whole.prefill(whole.sequence(), prompt(20)))


def test_units_are_chunks_or_groups():
    def rows(*tokens):
        first, made = 0, []
        for count in tokens:
            made.append(Rows(first, count, 7, np.zeros((count, 2)), np.zeros((count, 2)), None))
            first += count
        return made

    def shape(given, machines):
        return [[(one.first, one.tokens, one.position) for one in unit] for unit in units(given, machines)]

    assert shape(rows(5), 3) == [[(0, 5, 7)]]
    cut = shape(rows(2 * CHUNK_TOKENS + 1), 3)
    assert [unit[0][1] for unit in cut] == [CHUNK_TOKENS, CHUNK_TOKENS, 1]
    assert [unit[0][2] for unit in cut] == [7, 7 + CHUNK_TOKENS, 7 + 2 * CHUNK_TOKENS]
    assert [len(unit) for unit in shape(rows(1, 1, 1, 1, 1), 3)] == [2, 2, 1]
    mixed = shape(rows(1, 1, 400), 2)
    assert sum(one[1] for unit in mixed for one in unit) == 402
    assert all(sum(one[1] for one in unit) <= CHUNK_TOKENS for unit in mixed)
