"""The memory's read bandwidth: the limit that decoding is held against."""

from numba import prange

from localoss.kernels.simd import add_int, fetch_add, load_i8x32, parallel, prefetch, store_i8x32, store_i64

SCRATCH_BYTES = 32  # per thread


@parallel
def read_bytes(addresses, size, part_bytes, scratch, threads, counter):
    """Read `size` bytes at each address, in parts that threads take from a shared counter.

    addresses array (n,) i64. part_bytes: a multiple of 128; what is left of `size` is not read.
    Addresses: scratch (threads, SCRATCH_BYTES), so that the reads have a use; counter, an i64.
    """
    store_i64(counter, 0)
    parts = size // part_bytes
    for thread in prange(threads):
        while True:
            work = fetch_add(counter, 1)
            if work >= parts * len(addresses):
                break
            start = addresses[work // parts] + work % parts * part_bytes
            a = b = c = d = load_i8x32(start)
            for i in range(start, start + part_bytes, 128):
                prefetch(i + 2048)
                prefetch(i + 2112)
                a = add_int(a, load_i8x32(i))
                b = add_int(b, load_i8x32(i + 32))
                c = add_int(c, load_i8x32(i + 64))
                d = add_int(d, load_i8x32(i + 96))
            store_i8x32(scratch + SCRATCH_BYTES * thread, add_int(add_int(a, b), add_int(c, d)))
