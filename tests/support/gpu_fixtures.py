"""What tests of layers on a GPU share: a GPU, or Mesa's lavapipe, which plays one; they skip without."""

import sys

import pytest

from localoss.errors import GpuError


@pytest.fixture(scope="session")
def gpu_adapter():
    """The GPU that the tests run on; with the limits that every GPU has where it is lavapipe."""
    pytest.importorskip("wgpu", reason="wgpu isn't installed: pip install 'localoss[gpu]'")
    from localoss.gpu.adapters import choose_adapter

    with pytest.MonkeyPatch.context() as patch:
        use_software(patch)
        try:
            yield choose_adapter()
        except GpuError as error:
            pytest.skip(f"no GPU, and no lavapipe (apt-get install mesa-vulkan-drivers): {error}")


def gpu_of(engine):
    """The layers of `engine` that run on a GPU; None if the CPU runs all."""
    from localoss.gpu.layers import GpuLayers

    last = engine.model.stacks[-1]
    return last if isinstance(last, GpuLayers) else None


def use_software(patch: pytest.MonkeyPatch) -> None:
    """Let an adapter of lavapipe's do: without a screen, and without a look at OpenGL."""
    patch.setenv("LOCALOSS_SOFTWARE_GPU", "1")
    if sys.platform == "linux":
        patch.setenv("WGPU_BACKEND_TYPE", "Vulkan")
        patch.setenv("XDG_RUNTIME_DIR", "/tmp")
