"""Work on threads: results in order, only a little ahead, errors where they belong."""

import threading
import time
from functools import partial

import numpy as np
import pytest
from test_convert import files_of

from quant import pipeline
from quant.convert import convert
from quant.format.layout import TensorSpec
from quant.format.manifest import Dtypes
from quant.format.writer import Writer
from quant.pipeline import in_order


def test_results_come_in_the_order_of_the_work():
    def work(number):
        time.sleep(0.002 * (number % 3))
        return number

    assert list(in_order(partial(work, number) for number in range(40))) == list(range(40))


def test_no_more_is_taken_than_fits_the_threads():
    taken, given = [], []

    def pieces():
        for number in range(30):
            taken.append(number)
            assert len(taken) - len(given) <= pipeline.THREADS + 1
            yield partial(int, number)

    for result in in_order(pieces()):
        given.append(result)
    assert given == list(range(30))


def test_an_error_comes_where_its_result_would():
    results = in_order(partial(divmod, 12, divisor) for divisor in (3, 4, 0, 5))
    assert [next(results), next(results)] == [(4, 0), (3, 0)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_thread_works_on_when_the_reader_leaves():
    running = threading.active_count()
    results = in_order(partial(time.sleep, 0.001) for _ in range(1000))
    next(results)
    results.close()
    assert threading.active_count() == running


def test_threads_do_not_change_a_bit(checkpoint, tmp_path, monkeypatch):
    made = []
    for threads in (1, 4):
        monkeypatch.setattr(pipeline, "THREADS", threads)
        convert(checkpoint("wide"), tmp_path / str(threads), Dtypes(attention="int4"))
        made.append(files_of(tmp_path / str(threads)))
    assert made[0] == made[1]


def test_a_failed_write_ends_what_it_wrote_from(tmp_path):
    """At once, threads and all: the garbage collector may come while a thread starts, and wait for ever."""
    ended = []

    def parts():
        try:
            yield "a", np.zeros(4, np.uint8)
            yield "not next", np.zeros(4, np.uint8)
        finally:
            ended.append(True)

    making = parts()  # still referred to here, as by an error's frames
    specs = {"a": TensorSpec("U8", (8,))}
    with Writer(lambda written: None) as writer, pytest.raises(ValueError, match="does not come next"):
        writer.write_tensors(tmp_path / "file", specs, making)
    assert ended == [True]
