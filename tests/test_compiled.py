"""How kernels are compiled: with what they leave alone."""

import numba
import numpy as np
from numba import prange

from localoss.kernels import compiled


def _fill(x):
    for i in prange(len(x)):
        x[i] = i


def _times_it_takes_the_lock(dispatcher):
    x = np.zeros(1000)
    dispatcher(x)
    assert np.array_equal(x, np.arange(1000))
    library = dispatcher.overloads[dispatcher.signatures[0]].library
    return library.get_asm_str().count("PyEval_RestoreThread")


def test_parallel_loops_leave_pythons_lock_alone():
    """What is called from Python takes it back once, at its end; a host program's loops do so, too."""
    options = {"parallel": True, "nogil": True, "no_cfunc_wrapper": True}
    before = _times_it_takes_the_lock(numba.njit(**options)(_fill))
    assert _times_it_takes_the_lock(compiled._without_lock(numba.njit(**options)(_fill))) == 1 < before
    assert _times_it_takes_the_lock(numba.njit(**options)(_fill)) == before
