"""Work that threads share, in parts of which each is a run of a loop.

Numba compiles a loop over threads into functions of its own, 0.4 s of a first start for each such loop. So
there is one, which calls by address what a part does.
"""

import numpy as np
from numba import prange, types

from localoss.kernels.calls import Routine, call
from localoss.kernels.isa.common import force_inline
from localoss.kernels.simd import parallel


@parallel
def _share(worker, context, count, parts):
    if parts == 1:
        call(worker, (np.int64(0), count, context))
    else:
        for part in prange(parts):
            n = np.int64(part)
            call(worker, (count * n // parts, count * (n + 1) // parts, context))


_NUMBER = types.int64
SHARE = Routine(_share, *[_NUMBER] * 4)


def worker(kernel):
    """`kernel`, which takes the begin and the end of a part and the address of packed arguments."""
    return Routine(kernel, *[_NUMBER] * 3)


@force_inline
def share(at, arguments, count, parts):
    """Run what lies at at[1] over 0 … count - 1 in so many parts, a thread each.

    at[0]: SHARE's address. arguments: the address of what calls.packing put.
    """
    call(at[0], (at[1], arguments, count, parts))
