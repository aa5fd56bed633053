"""What a GPU does beyond what WebGPU promises, found out by running it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localoss.errors import GpuError
from localoss.gpu.device import Device, Dispatch
from localoss.gpu.sources import source
from quant.format.numbers import FP4_VALUES

FP4_FILES = ("fp4_halves", "fp4_integers")  # of shaders/: fewest instructions first


class Features(NamedTuple):
    """What shaders of a device are made of: how MXFP4's codes are decoded, and whether subgroups add up."""

    fp4_file: str
    subgroups: bool


def features_of(device: Device) -> Features:
    return Features(fp4_file(device), adds_by_subgroups(device))


def fp4_numbers(device: Device, file: str, codes: NDArray[Any]) -> NDArray[np.float32]:
    """Codes (4, 8) of E2M1 numbers, decoded by `file`.wgsl there, f32."""
    rows = codes.astype(np.uint32).reshape(4, 2, 4)
    packed = rows[:, 0] | rows[:, 1] << 4  # (4, 4): a byte has columns i and 4 + i
    words = (packed << (8 * np.arange(4, dtype=np.uint32))).sum(axis=1).astype(np.uint32)
    kernel = device.kernel(source("mxfp4", file, "fp4_numbers"), "rrw")
    out = device.buffer(codes.size * 4)
    bound = device.bind(kernel, [device.upload(words), device.upload(None), out])
    (data,) = device.run([Dispatch(kernel, bound, 1)], [(out, 0, codes.size * 4)])
    return np.frombuffer(data, np.float32).reshape(2, 4, 4).transpose(1, 0, 2).reshape(4, 8)


def fp4_file(device: Device) -> str:
    """The first of FP4_FILES that is right on `device`. Whether it is the faster one, no card has told yet.

    WGSL leaves it open whether a subnormal float16 number is read as zero.
    """
    codes = np.arange(32).reshape(4, 8) % 16
    found = fp4_numbers(device, "fp4_halves", codes)
    return "fp4_halves" if np.array_equal(found, FP4_VALUES[codes]) else "fp4_integers"


def adds_by_subgroups(device: Device) -> bool:
    """Whether sums over a workgroup by subgroups are right there: it may have none, or too small ones."""
    if not device.has_subgroups:
        return False
    x = np.random.RandomState(1).randint(-99, 99, (3, 256)).astype(np.float32)
    try:
        kernel = device.kernel(source("whole_subgroups", "whole_check", THREADS=256), "rw")
    except GpuError:
        return False
    out = device.buffer(24)
    work = [Dispatch(kernel, device.bind(kernel, [device.upload(x), out]), 3)]
    (data,) = device.run(work, [(out, 0, 24)])
    return np.array_equal(np.frombuffer(data, np.float32).reshape(3, 2).T, [x.sum(1), x.max(1)])
