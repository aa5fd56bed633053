"""What keeps cpython's process apart from all else, by the system's own means."""

from abc import ABC, abstractmethod


class Cage(ABC):
    """python: what runs inside. child: where sandbox_child.py is there. environment: all of it. filter: of
    system calls, as base64; "" for none. bounds_itself: whether memory and disk have bounds that the system
    holds. scratch: the folder outside that is written to, if there is one.
    """

    python: str
    child: str
    environment: dict[str, str]
    filter: str
    bounds_itself = True
    scratch = ""

    @abstractmethod
    def command(self) -> list[str]:
        """What stands before the program that is kept."""

    def close(self) -> None:  # noqa: B027 - most leave nothing behind
        """Remove what was scratch."""
