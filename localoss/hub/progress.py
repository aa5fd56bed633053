"""What a pull tells while it goes on."""


class Progress:
    """Told of everything that happens; does nothing by itself. The command line has one that shows it."""

    def say(self, text: str) -> None:
        """A line of its own: a wait, a file that comes again."""

    def begin(self, shards: dict[str, int], here: dict[str, int]) -> None:
        """`shards` will be needed, of these sizes in bytes; of each, `here` is on this disk already."""

    def fetched(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """So much of a file is here."""

    def converted(self, done_bytes: int, total_bytes: int) -> None:
        """So much of the model directory is written."""
