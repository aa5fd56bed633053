"""An open GPU: buffers, compiled shaders, and lists of dispatches that run in one submit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localoss.errors import GpuError
from localoss.gpu.adapters import Adapter

Reading = tuple[Any, int, int]  # of a buffer, from an offset on, so many bytes

_PIECE_BYTES = 32 << 20  # how much is on its way to the GPU at a time: it is in memory twice
_SUBGROUPS = "subgroup"  # wgpu's name of that feature
_MOST_GROUPS = 65_535  # of a dispatch, in each direction
_BUFFERS_OF_A_SHADER = 8
_THREADS_OF_A_GROUP = 256
# Tests run with what every GPU has, so that nothing grows in that only some of them can do.
_BASELINE = {
    "max-storage-buffer-binding-size": 128 << 20,
    "max-buffer-size": 256 << 20,
    "max-storage-buffers-per-shader-stage": _BUFFERS_OF_A_SHADER,
    "max-compute-invocations-per-workgroup": _THREADS_OF_A_GROUP,
    "max-compute-workgroup-size-x": _THREADS_OF_A_GROUP,
    "max-compute-workgroup-storage-size": 16_384,
    "min-storage-buffer-offset-alignment": 256,
    "min-uniform-buffer-offset-alignment": 256,
}


@dataclass(frozen=True)
class Kernel:
    """A compiled shader, and the layout of what it binds."""

    pipeline: Any
    layout: Any


@dataclass(frozen=True)
class Dispatch:
    """A kernel with its buffers, over `x` by `y` workgroups."""

    kernel: Kernel
    bindings: Any
    x: int
    y: int = 1


@dataclass(frozen=True)
class Recording:
    """Commands that are ready to be submitted, once, and the sizes of what they leave in `landing`."""

    commands: Any
    sizes: list[int]
    landing: Any
    dispatches: int


@dataclass
class Traffic:
    """What went to a GPU and came back; written_bytes without the few that `uniform` begins with."""

    dispatches: int = 0
    submits: int = 0
    read_backs: int = 0
    written_bytes: int = 0
    read_bytes: int = 0

    def since(self, before: "Traffic") -> "Traffic":
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Traffic(*(now - then for now, then in pairs))

    def add(self, other: "Traffic") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Device:
    """A GPU that is open. Raises: GpuError from every method, if the driver fails or the device is lost."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        wanted = dict(_BASELINE)
        if not adapter.is_software:
            for name in ("max-storage-buffer-binding-size", "max-buffer-size"):
                wanted[name] = adapter.limits[name]
        self.has_subgroups = _SUBGROUPS in adapter.handle.features
        features = [_SUBGROUPS] if self.has_subgroups else []
        with _explained("it could not be opened"):
            self._device = adapter.handle.request_device_sync(
                required_limits=wanted, required_features=features
            )
        self._queue = self._device.queue
        self.most_bytes = min(wanted["max-storage-buffer-binding-size"], wanted["max-buffer-size"])
        self.allocated_bytes = 0
        self.traffic = Traffic()  # since the start
        self._landing: Any = None  # where results are read from
        self._empty = self.buffer(256)

    def buffer(self, size: int) -> Any:
        """A buffer of `size` bytes, all zero."""
        import wgpu

        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        size = max(-(-size // 16) * 16, 16)
        if size > self.most_bytes:
            raise GpuError(f"it binds buffers of up to {self.most_bytes:,} bytes, and {size:,} are needed")
        with _explained(f"{size:,} bytes could not be had"):
            made = self._device.create_buffer(size=size, usage=usage)
        self.allocated_bytes += size
        return made

    def uniform(self, *values: int) -> Any:
        """A buffer of a few numbers that a shader reads as `var<uniform>`."""
        import wgpu

        data = np.array([*values, *[0] * (-len(values) % 4)], np.uint32)
        with _explained("a few bytes could not be had"):
            usage = wgpu.BufferUsage.UNIFORM | wgpu.BufferUsage.COPY_DST
            made = self._device.create_buffer(size=data.nbytes, usage=usage)
            self._queue.write_buffer(made, 0, data)
        return made

    def upload(self, array: NDArray[Any] | None) -> Any:
        """A buffer that holds the bytes of `array`; for None one that is bound where nothing is read."""
        if array is None:
            return self._empty
        made = self.buffer(array.nbytes)
        self.write(made, array)
        return made

    def write(self, buffer: Any, array: NDArray[Any], offset: int = 0) -> None:
        """Copy the bytes of `array` to `buffer`, before whatever is submitted next."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if len(data) % 4:
            data = np.concatenate([data, np.zeros(-len(data) % 4, np.uint8)])
        self.traffic.written_bytes += len(data)
        with _explained("writing to it failed"):
            for first in range(0, len(data), _PIECE_BYTES):
                self._queue.write_buffer(buffer, offset + first, data[first : first + _PIECE_BYTES])
                if len(data) > _PIECE_BYTES:
                    self.wait()

    def kernel(self, source: str, access: str) -> Kernel:
        """Compile `source`, whose bindings 0, 1, … are read-only (r), written (w) or uniform (u)."""
        import wgpu

        kinds = {"r": "read-only-storage", "w": "storage", "u": "uniform"}
        entries: list[Any] = [
            {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kinds[kind]}}
            for i, kind in enumerate(access)
        ]
        with _explained("a shader could not be compiled"):
            layout = self._device.create_bind_group_layout(entries=entries)
            pipeline = self._device.create_compute_pipeline(
                layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": self._device.create_shader_module(code=source), "entry_point": "main"},
            )
        return Kernel(pipeline, layout)

    def bind(self, kernel: Kernel, buffers: Sequence[Any]) -> Any:
        entries: list[Any] = [
            {"binding": i, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}}
            for i, buffer in enumerate(buffers)
        ]
        with _explained("a shader could not be given its buffers"):
            return self._device.create_bind_group(layout=kernel.layout, entries=entries)

    def run(self, work: Sequence[Dispatch], reading: Sequence[Reading] = ()) -> list[bytes]:
        """Run `work` in one submit; what `reading` names is one read-back."""
        return self.submit(self.record(work, reading))

    def record(self, work: Sequence[Dispatch], reading: Sequence[Reading] = ()) -> Recording:
        """The commands that run `work` and fetch what `reading` names."""
        total = sum(size for _, _, size in reading)
        if total and (self._landing is None or self._landing.size < total):
            self._landing = self._new_landing(total)
        with _explained("it failed while computing"):
            encoder = self._device.create_command_encoder()
            if work:
                _encode(encoder, work)
            at = 0
            for buffer, offset, size in reading:
                encoder.copy_buffer_to_buffer(buffer, offset, self._landing, at, size)
                at += size
            sizes = [size for _, _, size in reading]
            return Recording(encoder.finish(), sizes, self._landing, len(work))

    def submit(self, recording: Recording, meanwhile: Callable[[], None] = lambda: None) -> list[bytes]:
        """Run `recording`; what it reads, after `meanwhile` was called while the GPU computes."""
        with _explained("it failed while computing"):
            self._queue.submit([recording.commands])
            self.traffic.submits += 1
            self.traffic.dispatches += recording.dispatches
        meanwhile()
        with _explained("it failed while computing"):
            return self._read(recording) if recording.sizes else []

    def wait(self) -> None:
        """Until all that was written and submitted is done.

        By reading something: wgpu 0.32's on_submitted_work_done raises a TypeError.
        """
        self.run([], self.anything)

    @property
    def anything(self) -> list[Reading]:
        """The least that can be read: to wait for what was submitted."""
        return [(self._empty, 0, 16)]

    def destroy(self) -> None:
        """Give its memory back; whatever uses the device afterwards fails."""
        with _explained("it could not be closed"):
            self._device.destroy()

    def _new_landing(self, size: int) -> Any:
        import wgpu

        with _explained(f"{size:,} bytes could not be had"):
            usage = wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST
            return self._device.create_buffer(size=size, usage=usage)

    def _read(self, recording: Recording) -> list[bytes]:
        landing, total = recording.landing, sum(recording.sizes)
        landing.map_sync("READ", 0, total)
        data = bytes(landing.read_mapped(0, total))
        landing.unmap()
        self.traffic.read_backs += 1
        self.traffic.read_bytes += total
        ends = np.cumsum(recording.sizes).tolist()
        return [data[end - size : end] for end, size in zip(ends, recording.sizes, strict=True)]


def _encode(encoder: Any, work: Sequence[Dispatch]) -> None:
    compute = encoder.begin_compute_pass()
    kernel = None
    for dispatch in work:
        if dispatch.kernel is not kernel:
            kernel = dispatch.kernel
            compute.set_pipeline(kernel.pipeline)
        compute.set_bind_group(0, dispatch.bindings)
        compute.dispatch_workgroups(dispatch.x, dispatch.y, 1)
    compute.end()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever wgpu raises becomes a GpuError of one line."""
    import wgpu

    try:
        yield
    except (wgpu.GPUError, wgpu.GPUPipelineError, RuntimeError) as error:
        reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
        last = reasons[-1] if reasons else type(error).__name__
        raise GpuError(f"{what} ({last})") from error
