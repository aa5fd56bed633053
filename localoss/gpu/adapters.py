"""The GPUs of this machine, and what is known of their memory."""

from dataclasses import dataclass, field
from typing import Any

from localoss import settings
from localoss.errors import GpuError, UsageError

# What the shaders need; WebGPU's own baseline promises as much.
_NEEDED = {
    "max-storage-buffer-binding-size": 128 << 20,
    "max-buffer-size": 256 << 20,
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-storage-size": 16_384,
}
_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "software"}


@dataclass(frozen=True)
class Adapter:
    """A GPU as one driver offers it. `kind`: discrete, integrated, software or unknown."""

    name: str
    kind: str
    backend: str
    driver: str
    limits: dict[str, int]
    handle: Any = field(repr=False, compare=False, default=None)

    @property
    def is_software(self) -> bool:
        return self.kind == "software"

    @property
    def missing(self) -> list[str]:
        """The limits that are too low for localoss."""
        return [name for name, least in _NEEDED.items() if self.limits.get(name, 0) < least]


def all_adapters() -> list[Adapter]:
    """Every adapter that a driver offers, software ones too. Raises: UsageError without wgpu, GpuError."""
    wgpu = _wgpu()
    try:
        return [_adapter(handle) for handle in wgpu.gpu.enumerate_adapters_sync()]
    except Exception as error:
        raise GpuError(f"its driver failed ({_last_line(error)})") from error


def choose_adapter() -> Adapter:
    """The GPU to run on: the fastest kind. Raises: UsageError without wgpu; GpuError if there is none."""
    wgpu = _wgpu()
    try:
        handle = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except Exception as error:  # wgpu says that there is none by a RuntimeError, drivers fail as they like
        raise GpuError(f"none was found ({_last_line(error)})") from error
    if handle is None:
        raise GpuError("none was found")
    adapter = _adapter(handle)
    if adapter.is_software and not settings.software_gpu():
        raise GpuError(f"none was found, only {adapter.name}, which runs on the CPU")
    if adapter.missing:
        raise GpuError(f"{adapter.name} lacks what localoss needs: {', '.join(adapter.missing)}")
    return adapter


def _wgpu() -> Any:
    try:
        import wgpu
    except ModuleNotFoundError:
        raise UsageError("layers on a GPU need wgpu: pip install 'localoss[gpu]'") from None
    return wgpu


def _adapter(handle: Any) -> Adapter:
    info = handle.info
    return Adapter(
        name=str(info["device"] or info["vendor"] or "a GPU without a name"),
        kind=_KINDS.get(str(info["adapter_type"]), "unknown"),
        backend=str(info["backend_type"]),
        driver=str(info["description"]),
        limits={name: int(handle.limits.get(name, 0)) for name in _NEEDED},
        handle=handle,
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
