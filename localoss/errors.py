"""Errors whose message is for the user: one line that says what is wrong and what to do about it."""

from quant.errors import LocalossError

__all__ = [
    "Cancelled",
    "ContextFullError",
    "DeviceLost",
    "GpuError",
    "LocalossError",
    "ModelError",
    "TooManyTokensError",
    "UsageError",
]


class UsageError(LocalossError):
    """The request itself cannot be met as asked: a wrong option, model or path."""

    exit_code = 2


class ModelError(LocalossError):
    """A model directory is missing, incomplete, damaged, or of a kind that localoss does not run."""

    exit_code = 2


class ContextFullError(LocalossError):
    """More tokens than the context holds."""


class TooManyTokensError(ContextFullError):
    """A text that is not tokenized to its end, for what there is of it already doesn't fit."""

    def __init__(self, tokens: int) -> None:
        """tokens: how many there are at least."""
        super().__init__(f"the text has at least {tokens:,} tokens, more than the context holds")
        self.tokens = tokens

    def __reduce__(self) -> tuple[type["TooManyTokensError"], tuple[int]]:
        return type(self), (self.tokens,)  # a pickle would give it its message


class DeviceLost(LocalossError):
    """What ran some of the layers can't be used any more; something else can do what it did."""

    device = "a device"
    goes_on = "it goes on on the CPU"


class GpuError(DeviceLost):
    """The GPU can't be used, or was lost."""

    device = "the GPU"


class Cancelled(LocalossError):
    """The caller asked to stop; what was computed before stays valid."""

    exit_code = 130
