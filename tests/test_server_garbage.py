"""Passes of the garbage collector over all objects, which stop every thread."""

import gc
import math
import weakref

import pytest

from localoss.server.core.garbage import collect, passes_are_short


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def _objects_are_looked_at():
    gc.unfreeze()
    yield
    collect()


def test_what_a_long_pass_leaves_is_looked_at_no_more():
    kept = [[number] for number in range(1000)]
    with passes_are_short(long_s=0.0):
        gc.collect(1)
        assert gc.get_freeze_count() == 0  # the oldest weren't among these
        gc.collect()
    assert gc.get_freeze_count() >= len(kept)


def test_a_short_pass_changes_nothing():
    with passes_are_short(long_s=math.inf):
        gc.collect()
    assert gc.get_freeze_count() == 0


def test_garbage_of_long_passes_is_freed_by_them_and_later_by_collect():
    before, held = Cycle(), Cycle()
    seen = weakref.ref(before), weakref.ref(held)
    del before
    with passes_are_short(long_s=0.0):
        gc.collect()
        assert seen[0]() is None
        del held
        gc.collect()
        assert seen[1]() is not None  # it was in use when all was put aside
    collect()
    assert seen[1]() is None


def test_nothing_is_watched_afterwards():
    watching = len(gc.callbacks)
    with pytest.raises(ValueError, match="stop"), passes_are_short():
        assert len(gc.callbacks) == watching + 1
        raise ValueError("stop")
    assert len(gc.callbacks) == watching
