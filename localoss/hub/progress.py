"""What a pull tells while it goes on."""

from collections.abc import Sequence

from localoss.hub.listing import RemoteFile


class Progress:
    """Told of everything that happens; does nothing by itself. The command line has one that shows it."""

    def say(self, text: str) -> None:
        """A line of its own: a wait, a file that comes again."""

    def begin(self, files: Sequence[RemoteFile], here: dict[str, int]) -> None:
        """`files` will be needed; of each, so many bytes are `here`, on this disk, already."""

    def fetched(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """So much of a file is here."""

    def converted(self, done_bytes: int, total_bytes: int) -> None:
        """So much of the model directory is written."""
