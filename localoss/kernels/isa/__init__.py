"""The one place that knows instruction sets: which this CPU has, and the operations that differ.

NAME is "vnni", "avx2" or "portable". All give the same integers; LOCALOSS_SIMD forces one by name.
"""

import platform
from importlib import import_module

from llvmlite import binding as llvm

from localoss import settings
from localoss.errors import UsageError

NAMES = ("vnni", "avx2", "portable")  # the fastest first


def available() -> list[str]:
    """The instruction sets that this CPU can run, the fastest first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["portable"]
    features = llvm.get_host_cpu_features()
    avx2 = all(features.get(name) for name in ("avx2", "fma", "f16c"))
    avx512 = features.get("avx512vnni") and features.get("avx512vl")
    vnni = avx2 and (features.get("avxvnni") or avx512)
    return [name for name, has in (("vnni", vnni), ("avx2", avx2), ("portable", True)) if has]


def _choose(asked: str | None) -> str:
    """Raises: UsageError if `asked` is no instruction set, or one that this CPU lacks."""
    usable = available()
    if asked is None:
        return usable[0]
    if asked not in usable:
        raise UsageError(f"LOCALOSS_SIMD is {asked!r}; this machine can run {', '.join(usable)}")
    return asked


NAME = _choose(settings.simd())

_isa = import_module(f"localoss.kernels.isa.{NAME}")

OFFSET_4BIT: int = _isa.OFFSET_4BIT
OFFSET_8BIT: int = _isa.OFFSET_8BIT
decode_fp4 = _isa.decode_fp4
decode_int4 = _isa.decode_int4
correction_4bit = _isa.correction_4bit
dot_4bit = _isa.dot_4bit
correction_8bit = _isa.correction_8bit
dot_8bit = _isa.dot_8bit
load_f16 = _isa.load_f16
store_f16 = _isa.store_f16
