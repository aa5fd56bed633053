"""A GPU that is lost at a chosen moment."""

from localoss.gpu.device import Device


def lose_at(monkeypatch, where, call):
    """Have the GPU lost at the `call`-th call of Device's method `where`."""
    real, calls = getattr(Device, where), []

    def lose(self, *arguments):
        calls.append(where)
        if len(calls) == call:
            self._device.destroy()
        return real(self, *arguments)

    monkeypatch.setattr(Device, where, lose)
