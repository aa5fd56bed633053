"""The one place that knows instruction sets: which this CPU has, and the operations that differ.

NAME is "avx512", "vnni", "avx2", "neon" or "portable". All give the same integers; LOCALOSS_SIMD forces one
by name.
"""

import ctypes
import platform
import sys
from importlib import import_module

from llvmlite import binding as llvm
from numba import config
from numba.core.registry import cpu_target

from localoss import settings
from localoss.errors import UsageError

_X86, _ARM64 = ("x86_64", "amd64"), ("arm64", "aarch64")
_AT_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20  # where Linux tells what an arm64 has, and sdot's bit


def _llvm_features() -> dict[str, bool]:
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM knows nothing about this CPU
        return {}


def _has_sdot() -> bool:
    """Whether this arm64 has the dot product instructions. On Linux and macOS LLVM doesn't look for them."""
    if sys.platform != "linux":
        return sys.platform == "darwin" or _llvm_features().get("dotprod", False)
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return bool(getauxval(_AT_HWCAP) & _HWCAP_ASIMDDP)


def _compiles_sdot() -> bool:
    """Have Numba compile for a CPU with sdot; whether it does. Not if it has compiled for another before."""
    known = {**_llvm_features(), "dotprod": True}
    if config.CPU_FEATURES is None:
        config.CPU_FEATURES = ",".join(f"{'+' if has else '-'}{name}" for name, has in sorted(known.items()))
    _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return cpu.startswith("apple-") or "+dotprod" in features.split(",")


def available() -> list[str]:
    """The instruction sets that this CPU can run, the fastest first."""
    machine, features = platform.machine().lower(), _llvm_features()
    has = {"portable"}
    if machine in _ARM64 and _has_sdot() and _compiles_sdot():
        has.add("neon")
    if machine in _X86 and all(features.get(name) for name in ("avx2", "fma", "f16c")):
        has.add("avx2")
        if features.get("avxvnni") or (features.get("avx512vnni") and features.get("avx512vl")):
            has.add("vnni")
        if all(features.get(f"avx512{name}") for name in ("f", "bw", "dq", "vl", "vbmi", "vnni")):
            has.add("avx512")
    return [name for name in settings.SIMD_NAMES if name in has]


def cpu_name() -> str:
    """What LLVM calls this CPU, such as znver4."""
    return str(llvm.get_host_cpu_name())


def _streams_well() -> bool:
    """Whether this CPU reads as fast when it is told that a line is read once (prefetchnta, pldl1strm).

    Intel's keep such a line in L1 alone, where the hardware's own prefetching doesn't follow it.
    """
    if platform.machine().lower() not in _X86:
        return True
    return cpu_name().startswith(("znver", "bdver", "btver"))


def _choose(asked: str | None) -> str:
    """Raises: UsageError if `asked` is no instruction set, or one that this CPU lacks."""
    usable = available()
    if asked is None:
        return usable[0]
    if asked not in usable:
        raise UsageError(f"LOCALOSS_SIMD is {asked!r}; this machine can run {', '.join(usable)}")
    return asked


NAME = _choose(settings.simd())
STREAMS_WELL = _streams_well()

_isa = import_module(f"localoss.kernels.isa.{NAME}")

OFFSET_4BIT: int = _isa.OFFSET_4BIT
OFFSET_8BIT: int = _isa.OFFSET_8BIT
decode_fp4 = _isa.decode_fp4
decode_int4 = _isa.decode_int4
correction_4bit = _isa.correction_4bit
dot_4bit = _isa.dot_4bit
correction_8bit = _isa.correction_8bit
dot_8bit = _isa.dot_8bit
FOLDS_EXPONENTS: bool = hasattr(_isa, "dot_4bit_scaled")  # whether MXFP4's scales cost nothing there
dot_4bit_scaled, powers_of_two = (getattr(_isa, name, None) for name in ("dot_4bit_scaled", "powers_of_two"))
_PAIRS = ("fp4", "int4", "8bit")
HAS_PAIRS: bool = hasattr(_isa, "add_to_pair")  # whether two row groups are multiplied at once
load_fp4_pair, load_int4_pair, load_8bit_pair = (getattr(_isa, f"load_{name}_pair", None) for name in _PAIRS)
load_fp4_scales_pair, load_f16_pair, correction_pair, add_to_pair = (
    getattr(_isa, name, None)
    for name in ("load_fp4_scales_pair", "load_f16_pair", "correction_pair", "add_to_pair")
)
load_f16 = _isa.load_f16
store_f16 = _isa.store_f16
F32_LANES: int = _isa.F32_LANES  # of a vector in wide.py
TILE_ROWS: int = _isa.TILE_ROWS  # as many as the registers hold: see wide.py
load_f16w = _isa.load_f16w  # F32_LANES of them
dot_fp4_tile, dot_int4_tile, dot_int8_tile = _isa.dot_fp4_tile, _isa.dot_int4_tile, _isa.dot_int8_tile
