"""The cache of experts alone, on readers that sleep, fail and read short: what it gives away, and when."""

import ctypes
import random
import threading
import time
from collections import OrderedDict
from contextlib import closing

import numpy as np
import pytest

from localoss.errors import Cancelled
from localoss.model.expert_cache import ExpertCache
from quant.errors import QuantError
from quant.format import direct
from quant.format.direct import DirectFile, page_buffer
from quant.format.layout import PAGE

LAYERS, EXPERTS = 5, 9
RECORD = 2 * PAGE
LEAST = 8


def content(layer, expert):
    return np.full(RECORD // 8, 1000 * layer + expert + 1, np.int64)


class Reads:
    """Records made on the spot. before: called with layer and expert ahead of each; it may sleep or raise."""

    is_direct = True

    def __init__(self, before=lambda layer, expert: None):
        self.before, self.log, self.closed = before, [], False

    def read(self, layer, expert, view):
        self.log.append((layer, expert))
        array = np.frombuffer(view, np.int64)
        array[: len(array) // 2] = -1  # what a read leaves that ends half-way
        self.before(layer, expert)
        array[:] = content(layer, expert)

    def close(self):
        self.closed = True


@pytest.fixture
def make():
    made = []

    def build(slots, before=lambda layer, expert: None, readers=4):
        reads = Reads(before)
        made.append(ExpertCache(np.zeros((LAYERS, EXPERTS), np.int64), slots, RECORD, reads, readers))
        return made[-1], reads

    yield build
    for cache in made:
        cache.close()
        assert cache.records.closed


def at(address):

    return np.ctypeslib.as_array((ctypes.c_int64 * (RECORD // 8)).from_address(int(address)))


def visit(cache, layer, experts, cancelled=lambda: False, used=None):
    """Fetch `experts` and check each record's every byte while it may be used."""
    seen = []
    with closing(cache.fetch(layer, experts, cancelled, used)) as groups:
        for group in groups:
            for expert in group:
                assert np.array_equal(at(cache.table[layer, expert]), content(layer, expert))
            seen += group
    assert sorted(seen) == sorted(experts)


def check_table(cache):
    """Every address has its expert, and there are no more of them than slots."""
    there = np.argwhere(cache.table)
    assert len(there) <= cache.slots
    assert len(np.unique(cache.table[cache.table != 0])) == len(there)
    for layer, expert in there:
        assert np.array_equal(at(cache.table[layer, expert]), content(layer, expert))


def used_by(experts):
    return np.bincount(experts, minlength=EXPERTS)


@pytest.mark.parametrize("slots", [LEAST, 13, LAYERS * EXPERTS])
def test_ten_thousand_random_wants(make, slots):
    """Readers sleep at random and fail now and then; passes of one token and of many; some are cancelled."""
    draw, sleeper = random.Random(slots), random.Random(1)

    def before(layer, expert):
        if sleeper.random() < 0.02:
            time.sleep(0.002 * sleeper.random())
        if sleeper.random() < 0.03:
            raise QuantError("the disk says no")

    cache, _ = make(slots, before)
    wants, failed, stopped = 0, 0, 0
    while wants < 10_000:
        cache.begin_pass()
        most = draw.choice((3, 3, 3, EXPERTS))
        for layer in range(LAYERS):
            experts = draw.sample(range(EXPERTS), draw.randint(1, most))
            wants += len(experts)
            stops = draw.random() < 0.01
            used = draw.choice((None, used_by(experts)))
            try:
                if most == EXPERTS and layer + 1 < LAYERS:
                    cache.look_ahead(layer + 1, range(EXPERTS))
                visit(cache, layer, experts, lambda stops=stops: stops, used)
            except QuantError:
                failed += 1
                break
            except Cancelled:
                stopped += 1
                break
            finally:
                cache.forget_queued()
    assert failed and (stopped or slots == LAYERS * EXPERTS), "the faults were met"
    cache.close()
    check_table(cache)


def replay(routes, slots):
    """How many of each step's experts an LRU of `slots` entries lacks."""
    kept, missed = OrderedDict(), []
    for layer, experts in routes:
        missed.append(sum((layer, e) not in kept for e in experts))
        for expert in experts:
            kept[layer, expert] = None
            kept.move_to_end((layer, expert))
        while len(kept) > slots:
            kept.popitem(last=False)
    return missed


@pytest.mark.parametrize("slots", [2 * 3 * LAYERS, 33, LAYERS * EXPERTS])
def test_misses_are_those_of_an_lru_exactly(make, slots):
    draw = random.Random(3)
    cache, reads = make(slots, lambda layer, expert: time.sleep(0.0002 * draw.random()))
    routes = [(step % LAYERS, sorted(draw.sample(range(EXPERTS), 3))) for step in range(400)]
    missed = []
    for layer, experts in routes:
        if layer == 0:
            cache.begin_pass()
        before = cache.counts.misses
        visit(cache, layer, experts, used=used_by(experts))
        missed.append(cache.counts.misses - before)
    assert missed == replay(routes, slots)
    assert cache.counts.hits + cache.counts.misses == 3 * len(routes)
    assert len(reads.log) == cache.counts.misses and cache.counts.read_bytes == RECORD * len(reads.log)


def test_with_few_slots_each_layer_keeps_its_newest(make):
    """A list by recent use finds less, for layers come in a circle, and what it drops comes next."""
    slots = 2 * LAYERS + 3
    cache, _ = make(slots)
    routes = [(step % LAYERS, [1, 4, 7]) for step in range(8 * LAYERS)]
    for layer, experts in routes:
        if layer == 0:
            cache.begin_pass()
        visit(cache, layer, experts, used=used_by(experts))
    assert cache.counts.misses <= 3 * LAYERS + 7 * LAYERS, "of each layer two stay"
    assert cache.counts.misses < sum(replay(routes, slots))


def test_what_is_there_is_given_while_the_rest_is_read(make):
    gate = threading.Event()
    cache, _ = make(20, lambda layer, expert: expert == 5 and gate.wait(10))
    visit(cache, 0, [1, 2])
    with closing(cache.fetch(0, [1, 5, 2], lambda: False)) as groups:
        assert next(groups) == [1, 2]
        gate.set()
        assert next(groups) == [5]


def test_an_error_is_told_once_and_the_next_try_reads_anew(make):
    fails = [True]

    def before(layer, expert):
        if expert == 3 and fails:
            fails.pop()
            raise OSError("gone")

    cache, reads = make(10, before)
    with pytest.raises(OSError, match="gone"):
        visit(cache, 0, [1, 3])
    visit(cache, 0, [1, 3])
    assert reads.log.count((0, 3)) == 2


def test_an_error_of_a_guess_waits_until_it_is_wanted(make):
    cache, _ = make(20, lambda layer, expert: layer == 1 and 1 / 0)
    cache.begin_pass()
    cache.look_ahead(1, range(EXPERTS))
    visit(cache, 0, [0, 1])
    with pytest.raises(ZeroDivisionError):
        visit(cache, 1, [2])


def test_a_prompt_keeps_of_each_layer_what_its_newest_tokens_used_most(make):
    cache, _ = make(3 * LAYERS)
    cache.begin_pass(is_prompt=True)
    for layer in range(LAYERS):
        favourites = {(layer + i) % EXPERTS: 9 - i for i in range(3)}
        used = np.array([favourites.get(e, 1) for e in range(EXPERTS)])
        visit(cache, layer, list(range(EXPERTS)), used=used)
    for layer in range(LAYERS - 1):
        there = np.flatnonzero(cache.table[layer])
        assert layer in there, "the most used of every layer is there"
        assert set(there) <= {(layer + i) % EXPERTS for i in range(3)}
    cache.begin_pass()
    visit(cache, 0, [0], used=used_by([0]))
    assert cache.decoding.misses == 0


def test_reading_ahead_leaves_a_pass_nothing_to_miss(make):
    """Of a pass through all layers nearly none but the first one's experts are missed; all are read once."""
    cache, reads = make(3 * EXPERTS)
    cache.begin_pass(is_prompt=True)
    for layer in range(LAYERS):
        every = list(range(EXPERTS))
        with closing(cache.fetch(layer, every, lambda: False, used_by(every))) as groups:
            for number, _ in enumerate(groups):
                if number == 0 and layer + 1 < LAYERS:
                    cache.look_ahead(layer + 1, every)
    assert cache.counts.misses + cache.counts.ahead == LAYERS * EXPERTS
    assert cache.counts.misses < 1.5 * EXPERTS
    assert len(reads.log) == len(set(reads.log)) == LAYERS * EXPERTS


# Files


def write(path, pages, more=0):
    data = np.random.default_rng(0).integers(0, 256, pages * PAGE + more, np.uint8).tobytes()
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_file_is_read_at_any_page(tmp_path, is_direct):
    data = write(tmp_path / "f", 7, more=100)
    file, view = DirectFile(tmp_path / "f", is_direct), page_buffer(3 * PAGE)
    file.read_into(view, 2 * PAGE)
    assert view == data[2 * PAGE : 5 * PAGE]
    file.read_into(view, 5 * PAGE, 2 * PAGE + 100)
    assert view[: 2 * PAGE + 100] == data[5 * PAGE :]
    with pytest.raises(QuantError, match="became shorter"):
        file.read_into(view, 5 * PAGE)
    file.close()


def test_short_reads_are_gone_on_with(tmp_path, monkeypatch):
    data = write(tmp_path / "f", 9)
    file, view, draw = DirectFile(tmp_path / "f"), page_buffer(9 * PAGE), random.Random(2)
    whole = direct._read
    monkeypatch.setattr(direct, "_read", lambda f, v, o: min(whole(f, v, o), draw.randint(1, 2 * PAGE)))
    file.read_into(view, 0)
    assert view == data


def test_a_file_that_is_cut_or_gone_is_told(tmp_path):
    path, view = tmp_path / "f", page_buffer(4 * PAGE)
    write(path, 4)
    file = DirectFile(path)
    with open(path, "r+b") as cut:
        cut.truncate(3 * PAGE + 10)
    with pytest.raises(QuantError, match=r"f: became shorter.*download it again"):
        file.read_into(view, 0)
    with pytest.raises(QuantError, match="missing"):
        DirectFile(tmp_path / "none")


def test_a_failing_disk_is_told(tmp_path, monkeypatch):
    write(tmp_path / "f", 4)
    file, view = DirectFile(tmp_path / "f"), page_buffer(PAGE)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(direct, "_read", fail)
    with pytest.raises(QuantError, match=r"cannot be read \(Input/output error\)"):
        file.read_into(view, 0)


def test_a_file_system_without_direct_reads(tmp_path, monkeypatch):
    """The open or the first read refuses; what is read is right all the same."""
    data, opened = write(tmp_path / "f", 3), direct._open

    def refuse(path, is_direct):
        if is_direct:
            raise OSError(22, "Invalid argument")
        return opened(path, is_direct)

    monkeypatch.setattr(direct, "_open", refuse)
    file, view = DirectFile(tmp_path / "f"), page_buffer(3 * PAGE)
    assert not file.is_direct
    file.read_into(view, 0)
    assert view == data
